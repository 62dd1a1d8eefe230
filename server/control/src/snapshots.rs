//! What snapshots are to do: their tables and whether they are to run. How far they got is not here but in the changelog.
//!
//! Invariant: a snapshot's number is given once within a source, and one that has ended never runs again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate_model::{Epoch, SourceName, TableName};
use tokio_postgres::{Client, GenericClient, Row};

use crate::ControlError;

/// How many ended snapshots are listed.
const ENDED_LISTED: i64 = 100;

/// A snapshot as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotJob {
    /// Unique within the source, from 1.
    pub snapshot: u32,
    /// The epoch whose changelog it goes to.
    pub epoch: Epoch,
    /// Its tables, in order.
    pub tables: Vec<TableName>,
    /// What is to become of it, or has become of it.
    pub state: JobState,
    /// Why, where it failed.
    pub detail: String,
    /// When it was asked for, in microseconds since 1970.
    pub created_us: i64,
    /// When it ended, in microseconds since 1970.
    pub ended_us: Option<i64>,
    /// Its tables have joined the publication: whoever selects one of them receives it.
    pub new_tables: bool,
}

/// What is to become of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobState {
    /// It is to run.
    Running,
    /// It is to wait until it is resumed.
    Paused,
    /// It is complete.
    Done,
    /// Someone did not want it any more.
    Cancelled,
    /// It cannot be completed.
    Failed,
}

impl JobState {
    /// Will it do nothing any more?
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, JobState::Done | JobState::Cancelled | JobState::Failed)
    }

    fn as_str(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Done => "done",
            JobState::Cancelled => "cancelled",
            JobState::Failed => "failed",
        }
    }

    /// The table's CHECK allows no other.
    fn parse(text: &str) -> Self {
        match text {
            "running" => JobState::Running,
            "paused" => JobState::Paused,
            "done" => JobState::Done,
            "cancelled" => JobState::Cancelled,
            _ => JobState::Failed,
        }
    }
}

/// Records a new snapshot, which is to run, under a number above `at_least`: what the changelog has seen counts as given,
/// also where the control database was restored from before.
pub(crate) async fn create(
    client: &impl GenericClient,
    source: &SourceName,
    (epoch, at_least): (Epoch, u32),
    (tables, new_tables): (&[TableName], bool),
) -> Result<SnapshotJob, ControlError> {
    let names: Vec<&str> = tables.iter().flat_map(|name| [name.schema.as_str(), name.table.as_str()]).collect();
    let at_least = i32::try_from(at_least).unwrap_or(i32::MAX - 1);
    let row = client
        .query_one(
            "WITH next AS (
               INSERT INTO tidegate.source (name, last_snapshot) VALUES ($1, $2 + 1)
               ON CONFLICT (name) DO UPDATE SET last_snapshot = greatest(source.last_snapshot, $2) + 1
               RETURNING last_snapshot)
             SELECT last_snapshot FROM next",
            &[&source.as_str(), &at_least],
        )
        .await?;
    let snapshot: i32 = row.get(0);
    let row = client
        .query_one(
            "INSERT INTO tidegate.snapshot (source, snapshot, epoch, tables, new_tables, state)
             VALUES ($1, $2, $3, $4, $5, 'running')
             RETURNING snapshot, epoch, tables, state, detail, created_at, ended_at, new_tables",
            &[&source.as_str(), &snapshot, &epoch.to_string(), &names, &new_tables],
        )
        .await?;
    Ok(job(&row))
}

/// Unfinished ones and the last that have ended, oldest first.
pub(crate) async fn list(client: &Client, source: &SourceName) -> Result<Vec<SnapshotJob>, ControlError> {
    let rows = client
        .query(
            "(SELECT snapshot, epoch, tables, state, detail, created_at, ended_at, new_tables FROM tidegate.snapshot
              WHERE source = $1 AND ended_at IS NULL)
             UNION ALL
             (SELECT snapshot, epoch, tables, state, detail, created_at, ended_at, new_tables FROM tidegate.snapshot
              WHERE source = $1 AND ended_at IS NOT NULL ORDER BY snapshot DESC LIMIT $2)
             ORDER BY snapshot",
            &[&source.as_str(), &ENDED_LISTED],
        )
        .await?;
    Ok(rows.iter().map(job).collect())
}

/// Changes what is to become of one that has not ended; false where it has, or never was.
pub(crate) async fn set_state(
    client: &Client,
    source: &SourceName,
    (snapshot, state): (u32, JobState),
    detail: &str,
) -> Result<bool, ControlError> {
    let count = client
        .execute(
            "UPDATE tidegate.snapshot SET state = $3, detail = $4, ended_at = CASE WHEN $5 THEN now() END
             WHERE source = $1 AND snapshot = $2 AND ended_at IS NULL",
            &[
                &source.as_str(),
                &i32::try_from(snapshot).unwrap_or(i32::MAX),
                &state.as_str(),
                &detail,
                &state.has_ended(),
            ],
        )
        .await?;
    Ok(count > 0)
}

fn job(row: &Row) -> SnapshotJob {
    let names: Vec<String> = row.get(2);
    SnapshotJob {
        snapshot: row.get::<_, i32>(0).unsigned_abs(),
        epoch: row.get::<_, &str>(1).parse().unwrap_or(Epoch(0)),
        tables: names.chunks_exact(2).map(|pair| TableName::new(&*pair[0], &*pair[1])).collect(),
        state: JobState::parse(row.get(3)),
        detail: row.get(4),
        created_us: microseconds(row.get(5)),
        ended_us: row.get::<_, Option<SystemTime>>(6).map(microseconds),
        new_tables: row.get(7),
    }
}

fn microseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
