//! Puts chunks of the mirror into the log, each behind the transactions that it has seen and before all others.
//!
//! Invariants: a chunk that was taken is put in before the next is wanted; nothing is put into the middle of a transaction; what
//! is given out never goes back; what happens before the first row is given out may be passed over.
//! What other snapshots have is passed on, since it corrects rows that have been given out, at positions
//! among those of our chunks. Of what they have at the LSN of a token some may come again, in order: it is what the client has, or
//! what the rows become that are read once more. Pure.

use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, MESSAGE_ORDINAL, Op, Position};
use tidegate_proto::v1;
use tidegate_schema::{
    BeginParts, ChangeParts, Extra, OldKind, event_body, push_begin, push_change, push_commit, set_ordinal,
};
use tidegate_store::MirrorRow;

use super::{
    marks,
    restated::{LogPlace, Restated},
};

/// Rows as they are once all up to a position of the log has happened.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) position: Position,
    pub(super) rows: Vec<MirrorRow>,
    /// The snapshot ends with it.
    pub(super) is_last: bool,
}

/// A snapshot on its way through the log.
#[derive(Debug)]
pub(super) struct Weaving {
    snapshot: u32,
    /// All up to here was received before.
    start: Lsn,
    /// All that the log has up to here has been given out.
    at: Position,
    /// What the client had when it came is of the log up to here: rows from before would be older than that.
    had: Position,
    /// The last position that was stated.
    last: Position,
    /// The first ordinal that a chunk has.
    first_chunk: u32,
    /// Waits until the log has come so far.
    pending: Option<Chunk>,
    /// What the log has up to here has been passed over.
    passed_over: Position,
    /// Nothing of the log and no row has been given out, to this client or on an earlier connection.
    is_fresh: bool,
    /// A transaction, message or chunk has begun and not ended.
    is_within: bool,
    /// Where the chunk of another snapshot is put that has begun and not ended.
    passing: Option<Position>,
    restated: Restated,
    has_ended: bool,
}

impl Weaving {
    /// Behind a position within the snapshot, of a client that comes when the log ends at `head`.
    pub(super) fn new(
        snapshot: u32,
        (after, head): (Position, Position),
        first_chunk: u32,
        restated: Restated,
    ) -> Self {
        Weaving {
            snapshot,
            start: after.lsn,
            at: marks::log_position(Position::new(after.lsn, 0)),
            had: marks::log_position(head),
            last: after,
            first_chunk,
            pending: None,
            passed_over: Position::ZERO,
            is_fresh: !marks::has_begun(after),
            is_within: false,
            passing: None,
            restated,
            has_ended: false,
        }
    }

    /// Rows as they were up to here are known to the client: none that are older are put in, and the end stands behind it.
    pub(super) fn has_seen(&mut self, position: Position) {
        self.had = self.had.max(marks::log_position(position));
    }

    /// The snapshot's begin, of these tables and their OIDs, unless the client has been told.
    pub(super) fn begin(
        &mut self,
        (tables, table_oids): (Vec<String>, Vec<u32>),
        differences: Vec<v1::Difference>,
    ) -> Option<Block> {
        if marks::has_begun(self.last) {
            return None;
        }
        self.last = marks::begin(self.start);
        let begin = v1::SnapshotBegin {
            snapshot: self.snapshot,
            position: self.last.to_string(),
            tables,
            differences,
            table_oids,
            ..Default::default()
        };
        let mut out = BlockBuilder::default();
        self.push_mark(Kind::SnapshotBegin, &begin.encode_to_vec(), &mut out);
        Some(out.finish())
    }

    /// Are rows as they were at this position too old for a chunk? More has been given out than they had seen.
    pub(super) fn is_past(&self, position: Position) -> bool {
        marks::log_position(position) < self.at.max(self.had)
    }

