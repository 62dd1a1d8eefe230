//! Random blocks, and subscriptions that come, fall behind, catch up and go: each receives what a plain look at every record
//! says, with nothing twice and nothing missing, and its marks around it.

mod log;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::BytesMut;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidegate_model::{Block, Entry, Kind, Lsn, Op, Position, TableName};
use tidegate_store::Place;
use tidegate_views::{Effect, Predicate, TableFacts};

use super::{
    bell::Bell,
    core::{Core, Insert, Passed, SeatId, Subject},
    follower::Follower,
    note::{Known, Note, RoutedBlock},
    seat::{Next, Seat},
};
use crate::by_row_type::RowTypeLookup;
use log::{Change, Log, RowTypes, facts, row_types};

/// By row type: the first two are one table's, nobody selects the last.
const TABLES: [&str; 4] = ["orders", "orders", "items", "audit"];
const CONDITIONS: [&str; 10] = [
    "tenant = 0",
    "tenant = 1",
    "tenant = 2",
    "tenant IN (1, 3)",
    "price BETWEEN 2 AND 5",
    "note LIKE 'a%'",
    "true",
    "tenant = 1 AND 10 / price > 2",
    "note IS NULL OR price < 2",
    "id % 2 = 0",
];

/// What is told of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Effect(Effect),
    /// The condition fails.
    Failure,
    /// The change does not say enough.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Begin(Position),
    Change(Position, u16, Told),
    Commit(Position),
    Mark(Position),
}

/// What a plan selects.
struct Shapes {
    selections: Vec<Selected>,
    marks: bool,
}

struct Selected {
    table: TableName,
    predicate: Predicate,
    fields: Option<Vec<u32>>,
    /// The row type for which there is no condition.
    unindexed: u32,
}

impl Subject for Shapes {
    fn tables(&self) -> impl Iterator<Item = &TableName> {
        self.selections.iter().map(|selected| &selected.table)
    }

    fn index(&self, selection: usize, row_type: u32, _: &impl RowTypeLookup, insert: &mut Insert<'_>) -> bool {
        let Selected { predicate, fields, unindexed, .. } = &self.selections[selection];
        if *unindexed != row_type {
            insert(predicate, fields.as_deref());
        }
        *unindexed != row_type
    }

    fn receives(&self, _mark: &Entry, _bytes: &[u8]) -> bool {
        self.marks
    }
}

impl Shapes {
    fn random(random: &mut StdRng, facts: &HashMap<&'static str, TableFacts>) -> Self {
        let selections = (0..random.random_range(1..4)).map(|_| {
            let table = ["orders", "orders", "items"].choose(random).copied().unwrap_or_default();
            let condition = CONDITIONS.choose(random).copied().unwrap_or_default();
            Selected {
                table: TableName::new("public", table),
                predicate: Predicate::new(condition, &[], &facts[table]).expect("a condition"),
                fields: random.random_ratio(1, 3).then(|| vec![1, random.random_range(2..5)]),
                unindexed: if random.random_ratio(1, 6) { random.random_range(1..4) } else { 0 },
            }
        });
        Shapes { selections: selections.collect(), marks: random.random_ratio(1, 4) }
    }

    /// By the meaning of the words.
    fn told(&self, change: &Change) -> Vec<(u16, Told)> {
        let mut all = Vec::new();
        for (selection, selected) in self.selections.iter().enumerate() {
            if !selected.has(change) {
                continue;
            }
            let selects =
                |row: &Option<BytesMut>| row.as_ref().map_or(Ok(false), |row| selected.predicate.selects(row));
            let told = match (selects(&change.old), selects(&change.new)) {
                _ if !change.is_whole || change.op == Op::Truncate => Told::Unknown,
                (Err(_), _) | (_, Err(_)) => Told::Failure,
                (Ok(false), Ok(false)) => continue,
                (Ok(false), Ok(true)) => Told::Effect(Effect::MoveIn),
                (Ok(true), Ok(false)) => Told::Effect(Effect::MoveOut),
                (Ok(true), Ok(true)) if selected.changed(change) => Told::Effect(Effect::Update),
                (Ok(true), Ok(true)) => continue,
            };
            all.push((selection as u16, told));
        }
        all
    }
}

