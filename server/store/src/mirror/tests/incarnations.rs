//! Tables whose names and keys come and go, by hand: which rows a mirror has of them, and what it tells.

use prost::Message as _;
use tidegate_model::{Kind, Lsn, Op, Position, SNAPSHOT_ORDINAL};
use tidegate_proto::v1;
use tidegate_schema::RowType;

use super::super::snapshots::ChunkTable;
use super::{
    Server, blocks,
    model::{encode, spec, table_name},
    records::{Parts, Record, entry},
    records_of,
};

/// A row type: its number, the table's OID, which of the names it has, and its key, the first column or the second.
type Described = (u32, u32, usize, usize);

/// What is to be logged next.
#[derive(Default)]
struct Log {
    lsn: u64,
    snapshot: u32,
    records: Vec<Record>,
}

impl Log {
    fn at(&mut self, ordinal: u32) -> Position {
        self.lsn += 0x1000;
        Position::new(Lsn(self.lsn), ordinal)
    }

    fn mark(&mut self, at: Position, kind: Kind, number: u32, bytes: Vec<u8>) {
        self.records.push((entry(at, kind, Op::None, number), bytes));
    }

    fn announce(&mut self, server: &mut Server, (row_type, oid, name, key): Described) {
        let mut described = spec(row_type, name, oid, 2);
        described.columns.iter_mut().enumerate().for_each(|(at, column)| column.key = at == key);
        let proto = described.to_proto();
        server.row_types.insert(RowType::new(proto.clone()).unwrap());
        let at = self.at(0);
        self.mark(at, Kind::RowType, row_type, proto.encode_to_vec());
    }

    fn insert(&mut self, row_type: u32, rows: &[u8]) {
        let at = self.at(0);
        self.mark(at, Kind::Begin, 0, Vec::new());
        for (row, ordinal) in rows.iter().zip(1..) {
            let parts = Parts { row: row_of(*row), ..Parts::of(Op::Insert, row_type) };
            self.records.extend(parts.records(Position::new(at.lsn, ordinal)));
        }
        self.mark(Position::new(at.lsn, rows.len() as u32), Kind::Commit, 0, Vec::new());
    }

    fn snapshot(&mut self, (row_type, oid, name, _): Described, rows: &[u8]) {
        self.snapshot += 1;
        let (snapshot, table) = (self.snapshot, table_name(name));
        let at = self.at(SNAPSHOT_ORDINAL);
        let tables = vec![table.to_string()];
        let begin = v1::SnapshotBegin { snapshot, position: at.to_string(), tables, ..Default::default() };
        self.mark(at, Kind::SnapshotBegin, snapshot, begin.encode_to_vec());
        for closes in [false, true] {
            let at = self.at(SNAPSHOT_ORDINAL);
            self.mark(at, Kind::Begin, snapshot, Vec::new());
            for row in rows.iter().filter(|_| !closes) {
                let parts = Parts { row: row_of(*row), ..Parts::of(Op::Read, row_type) };
                self.records.extend(parts.records(at));
            }
            let (schema, table) = (table.schema.clone(), table.table.clone());
            let cursor = ChunkTable { snapshot, table_oid: oid, schema, table, closes, ..ChunkTable::default() };
            self.mark(at, Kind::SnapshotCursor, snapshot, cursor.encode_to_vec());
            self.mark(at, Kind::Commit, snapshot, Vec::new());
        }
        let at = self.at(SNAPSHOT_ORDINAL);
        let end = v1::SnapshotEnd { snapshot, position: at.to_string(), ..Default::default() };
        self.mark(at, Kind::SnapshotEnd, snapshot, end.encode_to_vec());
    }

    /// Takes it all; returns what has been added to it, as operations.
    fn taken_by(&mut self, server: &mut Server) -> Vec<Op> {
        let before = server.log.len();
        let count = |op: Op, of: &[Record]| of.iter().filter(|(entry, _)| entry.op == op).count();
        let records = std::mem::take(&mut self.records);
        for block in blocks(&records, 1000) {
            server.take(&block);
        }
        server.append();
        server.sync();
        while server.mirror().work().unwrap() {}
        let logged: Vec<Record> = server.log[before..].iter().flat_map(records_of).collect();
        let ops = [Op::Insert, Op::Update, Op::Delete];
        ops.into_iter().flat_map(|op| vec![op; count(op, &logged) - count(op, &records)]).collect()
    }
}

fn row_of(row: u8) -> Vec<u8> {
    encode(2, &format!("id {row}"), Some(&(Some(format!("a {row}")), None, None)), false)
}

fn row_count(server: &Server, oid: u32) -> usize {
    server.reader.scan(oid).unwrap().map(Result::unwrap).count()
}

#[test]
fn a_row_type_that_is_used_again_brings_its_key_back() {
    let (mut server, mut log) = (Server::new(1 << 26), Log { lsn: 0x1000, ..Log::default() });
    let (first, second) = ((1, 100, 0, 0), (2, 100, 0, 1));
    log.announce(&mut server, first);
    log.snapshot(first, &[1, 2]);
    log.announce(&mut server, second);
    log.insert(2, &[3]);
    log.snapshot(second, &[1, 2, 3]);
    assert_eq!(log.taken_by(&mut server), [Op::Insert, Op::Insert]);
    assert_eq!(row_count(&server, 100), 3);

    log.insert(1, &[4]);
    log.taken_by(&mut server);
    assert_eq!(server.reader.needs_snapshot(&[table_name(0)]).unwrap(), [table_name(0)]);
    log.snapshot(first, &[1, 2, 3, 4]);
    assert_eq!(log.taken_by(&mut server), [Op::Insert; 3], "nothing is gone");
    assert_eq!(row_count(&server, 100), 4);
}

