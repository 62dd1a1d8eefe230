//! A source as the gateway sees it: its store, what the application says about it, and the plans in use on it.
//!
//! It deliberately does not know how a source is captured.

mod handle;

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{Epoch, SourceName, near};
use tokio::sync::Semaphore;

use crate::{
    facts::Facts,
    incoming::Incoming,
    metrics::SourceMetrics,
    open_subscriptions::OpenSubscriptions,
    redefinition::Spool,
    router::{Inflow, Router},
    selection::{Filter, Plan, PlanKey, Plans},
    sets::SetsOfSource,
    status::GatewayError,
};

pub use handle::{KnownTable, SourceHandle, SourceState, SourceStatus};

/// Tables that are read for subqueries at a time: others wait, and not those who begin.
const SUBQUERY_READS: usize = 2;

/// Chunks of a source's mirror that are read at a time, each of which keeps a core busy: half of the cores are left to those who are served already.
fn mirror_reads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (cores / 2).max(1)
}

/// Of what named shapes that were defined anew bring to their subscriptions, at a time.
const DIFFERENCE_BYTES: usize = 256 << 20;
/// The same on the disk, for those who receive it slowly.
const SPOOLED_BYTES: usize = 1 << 30;

/// A handle with what the gateway keeps beside it.
pub(crate) struct Source {
    pub(crate) handle: SourceHandle,
    pub(crate) metrics: Arc<SourceMetrics>,
    pub(crate) subscriptions: OpenSubscriptions,
    pub(crate) facts: Facts,
    pub(crate) router: Arc<Router<Plan>>,
    /// One for each read of the mirror that may be under way. Threads are left for the writer of the mirror, which builds the index
    /// that many readers wait for.
    pub(crate) mirror_reads: Arc<Semaphore>,
    pub(crate) subquery_reads: Arc<Semaphore>,
    /// Who has it reads all rows of a table for those that an index will tell.
    pub(crate) scan_turn: Arc<Semaphore>,
    pub(crate) sets: SetsOfSource,
    /// Bytes that the differences between definitions of named shapes may have that are being delivered.
    pub(crate) difference_bytes: Arc<Semaphore>,
    pub(crate) difference_spool: Arc<Spool>,
    /// Of the mirror, for what edits of named shapes are: a table, or a part, at a time, besides all other reads.
    pub(crate) difference_reads: Arc<Semaphore>,
    plans: Arc<Plans>,
}

impl Source {
    pub(crate) fn new(handle: SourceHandle, metrics: Arc<SourceMetrics>) -> Self {
        Source {
            router: Arc::new(Router::new(handle.store.clone(), Arc::clone(&metrics))),
            mirror_reads: Arc::new(Semaphore::new(mirror_reads())),
            subquery_reads: Arc::new(Semaphore::new(SUBQUERY_READS)),
            scan_turn: Arc::new(Semaphore::new(1)),
            difference_spool: Arc::new(Spool::new(handle.spool_dir.clone(), SPOOLED_BYTES)),
            handle,
            metrics,
            subscriptions: OpenSubscriptions::default(),
            facts: Facts::default(),
            sets: SetsOfSource::default(),
            difference_bytes: Arc::new(Semaphore::new(DIFFERENCE_BYTES)),
            difference_reads: Arc::new(Semaphore::new(1)),
            plans: Arc::default(),
        }
    }

    pub(crate) fn name(&self) -> &SourceName {
        &self.handle.name
    }

    /// The plan that the router knows a subscription by. A snapshot out of the mirror is nobody else's, and not in the log: without it, it is
    /// the plan of all who select the same.
    pub(crate) fn routed(&self, plan: &Arc<Plan>) -> Option<Arc<Plan>> {
        // What a subquery's change concerns is not to be told by its own row.
        let is_told = |filter: &Filter| filter.shape().is_some_and(|shape| shape.subqueries().is_empty());
        let of_shapes = plan.key.filters().iter().all(is_told);
        of_shapes.then(|| if plan.key.is_of_mirror() { self.plan(plan.key.in_log()) } else { Arc::clone(plan) })
    }

    /// The plan of a key, shared with every subscription that has it open.
    pub(crate) fn plan(&self, key: PlanKey) -> Arc<Plan> {
        self.plans.plan(key)
    }
}

/// What a subscription with this plan receives: where it selects nothing but shapes without subqueries, through the router.
pub(crate) fn inflow(source: &Source, plan: &Arc<Plan>, incoming: Incoming, epoch: Epoch) -> Inflow<Plan> {
    match source.routed(plan) {
        Some(plan) => Inflow::routed(incoming, &source.router, &plan, epoch),
        None => Inflow::log(incoming),
    }
}

/// All sources, by name.
#[derive(Clone)]
pub(crate) struct Sources(Arc<BTreeMap<SourceName, Arc<Source>>>);

impl Sources {
    pub(crate) fn new(sources: impl IntoIterator<Item = Source>) -> Self {
        Sources(Arc::new(sources.into_iter().map(|source| (source.name().clone(), Arc::new(source))).collect()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.0.values()
    }

    /// The source of that name; the only one where the name is empty.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Source>, GatewayError> {
        let names = || self.0.keys().map(|name| name.as_str().to_owned());
        if name.is_empty() {
            return match self.0.values().next() {
                Some(only) if self.0.len() == 1 => Ok(Arc::clone(only)),
                Some(_) | None => Err(GatewayError::SourceRequired { names: names().collect() }),
            };
        }
        let known = name.parse().ok().and_then(|name: SourceName| self.0.get(&name));
        known.cloned().ok_or_else(|| GatewayError::UnknownSource { name: name.to_owned(), near: near(name, names()) })
    }
}
