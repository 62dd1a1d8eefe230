//! A server that stands still for longer than `wal_sender_timeout`, as a paused virtual machine does, goes on where it was.

use anyhow::{Result, ensure};
use tidegate_integration_tests::{Cluster, Ended, Oracle, Recorder, Server, ServerConfig, Signal, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_frozen_beyond_the_senders_timeout_resumes() -> Result<()> {
    let cluster = Cluster::start(&[("wal_sender_timeout", "1s")]).await?;
    let database = cluster.database("frozen").await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let oracle = Oracle::create(&database, server.slot()).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);

    server.process()?.signal(Signal::STOP)?;
    for row in 0..100 {
        database.mark(&format!("meanwhile {row}")).await?;
    }
    let gone =
        format!("select 'gone' from pg_replication_slots where slot_name = '{}' and active_pid is null", server.slot());
    within("PostgreSQL to give the connection up", || database.text(&gone)).await?;
    server.process()?.signal(Signal::CONT)?;

    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    recorder.history().must_equal(&oracle.read(&database).await?)
}
