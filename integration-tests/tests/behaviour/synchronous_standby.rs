//! A commit that waits for a synchronous standby is in the WAL, and is delivered, but is not visible in the database: it stays
//! unconfirmed until it is, and no longer.

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use tidegate_client::{Changes, Event, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Ended, Recorder, Server, ServerConfig, within};
use tokio::task::JoinSet;

/// A database whose sessions do not wait for a standby unless they say so: the server, too, writes to tables of its own.
async fn that_waits_for_nobody(cluster: &Cluster, name: &str) -> Result<Database> {
    let database = cluster.database(name).await?;
    database.execute(&format!("alter database {name} set synchronous_commit = local")).await?;
    database.another().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_not_visible_is_delivered_and_stays_unconfirmed_until_it_is() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = that_waits_for_nobody(&cluster, "standby").await?;
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

/// The number of the only column besides the key in the next change.
async fn field_of_next(changes: &mut Changes) -> Result<u32> {
    loop {
        if let Event::Change(change) = changes.next().await.context("the subscription ended")?? {
            let row_type = change.row_type.context("a row type")?;
            let mut columns = row_type.proto().columns.iter().filter(|column| !column.key);
            return Ok(columns.next().context("a column")?.field);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_renamed_keeps_its_number_where_the_catalog_shows_it_late() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = that_waits_for_nobody(&cluster, "renamed").await?;
    database.execute("create table t (id int primary key, b text)").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut changes = server.client().await?.subscribe(Subscription::tables(["t"]).from(Start::Earliest));
    database.execute("insert into t values (1, 'one')").await?;
    let before = field_of_next(&mut changes).await?;

    database.hold_commits().await?;
    let waiting = database.another().await?;
    waiting.execute("set synchronous_commit = on").await?;
    let mut waiter = JoinSet::new();
    waiter.spawn(async move {
        waiting.execute("begin; alter table t rename b to x; insert into t values (2, 'two'); commit").await
    });
    let is_sent = format!(
        "select 'yes' from pg_stat_replication r, pg_replication_slots s, pg_stat_activity a
         where s.slot_name = '{}' and r.pid = s.active_pid and r.sent_lsn >= pg_current_wal_flush_lsn() and a.wait_event = 'SyncRep'",
        server.slot()
    );
    within("the transaction to be sent and wait", || database.text(&is_sent)).await?;
    database.release_commits().await?;
    waiter.join_next().await.context("spawned above")???;
    let after = field_of_next(&mut changes).await?;
    ensure!(before == after, "b had the number {before}, x has {after}");
    Ok(())
}
