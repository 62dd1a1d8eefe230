//! This release reads the files that were written by each release before it.
#![allow(clippy::unwrap_used, reason = "tests only")]

use std::{collections::BTreeMap, env, fs, path::Path};

use tidegate_model::{Delivered, Lsn, Position};

mod support;

use support::{
    INFO, Running, config, read,
    records::{Event, blocks, lsn, records, unfinished},
    row_types::{announcement, row_type},
};

/// Where the row type is announced, before the events.
const ANNOUNCED: Lsn = Lsn(0x900);

fn events() -> Vec<Event> {
    let transaction = |rows: &[u16]| Event::Transaction(rows.to_vec());
    let small = [transaction(&[3]), Event::Message(20), transaction(&[]), Event::Progress, transaction(&[0, 7, 190])];
    small.into_iter().chain((0..30).map(|n| Event::Transaction(vec![40 + n; 3]))).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A snapshot that began long before the newest segment, and has a cursor of one table there and of another here.
fn unfinished_snapshot() -> Vec<Event> {
    let begun = vec![Event::SnapshotBegin(3), Event::Chunk(3, vec![9; 4])];
    [begun, events(), vec![Event::SnapshotBegin(4), Event::Chunk(3, vec![9; 2]), Event::SnapshotEnd(4)]].concat()
}

/// Writes the files of the current version; see `fixtures/README.md`.
async fn write(fixture: &Path, events: &[Event]) {
    let dir = tempfile::tempdir().unwrap();
    let all = records(events);
    let mut running = Running::begin(config(dir.path())).await;
    running.publish([announcement(ANNOUNCED.0, &row_type(7, &["id", "note"]))]).await;
    running.publish(blocks(&all, 900)).await;
    running.close().await.unwrap();
    fs::remove_file(dir.path().join("lock")).unwrap();
    // Segments are named by where they start.
    fs::remove_dir_all(fixture).unwrap();
    copy(dir.path(), fixture);
}

#[tokio::test]
async fn version_1_is_read() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    if env::var_os("TIDEGATE_WRITE_FIXTURE").is_some() {
        write(&fixture, &events()).await;
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture, dir.path());
    let all = records(&events());
    let running = Running::open(config(dir.path())).await;
    let recovered = running.store.recovered().unwrap();
    assert_eq!((recovered.epoch, recovered.durable), (INFO, all[all.len() - 1].0));
    assert_eq!(recovered.delivered, Delivered::Stored);
    assert_eq!(recovered.last_transaction.unwrap().commit_end_lsn, lsn(34));
    assert_eq!(running.store.head().borrow().earliest, Position::end_of_transaction(INFO.start_lsn));
    let row_types = running.store.row_types();
    assert_eq!(row_types.get(7).unwrap().proto().columns, row_type(7, &["id", "note"]).columns);
    let read = read(&mut running.reader(Position::new(ANNOUNCED, 0)), all.len()).await;
    assert_eq!(read, all);
}

#[tokio::test]
async fn version_1_of_snapshots_is_read() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1-snapshots");
    if env::var_os("TIDEGATE_WRITE_FIXTURE").is_some() {
        write(&fixture, &unfinished_snapshot()).await;
    }
    assert!(fixture.join(INFO.epoch.to_string()).join("snapshots").exists());
    let dir = tempfile::tempdir().unwrap();
    copy(&fixture, dir.path());
    let running = Running::open(config(dir.path())).await;
    let snapshots = running.store.snapshots();
    let found = snapshots.iter().map(|(number, progress)| (*number, (progress.begin, progress.cursors.clone())));
    assert_eq!(found.collect::<BTreeMap<_, _>>(), unfinished(&records(&unfinished_snapshot())));
    assert_eq!(snapshots[&3].cursors.len(), 2);
}
