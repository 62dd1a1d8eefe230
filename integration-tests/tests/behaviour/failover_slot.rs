//! A slot that PostgreSQL itself keeps on the standby (17 and newer): after the promotion the capture goes on from it.

use anyhow::{Context, Result, ensure};
use tidegate_integration_tests::{Cluster, Database, Ended, Recorder, Server, ServerConfig, Stop, within};

const NAME: &str = "failed_over";

/// Waits until the standby holds the slot for good. It takes it over once the slot has moved past where the standby
/// started, so the primary is kept busy.
async fn synced(primary: &Database, standby: &Cluster, slot: &str) -> Result<()> {
    let standby = Database::connect(&standby.url("postgres")).await?;
    let query = format!(
        "select slot_name::text from pg_replication_slots where slot_name = '{slot}' and synced and not temporary \
         and invalidation_reason is null"
    );
    within("the standby to take the slot over", || async {
        primary.execute("insert into busy default values; select pg_log_standby_snapshot()").await?;
        standby.text(&query).await
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_with_a_synced_slot_keeps_the_epoch() -> Result<()> {
    let mut primary = Cluster::start(&[]).await?;
    let database = primary.database(NAME).await?;
    if database.server_version().await? < 17 {
        println!("skipped: failover slots exist from PostgreSQL 17 on");
        return Ok(());
    }
    database.create_marker().await?;
    database.execute("create table busy (n int generated always as identity primary key)").await?;
    database.execute("select pg_create_physical_replication_slot('standby', true)").await?;
    let mut server = Server::start(ServerConfig::of(database.url())).await?;
    let failover = format!("select failover::text from pg_replication_slots where slot_name = '{}'", server.slot());
    ensure!(database.text(&failover).await?.as_deref() == Some("true"), "the slot is not made for failover");
    let mut standby = primary.standby_that_syncs_slots("standby").await?;
    let database = Database::connect(&primary.url(NAME)).await?;
    database.execute("alter system set synchronized_standby_slots = 'standby'").await?;
    database.execute("select pg_reload_conf()").await?;
    server.streaming().await?;
    synced(&database, &standby, server.slot()).await?;
    let epoch = server.status().await?.epoch;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("on both").await?;
    ensure!(recorder.until_marker("on both").await? == Ended::Arrived);

    // The subscriber may not be ahead of the standby, or a promotion would take back what it has seen.
    standby.stop(Stop::Fast).await?;
    database.mark("not on the standby").await?;
    standby.launch().await?;
    ensure!(recorder.until_marker("not on the standby").await? == Ended::Arrived);
    synced(&database, &standby, server.slot()).await?;

    server.kill().await?;
    database.mark("while nobody captures").await?;
    standby.catch_up(&primary).await?;
    primary.stop(Stop::Immediate).await?;
    standby.promote().await?;
    let promoted = Database::connect(&standby.url(NAME)).await?;
    promoted.mark("on the new timeline").await?;
    server.config_mut().url = standby.url(NAME);
    server.launch().await?;
    ensure!(recorder.until_marker("on the new timeline").await? == Ended::Arrived);
    ensure!(server.status().await?.epoch == epoch, "another epoch");

    let written =
        promoted.text("select count(*)::text from (table marker union all select n::text from busy) rows").await?;
    let written: usize = written.context("a count")?.parse()?;
    let changes: Vec<_> = recorder.history().transactions().iter().flat_map(|whole| &whole.changes).collect();
    ensure!(changes.len() == written, "{written} rows were written, {} changes received", changes.len());
    Ok(())
}
