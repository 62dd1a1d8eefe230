//! What a subscription selects, normalised, and what that means for each row type.
//!
//! ```text
//! TableSelection ──parse──▶ TableFilter ──plan──▶ Plan (one per distinct list of filters, shared)
//!   names, operations, columns      │             row type 7 ─▶ Routing: for each selection Skip | Whole | Columns | Shape
//! ShapeSelection ───────────▶ ShapeFilter (shape.rs)
//! ```
//!
//! Logical messages belong to no table: a selection receives them when its operations list MESSAGE, or when it leaves both
//! names and operations empty. A table that comes to match while a subscription is open, and lacks a selected column, is
//! delivered with those that it has.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use prost::Message as _;
use tidegate_model::{AdHoc, Epoch, Op, Position, TableName, TablePatterns, TokenPrefix, near};
use tidegate_proto::v1;
use tidegate_schema::{FieldSet, RowType};

use crate::{
    by_row_type::{ByRowType, RowTypeLookup},
    config::GatewayConfig,
    mirror_snapshot,
    shape::{self, ShapeFilter, route::ShapeRoute},
    source::SourceHandle,
    status::GatewayError,
};

/// A set of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Operations(u8);

impl Operations {
    const ALL: Operations = Operations(u8::MAX);
    /// What happens to rows.
    const OF_ROWS: Operations = Operations(!(1 << Op::Message as u8));

    pub(crate) fn contains(self, op: Op) -> bool {
        self.0 & (1 << op as u8) != 0
    }
}

/// One selection. Equal filters mean the same, however they were written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Filter {
    Tables(Box<TableFilter>),
    Shape(ShapeFilter),
}

impl Filter {
    /// Refuses tables and columns that do not exist, as far as they are known.
    pub(crate) fn validate(&self, tables: &Tables) -> Result<(), GatewayError> {
        match self {
            Filter::Tables(filter) => filter.validate(tables),
            Filter::Shape(shape) => tables.check_exists(shape.table()),
        }
    }

    /// The patterns to be included, as they were written.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Filter::Tables(filter) => filter.patterns.included().map(|(text, _)| text.to_owned()).collect(),
            Filter::Shape(shape) => vec![shape.table().to_string()],
        }
    }

    /// Is the table named, and not meant by a pattern?
    pub(crate) fn is_named(&self, table: &TableName) -> bool {
        match self {
            Filter::Tables(filter) => filter.patterns.exact_names().any(|name| name == *table),
            Filter::Shape(shape) => shape.table() == table,
        }
    }

    /// Are the table's rows of a snapshot to be delivered?
    pub(crate) fn reads(&self, table: &TableName) -> bool {
        match self {
            Filter::Tables(filter) => filter.reads(table),
            Filter::Shape(shape) => shape.table() == table,
        }
    }

    pub(crate) fn shape(&self) -> Option<&ShapeFilter> {
        match self {
            Filter::Tables(_) => None,
            Filter::Shape(shape) => Some(shape),
        }
    }

    fn operations(&self) -> Operations {
        match self {
            Filter::Tables(filter) => filter.operations,
            Filter::Shape(_) => Operations::OF_ROWS,
        }
    }

    fn messages(&self) -> bool {
        match self {
            Filter::Tables(filter) => filter.messages,
            Filter::Shape(_) => false,
        }
    }

    fn deliver(&self, row_type: &Arc<RowType>, lookup: &impl RowTypeLookup) -> Result<Deliver, GatewayError> {
        match self {
            Filter::Tables(filter) => Ok(filter.deliver(row_type)),
            Filter::Shape(shape) if shape.table() == row_type.name() => {
                Ok(Deliver::Shape(Box::new(shape.route(row_type, lookup)?)))
            }
            Filter::Shape(_) => Ok(Deliver::Skip),
        }
    }
}

/// A selection of tables.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableFilter {
    patterns: TablePatterns,
    operations: Operations,
    messages: bool,
    /// Sorted; empty for all.
    columns: Vec<String>,
}