    /// Passes over what the log has up to a position, if nothing has been given out: who holds no row needs no change of one. False
    /// where that cannot be.
    pub(super) fn pass_over(&mut self, position: Position) -> bool {
        if self.is_fresh {
            self.passed_over = marks::log_position(position);
            self.at = self.at.max(self.passed_over);
        }
        std::mem::take(&mut self.is_fresh)
    }

    /// Has the log to go on before a chunk can be taken?
    pub(super) fn needs_log(&self) -> bool {
        self.is_within || self.pending.is_some()
    }

    /// The snapshot's end has been given out.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes a chunk, which is not older than what has been given out.
    pub(super) fn chunk(&mut self, chunk: Chunk) -> Option<Block> {
        let position = marks::log_position(chunk.position);
        self.is_fresh = false;
        self.pending = Some(Chunk { position, ..chunk });
        let mut out = BlockBuilder::default();
        if position <= self.at {
            self.put_pending(&mut out);
        }
        (!out.is_empty()).then(|| out.finish())
    }

    /// The next block of the log, with what belongs into it.
    pub(super) fn log(&mut self, block: &Block) -> Option<Block> {
        let mut out = BlockBuilder::default();
        let (start, passed_over) = (self.start, self.passed_over);
        let is_behind = |entry: &Entry| entry.lsn > start || (entry.lsn == start && entry.is_of_snapshot());
        let is_new = |entry: &&Entry| is_behind(entry) && entry.position() > passed_over;
        for entry in block.entries().iter().filter(is_new) {
            // All before this record has happened.
            let is_due = |chunk: &Chunk| chunk.position < entry.position();
            if !self.is_within && self.pending.as_ref().is_some_and(is_due) {
                self.put_pending(&mut out);
            }
            self.entry(block, entry, &mut out);
            if entry.completes() {
                self.at = self.at.max(marks::log_position(entry.position()));
            }
        }
        let at = self.at;
        if !self.is_within && self.pending.as_ref().is_some_and(|chunk| chunk.position <= at) {
            self.put_pending(&mut out);
        }
        self.is_fresh &= out.is_empty();
        (!out.is_empty()).then(|| out.finish())
    }

    fn entry(&mut self, block: &Block, entry: &Entry, out: &mut BlockBuilder) {
        match entry.kind {
            Kind::Begin | Kind::Change => self.is_within = true,
            Kind::Commit | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd => self.is_within = false,
            Kind::RowType | Kind::SnapshotCursor => {}
        }
        if self.has_ended {
            return out.push(*entry, &block.slice(entry));
        }
        if entry.is_of_snapshot() {
            return self.pass(block, entry, out);
        }
        match entry.kind {
            Kind::Begin if entry.ordinal == MESSAGE_ORDINAL => out.push(*entry, &message_begin(block, entry)),
            Kind::Begin | Kind::Change => out.push(*entry, &block.slice(entry)),
            Kind::Commit => {
                self.last = marks::within(entry.position());
                push_commit(self.last, 0, out);
            }
            Kind::Progress if entry.lsn > self.last.lsn => {
                self.last = marks::within(entry.position());
                self.push_mark(Kind::Progress, &[], out);
            }
            Kind::Progress | Kind::RowType | Kind::SnapshotBegin | Kind::SnapshotEnd | Kind::SnapshotCursor => {}
        }
    }

