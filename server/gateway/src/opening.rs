//! Opens a subscription: finds the source, checks what is selected, and settles where delivery starts.
//!
//! A start at a snapshot asks the source for one and reads on from just before its begin; the snapshot's number goes into plan
//! and token, so that what follows, and going on in the middle, is reading the log like any other. Where the mirror has all of the
//! tables, the snapshot is made of that instead, for this subscription alone.
//!
//! A start that cannot be continued is a Reset with its reason, never a silent gap. A token ahead of the head waits: after
//! a crash the changes between come again.

mod belonging;

use std::sync::Arc;

use futures_util::StreamExt as _;
use tidegate_model::{AdHoc, Epoch, Position, SnapshotSpec, TableName, Token, TokenError, TokenPrefix};
use tidegate_proto::v1;
use tidegate_store::{MirrorError, ReadError, Reader, Snapshots};
use tidegate_views::ShapeDefinition;

use crate::{
    config::GatewayConfig,
    held::{Comparing, Held},
    incoming::{Incoming, Interrupted},
    metrics::OpenSubscription,
    mirror_snapshot::{self, MirrorSnapshot, MirrorStart, Wanted, mirrored, narrowed},
    named_shapes::{NamedInUse, looked_up, looked_up_now},
    reset::{Refusal, discontinued, mirror_gone, too_old},
    selection::{Filter, Plan, PlanKey, TableFilter, Tables},
    sets::{self, Kept},
    shape::{self, ShapeFilter},
    shared::Shared,
    source::Source,
    status::GatewayError,
};
use belonging::Looked;

/// How often a start is tried again when retention or a new epoch overtakes it.
pub(crate) const TRIES: u32 = 5;
/// After so long every table of the catalog is known.
const KNOWN_WITHIN_S: i64 = 15;

/// What a client asks for.
#[derive(Clone)]
pub(crate) struct Opening {
    pub(crate) source: String,
    pub(crate) selections: Vec<v1::selection::What>,
    pub(crate) start: Option<v1::Start>,
    /// Also those that someone starts while it is open.
    pub(crate) snapshots: bool,
    pub(crate) shares_progress: bool,
    /// It can be brought to other definitions of its shapes.
    pub(crate) takes_differences: bool,
    /// What the client has already, of a start at a snapshot.
    pub(crate) held: Option<Arc<Held>>,
}

/// An open subscription.
pub(crate) struct Opened {
    pub(crate) source: Arc<Source>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) incoming: Incoming,
    pub(crate) prefix: TokenPrefix,
    /// Delivery starts after it.
    pub(crate) after: Position,
    /// Where the changelog ended.
    pub(crate) head: Position,
    pub(crate) kept: Kept,
    pub(crate) named: NamedInUse,
    pub(crate) counted: OpenSubscription,
    pub(crate) shares_progress: bool,
}

impl Opening {
    /// Reads a Subscribe.
    pub(crate) fn of_subscribe(subscribe: v1::Subscribe, shared: &Shared) -> Result<Self, GatewayError> {
        let config = &shared.config;
        if !subscribe.group.is_empty() {
            return Err(GatewayError::Group);
        }
        if subscribe.credit_bytes > config.credit_bytes_max {
            let limit = config.credit_bytes_max;
            return Err(GatewayError::Credit { credit_bytes: subscribe.credit_bytes, limit });
        }
        let (count, limit) = (subscribe.selections.len(), config.selections_max);
        if count == 0 {
            return Err(GatewayError::NoSelection);
        }
        if count > limit {
            return Err(GatewayError::TooMany { what: "selections", count, limit, field: "selections" });
        }
        let what =
            |(index, selection): (usize, v1::Selection)| selection.what.ok_or(GatewayError::EmptySelection { index });
        let selections = subscribe.selections.into_iter().enumerate().map(what).collect::<Result<_, _>>()?;
        let v1::Subscribe { source, start, snapshots, shared_progress, differences, holds, .. } = subscribe;
        let held = Held::parse(&holds, count, start.as_ref(), &shared.held_room)?;
        let (shares_progress, takes_differences) = (shared_progress, differences);
        Ok(Opening { source, selections, start, snapshots, shares_progress, takes_differences, held })
    }

