//! Why it is not known what a change is to a shape. That ends the subscription, and no other.

use std::sync::Arc;

use tidegate_model::{Position, Retry, TableName};
use tidegate_schema::{RowDecoder, RowText, RowType, wire::WireError};
use tidegate_views::{Failure, RowError};

use crate::projection::MalformedChange;

/// Bytes of a key in an error.
const KEY_BYTES_MAX: usize = 200;

/// The row type has not what the shape needs, and one before it had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lost {
    #[error(
        "the table has no key any more, by which rows enter and leave a shape; give it one, and subscribe again from SNAPSHOT"
    )]
    Key,
    #[error("{}", lost_column(column, *retyped))]
    Column {
        column: String,
        /// It has another type.
        retyped: bool,
        /// No later row type has it either.
        for_reads: bool,
    },
}

fn lost_column(column: &str, retyped: bool) -> String {
    let how = if retyped { "has another type now" } else { "is gone" };
    let next =
        if retyped { "subscribe without the token" } else { "subscribe with another condition, without the token" };
    format!("column \"{column}\", which the condition reads, {how}; {next}, to read the rows anew")
}

/// Why it is not known what a change is to a shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Condition(#[from] Failure),
    #[error("it cannot be ordered: {}", unordered(.0))]
    Order(Failure),
    #[error(
        "the value of column \"{column}\" has never come, and the condition reads it; subscribe again from SNAPSHOT"
    )]
    Unknown { column: String },
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("the change is damaged; this is a defect, or the disk is damaged")]
    Damaged,
}

fn unordered(failure: &Failure) -> String {
    match failure {
        Failure::Evaluation(error) => format!("{error}; change the expression so that it does not fail, with CASE"),
        Failure::Row(error) => error.to_string(),
    }
}

impl From<MalformedChange> for Cause {
    fn from(_: MalformedChange) -> Self {
        Cause::Damaged
    }
}

impl From<WireError> for Cause {
    fn from(_: WireError) -> Self {
        Cause::Damaged
    }
}

/// A subscription's end: its shape cannot be told what a change is to it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("table {table}, at {position}, row {key}: {cause}")]
pub(crate) struct ShapeFailure {
    table: TableName,
    position: Position,
    /// As PostgreSQL would print it; for whoever subscribed, and not for logs.
    key: String,
    cause: Cause,
}

impl ShapeFailure {
    /// Of all rows that a subquery reads.
    pub(crate) fn of_subquery(table: &TableName, position: Position, cause: Cause) -> Arc<Self> {
        let key = "that a subquery reads".to_owned();
        Arc::new(ShapeFailure { table: table.clone(), position, key, cause })
    }

    /// Of one row.
    pub(crate) fn of_row(row_type: &RowType, row: &[u8], position: Position, cause: Cause) -> Arc<Self> {
        Arc::new(ShapeFailure { table: row_type.name().clone(), position, key: key_of_row(row_type, row), cause })
    }

    /// May it be otherwise with what the catalog says now?
    pub(crate) fn is_of_old_facts(&self) -> bool {
        let failure = match &self.cause {
            Cause::Condition(failure) | Cause::Order(failure) => failure,
            Cause::Unknown { .. } | Cause::Lost(_) | Cause::Damaged => return false,
        };
        matches!(failure, Failure::Row(RowError::Column { .. }))
    }

    pub(crate) fn retry(&self) -> Retry {
        match &self.cause {
            Cause::Condition(failure) | Cause::Order(failure) => failure.retry(),
            Cause::Unknown { .. } | Cause::Lost(_) | Cause::Damaged => Retry::Never,
        }
    }

    /// Is a column of another type than when the subscription began?
    pub(crate) fn is_of_another_type(&self) -> bool {
        matches!(self.cause, Cause::Lost(Lost::Column { retyped: true, .. }))
    }
}

/// The row's key, for people.
fn key_of_row(row_type: &RowType, row: &[u8]) -> String {
    let mut text = RowText::default();
    let decoder = RowDecoder::of_row_type(row_type, |_| b',');
    let decoder = decoder.map(|decoder| decoder.only(row_type.key()));
    let printed = decoder.is_ok_and(|decoder| decoder.text(row, &mut text).is_ok());
    let names = row_type.proto().columns.iter().filter(|column| column.key).map(|column| &column.name);
    if !printed {
        return format!("({}, which cannot be read)", names.cloned().collect::<Vec<_>>().join(", "));
    }
    let pair = |(name, value): (&String, Option<&str>)| format!("{name} = {}", short(value.unwrap_or("NULL")));
    format!("({})", names.zip(text.values()).map(pair).collect::<Vec<_>>().join(", "))
}

/// At most so much of a value as a person wants to read.
fn short(value: &str) -> String {
    match value.char_indices().nth(KEY_BYTES_MAX) {
        None => value.to_owned(),
        Some((end, _)) => format!("{}…", &value[..end]),
    }
}
