//! A selection of a shape: a definition that fits its table, and what that means for each of the table's row types.
//!
//! ```text
//! ShapeSelection ──parse──▶ ShapeDefinition ──facts──▶ ShapeFilter ──row type──▶ ShapeRoute ──change──▶ Verdict
//! ```
//!
//! **Row types.** Fields have numbers by name and type, so a condition is made for each row type anew, and a column that a row type
//! lacks is NULL in its rows: so is it for those who follow the table itself, and what a mirror later finds otherwise is delivered
//! as a change. But once a row type has lost a column that the condition reads, what a subscription has can no longer be
//! compared with what comes: it ends, and says why.

pub(crate) mod binding;
pub(crate) mod change;
mod failure;
mod refusal;
pub(crate) mod route;

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tidegate_model::TableName;
use tidegate_proto::v1;
use tidegate_schema::RowType;
use tidegate_store::MirrorReader;
use tidegate_views::{
    Order, OrderBy, Parameter, Pinned, Shape, ShapeDefinition, ShapeError, Subquery, TableFacts, Updates,
    subquery_tables,
};

use crate::{
    by_row_type::RowTypeLookup, config::GatewayConfig, facts::Known, mirror_snapshot::mirrored, selection::Tables,
    source::Source, status::GatewayError,
};
use binding::{bound, lacks};
pub(crate) use failure::{Cause, Lost, ShapeFailure};
pub(crate) use refusal::ShapeRefusal;
use route::ShapeRoute;

/// A definition of so few bytes is read where it is met: a thread for each of many, which come at once, costs far more.
const SHORT_TEXT_BYTES: usize = 1 << 10;

/// One selection. Equal filters select the same, as long as they read it from equal facts.
#[derive(Clone, Debug)]
pub(crate) struct ShapeFilter(Arc<Checked>);

/// There is one of these for each shape that is open: what is made of it for row types is not kept here.
#[derive(Debug)]
struct Checked {
    definition: Arc<ShapeDefinition>,
    known: Arc<Known>,
    inner: Inner,
    subqueries: Box<[Arc<Subquery>]>,
    hash: [u8; 32],
}

/// The tables that subqueries read.
type Inner = Arc<[(TableName, Arc<Known>)]>;

impl PartialEq for ShapeFilter {
    fn eq(&self, other: &Self) -> bool {
        let same = |one: &Arc<Known>, other: &Arc<Known>| Arc::ptr_eq(one, other) || one.described == other.described;
        let (ours, theirs) = (&*self.0, &*other.0);
        let mut inner = ours.inner.iter().zip(&*theirs.inner);
        ours.hash == theirs.hash
            && same(&ours.known, &theirs.known)
            && ours.inner.len() == theirs.inner.len()
            && inner.all(|((_, one), (_, other))| same(one, other))
    }
}

impl Eq for ShapeFilter {}

impl Hash for ShapeFilter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash.hash(state);
    }
}

