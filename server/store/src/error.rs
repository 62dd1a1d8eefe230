//! What can go wrong with a changelog. What a person reads names the file and the next step.

use std::{io, path::PathBuf, time::Duration};

use tidegate_model::{Epoch, Position, Retry, TableName};

/// Why the store cannot be opened, or why its writer has ended.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused; a full disk is not among these, the writer waits for room by itself.
    #[error("cannot {operation} {path}: {source}; mend the volume or its permissions, then restart the server")]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another process has the directory open.
    #[error("{0} is in use by another server; stop it, or give this one a data_dir of its own")]
    Locked(PathBuf),
    /// Bytes that were fsynced have changed.
    #[error(
        "{path} is damaged at byte {offset} ({reason}); restore the volume, or move {path}'s directory away and \
             restart: the source then starts a new epoch and its subscribers are reset"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// Written by another release.
    #[error(
        "{path} has format version {found}, which this release does not read; it reads version {known}. Run the release \
             that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Records came in an impossible order.
    #[error("a block that starts at {found} came after {last}; this is a bug in capture, and nothing was stored of it")]
    OutOfOrder {
        /// The last position that was stored.
        last: Position,
        /// What came after it.
        found: Position,
    },
    /// A block is larger than one may be.
    #[error("the block at {position} has {byte_count} bytes; this is a bug in capture, and nothing was stored of it")]
    TooLarge {
        /// Its first record.
        position: Position,
        /// Its size.
        byte_count: usize,
    },
    /// A block or timeline came before any epoch, or for another one.
    #[error("records came without an epoch of theirs; this is a bug in capture, and nothing was stored of them")]
    NoEpoch,
    /// A row type's number has come again with another meaning.
    #[error(
        "row type {row_type} of {stored} came again at {position} as one of {found}: the control database has lost what it \
             had given out, and nothing was stored of it. Restore the newest control database and restart; or move this \
             source's changelog away and restart: the source then starts a new epoch and its subscribers are reset"
    )]
    RowTypeReused {
        /// The number.
        row_type: u32,
        /// The table that it stands for.
        stored: TableName,
        /// The table that it came for.
        found: TableName,
        /// Where it came.
        position: Position,
    },
    /// A record's payload is not the message that it should be.
    #[error("the record at {position} holds no valid {message}: {reason}")]
    Record {
        /// Where it stands.
        position: Position,
        /// The message that it should hold.
        message: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// The mirror has failed in a way that opening it again does not mend.
    #[error(transparent)]
    Mirror(#[from] crate::MirrorError),
}

impl StoreError {
    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            StoreError::Mirror(error) => error.retry(),
            StoreError::Io { .. } | StoreError::Locked(_) => Retry::After(Duration::from_secs(5)),
            StoreError::Damaged { .. }
            | StoreError::Version { .. }
            | StoreError::OutOfOrder { .. }
            | StoreError::TooLarge { .. }
            | StoreError::NoEpoch
            | StoreError::RowTypeReused { .. }
            | StoreError::Record { .. } => Retry::Never,
        }
    }

    /// Is it for want of room on the disk, or within a quota?
    pub(crate) fn is_disk_full(&self) -> bool {
        let StoreError::Io { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl From<ReadError> for StoreError {
    /// While recovering, the writer reads what readers read.
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged { path, offset, reason } => StoreError::Damaged { path, offset, reason },
            ReadError::Io { path, reason } => {
                StoreError::Io { operation: "read", path, source: io::Error::other(reason) }
            }
            ReadError::TooOld { .. } | ReadError::OtherEpoch { .. } => StoreError::NoEpoch,
        }
    }
}

/// Why a reader cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The retention has removed what comes next.
    #[error("the position is older than what is kept, which starts after {earliest}")]
    TooOld {
        /// Reading after this position works now.
        earliest: Position,
    },
    /// The source has begun another history.
    #[error("the position is of another epoch than the current one")]
    OtherEpoch {
        /// The epoch now; None before the first.
        current: Option<Epoch>,
    },
    /// Bytes that were fsynced have changed.
    #[error(
        "{path} is damaged at byte {offset} ({reason}); restore the volume, or move the file's directory away and \
             restart: the source then starts a new epoch and its subscribers are reset"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        reason: &'static str,
    },
    /// The operating system refused.
    #[error("cannot read {path}: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
}

impl ReadError {
    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ReadError::TooOld { .. } | ReadError::OtherEpoch { .. } => Retry::Reset,
            ReadError::Damaged { .. } => Retry::Never,
            ReadError::Io { .. } => Retry::After(Duration::from_secs(1)),
        }
    }
}
