//! Puts chunks of the mirror into the log, each behind the transactions that it has seen and before all others.
//!
//! Invariants: a chunk that was taken is put in before the next is wanted; nothing is put into the middle of a transaction; what
//! is given out never goes back. Chunks and marks of other snapshots are left out, since ours stand where theirs may. Pure.

use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, MESSAGE_ORDINAL, Op, Position};
use tidegate_proto::v1;
use tidegate_schema::{
    BeginParts, ChangeParts, Extra, OldKind, event_body, push_begin, push_change, push_commit, set_ordinal,
};
use tidegate_store::MirrorRow;

use super::marks;

/// Rows as they are once all up to an LSN has happened.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) lsn: Lsn,
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
    /// All up to here has been given out.
    lsn: Lsn,
    /// The last position that was stated.
    last: Position,
    /// The first ordinal that a chunk has.
    first_chunk: u32,
    /// Waits until the log has come so far.
    pending: Option<Chunk>,
    /// A transaction or message has begun and not ended.
    is_within: bool,
    has_ended: bool,
}

impl Weaving {
    /// Behind a position within the snapshot.
    pub(super) fn new(snapshot: u32, after: Position, first_chunk: u32) -> Self {
        let (start, lsn) = (after.lsn, after.lsn);
        Weaving { snapshot, start, lsn, last: after, first_chunk, pending: None, is_within: false, has_ended: false }
    }

    /// The snapshot's begin, unless the client has been told.
    pub(super) fn begin(&mut self, tables: Vec<String>) -> Option<Block> {
        if marks::has_begun(self.last) {
            return None;
        }
        self.last = marks::begin(self.lsn);
        let begin = v1::SnapshotBegin {
            snapshot: self.snapshot,
            position: self.last.to_string(),
            tables,
            ..Default::default()
        };
        let mut out = BlockBuilder::default();
        self.push_mark(Kind::SnapshotBegin, &begin.encode_to_vec(), &mut out);
        Some(out.finish())
    }

    /// All up to here has been given out; a chunk must not be older.
    pub(super) fn lsn(&self) -> Lsn {
        self.lsn
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
        self.pending = Some(chunk);
        let mut out = BlockBuilder::default();
        self.put_pending(self.lsn, &mut out);
        (!out.is_empty()).then(|| out.finish())
    }

    /// The next block of the log, with what belongs into it.
    pub(super) fn log(&mut self, block: &Block) -> Option<Block> {
        let mut out = BlockBuilder::default();
        let start = self.start;
        for entry in block.entries().iter().filter(|entry| entry.lsn > start) {
            if !self.is_within {
                // All before this record has happened.
                self.put_pending(Lsn(entry.lsn.0 - 1), &mut out);
            }
            self.entry(block, entry, &mut out);
        }
        if !self.is_within {
            self.put_pending(self.lsn, &mut out);
        }
        (!out.is_empty()).then(|| out.finish())
    }

    fn entry(&mut self, block: &Block, entry: &Entry, out: &mut BlockBuilder) {
        if entry.completes() {
            self.lsn = self.lsn.max(entry.lsn);
        }
        if entry.is_of_snapshot() || entry.kind == Kind::RowType {
            return;
        }
        self.is_within = matches!(entry.kind, Kind::Begin | Kind::Change);
        if self.has_ended {
            return out.push(*entry, &block.slice(entry));
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

    /// Puts in the chunk that waits, if all that it has seen has happened.
    fn put_pending(&mut self, happened: Lsn, out: &mut BlockBuilder) {
        let Some(chunk) = self.pending.take_if(|chunk| chunk.lsn <= happened) else { return };
        if !chunk.rows.is_empty() {
            self.last = marks::chunk(chunk.lsn, self.last, self.first_chunk);
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
            self.last = marks::end(chunk.lsn);
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
    let field = block.slice(entry);
    let begin = event_body(&field).ok().and_then(|body| v1::Begin::decode(body).ok());
    let Some(begin) = begin else { return field.to_vec() };
    let begin = v1::Begin { position: marks::within(entry.position()).to_string(), ..begin };
    let event = v1::Event { what: Some(v1::event::What::Begin(begin)) };
    v1::ChangeBatch { events: vec![event] }.encode_to_vec()
}

#[cfg(test)]
mod tests;
