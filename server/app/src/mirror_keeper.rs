//! Has a snapshot made of each table that is to be mirrored and is not complete, or whose definition is not the one that its
//! mirror was verified under, and says how each is doing.
//!
//! ```text
//! known tables + mirror + definitions ─▶ which need a snapshot ─▶ SnapshotRequests, a job a table ─▶ SourceStatus.mirror
//! ```
//!
//! Invariant: a table that cannot be read is tried again less and less often, and never holds up another. It deliberately knows
//! nothing of rows: when a table is complete, the mirror says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tidegate_capture::{SnapshotError, SnapshotReadError, SnapshotRequests, Unsupported};
use tidegate_control::JobState;
use tidegate_gateway::{KnownTable, SourceStatus};
use tidegate_model::{Retry, SourceName, TableName};
use tidegate_postgres::{
    ConnectConfig, Session,
    snapshot::{Fingerprint, wait_for_writers, waits_for_writers},
};
use tidegate_proto::v1::{MirroredTable as TableStatus, mirrored_table::State};
use tidegate_store::{MirrorReader, MirroredTable};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::mirror_definitions::{Definitions, Tables};

/// Snapshots that run at the same time, so that a source of many tables is not asked for all of them at once.
const JOBS_MAX: usize = 4;
/// After what may come right by itself; doubled with each failure in a row.
const RETRY: Duration = Duration::from_secs(2);
/// After a refusal that someone has to mend.
const REFUSED_RETRY: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// How long transactions that write to an altered table are waited for at once, and how often they are looked at.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(30);
const WRITERS_INTERVAL: Duration = Duration::from_millis(100);

/// Keeps the mirror of a source complete.
pub(crate) struct MirrorKeeper {
    pub(crate) source: SourceName,
    pub(crate) mirror: MirrorReader,
    /// The source's tables; none before they are known.
    pub(crate) tables: watch::Receiver<Arc<Vec<KnownTable>>>,
    /// None before there is a capture.
    pub(crate) requests: watch::Receiver<Option<SnapshotRequests>>,
    pub(crate) status: watch::Sender<SourceStatus>,
    /// To look for those who write to an altered table.
    pub(crate) connect: ConnectConfig,
    pub(crate) definitions: watch::Receiver<Definitions>,
    /// Whose definitions are to be watched.
    pub(crate) watched: watch::Sender<Tables>,
    /// Whose mirror is complete; None before it is open.
    pub(crate) complete: watch::Sender<Option<Tables>>,
}

/// What has come of a table's snapshot.
enum Ended {
    Done,
    Cancelled,
    Failed(String),
    Refused {
        error: SnapshotError,
    },
    /// It has not begun, because of this.
    Waits(String),
}

/// A table that was tried in vain.
struct Failure {
    detail: String,
    state: State,
    /// In a row.
    count: u32,
    retry_at: Instant,
    /// The table's definition then: with another one it may succeed.
    definition: Option<Fingerprint>,
}

/// What the keeper knows beyond the mirror.
#[derive(Default)]
struct Attempts {
    jobs: JoinSet<((TableName, u32), Ended)>,
    running: Vec<TableName>,
    failures: BTreeMap<TableName, Failure>,
    definitions: Definitions,
    /// By OID, under which definition a table was verified, and has been seen since.
    settled: BTreeMap<u32, String>,
    /// And has had another since. It may be the same again: one that was renamed away was written to meanwhile without a word in the
    /// stream.
    strayed: BTreeMap<u32, String>,
}

impl Attempts {
    fn definition(&self, table: &MirroredTable) -> Option<&Fingerprint> {
        self.definitions.get(&table.table_oid)
    }

    /// Is every row there, under the definition that the table has?
    fn is_verified(&self, table: &MirroredTable) -> bool {
        let is_same = |definition: &Fingerprint| definition.as_str() == table.verified && !self.has_strayed(table);
        table.complete && self.definition(table).is_some_and(is_same)
    }

    /// Is every row there, but under another definition, or as of before there was another?
    fn is_altered(&self, table: &MirroredTable) -> bool {
        table.complete && self.definition(table).is_some() && !self.is_verified(table)
    }

    fn has_strayed(&self, table: &MirroredTable) -> bool {
        self.strayed.get(&table.table_oid) == Some(&table.verified)
    }

