//! Encodes changes as `tidegate.v1.Change`, each as one `events` field of a ChangeBatch (see [`tidegate_model::Block`]).
//!
//! The ordinal, a fixed32, stands last: it is known only when the transaction commits, and is then written in place. A
//! change that is too large for one message is cut into several with the same ordinal. Field numbers are those of
//! `proto/tidegate/v1/changes.proto`.

use bytes::{BufMut, BytesMut};
use tidegate_model::{BlockBuilder, Entry, Kind, Lsn, Op};

use crate::event::{CHANGE, put_head};

/// Values beyond this many bytes continue in another Change.
pub const CUT_BYTES: usize = 512 << 10;

/// Bytes of the ordinal at the end of each change.
const ORDINAL_BYTES: usize = 4;

/// A change's parts, rows already encoded.
#[derive(Clone, Copy, Debug)]
pub struct ChangeParts<'a> {
    /// What happened.
    pub op: Op,
    /// Of row and old; 0 for a message.
    pub row_type: u32,
    /// The new row.
    pub row: &'a [u8],
    /// The old row, or its key.
    pub old: &'a [u8],
    /// What `old` is.
    pub old_kind: OldKind,
    /// Fields of the row that were not sent, since they are as they were.
    pub unchanged: &'a [u32],
    /// Of a truncate or a message.
    pub extra: Extra<'a>,
}

/// `tidegate.v1.Change.OldKind`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OldKind {
    /// No old row.
    #[default]
    None = 0,
    /// The key.
    Key = 1,
    /// Every column.
    Full = 2,
}

/// What only some operations have.
#[derive(Clone, Copy, Debug)]
pub enum Extra<'a> {
    /// Nothing.
    None,
    /// Of a truncate.
    Truncate {
        /// CASCADE was given.
        cascade: bool,
        /// RESTART IDENTITY was given.
        restart_identity: bool,
    },
    /// Of a message.
    Message {
        /// As the application gave it.
        prefix: &'a str,
        /// The bytes.
        content: &'a [u8],
        /// Part of a transaction.
        transactional: bool,
    },
}

/// Where encoded changes are collected.
pub trait Room {
    /// The builder for the next piece; full ones are set aside first.
    fn room(&mut self) -> &mut BlockBuilder;
}

impl Room for BlockBuilder {
    fn room(&mut self) -> &mut BlockBuilder {
        self
    }
}

/// Appends the change, in as many pieces as it needs. `tag` is kept in the entries' LSN until the commit is known.
pub fn push_change(change: &ChangeParts<'_>, tag: Lsn, to: &mut impl Room) {
    let mut rest = *change;
    loop {
        let piece = take_piece(&mut rest);
        let continues = !is_used_up(&rest);
        let builder = to.room();
        let start = builder.offset();
        write_change(&piece, continues, &mut builder.payload);
        let end = builder.offset();
        builder.entries.push(Entry {
            lsn: tag,
            ordinal: 0,
            row_type: change.row_type,
            start,
            end,
            kind: Kind::Change,
            op: change.op,
            continues,
        });
        if !continues {
            return;
        }
        rest.unchanged = &[];
    }
}

/// Writes the ordinal into an encoded change.
pub fn set_ordinal(payload: &mut [u8], entry: &Entry, ordinal: u32) {
    let end = entry.end as usize;
    payload[end - ORDINAL_BYTES..end].copy_from_slice(&ordinal.to_le_bytes());
}

fn take_piece<'a>(rest: &mut ChangeParts<'a>) -> ChangeParts<'a> {
    let mut left = CUT_BYTES;
    let mut take = |bytes: &mut &'a [u8]| {
        let (piece, after) = bytes.split_at(left.min(bytes.len()));
        left -= piece.len();
        *bytes = after;
        piece
    };
    let mut piece = *rest;
    piece.old = take(&mut rest.old);
    piece.row = take(&mut rest.row);
    if let (Extra::Message { content: part, .. }, Extra::Message { content, .. }) = (&mut piece.extra, &mut rest.extra)
    {
        *part = take(content);
    }
    piece
}

fn is_used_up(rest: &ChangeParts<'_>) -> bool {
    let content_left = match rest.extra {
        Extra::Message { content, .. } => content.len(),
        Extra::None | Extra::Truncate { .. } => 0,
    };
    rest.old.is_empty() && rest.row.is_empty() && content_left == 0
}

fn write_change(change: &ChangeParts<'_>, continues: bool, out: &mut BytesMut) {
    let extra_len = extra_len(&change.extra);
    let unchanged_len: usize = change.unchanged.iter().map(|field| varint_len(u64::from(*field))).sum();
    let body = 2
        + u32_field_len(change.row_type)
        + bytes_field_len(change.row.len())
        + bytes_field_len(change.old.len())
        + if change.old_kind == OldKind::None { 0 } else { 2 }
        + bytes_field_len(unchanged_len)
        + if continues { 2 } else { 0 }
        + extra_len.map_or(0, |len| 1 + varint_len(len as u64) + len)
        + 1
        + ORDINAL_BYTES;
    put_head(out, CHANGE, body);
    out.put_slice(&[0x08, change.op as u8]);
    put_u32_field(0x10, change.row_type, out);
    put_bytes_field(0x22, change.row, out);
    put_bytes_field(0x2A, change.old, out);
    if change.old_kind != OldKind::None {
        out.put_slice(&[0x30, change.old_kind as u8]);
    }
    if unchanged_len > 0 {
        out.put_u8(0x3A);
        put_varint(unchanged_len as u64, out);
        change.unchanged.iter().for_each(|field| put_varint(u64::from(*field), out));
    }
    if continues {
        out.put_slice(&[0x48, 1]);
    }
    put_extra(&change.extra, extra_len, out);
    out.put_u8(0x1D);
    out.put_u32_le(0);
}

