//! What can go wrong while capturing.

use std::{io, time::Duration};

use tidegate_control::ControlError;
use tidegate_feed::FeedClosed;
use tidegate_model::{Lsn, Retry, TableName};
use tidegate_postgres::{
    CatalogError, ConnectError, ReplicationError, pgoutput::DecodeError, snapshot::SnapshotReadError,
};
use tidegate_schema::EncodeError;

use crate::Discontinuity;

/// Capturing failed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The server cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The replication connection failed.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// The catalog could not be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The control database failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The stream does not follow pgoutput's format.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A value does not follow its type's text format.
    #[error(transparent)]
    Encode(EncodeError),
    /// A row cannot be delivered, and nobody has said yet which transaction it belongs to.
    #[error("{0}; transactions are now read whole, to learn which one it is")]
    Unnamed(Box<CaptureError>),
    /// The messages do not follow each other as documented.
    #[error("the replication stream is out of order: {0}; this is a bug in Tidegate or PostgreSQL, please report it")]
    Protocol(&'static str),
    /// A row of a table that was not described.
    #[error("the replication stream has a row of table {0}, which it has not described; please report this")]
    UnknownRelation(u32),
    /// The spool of transactions in progress failed.
    #[error("spooling a transaction in progress failed: {0}; free space below data_dir")]
    Spool(io::Error),
    /// The spool of a transaction that is half handed over cannot be read back.
    #[error("reading back a spooled transaction failed: {0}; check the disk below data_dir, then start again")]
    SpoolRead(io::Error),
    /// A transaction has more changes than ordinals.
    #[error("transaction {xid} has more than 2^30 changes; it cannot be delivered in one piece")]
    TooManyChanges {
        /// Its xid.
        xid: u32,
    },
    /// The server's settings do not allow logical replication.
    #[error("wal_level is '{0}'; set it to 'logical' and restart PostgreSQL")]
    WalLevel(String),
    /// No table can be followed.
    #[error(
        "publication {0} does not exist and cannot be created: no table matches that can be published; create a table with a primary key, or correct `tables`"
    )]
    NothingToPublish(String),
    /// The slot was made for something else.
    #[error("replication slot {slot} is not a pgoutput slot of this database; configure another name with `slot`")]
    ForeignSlot {
        /// The slot's name.
        slot: String,
    },
    /// Someone else reads from the slot.
    #[error("replication slot {slot} is in use by {application:?} (pid {pid}); stop it, or configure another slot")]
    SlotInUse {
        /// The slot's name.
        slot: String,
        /// The backend.
        pid: i32,
        /// Its application name.
        application: String,
    },
    /// The control database gives a number that the changelog holds with another meaning.
    #[error(
        "the control database gives table {found} row type {row_type}, or a field of it, that the changelog holds for {stored}: it \
         was restored from a backup, or belongs to another server. Restore the newest control database; or stop the server, \
         move this source's changelog away and start again: a new epoch then starts and subscribers are reset"
    )]
    NumberReused {
        /// The number.
        row_type: u32,
        /// The table that it was given for.
        found: TableName,
        /// What it stands for.
        stored: String,
    },
    /// A table of an interrupted snapshot could not be looked up.
    #[error(transparent)]
    SnapshotRead(#[from] SnapshotReadError),
    /// A snapshot that was interrupted cannot go on.
    #[error(
        "snapshot {snapshot} was interrupted, and one of its tables is gone, has another key, or cannot be read any more; start it \
         again"
    )]
    SnapshotNotRestored {
        /// Its number.
        snapshot: u32,
    },
    /// Tables were attached or detached, and what was decoded over the connection goes on to be sent as what it was before.
    #[error(
        "tables were attached or detached as partitions: PostgreSQL 14 sends their rows as what they are over a new connection"
    )]
    PartitionsChanged,
    /// What is stored has come again, and nothing else up to here.
    #[error(
        "the slot has fallen back behind tables that were attached or detached as partitions: what is stored is continued behind them"
    )]
    Proved(Lsn),
    /// The store has ended.
    #[error(transparent)]
    FeedClosed(#[from] FeedClosed),
    /// Continuity cannot be proved.
    #[error(transparent)]
    Discontinuity(#[from] Discontinuity),
}

impl CaptureError {
    /// Has a transaction been handed over in part, so that only a restart, which cuts it off, can go on?
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, CaptureError::SpoolRead(_) | CaptureError::TooManyChanges { .. } | CaptureError::FeedClosed(_))
    }

    /// Is it about a row, so that the same transaction fails again?
    pub(crate) fn is_about_a_row(&self) -> bool {
        let unreadable = matches!(self, CaptureError::Replication(error) if error.is_about_a_row());
        unreadable || matches!(self, CaptureError::Encode(EncodeError::Malformed { .. } | EncodeError::NotUtf8 { .. }))
    }

    /// What to do next.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            CaptureError::Connect(error) => error.retry(),
            CaptureError::Replication(error) => error.retry(),
            CaptureError::Catalog(error) => error.retry(),
            CaptureError::SnapshotRead(error) => error.retry(),
            CaptureError::Control(error) => error.retry(),
            CaptureError::Decode(_) | CaptureError::Encode(_) | CaptureError::Protocol(_) => Retry::Never,
            CaptureError::ForeignSlot { .. }
            | CaptureError::SnapshotNotRestored { .. }
            | CaptureError::UnknownRelation(_)
            | CaptureError::NumberReused { .. }
            | CaptureError::SpoolRead(_)
            | CaptureError::TooManyChanges { .. } => Retry::Never,
            CaptureError::Unnamed(_) | CaptureError::PartitionsChanged | CaptureError::Proved(_) => {
                Retry::After(Duration::ZERO)
            }
            CaptureError::Spool(_) => Retry::After(Duration::from_secs(2)),
            CaptureError::WalLevel(_) | CaptureError::NothingToPublish(_) | CaptureError::SlotInUse { .. } => {
                Retry::After(Duration::from_secs(5))
            }
            CaptureError::FeedClosed(error) => error.retry(),
            CaptureError::Discontinuity(_) => Retry::Reset,
        }
    }
}
