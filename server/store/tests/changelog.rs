//! What readers see of what the feed brings, through the writer, the tail and the segments.
#![allow(clippy::unwrap_used, reason = "tests only")]

use std::{fs, time::Duration};

use proptest::prelude::*;
use tidegate_feed::{FeedItem, Publish};
use tidegate_model::{Epoch, EpochInfo, Lsn, Position, TableName};
use tidegate_store::{ReadError, Retention, StoreError};
use tokio::task::JoinSet;

mod support;

use support::{
    INFO, Running, START, config, read,
    records::{Event, blocks, complete, events, lsn, records, records_of},
    row_types::{announcement, row_type},
};

/// Transactions of three rows of 100 bytes.
fn transactions(count: usize) -> Vec<Event> {
    vec![Event::Transaction(vec![100; 3]); count]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_reader_sees_exactly_what_was_appended(
        events in events(), block_bytes in 0_usize..3000, segment_bytes in 100_u64..8000, tail_bytes in 0_usize..8000,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let all = records(&events);
            let expected = complete(&all).to_vec();
            let config = tidegate_store::StoreConfig { segment_bytes, tail_bytes, ..config(dir.path()) };
            let mut running = Running::begin(config).await;
            let mut readers = JoinSet::new();
            for _ in 0..3 {
                let (mut reader, count) = (running.reader(START), expected.len());
                readers.spawn(async move { read(&mut reader, count).await });
            }
            running.publish(blocks(&all, block_bytes)).await;
            while let Some(read) = readers.join_next().await {
                assert!(read.unwrap() == expected);
            }
            // From any transaction on, and with nothing before it but in the first block.
            for (n, _) in events.iter().enumerate() {
                let after = Position::new(lsn(n), 0).as_resume_point();
                let wanted: Vec<_> = expected.iter().filter(|record| record.0 > after).cloned().collect();
                let mut reader = running.reader(after);
                let mut found = Vec::new();
                while found.len() < wanted.len() {
                    found.extend(records_of(&reader.next().await.unwrap()).into_iter().filter(|record| record.0 > after));
                }
                assert!(found == wanted);
            }
            // And from any place on, however far the reader that has told it had looked ahead.
            let (mut reader, mut passed) = (running.reader(START), 0);
            while passed < expected.len() {
                let mut behind = running.store.reader_behind(INFO.epoch, reader.place()).unwrap();
                assert!(read(&mut behind, expected.len() - passed).await == expected[passed..]);
                passed += reader.next().await.unwrap().entries().len();
                assert!(reader.place() > running.reader(START).place());
            }
            running.close().await.unwrap();
        });
    }
}

#[tokio::test]
async fn nothing_is_seen_of_a_transaction_before_its_commit() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(2));
    let mut running = Running::begin(config(dir.path())).await;
    let mut reader = running.reader(START);
    // The first transaction, and all of the second but its commit.
    running.publish(blocks(&all[..9], 1 << 20)).await;
    assert_eq!(read(&mut reader, 5).await, all[..5]);
    running.stop.cancel();
    running.ended().await.unwrap();
    assert_eq!(reader.try_next(), Ok(None));
    assert_eq!(running.store.head().borrow().complete, all[4].0);
    drop(running);
    let running = Running::open(config(dir.path())).await;
    assert_eq!(running.store.recovered().unwrap().durable, all[4].0);
}

#[tokio::test]
async fn a_store_opened_again_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(60));
    let mut running = Running::begin(config(dir.path())).await;
    running.publish(blocks(&all[..150], 500)).await;
    running.close().await.unwrap();
    let mut running = Running::open(config(dir.path())).await;
    let recovered = running.store.recovered().unwrap();
    assert_eq!((recovered.epoch, recovered.durable), (INFO, all[149].0));
    let last = recovered.last_transaction.unwrap();
    assert_eq!((last.commit_end_lsn, last.xid, last.commit_time_us), (lsn(29), 30, 1_700_000_029_000_000));
    let head = *running.store.head().borrow();
    assert_eq!((head.complete, head.commit_time_us), (all[149].0, last.commit_time_us));
    // The first half comes again: it is known.
    running.publish(blocks(&all[..150], 500)).await;
    running.publish(blocks(&all[150..], 700)).await;
    assert_eq!(read(&mut running.reader(START), 300).await, all);
    running.close().await.unwrap();
}

