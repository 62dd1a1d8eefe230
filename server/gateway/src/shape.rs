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

pub(crate) mod change;
pub(crate) mod route;

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tidegate_model::{Retry, TableName};
use tidegate_proto::v1;
use tidegate_schema::RowType;
use tidegate_views::{Parameter, Pinned, Shape, ShapeDefinition, ShapeError, TableFacts, Updates};

use crate::{
    config::GatewayConfig, facts::Known, mirror_snapshot::mirrored, selection::RowTypeLookup, source::Source,
    status::GatewayError,
};
use route::{Lost, ShapeRoute};

/// Why a shape is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShapeRefusal {
    #[error(transparent)]
    Definition(#[from] ShapeError),
    #[error("updates is {value}, which this server does not know; use FULL_ROW or CHANGED_COLUMNS")]
    Updates { value: i32 },
    #[error(
        "a shape needs whole old rows, by which rows leave it; let the server mirror the table (`mirror` or `mirror_on_demand` of the \
         source), or, unless it is a root of partitions, ALTER TABLE … REPLICA IDENTITY FULL"
    )]
    OldRows,
    #[error("its mirror is not complete yet; `tidegate status` says how far it is: try again then")]
    Building,
    #[error("a shape needs a mirror of the table, which cannot be made: {detail}")]
    NotMirrored { detail: String },
}

impl ShapeRefusal {
    /// What to do.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            ShapeRefusal::Definition(error) => error.retry(),
            ShapeRefusal::Updates { .. } | ShapeRefusal::OldRows | ShapeRefusal::NotMirrored { .. } => Retry::Never,
            ShapeRefusal::Building => Retry::After(std::time::Duration::from_secs(2)),
        }
    }
}

impl ShapeRefusal {
    /// Will it come right by itself, when a mirror is complete?
    pub(crate) fn is_building(&self) -> bool {
        matches!(self, ShapeRefusal::Building)
    }
}

/// One selection. Equal filters select the same, as long as they read it from equal facts.
#[derive(Clone, Debug)]
pub(crate) struct ShapeFilter {
    definition: Arc<ShapeDefinition>,
    known: Arc<Known>,
    hash: [u8; 32],
}

impl PartialEq for ShapeFilter {
    fn eq(&self, other: &Self) -> bool {
        let same_facts = || Arc::ptr_eq(&self.known, &other.known) || self.known.described == other.known.described;
        self.hash == other.hash && same_facts()
    }
}

impl Eq for ShapeFilter {}

impl Hash for ShapeFilter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
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
    Ok(ShapeDefinition { table, condition, parameters, columns, updates })
}

/// A definition checked against its table alone, and what that was.
pub(crate) async fn checked(definition: ShapeDefinition, source: &Source) -> Result<(Shape, Arc<Known>), GatewayError> {
    let table = definition.table.clone();
    let definition = Arc::new(definition);
    let known = source.facts.known(&source.handle, &table).await?;
    let shape = match made(&definition, &known).await {
        // The table may have come to fit.
        Err(_) if !known.is_young() => {
            let known = source.facts.renewed(&source.handle, &table, &known).await?;
            made(&definition, &known).await.map(|shape| (shape, known))
        }
        shape => shape.map(|shape| (shape, known)),
    };
    shape.map_err(|error| refused(&table, error.into()))
}

