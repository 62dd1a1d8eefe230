//! A mirror beside a changelog, through the writer.
#![allow(clippy::unwrap_used, reason = "tests only")]

use std::{fs, path::Path};

use bytes::BytesMut;
use prost::Message as _;
use tidegate_feed::{FeedItem, Publish};
use tidegate_model::{
    Block, BlockBuilder, Entry, Epoch, EpochInfo, Kind, Lsn, Op, Position, SNAPSHOT_ORDINAL, TableName, TablePatterns,
};
use tidegate_proto::v1;
use tidegate_schema::{
    BeginParts, ChangeParts, Extra, OldKind, event_body, push_begin, push_change, push_commit, set_ordinal, wire,
};
use tidegate_store::{Difference, DifferenceKind, INDEXES_MAX, MirrorError, MirrorReader, Stage, StoreConfig};

mod support;

use support::{INFO, Running, START, config, row_types::row_type};

const OID: u32 = 16_385;

/// Writes records at one position after another.
#[derive(Default)]
struct Script {
    builder: BlockBuilder,
    lsn: u64,
}

impl Script {
    fn mark(&mut self, kind: Kind, ordinal: u32, row_type: u32, bytes: &[u8]) {
        let entry =
            Entry { lsn: Lsn(self.lsn), ordinal, row_type, start: 0, end: 0, kind, op: Op::None, continues: false };
        self.builder.push(entry, bytes);
    }

    fn change(&mut self, ordinal: u32, op: Op, row: &[u8], unchanged: &[u32]) {
        let (old, old_kind) = if op == Op::Delete { (row, OldKind::Key) } else { (&[][..], OldKind::None) };
        let row = if op == Op::Delete { &[][..] } else { row };
        let parts = ChangeParts { op, row_type: 1, row, old, old_kind, unchanged, extra: Extra::None };
        let first = self.builder.entries.len();
        push_change(&parts, Lsn(self.lsn), &mut self.builder);
        for entry in &mut self.builder.entries[first..] {
            entry.ordinal = ordinal;
            set_ordinal(&mut self.builder.payload, entry, ordinal);
        }
    }

    /// Announces the row type, and reads these rows in a snapshot. Where it ends.
    fn snapshot(&mut self, number: u32, rows: &[&[u8]]) -> Position {
        let at = |script: &mut Self| {
            script.lsn += 16;
            SNAPSHOT_ORDINAL
        };
        let ordinal = at(self);
        let begin =
            v1::SnapshotBegin { snapshot: number, tables: vec!["public.orders".to_owned()], ..Default::default() };
        self.mark(Kind::SnapshotBegin, ordinal, number, &begin.encode_to_vec());
        let ordinal = at(self);
        self.mark(Kind::RowType, ordinal, 1, &row_type(1, &["id", "note"]).encode_to_vec());
        let position = Position::new(Lsn(self.lsn), ordinal);
        push_begin(&BeginParts { position, snapshot: number, ..BeginParts::default() }, &mut self.builder);
        rows.iter().for_each(|row| self.change(ordinal, Op::Read, row, &[]));
        self.mark(Kind::SnapshotCursor, ordinal, number, &cursor(number));
        push_commit(position, number, &mut self.builder);
        let ordinal = at(self);
        let end = v1::SnapshotEnd { snapshot: number, ..Default::default() };
        self.mark(Kind::SnapshotEnd, ordinal, number, &end.encode_to_vec());
        Position::new(Lsn(self.lsn), ordinal)
    }

    fn transaction(&mut self, changes: &[(Op, Vec<u8>, &[u32])]) -> Position {
        self.lsn += 16;
        let position = Position::new(Lsn(self.lsn), 0);
        push_begin(&BeginParts { position, ..BeginParts::default() }, &mut self.builder);
        for (ordinal, (op, row, unchanged)) in (1..).zip(changes) {
            self.change(ordinal, *op, row, unchanged);
        }
        let end = Position::new(Lsn(self.lsn), changes.len() as u32);
        push_commit(end, 0, &mut self.builder);
        end
    }

    fn take(&mut self) -> Block {
        self.builder.finish()
    }
}

fn script() -> Script {
    Script { lsn: 0x1000, ..Script::default() }
}

/// A row of public.orders.
fn row(id: &str, note: Option<&str>) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::put_len_field(&mut out, 1, id.as_bytes());
    note.iter().for_each(|note| wire::put_len_field(&mut out, 2, note.as_bytes()));
    out.to_vec()
}

fn cursor(snapshot: u32) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::put_varint_field(&mut out, 1, u64::from(snapshot));
    wire::put_varint_field(&mut out, 2, u64::from(OID));
    wire::put_len_field(&mut out, 6, b"public");
    wire::put_len_field(&mut out, 7, b"orders");
    out.to_vec()
}