#[tokio::test]
async fn everything_published_is_durable_when_the_writer_stops() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(500));
    let mut running = Running::begin(config(dir.path())).await;
    running.publish(blocks(&all, 300)).await;
    running.stop.cancel();
    running.ended().await.unwrap();
    assert_eq!(running.publisher.durable().borrow().position, all[all.len() - 1].0);
    assert!(running.publisher.publish(FeedItem::Epoch(INFO, None)).await.is_err());
}

#[tokio::test]
async fn a_reader_ahead_of_the_head_waits_for_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(10));
    let mut running = Running::begin(config(dir.path())).await;
    let mut reader = running.reader(all[24].0);
    assert_eq!(reader.try_next(), Ok(None));
    running.publish(blocks(&all, 0)).await;
    let first = records_of(&reader.next().await.unwrap());
    assert_eq!(first, all[25..=25]);
}

#[tokio::test]
async fn a_next_that_is_dropped_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(200));
    let mut running = Running::begin(tidegate_store::StoreConfig { tail_bytes: 0, ..config(dir.path()) }).await;
    running.publish(blocks(&all, 300)).await;
    running.durable(all[all.len() - 1].0).await;
    let (mut reader, mut found) = (running.reader(START), Vec::new());
    while found.len() < all.len() {
        let block = tokio::select! {
            biased;
            block = reader.next() => block.unwrap(),
            () = std::future::ready(()) => { tokio::task::yield_now().await; continue }
        };
        found.extend(records_of(&block));
    }
    assert!(found == all);
}

#[tokio::test]
async fn a_reader_that_the_retention_overtakes_is_told_where_it_can_start() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(300));
    let retention = Retention { size_bytes: 20_000, age: Duration::from_secs(1 << 30) };
    let mut running = Running::begin(tidegate_store::StoreConfig { retention, ..config(dir.path()) }).await;
    running.publish(blocks(&all[..5], 300)).await;
    let mut slow = running.reader(START);
    read(&mut slow, 5).await;
    for part in all[5..].chunks(100) {
        running.publish(blocks(part, 300)).await;
        if let Some(last) = complete(part).last() {
            running.durable(last.0).await;
        }
    }
    let earliest = match slow.next().await {
        Err(ReadError::TooOld { earliest }) => earliest,
        other => panic!("{other:?}"),
    };
    assert_eq!(running.store.reader(INFO.epoch, START).err(), Some(ReadError::TooOld { earliest }));
    let head = *running.store.head().borrow();
    assert_eq!(head.earliest, earliest);
    assert!(head.changelog_bytes < 30_000, "{head:?}");
    let kept: Vec<_> = all.iter().filter(|record| record.0 > earliest).cloned().collect();
    assert!(!kept.is_empty() && kept.len() < all.len());
    let mut reader = running.reader(earliest);
    let mut found = Vec::new();
    while found.len() < kept.len() {
        found.extend(records_of(&reader.next().await.unwrap()).into_iter().filter(|record| record.0 > earliest));
    }
    assert!(found == kept);
    running.close().await.unwrap();
    let running = Running::open(config(dir.path())).await;
    assert_eq!(running.store.head().borrow().earliest, earliest);
}

#[tokio::test]
async fn a_new_epoch_ends_the_readers_of_the_old_and_removes_it() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(10));
    let mut running = Running::begin(config(dir.path())).await;
    assert_eq!(running.store.reader(Epoch(1), START).err(), Some(ReadError::OtherEpoch { current: Some(INFO.epoch) }));
    running.publish(blocks(&all, 100)).await;
    running.durable(all[all.len() - 1].0).await;
    let mut reader = running.reader(all[all.len() - 1].0);
    let next = EpochInfo { epoch: Epoch(2), timeline: 3, start_lsn: Lsn(0x100), ..INFO };
    running.publisher.publish(FeedItem::Epoch(next, Some("it was\nasked for".into()))).await.unwrap();
    assert_eq!(reader.next().await, Err(ReadError::OtherEpoch { current: Some(next.epoch) }));
    running.publish(blocks(&all, 100)).await;
    let mut reader = running.store.reader(next.epoch, Position::new(next.start_lsn, 0)).unwrap();
    assert_eq!(read(&mut reader, all.len()).await, all);
    running.close().await.unwrap();
    assert!(!dir.path().join(INFO.epoch.to_string()).exists());
    let running = Running::open(config(dir.path())).await;
    assert_eq!(running.store.recovered().unwrap().epoch, next);
    assert_eq!(running.store.reset_reason().as_deref(), Some("it was asked for"));
}

