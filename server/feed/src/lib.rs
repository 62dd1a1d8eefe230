//! Ordered transport of blocks from the capture of a source to its stores, and of the durable position back.
//!
//! ```text
//! capture ─▶ Publish ──FeedItem: Epoch | Timeline | DeliveredUpTo | Block──▶ Receive ─▶ store
//!            durable() ◀────────────── watch: Durable ──────────────────── report()
//! ```
//!
//! Invariant: what is received is what was published, in that order, nothing missing and nothing twice. It deliberately
//! keeps nothing: after a crash capture publishes again from the last durable position, out of PostgreSQL's WAL.

use std::{future::Future, sync::Arc};

use tidegate_model::{Block, Epoch, EpochInfo, Lsn, Position};
use tokio::sync::watch;

pub mod local;

/// What the feed carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedItem {
    /// Continuity is lost, for this reason, or this is the first epoch: everything before belongs to another history.
    Epoch(EpochInfo, Option<Arc<str>>),
    /// The same epoch goes on on another timeline.
    Timeline(EpochInfo),
    /// A stop that was not orderly may have lost what had been delivered; it was no more than up to here, and comes again.
    DeliveredUpTo(Lsn),
    /// The next records of the current epoch.
    Block(Block),
}

/// How far the receiving side has it on disk. What is not yet durable may have to be published again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// Everything up to here is fsynced; the end of a transaction, message or progress.
    pub position: Position,
    /// The epoch that the position belongs to; None before the first.
    pub epoch: Option<Epoch>,
    /// The disk is full: the receiver has stopped taking items, and goes on by itself when there is room.
    pub disk_full: bool,
}

/// The receiving side is gone: nothing more can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has stopped receiving; its own error says why")]
pub struct FeedClosed;

impl FeedClosed {
    /// A closed feed stays closed.
    #[must_use]
    pub fn retry(&self) -> tidegate_model::Retry {
        tidegate_model::Retry::Never
    }
}

/// The capturing side of a feed.
pub trait Publish: Send {
    /// Hands over the next item; waits while too many bytes are in flight. When the future is dropped before it is ready,
    /// the item is not published.
    ///
    /// # Errors
    /// The receiving side is gone.
    fn publish(&mut self, item: FeedItem) -> impl Future<Output = Result<(), FeedClosed>> + Send;

    /// What the receiving side has made durable.
    fn durable(&self) -> watch::Receiver<Durable>;
}

/// The storing side of a feed.
pub trait Receive: Send {
    /// The next item, or None when the capturing side is gone and all that it published was received,
    /// and then always None. Cancel safe: when the
    /// future is dropped before it is ready, no item is lost. Returns the bytes of the item before to the budget.
    fn next(&mut self) -> impl Future<Output = Option<FeedItem>> + Send;

    /// Tells the capturing side what is durable.
    fn report(&self, durable: Durable);
}
