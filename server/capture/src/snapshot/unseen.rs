//! Transactions that have been decoded and that no snapshot of PostgreSQL has yet shown to be visible.
//!
//! A commit is in the WAL, and is sent to us, before it becomes visible; with a synchronous standby, much later. Which ones are
//! still invisible must be known exactly, also after a restart. Instead of keeping that durably, the confirmation is held back:
//! it never passes the start of the oldest such commit record ([`Unseen::confirm_floor`]), so that PostgreSQL sends them again.
//!
//! Invariant: every decoded transaction with a followed change is in here
//! until a snapshot that was taken after its commit has seen it. Size: what is decoded between two polls, and what waits.

use std::collections::VecDeque;

use tidegate_model::{Lsn, Visibility};

/// A transaction that has been decoded.
#[derive(Clone, Debug)]
pub(crate) struct Decoded {
    /// Start of its commit record.
    pub(crate) commit_lsn: Lsn,
    /// End of its commit record.
    pub(crate) commit_end_lsn: Lsn,
    /// Top-level xid, without epoch.
    pub(crate) xid: u32,
    /// Followed tables that it may have changed.
    pub(crate) tables: TableSet,
}

/// Tables by OID; nothing is allocated for a single one.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableSet {
    /// 0 is none.
    first: u32,
    /// Sorted, without `first`.
    more: Vec<u32>,
}

impl TableSet {
    /// Adds a table.
    #[inline]
    pub(crate) fn insert(&mut self, table_oid: u32) {
        if self.first == table_oid {
            return;
        }
        if self.first == 0 {
            self.first = table_oid;
        } else if let Err(at) = self.more.binary_search(&table_oid) {
            self.more.insert(at, table_oid);
        }
    }

    /// Is there none?
    pub(crate) fn is_empty(&self) -> bool {
        self.first == 0
    }

    fn contains(&self, table_oid: u32) -> bool {
        self.first == table_oid || self.more.binary_search(&table_oid).is_ok()
    }
}

/// Decoded and not yet shown visible, in commit order.
#[derive(Debug, Default)]
pub(crate) struct Unseen {
    transactions: VecDeque<Decoded>,
    /// Commit end of the last transaction that was noted: those up to here are in, or were seen.
    noted_through_lsn: Lsn,
}

impl Unseen {
    /// A transaction has been decoded, for the first time or again.
    pub(crate) fn decoded(&mut self, transaction: Decoded) {
        // After a reconnect within one process, what was noted before comes again.
        if transaction.commit_end_lsn <= self.noted_through_lsn || transaction.tables.is_empty() {
            return;
        }
        self.noted_through_lsn = transaction.commit_end_lsn;
        self.transactions.push_back(transaction);
    }

    /// A snapshot that was taken just now has this visibility.
    pub(crate) fn prune(&mut self, visibility: &Visibility) {
        self.transactions.retain(|transaction| !visibility.sees_xid(transaction.xid));
    }

    /// What may be confirmed at most: the start of the oldest transaction's commit record. None: nothing holds it back.
    pub(crate) fn confirm_floor(&self) -> Option<Lsn> {
        self.transactions.front().map(|oldest| oldest.commit_lsn)
    }

    /// Is every decoded transaction known to be visible?
    pub(crate) fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Those that changed a table: what a chunk of it must see if its keys are tracked from now on only. To be copied when the
    /// tracking begins: a poll may show a transaction visible, and it leaves, while a chunk that did not see it is on its way.
    pub(crate) fn writers(&self, table_oid: u32) -> Vec<u32> {
        let writers = self.transactions.iter().filter(|transaction| transaction.tables.contains(table_oid));
        writers.map(|transaction| transaction.xid).collect()
    }

    /// A new epoch: what was decoded before is of another history.
    pub(crate) fn start_epoch(&mut self) {
        *self = Unseen::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(lsn: u64, xid: u32, tables: &[u32]) -> Decoded {
        let mut set = TableSet::default();
        tables.iter().for_each(|table| set.insert(*table));
        Decoded { commit_lsn: Lsn(lsn), commit_end_lsn: Lsn(lsn + 8), xid, tables: set }
    }

    fn visibility(text: &str) -> Visibility {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn the_floor_is_the_oldest_that_no_snapshot_has_seen() {
        let mut unseen = Unseen::default();
        unseen.decoded(decoded(100, 12, &[1]));
        unseen.decoded(decoded(200, 11, &[2]));
        unseen.decoded(decoded(300, 13, &[]));
        assert_eq!(unseen.confirm_floor(), Some(Lsn(100)));
        unseen.prune(&visibility("11:13:11"));
        assert_eq!(unseen.confirm_floor(), Some(Lsn(200)));
        assert_eq!((unseen.writers(2), unseen.writers(1)), (vec![11], vec![]));
        unseen.prune(&visibility("13:13:"));
        assert!(unseen.is_empty() && unseen.confirm_floor().is_none());
    }

    #[test]
    fn what_comes_again_is_noted_once() {
        let mut unseen = Unseen::default();
        unseen.decoded(decoded(100, 12, &[1]));
        unseen.decoded(decoded(200, 13, &[1]));
        unseen.prune(&visibility("13:13:"));
        unseen.decoded(decoded(100, 12, &[1]));
        unseen.decoded(decoded(200, 13, &[1]));
        assert_eq!(unseen.writers(1), [13]);
    }

    #[test]
    fn a_set_keeps_every_table_once() {
        let tables = decoded(1, 1, &[5, 9, 5, 3, 9, 5]).tables;
        assert!([3, 5, 9].iter().all(|table| tables.contains(*table)) && !tables.contains(4));
        assert_eq!(tables.more, [3, 9]);
    }
}
