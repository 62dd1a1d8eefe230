//! Snapshots of mirrored tables are made of the mirror: exact whatever happens to the server and to connections, and without a
//! query to PostgreSQL, which may be down.
//!
//! `TIDEGATE_TEST_SNAPSHOTS` asks for more than the usual number.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{MirrorState, SourceStatus, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, KEYED_TABLES, KeyedWriters, Replay, Seed, Server, ServerConfig, Stop,
    held_by_postgres, keyed_tables, must_equal, tidegate, within,
};
use tokio::task::JoinSet;

/// Snapshots in one run.
const SNAPSHOTS: u64 = 60;
const SUBSCRIBERS: u64 = 4;
const WRITERS: u64 = 3;
/// Snapshots out of the mirror have numbers from here on.
const OF_MIRROR: u32 = 1 << 31;

/// What the parts of the test share.
struct Stage {
    endpoint: String,
    replay: Replay,
    writers: KeyedWriters,
    ended: AtomicU64,
    resumed: AtomicU64,
    goal: u64,
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.len() == KEYED_TABLES.len()
        && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

fn config_of(database: &Database) -> ServerConfig {
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [account, pair, thing]".to_owned());
    // Small enough that large transactions go to the mirror's engine in parts.
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB, mirror: 1MiB}".to_owned());
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_out_of_the_mirror_is_exact_whatever_happens_to_the_server() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("woven").await?;
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    let mut server = Server::start(config_of(&database)).await?;
    let goal = std::env::var("TIDEGATE_TEST_SNAPSHOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(SNAPSHOTS);
    let stage = Arc::new(Stage {
        endpoint: server.endpoint(),
        replay: Replay::default(),
        writers: KeyedWriters::default(),
        ended: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        goal,
    });
    let mut tasks = JoinSet::new();
    let replayed = Arc::clone(&stage);
    tasks.spawn(async move { replayed.replay.run(&replayed.endpoint).await });
    database.execute(&rows).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(stage.writers.clone().write(database.url().to_owned(), seed.generator(10 + writer)));
    }
    for subscriber in 0..SUBSCRIBERS {
        tasks.spawn(subscribe(Arc::clone(&stage), seed.generator(100 + subscriber)));
    }
    while stage.ended.load(Relaxed) < goal {
        until_ended(&stage, random.random_range(2..8), &mut tasks).await?;
        let what = disturb(&mut random, &mut cluster, &mut server, &stage).await?;
        println!("{what} after {} snapshots", stage.ended.load(Relaxed));
    }
    quiet(&cluster, &stage).await?;
    stage.writers.stop();
    while writers.join_next().await.is_some() {}
    println!("{} snapshots were exact, {} resumed by token", stage.ended.load(Relaxed), stage.resumed.load(Relaxed));
    Ok(())
}

/// Waits until so many more snapshots have ended.
async fn until_ended(stage: &Stage, count: u64, tasks: &mut JoinSet<Result<()>>) -> Result<()> {
    let goal = (stage.ended.load(Relaxed) + count).min(stage.goal);
    let mut waiting =
        std::pin::pin!(within("snapshots to end", || async { Ok((stage.ended.load(Relaxed) >= goal).then_some(())) }));
    loop {
        tokio::select! {
            waited = &mut waiting => return waited,
            Some(ended) = tasks.join_next() => ended??,
        }
    }
}

async fn subscribe(stage: Arc<Stage>, mut random: StdRng) -> Result<()> {
    while stage.ended.load(Relaxed) < stage.goal {
        let tables: Vec<&str> = match random.random_range(0..5_usize) {
            table @ 0..3 => vec![KEYED_TABLES[table].0],
            3 => KEYED_TABLES.iter().map(|(name, _)| *name).collect(),
            _ => Vec::new(),
        };
        let is_checked = |name: &&str| tables.is_empty() || tables.contains(name);
        let checked: Vec<&str> = KEYED_TABLES.iter().map(|(name, _)| *name).filter(is_checked).collect();
        let mut copier = Copier::new(&stage.endpoint, &tables, Start::Snapshot);
        let running = one_snapshot(&stage, &mut random, &mut copier, &checked);
        tokio::time::timeout(DEADLINE, running)
            .await
            .with_context(|| format!("a snapshot of {tables:?} does not end"))??;
    }
    Ok(())
}

