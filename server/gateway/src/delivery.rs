//! What of a block a subscription receives, and in which messages: the pure core of every session.
//!
//! ```text
//! block     | RowType | Begin | Change 7 | Change 7 | Change 9 | Change 7 | Commit | Begin | Change 9 | Commit |
//! filtered  |           Begin | Changes:  7, 7      |          | Changes: 7 | Commit |       nothing matches    |
//! ```
//!
//! [`filter`] is a function of plan, block and carry, so that all subscriptions with the plan share its result. A
//! [`Delivery`] is one subscription's way through filtered blocks: where it started, what it was told, and its credit.
//!
//! Of chunks and snapshots' marks, a plan has those of its own snapshot; the others pass like transactions without a match.
//!
//! Invariants: runs of whole changes are slices of the block; marks are sent only for transactions in which something
//! matched; changes are sent only while credit is positive, so that it is overdrawn by at most one message.

use std::{collections::HashSet, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tidegate_model::{Block, Entry, Kind, Position};
use tidegate_proto::v1;

use crate::{
    frame::{Addressee, Event, Outbox},
    opening::abandoned,
    projection::ChangeProjector,
    selection::{Deliver, Plan, Routing, RowTypeLookup},
    status::GatewayError,
    time::microseconds,
};

/// A run of changes is cut before it exceeds this, so that subscriptions of a session take turns. One change may be larger.
const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// What plan and block yield.
#[derive(Debug)]
pub(crate) struct Filtered {
    pieces: Vec<Piece>,
    /// Row types that the pieces use: (selection, row type, announcement).
    uses: Vec<(u32, u32, Bytes)>,
    /// The block's payload.
    payload: Bytes,
    /// Changes with some of their columns.
    projected: Bytes,
    /// Changes that go on in the next block.
    carry: Carry,
    /// All up to here is complete; None where the block completes nothing.
    complete: Option<Position>,
    /// Commit time of the last transaction that ends in the block, in microseconds since 1970.
    commit_time_us: Option<i64>,
}

impl Filtered {
    fn memory(&self, piece: &Piece) -> &Bytes {
        if piece.projected { &self.projected } else { &self.payload }
    }
}

#[derive(Clone, Debug)]
struct Piece {
    what: What,
    /// Of its last entry.
    position: Position,
    range: Range<usize>,
    /// The range is in `projected`, not in the payload.
    projected: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Begin,
    Changes {
        selection: u32,
        change_count: u32,
    },
    Commit,
    SnapshotBegin,
    /// Complete, or given up: then its subscriptions end.
    SnapshotEnd {
        abandoned: bool,
    },
}

/// What the end of a block cuts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carry {
    /// Projections of changes. Empty almost always.
    cut: Vec<(u32, ChangeProjector)>,
    /// The open chunk is another snapshot's.
    foreign: bool,
}

/// Filters a block. `carry` is what the block before it left; None where that was not filtered: then what precedes the
/// first Begin was received by the subscription earlier, and is passed over.
pub(crate) fn filter(
    plan: &Plan,
    block: &Block,
    carry: Option<Carry>,
    lookup: &impl RowTypeLookup,
) -> Result<Filtered, GatewayError> {
    let mut filter = Filter {
        plan,
        block,
        received: carry.is_none(),
        carry: carry.unwrap_or_default(),
        pieces: Vec::new(),
        uses: Vec::new(),
        projected: BytesMut::new(),
        begin: None,
        routing: None,
        commit_time: None,
    };
    for entry in block.entries() {
        filter.entry(entry, lookup)?;
    }
    Ok(Filtered {
        pieces: filter.pieces,
        uses: filter.uses,
        payload: block.payload().clone(),
        projected: filter.projected.freeze(),
        carry: filter.carry,
        complete: block.complete_through(),
        commit_time_us: filter.commit_time.and_then(|begin| commit_time_us(&block.slice(&begin))),
    })
}

