//! What the tests of delivery deliver: random transactions and chunks of three tables, as records and as blocks.

use super::*;

pub(super) const TABLES: [&str; 3] = ["orders", "items", "audit_log"];
pub(super) const COLUMNS: [&str; 4] = ["id", "a", "b", "c"];
pub(super) const OPS: [Op; 6] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Message, Op::Read];

/// The row type without a key.
pub(super) const KEYLESS: u32 = 3;

pub(super) struct RowTypes(HashMap<u32, Arc<RowType>>);

impl RowTypeLookup for RowTypes {
    fn row_type(&self, row_type: u32) -> Option<Arc<RowType>> {
        self.0.get(&row_type).cloned()
    }

    fn of_table(&self, table: &TableName) -> Vec<Arc<RowType>> {
        self.0.values().filter(|row_type| row_type.name() == table).cloned().collect()
    }

    fn newest(&self, table: &TableName) -> Option<Arc<RowType>> {
        self.of_table(table).pop()
    }

    fn version(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Row types 1, 2, 3 for the tables, with the columns as fields 1 to 4, of which the first is the key of two.
pub(super) fn row_types() -> RowTypes {
    let row_type = |(number, table): (u32, &&str)| {
        let columns = (1..).zip(COLUMNS).map(|(field, name)| tidegate_schema::ColumnSpec {
            name: name.to_owned(),
            attnum: i32::try_from(field).expect("small"),
            type_oid: 25,
            type_name: "text".to_owned(),
            codec: tidegate_schema::ValueKind::TEXT,
            key: field == 1 && number != KEYLESS,
            field,
        });
        let spec = tidegate_schema::RowTypeSpec {
            row_type: number,
            source: "shop".parse().expect("a source name"),
            name: TableName::new("public", *table),
            table_oid: 16_000 + number,
            identity: v1::ReplicaIdentity::Full,
            columns: columns.collect(),
        };
        (number, Arc::new(RowType::new(spec.to_proto()).expect("valid")))
    };
    RowTypes((1..).zip(&TABLES).map(row_type).collect())
}

/// A change of the model: table (0 for a message), operation, its columns' values, and where its row is cut.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) row_type: u32,
    pub(super) op: Op,
    pub(super) values: Vec<(u32, Vec<u8>)>,
    pub(super) cuts: Vec<usize>,
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let values = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 4);
    (0_u32..=3, 0_usize..4, values, proptest::collection::vec(0_usize..600, 0..3)).prop_map(
        |(row_type, op, values, cuts)| Change {
            row_type,
            op: if row_type == 0 { Op::Message } else { OPS[op] },
            values: if row_type == 0 { Vec::new() } else { (1..).zip(values).collect() },
            cuts: if row_type == 0 { Vec::new() } else { cuts },
        },
    )
}

/// What stands at one LSN: changes of a transaction, or something of a snapshot.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Transaction(Vec<Change>),
    Chunk(u32, Vec<Change>),
    SnapshotBegin(u32),
    SnapshotEnd(u32),
}

pub(super) fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let changes = || proptest::collection::vec(change(), 0..8);
    let reads = proptest::collection::vec((change(), any::<bool>()), 0..8).prop_map(|changes| {
        let of_table = changes.into_iter().filter(|(change, _)| change.row_type != 0);
        of_table.map(|(change, reads)| Change { op: if reads { Op::Read } else { change.op }, ..change }).collect()
    });
    let happening = prop_oneof![
        3 => changes().prop_map(Happening::Transaction),
        3 => (1_u32..3, reads).prop_map(|(snapshot, reads)| Happening::Chunk(snapshot, reads)),
        1 => (1_u32..3).prop_map(Happening::SnapshotBegin),
        1 => (1_u32..3).prop_map(Happening::SnapshotEnd),
    ];
    proptest::collection::vec(happening, 1..10)
}

pub(super) fn transactions() -> impl Strategy<Value = Vec<Vec<Change>>> {
    proptest::collection::vec(proptest::collection::vec(change(), 0..8), 1..8)
}

pub(super) fn lsn_of(transaction: usize) -> Lsn {
    Lsn(100 * (transaction as u64 + 1))
}

pub(super) fn entry(kind: Kind, lsn: Lsn, ordinal: u32) -> Entry {
    Entry { lsn, ordinal, row_type: 0, start: 0, end: 0, kind, op: Op::None, continues: false }
}