    /// Opens it. Waits some seconds for a source that has never been connected.
    #[tracing::instrument(level = "debug", name = "subscribe", skip_all, fields(source = self.source))]
    pub(crate) async fn open(self, shared: Arc<Shared>) -> Result<Opened, Refusal> {
        let start = Start::parse(self.start.clone())?;
        let source = shared.sources.get(&self.source)?;
        let (selected, named) = looked_up_now(&self.selections, &*source.handle.named_shapes).await?;
        let selected = Selected::parsed(selected, &shared.config)?;
        let first_epoch = async {
            let mut head = source.handle.store.head();
            head.wait_for(|head| head.epoch.is_some()).await.is_ok()
        };
        if !tokio::time::timeout(shared.config.first_epoch_wait, first_epoch).await.unwrap_or(false) {
            return Err(not_ready(&source).into());
        }
        let filters = opened(selected, &source, &shared.config).await?;
        let (filters, named) = self.as_of(start, (filters, named), (&source, &shared.config)).await?;
        let definitions = shape::definitions(filters.iter().filter_map(Filter::shape));
        let (start, of_mirror) = match start {
            Start::Snapshot => start_snapshot(&source, (&filters[..], definitions), &shared).await?,
            Start::Token(token) if mirror_snapshot::is_of_mirror(token.prefix.snapshot) => {
                go_on(token, &source, &filters, &shared.config).await?
            }
            Start::Now | Start::Earliest | Start::Token(_) => (start, None),
        };
        let snapshot = start.snapshot();
        let before = source.handle.store.snapshots();
        let (epoch, after, reader) = start.settle(&source)?;
        let asks_from = match start {
            Start::Now => [before, source.handle.store.snapshots()].iter().map(|of| newest_begin(of, after)).max(),
            // What others have begun at its LSN may come again: none of it is asked for.
            Start::Token(_) if start.is_within_mirror_snapshot() => Some(Position::new(after.lsn, u32::MAX)),
            Start::Earliest | Start::Snapshot | Start::Token(_) => Some(after),
        };
        let ad_hoc = start.ad_hoc().turned(self.snapshots, asks_from.unwrap_or(after));
        let kept = sets::kept(&source, &filters, (epoch, after)).await?;
        let plan = source.plan(PlanKey::new(filters, snapshot, ad_hoc));
        let head = source.handle.store.head().borrow().complete;
        let counted = OpenSubscription::new(&source.metrics);
        let prefix = plan.key.prefix(epoch);
        let first_chunk = mirror_snapshot::first_chunk(&*shared.clock);
        let start = match of_mirror {
            Some(tables) => {
                let tables = narrowed(tables, &plan, &source).await;
                let comparing = self.held.and_then(|held| Comparing::new(held, &plan, &source));
                let is_plain = |filter: &Filter| filter.shape().is_some_and(|shape| shape.subqueries().is_empty());
                let passes_over = !self.snapshots && comparing.is_none() && plan.key.filters().iter().all(is_plain);
                Some(MirrorStart {
                    epoch,
                    snapshot,
                    after,
                    head,
                    tables,
                    plan: Arc::clone(&plan),
                    passes_over,
                    first_chunk,
                    restated: kept.restated(),
                    comparing,
                })
            }
            None => None,
        };
        let incoming = match start.and_then(|start| MirrorSnapshot::new(&source, start)) {
            Some(snapshot) => Incoming::with_snapshot(reader, snapshot),
            None => Incoming::log(reader),
        };
        let incoming = incoming.with_sets(kept.clone());
        let (named, shares_progress) = (named.of(epoch, self.takes_differences), self.shares_progress);
        Ok(Opened { source, plan, incoming, prefix, after, head, kept, named, counted, shares_progress })
    }
}

/// A selection that can be read, before it is known whether it fits the source.
enum Selected {
    Tables(TableFilter),
    Shape(ShapeDefinition),
}

impl Selected {
    /// The selections with what their names mean, or meant at an earlier version.
    fn all(
        selections: &[v1::selection::What],
        version: u64,
        (source, config): (&Source, &GatewayConfig),
    ) -> Result<(Vec<Self>, NamedInUse), GatewayError> {
        let (selections, named) = looked_up(selections.to_vec(), source.handle.named_shapes.known(), version)?;
        Ok((Selected::parsed(selections, config)?, named))
    }

    fn parsed(selections: Vec<v1::selection::What>, config: &GatewayConfig) -> Result<Vec<Self>, GatewayError> {
        selections.into_iter().map(|selection| Selected::parse(selection, config)).collect()
    }

    fn parse(selection: v1::selection::What, config: &GatewayConfig) -> Result<Self, GatewayError> {
        match selection {
            v1::selection::What::Tables(tables) => TableFilter::parse(&tables, config).map(Selected::Tables),
            v1::selection::What::Shape(shape) => shape::definition(shape, config).map(Selected::Shape),
        }
    }
}

