//! A block: a run of records in position order, encoded once at capture and passed on unchanged by the feed, the
//! changelog and the sessions.
//!
//! ```text
//! entries  | RowType 7 | Begin | Change 7 | Change 7 | Commit | Begin | …   fixed size: what, where, which bytes
//! payload  | …RowType… | 0A len Begin | 0A len Change | 0A len Change | 0A len Commit | 0A len Begin | …
//! ```
//!
//! The payload of a Begin, Change or Commit is one whole `events` field of `tidegate.v1.ChangeBatch` (tag, length, Event), so
//! that a run of such neighbours, over any number of transactions, is a valid ChangeBatch as it stands, without copying. The
//! other payloads are bare messages: RowType, SnapshotBegin, SnapshotEnd, SnapshotCursor; Progress has none. A snapshot's chunk
//! is a run Begin, Change (read)…, SnapshotCursor, Commit at one position.
//!
//! Invariant: `start <= end <= payload.len()` for every entry, payloads of neighbouring entries touch, and positions do not
//! decrease.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::Arc;

use crate::{Lsn, Position, SNAPSHOT_ORDINAL};

/// What an [`Entry`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A row type's description, before its first use.
    RowType = 1,
    /// A transaction, or a message outside of transactions, begins.
    Begin = 2,
    /// A change, or a part of one.
    Change = 3,
    /// It ends: all of it may be seen.
    Commit = 4,
    /// Nothing else happened up to this LSN.
    Progress = 5,
    /// A snapshot begins: chunks follow, amid other records.
    SnapshotBegin = 6,
    /// It ends: the state is exact from here on, or it was given up.
    SnapshotEnd = 7,
    /// Where a snapshot goes on after this chunk. Not for subscribers.
    SnapshotCursor = 8,
}

/// The operation of a change, numbered as in `tidegate.v1.Change.Op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Op {
    /// Not a change.
    None = 0,
    /// A row of a snapshot.
    Read = 1,
    /// A new row.
    Insert = 2,
    /// A changed row.
    Update = 3,
    /// A row that is gone.
    Delete = 4,
    /// All rows are gone.
    Truncate = 5,
    /// A logical message.
    Message = 6,
}

/// Bytes of an encoded entry.
pub const ENTRY_BYTES: usize = 32;
/// No block is larger, entries and payload together: a row that is larger is cut at capture.
pub const MAX_BLOCK_BYTES: usize = 4 << 20;

/// One record of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position's LSN.
    pub lsn: Lsn,
    /// Position's ordinal.
    pub ordinal: u32,
    /// Row type of the change; 0 where there is none. Number of the snapshot for a chunk's Begin, Commit and cursor and for a
    /// snapshot's begin and end.
    pub row_type: u32,
    /// First byte in the payload.
    pub start: u32,
    /// Behind the last byte in the payload.
    pub end: u32,
    /// What it is.
    pub kind: Kind,
    /// Of a change.
    pub op: Op,
    /// The change goes on in the next entry.
    pub continues: bool,
}

impl Entry {
    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Position {
        Position::new(self.lsn, self.ordinal)
    }

    /// Does it end something, so that all up to it may be seen?
    #[must_use]
    pub fn completes(&self) -> bool {
        matches!(self.kind, Kind::Commit | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd)
    }

    /// Is it a snapshot's: of a chunk, or a mark?
    #[must_use]
    pub fn is_of_snapshot(&self) -> bool {
        match self.kind {
            Kind::SnapshotBegin | Kind::SnapshotEnd | Kind::SnapshotCursor => true,
            Kind::Begin | Kind::Change | Kind::Commit => self.ordinal >= SNAPSHOT_ORDINAL,
            Kind::RowType | Kind::Progress => false,
        }
    }