#[test]
fn a_row_type_that_is_used_again_brings_the_name_back() {
    let (mut server, mut log) = (Server::new(1 << 26), Log { lsn: 0x1000, ..Log::default() });
    let (old, new) = ((1, 100, 0, 0), (2, 100, 1, 0));
    log.announce(&mut server, old);
    log.snapshot(old, &[1]);
    log.announce(&mut server, new);
    log.insert(2, &[2]);
    log.insert(1, &[3]);
    log.taken_by(&mut server);
    let names: Vec<_> = server.reader.tables().unwrap().into_iter().map(|table| table.name).collect();
    assert_eq!(names, [table_name(0)]);
    assert_eq!(row_count(&server, 100), 3);
}

#[test]
fn a_name_means_the_table_that_has_it_last() {
    let (mut server, mut log) = (Server::new(1 << 26), Log { lsn: 0x1000, ..Log::default() });
    let (one, other, renamed) = ((1, 200, 0, 0), (2, 100, 1, 0), (3, 200, 1, 0));
    for table in [one, other] {
        log.announce(&mut server, table);
        log.snapshot(table, &[1]);
    }
    // What the other is called by now is not known.
    log.announce(&mut server, renamed);
    log.insert(3, &[2]);
    log.taken_by(&mut server);
    let of_name = |server: &Server| -> Vec<u32> {
        server.reader.tables().unwrap().into_iter().map(|table| table.table_oid).collect()
    };
    assert_eq!(of_name(&server), [200]);
    assert_eq!(server.reader.needs_snapshot(&[table_name(0)]).unwrap(), [table_name(0)]);
    log.snapshot((0, 100, 0, 0), &[]);
    log.taken_by(&mut server);
    assert_eq!(of_name(&server), [100, 200]);
}

#[test]
fn a_new_table_under_the_name_of_one_that_was_renamed_takes_nothing_from_it() {
    let (mut server, mut log) = (Server::new(1 << 26), Log { lsn: 0x1000, ..Log::default() });
    let (old, renamed, new) = ((1, 100, 0, 0), (3, 100, 1, 0), (2, 200, 0, 0));
    log.announce(&mut server, old);
    log.snapshot(old, &[1, 2]);
    log.taken_by(&mut server);
    // What the old one is called by now is not known when the new one is read, which has no row yet.
    log.snapshot((0, 200, 0, 0), &[]);
    log.announce(&mut server, new);
    log.insert(2, &[7]);
    log.announce(&mut server, renamed);
    log.insert(3, &[3]);
    log.taken_by(&mut server);
    assert_eq!((row_count(&server, 200), server.reader.needs_snapshot(&[table_name(0)]).unwrap()), (1, Vec::new()));
    assert_eq!(server.reader.needs_snapshot(&[table_name(1)]).unwrap(), [table_name(1)]);
    log.snapshot(renamed, &[1, 2, 3]);
    log.taken_by(&mut server);
    assert_eq!((row_count(&server, 100), row_count(&server, 200)), (3, 1));
    assert!(server.reader.needs_snapshot(&[table_name(0), table_name(1)]).unwrap().is_empty());
}

#[test]
fn a_table_that_was_taken_for_dropped_comes_back_and_is_told() {
    let (mut server, mut log) = (Server::new(1 << 26), Log { lsn: 0x1000, ..Log::default() });
    let (table, other, swapped, anew) = ((1, 100, 0, 0), (2, 200, 1, 0), (3, 100, 1, 0), (4, 300, 1, 0));
    for table in [table, other] {
        log.announce(&mut server, table);
        log.snapshot(table, &[1]);
    }
    log.announce(&mut server, swapped);
    log.insert(3, &[2]);
    // They are swapped again without a word, and the other is created anew.
    log.announce(&mut server, anew);
    log.insert(4, &[7]);
    assert_eq!(log.taken_by(&mut server), []);
    log.insert(1, &[3]);
    log.snapshot(table, &[1, 2, 3, 4]);
    assert_eq!(log.taken_by(&mut server), [Op::Insert; 3]);
    assert_eq!(row_count(&server, 100), 4);
    log.snapshot(anew, &[7, 8]);
    assert_eq!(log.taken_by(&mut server), [Op::Insert]);
}

#[test]
fn a_row_that_is_gone_after_a_rename_is_told_of_the_table_as_it_is_called_now() {
    let (mut server, mut log) = (Server::new(1 << 26), Log { lsn: 0x1000, ..Log::default() });
    let (old, new) = ((1, 100, 0, 0), (2, 100, 1, 0));
    log.announce(&mut server, old);
    log.snapshot(old, &[1, 2, 3]);
    log.announce(&mut server, new);
    log.snapshot(new, &[1, 3]);
    assert_eq!(log.taken_by(&mut server), [Op::Update, Op::Update, Op::Delete]);
    let logged = server.log.iter().flat_map(records_of);
    let deletes: Vec<u32> =
        logged.filter(|(entry, _)| entry.op == Op::Delete).map(|(entry, _)| entry.row_type).collect();
    assert_eq!(
        deletes,
        [2],
        "the old name is another table's by now, and the old row type lacks what columns came since"
    );
    assert_eq!(row_count(&server, 100), 2);
}
