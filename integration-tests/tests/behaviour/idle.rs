//! A source in which nothing happens holds up no WAL, however much is written elsewhere on its server.

use anyhow::{Context, Result, ensure};
use tidegate_integration_tests::{Cluster, Database, Oracle, Server, ServerConfig, within};

/// Rows written to any table that is not PostgreSQL's own.
async fn rows_written(database: &Database) -> Result<Option<String>> {
    let query = "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::text from pg_stat_user_tables";
    database.text(query).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_written_to_another_database_is_confirmed_without_a_write() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let quiet = cluster.database("quiet").await?;
    quiet.create_marker().await?;
    let busy = cluster.database("busy").await?;
    busy.execute("create table load (filler text)").await?;
    let control = cluster.database("control").await?;
    let mut config = ServerConfig::of(quiet.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    let server = Server::start(config).await?;

    let oracle = Oracle::create(&quiet, server.slot()).await?;
    for _ in 0..10 {
        busy.execute("insert into load select repeat('x', 1000) from generate_series(1, 100000)").await?;
        busy.execute("truncate load").await?;
    }
    let end = busy.text("select pg_current_wal_lsn()::text").await?.context("no position")?;
    let slot = server.slot();
    let confirmed =
        format!("select (confirmed_flush_lsn >= '{end}')::text from pg_replication_slots where slot_name = '{slot}'");
    within("confirmed_flush_lsn to follow", || async {
        Ok((busy.text(&confirmed).await?.as_deref() == Some("true")).then_some(()))
    })
    .await?;
    ensure!(rows_written(&quiet).await?.as_deref() == Some("0"), "rows were written to the source");
    ensure!(oracle.read(&quiet).await?.change_count() == 0, "logical messages were written to the source");
    Ok(())
}
