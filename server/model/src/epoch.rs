//! The identity of one provably continuous history of a source.

use std::{fmt, str::FromStr};

use crate::Lsn;

/// Random id of a history. A new one is minted whenever continuity with the last cannot be proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u128);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(Epoch).map_err(|_| ())
    }
}

/// An epoch and the server that it was proved against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochInfo {
    /// The epoch.
    pub epoch: Epoch,
    /// `IDENTIFY_SYSTEM`'s system identifier.
    pub system_identifier: u64,
    /// Timeline that was last received from.
    pub timeline: u32,
    /// Where this epoch's history starts.
    pub start_lsn: Lsn,
}

/// How much of an epoch subscribers may have received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// No more than is stored.
    Stored,
    /// What is stored, and no more than up to here.
    UpTo(Lsn),
    /// Perhaps more than is stored: what was delivered before it was durable may have been lost with the machine.
    Unknown,
}

/// What tells one transaction from another that has taken its place in a restored or diverged history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionId {
    /// End of the commit record.
    pub commit_end_lsn: Lsn,
    /// Top-level xid, without epoch.
    pub xid: u32,
    /// Microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
}
