//! Filtered blocks of the last moments, so that subscriptions with the same selections filter each block once and send the
//! same bytes.
//!
//! Invariant: a block is known by the address of its entries, and is held for as long as that address is a key. When the
//! limit is reached, the oldest are forgotten; whoever needs one again filters again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tidegate_model::Block;

use crate::{
    by_row_type::RowTypeLookup,
    delivery::{Carry, Delivery, Filtered, filter, filter_note, filter_turned},
    metrics::GatewayMetrics,
    router::Piece,
    selection::Plan,
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
    /// With the bytes that each is counted for.
    filtered: HashMap<Key, (Arc<Shared>, usize)>,
    oldest_first: VecDeque<Key>,
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
            Piece::Turned(turned) => filter_turned(turned, carry, lookup).map(Arc::new),
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
        let key = (plan.id, block.entries().as_ptr() as usize);
        let shared = self.entry(key, block);
        self.once(&shared.filtered, || {
            let filtered = filter(plan, &shared.block, carry.clone(), lookup)?;
            // What moves for subqueries may be far more than the block.
            let more = filtered.copied_bytes().saturating_sub(shared.block.byte_count());
            self.recent().grow((key, &shared), more, self.byte_count_max);
            Ok(Arc::new(filtered))
        })
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

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, key: Key, block: Block) -> Arc<Shared> {
        let mut recent = self.recent();
        if let Some((shared, _)) = recent.filtered.get(&key) {
            return Arc::clone(shared);
        }
        // What filtering adds is at most about the block's size again, but for what moves.
        let byte_count = 2 * block.byte_count();
        let shared = Arc::new(Shared { block, filtered: OnceLock::new() });
        recent.oldest_first.push_back(key);
        recent.filtered.insert(key, (Arc::clone(&shared), 0));
        recent.grow((key, &shared), byte_count, self.byte_count_max);
        shared
    }
}

impl Recent {
    /// One is larger than it was counted for: the oldest make room, itself too where it is too large alone.
    fn grow(&mut self, (key, of): (Key, &Arc<Shared>), more: usize, byte_count_max: usize) {
        let Some((_, counted)) = self.filtered.get_mut(&key).filter(|(shared, _)| Arc::ptr_eq(shared, of)) else {
            return;
        };
        *counted += more;
        self.byte_count += more;
        while self.byte_count > byte_count_max
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            let (_, counted) = self.filtered.remove(&oldest).expect("each is in both");
            self.byte_count -= counted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_with_a_block_counts_too() {
        let shared =
            || Arc::new(Shared { block: tidegate_model::BlockBuilder::default().finish(), filtered: OnceLock::new() });
        let mut recent = Recent::default();
        let all: Vec<_> = (0..4).map(|at| ((1, at), shared())).collect();
        for (key, of) in &all {
            recent.oldest_first.push_back(*key);
            recent.filtered.insert(*key, (Arc::clone(of), 0));
            recent.grow((*key, of), 10, 1_000);
        }
        recent.grow((all[3].0, &all[3].1), 980, 1_000);
        assert_eq!((recent.byte_count, recent.filtered.len()), (1_000, 2));
        recent.grow((all[3].0, &all[3].1), 980, 1_000);
        assert_eq!((recent.byte_count, recent.filtered.len(), recent.oldest_first.len()), (0, 0, 0));
        recent.grow((all[3].0, &all[3].1), 980, 1_000);
        assert_eq!(recent.byte_count, 0, "it is not kept any more");
    }
}