pub(super) fn encoded_row(values: &[(u32, Vec<u8>)]) -> BytesMut {
    let mut row = BytesMut::new();
    for (field, value) in values {
        put_len_field(&mut row, *field, value);
    }
    row
}

/// An event as a block holds it.
pub(super) fn field(what: What) -> Vec<u8> {
    v1::ChangeBatch { events: vec![v1::Event { what: Some(what) }] }.encode_to_vec()
}

/// The records of the changelog: an entry and its bytes.
pub(super) fn records(transactions: &[Vec<Change>]) -> Vec<(Entry, Vec<u8>)> {
    records_of(&transactions.iter().cloned().map(Happening::Transaction).collect::<Vec<_>>())
}

pub(super) fn records_of(happenings: &[Happening]) -> Vec<(Entry, Vec<u8>)> {
    let mut records = Vec::new();
    for (t, happening) in happenings.iter().enumerate() {
        let lsn = lsn_of(t);
        let of = |kind, snapshot| Entry { row_type: snapshot, ..entry(kind, lsn, SNAPSHOT_ORDINAL + 5) };
        let position = Position::new(lsn, SNAPSHOT_ORDINAL + 5).to_string();
        let (changes, chunk_of) = match happening {
            Happening::Transaction(changes) => (changes, 0),
            Happening::Chunk(snapshot, reads) => (reads, *snapshot),
            Happening::SnapshotBegin(snapshot) => {
                let begin = v1::SnapshotBegin { snapshot: *snapshot, position, ..Default::default() };
                records.push((of(Kind::SnapshotBegin, *snapshot), begin.encode_to_vec()));
                continue;
            }
            Happening::SnapshotEnd(snapshot) => {
                let end = v1::SnapshotEnd { snapshot: *snapshot, position, ..Default::default() };
                records.push((of(Kind::SnapshotEnd, *snapshot), end.encode_to_vec()));
                continue;
            }
        };
        let at = |ordinal| if chunk_of == 0 { ordinal } else { SNAPSHOT_ORDINAL + 5 };
        let commit_time = Some(prost_types::Timestamp { seconds: t as i64, nanos: 0 });
        let position = Position::new(lsn, at(0)).to_string();
        let begin = v1::Begin { position, commit_time, snapshot: chunk_of, ..v1::Begin::default() };
        let mark = |kind, ordinal| Entry { row_type: chunk_of, ..entry(kind, lsn, ordinal) };
        records.push((mark(Kind::Begin, at(0)), field(What::Begin(begin))));
        for (ordinal, change) in (1..).map(at).zip(changes) {
            let row = encoded_row(&change.values);
            let mut cuts: Vec<usize> = change.cuts.iter().map(|cut| cut % (row.len() + 1)).collect();
            cuts.extend([0, row.len()]);
            cuts.sort_unstable();
            for (n, part) in cuts.windows(2).enumerate() {
                let continues = n + 2 < cuts.len();
                let body = v1::Change {
                    op: change.op as i32,
                    row_type: change.row_type,
                    ordinal,
                    row: row.clone().freeze().slice(part[0]..part[1]),
                    continues,
                    ..v1::Change::default()
                };
                let (row_type, op) = (change.row_type, change.op);
                let entry = Entry { row_type, op, continues, ..entry(Kind::Change, lsn, ordinal) };
                records.push((entry, field(What::Change(body))));
            }
        }
        let last = at(u32::try_from(changes.len()).expect("few"));
        if chunk_of != 0 {
            records.push((mark(Kind::SnapshotCursor, last), vec![]));
        }
        let commit = v1::Commit { position: Position::new(lsn, last).to_string(), token_prefix: String::new() };
        records.push((mark(Kind::Commit, last), field(What::Commit(commit))));
    }
    records
}

/// The records cut into blocks of these lengths, over and over.
pub(super) fn blocks(records: &[(Entry, Vec<u8>)], lengths: &[usize]) -> Vec<Block> {
    let (mut blocks, mut rest) = (Vec::new(), records);
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (block, others) = rest.split_at((*length).min(rest.len()));
        let mut builder = BlockBuilder::default();
        for (entry, bytes) in block {
            builder.push(*entry, bytes);
        }
        blocks.push(builder.finish());
        rest = others;
    }
    blocks
}
