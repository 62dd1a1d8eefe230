//! Turns ended transactions, messages and progress into blocks, in position order.
//!
//! Invariant: positions increase; a row type is announced before its first use, and where a table comes back to it; what a
//! transaction contributes stands between its Begin and its Commit; a transaction without a followed change leaves nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, MAX_BLOCK_BYTES, MESSAGE_ORDINAL, Op, Position};
use tidegate_proto::v1;
use tidegate_schema::{BeginParts, ChangeParts, push_begin, push_change, push_commit, set_ordinal};

use crate::{
    CaptureError,
    snapshot::{Label, TableSet},
    transaction::{PART_BYTES, Parts},
};

/// A block is finished at this size even within a part of a transaction.
const LARGE_BYTES: usize = MAX_BLOCK_BYTES / 4;

/// Builds blocks.
#[derive(Debug, Default)]
pub(crate) struct Emitter {
    builder: BlockBuilder,
    /// Blocks that were finished while a part was being written: many announcements can make it large.
    full: VecDeque<Block>,
    /// By row type, with the table's OID.
    announcements: HashMap<u32, (u32, Bytes)>,
    /// The row type that was announced last, by table.
    announced: HashMap<u32, u32>,
    /// The announced row type that was used last: neighbouring changes mostly share it.
    recent: u32,
    /// Snapshots that have not ended.
    snapshots: BTreeMap<u32, Label>,
}

/// A transaction on its way out.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) parts: Parts,
    pub(crate) commit_end_lsn: Lsn,
    pub(crate) commit_time_us: i64,
    pub(crate) xid: u32,
    pub(crate) origin: String,
    /// It says that it changes the schema.
    pub(crate) announces_ddl: bool,
    /// Followed tables that it may have changed.
    pub(crate) tables: TableSet,
    /// Of the change before the next one.
    pub(crate) ordinal: u32,
    /// The Begin has been written.
    pub(crate) begun: bool,
    /// The last change of the part before is cut and goes on.
    pub(crate) continues: bool,
}

impl Emitter {
    /// Makes a row type of a table known, to be announced when it is used.
    pub(crate) fn describe(&mut self, table_oid: u32, row_type: u32, announcement: Bytes) {
        self.announcements.insert(row_type, (table_oid, announcement));
    }

    /// A new epoch starts an empty log; what has not been taken belongs to the old one.
    pub(crate) fn start_epoch(&mut self) {
        self.announced.clear();
        self.recent = 0;
        self.full.clear();
        self.snapshots.clear();
        self.builder = BlockBuilder::default();
    }

    /// Writes the next part of a transaction, about 64 KiB at most, after `look` was shown it; false when its Commit has been
    /// written.
    ///
    /// # Errors
    /// The spool cannot be read, or the transaction has too many changes to count.
    pub(crate) fn emit_part(
        &mut self,
        ended: &mut Ended,
        look: impl FnOnce(&BlockBuilder),
    ) -> Result<bool, CaptureError> {
        let Some(mut part) = ended.parts.next().map_err(CaptureError::SpoolRead)? else {
            if ended.begun {
                let position = Position::new(ended.commit_end_lsn, ended.ordinal);
                push_commit(position, 0, &mut self.builder);
            }
            return Ok(false);
        };
        look(&part);
        for at in 0..part.entries.len() {
            let entry = part.entries[at];
            if !ended.continues {
                ended.ordinal += 1;
                if ended.ordinal >= MESSAGE_ORDINAL {
                    return Err(CaptureError::TooManyChanges { xid: ended.xid });
                }
            }
            ended.continues = entry.continues;
            if entry.op == Op::None {
                continue;
            }
            if self.builder.byte_count() >= LARGE_BYTES {
                self.full.push_back(self.builder.finish());
            }
            let position = Position::new(ended.commit_end_lsn, ended.ordinal);
            if !ended.begun {
                self.announce(entry.row_type, Position::new(ended.commit_end_lsn, 0));
                self.push_begin(ended);
            } else {
                self.announce(entry.row_type, position);
            }
            set_ordinal(&mut part.payload, &entry, ended.ordinal);
            let moved = Entry { lsn: position.lsn, ordinal: position.ordinal, ..entry };
            self.builder.push(moved, &part.payload[entry.start as usize..entry.end as usize]);
        }
        Ok(true)
    }