#[tokio::test]
async fn a_reader_that_is_behind_receives_what_the_old_epoch_had() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(10));
    let mut running = Running::begin(config(dir.path())).await;
    let mut reader = running.reader(START);
    let next = EpochInfo { epoch: Epoch(2), start_lsn: Lsn(0x100), ..INFO };
    running.publish(blocks(&all, 100)).await;
    running.publisher.publish(FeedItem::Epoch(next, None)).await.unwrap();
    let mut head = running.store.head();
    head.wait_for(|head| head.epoch == Some(next.epoch)).await.unwrap();
    assert_eq!(read(&mut reader, all.len()).await, all);
    assert_eq!(reader.next().await, Err(ReadError::OtherEpoch { current: Some(next.epoch) }));
}

#[tokio::test]
async fn another_timeline_of_the_same_epoch_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(2));
    let mut running = Running::begin(config(dir.path())).await;
    running.publish(blocks(&all[..5], 100)).await;
    running.publisher.publish(FeedItem::Timeline(EpochInfo { timeline: 2, ..INFO })).await.unwrap();
    running.publish(blocks(&all[5..], 100)).await;
    assert_eq!(read(&mut running.reader(START), 10).await, all);
    running.close().await.unwrap();
    let running = Running::open(config(dir.path())).await;
    assert_eq!(running.store.recovered().unwrap().epoch, EpochInfo { timeline: 2, ..INFO });
}

#[tokio::test]
async fn a_row_types_number_with_another_meaning_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::begin(config(dir.path())).await;
    let stored = row_type(7, &["id", "note"]);
    let mut moved = stored.clone();
    moved.columns[1].attnum = 9;
    running.publish([announcement(0x900, &stored), announcement(0x910, &moved)]).await;
    running.durable(Position::new(Lsn(0x910), 0)).await;
    running.publish([announcement(0x920, &row_type(7, &["id", "price"]))]).await;
    let error = running.ended().await.unwrap_err();
    assert!(matches!(&error, StoreError::RowTypeReused { row_type: 7, .. }), "{error}");
    assert!(running.store.row_types().get(7).unwrap().column("note").is_some());
    let running = Running::open(config(dir.path())).await;
    assert_eq!(running.store.recovered().unwrap().durable, Position::new(Lsn(0x910), 0));
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(2));
    let mut running = Running::open(config(dir.path())).await;
    assert_eq!(running.store.recovered(), None);
    assert_eq!(running.store.reader(INFO.epoch, START).err(), Some(ReadError::OtherEpoch { current: None }));
    running.publish(blocks(&all, 1000)).await;
    assert!(matches!(running.ended().await, Err(StoreError::NoEpoch)));
    drop(running);
    let mut running = Running::begin(config(dir.path())).await;
    running.publish(blocks(&all[5..8], 1000)).await;
    running.publish(blocks(&all[5..], 1000)).await;
    assert!(matches!(running.ended().await, Err(StoreError::OutOfOrder { .. })));
}

#[tokio::test]
async fn a_directory_is_used_by_one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::begin(config(dir.path())).await;
    let second =
        tidegate_store::Store::open(config(dir.path()), std::sync::Arc::new(tidegate_model::SystemClock)).await;
    assert!(matches!(second, Err(StoreError::Locked(_))));
    running.close().await.unwrap();
    Running::open(config(dir.path())).await.close().await.unwrap();
}

#[tokio::test]
async fn damage_in_an_older_segment_is_named_by_file_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&transactions(100));
    let mut running = Running::begin(config(dir.path())).await;
    running.publish(blocks(&all, 300)).await;
    running.durable(all[all.len() - 1].0).await;
    let entries = fs::read_dir(dir.path().join(INFO.epoch.to_string())).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    let mut bytes = fs::read(&paths[1]).unwrap();
    bytes[300] ^= 1;
    fs::write(&paths[1], bytes).unwrap();
    let mut reader = running.reader(START);
    let error = loop {
        match reader.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, ReadError::Damaged { path, .. } if *path == paths[1]), "{error}");
}

