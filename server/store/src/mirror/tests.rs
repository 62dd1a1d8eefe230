//! Random histories with crashes, against a model that knows every row.

mod incarnations;
mod model;
mod records;

use std::{fs, path::Path};

use proptest::prelude::*;
use tidegate_model::{Block, BlockBuilder, Entry, Epoch, Position, TablePatterns};
use tidegate_schema::RowType;

use self::{
    model::{Event, FIELDS, Model, Step, TABLES, Table, encode, table_name},
    records::Record,
};
use super::{Budgets, LogFacts, Mirror, MirrorConfig, MirrorError, MirrorReader, RowForm};
use crate::{RowTypes, StoreError};

const EPOCH: Epoch = Epoch(7);
const START: Position = Position { lsn: tidegate_model::Lsn(0x100), ordinal: 0 };

/// What the server does between two blocks.
#[derive(Clone, Copy, Debug)]
enum Turn {
    None,
    Append,
    Sync,
    Work,
    /// The process ends; what was not synced of the changelog is lost.
    Crash,
    /// The files come back as a copy that was made now.
    Restore,
}

fn steps() -> impl Strategy<Value = (usize, Step)> {
    let id = || 0_u8..8;
    let step = prop_oneof![
        12 => (id(), any::<u8>(), 0_u8..60).prop_map(|(id, value, big)| Step::Insert { id, value, big }),
        20 => (id(), any::<u8>(), proptest::option::of(0_u8..60), proptest::option::weighted(0.2, id()))
            .prop_map(|(id, value, big, new_id)| Step::Update { id, value, big, new_id }),
        8 => id().prop_map(|id| Step::Delete { id }),
        1 => Just(Step::Truncate),
    ];
    (0..TABLES, step)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        10 => proptest::collection::vec(steps(), 0..12).prop_map(Event::Transaction),
        1 => Just(Event::Progress),
        2 => proptest::sample::subsequence((0..TABLES).collect::<Vec<_>>(), 1..=TABLES).prop_map(Event::SnapshotBegin),
        8 => (1_u8..7).prop_map(Event::Chunk),
        3 => prop::bool::weighted(0.1).prop_map(|abandon| Event::SnapshotEnd { abandon }),
        1 => (0..TABLES, any::<bool>()).prop_map(|(table, forgets)| Event::Alter { table, forgets }),
        1 => (0..TABLES).prop_map(Event::Recreate),
        1 => (0..TABLES, 0_u8..12).prop_map(|(table, id)| Event::Lose(table, id)),
        1 => (0..TABLES, 0_u8..12).prop_map(|(table, id)| Event::Gain(table, id)),
    ];
    let snapshot = |read: bool| {
        let all = [Event::SnapshotBegin((0..TABLES).collect()), Event::Chunk(5), Event::Chunk(5), Event::Chunk(5)];
        let end = Event::SnapshotEnd { abandon: false };
        if read { all.into_iter().chain([end]).collect() } else { Vec::new() }
    };
    let first = prop::bool::weighted(0.7).prop_map(snapshot);
    (first, proptest::collection::vec(event, 1..70)).prop_map(|(first, rest)| [first, rest].concat())
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        4 => Just(Turn::None), 6 => Just(Turn::Append), 6 => Just(Turn::Sync), 4 => Just(Turn::Work),
        1 => Just(Turn::Crash), 1 => Just(Turn::Restore),
    ];
    proptest::collection::vec(turn, 1..40)
}

/// A changelog in memory, with a mirror beside it.
struct Server {
    dir: tempfile::TempDir,
    config: MirrorConfig,
    reader: MirrorReader,
    mirror: Option<Mirror>,
    row_types: RowTypes,
    /// Filled blocks; the first so many are appended, the first so many synced.
    log: Vec<Block>,
    appended: usize,
    synced: usize,
}

impl Server {
    fn new(overlay: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tables = TablePatterns::parse(["*.*"]).unwrap();
        let budgets = Budgets { overlay, cache: 1 << 20 };
        let config = MirrorConfig {
            dir: dir.path().join("mirror"),
            tables: tables.clone(),
            on_demand: TablePatterns::none(),
            budgets,
        };
        let reader = MirrorReader::new(tables, TablePatterns::none());
        let mut server = Server {
            dir,
            config,
            reader,
            mirror: None,
            row_types: RowTypes::default(),
            log: Vec::new(),
            appended: 0,
            synced: 0,
        };
        server.open();
        server
    }

