//! Which of a table's indexes gives way to one that is asked for, where there is no room for both.
//!
//! An index that nobody has read by while another was asked for in vain often enough. Time does not come into it: an index costs each change of its
//! table, a missing one each reading, and making one costs about what a reading without it does. So indexes that are all read by stay, and each
//! exchange stands for several readings that have gone through the whole table.
//!
//! Pure, and of one run: after a restart all are alike, and the oldest gives way first.

use std::collections::HashMap;

/// So often an index has to be asked for in vain.
pub(crate) const ASKED_MIN: u64 = 4;

/// What has been read by, and asked for.
#[derive(Debug, Default)]
pub(crate) struct IndexUses {
    /// By table: how often an index was asked for in vain.
    asked: HashMap<u32, u64>,
    /// The same, by table and fields, since the index was there last.
    wanted: HashMap<(u32, Vec<u32>), u64>,
    /// By index: what was counted of its table when it was used last.
    used: HashMap<u32, u64>,
}

impl IndexUses {
    /// An index of a table is read by, or has been made.
    pub(crate) fn used(&mut self, table_oid: u32, index: u32) {
        let asked = self.asked.get(&table_oid).copied().unwrap_or(0);
        self.used.insert(index, asked);
    }

    /// An index is asked for, and there is no room: the one of the table's that gives way, if any does.
    pub(crate) fn giving_way(
        &mut self,
        (table_oid, fields): (u32, &[u32]),
        indexes: impl Iterator<Item = u32>,
    ) -> Option<u32> {
        let asked = self.asked.entry(table_oid).or_default();
        *asked += 1;
        let asked = *asked;
        let wanted = self.wanted.entry((table_oid, fields.to_vec())).or_default();
        *wanted += 1;
        if *wanted < ASKED_MIN {
            return None;
        }
        let last = |index: u32| (self.used.get(&index).copied().unwrap_or(0), index);
        let (used, index) = indexes.map(last).min()?;
        if asked - used < ASKED_MIN {
            return None;
        }
        self.wanted.remove(&(table_oid, fields.to_vec()));
        self.used.remove(&index);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: u32 = 16_400;
    const INDEXES: [u32; 3] = [1, 2, 3];

    fn ask(uses: &mut IndexUses, field: u32) -> Option<u32> {
        uses.giving_way((TABLE, &[field]), INDEXES.into_iter())
    }

    #[test]
    fn the_index_that_was_not_used_for_longest_gives_way_to_one_that_is_asked_for_often() {
        let mut uses = IndexUses::default();
        for index in [3, 1, 2] {
            uses.used(TABLE, index);
            assert_eq!(ask(&mut uses, 9), None, "it was asked for too seldom");
        }
        assert_eq!(ask(&mut uses, 9), Some(3));
    }

    #[test]
    fn indexes_that_are_used_stay_however_often_another_is_asked_for() {
        let mut uses = IndexUses::default();
        for _ in 0..100 {
            INDEXES.iter().for_each(|index| uses.used(TABLE, *index));
            assert!((1..ASKED_MIN).all(|_| ask(&mut uses, 9).is_none()));
        }
    }

    #[test]
    fn many_that_are_asked_for_once_replace_none() {
        let mut uses = IndexUses::default();
        assert!((10..100).all(|field| ask(&mut uses, field).is_none()));
    }

    #[test]
    fn what_is_asked_of_other_tables_does_not_count() {
        let mut uses = IndexUses::default();
        let given = (0..100).filter_map(|_| uses.giving_way((TABLE + 1, &[9]), [7].into_iter()));
        assert!(given.count() > 0);
        uses.used(TABLE, 1);
        assert_eq!(ask(&mut uses, 9), None);
    }
}
