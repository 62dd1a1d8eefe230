//! What of a block a subscription receives, and in which messages: the pure core of every session.
//!
//! ```text
//! block     | RowType | Begin | Change 7 | Change 7 | Commit | Begin | Change 9 | Commit | Begin | Change 7 | Commit |
//! filtered  | Changes:  Begin   7          7          Commit |    nothing matches        | Changes: Begin 7   Commit |
//! ```
//!
//! [`filter`] is a function of plan, block and carry, so that all subscriptions with the plan share its result. A
//! [`Delivery`] is one subscription's way through filtered blocks: what it was told, and its credit.
//!
//! Of snapshots' marks, a plan has those of its own snapshot, of snapshots of new tables, and where it asks for them, of those that
//! someone has started. Of their chunks it has the reads, with what leaves its shapes, and of tables without a key all; of the others',
//! what they correct.
//!
//! A change of which a shape is to be told has to be whole first: its pieces are held until the last has come. Where a shape's condition has
//! subqueries, what moves for their sake stands before the Commit of the transaction that has moved it ([`crate::sets`]).
//!
//! Invariants: a run of matching neighbours, over any number of transactions, is one message and a slice of the block, unless
//! it is projected, or short and put together with others; Begin and Commit are sent only of transactions in which something
//! matched; messages of changes are sent only while credit is positive, so that it is overdrawn by at most one.

mod carry;
mod notes;
mod shapes;

pub(crate) use carry::Carry;
pub(crate) use notes::{filter_note, filter_turned};

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tidegate_model::{Block, Entry, Kind, Position};
use tidegate_proto::v1;
use tidegate_views::Effect;

use carry::{Begin, Carried, Open};

use crate::{
    by_row_type::RowTypeLookup,
    frame::{Addressee, Event, Outbox},
    projection::ChangeProjector,
    reset::abandoned,
    selection::{Deliver, Plan, Routing},
    sets::Kept,
    shape::ShapeFailure,
    snapshot_marks::{SnapshotMark, receives_chunk, snapshot_mark},
    status::GatewayError,
    time::commit_time_us,
};

/// A run is cut before it exceeds this, so that subscriptions of a session take turns. One change may be larger.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Neighbours in which something between them does not match are put together up to this; a message this short is copied anyway.
const SHORT_RUN_BYTES: usize = 4 << 10;

/// What plan and block yield.
#[derive(Debug)]
pub(crate) struct Filtered {
    pieces: Vec<Piece>,
    /// Row types that the pieces use: (selection, row type, announcement).
    uses: Vec<(u32, u32, Bytes)>,
    /// The block's payload.
    payload: Bytes,
    /// Events that are no slices of the block: changes with some of their columns, and short runs that were put together.
    copied: Bytes,
    /// What goes on in the next block.
    carried: Carried,
    /// All up to here is complete; None where the block completes nothing.
    complete: Option<Position>,
    /// Commit time of the last transaction that ends in the block, in microseconds since 1970.
    commit_time_us: Option<i64>,
    /// Why the subscription ends behind the pieces.
    failed: Option<Arc<ShapeFailure>>,
}

impl Filtered {
    /// What it holds besides the block.
    pub(crate) fn copied_bytes(&self) -> usize {
        self.copied.len()
    }
}

/// A message, or what a subscription has to know.
#[derive(Clone, Debug)]
struct Piece {
    what: What,
    range: Range<usize>,
    /// The range is in `copied`, not in the payload.
    copied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A run of events.
    Changes {
        /// None where there are only marks in it.
        selection: Option<u32>,
        /// Changes that end in it.
        change_count: u32,
        /// The last Commit in it.
        complete: Option<Position>,
    },
    SnapshotBegin(Position),
    SnapshotEnd(Position),
    /// The snapshot was given up: its subscriptions end.
    SnapshotAbandoned,
    /// It is not known what a change is to a shape: its subscriptions end.
    Failed,
}

