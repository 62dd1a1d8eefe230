//! The stream's side of snapshots: carries out what the coordinator orders, between the transactions that pass by.
//!
//! ```text
//! Order ─▶ Stage ──▶ Tracking (decides when a chunk passes, and with what) ──▶ Assembler: chunk, begin, end
//!            ▲ transactions, keepalives                                └──▶ Outcome ─▶ coordinator
//! ```
//!
//! Invariant: between two of its calls nothing of a chunk is half out. A cursor is emitted only after every chunk of its table
//! that precedes it: when one must be read again, those behind it are void.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use tidegate_model::{BlockBuilder, Epoch, Lsn, Op, Position, TableName, Visibility};
use tidegate_proto::v1;
use tidegate_schema::FieldSet;

use super::{
    gaps::Gaps,
    job::Place,
    order::{ChunkResult, Finish, StartedRead, Ticket},
    pass::{SnapshotResume, TableResume, before},
    reconcile::{Chunk, ReadAgain},
    touched::{Covers, Limits},
    tracking::{Passing, ReadId, Recorded, TrackedTable, Tracking, next_position},
};
use crate::{CaptureError, assembler::Assembler, table::TableCodec};

/// Bounds per table under snapshot.
const LIMITS: Limits = Limits { image_bytes: 64 << 20, gap_bytes: 4 << 20 };
/// Keys that are read again at once, at most.
const KEYS_MAX: usize = 1_000;

/// A source's snapshots, as its stream sees them.
#[derive(Debug)]
pub(crate) struct Stage {
    /// None before the first.
    epoch: Option<Epoch>,
    tracking: Tracking,
    tickets: HashMap<ReadId, Ticket>,
    tables: BTreeMap<(u32, u32), Progress>,
    begins: BTreeMap<u32, Position>,
    /// With those of their tables that are left in part.
    not_restored: BTreeMap<u32, Vec<TableName>>,
    connection: u64,
}

/// What the last cursor of a table says.
#[derive(Debug, Clone)]
struct Progress {
    name: TableName,
    place: Place,
    /// Where the last chunk ended that was accepted: only one that starts there may follow.
    accepted: Place,
    row_count: u64,
    /// What its rows are encoded as, and by what they are told apart.
    row_type: u32,
    key: FieldSet,
    /// Of the definition that the last chunk was read under.
    fingerprint: String,
    /// Which rows its chunks have.
    covers: Covers,
    /// It has no key, and what was received of it before is void.
    voided: bool,
}

impl Progress {
    fn new((name, codec, covers): (&TableName, &TableCodec, Covers), resume: Option<&TableResume>) -> Self {
        let place = resume.map_or(Place::Start, |resume| resume.place.clone());
        Progress {
            name: name.clone(),
            accepted: place.clone(),
            place,
            row_count: resume.map_or(0, |resume| resume.row_count),
            row_type: codec.row_type,
            key: codec.key.clone(),
            fingerprint: resume.map(|resume| resume.fingerprint.clone()).unwrap_or_default(),
            covers,
            voided: resume.is_some_and(|resume| resume.voided),
        }
    }
}

impl Stage {
    /// None is under way, in this epoch.
    pub(crate) fn new(epoch: Option<Epoch>) -> Self {
        Stage {
            epoch,
            tracking: Tracking::new(LIMITS),
            tickets: HashMap::new(),
            tables: BTreeMap::new(),
            begins: BTreeMap::new(),
            not_restored: BTreeMap::new(),
            connection: 0,
        }
    }

    /// A connection begins to a server whose WAL is flushed up to here. What was read before is void.
    pub(crate) fn connected(&mut self, flush_lsn: Lsn) {
        self.connection += 1;
        self.tracking.connected(flush_lsn);
        for (_, ticket) in self.tickets.drain() {
            ticket.tell(ChunkResult::Again(ReadAgain::Void));
        }
        for progress in self.tables.values_mut() {
            progress.accepted.clone_from(&progress.place);
        }
    }

    /// Is this the current epoch?
    pub(crate) fn is_of(&self, epoch: Epoch) -> bool {
        self.epoch == Some(epoch)
    }

    /// A new epoch: every snapshot is given up.
    pub(crate) fn start_epoch(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
        self.tracking.start_epoch();
        self.tickets.clear();
        self.tables.clear();
        self.begins.clear();
        self.not_restored.clear();
    }

    /// Changes come with this row type from here on.
    pub(crate) fn set_row_type(&mut self, codec: &TableCodec) {
        self.tracking.set_row_type(codec.row_type, codec.table_oid, codec.key.clone());
    }