/// The selections, checked against the source as it is, with the mirrors that they need.
async fn opened(selected: Vec<Selected>, source: &Source, config: &GatewayConfig) -> Result<Vec<Filter>, GatewayError> {
    let filters = checked(selected, source).await?;
    shape::have_mirrored(filters.iter().filter_map(Filter::shape), source, config).await?;
    Ok(filters)
}

/// The selections, checked against the source as it is.
async fn checked(selected: Vec<Selected>, source: &Source) -> Result<Vec<Filter>, GatewayError> {
    let tables = Tables::of(&source.handle);
    let mut filters = Vec::with_capacity(selected.len());
    for selected in selected {
        filters.push(match selected {
            Selected::Tables(filter) => tables_filter(filter, &tables)?,
            Selected::Shape(definition) => {
                tables.check_exists(&definition.table)?;
                Filter::Shape(ShapeFilter::new(definition, source).await?)
            }
        });
    }
    Ok(filters)
}

/// The same where some may have been looked at. None where one does not fit.
async fn checked_with(
    selected: Vec<Selected>,
    source: &Source,
    looked: &mut Looked,
) -> Result<Option<Vec<Filter>>, GatewayError> {
    let tables = Tables::of(&source.handle);
    let mut filters = Vec::with_capacity(selected.len());
    for selected in selected {
        filters.push(match selected {
            Selected::Tables(filter) => tables_filter(filter, &tables)?,
            Selected::Shape(definition) => match looked.shape(definition, source).await? {
                Some(shape) => Filter::Shape(shape),
                None => return Ok(None),
            },
        });
    }
    Ok(Some(filters))
}

fn tables_filter(filter: TableFilter, tables: &Tables) -> Result<Filter, GatewayError> {
    filter.validate(tables)?;
    Ok(Filter::Tables(Box::new(filter)))
}

/// The plan with its shapes made of what the catalog says now; None where that says what they were made of.
pub(crate) async fn renewed(source: &Source, plan: &Plan) -> Result<Option<Arc<Plan>>, GatewayError> {
    let mut filters = plan.key.filters().to_vec();
    let mut is_renewed = false;
    for filter in &mut filters {
        if let Some(shape) = filter.shape()
            && let Some(renewed) = shape.renewed(source).await?
        {
            if !shape.subqueries().is_empty() {
                let detail = "what the catalog says of the tables of a shape with subqueries has changed; subscribe, or ask, again";
                return Err(GatewayError::Subqueries { detail: detail.to_owned() });
            }
            *filter = Filter::Shape(renewed);
            is_renewed = true;
        }
    }
    Ok(is_renewed.then(|| source.plan(plan.key.with(filters))))
}

/// Where a client wants to start.
#[derive(Clone, Copy)]
enum Start {
    Now,
    Earliest,
    /// Becomes a token as soon as there is one.
    Snapshot,
    Token(Token),
}

impl Start {
    fn parse(start: Option<v1::Start>) -> Result<Self, GatewayError> {
        match start.and_then(|start| start.from) {
            None => Ok(Start::Now),
            Some(v1::start::From::At(value)) => match v1::start::Point::try_from(value) {
                Ok(v1::start::Point::Now) => Ok(Start::Now),
                Ok(v1::start::Point::Earliest) => Ok(Start::Earliest),
                Ok(v1::start::Point::Snapshot) => Ok(Start::Snapshot),
                Err(_) => Err(GatewayError::Start { value }),
            },
            Some(v1::start::From::Token(text)) => Ok(Start::Token(text.parse()?)),
        }
    }

    /// Number of the snapshot that it belongs to; 0 for none.
    fn snapshot(self) -> u32 {
        match self {
            Start::Token(token) => token.prefix.snapshot,
            Start::Now | Start::Earliest | Start::Snapshot => 0,
        }
    }

    /// Has a snapshot out of the mirror not ended there?
    fn is_within_mirror_snapshot(self) -> bool {
        match self {
            Start::Token(token) => {
                mirror_snapshot::is_of_mirror(token.prefix.snapshot) && mirror_snapshot::is_within(token.position)
            }
            Start::Now | Start::Earliest | Start::Snapshot => false,
        }
    }

    /// Which snapshots it has received so far of those that someone starts.
    fn ad_hoc(self) -> AdHoc {
        match self {
            Start::Token(token) => token.prefix.ad_hoc,
            Start::Now | Start::Earliest | Start::Snapshot => AdHoc::default(),
        }
    }

