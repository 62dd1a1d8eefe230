//! Makes the records of random transactions, cut into blocks at random places.
#![allow(dead_code, reason = "each test uses a part of it")]

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, MESSAGE_ORDINAL, Op, Position};
use tidegate_proto::v1;

/// What happens at one LSN.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A transaction with rows of these sizes.
    Transaction(Vec<u16>),
    /// A message outside of transactions.
    Message(u16),
    Progress,
}

/// Position, kind and bytes: what a reader is to find.
pub(crate) type Record = (Position, Kind, Bytes);

pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => proptest::collection::vec(0_u16..200, 0..6).prop_map(Event::Transaction),
        1 => proptest::collection::vec(0_u16..200, 50..120).prop_map(Event::Transaction),
        1 => (0_u16..200).prop_map(Event::Message),
        1 => Just(Event::Progress),
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
            Event::Progress => {
                records.push((Position::end_of_transaction(lsn(n)), Kind::Progress, Bytes::new()));
            }
        }
    }
    records
}

fn begin(n: usize, xid: u32) -> Bytes {
    let commit_time = Some(prost_types::Timestamp { seconds: commit_s(n), nanos: 0 });
    v1::Begin { position: String::new(), commit_time, xid, origin: String::new(), snapshot: 0 }.encode_to_vec().into()
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
        let (op, row_type) = (if *kind == Kind::Change { Op::Insert } else { Op::None }, 0);
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
    let end = records.iter().rposition(|record| matches!(record.1, Kind::Commit | Kind::Progress));
    &records[..end.map_or(0, |at| at + 1)]
}
