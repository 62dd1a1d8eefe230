//! A promoted standby takes the primary's place.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tidegate_client::ResetReason;
use tidegate_integration_tests::{Cluster, Database, Ended, Recorder, Server, ServerConfig, Stop};

const NAME: &str = "promoted";
const SOURCE: &str = "shop";

/// A primary with its standby, and a server and a subscriber that have received a row that the standby has too.
async fn replicated() -> Result<(Cluster, Cluster, Server, Recorder)> {
    let mut primary = Cluster::start(&[]).await?;
    let database = primary.database(NAME).await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);
    let standby = primary.standby().await?;
    server.streaming().await?;
    Ok((primary, standby, server, recorder))
}

/// Writes a row, which arrives.
async fn must_arrive(cluster: &Cluster, recorder: &mut Recorder, name: &str) -> Result<()> {
    Database::connect(&cluster.url(NAME)).await?.mark(name).await?;
    ensure!(recorder.until_marker(name).await? == Ended::Arrived, "{name} was to arrive");
    Ok(())
}

/// The server is started again with the standby, which has been promoted.
async fn follow(standby: &Cluster, server: &mut Server) -> Result<()> {
    server.config_mut().url = standby.url(NAME);
    server.launch().await
}

/// A standby that lacks what was received last is promoted, and its timeline overtakes that position: subscribers are told.
async fn must_reset(standby: &mut Cluster, server: &mut Server, recorder: &mut Recorder) -> Result<()> {
    standby.launch().await?;
    standby.promote().await?;
    let database = Database::connect(&standby.url(NAME)).await?;
    for row in 0..100 {
        database.mark(&format!("on the new timeline {row}")).await?;
    }
    follow(standby, server).await?;
    match recorder.until_marker("on the new timeline 99").await? {
        Ended::Reset(ResetReason::EpochChanged | ResetReason::SourceDiscontinued, _) => Ok(()),
        other => anyhow::bail!("a reset was to come, not {other:?}"),
    }
}

/// The standby branched off behind everything that was received: nothing is lost, and nothing comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_behind_our_position_keeps_the_history() -> Result<()> {
    let (mut primary, standby, mut server, mut recorder) = replicated().await?;
    let epoch = server.status().await?.epoch;
    must_arrive(&primary, &mut recorder, "on both").await?;
    standby.catch_up(&primary).await?;
    server.kill().await?;
    primary.stop(Stop::Fast).await?;
    standby.promote().await?;
    follow(&standby, &mut server).await?;
    must_arrive(&standby, &mut recorder, "on the new timeline").await?;
    ensure!(server.status().await?.epoch == epoch, "another epoch");
    ensure!(recorder.history().transactions().len() == 3, "{:?}", recorder.history());
    Ok(())
}

/// The primary had written more than it had sent: what the standby lacks is waited for no longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_of_a_standby_that_lacks_what_was_not_received_leaves_no_lag() -> Result<()> {
    let (mut primary, mut standby, server, mut recorder) = replicated().await?;
    let epoch = server.status().await?.epoch;
    standby.catch_up(&primary).await?;
    standby.stop(Stop::Fast).await?;
    // Whoever reads the slot gets nothing for a transaction's time.
    let database = Database::connect(&primary.url(NAME)).await?;
    let walsender = Pid::from_raw(primary.walsender(server.slot(), None).await?).context("a process")?;
    kill_process(walsender, Signal::STOP)?;
    let filled = database
        .execute("select pg_logical_emit_message(false, 'filler', repeat('x', 1 << 20)) from generate_series(1, 8)")
        .await;
    let behind = server.until(SOURCE, "capture to be behind", |status| status.lag_bytes > 8 << 20).await;
    let killed = primary.stop(Stop::Immediate).await;
    filled.and(behind).and(killed)?;
    standby.launch().await?;
    standby.promote().await?;
    standby.take_address(&primary).await?;
    must_arrive(&standby, &mut recorder, "on the new timeline").await?;
    server.until(SOURCE, "capture to be behind no longer", |status| status.lag_bytes < 1 << 20).await?;
    ensure!(server.status().await?.epoch == epoch, "another epoch");
    Ok(())
}

/// The standby has never had what was received last.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_before_our_position_resets() -> Result<()> {
    let (mut primary, mut standby, mut server, mut recorder) = replicated().await?;
    standby.catch_up(&primary).await?;
    standby.stop(Stop::Fast).await?;
    must_arrive(&primary, &mut recorder, "on the primary only").await?;
    server.kill().await?;
    primary.stop(Stop::Immediate).await?;
    must_reset(&mut standby, &mut server, &mut recorder).await
}

/// What was delivered, and then lost with the machine's memory, is in no history any more: only the old timeline had it.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_after_the_power_failed_resets() -> Result<()> {
    let (mut primary, mut standby, mut server, mut recorder) = replicated().await?;
    server.kill().await?;
    let files = server.keep_files()?;
    server.launch().await?;
    standby.catch_up(&primary).await?;
    standby.stop(Stop::Fast).await?;
    must_arrive(&primary, &mut recorder, "on the primary only").await?;
    server.kill().await?;
    server.lose_power(&files)?;
    primary.stop(Stop::Immediate).await?;
    must_reset(&mut standby, &mut server, &mut recorder).await
}

/// The same failure without a promotion: the primary sends again what was lost, and from then on a promotion is proved as
/// it would have been before.
#[tokio::test(flavor = "multi_thread")]
async fn a_power_failure_that_was_made_up_for_keeps_the_history() -> Result<()> {
    let (mut primary, standby, mut server, mut recorder) = replicated().await?;
    let epoch = server.status().await?.epoch;
    let database = Database::connect(&primary.url(NAME)).await?;
    for attempt in 0.. {
        server.kill().await?;
        let files = server.keep_files()?;
        server.launch().await?;
        let before = database.text("select pg_current_wal_insert_lsn()::text").await?.context("an LSN")?;
        must_arrive(&primary, &mut recorder, &format!("lost once {attempt}")).await?;
        server.kill().await?;
        // What PostgreSQL has been told was on the disk: no power failure loses it.
        let is_told = format!("select (confirmed_flush_lsn > '{before}')::text from pg_replication_slots");
        if database.text(&is_told).await?.as_deref() == Some("false") {
            server.lose_power(&files)?;
            break;
        }
        ensure!(attempt < 20, "it has always been told by then");
        server.launch().await?;
    }
    server.launch().await?;
    must_arrive(&primary, &mut recorder, "made up for").await?;
    standby.catch_up(&primary).await?;
    server.terminate().await?;
    primary.stop(Stop::Fast).await?;
    standby.promote().await?;
    follow(&standby, &mut server).await?;
    must_arrive(&standby, &mut recorder, "on the new timeline").await?;
    ensure!(server.status().await?.epoch == epoch, "another epoch");
    Ok(())
}
