//! Subscribers that stop reading hold a position, not memory, and nobody else up.

use anyhow::{Result, ensure};
use futures_util::StreamExt;
use tidegate_client::{Changes, Client, Event, Start, Subscription};
use tidegate_integration_tests::{Cluster, Ended, Recorder, Server, ServerConfig};

const STALLED_COUNT: usize = 20;
const ROW_COUNT: usize = 100_000;
/// Above what the server had in use before, beside the tail of 8 MiB.
const GROWTH_BYTES_MAX: u64 = 128 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_that_stop_reading_cost_neither_memory_nor_others_time() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("stalled").await?;
    database.execute("create table wide (id int primary key, filler text)").await?;
    database.create_marker().await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("memory: {tail: 8MiB}".to_owned());
    let server = Server::start(config).await?;

    let client = Client::connect(server.endpoint()).await?;
    let mut stalled = Vec::new();
    for _ in 0..STALLED_COUNT {
        let mut changes = client.subscribe(Subscription::tables(["wide"]).from(Start::Earliest));
        ensure!(matches!(changes.next().await, Some(Ok(Event::Opened { .. }))), "no subscription");
        stalled.push(changes);
    }
    let before = server.process()?.memory("VmRSS")?;
    let mut recorder = Recorder::new(server.endpoint()).of_tables(&["marker"]);
    for part in 0..ROW_COUNT / 1_000 {
        let rows = format!("generate_series({}, {})", part * 1_000, part * 1_000 + 999);
        // 2 KB a row, 200 MB in all.
        database.execute(&format!("insert into wide select n, repeat('x', 2000) from {rows} n")).await?;
    }
    database.mark("end").await?;
    ensure!(recorder.until_marker("end").await? == Ended::Arrived);
    let grown = server.process()?.memory("VmHWM")?.saturating_sub(before);
    ensure!(grown < GROWTH_BYTES_MAX, "the server has grown by {} MiB", grown >> 20);

    for mut changes in stalled.into_iter().take(2) {
        ensure!(rows(&mut changes).await? == ROW_COUNT, "a subscriber that reads again must get every row, once");
    }
    Ok(())
}

/// Rows received up to the last, which must come in the order of their ids.
async fn rows(changes: &mut Changes) -> Result<usize> {
    let mut count = 0;
    while count < ROW_COUNT {
        match changes.next().await.transpose()? {
            Some(Event::Change(change)) => {
                let row = change.row_json()?.unwrap_or_default();
                ensure!(
                    row.get("id").and_then(serde_json::Value::as_u64) == Some(count as u64),
                    "out of order at {count}"
                );
                count += 1;
            }
            Some(Event::Abort) => anyhow::bail!("the connection was lost"),
            Some(
                Event::Opened { .. }
                | Event::Preparing { .. }
                | Event::RowType(_)
                | Event::Begin { .. }
                | Event::SnapshotBegin { .. }
                | Event::SnapshotEnd { .. }
                | Event::SnapshotAbandoned { .. }
                | Event::Commit { .. }
                | Event::Progress { .. }
                | Event::Reset { .. }
                | Event::Drain { .. }
                | Event::Interrupted { .. },
            ) => {}
            None => break,
        }
    }
    Ok(count)
}
