//! Which rows of a table a snapshot out of the mirror reads: all, or where a shape's condition has a column equal to a value, those
//! that an index of the mirror has for it.
//!
//! An index is asked for by the first shape that could use it; until it is complete, all rows are read, by one at a time: many that read
//! them all would keep it from being built, and each waits for its turn or for the index, whichever comes first. A table has so many; with more, one that
//! is not used gives way to one that is asked for again and again. Rows are filtered behind this
//! in any case, so more of them than are wanted do no harm.
//!
//! Invariant: every row of the table that the selections have is among those that are read. A chunk is whole between its ends either way, and
//! its ends mean the same, so that the way may change between two.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidegate_model::{Position, TableName};
use tidegate_schema::{ColumnSpec, RowEncoder, RowType, TypeShape, Value, ValueKind};
use tidegate_store::{IndexId, MirrorError, MirrorReader, MirrorRow, RowChunk, RowForm, Rows, Scan, Store};
use tidegate_views::Pinned;

use crate::{
    by_row_type::RowTypeLookup as _,
    selection::{Deliver, Filter, Plan},
    shape::ShapeFilter,
    source::Source,
};

/// Types of which equal values are encoded equally, those first of which one value is likely to have few rows: uuid, bigint, integer,
/// text, varchar, smallint.
const TYPES: [u32; 6] = [2950, 20, 23, 25, 1043, 21];

/// A table's rows.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) name: TableName,
    pub(crate) table_oid: u32,
    /// Fields that have one value in all of them, encoded whole; the best to look up first.
    pinned: Vec<(u32, Bytes)>,
}

