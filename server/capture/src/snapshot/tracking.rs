//! The streaming loop's side of all snapshots: what transactions do to their tables, the chunks that wait, and when each
//! enters the stream. Pure: told of everything in the order of the stream, it answers at once.
//!
//! ```text
//! part, passed ──▶ Traces per snapshot and table ──┐
//! polled ────────▶ what may be forgotten           ├─▶ next ─▶ Passing (emit at a position, or read again)
//! start_read … chunk ─▶ pending, by high watermark ┘
//! ```
//!
//! Invariants: a chunk passes when all commits up to its high watermark have been told, in this process; its position follows
//! everything that was emitted and precedes everything that is still to come; a touched key is forgotten only when every chunk
//! that is being read, waits or is yet to be read sees its writer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tidegate_model::{BlockBuilder, LOGGED_SNAPSHOT_ORDINAL, Lsn, Position, Visibility};
use tidegate_schema::FieldSet;

use super::{
    change::{Joiner, is_of_table},
    gaps::Gaps,
    reconcile::{Chunk, ReadAgain},
    touched::{Covers, Limits},
    traces::Traces,
};

/// Names a read that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ReadId(u64);

/// A table whose snapshot begins, or goes on after a restart.
#[derive(Debug)]
pub(crate) struct TrackedTable {
    /// The snapshot's number.
    pub(crate) snapshot: u32,
    /// The table.
    pub(crate) table_oid: u32,
    /// Its key's fields; empty for a table without one.
    pub(crate) key: FieldSet,
    /// Where the snapshot's SnapshotBegin stands.
    pub(crate) begin: Position,
    /// [`super::Unseen::writers`] at this moment.
    pub(crate) must_see: Vec<u32>,
    /// What the last cursor of the table says, where there is one.
    pub(crate) recorded: Option<Recorded>,
    /// Which rows its chunks have.
    pub(crate) covers: Covers,
}

/// What a cursor has recorded.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Where the cursor stands.
    pub(crate) at: Position,
    /// Keys to be read again.
    pub(crate) gaps: Gaps,
    /// Every chunk of the pass was emitted.
    pub(crate) pass_done: bool,
}

/// A chunk whose turn it is.
#[derive(Debug)]
pub(crate) enum Passing {
    /// To be emitted here, with a cursor that records the table's gaps.
    Emit { read: ReadId, position: Position, chunk: Chunk },
    /// To be read again, for this reason.
    ReadAgain { read: ReadId, reason: ReadAgain },
}

#[derive(Debug)]
struct Table {
    snapshot: u32,
    table_oid: u32,
    /// Where the tracking begins: what comes again from before must be seen, and is in the gaps that were recorded.
    from_lsn: Lsn,
    traces: Traces,
}

/// A read that is under way, or whose chunk waits.
#[derive(Debug)]
struct Read {
    snapshot: u32,
    table_oid: u32,
    /// A visibility from before the read; none was known.
    sees: Option<Arc<Visibility>>,
    /// Its chunk waits.
    waits: bool,
}

/// All snapshots of a source.
#[derive(Debug)]
pub(crate) struct Tracking {
    limits: Limits,
    tables: Vec<Table>,
    /// Table and key.
    row_types: HashMap<u32, (u32, FieldSet)>,
    reads: BTreeMap<ReadId, Read>,
    read_count: u64,
    pending: BTreeMap<(Lsn, ReadId), Chunk>,
    /// All commits that end up to here have been told in this process.
    passed_lsn: Lsn,
    /// What was delivered before this process started ends here at most.
    delivered_lsn: Lsn,
    newest: Option<Arc<Visibility>>,
    joiner: Joiner,
}

impl Tracking {
    /// No snapshot yet.
    pub(crate) fn new(limits: Limits) -> Self {
        Tracking {
            limits,
            tables: Vec::new(),
            row_types: HashMap::new(),
            reads: BTreeMap::new(),
            read_count: 0,
            pending: BTreeMap::new(),
            passed_lsn: Lsn::ZERO,
            delivered_lsn: Lsn::ZERO,
            newest: None,
            joiner: Joiner::default(),
        }
    }

