//! The mirror of one table is built anew, amid writes to all: the others are left alone. They are not read again, their old rows stay
//! whole at every change, and who subscribes to them hears of nothing.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{MirrorState, SnapshotState, SnapshotStatus, SourceStatus};
use tidegate_integration_tests::{
    Cluster, Database, History, Oracle, Recorder, Seed, Server, ServerConfig, Writers, within,
};
use tokio::{sync::watch, task::JoinSet};

use super::mirror::{INITIAL, WRITTEN, change, must_be_filled, must_be_verified, received, subscribe};

const OTHERS: [&str; 2] = ["public.account", "public.pair"];
const REBUILT: &str = "public.rebuilt";

/// The table that is built anew, with so many rows that reading it takes a second or two.
const TABLE: &str = "
create table rebuilt (id int primary key, k int not null unique, c int, note text);
insert into rebuilt select n, -n, n, 'note ' || n from generate_series(1, 8000) n";

/// Each makes another table of it, or another key, or other rows in silence.
const CHANGES: [&str; 4] = [
    "alter table rebuilt drop constraint rebuilt_pkey, add primary key (k), add unique (id)",
    "drop table rebuilt; create table rebuilt (id int primary key, k int not null unique, c int, note text, more int default 1);
     alter publication PUBLICATION add table rebuilt;
     insert into rebuilt select n, -n, n, 'again ' || n from generate_series(1, 8000) n",
    "alter table rebuilt alter c type text using 'c' || c",
    "create table taken (like rebuilt including all); insert into taken select * from rebuilt where id % 2 = 0;
     alter table rebuilt rename to old; alter table taken rename to rebuilt; alter publication PUBLICATION add table rebuilt;
     drop table old",
];

/// Changes of the others, of the one, and of both at once.
fn transaction(random: &mut StdRng) -> String {
    match random.random_range(0..4_u32) {
        0 | 1 => change(random),
        2 => of_rebuilt(random),
        _ => format!("begin; {}; {}; {}; commit", change(random), of_rebuilt(random), change(random)),
    }
}

fn of_rebuilt(random: &mut StdRng) -> String {
    let (id, other) = (random.random_range(0..9_000_u32), random.random_range(0..9_000_u32));
    match random.random_range(0..4_u32) {
        0 => format!("insert into rebuilt (id, k, note) values ({id}, -{id}, 'new') on conflict do nothing"),
        1 => format!("update rebuilt set note = 'note {other}' where id = {id}"),
        2 => format!("update rebuilt set k = k - 10000 where id = {id}"),
        _ => format!("delete from rebuilt where id = {id}"),
    }
}

/// Who is watched: the server, what it has been asked to read, and what it has asked PostgreSQL for.
struct Watched<'a> {
    cluster: &'a Cluster,
    server: &'a Server,
    /// Of PostgreSQL's log, when everything had been read once.
    log_bytes: usize,
    /// The newest snapshot by then.
    snapshot: u32,
}

impl Watched<'_> {
    /// Statements that read rows of a table, since.
    fn reads(&self, table: &str) -> Result<usize> {
        let log = self.cluster.log()?;
        let (schema, name) = table.split_once('.').context("a qualified name")?;
        let names = [format!("FROM \"{schema}\".\"{name}\""), format!("FROM ONLY \"{schema}\".\"{name}\"")];
        let is_read = |line: &&str| line.contains("COPY (") && names.iter().any(|name| line.contains(name));
        Ok(log.get(self.log_bytes..).context("a log that grows")?.lines().filter(is_read).count())
    }

    /// The snapshots since.
    async fn snapshots(&self) -> Result<Vec<SnapshotStatus>> {
        let all = self.server.client().await?.snapshots("").await?;
        Ok(all.into_iter().filter(|status| status.snapshot > self.snapshot).collect())
    }

    /// One by one: the change, changes of the others while the table is read, and its mirror again.
    async fn rebuilds(&self, database: &Database, ddl: &str, committed: &mut watch::Receiver<usize>) -> Result<()> {
        // One that runs would be made anew, under the same number.
        let before = within("no snapshot to run", || async {
            let all = self.snapshots().await?;
            let runs = |status: &SnapshotStatus| !matches!(status.state(), SnapshotState::Done | SnapshotState::Failed);
            Ok((!all.iter().any(runs)).then_some(all.len()))
        })
        .await?;
        // Those who write may be in the way.
        within("the change", || async {
            let altered = database.execute(&format!("begin; {ddl}; commit")).await;
            if altered.is_err() {
                database.execute("rollback").await?;
            }
            Ok(altered.ok())
        })
        .await?;
        self.server
            .until("shop", "the table is read", |status| state(status, REBUILT) != MirrorState::Complete)
            .await?;
        let reading = self.server.status().await?;
        for other in OTHERS {
            ensure!(state(&reading, other) == MirrorState::Complete, "{other}: {reading:?}");
        }
        received(committed, 20).await?;
        self.server.until("shop", "its mirror again", |status| state(status, REBUILT) == MirrorState::Complete).await?;
        ensure!(self.snapshots().await?.len() > before, "nothing was read");
        Ok(())
    }
}

