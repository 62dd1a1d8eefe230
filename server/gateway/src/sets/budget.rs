//! What the sets of all shapes of a source may have together: so many bytes, whoever needs them, and queries half of them at most, so that
//! subscriptions which are open have room to grow.
//!
//! Invariant: what a share has taken is given back when it is dropped; what it was refused it has not taken.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{ALL_BYTES_MAX, Ended, QUERY_BYTES_MAX};

/// Bytes that are taken.
#[derive(Default)]
pub(super) struct Budget {
    all: AtomicUsize,
    /// Those of them that queries have.
    of_queries: AtomicUsize,
}

/// What one shape's sets have of them. One task sets it.
pub(super) struct Share {
    budget: Arc<Budget>,
    is_of_query: bool,
    bytes: AtomicUsize,
}

impl Share {
    /// Of sets that are kept for subscriptions.
    pub(super) fn of(budget: &Arc<Budget>) -> Self {
        Share::new(budget, false)
    }

    /// Of sets that are read once.
    pub(super) fn of_query(budget: &Arc<Budget>) -> Self {
        Share::new(budget, true)
    }

    fn new(budget: &Arc<Budget>, is_of_query: bool) -> Self {
        Share { budget: Arc::clone(budget), is_of_query, bytes: AtomicUsize::new(0) }
    }

    /// They are so many now.
    pub(super) fn set(&self, bytes: usize) -> Result<(), Ended> {
        let had = self.bytes.load(Relaxed);
        if bytes > had {
            self.take(bytes - had)?;
        } else {
            self.give_back(had - bytes);
        }
        self.bytes.store(bytes, Relaxed);
        Ok(())
    }

    fn take(&self, more: usize) -> Result<(), Ended> {
        let Budget { all, of_queries } = &*self.budget;
        if self.is_of_query {
            add(of_queries, more, QUERY_BYTES_MAX, "bytes for queries")?;
        }
        add(all, more, ALL_BYTES_MAX, "bytes").inspect_err(|_| {
            if self.is_of_query {
                of_queries.fetch_sub(more, Relaxed);
            }
        })
    }

    fn give_back(&self, less: usize) {
        let Budget { all, of_queries } = &*self.budget;
        all.fetch_sub(less, Relaxed);
        if self.is_of_query {
            of_queries.fetch_sub(less, Relaxed);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.bytes.load(Relaxed));
    }
}

fn add(bytes: &AtomicUsize, more: usize, limit: usize, what: &'static str) -> Result<(), Ended> {
    let sum = |bytes: usize| bytes.checked_add(more).filter(|sum| *sum <= limit);
    match bytes.fetch_update(Relaxed, Relaxed, sum) {
        Ok(_before) => Ok(()),
        Err(_full) => Err(Ended::Crowded { what, limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_no_more_together_than_there_is() {
        let budget = Arc::<Budget>::default();
        let (one, other) = (Share::of(&budget), Share::of(&budget));
        one.set(ALL_BYTES_MAX - 10).expect("there is room");
        other.set(10).expect("there is room");
        let crowded = other.set(11).expect_err("there is no room").refusal();
        assert!(format!("{crowded:?}").contains("TooManySets"), "{crowded:?}");
        drop(other);
        one.set(ALL_BYTES_MAX).expect("there is room again");
        one.set(3).expect("it is less");
        drop(one);
        assert_eq!(budget.all.load(Relaxed), 0);
    }

    #[test]
    fn queries_leave_subscriptions_room_to_grow() {
        let budget = Arc::<Budget>::default();
        let (kept, queries) = (Share::of(&budget), [0; 2].map(|_| Share::of_query(&budget)));
        kept.set(10).expect("there is room");
        queries[0].set(QUERY_BYTES_MAX / 2).expect("there is room");
        queries[1].set(QUERY_BYTES_MAX / 2).expect("there is room");
        assert!(matches!(queries[1].set(QUERY_BYTES_MAX), Err(Ended::Crowded { limit: QUERY_BYTES_MAX, .. })));
        kept.set(ALL_BYTES_MAX - QUERY_BYTES_MAX).expect("what was refused is not taken");
        queries[1].set(3).expect("it is less");
        kept.set(ALL_BYTES_MAX - QUERY_BYTES_MAX / 2 - 3).expect("there is room again");
        assert!(matches!(queries[1].set(4), Err(Ended::Crowded { limit: ALL_BYTES_MAX, .. })));
        drop((kept, queries));
        assert_eq!((budget.all.load(Relaxed), budget.of_queries.load(Relaxed)), (0, 0));
    }
}
