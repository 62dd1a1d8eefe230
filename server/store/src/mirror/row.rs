//! Takes encoded rows apart and puts them together again, as the row encoder would have written them.
//!
//! Invariants: a row holds at most one field of each number, and its fields stand in the order of its row type's columns. So a
//! row is put together by asking for each column in turn.

use bytes::{Bytes, BytesMut};
use tidegate_schema::{
    RowType,
    wire::{Field, Fields},
};

use super::{
    MirrorRow,
    apply::Known,
    change::{Whole, malformed},
    error::{MirrorError, Result},
    key::StoredRow,
};

/// The fields of a row that is stored.
fn stored(row: &[u8]) -> Result<Vec<Field<'_>>> {
    Fields::new(row).collect::<std::result::Result<_, _>>().map_err(|_| MirrorError::Damaged("a row is malformed"))
}

fn find<'a>(fields: &[Field<'a>], number: u32) -> Option<&'a [u8]> {
    fields.iter().find(|field| field.number == number).map(|field| field.whole)
}

/// The bytes of these fields of a row, in the row's order.
pub(crate) fn project(row: &[u8], fields: &[u32]) -> Result<Bytes> {
    let mut out = BytesMut::new();
    for field in Fields::new(row) {
        let field = field.map_err(|_| MirrorError::Damaged("a row is malformed"))?;
        if fields.contains(&field.number) {
            out.extend_from_slice(field.whole);
        }
    }
    Ok(out.freeze())
}

/// The stored row as a row of another row type; None where that has columns which the stored one did not have, or whose values
/// never came: what they held is not known.
pub(crate) fn conform(row: &StoredRow, from: &RowType, to: &RowType) -> Result<Option<Bytes>> {
    if !row.missing.is_empty() {
        return Ok(None);
    }
    if from.proto().row_type == to.proto().row_type {
        return Ok(Some(row.row.clone()));
    }
    let is_known = |column: &tidegate_proto::v1::Column| from.column_by_field(column.field).is_some();
    if !shares_numbers(from, to) || !to.proto().columns.iter().all(is_known) {
        return Ok(None);
    }
    project_as(&row.row, to).map(Some)
}

/// The stored row as a row of another row type, in which a column that it did not have is null; None where it lacks a value that
/// never came, or is of another message.
pub(crate) fn widened(row: &StoredRow, from: &RowType, to: &RowType) -> Result<Option<Bytes>> {
    if from.proto().row_type == to.proto().row_type && row.missing.is_empty() {
        return Ok(Some(row.row.clone()));
    }
    let is_missing = |column: &tidegate_proto::v1::Column| row.missing.contains(&column.field);
    if !shares_numbers(from, to) || to.proto().columns.iter().any(is_missing) {
        return Ok(None);
    }
    project_as(&row.row, to).map(Some)
}

/// The stored row under a row type of the same message: what that does not have is left out.
pub(crate) fn described(row: &StoredRow, to: &RowType) -> Result<MirrorRow> {
    let missing = row.missing.iter().copied().filter(|field| to.column_by_field(*field).is_some()).collect();
    Ok(MirrorRow { row_type: to.proto().row_type, row: project_as(&row.row, to)?, missing })
}

/// The key of a row that was stored under another name of its table; None where the key's columns had other numbers then.
pub(crate) fn same_key(row: &StoredRow, from: &RowType, to: &Known) -> Result<Option<Bytes>> {
    let is_same = |field: &u32| column(from, *field).is_some_and(|known| column(&to.row_type, *field) == Some(known));
    if !to.key.iter().all(is_same) {
        return Ok(None);
    }
    project(&row.row, &to.key).map(Some)
}

/// By name and type.
fn column(row_type: &RowType, field: u32) -> Option<(&str, u32)> {
    row_type.column_by_field(field).map(|column| (column.name.as_str(), column.type_oid))
}

/// Numbers of fields are a message's own: a renamed table has another one.
pub(crate) fn shares_numbers(from: &RowType, to: &RowType) -> bool {
    from.proto().message == to.proto().message
}

/// The columns of a row type, as far as a stored row has them.
fn project_as(row: &[u8], to: &RowType) -> Result<Bytes> {
    let fields = stored(row)?;
    let mut out = BytesMut::with_capacity(row.len());
    for column in &to.proto().columns {
        out.extend_from_slice(find(&fields, column.field).unwrap_or_default());
    }
    Ok(out.freeze())
}

/// The row of an update with what it leaves unchanged taken from elsewhere, and the fields that are nowhere.
pub(crate) fn completed(change: &Whole, row_type: &RowType, elsewhere: &[&[u8]]) -> Result<(Bytes, Vec<u32>)> {
    if change.unchanged.is_empty() {
        return Ok((change.row.clone(), Vec::new()));
    }
    let invalid = |_| malformed(change.position, "row");
    let sent: Vec<Field<'_>> = Fields::new(&change.row).collect::<std::result::Result<_, _>>().map_err(invalid)?;
    let others = elsewhere.iter().map(|row| stored(row)).collect::<Result<Vec<_>>>()?;
    let mut out = BytesMut::new();
    let mut missing = Vec::new();
    for column in &row_type.proto().columns {
        if let Some(field) = find(&sent, column.field) {
            out.extend_from_slice(field);
        } else if change.unchanged.contains(&column.field) {
            // What is unchanged is not null: a row without it does not know it.
            match others.iter().find_map(|fields| find(fields, column.field)) {
                Some(field) => out.extend_from_slice(field),
                None => missing.push(column.field),
            }
        }
    }
    missing.sort_unstable();
    Ok((out.freeze(), missing))
}