    fn mirror(&mut self) -> &mut Mirror {
        self.mirror.as_mut().unwrap()
    }

    fn complete(&self, count: usize) -> Position {
        self.log[..count].iter().rev().find_map(Block::complete_through).unwrap_or(START)
    }

    fn open(&mut self) {
        self.mirror = None;
        let log = LogFacts { epoch: EPOCH, earliest: START, complete: self.complete(self.log.len()) };
        let mut mirror = Mirror::open(self.config.clone(), log, &self.row_types, &self.reader).unwrap();
        let from = mirror.position();
        let rest = self.log.iter().filter(|block| block.last() > from).cloned();
        mirror.replay(log.complete, rest.map(Ok::<_, StoreError>)).unwrap();
        self.mirror = Some(mirror);
    }

    fn take(&mut self, block: &Block) {
        let mut at = 0;
        while at < block.entries().len() {
            let blocks = self.mirror().fill(block, &mut at).unwrap();
            self.log.extend(blocks);
        }
    }

    fn append(&mut self) {
        self.appended = self.log.len();
        self.mirror().appended();
    }

    fn sync(&mut self) {
        self.synced = self.appended;
        let durable = self.complete(self.synced);
        self.mirror().synced(durable).unwrap();
    }

    /// What remains of the changelog ends with what is complete.
    fn crash(&mut self) {
        self.mirror = None;
        let kept = self.log[..self.synced].iter().rposition(|block| block.complete_through().is_some());
        self.log.truncate(kept.map_or(0, |at| at + 1));
        (self.appended, self.synced) = (self.log.len(), self.log.len());
        self.open();
    }

    fn restore(&mut self) {
        let copy = self.dir.path().join("copy");
        copy_dir(&self.config.dir, &copy);
        self.mirror = None;
        fs::remove_dir_all(&self.config.dir).unwrap();
        fs::rename(&copy, &self.config.dir).unwrap();
        self.crash();
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::None => {}
            Turn::Append => self.append(),
            Turn::Sync => self.sync(),
            Turn::Work => {
                self.mirror().work().unwrap();
            }
            Turn::Crash => self.crash(),
            Turn::Restore => self.restore(),
        }
        if self.mirror().is_full() {
            self.append();
            self.sync();
        }
    }

    /// Compares what readers see with the model.
    fn check(&mut self, model: &Model) {
        let position = self.reader.with_view(|view| Ok(view.position)).unwrap();
        let Some(tables) = model.states.get(&position) else {
            assert_eq!(position, START);
            return;
        };
        for (at, table) in tables.iter().enumerate() {
            self.check_table(at, table, position);
        }
    }

    fn check_table(&self, at: usize, table: &Table, position: Position) {
        let found = self.reader.tables().unwrap().into_iter().find(|found| found.table_oid == table.oid);
        assert_eq!(found.is_some_and(|found| found.complete), table.complete, "{at} {position}");
        let needed = self.reader.needs_snapshot(&[table_name(at)]).unwrap();
        assert!(!table.complete || needed.is_empty());
        if !table.complete {
            assert!(matches!(self.reader.scan(table.oid), Err(MirrorError::NotComplete(_))));
            return;
        }
        let rows: Vec<_> = self.reader.scan(table.oid).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), table.held.len(), "{at} {position}");
        for (n, (row, (id, held))) in rows.iter().zip(by_key(table)).enumerate() {
            let (row_type, columns) = table.announced;
            assert_eq!(row.row_type, row_type);
            assert!(row.row[..] == encode(columns, id, Some(&held.values), false), "{at} {id} {position}");
            assert_eq!(!row.missing.is_empty(), held.big_missing);
            let stored = self.reader.scan(table.oid).unwrap().with(RowForm::AsStored).nth(n).unwrap().unwrap();
            assert!(stored.row[..] == encode(held.columns, id, Some(&held.values), false), "{at} {id} {position}");
            let (at, got) = self.reader.get(table.oid, &encode(1, id, None, false)).unwrap();
            assert_eq!((at, got.as_ref()), (position, Some(row)));
        }
        let (mut chunked, mut behind) = (Vec::new(), None);
        loop {
            let chunk = self.reader.chunk_of((table.oid, RowForm::OfTable), behind.as_deref(), (150, 2)).unwrap();
            let is_being_read = chunk.being_read.contains(&table_name(at).to_string());
            assert_eq!((chunk.position, is_being_read), (position, table.is_being_read));
            chunked.extend(chunk.rows);
            behind = chunk.next;
            if behind.is_none() {
                break;
            }
        }
        assert_eq!(chunked, rows, "{at} {position}");
        let Some(index) = self.reader.index(table.oid, [FIELDS[1]]).unwrap() else { return };
        for held in table.held.values() {
            let alike = table.held.values().filter(|other| other.values.0 == held.values.0).count();
            let field = encode(2, "", Some(&held.values), false).split_off(2);
            let found: Vec<_> = self.reader.lookup(index, &field).unwrap().map(Result::unwrap).collect();
            assert_eq!(found.len(), alike, "{at} {position}");
            let (mut chunked, mut behind) = (Vec::new(), None);
            loop {
                let chunk =
                    self.reader.lookup_chunk(index, &field, behind.as_deref(), (150, RowForm::OfTable)).unwrap();
                let is_being_read = chunk.being_read.contains(&table_name(at).to_string());
                assert_eq!((chunk.position, is_being_read), (position, table.is_being_read));
                chunked.extend(chunk.rows);
                behind = chunk.next;
                if behind.is_none() {
                    break;
                }
            }
            assert_eq!(chunked, found, "{at} {position}");
        }
    }
}

