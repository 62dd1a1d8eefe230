//! `snapshot`: a table of 1.2 M rows (`BENCH_ROWS` for another number) from PostgreSQL to a gRPC subscriber.
//!
//! The peer is `COPY … TO STDOUT` of the same table over one connection, whose bytes are counted and thrown away, before and
//! after Tidegate; the mean counts. Tidegate also reconciles, encodes, stores and syncs the rows; then once more, into a mirror.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::{StreamExt, pin_mut};
use tidegate_client::{Client, Event, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig};

use crate::{
    load,
    outcome::{Outcome, Target},
    receive,
};

/// Measures the case.
pub(crate) async fn run() -> Result<Outcome> {
    let row_count = load::row_count(1_200_000)?;
    let cluster = Cluster::start(&[("synchronous_commit", "off"), ("max_wal_size", "8GB")]).await?;
    let database = cluster.database("bench").await?;
    load::create(&database, row_count).await?;
    database.execute("vacuum analyze load").await?;
    database.execute("checkpoint").await?;
    eprintln!("warm-up {:?}", copy(&database, row_count).await?);
    let before = copy(&database, row_count).await?;
    let plain = tidegate(&database, row_count, &[]).await?;
    let mirrored = tidegate(&database, row_count, &["mirror: [load]"]).await?;
    let after = copy(&database, row_count).await?;
    eprintln!("COPY {before:?} {after:?}, ours {plain:?}, mirrored {mirrored:?}");
    let copy = (before + after) / 2;
    let rate = |time: Duration| row_count as f64 / time.as_secs_f64();
    let mut outcome = Outcome::new("snapshot");
    outcome.ratio("copy", rate(plain) / rate(copy), Target::AtLeast(0.4));
    outcome.ratio("copy_mirrored", rate(mirrored) / rate(copy), Target::AtLeast(0.15));
    outcome.figure("rows_per_s", rate(plain), None);
    outcome.figure("mirrored_rows_per_s", rate(mirrored), None);
    outcome.figure("copy_rows_per_s", rate(copy), None);
    outcome
        .note("The subscriber is the Rust client library, counting rows. The peer counts lines, and decodes nothing.");
    Ok(outcome)
}

async fn copy(database: &Database, row_count: u64) -> Result<Duration> {
    let start = Instant::now();
    let stream = database.client().copy_out("copy load to stdout").await?;
    pin_mut!(stream);
    let mut lines = 0;
    while let Some(data) = stream.next().await {
        lines += data?.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    ensure!(lines == row_count, "{lines} rows");
    Ok(start.elapsed())
}

/// From the subscription until its SnapshotEnd, on a server of its own. Where the table is mirrored, the server has begun the
/// snapshot by itself, and the subscription joins it: then from the start of the process.
async fn tidegate(database: &Database, row_count: u64, source_lines: &[&str]) -> Result<Duration> {
    let mut config = ServerConfig::of(database.url());
    config.source_lines.extend(source_lines.iter().map(|line| (*line).to_owned()));
    let launched = Instant::now();
    let mut server = Server::start(config).await?;
    let client = Client::connect(server.endpoint()).await?;
    let start = if source_lines.is_empty() { Instant::now() } else { launched };
    let mut changes = client.subscribe(Subscription::tables(["load"]).from(Start::Snapshot));
    let mut count = 0;
    receive::until(&mut changes, |event| {
        count += u64::from(matches!(event, Event::Change(_)));
        matches!(event, Event::SnapshotEnd { .. })
    })
    .await?;
    let elapsed = start.elapsed();
    ensure!(count == row_count, "{count} of {row_count} rows");
    let slot = server.slot().to_owned();
    server.terminate().await?;
    database.drop_slot(&slot).await?;
    Ok(elapsed)
}
