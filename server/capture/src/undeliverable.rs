//! A transaction that cannot be delivered, since PostgreSQL cannot send one of its rows or we cannot encode it. Reading it
//! again fails again at the same place.
//!
//! The way past it: transactions are read whole, so that a Begin names the transaction before its rows come. A new epoch
//! then starts one byte behind the start of its commit record: START_REPLICATION leaves out each transaction whose commit record
//! starts before the LSN that it is given (`SnapBuildXactNeedsSkip` in PostgreSQL's snapbuild.c). So exactly this one is
//! left out, the slot stays, and nothing else is lost.

use std::fmt;

use tidegate_model::{Lsn, TableName};

/// What is known of the transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("transaction {xid}, whose commit record is at {commit_lsn}, cannot be delivered: {place}{reason}")]
pub struct Undeliverable {
    /// Top-level xid, without epoch.
    pub xid: u32,
    /// Start of its commit record.
    pub commit_lsn: Lsn,
    /// The row that failed.
    pub place: Place,
    /// What failed; holds no values.
    pub reason: String,
}

/// Which row failed, as far as it can be told: PostgreSQL names no table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// One of this table.
    In(TableName),
    /// The one that follows a row of this table in the transaction.
    After(TableName),
    /// One before any other.
    Unknown,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::In(table) => write!(f, "in a row of {table}, "),
            Place::After(table) => write!(f, "in the row that follows one of {table}, "),
            Place::Unknown => Ok(()),
        }
    }
}

impl Undeliverable {
    /// Where a history without it starts.
    pub(crate) fn next_start_lsn(&self) -> Lsn {
        Lsn(self.commit_lsn.0 + 1)
    }
}

/// The transaction that a capture waits at, as its policy demands.
#[derive(Debug)]
pub(crate) struct Stuck {
    pub(crate) at: Undeliverable,
    attempts: u32,
}

impl Stuck {
    /// It has failed, again if it is the one that failed before.
    pub(crate) fn failed(before: Option<Stuck>, at: Undeliverable) -> Self {
        let earlier = before.filter(|stuck| stuck.at == at).map_or(0, |stuck| stuck.attempts);
        Stuck { at, attempts: earlier + 1 }
    }

    /// Has the same transaction failed before?
    pub(crate) fn again(&self) -> bool {
        self.attempts > 1
    }

    /// For a person: what it waits at, and how to go on.
    pub(crate) fn advice(&self) -> String {
        format!(
            "{} (attempt {}). Capture waits here and tries the same transaction again from time to time. To go on without \
             it, set on_discontinuity to 'reset' and restart: only this transaction is left out, and subscribers are told",
            self.at, self.attempts
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_transaction_is_counted_and_another_is_not() {
        let at = |xid| Undeliverable {
            xid,
            commit_lsn: Lsn(0x20),
            place: Place::In(TableName::new("public", "note")),
            reason: "too large".to_owned(),
        };
        let stuck = Stuck::failed(Some(Stuck::failed(None, at(7))), at(7));
        assert!(stuck.again() && stuck.advice().contains("attempt 2"), "{}", stuck.advice());
        assert!(stuck.advice().starts_with(
            "transaction 7, whose commit record is at 0/20, cannot be delivered: in a row of public.note, too large"
        ));
        assert!(!Stuck::failed(Some(stuck), at(8)).again());
        assert_eq!(at(7).next_start_lsn(), Lsn(0x21));
    }
}