    /// Remembers which tables have come to have another definition than they were verified under.
    fn notice(&mut self, mirrored: &[MirroredTable]) {
        for table in mirrored.iter().filter(|table| table.complete) {
            let Some(is_same) = self.definition(table).map(|definition| definition.as_str() == table.verified) else {
                continue;
            };
            let was_same = self.settled.get(&table.table_oid) == Some(&table.verified);
            if is_same && !was_same {
                self.settled.insert(table.table_oid, table.verified.clone());
            } else if was_same && !is_same {
                self.strayed.insert(table.table_oid, table.verified.clone());
            }
        }
        let is_mirrored = |oid: &u32, _: &mut String| mirrored.iter().any(|table| table.table_oid == *oid);
        self.settled.retain(is_mirrored);
        self.strayed.retain(is_mirrored);
    }

    /// Something may have mended what was tried in vain.
    fn forgive(&mut self, mirrored: &[MirroredTable]) {
        let mut failures = std::mem::take(&mut self.failures);
        failures.retain(|name, failure| {
            let Some(of) = mirrored.iter().find(|table| table.name == *name) else { return true };
            // It has been given a key, or somebody else's snapshot has confirmed it.
            let is_mended = self.is_verified(of) || (failure.state == State::Unsupported && !of.keyless);
            !is_mended && failure.definition.as_ref() == self.definition(of)
        });
        self.failures = failures;
    }
}