/// The tables' rows that a plan selects, as far as one column tells, after having asked for an index where one is missing.
pub(crate) async fn narrowed(tables: Vec<Wanted>, plan: &Plan, source: &Source) -> Vec<Wanted> {
    let store = &source.handle.store;
    let of_plan = |table: Wanted| {
        let mut reading = plan.key.filters().iter().filter(|filter| filter.reads(&table.name));
        match (reading.next().and_then(Filter::shape), reading.next()) {
            (Some(only), None) => table.with(&only.pinned(store), &store.of_table(only.table())),
            (Some(_) | None, _) => table,
        }
    };
    let tables: Vec<Wanted> = tables.into_iter().map(of_plan).collect();
    if let Some(mirror) = source.handle.mirror.clone()
        && tables.iter().any(|table| !table.pinned.is_empty())
    {
        let wanted = tables.clone();
        let asked = tokio::task::spawn_blocking(move || wanted.iter().try_for_each(|table| table.ask(&mirror))).await;
        // Without an index it is only slower.
        match asked {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no index of the mirror was asked for"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    tables
}

impl Wanted {
    /// All rows.
    pub(crate) fn all(name: TableName, table_oid: u32) -> Self {
        Wanted { name, table_oid, pinned: Vec::new() }
    }

    /// Those that all of these shapes have, and more: what an index has for a value, if it is the same in all.
    pub(crate) fn of_all<'a>(self, shapes: impl Iterator<Item = &'a ShapeFilter>, source: &Source) -> Self {
        let store = &source.handle.store;
        let pinned = shapes.map(|shape| shape.pinned(store));
        let common = pinned.reduce(|mut common, of| {
            common.retain(|pinned| of.contains(pinned));
            common
        });
        let row_types = store.of_table(&self.name);
        self.with(&common.unwrap_or_default(), &row_types)
    }

    /// Those that have these values. `row_types`: all of the table's, in which a column may have had another field.
    fn with(self, pinned: &[Pinned], row_types: &[Arc<RowType>]) -> Self {
        let mut encoded: Vec<(usize, u32, Bytes)> =
            pinned.iter().filter_map(|pinned| encoded(pinned, row_types)).collect();
        encoded.sort_unstable();
        Wanted { pinned: encoded.into_iter().map(|(_, field, bytes)| (field, bytes)).collect(), ..self }
    }

    /// Asks for an index, where none would serve. Blocks the thread.
    fn ask(&self, mirror: &MirrorReader) -> Result<(), MirrorError> {
        let Some((best, _)) = self.pinned.first() else { return Ok(()) };
        let indexes = mirror.indexes(self.table_oid)?;
        let serves = |fields: &[u32]| self.pinned.iter().any(|(field, _)| fields == [*field]);
        if !indexes.iter().any(|index| serves(&index.fields)) {
            mirror.add_index(self.table_oid, [*best]);
        }
        Ok(())
    }

    /// The rows behind another chunk, or from the first on; None where an index for them is being built, and it is nobody's turn to do
    /// without. Blocks the thread.
    pub(super) fn chunk(
        &self,
        mirror: &MirrorReader,
        behind: Option<&[u8]>,
        (how, has_turn): (&Reading, bool),
    ) -> Result<Option<RowChunk>, MirrorError> {
        let way = self.way(mirror)?;
        if let Way::Index(index, value) = way {
            return mirror.lookup_chunk(index, value, behind, how.size).map(Some);
        }
        if way == Way::Coming && !has_turn {
            return Ok(None);
        }
        let mut chunk = mirror.chunk(self.table_oid, behind, how.size)?;
        if let Some(sieve) = &how.sieve {
            chunk.rows.retain(|row| sieve.passes(row, chunk.position));
        }
        Ok(Some(chunk))
    }

    /// All of the rows at one position. Blocks the thread.
    pub(crate) fn scan(&self, mirror: &MirrorReader) -> Result<Scan, MirrorError> {
        let scans = mirror.scans([self.rows(mirror)?])?;
        Ok(scans.into_iter().next().expect("one was asked for"))
    }

    /// How they are found now. Blocks the thread.
    pub(crate) fn rows(&self, mirror: &MirrorReader) -> Result<Rows<'_>, MirrorError> {
        Ok(match self.way(mirror)? {
            Way::Index(index, value) => Rows::With(index, value),
            Way::Coming | Way::All => Rows::Of(self.table_oid),
        })
    }

    fn way(&self, mirror: &MirrorReader) -> Result<Way<'_>, MirrorError> {
        if self.pinned.is_empty() {
            return Ok(Way::All);
        }
        let indexes = mirror.indexes(self.table_oid)?;
        let mut serving = self.pinned.iter().filter_map(|(field, value)| {
            let index = indexes.iter().find(|index| index.fields == [*field])?;
            Some((index, value))
        });
        let complete = serving.clone().find(|(index, _)| index.complete);
        Ok(match (complete, serving.next()) {
            (Some((index, value)), _) => Way::Index(index.id, value),
            (None, Some(_)) => Way::Coming,
            (None, None) => Way::All,
        })
    }
}

/// How a table's rows are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way<'a> {
    Index(IndexId, &'a [u8]),
    /// An index for them is being built.
    Coming,
    All,
}

/// How a chunk is to be read.
pub(super) struct Reading {
    /// In bytes, and of rows in this form.
    pub(super) size: (usize, RowForm),
    /// None to have all rows.
    pub(super) sieve: Option<Sieve>,
}

/// Holds back rows that no selection has, before they are copied. What it cannot judge it lets pass.
pub(super) struct Sieve {
    plan: Arc<Plan>,
    store: Store,
}

impl Sieve {
    pub(super) fn new(source: &Source, plan: &Arc<Plan>) -> Self {
        Sieve { plan: Arc::clone(plan), store: source.handle.store.clone() }
    }

    fn passes(&self, row: &MirrorRow, position: Position) -> bool {
        let Ok(routing) = self.plan.routing(row.row_type, &self.store) else { return true };
        let filters = self.plan.key.filters();
        filters.iter().zip(&routing.deliver).any(|(filter, deliver)| match deliver {
            Deliver::Skip => false,
            Deliver::Shape(route) if filter.shape().is_some_and(|shape| shape.subqueries().is_empty()) => {
                route.has(row, position).unwrap_or(true)
            }
            Deliver::Whole | Deliver::Columns(_) | Deliver::Shape(_) => true,
        })
    }
}