impl What {
    /// May a message hold both?
    fn accepts(&self, event: &What) -> bool {
        match (self, event) {
            (What::Changes { selection: a, .. }, What::Changes { selection: b, .. }) => {
                a.is_none() || b.is_none() || a == b
            }
            _mark => false,
        }
    }

    fn add(&mut self, event: What) {
        if let (
            What::Changes { selection, change_count, complete },
            What::Changes { selection: more_of, change_count: more, complete: later },
        ) = (self, event)
        {
            *selection = selection.or(more_of);
            *change_count += more;
            *complete = later.or(*complete);
        }
    }
}

/// Filters a block. `carry` is what the block before it left.
pub(crate) fn filter(
    plan: &Plan,
    block: &Block,
    carry: Carry,
    lookup: &impl RowTypeLookup,
) -> Result<Filtered, GatewayError> {
    let mut filter = Filter::new(plan, block, carry);
    for entry in block.entries() {
        if !filter.goes_on(entry, lookup)? {
            break;
        }
    }
    Ok(filter.finish(block))
}

/// A filter at work on one block.
struct Filter<'a> {
    plan: &'a Plan,
    payload: &'a Bytes,
    carry: Carry,
    pieces: Vec<Piece>,
    uses: Vec<(u32, u32, Bytes)>,
    copied: BytesMut,
    /// The last routing used: neighbouring changes are mostly of one table.
    routing: Option<(u32, Arc<Routing>)>,
    /// The begin of the last transaction that has ended.
    ended: Option<Begin>,
    failed: Option<Arc<ShapeFailure>>,
    /// What the change at hand is to one selection; then it is nothing to the others.
    known: Option<(usize, Effect)>,
    /// Begin and Commit are sent in any case.
    tells_marks: bool,
}

impl<'a> Filter<'a> {
    fn new(plan: &'a Plan, block: &'a Block, carry: Carry) -> Self {
        Filter {
            plan,
            payload: block.payload(),
            carry,
            pieces: Vec::new(),
            uses: Vec::new(),
            copied: BytesMut::new(),
            routing: None,
            ended: None,
            failed: None,
            known: None,
            tells_marks: false,
        }
    }

    /// False where the subscription ends with this entry.
    fn goes_on(&mut self, entry: &Entry, lookup: &impl RowTypeLookup) -> Result<bool, GatewayError> {
        self.entry(entry, lookup)?;
        if self.failed.is_some() {
            self.pieces.push(Piece { what: What::Failed, range: 0..0, copied: false });
        }
        Ok(self.failed.is_none())
    }

    fn finish(self, block: &Block) -> Filtered {
        let Filter { mut carry, pieces, uses, copied, ended, failed, .. } = self;
        if block.entries().last().is_some_and(Entry::completes) {
            carry.open = None;
        }
        if let Some(Open { begin: begin @ Begin::Here(_), .. }) = &mut carry.open {
            *begin = Begin::Kept(Bytes::copy_from_slice(begin.bytes(block.payload())));
        }
        Filtered {
            pieces,
            uses,
            payload: block.payload().clone(),
            copied: copied.freeze(),
            carried: carry.into(),
            complete: block.complete_through(),
            commit_time_us: ended.and_then(|begin| commit_time_us(begin.bytes(block.payload()))),
            failed,
        }
    }

