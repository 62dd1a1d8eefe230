//! Snapshots of mirrored tables are made of the mirror: exact whatever happens to the server and to connections, and without a
//! query to PostgreSQL, which may be down.

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::{Client, Event, MirrorState, SourceStatus, Start, Subscription, Token};
use tidegate_integration_tests::{
    Cluster, Copier, DEADLINE, Database, KEYED_TABLES, Seed, Server, ServerConfig, Stop, Writers, held_by_postgres,
    keyed_tables, keyed_transaction, must_equal, tidegate,
};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

use crate::mirror::must_be_verified;
use crate::snapshot_crowd::{Disturbance, OF_MIRROR, Scene, SnapshotCrowd, Wishes};

/// Snapshots in one run.
const SNAPSHOTS: u64 = 60;
const SUBSCRIBERS: u64 = 4;
const WRITERS: u64 = 3;
const DISTURBANCES: [Disturbance; 11] = [
    Disturbance::HoldCommits,
    Disturbance::HoldCommits,
    Disturbance::ReleaseCommits,
    Disturbance::KillServer,
    Disturbance::KillServer,
    Disturbance::KillServer,
    Disturbance::KillServer,
    Disturbance::RestartServer,
    Disturbance::RestartPostgres(Stop::Immediate),
    Disturbance::CrashBoth,
    Disturbance::Pause,
];

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
    // Of the server's own sessions: what it records must not be stuck. The writers say for themselves.
    database.execute("alter database woven set synchronous_commit = local").await?;
    database.execute(tables).await?;
    let mut server = Server::start(config_of(&database)).await?;
    let wishes = Wishes { mirrored: &["public.account", "public.pair", "public.thing"], ..Wishes::default() };
    let mut crowd = SnapshotCrowd::new(server.endpoint(), wishes, SNAPSHOTS);
    database.execute(&rows).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), keyed_transaction);
    crowd.subscribe(&seed, SUBSCRIBERS);
    let mut scene = Scene { cluster: &mut cluster, server: &mut server, writers: &writers, database: "woven" };
    crowd.disturb_until_done(&mut scene, &mut random, (2..8, &DISTURBANCES)).await?;
    crowd.must_equal_postgres(&scene).await?;
    crowd.finish(SNAPSHOTS).await?;
    writers.stop().await;
    for (table, _) in KEYED_TABLES {
        must_be_verified(&server, table).await?;
    }
    Ok(())
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

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_a_place_within_that_no_server_states_is_refused() -> Result<()> {
    let database = Cluster::shared().await?.database("made_token").await?;
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    database.execute(&rows).await?;
    let server = Server::start(config_of(&database)).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    let client = Client::connect(server.endpoint()).await?;
    let subscription = || Subscription::tables(["pair"]);
    let mut events = client.subscribe(subscription().from(Start::Snapshot));
    let token = loop {
        match timeout(DEADLINE, events.next()).await.context("no commit")?.context("the end")?? {
            Event::Commit { token, .. } => break token.to_string(),
            reset @ Event::Reset { .. } => bail!("{reset:?}"),
            _ => {}
        }
    };
    let (place, _) = token.split_once(':').context("a position")?;
    // The last that a chunk could have: the end and the turns to other definitions stand behind it.
    let made: Token = format!("{place}:{}", 3 * (1_u32 << 30) - (1 << 16) - 2).parse()?;
    let answer = timeout(DEADLINE, client.subscribe(subscription().from(Start::Token(made))).next()).await?;
    let Some(Err(error)) = answer else { bail!("{answer:?} instead of an error") };
    ensure!(error.to_string().contains("malformed token"), "{error}");
    Ok(())
}
