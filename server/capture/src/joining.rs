//! Looks after what is published while it is captured: promises that are broken, tables that appear, and what joins the
//! publication.
//!
//! ```text
//! a table appears ─▶ Publisher: ALTER PUBLICATION … ADD TABLE ─┐
//!                              someone else adds a table ──────┴▶ recorded as new ─▶ its writers have ended ─▶ snapshot, settled
//!                                                                                    a snapshot that fails: ◀──┘ another
//! ```
//!
//! # Why no row is lost
//!
//! pgoutput decides by the catalog as it was at each change (by an older one for the rest of a transaction, on servers that do
//! not tell running transactions of what has changed): a change before the ADD is not sent, even where its transaction commits
//! after it. Who made such a change holds a writer's lock on the table, its root or a leaf when the ADD has returned, or has
//! ended by then. Locks are released after the transaction has become visible. So when all have ended that held one then, every
//! chunk sees all of these transactions, and of any other transaction each change was sent: the proof in `snapshot` holds, for
//! this snapshot and for every one that begins later. Until then none may begin (`memberships`, in `snapshot/coordinator/begin.rs`).
//!
//! Invariant: that a past is settled is recorded together with the snapshot that is to be made; before that, it is looked at
//! again after every crash, at every connection. The snapshot is recorded until it has ended; if it fails, another is made of what the
//! line stands for by then, under whatever name, until one is complete, someone cancels it, or the table is gone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidegate_control::JobState;
use tidegate_model::{Epoch, TableName, TablePatterns};
use tidegate_postgres::{
    ConnectConfig, PublicationContent, Session, TableInfo, partition_trees, publication_content, sent_because_of,
    set_lock_timeout, slot_status,
    snapshot::{Writer, still_running, waits_for_writers},
    tables,
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::{
    CaptureError, NewTable,
    link::Link,
    partitions::PartitionWatch,
    promises::{Promises, Todo},
    publisher::Publisher,
    snapshot::{NewTables, SnapshotRequests},
};

/// Between two looks at the publication.
const INTERVAL: Duration = Duration::from_secs(1);
/// Below `deadlock_timeout`, at which PostgreSQL would end an autovacuum for us.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Looks between two looks for tables that have appeared.
const PUBLISH_EVERY: u32 = 2;
/// Snapshots of new tables that run at the same time.
const SNAPSHOTS_MAX: usize = 4;
/// After a snapshot that has failed, which doubles each time, up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// What looks after the publication during one connection.
pub(crate) struct Joining {
    pub(crate) connect: ConnectConfig,
    pub(crate) link: Arc<Link>,
    pub(crate) slot: String,
    pub(crate) partitions: Arc<PartitionWatch>,
    pub(crate) promises: Promises,
    pub(crate) publisher: Publisher,
    pub(crate) requests: SnapshotRequests,
    pub(crate) tables: TablePatterns,
    pub(crate) epoch: Epoch,
    /// Snapshots are made of what joins.
    pub(crate) reads: bool,
    pub(crate) seen: PublicationContent,
}

/// What is waited for, by the line that has joined.
#[derive(Debug, Default)]
struct Waiting {
    writers: BTreeMap<String, Vec<Writer>>,
    failures: BTreeMap<String, Failure>,
}

/// Snapshots of a line have failed.
#[derive(Debug)]
struct Failure {
    /// Before the next one.
    pause: Duration,
    until: Instant,
    /// Why.
    detail: String,
}

impl Joining {
    /// Runs until the publication breaks its promises, or another connection is to be made. One that is missing ends the stream by itself.
    ///
    /// Its session is its own: PostgreSQL locks tables to tell which ones a publication sends, and whoever waits behind the
    /// application must hold up nothing else.
    pub(crate) async fn run(mut self) -> CaptureError {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Waiting::default();
        let mut left_out = Vec::new();
        let mut session = None;
        for tick in 0_u32.. {
            tokio::select! {
                _instant = ticks.tick() => {}
                () = self.partitions.look_now.notified() => {}
            }
            let looked = async {
                let session = match &session {
                    Some(session) => session,
                    None => session.insert(connect(&self.connect).await?),
                };
                self.look_at_partitions(session).await?;
                let joining = self.look(session, &mut waiting).await?;
                if tick.is_multiple_of(PUBLISH_EVERY) {
                    left_out = self.publisher.look(session).await?;
                }
                Ok(joining)
            };
            match looked.await {
                Ok(joining) => self.show(&left_out, joining),
                Err(error @ (CaptureError::Discontinuity(_) | CaptureError::PartitionsChanged)) => return error,
                Err(error) => {
                    // The stream notices by itself what concerns it.
                    debug!(source = %self.promises.source, %error, "the publication cannot be looked at");
                    session = None;
                }
            }
        }
        CaptureError::Protocol("136 years have passed")
    }

    /// Fails when the rows of partitions are decoded as what they are now over another connection only.
    async fn look_at_partitions(&self, session: &Session) -> Result<(), CaptureError> {
        let asked_at = Instant::now();
        let trees = partition_trees(session, &self.promises.publication).await?;
        if self.partitions.look(trees, asked_at) {
            return Ok(());
        }
        // What we have confirmed last may be on its way.
        let confirmed_flush_lsn = slot_status(session, &self.slot).await?.and_then(|slot| slot.confirmed_flush_lsn);
        match self.partitions.wants_another_connection(confirmed_flush_lsn.unwrap_or_default()) {
            true => Err(CaptureError::PartitionsChanged),
            false => Ok(()),
        }
    }

    /// Returns the tables whose past is not settled.
    async fn look(&mut self, session: &Session, waiting: &mut Waiting) -> Result<Vec<NewTable>, CaptureError> {
        let Some(now) = publication_content(session, &self.promises.publication).await? else {
            return Ok(Vec::new());
        };
        self.promises.look_after(session, &mut self.seen, now).await?;
        self.look_at_reads(waiting).await;
        let lines = self.promises.promised.borrow().todo();
        let is_known = |line: &String| lines.iter().any(|(_, known)| known == line);
        waiting.writers.retain(|line, _| is_known(line));
        waiting.failures.retain(|line, _| is_known(line));
        let mut joining = Vec::new();
        let to_read: Vec<_> = lines.iter().filter(|(todo, _)| matches!(todo, Todo::New | Todo::Again)).collect();
        if !to_read.is_empty() {
            let all = tables(session).await?;
            for (todo, line) in to_read {
                joining.extend(self.joined(session, (*todo, line), &all, waiting).await?);
            }
        }
        Ok(joining)
    }

    /// Notes which snapshots of new tables have ended, and how.
    async fn look_at_reads(&self, waiting: &mut Waiting) {
        let promised = self.promises.promised.borrow().clone();
        let mut now = promised.clone();
        for (todo, line) in promised.todo() {
            let Todo::ReadBy(snapshot) = todo else { continue };
            match self.outcome(snapshot).await {
                Ok(None) => {}
                Ok(Some(Ok(()))) => now = now.with(Todo::Nothing, &line),
                Ok(Some(Err(detail))) => {
                    let pause = waiting.failures.get(&line).map_or(AGAIN.0, |before| (before.pause * 2).min(AGAIN.1));
                    now = now.with(Todo::Again, &line);
                    waiting.failures.insert(line, Failure { pause, until: Instant::now() + pause, detail });
                }
                Err(error) => debug!(source = %self.promises.source, %error, "what became of a snapshot is not known"),
            }
        }
        if now != promised
            && let Err(error) = self.promises.record(now).await
        {
            debug!(source = %self.promises.source, %error, "what became of a snapshot is not recorded yet");
        }
    }

    /// How a snapshot has ended, if it has: with the reason where it is to be made again.
    async fn outcome(&self, snapshot: u32) -> Result<Option<Result<(), String>>, CaptureError> {
        let shown = self.requests.statuses().borrow().iter().find(|job| job.snapshot == snapshot).cloned();
        let known = match shown {
            Some(job) => Some((job.state, job.detail)),
            None => {
                let jobs = self.promises.control.snapshots(&self.promises.source).await?;
                jobs.into_iter().find(|job| job.snapshot == snapshot).map(|job| (job.state, job.detail))
            }
        };
        Ok(match known {
            Some((JobState::Running | JobState::Paused, _)) => None,
            Some((JobState::Done | JobState::Cancelled, _)) => Some(Ok(())),
            Some((JobState::Failed, detail)) => Some(Err(detail)),
            None => Some(Err("it is not known".to_owned())),
        })
    }

    /// Waits for the writers of what a line has brought, then has it read and settles it. Returns what is left to wait for.
    async fn joined(
        &self,
        session: &Session,
        (todo, line): (Todo, &String),
        all: &[TableInfo],
        waiting: &mut Waiting,
    ) -> Result<Vec<NewTable>, CaptureError> {
        let sent = self.sent_because_of(session, line).await?;
        let writers = match waiting.writers.get(line) {
            _ if todo != Todo::New => Vec::new(),
            Some(writers) => still_running(session, writers).await?,
            None => {
                let oids: Vec<u32> = sent.iter().copied().chain(table_oid(line)).collect();
                waits_for_writers(session, &oids).await?
            }
        };
        waiting.writers.insert(line.clone(), writers.clone());
        let followed = all.iter().filter(|table| sent.contains(&table.oid) && self.tables.matches(&table.name));
        let followed: Vec<_> = followed.collect();
        let because = |detail: String| {
            let new = |table: &&TableInfo| NewTable { table: table.name.clone(), detail: detail.clone() };
            Ok(followed.iter().map(new).collect())
        };
        if !writers.is_empty() {
            return because(waits_for(&writers));
        }
        let failure = waiting.failures.get(line).filter(|failure| failure.until > Instant::now());
        if let Some(Failure { detail, .. }) = failure {
            return because(format!("published; a snapshot of it has failed, and another follows: {detail}"));
        }
        let mut names: Vec<TableName> = Vec::new();
        if self.reads {
            if followed.iter().any(|table| !table.readable) {
                return because(
                    "published; to read its rows, the role needs SELECT on it and USAGE on its schema".to_owned(),
                );
            }
            names.extend(followed.iter().map(|table| table.name.clone()));
        }
        Ok(match self.settle(line, names).await {
            Ok(()) => Vec::new(),
            Err(detail) => return because(detail),
        })
    }

    /// The published tables that a line stands for: a table, all of its partitions, or all of a schema.
    async fn sent_because_of(&self, session: &Session, line: &str) -> Result<Vec<u32>, CaptureError> {
        let (tables, schemas) = (table_oid(line), member_oid(line, "schema"));
        let of = (tables.as_slice(), schemas.as_slice());
        Ok(sent_because_of(session, &self.promises.publication, of).await?)
    }

    /// Starts a snapshot of the tables, where there are any, and records that the past of the line is settled. Else says why not
    /// yet.
    async fn settle(&self, line: &str, mut tables: Vec<TableName>) -> Result<(), String> {
        let promised = self.promises.promised.borrow().clone();
        if tables.is_empty() {
            let settled = promised.with(Todo::Nothing, line);
            return self.promises.record(settled).await.map_err(|error| error.to_string());
        }
        let running =
            self.requests.statuses().borrow().iter().filter(|job| job.new_tables && !job.state.has_ended()).count();
        if running >= SNAPSHOTS_MAX {
            return Err("published; its snapshot starts after those of other new tables".to_owned());
        }
        tables.sort_unstable();
        let new = NewTables { tables, epoch: self.epoch, promised, line: line.to_owned() };
        let recorded = self.requests.start_new(new).await.map_err(|error| error.to_string())?;
        self.promises.recorded(recorded);
        Ok(())
    }

    /// What is left out is logged once, also over connections.
    fn show(&self, left_out: &[NewTable], joining: Vec<NewTable>) {
        let before = self.link.subscribe().borrow().new_tables.clone();
        for NewTable { table, detail } in left_out.iter().filter(|new| !before.contains(new)) {
            warn!(source = %self.promises.source, %table, detail, "a table that is to be captured is not published");
        }
        // What someone has added since it was looked at joins now.
        let joins = |new: &&NewTable| joining.iter().any(|joined| joined.table == new.table);
        let mut new_tables: Vec<NewTable> = left_out.iter().filter(|new| !joins(new)).cloned().collect();
        new_tables.extend(joining);
        new_tables.sort_unstable_by(|a, b| a.table.cmp(&b.table));
        self.link.new_tables(new_tables);
    }
}

/// A session that waits for no lock longer than that.
async fn connect(config: &ConnectConfig) -> Result<Session, CaptureError> {
    let session = Session::connect(config).await?;
    set_lock_timeout(&session, LOCK_TIMEOUT).await?;
    Ok(session)
}

fn table_oid(line: &str) -> Option<u32> {
    member_oid(line, "table")
}

fn member_oid(line: &str, kind: &str) -> Option<u32> {
    let mut words = line.split(' ');
    (words.next() == Some(kind)).then(|| words.next()?.parse().ok()).flatten()
}

fn waits_for(writers: &[Writer]) -> String {
    let name = |writer: &Writer| match writer.pid {
        Some(pid) => format!("pid {pid}"),
        None => {
            let xids: Vec<String> = writer.xids.iter().map(ToString::to_string).collect();
            format!("prepared transaction {}, which ends by COMMIT PREPARED or ROLLBACK PREPARED", xids.join(" "))
        }
    };
    let first: Vec<String> = writers.iter().take(3).map(name).collect();
    let more = if writers.len() > first.len() { ", and others" } else { "" };
    format!(
        "published; it is read when the transactions have ended that may have written to it before: {}{more}",
        first.join(", ")
    )
}
