//! Snapshots amid everything that goes wrong are exact: writers of all kinds, several subscribers, a server killed with -9,
//! PostgreSQL restarted, connections terminated. At each snapshot's end a subscriber's copy is what a replay of the whole stream
//! says of that position; at times the writers pause, and it is what PostgreSQL says.
//!
//! `TIDEGATE_TEST_SNAPSHOTS` asks for more than the usual number.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{Client, ResetReason, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, KEYED_TABLES, KeyedWriters, Replay, Seed, Server, ServerConfig, Stop,
    held_by_postgres, keyed_tables, must_equal,
};
use tokio::task::JoinSet;

/// Snapshots in one run.
const SNAPSHOTS: u64 = 100;
const SUBSCRIBERS: u64 = 5;
const WRITERS: u64 = 4;
/// What the parts of the test share.
struct Stage {
    endpoint: String,
    replay: Replay,
    ended: AtomicU64,
    resumed: AtomicU64,
    cancelled: AtomicU64,
    goal: u64,
    writers: KeyedWriters,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_is_exact() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("exact").await?;
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB}".to_owned());
    let mut server = Server::start(config).await?;
    let goal = std::env::var("TIDEGATE_TEST_SNAPSHOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(SNAPSHOTS);
    let stage = Arc::new(Stage {
        endpoint: server.endpoint(),
        replay: Replay::default(),
        ended: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        cancelled: AtomicU64::new(0),
        goal,
        writers: KeyedWriters::default(),
    });
    let mut replaying = JoinSet::new();
    let replayed = Arc::clone(&stage);
    replaying.spawn(async move { replayed.replay.run(&replayed.endpoint).await });
    database.execute(&rows).await?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(stage.writers.clone().write(database.url().to_owned(), seed.generator(10 + writer)));
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
    stage.writers.stop();
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

async fn subscribe(stage: Arc<Stage>, mut random: StdRng) -> Result<()> {
    while stage.ended.load(Relaxed) < stage.goal {
        let tables: Vec<&str> = match random.random_range(0..5_usize) {
            table @ 0..3 => vec![KEYED_TABLES[table].0],
            3 => KEYED_TABLES.iter().map(|(name, _)| *name).collect(),
            _ => Vec::new(),
        };
        let mut copier = Copier::new(&stage.endpoint, &tables, Start::Snapshot);
        let checked: Vec<&str> = KEYED_TABLES
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| tables.is_empty() || tables.contains(name))
            .collect();
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
                    return stage
                        .replay
                        .check((copier.position, &copier.replica), tables)
                        .await
                        .context("after the end");
                }
                Some(left) => after_end = Some(left - 1),
            },
            Arrival::Ended(snapshot) => {
                stage
                    .replay
                    .check((copier.position, &copier.replica), tables)
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

/// While nobody writes, a snapshot is what PostgreSQL says.
async fn quiet(cluster: &Cluster, stage: &Stage) -> Result<()> {
    let _nobody_writes = stage.writers.pause().await;
    let mut copier = loop {
        let mut copier = Copier::new(&stage.endpoint, &[], Start::Snapshot);
        match copier.until_snapshot_end().await {
            Ok(_) => break copier,
            // It was shared with a subscriber who has cancelled it.
            Err(error) if error.to_string().contains("cancelled") => {}
            Err(error) => return Err(error),
        }
    };
    let database = Database::connect(&cluster.url("exact")).await?;
    // Its snapshot may have begun before the writers paused.
    copier.until_caught_up(&database).await?;
    for (name, key) in KEYED_TABLES {
        let theirs = held_by_postgres(&database, name, key).await?;
        must_equal(&format!("{name}, quiet"), &copier.replica.table(name), &theirs)?;
    }
    let names: Vec<&str> = KEYED_TABLES.iter().map(|(name, _)| *name).collect();
    stage.replay.check((copier.position, &copier.replica), &names).await
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
