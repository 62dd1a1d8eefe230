//! What the reading side and the answering side of a capture share.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tidegate_feed::Durable;
use tidegate_model::{Clock, Epoch, Lsn, Visibility};
use tokio::sync::{Notify, watch};

use crate::{
    assembler::ConfirmPoint,
    confirm::Confirmations,
    snapshot::{Decoded, Unseen},
    status::{CaptureStatus, NewTable, State},
};

const DISK_FULL: &str = "the disk below data_dir is full: nothing is confirmed, PostgreSQL keeps its WAL; free space, \
                         lower retention.size or extend the disk, and capture goes on by itself";

/// Shared state of one capture. Locks are held for a few instructions, never across an await.
#[derive(Debug)]
pub(crate) struct Link {
    confirmations: Mutex<Confirmations>,
    unseen: Mutex<Unseen>,
    /// What a snapshot of PostgreSQL has seen that was asked for beside this connection, until the reading side takes it.
    polled: Mutex<Option<Visibility>>,
    status: watch::Sender<CaptureStatus>,
    /// The server wants an answer now.
    pub(crate) answer_now: Notify,
    /// We want one: where its WAL ends.
    wants_reply: AtomicBool,
}

impl Link {
    pub(crate) fn new(status: watch::Sender<CaptureStatus>) -> Self {
        Link {
            confirmations: Mutex::default(),
            unseen: Mutex::default(),
            polled: Mutex::default(),
            status,
            answer_now: Notify::new(),
            wants_reply: AtomicBool::new(false),
        }
    }

    /// Changes the confirmations.
    pub(crate) fn confirmations<T>(&self, change: impl FnOnce(&mut Confirmations) -> T) -> T {
        let mut guard = self.confirmations.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut guard)
    }

    fn unseen<T>(&self, change: impl FnOnce(&mut Unseen) -> T) -> T {
        change(&mut self.unseen.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Asks the server where its WAL ends: a keepalive follows.
    pub(crate) fn ask(&self) {
        self.wants_reply.store(true, Relaxed);
        self.answer_now.notify_one();
    }

    /// Was the server to be asked?
    pub(crate) fn take_wants_reply(&self) -> bool {
        self.wants_reply.swap(false, Relaxed)
    }

    /// Transactions that have changed the table, were decoded, and are not known to be visible.
    pub(crate) fn writers(&self, table_oid: u32) -> Vec<u32> {
        self.unseen(|unseen| unseen.writers(table_oid))
    }

    /// A transaction has been decoded, for the first time or again; to be told before any of it is handed to the feed.
    pub(crate) fn decoded(&self, transaction: Decoded) {
        self.unseen(|unseen| unseen.decoded(transaction));
    }

    /// Must a snapshot be asked what it sees, before all that is durable may be confirmed?
    pub(crate) fn waits_for_visibility(&self) -> bool {
        self.unseen(|unseen| !unseen.is_empty())
    }

    /// A snapshot, asked for just now, sees this.
    pub(crate) fn seen(&self, visibility: Visibility) {
        let (before, now) = self.unseen(|unseen| {
            let before = unseen.confirm_floor();
            unseen.prune(&visibility);
            (before, unseen.confirm_floor())
        });
        if before != now {
            self.answer_now.notify_one();
        }
        *self.polled.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(visibility);
    }

    /// What was seen since this was asked. Nothing of an earlier connection may be taken for what this one's server has seen.
    pub(crate) fn take_polled(&self) -> Option<Visibility> {
        self.polled.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// A new epoch: what was published and decoded before does not count.
    pub(crate) fn start_epoch(&self, epoch: Epoch, start_lsn: Lsn) {
        self.confirmations(|confirmations| confirmations.start_epoch(epoch, start_lsn));
        self.unseen(Unseen::start_epoch);
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
        // Asked for after the store has said what is durable: all of that was noted before.
        let floor_lsn = self.unseen(|unseen| unseen.confirm_floor());
        let confirmed_flush_lsn = self.confirmations(|confirmations| confirmations.durable(epoch, position, floor_lsn));
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

    /// The tables that are to be captured and are not, or not from their beginning yet.
    pub(crate) fn new_tables(&self, new_tables: Vec<NewTable>) {
        self.status.send_if_modified(|status| {
            let differs = status.new_tables != new_tables;
            status.new_tables = new_tables;
            differs
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_taken_once_and_only_the_newest() {
        let link = Link::new(watch::Sender::default());
        let visibility = |text: &str| text.parse::<Visibility>().expect("a snapshot");
        link.seen(visibility("10:10:"));
        link.seen(visibility("12:12:"));
        assert_eq!(link.take_polled(), Some(visibility("12:12:")));
        assert_eq!(link.take_polled(), None);
    }
}