fn orders() -> TableName {
    TableName::new("public", "orders")
}

fn needs_snapshot(mirror: &MirrorReader) -> bool {
    !mirror.needs_snapshot(&[orders()]).unwrap().is_empty()
}

/// The changes of the log after a position, up to another.
async fn changes(running: &Running, after: Position, through: Position) -> Vec<v1::Change> {
    let mut reader = running.reader(after);
    let mut found = Vec::new();
    loop {
        let block = reader.next().await.unwrap();
        for entry in block.entries().iter().filter(|entry| entry.kind == Kind::Change && entry.position() > after) {
            found.push(v1::Change::decode(event_body(&block.slice(entry)).unwrap()).unwrap());
        }
        if block.last() >= through {
            return found;
        }
    }
}

async fn begin(config: StoreConfig) -> (Running, MirrorReader) {
    let (mut running, mirror) = Running::open_mirrored(config).await;
    running.publisher.publish(FeedItem::Epoch(INFO, None)).await.unwrap();
    running.store.head().wait_for(|head| head.epoch == Some(INFO.epoch)).await.unwrap();
    (running, mirror)
}

fn mirror_dir(dir: &Path, epoch: Epoch) -> std::path::PathBuf {
    dir.join("mirror").join(epoch.to_string())
}

#[tokio::test]
async fn a_mirrored_table_is_filled_from_its_snapshot_on_and_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, mirror) = begin(config(dir.path())).await;
    let end = script.snapshot(1, &[&row("a", Some("one")), &row("b", Some("two"))]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    let update = script.transaction(&[(Op::Update, row("a", None), &[2]), (Op::Delete, row("b", None), &[])]);
    running.publish([script.take()]).await;
    running.durable(update).await;
    let found = changes(&running, end, update).await;
    assert_eq!((&found[0].row[..], &found[0].old[..]), (&row("a", Some("one"))[..], &row("a", Some("one"))[..]));
    assert_eq!((found[0].old_kind(), found[0].unchanged.len()), (v1::change::OldKind::Full, 0));
    assert_eq!((&found[1].old[..], found[1].old_kind()), (&row("b", Some("two"))[..], v1::change::OldKind::Full));
    running.close().await.unwrap();

    let (mut running, mirror_again) = Running::open_mirrored(config(dir.path())).await;
    assert!(mirror.tables().unwrap().is_empty());
    let update = script.transaction(&[(Op::Update, row("a", Some("three")), &[])]);
    running.publish([script.take()]).await;
    running.durable(update).await;
    assert!(!needs_snapshot(&mirror_again));
    let found = changes(&running, end, update).await;
    assert_eq!(&found[2].old[..], &row("a", Some("one"))[..]);
    let (at, held) = mirror_again.get(OID, &row("a", None)).unwrap();
    assert_eq!((at, &held.unwrap().row[..]), (update, &row("a", Some("three"))[..]));
    running.close().await.unwrap();
}

#[tokio::test]
async fn what_is_asked_for_while_it_cannot_be_remembered_is_followed_once_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let on_demand = TablePatterns::parse(["*.*"]).unwrap();
    let (mut running, mirror) =
        Running::open_mirroring(config(dir.path()), TablePatterns::none(), on_demand.clone()).await;
    running.publisher.publish(FeedItem::Epoch(INFO, None)).await.unwrap();
    // What an earlier mirror may have left is removed by then.
    let begun = script.transaction(&[]);
    running.publish([script.take()]).await;
    running.durable(begun).await;
    // Stands where the file is written.
    let in_the_way = dir.path().join("mirror").join("asked.new");
    fs::create_dir_all(&in_the_way).unwrap();
    assert!(mirror.request(&orders()));
    let end = script.transaction(&[]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    assert!(!mirror.follows(&orders()));
    fs::remove_dir(in_the_way).unwrap();
    mirror.positions().wait_for(|position| *position != Position::ZERO).await.unwrap();
    assert!(mirror.follows(&orders()));
    running.close().await.unwrap();

    let (running, mirror) = Running::open_mirroring(config(dir.path()), TablePatterns::none(), on_demand).await;
    assert!(mirror.follows(&orders()));
    running.close().await.unwrap();
}

