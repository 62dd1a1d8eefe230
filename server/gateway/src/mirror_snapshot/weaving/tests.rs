//! Random logs × random chunks × lost connections: at the snapshot's end, and wherever the log goes on to, a subscriber has what the
//! tables hold.

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message as _;
use tidegate_model::{LOGGED_SNAPSHOT_ORDINAL, SNAPSHOT_ORDINAL};

use super::*;

const NUMBER: u32 = 1 << 31 | 7;
const FOREIGN: u32 = 3;
const START: Lsn = Lsn(0x100);

/// By table and key.
type Rows = BTreeMap<(u8, u8), u8>;

/// What happens to a row: upsert or delete.
type Step = ((u8, u8), Option<u8>);

#[derive(Clone, Debug)]
enum Unit {
    Transaction(Vec<Step>),
    Truncate(u8),
    Message,
    Progress,
    /// A chunk of somebody else's snapshot, at the LSN of what stands before: a read, and what it corrects.
    Foreign(Vec<Step>),
}

fn unit() -> impl Strategy<Value = Unit> {
    let step = || ((0_u8..2, 0_u8..12), proptest::option::weighted(0.7, any::<u8>()));
    let steps = || proptest::collection::vec(step(), 0..6);
    prop_oneof![
        8 => steps().prop_map(Unit::Transaction),
        1 => (0_u8..2).prop_map(Unit::Truncate),
        2 => Just(Unit::Message),
        1 => Just(Unit::Progress),
        6 => steps().prop_map(Unit::Foreign),
    ]
}

/// What the test decides by chance, in turn.
#[derive(Clone, Debug)]
struct Chances(Vec<u8>, usize);

impl Chances {
    fn below(&mut self, count: usize) -> usize {
        self.1 += 1;
        usize::from(self.0[self.1 % self.0.len()]) % count
    }
}

/// A log in blocks, and the rows as they are at the end of each unit.
struct Log {
    blocks: Vec<Block>,
    states: Vec<(Position, Rows)>,
}

fn change(op: Op, (table, key): (u8, u8), value: u8, (lsn, ordinal): (Lsn, u32), out: &mut BlockBuilder) {
    let row = [table, key, value];
    let (row, old): (&[u8], &[u8]) = if op == Op::Delete { (&[], &row) } else { (&row, &[]) };
    let old_kind = if op == Op::Delete { OldKind::Key } else { OldKind::None };
    let row_type = u32::from(op != Op::Message);
    push_change(&ChangeParts { op, row_type, row, old, old_kind, unchanged: &[], extra: Extra::None }, lsn, out);
    let BlockBuilder { entries, payload } = out;
    let entry = entries.last_mut().expect("pushed");
    entry.ordinal = ordinal;
    set_ordinal(payload, entry, ordinal);
}

/// What each step does to the rows, at ordinals that `next` gives.
fn steps(steps: &[Step], rows: &mut Rows, mut write: impl FnMut(Op, (u8, u8), u8)) {
    for (at, value) in steps {
        write(if value.is_some() { Op::Insert } else { Op::Delete }, *at, value.unwrap_or_default());
        match value {
            Some(value) => rows.insert(*at, *value),
            None => rows.remove(at),
        };
    }
}

fn log(units: &[Unit], chances: &mut Chances) -> Log {
    let (mut lsn, mut ordinal, mut rows, mut out) =
        (START, LOGGED_SNAPSHOT_ORDINAL, Rows::new(), BlockBuilder::default());
    let mut log = Log { blocks: Vec::new(), states: vec![(Position::new(START, 0), Rows::new())] };
    for unit in units {
        let foreign = matches!(unit, Unit::Foreign(_));
        if !foreign {
            lsn = Lsn((lsn.0 & !7) + 8 + u64::from(matches!(unit, Unit::Message)));
            ordinal = LOGGED_SNAPSHOT_ORDINAL;
        }
        let begins = match unit {
            Unit::Message => MESSAGE_ORDINAL,
            Unit::Foreign(_) => ordinal,
            Unit::Transaction(_) | Unit::Truncate(_) | Unit::Progress => 0,
        };
        let (position, snapshot) = (Position::new(lsn, begins), u32::from(foreign) * FOREIGN);
        let mut end = position;
        let mark = |kind| Entry {
            lsn,
            ordinal: begins,
            row_type: snapshot,
            start: 0,
            end: 0,
            kind,
            op: Op::None,
            continues: false,
        };
        if matches!(unit, Unit::Progress) {
            out.push(mark(Kind::Progress), &[]);
        } else {
            push_begin(&BeginParts { position, snapshot, ..BeginParts::default() }, &mut out);
            match unit {
                Unit::Transaction(changes) => steps(changes, &mut rows, |op, at, value| {
                    end.ordinal += 1;
                    change(op, at, value, (lsn, end.ordinal), &mut out);
                    // A block may end within a transaction.
                    if chances.below(5) == 0 {
                        log.blocks.push(out.finish());
                    }
                }),
                Unit::Truncate(table) => {
                    change(Op::Truncate, (*table, 0), 0, (lsn, 1), &mut out);
                    rows.retain(|(of, _), _| of != table);
                    end.ordinal = 1;
                }
                Unit::Message => change(Op::Message, (0, 0), 0, (lsn, MESSAGE_ORDINAL), &mut out),
                Unit::Foreign(changes) => {
                    change(Op::Read, (0, 1), 99, (lsn, ordinal), &mut out);
                    steps(changes, &mut rows, |op, at, value| change(op, at, value, (lsn, ordinal), &mut out));
                    out.push(mark(Kind::SnapshotCursor), b"cursor");
                }
                Unit::Progress => {}
            }
            push_commit(end, snapshot, &mut out);
            ordinal += u32::from(foreign);
        }
        log.states.push((end, rows.clone()));
        if chances.below(3) == 0 {
            log.blocks.push(out.finish());
        }
    }
    if !out.is_empty() {
        log.blocks.push(out.finish());
    }
    log
}

