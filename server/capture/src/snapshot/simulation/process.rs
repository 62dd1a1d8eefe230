//! Tidegate as the driver will be: the real tracking, emitter and confirmations around a model of the job.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use rand::{RngExt, rngs::StdRng};
use tidegate_model::{Block, BlockBuilder, Epoch, Kind, Lsn, Op, Position, Visibility};
use tidegate_proto::v1;
use tidegate_schema::{
    FieldSet,
    wire::{put_len_field, put_varint_field},
};

use super::{
    Flaw,
    postgres::{KEYS, Postgres, Record, Row, Rows, Write},
    subscriber::Unit,
};
use crate::{
    assembler::ConfirmPoint,
    confirm::Confirmations,
    emitter::{Emitter, Ended},
    snapshot::{
        Decoded, TableSet, Unseen,
        gaps::Gaps,
        reconcile::{Chunk, read},
        touched::{Covers, Limits},
        tracking::{Passing, ReadId, Recorded, TrackedTable, Tracking, next_position},
    },
    transaction::Transaction,
};
use tidegate_schema::{ChangeParts, Extra, OldKind, push_change};

const TABLE: u32 = 16_400;
const ROW_TYPE: u32 = 9;
const SNAPSHOT: u32 = 1;
const EPOCH: Epoch = Epoch(5);

/// Keys from one, exclusive, to another, inclusive.
type Range = (i32, i32);
const BEFORE_ALL: i32 = -1;

/// A read that is under way.
struct Reading {
    /// None: by key.
    range: Option<Range>,
    asked_keys: Vec<Box<[u8]>>,
    /// What it saw, once it has read.
    rows: Option<(Visibility, Vec<(i32, Row)>)>,
    has_read: bool,
}

/// The pass over the table.
struct Job {
    /// All is emitted up to this key.
    cursor: i32,
    /// All is read, or being read, up to this key; None while the read of the next range has not told its end.
    frontier: Option<i32>,
    again: Vec<Range>,
    emitted: BTreeMap<i32, i32>,
    reading: BTreeMap<ReadId, Reading>,
    /// Of a table without a key.
    shared: Option<Shared>,
}

/// What a table without a key is read under; ranges count its rows.
struct Shared {
    visibility: Visibility,
    rows: Vec<(i32, Row)>,
    storage: u32,
    /// Known once the mark is handed over.
    high_lsn: Option<Lsn>,
}

impl Job {
    fn at(cursor: i32) -> Self {
        let (again, emitted, reading) = Default::default();
        Job { cursor, frontier: Some(cursor), again, emitted, reading, shared: None }
    }
}

/// What does not change in a world.
#[derive(Clone, Copy)]
pub(super) struct Nature {
    pub(super) flaw: Flaw,
    pub(super) keyless: bool,
    pub(super) small_limits: bool,
}

pub(super) struct Process {
    received: Position,
    tracking: Tracking,
    unseen: Unseen,
    confirmations: Confirmations,
    emitter: Emitter,
    point: Option<ConfirmPoint>,
    job: Option<Job>,
    ended: bool,
    heard_lsn: Lsn,
    world: Nature,
}

fn key_fields(keyless: bool) -> FieldSet {
    (!keyless).then_some(1).into_iter().collect()
}

/// The row that is written in its place where there is no key: some are alike.
pub(super) fn folded(key: i32, row: Row) -> (i32, Row) {
    (key % 2, Row { small: row.small % 2, toasted: row.toasted % 2 })
}

impl Process {
    pub(super) fn start(log: &[Unit], confirmed_flush_lsn: Lsn, world: Nature) -> Self {
        let mut emitter = Emitter::default();
        let announcement = v1::RowType { row_type: ROW_TYPE, ..v1::RowType::default() }.encode_to_vec();
        emitter.describe(TABLE, ROW_TYPE, Bytes::from(announcement));
        let mut confirmations = Confirmations::default();
        confirmations.connected(Some(EPOCH), confirmed_flush_lsn);
        let limits = match world.small_limits {
            true => Limits { image_bytes: 600, gap_bytes: 110 },
            false => Limits { image_bytes: 1 << 20, gap_bytes: 1 << 20 },
        };
        let mut tracking = Tracking::new(limits);
        tracking.set_row_type(ROW_TYPE, TABLE, key_fields(world.keyless));
        let mut process = Process {
            received: log.last().map_or(Position::ZERO, |unit| unit.position).as_resume_point(),
            tracking,
            unseen: Unseen::default(),
            confirmations,
            emitter,
            point: None,
            job: None,
            ended: log.iter().any(|unit| unit.kind == Kind::SnapshotEnd),
            heard_lsn: Lsn(0),
            world,
        };
        let begin = log.iter().find(|unit| unit.kind == Kind::SnapshotBegin);
        if let Some(begin) = begin.filter(|_| !process.ended) {
            let newest = log.iter().rev().find_map(|unit| unit.cursor.as_ref().map(|cursor| (unit.position, cursor)));
            process.resume(begin.position, newest);
        }
        process
    }