    /// What another snapshot has, at a position as our chunks have it.
    fn pass(&mut self, block: &Block, entry: &Entry, out: &mut BlockBuilder) {
        let next = || marks::chunk(entry.lsn, self.last, self.first_chunk);
        let position = self.passing.unwrap_or_else(next);
        let Position { lsn, ordinal } = position;
        let moved = Entry { lsn, ordinal, ..*entry };
        let bytes = block.slice(entry);
        let text = || position.to_string();
        match entry.kind {
            Kind::Begin => {
                self.passing = Some(position);
                self.restated.note(position, LogPlace::At(entry.position()));
                out.push(moved, &begin_at(&bytes, position));
            }
            Kind::Change => {
                out.push(moved, &bytes);
                let BlockBuilder { entries, payload } = out;
                let pushed = entries.last().expect("it has just been pushed");
                set_ordinal(payload, pushed, ordinal);
            }
            Kind::Commit => {
                self.passing = None;
                push_commit(position, entry.row_type, out);
            }
            // What cannot be read is refused where it is delivered.
            Kind::SnapshotBegin => match v1::SnapshotBegin::decode(&bytes[..]) {
                Ok(begin) => out.push(moved, &v1::SnapshotBegin { position: text(), ..begin }.encode_to_vec()),
                Err(_) => out.push(moved, &bytes),
            },
            Kind::SnapshotEnd => match v1::SnapshotEnd::decode(&bytes[..]) {
                Ok(end) => out.push(moved, &v1::SnapshotEnd { position: text(), ..end }.encode_to_vec()),
                Err(_) => out.push(moved, &bytes),
            },
            Kind::SnapshotCursor | Kind::RowType | Kind::Progress => return,
        }
        self.last = position;
    }

    /// Puts in the chunk that waits: all that it has seen has happened, and nothing else.
    fn put_pending(&mut self, out: &mut BlockBuilder) {
        let Some(chunk) = self.pending.take() else { return };
        let at = chunk.position;
        if !chunk.rows.is_empty() {
            self.last = marks::chunk(at.lsn, self.last, self.first_chunk);
            self.restated.note(self.last, LogPlace::Behind(at));
            let Position { lsn, ordinal } = self.last;
            push_begin(&BeginParts { position: self.last, snapshot: self.snapshot, ..BeginParts::default() }, out);
            for row in &chunk.rows {
                let first = out.entries.len();
                push_change(&read(row), lsn, out);
                let BlockBuilder { entries, payload } = out;
                for entry in &mut entries[first..] {
                    entry.ordinal = ordinal;
                    set_ordinal(payload, entry, ordinal);
                }
            }
            push_commit(self.last, self.snapshot, out);
        }
        if chunk.is_last {
            self.has_ended = true;
            self.last = marks::end(at);
            let (snapshot, position) = (self.snapshot, self.last.to_string());
            let end = v1::SnapshotEnd { snapshot, position, ..v1::SnapshotEnd::default() };
            self.push_mark(Kind::SnapshotEnd, &end.encode_to_vec(), out);
        }
    }

    fn push_mark(&self, kind: Kind, bytes: &[u8], out: &mut BlockBuilder) {
        let Position { lsn, ordinal } = self.last;
        let row_type = if kind == Kind::Progress { 0 } else { self.snapshot };
        let entry = Entry { lsn, ordinal, row_type, start: 0, end: 0, kind, op: Op::None, continues: false };
        out.push(entry, bytes);
    }
}

/// A row as a change. What is not known of it is said to be unchanged, never null.
fn read(row: &MirrorRow) -> ChangeParts<'_> {
    ChangeParts {
        op: Op::Read,
        row_type: row.row_type,
        row: &row.row,
        old: &[],
        old_kind: OldKind::None,
        unchanged: &row.missing,
        extra: Extra::None,
    }
}

/// A message's Begin as it is stated within the snapshot: as its Commit.
fn message_begin(block: &Block, entry: &Entry) -> Vec<u8> {
    begin_at(&block.slice(entry), marks::within(entry.position()))
}

/// The event of a Begin that states another position.
fn begin_at(event: &[u8], position: Position) -> Vec<u8> {
    let begin = event_body(event).ok().and_then(|body| v1::Begin::decode(body).ok());
    let Some(begin) = begin else { return event.to_vec() };
    let begin = v1::Begin { position: position.to_string(), ..begin };
    let event = v1::Event { what: Some(v1::event::What::Begin(begin)) };
    v1::ChangeBatch { events: vec![event] }.encode_to_vec()
}

#[cfg(test)]
mod tests;