#[tokio::test]
async fn a_lost_mirror_needs_a_snapshot_and_the_changelog_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, _) = begin(config(dir.path())).await;
    let end = script.snapshot(1, &[&row("a", Some("one"))]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    running.close().await.unwrap();
    fs::remove_dir_all(mirror_dir(dir.path(), INFO.epoch)).unwrap();

    let (mut running, mirror) = Running::open_mirrored(config(dir.path())).await;
    let update = script.transaction(&[(Op::Update, row("a", None), &[2])]);
    running.publish([script.take()]).await;
    running.durable(update).await;
    assert!(needs_snapshot(&mirror));
    assert_eq!(changes(&running, end, update).await[0].unchanged, [2]);
    let end = script.snapshot(2, &[&row("a", Some("one"))]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    assert!(!needs_snapshot(&mirror));
    assert_eq!(mirror.scan(OID).unwrap().count(), 1);
    running.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_mirror_is_dropped_and_needs_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, _) = begin(config(dir.path())).await;
    let end = script.snapshot(1, &[&row("a", Some("one"))]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    running.close().await.unwrap();
    for entry in fs::read_dir(mirror_dir(dir.path(), INFO.epoch)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(path, [0xff; 100]).unwrap();
        }
    }
    let (mut running, mirror) = Running::open_mirrored(config(dir.path())).await;
    let update = script.transaction(&[(Op::Update, row("a", Some("two")), &[])]);
    running.publish([script.take()]).await;
    running.durable(update).await;
    assert!(needs_snapshot(&mirror));
    running.close().await.unwrap();
}

#[tokio::test]
async fn another_epoch_drops_the_mirror() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, mirror) = begin(config(dir.path())).await;
    let end = script.snapshot(1, &[&row("a", Some("one"))]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    let next = EpochInfo { epoch: Epoch(0xbeef), ..INFO };
    running.publisher.publish(FeedItem::Epoch(next, None)).await.unwrap();
    let mut again = Script { lsn: 0x9000, ..Script::default() };
    let begun = again.transaction(&[]);
    running.publish([again.take()]).await;
    running.publisher.durable().wait_for(|durable| durable.epoch == Some(next.epoch)).await.unwrap();
    running.durable(begun).await;
    assert!(needs_snapshot(&mirror));
    assert!(!mirror_dir(dir.path(), INFO.epoch).exists() && mirror_dir(dir.path(), next.epoch).exists());
    running.close().await.unwrap();
    assert!(START < begun);
}

#[tokio::test]
async fn an_index_is_built_while_nothing_happens() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, mirror) = begin(config(dir.path())).await;
    let rows: Vec<Vec<u8>> = (0..3000).map(|n| row(&format!("id {n}"), Some(["x", "y"][n % 2]))).collect();
    let end = script.snapshot(1, &rows.iter().map(|row| &row[..]).collect::<Vec<_>>());
    running.publish([script.take()]).await;
    running.durable(end).await;
    mirror.add_index(OID, [2]);
    let mut changed = mirror.changed();
    let index = loop {
        if let Some(index) = mirror.index(OID, [2]).unwrap() {
            break index;
        }
        changed.changed().await.unwrap();
    };
    let y = &row("", Some("y"))[2..];
    assert_eq!(mirror.lookup(index, y).unwrap().count(), 1500);
    let sum = mirror.checksum(OID, None, 1000).unwrap();
    let rest = mirror.checksum(OID, sum.last.as_deref(), 5000).unwrap();
    assert_eq!((sum.row_count, rest.row_count, rest.position), (1000, 2000, end));

    // However many are asked for at once, a table has so many.
    let fields = 3..3 + 2 * INDEXES_MAX as u32;
    fields.for_each(|field| mirror.add_index(OID, [field]));
    let complete = || mirror.indexes(OID).unwrap().iter().filter(|index| index.complete).count();
    while complete() < INDEXES_MAX {
        changed.changed().await.unwrap();
    }
    assert_eq!(mirror.indexes(OID).unwrap().len(), INDEXES_MAX);
    running.close().await.unwrap();
}

