//! How a session hears that there are notes for its subscriptions, without a task or a future for each.
//!
//! Invariant: a subscription is rung once each time that it begins to listen ([`super::seat`]), so that no more numbers wait here
//! than the session has subscriptions, whether it takes them or not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A session's.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// Numbers of subscriptions; one that is not open any more may be among them.
    rung: Mutex<Vec<u32>>,
    changed: Notify,
}

impl Bell {
    pub(super) fn ring(&self, subscription: u32) {
        let mut rung = self.locked();
        rung.push(subscription);
        if rung.len() == 1 {
            drop(rung);
            self.changed.notify_one();
        }
    }

    /// Waits until there are some, or there were. Cancel safe.
    pub(crate) async fn rung(&self) {
        self.changed.notified().await;
    }

    /// Moves those that have been rung to `into`, which is empty.
    pub(crate) fn take(&self, into: &mut Vec<u32>) {
        std::mem::swap(&mut *self.locked(), into);
    }

    fn locked(&self) -> MutexGuard<'_, Vec<u32>> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_rung_before_anyone_waits_is_heard() {
        let (bell, mut rung) = (Bell::default(), Vec::new());
        for round in 0..2 {
            bell.ring(round);
            bell.ring(7);
            bell.rung().await;
            bell.take(&mut rung);
            assert_eq!(rung, [round, 7]);
            rung.clear();
        }
        bell.take(&mut rung);
        assert!(rung.is_empty());
    }
}
