//! What the reading side and the answering side of a capture share.

use std::sync::Mutex;

use tidegate_feed::Durable;
use tidegate_model::{Clock, Lsn};
use tokio::sync::{Notify, watch};

use crate::{
    assembler::ConfirmPoint,
    confirm::Confirmations,
    status::{CaptureStatus, State},
};

const DISK_FULL: &str = "the disk below data_dir is full: nothing is confirmed, PostgreSQL keeps its WAL; free space, \
                         lower retention.size or extend the disk, and capture goes on by itself";

/// Shared state of one capture. Locks are held for a few instructions, never across an await.
#[derive(Debug)]
pub(crate) struct Link {
    confirmations: Mutex<Confirmations>,
    status: watch::Sender<CaptureStatus>,
    /// The server wants an answer now.
    pub(crate) answer_now: Notify,
}

impl Link {
    pub(crate) fn new(status: watch::Sender<CaptureStatus>) -> Self {
        Link { confirmations: Mutex::default(), status, answer_now: Notify::new() }
    }

    /// Changes the confirmations.
    pub(crate) fn confirmations<T>(&self, change: impl FnOnce(&mut Confirmations) -> T) -> T {
        let mut guard = self.confirmations.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut guard)
    }

    /// A block has been handed to the feed.
    pub(crate) fn published(&self, point: Option<ConfirmPoint>, received_lsn: Lsn, event_count: u64) {
        if let Some(point) = point {
            self.confirmations(|confirmations| confirmations.published(point));
        }
        self.status.send_modify(|status| {
            status.received_lsn = received_lsn;
            status.event_count += event_count;
        });
    }

    /// The server has said where its WAL ends.
    pub(crate) fn heard(&self, server_lsn: Lsn, clock: &dyn Clock) {
        let now_us = clock.now_us();
        self.status.send_modify(|status| {
            status.server_lsn = status.server_lsn.max(server_lsn);
            status.last_heard_us = now_us;
        });
    }

    /// What the store has made durable: what may be confirmed.
    pub(crate) fn durable(&self, durable: Durable) -> Lsn {
        let Durable { position, epoch, disk_full } = durable;
        let confirmed_flush_lsn = self.confirmations(|confirmations| confirmations.durable(epoch, position));
        self.status.send_if_modified(|status| {
            let state = match (status.state, disk_full) {
                (State::Streaming, true) => State::DiskFull,
                (State::DiskFull, false) => State::Streaming,
                (state, _) => state,
            };
            let before = (status.state, status.durable_lsn, status.confirmed_flush_lsn);
            if state != status.state {
                status.detail = if disk_full { DISK_FULL.to_owned() } else { String::new() };
            }
            status.state = state;
            status.durable_lsn = position.lsn;
            status.confirmed_flush_lsn = confirmed_flush_lsn;
            before != (state, position.lsn, confirmed_flush_lsn)
        });
        confirmed_flush_lsn
    }

    /// Changes the status that others see.
    pub(crate) fn update(&self, change: impl FnOnce(&mut CaptureStatus)) {
        self.status.send_modify(change);
    }

    /// The status as it stands.
    pub(crate) fn subscribe(&self) -> watch::Receiver<CaptureStatus> {
        self.status.subscribe()
    }
}
