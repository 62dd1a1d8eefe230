//! What others ask of a source's snapshots, and what they see of them: a cheap handle that hides the coordinator.

use std::{sync::Arc, time::Duration};

use tidegate_control::{ControlError, JobState, SnapshotJob};
use tidegate_model::{Epoch, Part, Position, Retry, SnapshotSpec, TableName};
use tidegate_postgres::{ConnectError, snapshot::SnapshotReadError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{CaptureError, promises::Promised};

/// Asks for snapshots of one source. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SnapshotRequests {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) statuses: watch::Receiver<Arc<Vec<SnapshotStatus>>>,
}

/// A snapshot that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its number, unique within the source.
    pub snapshot: u32,
    /// Whoever reads the changelog after this position receives its begin and all that follows.
    pub after: Position,
}

/// How a snapshot is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Its number.
    pub snapshot: u32,
    /// What it is doing.
    pub state: JobState,
    /// Why it waits or failed, and what to do; empty when all is well.
    pub detail: String,
    /// Its tables.
    pub tables: Vec<TableStatus>,
    /// Whoever reads the changelog after this position receives its begin; None before that.
    pub after: Option<Position>,
    /// When it was asked for, in microseconds since 1970.
    pub created_us: i64,
    /// When it ended, in microseconds since 1970.
    pub ended_us: Option<i64>,
    /// Rows a second, over the last seconds.
    pub rows_per_second: u64,
    /// It has started by itself, since its tables are new.
    pub new_tables: bool,
    /// It was asked for by itself: whoever asks for such snapshots receives it.
    pub ad_hoc: bool,
}

impl SnapshotStatus {
    /// One that has ended, of which no more is known.
    pub(crate) fn of_ended(job: &SnapshotJob) -> Self {
        let table = |name: &TableName| TableStatus {
            name: name.clone(),
            row_count: 0,
            row_count_estimated: 0,
            is_done: job.state == JobState::Done,
            part: PartStatus::of(job.parts.get(name)),
        };
        SnapshotStatus {
            snapshot: job.snapshot,
            state: job.state,
            detail: job.detail.clone(),
            tables: job.tables.iter().map(table).collect(),
            after: None,
            created_us: job.created_us,
            ended_us: job.ended_us,
            rows_per_second: 0,
            new_tables: job.new_tables,
            ad_hoc: job.ad_hoc,
        }
    }
}

/// How far a snapshot has got with a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableStatus {
    /// The table.
    pub name: TableName,
    /// Rows delivered.
    pub row_count: u64,
    /// Rows as PostgreSQL's statistics estimate them; 0 where they do not.
    pub row_count_estimated: u64,
    /// All of it is delivered.
    pub is_done: bool,
    /// Which part of it is read.
    pub part: PartStatus,
}

/// Which part of a table is read. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartStatus {
    /// Rows that meet this condition; None where it is all of them, or those of some keys.
    pub condition: Option<Arc<str>>,
    /// Rows of so many keys; 0 where it is no list.
    pub key_count: u64,
}

impl PartStatus {
    pub(crate) fn of(part: Option<&Part>) -> Self {
        match part {
            None => PartStatus::default(),
            Some(Part::Where(condition)) => PartStatus { condition: Some(condition.as_str().into()), key_count: 0 },
            Some(Part::Keys(keys)) => PartStatus { condition: None, key_count: keys.len() as u64 },
        }
    }
}

/// A snapshot cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A table cannot be read.
    #[error(transparent)]
    Read(#[from] SnapshotReadError),
    /// PostgreSQL cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Its tables cannot be resolved.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The control database failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No table was named.
    #[error("a snapshot needs at least one table")]
    NoTable,
    /// The table has no key by which its rows could be told apart, as who asks needs.
    #[error(
        "table {0} has no key in the stream and in the publication by which its rows could be told apart; give it a primary \
         key, or a replica identity index"
    )]
    Keyless(TableName),
    /// What the publication sends of the table's key tells no rows apart, whoever asks.
    #[error("the publication leaves a part of the key of table {0} out; publish all of the key's columns")]
    KeyLeftOut(TableName),
    /// It is not among the source's tables.
    #[error("table {0} is not captured; add it to the source's `tables`")]
    NotFollowed(TableName),
    /// A key could not be turned back into text.
    #[error("a key of table {0} cannot be read back; this is a bug in Tidegate, please report it")]
    Key(TableName),
    /// It had begun, and cannot be continued.
    #[error("the snapshot failed: {0}")]
    Failed(String),
    /// The table has joined the publication just now.
    #[error(
        "table {0} has joined the publication, and transactions that may have written to it before have not ended; the snapshot \
         begins by itself when they have (`tidegate status` names them)"
    )]
    Joining(TableName),
    /// PostgreSQL 14 may still send rows as what they were.
    #[error(
        "partitions have been attached or detached, and are sent as what they are now over another connection, which is made when all that \
         was received before is on disk and PostgreSQL has been told; the snapshot begins by itself then"
    )]
    PartitionsChanging,
    /// Subscribers would receive the rows of both.
    #[error(
        "table {table} has no key, and is being read by snapshot {snapshot}, which those receive as well who would receive this one; \
         it begins by itself when that has ended"
    )]
    Beside {
        /// Which one.
        table: TableName,
        /// The other one's number.
        snapshot: u32,
    },
    /// The same, and the other one waits for someone.
    #[error(
        "table {table} has no key, and is being read by snapshot {snapshot}, which is paused and which those receive as well who would \
         receive this one; resume or cancel it (`tidegate snapshot resume {snapshot}`), and start again"
    )]
    BesidePaused {
        /// Which one.
        table: TableName,
        /// The other one's number.
        snapshot: u32,
    },
    /// More would take more memory than there is for them.
    #[error("{0} snapshots have been started and have not ended; start it when one has (`tidegate snapshot list`)")]
    TooMany(usize),
    /// There is none with this number that has not ended.
    #[error("no snapshot {0} that has not ended; list them with `tidegate snapshot list`")]
    Unknown(u32),
    /// The source is not being captured now.
    #[error("the source is not connected; a snapshot can start when it is again")]
    NotConnected,
}

