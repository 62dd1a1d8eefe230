//! Runs a store with its writer and the feed that it takes from.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it, and it is tests only")]

use std::{path::Path, sync::Arc, time::Duration};

use tidegate_feed::{Durable, FeedItem, Publish, local};
use tidegate_model::{Block, Epoch, EpochInfo, Lsn, Position, SystemClock, TablePatterns};
use tidegate_store::{
    Budgets, MirrorConfig, MirrorReader, Reader, Retention, Store, StoreConfig, StoreError, StoreWriter,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) mod records;
pub(crate) mod row_types;

use records::Record;

pub(crate) const INFO: EpochInfo = EpochInfo {
    epoch: Epoch(0xfeed),
    system_identifier: 7_300_000_000_000_000_001,
    timeline: 1,
    start_lsn: Lsn(0x800),
};

pub(crate) fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.to_owned(),
        segment_bytes: 4096,
        tail_bytes: 2048,
        retention: Retention { size_bytes: u64::MAX, age: Duration::from_secs(1 << 30) },
    }
}

/// A store whose writer runs.
pub(crate) struct Running {
    pub(crate) store: Store,
    pub(crate) publisher: local::Publisher,
    pub(crate) stop: CancellationToken,
    writer: JoinSet<Result<(), StoreError>>,
}

impl Running {
    pub(crate) async fn open(config: StoreConfig) -> Self {
        let (store, writer) = Store::open(config, Arc::new(SystemClock)).await.unwrap();
        Self::start(store, writer)
    }

    /// Opens with a mirror of all tables.
    pub(crate) async fn open_mirrored(config: StoreConfig) -> (Self, MirrorReader) {
        Self::open_mirroring(config, TablePatterns::parse(["*.*"]).unwrap(), TablePatterns::none()).await
    }

    /// Opens with a mirror of some tables, and of others once they are asked for.
    pub(crate) async fn open_mirroring(
        config: StoreConfig,
        tables: TablePatterns,
        on_demand: TablePatterns,
    ) -> (Self, MirrorReader) {
        let dir = config.dir.join("mirror");
        let (store, mut writer) = Store::open(config, Arc::new(SystemClock)).await.unwrap();
        let reader = writer.keep_mirror(MirrorConfig { dir, tables, on_demand, budgets: Budgets::default() }).unwrap();
        (Self::start(store, writer), reader)
    }

    fn start(store: Store, writer: StoreWriter) -> Self {
        let start = Durable { position: Position::ZERO, epoch: None, disk_full: false };
        let (publisher, subscriber) = local::channel(1 << 20, start);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(writer.run(subscriber, stop.clone()));
        Running { store, publisher, stop, writer: tasks }
    }

    /// Opens with an epoch begun.
    pub(crate) async fn begin(config: StoreConfig) -> Self {
        let mut running = Self::open(config).await;
        running.publisher.publish(FeedItem::Epoch(INFO, None)).await.unwrap();
        let mut head = running.store.head();
        head.wait_for(|head| head.epoch == Some(INFO.epoch)).await.unwrap();
        running
    }

    pub(crate) async fn publish(&mut self, blocks: impl IntoIterator<Item = Block>) {
        for block in blocks {
            self.publisher.publish(FeedItem::Block(block)).await.unwrap();
        }
    }

    pub(crate) async fn durable(&self, position: Position) {
        self.publisher.durable().wait_for(|durable| durable.position >= position).await.unwrap();
    }

    /// Ends the feed, and then the writer.
    pub(crate) async fn close(mut self) -> Result<(), StoreError> {
        drop(self.publisher);
        self.writer.join_next().await.unwrap().unwrap()
    }

    /// The writer's own end.
    pub(crate) async fn ended(&mut self) -> Result<(), StoreError> {
        self.writer.join_next().await.unwrap().unwrap()
    }

    pub(crate) fn reader(&self, after: Position) -> Reader {
        self.store.reader(INFO.epoch, after).unwrap()
    }
}

pub(crate) const START: Position = Position { lsn: INFO.start_lsn, ordinal: 0 };

/// Reads until there are that many records.
pub(crate) async fn read(reader: &mut Reader, record_count: usize) -> Vec<Record> {
    let mut read = Vec::new();
    while read.len() < record_count {
        read.extend(records::records_of(&reader.next().await.unwrap()));
    }
    read
}
