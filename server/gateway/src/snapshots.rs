//! Snapshots of a source as the gateway asks for them: a seam, behind which capture does the work.
//!
//! It deliberately knows neither PostgreSQL nor what a chunk is.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tidegate_model::{Position, Retry, SnapshotSpec, TableName};
use tidegate_proto::v1;
use tidegate_views::TableFacts;

/// What a source answers when it can.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SnapshotError>> + Send + 'a>>;
/// All that is known of a source's snapshots, oldest first: at once, and again whenever it changes.
pub type Statuses = Pin<Box<dyn Stream<Item = Vec<v1::SnapshotStatus>> + Send>>;

/// Makes snapshots of one source.
pub trait Snapshots: Send + Sync {
    /// Starts a snapshot, or joins one of just the same, which where others are to receive it has not begun yet. It is among the
    /// statuses before this answers.
    fn start(&self, spec: SnapshotSpec) -> Answer<'_, SnapshotStart>;

    /// What conditions on the table are about, as the catalog has it now.
    fn describe(&self, table: TableName) -> Answer<'_, Described>;

    /// The first value of the keys that PostgreSQL does not read as that of its column; None where it reads them all. Each key
    /// has as many values as the table's.
    fn malformed_key(&self, table: TableName, keys: Vec<Vec<String>>) -> Answer<'_, Option<MalformedKey>>;

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

/// A table that conditions are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// For conditions: the columns that are published.
    pub facts: TableFacts,
    /// The key's columns, in its order; none where it has no key.
    pub key: Vec<String>,
    /// Of each column of the facts, `pg_attribute.atttypid`, which may be a domain.
    pub type_oids: Vec<u32>,
    /// The same as `format_type` prints it.
    pub type_names: Vec<String>,
    /// Updates and deletes come with every column of the old row: REPLICA IDENTITY FULL.
    pub whole_old_rows: bool,
}

impl Described {
    /// The type with which a column was declared.
    pub(crate) fn type_of(&self, column: &str) -> Option<u32> {
        let at = self.facts.columns.iter().position(|known| known.name == column)?;
        self.type_oids.get(at).copied()
    }
}

/// A value that PostgreSQL does not read as the key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedKey {
    /// Which of the keys, from 0.
    pub key: usize,
    /// Which of the key's columns, from 0.
    pub column: usize,
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
    fn start(&self, _: SnapshotSpec) -> Answer<'_, SnapshotStart> {
        unavailable()
    }

    fn describe(&self, _: TableName) -> Answer<'_, Described> {
        unavailable()
    }

    fn malformed_key(&self, _: TableName, _: Vec<Vec<String>>) -> Answer<'_, Option<MalformedKey>> {
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
