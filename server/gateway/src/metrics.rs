//! What the gateway counts. Reading and counting take no lock.
//!
//! It deliberately does not know any exporter: the application reads the numbers and publishes them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tidegate_model::SourceName;

use crate::status::Reason;

/// Counters since the start, and gauges.
#[derive(Debug, Default)]
pub struct GatewayMetrics {
    sources: BTreeMap<SourceName, Arc<SourceMetrics>>,
    sessions: AtomicU64,
    errors: [AtomicU64; Reason::ALL.len()],
    shared: AtomicU64,
    filtered: AtomicU64,
}

/// Counters of one source.
#[derive(Debug, Default)]
pub struct SourceMetrics {
    subscribers: AtomicU64,
    changes: AtomicU64,
    bytes: AtomicU64,
    pub(crate) router: RouterMetrics,
}

/// Of the router of a source's shapes.
#[derive(Debug, Default)]
pub struct RouterMetrics {
    has: [AtomicU64; 3],
    done: [AtomicU64; 4],
}

impl RouterMetrics {
    /// Shapes that changes are routed to: equal ones of several subscriptions are one. Those with subqueries are not among them.
    #[must_use]
    pub fn shapes(&self) -> u64 {
        self.has[0].load(Relaxed)
    }

    /// Different conditions in the indexes.
    #[must_use]
    pub fn conditions(&self) -> u64 {
        self.has[1].load(Relaxed)
    }

    /// Indexes: one for each table with shapes and each of its newest row types.
    #[must_use]
    pub fn indexes(&self) -> u64 {
        self.has[2].load(Relaxed)
    }

    /// Changes that an index was asked about.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.done[0].load(Relaxed)
    }

    /// Conditions that indexes have found for changes.
    #[must_use]
    pub fn candidates(&self) -> u64 {
        self.done[1].load(Relaxed)
    }

    /// Those of them that were evaluated, since no lookup proves them.
    #[must_use]
    pub fn evaluations(&self) -> u64 {
        self.done[2].load(Relaxed)
    }

    /// How often a change concerned a shape.
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.done[3].load(Relaxed)
    }

    pub(crate) fn has(&self, counts: [u64; 3]) {
        self.has.iter().zip(counts).for_each(|(has, count)| has.store(count, Relaxed));
    }

    pub(crate) fn did(&self, more: [u64; 4]) {
        for (done, more) in self.done.iter().zip(more) {
            done.fetch_add(more, Relaxed);
        }
    }
}

impl SourceMetrics {
    /// What the router of shapes has, and what it has done.
    #[must_use]
    pub fn router(&self) -> &RouterMetrics {
        &self.router
    }

    /// Subscriptions that are open now.
    #[must_use]
    pub fn subscribers(&self) -> u64 {
        self.subscribers.load(Relaxed)
    }

    /// Changes sent, to all subscribers together.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Relaxed)
    }

    /// Bytes of messages sent, to all subscribers together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(crate) fn sent(&self, changes: u64, bytes: u64) {
        self.changes.fetch_add(changes, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

impl GatewayMetrics {
    pub(crate) fn new(names: impl Iterator<Item = SourceName>) -> Self {
        let sources = names.map(|name| (name, Arc::default())).collect();
        GatewayMetrics { sources, ..GatewayMetrics::default() }
    }

    /// The sources' counters.
    pub fn sources(&self) -> impl Iterator<Item = (&SourceName, &Arc<SourceMetrics>)> {
        self.sources.iter()
    }

    /// Streams that are open now, sessions and watches.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    /// Errors sent to clients, by the reason in their ErrorInfo.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Reason::ALL.iter().zip(&self.errors).map(|(reason, count)| (reason.as_str(), count.load(Relaxed)))
    }

    /// Blocks that were filtered, and those whose filtered form was there already for another subscription.
    #[must_use]
    pub fn blocks(&self) -> (u64, u64) {
        (self.filtered.load(Relaxed), self.shared.load(Relaxed))
    }

    pub(crate) fn source(&self, name: &SourceName) -> Arc<SourceMetrics> {
        self.sources.get(name).cloned().unwrap_or_default()
    }

    pub(crate) fn error(&self, reason: Reason) {
        self.errors[reason as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn block(&self, shared: bool) {
        let counter = if shared { &self.shared } else { &self.filtered };
        counter.fetch_add(1, Relaxed);
    }
}

/// Counts an open stream for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenSession(Arc<GatewayMetrics>);

impl OpenSession {
    pub(crate) fn new(metrics: &Arc<GatewayMetrics>) -> Self {
        metrics.sessions.fetch_add(1, Relaxed);
        OpenSession(Arc::clone(metrics))
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Relaxed);
    }
}

/// Counts an open subscription for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenSubscription(Arc<SourceMetrics>);

impl OpenSubscription {
    pub(crate) fn new(metrics: &Arc<SourceMetrics>) -> Self {
        metrics.subscribers.fetch_add(1, Relaxed);
        OpenSubscription(Arc::clone(metrics))
    }
}

impl Drop for OpenSubscription {
    fn drop(&mut self) {
        self.0.subscribers.fetch_sub(1, Relaxed);
    }
}