/// A client: what it holds, and up to where.
struct Client {
    rows: Rows,
    token: Position,
    begun: usize,
    has_ended: bool,
    message_count: usize,
    /// Of the transaction that has begun, and of whose snapshot it is.
    open: Vec<v1::Change>,
    open_of: u32,
    connection_count: u32,
    /// What happens before the first row does not matter to it.
    passes_over: bool,
    /// How far the log was given out.
    given: Position,
    /// The connections that chunks came on, those that were cut off included.
    chunks: BTreeMap<Position, u32>,
}

impl Client {
    /// Applies a block up to and including so many units.
    fn receive(&mut self, block: &Block, mut unit_count: usize) {
        for entry in block.entries() {
            if unit_count == 0 {
                return;
            }
            let bytes = block.slice(entry);
            match entry.kind {
                Kind::Begin => {
                    let begin = v1::Begin::decode(event_body(&bytes).unwrap()).unwrap();
                    assert_eq!(begin.snapshot != 0, entry.ordinal >= SNAPSHOT_ORDINAL);
                    assert!(begin.snapshot == 0 || begin.position == entry.position().to_string());
                    self.open_of = begin.snapshot;
                }
                Kind::Change => {
                    let change = v1::Change::decode(event_body(&bytes).unwrap()).unwrap();
                    assert_eq!(change.ordinal, entry.ordinal);
                    // Who does not receive a snapshot is delivered what it corrects.
                    if self.open_of != FOREIGN || change.op() != v1::change::Op::Read {
                        self.open.push(change);
                    }
                    if entry.is_of_snapshot() {
                        let of = *self.chunks.entry(entry.position()).or_insert(self.connection_count);
                        assert_eq!(of, self.connection_count, "another chunk at the same position");
                    }
                }
                Kind::Commit => std::mem::take(&mut self.open).iter().for_each(|change| self.apply(change)),
                Kind::SnapshotBegin => self.begun += 1,
                Kind::SnapshotEnd => self.has_ended = true,
                Kind::Progress | Kind::RowType | Kind::SnapshotCursor => {}
            }
            if entry.completes() {
                assert!(
                    entry.position().as_resume_point() > self.token.as_resume_point(),
                    "{} again",
                    entry.position()
                );
                self.token = entry.position();
                assert_eq!(marks::is_within(self.token), !self.has_ended, "{}", self.token);
                unit_count -= 1;
            }
        }
    }

    fn apply(&mut self, change: &v1::Change) {
        let bytes: &[u8] = if change.row.is_empty() { &change.old } else { &change.row };
        let (table, key, value) = (bytes[0], bytes[1], bytes[2]);
        match change.op() {
            v1::change::Op::Delete => drop(self.rows.remove(&(table, key))),
            v1::change::Op::Truncate => self.rows.retain(|(of, _), _| *of != table),
            v1::change::Op::Message => self.message_count += 1,
            _upsert => drop(self.rows.insert((table, key), value)),
        }
    }
}

fn units_of(block: &Block) -> usize {
    block.entries().iter().filter(|entry| entry.completes()).count()
}