    pub(super) fn is_past_what_was_received(&self) -> bool {
        self.heard_lsn >= self.received.lsn
    }

    fn resume(&mut self, begin: Position, newest: Option<(Position, &Vec<u8>)>) {
        let mut cursor = BEFORE_ALL;
        let recorded = newest.map(|(at, payload)| {
            let payload = v1_cursor(payload);
            cursor = payload.0;
            let gaps = if self.world.flaw == Flaw::GapsForgotten { Gaps::default() } else { payload.1 };
            Recorded { at, gaps, pass_done: cursor == KEYS }
        });
        if self.world.keyless && cursor != KEYS {
            cursor = BEFORE_ALL;
        }
        self.track(begin, recorded, cursor);
    }

    fn track(&mut self, begin: Position, recorded: Option<Recorded>, cursor: i32) {
        let must_see = self.unseen.writers(TABLE);
        let (snapshot, table_oid, key) = (SNAPSHOT, TABLE, key_fields(self.world.keyless));
        self.tracking.begin(TrackedTable { snapshot, table_oid, key, begin, must_see, recorded, covers: Covers::All });
        self.job = Some(Job::at(cursor));
    }

    pub(super) fn begin_snapshot(&mut self) {
        if self.job.is_some() || self.ended {
            return;
        }
        self.received = next_position(self.received, Lsn(0));
        self.emitter.emit_snapshot_begin(self.received, SNAPSHOT, (vec!["public.t".to_owned()], vec![TABLE]));
        self.track(self.received, None, BEFORE_ALL);
    }

    pub(super) fn poll(&mut self, postgres: &Postgres) {
        let visibility = postgres.visibility();
        self.unseen.prune(&visibility);
        self.tracking.polled(visibility);
    }

    pub(super) fn confirm(&mut self, durable: Position) -> Lsn {
        if let Some(point) = self.point.take() {
            self.confirmations.published(point);
        }
        let floor = if self.world.flaw == Flaw::NoFloor { None } else { self.unseen.confirm_floor() };
        self.confirmations.durable(Some(EPOCH), durable, floor)
    }

    pub(super) fn take_blocks(&mut self) -> Vec<Block> {
        std::iter::from_fn(|| self.emitter.take()).collect()
    }

    pub(super) fn keepalive(&mut self, lsn: Lsn) {
        self.heard_lsn = self.heard_lsn.max(lsn);
        self.tracking.passed(lsn);
        self.pass_chunks();
        if lsn > self.received.lsn {
            self.emitter.emit_progress(lsn);
            self.received = Position::end_of_transaction(lsn);
            self.point = Some(ConfirmPoint { position: Position::new(lsn, 0), confirm_lsn: lsn });
        }
    }

    pub(super) fn record(&mut self, record: &Record) {
        match record {
            Record::Message { lsn } => self.message(Lsn(*lsn)),
            Record::Commit { commit_lsn, end_lsn, xid, writes } => {
                self.commit((Lsn(*commit_lsn), Lsn(*end_lsn)), *xid, writes);
            }
        }
    }

    fn message(&mut self, lsn: Lsn) {
        let position = Position::of_message(lsn);
        self.tracking.passed(lsn);
        self.pass_chunks();
        if position > self.received {
            let extra = Extra::Message { prefix: "x", content: b"", transactional: false };
            let change = ChangeParts { op: Op::Message, extra, ..read(0, &[]) };
            self.emitter.emit_message(position, &change);
            self.received = position;
            self.point = Some(ConfirmPoint { position, confirm_lsn: lsn });
        }
        self.tracking.passed(position.lsn);
    }

    pub(super) fn connected(&mut self, flush_lsn: Lsn) {
        self.tracking.connected(flush_lsn);
        // What was read before is void.
        if self.world.keyless {
            return self.begin_anew();
        }
        if let Some(job) = &mut self.job {
            let void = std::mem::take(&mut job.reading);
            job.again.extend(void.into_values().filter_map(|reading| reading.range));
        }
    }