/// From a snapshot's begin to somewhat after its end, over lost connections.
async fn one_snapshot(stage: &Stage, random: &mut StdRng, copier: &mut Copier, tables: &[&str]) -> Result<()> {
    let (mut begun, mut after_end) = (None, None);
    loop {
        match copier.next().await? {
            Arrival::Begun(snapshot) => {
                ensure!(snapshot >= OF_MIRROR, "snapshot {snapshot} was read from PostgreSQL");
                ensure!(begun.replace(snapshot).is_none(), "it begins twice");
            }
            Arrival::Committed(_) | Arrival::Progress => match after_end {
                None if random.random_bool(0.03) => {
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
                Some(left) => {
                    after_end = Some(left - 1);
                    // A token from behind the end goes on in the log.
                    if random.random_bool(0.1) {
                        copier.drop_connection();
                    }
                }
            },
            Arrival::Ended(snapshot) => {
                ensure!(begun == Some(snapshot) && after_end.is_none(), "an end of {snapshot} after {begun:?}");
                stage
                    .replay
                    .check((copier.position, &copier.replica), tables)
                    .await
                    .with_context(|| format!("at the end of snapshot {snapshot}"))?;
                stage.ended.fetch_add(1, Relaxed);
                after_end = Some(random.random_range(0..30_u32));
            }
            Arrival::Abandoned(snapshot, detail) => bail!("snapshot {snapshot}: {detail}"),
            Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
        }
    }
}

/// While nobody writes, a snapshot is what PostgreSQL says.
async fn quiet(cluster: &Cluster, stage: &Stage) -> Result<()> {
    let _nobody_writes = stage.writers.pause().await;
    let database = Database::connect(&cluster.url("woven")).await?;
    let mut copier = Copier::new(&stage.endpoint, &[], Start::Snapshot);
    copier.until_snapshot_end().await?;
    copier.until_caught_up(&database).await?;
    for (name, key) in KEYED_TABLES {
        let theirs = held_by_postgres(&database, name, key).await?;
        must_equal(&format!("{name}, quiet"), &copier.replica.table(name), &theirs)?;
    }
    Ok(())
}

async fn disturb(
    random: &mut StdRng,
    cluster: &mut Cluster,
    server: &mut Server,
    stage: &Stage,
) -> Result<&'static str> {
    Ok(match random.random_range(0..8_u32) {
        0..4 => {
            server.kill().await?;
            server.launch().await?;
            "server killed"
        }
        4 => {
            server.terminate().await?;
            server.launch().await?;
            "server stopped in order and started again"
        }
        5 => {
            cluster.restart(Stop::Immediate).await?;
            "PostgreSQL restarted"
        }
        6 => {
            server.kill().await?;
            cluster.restart(Stop::Immediate).await?;
            server.launch().await?;
            "both crashed"
        }
        _ => {
            quiet(cluster, stage).await?;
            "quiet"
        }
    })
}

/// How often PostgreSQL has read the tables.
async fn scans(database: &Database) -> Result<String> {
    database.execute("select pg_stat_clear_snapshot()").await?;
    let query = "select string_agg(relname || ' ' || seq_scan || ' ' || coalesce(idx_scan, 0), ', ' order by relname) \
                 from pg_stat_user_tables where schemaname = 'public'";
    database.text(query).await?.context("statistics")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_mirrored_tables_needs_no_postgres() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let database = cluster.database("down").await?;
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    let mut server = Server::start(config_of(&database)).await?;
    database.execute(&rows).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    database.execute("delete from account where id % 5 = 0; update pair set v = -v where b = 3").await?;
    let end: tidegate_model::Lsn = database
        .text("select pg_current_wal_flush_lsn()::text")
        .await?
        .context("an LSN")?
        .parse()
        .ok()
        .context("an LSN")?;
    let has_all = |status: &SourceStatus| status.received_lsn.parse().is_ok_and(|lsn: tidegate_model::Lsn| lsn >= end);
    server.until("shop", "everything", has_all).await?;
    let mut theirs = Vec::new();
    for (name, key) in KEYED_TABLES {
        theirs.push((name, held_by_postgres(&database, name, key).await?));
    }
    let holds = async |endpoint: &str| -> Result<Copier> {
        let mut copier = Copier::new(endpoint, &[], Start::Snapshot);
        ensure!(copier.until_snapshot_end().await? >= OF_MIRROR);
        theirs.iter().try_for_each(|(name, rows)| must_equal(name, &copier.replica.table(name), rows))?;
        Ok(copier)
    };
    // What a session has done is counted when it ends.
    database.execute("select pg_stat_force_next_flush()").await.ok();
    let before = scans(&database).await?;
    holds(&server.endpoint()).await?;
    ensure!(scans(&database).await? == before, "PostgreSQL has read the tables");

    cluster.stop(Stop::Fast).await?;
    let mut copier = holds(&server.endpoint()).await?;
    let arguments = ["tail", "--server", &server.endpoint(), "--table", "pair", "--from", "snapshot", "--json"];
    let count = theirs[1].1.len().to_string();
    let printed = tidegate(&[&arguments[..], &["--limit", &count]].concat()).await?;
    let lines: std::collections::BTreeSet<&[u8]> = printed.stdout.split(|byte| *byte == b'\n').collect();
    ensure!(lines.len() == theirs[1].1.len() + 1, "{}", String::from_utf8_lossy(&printed.stderr));
    server.kill().await?;
    server.launch().await?;
    holds(&server.endpoint()).await?;

    cluster.launch().await?;
    let database = Database::connect(&cluster.url("down")).await?;
    database.execute("insert into account values (-1, 'new', null)").await?;
    let change = async {
        while copier.replica.table_row("public.account", &["-1".to_owned()]).is_none() {
            copier.next().await?;
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, change).await.context("the change does not come")?
}