    fn settle(self, source: &Source) -> Result<(Epoch, Position, Reader), Refusal> {
        let store = &source.handle.store;
        for _ in 0..TRIES {
            let head = *store.head().borrow();
            let Some(epoch) = head.epoch else { break };
            let after = match self {
                Start::Now | Start::Snapshot => head.complete,
                Start::Earliest => head.earliest,
                Start::Token(token) if token.prefix.epoch == epoch => token.position,
                Start::Token(_) => return Err(Refusal::Reset(epoch_changed(source))),
            };
            let from = if self.is_within_mirror_snapshot() {
                mirror_snapshot::read_from(after, head.earliest)
            } else {
                after.as_resume_point()
            };
            match (store.reader(epoch, from), self) {
                (Ok(reader), _) => return Ok((epoch, after, reader)),
                (Err(ReadError::TooOld { earliest }), Start::Token(_)) => {
                    return Err(Refusal::Reset(too_old(after, earliest)));
                }
                // The head has moved on: look again.
                (Err(ReadError::TooOld { .. } | ReadError::OtherEpoch { .. }), _) => {}
                (Err(error @ (ReadError::Damaged { .. } | ReadError::Io { .. })), _) => {
                    return Err(GatewayError::Read(error).into());
                }
            }
        }
        Err(not_ready(source).into())
    }
}

/// The tables of the source whose rows the filters want. Waits some seconds for the catalog to be read.
pub(crate) async fn matched_tables(
    source: &Source,
    filters: &[Filter],
    config: &GatewayConfig,
) -> Result<Vec<TableName>, GatewayError> {
    let mut known = source.handle.tables.clone();
    let read = known.wait_for(|tables| !tables.is_empty());
    // Without it, the tables that were seen in the stream have to do.
    let _timed_out = tokio::time::timeout(config.first_epoch_wait, read).await.is_err();
    let tables = Tables::of(&source.handle);
    for filter in filters {
        filter.validate(&tables)?;
    }
    let wanted = |table: &&TableName| {
        let mut reading = filters.iter().filter(|filter| filter.reads(table));
        reading.any(|filter| tables.is_ready(table) || filter.is_named(table))
    };
    let mut matched: Vec<TableName> = tables.names().filter(wanted).cloned().collect();
    if matched.is_empty() {
        return Err(GatewayError::NoTable { names: filters.iter().flat_map(Filter::names).collect() });
    }
    matched.sort_unstable();
    Ok(matched)
}

/// Tables that the mirror is to be read for.
type Mirrored = Option<Vec<Wanted>>;

/// Has a snapshot started, and makes a token of it. Its position is of the epoch only if that was the same before and after. A
/// new table that it leaves out must be delivered from its own snapshot's begin on.
async fn start_snapshot(
    source: &Source,
    (filters, definitions): (&[Filter], u32),
    shared: &Shared,
) -> Result<(Start, Mirrored), Refusal> {
    let config = &shared.config;
    let tables = matched_tables(source, filters, config).await?;
    let head = source.handle.store.head();
    let of_mirror = mirrored(source, &tables, config).await?;
    let now = *head.borrow();
    if let (Some(epoch), Some(_)) = (now.epoch, &of_mirror)
        && !misses_a_begin(source, filters, &tables, now.complete).await
    {
        let (snapshot, ad_hoc) = (mirror_snapshot::number(&*shared.clock), AdHoc::default());
        let prefix = TokenPrefix { epoch, definitions, snapshot, ad_hoc };
        let position = mirror_snapshot::opened(now.complete.lsn);
        return Ok((Start::Token(Token { prefix, position }), of_mirror));
    }
    for _ in 0..TRIES {
        let mut known = source.handle.tables.clone();
        known.mark_unchanged();
        let tables = matched_tables(source, filters, config).await?;
        let before = head.borrow().epoch;
        let start = source
            .handle
            .snapshots
            .start(SnapshotSpec::of_tables(tables.clone()))
            .await
            .map_err(GatewayError::Snapshot)?;
        if misses_a_begin(source, filters, &tables, start.after).await {
            // It is about to be known.
            let _timed_out = tokio::time::timeout(config.first_epoch_wait, known.changed()).await.is_err();
            continue;
        }
        if let Some(epoch) = before.filter(|_| head.borrow().epoch == before) {
            let prefix = TokenPrefix { epoch, definitions, snapshot: start.snapshot, ad_hoc: AdHoc::default() };
            return Ok((Start::Token(Token { prefix, position: start.after }), None));
        }
    }
    Err(not_ready(source).into())
}