    fn write(&self, out: &mut BytesMut) {
        out.put_u64_le(self.lsn.0);
        out.put_u32_le(self.ordinal);
        out.put_u32_le(self.row_type);
        out.put_u32_le(self.start);
        out.put_u32_le(self.end);
        out.put_u8(self.kind as u8);
        out.put_u8(self.op as u8);
        out.put_u8(u8::from(self.continues));
        out.put_bytes(0, 5);
    }

    fn read(mut bytes: &[u8]) -> Option<Self> {
        Some(Entry {
            lsn: Lsn(bytes.get_u64_le()),
            ordinal: bytes.get_u32_le(),
            row_type: bytes.get_u32_le(),
            start: bytes.get_u32_le(),
            end: bytes.get_u32_le(),
            kind: match bytes.get_u8() {
                1 => Kind::RowType,
                2 => Kind::Begin,
                3 => Kind::Change,
                4 => Kind::Commit,
                5 => Kind::Progress,
                6 => Kind::SnapshotBegin,
                7 => Kind::SnapshotEnd,
                8 => Kind::SnapshotCursor,
                _ => return None,
            },
            op: match bytes.get_u8() {
                0 => Op::None,
                1 => Op::Read,
                2 => Op::Insert,
                3 => Op::Update,
                4 => Op::Delete,
                5 => Op::Truncate,
                6 => Op::Message,
                _ => return None,
            },
            continues: bytes.get_u8() != 0,
        })
    }
}

/// A run of records. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    entries: Arc<[Entry]>,
    payload: Bytes,
}

/// The bytes are not a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a block: {0}")]
pub struct BlockError(&'static str);

impl Block {
    /// The records.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The bytes that the entries point into.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The bytes of one record; shares the block's memory.
    #[must_use]
    pub fn slice(&self, entry: &Entry) -> Bytes {
        self.payload.slice(entry.start as usize..entry.end as usize)
    }

    /// Position of the first record; ZERO for a block without records.
    #[must_use]
    pub fn first(&self) -> Position {
        self.entries.first().map_or(Position::ZERO, Entry::position)
    }

    /// Position of the last record; ZERO for a block without records.
    #[must_use]
    pub fn last(&self) -> Position {
        self.entries.last().map_or(Position::ZERO, Entry::position)
    }

    /// The last position in it up to which all may be seen: its last commit or progress.
    #[must_use]
    pub fn complete_through(&self) -> Option<Position> {
        self.entries.iter().rev().find(|entry| entry.completes()).map(Entry::position)
    }

    /// Size in memory and on disk, in bytes.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        8 + self.entries.len() * ENTRY_BYTES + self.payload.len()
    }

    /// The encoded head: entry count and payload length (u32, little endian), then the entries. The payload follows it.
    #[must_use]
    pub fn encode_head(&self) -> Bytes {
        encode_head(&self.entries, self.payload.len()).freeze()
    }

    /// Reads `encode_head` followed by the payload; all bytes must be used.
    ///
    /// # Errors
    /// The bytes break the format or the invariant.
    pub fn decode(bytes: Bytes) -> Result<Self, BlockError> {
        let (entries, payload) = decode(bytes)?;
        if !entries.is_sorted_by_key(Entry::position) {
            return Err(BlockError("positions decrease"));
        }
        Ok(Block { entries: entries.into(), payload })
    }
}

fn encode_head(entries: &[Entry], payload_len: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(8 + entries.len() * ENTRY_BYTES);
    out.put_u32_le(u32::try_from(entries.len()).expect("a block is at most 4 MiB"));
    out.put_u32_le(u32::try_from(payload_len).expect("a block is at most 4 MiB"));
    for entry in entries {
        entry.write(&mut out);
    }
    out
}