    /// Writes a message that stands outside of transactions.
    pub(crate) fn emit_message(&mut self, position: Position, change: &ChangeParts<'_>) {
        push_begin(&BeginParts { position, ..BeginParts::default() }, &mut self.builder);
        let first = self.builder.entries.len();
        push_change(change, position.lsn, &mut self.builder);
        for at in first..self.builder.entries.len() {
            let entry = &mut self.builder.entries[at];
            entry.ordinal = MESSAGE_ORDINAL;
            set_ordinal(&mut self.builder.payload, entry, MESSAGE_ORDINAL);
        }
        push_commit(position, 0, &mut self.builder);
    }

    /// States that nothing else happened up to `lsn`.
    pub(crate) fn emit_progress(&mut self, lsn: Lsn) {
        self.builder.push(mark(Kind::Progress, Position::new(lsn, 0)), &[]);
    }

    /// The block so far, when it is worth sending.
    pub(crate) fn take_full(&mut self) -> Option<Block> {
        if let Some(block) = self.full.pop_front() {
            return Some(block);
        }
        (self.builder.byte_count() >= PART_BYTES).then(|| self.builder.finish())
    }

    /// The block so far, whatever its size.
    pub(crate) fn take(&mut self) -> Option<Block> {
        if let Some(block) = self.full.pop_front() {
            return Some(block);
        }
        (!self.builder.is_empty()).then(|| self.builder.finish())
    }

    fn announce(&mut self, row_type: u32, position: Position) {
        if row_type == 0 || row_type == self.recent {
            return;
        }
        self.recent = row_type;
        let described = self.announcements.get(&row_type);
        let (table_oid, announcement) = described.expect("a row type is described before rows are encoded");
        if self.announced.insert(*table_oid, row_type) == Some(row_type) {
            return;
        }
        let entry = Entry { row_type, ..mark(Kind::RowType, position) };
        self.builder.push(entry, announcement);
    }

    fn push_begin(&mut self, ended: &mut Ended) {
        ended.begun = true;
        let begin = BeginParts {
            position: Position::new(ended.commit_end_lsn, 0),
            commit_time_us: Some(ended.commit_time_us),
            xid: ended.xid,
            origin: &ended.origin,
            ..BeginParts::default()
        };
        push_begin(&begin, &mut self.builder);
    }
}

/// Of snapshots.
impl Emitter {
    /// What all records of the snapshot are to say of it.
    pub(crate) fn label_snapshot(&mut self, snapshot: u32, label: Label) {
        let begin = label.begin.or(self.label(snapshot).begin);
        self.snapshots.insert(snapshot, Label { begin, ..label });
    }

    pub(crate) fn label(&self, snapshot: u32) -> Label {
        self.snapshots.get(&snapshot).cloned().unwrap_or_default()
    }

    /// Writes a chunk of a snapshot: every record of it stands at `position`. `parts` are its rows as changes, each part no larger
    /// than a transaction's; `cursor` is the encoded `v1::SnapshotCursor`.
    pub(crate) fn emit_chunk(&mut self, position: Position, snapshot: u32, parts: Vec<BlockBuilder>, cursor: &[u8]) {
        let mut row_type = 0;
        for entry in parts.iter().flat_map(|part| &part.entries) {
            if entry.row_type != row_type {
                row_type = entry.row_type;
                self.announce(row_type, position);
            }
        }
        let of = |label: &Label| (label.new_tables, label.ad_hoc, label.begin.filter(|_| label.ad_hoc));
        let (new_tables, ad_hoc, snapshot_begin) = self.snapshots.get(&snapshot).map(of).unwrap_or_default();
        let begin = BeginParts { position, snapshot, new_tables, ad_hoc, snapshot_begin, ..BeginParts::default() };
        push_begin(&begin, &mut self.builder);
        for part in parts {
            self.push_rows(position, part);
        }
        self.push_snapshot_mark(Kind::SnapshotCursor, position, snapshot, cursor);
        push_commit(position, snapshot, &mut self.builder);
    }

    /// A snapshot begins, of these tables and their OIDs.
    pub(crate) fn emit_snapshot_begin(
        &mut self,
        position: Position,
        snapshot: u32,
        (tables, table_oids): (Vec<String>, Vec<u32>),
    ) {
        let label = self.snapshots.entry(snapshot).or_default();
        label.begin = Some(position);
        let Label { new_tables, ad_hoc, partial, .. } = label.clone();
        let position_text = position.to_string();
        let begin = v1::SnapshotBegin {
            snapshot,
            position: position_text,
            tables,
            new_tables,
            ad_hoc,
            partial,
            differences: Vec::new(),
            table_oids,
        };
        self.push_snapshot_mark(Kind::SnapshotBegin, position, snapshot, &begin.encode_to_vec());
    }

