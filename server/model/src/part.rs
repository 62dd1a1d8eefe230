//! What a snapshot is asked to read: tables, or a part of some.
//!
//! It deliberately checks nothing: a condition has been parsed and printed by who hands it over, and keys are texts that
//! PostgreSQL reads.

use std::{collections::BTreeMap, fmt};

use crate::TableName;

/// A part of a table. Its `Debug` shows no values.
#[derive(Clone, PartialEq, Eq)]
pub enum Part {
    /// Rows for which this is true: SQL over the table's columns, which means the same whatever a session's settings.
    Where(String),
    /// Rows with these keys: for each column of the key, in the key's order, the text that PostgreSQL reads.
    Keys(Vec<Vec<String>>),
}

impl Part {
    /// The condition, where it is one.
    #[must_use]
    pub fn condition(&self) -> Option<&str> {
        match self {
            Part::Where(condition) => Some(condition),
            Part::Keys(_) => None,
        }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Where(_) => f.write_str("Where"),
            Part::Keys(keys) => f.debug_tuple("Keys").field(&keys.len()).finish(),
        }
    }
}

/// By table; whole tables are not among them.
pub type Parts = BTreeMap<TableName, Part>;

/// A snapshot as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotSpec {
    /// All of its tables, in order, each once.
    pub tables: Vec<TableName>,
    /// The part that is read of some of them.
    pub parts: Parts,
    /// It is read for whoever has a subscription open that asks for such snapshots.
    pub ad_hoc: bool,
}

impl SnapshotSpec {
    /// Of whole tables.
    #[must_use]
    pub fn of_tables(mut tables: Vec<TableName>) -> Self {
        tables.sort_unstable();
        tables.dedup();
        SnapshotSpec { tables, ..SnapshotSpec::default() }
    }
}
