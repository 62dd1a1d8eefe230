//! The rows of a shape, and what a change does to them.
//!
//! Rows are held as they came, by the bytes of their keys. What is seen of them, and when, is not decided here ([`crate::shape_copy`]).

use std::{collections::BTreeMap, mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use prost::encoding::{DecodeContext, decode_key, skip_field};
use serde_json::{Map, Value};

use crate::{Change, OldKind, Op, RowError, RowType};

/// The rows of a shape at one moment, in the order of their encoded keys, which is none that means anything.
#[derive(Clone, Debug, Default)]
pub struct ShapeRows {
    rows: BTreeMap<Bytes, ShapeRow>,
}

impl ShapeRows {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &ShapeRow> {
        self.rows.values()
    }

    /// With their keys.
    pub(crate) fn by_key(&self) -> impl Iterator<Item = (&Bytes, &ShapeRow)> {
        self.rows.iter()
    }

    /// Those whose keys are wanted.
    pub(crate) fn with(&self, is_wanted: impl Fn(&Bytes) -> bool) -> Self {
        let wanted = self.rows.iter().filter(|(key, _)| is_wanted(key));
        ShapeRows { rows: wanted.map(|(key, row)| (key.clone(), row.clone())).collect() }
    }

    /// Takes a change, and says what has become of rows.
    pub(crate) fn apply(&mut self, change: Change) -> Result<Vec<RowChange>, RowError> {
        apply(change, &mut self.rows)
    }

    #[cfg(test)]
    pub(crate) fn of(rows: impl Iterator<Item = ShapeRow>) -> Result<Self, RowError> {
        let rows = rows.map(|row| Ok((key(&row.row_type, &row.bytes)?, row)));
        Ok(ShapeRows { rows: rows.collect::<Result<_, RowError>>()? })
    }
}

/// A row of a shape. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ShapeRow {
    row_type: Arc<RowType>,
    bytes: Bytes,
}

impl ShapeRow {
    pub(crate) fn new(row_type: Arc<RowType>, bytes: Bytes) -> Self {
        ShapeRow { row_type, bytes }
    }

    /// How it is encoded. Rows may have come under different versions of the table; a column that is new since is NULL.
    #[must_use]
    pub fn row_type(&self) -> &Arc<RowType> {
        &self.row_type
    }

    /// As it came.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// As a message generated from the table's descriptor.
    ///
    /// # Errors
    /// The bytes are not such a message.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, RowError> {
        M::decode(self.bytes.clone()).map_err(|cause| malformed(&self.row_type, cause))
    }

    /// As JSON: values by exact column name; NULL is null.
    ///
    /// # Errors
    /// The row type or the bytes are not usable.
    pub fn json(&self) -> Result<Map<String, Value>, RowError> {
        self.row_type.json(&self.row_type.dynamic(&self.bytes)?, |_| true)
    }
}

/// What has become of one row.
#[derive(Clone, Debug)]
pub struct RowChange {
    /// None where it was not there.
    pub before: Option<ShapeRow>,
    /// None where it is not there any more.
    pub after: Option<ShapeRow>,
}

/// What a change does to rows by key.
fn apply(change: Change, rows: &mut BTreeMap<Bytes, ShapeRow>) -> Result<Vec<RowChange>, RowError> {
    let Some(row_type) = change.row_type.clone() else { return Ok(Vec::new()) };
    let old_key = match change.old_kind {
        OldKind::None => None,
        OldKind::Key | OldKind::Full => Some(key(&row_type, &change.old)?),
    };
    match change.op {
        Op::Truncate => {
            let gone = mem::take(rows).into_values();
            Ok(gone.map(|before| RowChange { before: Some(before), after: None }).collect())
        }
        Op::Delete => {
            let before = old_key.and_then(|key| rows.remove(&key));
            Ok(before.map(|before| RowChange { before: Some(before), after: None }).into_iter().collect())
        }
        Op::Read | Op::Insert | Op::Update => {
            let key = key(&row_type, &change.row)?;
            let moved = old_key.filter(|old| *old != key && change.op == Op::Update).and_then(|old| rows.remove(&old));
            let before = moved.or_else(|| rows.get(&key).cloned());
            let bytes = whole(&row_type, &change, before.as_ref())?;
            let after = ShapeRow { row_type, bytes };
            rows.insert(key, after.clone());
            Ok(vec![RowChange { before, after: Some(after) }])
        }
        Op::Message => Ok(Vec::new()),
    }
}

/// The row with the values that were not sent. A copy: what came is part of a larger message, which would be kept with it.
fn whole(row_type: &RowType, change: &Change, before: Option<&ShapeRow>) -> Result<Bytes, RowError> {
    let Some(before) = before.filter(|_| !change.unchanged.is_empty()) else {
        return Ok(Bytes::copy_from_slice(&change.row));
    };
    let mut row = BytesMut::from(&change.row[..]);
    for (field, bytes) in fields(row_type, &before.bytes)? {
        if change.unchanged.contains(&field) {
            row.extend_from_slice(bytes);
        }
    }
    Ok(row.freeze())
}

/// The key's fields, in their order; of a table without a key, all.
fn key(row_type: &RowType, row: &Bytes) -> Result<Bytes, RowError> {
    let is_key = |field: u32| row_type.columns().iter().any(|column| column.field == field && column.key);
    let mut found: Vec<(u32, &[u8])> = fields(row_type, row)?;
    found.retain(|(field, _)| row_type.is_keyless() || is_key(*field));
    found.sort_by_key(|(field, _)| *field);
    Ok(found.into_iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect())
}

/// Each field's number with its bytes, tag included.
pub(crate) fn fields<'r>(row_type: &RowType, row: &'r Bytes) -> Result<Vec<(u32, &'r [u8])>, RowError> {
    let mut rest: &[u8] = row;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let start = rest;
        let (field, wire_type) = decode_key(&mut rest).map_err(|cause| malformed(row_type, cause))?;
        skip_field(wire_type, field, &mut rest, DecodeContext::default())
            .map_err(|cause| malformed(row_type, cause))?;
        found.push((field, &start[..start.len() - rest.len()]));
    }
    Ok(found)
}

fn malformed(row_type: &RowType, cause: prost::DecodeError) -> RowError {
    RowError::Decode { message: row_type.message().to_owned(), cause }
}
