//! A subscriber that applies what it receives as the protocol says: reads, inserts and updates as upserts, and an unchanged
//! field keeps the value that it has. Without a key it adds up what it receives.

use std::collections::BTreeMap;

use prost::Message as _;
use tidegate_model::{Block, Kind, Position};
use tidegate_proto::v1::{self, change::Op};
use tidegate_schema::{
    event_body,
    wire::{Fields, read_varint},
};

use super::{
    postgres::{Row, Rows},
    process::folded,
};

/// What is seen at once.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// Of its last record.
    pub(super) position: Position,
    pub(super) kind: Kind,
    pub(super) changes: Vec<v1::Change>,
    /// Of a chunk.
    pub(super) cursor: Option<Vec<u8>>,
}

/// The units of a block; each is whole in it here.
pub(super) fn units(block: &Block) -> Vec<Unit> {
    let mut units = Vec::new();
    let (mut changes, mut cursor) = (Vec::new(), None);
    for entry in block.entries() {
        match entry.kind {
            Kind::Change => {
                let field = block.slice(entry);
                let change = v1::Change::decode(event_body(&field).expect("an event")).expect("a Change");
                assert_eq!(change.ordinal, entry.ordinal);
                changes.push(change);
            }
            Kind::SnapshotCursor => cursor = Some(block.slice(entry).to_vec()),
            Kind::Commit | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd => units.push(Unit {
                position: entry.position(),
                kind: entry.kind,
                changes: std::mem::take(&mut changes),
                cursor: cursor.take(),
            }),
            Kind::RowType | Kind::Begin => {}
        }
    }
    units
}

/// A row, as far as it is held.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    small: u32,
    toasted: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Subscriber {
    pub(super) position: Position,
    in_snapshot: bool,
    rows: BTreeMap<i32, Held>,
    /// None: the table has a key.
    counts: Option<Counts>,
}

/// How often a row is there; before a snapshot's end, less than never.
type Counts = BTreeMap<(i32, u32, u32), i64>;

impl Subscriber {
    /// Of a table without a key, or with one.
    pub(super) fn new(keyless: bool) -> Self {
        Subscriber { counts: keyless.then(Counts::new), ..Subscriber::default() }
    }

    /// Takes what stands in the log behind its position; at a snapshot's end, the position and what is wrong with the state.
    pub(super) fn receive(&mut self, log: &[Unit], truth: impl Fn(u64) -> Rows) -> Result<bool, String> {
        let begin = log.iter().position(|unit| unit.kind == Kind::SnapshotBegin);
        let start = match self.in_snapshot {
            true => log.partition_point(|unit| unit.position <= self.position),
            false => begin.unwrap_or(log.len()),
        };
        for unit in &log[start..] {
            self.position = unit.position;
            match unit.kind {
                Kind::SnapshotBegin => self.in_snapshot = true,
                Kind::SnapshotEnd => return self.check(&truth(unit.position.lsn.0)).map(|()| true),
                Kind::Commit => unit.changes.iter().for_each(|change| self.apply(change)),
                Kind::Progress => {}
                Kind::RowType | Kind::Begin | Kind::Change | Kind::SnapshotCursor => unreachable!("not a unit"),
            }
        }
        Ok(false)
    }

    fn add_up(counts: &mut Counts, change: &v1::Change) {
        let mut add = |row: &[u8], old: &[u8], count: i64| {
            let (key, held) = decode(row);
            let toasted = held.toasted.or_else(|| decode(old).1.toasted).expect("the old row is whole");
            let held_count = counts.entry((key, held.small, toasted)).or_default();
            *held_count += count;
        };
        match change.op() {
            Op::Read | Op::Insert => add(&change.row, &[], 1),
            Op::Update => {
                add(&change.row, &change.old, 1);
                add(&change.old, &[], -1);
            }
            Op::Delete => add(&change.old, &[], -1),
            Op::Truncate => counts.clear(),
            Op::Message => {}
            Op::Unspecified => unreachable!("not a change"),
        }
        counts.retain(|_, count| *count != 0);
    }

    fn apply(&mut self, change: &v1::Change) {
        if let Some(counts) = &mut self.counts {
            return Self::add_up(counts, change);
        }
        match change.op() {
            Op::Read | Op::Insert | Op::Update => {
                let (key, mut row) = decode(&change.row);
                let old = if change.old.is_empty() { key } else { decode(&change.old).0 };
                let held = self.rows.remove(&old);
                if !change.unchanged.is_empty() {
                    row.toasted = held.and_then(|held| held.toasted);
                }
                self.rows.insert(key, row);
            }
            Op::Delete => {
                self.rows.remove(&decode(&change.old).0);
            }
            Op::Truncate => self.rows.clear(),
            Op::Message => {}
            Op::Unspecified => unreachable!("not a change"),
        }
    }

    fn check(&self, truth: &Rows) -> Result<(), String> {
        if let Some(counts) = &self.counts {
            let mut expected = Counts::new();
            for (key, row) in truth {
                let (key, Row { small, toasted }) = folded(*key, *row);
                *expected.entry((key, small, toasted)).or_default() += 1;
            }
            let at = self.position;
            return if *counts == expected { Ok(()) } else { Err(format!("at {at}: {counts:?}, but {expected:?}")) };
        }
        let held = |key: &i32| self.rows.get(key).map(|held| (held.small, held.toasted));
        let exact = truth.iter().all(|(key, row)| held(key) == Some((row.small, Some(row.toasted))));
        if exact && truth.len() == self.rows.len() {
            return Ok(());
        }
        Err(format!("at {} the subscriber holds {:?}, but the table {truth:?}", self.position, self.rows))
    }
}

fn decode(row: &[u8]) -> (i32, Held) {
    let (mut key, mut held) = (0, Held::default());
    for field in Fields::new(row).map(|field| field.expect("a row")) {
        match field.number {
            1 => key = read_varint(field.value).expect("a varint").0 as i32,
            2 => held.small = read_varint(field.value).expect("a varint").0 as u32,
            3 => held.toasted = Some(u32::from_le_bytes(field.value.try_into().expect("four bytes"))),
            other => unreachable!("field {other}"),
        }
    }
    (key, held)
}
