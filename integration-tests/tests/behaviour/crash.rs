//! The randomised crash test: writers, a server killed with -9, PostgreSQL restarted, and a subscriber that resumes by
//! token receive exactly what a second slot says was committed: no gap, no duplicate, no reorder, every value.

use anyhow::{Result, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_integration_tests::{
    Cluster, Database, Ended, History, Oracle, Recorder, Seed, Server, ServerConfig, Workload, asked_for, disturb,
};
use tokio::{sync::watch, task::JoinSet};

/// Disturbances in one run; `TIDEGATE_TEST_ROUNDS` asks for more.
const ROUNDS: u32 = 12;
/// Transactions that the subscriber receives between two disturbances.
const CALM: std::ops::Range<usize> = 20..250;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_received_is_what_was_committed() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[
        ("wal_sender_timeout", "5s"),
        // Transactions of some hundred changes are streamed before they end.
        ("logical_decoding_work_mem", "64kB"),
    ])
    .await?;
    let database = cluster.database("crash").await?;
    let workload = Workload::create(&database, seed).await?;
    let mut config = ServerConfig::of(database.url());
    // Small enough that the larger transactions are spooled to disk.
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB}".to_owned());
    let mut server = Server::start(config).await?;
    let oracle = Oracle::create(&database, server.slot()).await?;

    let recorder = Recorder::new(server.endpoint());
    let mut committed = recorder.committed();
    let mut subscriber = JoinSet::new();
    subscriber.spawn(subscribe(recorder, seed.generator(100)));

    let writers = workload.start(database.url(), 3);
    let rounds = asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS);
    for round in 0..rounds {
        received(&mut committed, random.random_range(CALM)).await?;
        let what = disturb(&mut random, &mut cluster, &mut server).await?;
        println!("round {round}: {what} after {} transactions", *committed.borrow());
    }
    received(&mut committed, 50).await?;
    writers.stop().await;
    // The session from before has not survived the restarts.
    let database = Database::connect(&cluster.url("crash")).await?;
    database.mark("the end").await?;
    let history = subscriber.join_next().await.expect("spawned above")??;
    println!("received {} transactions; asking the oracle", history.transactions().len());
    let expected = oracle.read(&database).await?;
    println!("{} transactions, {} changes", expected.transactions().len(), expected.change_count());
    history.must_equal(&expected)
}

/// Waits until so many more transactions have been received.
async fn received(committed: &mut watch::Receiver<usize>, count: usize) -> Result<()> {
    let goal = *committed.borrow() + count;
    let waiting = committed.wait_for(|now| *now >= goal);
    ensure!(
        tokio::time::timeout(tidegate_integration_tests::DEADLINE, waiting).await.is_ok_and(|r| r.is_ok()),
        "stalled"
    );
    Ok(())
}

/// Subscribes again and again, by token, after a random number of transactions each, up to the last marker.
async fn subscribe(mut recorder: Recorder, mut random: StdRng) -> Result<History> {
    let mut at_end = false;
    while !at_end {
        let mut left = random.random_range(1..400_u32);
        let ended = recorder.until(|transaction| {
            left -= 1;
            at_end = transaction.changes.iter().any(|change| change.what == "insert public.marker");
            left == 0 || at_end
        });
        let ended = ended.await?;
        ensure!(ended == Ended::Arrived, "continuity was not lost, but the server says {ended:?}");
    }
    Ok(recorder.history().clone())
}
