//! Where the open subscriptions of a source are, for people who ask.
//!
//! Invariant: an entry lives as long as its subscription. Locks are held for a few instructions, and never on the way of a
//! change: a subscription notes where it is when it sends Progress, and at a Grant or an Ack.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tidegate_model::Position;

/// Where a subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    pub(crate) subscription: u32,
    /// Delivered up to here.
    pub(crate) position: Position,
    /// Acknowledged up to here.
    pub(crate) acked: Position,
    pub(crate) credit_bytes: i64,
}

/// A subscription's own entry; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Entry(Arc<Mutex<Whereabouts>>);

impl Entry {
    /// Notes where the subscription is now.
    pub(crate) fn note(&self, position: Position, credit_bytes: i64) {
        let mut now = locked(&self.0);
        (now.position, now.credit_bytes) = (position, credit_bytes);
    }

    /// Notes an Ack; one that is behind another changes nothing.
    pub(crate) fn ack(&self, position: Position) {
        let mut now = locked(&self.0);
        now.acked = now.acked.max(position);
    }
}

/// The entries of a source.
#[derive(Debug, Default)]
pub(crate) struct OpenSubscriptions(Mutex<Vec<Weak<Mutex<Whereabouts>>>>);

impl OpenSubscriptions {
    /// Adds a subscription.
    pub(crate) fn add(&self, start: Whereabouts) -> Entry {
        let entry = Arc::new(Mutex::new(start));
        let mut entries = locked(&self.0);
        // Not each time: there may be many.
        if entries.len() == entries.capacity() {
            entries.retain(|entry| entry.strong_count() > 0);
        }
        entries.push(Arc::downgrade(&entry));
        Entry(entry)
    }

    /// Where they are, in the order in which they were opened.
    pub(crate) fn list(&self) -> Vec<Whereabouts> {
        locked(&self.0).iter().filter_map(Weak::upgrade).map(|entry| *locked(&entry)).collect()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_model::Lsn;

    #[test]
    fn an_entry_tells_where_its_subscription_is_for_as_long_as_it_lives() {
        let at = |lsn| Position::new(Lsn(lsn), 0);
        let open = OpenSubscriptions::default();
        let start = Whereabouts { subscription: 1, position: at(5), acked: at(5), credit_bytes: 10 };
        let (first, second) = (open.add(start), open.add(Whereabouts { subscription: 2, ..start }));
        first.note(at(9), -3);
        first.ack(at(7));
        first.ack(at(6));
        let moved = Whereabouts { subscription: 1, position: at(9), acked: at(7), credit_bytes: -3 };
        assert_eq!(open.list(), [moved, Whereabouts { subscription: 2, ..start }]);
        drop(second);
        assert_eq!(open.list(), [moved]);
    }
}
