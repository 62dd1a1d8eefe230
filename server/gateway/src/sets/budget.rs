//! What the sets of all shapes of a source may have together: so many bytes, whoever needs them.
//!
//! Invariant: what a share has taken is given back when it is dropped.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{ALL_BYTES_MAX, Ended};

/// Bytes that are taken.
#[derive(Default)]
pub(super) struct Budget(AtomicUsize);

/// What one shape's sets have of them. One task sets it.
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Share {
    pub(super) fn of(budget: &Arc<Budget>) -> Self {
        Share { budget: Arc::clone(budget), bytes: AtomicUsize::new(0) }
    }

    /// They are so many now.
    pub(super) fn set(&self, bytes: usize) -> Result<(), Ended> {
        let had = self.bytes.swap(bytes, Relaxed);
        if bytes <= had {
            self.budget.0.fetch_sub(had - bytes, Relaxed);
            return Ok(());
        }
        let more = bytes - had;
        if self.budget.0.fetch_add(more, Relaxed) + more > ALL_BYTES_MAX {
            return Err(Ended::Crowded { what: "bytes", limit: ALL_BYTES_MAX });
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(*self.bytes.get_mut(), Relaxed);
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
        assert_eq!(budget.0.load(Relaxed), 0);
    }
}