    /// A connection begins to a server whose WAL is flushed up to here: nothing beyond it has been delivered. What was read before
    /// is void, and what was seen: a server that crashed may have lost transactions that were visible, and give their xids again.
    pub(crate) fn connected(&mut self, flush_lsn: Lsn) {
        self.delivered_lsn = flush_lsn;
        self.reads.clear();
        self.pending.clear();
        self.newest = None;
    }

    /// Changes of this row type belong to the table and have this key.
    pub(crate) fn set_row_type(&mut self, row_type: u32, table_oid: u32, key: FieldSet) {
        self.row_types.insert(row_type, (table_oid, key));
    }

    /// Is no table tracked? Then `part` need not be called.
    pub(crate) fn is_idle(&self) -> bool {
        self.tables.is_empty()
    }

    /// Is there anything that the parts of a transaction that ends there must be told to?
    pub(crate) fn wants(&self, commit_end_lsn: Lsn) -> bool {
        !self.tables.is_empty() && commit_end_lsn > self.passed_lsn
    }

    /// A table's keys are remembered from here on. Between transactions only; after a restart, before anything is received.
    pub(crate) fn begin(&mut self, table: TrackedTable) {
        let TrackedTable { snapshot, table_oid, key, begin, must_see, recorded, covers } = table;
        let from_lsn = recorded.as_ref().map_or(begin.lsn, |recorded| recorded.at.lsn);
        let recorded = recorded.map_or_else(Default::default, |recorded| (recorded.gaps, recorded.pass_done));
        let traces = Traces::new((key, covers), self.limits, must_see, recorded);
        self.tables.push(Table { snapshot, table_oid, from_lsn, traces });
    }

    /// The snapshot has ended, or was given up.
    pub(crate) fn end(&mut self, snapshot: u32) {
        self.tables.retain(|table| table.snapshot != snapshot);
        self.reads.retain(|_, read| read.snapshot != snapshot);
        self.pending.retain(|_, chunk| chunk.snapshot != snapshot);
    }

    /// A new epoch: every snapshot is given up.
    pub(crate) fn start_epoch(&mut self) {
        let row_types = std::mem::take(&mut self.row_types);
        let read_count = self.read_count;
        *self = Tracking { row_types, read_count, ..Tracking::new(self.limits) };
    }

    /// The next part of a transaction that has committed, rolled back subtransactions left out; also of one that comes again
    /// and is dropped. Before `passed` is told of its end.
    pub(crate) fn part(&mut self, xid: u32, commit_end_lsn: Lsn, part: &BlockBuilder) {
        if !self.wants(commit_end_lsn) {
            return;
        }
        let mut row_type = 0;
        let mut followed = None;
        for entry in part.entries.iter().filter(|entry| is_of_table(entry)) {
            if entry.row_type != row_type {
                row_type = entry.row_type;
                let known = self.row_types.get(&row_type);
                followed = known.filter(|(oid, _)| self.tables.iter().any(|table| table.table_oid == *oid));
            }
            let Some((table_oid, key)) = followed else { continue };
            let Some(change) = self.joiner.join(entry, &part.payload) else { continue };
            for table in self.tables.iter_mut().filter(|table| table.table_oid == *table_oid) {
                if commit_end_lsn <= table.from_lsn {
                    table.traces.must_see(xid);
                } else {
                    table.traces.change(xid, key, &change);
                }
            }
        }
    }

    /// All commits that end up to here have been told: one byte before the end of the next transaction, before its parts; its end,
    /// after them; a keepalive's LSN, while no transaction is under way.
    pub(crate) fn passed(&mut self, lsn: Lsn) {
        self.passed_lsn = self.passed_lsn.max(lsn);
    }

