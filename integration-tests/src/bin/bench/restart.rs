//! `restart`: a server whose changelog holds 10 GiB (`BENCH_RESTART_MIB` for another size) is started again; how long until a
//! subscriber has the first change.
//!
//! A real server makes the source's history and one transaction; copies of that are appended through the store, as fast as the
//! disk takes them. PostgreSQL is down meanwhile, so that what is measured is the store, not the connection.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use tidegate_client::{Client, Event, Start, Subscription};
use tidegate_feed::{Durable, FeedItem, Publish, local};
use tidegate_integration_tests::{Cluster, Ended, Recorder, Server, ServerConfig, Stop};
use tidegate_model::{Block, BlockBuilder, Kind, Lsn, Position, SystemClock};
use tidegate_store::{Store, StoreConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    load,
    outcome::{Outcome, Target},
    receive,
};

/// Measures the case.
pub(crate) async fn run() -> Result<Outcome> {
    let byte_count = load::number("BENCH_RESTART_MIB", 10 << 10)? << 20;
    let mut cluster = Cluster::start(&[]).await?;
    let database = cluster.database("bench").await?;
    database.execute(load::TABLE).await?;
    database.create_marker().await?;
    let mut server = Server::start(ServerConfig::of(database.url())).await?;
    database.execute(&format!("insert into load select {} from generate_series(1, 2000) n", load::ROW)).await?;
    database.mark("end").await?;
    ensure!(Recorder::new(server.endpoint()).until_marker("end").await? == Ended::Arrived);
    server.terminate().await?;
    cluster.stop(Stop::Fast).await?;
    eprintln!("writing {} MiB", byte_count >> 20);
    let end = grow(&server.scratch("data/shop"), byte_count).await?;

    let start = Instant::now();
    server.launch().await?;
    let answering = start.elapsed();
    let status = server.status().await?;
    ensure!(status.head_position == end.to_string(), "it serves up to {}, not to {end}", status.head_position);
    first_change(&server).await?;
    let serving = start.elapsed();
    let mut outcome = Outcome::new("restart");
    outcome.figure("serving_s", serving.as_secs_f64(), Some(Target::AtMost(2.0)));
    outcome.figure("answering_s", answering.as_secs_f64(), None);
    outcome.figure("changelog_mib", (status.changelog_bytes >> 20) as f64, None);
    outcome.note("From the start of the process until a new subscriber has the oldest change.");
    server.kill().await?;
    Ok(outcome)
}

async fn first_change(server: &Server) -> Result<()> {
    let client = Client::connect(server.endpoint()).await?;
    let mut changes = client.subscribe(Subscription::tables(["load"]).from(Start::Earliest));
    receive::until(&mut changes, |event| matches!(event, Event::Change(_))).await
}

/// Appends copies of the largest transaction that is there until the changelog has that size; returns where it ends.
async fn grow(dir: &Path, byte_count: u64) -> Result<Position> {
    let (store, writer) = Store::open(StoreConfig::new(dir), Arc::new(SystemClock)).await?;
    let recovered = store.recovered().context("an epoch")?;
    let template = transaction(&store, recovered.durable).await?;
    let start = Durable { position: recovered.durable, epoch: Some(recovered.epoch.epoch), disk_full: false };
    let (mut publisher, subscriber) = local::channel(8 << 20, start);
    let mut writing = JoinSet::new();
    writing.spawn(writer.run(subscriber, CancellationToken::new()));
    let size = template.iter().map(Block::byte_count).sum::<usize>() as u64;
    let mut lsn = recovered.durable.lsn.0;
    for _ in 0..byte_count.div_ceil(size) {
        lsn += 1 << 20;
        for block in &template {
            publisher.publish(FeedItem::Block(at(block, Lsn(lsn)))).await?;
        }
    }
    drop(publisher);
    writing.join_next().await.context("spawned above")???;
    Ok(store.head().borrow().complete)
}

/// The blocks of the largest transaction up to a position.
async fn transaction(store: &Store, end: Position) -> Result<Vec<Block>> {
    let head = *store.head().borrow();
    let mut reader = store.reader(head.epoch.context("an epoch")?, head.earliest)?;
    let (mut largest, mut open): (Vec<Block>, BlockBuilder) = (Vec::new(), BlockBuilder::default());
    let mut blocks = Vec::new();
    let size = |blocks: &[Block]| blocks.iter().map(Block::byte_count).sum::<usize>();
    loop {
        let block = reader.next().await?;
        for entry in block.entries() {
            match entry.kind {
                Kind::Begin => (blocks, open) = (Vec::new(), BlockBuilder::default()),
                Kind::Change | Kind::Commit => {}
                Kind::RowType | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotCursor | Kind::SnapshotEnd => {
                    continue;
                }
            }
            open.push(*entry, &block.slice(entry));
            if entry.kind == Kind::Commit || open.byte_count() > 64 << 10 {
                blocks.push(open.finish());
            }
            if entry.kind == Kind::Commit && size(&blocks) > size(&largest) {
                largest = std::mem::take(&mut blocks);
            }
        }
        if block.last() >= end {
            ensure!(!largest.is_empty(), "no transaction");
            return Ok(largest);
        }
    }
}

/// The block at another place.
fn at(block: &Block, lsn: Lsn) -> Block {
    let mut builder = BlockBuilder::default();
    for entry in block.entries() {
        let bytes = &block.payload()[entry.start as usize..entry.end as usize];
        builder.push(tidegate_model::Entry { lsn, ..*entry }, bytes);
    }
    builder.finish()
}
