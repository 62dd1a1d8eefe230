//! A control database that hangs holds nothing up for good: what is stored is served, the status says what is waited for,
//! and the capture goes on when it answers again.

use anyhow::{Context, Result, ensure};
use tidegate_client::Start;
use tidegate_integration_tests::{Cluster, Copier, Database, Ended, Recorder, Server, ServerConfig, within};

/// A server whose control database is not the source.
async fn served(name: &str) -> Result<(Database, Database, Server, Recorder)> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database(name).await?;
    database.create_marker().await?;
    database.execute("create table other (id int primary key)").await?;
    let control = cluster.database(&format!("{name}_control")).await?;
    let mut config = ServerConfig::of(database.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    let server = Server::start(config).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);
    Ok((database, control, server, recorder))
}

async fn says_that_it_waits(server: &Server) -> Result<()> {
    let status =
        server.until("shop", "says that it waits", |status| status.detail.contains("control database")).await?;
    ensure!(status.detail.contains("no answer within 10 s"), "{}", status.detail);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_table_is_new() -> Result<()> {
    let (database, control, server, mut recorder) = served("hanging").await?;
    control.execute("begin; lock table tidegate.source, tidegate.field, tidegate.row_type").await?;
    database.execute("insert into other values (1)").await?;
    says_that_it_waits(&server).await?;
    let mut again = Recorder::new(server.endpoint());
    ensure!(again.until_marker("before").await? == Ended::Arrived, "what is stored must be served");
    control.execute("rollback").await?;
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    ensure!(recorder.history().transactions().len() == 3, "{:?}", recorder.history());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_source_is_connected() -> Result<()> {
    let (database, control, server, mut recorder) = served("hanging_connect").await?;
    control.execute("begin; lock table tidegate.source").await?;
    let end = "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = ";
    database.execute(&format!("{end}'{}'", server.slot())).await?;
    says_that_it_waits(&server).await?;
    control.execute("rollback").await?;
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_starts() -> Result<()> {
    let (database, control, mut server, mut recorder) = served("hanging_start").await?;
    server.kill().await?;
    control.execute("begin; lock table tidegate.migration").await?;
    server.launch().await?;
    let status =
        server.until("shop", "says that it waits", |status| status.detail.contains("control database")).await?;
    ensure!(status.detail.contains("no answer within"), "{}", status.detail);
    let mut again = Recorder::new(server.endpoint());
    ensure!(again.until_marker("before").await? == Ended::Arrived, "what is stored must be served");
    control.execute("rollback").await?;
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    // A server that is told to stop meanwhile does not wait for it.
    control.execute("begin; lock table tidegate.source").await.context("lock")?;
    server.terminate().await
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_newest_snapshots_that_have_ended() -> Result<()> {
    let (_database, control, server, _recorder) = served("ended").await?;
    control
        .execute(
            "insert into tidegate.snapshot (source, snapshot, epoch, tables, state, ended_at)
             select name, n, '0', '{}', 'failed', now() from tidegate.source, generate_series(1, 150) n;
             update tidegate.source set last_snapshot = 150",
        )
        .await?;
    let mut copier = Copier::new(&server.endpoint(), &["other"], Start::Snapshot);
    let snapshot = copier.until_snapshot_end().await?;
    ensure!(snapshot == 151, "{snapshot} was given");
    let kept = "select concat(count(*), ' from ', min(snapshot), ' to ', max(snapshot)) from tidegate.snapshot";
    within("the oldest to be forgotten", || async {
        Ok((control.text(kept).await?.as_deref() == Some("100 from 52 to 151")).then_some(()))
    })
    .await
}