impl Selected {
    fn has(&self, change: &Change) -> bool {
        self.table == TableName::new("public", TABLES[change.row_type as usize - 1])
    }

    fn changed(&self, change: &Change) -> bool {
        let fields = |row: &Option<BytesMut>| {
            let row = row.clone().unwrap_or_default();
            let all = tidegate_schema::wire::Fields::new(&row).map(|field| field.expect("a row"));
            let selected = all.filter(|field| self.fields.as_ref().is_none_or(|of| of.contains(&field.number)));
            selected.map(|field| field.whole.to_vec()).collect::<Vec<_>>()
        };
        fields(&change.old) != fields(&change.new)
    }
}

/// A subscription of the model.
struct Subscription {
    number: u32,
    plan: usize,
    after: Option<Position>,
    passed: Place,
    position: Position,
    follower: Option<Follower>,
    /// It has found nothing, and looks again when it is rung.
    waits: bool,
    open: Option<(Position, bool)>,
    /// Parts of a change.
    parts: usize,
    received: Vec<Event>,
    began: Position,
}

impl Subscription {
    fn new((number, plan): (u32, usize), after: Position, passed: Place) -> Self {
        Subscription {
            number,
            plan,
            after: Some(after),
            passed,
            position: after,
            follower: None,
            waits: false,
            open: None,
            parts: 0,
            received: Vec::new(),
            began: after,
        }
    }

    fn entry(&mut self, entry: &Entry, known: Option<(u16, Effect)>, (log, shapes): (&Log, &Shapes)) {
        if let Some(after) = self.after {
            if entry.kind == Kind::Change || entry.position() <= after {
                return;
            }
            self.after = None;
        }
        match entry.kind {
            Kind::Begin => self.open = Some((entry.position(), false)),
            Kind::Commit => {
                if self.open.take().is_some_and(|(_, matched)| matched) {
                    self.received.push(Event::Commit(entry.position()));
                }
            }
            Kind::Change => {
                let change = &log.changes[&entry.position()];
                if !shapes.selections.iter().any(|selected| selected.has(change)) {
                    return;
                }
                self.parts += 1;
                if entry.continues {
                    return;
                }
                assert_eq!(std::mem::take(&mut self.parts), change.parts, "every part is seen");
                let told = match known {
                    Some((selection, effect)) => vec![(selection, Told::Effect(effect))],
                    None => shapes.told(change),
                };
                for (selection, told) in told {
                    let (begin, matched) = self.open.as_mut().expect("changes stand in transactions");
                    assert_eq!(begin.lsn, entry.lsn);
                    if !std::mem::replace(matched, true) {
                        self.received.push(Event::Begin(*begin));
                    }
                    self.received.push(Event::Change(entry.position(), selection, told));
                }
            }
            Kind::SnapshotBegin if shapes.marks => self.received.push(Event::Mark(entry.position())),
            Kind::RowType | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd | Kind::SnapshotCursor => {}
        }
    }

    fn ended(&mut self, block: &Block) {
        if block.entries().last().is_some_and(Entry::completes) {
            self.open = None;
        }
        self.position = self.position.max(block.complete_through().unwrap_or(Position::ZERO));
    }

    fn block(&mut self, block: usize, (log, shapes): (&Log, &Shapes)) {
        for entry in log.blocks[block].entries() {
            self.entry(entry, None, (log, shapes));
        }
        self.ended(&log.blocks[block]);
        self.passed = Log::place(block + 1);
    }