    /// Takes a table up that an unfinished snapshot had before the server was started; before anything is received.
    pub(crate) fn restore(
        &mut self,
        snapshot: u32,
        begin: Position,
        table: (&TableName, &TableCodec, Covers),
        resume: Option<&TableResume>,
    ) {
        let (_, codec, covers) = table;
        let recorded = resume.map(|resume| {
            let mut gaps = resume.gaps.clone();
            if resume.row_type != codec.row_type {
                // Rows that are out lack what the table has now.
                gaps.give_up();
            }
            Recorded { at: resume.at, gaps, pass_done: resume.place == Place::End }
        });
        self.track(snapshot, begin, (codec, covers), (recorded, Vec::new()));
        let progress = Progress::new(table, resume);
        self.tables.insert((snapshot, codec.table_oid), progress);
        self.begins.insert(snapshot, begin);
    }

    /// An unfinished snapshot that the changelog has, of which a table cannot be taken up again.
    pub(crate) fn not_restored(&mut self, snapshot: u32, resume: &SnapshotResume) {
        self.begins.insert(snapshot, resume.begin);
        let voided = resume.tables.iter().filter(|table| table.voided && table.place != Place::End);
        self.not_restored.insert(snapshot, voided.map(|table| table.name.clone()).collect());
    }

    /// What the snapshot's subscribers read after; None where it has not begun, or is over.
    ///
    /// # Errors
    /// It cannot be taken up again.
    pub(crate) fn after(&self, snapshot: u32) -> Result<Option<Position>, CaptureError> {
        if self.not_restored.contains_key(&snapshot) {
            return Err(CaptureError::SnapshotNotRestored { snapshot });
        }
        Ok(self.begins.get(&snapshot).copied().map(before))
    }

    /// The tables of a snapshot that has begun were planned again. One that has other columns now is read once more to its end:
    /// rows that are out lack what it has got.
    ///
    /// # Errors
    /// One is another table than before, or has another key.
    pub(crate) fn planned_again(
        &mut self,
        snapshot: u32,
        codecs: &[Option<Arc<TableCodec>>],
    ) -> Result<(), CaptureError> {
        for codec in codecs {
            let codec = codec.as_ref().ok_or(CaptureError::SnapshotNotRestored { snapshot })?;
            let progress = self.tables.get_mut(&(snapshot, codec.table_oid)).filter(|known| known.key == codec.key);
            let progress = progress.ok_or(CaptureError::SnapshotNotRestored { snapshot })?;
            if progress.row_type != codec.row_type {
                progress.row_type = codec.row_type;
                if let Some(gaps) = self.tracking.gaps(snapshot, codec.table_oid) {
                    gaps.give_up();
                }
            }
        }
        Ok(())
    }

    /// May orders be carried out: has all that was delivered before come again?
    pub(crate) fn takes_orders(&self, received: Position) -> bool {
        self.tracking.mark_position(received).is_some()
    }

    /// Emits a snapshot's begin, and follows its tables from here on; returns what its subscribers read after. `writers` are, for each table, the transactions that were
    /// decoded and are not known to be visible.
    pub(crate) fn begin(
        &mut self,
        snapshot: u32,
        tables: &[(TableName, Arc<TableCodec>, Covers)],
        writers: impl Fn(u32) -> Vec<u32>,
        assembler: &mut Assembler,
    ) -> Option<Position> {
        let begin = self.tracking.mark_position(assembler.received())?;
        let named = tables.iter().map(|(name, codec, _)| (name.to_string(), codec.table_oid)).unzip();
        assembler.emit_snapshot_begin(begin, snapshot, named);
        for (name, codec, covers) in tables {
            self.track(snapshot, begin, (codec, *covers), (None, writers(codec.table_oid)));
            let progress = Progress::new((name, codec, *covers), None);
            self.tables.insert((snapshot, codec.table_oid), progress);
        }
        self.begins.insert(snapshot, begin);
        Some(before(begin))
    }

    /// The snapshots that read a table.
    pub(crate) fn readers(&self, table_oid: u32) -> impl Iterator<Item = u32> {
        self.tables.keys().filter(move |(_, oid)| *oid == table_oid).map(|(snapshot, _)| *snapshot)
    }

