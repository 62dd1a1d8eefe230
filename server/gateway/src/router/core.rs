//! Who is concerned by a block: the pure part of the router.
//!
//! ```text
//! block ──▶ each change ──▶ its table's index for its row type ──▶ (seat, entry, effect)…  ──by seat──▶ a note for each
//!           Begin, Commit ─────▶ for those who have found something in the transaction ─────┘
//!           marks of snapshots, TRUNCATE, what cannot be judged ──▶ all whom they may concern, who look themselves
//! ```
//!
//! Invariant: whoever takes the notes of a seat, and leaves out all else, receives what he would have received from every
//! block, and knows at the end of each note what he would know: the transaction that is open there. Between transactions there is
//! nothing to know, so that he may move on to any place there, up to his next note.
//!
//! **Bounded.** Blocks with notes are kept until they exceed `kept_bytes_max`; then the oldest go, with their notes.
//!
//! It deliberately looks at whole rows only. A change that says less of its old or new row than all, or that is cut by the
//! end of a block, is for everyone with a shape of its table to look at.

use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use slab::Slab;
use tidegate_model::{Block, Entry, Kind, Op, Position, TableName};
use tidegate_store::Place;
use tidegate_views::{Effect, Predicate};

use super::{
    note::{Begun, Found, Known, Note, RoutedBlock},
    rows::Rows,
    seat::Seat,
    tables::{Member, Tables},
};
use crate::{by_row_type::RowTypeLookup, time::commit_time_us};

/// What a seat costs a block besides what was found.
const NOTE_BYTES: usize = 128;

/// What a seat's subscriptions select. All of it are shapes.
pub(crate) trait Subject {
    /// The table of each selection.
    fn tables(&self) -> impl Iterator<Item = &TableName>;

    /// Puts a selection's condition on rows of this type into an index, with the fields that it selects where that is not all. False
    /// where there is none: whoever selects has to look at such rows himself.
    fn index(&self, selection: usize, row_type: u32, lookup: &impl RowTypeLookup, insert: &mut Insert<'_>) -> bool;

    /// Is the mark of a snapshot delivered?
    fn receives(&self, mark: &Entry, bytes: &[u8]) -> bool;
}

/// Puts a condition into an index.
pub(crate) type Insert<'i> = dyn FnMut(&Predicate, Option<&[u32]>) + 'i;

/// Number of a seat that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SeatId(pub(super) u32);

/// Up to where all is routed, between transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) place: Place,
    pub(crate) complete: Position,
    /// Commit time of the last transaction, in microseconds since 1970.
    pub(crate) commit_time_us: Option<i64>,
}

/// The state.
pub(crate) struct Core<S> {
    seats: Slab<Taken<S>>,
    tables: Tables,
    rows: Rows,
    passed: Passed,
    /// That goes on behind the last block.
    open: Option<Transaction>,
    /// Begin of the last transaction that has ended in the block at hand.
    ended: Option<Bytes>,
    /// The last change goes on in the next block.
    cut: bool,
    /// Taken within the open transaction.
    opening: Vec<SeatId>,
    serial: u64,
    hits: Vec<(SeatId, Found)>,
    concerned: Vec<(Member, Option<Effect>)>,
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    kept_bytes_max: usize,
    /// Changes that an index was asked about.
    judged: u64,
    /// How often one concerns a shape, or may.
    found: u64,
}

struct Taken<S> {
    seat: Arc<Seat>,
    subject: Arc<S>,
    /// Serial of the last transaction in which something was found.
    touched: u64,
}

struct Transaction {
    /// None where it begins in the block at hand, at this entry.
    begun: Result<Arc<Begun>, u32>,
    touched: Vec<SeatId>,
}

impl<S> Drop for Core<S> {
    /// Nobody waits for what does not come.
    fn drop(&mut self) {
        for (_, taken) in &self.seats {
            taken.seat.close();
        }
    }
}

/// A block with notes.
struct Kept {
    end: Place,
    byte_count: usize,
    seats: Box<[SeatId]>,
}

impl<S: Subject> Core<S> {
    /// At a place between transactions.
    pub(crate) fn new(passed: Passed, kept_bytes_max: usize) -> Self {
        Core {
            seats: Slab::new(),
            tables: Tables::default(),
            rows: Rows::default(),
            passed,
            open: None,
            ended: None,
            cut: false,
            opening: Vec::new(),
            serial: 0,
            hits: Vec::new(),
            concerned: Vec::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            kept_bytes_max,
            judged: 0,
            found: 0,
        }
    }