impl SnapshotError {
    /// The same for another who waits, where it is about another snapshot that reads the table.
    pub(super) fn beside(&self) -> Option<Self> {
        match self {
            SnapshotError::Beside { table, snapshot } => {
                Some(SnapshotError::Beside { table: table.clone(), snapshot: *snapshot })
            }
            SnapshotError::BesidePaused { table, snapshot } => {
                Some(SnapshotError::BesidePaused { table: table.clone(), snapshot: *snapshot })
            }
            _ => None,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            SnapshotError::Read(error) => error.retry(),
            SnapshotError::Connect(error) => error.retry(),
            SnapshotError::Capture(error) => error.retry(),
            SnapshotError::Control(error) => error.retry(),
            SnapshotError::NoTable
            | SnapshotError::Keyless(_)
            | SnapshotError::KeyLeftOut(_)
            | SnapshotError::NotFollowed(_)
            | SnapshotError::Key(_)
            | SnapshotError::Failed(_)
            | SnapshotError::Unknown(_) => Retry::Never,
            SnapshotError::NotConnected
            | SnapshotError::Joining(_)
            | SnapshotError::PartitionsChanging
            | SnapshotError::Beside { .. }
            | SnapshotError::BesidePaused { .. }
            | SnapshotError::TooMany(_) => Retry::After(Duration::from_secs(1)),
        }
    }
}

/// What the coordinator is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Start { spec: SnapshotSpec, keyed_only: bool, reply: oneshot::Sender<Result<Started, SnapshotError>> },
    StartNew { new: NewTables, reply: oneshot::Sender<Result<Promised, SnapshotError>> },
    Change { snapshot: u32, state: JobState, reply: oneshot::Sender<Result<(), SnapshotError>> },
}

/// Tables that have joined the publication, and whose earlier writers have ended.
#[derive(Debug)]
pub(crate) struct NewTables {
    pub(crate) tables: Vec<TableName>,
    /// In which they have joined.
    pub(crate) epoch: Epoch,
    /// What the publication promises, and by which line.
    pub(crate) promised: Promised,
    pub(crate) line: String,
}

impl SnapshotRequests {
    /// Starts a snapshot, or joins one of just the same, which where others are to receive it has not begun yet.
    ///
    /// # Errors
    /// A table cannot be read, or the source is not connected.
    pub async fn start(&self, spec: SnapshotSpec) -> Result<Started, SnapshotError> {
        self.ask(|reply| Command::Start { spec, keyed_only: false, reply }).await
    }

    /// The same of one table, which is refused if its rows cannot be told apart: for whoever keeps them by key.
    ///
    /// # Errors
    /// As with `start`, or the table has no key.
    pub async fn start_keyed(&self, table: TableName) -> Result<Started, SnapshotError> {
        let spec = SnapshotSpec::of_tables(vec![table]);
        self.ask(|reply| Command::Start { spec, keyed_only: true, reply }).await
    }

    /// Starts a snapshot of new tables, and records that it reads what the line has brought. Returns what is recorded.
    ///
    /// # Errors
    /// The source is not connected, or the control database cannot be reached: nothing is recorded.
    pub(crate) async fn start_new(&self, new: NewTables) -> Result<Promised, SnapshotError> {
        self.ask(|reply| Command::StartNew { new, reply }).await
    }

    /// Lets a snapshot wait after the chunks that are being read; it keeps what it has.
    ///
    /// # Errors
    /// There is none, or the control database cannot be reached.
    pub async fn pause(&self, snapshot: u32) -> Result<(), SnapshotError> {
        self.ask(|reply| Command::Change { snapshot, state: JobState::Paused, reply }).await
    }

    /// Lets a paused snapshot go on.
    ///
    /// # Errors
    /// There is none, or the control database cannot be reached.
    pub async fn resume(&self, snapshot: u32) -> Result<(), SnapshotError> {
        self.ask(|reply| Command::Change { snapshot, state: JobState::Running, reply }).await
    }

    /// Gives a snapshot up: its subscribers receive a Reset.
    ///
    /// # Errors
    /// There is none, or the control database cannot be reached.
    pub async fn cancel(&self, snapshot: u32) -> Result<(), SnapshotError> {
        self.ask(|reply| Command::Change { snapshot, state: JobState::Cancelled, reply }).await
    }

    /// Unfinished snapshots and the last that have ended, oldest first, kept current.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<Arc<Vec<SnapshotStatus>>> {
        self.statuses.clone()
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, SnapshotError>>) -> Command,
    ) -> Result<T, SnapshotError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| SnapshotError::NotConnected)?;
        answer.await.map_err(|_| SnapshotError::NotConnected)?
    }
}
