//! What is made of a selection or a condition for each row type.
//!
//! Row types never change, so what is made for one is kept. What only holds while the table has not come back to the row type is kept as long
//! as no table has come to another: making it reads a condition anew, which is not for every row.

use std::collections::BTreeMap;

use crate::selection::RowTypeLookup;

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
