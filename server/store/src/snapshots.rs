//! How far each unfinished snapshot has come, in memory and in the file `snapshots`.
//!
//! ```text
//! file   "TGSN" | version u32 | CRC-32 u32 of the rest | snapshots            integers little endian
//! each   number u32 | begin (lsn u64, ordinal u32) | cursor count u32 | length-delimited tidegate.v1.SnapshotCursor…
//! ```
//!
//! The changelog itself says it all, but a snapshot may have begun in a segment that is long gone. So the file holds what
//! all segments but the newest say, and recovery adds what it finds in the newest, which it reads anyway. It is replaced
//! whole before a segment is begun, and only where something has changed: without snapshots there is no file.
//!
//! Invariant: the file is never ahead of the log, since the segments that it stands for are fsynced first; and no segment
//! begins between a cursor and its commit. Applying records again that the file has already does no harm.

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc};

use bytes::{Buf, BufMut};
use prost::Message;
use tidegate_model::{Block, Entry, Kind, Lsn, Position};
use tidegate_proto::v1;

use crate::{
    StoreError,
    layout::{self, cannot},
};

const MAGIC: &[u8; 4] = b"TGSN";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 12;
/// How many that have ended are remembered.
const ENDED_MAX: usize = 100;

/// The unfinished snapshots by number.
pub type Snapshots = BTreeMap<u32, SnapshotProgress>;

/// Snapshots that have ended, by number, and why they were given up; empty where they are complete.
pub type EndedSnapshots = BTreeMap<u32, String>;

/// How far a snapshot has come.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotProgress {
    /// Where its SnapshotBegin stands. That place may be trimmed already.
    pub begin: Position,
    /// The newest cursor of each table that has one, by the table's OID.
    pub cursors: BTreeMap<u32, v1::SnapshotCursor>,
}

/// Follows the records of the log.
#[derive(Debug, Default)]
pub(crate) struct SnapshotsFile {
    known: Arc<Snapshots>,
    /// Cursors of a chunk that is not complete.
    pending: Vec<v1::SnapshotCursor>,
    /// What the file holds.
    written: Arc<Snapshots>,
    /// The newest that have ended in what was observed, which the file does not hold.
    ended: EndedSnapshots,
}

impl SnapshotsFile {
    /// Reads the file; nothing where there is none.
    pub(crate) fn open(epoch_dir: &Path) -> Result<Self, StoreError> {
        let path = epoch_dir.join("snapshots");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(cannot("read", &path)(error)),
        };
        let damaged = |reason| StoreError::Damaged { path: path.clone(), offset: 0, reason };
        let (Some(mut rest), true) = (bytes.strip_prefix(MAGIC), bytes.len() >= HEADER_BYTES) else {
            return Err(damaged("it does not start as a file of snapshots does"));
        };
        match rest.get_u32_le() {
            VERSION => {}
            found => return Err(StoreError::Version { path, found, known: VERSION }),
        }
        if rest.get_u32_le() != crc32fast::hash(rest) {
            return Err(damaged("checksum"));
        }
        let known = Arc::new(decode(rest).ok_or_else(|| damaged("checksum fits, but it holds no snapshots"))?);
        Ok(SnapshotsFile { written: Arc::clone(&known), known, ..Self::default() })
    }

    /// The unfinished snapshots as of the last complete record.
    pub(crate) fn known(&self) -> &Arc<Snapshots> {
        &self.known
    }

    /// The newest that have ended, after recovery in the newest segment. Who has not noted the end of one that has ended long before
    /// makes it again, which does no harm.
    pub(crate) fn ended(&self) -> &EndedSnapshots {
        &self.ended
    }

    /// Does a cursor wait for its commit?
    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes notice of the next block of the log.
    pub(crate) fn observe(&mut self, block: &Block) -> Result<(), StoreError> {
        for entry in block.entries().iter().filter(|entry| entry.is_of_snapshot()) {
            match entry.kind {
                Kind::SnapshotBegin => {
                    let progress = SnapshotProgress { begin: entry.position(), cursors: BTreeMap::new() };
                    Arc::make_mut(&mut self.known).insert(entry.row_type, progress);
                    self.ended.remove(&entry.row_type);
                }
                Kind::SnapshotCursor => self.pending.push(decoded(block, entry, "SnapshotCursor")?),
                Kind::Commit => {
                    for cursor in std::mem::take(&mut self.pending) {
                        if let Some(progress) = Arc::make_mut(&mut self.known).get_mut(&entry.row_type) {
                            progress.cursors.insert(cursor.table_oid, cursor);
                        }
                    }
                }
                Kind::SnapshotEnd => {
                    Arc::make_mut(&mut self.known).remove(&entry.row_type);
                    let end: v1::SnapshotEnd = decoded(block, entry, "SnapshotEnd")?;
                    self.ended.insert(entry.row_type, end.abandoned);
                    if self.ended.len() > ENDED_MAX {
                        self.ended.pop_first();
                    }
                }
                Kind::Begin | Kind::Change | Kind::RowType | Kind::Progress => {}
            }
        }
        Ok(())
    }

    /// Replaces the file. What it stands for must be fsynced in the log.
    pub(crate) fn write(&mut self, epoch_dir: &Path) -> Result<(), StoreError> {
        if self.written == self.known {
            return Ok(());
        }
        let body = encode(&self.known);
        let bytes = [MAGIC, &VERSION.to_le_bytes()[..], &crc32fast::hash(&body).to_le_bytes(), &body].concat();
        layout::replace(epoch_dir, "snapshots", &bytes)?;
        self.written = Arc::clone(&self.known);
        Ok(())
    }
}