impl TableFilter {
    /// Reads a selection.
    pub(crate) fn parse(selection: &v1::TableSelection, config: &GatewayConfig) -> Result<Self, GatewayError> {
        let limit = config.names_max;
        let too_many = |what, field, count| GatewayError::TooMany { what, count, limit, field };
        if selection.names.len() > limit {
            return Err(too_many("names", "names", selection.names.len()));
        }
        if selection.columns.len() > limit {
            return Err(too_many("columns", "columns", selection.columns.len()));
        }
        let mut operations = Operations(0);
        for &value in &selection.operations {
            operations.0 |= 1 << operation(value)? as u8;
        }
        let named = operations.0 != 0;
        let messages = operations.contains(Op::Message) || (!named && selection.names.is_empty());
        let mut names: Vec<&str> = selection.names.iter().map(|name| name.trim()).collect();
        names.sort_unstable();
        names.dedup();
        let mut columns = selection.columns.clone();
        columns.sort_unstable();
        columns.dedup();
        Ok(TableFilter {
            patterns: TablePatterns::parse(names)?,
            operations: if named { operations } else { Operations::ALL },
            messages,
            columns,
        })
    }

    /// Refuses tables and columns that do not exist, as far as they are known.
    pub(crate) fn validate(&self, tables: &Tables) -> Result<(), GatewayError> {
        for table in self.patterns.exact_names() {
            tables.check_exists(&table)?;
        }
        let selected = tables.columns.iter().filter(|(table, _)| self.patterns.matches(table));
        for (table, known) in selected {
            if let Some(column) = self.columns.iter().find(|column| !known.contains(column)) {
                let near = near(column, known.iter().cloned());
                return Err(GatewayError::UnknownColumn { table: table.clone(), column: column.clone(), near });
            }
        }
        Ok(())
    }

    /// Are the table's rows of a snapshot to be delivered?
    pub(crate) fn reads(&self, table: &TableName) -> bool {
        self.operations.contains(Op::Read) && self.patterns.matches(table)
    }

    fn deliver(&self, row_type: &RowType) -> Deliver {
        if !self.patterns.matches(row_type.name()) {
            return Deliver::Skip;
        }
        let columns = &row_type.proto().columns;
        let selected = |column: &&v1::Column| column.key || self.columns.binary_search(&column.name).is_ok();
        if self.columns.is_empty() || columns.iter().all(|column| selected(&column)) {
            return Deliver::Whole;
        }
        Deliver::Columns(columns.iter().filter(selected).map(|column| column.field).collect())
    }
}

fn operation(value: i32) -> Result<Op, GatewayError> {
    match v1::change::Op::try_from(value) {
        Ok(v1::change::Op::Insert) => Ok(Op::Insert),
        Ok(v1::change::Op::Update) => Ok(Op::Update),
        Ok(v1::change::Op::Delete) => Ok(Op::Delete),
        Ok(v1::change::Op::Truncate) => Ok(Op::Truncate),
        Ok(v1::change::Op::Message) => Ok(Op::Message),
        Ok(v1::change::Op::Read) => Ok(Op::Read),
        Ok(v1::change::Op::Unspecified) | Err(_) => Err(GatewayError::Operation { value }),
    }
}

/// The tables of a source and their columns, to validate selections against.
pub(crate) struct Tables {
    columns: HashMap<TableName, Vec<String>>,
    /// Those whose changes are sent, and whose rows may be read.
    ready: HashSet<TableName>,
    /// The catalog was read: what is not among them does not exist.
    complete: bool,
}

impl Tables {
    /// What the catalog has, and what was seen in the stream (a table may have been dropped since).
    pub(crate) fn of(source: &SourceHandle) -> Self {
        let known = source.tables.borrow().clone();
        let row_types = source.store.row_types();
        let mut columns: HashMap<TableName, Vec<String>> = row_types
            .tables()
            .map(|(name, row_type)| {
                (name.clone(), row_type.proto().columns.iter().map(|column| column.name.clone()).collect())
            })
            .collect();
        columns.extend(known.iter().map(|table| (table.name.clone(), table.columns.clone())));
        let status = source.status.borrow();
        let is_new = |name: &TableName| status.new_tables.iter().any(|new| new.table == name.to_string());
        let ready = known.iter().filter(|table| table.published && !is_new(&table.name));
        Tables { complete: !known.is_empty(), columns, ready: ready.map(|table| table.name.clone()).collect() }
    }

