//! Snapshots amid everything that goes wrong are exact: writers of all kinds, several subscribers, a server killed with -9,
//! PostgreSQL restarted, connections terminated. At each snapshot's end a subscriber's copy is what a replay of the whole stream
//! says of that position; at times the writers pause, and it is what PostgreSQL says.
//!
//! `TIDEGATE_TEST_SNAPSHOTS` asks for more than the usual number.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{Client, Position, ResetReason, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, HeldRow, HeldTable, Replica, Seed, Server, ServerConfig, Stop,
    Touched, held_by_postgres, must_equal,
};
use tokio::{
    sync::{RwLock, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Snapshots in one run.
const SNAPSHOTS: u64 = 100;
const SUBSCRIBERS: u64 = 5;
const WRITERS: u64 = 4;
/// Name, columns of the key.
const TABLES: [(&str, &[&str]); 3] =
    [("public.account", &["id"]), ("public.pair", &["a", "b"]), ("public.thing", &["id"])];

const SCHEMA: &str = "
create table account (id bigint primary key, name text, note text);
alter table account alter note set storage external;
create table pair (b int, a text, v bigint, primary key (a, b));
create table thing (id uuid primary key, v int, body text);
alter table thing alter body set storage external;
insert into account select n, 'n' || n, case when n % 3 = 0 then repeat('x' || n, 900) end from generate_series(1, 4000) n;
insert into pair select n % 20, 'k' || n / 20, n from generate_series(1, 3000) n;
insert into thing select md5(n::text)::uuid, n, case when n % 2 = 0 then repeat('y' || n, 800) end from generate_series(1, 2000) n";

/// What became of a row, and where: None when it was gone.
type States = Vec<(Position, Option<HeldRow>)>;

/// Every state of every row, by table and key, from a replay of the whole stream.
#[derive(Default)]
struct Replay {
    rows: Mutex<BTreeMap<String, BTreeMap<Vec<String>, States>>>,
}

impl Replay {
    fn committed(&self, copier: &Copier) {
        let mut rows = self.rows.lock().expect("no panic holds it");
        for touched in &copier.touched {
            match touched {
                Touched::Row(name, key) => {
                    let row = copier.replica.table_row(name, key);
                    rows.entry(name.clone()).or_default().entry(key.clone()).or_default().push((copier.position, row));
                }
                Touched::Table(name) => {
                    for (key, states) in rows.entry(name.clone()).or_default() {
                        states.push((copier.position, copier.replica.table_row(name, key)));
                    }
                }
            }
        }
    }

    fn at(&self, name: &str, position: Position) -> HeldTable {
        let rows = self.rows.lock().expect("no panic holds it");
        let state = |states: &Vec<(Position, Option<HeldRow>)>| {
            states.iter().take_while(|(at, _)| *at <= position).last().and_then(|(_, row)| row.clone())
        };
        let keys = rows.get(name).into_iter().flatten();
        keys.filter_map(|(key, states)| Some((key.clone(), state(states)?))).collect()
    }
}

/// What the parts of the test share.
struct Stage {
    endpoint: String,
    replay: Replay,
    replayed: watch::Sender<Position>,
    ended: AtomicU64,
    resumed: AtomicU64,
    cancelled: AtomicU64,
    goal: u64,
    /// A writer holds it while it writes a transaction.
    writing: RwLock<()>,
    stop: CancellationToken,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_is_exact() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("exact").await?;
    let (tables, rows) = SCHEMA.split_once("insert").context("rows follow")?;
    database.execute(tables).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB}".to_owned());
    let mut server = Server::start(config).await?;
    let goal = std::env::var("TIDEGATE_TEST_SNAPSHOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(SNAPSHOTS);
    let stage = Arc::new(Stage {
        endpoint: server.endpoint(),
        replay: Replay::default(),
        replayed: watch::Sender::new(Position::ZERO),
        ended: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        cancelled: AtomicU64::new(0),
        goal,
        writing: RwLock::new(()),
        stop: CancellationToken::new(),
    });
    let mut replaying = JoinSet::new();
    replaying.spawn(replay(Arc::clone(&stage)));
    database.execute(&format!("insert{rows}")).await?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(Arc::clone(&stage), database.url().to_owned(), seed.generator(10 + writer)));
    }
    let mut subscribers = JoinSet::new();
    for subscriber in 0..SUBSCRIBERS {
        subscribers.spawn(subscribe(Arc::clone(&stage), seed.generator(100 + subscriber)));
    }
    let mut round = 0;
    while stage.ended.load(Relaxed) < goal {
        until_ended(&stage, random.random_range(1..6), &mut subscribers, &mut replaying).await?;
        let what = disturb(&mut random, &mut cluster, &mut server, &stage).await?;
        round += 1;
        println!("round {round}: {what} after {} snapshots", stage.ended.load(Relaxed));
    }
    while let Some(ended) = subscribers.join_next().await {
        ended??;
    }
    quiet(&cluster, &stage).await?;
    stage.stop.cancel();
    while writers.join_next().await.is_some() {}
    let (resumed, cancelled) = (stage.resumed.load(Relaxed), stage.cancelled.load(Relaxed));
    println!("{} snapshots were exact, {resumed} resumed by token, {cancelled} cancelled", stage.ended.load(Relaxed));
    Ok(())
}

