//! Compares what a client holds with the rows of the mirror, and then knows which of these it has to be sent.
//!
//! Invariant: a row that is not wanted is one that the client has, of each selection that has it. What cannot be compared is sent.

use std::{collections::HashMap, sync::Arc};

use tidegate_model::Position;
use tidegate_proto::v1;
use tidegate_schema::FieldSet;
use tidegate_store::MirrorRow;

use super::{
    Held, HeldSelection,
    digest::{Head, Salt, ascending, head},
};
use crate::{
    mirror_snapshot::Wanted,
    projection::MalformedChange,
    selection::{Deliver, Plan, Routing},
    shape::{ShapeFailure, ShapeFilter},
    source::Source,
    status::GatewayError,
};

/// Why rows cannot be compared: everything is read then, and says what there is to say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Incomparable {
    #[error(transparent)]
    Shape(#[from] Arc<ShapeFailure>),
    #[error(transparent)]
    Row(#[from] MalformedChange),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error("the table {table_oid} has another key than before")]
    Key { table_oid: u32 },
}

/// What rows are, by their row types.
struct RowsOf {
    source: Arc<Source>,
    plan: Arc<Plan>,
    known: HashMap<u32, (Arc<Routing>, Head)>,
    /// Of each table, by its oid: a bucket is of keys of one kind.
    keys: HashMap<u32, FieldSet>,
}

impl RowsOf {
    fn known(&mut self, row: &MirrorRow) -> Result<(Arc<Routing>, Head), Incomparable> {
        if let Some((routing, head)) = self.known.get(&row.row_type) {
            return Ok((Arc::clone(routing), *head));
        }
        let routing = self.plan.routing(row.row_type, &self.source.handle.store)?;
        let row_type = routing.row_type.as_ref().ok_or(GatewayError::MissingRowType { row_type: row.row_type })?;
        let table_oid = row_type.proto().table_oid;
        let key = self.keys.entry(table_oid).or_insert_with(|| row_type.key().clone());
        if !key.iter().eq(row_type.key().iter()) {
            return Err(Incomparable::Key { table_oid });
        }
        let head = head(row_type.proto());
        self.known.insert(row.row_type, (Arc::clone(&routing), head));
        Ok((routing, head))
    }

    /// Does the selection read the table, and which of its columns? None where it does not.
    fn fields<'r>(&self, selection: usize, routing: &'r Routing) -> Option<Option<&'r FieldSet>> {
        let name = routing.row_type.as_ref()?.name();
        let reads = self.plan.key.filters().get(selection).is_some_and(|filter| filter.reads(name));
        let deliver = routing.deliver.get(selection).filter(|_| reads)?;
        (!matches!(deliver, Deliver::Skip)).then(|| deliver.fields())
    }
}

fn key(row: &MirrorRow, routing: &Routing) -> Result<Vec<u8>, MalformedChange> {
    let key = routing.row_type.as_ref().map(|row_type| row_type.key());
    ascending(&row.row, |field| key.is_some_and(|key| key.contains(field)))
}

/// The rows of the mirror are coming by.
pub(crate) struct Comparing {
    held: Arc<Held>,
    rows: RowsOf,
    /// Of each selection that is compared: which of what is held it is, the digests here, and the buckets that are replaced in any case.
    sums: Vec<(usize, Vec<u64>, Vec<u8>)>,
    reached: Position,
}

impl Comparing {
    /// None where nothing of it can be compared. What a shape with subqueries has is not asked of the mirror alone.
    pub(crate) fn new(held: Arc<Held>, plan: &Arc<Plan>, source: &Arc<Source>) -> Option<Self> {
        let has_subqueries = |shape: &ShapeFilter| !shape.subqueries().is_empty();
        let is_compared = |of: &HeldSelection| {
            let filter = plan.key.filters().get(of.selection);
            filter.is_some_and(|filter| !filter.shape().is_some_and(has_subqueries))
        };
        let compared = held.of.iter().enumerate().filter(|(_, of)| is_compared(of));
        let sums = compared.map(|(at, of)| (at, vec![0; of.digests.len()], bits(of.digests.len())));
        let sums: Vec<_> = sums.collect();
        let (plan, source) = (Arc::clone(plan), Arc::clone(source));
        let rows = RowsOf { source, plan, known: HashMap::new(), keys: HashMap::new() };
        (!sums.is_empty()).then_some(Comparing { held, rows, sums, reached: Position::ZERO })
    }

