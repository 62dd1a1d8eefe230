//! The marks of a transaction as `tidegate.v1.Event`, each as one `events` field of a ChangeBatch (see [`tidegate_model::Block`]),
//! and the way back from any such field to what it wraps.
//!
//! Begin and Commit are written once a transaction, which may have a single row: nothing is allocated for them. Field numbers
//! are those of `proto/tidegate/v1/changes.proto`.

use bytes::{BufMut, BytesMut};
use tidegate_model::{BlockBuilder, Entry, Kind, Op, Position};

use crate::wire::{Field, Fields, Piece, WireError, WireType, put_len_field, varint_len};

/// `ChangeBatch.events`.
const EVENTS: u32 = 1;
/// `Event.begin`.
const BEGIN: u32 = 1;
/// `Event.change`.
pub(crate) const CHANGE: u32 = 2;
/// `Event.commit`.
const COMMIT: u32 = 3;

/// What a Begin says.
#[derive(Clone, Copy, Debug, Default)]
pub struct BeginParts<'a> {
    /// Where it stands.
    pub position: Position,
    /// In microseconds since 1970.
    pub commit_time_us: Option<i64>,
    /// Top-level transaction id; 0 for what is no transaction.
    pub xid: u32,
    /// The replication origin, or empty.
    pub origin: &'a str,
    /// Of a chunk; 0 for what is none.
    pub snapshot: u32,
    /// Of a chunk: its snapshot is one of new tables.
    pub new_tables: bool,
    /// Of a chunk: its snapshot was asked for by itself.
    pub ad_hoc: bool,
    /// Of a chunk: where its snapshot's begin stands, as far as someone needs to know.
    pub snapshot_begin: Option<Position>,
}

/// Appends a Begin.
pub fn push_begin(begin: &BeginParts<'_>, to: &mut BlockBuilder) {
    let mut body = Piece::<112>::new();
    body.put_len_field(1, begin.position.text().as_bytes());
    if let Some(us) = begin.commit_time_us {
        body.put_len_field(2, timestamp(us).as_slice());
    }
    put_number(&mut body, 3, begin.xid);
    put_number(&mut body, 5, begin.snapshot);
    put_number(&mut body, 6, u8::from(begin.new_tables));
    put_number(&mut body, 7, u8::from(begin.ad_hoc));
    if let Some(begin) = begin.snapshot_begin {
        body.put_len_field(8, begin.text().as_bytes());
    }
    let body = body.as_slice();
    let origin = begin.origin.as_bytes();
    let origin_len = if origin.is_empty() { 0 } else { 1 + varint_len(origin.len() as u64) + origin.len() };
    push_mark(Kind::Begin, begin.position, begin.snapshot, to, |out| {
        put_head(out, BEGIN, body.len() + origin_len);
        out.put_slice(body);
        if !origin.is_empty() {
            put_len_field(out, 4, origin);
        }
    });
}

/// Appends a Commit: of a chunk, where `snapshot` is not 0.
pub fn push_commit(position: Position, snapshot: u32, to: &mut BlockBuilder) {
    let mut body = Piece::<32>::new();
    body.put_len_field(1, position.text().as_bytes());
    push_mark(Kind::Commit, position, snapshot, to, |out| {
        put_head(out, COMMIT, body.as_slice().len());
        out.put_slice(body.as_slice());
    });
}

fn push_mark(kind: Kind, at: Position, snapshot: u32, to: &mut BlockBuilder, write: impl FnOnce(&mut BytesMut)) {
    let start = to.offset();
    write(&mut to.payload);
    let end = to.offset();
    let Position { lsn, ordinal } = at;
    to.entries.push(Entry { lsn, ordinal, row_type: snapshot, start, end, kind, op: Op::None, continues: false });
}

/// Appends what stands before the `len` bytes of an event's `field`.
pub(crate) fn put_head(out: &mut BytesMut, field: u32, len: usize) {
    let mut event = Piece::<24>::new();
    event.put_tag(field, WireType::Len);
    event.put_varint(len as u64);
    let mut head = Piece::<48>::new();
    head.put_tag(EVENTS, WireType::Len);
    head.put_varint((event.as_slice().len() + len) as u64);
    head.put(event.as_slice());
    out.reserve(head.as_slice().len() + len);
    out.put_slice(head.as_slice());
}

