//! What the simulation routes: random transactions of rows of three tables, cut into blocks anywhere.

use std::{collections::HashMap, sync::Arc};

use bytes::BytesMut;
use prost::Message as _;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, Op, Position, TableName};
use tidegate_proto::v1;
use tidegate_schema::{
    BeginParts, ColumnSpec, RowEncoder, RowType, RowTypeSpec, TypeShape, Value, ValueKind, push_begin, push_commit,
    put_change,
};
use tidegate_store::Place;
use tidegate_views::{CollationFacts, ColumnFacts, TableFacts};

use super::TABLES;
use crate::by_row_type::RowTypeLookup;

const COLUMNS: [(&str, u32, &str); 4] =
    [("id", 20, "int8"), ("tenant", 23, "int4"), ("price", 23, "int4"), ("note", 25, "text")];

/// A change of the model.
pub(super) struct Change {
    pub(super) op: Op,
    pub(super) row_type: u32,
    pub(super) old: Option<BytesMut>,
    pub(super) new: Option<BytesMut>,
    pub(super) is_whole: bool,
    pub(super) parts: usize,
}

pub(super) struct RowTypes(pub(super) Vec<Arc<RowType>>);

impl RowTypeLookup for RowTypes {
    fn row_type(&self, row_type: u32) -> Option<Arc<RowType>> {
        self.0.get(row_type as usize - 1).cloned()
    }

    fn of_table(&self, table: &TableName) -> Vec<Arc<RowType>> {
        self.0.iter().filter(|row_type| row_type.name() == table).cloned().collect()
    }

    fn newest(&self, table: &TableName) -> Option<Arc<RowType>> {
        self.of_table(table).pop()
    }

    fn version(&self) -> u64 {
        self.0.len() as u64
    }
}

fn columns() -> Vec<ColumnSpec> {
    let column = |(field, (name, type_oid, type_name)): (u32, (&str, u32, &str))| ColumnSpec {
        name: name.to_owned(),
        attnum: 0,
        type_oid,
        type_name: type_name.to_owned(),
        codec: ValueKind::of(type_oid, TypeShape::Base),
        key: field == 1,
        field,
    };
    (1..).zip(COLUMNS).map(column).collect()
}

pub(super) fn row_types() -> RowTypes {
    let row_type = |(row_type, table): (u32, &str)| {
        let spec = RowTypeSpec {
            row_type,
            source: "shop".parse().expect("a source name"),
            name: TableName::new("public", table),
            table_oid: 16_000,
            identity: v1::ReplicaIdentity::Full,
            columns: columns(),
        };
        Arc::new(RowType::new(spec.to_proto()).expect("valid"))
    };
    RowTypes((1..).zip(TABLES).map(row_type).collect())
}

pub(super) fn facts(name: &str) -> TableFacts {
    let c = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: true };
    let column = |(field, (name, type_oid, _)): (u32, (&str, u32, &str))| ColumnFacts {
        name: name.to_owned(),
        field,
        type_oid,
        collation: (type_oid == 25).then(|| c.clone()),
        enum_type: None,
    };
    TableFacts {
        schema: "public".to_owned(),
        name: name.to_owned(),
        columns: (1..).zip(COLUMNS).map(column).collect(),
        default_collation: c.clone(),
    }
}

/// The changelog, and what its changes are.
pub(super) struct Log {
    pub(super) blocks: Vec<Block>,
    pub(super) changes: HashMap<Position, Change>,
}

impl Log {
    pub(super) fn place(block: usize) -> Place {
        Place(100 * block as u64)
    }

    pub(super) fn random(random: &mut StdRng) -> Self {
        let mut writer =
            LogWriter { encoder: RowEncoder::new(&columns()), records: Vec::new(), changes: HashMap::new() };
        for lsn in 1..random.random_range(5..60) {
            match random.random_range(0..12) {
                0 => writer.mark(Kind::SnapshotBegin, lsn),
                1 => writer.mark(Kind::Progress, lsn),
                2 => writer.transaction(lsn, random.random_range(20..60), random),
                _ => writer.transaction(lsn, random.random_range(0..4), random),
            }
        }
        let LogWriter { records, changes, .. } = writer;
        let (mut blocks, mut block) = (Vec::new(), BlockBuilder::default());
        let longest = random.random_range(1..30);
        for (entry, bytes) in records {
            block.push(entry, &bytes);
            if block.entries.len() >= longest || random.random_ratio(1, 8) {
                blocks.push(block.finish());
            }
        }
        blocks.push(block.finish());
        Log { blocks, changes }
    }
}