    /// A snapshot that was asked for just now sees this: every read that starts from here on sees as much.
    pub(crate) fn polled(&mut self, visibility: Visibility) {
        self.newest = Some(Arc::new(visibility));
        self.prune();
    }

    /// A read of the table is about to start. It ends with `chunk` or `abandon_read`.
    pub(crate) fn start_read(&mut self, snapshot: u32, table_oid: u32) -> ReadId {
        self.read_count += 1;
        let read = ReadId(self.read_count);
        self.reads.insert(read, Read { snapshot, table_oid, sees: self.newest.clone(), waits: false });
        read
    }

    /// The read has failed.
    pub(crate) fn abandon_read(&mut self, read: ReadId) {
        self.reads.remove(&read);
    }

    /// What reads of the table bring, or have brought, is not wanted.
    pub(crate) fn abandon_reads(&mut self, snapshot: u32, table_oid: u32) {
        self.reads.retain(|_, read| (read.snapshot, read.table_oid) != (snapshot, table_oid));
        self.pending.retain(|(_, read), _| self.reads.contains_key(read));
    }

    /// Is what the read brings wanted?
    pub(crate) fn is_wanted(&self, read: ReadId) -> bool {
        self.reads.contains_key(&read)
    }

    /// Does a chunk wait for its watermark?
    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The read has brought its chunk, which waits for its turn. Ignored where the read is not wanted any more.
    pub(crate) fn chunk(&mut self, read: ReadId, chunk: Chunk) {
        if let Some(known) = self.reads.get_mut(&read).filter(|known| !known.waits) {
            known.waits = true;
            self.pending.insert((chunk.high_lsn, read), chunk);
        }
    }

    /// The next chunk whose turn it is. `received` is the position of what was emitted last, or is known to be stored.
    pub(crate) fn next(&mut self, received: Position) -> Option<Passing> {
        // After a restart, what was received before comes again first.
        if self.passed_lsn < received.lsn {
            return None;
        }
        loop {
            let first = self.pending.first_entry().filter(|first| first.key().0 <= self.passed_lsn)?;
            let ((_, read), mut chunk) = first.remove_entry();
            self.reads.remove(&read);
            let Some(traces) = traces_of(&mut self.tables, chunk.snapshot, chunk.table_oid) else { continue };
            return Some(match traces.pass(&mut chunk) {
                Err(reason) => Passing::ReadAgain { read, reason },
                Ok(()) => Passing::Emit { read, position: next_position(received, chunk.high_lsn), chunk },
            });
        }
    }

    /// Keys that a read of this table should ask for, at most so many.
    pub(crate) fn gaps(&mut self, snapshot: u32, table_oid: u32) -> Option<&mut Gaps> {
        traces_of(&mut self.tables, snapshot, table_oid).map(Traces::gaps_mut)
    }

    /// The last chunk of the table's pass was emitted.
    pub(crate) fn pass_done(&mut self, snapshot: u32, table_oid: u32) {
        if let Some(traces) = traces_of(&mut self.tables, snapshot, table_oid) {
            traces.pass_done();
        }
    }

    /// The table's pass begins anew; what its reads still bring is not wanted.
    pub(crate) fn restart_pass(&mut self, snapshot: u32, table_oid: u32) {
        self.abandon_reads(snapshot, table_oid);
        if let Some(traces) = traces_of(&mut self.tables, snapshot, table_oid) {
            traces.restart_pass();
        }
    }

    /// Where SnapshotEnd may stand: every row of the snapshot's tables is out. A subscriber may have received transactions that
    /// were not durable here when we last crashed; an end at a position before theirs would never reach it.
    pub(crate) fn end_position(&self, snapshot: u32, received: Position) -> Option<Position> {
        let mut tables = self.tables.iter().filter(|table| table.snapshot == snapshot);
        let is_complete = tables.all(|table| table.traces.is_pass_done() && table.traces.gaps().is_empty());
        is_complete.then(|| self.mark_position(received)).flatten()
    }