#[tokio::test]
async fn row_types_are_known_before_their_block_is_seen_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = Running::begin(config(dir.path())).await;
    let changed = running.store.row_types_changed();
    let (first, second) = (row_type(1, &["id"]), row_type(2, &["id", "note"]));
    running.publish([announcement(0x1000, &first), announcement(0x1010, &second)]).await;
    let mut reader = running.reader(Position::new(Lsn(0x1000), 0));
    reader.next().await.unwrap();
    let name = TableName::new("public", "orders");
    assert_eq!(running.store.row_types().newest(&name).unwrap().proto(), &second);
    assert!(changed.has_changed().unwrap());
    let file = dir.path().join(INFO.epoch.to_string()).join("row_types");
    let byte_count = fs::metadata(&file).unwrap().len();
    // The same again is no news, unless the table has come back to it.
    running.publish([announcement(0x1020, &second)]).await;
    running.close().await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().len(), byte_count);
    let mut running = Running::open(config(dir.path())).await;
    running.publish([announcement(0x1030, &first)]).await;
    running.close().await.unwrap();
    let byte_count = fs::metadata(&file).unwrap().len();
    // A torn group is cut.
    fs::write(&file, [fs::read(&file).unwrap(), vec![200, 0, 0, 0, 1, 2]].concat()).unwrap();
    let running = Running::open(config(dir.path())).await;
    assert_eq!(fs::metadata(&file).unwrap().len(), byte_count);
    let known = running.store.row_types();
    assert_eq!(known.get(1).unwrap().proto(), &first);
    assert_eq!(known.newest(&name).unwrap().proto(), &first);
    assert_eq!((known.iter().count(), known.tables().count()), (2, 1));
}

/// A snapshot amid transactions: its begin, two chunks, its end.
fn snapshot() -> Vec<Event> {
    let chunk = || [transactions(2), vec![Event::Chunk(7, vec![50; 4])]].concat();
    [transactions(3), vec![Event::SnapshotBegin(7)], chunk(), chunk(), vec![Event::SnapshotEnd(7)], transactions(1)]
        .concat()
}

#[tokio::test]
async fn what_is_seen_of_a_snapshot_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(&snapshot());
    for block_bytes in [0, 300, 1 << 20] {
        let mut running = Running::begin(config(&dir.path().join(block_bytes.to_string()))).await;
        let mut reader = running.reader(START);
        for block in blocks(&all, block_bytes) {
            running.publish([block]).await;
        }
        let mut found = Vec::new();
        while found.len() < all.len() {
            let block = reader.next().await.unwrap();
            let of_snapshot = block.entries().iter().rfind(|entry| entry.completes() && entry.is_of_snapshot());
            let durable = running.store.head().borrow().durable;
            assert!(of_snapshot.is_none_or(|entry| entry.position() <= durable), "{durable}");
            found.extend(records_of(&block));
        }
        assert_eq!(found, all);
    }
}

#[tokio::test]
async fn an_unfinished_snapshot_is_known_after_a_restart_though_its_begin_is_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let begun = [vec![Event::SnapshotBegin(7), Event::Chunk(7, vec![9; 2])], transactions(100)].concat();
    let all = records(&[begun, vec![Event::Chunk(7, vec![9; 4]), Event::SnapshotEnd(7)]].concat());
    let (rest, first) = (all.len() - 8, all[0].0);
    let retention = Retention { size_bytes: 5_000, age: Duration::from_secs(1 << 30) };
    let config = tidegate_store::StoreConfig { retention, ..config(dir.path()) };
    let mut running = Running::begin(config.clone()).await;
    running.publish(blocks(&all[..rest], 300)).await;
    running.durable(all[rest - 1].0).await;
    let seen = running.store.snapshots();
    running.close().await.unwrap();

    let mut running = Running::open(config.clone()).await;
    let mut head = running.store.head();
    let trimmed = head.wait_for(|head| head.earliest > first);
    tokio::time::timeout(Duration::from_secs(60), trimmed).await.expect("it is trimmed").unwrap();
    let snapshots = running.store.snapshots();
    assert_eq!(snapshots, seen);
    assert_eq!(snapshots[&7].begin, first);
    assert_eq!(snapshots[&7].cursors.values().map(|cursor| cursor.row_count).collect::<Vec<_>>(), [1]);
    running.publish(blocks(&all[rest..rest + 7], 300)).await;
    running.durable(all[rest + 6].0).await;
    assert_eq!(running.store.snapshots()[&7].cursors.len(), 2);
    running.publish(blocks(&all[rest + 7..], 300)).await;
    running.close().await.unwrap();
    assert!(Running::open(config).await.store.snapshots().is_empty());
}