    /// May the table be read, as far as that is known? One that a pattern means and that may not is left out of a snapshot.
    pub(crate) fn is_ready(&self, table: &TableName) -> bool {
        !self.complete || self.ready.contains(table)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &TableName> {
        self.columns.keys()
    }

    /// Refuses a table that does not exist, as far as that is known.
    pub(crate) fn check_exists(&self, table: &TableName) -> Result<(), GatewayError> {
        if !self.complete || self.columns.contains_key(table) {
            return Ok(());
        }
        let near = near(&table.to_string(), self.columns.keys().map(TableName::to_string));
        Err(GatewayError::UnknownTable { table: table.clone(), near })
    }
}

/// What happens to the changes of a row type in a selection.
#[derive(Clone, Debug)]
pub(crate) enum Deliver {
    Skip,
    Whole,
    Columns(FieldSet),
    /// What its shape says of each change.
    Shape(Box<ShapeRoute>),
}

impl Deliver {
    /// The columns that are delivered; None for all.
    pub(crate) fn fields(&self) -> Option<&FieldSet> {
        match self {
            Deliver::Skip | Deliver::Whole => None,
            Deliver::Columns(fields) => Some(fields),
            Deliver::Shape(route) => route.fields(),
        }
    }

    fn is_provisional(&self) -> bool {
        match self {
            Deliver::Skip | Deliver::Whole | Deliver::Columns(_) => false,
            Deliver::Shape(route) => route.is_provisional(),
        }
    }
}

/// What happens to the changes of a row type.
pub(crate) struct Routing {
    /// None for logical messages.
    pub(crate) row_type: Option<Arc<RowType>>,
    /// For each selection.
    pub(crate) deliver: Box<[Deliver]>,
    /// For each selection, the encoded `tidegate.v1.RowType` that announces it.
    pub(crate) announcements: Box<[Bytes]>,
}

impl Routing {
    /// Is it a table's whose rows are told apart by nothing?
    fn is_keyless(&self) -> bool {
        self.row_type.as_ref().is_some_and(|row_type| row_type.key().is_empty())
    }

    /// Has a change to be whole before it is known what is delivered of it?
    pub(crate) fn needs_whole(&self) -> bool {
        self.deliver.iter().any(|deliver| matches!(deliver, Deliver::Shape(_)))
    }
}

/// The normalised selections of a subscription, and which snapshots it receives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey(Arc<Selected>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Selected {
    filters: Box<[Filter]>,
    snapshot: u32,
    /// None of the default.
    ad_hoc: Option<Box<AdHoc>>,
}

impl PlanKey {
    /// Of a subscription that started from this snapshot; 0 for none. `ad_hoc`: which it receives of those that someone starts.
    pub(crate) fn new(filters: Vec<Filter>, snapshot: u32, ad_hoc: AdHoc) -> Self {
        let ad_hoc = (ad_hoc != AdHoc::default()).then(|| Box::new(ad_hoc));
        PlanKey(Arc::new(Selected { filters: filters.into(), snapshot, ad_hoc }))
    }

    pub(crate) fn filters(&self) -> &[Filter] {
        &self.0.filters
    }

    fn ad_hoc(&self) -> AdHoc {
        self.0.ad_hoc.as_deref().copied().unwrap_or_default()
    }

    /// Did it start from a snapshot out of the mirror?
    pub(crate) fn is_of_mirror(&self) -> bool {
        mirror_snapshot::is_of_mirror(self.0.snapshot)
    }

    /// The same without the snapshot that it started from.
    pub(crate) fn in_log(&self) -> Self {
        PlanKey::new(self.filters().to_vec(), 0, self.ad_hoc())
    }

    /// Of its tokens.
    pub(crate) fn prefix(&self, epoch: Epoch) -> TokenPrefix {
        let definitions = shape::definitions(self.filters().iter().filter_map(Filter::shape));
        TokenPrefix { epoch, definitions, snapshot: self.0.snapshot, ad_hoc: self.ad_hoc() }
    }

    /// The same with other filters.
    pub(crate) fn with(&self, filters: Vec<Filter>) -> Self {
        PlanKey::new(filters, self.0.snapshot, self.ad_hoc())
    }
}

/// Selections, and what they mean for the row types met so far.
pub(crate) struct Plan {
    /// Unique while the server runs.
    pub(crate) id: u64,
    pub(crate) key: PlanKey,
    routings: RwLock<ByRowType<Arc<Routing>>>,
    /// Where it is found by others.
    plans: Weak<Plans>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        if let Some(plans) = self.plans.upgrade() {
            plans.leave(&self.key);
        }
    }
}

