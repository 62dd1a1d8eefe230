//! The end of the server, as its streams see it: from the moment when stopping begins, clients have until one deadline.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tidegate_model::Clock;
use tidegate_proto::v1;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::time::timestamp;

/// Tells streams to end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Drain {
    stop: CancellationToken,
    grace: Duration,
    clock: Arc<dyn Clock>,
    /// Set by whoever first sees that draining has begun: for the timer, and in microseconds since 1970 for clients.
    deadline: Arc<OnceLock<(Instant, i64)>>,
}

impl Drain {
    pub(crate) fn new(stop: CancellationToken, grace: Duration, clock: Arc<dyn Clock>) -> Self {
        Drain { stop, grace, clock, deadline: Arc::default() }
    }

    /// Has it begun?
    pub(crate) fn begun(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until it begins.
    pub(crate) async fn wait(&self) {
        self.stop.cancelled().await;
    }

    /// When streams end. To be asked only once it has begun.
    pub(crate) fn deadline(&self) -> Instant {
        self.set_deadline().0
    }

    /// What clients are told. To be asked only once it has begun.
    pub(crate) fn message(&self) -> v1::Drain {
        v1::Drain { deadline: Some(timestamp(self.set_deadline().1)) }
    }

    fn set_deadline(&self) -> (Instant, i64) {
        *self.deadline.get_or_init(|| {
            let grace_us = i64::try_from(self.grace.as_micros()).unwrap_or(i64::MAX);
            (Instant::now() + self.grace, self.clock.now_us().saturating_add(grace_us))
        })
    }
}