    fn commit(&mut self, (commit_lsn, commit_end_lsn): (Lsn, Lsn), xid: u32, writes: &[Write]) {
        let mut tables = TableSet::default();
        if !writes.is_empty() {
            tables.insert(TABLE);
        }
        self.unseen.decoded(Decoded { commit_lsn, commit_end_lsn, xid, tables: tables.clone() });
        let is_news = Position::end_of_transaction(commit_end_lsn) > self.received;
        if is_news {
            self.tracking.passed(Lsn(commit_end_lsn.0 - 1));
            self.pass_chunks();
        }
        let mut parts = encoded(xid, writes, self.world.keyless).into_parts();
        while let Some(part) = parts.next().expect("in memory") {
            self.tracking.part(xid, commit_end_lsn, &part);
        }
        self.tracking.passed(commit_end_lsn);
        self.heard_lsn = self.heard_lsn.max(commit_end_lsn);
        if is_news {
            let parts = encoded(xid, writes, self.world.keyless).into_parts();
            let mut ended = Ended {
                parts,
                commit_end_lsn,
                commit_time_us: 0,
                xid,
                origin: String::new(),
                announces_ddl: false,
                tables,
                ordinal: 0,
                begun: false,
                continues: false,
            };
            while self.emitter.emit_part(&mut ended, |_| {}).expect("in memory") {}
            self.received = Position::end_of_transaction(commit_end_lsn);
            if ended.begun {
                self.point = Some(ConfirmPoint { position: Position::new(commit_end_lsn, 0), confirm_lsn: commit_lsn });
            }
        }
        if self.tracking.gaps(SNAPSHOT, TABLE).is_some_and(Gaps::take_unrecorded) {
            let position = next_position(self.received, Lsn(0));
            self.emit_chunk(position, Vec::new());
        }
        self.pass_chunks();
    }

    fn emit_chunk(&mut self, position: Position, parts: Vec<BlockBuilder>) {
        let cursor = self.job.as_ref().expect("a snapshot runs").cursor;
        let gaps = self.tracking.gaps(SNAPSHOT, TABLE).expect("it is tracked");
        // What this record says is recorded.
        gaps.take_unrecorded();
        let mut payload = cursor.to_le_bytes().to_vec();
        payload.extend_from_slice(&gaps.encode());
        self.emitter.emit_chunk(position, SNAPSHOT, parts, &payload);
        self.received = position;
    }

    fn pass_chunks(&mut self) {
        while let Some(passing) = self.tracking.next(self.received) {
            let job = self.job.as_mut().expect("chunks are of a snapshot that runs");
            match passing {
                Passing::ReadAgain { .. } if self.world.keyless => self.begin_anew(),
                Passing::ReadAgain { read, .. } => {
                    job.again.extend(job.reading.remove(&read).and_then(|reading| reading.range));
                }
                Passing::Emit { read, position, chunk } => {
                    if let Some((from, to)) = job.reading.remove(&read).and_then(|reading| reading.range) {
                        job.emitted.insert(from, to);
                    }
                    while let Some(to) = job.emitted.remove(&job.cursor) {
                        job.cursor = to;
                    }
                    if job.cursor == KEYS {
                        self.tracking.pass_done(SNAPSHOT, TABLE);
                    }
                    let mut parts = chunk.parts;
                    if self.world.flaw == Flaw::NotToldAgain && chunk.marks {
                        parts.truncate(1);
                    }
                    self.emit_chunk(position, parts);
                }
            }
        }
    }

    /// Unless all of it is out, the pass of a table without a key starts over.
    fn begin_anew(&mut self) {
        if let Some(job) = self.job.as_mut().filter(|job| job.cursor != KEYS) {
            self.tracking.abandon_reads(SNAPSHOT, TABLE);
            *job = Job::at(BEFORE_ALL);
        }
    }

    fn end_snapshot(&mut self) {
        let end = self.tracking.end_position(SNAPSHOT, self.received).filter(|_| self.job.is_some());
        if let Some(position) = end {
            self.job = None;
            self.ended = true;
            self.tracking.end(SNAPSHOT);
            self.received = position;
            self.emitter.emit_snapshot_end(self.received, SNAPSHOT, ("", Vec::new()));
        }
    }

    /// The job does something.
    pub(super) fn step(&mut self, postgres: &Postgres, random: &mut StdRng) {
        if self.job.is_none() || !self.is_past_what_was_received() {
            return self.pass_chunks();
        }
        match random.random_range(0..4_u32) {
            0 if self.world.keyless => self.read_blocks(postgres, random),
            0 => self.start_read(random),
            1 => self.end_snapshot(),
            2 => self.read(postgres, random),
            _ => self.finish_read(postgres, random),
        }
    }