/// Waits until so many more snapshots have ended.
async fn until_ended(
    stage: &Stage,
    count: u64,
    subscribers: &mut JoinSet<Result<()>>,
    replaying: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let goal = (stage.ended.load(Relaxed) + count).min(stage.goal);
    let waiting = tidegate_integration_tests::within("snapshots to end", || async {
        Ok((stage.ended.load(Relaxed) >= goal).then_some(()))
    });
    tokio::select! {
        waited = waiting => waited,
        Some(ended) = subscribers.join_next() => {
            ended??;
            Ok(())
        }
        Some(ended) = replaying.join_next() => ended?.and_then(|()| bail!("the replay ended")),
    }
}

/// The replay: a subscriber without a snapshot, from the first change on.
async fn replay(stage: Arc<Stage>) -> Result<()> {
    let mut copier = Copier::new(&stage.endpoint, &[], Start::Earliest);
    loop {
        match copier.next().await? {
            Arrival::Committed(_) => stage.replay.committed(&copier),
            Arrival::Progress => {}
            other => bail!("the replay received {other:?}"),
        }
        stage.replayed.send_replace(copier.position);
    }
}

async fn subscribe(stage: Arc<Stage>, mut random: StdRng) -> Result<()> {
    while stage.ended.load(Relaxed) < stage.goal {
        let tables: Vec<&str> = match random.random_range(0..5_usize) {
            table @ 0..3 => vec![TABLES[table].0],
            3 => TABLES.iter().map(|(name, _)| *name).collect(),
            _ => Vec::new(),
        };
        let mut copier = Copier::new(&stage.endpoint, &tables, Start::Snapshot);
        let checked: Vec<&str> =
            TABLES.iter().map(|(name, _)| *name).filter(|name| tables.is_empty() || tables.contains(name)).collect();
        let running = one_snapshot(&stage, &mut random, &mut copier, &checked);
        tokio::time::timeout(DEADLINE, running)
            .await
            .with_context(|| format!("a snapshot of {tables:?} does not end"))??;
    }
    Ok(())
}