/// Length of the nested message, where there is one.
fn extra_len(extra: &Extra<'_>) -> Option<usize> {
    match extra {
        Extra::None => None,
        Extra::Truncate { cascade, restart_identity } => {
            Some(2 * (usize::from(*cascade) + usize::from(*restart_identity)))
        }
        Extra::Message { prefix, content, transactional } => {
            Some(bytes_field_len(prefix.len()) + bytes_field_len(content.len()) + 2 * usize::from(*transactional))
        }
    }
}

fn put_extra(extra: &Extra<'_>, len: Option<usize>, out: &mut BytesMut) {
    let Some(len) = len else { return };
    match extra {
        Extra::None => {}
        Extra::Truncate { cascade, restart_identity } => {
            out.put_u8(0x62);
            put_varint(len as u64, out);
            put_u32_field(0x08, u32::from(*cascade), out);
            put_u32_field(0x10, u32::from(*restart_identity), out);
        }
        Extra::Message { prefix, content, transactional } => {
            out.put_u8(0x52);
            put_varint(len as u64, out);
            put_bytes_field(0x0A, prefix.as_bytes(), out);
            put_bytes_field(0x12, content, out);
            put_u32_field(0x18, u32::from(*transactional), out);
        }
    }
}

fn u32_field_len(value: u32) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(u64::from(value)) }
}

fn put_u32_field(tag: u8, value: u32, out: &mut BytesMut) {
    if value != 0 {
        out.put_u8(tag);
        put_varint(u64::from(value), out);
    }
}

fn bytes_field_len(len: usize) -> usize {
    if len == 0 { 0 } else { 1 + varint_len(len as u64) + len }
}

fn put_bytes_field(tag: u8, bytes: &[u8], out: &mut BytesMut) {
    if !bytes.is_empty() {
        out.put_u8(tag);
        put_varint(bytes.len() as u64, out);
        out.put_slice(bytes);
    }
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(mut value: u64, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;
    use tidegate_proto::v1;

    fn decoded(change: &ChangeParts<'_>, ordinal: u32) -> Vec<v1::Change> {
        let mut builder = BlockBuilder::default();
        push_change(change, Lsn(7), &mut builder);
        let entries = builder.entries.clone();
        entries.iter().for_each(|entry| set_ordinal(&mut builder.payload, entry, ordinal));
        let batch = v1::ChangeBatch::decode(&builder.payload[..]).expect("a run of changes is a ChangeBatch");
        let change = |event: v1::Event| match event.what {
            Some(v1::event::What::Change(change)) => change,
            other => panic!("a change, not {other:?}"),
        };
        batch.events.into_iter().map(change).collect()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_what_prost_reads(
            row in proptest::collection::vec(any::<u8>(), 0..300),
            old in proptest::collection::vec(any::<u8>(), 0..300),
            unchanged in proptest::collection::vec(1_u32..19_000, 0..5),
            row_type in any::<u32>(), ordinal in any::<u32>(),
        ) {
            let change = ChangeParts { op: Op::Update, row_type, row: &row, old: &old, old_kind: OldKind::Full,
                unchanged: &unchanged, extra: Extra::None };
            let read = decoded(&change, ordinal);
            prop_assert_eq!(read.len(), 1);
            prop_assert_eq!(&read[0].row[..], &row[..]);
            prop_assert_eq!(&read[0].old[..], &old[..]);
            prop_assert_eq!(&read[0].unchanged, &unchanged);
            prop_assert_eq!((read[0].row_type, read[0].ordinal), (row_type, ordinal));
            prop_assert_eq!(read[0].old_kind(), v1::change::OldKind::Full);
        }
    }

    #[test]
    fn a_large_row_continues_and_joins_up() {
        let row: Vec<u8> = (0..3 * CUT_BYTES + 5).map(|n| (n % 251) as u8).collect();
        let old = vec![9; CUT_BYTES - 3];
        let change = ChangeParts {
            op: Op::Update,
            row_type: 1,
            row: &row,
            old: &old,
            old_kind: OldKind::Key,
            unchanged: &[4],
            extra: Extra::None,
        };
        let read = decoded(&change, 3);
        assert!(read.len() > 4 && read.iter().all(|piece| piece.ordinal == 3));
        assert!(read[..read.len() - 1].iter().all(|piece| piece.continues) && !read[read.len() - 1].continues);
        assert_eq!(read.iter().flat_map(|piece| piece.row.to_vec()).collect::<Vec<_>>(), row);
        assert_eq!(read.iter().flat_map(|piece| piece.old.to_vec()).collect::<Vec<_>>(), old);
        assert_eq!(read.iter().map(|piece| piece.unchanged.len()).sum::<usize>(), 1);
    }

    #[test]
    fn messages_and_truncates_keep_their_facts() {
        let message = ChangeParts {
            op: Op::Message,
            row_type: 0,
            row: &[],
            old: &[],
            old_kind: OldKind::None,
            unchanged: &[],
            extra: Extra::Message { prefix: "outbox", content: b"{}", transactional: true },
        };
        let read = decoded(&message, 1).remove(0).message.expect("a message");
        assert_eq!((read.prefix.as_str(), &read.content[..], read.transactional), ("outbox", &b"{}"[..], true));
        let truncate = ChangeParts {
            op: Op::Truncate,
            row_type: 2,
            extra: Extra::Truncate { cascade: true, restart_identity: false },
            ..message
        };
        assert!(decoded(&truncate, 1).remove(0).truncate.expect("a truncate").cascade);
    }
}