#[tokio::test]
async fn an_index_that_nobody_reads_by_gives_way_to_one_that_is_asked_for_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, mirror) = begin(config(dir.path())).await;
    let rows: Vec<Vec<u8>> = (0..300).map(|n| row(&format!("id {n}"), Some(["x", "y"][n % 2]))).collect();
    script.snapshot(1, &rows.iter().map(|row| &row[..]).collect::<Vec<_>>());
    let fields = 2..2 + INDEXES_MAX as u32;
    fields.clone().for_each(|field| mirror.add_index(OID, [field]));
    let mut changed = mirror.changed();
    running.publish([script.take()]).await;
    while mirror.indexes(OID).map_or(0, |indexes| indexes.iter().filter(|index| index.complete).count()) < INDEXES_MAX {
        changed.changed().await.unwrap();
    }
    let (unused, asked) = (5, 100);
    let gone = mirror.index(OID, [unused]).unwrap().unwrap();
    let y = &row("", Some("y"))[2..];
    let mut moved = 0;
    while mirror.index(OID, [asked]).unwrap().is_none() {
        for field in fields.clone().filter(|field| *field != unused) {
            let index = mirror.index(OID, [field]).unwrap().expect("it is used");
            let expected = if field == 2 { 150 - moved } else { 0 };
            assert_eq!(mirror.lookup(index, y).unwrap().count(), expected, "of field {field}");
        }
        mirror.add_index(OID, [asked]);
        let key = format!("id {}", 2 * moved + 1);
        let end = script.transaction(&[(Op::Update, row(&key, Some("x")), &[])]);
        running.publish([script.take()]).await;
        mirror.positions().wait_for(|position| *position >= end).await.unwrap();
        moved += 1;
    }
    assert!(matches!(mirror.lookup(gone, y).map(Iterator::count), Err(MirrorError::IndexNotComplete)));
    let known = || -> Vec<u32> { mirror.indexes(OID).unwrap().iter().map(|index| index.fields[0]).collect() };
    let expected: Vec<u32> = fields.filter(|field| *field != unused).chain([asked]).collect();
    assert_eq!(known(), expected);
    // Of rows without a value, that of none.
    assert_eq!(mirror.lookup(mirror.index(OID, [asked]).unwrap().unwrap(), &[]).unwrap().count(), 300);
    running.close().await.unwrap();

    let (mut running, mirror) = Running::open_mirrored(config(dir.path())).await;
    let end = script.transaction(&[(Op::Update, row("id 299", Some("x")), &[])]);
    running.publish([script.take()]).await;
    mirror.positions().wait_for(|position| *position >= end).await.unwrap();
    let known: Vec<u32> = mirror.indexes(OID).unwrap().iter().map(|index| index.fields[0]).collect();
    assert_eq!(known, expected);
    assert_eq!(mirror.lookup(mirror.index(OID, [2]).unwrap().unwrap(), y).unwrap().count(), 149 - moved);
    running.close().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_shows_what_differs_from_the_mirror_and_puts_it_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, mirror) = begin(config(dir.path())).await;
    assert!(mirror.verify(&orders()).is_err());
    let end = script.snapshot(1, &[&row("a", Some("one")), &row("b", Some("two")), &row("c", Some("three"))]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    let verification = mirror.verify(&orders()).unwrap();
    let mut snapshots = verification.snapshots();
    for (number, expected) in [
        (2, vec![(DifferenceKind::Different, "b"), (DifferenceKind::Missing, "d"), (DifferenceKind::Extra, "c")]),
        (3, vec![]),
    ] {
        let rows = [row("a", Some("one")), row("b", Some("other")), row("d", Some("four"))];
        let end = script.snapshot(number, &rows.each_ref().map(|row| &row[..]));
        running.publish([script.take()]).await;
        running.durable(end).await;
        let done = snapshots.wait_for(|all| all.get(&number).is_some_and(|compared| compared.stage == Stage::Done));
        let compared = done.await.unwrap()[&number].clone();
        let expected: Vec<_> =
            expected.iter().map(|(kind, id)| Difference { kind: *kind, key: row(id, None).into() }).collect();
        assert_eq!((compared.row_count, compared.difference_count), (3, expected.len() as u64));
        assert_eq!(compared.differences, expected);
    }
    drop(verification);
    running.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn rows_per_second() {
    const ROWS: usize = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let mut script = script();
    let (mut running, mirror) = begin(StoreConfig::new(dir.path())).await;
    let end = script.snapshot(1, &[]);
    running.publish([script.take()]).await;
    running.durable(end).await;
    let note = "n".repeat(100);
    let key = |n: usize| format!("{:010}", n * 7919 % ROWS);
    for (name, op) in [("inserts", Op::Insert), ("updates, filled", Op::Update)] {
        let mut blocks = Vec::new();
        let mut last = end;
        for first in (0..ROWS).step_by(400) {
            let changes: Vec<_> = (first..first + 400).map(|n| (op, row(&key(n), Some(&note)), &[][..])).collect();
            last = script.transaction(&changes);
            blocks.push(script.take());
        }
        let started = std::time::Instant::now();
        running.publish(blocks).await;
        running.durable(last).await;
        eprintln!("{name}: {:.0} rows/s", ROWS as f64 / started.elapsed().as_secs_f64());
    }
    let started = std::time::Instant::now();
    assert_eq!(mirror.scan(OID).unwrap().count(), ROWS);
    eprintln!("scan: {:.0} rows/s", ROWS as f64 / started.elapsed().as_secs_f64());
    let started = std::time::Instant::now();
    assert!((0..ROWS).step_by(3).all(|n| mirror.get(OID, &row(&key(n), None)).unwrap().1.is_some()));
    eprintln!("get: {:.0} rows/s", ROWS as f64 / 3.0 / started.elapsed().as_secs_f64());
    running.close().await.unwrap();
}