/// From a snapshot's begin to somewhat after its end, or until it is given up.
async fn one_snapshot(stage: &Stage, random: &mut StdRng, copier: &mut Copier, tables: &[&str]) -> Result<()> {
    let mut after_end = None;
    loop {
        match copier.next().await? {
            Arrival::Begun(snapshot) => {
                if random.random_bool(0.05) {
                    let client = Client::connect(stage.endpoint.as_str()).await;
                    // It may have ended, or the server be gone.
                    if let Ok(client) = client
                        && client.cancel_snapshot("", snapshot).await.is_ok()
                    {
                        stage.cancelled.fetch_add(1, Relaxed);
                    }
                }
            }
            Arrival::Committed(_) | Arrival::Progress => match after_end {
                None if random.random_bool(0.02) => {
                    copier.drop_connection();
                    stage.resumed.fetch_add(1, Relaxed);
                }
                None => {}
                Some(0) => {
                    return check(stage, (copier.position, &copier.replica), tables).await.context("after the end");
                }
                Some(left) => after_end = Some(left - 1),
            },
            Arrival::Ended(snapshot) => {
                check(stage, (copier.position, &copier.replica), tables)
                    .await
                    .with_context(|| format!("at the end of snapshot {snapshot}"))?;
                stage.ended.fetch_add(1, Relaxed);
                after_end = Some(random.random_range(0..30_u32));
            }
            Arrival::Reset(ResetReason::SnapshotAbandoned, detail) => {
                ensure!(detail.contains("cancelled"), "a snapshot was given up: {detail}");
                return Ok(());
            }
            Arrival::Abandoned(_, detail) => bail!("no table is new: {detail}"),
            Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
        }
    }
}

/// Is the copy what the replay says of its position?
async fn check(stage: &Stage, (position, held): (Position, &Replica), tables: &[&str]) -> Result<()> {
    let mut replayed = stage.replayed.subscribe();
    tokio::time::timeout(DEADLINE, replayed.wait_for(|at| *at >= position)).await.context("the replay is stuck")??;
    for name in tables {
        must_equal(&format!("{name} at {position}"), &held.table(name), &stage.replay.at(name, position))?;
    }
    Ok(())
}

/// While nobody writes, a snapshot is what PostgreSQL says.
async fn quiet(cluster: &Cluster, stage: &Stage) -> Result<()> {
    let _nobody_writes = stage.writing.write().await;
    let copier = loop {
        let mut copier = Copier::new(&stage.endpoint, &[], Start::Snapshot);
        match copier.until_snapshot_end().await {
            Ok(_) => break copier,
            // It was shared with a subscriber who has cancelled it.
            Err(error) if error.to_string().contains("cancelled") => {}
            Err(error) => return Err(error),
        }
    };
    let database = Database::connect(&cluster.url("exact")).await?;
    for (name, key) in TABLES {
        let theirs = held_by_postgres(&database, name, key).await?;
        must_equal(&format!("{name}, quiet"), &copier.replica.table(name), &theirs)?;
    }
    let names: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
    check(stage, (copier.position, &copier.replica), &names).await
}

async fn disturb(
    random: &mut StdRng,
    cluster: &mut Cluster,
    server: &mut Server,
    stage: &Stage,
) -> Result<&'static str> {
    let terminate = |what: &str| {
        format!("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and {what}")
    };
    Ok(match random.random_range(0..10_u32) {
        0 | 1 => {
            server.kill().await?;
            server.launch().await?;
            "server killed"
        }
        2 => {
            cluster.restart(Stop::Fast).await?;
            "PostgreSQL restarted, fast"
        }
        3 | 4 => {
            cluster.restart(Stop::Immediate).await?;
            "PostgreSQL restarted, immediate"
        }
        5 => {
            server.kill().await?;
            cluster.restart(Stop::Immediate).await?;
            server.launch().await?;
            "both crashed"
        }
        6 => {
            let database = Database::connect(&cluster.url("postgres")).await?;
            database.execute(&terminate("backend_type = 'walsender'")).await?;
            "walsender terminated"
        }
        7 => {
            let database = Database::connect(&cluster.url("postgres")).await?;
            let readers = "backend_type = 'client backend' and application_name like 'tidegate%'";
            database.execute(&terminate(readers)).await?;
            "readers terminated"
        }
        8 => {
            server.terminate().await?;
            server.launch().await?;
            "server stopped in order and started again"
        }
        _ => {
            quiet(cluster, stage).await?;
            "quiet"
        }
    })
}