    /// Takes the rows of a chunk, which are what they are at this position.
    pub(crate) fn chunk(&mut self, rows: &[MirrorRow], position: Position) -> Result<(), Incomparable> {
        self.reached = self.reached.max(position);
        rows.iter().try_for_each(|row| self.row(row, position))
    }

    fn row(&mut self, row: &MirrorRow, position: Position) -> Result<(), Incomparable> {
        let (routing, head) = self.rows.known(row)?;
        let mut row_key = None;
        for (at, digests, replaced) in &mut self.sums {
            let HeldSelection { selection, salt, .. } = &self.held.of[*at];
            let Some(fields) = self.rows.fields(*selection, &routing) else { continue };
            if let Deliver::Shape(route) = &routing.deliver[*selection]
                && !route.has(row, position)?
            {
                continue;
            }
            let row_key = match &row_key {
                Some(key) => key,
                None => row_key.insert(key(row, &routing)?),
            };
            let bucket = salt.bucket(row_key, digests.len());
            if row.missing.is_empty() {
                let bytes = ascending(&row.row, |field| fields.is_none_or(|fields| fields.contains(field)))?;
                digests[bucket] = digests[bucket].wrapping_add(salt.row(&head, &bytes));
            } else {
                // Not all of it is known here.
                set(replaced, bucket);
            }
        }
        Ok(())
    }

    /// All rows have come by: what differs, and the position that the subscription has to come to at least.
    pub(crate) fn finish(self) -> (Differing, Position) {
        let Comparing { held, rows, sums, reached } = self;
        let mut of: Vec<Option<Replaced>> = rows.plan.key.filters().iter().map(|_| None).collect();
        for (at, digests, mut replaced) in sums {
            let HeldSelection { selection, salt, digests: theirs } = &held.of[at];
            let differing = digests.iter().zip(theirs).enumerate().filter(|(_, (ours, theirs))| ours != theirs);
            differing.for_each(|(bucket, _)| set(&mut replaced, bucket));
            of[*selection] = Some(Replaced { salt: *salt, bucket_count: digests.len(), buckets: replaced });
        }
        (Differing { rows, of }, reached)
    }
}

/// Of one selection.
struct Replaced {
    salt: Salt,
    bucket_count: usize,
    /// A bit for each.
    buckets: Vec<u8>,
}

impl Replaced {
    fn is_nothing(&self) -> bool {
        self.buckets.iter().all(|bits| *bits == 0)
    }

    fn has(&self, key: &[u8]) -> bool {
        let bucket = self.salt.bucket(key, self.bucket_count);
        self.buckets[bucket / 8] & (1 << (bucket % 8)) != 0
    }
}

fn bits(count: usize) -> Vec<u8> {
    vec![0; count.div_ceil(8)]
}

fn set(bits: &mut [u8], at: usize) {
    bits[at / 8] |= 1 << (at % 8);
}

/// Which rows a client has to be sent.
pub(crate) struct Differing {
    rows: RowsOf,
    /// Of each selection; None where all are.
    of: Vec<Option<Replaced>>,
}

impl Differing {
    /// How the client is told.
    pub(crate) fn to_proto(&self) -> Vec<v1::Difference> {
        let told = |(selection, of): (u32, &Option<Replaced>)| {
            let replaced = of.as_ref()?.buckets.clone().into();
            Some(v1::Difference { selection, replaced })
        };
        (0..).zip(&self.of).filter_map(told).collect()
    }

    /// Has any of the table's rows to be sent?
    pub(crate) fn concerns(&self, table: &Wanted) -> bool {
        let mut selections = self.rows.plan.key.filters().iter().zip(&self.of);
        selections.any(|(filter, of)| filter.reads(&table.name) && !of.as_ref().is_some_and(Replaced::is_nothing))
    }

    /// Has the row to be sent?
    pub(crate) fn wants(&mut self, row: &MirrorRow) -> Result<bool, Incomparable> {
        let (routing, _) = self.rows.known(row)?;
        let mut row_key = None;
        for (selection, of) in self.of.iter().enumerate() {
            if self.rows.fields(selection, &routing).is_none() {
                continue;
            }
            let Some(replaced) = of else { return Ok(true) };
            let row_key = match &row_key {
                Some(key) => key,
                None => row_key.insert(key(row, &routing)?),
            };
            if replaced.has(row_key) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
