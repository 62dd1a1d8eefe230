//! What snapshots are to do: their tables and whether they are to run. How far they got is not here but in the changelog.
//!
//! Invariant: a snapshot's number is given once within a source, and one that has ended never runs again.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tidegate_model::{Epoch, Part, Parts, SnapshotSpec, SourceName, TableName};
use tokio_postgres::{Client, Row, Transaction};

use crate::ControlError;

/// How many ended snapshots of a source are kept.
const ENDED_MAX: i64 = 100;

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
    /// Whoever asks for such snapshots receives it.
    pub ad_hoc: bool,
    /// The part that it reads of some of its tables; keys only until it has ended.
    pub parts: Parts,
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
    client: &Transaction<'_>,
    source: &SourceName,
    (epoch, at_least): (Epoch, u32),
    (spec, new_tables): (&SnapshotSpec, bool),
) -> Result<SnapshotJob, ControlError> {
    let SnapshotSpec { tables, parts, ad_hoc } = spec;
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
            "INSERT INTO tidegate.snapshot (source, snapshot, epoch, tables, new_tables, ad_hoc, state)
             VALUES ($1, $2, $3, $4, $5, $6, 'running')
             RETURNING snapshot, epoch, tables, state, detail, created_at, ended_at, new_tables, ad_hoc",
            &[&source.as_str(), &snapshot, &epoch.to_string(), &names, &new_tables, ad_hoc],
        )
        .await?;
    for (table, part) in parts {
        let (condition, keys) = match part {
            Part::Where(condition) => (Some(condition), None),
            Part::Keys(keys) => (None, Some(keys)),
        };
        let width = keys.map(|keys| i32::try_from(keys.first().map_or(1, Vec::len)).unwrap_or(i32::MAX));
        let values = keys.map(|keys| keys.iter().flatten().collect::<Vec<_>>());
        const SQL: &str = "INSERT INTO tidegate.snapshot_part
             (source, snapshot, schema_name, table_name, condition, key_width, key_values) VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let table: (&str, &str) = (&table.schema, &table.table);
        client.execute(SQL, &[&source.as_str(), &snapshot, &table.0, &table.1, &condition, &width, &values]).await?;
    }
    Ok(SnapshotJob { parts: parts.clone(), ..job(&row) })
}

/// Unfinished ones and the last that have ended, oldest first.
pub(crate) async fn list(client: &Client, source: &SourceName) -> Result<Vec<SnapshotJob>, ControlError> {
    let rows = client
        .query(
            "(SELECT snapshot, epoch, tables, state, detail, created_at, ended_at, new_tables, ad_hoc
              FROM tidegate.snapshot
              WHERE source = $1 AND ended_at IS NULL)
             UNION ALL
             (SELECT snapshot, epoch, tables, state, detail, created_at, ended_at, new_tables, ad_hoc
              FROM tidegate.snapshot
              WHERE source = $1 AND ended_at IS NOT NULL ORDER BY snapshot DESC LIMIT $2)
             ORDER BY snapshot",
            &[&source.as_str(), &ENDED_MAX],
        )
        .await?;
    let mut parts = parts(client, source).await?;
    let with_parts = |row: &Row| {
        let job = job(row);
        SnapshotJob { parts: parts.remove(&job.snapshot).unwrap_or_default(), ..job }
    };
    Ok(rows.iter().map(with_parts).collect())
}

/// By snapshot. Of one that has ended, nothing but a condition is left.
async fn parts(client: &Client, source: &SourceName) -> Result<BTreeMap<u32, Parts>, ControlError> {
    const SQL: &str = "SELECT snapshot, schema_name, table_name, condition, key_width, key_values
         FROM tidegate.snapshot_part WHERE source = $1";
    let mut parts: BTreeMap<u32, Parts> = BTreeMap::new();
    for row in client.query(SQL, &[&source.as_str()]).await? {
        let part = match row.get::<_, Option<String>>(3) {
            Some(condition) => Part::Where(condition),
            None => {
                let width = usize::try_from(row.get::<_, i32>(4)).unwrap_or(1).max(1);
                Part::Keys(row.get::<_, Vec<String>>(5).chunks(width).map(<[String]>::to_vec).collect())
            }
        };
        let table = TableName::new(row.get::<_, &str>(1), row.get::<_, &str>(2));
        parts.entry(row.get::<_, i32>(0).unsigned_abs()).or_default().insert(table, part);
    }
    Ok(parts)
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
    if count > 0 && state.has_ended() {
        // Keys are values of rows: they are kept no longer than they are needed.
        const SQL: &str = "DELETE FROM tidegate.snapshot_part p USING tidegate.snapshot s
             WHERE p.source = $1 AND p.key_values IS NOT NULL
               AND (s.source, s.snapshot) = (p.source, p.snapshot) AND s.ended_at IS NOT NULL";
        client.execute(SQL, &[&source.as_str()]).await?;
        forget_oldest(client, source).await?;
    }
    Ok(count > 0)
}

/// A table that cannot be read has a snapshot begun again and again: only the newest that have ended are kept. Their numbers stay given.
async fn forget_oldest(client: &Client, source: &SourceName) -> Result<(), ControlError> {
    const SQL: &str = "DELETE FROM tidegate.snapshot
         WHERE source = $1 AND ended_at IS NOT NULL AND snapshot <= (
           SELECT snapshot FROM tidegate.snapshot
           WHERE source = $1 AND ended_at IS NOT NULL ORDER BY snapshot DESC OFFSET $2 LIMIT 1)";
    client.execute(SQL, &[&source.as_str(), &ENDED_MAX]).await?;
    Ok(())
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
        ad_hoc: row.get(8),
        parts: Parts::new(),
    }
}

pub(crate) fn microseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