fn decode(mut bytes: Bytes) -> Result<(Vec<Entry>, Bytes), BlockError> {
    if bytes.len() < 8 || bytes.len() > MAX_BLOCK_BYTES + 8 {
        return Err(BlockError("length out of range"));
    }
    let entry_count = bytes.get_u32_le() as usize;
    let payload_len = bytes.get_u32_le() as usize;
    if entry_count.checked_mul(ENTRY_BYTES).and_then(|n| n.checked_add(payload_len)) != Some(bytes.len()) {
        return Err(BlockError("lengths do not add up"));
    }
    let head = bytes.split_to(entry_count * ENTRY_BYTES);
    let entries: Option<Vec<Entry>> = head.chunks_exact(ENTRY_BYTES).map(Entry::read).collect();
    let entries = entries.ok_or(BlockError("unknown kind or operation"))?;
    let bounded = |entry: &Entry| entry.start <= entry.end && entry.end as usize <= payload_len;
    if !entries.iter().all(bounded) {
        return Err(BlockError("an entry points outside of the payload"));
    }
    Ok((entries, bytes))
}

/// Collects records into a [`Block`].
#[derive(Debug, Default)]
pub struct BlockBuilder {
    /// The records so far; the builder's owner may amend them until `finish`.
    pub entries: Vec<Entry>,
    /// Their bytes so far; rows are encoded right into it.
    pub payload: BytesMut,
}

impl BlockBuilder {
    /// Appends a record with the bytes.
    pub fn push(&mut self, mut entry: Entry, bytes: &[u8]) {
        entry.start = self.offset();
        self.payload.extend_from_slice(bytes);
        entry.end = self.offset();
        self.entries.push(entry);
    }

    /// Where the next byte goes.
    #[must_use]
    pub fn offset(&self) -> u32 {
        u32::try_from(self.payload.len()).expect("a block is at most 4 MiB")
    }

    /// Size so far, in bytes.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        8 + self.entries.len() * ENTRY_BYTES + self.payload.len()
    }

    /// Nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The records so far as bytes, in the encoding of a block: to be set aside and taken up again with `decode`.
    #[must_use]
    pub fn encode(&self) -> BytesMut {
        let mut out = encode_head(&self.entries, self.payload.len());
        out.extend_from_slice(&self.payload);
        out
    }

    /// Reads what `encode` wrote. Positions need not be in order yet.
    ///
    /// # Errors
    /// The bytes break the format.
    pub fn decode(bytes: Bytes) -> Result<Self, BlockError> {
        let (entries, payload) = decode(bytes)?;
        Ok(BlockBuilder { entries, payload: payload.into() })
    }

    /// The block; the builder is empty again.
    #[must_use]
    pub fn finish(&mut self) -> Block {
        Block { entries: std::mem::take(&mut self.entries).into(), payload: self.payload.split().freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(lsn: u64, ordinal: u32, kind: Kind) -> Entry {
        Entry { lsn: Lsn(lsn), ordinal, row_type: 3, start: 0, end: 0, kind, op: Op::Insert, continues: false }
    }

    fn encoded(block: &Block) -> Bytes {
        let mut out = BytesMut::from(&block.encode_head()[..]);
        out.extend_from_slice(block.payload());
        out.freeze()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(rows in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..40)) {
            let mut builder = BlockBuilder::default();
            for (n, row) in rows.iter().enumerate() {
                builder.push(entry(9, n as u32, Kind::Change), row);
            }
            let block = builder.finish();
            let read = Block::decode(encoded(&block)).expect("valid");
            prop_assert_eq!(&read, &block);
            for (entry, row) in read.entries().iter().zip(&rows) {
                prop_assert_eq!(&read.slice(entry)[..], &row[..]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _decoded_or_refused = Block::decode(Bytes::from(bytes)).is_ok();
        }
    }

    #[test]
    fn only_complete_transactions_may_be_seen() {
        let mut builder = BlockBuilder::default();
        builder.push(entry(5, 0, Kind::Begin), b"");
        builder.push(entry(5, 1, Kind::Commit), b"");
        builder.push(entry(8, 0, Kind::Begin), b"");
        assert_eq!(builder.finish().complete_through(), Some(Position::new(Lsn(5), 1)));
    }
}