impl MirrorKeeper {
    /// Works until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut attempts = Attempts::default();
        let mut changed = self.mirror.changed();
        loop {
            changed.mark_unchanged();
            let known = Arc::clone(&self.tables.borrow_and_update());
            let requests = self.requests.borrow_and_update().clone();
            attempts.definitions = Arc::clone(&self.definitions.borrow_and_update());
            let wake = self.look(&known, requests.as_ref(), &mut attempts).await;
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = attempts.jobs.join_next() => match ended {
                    Ok((table, ended)) => self.ended(table, ended, &mut attempts),
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                // The mirror outlives its keeper, and so do the others but for the end of everything.
                Ok(()) = changed.changed() => {}
                Ok(()) = self.tables.changed() => {}
                Ok(()) = self.requests.changed() => {}
                Ok(()) = self.definitions.changed() => {}
                () = async { sleep_until(wake.expect("only polled with a time")).await }, if wake.is_some() => {}
                () = std::future::pending() => {}
            }
        }
    }

    /// Starts what can be started, and shows where everything stands. Returns when to look again though nothing has happened.
    async fn look(
        &self,
        known: &Arc<Vec<KnownTable>>,
        requests: Option<&SnapshotRequests>,
        attempts: &mut Attempts,
    ) -> Option<Instant> {
        let tables = self.mirror.tables_followed();
        if tables.is_empty() {
            self.show(Vec::new());
            self.show_complete(&[]);
            return None;
        }
        let followed: Vec<TableName> =
            known.iter().map(|table| table.name.clone()).filter(|name| tables.matches(name)).collect();
        let (mirror, names) = (self.mirror.clone(), followed.clone());
        let read = tokio::task::spawn_blocking(move || {
            let needed = mirror.needs_snapshot(&names)?;
            Ok::<_, tidegate_store::MirrorError>((mirror.incarnations()?, needed))
        });
        let (mut mirrored, needed) = match read.await {
            Ok(Ok(read)) => read,
            // There is none yet, or it is being opened again; whoever writes to it says why.
            Ok(Err(_)) => {
                self.show(followed.iter().map(being_opened).collect());
                return Some(Instant::now() + RETRY);
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.show_complete(&mirrored);
        attempts.notice(&mirrored);
        // From here on names count.
        mirrored.retain(|table| !table.displaced);
        attempts.forgive(&mirrored);
        if let Some(requests) = requests {
            for name in needed {
                if attempts.may_start(&name) {
                    let oid = mirrored.iter().find(|table| table.name == name).map_or(0, |table| table.table_oid);
                    attempts.jobs.spawn(snapshot(requests.clone(), (name, oid)));
                }
            }
            for table in mirrored.iter().filter(|table| table.snapshots.is_empty() && followed.contains(&table.name)) {
                if attempts.is_altered(table) && attempts.may_start(&table.name) {
                    let (connect, oid) = (self.connect.clone(), table.table_oid);
                    attempts.jobs.spawn(verify(requests.clone(), connect, (table.name.clone(), oid)));
                }
            }
        }
        let now = Instant::now();
        let mut statuses: Vec<TableStatus> =
            followed.iter().filter_map(|name| self.table_status(name, &mirrored, attempts)).collect();
        if !known.is_empty() {
            statuses
                .extend(tables.exact_names().filter(|name| !followed.contains(name)).map(|name| not_captured(&name)));
        }
        self.show(statuses);
        attempts.failures.values().map(|failure| failure.retry_at).filter(|at| *at > now).min()
    }

    fn show_complete(&self, mirrored: &[MirroredTable]) {
        let complete: BTreeSet<u32> =
            mirrored.iter().filter(|table| table.complete).map(|table| table.table_oid).collect();
        let watched: BTreeSet<u32> = mirrored.iter().map(|table| table.table_oid).collect();
        self.watched.send_if_modified(|known| {
            let differs = **known != watched;
            if differs {
                *known = Arc::new(watched);
            }
            differs
        });
        self.complete.send_if_modified(|known| {
            let differs = known.as_deref() != Some(&complete);
            if differs {
                *known = Some(Arc::new(complete));
            }
            differs
        });
    }

    /// None for a partition or a root whose rows are mirrored as another table's, unless it was named.
    fn table_status(&self, name: &TableName, mirrored: &[MirroredTable], attempts: &Attempts) -> Option<TableStatus> {
        let of = mirrored.iter().find(|table| table.name == *name);
        let failure = attempts.failures.get(name);
        let (state, detail) = match (of, failure) {
            (Some(table), _) if attempts.is_verified(table) => (State::Complete, String::new()),
            (Some(table), failure) if table.complete => {
                let waits = match table.snapshots.is_empty() {
                    _ if !attempts.is_altered(table) => "whether it was altered is being asked",
                    true => "it was altered, and waits for its snapshot",
                    false => "",
                };
                (State::Verifying, failure.map_or_else(|| waits.to_owned(), |failure| failure.detail.clone()))
            }
            (Some(table), _) if table.keyless => (State::Unsupported, SnapshotError::Keyless(name.clone()).to_string()),
            (Some(table), _) if !table.snapshots.is_empty() => (State::Building, String::new()),
            (_, Some(failure)) if failure.detail.is_empty() => return None,
            (_, Some(failure)) => (failure.state, failure.detail.clone()),
            (_, None) if attempts.running.contains(name) => (State::Waiting, "its snapshot begins".to_owned()),
            (_, None) => (State::Waiting, "it waits for its snapshot".to_owned()),
        };
        let snapshot = of.and_then(|table| table.snapshots.first()).copied().unwrap_or(0);
        Some(TableStatus { table: name.to_string(), state: state as i32, detail, snapshot })
    }

    fn ended(&self, (table, oid): (TableName, u32), ended: Ended, attempts: &mut Attempts) {
        attempts.running.retain(|name| *name != table);
        let definition = attempts.definitions.get(&oid).cloned();
        let count = attempts.failures.get(&table).map_or(0, |failure| failure.count) + 1;
        let (state, detail, first) = match ended {
            // The mirror completes it when it has taken the last of it. A table that then is not complete has changed meanwhile.
            Ended::Done => {
                attempts.strayed.remove(&oid);
                (State::Waiting, "its snapshot has ended, and is being taken in".to_owned(), RETRY)
            }
            Ended::Cancelled => (State::Failed, "its snapshot was cancelled".to_owned(), REFUSED_RETRY),
            // The table may have been altered under it.
            Ended::Failed(detail) => (State::Failed, detail, RETRY),
            Ended::Refused { error } => self.refusal(&table, &error),
            Ended::Waits(detail) => (State::Waiting, detail, RETRY),
        };
        let pause = first.saturating_mul(1 << (count - 1).min(12)).min(RETRY_MAX);
        let known = attempts.failures.get(&table).is_some_and(|failure| failure.detail == detail);
        if !known && !detail.is_empty() && state != State::Waiting {
            let source = &self.source;
            if self.is_named(&table) {
                tracing::error!(%source, %table, detail, "a table that `mirror` names, or a shape needs, is not mirrored");
            } else {
                tracing::warn!(%source, %table, detail, "a table is not mirrored");
            }
        }
        attempts.failures.insert(table, Failure { detail, state, count, retry_at: Instant::now() + pause, definition });
    }

    fn refusal(&self, table: &TableName, error: &SnapshotError) -> (State, String, Duration) {
        let elsewhere = matches!(
            error,
            SnapshotError::Read(SnapshotReadError::Unsupported {
                reason: Unsupported::ThroughRoot { .. } | Unsupported::ByPartitions { .. },
                ..
            })
        );
        if elsewhere && !self.is_named(table) {
            return (State::Unsupported, String::new(), REFUSED_RETRY);
        }
        let state = match error {
            SnapshotError::Keyless(_)
            | SnapshotError::KeyLeftOut(_)
            | SnapshotError::Read(SnapshotReadError::Unsupported { .. }) => State::Unsupported,
            SnapshotError::Read(_)
            | SnapshotError::Connect(_)
            | SnapshotError::Capture(_)
            | SnapshotError::Control(_)
            | SnapshotError::NoTable
            | SnapshotError::NotFollowed(_)
            | SnapshotError::Key(_)
            | SnapshotError::Failed(_)
            | SnapshotError::Unknown(_)
            | SnapshotError::NotConnected
            | SnapshotError::Joining(_)
            | SnapshotError::PartitionsChanging
            | SnapshotError::Beside { .. }
            | SnapshotError::BesidePaused { .. }
            | SnapshotError::TooMany(_) => State::Failed,
        };
        // Its key is looked at only when it is published.
        let is_left_out = matches!(
            error,
            SnapshotError::Read(SnapshotReadError::Unsupported { reason: Unsupported::NotPublished { .. }, .. })
        );
        let hint = match is_left_out {
            true => {
                "; a table without a primary key or replica identity has no mirror, and is left out of a publication that \
                     Tidegate makes: give it one"
            }
            false => "",
        };
        match error.retry() {
            Retry::After(pause) => (State::Waiting, error.to_string(), pause.max(RETRY)),
            Retry::Never | Retry::Reset => (state, format!("{error}{hint}"), REFUSED_RETRY),
        }
    }

    fn is_named(&self, table: &TableName) -> bool {
        self.mirror.tables_followed().exact_names().any(|name| name == *table)
    }

    fn show(&self, mut statuses: Vec<TableStatus>) {
        statuses.sort_unstable_by(|a, b| a.table.cmp(&b.table));
        self.status.send_if_modified(|status| {
            let differs = status.mirror != statuses;
            if differs {
                for new in statuses.iter().filter(|new| new.state() == State::Complete) {
                    if !status.mirror.iter().any(|old| old.table == new.table && old.state() == State::Complete) {
                        tracing::info!(source = %self.source, table = new.table, "the mirror of a table is complete");
                    }
                }
                status.mirror = statuses;
            }
            differs
        });
    }
}

impl Attempts {
    /// If so, it counts as started.
    fn may_start(&mut self, name: &TableName) -> bool {
        let waits = self.failures.get(name).is_some_and(|failure| failure.retry_at > Instant::now());
        let may = !waits && self.jobs.len() < JOBS_MAX && !self.running.contains(name);
        if may {
            self.running.push(name.clone());
        }
        may
    }
}

fn being_opened(name: &TableName) -> TableStatus {
    let detail = "the mirror is being opened".to_owned();
    TableStatus { table: name.to_string(), state: State::Waiting as i32, detail, snapshot: 0 }
}

fn not_captured(name: &TableName) -> TableStatus {
    TableStatus {
        table: name.to_string(),
        state: State::Unsupported as i32,
        detail: "there is no such table, or `tables` leaves it out; correct the source's `mirror` or `tables`"
            .to_owned(),
        snapshot: 0,
    }
}

/// Runs a snapshot of an altered table to its end. What was being written when it was altered may be streamed as of before, and is
/// waited for.
async fn verify(
    requests: SnapshotRequests,
    connect: ConnectConfig,
    (table, oid): (TableName, u32),
) -> ((TableName, u32), Ended) {
    let writers = async {
        let session = Session::connect(&connect).await?;
        let writers = waits_for_writers(&session, &[oid]).await?;
        wait_for_writers(&session, writers, WRITERS_INTERVAL).await?;
        anyhow::Ok(())
    };
    let waits = match timeout(WRITERS_TIMEOUT, writers).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => {
            Some("it was altered, and waits for transactions that wrote to it before; end those that idle".to_owned())
        }
    };
    match waits {
        None => snapshot(requests, (table, oid)).await,
        Some(detail) => ((table, oid), Ended::Waits(detail)),
    }
}

/// Runs a snapshot of the table to its end.
async fn snapshot(requests: SnapshotRequests, (table, oid): (TableName, u32)) -> ((TableName, u32), Ended) {
    let mut statuses = requests.statuses();
    let started = match requests.start_keyed(table.clone()).await {
        Ok(started) => started,
        Err(error) => return ((table, oid), Ended::Refused { error }),
    };
    let ended = statuses.wait_for(|all| {
        let job = all.iter().find(|status| status.snapshot == started.snapshot);
        job.is_none_or(|status| status.state.has_ended())
    });
    let ended = match ended.await {
        Ok(all) => match all.iter().find(|status| status.snapshot == started.snapshot) {
            Some(status) => match status.state {
                JobState::Cancelled => Ended::Cancelled,
                JobState::Failed => Ended::Failed(status.detail.clone()),
                JobState::Done | JobState::Running | JobState::Paused => Ended::Done,
            },
            None => Ended::Done,
        },
        Err(_) => Ended::Refused { error: SnapshotError::NotConnected },
    };
    ((table, oid), ended)
}