    /// A snapshot ends; `abandoned` says why, where it is given up, and which tables without a key are left in part; both are empty
    /// where it is complete.
    pub(crate) fn emit_snapshot_end(
        &mut self,
        position: Position,
        snapshot: u32,
        (abandoned, incomplete): (&str, Vec<String>),
    ) {
        let Label { new_tables, ad_hoc, tables, begin, .. } = self.snapshots.remove(&snapshot).unwrap_or_default();
        let end = v1::SnapshotEnd {
            snapshot,
            position: position.to_string(),
            abandoned: abandoned.to_owned(),
            new_tables,
            ad_hoc,
            tables: if new_tables || ad_hoc { tables } else { Vec::new() },
            begin: begin.filter(|_| ad_hoc).map(|begin| begin.to_string()).unwrap_or_default(),
            incomplete,
        };
        self.push_snapshot_mark(Kind::SnapshotEnd, position, snapshot, &end.encode_to_vec());
    }

    fn push_snapshot_mark(&mut self, kind: Kind, position: Position, snapshot: u32, payload: &[u8]) {
        self.builder.push(Entry { row_type: snapshot, ..mark(kind, position) }, payload);
    }

    /// Appends the rows of a part of a chunk, all at once.
    fn push_rows(&mut self, position: Position, mut part: BlockBuilder) {
        if self.builder.byte_count() >= LARGE_BYTES {
            self.full.push_back(self.builder.finish());
        }
        let offset = self.builder.offset();
        for entry in &part.entries {
            set_ordinal(&mut part.payload, entry, position.ordinal);
            let (lsn, ordinal) = (position.lsn, position.ordinal);
            let (start, end) = (entry.start + offset, entry.end + offset);
            self.builder.entries.push(Entry { lsn, ordinal, start, end, ..*entry });
        }
        self.builder.payload.extend_from_slice(&part.payload);
    }
}

