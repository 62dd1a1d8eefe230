//! A table as the catalog described it, in the numbers that its columns have in one row type.

use std::sync::Arc;

use tidegate_model::TableName;
use tidegate_schema::RowType;
use tidegate_views::TableFacts;

use super::route::Lost;
use crate::{facts::Known, selection::RowTypeLookup};

/// No field of a row has it.
pub(crate) const UNBOUND: u32 = 0;

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

/// Had an earlier row type of the table the column, as conditions mean it, and has this one not?
pub(crate) fn lost(
    (known, table): (&Known, &TableName),
    column: &str,
    row_type: &RowType,
    lookup: &impl RowTypeLookup,
) -> Option<Lost> {
    if field(known, column, row_type).is_some() {
        return None;
    }
    let number = row_type.proto().row_type;
    let having = |other: &Arc<RowType>| field(known, column, other).map(|_| other.proto().row_type);
    let with: Vec<u32> = lookup.of_table(table).iter().filter_map(having).collect();
    let retyped = row_type.column(column).is_some();
    let for_reads = with.iter().all(|&other| other < number);
    let column = column.to_owned();
    with.iter().any(|&other| other < number).then_some(Lost::Column { column, retyped, for_reads })
}