fn state(status: &SourceStatus, name: &str) -> MirrorState {
    let of_table = status.mirror.iter().find(|table| table.table == name);
    of_table.map_or(MirrorState::Unknown, tidegate_client::MirroredTable::state)
}

/// What a subscriber of the others receives: changes keep their places in their transactions.
fn without_rebuilt(oracle: &History) -> History {
    let mut others = History::default();
    for mut transaction in oracle.transactions().iter().cloned() {
        transaction.changes.retain(|change| !change.what.ends_with(REBUILT));
        others.push(transaction);
    }
    others
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_built_anew_leaves_the_others_alone() -> Result<()> {
    let seed = Seed::from_environment();
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("mirror_rebuilt").await?;
    database.execute(WRITTEN).await?;
    database.execute(TABLE).await?;
    // All that the server asks PostgreSQL for stands in the log, and nothing else does.
    database.execute("create role tidegate superuser login; alter role tidegate set log_statement = 'all'").await?;
    let mut config = ServerConfig::of(&database.url().replace("postgres@", "tidegate@"));
    let publication = config.slot.clone();
    config.source_lines.push("mirror: [account, pair, rebuilt]".to_owned());
    config.source_lines.push("snapshots: {rows_per_second: 8000}".to_owned());
    database.execute(&format!("create publication {publication} for table account, pair, marker, rebuilt")).await?;
    let oracle = Oracle::create(&database, &publication).await?;
    database.execute(INITIAL).await?;
    database.mark("initial").await?;
    let server = Server::start(config).await?;
    let recorder = Recorder::new(server.endpoint()).of_tables(&["account", "pair", "marker"]);
    let mut committed = recorder.committed();
    let mut subscriber = JoinSet::new();
    // It ends with an error if it is reset.
    subscriber.spawn(subscribe(recorder));
    let writers = Writers::start(2, (database.url(), seed), transaction);
    let are_complete = |status: &SourceStatus| {
        OTHERS.iter().chain([&REBUILT]).all(|name| state(status, name) == MirrorState::Complete)
    };
    server.until("shop", "complete mirrors", are_complete).await?;
    let newest = within("their snapshots have ended", || async {
        let all = server.client().await?.snapshots("").await?;
        let is_over = all.len() >= 3 && all.iter().all(|status| status.state() == SnapshotState::Done);
        Ok(is_over.then(|| all.iter().map(|status| status.snapshot).max()).flatten())
    })
    .await?;
    database.mark("complete").await?;
    let log_bytes = cluster.log()?.len();
    let watched = Watched { cluster: &cluster, server: &server, log_bytes, snapshot: newest };

    for ddl in CHANGES {
        received(&mut committed, 30).await?;
        let ddl = ddl.replace("PUBLICATION", &publication);
        watched.rebuilds(&database, &ddl, &mut committed).await.with_context(|| ddl.clone())?;
    }
    received(&mut committed, 30).await?;
    writers.stop().await;

    let names = |status: &SnapshotStatus| status.tables.iter().map(|read| read.table.clone()).collect::<Vec<_>>();
    let read: BTreeSet<String> = watched.snapshots().await?.iter().flat_map(names).collect();
    ensure!(read == BTreeSet::from([REBUILT.to_owned()]), "{read:?} were read again");
    ensure!(watched.reads(REBUILT)? >= CHANGES.len(), "the log does not tell what is read");
    for other in OTHERS {
        ensure!(watched.reads(other)? == 0, "{other} was read again");
    }
    for table in OTHERS.iter().chain([&REBUILT]) {
        must_be_verified(&server, table).await?;
    }
    ensure!(OTHERS.iter().all(|other| watched.reads(other).is_ok_and(|count| count > 0)), "a comparison reads");
    database.mark("the end").await?;
    let history = subscriber.join_next().await.context("spawned above")???;
    must_be_filled(&history, &without_rebuilt(&oracle.read(&database).await?))
}