/// Appends a Change as a whole `events` field.
pub fn put_change(out: &mut BytesMut, change: &[u8]) {
    put_head(out, CHANGE, change.len());
    out.put_slice(change);
}

/// The Begin, Change or Commit in a whole `events` field.
///
/// # Errors
/// The bytes are not exactly that.
pub fn event_body(field: &[u8]) -> Result<&[u8], WireError> {
    only(only(field)?.value).map(|inner| inner.value)
}

fn only(bytes: &[u8]) -> Result<Field<'_>, WireError> {
    match Fields::new(bytes).next() {
        Some(Ok(field)) if field.wire_type == WireType::Len && field.whole.len() == bytes.len() => Ok(field),
        Some(Err(error)) => Err(error),
        Some(Ok(_)) | None => Err(WireError("not one event")),
    }
}

fn timestamp(us: i64) -> Piece<24> {
    let mut piece = Piece::new();
    put_number(&mut piece, 1, us.div_euclid(1_000_000) as u64);
    put_number(&mut piece, 2, us.rem_euclid(1_000_000) as u64 * 1000);
    piece
}

fn put_number<const N: usize>(piece: &mut Piece<N>, field: u32, number: impl Into<u64>) {
    let number = number.into();
    if number != 0 {
        piece.put_tag(field, WireType::Varint);
        piece.put_varint(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;
    use tidegate_model::Lsn;
    use tidegate_proto::v1::{self, event::What};

    proptest! {
        #[test]
        fn what_is_written_is_what_prost_reads(
            lsn in any::<u64>(), ordinal in any::<u32>(), xid in any::<u32>(), snapshot in any::<u32>(), new_tables in any::<bool>(),
            ad_hoc in any::<bool>(), begin in proptest::option::of(any::<(u64, u32)>()), origin in "\\PC{0,200}",
            commit_time_us in proptest::option::of(-(1_i64 << 60)..1 << 60),
        ) {
            let position = Position::new(Lsn(lsn), ordinal);
            let mut builder = BlockBuilder::default();
            let snapshot_begin = begin.map(|(lsn, ordinal)| Position::new(Lsn(lsn), ordinal));
            let parts =
                BeginParts { position, commit_time_us, xid, origin: &origin, snapshot, new_tables, ad_hoc, snapshot_begin };
            push_begin(&parts, &mut builder);
            push_commit(position, snapshot, &mut builder);
            let commit_time = commit_time_us.map(|us| prost_types::Timestamp {
                seconds: us.div_euclid(1_000_000),
                nanos: us.rem_euclid(1_000_000) as i32 * 1000,
            });
            let snapshot_begin = snapshot_begin.map(|begin| begin.to_string()).unwrap_or_default();
            let position_text = position.to_string();
            let begin = v1::Begin {
                position: position_text, commit_time, xid, origin, snapshot, new_tables, ad_hoc, snapshot_begin,
            };
            let commit = v1::Commit { position: position.to_string(), token_prefix: String::new() };
            let read = v1::ChangeBatch::decode(&builder.payload[..]).expect("neighbours are a ChangeBatch");
            let expected = [What::Begin(begin.clone()), What::Commit(commit.clone())];
            prop_assert_eq!(read.events.into_iter().filter_map(|event| event.what).collect::<Vec<_>>(), expected);
            let body = |entry: &Entry| event_body(&builder.payload[entry.start as usize..entry.end as usize]).expect("valid");
            prop_assert_eq!(v1::Begin::decode(body(&builder.entries[0])).expect("valid"), begin);
            prop_assert_eq!(v1::Commit::decode(body(&builder.entries[1])).expect("valid"), commit);
            prop_assert!(builder.entries.iter().all(|entry| entry.position() == position && entry.row_type == snapshot));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(event_body(&bytes).map_or(true, |body| body.len() < bytes.len()));
        }
    }

    #[test]
    fn two_events_are_not_one() {
        let mut builder = BlockBuilder::default();
        push_commit(Position::ZERO, 0, &mut builder);
        assert!(event_body(&builder.payload).is_ok());
        push_commit(Position::ZERO, 0, &mut builder);
        assert!(event_body(&builder.payload).is_err());
        assert!(event_body(&[]).is_err());
    }
}