    /// Gives the seat its notes from here on: from the next place between transactions.
    pub(crate) fn take(&mut self, seat: Arc<Seat>, subject: Arc<S>, lookup: &impl RowTypeLookup) -> SeatId {
        let id = SeatId(self.seats.insert(Taken { seat, subject, touched: 0 }) as u32);
        let Taken { seat, subject, .. } = &self.seats[id.0 as usize];
        match self.open {
            None => seat.open(self.passed.place),
            Some(_) => self.opening.push(id),
        }
        let subject = Arc::clone(subject);
        for (selection, table) in subject.tables().enumerate() {
            let member = Member { seat: id, selection: selection as u16 };
            let index = |row_type, insert: &mut Insert<'_>| subject.index(selection, row_type, lookup, insert);
            if self.tables.insert(table, member, index) {
                // So that the first change does not wait for it.
                let newest = lookup.newest(table).map(|row_type| row_type.proto().row_type);
                newest.into_iter().for_each(|newest| self.meet(newest, lookup));
            }
        }
        id
    }

    /// Frees the seat, and all that was there for it alone.
    pub(crate) fn leave(&mut self, id: SeatId) {
        let Some(taken) = self.seats.try_remove(id.0 as usize) else { return };
        for (selection, table) in taken.subject.tables().enumerate() {
            self.tables.remove(table, Member { seat: id, selection: selection as u16 });
        }
        self.opening.retain(|other| *other != id);
        taken.seat.close();
        if self.seats.is_empty() {
            (self.seats, self.kept, self.kept_bytes) = (Slab::new(), VecDeque::new(), 0);
        }
    }

    #[cfg(test)]
    pub(super) fn holds_nothing(&self) -> bool {
        let is_empty = self.seats.is_empty() && self.tables.is_empty() && self.opening.is_empty();
        is_empty && self.hits.is_empty() && self.kept.is_empty() && self.counts() == [0; 3]
    }

