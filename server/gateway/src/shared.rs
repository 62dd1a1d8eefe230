//! What all services share, made once by [`crate::gateway`].

use std::sync::Arc;

use tidegate_model::Clock;
use tokio::sync::Semaphore;

use crate::{config::GatewayConfig, drain::Drain, metrics::GatewayMetrics, share::ShareCache, source::Sources};

/// What all services share.
pub(crate) struct Shared {
    pub(crate) sources: Sources,
    pub(crate) config: GatewayConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) drain: Drain,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) share: ShareCache,
    /// A permit for each query that runs.
    pub(crate) queries: Arc<Semaphore>,
    /// A permit for each KiB of digests of what clients hold.
    pub(crate) held_room: Arc<Semaphore>,
}
