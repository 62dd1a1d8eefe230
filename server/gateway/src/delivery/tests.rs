//! Random changelogs × random selections: what is delivered equals what a naive filter says, whatever the blocks, the
//! credit, and where a subscription starts.

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf as _, BytesMut};
use proptest::prelude::*;
use prost::Message as _;
use tidegate_model::{AdHoc, Block, BlockBuilder, Entry, Kind, Lsn, Op, Position, SNAPSHOT_ORDINAL, TableName};
use tidegate_proto::v1::{self, event::What, session_response::Event as Sent};
use tidegate_schema::{
    RowType,
    wire::{Fields, put_len_field},
};

use super::{Carry, Delivery, Filtered, MESSAGE_BYTES_MAX, Step, filter};
use crate::{
    by_row_type::RowTypeLookup,
    config::GatewayConfig,
    frame::Outbox,
    metrics::GatewayMetrics,
    router::Piece,
    selection::{Filter as Selected, Plan, PlanKey, TableFilter},
    share::ShareCache,
};

mod corrections;
mod records;

use records::*;

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
            let filter = TableFilter::parse(&selection, &GatewayConfig::default()).expect("valid");
            Selected::Tables(Box::new(filter))
        };
        Arc::new(Plan::new(PlanKey::new(selections.iter().map(filter).collect(), snapshot, AdHoc::default())))
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

    /// Of a chunk, of a snapshot that the plan receives or does not.
    fn wants_of_chunk(&self, change: &Change, receives: bool) -> bool {
        let with = |op| self.wants(&Change { op, ..change.clone() });
        match (change.row_type, change.op) {
            (KEYLESS, Op::Truncate) => receives && with(Op::Read),
            (KEYLESS, op) => receives && with(Op::Read) && with(op),
            (_, Op::Delete) => with(Op::Delete),
            (_, op) => (receives && self.reads()) == (op == Op::Read) && with(op),
        }
    }

    fn reads(&self) -> bool {
        self.operations.is_empty() || self.operations.iter().any(|op| OPS[*op] == Op::Read)
    }

    fn values(&self, change: &Change) -> Vec<(u32, Vec<u8>)> {
        let is_key = |field: u32| field == 1 && change.row_type != KEYLESS;
        let selected =
            |field: u32| self.columns.is_empty() || is_key(field) || self.columns.contains(&(field as usize - 1));
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
        let mut matching = Vec::new();
        for (ordinal, change) in (1..).zip(changes) {
            let ordinal = if chunk_of == 0 { ordinal } else { SNAPSHOT_ORDINAL + 5 };
            let wants = |selection: &Selection| match chunk_of {
                0 => selection.wants(change),
                _ => selection.wants_of_chunk(change, chunk_of == plan),
            };
            for (selection, wanted) in (0..).zip(selections).filter(|(_, selection)| wants(selection)) {
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
                Step::Failed(failure) => panic!("{failure}"),
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
    fn a_plan_has_the_reads_and_marks_of_its_own_snapshot_and_what_others_correct(
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
                    share.filtered(&second_subscription, &Piece::Block(block.clone()), delivery, &lookup).expect("valid")
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
    let first = share.filtered(&plan, &Piece::Block(block.clone()), &delivery, &lookup).expect("valid");
    let second = share.filtered(&other, &Piece::Block(block), &delivery, &lookup).expect("valid");
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
    let end = v1::SnapshotEnd {
        snapshot: 2,
        position: "0/64:1".to_owned(),
        abandoned: "cancelled".to_owned(),
        ..Default::default()
    };
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

#[test]
fn a_snapshot_that_someone_starts_comes_to_who_asks_for_such() {
    let (tables, snapshot) = (vec!["public.fresh".to_owned()], 2);
    let begin = v1::SnapshotBegin { snapshot, tables: tables.clone(), ad_hoc: true, ..Default::default() };
    let chunk = v1::Begin { snapshot, ad_hoc: true, ..Default::default() };
    let end = v1::SnapshotEnd { snapshot, tables, ad_hoc: true, ..Default::default() };
    let at = |kind, n| Entry { row_type: snapshot, ..entry(kind, lsn_of(0), SNAPSHOT_ORDINAL + n) };
    let records = [
        (at(Kind::SnapshotBegin, 0), begin.encode_to_vec()),
        (at(Kind::Begin, 1), field(What::Begin(chunk))),
        (at(Kind::Commit, 1), field(What::Commit(v1::Commit::default()))),
        (at(Kind::SnapshotEnd, 2), end.encode_to_vec()),
    ];
    let block = blocks(&records, &[records.len()]).remove(0);
    for (asks, expected) in [(true, 2), (false, 0)] {
        let plan = asking(AdHoc::default().turned(asks, Position::ZERO));
        let filtered = filter(&plan, &block, Carry::default(), &row_types()).expect("valid");
        assert_eq!(filtered.pieces.len(), expected, "asks: {asks}");
    }
}

/// Selects all tables.
fn asking(ad_hoc: AdHoc) -> Plan {
    let all = TableFilter::parse(&v1::TableSelection::default(), &GatewayConfig::default()).expect("valid");
    let filters = vec![Selected::Tables(Box::new(all))];
    Plan::new(PlanKey::new(filters, 0, ad_hoc))
}

#[test]
fn a_snapshot_that_someone_starts_is_received_whole_or_not_at_all() {
    let (snapshot, table) = (2, "public.audit_log".to_owned());
    let at = |lsn: u64| Position::new(Lsn(lsn), SNAPSHOT_ORDINAL);
    let of = |kind, at: Position| Entry { row_type: snapshot, ..entry(kind, at.lsn, at.ordinal) };
    let begin = v1::Begin { snapshot, ad_hoc: true, snapshot_begin: at(50).to_string(), ..Default::default() };
    let (op, row_type) = (Op::Read, KEYLESS);
    let read = v1::Change { op: op as i32, row_type, ..Default::default() };
    let (abandoned, tables) = ("cancelled".to_owned(), vec![table.clone()]);
    let end = |incomplete| v1::SnapshotEnd {
        snapshot,
        ad_hoc: true,
        begin: at(50).to_string(),
        abandoned: abandoned.clone(),
        tables: tables.clone(),
        incomplete,
        ..Default::default()
    };
    let records = |incomplete| {
        let change = Entry { op, row_type, ..entry(Kind::Change, Lsn(60), SNAPSHOT_ORDINAL) };
        let end = end(incomplete).encode_to_vec();
        [
            (of(Kind::Begin, at(60)), field(What::Begin(begin.clone()))),
            (change, field(What::Change(read.clone()))),
            (of(Kind::Commit, at(60)), field(What::Commit(v1::Commit::default()))),
            (of(Kind::SnapshotEnd, at(70)), end),
        ]
    };
    // Since it asks, or it has asked when the snapshot began; asked too late, or had ceased to.
    let turns: [(&[u64], bool); 5] =
        [(&[40], true), (&[40, 55], true), (&[55], false), (&[40, 45], false), (&[40, 45, 55], false)];
    for (turns, receives) in turns {
        let turns: Vec<Position> = turns.iter().map(|lsn| at(*lsn)).collect();
        let plan = asking(AdHoc::of_turns(&turns).expect("in order"));
        for incomplete in [Vec::new(), vec![table.clone()]] {
            let is_void = receives && !incomplete.is_empty();
            let block = blocks(&records(incomplete), &[4]).remove(0);
            let filtered = filter(&plan, &block, Carry::default(), &row_types()).expect("valid");
            assert_eq!(filtered.pieces.len(), if receives { 2 } else { 0 }, "{turns:?}");
            let mut ends = filtered.pieces.iter().map(|piece| piece.what == super::What::SnapshotAbandoned);
            assert_eq!(ends.any(|is_abandoned| is_abandoned), is_void, "{turns:?}");
        }
    }
}

#[test]
fn a_snapshot_of_new_tables_comes_to_everyone_who_selects_one() {
    let all = Selection { tables: vec![], operations: vec![], columns: vec![] };
    let insert = OPS.iter().position(|op| *op == Op::Insert).expect("among them");
    let inserts = Selection { operations: vec![insert], ..all.clone() };
    let one = Selection { tables: vec![1], ..all.clone() };
    let (tables, snapshot) = (vec!["public.fresh".to_owned()], 2);
    for (selection, new_tables, expected) in [(&all, true, 3), (&all, false, 0), (&inserts, true, 0), (&one, true, 0)] {
        let begin = v1::SnapshotBegin { snapshot, tables: tables.clone(), new_tables, ..Default::default() };
        let chunk = v1::Begin { snapshot, new_tables, ..Default::default() };
        let (abandoned, tables) = ("the table is gone".to_owned(), tables.clone());
        let given_up =
            v1::SnapshotEnd { snapshot, abandoned, tables: tables.clone(), new_tables, ..Default::default() };
        let end = v1::SnapshotEnd { snapshot, tables, new_tables, ..Default::default() };
        let at = |kind, n| Entry { row_type: snapshot, ..entry(kind, lsn_of(0), SNAPSHOT_ORDINAL + n) };
        let records = [
            (at(Kind::SnapshotBegin, 0), begin.encode_to_vec()),
            // Nothing of it matches.
            (at(Kind::Begin, 1), field(What::Begin(chunk))),
            (at(Kind::Commit, 1), field(What::Commit(v1::Commit::default()))),
            (at(Kind::SnapshotEnd, 2), given_up.encode_to_vec()),
            (at(Kind::SnapshotEnd, 3), end.encode_to_vec()),
        ];
        let block = blocks(&records, &[records.len()]).remove(0);
        let plan = Selection::plan_of(std::slice::from_ref(selection), 0);
        let filtered = filter(&plan, &block, Carry::default(), &row_types()).expect("valid");
        assert_eq!(filtered.pieces.len(), expected, "{selection:?} {new_tables}");
        assert!(!filtered.pieces.iter().any(|piece| piece.what == super::What::SnapshotAbandoned));
    }
}
