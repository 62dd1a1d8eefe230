//! Snapshots amid everything that goes wrong are exact: writers of all kinds, several subscribers, a server killed with -9,
//! PostgreSQL restarted, connections terminated, commits that are stuck for want of a synchronous standby. At each snapshot's end a subscriber's copy is what a replay of the whole stream
//! says of that position; at times the writers pause, and it is what PostgreSQL says.

use anyhow::Result;
use tidegate_integration_tests::{Cluster, Seed, Server, ServerConfig, Stop, Writers, keyed_tables, keyed_transaction};

use crate::snapshot_crowd::{Disturbance, Origin, Scene, SnapshotCrowd};

/// Snapshots in one run.
const SNAPSHOTS: u64 = 100;
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

#[tokio::test(flavor = "multi_thread")]
async fn every_snapshot_is_exact() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("exact").await?;
    let (tables, rows) = keyed_tables();
    // Of the server's own sessions: what it records must not be stuck. The writers say for themselves.
    database.execute("alter database exact set synchronous_commit = local").await?;
    database.execute(tables).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB}".to_owned());
    let mut server = Server::start(config).await?;
    let mut crowd = SnapshotCrowd::new(server.endpoint(), Origin::Postgres, SNAPSHOTS);
    database.execute(&rows).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), keyed_transaction);
    crowd.subscribe(&seed, SUBSCRIBERS);
    let mut scene = Scene { cluster: &mut cluster, server: &mut server, writers: &writers, database: "exact" };
    crowd.disturb_until_done(&mut scene, &mut random, (1..6, &DISTURBANCES)).await?;
    crowd.must_equal_postgres(&scene).await?;
    crowd.finish().await?;
    writers.stop().await;
    Ok(())
}
