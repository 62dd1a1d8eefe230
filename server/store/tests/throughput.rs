//! How fast rows go through append, fsync and one reader. Run with `--ignored --nocapture`.
#![allow(clippy::unwrap_used, reason = "tests only")]

use std::time::Instant;

use tidegate_store::StoreConfig;

mod support;

use support::{
    Running, START,
    records::{Event, blocks, records},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn rows_per_second() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&vec![Event::Transaction(vec![120; 1000]); 1000]);
    let blocks = blocks(&all, 60 << 10);
    let last = all[all.len() - 1].0;
    let mut running = Running::begin(StoreConfig::new(dir.path())).await;
    let started = Instant::now();
    running.publish(blocks.iter().cloned()).await;
    running.durable(last).await;
    let appended = started.elapsed();
    let started = Instant::now();
    let mut reader = running.reader(START);
    let mut position = START;
    while position < last {
        position = reader.next().await.unwrap().last();
    }
    let rate = |elapsed: std::time::Duration| 1e6 / elapsed.as_secs_f64();
    eprintln!("appended and durable: {:.0} rows/s; read: {:.0} rows/s", rate(appended), rate(started.elapsed()));
    running.close().await.unwrap();
}