    fn track(
        &mut self,
        snapshot: u32,
        begin: Position,
        (codec, covers): (&TableCodec, Covers),
        (recorded, must_see): (Option<Recorded>, Vec<u32>),
    ) {
        self.set_row_type(codec);
        let (table_oid, key) = (codec.table_oid, codec.key.clone());
        self.tracking.begin(TrackedTable { snapshot, table_oid, key, begin, must_see, recorded, covers });
    }

    /// A chunk of the table is about to be read; `anew`: its pass begins with it.
    pub(crate) fn start_read(&mut self, snapshot: u32, table_oid: u32, anew: bool) -> StartedRead {
        if anew {
            self.restart_pass(snapshot, table_oid);
        }
        StartedRead { read: self.tracking.start_read(snapshot, table_oid), connection: self.connection }
    }

    /// It could not be read.
    pub(crate) fn abandon_read(&mut self, read: ReadId) {
        self.tracking.abandon_read(read);
    }

    /// It was read, and waits for its watermark; unless it does not go on where the last one ended.
    pub(crate) fn chunk(&mut self, read: ReadId, chunk: Chunk, ticket: Ticket, assembler: &mut Assembler) {
        let progress = self.tables.get_mut(&(ticket.snapshot, ticket.table_oid));
        let follows = |progress: &&mut Progress| ticket.start.as_ref().is_none_or(|start| *start == progress.accepted);
        let Some(progress) = progress.filter(|_| self.tracking.is_wanted(read)).filter(follows) else {
            self.tracking.abandon_read(read);
            return ticket.tell(ChunkResult::Again(ReadAgain::Void));
        };
        if let Some(end) = &ticket.end {
            progress.accepted.clone_from(end);
        }
        // What blocks are read under may be old.
        if chunk.marks || !progress.key.is_empty() {
            self.tracking.polled(chunk.visibility.clone());
        }
        self.tickets.insert(read, ticket);
        self.tracking.chunk(read, chunk);
        self.pass(assembler);
    }

    /// What PostgreSQL shows by now is forgotten, whether chunks are being read or not, and where they are all read under one old snapshot.
    pub(crate) fn observed(&mut self, take: impl FnOnce() -> Option<Visibility>) {
        if !self.tracking.is_idle()
            && let Some(visibility) = take()
        {
            self.tracking.polled(visibility);
        }
    }

    /// Does a chunk wait for the stream?
    pub(crate) fn is_waiting(&self) -> bool {
        self.tracking.has_pending()
    }

    /// The next transaction to be told of ends there: what comes before it passes first.
    pub(crate) fn before_transaction(&mut self, commit_end_lsn: Lsn, assembler: &mut Assembler) {
        if !self.tracking.is_idle() {
            self.tracking.passed(Lsn(commit_end_lsn.0.saturating_sub(1)));
            self.pass(assembler);
        }
    }

    /// Is there anything that the parts of a transaction that ends there must be told to?
    pub(crate) fn wants(&self, commit_end_lsn: Lsn) -> bool {
        self.tracking.wants(commit_end_lsn)
    }

    /// A part of that transaction.
    pub(crate) fn part(&mut self, xid: u32, commit_end_lsn: Lsn, part: &BlockBuilder) {
        self.tracking.part(xid, commit_end_lsn, part);
    }

    /// The transaction is out, or was before; or a keepalive says that there is none up to here.
    pub(crate) fn passed(&mut self, lsn: Lsn, assembler: &mut Assembler) {
        self.tracking.passed(lsn);
        if !self.tracking.is_idle() {
            self.record_gaps(assembler);
            self.pass(assembler);
        }
    }

    /// Which keys of the table are to be read again?
    pub(crate) fn finish(&mut self, snapshot: u32, table_oid: u32, assembler: &mut Assembler) -> Finish {
        let gaps = self.tracking.gaps(snapshot, table_oid);
        let (Some(gaps), Some(progress)) = (gaps, self.tables.get_mut(&(snapshot, table_oid))) else {
            return Finish::Keys(Vec::new());
        };
        if !gaps.wants_another_pass() {
            return match &progress.place {
                Place::End => Finish::Keys(gaps.keys(KEYS_MAX)),
                place @ (Place::Start | Place::After(_)) => Finish::From(place.clone()),
            };
        }
        self.restart_pass(snapshot, table_oid);
        let received = assembler.received();
        let position = next_position(received, received.lsn);
        let cursor = self.cursor(position, (snapshot, table_oid), false);
        assembler.emit_chunk(position, snapshot, Vec::new(), &cursor);
        Finish::From(Place::Start)
    }

