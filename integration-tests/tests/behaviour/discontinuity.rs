//! What breaks continuity is named or answered with a reset, never with a silent gap.
//!
//! Each test receives a row, breaks something while the server is down, writes a row that nobody can have captured, starts
//! the server again, and goes on with the token from before.

use anyhow::{Context, Result, ensure};
use tidegate_client::{ResetReason, SourceState};
use tidegate_integration_tests::{Cluster, Database, Ended, OnDiscontinuity, Recorder, Server, ServerConfig, within};

/// A database with a captured row, a server that has received it, and a subscriber that has too.
async fn received_one(cluster: &Cluster, name: &str, policy: OnDiscontinuity) -> Result<(Database, Server, Recorder)> {
    let database = cluster.database(name).await?;
    database.create_marker().await?;
    let mut config = ServerConfig::of(database.url());
    config.on_discontinuity = policy;
    let server = Server::start(config).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);
    Ok((database, server, recorder))
}

/// The subscriber is told, and a new one receives what is written from now on.
pub(crate) async fn must_reset(database: &Database, server: &Server, recorder: &mut Recorder) -> Result<()> {
    // With a server that is slow to notice, the reset comes on the open subscription, else as the answer to the token.
    match recorder.until_marker("never written").await? {
        Ended::Reset(ResetReason::EpochChanged | ResetReason::SourceDiscontinued, detail) => {
            ensure!(!detail.is_empty(), "a reset without an explanation");
        }
        other => anyhow::bail!("a reset was to come, not {other:?}"),
    }
    server.streaming().await?;
    let mut fresh = Recorder::new(server.endpoint());
    database.mark("after").await?;
    ensure!(fresh.until_marker("after").await? == Ended::Arrived);
    Ok(())
}

/// The server waits for a person, and tells what has happened in these words.
async fn must_stop(server: &Server, words: &[&str]) -> Result<()> {
    let status = server.until_state(SourceState::Stopped).await?;
    for word in words {
        ensure!(status.detail.contains(word), "'{}' does not mention {word}", status.detail);
    }
    Ok(())
}

async fn drop_slot(database: &Database, server: &Server) -> Result<()> {
    database.drop_slot(server.slot()).await?;
    database.mark("lost").await
}

