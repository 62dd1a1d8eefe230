//! The shapes that are open, by table and row type.
//!
//! Invariants: a table is here while a shape of it is open; a shape is in each index of its table, or among those that cannot be
//! judged by it. Indexes are made when a row type is first met, and kept for the newest of a table, since after a change of
//! its definition rows of older ones come for a moment at most.

use std::collections::{HashMap, HashSet};

use slab::Slab;
use tidegate_model::TableName;
use tidegate_views::{Index, Predicate};

use super::core::{Insert, SeatId};
use crate::by_row_type::RowTypeLookup;

/// Row types of a table that there are indexes for.
const ROW_TYPES_MAX: usize = 2;

/// One selection of a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) seat: SeatId,
    pub(super) selection: u16,
}

#[derive(Default)]
pub(super) struct Tables {
    tables: Slab<Table>,
    by_name: HashMap<TableName, usize>,
    /// Of row types that have been met; None where nobody has a shape of the table.
    by_row_type: HashMap<u32, Option<usize>>,
}

#[derive(Default)]
struct Table {
    members: HashSet<Member>,
    /// Newest last.
    sorted: Vec<Sorted>,
}

/// The shapes of a table for one row type.
pub(super) struct Sorted {
    row_type: u32,
    pub(super) index: Index<Member>,
    /// They look themselves.
    pub(super) unjudged: HashSet<Member>,
}

impl Sorted {
    fn insert(&mut self, member: Member, index: impl FnOnce(&mut Insert<'_>) -> bool) {
        let mut refused = false;
        let mut insert = |predicate: &Predicate, fields: Option<&[u32]>| {
            // One that is there already would not be a new seat's.
            refused |= self.index.insert(member, predicate, fields).is_err();
        };
        if !index(&mut insert) || refused {
            self.unjudged.insert(member);
        }
    }
}

impl Tables {
    /// True where nobody had a shape of the table before.
    pub(super) fn insert(
        &mut self,
        name: &TableName,
        member: Member,
        index: impl Fn(u32, &mut Insert<'_>) -> bool,
    ) -> bool {
        let number = match self.by_name.get(name) {
            Some(number) => *number,
            None => {
                let number = self.tables.insert(Table::default());
                self.by_name.insert(name.clone(), number);
                self.by_row_type.retain(|_, table| table.is_some());
                number
            }
        };
        let table = &mut self.tables[number];
        table.members.insert(member);
        for sorted in &mut table.sorted {
            let row_type = sorted.row_type;
            sorted.insert(member, |insert| index(row_type, insert));
        }
        table.members.len() == 1
    }

    pub(super) fn remove(&mut self, name: &TableName, member: Member) {
        let Some(&number) = self.by_name.get(name) else { return };
        let table = &mut self.tables[number];
        table.members.remove(&member);
        if table.members.is_empty() {
            self.tables.remove(number);
            self.by_name.remove(name);
            self.by_row_type.retain(|_, table| *table != Some(number));
            if self.tables.is_empty() {
                *self = Self::default();
            }
            return;
        }
        table.members.shrink_to(2 * table.members.len());
        for sorted in &mut table.sorted {
            sorted.index.remove(&member);
            sorted.unjudged.remove(&member);
        }
    }

    /// Shapes that are open.
    pub(super) fn shape_count(&self) -> usize {
        self.tables.iter().map(|(_, table)| table.members.len()).sum()
    }

    /// Different conditions, for each row type.
    pub(super) fn condition_count(&self) -> usize {
        self.sorted().map(|sorted| sorted.index.condition_count()).sum()
    }

    pub(super) fn index_count(&self) -> usize {
        self.sorted().count()
    }

    fn sorted(&self) -> impl Iterator<Item = &Sorted> {
        self.tables.iter().flat_map(|(_, table)| &table.sorted)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.by_name.is_empty() && self.by_row_type.is_empty()
    }

    /// Makes the index for a row type, unless it is there, or nobody has a shape of its table.
    pub(super) fn meet(
        &mut self,
        row_type: u32,
        lookup: &impl RowTypeLookup,
        index: impl Fn(Member, &mut Insert<'_>) -> bool,
    ) {
        let known = match self.by_row_type.get(&row_type) {
            Some(known) => *known,
            None => {
                let table = lookup.row_type(row_type).and_then(|found| self.by_name.get(found.name()).copied());
                self.by_row_type.insert(row_type, table);
                table
            }
        };
        let Some(table) = known.map(|number| &mut self.tables[number]) else { return };
        if table.sorted.iter().any(|sorted| sorted.row_type == row_type) {
            return;
        }
        let mut sorted = Sorted { row_type, index: Index::new(), unjudged: HashSet::new() };
        for member in &table.members {
            sorted.insert(*member, |insert| index(*member, insert));
        }
        table.sorted.push(sorted);
        if table.sorted.len() > ROW_TYPES_MAX {
            table.sorted.remove(0);
        }
    }

    /// Everyone with a shape of the row type's table, and the index, if it has been met and anyone has.
    pub(super) fn of(&self, row_type: u32) -> Option<(&HashSet<Member>, Option<&Sorted>)> {
        let table = &self.tables[(*self.by_row_type.get(&row_type)?)?];
        Some((&table.members, table.sorted.iter().find(|sorted| sorted.row_type == row_type)))
    }
}