    fn start_read(&mut self, random: &mut StdRng) {
        let Some(job) = &mut self.job else { return };
        let Some(gaps) = self.tracking.gaps(SNAPSHOT, TABLE) else { return };
        if self.world.flaw == Flaw::NoGaps {
            gaps.clear();
        }
        if gaps.wants_another_pass() {
            self.tracking.restart_pass(SNAPSHOT, TABLE);
            *job = Job::at(BEFORE_ALL);
            let position = next_position(self.received, Lsn(0));
            return self.emit_chunk(position, Vec::new());
        }
        let asked_keys = gaps.keys(2);
        let range = if !asked_keys.is_empty() && random.random_bool(0.5) {
            None
        } else if let Some(range) = job.again.pop() {
            Some(range)
        } else if let Some(from) = job.frontier.filter(|from| *from < KEYS) {
            job.frontier = None;
            Some((from, KEYS))
        } else {
            return;
        };
        let asked_keys = if range.is_none() { asked_keys } else { Vec::new() };
        let id = self.tracking.start_read(SNAPSHOT, TABLE);
        job.reading.insert(id, Reading { range, asked_keys, rows: None, has_read: false });
    }

    /// Takes the snapshot of a pass, or reads some rows under it.
    fn read_blocks(&mut self, postgres: &Postgres, random: &mut StdRng) {
        let Some(job) = self.job.as_mut().filter(|job| job.frontier != Some(KEYS)) else { return };
        let (range, visibility, rows) = match &mut job.shared {
            None => {
                self.tracking.restart_pass(SNAPSHOT, TABLE);
                let visibility = match self.world.flaw {
                    Flaw::ByLsn => postgres.visibility_by_lsn(),
                    Flaw::None | Flaw::NoFloor | Flaw::NoGaps | Flaw::GapsForgotten | Flaw::NotToldAgain => {
                        postgres.visibility()
                    }
                };
                let rows: Vec<(i32, Row)> = postgres.visible().iter().map(|(key, row)| (*key, *row)).collect();
                let to = if rows.is_empty() { KEYS } else { 0 };
                let (storage, high_lsn) = (postgres.storage, None);
                *job = Job::at(BEFORE_ALL);
                job.shared = Some(Shared { visibility: visibility.clone(), rows, storage, high_lsn });
                ((BEFORE_ALL, to), visibility, Vec::new())
            }
            Some(shared) if shared.high_lsn.is_none() || !postgres.is_readable() => return,
            Some(shared) if shared.storage != postgres.storage => return self.begin_anew(),
            Some(shared) => {
                let from = job.frontier.expect("it is told at once");
                let rows: Vec<(i32, Row)> =
                    shared.rows.iter().copied().skip(from as usize).take(random.random_range(1..4)).collect();
                let to = from + rows.len() as i32;
                let to = if to as usize == shared.rows.len() { KEYS } else { to };
                ((from, to), shared.visibility.clone(), rows)
            }
        };
        job.frontier = Some(range.1);
        let id = self.tracking.start_read(SNAPSHOT, TABLE);
        let (range, asked_keys, rows, has_read) = (Some(range), Vec::new(), Some((visibility, rows)), true);
        job.reading.insert(id, Reading { range, asked_keys, rows, has_read });
    }

    fn read(&mut self, postgres: &Postgres, random: &mut StdRng) {
        let Some(job) = &mut self.job else { return };
        let mut started = job.reading.values_mut().filter(|reading| !reading.has_read);
        let Some(reading) = started.next().filter(|_| postgres.is_readable()) else { return };
        let visibility = match self.world.flaw {
            Flaw::ByLsn => postgres.visibility_by_lsn(),
            Flaw::None | Flaw::NoFloor | Flaw::NoGaps | Flaw::GapsForgotten | Flaw::NotToldAgain => {
                postgres.visibility()
            }
        };
        let is_asked = |key: i32| reading.asked_keys.iter().any(|asked| **asked == *key_bytes(key));
        let visible: &Rows = postgres.visible();
        let rows = visible.iter().map(|(key, row)| (*key, *row));
        let rows: Vec<(i32, Row)> = match &mut reading.range {
            None => rows.filter(|(key, _)| is_asked(*key)).collect(),
            Some((from, to)) => {
                let in_range: Vec<(i32, Row)> = rows.filter(|(key, _)| key > from && key <= to).collect();
                // The read of the next range ends where its limit ends it.
                let limit = if job.frontier.is_none() && *to == KEYS { random.random_range(1..4) } else { usize::MAX };
                if in_range.len() > limit {
                    *to = in_range[limit - 1].0;
                }
                if job.frontier.is_none() && limit < usize::MAX {
                    job.frontier = Some(*to);
                }
                in_range.into_iter().take(limit).collect()
            }
        };
        reading.has_read = true;
        reading.rows = Some((visibility, rows));
    }