    fn entry(&mut self, entry: &Entry, lookup: &impl RowTypeLookup) -> Result<(), GatewayError> {
        if !self.has_started(entry) {
            return Ok(());
        }
        match entry.kind {
            Kind::RowType | Kind::Progress | Kind::SnapshotCursor => {}
            Kind::SnapshotBegin | Kind::SnapshotEnd => {
                let what = match snapshot_mark(self.plan, entry, &self.payload[range(entry)])? {
                    None => return Ok(()),
                    Some(SnapshotMark::Begin(_)) => What::SnapshotBegin(entry.position()),
                    Some(SnapshotMark::End(_)) => What::SnapshotEnd(entry.position()),
                    Some(SnapshotMark::Abandoned(_)) => What::SnapshotAbandoned,
                };
                self.pieces.push(Piece { what, range: range(entry), copied: false });
            }
            Kind::Begin => {
                let payload = &self.payload[range(entry)];
                let chunk = entry.is_of_snapshot().then(|| receives_chunk(self.plan, entry, payload)).transpose()?;
                let begin = Begin::Here(range(entry));
                self.carry.open = Some(Open { at: entry.position(), begin, chunk, matched: false });
            }
            Kind::Commit => self.commit(entry, lookup)?,
            Kind::Change => {
                let Some(chunk) = self.carry.open.as_ref().map(|open| open.chunk) else { return Ok(()) };
                let routing = self.routing(entry.row_type, lookup)?;
                let is_piece = routing.needs_whole() && (entry.continues || !self.carry.pieces.is_empty());
                if is_piece {
                    self.carry.pieces.push(self.payload.slice(range(entry)));
                }
                let known = self.known.map(|(selection, _)| selection);
                for selection in known.map_or(0..routing.deliver.len(), |known| known..known + 1) {
                    if self.plan.wants(selection, entry.op, chunk, &routing) {
                        self.change(entry, selection, &routing)?;
                    }
                }
                if !entry.continues {
                    self.carry.pieces = Vec::new();
                }
                self.routing = Some((entry.row_type, routing));
            }
        }
        Ok(())
    }

    /// Has the subscription begun? It begins between transactions: the rest of one that it has is passed over.
    fn has_started(&mut self, entry: &Entry) -> bool {
        let Some(after) = self.carry.start else { return true };
        let within = match entry.kind {
            Kind::Change | Kind::RowType | Kind::SnapshotCursor => true,
            Kind::Begin | Kind::Commit | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd => false,
        };
        if within || entry.position() <= after {
            return false;
        }
        self.carry.start = None;
        true
    }

    /// Taken out, to be put back after use.
    fn routing(&mut self, row_type: u32, lookup: &impl RowTypeLookup) -> Result<Arc<Routing>, GatewayError> {
        match self.routing.take() {
            Some((last, routing)) if last == row_type => Ok(routing),
            Some(_) | None => self.plan.routing(row_type, lookup),
        }
    }

    fn commit(&mut self, entry: &Entry, lookup: &impl RowTypeLookup) -> Result<(), GatewayError> {
        if self.carry.open.is_some() {
            self.moved(entry, lookup)?;
        }
        if self.tells_marks {
            self.begin(0, false);
        }
        let Some(open) = self.carry.open.take() else { return Ok(()) };
        if open.matched {
            let what = What::Changes { selection: None, change_count: 0, complete: Some(entry.position()) };
            self.append(Piece { what, range: range(entry), copied: false }, true);
        }
        // A chunk has no commit time of its own.
        if open.chunk.is_none() {
            self.ended = Some(open.begin);
        }
        Ok(())
    }

    fn change(&mut self, entry: &Entry, selection: usize, routing: &Routing) -> Result<(), GatewayError> {
        match &routing.deliver[selection] {
            Deliver::Skip => Ok(()),
            Deliver::Whole | Deliver::Columns(_) => self.pass(entry, selection, routing),
            // The last piece brings the change.
            Deliver::Shape(_) if entry.continues => Ok(()),
            Deliver::Shape(route) => self.shape(entry, (selection, route), routing),
        }
    }

    /// A change as it came, or a piece of one, with the selected columns.
    fn pass(&mut self, entry: &Entry, selection: usize, routing: &Routing) -> Result<(), GatewayError> {
        let number = number(selection);
        let columns = routing.deliver[selection].fields();
        self.begin(number, columns.is_some());
        let change_count = u32::from(!entry.continues);
        let what = What::Changes { selection: Some(number), change_count, complete: None };
        let piece = match columns {
            None => Piece { what, range: range(entry), copied: false },
            Some(fields) => {
                let mut projector = self.take_carry(number);
                let start = self.copied.len();
                projector
                    .push(&self.payload[range(entry)], |field| fields.contains(field), &mut self.copied)
                    .map_err(|_| damaged(entry))?;
                if entry.continues {
                    self.carry.cut.push((number, projector));
                }
                Piece { what, range: start..self.copied.len(), copied: true }
            }
        };
        self.announces(entry.row_type, selection, routing);
        self.append(piece, false);
        Ok(())
    }