    /// Shapes, different conditions of theirs, for each row type, and indexes. Costs a look at each table and index.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let Core { tables, .. } = self;
        [tables.shape_count(), tables.condition_count(), tables.index_count()].map(|count| count as u64)
    }

    /// Changes that an index was asked about, conditions that it has found, those of them that were evaluated, and what concerns shapes.
    pub(crate) fn work(&self) -> [u64; 4] {
        let effort = self.rows.effort();
        [self.judged, effort.candidates, effort.evaluations, self.found]
    }

    /// Up to where a subscription without notes may move on.
    pub(crate) fn passed(&self) -> Passed {
        self.passed
    }

    /// Prepares for rows of this type.
    fn meet(&mut self, row_type: u32, lookup: &impl RowTypeLookup) {
        let Core { tables, seats, .. } = self;
        tables.meet(row_type, lookup, |member, insert| {
            let taken = seats.get(member.seat.0 as usize);
            taken.is_some_and(|taken| taken.subject.index(member.selection.into(), row_type, lookup, insert))
        });
    }

    /// Leaves the block's notes in the seats. `end`: behind it. Blocks come in the log's order, none is left out.
    pub(crate) fn route(&mut self, block: &Block, end: Place, lookup: &impl RowTypeLookup) {
        let open = self.open.as_ref().and_then(|open| open.begun.clone().ok());
        let entries = block.entries();
        let mut at = 0;
        while let Some(entry) = entries.get(at) {
            let number = at as u32;
            at += 1;
            match entry.kind {
                Kind::RowType | Kind::SnapshotCursor | Kind::Progress => {}
                Kind::SnapshotBegin | Kind::SnapshotEnd => self.mark(block, number),
                Kind::Begin => {
                    self.serial += 1;
                    self.open = Some(Transaction { begun: Err(number), touched: Vec::new() });
                }
                Kind::Commit => self.commit(block, number),
                Kind::Change => {
                    let continuing = entries[at - 1..].iter().take_while(|entry| entry.continues).count();
                    at = (at + continuing).min(entries.len());
                    self.meet(entry.row_type, lookup);
                    self.change(block, number..at as u32);
                }
            }
        }
        self.leave_open(block);
        self.write_notes(Arc::new(RoutedBlock { block: block.clone(), end, open }));
        self.passed.commit_time_us =
            self.ended.take().and_then(|begin| commit_time_us(&begin)).or(self.passed.commit_time_us);
        if self.open.is_none() {
            self.passed.place = end;
            self.passed.complete = block.complete_through().unwrap_or(self.passed.complete);
            for id in std::mem::take(&mut self.opening) {
                self.seats[id.0 as usize].seat.open(end);
            }
        }
    }

    fn change(&mut self, block: &Block, numbers: Range<u32>) {
        let parts = &block.entries()[numbers.start as usize..numbers.end as usize];
        let Some((first, last)) = parts.first().zip(parts.last()) else { return };
        let is_whole = !std::mem::replace(&mut self.cut, last.continues) && !last.continues;
        let Some((members, sorted)) = self.tables.of(first.row_type) else { return };
        let mut concerned = std::mem::take(&mut self.concerned);
        let judged = match (first.op, sorted) {
            (Op::None | Op::Message, _) => return,
            (Op::Truncate, _) | (_, None) => None,
            (op @ (Op::Read | Op::Insert | Op::Update | Op::Delete), Some(sorted)) => {
                if is_whole {
                    self.judged += 1;
                    self.rows.judged(block, (op, parts), sorted, &mut concerned)
                } else {
                    None
                }
            }
        };
        if judged.is_none() {
            concerned.extend(members.iter().map(|member| (*member, None)));
        }
        self.found += concerned.len() as u64;
        for (Member { seat, selection }, effect) in concerned.drain(..) {
            let known = effect.filter(|_| parts.len() == 1);
            let what = known.map_or(Known::Nothing, |effect| Known::Effect { selection, effect });
            self.touch(seat);
            self.hits.extend(numbers.clone().map(|entry| (seat, Found { entry, what })));
        }
        self.concerned = concerned;
    }

    /// Something of the open transaction is for this seat: so are its marks.
    fn touch(&mut self, id: SeatId) {
        let (Some(open), Some(taken)) = (&mut self.open, self.seats.get_mut(id.0 as usize)) else { return };
        if taken.touched == self.serial {
            return;
        }
        taken.touched = self.serial;
        open.touched.push(id);
        if let Err(entry) = open.begun {
            self.hits.push((id, Found { entry, what: Known::Nothing }));
        }
    }

    fn commit(&mut self, block: &Block, entry: u32) {
        let Some(open) = self.open.take() else { return };
        if !block.entries()[entry as usize].is_of_snapshot() {
            self.ended = Some(match &open.begun {
                Ok(begun) => begun.event.clone(),
                Err(begin) => block.slice(&block.entries()[*begin as usize]),
            });
        }
        self.hits.extend(open.touched.into_iter().map(|id| (id, Found { entry, what: Known::Nothing })));
    }

    fn mark(&mut self, block: &Block, number: u32) {
        let entry = &block.entries()[number as usize];
        let bytes = block.slice(entry);
        let receivers = self.seats.iter().filter(|(_, taken)| taken.subject.receives(entry, &bytes));
        let found = Found { entry: number, what: Known::Nothing };
        self.hits.extend(receivers.map(|(id, _)| (SeatId(id as u32), found)));
    }

    /// Whoever has a note of this block knows of the transaction that is open at its end.
    fn leave_open(&mut self, block: &Block) {
        let Some(open) = &mut self.open else { return };
        let Err(number) = open.begun else { return };
        let mut told: HashSet<SeatId> = open.touched.iter().copied().collect();
        let found = Found { entry: number, what: Known::Nothing };
        let others: Vec<SeatId> = self.hits.iter().map(|(id, _)| *id).filter(|id| told.insert(*id)).collect();
        self.hits.extend(others.into_iter().map(|id| (id, found)));
        let entry = block.entries()[number as usize];
        let event = Bytes::copy_from_slice(&block.slice(&entry));
        open.begun = Ok(Arc::new(Begun { entry, event }));
    }

    fn write_notes(&mut self, routed: Arc<RoutedBlock>) {
        let order = |(id, found): &(SeatId, Found)| {
            let selection = match found.what {
                Known::Nothing => None,
                Known::Effect { selection, .. } => Some(selection),
            };
            (*id, found.entry, selection)
        };
        self.hits.sort_unstable_by_key(order);
        // What has to be looked at need not be known.
        self.hits.dedup_by(|later, first| {
            (later.0, later.1.entry) == (first.0, first.1.entry)
                && (first.1.what == Known::Nothing || later.1 == first.1)
        });
        let mut seats = Vec::new();
        for hits in self.hits.chunk_by(|a, b| a.0 == b.0) {
            let id = hits[0].0;
            let Some(taken) = self.seats.get(id.0 as usize) else { continue };
            let found = hits.iter().map(|(_, found)| *found).collect();
            taken.seat.push(Arc::new(Note { routed: Arc::clone(&routed), found, filtered: Default::default() }));
            seats.push(id);
        }
        if !seats.is_empty() {
            let found_bytes = self.hits.len() * size_of::<Found>() + seats.len() * NOTE_BYTES;
            self.keep(Kept {
                end: routed.end,
                byte_count: routed.block.byte_count() + found_bytes,
                seats: seats.into(),
            });
        }
        self.hits.clear();
        self.hits.shrink_to(1 << 16);
    }

    fn keep(&mut self, kept: Kept) {
        self.kept_bytes += kept.byte_count;
        self.kept.push_back(kept);
        while self.kept_bytes > self.kept_bytes_max
            && let Some(oldest) = self.kept.pop_front()
        {
            self.kept_bytes -= oldest.byte_count;
            for id in oldest.seats {
                // Another may sit there by now: it has no notes as old.
                if let Some(taken) = self.seats.get(id.0 as usize) {
                    taken.seat.forget(oldest.end);
                }
            }
        }
    }
}
