//! Parts of differences that wait for slow subscribers, in files without names, which are gone with the process.
//!
//! ```text
//! part  | count | entry selection | entry selection | … | block |        selection 2^32-1: nothing is known of the entry
//! ```
//!
//! Invariant: the files of a source have no more bytes than they may; what has no room is not written.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tidegate_model::{Block, MAX_BLOCK_BYTES};
use tidegate_store::Place;
use tidegate_views::Effect;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::router::{Found, Known, Note, RoutedBlock};

/// Where there is no selection.
const NO_SELECTION: u32 = u32::MAX;

/// The files of a source.
pub(crate) struct Spool {
    dir: PathBuf,
    /// What they may still have.
    bytes: Arc<Semaphore>,
}

/// A part in a file, which is gone when all its parts are dropped.
#[derive(Clone)]
pub(super) struct Spooled {
    file: Arc<File>,
    offset: u64,
    len: usize,
}

impl Spool {
    /// Of so many bytes at most, in a folder that is there.
    pub(crate) fn new(dir: PathBuf, byte_count: usize) -> Self {
        Spool { dir, bytes: Arc::new(Semaphore::new(byte_count)) }
    }

    /// Puts parts into a file. What is returned with them is theirs as long as they are in it. Blocks the thread.
    ///
    /// # Errors
    /// `QuotaExceeded` where there is no room; the disk is full or broken; a part is larger than a block may be.
    pub(super) fn write(&self, parts: &[Arc<Note>]) -> io::Result<(Vec<Spooled>, OwnedSemaphorePermit)> {
        let mut room = self.room(0)?;
        let (file, mut offset) = (Arc::new(tempfile::tempfile_in(&self.dir)?), 0);
        let mut spooled = Vec::with_capacity(parts.len());
        for part in parts {
            let bytes = encoded(part)?;
            room.merge(self.room(bytes.len())?);
            file.write_all_at(&bytes, offset)?;
            spooled.push(Spooled { file: Arc::clone(&file), offset, len: bytes.len() });
            offset += bytes.len() as u64;
        }
        Ok((spooled, room))
    }

    fn room(&self, byte_count: usize) -> io::Result<OwnedSemaphorePermit> {
        let permits = u32::try_from(byte_count).ok();
        let room = permits.and_then(|permits| Arc::clone(&self.bytes).try_acquire_many_owned(permits).ok());
        room.ok_or_else(|| io::ErrorKind::QuotaExceeded.into())
    }

    #[cfg(test)]
    pub(super) fn free_bytes(&self) -> usize {
        self.bytes.available_permits()
    }
}

impl Spooled {
    /// Blocks the thread.
    pub(super) fn read(&self) -> io::Result<Note> {
        let mut bytes = BytesMut::zeroed(self.len);
        self.file.read_exact_at(&mut bytes, self.offset)?;
        decoded(bytes.freeze())
    }
}

fn encoded(part: &Note) -> io::Result<BytesMut> {
    let block = &part.routed.block;
    if block.byte_count() > MAX_BLOCK_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a row is too large for it"));
    }
    let mut out = BytesMut::with_capacity(4 + 8 * part.found.len() + block.byte_count());
    out.put_u32_le(u32::try_from(part.found.len()).expect("a block is at most 4 MiB"));
    for Found { entry, what } in &part.found {
        out.put_u32_le(*entry);
        out.put_u32_le(match what {
            Known::Nothing => NO_SELECTION,
            // A difference says of each of its changes what it is.
            Known::Effect { selection, effect: _ } => (*selection).into(),
        });
    }
    out.put_slice(&block.encode_head());
    out.put_slice(block.payload());
    Ok(out)
}

fn decoded(mut bytes: Bytes) -> io::Result<Note> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "it has been damaged");
    let count = bytes.try_get_u32_le().map_err(|_| malformed())?;
    let mut found = Vec::new();
    for _ in 0..count {
        let entry = bytes.try_get_u32_le().map_err(|_| malformed())?;
        let what = match bytes.try_get_u32_le().map_err(|_| malformed())? {
            NO_SELECTION => Known::Nothing,
            selection => {
                let selection = u16::try_from(selection).map_err(|_| malformed())?;
                Known::Effect { selection, effect: Effect::Update }
            }
        };
        found.push(Found { entry, what });
    }
    let block = Block::decode(bytes).map_err(io::Error::other)?;
    if found.iter().any(|found| found.entry as usize >= block.entries().len()) {
        return Err(malformed());
    }
    let routed = Arc::new(RoutedBlock { block, end: Place::default(), open: None });
    Ok(Note { routed, found: found.into(), filtered: Default::default() })
}

#[cfg(test)]
pub(super) mod tests {
    use tidegate_model::{BlockBuilder, Entry, Kind, Lsn, Op};

    use super::*;

    /// Of a Begin and a change.
    pub(in crate::redefinition) fn note(number: u32) -> Note {
        let mut block = BlockBuilder::default();
        for (kind, op) in [(Kind::Begin, Op::None), (Kind::Change, Op::Insert)] {
            let ordinal = number;
            let entry = Entry { lsn: Lsn(9), ordinal, row_type: 1, start: 0, end: 0, kind, op, continues: false };
            block.push(entry, &number.to_le_bytes());
        }
        let effect = Known::Effect { selection: number as u16, effect: Effect::Update };
        let found = [Found { entry: 0, what: Known::Nothing }, Found { entry: 1, what: effect }];
        let routed = Arc::new(RoutedBlock { block: block.finish(), end: Place::default(), open: None });
        Note { routed, found: found.into(), filtered: Default::default() }
    }

    #[test]
    fn what_is_read_is_what_was_written_and_nothing_else_is_taken_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let spool = Spool::new(dir.path().to_owned(), 1 << 20);
        let (spooled, permits) = spool.write(&[Arc::new(note(1)), Arc::new(note(2))]).expect("there is room");
        for (number, spooled) in (1..).zip(&spooled) {
            let read = spooled.read().expect("it is there");
            assert_eq!((&read.routed.block, &read.found), (&note(number).routed.block, &note(number).found));
            let shorter = Spooled { len: spooled.len - 1, ..spooled.clone() };
            assert!(shorter.read().is_err());
        }
        assert!(std::fs::read_dir(dir.path()).expect("it is there").next().is_none(), "a file has a name");
        drop(permits);
        assert_eq!(spool.free_bytes(), 1 << 20);
    }
}
