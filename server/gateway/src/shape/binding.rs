//! A table as the catalog described it, in the numbers that its columns have in one row type.

use std::sync::Arc;

use tidegate_schema::RowType;
use tidegate_views::TableFacts;

use super::Lost;
use crate::{by_row_type::RowTypeLookup, facts::Known};

/// No field of a row has it.
const UNBOUND: u32 = 0;

/// What conditions are made of for rows of this row type.
pub(crate) fn bound(known: &Known, row_type: &RowType) -> TableFacts {
    let mut facts = known.described.facts.clone();
    for column in &mut facts.columns {
        column.field = field(known, &column.name, row_type).unwrap_or(UNBOUND);
    }
    facts
}

fn field(known: &Known, column: &str, row_type: &RowType) -> Option<u32> {
    let found = row_type.column(column)?;
    (known.described.type_of(column) == Some(found.type_oid)).then_some(found.field)
}

/// Lacks a row type some of these columns, which no row type before it had? Once the table has come back to it, they are lost.
///
/// # Errors
/// One before it had a column that it lacks.
pub(crate) fn lacks<'a>(
    known: &Known,
    columns: impl Iterator<Item = &'a str>,
    row_type: &RowType,
    lookup: &impl RowTypeLookup,
) -> Result<bool, Lost> {
    let mut lacks = false;
    for column in columns.filter(|column| field(known, column, row_type).is_none()) {
        lacks = true;
        lost(known, column, row_type, lookup).map_or(Ok(()), Err)?;
    }
    Ok(lacks)
}

/// Had an earlier row type of the table the column, as conditions mean it? This one has it not.
fn lost(known: &Known, column: &str, row_type: &RowType, lookup: &impl RowTypeLookup) -> Option<Lost> {
    let number = row_type.proto().row_type;
    let is_newest = lookup.newest(&known.table).is_some_and(|newest| newest.proto().row_type == number);
    let is_earlier = |&other: &u32| is_newest || other < number;
    let having = |other: &Arc<RowType>| field(known, column, other).map(|_| other.proto().row_type);
    let with: Vec<u32> = lookup.of_table(&known.table).iter().filter_map(having).collect();
    let retyped = row_type.column(column).is_some();
    let for_reads = with.iter().all(is_earlier);
    let column = column.to_owned();
    with.iter().any(is_earlier).then_some(Lost::Column { column, retyped, for_reads })
}
