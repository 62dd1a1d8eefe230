//! A frame: one block as it lies in a segment.
//!
//! ```text
//! length u32 | checksum u32 | synced u64 | Block::encode_head | payload         integers little endian
//!            └ of the epoch's 16 bytes and all that follows, CRC-32 (IEEE)
//!                           └ the log up to this offset was fsynced when the frame was written
//! ```
//!
//! `length` counts what follows the checksum. The epoch in the checksum keeps frames apart that a row's value or an
//! earlier life of the disk may contain. `synced` is what tells a torn tail, which a crash leaves and recovery cuts, from
//! damage to what was promised to be durable, which must not be cut in silence.

use bytes::{Buf, Bytes};
use tidegate_model::{Block, ENTRY_BYTES, Epoch, MAX_BLOCK_BYTES};

/// Bytes before the block.
pub(crate) const HEAD_BYTES: usize = 16;
/// The block's own two lengths, which a frame is recognised by.
pub(crate) const RECOGNISED_BYTES: usize = HEAD_BYTES + 8;
/// Bytes before what `length` counts.
const PREFIX_BYTES: usize = 8;
const LENGTH_MAX: usize = 8 + 8 + MAX_BLOCK_BYTES;

/// A frame that was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) block: Block,
    pub(crate) synced: u64,
    /// Length in the segment.
    pub(crate) byte_count: usize,
}

/// What the bytes at hand begin with.
#[derive(Debug)]
pub(crate) enum Decoded {
    Frame(Frame),
    /// More bytes are needed, this many in all.
    Short {
        byte_count: usize,
    },
    Bad(&'static str),
}

/// Appends a block's frame.
pub(crate) fn encode(epoch: Epoch, block: &Block, synced: u64, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    out.extend_from_slice(&synced.to_le_bytes());
    out.extend_from_slice(&block.encode_head());
    out.extend_from_slice(block.payload());
    let rest = start + PREFIX_BYTES;
    let length = u32::try_from(out.len() - rest).expect("a block is at most 4 MiB");
    let checksum = checksum(epoch, &out[rest..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..rest].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads the frame that `bytes` begins with; its block shares their memory.
pub(crate) fn decode(epoch: Epoch, bytes: &Bytes) -> Decoded {
    if bytes.len() < PREFIX_BYTES {
        return Decoded::Short { byte_count: PREFIX_BYTES };
    }
    let mut prefix = &bytes[..PREFIX_BYTES];
    let length = prefix.get_u32_le() as usize;
    if !(16..=LENGTH_MAX).contains(&length) {
        return Decoded::Bad("length out of range");
    }
    let byte_count = PREFIX_BYTES + length;
    if bytes.len() < byte_count {
        return Decoded::Short { byte_count };
    }
    if prefix.get_u32_le() != checksum(epoch, &bytes[PREFIX_BYTES..byte_count]) {
        return Decoded::Bad("checksum");
    }
    let synced = (&bytes[PREFIX_BYTES..HEAD_BYTES]).get_u64_le();
    match Block::decode(bytes.slice(HEAD_BYTES..byte_count)) {
        Ok(block) => Decoded::Frame(Frame { block, synced, byte_count }),
        Err(_) => Decoded::Bad("checksum fits, but it holds no block"),
    }
}

/// Is the frame that `bytes` begins with all there?
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    bytes.len() >= PREFIX_BYTES && bytes.len() - PREFIX_BYTES >= (&bytes[..]).get_u32_le() as usize
}

/// May a frame start with these bytes, as far as its three lengths tell? Then it has this many bytes in all.
pub(crate) fn recognise(bytes: &[u8; RECOGNISED_BYTES]) -> Option<usize> {
    let length = (&bytes[..]).get_u32_le() as usize;
    let entry_count = (&bytes[HEAD_BYTES..]).get_u32_le() as usize;
    let payload_bytes = (&bytes[HEAD_BYTES + 4..]).get_u32_le() as usize;
    let fits = entry_count.checked_mul(ENTRY_BYTES)?.checked_add(payload_bytes)?.checked_add(16)? == length;
    (fits && length <= LENGTH_MAX).then_some(PREFIX_BYTES + length)
}

fn checksum(epoch: Epoch, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&epoch.0.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_model::{BlockBuilder, Entry, Kind, Lsn, Op};

    use super::*;

    const EPOCH: Epoch = Epoch(0x0123_4567_89ab_cdef);

    fn block(payload: &[u8]) -> Block {
        let mut builder = BlockBuilder::default();
        let (kind, op) = (Kind::Change, Op::Insert);
        let entry = Entry { lsn: Lsn(9), ordinal: 1, row_type: 1, start: 0, end: 0, kind, op, continues: false };
        builder.push(entry, payload);
        builder.finish()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(payload in proptest::collection::vec(any::<u8>(), 0..300), synced: u64) {
            let block = block(&payload);
            let mut bytes = Vec::new();
            encode(EPOCH, &block, synced, &mut bytes);
            prop_assert_eq!(recognise(bytes[..RECOGNISED_BYTES].try_into().unwrap()), Some(bytes.len()));
            let Decoded::Frame(frame) = decode(EPOCH, &bytes.clone().into()) else { panic!("a frame") };
            prop_assert_eq!((frame.block, frame.synced, frame.byte_count), (block, synced, bytes.len()));
        }

        #[test]
        fn a_changed_byte_is_noticed(payload in proptest::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, by in 1..=255_u8) {
            let mut bytes = Vec::new();
            encode(EPOCH, &block(&payload), 5, &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(!matches!(decode(EPOCH, &bytes.into()), Decoded::Frame(_)));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!matches!(decode(EPOCH, &bytes.into()), Decoded::Frame(_)));
        }
    }

    #[test]
    fn a_frame_of_another_epoch_is_none() {
        let mut bytes = Vec::new();
        encode(EPOCH, &block(b"row"), 5, &mut bytes);
        assert!(matches!(decode(Epoch(1), &bytes.into()), Decoded::Bad("checksum")));
    }
}