fn mark(kind: Kind, position: Position) -> Entry {
    Entry {
        lsn: position.lsn,
        ordinal: position.ordinal,
        row_type: 0,
        start: 0,
        end: 0,
        kind,
        op: Op::None,
        continues: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_proto::v1::event::What;
    use tidegate_schema::{Extra, OldKind, event_body};

    const SNAPSHOT: u32 = 3;

    fn rows(lens: &[usize]) -> BlockBuilder {
        let mut part = BlockBuilder::default();
        for len in lens {
            let row = vec![7; *len];
            let (old, unchanged) = (&[][..], &[][..]);
            let extra = Extra::None;
            let change =
                ChangeParts { op: Op::Read, row_type: 9, row: &row, old, old_kind: OldKind::None, unchanged, extra };
            push_change(&change, Lsn::ZERO, &mut part);
        }
        part
    }

    fn emitter() -> Emitter {
        let mut emitter = Emitter::default();
        emitter.describe(16_400, 9, Bytes::from_static(b"announcement"));
        emitter
    }

    #[test]
    fn a_row_type_is_announced_again_where_its_table_comes_back_to_it() {
        let mut emitter = Emitter::default();
        for (table_oid, row_type) in [(100, 1), (100, 2), (200, 3)] {
            emitter.describe(table_oid, row_type, Bytes::from_static(b"announcement"));
        }
        for (row_type, lsn) in [1, 3, 1, 2, 3, 1, 1].into_iter().zip(1..) {
            emitter.announce(row_type, Position::new(Lsn(lsn), 0));
        }
        let block = emitter.take().expect("announcements");
        let announced: Vec<u32> = block.entries().iter().map(|entry| entry.row_type).collect();
        assert_eq!(announced, [1, 3, 2, 1]);
    }

    #[test]
    fn a_chunk_stands_at_one_position_with_its_cursor_before_its_commit() {
        let mut emitter = emitter();
        let position = Position::new(Lsn(80), 1 << 31);
        emitter.emit_chunk(position, SNAPSHOT, vec![rows(&[5, 600_000]), rows(&[9])], b"cursor");
        let block = emitter.take().expect("a chunk");
        assert!(block.entries().iter().all(|entry| entry.position() == position));
        let kinds: Vec<Kind> = block.entries().iter().map(|entry| entry.kind).collect();
        let change = Kind::Change;
        let expected = [Kind::RowType, Kind::Begin, change, change, change, change, Kind::SnapshotCursor, Kind::Commit];
        assert_eq!(kinds, expected);
        let marks = |kind| block.entries().iter().find(|entry| entry.kind == kind).copied().expect("it is there");
        assert!([Kind::Begin, Kind::SnapshotCursor, Kind::Commit].iter().all(|kind| marks(*kind).row_type == SNAPSHOT));
        assert_eq!(&block.slice(&marks(Kind::SnapshotCursor))[..], b"cursor");
        let begin = block.slice(&marks(Kind::Begin));
        let begin = v1::Begin::decode(event_body(&begin).expect("an event")).expect("a Begin");
        assert_eq!((begin.snapshot, begin.xid, begin.position), (SNAPSHOT, 0, position.to_string()));
        // Neighbours are a valid batch as they stand.
        let run = &block.payload()[block.entries()[1].start as usize..block.entries()[5].end as usize];
        let mut events = v1::ChangeBatch::decode(run).expect("a ChangeBatch").events.into_iter();
        assert!(matches!(events.next().and_then(|event| event.what), Some(What::Begin(_))));
        let mut row_bytes = 0;
        for event in events {
            let Some(What::Change(change)) = event.what else { panic!("a change") };
            assert!(change.ordinal == position.ordinal && change.op() == v1::change::Op::Read);
            row_bytes += change.row.len();
        }
        assert_eq!(row_bytes, 600_014);
    }

    #[test]
    fn a_large_chunk_leaves_in_several_blocks_and_an_empty_one_keeps_its_cursor() {
        let mut emitter = emitter();
        let parts = (0..80).map(|_| rows(&[60_000])).collect();
        emitter.emit_chunk(Position::new(Lsn(80), 1 << 31), SNAPSHOT, parts, b"");
        emitter.emit_chunk(Position::new(Lsn(80), (1 << 31) + 1), SNAPSHOT, Vec::new(), b"last");
        let blocks: Vec<Block> = std::iter::from_fn(|| emitter.take()).collect();
        assert!(blocks.len() > 2 && blocks.iter().all(|block| block.byte_count() < MAX_BLOCK_BYTES));
        let entries: Vec<Entry> = blocks.iter().flat_map(|block| block.entries().to_vec()).collect();
        assert!(entries.is_sorted_by_key(Entry::position));
        assert_eq!(entries.iter().filter(|entry| entry.kind == Kind::Change).count(), 80);
        assert_eq!(entries.iter().filter(|entry| entry.kind == Kind::RowType).count(), 1);
        assert_eq!(entries.iter().filter(|entry| entry.kind == Kind::SnapshotCursor).count(), 2);
    }

    #[test]
    fn a_snapshots_marks_complete_and_name_it() {
        let mut emitter = emitter();
        let at = |ordinal: u32| Position::new(Lsn(80), (1 << 31) + ordinal);
        emitter.emit_snapshot_begin(at(0), SNAPSHOT, (vec!["public.orders".to_owned()], vec![16_400]));
        emitter.emit_snapshot_end(at(1), SNAPSHOT, ("cancelled", vec!["public.log".to_owned()]));
        let block = emitter.take().expect("two marks");
        assert!(block.entries().iter().all(|entry| entry.completes() && entry.row_type == SNAPSHOT));
        let begin = v1::SnapshotBegin::decode(block.slice(&block.entries()[0])).expect("a SnapshotBegin");
        let end = v1::SnapshotEnd::decode(block.slice(&block.entries()[1])).expect("a SnapshotEnd");
        assert_eq!((begin.snapshot, begin.tables), (SNAPSHOT, vec!["public.orders".to_owned()]));
        assert_eq!((end.position, end.abandoned), (at(1).to_string(), "cancelled".to_owned()));
        assert_eq!((end.begin, end.incomplete), (String::new(), vec!["public.log".to_owned()]));
    }

    #[test]
    fn what_someone_has_started_says_where_it_began_also_when_it_is_planned_again() {
        let mut emitter = emitter();
        let at = |ordinal: u32| Position::new(Lsn(80), (1 << 31) + ordinal);
        let label = Label { ad_hoc: true, ..Label::default() };
        emitter.label_snapshot(SNAPSHOT, label.clone());
        emitter.emit_snapshot_begin(at(0), SNAPSHOT, (Vec::new(), Vec::new()));
        emitter.label_snapshot(SNAPSHOT, label);
        emitter.emit_chunk(at(1), SNAPSHOT, Vec::new(), b"");
        emitter.emit_snapshot_end(at(2), SNAPSHOT, ("", Vec::new()));
        let block = emitter.take().expect("it is there");
        let of = |kind| block.slice(block.entries().iter().find(|entry| entry.kind == kind).expect("it is there"));
        let begin = of(Kind::Begin);
        let begin = v1::Begin::decode(event_body(&begin).expect("an event")).expect("a Begin");
        let end = v1::SnapshotEnd::decode(of(Kind::SnapshotEnd)).expect("a SnapshotEnd");
        assert_eq!((begin.snapshot_begin, end.begin), (at(0).to_string(), at(0).to_string()));
    }
}
