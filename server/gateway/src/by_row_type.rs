//! What is made of a selection or a condition for each row type.
//!
//! Row types never change, so what is made for one is kept. What only holds while the table has not come back to the row type is kept as long
//! as no table has come to another: making it reads a condition anew, which is not for every row.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::TableName;
use tidegate_schema::RowType;

/// Row types by number, as the store has them at the moment of asking.
pub(crate) trait RowTypeLookup {
    fn row_type(&self, row_type: u32) -> Option<Arc<RowType>>;

    /// All of a table, in no order.
    fn of_table(&self, table: &TableName) -> Vec<Arc<RowType>>;

    /// The one that the table's newest rows have. Numbers say nothing of that: a table comes back to one that it had.
    fn newest(&self, table: &TableName) -> Option<Arc<RowType>>;

    /// Another whenever a table has come to a row type.
    fn version(&self) -> u64;
}

impl RowTypeLookup for tidegate_store::Store {
    fn row_type(&self, row_type: u32) -> Option<Arc<RowType>> {
        self.row_type(row_type)
    }

    fn of_table(&self, table: &TableName) -> Vec<Arc<RowType>> {
        self.row_types().iter().filter(|row_type| row_type.name() == table).cloned().collect()
    }

    fn newest(&self, table: &TableName) -> Option<Arc<RowType>> {
        self.row_types().newest(table).cloned()
    }

    fn version(&self) -> u64 {
        self.row_types_version()
    }
}

#[derive(Clone)]
pub(crate) struct ByRowType<T>(BTreeMap<u32, Made<T>>);

#[derive(Clone)]
struct Made<T> {
    what: T,
    /// The only version of the row types that it holds for; None for all.
    only: Option<u64>,
}

impl<T> Default for ByRowType<T> {
    fn default() -> Self {
        ByRowType(BTreeMap::new())
    }
}

impl<T> ByRowType<T> {
    /// What was made, where that still holds.
    pub(crate) fn get(&self, row_type: u32, lookup: &impl RowTypeLookup) -> Option<&T> {
        let made = self.0.get(&row_type)?;
        made.only.is_none_or(|version| version == lookup.version()).then_some(&made.what)
    }

    /// `only`: it holds for no more than this version of the row types, which was asked for before it was made.
    pub(crate) fn insert(&mut self, row_type: u32, what: T, only: Option<u64>) {
        self.0.insert(row_type, Made { what, only });
    }
}