    fn finish_read(&mut self, postgres: &Postgres, random: &mut StdRng) {
        let Some(job) = &mut self.job else { return };
        let mut read_ids: Vec<ReadId> = job.reading.keys().copied().collect();
        read_ids.retain(|id| job.reading[id].rows.is_some());
        if !read_ids.is_empty() {
            let id = read_ids[random.random_range(0..read_ids.len())];
            let reading = job.reading.get_mut(&id).expect("it is listed");
            let (visibility, rows) = reading.rows.take().expect("it has read");
            let mut part = BlockBuilder::default();
            let marks = self.world.keyless && reading.range.is_some_and(|(from, _)| from == BEFORE_ALL);
            let mut high_lsn = Lsn(postgres.insert_lsn);
            if let Some(shared) = &mut job.shared {
                high_lsn = *shared.high_lsn.get_or_insert(high_lsn);
            }
            if marks {
                let extra = Extra::Truncate { cascade: false, restart_identity: false };
                push_change(&ChangeParts { op: Op::Truncate, extra, ..read(ROW_TYPE, &[]) }, Lsn(0), &mut part);
            }
            for (key, row) in rows {
                let (key, row) = if self.world.keyless { folded(key, row) } else { (key, row) };
                push_change(&read(ROW_TYPE, &encode(key, &row, true)), Lsn(0), &mut part);
            }
            let chunk = Chunk {
                snapshot: SNAPSHOT,
                table_oid: TABLE,
                visibility,
                high_lsn,
                as_planned: self.world.keyless || random.random_bool(0.97),
                marks,
                parts: vec![part],
                asked_keys: std::mem::take(&mut reading.asked_keys),
            };
            self.tracking.chunk(id, chunk);
        }
        self.pass_chunks();
    }
}

fn v1_cursor(payload: &[u8]) -> (i32, Gaps) {
    let (cursor, gaps) = payload.split_at(4);
    (i32::from_le_bytes(cursor.try_into().expect("four bytes")), Gaps::decode(gaps).expect("what was encoded"))
}

fn key_bytes(key: i32) -> BytesMut {
    let mut out = BytesMut::new();
    put_varint_field(&mut out, 1, key as u64);
    out
}

fn encode(key: i32, row: &Row, sent: bool) -> BytesMut {
    let mut out = key_bytes(key);
    put_varint_field(&mut out, 2, u64::from(row.small));
    if sent {
        put_len_field(&mut out, 3, &row.toasted.to_le_bytes());
    }
    out
}

/// As the assembler would have it.
fn encoded(xid: u32, writes: &[Write], keyless: bool) -> Transaction {
    let mut transaction = Transaction::new(xid);
    for write in writes {
        let (op, old, new, sent) = match *write {
            // With a whole old row, nothing is missing when a row enters a row filter.
            Write::Insert { key, row, sent } => (Op::Insert, None, Some((key, row)), sent || keyless),
            Write::Update { old, before, key, row, sent } => {
                let old = Some((old, before)).filter(|(old, _)| keyless || *old != key);
                (Op::Update, old, Some((key, row)), sent)
            }
            Write::Delete { key, before } => (Op::Delete, Some((key, before)), None, true),
            Write::Truncate => (Op::Truncate, None, None, true),
        };
        let fold = |(key, row): (i32, Row)| if keyless { folded(key, row) } else { (key, row) };
        let new = new.map(fold).map(|(key, row)| encode(key, &row, sent)).unwrap_or_default();
        let old_kind = match (&old, keyless) {
            (None, _) => OldKind::None,
            (Some(_), true) => OldKind::Full,
            (Some(_), false) => OldKind::Key,
        };
        let whole = |(key, row): (i32, Row)| if keyless { encode(key, &row, true) } else { key_bytes(key) };
        let old = old.map(fold).map(whole).unwrap_or_default();
        let unchanged: &[u32] = if sent { &[] } else { &[3] };
        let extra = match op {
            Op::Truncate => Extra::Truncate { cascade: false, restart_identity: false },
            Op::None | Op::Read | Op::Insert | Op::Update | Op::Delete | Op::Message => Extra::None,
        };
        let change = ChangeParts { op, row_type: ROW_TYPE, row: &new, old: &old, old_kind, unchanged, extra };
        push_change(&change, Lsn(u64::from(xid)), &mut transaction);
    }
    transaction
}
