//! What can go wrong with a mirror. The changelog has all that a mirror holds or can be read again, so nothing is lost.

use std::{io, time::Duration};

use tidegate_model::{Position, Retry};

/// Why a mirror cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The engine has failed, or its disk is full. It has to be opened again.
    #[error(
        "the mirror's storage failed: {0}; see that its volume is sound and has room, it is opened again by itself"
    )]
    Engine(#[from] fjall::Error),
    /// The operating system refused.
    #[error("cannot {operation} the mirror's directory: {source}; mend the volume or its permissions")]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// What the engine holds is not what was written.
    #[error("the mirror is damaged ({0}); it is dropped, and its tables need a snapshot")]
    Damaged(&'static str),
    /// A record's payload is not the message that it should be.
    #[error("the record at {position} holds no valid {message}; this is a bug in capture")]
    Record {
        /// Where it stands.
        position: Position,
        /// The message that it should hold.
        message: &'static str,
    },
    /// No such table, or its rows are not all here yet.
    #[error("table {0} has no complete mirror; start a snapshot of it, or wait for the one that runs")]
    NotComplete(u32),
    /// No such index, or it is still being built.
    #[error("the index is not complete; it is being built")]
    IndexNotComplete,
    /// The mirror is closed, or being opened again.
    #[error("the mirror is not open; it is opened by itself")]
    Closed,
}

impl MirrorError {
    /// May it be otherwise the next time, with nothing dropped?
    pub(crate) fn is_transient(&self) -> bool {
        use fjall::{Error, LsmError};
        match self {
            MirrorError::Io { .. } => true,
            MirrorError::Engine(error) => {
                matches!(error, Error::Io(_) | Error::Storage(LsmError::Io(_)) | Error::Poisoned | Error::Locked)
            }
            MirrorError::Damaged(_)
            | MirrorError::Record { .. }
            | MirrorError::NotComplete(_)
            | MirrorError::IndexNotComplete
            | MirrorError::Closed => false,
        }
    }

    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            MirrorError::Engine(_)
            | MirrorError::Io { .. }
            | MirrorError::NotComplete(_)
            | MirrorError::IndexNotComplete
            | MirrorError::Closed => Retry::After(Duration::from_secs(1)),
            MirrorError::Damaged(_) => Retry::Reset,
            MirrorError::Record { .. } => Retry::Never,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, MirrorError>;
