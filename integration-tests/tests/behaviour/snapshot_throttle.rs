//! `snapshots.lag`: while capture is further than that behind PostgreSQL's WAL, no chunk is read, so that a snapshot does not add to the
//! load of a server that is behind. How far that is must be PostgreSQL's end of WAL, not what it has sent by now.

use anyhow::{Result, ensure};
use tidegate_client::{SourceStatus, Start};
use tidegate_integration_tests::{
    Cluster, Copier, HeldProcess, Server, ServerConfig, held_by_postgres, must_equal, within,
};

/// Tables, each of which is a chunk or two.
const TABLES: usize = 40;

/// When a reader has ended a chunk last; NULL while it reads one.
const LAST_READ: &str = "select max(state_change)::text from pg_stat_activity where application_name like 'tidegate-%' and \
                         query like '%WITH RECURSIVE%members AS%'";

/// A snapshot reads while PostgreSQL's walsender is held and 8 MiB of WAL are written: are chunks read while the status says that
/// capture is behind? It is complete in the end.
async fn while_behind(lag: &str, reads: bool) -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("behind").await?;
    let create = |n| {
        format!(
            "create table t{n} (id int primary key, v int); insert into t{n} select k, k from generate_series(1, 500) k"
        )
    };
    let tables: Vec<String> = (0..TABLES).map(create).collect();
    database.execute(&tables.join("; ")).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push(format!("snapshots: {{readers: 1, rows_per_second: 1000, lag: {lag}}}"));
    let server = Server::start(config).await?;
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Snapshot);
    copier.until("rows", |_, held| held.read_count > 0).await?;
    let held = HeldProcess::new(cluster.walsender(server.slot(), None).await?)?;
    database
        .execute("select pg_logical_emit_message(false, 'filler', repeat('x', 1 << 20)) from generate_series(1, 8)")
        .await?;
    let is_behind = |status: &SourceStatus| status.lag_bytes > 8 << 20;
    server.until("shop", "capture to be behind", is_behind).await?;
    // What was being read when that was heard.
    database.text("select pg_sleep(1.5)::text").await?;
    let last_read = async || within("a reader to end a chunk", || database.text(LAST_READ)).await;
    let before = last_read().await?;
    let is_read = async || Ok((last_read().await? != before).then_some(()));
    if reads {
        within("a chunk to be read", is_read).await?;
    } else {
        database.text("select pg_sleep(2.5)::text").await?;
        ensure!(is_read().await?.is_none(), "chunks were read");
    }
    drop(held);
    ensure!(copier.replica.read_count < 500 * TABLES as u64, "it was over too soon");
    copier.until_snapshot_end().await?;
    for n in 0..TABLES {
        let theirs = held_by_postgres(&database, &format!("t{n}"), &["id"]).await?;
        must_equal("a table", &copier.replica.table(&format!("public.t{n}")), &theirs)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_chunk_is_read_while_capture_is_behind() -> Result<()> {
    while_behind("1MiB", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_chunks_are_read_however_far_capture_is_behind() -> Result<()> {
    while_behind("0", true).await
}
