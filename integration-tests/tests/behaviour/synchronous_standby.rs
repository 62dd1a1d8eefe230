//! A commit that waits for a synchronous standby is in the WAL, and is delivered, but is not visible in the database: it stays
//! unconfirmed until it is, and no longer.

use anyhow::{Context, Result, ensure};
use tidegate_integration_tests::{Cluster, Ended, Recorder, Server, ServerConfig, within};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_not_visible_is_delivered_and_stays_unconfirmed_until_it_is() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("standby").await?;
    // The server writes to tables of its own, which is not to wait.
    database.execute("alter database standby set synchronous_commit = local").await?;
    let database = database.another().await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);

    database.hold_commits().await?;
    let waiting = database.another().await?;
    waiting.execute("set synchronous_commit = on").await?;
    let mut waiter = JoinSet::new();
    waiter.spawn(async move { waiting.mark("stuck").await });
    ensure!(recorder.until_marker("stuck").await? == Ended::Arrived);
    let stuck_end_lsn = recorder.history().transactions().last().context("it has arrived")?.lsn;
    let stuck_end_lsn = format!("{:X}/{:X}", stuck_end_lsn >> 32, stuck_end_lsn & 0xFFFF_FFFF);
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);

    let slot = server.slot();
    let of_slot = |what: &str| format!("select ({what})::text from pg_replication_slots where slot_name = '{slot}'");
    let durable = format!(
        "select 'yes' from pg_stat_replication where reply_time > '{}'::timestamptz + interval '3 s'",
        database.text("select clock_timestamp()::text").await?.context("a time")?
    );
    within("several answers", || database.text(&durable)).await?;
    let confirmed = of_slot(&format!("confirmed_flush_lsn >= '{stuck_end_lsn}'"));
    ensure!(database.text(&confirmed).await?.as_deref() == Some("false"), "what is not visible was confirmed");

    database.release_commits().await?;
    waiter.join_next().await.context("spawned above")???;
    within("confirmed_flush_lsn to follow", || async {
        Ok((database.text(&confirmed).await?.as_deref() == Some("true")).then_some(()))
    })
    .await
}