async fn write(stage: Arc<Stage>, url: String, mut random: StdRng) {
    while !stage.stop.is_cancelled() {
        let Ok(database) = Database::connect(&url).await else {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        };
        database.execute("set lock_timeout = '2s'").await.ok();
        while !stage.stop.is_cancelled() && !database.client().is_closed() {
            let _writing = stage.writing.read().await;
            if database.execute(&transaction(&mut random)).await.is_err() {
                database.execute("rollback").await.ok();
            }
        }
    }
}

/// One transaction as SQL.
fn transaction(random: &mut StdRng) -> String {
    let many = |random: &mut StdRng, count: u32| {
        let changes: Vec<String> = (0..random.random_range(1..count)).map(|_| change(random)).collect();
        changes.join("; ")
    };
    let asynchronous = if random.random_bool(0.3) { "set local synchronous_commit = off; " } else { "" };
    let body = match random.random_range(0..100_u32) {
        0..60 => many(random, 8),
        60..70 => format!("{}; select pg_sleep({})", many(random, 5), random.random_range(0..400_u32) as f64 / 1e3),
        70..75 => return format!("begin; {}; rollback", many(random, 8)),
        75..87 => format!(
            "{}; savepoint a; {}; savepoint b; {}; rollback to {}; {}",
            change(random),
            many(random, 5),
            many(random, 5),
            if random.random_bool(0.5) { "a" } else { "b" },
            many(random, 3)
        ),
        87 => {
            let (table, rows) = match random.random_range(0..3_u32) {
                0 => ("account", "select n, 'after', null from generate_series(1, 2500) n"),
                1 => ("pair", "select n % 20, 'k' || n / 20, -n from generate_series(1, 1500) n"),
                _ => ("thing", "select md5(n::text)::uuid, n, repeat('z' || n, 700) from generate_series(1, 1500) n"),
            };
            format!("truncate {table}; insert into {table} {rows}")
        }
        88..91 => "update account set name = name || '.' where id % 7 = 3".to_owned(),
        91..93 => "delete from thing where v % 50 = 1".to_owned(),
        _ => {
            let id = random.random_range(0..4_500_u32);
            format!(
                "delete from account where id = {id}; insert into account values ({id}, 'again', repeat('w', {})) \
                 on conflict do nothing",
                random.random_range(0..6_000_u32)
            )
        }
    };
    format!("begin; {asynchronous}{body}; commit")
}

fn change(random: &mut StdRng) -> String {
    let (id, other) = (random.random_range(0..4_500_u32), random.random_range(0..4_500_u32));
    match random.random_range(0..11_u32) {
        0 => format!(
            "insert into account values ({id}, 'new', repeat('v{other}', {})) on conflict (id) do update set \
             note = excluded.note",
            random.random_range(0..1_500_u32)
        ),
        // A large note stays as it was, and is not sent.
        1 | 2 => format!("update account set name = 'u{other}' where id = {id}"),
        3 => format!(
            "update account set id = {other}, name = 'moved' where id = {id} and not exists \
             (select from account where id = {other})"
        ),
        4 => format!("delete from account where id = {id}"),
        5 => format!("update pair set v = {other} where a = 'k{}'", id % 150),
        6 => format!("insert into pair values ({}, 'k{}', {other}) on conflict do nothing", other % 25, id % 160),
        7 => format!("delete from pair where a = 'k{}' and b = {}", id % 160, other % 25),
        8 => format!("update thing set v = {other} where id = md5('{}')::uuid", id % 2_200),
        9 => format!(
            "update thing set id = md5('{0}')::uuid where id = md5('{1}')::uuid and not exists \
             (select from thing where id = md5('{0}')::uuid)",
            other % 2_200,
            id % 2_200
        ),
        _ => format!(
            "insert into thing values (md5('{}')::uuid, {other}, repeat('t', {other})) on conflict do nothing",
            id % 2_200
        ),
    }
}
