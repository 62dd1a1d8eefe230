//! A source as the gateway sees it: its store, what the application says about it, and the plans in use on it.
//!
//! It deliberately does not know how a source is captured.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use tidegate_model::{Clock, Epoch, Lsn, SourceName, TableName, near};
use tidegate_proto::v1;
use tidegate_store::{MirrorReader, Store};
use tokio::sync::{Semaphore, watch};

use crate::{
    facts::Facts,
    incoming::Incoming,
    metrics::SourceMetrics,
    named_shapes::NamedShapes,
    open_subscriptions::OpenSubscriptions,
    redefinition::Spool,
    router::{Inflow, Router},
    selection::{Filter, Plan, PlanKey, Plans},
    sets::SetsOfSource,
    snapshots::Snapshots,
    status::GatewayError,
};

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

/// What the application hands over for each source.
#[derive(Clone)]
pub struct SourceHandle {
    /// Its name.
    pub name: SourceName,
    /// Its changelog.
    pub store: Store,
    /// Its state, kept current by the application; `last_heard_us` at least once a second while connected.
    pub status: watch::Receiver<SourceStatus>,
    /// The tables that the source's catalog has and that are followed, so that a mistyped name is refused before its
    /// table was ever seen in the stream. Empty until the catalog is read.
    pub tables: watch::Receiver<Arc<Vec<KnownTable>>>,
    /// Makes its snapshots.
    pub snapshots: Arc<dyn Snapshots>,
    /// Its mirror, where it has one.
    pub mirror: Option<MirrorReader>,
    /// Its shapes that have a name.
    pub named_shapes: Arc<dyn NamedShapes>,
    /// A folder for files without names.
    pub spool_dir: PathBuf,
}

/// A table of the source's catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTable {
    /// Its exact name.
    pub name: TableName,
    /// The exact names of its columns.
    pub columns: Vec<String>,
    /// The publication sends its changes.
    pub published: bool,
}

/// What a source is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// Not yet started.
    #[default]
    Unknown,
    /// Connecting, or waiting to try again.
    Connecting,
    /// Receiving.
    Streaming,
    /// Stopped until someone acts.
    Stopped,
    /// The store's disk is full.
    DiskFull,
}

/// A source's state and positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// What it is doing.
    pub state: SourceState,
    /// Why, and what to do; empty when all is well.
    pub detail: String,
    /// Received from PostgreSQL.
    pub received_lsn: Lsn,
    /// Durable here.
    pub durable_lsn: Lsn,
    /// What PostgreSQL has been told.
    pub confirmed_flush_lsn: Lsn,
    /// PostgreSQL's end of WAL as last seen: while connected, some seconds ago at most.
    pub server_lsn: Lsn,
    /// WAL that PostgreSQL keeps for the slot, in bytes.
    pub retained_wal_bytes: u64,
    /// When anything was last received, in microseconds since 1970 UTC; 0 for never.
    pub last_heard_us: i64,
    /// PostgreSQL's version, such as 150020.
    pub server_version: u32,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The tables that are to be mirrored, by name.
    pub mirror: Vec<v1::MirroredTable>,
    /// Tables that are to be captured and are not, or not from their beginning yet, by name.
    pub new_tables: Vec<v1::NewTable>,
}

impl SourceStatus {
    /// Is the source connected, so that silence means that nothing happened?
    #[must_use]
    pub fn connected(&self) -> bool {
        matches!(self.state, SourceState::Streaming | SourceState::DiskFull)
    }

    /// Whole seconds since the source was last heard of; 0 while it is connected.
    #[must_use]
    pub fn silent_s(&self, clock: &dyn Clock) -> u32 {
        if self.connected() || self.last_heard_us == 0 {
            return 0;
        }
        let silent_us = clock.now_us().saturating_sub(self.last_heard_us).max(0);
        u32::try_from(silent_us / 1_000_000).unwrap_or(u32::MAX)
    }
}

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