    fn announces(&mut self, row_type: u32, selection: usize, routing: &Routing) {
        let number = number(selection);
        if row_type != 0 && !self.uses.iter().any(|(s, r, _)| (*s, *r) == (number, row_type)) {
            self.uses.push((number, row_type, routing.announcements[selection].clone()));
        }
    }

    /// Puts the transaction's Begin before its first change, which will be copied or is a slice of the block.
    fn begin(&mut self, selection: u32, copied: bool) {
        let Some(open) = self.carry.open.as_mut().filter(|open| !open.matched) else { return };
        open.matched = true;
        let what = What::Changes { selection: Some(selection), change_count: 0, complete: None };
        let piece = match &open.begin {
            Begin::Here(range) if !copied => Piece { what, range: range.clone(), copied },
            begin @ (Begin::Here(_) | Begin::Kept(_)) => {
                let range = copy(begin.bytes(self.payload), &mut self.copied);
                Piece { what, range, copied: true }
            }
        };
        self.append(piece, true);
    }

    fn take_carry(&mut self, selection: u32) -> ChangeProjector {
        let at = self.carry.cut.iter().position(|(carried, _)| *carried == selection);
        at.map_or_else(ChangeProjector::default, |at| self.carry.cut.swap_remove(at).1)
    }

    /// Adds an event to the run before it, where the two touch or are so short that copying them is cheaper than a message each,
    /// and the message does not grow too large. Marks follow what is copied at any length.
    fn append(&mut self, mut event: Piece, is_mark: bool) {
        let Some(run) = self.pieces.last_mut().filter(|run| run.what.accepts(&event.what)) else {
            return self.pieces.push(event);
        };
        let len = run.range.len() + event.range.len();
        let touches = (run.copied, run.range.end) == (event.copied, event.range.start);
        let is_short = len <= SHORT_RUN_BYTES || (run.copied && is_mark);
        if len > MESSAGE_BYTES_MAX || !(touches || is_short && !event.copied) {
            return self.pieces.push(event);
        }
        if !touches {
            if !run.copied {
                run.range = copy(&self.payload[run.range.clone()], &mut self.copied);
                run.copied = true;
            }
            event.range = copy(&self.payload[event.range], &mut self.copied);
        }
        run.range.end = event.range.end;
        run.what.add(event.what);
    }
}

fn number(selection: usize) -> u32 {
    u32::try_from(selection).expect("selections are limited at open")
}

/// Copies events, and says where to.
fn copy(events: &[u8], copied: &mut BytesMut) -> Range<usize> {
    let start = copied.len();
    copied.extend_from_slice(events);
    start..copied.len()
}

fn range(entry: &Entry) -> Range<usize> {
    entry.start as usize..entry.end as usize
}

fn damaged(entry: &Entry) -> GatewayError {
    GatewayError::Damaged { at: entry.position().to_string() }
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
    /// It is not known what a change is to a shape: nothing more comes.
    Failed(Arc<ShapeFailure>),
}

/// One subscription's way through the filtered blocks.
#[derive(Debug)]
pub(crate) struct Delivery {
    subscription: u32,
    /// All that matched up to here was sent.
    position: Position,
    /// Bytes that may be sent; negative when overdrawn.
    credit_bytes: i64,
    current: Option<(Arc<Filtered>, usize)>,
    /// What the last block left.
    carried: Carried,
    kept: Kept,
    /// Selections and row types, ascending.
    announced: Vec<(u32, u32)>,
    commit_time_us: Option<i64>,
}