async fn recreate_slot(database: &Database, server: &Server) -> Result<()> {
    drop_slot(database, server).await?;
    let slot = server.slot();
    database.execute(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await
}

async fn recreate_publication(database: &Database, server: &Server) -> Result<()> {
    let publication = server.slot();
    database.execute(&format!("drop publication {publication}")).await?;
    database.mark("lost").await?;
    database.execute(&format!("create publication {publication} for table marker")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_while_down_resets() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, mut recorder) = received_one(cluster, "slot_dropped", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    drop_slot(&database, &server).await?;
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_while_down_stops_where_told_to() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, _) = received_one(cluster, "slot_dropped_stop", OnDiscontinuity::Stop).await?;
    server.kill().await?;
    drop_slot(&database, &server).await?;
    server.launch().await?;
    must_stop(&server, &["slot", server.slot()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_recreated_under_the_same_name_while_down_resets() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, mut recorder) = received_one(cluster, "slot_recreated", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    recreate_slot(&database, &server).await?;
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_recreated_under_the_same_name_while_down_stops_where_told_to() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, _) = received_one(cluster, "slot_recreated_stop", OnDiscontinuity::Stop).await?;
    server.kill().await?;
    recreate_slot(&database, &server).await?;
    server.launch().await?;
    must_stop(&server, &[server.slot(), "created again"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_recreated_while_down_resets() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, mut recorder) = received_one(cluster, "pub_recreated", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    recreate_publication(&database, &server).await?;
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_recreated_while_down_stops_where_told_to() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, _) = received_one(cluster, "pub_recreated_stop", OnDiscontinuity::Stop).await?;
    server.kill().await?;
    recreate_publication(&database, &server).await?;
    server.launch().await?;
    must_stop(&server, &["publication", server.slot()]).await
}

async fn remake_membership(database: &Database, server: &Server) -> Result<()> {
    let publication = server.slot();
    database.execute(&format!("alter publication {publication} drop table marker")).await?;
    database.mark("lost").await?;
    database.execute(&format!("alter publication {publication} add table marker")).await
}

async fn switch_inserts(database: &Database, server: &Server) -> Result<()> {
    let publication = server.slot();
    let set = |publish: &str| format!("alter publication {publication} set (publish = '{publish}')");
    database.execute(&set("update, delete, truncate")).await?;
    database.mark("lost").await?;
    database.execute(&set("insert, update, delete, truncate")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_out_of_the_publication_and_back_while_down_resets() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, mut recorder) = received_one(cluster, "member_remade", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    remake_membership(&database, &server).await?;
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_out_of_the_publication_and_back_while_down_stops_where_told_to() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, _) = received_one(cluster, "member_remade_stop", OnDiscontinuity::Stop).await?;
    server.kill().await?;
    remake_membership(&database, &server).await?;
    server.launch().await?;
    must_stop(&server, &["publication", server.slot(), "marker"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_out_of_the_publication_and_back_while_running_resets() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, server, mut recorder) = received_one(cluster, "member_remade_up", OnDiscontinuity::Reset).await?;
    remake_membership(&database, &server).await?;
    must_reset(&database, &server, &mut recorder).await
}

/// A table that joins while the server runs is looked after from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_has_joined_later_is_missed_too() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, mut recorder) = received_one(cluster, "member_joined", OnDiscontinuity::Reset).await?;
    database.execute("create table late (n int primary key)").await?;
    let publication = server.slot().to_owned();
    database.execute(&format!("alter publication {publication} add table late")).await?;
    let recorded = "select (publication_content like '%' || 'late'::regclass::oid || '%')::text from tidegate.source";
    within("the new member to be known", || async {
        Ok((database.text(recorded).await?.as_deref() == Some("true")).then_some(()))
    })
    .await?;
    server.kill().await?;
    database.execute(&format!("alter publication {publication} drop table late")).await?;
    database.execute("insert into late values (1)").await?;
    database.execute(&format!("alter publication {publication} add table late")).await?;
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_switched_off_and_on_while_down_resets() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, mut server, mut recorder) = received_one(cluster, "op_switched", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    switch_inserts(&database, &server).await?;
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

/// Of one that is mirrored, `mirror_altered` tells.
#[tokio::test(flavor = "multi_thread")]
async fn another_row_filter_or_column_list_of_a_table_that_is_not_mirrored_resets() -> Result<()> {
    let cluster = Cluster::shared().await?;
    for (name, how) in [("filter_changed", "where (id > 0)"), ("columns_changed", "(id, a)")] {
        let (database, server, mut recorder) = received_one(cluster, name, OnDiscontinuity::Reset).await?;
        let version = database.server_version().await?;
        if version < 15 {
            println!("LEFT OUT: PostgreSQL {version} has neither row filters nor column lists");
            return Ok(());
        }
        let publication = server.slot();
        database.execute("create table part (id int primary key, a int, b int)").await?;
        let known =
            "select (publication_content like '%table ' || 'part'::regclass::oid || '%')::text from tidegate.source";
        within("the table to be published", || async {
            Ok((database.text(known).await?.as_deref() == Some("true")).then_some(()))
        })
        .await?;
        database.execute(&format!("alter publication {publication} set table marker, part {how}")).await?;
        must_reset(&database, &server, &mut recorder).await.with_context(|| how.to_owned())?;
    }
    Ok(())
}

/// The counter-example: a table that joins, and one that is dropped altogether, take nothing from the others.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_join_and_tables_that_are_dropped_while_down_keep_the_history() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("members_change").await?;
    database.create_marker().await?;
    database.execute("create table doomed (n int primary key)").await?;
    let mut server = Server::start(ServerConfig::of(database.url())).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);
    let epoch = server.status().await?.epoch;
    server.kill().await?;
    database.execute("drop table doomed; create table late (n int primary key)").await?;
    database.execute(&format!("alter publication {} add table late", server.slot())).await?;
    database.mark("after").await?;
    server.launch().await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    ensure!(server.status().await?.epoch == epoch, "another epoch");
    Ok(())
}

/// A server that removes WAL although a slot needs it.
async fn forgetful() -> Result<Cluster> {
    Cluster::start(&[("max_slot_wal_keep_size", "32MB"), ("max_wal_size", "64MB"), ("min_wal_size", "32MB")]).await
}

/// Writes until the slot has lost its WAL.
async fn exceed(database: &Database, slot: &str) -> Result<()> {
    database.mark("lost").await?;
    database.execute("create unlogged table if not exists filler (n int)").await?;
    let query = format!("select wal_status from pg_replication_slots where slot_name = '{slot}'");
    for _ in 0..20 {
        database.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 8000000))").await?;
        database.execute("select pg_switch_wal()").await?;
        database.execute("checkpoint").await?;
        if database.text(&query).await?.as_deref() == Some("lost") {
            return Ok(());
        }
    }
    anyhow::bail!("the slot keeps its WAL")
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_removed_while_down_resets() -> Result<()> {
    let cluster = forgetful().await?;
    let (database, mut server, mut recorder) = received_one(&cluster, "wal_removed", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    exceed(&database, server.slot()).await?;
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_removed_while_down_stops_where_told_to() -> Result<()> {
    let cluster = forgetful().await?;
    let (database, mut server, _) = received_one(&cluster, "wal_removed_stop", OnDiscontinuity::Stop).await?;
    server.kill().await?;
    exceed(&database, server.slot()).await?;
    server.launch().await?;
    must_stop(&server, &["slot", "max_slot_wal_keep_size"]).await
}

/// Same system identifier, same timeline, and by what is written after it, even a later LSN.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_disk_image_resets() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let (_, mut server, mut recorder) = received_one(&cluster, "image", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    let image = cluster.image().await?;
    server.launch().await?;
    let database = Database::connect(&cluster.url("image")).await?;
    database.mark("in the lost history").await?;
    ensure!(recorder.until_marker("in the lost history").await? == Ended::Arrived);
    server.terminate().await?;
    cluster.restore(&image).await?;
    let database = Database::connect(&cluster.url("image")).await?;
    for row in 0..100 {
        database.mark(&format!("in the new history {row}")).await?;
    }
    server.launch().await?;
    must_reset(&database, &server, &mut recorder).await
}

/// The restored server has not even reached the LSN that was received.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_disk_image_that_is_behind_resets() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let (_, mut server, mut recorder) = received_one(&cluster, "behind", OnDiscontinuity::Reset).await?;
    server.kill().await?;
    let image = cluster.image().await?;
    server.launch().await?;
    let database = Database::connect(&cluster.url("behind")).await?;
    database.execute("create table bulk (n int primary key)").await?;
    database.execute("insert into bulk select generate_series(1, 50000)").await?;
    database.mark("in the lost history").await?;
    ensure!(recorder.until_marker("in the lost history").await? == Ended::Arrived);
    server.terminate().await?;
    cluster.restore(&image).await?;
    server.launch().await?;
    let database = Database::connect(&cluster.url("behind")).await?;
    must_reset(&database, &server, &mut recorder).await
}

/// The counter-example: nothing is lost, so nothing is reset.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_everything_keeps_the_history() -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let (_, mut server, mut recorder) = received_one(&cluster, "restarted", OnDiscontinuity::Stop).await?;
    let epoch = server.status().await?.epoch;
    for round in 0..3 {
        server.kill().await?;
        cluster.restart(tidegate_integration_tests::Stop::Immediate).await?;
        let database = Database::connect(&cluster.url("restarted")).await?;
        database.mark(&format!("round {round}")).await?;
        server.launch().await?;
        ensure!(recorder.until_marker(&format!("round {round}")).await? == Ended::Arrived);
    }
    ensure!(server.status().await?.epoch == epoch, "another epoch");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_plugin_is_left_alone() -> Result<()> {
    let database = Cluster::shared().await?.database("foreign_slot").await?;
    database.create_marker().await?;
    let mut server = Server::stopped(ServerConfig::of(database.url()))?;
    let slot = server.slot().to_owned();
    database.execute(&format!("select pg_create_logical_replication_slot('{slot}', 'test_decoding')")).await?;
    server.launch().await?;
    must_stop(&server, &[&slot, "not a pgoutput slot"]).await?;
    let plugin = format!("select plugin::text from pg_replication_slots where slot_name = '{slot}'");
    ensure!(database.text(&plugin).await?.as_deref() == Some("test_decoding"));
    server.kill().await?;
    database.drop_slot(&slot).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_another_server_reads_is_left_to_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let (database, server, mut recorder) = received_one(cluster, "slot_in_use", OnDiscontinuity::Reset).await?;
    let mut intruder = Server::stopped(ServerConfig::of(database.url()))?;
    intruder.launch().await?;
    let named = within("the second server to name the first", || async {
        let status = intruder.status().await?;
        Ok(status.detail.contains("is in use by").then_some(status.detail))
    });
    ensure!(named.await?.contains(server.slot()));
    database.mark("still").await?;
    ensure!(recorder.until_marker("still").await? == Ended::Arrived, "the first server was disturbed");
    Ok(())
}
