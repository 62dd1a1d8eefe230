//! Random changelogs × random selections: what is delivered equals what a naive filter says, whatever the blocks, the
//! credit, and where a subscription starts.

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf as _, BytesMut};
use proptest::prelude::*;
use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, Op, Position, SNAPSHOT_ORDINAL, TableName};
use tidegate_proto::v1::{self, event::What, session_response::Event as Sent};
use tidegate_schema::{
    RowType,
    wire::{Fields, put_len_field},
};

use super::{Carry, Delivery, Filtered, MESSAGE_BYTES_MAX, Step, filter};
use crate::{
    config::GatewayConfig,
    frame::Outbox,
    metrics::GatewayMetrics,
    selection::{Plan, PlanKey, RowTypeLookup, TableFilter},
    share::ShareCache,
};

const TABLES: [&str; 3] = ["orders", "items", "audit_log"];
const COLUMNS: [&str; 4] = ["id", "a", "b", "c"];
const OPS: [Op; 6] = [Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Message, Op::Read];

struct RowTypes(HashMap<u32, Arc<RowType>>);

impl RowTypeLookup for RowTypes {
    fn row_type(&self, row_type: u32) -> Option<Arc<RowType>> {
        self.0.get(&row_type).cloned()
    }
}

/// Row types 1, 2, 3 for the tables, with the columns as fields 1 to 4, of which the first is the key.
fn row_types() -> RowTypes {
    let row_type = |(number, table): (u32, &&str)| {
        let columns = (1..).zip(COLUMNS).map(|(field, name)| tidegate_schema::ColumnSpec {
            name: name.to_owned(),
            attnum: i32::try_from(field).expect("small"),
            type_oid: 25,
            type_name: "text".to_owned(),
            codec: tidegate_schema::ValueKind::TEXT,
            key: field == 1,
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
struct Change {
    row_type: u32,
    op: Op,
    values: Vec<(u32, Vec<u8>)>,
    cuts: Vec<usize>,
}

fn change() -> impl Strategy<Value = Change> {
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
enum Happening {
    Transaction(Vec<Change>),
    Chunk(u32, Vec<Change>),
    SnapshotBegin(u32),
    SnapshotEnd(u32),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let changes = || proptest::collection::vec(change(), 0..8);
    let reads = changes().prop_map(|mut changes| {
        changes.retain(|change| change.row_type != 0);
        changes.iter_mut().for_each(|change| change.op = Op::Read);
        changes
    });
    let happening = prop_oneof![
        3 => changes().prop_map(Happening::Transaction),
        3 => (1_u32..3, reads).prop_map(|(snapshot, reads)| Happening::Chunk(snapshot, reads)),
        1 => (1_u32..3).prop_map(Happening::SnapshotBegin),
        1 => (1_u32..3).prop_map(Happening::SnapshotEnd),
    ];
    proptest::collection::vec(happening, 1..10)
}

fn transactions() -> impl Strategy<Value = Vec<Vec<Change>>> {
    proptest::collection::vec(proptest::collection::vec(change(), 0..8), 1..8)
}

fn lsn_of(transaction: usize) -> Lsn {
    Lsn(100 * (transaction as u64 + 1))
}

fn entry(kind: Kind, lsn: Lsn, ordinal: u32) -> Entry {
    Entry { lsn, ordinal, row_type: 0, start: 0, end: 0, kind, op: Op::None, continues: false }
}

fn encoded_row(values: &[(u32, Vec<u8>)]) -> BytesMut {
    let mut row = BytesMut::new();
    for (field, value) in values {
        put_len_field(&mut row, *field, value);
    }
    row
}

/// An event as a block holds it.
fn field(what: What) -> Vec<u8> {
    v1::ChangeBatch { events: vec![v1::Event { what: Some(what) }] }.encode_to_vec()
}

/// The records of the changelog: an entry and its bytes.
fn records(transactions: &[Vec<Change>]) -> Vec<(Entry, Vec<u8>)> {
    records_of(&transactions.iter().cloned().map(Happening::Transaction).collect::<Vec<_>>())
}

fn records_of(happenings: &[Happening]) -> Vec<(Entry, Vec<u8>)> {
    let mut records = Vec::new();
    for (t, happening) in happenings.iter().enumerate() {
        let lsn = lsn_of(t);
        let of = |kind, snapshot| Entry { row_type: snapshot, ..entry(kind, lsn, SNAPSHOT_ORDINAL + 5) };
        let position = Position::new(lsn, SNAPSHOT_ORDINAL + 5).to_string();
        let (changes, chunk_of) = match happening {
            Happening::Transaction(changes) => (changes, 0),
            Happening::Chunk(snapshot, reads) => (reads, *snapshot),
            Happening::SnapshotBegin(snapshot) => {
                let begin = v1::SnapshotBegin { snapshot: *snapshot, position, tables: vec![] };
                records.push((of(Kind::SnapshotBegin, *snapshot), begin.encode_to_vec()));
                continue;
            }
            Happening::SnapshotEnd(snapshot) => {
                let end = v1::SnapshotEnd { snapshot: *snapshot, position, abandoned: String::new() };
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
        let commit = v1::Commit { position: Position::new(lsn, last).to_string() };
        records.push((mark(Kind::Commit, last), field(What::Commit(commit))));
    }
    records
}

/// The records cut into blocks of these lengths, over and over.
fn blocks(records: &[(Entry, Vec<u8>)], lengths: &[usize]) -> Vec<Block> {
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

/// A selection of the model.
#[derive(Clone, Debug)]
struct Selection {
    tables: Vec<usize>,
    operations: Vec<usize>,
    columns: Vec<usize>,
}

fn selection() -> impl Strategy<Value = Selection> {
    let some = |below: usize| proptest::collection::vec(0..below, 0..3);
    (some(3), some(6), some(4)).prop_map(|(tables, operations, columns)| Selection { tables, operations, columns })
}

impl Selection {
    fn plan(selections: &[Selection]) -> Arc<Plan> {
        Self::plan_of(selections, 0)
    }

    fn plan_of(selections: &[Selection], snapshot: u32) -> Arc<Plan> {
        let filter = |selection: &Selection| {
            let selection = v1::TableSelection {
                names: selection.tables.iter().map(|table| TABLES[*table].to_owned()).collect(),
                operations: selection.operations.iter().map(|op| OPS[*op] as i32).collect(),
                columns: selection.columns.iter().map(|column| COLUMNS[*column].to_owned()).collect(),
            };
            TableFilter::parse(&selection, &GatewayConfig::default()).expect("valid")
        };
        Arc::new(Plan::new(PlanKey::new(selections.iter().map(filter).collect(), snapshot)))
    }

    fn wants(&self, change: &Change) -> bool {
        let operation = self.operations.is_empty() || self.operations.iter().any(|op| OPS[*op] == change.op);
        let table = self.tables.is_empty() || self.tables.iter().any(|t| *t + 1 == change.row_type as usize);
        match change.op {
            Op::Message if self.operations.is_empty() => self.tables.is_empty(),
            Op::Message => operation,
            _table => operation && table,
        }
    }

    fn values(&self, change: &Change) -> Vec<(u32, Vec<u8>)> {
        let selected =
            |field: u32| self.columns.is_empty() || field == 1 || self.columns.contains(&(field as usize - 1));
        change.values.iter().filter(|(field, _)| selected(*field)).cloned().collect()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Begin(u64),
    Change { selection: u32, lsn: u64, ordinal: u32, op: i32, values: Vec<(u32, Vec<u8>)> },
    Commit(u64),
    SnapshotBegin(u32),
    SnapshotEnd(u32),
}

/// What a subscription must receive.
fn naive(transactions: &[Vec<Change>], selections: &[Selection], after: Position) -> Vec<Event> {
    let happenings: Vec<_> = transactions.iter().cloned().map(Happening::Transaction).collect();
    naive_of(&happenings, (selections, 0), after)
}

fn naive_of(happenings: &[Happening], (selections, plan): (&[Selection], u32), after: Position) -> Vec<Event> {
    let mut events = Vec::new();
    for (t, happening) in happenings.iter().enumerate() {
        let lsn = lsn_of(t).0;
        if lsn <= after.lsn.0 {
            continue;
        }
        let (changes, chunk_of) = match happening {
            Happening::Transaction(changes) => (changes, 0),
            Happening::Chunk(snapshot, reads) => (reads, *snapshot),
            Happening::SnapshotBegin(snapshot) if *snapshot == plan => {
                events.push(Event::SnapshotBegin(*snapshot));
                continue;
            }
            Happening::SnapshotEnd(snapshot) if *snapshot == plan => {
                events.push(Event::SnapshotEnd(*snapshot));
                continue;
            }
            Happening::SnapshotBegin(_) | Happening::SnapshotEnd(_) => continue,
        };
        if chunk_of != 0 && chunk_of != plan {
            continue;
        }
        let mut matching = Vec::new();
        for (ordinal, change) in (1..).zip(changes) {
            let ordinal = if chunk_of == 0 { ordinal } else { SNAPSHOT_ORDINAL + 5 };
            for (selection, wanted) in (0..).zip(selections).filter(|(_, selection)| selection.wants(change)) {
                let (op, values) = (change.op as i32, wanted.values(change));
                matching.push(Event::Change { selection, lsn, ordinal, op, values });
            }
        }
        if !matching.is_empty() {
            events.push(Event::Begin(lsn));
            events.append(&mut matching);
            events.push(Event::Commit(lsn));
        }
    }
    events
}

fn sent(outbox: &mut Outbox) -> Vec<v1::SessionResponse> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = outbox.pop() {
        bytes.extend_from_slice(&frame);
    }
    let (mut bytes, mut messages) = (bytes.freeze(), Vec::new());
    while bytes.has_remaining() {
        assert_eq!(bytes.get_u8(), 0, "not compressed");
        let len = bytes.get_u32() as usize;
        messages.push(v1::SessionResponse::decode(bytes.split_to(len)).expect("a SessionResponse"));
    }
    messages
}

/// Puts together what a client received; checks the order of row types on the way.
fn received(messages: Vec<v1::SessionResponse>) -> Vec<Event> {
    let lsn = |position: &str| position.parse::<Position>().expect("a position").lsn.0;
    let (mut events, mut open, mut known, mut cut) = (Vec::new(), 0, Vec::new(), HashMap::new());
    for message in messages {
        assert_eq!(message.subscription, 9);
        match message.event.expect("an event") {
            Sent::RowType(row_type) => known.push((message.selection, row_type.row_type)),
            Sent::SnapshotBegin(begin) => events.push(Event::SnapshotBegin(begin.snapshot)),
            Sent::SnapshotEnd(end) => events.push(Event::SnapshotEnd(end.snapshot)),
            Sent::Changes(batch) => {
                assert!(!batch.events.is_empty());
                for what in batch.events.into_iter().map(|event| event.what.expect("an event")) {
                    let change = match what {
                        What::Begin(begin) => {
                            open = lsn(&begin.position);
                            events.push(Event::Begin(open));
                            continue;
                        }
                        What::Commit(commit) => {
                            events.push(Event::Commit(lsn(&commit.position)));
                            continue;
                        }
                        What::Change(change) => change,
                    };
                    assert!(change.row_type == 0 || known.contains(&(message.selection, change.row_type)));
                    let row: &mut BytesMut = cut.entry(message.selection).or_default();
                    row.extend_from_slice(&change.row);
                    if !change.continues {
                        let fields = Fields::new(row).map(|field| field.expect("valid"));
                        let values = fields.map(|field| (field.number, field.value.to_vec())).collect();
                        let (selection, ordinal, op) = (message.selection, change.ordinal, change.op);
                        events.push(Event::Change { selection, lsn: open, ordinal, op, values });
                        row.clear();
                    }
                }
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    events
}

/// Delivers blocks, granting `grant` whenever the subscription is out of credit.
fn deliver(
    delivery: &mut Delivery,
    blocks: &[Block],
    grant: u64,
    mut filtered: impl FnMut(&Block, &Delivery) -> Arc<Filtered>,
) -> Vec<v1::SessionResponse> {
    let (mut outbox, mut all) = (Outbox::default(), Vec::new());
    for block in blocks {
        let next = filtered(block, delivery);
        delivery.offer(next);
        loop {
            let credit = delivery.credit_bytes;
            match delivery.next(&mut outbox) {
                Step::Sent { byte_count, change_count } => {
                    assert!(credit > 0, "sent without credit");
                    assert_eq!(delivery.credit_bytes, credit - byte_count as i64);
                    let messages = sent(&mut outbox);
                    let Some(Sent::Changes(batch)) = messages.last().and_then(|message| message.event.as_ref()) else {
                        panic!("changes were sent");
                    };
                    check(batch, change_count, delivery.position());
                    all.extend(messages);
                }
                Step::Starved => {
                    assert!(credit <= 0, "withheld with credit");
                    delivery.grant(grant, 1 << 40).expect("below the limit");
                }
                Step::Exhausted => break,
                Step::Abandoned(reset) => panic!("{reset:?}"),
            }
        }
    }
    all.extend(sent(&mut outbox));
    all
}

/// Changes are counted where they end, and the position is that of the last Commit that was sent, or behind what passed.
fn check(batch: &v1::ChangeBatch, change_count: u32, position: Position) {
    let what = |event: &v1::Event| event.what.clone().expect("an event");
    let ends = |what: What| matches!(what, What::Change(change) if !change.continues);
    assert_eq!(batch.events.iter().map(what).filter(|what| ends(what.clone())).count(), change_count as usize);
    let commit = batch.events.iter().rev().map(what).find_map(|what| match what {
        What::Commit(commit) => Some(commit.position),
        What::Begin(_) | What::Change(_) => None,
    });
    if let Some(commit) = commit {
        assert_eq!(position.to_string(), commit);
    }
}

proptest! {
    #[test]
    fn what_is_delivered_equals_a_naive_filter(
        transactions in transactions(),
        selections in proptest::collection::vec(selection(), 1..4),
        lengths in proptest::collection::vec(1_usize..12, 1..6),
        start in 0_usize..4,
        grant in 1_u64..4000,
    ) {
        let (lookup, plan) = (row_types(), Selection::plan(&selections));
        let blocks = blocks(&records(&transactions), &lengths);
        let after = if start == 0 { Position::ZERO } else { Position::new(lsn_of(start - 1), 1) };
        // A reader starts with the block that holds what follows.
        let first = blocks.iter().position(|block| block.last() > after.as_resume_point()).unwrap_or(blocks.len());
        let mut delivery = Delivery::new(9, after, 1);
        let messages = deliver(&mut delivery, &blocks[first..], grant, |block, delivery| {
            Arc::new(filter(&plan, block, delivery.carry(), &lookup).expect("valid"))
        });
        prop_assert_eq!(received(messages), naive(&transactions, &selections, after));
        if first < blocks.len() {
            prop_assert_eq!(delivery.position().lsn, lsn_of(transactions.len() - 1));
        }
    }

    #[test]
    fn a_plan_has_the_chunks_and_marks_of_its_own_snapshot_alone(
        happenings in happenings(),
        selections in proptest::collection::vec(selection(), 1..3),
        snapshot in 0_u32..3,
        lengths in proptest::collection::vec(1_usize..12, 1..6),
        start in 0_usize..4,
        grant in 1_u64..4000,
    ) {
        let (lookup, plan) = (row_types(), Selection::plan_of(&selections, snapshot));
        let blocks = blocks(&records_of(&happenings), &lengths);
        let after = match start {
            0 => Position::ZERO,
            start => Position::new(lsn_of(start - 1), SNAPSHOT_ORDINAL + 5),
        };
        let first = blocks.iter().position(|block| block.last() > after).unwrap_or(blocks.len());
        let mut delivery = Delivery::new(9, after, 1);
        let messages = deliver(&mut delivery, &blocks[first..], grant, |block, delivery| {
            Arc::new(filter(&plan, block, delivery.carry(), &lookup).expect("valid"))
        });
        prop_assert_eq!(received(messages), naive_of(&happenings, (&selections, snapshot), after));
        if first < blocks.len() {
            prop_assert_eq!(delivery.position().lsn, lsn_of(happenings.len() - 1));
        }
    }

    #[test]
    fn a_shared_block_has_the_bytes_of_one_filtered_alone(
        transactions in transactions(),
        selections in proptest::collection::vec(selection(), 1..3),
        lengths in proptest::collection::vec(1_usize..12, 1..6),
        limit in 0_usize..20_000,
    ) {
        let (lookup, plan) = (row_types(), Selection::plan(&selections));
        let second_subscription = Arc::clone(&plan);
        let blocks = blocks(&records(&transactions), &lengths);
        let share = ShareCache::new(limit, Arc::new(GatewayMetrics::default()));
        let run = |shared: bool| {
            let mut delivery = Delivery::new(9, Position::ZERO, 1 << 30);
            deliver(&mut delivery, &blocks, 1, |block, delivery| {
                if shared {
                    share.filtered(&second_subscription, block.clone(), delivery, &lookup).expect("valid")
                } else {
                    Arc::new(filter(&plan, block, delivery.carry(), &lookup).expect("valid"))
                }
            })
        };
        let alone = run(false);
        for _ in 0..3 {
            prop_assert_eq!(&run(true), &alone);
        }
    }
}

/// A transaction of `count` small inserts into one table, in one block.
fn one_block(count: usize) -> Block {
    let change = Change { row_type: 1, op: Op::Insert, values: vec![(1, vec![7; 20])], cuts: vec![] };
    blocks(&records(&[vec![change; count]]), &[count + 2]).remove(0)
}

#[test]
fn a_run_of_matching_changes_is_one_slice_of_the_block() {
    let (lookup, plan) =
        (row_types(), Selection::plan(&[Selection { tables: vec![0], operations: vec![], columns: vec![] }]));
    let block = one_block(500);
    let filtered = filter(&plan, &block, Carry::default(), &lookup).expect("valid");
    assert_eq!(filtered.pieces.len(), 1);
    assert!(filtered.copied.is_empty());
    assert_eq!(filtered.payload.as_ptr(), block.payload().as_ptr());
}

/// One-row transactions, every third of another table.
fn small_transactions(count: usize) -> Vec<Vec<Change>> {
    let row_type = |n: usize| if n % 3 == 2 { 2 } else { 1 };
    let change = |row_type| Change { row_type, op: Op::Insert, values: vec![(1, vec![7; 20])], cuts: vec![] };
    (0..count).map(|n| vec![change(row_type(n))]).collect()
}

#[test]
fn small_transactions_share_a_message_that_is_a_slice_of_the_block() {
    let lookup = row_types();
    let transactions = small_transactions(300);
    let block = blocks(&records(&transactions), &[usize::MAX]).remove(0);
    // All of the block, two of three transactions as they stand, all of the block but with few columns.
    for (tables, columns, few) in [(vec![], vec![], 1..2), (vec![0], vec![], 2..15), (vec![0], vec![1], 1..2)] {
        let selections = [Selection { tables, operations: vec![], columns }];
        let plan = Selection::plan(&selections);
        let filtered = filter(&plan, &block, Carry::default(), &lookup).expect("valid");
        assert!(few.contains(&filtered.pieces.len()), "{} messages", filtered.pieces.len());
        assert_eq!(filtered.copied.is_empty(), selections[0].tables.is_empty());
        let mut delivery = Delivery::new(9, Position::ZERO, 1 << 30);
        let messages = deliver(&mut delivery, std::slice::from_ref(&block), 1, |block, delivery| {
            Arc::new(filter(&plan, block, delivery.carry(), &lookup).expect("valid"))
        });
        assert_eq!(received(messages), naive(&transactions, &selections, Position::ZERO));
    }
}

#[test]
fn a_message_stays_small() {
    let (lookup, plan) =
        (row_types(), Selection::plan(&[Selection { tables: vec![], operations: vec![], columns: vec![] }]));
    let block = blocks(&records(&small_transactions(9000)), &[usize::MAX]).remove(0);
    let filtered = filter(&plan, &block, Carry::default(), &lookup).expect("valid");
    let lens: Vec<usize> = filtered.pieces.iter().map(|piece| piece.range.len()).collect();
    assert_eq!(lens.iter().sum::<usize>(), block.payload().len());
    assert_eq!(lens.len(), block.payload().len().div_ceil(MESSAGE_BYTES_MAX));
    assert!(lens.iter().all(|len| *len <= MESSAGE_BYTES_MAX));
}

#[test]
fn a_transaction_that_ends_in_another_block_has_its_commit_time_all_the_same() {
    let (lookup, plan) =
        (row_types(), Selection::plan(&[Selection { tables: vec![2], operations: vec![], columns: vec![] }]));
    let transactions = small_transactions(2);
    let mut delivery = Delivery::new(9, Position::ZERO, 1);
    let messages = deliver(&mut delivery, &blocks(&records(&transactions), &[5, 1]), 1, |block, delivery| {
        Arc::new(filter(&plan, block, delivery.carry(), &lookup).expect("valid"))
    });
    assert!(messages.is_empty());
    assert_eq!(delivery.commit_time_us(), Some(1_000_000));
}

#[test]
fn subscriptions_with_equal_plans_share_one_filtering() {
    let (lookup, plan) =
        (row_types(), Selection::plan(&[Selection { tables: vec![0], operations: vec![], columns: vec![1] }]));
    let other = Arc::clone(&plan);
    let metrics = Arc::new(GatewayMetrics::default());
    let share = ShareCache::new(1 << 20, Arc::clone(&metrics));
    let block = one_block(10);
    let mut delivery = Delivery::new(1, Position::ZERO, 1);
    let before = filter(&plan, &one_block(1), Carry::default(), &lookup).expect("valid");
    delivery.offer(Arc::new(before));
    let first = share.filtered(&plan, block.clone(), &delivery, &lookup).expect("valid");
    let second = share.filtered(&other, block, &delivery, &lookup).expect("valid");
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(metrics.blocks(), (1, 1));
}

#[test]
fn a_transaction_without_a_match_leaves_no_mark_but_moves_the_position() {
    let (lookup, plan) =
        (row_types(), Selection::plan(&[Selection { tables: vec![1], operations: vec![], columns: vec![] }]));
    let mut delivery = Delivery::new(9, Position::ZERO, 1);
    let messages = deliver(&mut delivery, &[one_block(3)], 1, |block, _| {
        Arc::new(filter(&plan, block, Carry::default(), &lookup).expect("valid"))
    });
    assert!(messages.is_empty());
    assert_eq!(delivery.position(), Position::new(lsn_of(0), 3));
    assert_eq!(delivery.commit_time_us(), Some(0));
}

#[test]
fn credit_beyond_the_limit_is_refused_and_changes_nothing() {
    let mut delivery = Delivery::new(1, Position::ZERO, 10);
    assert_eq!(delivery.grant(u64::MAX, 100), Err(u64::MAX));
    assert_eq!(delivery.grant(91, 100), Err(101));
    assert_eq!(delivery.grant(90, 100), Ok(()));
    assert_eq!(delivery.credit_bytes, 100);
}

#[test]
fn a_snapshot_that_was_given_up_ends_the_subscriptions_that_wait_for_it() {
    let end = v1::SnapshotEnd { snapshot: 2, position: "0/64:1".to_owned(), abandoned: "cancelled".to_owned() };
    let entry = Entry { row_type: 2, ..entry(Kind::SnapshotEnd, lsn_of(0), SNAPSHOT_ORDINAL) };
    let block = blocks(&[(entry, end.encode_to_vec())], &[1]).remove(0);
    let selections = [Selection { tables: vec![], operations: vec![], columns: vec![] }];
    for (snapshot, ends) in [(2, true), (1, false), (0, false)] {
        let plan = Selection::plan_of(&selections, snapshot);
        let mut delivery = Delivery::new(9, Position::ZERO, 1);
        delivery.offer(Arc::new(filter(&plan, &block, Carry::default(), &row_types()).expect("valid")));
        let step = delivery.next(&mut Outbox::default());
        assert_eq!(matches!(&step, Step::Abandoned(reset) if reset.detail.contains("cancelled")), ends, "{step:?}");
    }
}