    /// Emits the snapshot's end, and tells where it stands; None where a row is still to be read. Unless it is given up, for this
    /// reason.
    pub(crate) fn end(&mut self, snapshot: u32, abandoned: &str, assembler: &mut Assembler) -> Option<Position> {
        let received = assembler.received();
        let mut position = match abandoned {
            "" => self.tracking.end_position(snapshot, received),
            _ => self.tracking.mark_position(received),
        }?;
        if self.begins.remove(&snapshot).is_some() {
            let incomplete = if abandoned.is_empty() {
                position = self.close(snapshot, position, assembler);
                Vec::new()
            } else {
                self.voided(snapshot)
            };
            assembler.emit_snapshot_end(position, snapshot, (abandoned, incomplete));
        } else {
            // It has never begun, or has ended before.
            position = Position::ZERO;
        }
        self.tracking.end(snapshot);
        self.tables.retain(|(of, _), _| *of != snapshot);
        self.tickets.retain(|_, ticket| ticket.snapshot != snapshot);
        Some(position)
    }

    /// Tables without a key that the snapshot leaves in part, if it is given up.
    fn voided(&self, snapshot: u32) -> Vec<String> {
        let is_left = |progress: &Progress| progress.voided && progress.place != Place::End;
        let of_snapshot = self.tables.iter().filter(|((of, _), progress)| *of == snapshot && is_left(progress));
        let names = of_snapshot.map(|(_, progress)| &progress.name);
        let all: BTreeSet<&TableName> = names.chain(self.not_restored.get(&snapshot).into_iter().flatten()).collect();
        all.into_iter().map(TableName::to_string).collect()
    }

    /// Closes each table that was read as a whole with a chunk without rows, from that position on; returns where the snapshot's end may stand.
    fn close(&mut self, snapshot: u32, mut position: Position, assembler: &mut Assembler) -> Position {
        let is_whole = |progress: &Progress| progress.covers == Covers::All;
        let of_snapshot = self.tables.iter().filter(|((of, _), progress)| *of == snapshot && is_whole(progress));
        let tables: Vec<u32> = of_snapshot.map(|((_, oid), _)| *oid).collect();
        for table_oid in tables {
            let cursor = self.cursor(position, (snapshot, table_oid), true);
            assembler.emit_chunk(position, snapshot, Vec::new(), &cursor);
            position = next_position(position, position.lsn);
        }
        position
    }

    /// Lets every chunk pass whose turn it is.
    fn pass(&mut self, assembler: &mut Assembler) {
        while let Some(passing) = self.tracking.next(assembler.received()) {
            match passing {
                Passing::Emit { read, position, chunk } => self.emit(read, position, chunk, assembler),
                Passing::ReadAgain { read, reason } => {
                    let Some(ticket) = self.tickets.remove(&read) else { continue };
                    // What was read behind it would record a cursor that passes it over.
                    self.void(ticket.snapshot, ticket.table_oid);
                    ticket.tell(ChunkResult::Again(reason));
                }
            }
        }
    }

    /// The table is read from its start again.
    fn restart_pass(&mut self, snapshot: u32, table_oid: u32) {
        if let Some(progress) = self.tables.get_mut(&(snapshot, table_oid)) {
            (progress.place, progress.row_count) = (Place::Start, 0);
        }
        self.tracking.restart_pass(snapshot, table_oid);
        self.void(snapshot, table_oid);
    }

    /// What was read of the table and is not out is void.
    fn void(&mut self, snapshot: u32, table_oid: u32) {
        self.tracking.abandon_reads(snapshot, table_oid);
        let is_of_table = |ticket: &Ticket| (ticket.snapshot, ticket.table_oid) == (snapshot, table_oid);
        for (_, ticket) in self.tickets.extract_if(|_, ticket| is_of_table(ticket)) {
            ticket.tell(ChunkResult::Again(ReadAgain::Void));
        }
        if let Some(progress) = self.tables.get_mut(&(snapshot, table_oid)) {
            progress.accepted.clone_from(&progress.place);
        }
    }

