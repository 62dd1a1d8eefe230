//! Filtered blocks of the last moments, so that subscriptions with the same selections filter each block once and send the
//! same bytes.
//!
//! Invariant: a block is known by the address of its entries, and is held for as long as that address is a key. When the
//! limit is reached, the oldest are forgotten; whoever needs one again filters again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tidegate_model::Block;

use crate::{
    delivery::{Carry, Delivery, Filtered, filter, filter_note},
    metrics::GatewayMetrics,
    router::Piece,
    selection::{Plan, RowTypeLookup},
    status::GatewayError,
};

/// Plan and block.
type Key = (u64, usize);

/// The cache.
pub(crate) struct ShareCache {
    byte_count_max: usize,
    metrics: Arc<GatewayMetrics>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    filtered: HashMap<Key, Arc<Shared>>,
    oldest_first: VecDeque<(Key, usize)>,
    byte_count: usize,
}

/// A block, and its filtered form as soon as the first subscription has made it.
struct Shared {
    block: Block,
    filtered: OnceLock<Option<Arc<Filtered>>>,
}

impl ShareCache {
    pub(crate) fn new(byte_count_max: usize, metrics: Arc<GatewayMetrics>) -> Self {
        ShareCache { byte_count_max, metrics, recent: Mutex::default() }
    }

    /// The piece as the plan, or whom a note is for, filters it at this point of a delivery.
    pub(crate) fn filtered(
        &self,
        plan: &Arc<Plan>,
        piece: &Piece<Plan>,
        delivery: &Delivery,
        lookup: &impl RowTypeLookup,
    ) -> Result<Arc<Filtered>, GatewayError> {
        let carry = delivery.carry();
        match piece {
            Piece::Block(block) => self.block(plan, block.clone(), carry, lookup),
            Piece::Note { note, subject, is_shared } => {
                let filtered = || filter_note(subject, note, carry.clone(), lookup).map(Arc::new);
                if carry.is_start() || !is_shared {
                    self.metrics.block(false);
                    return filtered();
                }
                self.once(&note.filtered, filtered)
            }
        }
    }

    fn block(
        &self,
        plan: &Arc<Plan>,
        block: Block,
        carry: Carry,
        lookup: &impl RowTypeLookup,
    ) -> Result<Arc<Filtered>, GatewayError> {
        // A subscription's first block may hold transactions that it has, which others need.
        if carry.is_start() || Arc::strong_count(plan) == 1 {
            self.metrics.block(false);
            return filter(plan, &block, carry, lookup).map(Arc::new);
        }
        let shared = self.entry(plan.id, block);
        self.once(&shared.filtered, || filter(plan, &shared.block, carry.clone(), lookup).map(Arc::new))
    }

    /// What the first subscription has made, or makes.
    fn once(
        &self,
        shared: &OnceLock<Option<Arc<Filtered>>>,
        filter: impl Fn() -> Result<Arc<Filtered>, GatewayError>,
    ) -> Result<Arc<Filtered>, GatewayError> {
        let mut failed = None;
        let mut made = false;
        let filtered = shared.get_or_init(|| {
            made = true;
            filter().map_err(|error| failed = Some(error)).ok()
        });
        self.metrics.block(!made);
        match (filtered, failed) {
            (Some(filtered), _) => Ok(Arc::clone(filtered)),
            (None, Some(error)) => Err(error),
            // Another subscription has met the error: meet it again, to report it here too.
            (None, None) => filter(),
        }
    }

    fn entry(&self, plan: u64, block: Block) -> Arc<Shared> {
        let key = (plan, block.entries().as_ptr() as usize);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = recent.filtered.get(&key) {
            return Arc::clone(shared);
        }
        // What filtering adds is at most about the block's size again.
        let byte_count = 2 * block.byte_count();
        recent.byte_count += byte_count;
        recent.oldest_first.push_back((key, byte_count));
        while recent.byte_count > self.byte_count_max
            && let Some((oldest, byte_count)) = recent.oldest_first.pop_front()
        {
            recent.byte_count -= byte_count;
            recent.filtered.remove(&oldest);
        }
        let shared = Arc::new(Shared { block, filtered: OnceLock::new() });
        // A block that is over the limit by itself was the last to be forgotten.
        if recent.byte_count > 0 {
            recent.filtered.insert(key, Arc::clone(&shared));
        }
        shared
    }
}
