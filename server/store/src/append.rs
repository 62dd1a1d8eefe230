//! The writing side of an epoch's log: everything here blocks, and runs on a thread for that, but for appends that
//! `is_quick` names.
//!
//! Invariant: after an error that is for want of room, log and files are as they were, and the same may be tried again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tidegate_model::{Block, EpochInfo, Kind, Position};

use crate::{
    StoreError, frame,
    layout::{self, cannot},
    log::{Log, completed},
    row_types::RowTypesFile,
    segment::{HEADER_BYTES, Placed, Segment, SegmentStart},
    snapshots::SnapshotsFile,
    tail::Tail,
};

/// The most that is written without a change of threads.
const QUICK_BYTES: usize = 16 << 10;

/// Appends to one epoch's log.
#[derive(Debug)]
pub(crate) struct Appender {
    pub(crate) log: Arc<Log>,
    pub(crate) row_types: RowTypesFile,
    pub(crate) snapshots: SnapshotsFile,
    epoch_dir: PathBuf,
    segment_bytes: u64,
    /// Offset behind the last frame.
    end: u64,
    /// Position of the last record.
    last: Position,
    /// The last complete position.
    complete: Position,
    /// The log is fsynced up to this offset.
    synced: u64,
    /// Frames of the batch; kept for its memory.
    buffer: Vec<u8>,
}

/// Where an epoch's log ends: at a complete position, all of it fsynced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogEnd {
    pub(crate) offset: u64,
    pub(crate) complete: Position,
}

/// What one fsync is going to make durable.
#[derive(Clone, Debug)]
pub(crate) struct Sync {
    segment: Arc<Segment>,
    pub(crate) end: u64,
    pub(crate) complete: Position,
}

impl Sync {
    pub(crate) fn run(&self) -> Result<(), StoreError> {
        self.segment.sync()
    }
}

impl Appender {
    pub(crate) fn new(
        log: Arc<Log>,
        (row_types, snapshots): (RowTypesFile, SnapshotsFile),
        epoch_dir: PathBuf,
        (segment_bytes, LogEnd { offset: end, complete }): (u64, LogEnd),
    ) -> Self {
        let (last, synced, buffer) = (complete, end, Vec::new());
        Appender { log, row_types, snapshots, epoch_dir, segment_bytes, end, last, complete, synced, buffer }
    }

    /// Starts an epoch, with an empty log, in the place of all others. Their directories remain.
    pub(crate) fn begin(
        dir: &Path,
        info: &EpochInfo,
        reason: Option<&str>,
        bytes: (u64, usize),
    ) -> Result<Self, StoreError> {
        let (segment_bytes, tail_bytes) = bytes;
        let epoch_dir = layout::epoch_dir(dir, info.epoch);
        // What an attempt left behind that ran out of room.
        if epoch_dir.exists() {
            fs::remove_dir_all(&epoch_dir).map_err(cannot("remove", &epoch_dir))?;
        }
        fs::create_dir(&epoch_dir).map_err(cannot("create", &epoch_dir))?;
        let row_types = RowTypesFile::create(&epoch_dir)?;
        layout::sync_dir(&epoch_dir)?;
        layout::sync_dir(dir)?;
        layout::write_manifest(dir, info, reason)?;
        let complete = Position::end_of_transaction(info.start_lsn);
        let log = Log::new(info.epoch, complete, [].into(), Tail::new(tail_bytes, 0, complete));
        let files = (row_types, SnapshotsFile::default());
        Ok(Self::new(Arc::new(log), files, epoch_dir, (segment_bytes, LogEnd { offset: 0, complete })))
    }

    /// The last complete position that was appended.
    pub(crate) fn complete(&self) -> Position {
        self.complete
    }

    /// Bytes that are not known to be fsynced.
    pub(crate) fn unsynced(&self) -> u64 {
        self.end - self.synced
    }

    /// Notes that the log is fsynced up to an offset.
    pub(crate) fn synced(&mut self, end: u64) {
        self.synced = self.synced.max(end);
    }

    /// The sync that makes durable what has been appended so far.
    pub(crate) fn next_sync(&self) -> Option<Sync> {
        let segment = self.log.newest_segment()?;
        Some(Sync { segment, end: self.end, complete: self.complete })
    }

    /// Is appending these only a small write to the page cache: no new file, no fsync? Then it may be done on any thread, which
    /// saves the two wake-ups of a change of threads.
    pub(crate) fn is_quick(&self, blocks: &[Block]) -> bool {
        let byte_count: usize = blocks.iter().map(Block::byte_count).sum();
        let announces = |block: &Block| block.entries().iter().any(|entry| entry.kind == Kind::RowType);
        byte_count <= QUICK_BYTES
            && self.log.newest_segment().is_some_and(|segment| segment.byte_count() < self.segment_bytes)
            && !blocks.iter().any(announces)
    }

    /// Appends blocks, all or none, and says where they are. They are in the file then, but not yet visible.
    pub(crate) fn append(&mut self, blocks: &[Block], now_us: i64) -> Result<Vec<Placed>, StoreError> {
        let Some(first) = blocks.first() else { return Ok(Vec::new()) };
        self.row_types.add(blocks)?;
        let segment = match self.log.newest_segment() {
            Some(segment) if segment.byte_count() < self.segment_bytes || self.snapshots.is_pending() => segment,
            full_or_none => self.roll(full_or_none.as_deref(), first.first())?,
        };
        self.buffer.clear();
        let mut placed = Vec::with_capacity(blocks.len());
        for block in blocks {
            let start = self.end + self.buffer.len() as u64;
            frame::encode(self.log.epoch, block, self.synced, &mut self.buffer);
            placed.push(Placed { start, end: self.end + self.buffer.len() as u64, block: block.clone() });
        }
        let mut before = self.last;
        segment.append(&self.buffer, now_us)?;
        for placed in &placed {
            segment.note(before, placed.start);
            before = placed.block.last();
            self.complete = completed(&placed.block).unwrap_or(self.complete);
            self.snapshots.observe(&placed.block)?;
        }
        self.last = before;
        self.end += self.buffer.len() as u64;
        Ok(placed)
    }

    /// Starts the next segment, once the one before it is fsynced.
    fn roll(&mut self, full: Option<&Segment>, first: Position) -> Result<Arc<Segment>, StoreError> {
        if let Some(full) = full {
            full.sync()?;
            self.synced = full.end();
            self.snapshots.write(&self.epoch_dir)?;
        }
        let in_transaction = self.last != self.complete;
        let after = if in_transaction { self.last.as_resume_point() } else { self.complete };
        let start = SegmentStart { epoch: self.log.epoch, base: self.log.end(), after, first };
        let segment = Arc::new(Segment::create(&self.epoch_dir, &start)?);
        self.log.add_segment(Arc::clone(&segment));
        self.end = start.base + HEADER_BYTES;
        self.synced = self.end;
        Ok(segment)
    }
}
