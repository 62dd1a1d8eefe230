//! Snapshots of all kinds at once, amid everything that goes wrong, are exact: of tables with keys and without, of parts of tables, out of
//! PostgreSQL and out of the mirror; with writers of all kinds, several subscribers, a server killed with -9,
//! PostgreSQL restarted, connections terminated, commits that are stuck for want of a synchronous standby. At each snapshot's end a subscriber's
//! copy is what a replay of the whole stream says of that position; at times the writers pause, and it is what PostgreSQL says.

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{MirrorState, SourceStatus};
use tidegate_integration_tests::{
    Cluster, Seed, Server, ServerConfig, Stop, Writers, keyed_tables, keyed_transaction, keyless_tables,
    keyless_transaction,
};

use crate::mirror::must_be_verified;
use crate::snapshot_crowd::{Disturbance, Scene, SnapshotCrowd, Wishes};

/// Snapshots in one run.
const SNAPSHOTS: u64 = 80;
const SUBSCRIBERS: u64 = 5;
const WRITERS: u64 = 4;
const DISTURBANCES: [Disturbance; 14] = [
    Disturbance::HoldCommits,
    Disturbance::HoldCommits,
    Disturbance::HoldCommits,
    Disturbance::ReleaseCommits,
    Disturbance::KillServer,
    Disturbance::KillServer,
    Disturbance::RestartServer,
    Disturbance::RestartPostgres(Stop::Fast),
    Disturbance::RestartPostgres(Stop::Immediate),
    Disturbance::RestartPostgres(Stop::Immediate),
    Disturbance::CrashBoth,
    Disturbance::Terminate("backend_type = 'walsender'"),
    Disturbance::Terminate("backend_type = 'client backend' and application_name like 'tidegate%'"),
    Disturbance::Pause,
];

/// Of every kind. Of what is mirrored, `pair`, there are also snapshots with others out of PostgreSQL.
const WISHES: Wishes = Wishes { mirrored: &["public.pair"], keyless: true, parts: true };

fn transaction(random: &mut StdRng) -> String {
    if random.random_bool(0.3) { keyless_transaction(random) } else { keyed_transaction(random) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_is_exact() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("exact").await?;
    let ((tables, rows), (keyless, keyless_rows)) = (keyed_tables(), keyless_tables());
    // Of the server's own sessions: what it records must not be stuck. The writers say for themselves.
    database.execute("alter database exact set synchronous_commit = local").await?;
    database.execute(tables).await?;
    database.execute(keyless).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB, mirror: 1MiB}".to_owned());
    config.source_lines.push("mirror: [pair]".to_owned());
    let mut server = Server::start(config).await?;
    let mut crowd = SnapshotCrowd::new(server.endpoint(), WISHES, SNAPSHOTS);
    database.execute(&rows).await?;
    database.execute(&keyless_rows).await?;
    let is_complete = |status: &SourceStatus| {
        status.mirror.len() == 1 && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
    };
    server.until("shop", "a complete mirror", is_complete).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), transaction);
    crowd.subscribe(&seed, SUBSCRIBERS);
    let mut scene = Scene { cluster: &mut cluster, server: &mut server, writers: &writers, database: "exact" };
    crowd.disturb_until_done(&mut scene, &mut random, (1..6, &DISTURBANCES)).await?;
    crowd.must_equal_postgres(&scene).await?;
    crowd.finish(SNAPSHOTS).await?;
    writers.stop().await;
    must_be_verified(&server, "pair").await
}