    /// Where a mark of a snapshot may stand; None until all that was delivered before has come again.
    pub(crate) fn mark_position(&self, received: Position) -> Option<Position> {
        let is_past = self.passed_lsn >= received.lsn.max(self.delivered_lsn);
        is_past.then(|| next_position(received, self.passed_lsn))
    }

    fn prune(&mut self) {
        for table in &mut self.tables {
            let mut reads = self.reads.values().filter(|read| read.table_oid == table.table_oid);
            // Reads are in the order in which they were started: the first one sees least.
            let sees = reads.next().map_or(&self.newest, |read| &read.sees);
            if let Some(visibility) = sees {
                table.traces.prune(visibility);
            }
        }
    }
}

fn traces_of(tables: &mut [Table], snapshot: u32, table_oid: u32) -> Option<&mut Traces> {
    let mut of = tables.iter_mut().filter(|table| (table.snapshot, table.table_oid) == (snapshot, table_oid));
    of.next().map(|table| &mut table.traces)
}

/// Where a chunk or a mark of a snapshot stands that must not precede `lsn`: behind all that is out.
pub(crate) fn next_position(received: Position, lsn: Lsn) -> Position {
    let lsn = lsn.max(received.lsn);
    let ordinal = if received.lsn == lsn && received.ordinal >= LOGGED_SNAPSHOT_ORDINAL {
        received.ordinal + 1
    } else {
        LOGGED_SNAPSHOT_ORDINAL
    };
    Position::new(lsn, ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::reconcile::read;
    use tidegate_model::Op;
    use tidegate_schema::{ChangeParts, push_change};

    const TABLE: u32 = 16_400;
    const ROW_TYPE: u32 = 9;
    const LIMITS: Limits = Limits { image_bytes: 1 << 20, gap_bytes: 1 << 20 };
    /// One varint field, the key.
    const ROW: &[u8] = &[8, 7];

    fn key() -> FieldSet {
        [1].into_iter().collect()
    }

    fn tracking(must_see: Vec<u32>) -> Tracking {
        let mut tracking = Tracking::new(LIMITS);
        tracking.set_row_type(ROW_TYPE, TABLE, key());
        assert!(tracking.is_idle());
        let begin = Position::new(Lsn(80), LOGGED_SNAPSHOT_ORDINAL);
        tracking.begin(TrackedTable {
            snapshot: 1,
            table_oid: TABLE,
            key: key(),
            begin,
            must_see,
            recorded: None,
            covers: Covers::All,
        });
        tracking
    }

    fn part(op: Op) -> BlockBuilder {
        let mut part = BlockBuilder::default();
        push_change(&ChangeParts { op, ..read(ROW_TYPE, ROW) }, Lsn::ZERO, &mut part);
        part
    }

    fn chunk(high_lsn: u64, visibility: &str) -> Chunk {
        Chunk {
            snapshot: 1,
            table_oid: TABLE,
            visibility: visibility.parse().expect("a snapshot"),
            high_lsn: Lsn(high_lsn),
            as_planned: true,
            marks: false,
            parts: vec![part(Op::Read)],
            asked_keys: Vec::new(),
        }
    }

    /// Position and number of rows, or why it is to be read again.
    fn next(tracking: &mut Tracking, received: Position) -> Option<Result<(Position, usize), ReadAgain>> {
        Some(match tracking.next(received)? {
            Passing::Emit { position, chunk, .. } => {
                Ok((position, chunk.parts.iter().map(|part| part.entries.len()).sum()))
            }
            Passing::ReadAgain { reason, .. } => Err(reason),
        })
    }

    #[test]
    fn a_chunk_waits_for_its_watermark_and_passes_before_the_transaction_beyond() {
        let mut tracking = tracking(Vec::new());
        for high_lsn in [120, 104] {
            let id = tracking.start_read(1, TABLE);
            tracking.chunk(id, chunk(high_lsn, "10:10:"));
        }
        let received = Position::end_of_transaction(Lsn(96));
        tracking.passed(Lsn(96));
        assert_eq!(next(&mut tracking, received), None);
        // A transaction ends at 120.
        tracking.passed(Lsn(119));
        let at = Position::new(Lsn(104), LOGGED_SNAPSHOT_ORDINAL);
        assert_eq!(next(&mut tracking, received), Some(Ok((at, 1))));
        assert_eq!(next(&mut tracking, at), None);
        tracking.part(10, Lsn(120), &part(Op::Update));
        tracking.passed(Lsn(120));
        let after = Position::new(Lsn(120), LOGGED_SNAPSHOT_ORDINAL);
        assert_eq!(next(&mut tracking, Position::end_of_transaction(Lsn(120))), Some(Ok((after, 1))));
    }

    #[test]
    fn positions_follow_what_is_out() {
        let at = |lsn, ordinal| Position::new(Lsn(lsn), ordinal);
        assert_eq!(next_position(at(80, 3), Lsn(96)), at(96, LOGGED_SNAPSHOT_ORDINAL));
        assert_eq!(next_position(at(96, LOGGED_SNAPSHOT_ORDINAL), Lsn(80)), at(96, LOGGED_SNAPSHOT_ORDINAL + 1));
        assert_eq!(next_position(Position::of_message(Lsn(96)), Lsn(80)), at(97, LOGGED_SNAPSHOT_ORDINAL));
    }

    #[test]
    fn a_chunk_that_cannot_be_trusted_is_read_again() {
        let mut tracking = tracking(vec![10]);
        let read = |tracking: &mut Tracking, chunk: Chunk| {
            let id = tracking.start_read(1, TABLE);
            tracking.chunk(id, chunk);
            tracking.passed(Lsn(200));
            next(tracking, Position::ZERO).expect("it waits").map(|_| ())
        };
        assert_eq!(read(&mut tracking, chunk(96, "10:11:10")), Err(ReadAgain::Hidden));
        assert_eq!(read(&mut tracking, Chunk { as_planned: false, ..chunk(96, "11:11:") }), Err(ReadAgain::Altered));
        assert_eq!(read(&mut tracking, chunk(96, "11:11:")), Ok(()));
        tracking.set_row_type(ROW_TYPE, TABLE, [1, 2].into_iter().collect());
        tracking.part(12, Lsn(208), &part(Op::Insert));
        assert_eq!(read(&mut tracking, chunk(96, "13:13:")), Err(ReadAgain::Rekeyed));
    }

    #[test]
    fn a_read_that_is_abandoned_holds_nothing_back() {
        let mut tracking = tracking(vec![10]);
        let abandoned = tracking.start_read(1, TABLE);
        tracking.polled("11:11:".parse().expect("a snapshot"));
        let hides = |tracking: &Tracking| match &tracking.tables[0].traces {
            Traces::Keyed(touched) => touched.hides(&"10:10:".parse().expect("a snapshot")),
            Traces::Keyless(_) => panic!("it has a key"),
        };
        assert!(hides(&tracking));
        tracking.abandon_read(abandoned);
        tracking.polled("11:11:".parse().expect("a snapshot"));
        assert!(!hides(&tracking));
    }

    #[test]
    fn a_new_epoch_and_a_cancelled_snapshot_leave_nothing() {
        for end in [Tracking::start_epoch, |tracking: &mut Tracking| tracking.end(1)] {
            let mut tracking = tracking(Vec::new());
            let id = tracking.start_read(1, TABLE);
            tracking.chunk(id, chunk(96, "10:10:"));
            end(&mut tracking);
            tracking.chunk(id, chunk(96, "10:10:"));
            tracking.passed(Lsn(200));
            assert!(tracking.is_idle() && next(&mut tracking, Position::ZERO).is_none());
        }
    }
}