fn decoded<M: Message + Default>(block: &Block, entry: &Entry, message: &'static str) -> Result<M, StoreError> {
    let malformed = |error: prost::DecodeError| StoreError::Record {
        position: entry.position(),
        message,
        reason: error.to_string(),
    };
    M::decode(block.slice(entry)).map_err(malformed)
}

fn encode(snapshots: &Snapshots) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, progress) in snapshots {
        out.put_u32_le(*number);
        out.put_u64_le(progress.begin.lsn.0);
        out.put_u32_le(progress.begin.ordinal);
        out.put_u32_le(u32::try_from(progress.cursors.len()).expect("a database has fewer tables"));
        for cursor in progress.cursors.values() {
            out.extend_from_slice(&cursor.encode_length_delimited_to_vec());
        }
    }
    out
}

fn decode(mut bytes: &[u8]) -> Option<Snapshots> {
    let mut snapshots = Snapshots::new();
    while bytes.has_remaining() {
        let number = bytes.try_get_u32_le().ok()?;
        let begin = Position::new(Lsn(bytes.try_get_u64_le().ok()?), bytes.try_get_u32_le().ok()?);
        let mut progress = SnapshotProgress { begin, cursors: BTreeMap::new() };
        for _ in 0..bytes.try_get_u32_le().ok()? {
            let cursor = v1::SnapshotCursor::decode_length_delimited(&mut bytes).ok()?;
            progress.cursors.insert(cursor.table_oid, cursor);
        }
        snapshots.insert(number, progress);
    }
    Some(snapshots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path) -> Vec<u8> {
        let cursor = v1::SnapshotCursor { snapshot: 3, table_oid: 16_400, row_count: 7, ..Default::default() };
        let progress = SnapshotProgress {
            begin: Position::new(Lsn(0x1000), 1 << 31),
            cursors: BTreeMap::from([(16_400, cursor)]),
        };
        let known = Arc::new(Snapshots::from([(3, progress)]));
        let mut file = SnapshotsFile { known, ..SnapshotsFile::default() };
        file.write(dir).unwrap();
        assert_eq!(SnapshotsFile::open(dir).unwrap().known, file.known);
        fs::read(dir.join("snapshots")).unwrap()
    }

    #[test]
    fn nothing_is_written_where_nothing_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        SnapshotsFile::default().write(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        written(dir.path());
        let mut file = SnapshotsFile::open(dir.path()).unwrap();
        fs::remove_file(dir.path().join("snapshots")).unwrap();
        file.write(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_format_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (good, path) = (written(dir.path()), dir.path().join("snapshots"));
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let refused = SnapshotsFile::open(dir.path());
            assert!(matches!(refused, Err(StoreError::Damaged { .. } | StoreError::Version { .. })), "{at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(matches!(SnapshotsFile::open(dir.path()), Err(StoreError::Damaged { .. })), "{at}");
        }
    }
}
