//! The feed within one process: a queue bounded in bytes.
//!
//! Invariant: the bytes of all blocks that are published and not yet done with never exceed the budget, save for a single
//! block that is larger than the budget and then travels alone. A block is done with when its receiver asks for the next
//! one. When the budget is used up, `publish` waits; nothing is dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::{Durable, FeedClosed, FeedItem, Publish, Receive};

/// Bound on the number of items in flight, so that tiny blocks cannot pile up unseen by the byte budget.
const ITEM_COUNT_MAX: usize = 4096;
/// What an item costs besides its block's bytes.
const ITEM_BYTES: usize = 64;

/// Makes a feed that holds at most `budget_bytes` in flight. `start` is what is durable before the first report.
#[must_use]
pub fn channel(budget_bytes: usize, start: Durable) -> (Publisher, Subscriber) {
    let budget_bytes = u32::try_from(budget_bytes.max(1)).unwrap_or(u32::MAX).min(1 << 30);
    let budget = Arc::new(Semaphore::new(budget_bytes as usize));
    let (sender, receiver) = mpsc::channel(ITEM_COUNT_MAX);
    let (report, durable) = watch::channel(start);
    let publisher = Publisher { sender, budget: Arc::clone(&budget), budget_bytes, durable };
    (publisher, Subscriber { receiver, budget, in_hand: None, report })
}

/// The capturing side.
#[derive(Debug)]
pub struct Publisher {
    sender: mpsc::Sender<(FeedItem, OwnedSemaphorePermit)>,
    budget: Arc<Semaphore>,
    budget_bytes: u32,
    durable: watch::Receiver<Durable>,
}

impl Publish for Publisher {
    async fn publish(&mut self, item: FeedItem) -> Result<(), FeedClosed> {
        let byte_count = ITEM_BYTES
            + match &item {
                FeedItem::Epoch(..) | FeedItem::Timeline(_) | FeedItem::DeliveredUpTo(_) => 0,
                FeedItem::Block(block) => block.byte_count(),
            };
        let cost = u32::try_from(byte_count).unwrap_or(u32::MAX).min(self.budget_bytes);
        let permit = Arc::clone(&self.budget).acquire_many_owned(cost).await.map_err(|_| FeedClosed)?;
        self.sender.send((item, permit)).await.map_err(|_| FeedClosed)
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.clone()
    }
}

/// The storing side. Dropping it closes the feed.
#[derive(Debug)]
pub struct Subscriber {
    receiver: mpsc::Receiver<(FeedItem, OwnedSemaphorePermit)>,
    budget: Arc<Semaphore>,
    /// Budget of the item that was handed out last.
    in_hand: Option<OwnedSemaphorePermit>,
    report: watch::Sender<Durable>,
}

impl Receive for Subscriber {
    async fn next(&mut self) -> Option<FeedItem> {
        self.in_hand = None;
        let (item, permit) = self.receiver.recv().await?;
        self.in_hand = Some(permit);
        Some(item)
    }

    fn report(&self, durable: Durable) {
        self.report.send_if_modified(|now| std::mem::replace(now, durable) != durable);
    }
}

impl Drop for Subscriber {
    /// Wakes a publisher that waits for budget; it then finds the feed closed.
    fn drop(&mut self) {
        self.budget.close();
    }
}