/// Plans in use, so that equal selections share one.
///
/// Invariant: a plan that nobody uses any more is not here, nor is what it has selected.
#[derive(Default)]
pub(crate) struct Plans(Mutex<HashMap<PlanKey, Weak<Plan>>>);

impl Plans {
    /// The plan of a key.
    pub(crate) fn plan(self: &Arc<Self>, key: PlanKey) -> Arc<Plan> {
        let mut plans = self.locked();
        if let Some(plan) = plans.get(&key).and_then(Weak::upgrade) {
            return plan;
        }
        let plan = Arc::new(Plan::among(Arc::downgrade(self), key.clone()));
        plans.insert(key, Arc::downgrade(&plan));
        plan
    }

    /// Its plan has just been let go of; there may be another one already.
    fn leave(&self, key: &PlanKey) {
        let mut plans = self.locked();
        let is_gone = plans.get(key).is_some_and(|plan| plan.strong_count() == 0);
        let gone = if is_gone { plans.remove_entry(key) } else { None };
        if plans.len() < plans.capacity() / 4 {
            let len = plans.len();
            plans.shrink_to(2 * len);
        }
        drop(plans);
        // Not under the lock: what it has selected goes with it.
        drop(gone);
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<PlanKey, Weak<Plan>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plan {
    /// One that nobody else finds.
    #[cfg(test)]
    pub(crate) fn new(key: PlanKey) -> Self {
        Plan::among(Weak::new(), key)
    }

    fn among(plans: Weak<Plans>, key: PlanKey) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Plan { id: NEXT_ID.fetch_add(1, Relaxed), key, routings: RwLock::default(), plans }
    }

    /// Is this the snapshot whose chunks and marks are wanted?
    pub(crate) fn follows(&self, snapshot: u32) -> bool {
        snapshot != 0 && self.key.0.snapshot == snapshot
    }

    /// Is a snapshot of this kind received besides the subscription's own? `ad_hoc`: someone has started it, and it begins there.
    pub(crate) fn receives(&self, new_tables: bool, ad_hoc: Option<Position>) -> bool {
        new_tables || ad_hoc.is_some_and(|begin| self.key.ad_hoc().receives(begin))
    }

    /// Are the table's rows of a snapshot to be delivered?
    pub(crate) fn reads(&self, table: &TableName) -> bool {
        self.key.filters().iter().any(|filter| filter.reads(table))
    }

    /// Is an operation on a table with this routing for a selection? `chunk`: it stands in a chunk, of a snapshot that the plan
    /// receives or does not. Of a chunk of a table with a key, reads are for who receives it and wants reads, and corrections for the others. That
    /// a row is gone is for both: who has not received the begin, or had the row behind it, cannot tell it from a row that was never read. So
    /// for shapes is what leaves them by a correction ([`corrects_reads`]): the read of a row outside says nothing to them. All
    /// that a chunk of a table without a key has is for who receives it and wants reads: he must hear of what voids them.
    pub(crate) fn wants(&self, selection: usize, op: Op, chunk: Option<bool>, routing: &Routing) -> bool {
        let filter = &self.key.filters()[selection];
        let operations = filter.operations();
        match chunk {
            _ if op == Op::Message => filter.messages(),
            None => operations.contains(op),
            Some(receives) if routing.is_keyless() => {
                receives && operations.contains(Op::Read) && (op == Op::Truncate || operations.contains(op))
            }
            Some(receives) => {
                let reads = receives && operations.contains(Op::Read);
                let may_leave = filter.shape().is_some() && corrects_reads(op, chunk);
                (op == Op::Delete || may_leave || reads == (op == Op::Read)) && operations.contains(op)
            }
        }
    }

    /// What happens to a row type's changes; row type 0 stands for logical messages.
    pub(crate) fn routing(&self, row_type: u32, lookup: &impl RowTypeLookup) -> Result<Arc<Routing>, GatewayError> {
        if let Some(known) = self.routings.read().unwrap_or_else(PoisonError::into_inner).get(row_type, lookup) {
            return Ok(Arc::clone(known));
        }
        let version = lookup.version();
        let routing = if row_type == 0 {
            let deliver = |filter: &Filter| if filter.messages() { Deliver::Whole } else { Deliver::Skip };
            Routing {
                row_type: None,
                deliver: self.key.filters().iter().map(deliver).collect(),
                announcements: Box::default(),
            }
        } else {
            let found = lookup.row_type(row_type).ok_or(GatewayError::MissingRowType { row_type })?;
            self.route(found, lookup)?
        };
        let only = routing.deliver.iter().any(Deliver::is_provisional).then_some(version);
        let routing = Arc::new(routing);
        self.routings.write().unwrap_or_else(PoisonError::into_inner).insert(row_type, Arc::clone(&routing), only);
        Ok(routing)
    }

    fn route(&self, row_type: Arc<RowType>, lookup: &impl RowTypeLookup) -> Result<Routing, GatewayError> {
        let deliver = |filter: &Filter| filter.deliver(&row_type, lookup);
        let deliver = self.key.filters().iter().map(deliver).collect::<Result<Box<[Deliver]>, _>>()?;
        let announcements = deliver.iter().map(|deliver| announcement(&row_type, deliver)).collect();
        Ok(Routing { row_type: Some(row_type), deliver, announcements })
    }
}

/// Does it stand beside a read that is delivered, and say what the row was before? Then only what leaves a shape is told by it.
pub(crate) fn corrects_reads(op: Op, chunk: Option<bool>) -> bool {
    op == Op::Update && chunk == Some(true)
}

/// The row type with the columns that are delivered.
fn announcement(row_type: &RowType, deliver: &Deliver) -> Bytes {
    match (deliver, deliver.fields()) {
        (Deliver::Skip, _) => Bytes::new(),
        (Deliver::Whole | Deliver::Columns(_) | Deliver::Shape(_), None) => row_type.encoded(),
        (Deliver::Whole | Deliver::Columns(_) | Deliver::Shape(_), Some(fields)) => {
            let mut selected = row_type.proto().clone();
            selected.columns.retain(|column| fields.contains(column.field));
            selected.encode_to_vec().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(names: &[&str], operations: &[v1::change::Op], columns: &[&str]) -> Result<TableFilter, GatewayError> {
        let selection = v1::TableSelection {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            operations: operations.iter().map(|op| *op as i32).collect(),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        };
        TableFilter::parse(&selection, &GatewayConfig::default())
    }

    fn tables() -> Tables {
        let columns = ["id", "total", "status"].map(str::to_owned).to_vec();
        let orders = TableName::new("public", "orders");
        Tables { ready: HashSet::from([orders.clone()]), columns: HashMap::from([(orders, columns)]), complete: true }
    }

    #[test]
    fn equal_selections_are_equal_however_written() {
        use v1::change::Op::{Delete, Insert};
        let a = filter(&["orders", "shop.*", "orders"], &[Insert, Delete], &["b", "a"]).expect("valid");
        let b = filter(&[" shop.*", "orders"], &[Delete, Insert, Insert], &["a", "b", "b"]).expect("valid");
        let key = |filter: &TableFilter, snapshot| {
            PlanKey::new(vec![Filter::Tables(Box::new(filter.clone()))], snapshot, AdHoc::default())
        };
        assert_eq!(key(&a, 0), key(&b, 0));
        assert_ne!(key(&a, 0), key(&b, 1));
    }

    #[test]
    fn messages_come_only_where_they_are_asked_for() {
        use v1::change::Op::{Insert, Message};
        assert!(filter(&[], &[], &[]).expect("valid").messages);
        assert!(filter(&["orders"], &[Message], &[]).expect("valid").messages);
        assert!(!filter(&["orders"], &[], &[]).expect("valid").messages);
        assert!(!filter(&[], &[Insert], &[]).expect("valid").messages);
    }

    #[test]
    fn unknown_names_are_refused_with_near_ones() {
        let unknown = filter(&["oders"], &[], &[]).expect("valid").validate(&tables()).expect_err("no such table");
        assert!(unknown.to_string().contains("did you mean public.orders?"), "{unknown}");
        let unknown = filter(&["public.*"], &[], &["totl"]).expect("valid").validate(&tables()).expect_err("no column");
        assert!(unknown.to_string().contains("did you mean total?"), "{unknown}");
        filter(&["orders"], &[], &["total"]).expect("valid").validate(&tables()).expect("known");
        assert!(matches!(filter(&["a.b.c"], &[], &[]), Err(GatewayError::Pattern(_))));
    }

    #[test]
    fn an_operation_that_does_not_exist_is_refused() {
        assert!(matches!(filter(&[], &[v1::change::Op::Unspecified], &[]), Err(GatewayError::Operation { value: 0 })));
    }
}