    fn note(&mut self, note: &Note, (log, shapes): (&Log, &Shapes)) {
        let RoutedBlock { block, open, .. } = &*note.routed;
        if let Some(begun) = open
            && self.open.is_none_or(|(begin, _)| begin != begun.entry.position())
        {
            self.entry(&begun.entry, None, (log, shapes));
        }
        for found in &note.found {
            let known = match found.what {
                Known::Nothing => None,
                Known::Effect { selection, effect } => Some((selection, effect)),
            };
            self.entry(&block.entries()[found.entry as usize], known, (log, shapes));
        }
        self.ended(block);
    }
}

#[derive(Default, Debug)]
struct Counts {
    notes: usize,
    skipped: usize,
    lost: usize,
    joined: usize,
}

type TakenSeat = (SeatId, Arc<Seat>);

struct Simulation {
    random: StdRng,
    log: Log,
    row_types: RowTypes,
    /// Blocks that may be seen.
    visible: usize,
    /// Blocks that are routed.
    routed: usize,
    core: Core<Shapes>,
    plans: Vec<(Arc<Shapes>, Option<TakenSeat>)>,
    subscriptions: Vec<Subscription>,
    next: u32,
    bell: Arc<Bell>,
    /// Who has been rung and has not looked since.
    rung: HashSet<u32>,
    counts: Counts,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let log = Log::random(&mut random);
        let facts = HashMap::from(["orders", "items"].map(|name| (name, facts(name))));
        let plans = (0..random.random_range(1..6)).map(|_| (Arc::new(Shapes::random(&mut random, &facts)), None));
        let plans = plans.collect();
        let kept_bytes_max = [0, 2_000, 20_000, 1 << 20].choose(&mut random).copied().unwrap_or_default();
        let core = Core::new(Passed::default(), kept_bytes_max);
        Simulation {
            random,
            log,
            row_types: row_types(),
            visible: 0,
            routed: 0,
            core,
            plans,
            subscriptions: Vec::new(),
            next: 0,
            bell: Arc::default(),
            rung: HashSet::new(),
            counts: Counts::default(),
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..10) {
            0 => self.publish(),
            1..3 => self.route(),
            3 => self.subscribe(),
            4 if self.random.random_ratio(1, 6) => self.unsubscribe(),
            _ => {
                if let Some(which) = (0..self.subscriptions.len()).collect::<Vec<_>>().choose(&mut self.random) {
                    self.advance(*which);
                }
            }
        }
    }

    /// Up to the next place where all is complete.
    fn publish(&mut self) {
        let blocks = &self.log.blocks;
        let more = blocks[self.visible..].iter().position(|block| block.entries().last().is_some_and(Entry::completes));
        self.visible = more.map_or(blocks.len(), |more| self.visible + more + 1);
    }

    fn route(&mut self) {
        if self.routed < self.visible {
            let end = Log::place(self.routed + 1);
            self.core.route(&self.log.blocks[self.routed], end, &self.row_types);
            self.routed += 1;
        }
    }

    /// From some transaction on, perhaps one that is still to come.
    fn subscribe(&mut self) {
        let plan = self.random.random_range(0..self.plans.len());
        let (shapes, seat) = &mut self.plans[plan];
        if seat.is_none() {
            let new = Arc::new(Seat::default());
            *seat = Some((self.core.take(Arc::clone(&new), Arc::clone(shapes), &self.row_types), new));
        }
        let after = Position::end_of_transaction(Lsn(self.random.random_range(0..60)));
        let seen = &self.log.blocks[..self.visible];
        let passed = seen.iter().position(|block| block.last() > after).unwrap_or(seen.len());
        self.subscriptions.push(Subscription::new((self.next, plan), after, Log::place(passed)));
        self.next += 1;
    }

    fn unsubscribe(&mut self) {
        if self.subscriptions.is_empty() {
            return;
        }
        let gone = self.random.random_range(0..self.subscriptions.len());
        let gone = self.subscriptions.swap_remove(gone);
        self.check(&gone);
        if self.subscriptions.iter().all(|other| other.plan != gone.plan)
            && let Some((id, _)) = self.plans[gone.plan].1.take()
        {
            self.core.leave(id);
        }
    }

    fn advance(&mut self, which: usize) {
        let Simulation { log, plans, subscriptions, core, visible, bell, rung, counts, .. } = self;
        let mut newly_rung = Vec::new();
        bell.take(&mut newly_rung);
        rung.extend(newly_rung);
        let subscription = &mut subscriptions[which];
        let (shapes, seat) = &plans[subscription.plan];
        let Some((_, seat)) = seat else { return };
        let Some(follower) = &mut subscription.follower else {
            subscription.follower = Follower::join(seat, subscription.passed);
            counts.joined += usize::from(subscription.follower.is_some());
            let block = (subscription.passed.0 / 100) as usize;
            if subscription.follower.is_none() && block < *visible {
                subscription.block(block, (log, shapes));
            }
            return;
        };
        let before = core.passed();
        let is_rung = rung.remove(&subscription.number);
        let next = follower.next((bell, subscription.number));
        let waited = std::mem::replace(&mut subscription.waits, matches!(next, Next::Nothing));
        assert!(is_rung || !waited || subscription.waits, "who waits is rung when there is something");
        match next {
            Next::Note(note) => {
                counts.notes += 1;
                subscription.note(&note, (log, shapes));
            }
            Next::Nothing if follower.advance(&before) => {
                counts.skipped += 1;
                subscription.position = subscription.position.max(before.complete);
                subscription.open = None;
            }
            Next::Nothing => {}
            Next::Lost => {
                counts.lost += 1;
                subscription.passed = follower.passed();
                subscription.follower = None;
            }
        }
    }

    /// What was received is what is up to the subscription's position, and a beginning of what is beyond.
    fn check(&self, subscription: &Subscription) {
        let shapes = &self.plans[subscription.plan].0;
        let mut naive = Subscription::new((0, subscription.plan), subscription.began, Place::default());
        for block in 0..self.log.blocks.len() {
            naive.block(block, (&self.log, shapes));
        }
        let received = &subscription.received;
        assert_eq!(received[..], naive.received[..received.len().min(naive.received.len())]);
        let at = |event: &Event| match event {
            Event::Begin(at) | Event::Change(at, ..) | Event::Commit(at) | Event::Mark(at) => *at,
        };
        let due = naive.received.iter().filter(|event| at(event) <= subscription.position).count();
        assert!(received.len() >= due, "all up to {} was received", subscription.position);
    }

    fn finish(mut self) -> Counts {
        self.visible = self.log.blocks.len();
        while self.routed < self.visible {
            self.route();
        }
        let head = self.log.blocks.last().map(Block::last).unwrap_or_default();
        for which in 0..self.subscriptions.len() {
            for _ in 0..3 * self.log.blocks.len() + 10 {
                self.advance(which);
            }
            self.check(&self.subscriptions[which]);
            assert!(self.subscriptions[which].position >= head, "it has come to the head");
        }
        while !self.subscriptions.is_empty() {
            self.unsubscribe();
        }
        assert!(self.core.holds_nothing());
        self.counts
    }
}

fn run(seed: u64) -> Counts {
    let mut simulation = Simulation::new(seed);
    for _ in 0..600 {
        simulation.step();
        if simulation.random.random_ratio(1, 50) {
            simulation.subscriptions.iter().for_each(|subscription| simulation.check(subscription));
        }
    }
    simulation.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn subscriptions_receive_by_notes_what_every_block_says(seed: u64) {
        run(seed);
    }
}

#[test]
fn the_simulation_comes_through_every_way() {
    let mut all = Counts::default();
    for seed in 0..40 {
        let Counts { notes, skipped, lost, joined } = run(seed);
        all = Counts {
            notes: all.notes + notes,
            skipped: all.skipped + skipped,
            lost: all.lost + lost,
            joined: all.joined + joined,
        };
    }
    assert!(all.notes > 100 && all.skipped > 100 && all.lost > 20 && all.joined > all.lost, "{all:?}");
}