/// What is hostile takes a while to refuse, in which others are served.
async fn made(definition: &Arc<ShapeDefinition>, known: &Arc<Known>) -> Result<Shape, ShapeError> {
    let (definition, known) = (Arc::clone(definition), Arc::clone(known));
    let make = move || Shape::new(&definition, &known.described.facts, &known.described.key);
    let made = tokio::task::spawn_blocking(make).await;
    made.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

impl ShapeFilter {
    /// Checks a definition against its table, which the source follows.
    pub(crate) async fn open(
        definition: ShapeDefinition,
        source: &Source,
        config: &GatewayConfig,
    ) -> Result<Self, GatewayError> {
        let table = definition.table.clone();
        let definition = Arc::new(definition);
        let known = source.facts.known(&source.handle, &table).await?;
        let filter = match ShapeFilter::new(Arc::clone(&definition), known.clone()) {
            // The table may have come to fit.
            Err(_) if !known.is_young() => {
                let known = source.facts.renewed(&source.handle, &table, &known).await?;
                ShapeFilter::new(definition, known)
            }
            made => made,
        };
        let filter = filter.map_err(|error| refused(&table, error.into()))?;
        filter.check_old_rows(source, config).await?;
        Ok(filter)
    }

    pub(crate) fn new(definition: Arc<ShapeDefinition>, known: Arc<Known>) -> Result<Self, ShapeError> {
        let described = &known.described;
        let shape = Shape::new(&definition, &described.facts, &described.key)?;
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
        Ok(ShapeFilter { definition, known, hash })
    }

    /// The same with what the catalog says now; None where it says the same.
    pub(crate) async fn renewed(&self, source: &Source) -> Result<Option<Self>, GatewayError> {
        let known = source.facts.renewed(&source.handle, self.table(), &self.known).await?;
        let renewed = ShapeFilter::new(Arc::clone(&self.definition), known);
        let renewed = renewed.map_err(|error| refused(self.table(), error.into()))?;
        Ok(Some(renewed).filter(|renewed| renewed != self))
    }

    async fn check_old_rows(&self, source: &Source, config: &GatewayConfig) -> Result<(), GatewayError> {
        if self.known.described.whole_old_rows {
            return Ok(());
        }
        let is_mirrored = source.handle.mirror.as_ref().is_some_and(|mirror| mirror.request(self.table()));
        if !is_mirrored {
            return Err(refused(self.table(), ShapeRefusal::OldRows));
        }
        match mirrored(source, std::slice::from_ref(self.table()), config).await? {
            Some(_) => Ok(()),
            None => Err(refused(self.table(), ShapeRefusal::Building)),
        }
    }

    pub(crate) fn table(&self) -> &TableName {
        &self.definition.table
    }

    /// What it means, column types included.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// The columns that have one value in all of its rows, as the table is now.
    pub(crate) fn pinned(&self, lookup: &impl RowTypeLookup) -> Vec<Pinned> {
        let row_types = lookup.of_table(self.table());
        let newest = row_types.iter().max_by_key(|row_type| row_type.proto().row_type);
        let route = newest.and_then(|newest| self.route(newest, lookup).ok());
        route.map(|route| route.predicate().pinned()).unwrap_or_default()
    }

    /// What it means for rows of a row type of its table.
    pub(crate) fn route(
        &self,
        row_type: &Arc<RowType>,
        lookup: &impl RowTypeLookup,
    ) -> Result<ShapeRoute, GatewayError> {
        let facts = self.bound(row_type);
        let shape = Shape::new(&self.definition, &facts, &self.known.described.key);
        let shape = shape.map_err(|error| refused(self.table(), error.into()))?;
        let is_unbound =
            |name: &&str| facts.columns.iter().any(|column| column.name == *name && column.field == UNBOUND);
        let unbound: Vec<&str> = shape.predicate().columns().filter(is_unbound).collect();
        let lost = if row_type.key().is_empty() {
            Some(Lost::Key)
        } else {
            unbound.iter().find_map(|&column| self.lost(column, row_type, lookup))
        };
        Ok(ShapeRoute::new(shape, Arc::clone(row_type), lost))
    }

    /// The table as it was described, with the numbers that its columns have in this row type.
    fn bound(&self, row_type: &RowType) -> TableFacts {
        let mut facts = self.known.described.facts.clone();
        for column in &mut facts.columns {
            column.field = self.field(&column.name, row_type).unwrap_or(UNBOUND);
        }
        facts
    }

    fn field(&self, column: &str, row_type: &RowType) -> Option<u32> {
        let found = row_type.column(column)?;
        (self.known.described.type_of(column) == Some(found.type_oid)).then_some(found.field)
    }

    /// Had an earlier row type the column, as the condition means it, and has this one not?
    fn lost(&self, column: &str, row_type: &RowType, lookup: &impl RowTypeLookup) -> Option<Lost> {
        let number = row_type.proto().row_type;
        let having = |other: &Arc<RowType>| self.field(column, other).map(|_| other.proto().row_type);
        let with: Vec<u32> = lookup.of_table(self.table()).iter().filter_map(having).collect();
        let retyped = row_type.column(column).is_some();
        let for_reads = with.iter().all(|&other| other < number);
        let column = column.to_owned();
        with.iter().any(|&other| other < number).then_some(Lost::Column { column, retyped, for_reads })
    }
}

/// No field of a row has it.
const UNBOUND: u32 = 0;

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

fn refused(table: &TableName, error: ShapeRefusal) -> GatewayError {
    GatewayError::Shape { table: table.clone(), error: Box::new(error) }
}

#[cfg(test)]
mod tests;
