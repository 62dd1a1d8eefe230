//! Makes the records of random transactions, cut into blocks at random places.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, MESSAGE_ORDINAL, Op, Position, SNAPSHOT_ORDINAL};
use tidegate_proto::v1;

/// What happens at one LSN.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A transaction with rows of these sizes.
    Transaction(Vec<u16>),
    /// A message outside of transactions.
    Message(u16),
    Progress,
    /// A snapshot of this number begins. Here, its records have the ordinal 2^31 and its number.
    SnapshotBegin(u32),
    /// A chunk of a snapshot, with rows of these sizes.
    Chunk(u32, Vec<u16>),
    SnapshotEnd(u32),
}

/// Position, kind and bytes: what a reader is to find.
pub(crate) type Record = (Position, Kind, Bytes);

pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => proptest::collection::vec(0_u16..200, 0..6).prop_map(Event::Transaction),
        1 => proptest::collection::vec(0_u16..200, 50..120).prop_map(Event::Transaction),
        1 => (0_u16..200).prop_map(Event::Message),
        1 => Just(Event::Progress),
        1 => (1_u32..4).prop_map(Event::SnapshotBegin),
        2 => (1_u32..4, proptest::collection::vec(0_u16..200, 0..30)).prop_map(|(number, rows)| Event::Chunk(number, rows)),
        1 => (1_u32..4).prop_map(Event::SnapshotEnd),
    ];
    proptest::collection::vec(event, 1..60)
}

/// The LSN of the n-th event.
pub(crate) fn lsn(n: usize) -> Lsn {
    Lsn(0x1000 + 16 * n as u64)
}

/// Seconds since 1970 of the n-th event's commit.
pub(crate) fn commit_s(n: usize) -> i64 {
    1_700_000_000 + n as i64
}

pub(crate) fn records(events: &[Event]) -> Vec<Record> {
    let mut records = Vec::new();
    for (n, event) in events.iter().enumerate() {
        let at = |ordinal| Position::new(lsn(n), ordinal);
        match event {
            Event::Transaction(rows) => {
                records.push((at(0), Kind::Begin, begin(n, n as u32 + 1)));
                for (row, size) in rows.iter().enumerate() {
                    let bytes = Bytes::from(vec![(n + row) as u8; *size as usize]);
                    records.push((at(row as u32 + 1), Kind::Change, bytes));
                }
                records.push((at(rows.len() as u32), Kind::Commit, Bytes::new()));
            }
            Event::Message(size) => {
                records.push((at(MESSAGE_ORDINAL), Kind::Begin, begin(n, 0)));
                records.push((at(MESSAGE_ORDINAL), Kind::Change, Bytes::from(vec![9; *size as usize])));
                records.push((at(MESSAGE_ORDINAL), Kind::Commit, Bytes::new()));
            }
            Event::SnapshotBegin(number) => {
                records.push((at(SNAPSHOT_ORDINAL + number), Kind::SnapshotBegin, Bytes::new()));
            }
            Event::SnapshotEnd(number) => {
                records.push((at(SNAPSHOT_ORDINAL + number), Kind::SnapshotEnd, Bytes::new()));
            }
            Event::Chunk(number, rows) => {
                let at = at(SNAPSHOT_ORDINAL + number);
                records.push((at, Kind::Begin, begin(n, 0)));
                records.extend(rows.iter().map(|size| (at, Kind::Change, Bytes::from(vec![7; *size as usize]))));
                let cursor = v1::SnapshotCursor {
                    snapshot: *number,
                    table_oid: rows.len() as u32 % 3,
                    row_count: n as u64,
                    ..v1::SnapshotCursor::default()
                };
                records.push((at, Kind::SnapshotCursor, cursor.encode_to_vec().into()));
                records.push((at, Kind::Commit, Bytes::new()));
            }
            Event::Progress => {
                records.push((Position::end_of_transaction(lsn(n)), Kind::Progress, Bytes::new()));
            }
        }
    }
    records
}

fn begin(n: usize, xid: u32) -> Bytes {
    let commit_time = Some(prost_types::Timestamp { seconds: commit_s(n), nanos: 0 });
    let begin = v1::Begin { position: String::new(), commit_time, xid, ..Default::default() };
    let event = v1::Event { what: Some(v1::event::What::Begin(begin)) };
    v1::ChangeBatch { events: vec![event] }.encode_to_vec().into()
}

/// The records in blocks of at most `block_bytes`, or one record.
pub(crate) fn blocks(records: &[Record], block_bytes: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut builder = BlockBuilder::default();
    for (position, kind, bytes) in records {
        if builder.byte_count() > block_bytes {
            blocks.push(builder.finish());
        }
        let Position { lsn, ordinal } = *position;
        let number = ordinal.checked_sub(SNAPSHOT_ORDINAL);
        let (op, row_type) = match (kind, number) {
            (Kind::Change, None) => (Op::Insert, 1),
            (Kind::Change, Some(_)) => (Op::Read, 1),
            (_, number) => (Op::None, number.unwrap_or_default()),
        };
        let entry = Entry { lsn, ordinal, row_type, start: 0, end: 0, kind: *kind, op, continues: false };
        builder.push(entry, bytes);
    }
    if !builder.is_empty() {
        blocks.push(builder.finish());
    }
    blocks
}

pub(crate) fn records_of(block: &Block) -> Vec<Record> {
    block.entries().iter().map(|entry| (entry.position(), entry.kind, block.slice(entry))).collect()
}

/// The records up to the last that completes something.
pub(crate) fn complete(records: &[Record]) -> &[Record] {
    let completes =
        |record: &Record| matches!(record.1, Kind::Commit | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd);
    let end = records.iter().rposition(completes);
    &records[..end.map_or(0, |at| at + 1)]
}

/// Where a snapshot begins, and its newest cursors.
pub(crate) type Progress = (Position, BTreeMap<u32, v1::SnapshotCursor>);

/// The snapshots that are unfinished after these records, which are complete.
pub(crate) fn unfinished(records: &[Record]) -> BTreeMap<u32, Progress> {
    let mut unfinished = BTreeMap::new();
    for (position, kind, bytes) in records {
        let number = position.ordinal.saturating_sub(SNAPSHOT_ORDINAL);
        match kind {
            Kind::SnapshotBegin => {
                unfinished.insert(number, (*position, BTreeMap::new()));
            }
            Kind::SnapshotEnd => {
                unfinished.remove(&number);
            }
            Kind::SnapshotCursor => {
                let cursor = v1::SnapshotCursor::decode(bytes.clone()).expect("written above");
                if let Some((_, cursors)) = unfinished.get_mut(&number) {
                    cursors.insert(cursor.table_oid, cursor);
                }
            }
            Kind::RowType | Kind::Begin | Kind::Change | Kind::Commit | Kind::Progress => {}
        }
    }
    unfinished
}
