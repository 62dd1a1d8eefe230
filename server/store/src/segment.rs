//! A segment: one file of the log.
//!
//! ```text
//! header  "TGCL" | version u32 | epoch u128 | after (lsn u64, ordinal u32) | base u64 | checksum u32 of all before
//! frames  see frame.rs, back to back to the end of the file
//! ```
//!
//! Every byte of an epoch's log has an *offset* that never changes: `base` is the offset of the header's first byte, and
//! a segment's base is the end of the segment before it. `after` is where reading may start with this segment: the complete
//! position before its first record, or, where it starts within a transaction, that transaction's end.
//!
//! Invariant: all but the newest segment are fsynced to their end and never change again.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use bytes::{Buf, Bytes, BytesMut};
use tidegate_model::{Block, Epoch, Lsn, Position};

use crate::{
    ReadError, StoreError,
    frame::{self, Decoded},
    layout::{cannot, segment_path, sync_dir, unsynced},
};

const MAGIC: &[u8; 4] = b"TGCL";
const VERSION: u32 = 1;
/// Bytes before the first frame.
pub(crate) const HEADER_BYTES: u64 = 48;
/// Distance between the points of the sparse index.
const INDEX_BYTES: u64 = 1 << 20;
/// How much of a file is read at once. A reader that is left alone holds no more than that, or one block.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// A block and its frame's place in the log.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    /// Offset of the frame's first byte.
    pub(crate) start: u64,
    /// Offset behind its last.
    pub(crate) end: u64,
    pub(crate) block: Block,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) base: u64,
    pub(crate) after: Position,
    epoch: Epoch,
    file: File,
    byte_count: AtomicU64,
    /// When its last record was written, in microseconds since 1970.
    written_us: AtomicI64,
    /// (last position before, offset), ascending: where to start looking for a position.
    index: Mutex<Vec<(Position, u64)>>,
}

/// What a new segment is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentStart {
    pub(crate) epoch: Epoch,
    pub(crate) base: u64,
    pub(crate) after: Position,
    pub(crate) first: Position,
}

impl Segment {
    /// Makes the file, durable with its name. After an error there is no file.
    pub(crate) fn create(epoch_dir: &Path, start: &SegmentStart) -> Result<Self, StoreError> {
        let path = segment_path(epoch_dir, start.first, start.base);
        let header = encode_header(start);
        let write = || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            file.write_all_at(&header, 0)?;
            file.sync_all()?;
            Ok(file)
        };
        let made = write().map_err(cannot("create", &path)).and_then(|file| sync_dir(epoch_dir).map(|()| file));
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                let exists =
                    matches!(&error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists);
                if !exists && let Err(source) = fs::remove_file(&path) {
                    tracing::debug!(path = %path.display(), %source, "a segment that could not be made could not be removed");
                }
                return Err(error);
            }
        };
        Ok(Segment {
            path,
            base: start.base,
            after: start.after,
            epoch: start.epoch,
            file,
            byte_count: AtomicU64::new(HEADER_BYTES),
            written_us: AtomicI64::new(0),
            index: Mutex::default(),
        })
    }

    /// Opens a file; None where a crash has left it without a header.
    pub(crate) fn open(path: PathBuf, epoch: Epoch) -> Result<Option<Self>, StoreError> {
        let file = File::options().read(true).write(true).open(&path).map_err(cannot("open", &path))?;
        let metadata = file.metadata().map_err(cannot("open", &path))?;
        let mut header = [0; HEADER_BYTES as usize];
        if metadata.len() >= HEADER_BYTES {
            file.read_exact_at(&mut header, 0).map_err(cannot("read", &path))?;
        }
        let (base, after) = match decode_header(&header, epoch) {
            Header::Good { base, after } => (base, after),
            Header::Version(found) => return Err(StoreError::Version { path, found, known: VERSION }),
            // The header is fsynced before the first frame is written.
            Header::Bad(_) if metadata.len() <= HEADER_BYTES => return Ok(None),
            Header::Bad(reason) => return Err(StoreError::Damaged { path, offset: 0, reason }),
        };
        let written = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let written_us = written.and_then(|since| i64::try_from(since.as_micros()).ok()).unwrap_or(0);
        Ok(Some(Segment {
            path,
            base,
            after,
            epoch,
            file,
            byte_count: AtomicU64::new(metadata.len()),
            written_us: AtomicI64::new(written_us),
            index: Mutex::default(),
        }))
    }

    pub(crate) fn byte_count(&self) -> u64 {
        self.byte_count.load(Ordering::Acquire)
    }

    pub(crate) fn written_us(&self) -> i64 {
        self.written_us.load(Ordering::Relaxed)
    }

    /// Offset behind its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.byte_count()
    }

    /// Appends whole frames, all or, after an error, none.
    pub(crate) fn append(&self, frames: &[u8], now_us: i64) -> Result<(), StoreError> {
        let at = self.byte_count();
        if let Err(source) = self.file.write_all_at(frames, at) {
            self.file.set_len(at).map_err(cannot("cut", &self.path))?;
            return Err(cannot("append to", &self.path)(source));
        }
        self.byte_count.store(at + frames.len() as u64, Ordering::Release);
        self.written_us.store(now_us, Ordering::Relaxed);
        Ok(())
    }

    /// Makes what was appended durable. After an error nothing is known about what is on the disk (the kernel drops the
    /// pages that it could not write), so the same file must not be synced again as if nothing had happened.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(unsynced).map_err(cannot("sync", &self.path))
    }

    /// Drops everything from an offset on, durably.
    pub(crate) fn cut(&self, end: u64) -> Result<(), StoreError> {
        let byte_count = end - self.base;
        let cut = self.file.set_len(byte_count).and_then(|()| self.file.sync_all());
        cut.map_err(cannot("cut", &self.path))?;
        self.byte_count.store(byte_count, Ordering::Release);
        self.index.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, offset)| *offset < end);
        Ok(())
    }

    /// An offset at which a frame starts and before which there is nothing after `after`.
    pub(crate) fn locate(&self, after: Position) -> u64 {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let point = index.partition_point(|(before, _)| *before <= after).checked_sub(1).map(|at| index[at].1);
        point.unwrap_or(self.base + HEADER_BYTES)
    }

    /// Remembers that a frame starts at `offset`, behind one that ends with `before`.
    pub(crate) fn note(&self, before: Position, offset: u64) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let last = index.last().map_or(self.base, |(_, offset)| *offset);
        if offset >= last + INDEX_BYTES {
            index.push((before, offset));
        }
    }

    /// The frames from one offset up to another, in order.
    pub(crate) fn frames(&self, from: u64, to: u64) -> Frames<'_> {
        let at = from.max(self.base + HEADER_BYTES);
        Frames { segment: self, at, to, buffer: Bytes::new(), before: None }
    }

    /// Is there, behind a frame at `bad` that cannot be read, one that was written when all up to and beyond `bad` had been
    /// fsynced? Then `bad` is damage; else it is where a crash tore the log.
    pub(crate) fn was_synced(&self, bad: u64) -> Result<bool, ReadError> {
        let mut at = bad + 1;
        let end = self.end();
        while at + frame::RECOGNISED_BYTES as u64 <= end {
            let window = self.read(at, (end - at).min(1 << 20))?;
            for (skipped, bytes) in window.windows(frame::RECOGNISED_BYTES).enumerate() {
                let start = at + skipped as u64;
                let head = bytes.try_into().expect("windows have that size");
                let Some(byte_count) = frame::recognise(head).filter(|count| start + *count as u64 <= end) else {
                    continue;
                };
                let bytes = self.read(start, byte_count as u64)?;
                if let Decoded::Frame(frame) = frame::decode(self.epoch, &bytes)
                    && (bad + 1..=start).contains(&frame.synced)
                {
                    return Ok(true);
                }
            }
            at += (window.len() - frame::RECOGNISED_BYTES + 1) as u64;
        }
        Ok(false)
    }

    fn read(&self, offset: u64, byte_count: u64) -> Result<Bytes, ReadError> {
        let mut buffer = BytesMut::zeroed(usize::try_from(byte_count).expect("chunks and frames fit into memory"));
        match self.file.read_exact_at(&mut buffer, offset - self.base) {
            Ok(()) => Ok(buffer.freeze()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged(offset, "the file ends")),
            Err(error) => Err(ReadError::Io { path: self.path.clone(), reason: error.to_string() }),
        }
    }

    fn damaged(&self, offset: u64, reason: &'static str) -> ReadError {
        ReadError::Damaged { path: self.path.clone(), offset: offset - self.base, reason }
    }
}