    fn emit(&mut self, read: ReadId, position: Position, chunk: Chunk, assembler: &mut Assembler) {
        let Some(ticket) = self.tickets.remove(&read) else { return };
        let (snapshot, table_oid) = (chunk.snapshot, chunk.table_oid);
        let Some(progress) = self.tables.get_mut(&(snapshot, table_oid)) else { return };
        let entries = chunk.parts.iter().flat_map(|part| &part.entries);
        let rows = entries.filter(|entry| entry.op == Op::Read && !entry.continues);
        let row_count = rows.count() as u64;
        progress.fingerprint = ticket.fingerprint.as_str().to_owned();
        progress.voided |= chunk.marks;
        if let Some(end) = &ticket.end {
            progress.place.clone_from(end);
            progress.row_count += row_count;
            if *end == Place::End {
                self.tracking.pass_done(snapshot, table_oid);
            }
        }
        let covers = progress.covers;
        let cursor = self.cursor(position, (snapshot, table_oid), false);
        assembler.emit_chunk(position, snapshot, chunk.parts, &cursor);
        let byte_count = ticket.byte_count;
        let gaps =
            self.tracking.gaps(snapshot, table_oid).filter(|_| covers == Covers::Condition && ticket.end.is_some());
        let keys = gaps.map(|gaps| gaps.keys(KEYS_MAX)).unwrap_or_default();
        ticket.tell(ChunkResult::Emitted { row_count, byte_count, keys });
    }

    /// Keys that have come to be incomplete are recorded right behind the transaction that made them so.
    fn record_gaps(&mut self, assembler: &mut Assembler) {
        let tables: Vec<(u32, u32)> = self.tables.keys().copied().collect();
        for (snapshot, table_oid) in tables {
            if self.tracking.gaps(snapshot, table_oid).is_some_and(Gaps::take_unrecorded) {
                let received = assembler.received();
                let position = next_position(received, received.lsn);
                let cursor = self.cursor(position, (snapshot, table_oid), false);
                assembler.emit_chunk(position, snapshot, Vec::new(), &cursor);
            }
        }
    }

    fn cursor(&mut self, at: Position, (snapshot, table_oid): (u32, u32), closes: bool) -> Vec<u8> {
        let gaps = self.tracking.gaps(snapshot, table_oid).map(|gaps| {
            gaps.take_unrecorded();
            gaps.encode()
        });
        let Some(progress) = self.tables.get(&(snapshot, table_oid)) else { return Vec::new() };
        v1::SnapshotCursor {
            snapshot,
            table_oid,
            cursor: encode_cursor((at, progress.row_type), &progress.place, &gaps.unwrap_or_default()),
            table_done: progress.place == Place::End,
            row_count: progress.row_count,
            schema: progress.name.schema.clone(),
            table: progress.name.table.clone(),
            fingerprint: progress.fingerprint.clone(),
            closes,
            voided: progress.voided,
        }
        .encode_to_vec()
    }
}

/// Where the cursor stands, and the row type; where the next chunk starts, with its length before it; then the gaps. Integers little endian.
fn encode_cursor((at, row_type): (Position, u32), place: &Place, gaps: &[u8]) -> Bytes {
    let after: &[u8] = match place {
        Place::After(cursor) => cursor,
        Place::Start | Place::End => &[],
    };
    let mut out = BytesMut::with_capacity(20 + after.len() + gaps.len());
    out.put_u64_le(at.lsn.0);
    out.put_u32_le(at.ordinal);
    out.put_u32_le(row_type);
    out.put_u32_le(u32::try_from(after.len()).expect("keys are below 1 GiB"));
    out.put_slice(after);
    out.put_slice(gaps);
    out.freeze()
}

/// What a stored cursor says; None where it is damaged.
pub(crate) fn decode_cursor(cursor: &v1::SnapshotCursor) -> Option<TableResume> {
    let mut bytes = cursor.cursor.clone();
    let at = Position::new(Lsn(bytes.try_get_u64_le().ok()?), bytes.try_get_u32_le().ok()?);
    let row_type = bytes.try_get_u32_le().ok()?;
    let len = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
    if len > bytes.len() {
        return None;
    }
    let after = bytes.split_to(len);
    let place = match (cursor.table_done, after.is_empty()) {
        (true, _) => Place::End,
        (false, true) => Place::Start,
        (false, false) => Place::After(after),
    };
    let name = TableName::new(cursor.schema.as_str(), cursor.table.as_str());
    let (fingerprint, voided) = (cursor.fingerprint.clone(), cursor.voided);
    let (row_count, gaps) = (cursor.row_count, Gaps::decode(&bytes)?);
    let resume = TableResume { name, at, row_type, place, row_count, gaps, fingerprint, voided };
    if resume.gaps.may_lack_keys() {
        // What they are is not known any more: the pass begins anew.
        return Some(TableResume { place: Place::Start, row_count: 0, gaps: Gaps::default(), ..resume });
    }
    Some(resume)
}