/// The field as rows have it, and its rank. None where equal values may have other bytes.
fn encoded(pinned: &Pinned, row_types: &[Arc<RowType>]) -> Option<(usize, u32, Bytes)> {
    let column = row_types.iter().find_map(|row_type| row_type.column_by_field(pinned.field))?;
    let rank = TYPES.iter().position(|oid| *oid == column.type_oid)?;
    // Of a table that was renamed, another field may have been the same column.
    let is_elsewhere = |row_type: &RowType| {
        row_type.column(&column.name).is_some_and(|same| same.type_oid == column.type_oid && same.field != column.field)
    };
    if row_types.iter().any(|row_type| is_elsewhere(row_type)) {
        return None;
    }
    let spec = ColumnSpec {
        name: column.name.clone(),
        attnum: column.attnum,
        type_oid: column.type_oid,
        type_name: column.r#type.clone(),
        codec: ValueKind::of(column.type_oid, TypeShape::Base),
        key: column.key,
        field: column.field,
    };
    let mut bytes = BytesMut::new();
    RowEncoder::new(&[spec]).encode([Value::Text(pinned.text.as_bytes())].into_iter(), &mut bytes).ok()?;
    Some((rank, pinned.field, bytes.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_type(row_type: u32, columns: &[(&str, u32, u32)]) -> Arc<RowType> {
        let column = |(name, type_oid, field): &(&str, u32, u32)| ColumnSpec {
            name: (*name).to_owned(),
            attnum: 0,
            type_oid: *type_oid,
            type_name: "some type".to_owned(),
            codec: ValueKind::of(*type_oid, TypeShape::Base),
            key: *field == 1,
            field: *field,
        };
        let spec = tidegate_schema::RowTypeSpec {
            row_type,
            source: "shop".parse().expect("a source name"),
            name: TableName::new("public", "orders"),
            table_oid: 16_000,
            identity: tidegate_proto::v1::ReplicaIdentity::Full,
            columns: columns.iter().map(column).collect(),
        };
        Arc::new(RowType::new(spec.to_proto()).expect("valid"))
    }

    fn looked_up(pinned: &[(u32, &str)], row_types: &[Arc<RowType>]) -> Vec<(u32, Vec<u8>)> {
        let pinned = pinned.iter().map(|(field, text)| Pinned { field: *field, text: (*text).to_owned() });
        let wanted =
            Wanted::all(TableName::new("public", "orders"), 16_000).with(&pinned.collect::<Vec<_>>(), row_types);
        wanted.pinned.into_iter().map(|(field, bytes)| (field, bytes.to_vec())).collect()
    }

    #[test]
    fn a_column_whose_values_are_rare_is_looked_up_before_others() {
        let columns = [("id", 20, 1), ("status", 25, 2), ("tenant", 23, 3), ("total", 1700, 4), ("open", 16, 5)];
        let row_types = [row_type(1, &columns)];
        let found = looked_up(&[(2, "open"), (3, "7"), (4, "1.0"), (5, "t")], &row_types);
        assert_eq!(found, [(3, vec![0x18, 7]), (2, vec![0x12, 4, b'o', b'p', b'e', b'n'])]);
        assert_eq!(looked_up(&[(3, "3000000000"), (9, "1")], &row_types), []);
    }

    #[test]
    fn a_column_that_had_another_field_is_not_looked_up() {
        let row_types =
            [row_type(1, &[("id", 20, 1), ("tenant", 23, 2)]), row_type(2, &[("id", 20, 1), ("tenant", 23, 3)])];
        assert_eq!(looked_up(&[(3, "7")], &row_types), []);
        let retyped =
            [row_type(1, &[("id", 20, 1), ("tenant", 25, 2)]), row_type(2, &[("id", 20, 1), ("tenant", 23, 3)])];
        assert_eq!(looked_up(&[(3, "7")], &retyped).len(), 1);
    }
}