impl Delivery {
    /// A subscription that starts after a position.
    pub(crate) fn new(subscription: u32, after: Position, credit_bytes: u64) -> Self {
        Delivery {
            subscription,
            position: after,
            credit_bytes: i64::try_from(credit_bytes).unwrap_or(i64::MAX),
            current: None,
            carried: Carried::starting(after),
            kept: Kept::default(),
            announced: Vec::new(),
            commit_time_us: None,
        }
    }

    /// All that matched up to here was sent; never inside a transaction.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Has it a part of the transaction behind its position?
    pub(crate) fn is_within(&self) -> bool {
        self.carried.is_within()
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

    /// The same for shapes with subqueries.
    pub(crate) fn with_sets(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }

    /// What to filter the next block with.
    pub(crate) fn carry(&self) -> Carry {
        self.carried.carry(&self.kept)
    }

    /// From here on for another plan: its columns may be others.
    pub(crate) fn turn(&mut self) {
        self.announced.clear();
    }

    /// The next block, filtered. The one before must be exhausted.
    pub(crate) fn offer(&mut self, filtered: Arc<Filtered>) {
        self.carried = filtered.carried.clone();
        self.current = Some((filtered, 0));
    }

    /// Has it something that credit would let it send?
    pub(crate) fn holds_block(&self) -> bool {
        self.current.is_some()
    }

    /// Sends marks of snapshots up to and including the next message of changes.
    pub(crate) fn next(&mut self, out: &mut Outbox) -> Step {
        let Some((filtered, mut at)) = self.current.take() else { return Step::Exhausted };
        while let Some(piece) = filtered.pieces.get(at) {
            match piece.what {
                What::SnapshotAbandoned => {
                    let end = v1::SnapshotEnd::decode(filtered.payload.slice(piece.range.clone())).unwrap_or_default();
                    return Step::Abandoned(abandoned(&end));
                }
                What::Failed => {
                    let failure = filtered.failed.clone();
                    return Step::Failed(failure.expect("a block that ends so says why"));
                }
                What::SnapshotBegin(at) => self.snapshot_mark((Event::SnapshotBegin, at), &filtered, piece, out),
                What::SnapshotEnd(at) => self.snapshot_mark((Event::SnapshotEnd, at), &filtered, piece, out),
                What::Changes { selection, change_count, complete } => {
                    if !self.has_credit() {
                        self.current = Some((filtered, at));
                        return Step::Starved;
                    }
                    self.announce(&filtered, out);
                    let to = self.addressee(selection.unwrap_or(0));
                    let memory = if piece.copied { &filtered.copied } else { &filtered.payload };
                    let byte_count = out.event(to, Event::Changes, memory, piece.range.clone());
                    self.credit_bytes -= i64::try_from(byte_count).unwrap_or(i64::MAX);
                    self.position = self.position.max(complete.unwrap_or(Position::ZERO));
                    self.current = Some((filtered, at + 1));
                    return Step::Sent { change_count, byte_count };
                }
            }
            at += 1;
        }
        self.position = self.position.max(filtered.complete.unwrap_or(Position::ZERO));
        self.commit_time_us = filtered.commit_time_us.or(self.commit_time_us);
        Step::Exhausted
    }

    /// Sends the row types of the block that were not announced yet.
    fn announce(&mut self, filtered: &Filtered, out: &mut Outbox) {
        for (selection, row_type, announcement) in &filtered.uses {
            if let Err(place) = self.announced.binary_search(&(*selection, *row_type)) {
                self.announced.insert(place, (*selection, *row_type));
                out.event(self.addressee(*selection), Event::RowType, announcement, 0..announcement.len());
            }
        }
    }

    fn snapshot_mark(&mut self, (mark, at): (Event, Position), filtered: &Filtered, piece: &Piece, out: &mut Outbox) {
        out.event(self.addressee(0), mark, &filtered.payload, piece.range.clone());
        self.position = self.position.max(at);
    }

    fn addressee(&self, selection: u32) -> Addressee {
        Addressee { subscription: self.subscription, selection }
    }
}

#[cfg(test)]
mod tests;