/// Reads a selection. What its name means has been looked up, if it has one.
pub(crate) fn definition(
    selection: v1::ShapeSelection,
    config: &GatewayConfig,
) -> Result<ShapeDefinition, GatewayError> {
    let v1::ShapeSelection { name: _, table, r#where: condition, parameters, columns, updates } = selection;
    let limit = config.names_max;
    for (what, count) in [("columns", columns.len()), ("parameters", parameters.len())] {
        if count > limit {
            return Err(GatewayError::TooMany { what, count, limit, field: what });
        }
    }
    let table: TableName = table.parse()?;
    let updates = match v1::Updates::try_from(updates) {
        Ok(v1::Updates::FullRow) => Updates::FullRow,
        Ok(v1::Updates::ChangedColumns) => Updates::ChangedColumns,
        Err(_) => return Err(refused(&table, ShapeRefusal::Updates { value: updates })),
    };
    let parameter = |parameter: v1::Parameter| Parameter {
        type_name: Some(parameter.r#type).filter(|name| !name.is_empty()),
        value: parameter.value,
    };
    let parameters = parameters.into_iter().map(parameter).collect();
    let (table, condition, columns) = (Arc::new(table), condition.into(), columns.into());
    Ok(ShapeDefinition { table, condition, parameters, columns, updates })
}

/// A definition checked against its tables alone, and what its own was.
pub(crate) async fn checked(definition: ShapeDefinition, source: &Source) -> Result<(Shape, Arc<Known>), GatewayError> {
    let (filter, shape) = ShapeFilter::of(definition, source).await?;
    Ok((shape, Arc::clone(&filter.0.known)))
}

/// The tables that a condition's subqueries read, as the catalog has them, or had them not long ago.
async fn inner_of(definition: &ShapeDefinition, source: &Source) -> Result<Inner, GatewayError> {
    let named = subquery_tables(&definition.condition);
    let named = named.map_err(|error| refused(&definition.table, ShapeError::from(error).into()))?;
    if named.is_empty() {
        return Ok(Inner::default());
    }
    let tables = Tables::of(&source.handle);
    let mut inner = Vec::with_capacity(named.len());
    for table in named {
        tables.check_exists(&table)?;
        let known = source.facts.known(&source.handle, &table).await?;
        inner.push((table, known));
    }
    Ok(inner.into())
}

/// The same as the catalog has them now.
async fn renewed_inner(inner: &Inner, source: &Source) -> Result<Inner, GatewayError> {
    if inner.is_empty() {
        return Ok(Inner::default());
    }
    let mut renewed = Vec::with_capacity(inner.len());
    for (table, known) in &**inner {
        renewed.push((table.clone(), source.facts.renewed(&source.handle, table, known).await?));
    }
    Ok(renewed.into())
}

fn shape_of(
    definition: &ShapeDefinition,
    facts: &TableFacts,
    key: &[String],
    inner: &Inner,
) -> Result<Shape, ShapeError> {
    let others: Vec<TableFacts> = inner.iter().map(|(_, known)| known.described.facts.clone()).collect();
    Shape::with_tables(definition, facts, key, &others)
}

/// What is long, and may be hostile, takes a while to refuse, in which others are served.
async fn made(
    definition: &Arc<ShapeDefinition>,
    known: &Arc<Known>,
    inner: &Inner,
) -> Result<(ShapeFilter, Shape), ShapeError> {
    let (definition, known, inner) = (Arc::clone(definition), Arc::clone(known), Arc::clone(inner));
    if definition.text_bytes() <= SHORT_TEXT_BYTES {
        return ShapeFilter::with_shape(definition, known, inner);
    }
    let make = move || ShapeFilter::with_shape(definition, known, inner);
    let made = tokio::task::spawn_blocking(make).await;
    made.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl ShapeFilter {
    /// Checks a definition against its table, which the source follows. [`have_mirrored`] says whether it can be served.
    pub(crate) async fn new(definition: ShapeDefinition, source: &Source) -> Result<Self, GatewayError> {
        ShapeFilter::of(definition, source).await.map(|(filter, _)| filter)
    }

    async fn of(definition: ShapeDefinition, source: &Source) -> Result<(Self, Shape), GatewayError> {
        let inner = inner_of(&definition, source).await?;
        let known = source.facts.known(&source.handle, &definition.table).await?;
        // Its name is there once for all of its shapes.
        let table = Arc::clone(&known.table);
        let definition = Arc::new(ShapeDefinition { table: Arc::clone(&table), ..definition });
        let filter = match made(&definition, &known, &inner).await {
            // The tables may have come to fit.
            Err(_) if !(known.is_young() && inner.iter().all(|(_, known)| known.is_young())) => {
                let known = source.facts.renewed(&source.handle, &table, &known).await?;
                let inner = renewed_inner(&inner, source).await?;
                made(&definition, &known, &inner).await
            }
            made => made,
        };
        filter.map_err(|error| refused(&table, error.into()))
    }

    fn with_shape(
        definition: Arc<ShapeDefinition>,
        known: Arc<Known>,
        inner: Inner,
    ) -> Result<(Self, Shape), ShapeError> {
        let described = &known.described;
        let shape = shape_of(&definition, &described.facts, &described.key, &inner)?;
        let mut hasher = Sha256::new();
        hasher.update(shape.hash());
        // The same text means something else for a column of another type.
        let mut columns: Vec<&str> = shape.predicate().columns().collect();
        columns.sort_unstable();
        for column in columns {
            hasher.update((column.len() as u64).to_be_bytes());
            hasher.update(column);
            hasher.update(described.type_of(column).unwrap_or_default().to_be_bytes());
        }
        let hash = hasher.finalize().into();
        let subqueries = shape.predicate().subqueries().into();
        Ok((ShapeFilter(Arc::new(Checked { definition, known, inner, subqueries, hash })), shape))
    }

    /// The same with what the catalog says now; None where it says the same.
    pub(crate) async fn renewed(&self, source: &Source) -> Result<Option<Self>, GatewayError> {
        let known = source.facts.renewed(&source.handle, self.table(), &self.0.known).await?;
        let inner = renewed_inner(&self.0.inner, source).await?;
        let renewed = ShapeFilter::with_shape(Arc::clone(&self.0.definition), known, inner);
        let (renewed, _) = renewed.map_err(|error| refused(self.table(), error.into()))?;
        Ok(Some(renewed).filter(|renewed| renewed != self))
    }

    /// What it is refused with where a table of it is not mirrored; None where it can do without.
    fn without_mirror(&self) -> Option<ShapeRefusal> {
        if !self.0.subqueries.is_empty() {
            // What moves for a subquery is read from the mirror.
            return Some(ShapeRefusal::NotMirrored);
        }
        (!self.0.known.described.whole_old_rows).then_some(ShapeRefusal::OldRows)
    }

    /// Its own, and those that subqueries read.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &TableName> {
        [self.table()].into_iter().chain(self.0.inner.iter().map(|(table, _)| table))
    }

    /// Its condition's own subqueries.
    pub(crate) fn subqueries(&self) -> &[Arc<Subquery>] {
        &self.0.subqueries
    }

    /// A table that its subqueries read, as it was described.
    pub(crate) fn inner(&self, table: &TableName) -> Option<Arc<Known>> {
        self.0.inner.iter().find(|(name, _)| name == table).map(|(_, known)| Arc::clone(known))
    }

    /// As it was written, with values.
    pub(crate) fn definition(&self) -> &ShapeDefinition {
        &self.0.definition
    }

    pub(crate) fn table(&self) -> &TableName {
        &self.0.definition.table
    }

    /// What it means, column types included.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.0.hash
    }

    /// The columns that have one value in all of its rows, as the table is now.
    pub(crate) fn pinned(&self, lookup: &impl RowTypeLookup) -> Vec<Pinned> {
        let route = lookup.newest(self.table()).and_then(|newest| self.route(&newest, lookup).ok());
        route.map(|route| route.predicate().pinned()).unwrap_or_default()
    }

    /// What it means for rows of a row type of its table.
    pub(crate) fn route(
        &self,
        row_type: &Arc<RowType>,
        lookup: &impl RowTypeLookup,
    ) -> Result<ShapeRoute, GatewayError> {
        let facts = bound(&self.0.known, row_type);
        let shape = shape_of(&self.0.definition, &facts, &self.0.known.described.key, &self.0.inner);
        let shape = shape.map_err(|error| refused(self.table(), error.into()))?;
        let lacks = lacks(&self.0.known, shape.predicate().columns(), row_type, lookup);
        let (lost, is_provisional) = match lacks {
            Ok(_) | Err(_) if row_type.key().is_empty() => (Some(Lost::Key), false),
            Ok(lacks) => (None, lacks),
            Err(lost) => (Some(lost), false),
        };
        Ok(ShapeRoute::new(shape, Arc::clone(row_type), lost).provisional(is_provisional))
    }

    /// An order of the rows of a row type of its table.
    pub(crate) fn order(&self, by: &[OrderBy], row_type: &RowType) -> Result<Order, GatewayError> {
        self.order_of(by, &bound(&self.0.known, row_type))
    }

    /// Can its rows be so ordered?
    pub(crate) fn check_order(&self, by: &[OrderBy]) -> Result<(), GatewayError> {
        self.order_of(by, &self.0.known.described.facts).map(drop)
    }

    fn order_of(&self, by: &[OrderBy], facts: &TableFacts) -> Result<Order, GatewayError> {
        let order = Order::new(by, &self.0.known.described.key, facts);
        order.map_err(|(at, refusal)| refused(self.table(), ShapeRefusal::Order { term: at + 1, refusal }))
    }
}

/// Has the tables mirrored that these shapes need: all at once, so that one does not wait for another, and none where they cannot
/// be served all the same, because one may not be.
pub(crate) async fn have_mirrored(
    shapes: impl Iterator<Item = &ShapeFilter>,
    source: &Source,
    config: &GatewayConfig,
) -> Result<(), GatewayError> {
    let needing: Vec<&ShapeFilter> = shapes.filter(|shape| shape.without_mirror().is_some()).collect();
    let mirror = source.handle.mirror.as_ref();
    let asks: [fn(&MirrorReader, &TableName) -> bool; 2] = [MirrorReader::may_request, MirrorReader::request];
    for ask in asks {
        for shape in &needing {
            let unmirrored = shape.tables().find(|table| !mirror.is_some_and(|mirror| ask(mirror, table)));
            if let Some((table, why)) = unmirrored.zip(shape.without_mirror()) {
                return Err(refused(table, why));
            }
        }
    }
    for table in needing.into_iter().flat_map(ShapeFilter::tables).collect::<BTreeSet<_>>() {
        if mirrored(source, std::slice::from_ref(table), config).await?.is_none() {
            return Err(refused(table, ShapeRefusal::Building));
        }
    }
    Ok(())
}

/// The version of the definitions of these shapes, for tokens; 0 where there are none.
pub(crate) fn definitions<'a>(shapes: impl Iterator<Item = &'a ShapeFilter>) -> u32 {
    let mut shapes = shapes.peekable();
    if shapes.peek().is_none() {
        return 0;
    }
    let mut hasher = Sha256::new();
    shapes.for_each(|shape| hasher.update(shape.hash()));
    let hash: [u8; 32] = hasher.finalize().into();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]).max(1)
}

pub(crate) fn refused(table: &TableName, error: ShapeRefusal) -> GatewayError {
    GatewayError::Shape { table: table.clone(), error: Box::new(error) }
}

#[cfg(test)]
pub(crate) mod tests;