/// One connection: what comes after the client's token, until it is lost or the log is through.
fn connection(log: &Log, client: &mut Client, chances: &mut Chances, may_end: bool) {
    let after = marks::read_from(client.token, Position::ZERO);
    client.open.clear();
    let mut blocks = log.blocks.iter().filter(|block| block.last() > after).peekable();
    client.connection_count += 1;
    let first_chunk = marks::opened(START).ordinal + 2 + 1000 * client.connection_count;
    let mut weaving = Weaving::new(NUMBER, (client.token, client.given), first_chunk, Restated::default());
    let mut cursor: Option<(u8, u8)> = None;
    let mut woven: Vec<Block> = weaving.begin((vec!["t".to_owned()], vec![16_400]), Vec::new()).into_iter().collect();
    loop {
        for block in woven.drain(..) {
            let lost = may_end && chances.below(12) == 0;
            let count = if lost { chances.below(units_of(&block) + 1) } else { usize::MAX };
            client.receive(&block, count);
            if lost {
                return;
            }
        }
        if weaving.has_ended() {
            break;
        }
        if weaving.needs_log() || (chances.below(3) == 0 && blocks.peek().is_some()) {
            let block = blocks.next().expect("the mirror is not ahead of the log");
            client.given = client.given.max(block.last());
            woven.extend(weaving.log(block));
            continue;
        }
        // Any state that is not older than what has been given out.
        let known: Vec<_> = log.states.iter().filter(|(at, _)| !weaving.is_past(*at)).collect();
        let (position, rows) = known[chances.below(known.len().min(4))];
        if client.passes_over && weaving.pass_over(*position) {
            client.given = client.given.max(*position);
            while blocks.next_if(|block| block.last() <= *position).is_some() {}
        }
        let count = chances.below(5);
        let behind: Vec<_> = rows.iter().filter(|(at, _)| cursor.is_none_or(|cursor| **at > cursor)).collect();
        let read = &behind[..count.min(behind.len())];
        cursor = read.last().map(|(at, _)| **at).or(cursor);
        let row = |((table, key), value): &(&(u8, u8), &u8)| MirrorRow {
            row_type: 1,
            row: vec![*table, *key, **value].into(),
            missing: Vec::new(),
        };
        let (is_last, rows) = (behind.len() <= count, read.iter().map(row).collect());
        woven.extend(weaving.chunk(Chunk { position: *position, rows, is_last }));
    }
}

fn run(units: &[Unit], mut chances: Chances, connections: usize) {
    let log = log(units, &mut chances);
    let token = marks::opened(START);
    let mut client = Client {
        rows: Rows::new(),
        token,
        begun: 0,
        has_ended: false,
        message_count: 0,
        open: Vec::new(),
        open_of: 0,
        connection_count: 0,
        passes_over: chances.below(2) == 0,
        given: Position::ZERO,
        chunks: BTreeMap::new(),
    };
    for left in (0..=connections).rev() {
        if !client.has_ended {
            connection(&log, &mut client, &mut chances, left > 0);
        }
    }
    assert_eq!(client.begun, 1);
    assert!(client.has_ended, "the last connection is not lost");
    // The snapshot's end may stand amid what its block has behind it.
    let after = client.token.as_resume_point();
    let (_, rows) = log.states.iter().rev().find(|(at, _)| *at <= after).expect("the start is there");
    assert_eq!(&client.rows, rows, "at {}", client.token);
    client.open.clear();
    for block in &log.blocks {
        let mut rest = BlockBuilder::default();
        let is_new = |entry: &&Entry| entry.position() > after;
        block.entries().iter().filter(is_new).for_each(|entry| rest.push(*entry, &block.slice(entry)));
        client.receive(&rest.finish(), usize::MAX);
    }
    assert_eq!(&client.rows, &log.states.last().expect("the start is there").1);
    let message_count = units.iter().filter(|unit| matches!(unit, Unit::Message)).count();
    assert!(client.message_count == message_count || client.passes_over);
}

proptest! {
    #[test]
    fn a_snapshot_is_exact_over_lost_connections(
        units in proptest::collection::vec(unit(), 0..40), chances in proptest::collection::vec(any::<u8>(), 200),
        connections in 0_usize..6,
    ) {
        run(&units, Chances(chances, 0), connections);
    }
}

#[test]
fn a_value_that_is_not_known_is_said_to_be_unchanged() {
    let mut weaving = Weaving::new(
        NUMBER,
        (marks::opened(START), Position::ZERO),
        marks::opened(START).ordinal + 2,
        Restated::default(),
    );
    let row = MirrorRow { row_type: 4, row: vec![1].into(), missing: vec![9] };
    let block =
        weaving.chunk(Chunk { position: Position::new(START, 5), rows: vec![row], is_last: true }).expect("at once");
    let read = block.entries().iter().find(|entry| entry.kind == Kind::Change).expect("a read");
    let read = v1::Change::decode(event_body(&block.slice(read)).unwrap()).unwrap();
    assert_eq!((read.op(), read.row_type, &read.unchanged[..]), (v1::change::Op::Read, 4, &[9][..]));
    assert!(weaving.has_ended());
}