/// In the order of the keys' bytes: the length comes first.
fn by_key(table: &Table) -> Vec<(&String, &model::Held)> {
    let mut rows: Vec<_> = table.held.iter().collect();
    rows.sort_by_key(|(id, _)| encode(1, id, None, false));
    rows
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The records in blocks of about this size; a block that ends within a transaction is split, as the store does it.
fn blocks(records: &[Record], block_bytes: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut builder = BlockBuilder::default();
    for (entry, bytes) in records {
        if builder.byte_count() > block_bytes {
            blocks.extend(crate::order::split(builder.finish()));
        }
        builder.push(*entry, bytes);
    }
    if !builder.is_empty() {
        blocks.extend(crate::order::split(builder.finish()));
    }
    blocks
}

fn records_of(block: &Block) -> impl Iterator<Item = Record> {
    block.entries().iter().map(|entry| (Entry { start: 0, end: 0, ..*entry }, block.slice(entry).to_vec()))
}

fn happened(events: &[Event]) -> Model {
    let mut model = Model::default();
    events.iter().for_each(|event| model.happen(event));
    model
}

/// Runs a history with these turns; each crash makes capture send again what was lost.
fn run(model: &Model, turns: &[Turn], block_bytes: usize, overlay: usize) {
    let mut server = Server::new(overlay);
    for proto in model.row_types.values() {
        server.row_types.insert(RowType::new(proto.clone()).unwrap());
    }
    // A mirror that is opened knows the row types of the changelog; at first there are none.
    let all = std::mem::take(&mut server.row_types);
    for table in 0..TABLES {
        server.reader.add_index(100 + table as u32, [FIELDS[1]]);
    }
    let mut turns = turns.iter().cycle();
    let mut sent = 0;
    let mut crashes = 0;
    let all_blocks = |from: Position| {
        let start = model.raw.partition_point(|(entry, _)| entry.position() <= from);
        blocks(&model.raw[start..], block_bytes)
    };
    let mut rest = all_blocks(START);
    while sent < rest.len() {
        server.take(&rest[sent]);
        sent += 1;
        let turn = *turns.next().unwrap();
        let crash = matches!(turn, Turn::Crash | Turn::Restore);
        if crash && crashes == 6 {
            continue;
        }
        if crash {
            server.row_types = announced(&server.log[..server.synced], &all);
        }
        server.turn(turn);
        if crash {
            crashes += 1;
            rest = all_blocks(server.complete(server.log.len()));
            sent = 0;
        }
        server.check(model);
    }
    server.append();
    server.sync();
    while server.mirror().work().unwrap() {}
    server.check(model);
    for table in server.reader.tables().unwrap().iter().filter(|table| (100..103).contains(&table.table_oid)) {
        assert!(server.reader.index(table.table_oid, [FIELDS[1]]).unwrap().is_some());
    }
    let found: Vec<Record> = server.log.iter().flat_map(records_of).collect();
    for (found, expected) in found.iter().zip(&model.filled) {
        assert_eq!(found.0, expected.0);
        assert!(found.1 == expected.1, "{:?}", found.0);
    }
    assert_eq!(found.len(), model.filled.len());
}

fn announced(log: &[Block], all: &RowTypes) -> RowTypes {
    let mut known = RowTypes::default();
    let complete = log.iter().rev().find_map(Block::complete_through).unwrap_or(START);
    let entries = log.iter().flat_map(|block| block.entries().iter());
    for entry in entries.filter(|entry| entry.kind == tidegate_model::Kind::RowType && entry.position() <= complete) {
        known.insert(RowType::clone(all.get(entry.row_type).unwrap()));
    }
    known
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mirror_holds_and_fills_what_the_model_says_over_crashes(
        events in events(), turns in turns(), block_bytes in prop_oneof![Just(0_usize), 100..5000_usize],
        overlay in prop_oneof![Just(4000_usize), Just(1 << 26)],
    ) {
        run(&happened(&events), &turns, block_bytes, overlay);
    }
}

impl Server {
    /// Takes, appends and syncs all that the model has made since this was called last.
    fn follow(&mut self, model: &mut Model) {
        for block in blocks(&std::mem::take(&mut model.raw), 1000) {
            self.take(&block);
        }
        self.append();
        self.sync();
        while self.mirror().work().unwrap() {}
    }

    /// Restarts with other tables to be mirrored.
    fn configure(&mut self, patterns: &[&str]) {
        self.config.tables = TablePatterns::parse(patterns).unwrap();
        self.reader = MirrorReader::new(self.config.tables.clone(), TablePatterns::none());
        self.open();
    }
}

fn insert(id: u8) -> (usize, Step) {
    (0, Step::Insert { id, value: id, big: 9 })
}

#[test]
fn what_a_crash_leaves_of_a_mirror_that_was_being_made_is_in_nobodys_way() {
    let mut server = Server::new(1 << 26);
    server.mirror = None;
    let dir = server.config.dir.join(EPOCH.to_string());
    let new = dir.with_extension("new");
    fs::rename(&dir, &new).unwrap();
    fs::remove_file(new.join("version")).unwrap();
    server.open();
    assert!(dir.exists() && !new.exists());
}

#[test]
fn a_table_that_is_mirrored_again_starts_from_nothing_and_keeps_what_it_is_given() {
    let snapshot = [Event::SnapshotBegin(vec![0]), Event::Chunk(9), Event::SnapshotEnd { abandon: false }];
    let mut model = Model::default();
    let mut server = Server::new(1 << 26);
    for proto in model.row_types.values() {
        server.row_types.insert(RowType::new(proto.clone()).unwrap());
    }
    model.happen(&Event::Transaction(vec![insert(1), insert(2)]));
    snapshot.iter().for_each(|event| model.happen(event));
    server.follow(&mut model);
    server.check(&model);

    server.configure(&["*.*", "!public.\"table 0\""]);
    model.happen(&Event::Transaction(vec![insert(3), (0, Step::Delete { id: 1 })]));
    server.follow(&mut model);
    assert!(matches!(server.reader.scan(100), Err(MirrorError::NotComplete(100))));

    // What a snapshot began before has not been followed all along.
    model.happen(&snapshot[0]);
    server.follow(&mut model);
    server.configure(&["*.*"]);
    snapshot[1..].iter().for_each(|event| model.happen(event));
    server.follow(&mut model);
    assert_eq!(server.reader.needs_snapshot(&[table_name(0)]).unwrap(), [table_name(0)]);

    snapshot.iter().for_each(|event| model.happen(event));
    model.happen(&Event::Transaction(vec![insert(4)]));
    server.follow(&mut model);
    server.check(&model);
    assert_eq!(server.reader.scan(100).unwrap().count(), 3);

    // Before what it had is removed.
    server.configure(&["*.*", "!public.\"table 0\""]);
    server.configure(&["*.*"]);
    snapshot.iter().for_each(|event| model.happen(event));
    server.follow(&mut model);
    assert_eq!(server.reader.scan(100).unwrap().count(), 3);
}