/// Reads frames in order, a chunk at a time, and adds to the index on its way.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    segment: &'a Segment,
    at: u64,
    to: u64,
    /// Bytes from `at` on.
    buffer: Bytes,
    before: Option<Position>,
}

impl Frames<'_> {
    /// Offset of the next frame; after an error, of the frame that could not be read.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Can the next frame be had without reading from the file?
    pub(crate) fn next_is_buffered(&self) -> bool {
        frame::is_whole(&self.buffer)
    }
}

impl Iterator for Frames<'_> {
    type Item = Result<Placed, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.to {
            let left = self.to - self.at;
            match frame::decode(self.segment.epoch, &self.buffer) {
                Decoded::Frame(frame) => {
                    let start = self.at;
                    if let Some(before) = self.before.replace(frame.block.last()) {
                        self.segment.note(before, start);
                    }
                    self.buffer.advance(frame.byte_count);
                    self.at += frame.byte_count as u64;
                    return Some(Ok(Placed { start, end: self.at, block: frame.block }));
                }
                Decoded::Short { byte_count } if byte_count as u64 > left => {
                    return Some(Err(self.segment.damaged(self.at, "the last frame is cut short")));
                }
                Decoded::Short { byte_count } => {
                    match self.segment.read(self.at, (byte_count.max(CHUNK_BYTES) as u64).min(left)) {
                        Ok(buffer) => self.buffer = buffer,
                        Err(error) => return Some(Err(error)),
                    }
                }
                Decoded::Bad(reason) => return Some(Err(self.segment.damaged(self.at, reason))),
            }
        }
        None
    }
}

enum Header {
    Good { base: u64, after: Position },
    Version(u32),
    Bad(&'static str),
}

fn encode_header(start: &SegmentStart) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES as usize);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&start.epoch.0.to_le_bytes());
    out.extend_from_slice(&start.after.lsn.0.to_le_bytes());
    out.extend_from_slice(&start.after.ordinal.to_le_bytes());
    out.extend_from_slice(&start.base.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

fn decode_header(header: &[u8; HEADER_BYTES as usize], epoch: Epoch) -> Header {
    let (body, mut checksum) = header.split_at(HEADER_BYTES as usize - 4);
    let Some(mut rest) = body.strip_prefix(MAGIC) else { return Header::Bad("it does not start as a segment does") };
    let version = rest.get_u32_le();
    if version != VERSION {
        return Header::Version(version);
    }
    if checksum.get_u32_le() != crc32fast::hash(body) {
        return Header::Bad("checksum of the header");
    }
    if Epoch(rest.get_u128_le()) != epoch {
        return Header::Bad("it belongs to another epoch");
    }
    let after = Position::new(Lsn(rest.get_u64_le()), rest.get_u32_le());
    Header::Good { base: rest.get_u64_le(), after }
}