struct LogWriter {
    encoder: RowEncoder,
    records: Vec<(Entry, Vec<u8>)>,
    changes: HashMap<Position, Change>,
}

impl LogWriter {
    fn take(&mut self, mut block: BlockBuilder) {
        let block = block.finish();
        self.records.extend(block.entries().iter().map(|entry| (*entry, block.slice(entry).to_vec())));
    }

    fn mark(&mut self, kind: Kind, lsn: u64) {
        let entry =
            Entry { lsn: Lsn(lsn), ordinal: 0, row_type: 0, start: 0, end: 0, kind, op: Op::None, continues: false };
        self.records.push((entry, Vec::new()));
    }

    fn transaction(&mut self, lsn: u64, change_count: u32, random: &mut StdRng) {
        let mut begin = BlockBuilder::default();
        push_begin(&BeginParts { position: Position::new(Lsn(lsn), 0), ..BeginParts::default() }, &mut begin);
        self.take(begin);
        for ordinal in 1..=change_count {
            let change = self.change(random);
            self.write(&change, Position::new(Lsn(lsn), ordinal), random);
            self.changes.insert(Position::new(Lsn(lsn), ordinal), change);
        }
        let mut commit = BlockBuilder::default();
        push_commit(Position::new(Lsn(lsn), change_count + 1), 0, &mut commit);
        self.take(commit);
    }

    fn row(&self, random: &mut StdRng) -> BytesMut {
        let texts = [random.random_range(0..9), random.random_range(0..5), random.random_range(0..7)];
        let texts = texts.map(|number: u32| number.to_string());
        let note = [None, Some("a"), Some("ab"), Some("b")].choose(random).copied().flatten();
        let note = note.map_or(Value::Null, |note| Value::Text(note.as_bytes()));
        let mut row = BytesMut::new();
        let values = texts.iter().map(|text| Value::Text(text.as_bytes())).chain([note]);
        self.encoder.encode(values, &mut row).expect("values of the types");
        row
    }

    fn change(&self, random: &mut StdRng) -> Change {
        let op = [Op::Insert, Op::Update, Op::Update, Op::Delete, Op::Truncate].choose(random).copied();
        let op = op.filter(|op| *op != Op::Truncate || random.random_ratio(1, 9)).unwrap_or(Op::Insert);
        let old = matches!(op, Op::Update | Op::Delete).then(|| self.row(random));
        let same = old.clone().filter(|_| random.random_ratio(1, 3));
        let new = matches!(op, Op::Insert | Op::Update).then(|| same.unwrap_or_else(|| self.row(random)));
        let is_whole = op == Op::Insert || random.random_ratio(8, 9);
        let parts = if random.random_ratio(1, 8) { random.random_range(2..5) } else { 1 };
        Change { op, row_type: random.random_range(1..5), old, new, is_whole, parts }
    }

    fn write(&mut self, change: &Change, at: Position, random: &mut StdRng) {
        let old = change.old.clone().unwrap_or_default().freeze();
        let row = change.new.clone().unwrap_or_default().freeze();
        let old_kind = match (&change.old, change.is_whole) {
            (None, _) => v1::change::OldKind::None,
            (Some(_), true) => v1::change::OldKind::Full,
            (Some(_), false) => v1::change::OldKind::Key,
        };
        let mut rest = row;
        for part in 1..=change.parts {
            let is_last = part == change.parts;
            let cut = if is_last { rest.len() } else { random.random_range(0..=rest.len()) };
            let message = v1::Change {
                op: change.op as i32,
                row_type: change.row_type,
                old: if part == 1 { old.clone() } else { Default::default() },
                row: rest.split_to(cut),
                old_kind: old_kind as i32,
                continues: !is_last,
                ..v1::Change::default()
            };
            let mut bytes = BytesMut::new();
            put_change(&mut bytes, &message.encode_to_vec());
            let (row_type, op, continues) = (change.row_type, change.op, !is_last);
            let Position { lsn, ordinal } = at;
            let entry = Entry { lsn, ordinal, row_type, start: 0, end: 0, kind: Kind::Change, op, continues };
            self.records.push((entry, bytes.to_vec()));
        }
    }
}