/// The newest begin up to there of a snapshot that has not ended; zero where there is none. For who asks for snapshots from there on it
/// means the same, and it is the same for many, who then share a plan.
fn newest_begin(unfinished: &Snapshots, after: Position) -> Position {
    unfinished.values().map(|of| of.begin).filter(|begin| *begin <= after).max().unwrap_or(Position::ZERO)
}

/// Has the snapshot of a new table begun just before this position, of one that is wanted, and is not among the tables? Only where
/// the table was not known yet: older ones are known, or gone.
async fn misses_a_begin(source: &Source, filters: &[Filter], tables: &[TableName], after: Position) -> bool {
    let statuses = source.handle.snapshots.statuses().next().await.unwrap_or_default();
    let newest = statuses.iter().filter_map(|status| status.started.as_ref()).map(|started| started.seconds).max();
    let is_recent = |status: &&v1::SnapshotStatus| {
        let started = status.started.as_ref().map(|started| started.seconds);
        started.zip(newest).is_some_and(|(started, newest)| newest - started <= KNOWN_WITHIN_S)
    };
    let began_before = |status: &&v1::SnapshotStatus| status.begin.parse().is_ok_and(|begin: Position| begin < after);
    let new = statuses.iter().filter(|status| status.new_tables).filter(is_recent).filter(began_before);
    let mut names = new.flat_map(|status| &status.tables).filter_map(|table| table.table.parse::<TableName>().ok());
    names.any(|name| !tables.contains(&name) && filters.iter().any(|filter| filter.reads(&name)))
}

/// A token of a subscription that started from the mirror: once that snapshot has ended, it is a token like any other.
async fn go_on(
    token: Token,
    source: &Source,
    filters: &[Filter],
    config: &GatewayConfig,
) -> Result<(Start, Mirrored), Refusal> {
    let Token { prefix, position } = token;
    if !mirror_snapshot::is_within(position) {
        let prefix = TokenPrefix { snapshot: 0, ..prefix };
        return Ok((Start::Token(Token { prefix, position }), None));
    }
    // Prefix and position are checked apart from each other, and the position is whatever the client says.
    if !mirror_snapshot::has_room(position) {
        return Err(GatewayError::from(TokenError::Malformed).into());
    }
    let tables = matched_tables(source, filters, config).await?;
    match mirrored(source, &tables, config).await? {
        Some(tables) => Ok((Start::Token(token), Some(tables))),
        None => Err(Refusal::Reset(mirror_gone(prefix.snapshot))),
    }
}

/// What an open subscription is told when its reader fails.
pub(crate) fn refusal(error: Interrupted, position: Position, source: &Source) -> Refusal {
    let error = match error {
        Interrupted::Log(error) => error,
        Interrupted::Mirror { snapshot, error: MirrorError::NotComplete(_) | MirrorError::Damaged(_) } => {
            return Refusal::Reset(mirror_gone(snapshot));
        }
        Interrupted::Sets(ended) => return ended.refusal(),
        Interrupted::Redefined(refusal) => return *refusal,
        // It is opened again, and the snapshot goes on by token.
        Interrupted::Mirror { error, .. } => return GatewayError::Mirror(error).into(),
    };
    match error {
        ReadError::TooOld { earliest } => Refusal::Reset(too_old(position, earliest)),
        ReadError::OtherEpoch { .. } => Refusal::Reset(discontinued(&because(source))),
        ReadError::Damaged { .. } | ReadError::Io { .. } => Refusal::Error(GatewayError::Read(error)),
    }
}

/// Why the history before the current one ended, where that is known.
fn because(source: &Source) -> String {
    source.handle.store.reset_reason().map_or_else(String::new, |reason| format!(": {reason}"))
}

fn epoch_changed(source: &Source) -> v1::Reset {
    v1::Reset {
        reason: v1::reset::Reason::EpochChanged as i32,
        detail: format!(
            "the token belongs to another history of the source, whose slot, publication, timeline or data has changed \
             since{}; read the tables anew and subscribe without the token",
            because(source)
        ),
    }
}

pub(crate) fn not_ready(source: &Source) -> GatewayError {
    let status = source.handle.status.borrow();
    let detail = if status.detail.is_empty() { "still connecting" } else { status.detail.as_str() };
    GatewayError::SourceNotReady { source_name: source.name().to_string(), detail: detail.to_owned() }
}
