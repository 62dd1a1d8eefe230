//! Snapshots of a source as the gateway asks for them: a seam, behind which capture does the work.
//!
//! It deliberately knows neither PostgreSQL nor what a chunk is.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tidegate_model::{Position, Retry, TableName};
use tidegate_proto::v1;

/// What a source answers when it can.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SnapshotError>> + Send + 'a>>;
/// All that is known of a source's snapshots, oldest first: at once, and again whenever it changes.
pub type Statuses = Pin<Box<dyn Stream<Item = Vec<v1::SnapshotStatus>> + Send>>;

/// Makes snapshots of one source.
pub trait Snapshots: Send + Sync {
    /// Starts a snapshot of these tables, or joins one that runs over just the same. It is among the statuses before this
    /// answers.
    fn start(&self, tables: Vec<TableName>) -> Answer<'_, SnapshotStart>;

    /// Lets a snapshot wait.
    fn pause(&self, snapshot: u32) -> Answer<'_, ()>;

    /// Lets it go on.
    fn resume(&self, snapshot: u32) -> Answer<'_, ()>;

    /// Gives it up.
    fn cancel(&self, snapshot: u32) -> Answer<'_, ()>;

    /// Those that have not ended, and the last that have. `source` may be left empty.
    fn statuses(&self) -> Statuses;
}

/// A snapshot that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotStart {
    /// Its number, unique within the source, at least 1.
    pub snapshot: u32,
    /// Whoever reads the changelog after this position receives its begin and all that follows.
    pub after: Position,
}

/// Why a snapshot is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The source cannot make any.
    #[error("snapshots are not available on this source")]
    Unavailable,
    /// There is none of this number that has not ended.
    #[error("there is no snapshot {0} that has not ended; see Snapshots.List, or `tidegate snapshot list`")]
    Unknown(u32),
    /// Not now.
    #[error("{detail}")]
    Later {
        /// Why, and what to do.
        detail: String,
        /// When to ask again.
        retry_in: Duration,
    },
    /// Not of these tables, or not as they are.
    #[error("{detail}")]
    Refused {
        /// Why, and what to do.
        detail: String,
    },
}

impl SnapshotError {
    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            SnapshotError::Later { retry_in, .. } => Retry::After(*retry_in),
            SnapshotError::Unavailable | SnapshotError::Unknown(_) | SnapshotError::Refused { .. } => Retry::Never,
        }
    }
}

/// A source that makes no snapshots.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSnapshots;

impl NoSnapshots {
    /// As a source's handle wants it.
    #[must_use]
    pub fn shared() -> Arc<dyn Snapshots> {
        Arc::new(NoSnapshots)
    }
}

fn unavailable<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(std::future::ready(Err(SnapshotError::Unavailable)))
}

impl Snapshots for NoSnapshots {
    fn start(&self, _: Vec<TableName>) -> Answer<'_, SnapshotStart> {
        unavailable()
    }

    fn pause(&self, _: u32) -> Answer<'_, ()> {
        unavailable()
    }

    fn resume(&self, _: u32) -> Answer<'_, ()> {
        unavailable()
    }

    fn cancel(&self, _: u32) -> Answer<'_, ()> {
        unavailable()
    }

    fn statuses(&self) -> Statuses {
        stream::once(std::future::ready(Vec::new())).boxed()
    }
}