/// A filter at work on one block.
struct Filter<'a> {
    plan: &'a Plan,
    block: &'a Block,
    /// Changes were received earlier.
    received: bool,
    carry: Carry,
    pieces: Vec<Piece>,
    uses: Vec<(u32, u32, Bytes)>,
    projected: BytesMut,
    /// The open transaction's begin, and its place among the pieces.
    begin: Option<(Entry, usize)>,
    /// The last routing used: neighbouring changes are mostly of one table.
    routing: Option<(u32, Arc<Routing>)>,
    /// The begin of the last transaction that has ended.
    commit_time: Option<Entry>,
}

impl Filter<'_> {
    fn entry(&mut self, entry: &Entry, lookup: &impl RowTypeLookup) -> Result<(), GatewayError> {
        match entry.kind {
            Kind::RowType | Kind::Progress | Kind::SnapshotCursor => {}
            Kind::SnapshotBegin | Kind::SnapshotEnd if !self.plan.follows(entry.row_type) => {}
            Kind::SnapshotBegin => self.mark(What::SnapshotBegin, entry),
            Kind::SnapshotEnd => {
                let end = v1::SnapshotEnd::decode(self.block.slice(entry)).map_err(|_| damaged(entry))?;
                self.mark(What::SnapshotEnd { abandoned: !end.abandoned.is_empty() }, entry);
            }
            Kind::Begin if entry.is_of_snapshot() && !self.plan.follows(entry.row_type) => {
                self.received = false;
                self.carry.foreign = true;
            }
            Kind::Commit if self.carry.foreign => self.carry.foreign = false,
            Kind::Begin => {
                self.received = false;
                self.begin = Some((*entry, self.pieces.len()));
                self.mark(What::Begin, entry);
            }
            Kind::Commit => match self.begin.take() {
                Some((begin, at)) => {
                    // A chunk has none of its own.
                    if !begin.is_of_snapshot() {
                        self.commit_time = Some(begin);
                    }
                    if at + 1 == self.pieces.len() {
                        self.pieces.pop();
                    } else {
                        self.mark(What::Commit, entry);
                    }
                }
                None => self.mark(What::Commit, entry),
            },
            Kind::Change if self.received || self.carry.foreign => {}
            Kind::Change => {
                let routing = self.routing(entry.row_type, lookup)?;
                for selection in 0..routing.deliver.len() {
                    if self.plan.wants(selection, entry.op) {
                        self.change(entry, selection, &routing)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn routing(&mut self, row_type: u32, lookup: &impl RowTypeLookup) -> Result<Arc<Routing>, GatewayError> {
        match &self.routing {
            Some((last, routing)) if *last == row_type => Ok(Arc::clone(routing)),
            Some(_) | None => {
                let routing = self.plan.routing(row_type, lookup)?;
                self.routing = Some((row_type, Arc::clone(&routing)));
                Ok(routing)
            }
        }
    }

    fn mark(&mut self, what: What, entry: &Entry) {
        let range = entry.start as usize..entry.end as usize;
        self.pieces.push(Piece { what, position: entry.position(), range, projected: false });
    }

    fn change(&mut self, entry: &Entry, selection: usize, routing: &Routing) -> Result<(), GatewayError> {
        let number = u32::try_from(selection).expect("selections are limited at open");
        let (range, projected) = match &routing.deliver[selection] {
            Deliver::Skip => return Ok(()),
            Deliver::Whole => (entry.start as usize..entry.end as usize, false),
            Deliver::Columns(fields) => {
                let mut projector = self.take_carry(number);
                let start = self.projected.len();
                let part = &self.block.payload()[entry.start as usize..entry.end as usize];
                projector
                    .push(part, |field| fields.contains(field), &mut self.projected)
                    .map_err(|_| damaged(entry))?;
                if entry.continues {
                    self.carry.cut.push((number, projector));
                }
                (start..self.projected.len(), true)
            }
        };
        if entry.row_type != 0 && !self.uses.iter().any(|(s, r, _)| (*s, *r) == (number, entry.row_type)) {
            self.uses.push((number, entry.row_type, routing.announcements[selection].clone()));
        }
        self.append(number, entry, range, projected);
        Ok(())
    }

    fn take_carry(&mut self, selection: u32) -> ChangeProjector {
        let at = self.carry.cut.iter().position(|(carried, _)| *carried == selection);
        at.map_or_else(ChangeProjector::default, |at| self.carry.cut.swap_remove(at).1)
    }

    /// Adds a change to the run before it, where it touches that and the message does not grow too large.
    fn append(&mut self, selection: u32, entry: &Entry, range: Range<usize>, projected: bool) {
        let ends = u32::from(!entry.continues);
        if let Some(Piece { what: What::Changes { selection: s, change_count }, position, range: run, projected: p }) =
            self.pieces.last_mut()
            && (*s, *p, run.end) == (selection, projected, range.start)
            && range.end - run.start <= MESSAGE_BYTES_MAX
        {
            run.end = range.end;
            *position = entry.position();
            *change_count += ends;
            return;
        }
        let what = What::Changes { selection, change_count: ends };
        self.pieces.push(Piece { what, position: entry.position(), range, projected });
    }
}

fn damaged(entry: &Entry) -> GatewayError {
    GatewayError::Damaged { at: entry.position().to_string() }
}

/// The commit time that a Begin states.
fn commit_time_us(begin: &[u8]) -> Option<i64> {
    v1::Begin::decode(begin).ok()?.commit_time.as_ref().map(microseconds)
}

/// What a [`Delivery`] did when it was asked to go on.
#[derive(Debug)]
pub(crate) enum Step {
    /// It sent a message of changes.
    Sent {
        /// The changes in it.
        change_count: u32,
        /// Its length.
        byte_count: usize,
    },
    /// It has changes to send and no credit.
    Starved,
    /// It needs the next block.
    Exhausted,
    /// Its snapshot was given up: nothing more comes.
    Abandoned(v1::Reset),
}

/// One subscription's way through the filtered blocks.
#[derive(Debug)]
pub(crate) struct Delivery {
    subscription: u32,
    /// Nothing up to here is sent.
    after: Position,
    /// All that matched up to here was sent.
    position: Position,
    /// Bytes that may be sent; negative when overdrawn.
    credit_bytes: i64,
    current: Option<(Arc<Filtered>, usize)>,
    /// What the last block left; None before the first.
    carry: Option<Carry>,
    begin: PendingBegin,
    /// The open transaction's Begin was sent.
    begun: bool,
    announced: HashSet<(u32, u32)>,
    commit_time_us: Option<i64>,
}

/// The Begin of a transaction in which nothing has matched yet.
#[derive(Debug)]
enum PendingBegin {
    None,
    /// A piece of the current block.
    Piece(usize),
    /// Of an earlier block, which is not held for it.
    Kept(Bytes),
}

impl Delivery {
    /// A subscription that starts after a position.
    pub(crate) fn new(subscription: u32, after: Position, credit_bytes: u64) -> Self {
        Delivery {
            subscription,
            after: after.as_resume_point(),
            position: after,
            credit_bytes: i64::try_from(credit_bytes).unwrap_or(i64::MAX),
            current: None,
            carry: None,
            begin: PendingBegin::None,
            begun: false,
            announced: HashSet::new(),
            commit_time_us: None,
        }
    }

    /// All that matched up to here was sent; never inside a transaction.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Commit time of the last transaction passed, in microseconds since 1970; None before the first.
    pub(crate) fn commit_time_us(&self) -> Option<i64> {
        self.commit_time_us
    }

    /// May changes be sent?
    pub(crate) fn has_credit(&self) -> bool {
        self.credit_bytes > 0
    }

    /// What may still be sent.
    pub(crate) fn credit_bytes(&self) -> i64 {
        self.credit_bytes
    }

    /// Adds credit. Returns what there would be, where that is over the limit; then nothing is added.
    pub(crate) fn grant(&mut self, credit_bytes: u64, limit: u64) -> Result<(), u64> {
        let granted = i128::from(self.credit_bytes) + i128::from(credit_bytes);
        if granted > i128::from(limit) {
            return Err(u64::try_from(granted).unwrap_or(u64::MAX));
        }
        self.credit_bytes = i64::try_from(granted).unwrap_or(i64::MAX);
        Ok(())
    }

    /// What to filter the next block with.
    pub(crate) fn carry(&self) -> Option<Carry> {
        self.carry.clone()
    }

    /// The next block, filtered. The one before must be exhausted.
    pub(crate) fn offer(&mut self, filtered: Arc<Filtered>) {
        self.carry = Some(filtered.carry.clone());
        self.current = Some((filtered, 0));
    }

    /// Has it something that credit would let it send?
    pub(crate) fn holds_block(&self) -> bool {
        self.current.is_some()
    }

    /// Sends marks up to and including the next message of changes.
    pub(crate) fn next(&mut self, out: &mut Outbox) -> Step {
        let Some((filtered, mut at)) = self.current.take() else { return Step::Exhausted };
        while let Some(piece) = filtered.pieces.get(at) {
            if piece.position <= self.after {
                at += 1;
                continue;
            }
            match piece.what {
                What::Begin => self.begin = PendingBegin::Piece(at),
                What::Commit => self.commit(&filtered, piece, out),
                What::SnapshotEnd { abandoned: true } => {
                    let end = v1::SnapshotEnd::decode(filtered.payload.slice(piece.range.clone())).unwrap_or_default();
                    return Step::Abandoned(abandoned(&end));
                }
                What::SnapshotBegin => self.snapshot_mark(Event::SnapshotBegin, &filtered, piece, out),
                What::SnapshotEnd { abandoned: false } => {
                    self.snapshot_mark(Event::SnapshotEnd, &filtered, piece, out);
                }
                What::Changes { selection, change_count } => {
                    if !self.has_credit() {
                        self.current = Some((filtered, at));
                        return Step::Starved;
                    }
                    self.introduce(&filtered, out);
                    let to = Addressee { subscription: self.subscription, selection };
                    let byte_count = out.event(to, Event::Changes, filtered.memory(piece), piece.range.clone());
                    self.credit_bytes -= i64::try_from(byte_count).unwrap_or(i64::MAX);
                    self.current = Some((filtered, at + 1));
                    return Step::Sent { change_count, byte_count };
                }
            }
            at += 1;
        }
        self.leave(&filtered);
        Step::Exhausted
    }

    /// Sends what must come before changes: row types not yet announced, and the transaction's Begin.
    fn introduce(&mut self, filtered: &Filtered, out: &mut Outbox) {
        for (selection, row_type, announcement) in &filtered.uses {
            if self.announced.insert((*selection, *row_type)) {
                let to = Addressee { subscription: self.subscription, selection: *selection };
                out.event(to, Event::RowType, announcement, 0..announcement.len());
            }
        }
        let to = Addressee { subscription: self.subscription, selection: 0 };
        match std::mem::replace(&mut self.begin, PendingBegin::None) {
            PendingBegin::None => return,
            PendingBegin::Piece(at) => {
                out.event(to, Event::Begin, &filtered.payload, filtered.pieces[at].range.clone());
            }
            PendingBegin::Kept(begin) => {
                out.event(to, Event::Begin, &begin, 0..begin.len());
            }
        }
        self.begun = true;
    }

    fn commit(&mut self, filtered: &Filtered, piece: &Piece, out: &mut Outbox) {
        if self.begun {
            let to = Addressee { subscription: self.subscription, selection: 0 };
            out.event(to, Event::Commit, &filtered.payload, piece.range.clone());
        }
        self.begun = false;
        self.begin = PendingBegin::None;
        self.position = self.position.max(piece.position);
    }

    fn snapshot_mark(&mut self, mark: Event, filtered: &Filtered, piece: &Piece, out: &mut Outbox) {
        let to = Addressee { subscription: self.subscription, selection: 0 };
        out.event(to, mark, &filtered.payload, piece.range.clone());
        self.position = self.position.max(piece.position);
    }

    /// Everything in the block was sent or passed.
    fn leave(&mut self, filtered: &Filtered) {
        if let PendingBegin::Piece(at) = self.begin {
            let begin = filtered.pieces[at].range.clone();
            self.begin = PendingBegin::Kept(Bytes::copy_from_slice(&filtered.payload[begin]));
        }
        self.position = self.position.max(filtered.complete.unwrap_or(Position::ZERO));
        self.commit_time_us = filtered.commit_time_us.or(self.commit_time_us);
    }
}

#[cfg(test)]
mod tests;
