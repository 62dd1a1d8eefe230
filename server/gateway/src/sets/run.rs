//! Which blocks of the log are held while a run of them is taken: those that have something for the tables of subqueries.
//!
//! Invariant: of a transaction that changes one of these tables, Begin, Commit and all of its changes of them are held. Pure.

use std::collections::{HashMap, HashSet};

use tidegate_model::{Block, Kind, Position, TableName};

use crate::by_row_type::RowTypeLookup;

/// What is taken at a time.
#[derive(Default)]
pub(super) struct Run {
    /// In order, without those that concern no subquery.
    pub(super) blocks: Vec<Block>,
    /// All up to here is complete; None where it completes nothing.
    pub(super) complete: Option<Position>,
    /// Of all its blocks.
    pub(super) byte_count: usize,
    /// Of those that are held.
    pub(super) held_bytes: usize,
}

impl Run {
    pub(super) fn push(&mut self, block: Block, concern: &mut Concern, lookup: &impl RowTypeLookup) {
        self.byte_count += block.byte_count();
        self.complete = block.complete_through().or(self.complete);
        if concern.is_held(&block, lookup) {
            self.held_bytes += block.byte_count();
            self.blocks.push(block);
        }
    }
}

/// Goes through blocks in order.
pub(super) struct Concern {
    tables: HashSet<TableName>,
    /// Is it one of these tables'?
    row_types: HashMap<u32, bool>,
    /// A transaction has begun and not ended.
    is_open: bool,
}

impl Concern {
    pub(super) fn of(tables: impl Iterator<Item = TableName>) -> Self {
        Concern { tables: tables.collect(), row_types: HashMap::new(), is_open: false }
    }

    fn is_held(&mut self, block: &Block, lookup: &impl RowTypeLookup) -> bool {
        // Of what another block goes on with, it is not known yet whether it concerns them.
        let mut is_held = self.is_open;
        for entry in block.entries() {
            match entry.kind {
                Kind::Begin => self.is_open = true,
                Kind::Commit => self.is_open = false,
                Kind::Change => is_held |= self.is_of_tables(entry.row_type, lookup),
                Kind::RowType | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd | Kind::SnapshotCursor => {}
            }
        }
        is_held || self.is_open
    }

    fn is_of_tables(&mut self, number: u32, lookup: &impl RowTypeLookup) -> bool {
        if let Some(known) = self.row_types.get(&number) {
            return *known;
        }
        let Some(row_type) = lookup.row_type(number) else { return false };
        let is = self.tables.contains(row_type.name());
        self.row_types.insert(number, is);
        is
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tidegate_model::{BlockBuilder, Entry, Lsn, Op};
    use tidegate_schema::RowType;

    use super::*;

    struct Nothing;

    impl RowTypeLookup for Nothing {
        fn row_type(&self, _: u32) -> Option<Arc<RowType>> {
            None
        }

        fn of_table(&self, _: &TableName) -> Vec<Arc<RowType>> {
            Vec::new()
        }

        fn newest(&self, _: &TableName) -> Option<Arc<RowType>> {
            None
        }

        fn version(&self) -> u64 {
            0
        }
    }

    fn entry(lsn: u64, ordinal: usize, (kind, row_type): (Kind, u32)) -> Entry {
        let ordinal = u32::try_from(ordinal).expect("few");
        Entry { lsn: Lsn(lsn), ordinal, row_type, start: 0, end: 0, kind, op: Op::None, continues: false }
    }

    proptest! {
        /// Transactions of changes (true: of a subquery's table), in blocks of any lengths.
        #[test]
        fn what_concerns_a_subquery_is_held_with_its_begin_and_its_commit(
            transactions in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.2), 1..9), 1..9),
            lengths in prop::collection::vec(1usize..9, 1..9),
        ) {
            let mut entries = Vec::new();
            for (at, changes) in transactions.iter().enumerate() {
                let changed = changes.iter().map(|concerns| (Kind::Change, if *concerns { 1 } else { 2 }));
                let all = [(Kind::Begin, 0)].into_iter().chain(changed).chain([(Kind::Commit, 0)]);
                let numbered = all.enumerate();
                entries.extend(numbered.map(|(ordinal, (kind, row_type))| entry(10 * at as u64, ordinal, (kind, row_type))));
            }
            let row_types = HashMap::from([(1, true), (2, false)]);
            let mut concern = Concern { tables: HashSet::new(), row_types, is_open: false };
            let (mut run, mut rest, mut length) = (Run::default(), &entries[..], lengths.iter().cycle());
            while !rest.is_empty() {
                let (block, behind) = rest.split_at(rest.len().min(*length.next().expect("endless")));
                rest = behind;
                let mut builder = BlockBuilder::default();
                block.iter().for_each(|entry| builder.push(*entry, b""));
                run.push(builder.finish(), &mut concern, &Nothing);
            }
            let held: HashSet<Position> = run.blocks.iter().flat_map(Block::entries).map(Entry::position).collect();
            for (at, changes) in transactions.iter().enumerate().filter(|(_, changes)| changes.contains(&true)) {
                let of_it = entries.iter().filter(|entry| entry.lsn == Lsn(10 * at as u64) && entry.row_type != 2);
                prop_assert!(of_it.map(Entry::position).all(|position| held.contains(&position)), "{:?}", changes);
            }
            prop_assert_eq!(run.complete, entries.last().map(Entry::position));
            prop_assert!(run.held_bytes <= run.byte_count);
        }
    }

    #[test]
    fn what_concerns_none_is_not_held() {
        let mut concern = Concern { tables: HashSet::new(), row_types: HashMap::from([(2, false)]), is_open: false };
        let mut builder = BlockBuilder::default();
        for (ordinal, what) in [(Kind::Begin, 0), (Kind::Change, 2), (Kind::Commit, 0)].into_iter().enumerate() {
            builder.push(entry(1, ordinal, what), b"");
        }
        let mut run = Run::default();
        run.push(builder.finish(), &mut concern, &Nothing);
        assert_eq!((run.blocks.len(), run.held_bytes), (0, 0));
        assert!(run.byte_count > 0 && run.complete.is_some());
    }
}
