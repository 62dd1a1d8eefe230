//! Looks after what is published while it is captured: promises that are broken, tables that appear, and what joins the
//! publication.
//!
//! ```text
//! a table appears ─▶ Publisher: ALTER PUBLICATION … ADD TABLE ─┐
//!                              someone else adds a table ──────┴▶ recorded as new ─▶ its writers have ended ─▶ snapshot, settled
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
//! again after every crash, at every connection.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidegate_model::{Epoch, TableName, TablePatterns};
use tidegate_postgres::{
    ConnectConfig, PublicationContent, Session, TableInfo, publication_content, sent_because_of, set_lock_timeout,
    snapshot::{Writer, still_running, waits_for_writers},
    tables,
};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::{
    CaptureError, NewTable,
    link::Link,
    promises::{Promised, Promises},
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

/// What looks after the publication during one connection.
pub(crate) struct Joining {
    pub(crate) connect: ConnectConfig,
    pub(crate) link: Arc<Link>,
    pub(crate) promises: Promises,
    pub(crate) publisher: Publisher,
    pub(crate) requests: SnapshotRequests,
    pub(crate) tables: TablePatterns,
    pub(crate) epoch: Epoch,
    /// Snapshots are made of what joins.
    pub(crate) reads: bool,
    pub(crate) seen: PublicationContent,
}

/// Writers that are waited for, by the line that has joined.
type Waiting = BTreeMap<String, Vec<Writer>>;

impl Joining {
    /// Runs until the publication breaks its promises. One that is missing ends the stream by itself.
    ///
    /// Its session is its own: PostgreSQL locks tables to tell which ones a publication sends, and whoever waits behind the
    /// application must hold up nothing else.
    pub(crate) async fn run(mut self) -> CaptureError {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Waiting::new();
        let mut left_out = Vec::new();
        let mut session = None;
        for tick in 0_u32.. {
            ticks.tick().await;
            let looked = async {
                let session = match &session {
                    Some(session) => session,
                    None => session.insert(connect(&self.connect).await?),
                };
                let joining = self.look(session, &mut waiting).await?;
                if tick.is_multiple_of(PUBLISH_EVERY) {
                    left_out = self.publisher.look(session).await?;
                }
                Ok(joining)
            };
            match looked.await {
                Ok(joining) => self.show(&left_out, joining),
                Err(error @ CaptureError::Discontinuity(_)) => return error,
                Err(error) => {
                    // The stream notices by itself what concerns it.
                    debug!(source = %self.promises.source, %error, "the publication cannot be looked at");
                    session = None;
                }
            }
        }
        CaptureError::Protocol("136 years have passed")
    }

    /// Returns the tables whose past is not settled.
    async fn look(&mut self, session: &Session, waiting: &mut Waiting) -> Result<Vec<NewTable>, CaptureError> {
        let Some(now) = publication_content(session, &self.promises.publication).await? else {
            return Ok(Vec::new());
        };
        self.promises.look_after(session, &mut self.seen, now).await?;
        let lines = self.promises.promised.borrow().unsettled();
        waiting.retain(|line, _| lines.contains(line));
        let mut joining = Vec::new();
        if !lines.is_empty() {
            let all = tables(session).await?;
            for line in lines {
                joining.extend(self.joined(session, (line, &all), waiting).await?);
            }
        }
        Ok(joining)
    }

    /// Waits for the writers of what a line has brought, then settles it. Returns what is left to wait for.
    async fn joined(
        &self,
        session: &Session,
        (line, all): (String, &[TableInfo]),
        waiting: &mut Waiting,
    ) -> Result<Vec<NewTable>, CaptureError> {
        let sent = self.sent_because_of(session, &line).await?;
        let writers = match waiting.get(&line) {
            Some(writers) => still_running(session, writers).await?,
            None => {
                let oids: Vec<u32> = sent.iter().copied().chain(table_oid(&line)).collect();
                waits_for_writers(session, &oids).await?
            }
        };
        waiting.insert(line.clone(), writers.clone());
        let followed = all.iter().filter(|table| sent.contains(&table.oid) && self.tables.matches(&table.name));
        let followed: Vec<_> = followed.collect();
        let because = |detail: String| {
            let new = |table: &&TableInfo| NewTable { table: table.name.clone(), detail: detail.clone() };
            Ok(followed.iter().map(new).collect())
        };
        if !writers.is_empty() {
            return because(waits_for(&writers));
        }
        let mut names: Vec<TableName> = Vec::new();
        if self.reads {
            if followed.iter().any(|table| !table.readable) {
                return because(
                    "published; to read its rows, the role needs SELECT on it and USAGE on its schema".to_owned(),
                );
            }
            for table in followed.iter().filter(|table| !table.has_key()) {
                let source = &self.promises.source;
                warn!(%source, table = %table.name, "a new table has no key: it is captured from now on, and not read");
            }
            names.extend(followed.iter().filter(|table| table.has_key()).map(|table| table.name.clone()));
        }
        Ok(match self.settle(&line, names).await {
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
        let promised: Promised = self.promises.promised.borrow().with_settled(line);
        if tables.is_empty() {
            return self.promises.record(promised).await.map_err(|error| error.to_string());
        }
        let running =
            self.requests.statuses().borrow().iter().filter(|job| job.new_tables && !job.state.has_ended()).count();
        if running >= SNAPSHOTS_MAX {
            return Err("published; its snapshot starts after those of other new tables".to_owned());
        }
        tables.sort_unstable();
        let recorded = (promised.oid, promised.content.to_string());
        let new = NewTables { tables, epoch: self.epoch, promised: recorded };
        self.requests.start_new(new).await.map_err(|error| error.to_string())?;
        self.promises.recorded(promised);
        Ok(())
    }

    /// What is left out is logged once, also over connections.
    fn show(&self, left_out: &[NewTable], joining: Vec<NewTable>) {
        let before = self.link.subscribe().borrow().new_tables.clone();
        for NewTable { table, detail } in left_out.iter().filter(|new| !before.contains(new)) {
            warn!(source = %self.promises.source, %table, detail, "a table that is to be captured is not published");
        }
        let mut new_tables: Vec<NewTable> = left_out.iter().cloned().chain(joining).collect();
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
