//! Keeps some of a row's columns, on the wire form, without decoding values.
//!
//! ```text
//! row   | field 1 | field 2 …………………………… | field 3 |      protobuf fields, one per column
//! parts | part ……………………… | part …………………… | part … |      a large row arrives cut at any byte
//! ```
//!
//! Invariant: the concatenation of what comes out of the parts is the projection of the concatenated parts, wherever they
//! were cut; the memory held between parts is one field's head (at most 20 bytes).

use bytes::BytesMut;
use tidegate_schema::{
    event_body, put_change,
    wire::{self, Fields, WireError, WireType},
};

/// `Change.row`, `Change.old` and `Change.unchanged`.
const ROW: u32 = 4;
const OLD: u32 = 5;
const UNCHANGED: u32 = 7;

/// The bytes are not what capture writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed change")]
pub(crate) struct MalformedChange;

impl From<WireError> for MalformedChange {
    fn from(_: WireError) -> Self {
        MalformedChange
    }
}

/// Keeps some fields of one message that arrives in parts.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowProjector {
    /// The head of a field that is cut within its head.
    head: Vec<u8>,
    /// Bytes of the current field's value that are still to come.
    rest: usize,
    /// The current field is kept.
    keep: bool,
}

/// A field's head: tag, and length or varint value.
struct Head {
    field: u32,
    head_len: usize,
    value_len: usize,
}

/// The longest head is a tag and a varint value.
const HEAD_MAX: usize = 20;

impl RowProjector {
    /// Appends the kept part of the next bytes to `out`. `keep` is asked once per field, with its number and the length
    /// of its value in bytes.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut keep: impl FnMut(u32, usize) -> bool,
        out: &mut BytesMut,
    ) -> Result<(), MalformedChange> {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let (value, others) = bytes.split_at(self.rest.min(bytes.len()));
                if self.keep {
                    out.extend_from_slice(value);
                }
                self.rest -= value.len();
                bytes = others;
            } else if self.head.is_empty()
                && let Some(head) = read_head(bytes)?
            {
                self.begin(&head, &bytes[..head.head_len], &mut keep, out);
                bytes = &bytes[head.head_len..];
            } else {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                if let Some(head) = read_head(&self.head)? {
                    let whole = std::mem::take(&mut self.head);
                    self.begin(&head, &whole, &mut keep, out);
                } else if self.head.len() >= HEAD_MAX {
                    return Err(MalformedChange);
                }
            }
        }
        Ok(())
    }

    /// Is it between fields, so that the message may end here?
    pub(crate) fn complete(&self) -> bool {
        self.rest == 0 && self.head.is_empty()
    }

    fn begin(&mut self, head: &Head, bytes: &[u8], keep: &mut impl FnMut(u32, usize) -> bool, out: &mut BytesMut) {
        self.keep = keep(head.field, head.value_len);
        self.rest = head.value_len;
        if self.keep {
            out.extend_from_slice(bytes);
        }
    }
}

/// The head at the start of `bytes`; None where more bytes are needed.
fn read_head(bytes: &[u8]) -> Result<Option<Head>, MalformedChange> {
    let Some((tag, tag_len)) = read_varint(bytes)? else { return Ok(None) };
    let field = u32::try_from(tag >> 3).map_err(|_| MalformedChange)?;
    let head = |head_len, value_len| Ok(Some(Head { field, head_len, value_len }));
    match tag & 7 {
        0 => match read_varint(&bytes[tag_len..])? {
            Some((_, value_len)) => head(tag_len + value_len, 0),
            None => Ok(None),
        },
        1 => head(tag_len, 8),
        2 => match read_varint(&bytes[tag_len..])? {
            Some((len, len_len)) => head(tag_len + len_len, usize::try_from(len).map_err(|_| MalformedChange)?),
            None => Ok(None),
        },
        5 => head(tag_len, 4),
        _group => Err(MalformedChange),
    }
}

/// The varint at the start; None where it is cut off.
fn read_varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, MalformedChange> {
    let cut = bytes.len() < wire::MAX_VARINT_BYTES && bytes.iter().all(|byte| *byte >= 0x80);
    if cut { Ok(None) } else { Ok(Some(wire::read_varint(bytes)?)) }
}

/// Keeps some columns of the rows of one change, which may arrive in parts.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChangeProjector {
    row: RowProjector,
    old: RowProjector,
}

impl ChangeProjector {
    /// Appends the projected form of a part, a whole `events` field of a ChangeBatch, to `out`.
    pub(crate) fn push(
        &mut self,
        part: &[u8],
        keep: impl Fn(u32) -> bool,
        out: &mut BytesMut,
    ) -> Result<(), MalformedChange> {
        let mut change = BytesMut::with_capacity(part.len());
        let mut piece = BytesMut::new();
        for field in Fields::new(event_body(part)?) {
            let field = field?;
            piece.clear();
            match field.number {
                ROW => self.row.push(field.value, |number, _| keep(number), &mut piece)?,
                OLD => self.old.push(field.value, |number, _| keep(number), &mut piece)?,
                UNCHANGED => keep_numbers(field.wire_type, field.value, &keep, &mut piece)?,
                _other => {
                    change.extend_from_slice(field.whole);
                    continue;
                }
            }
            if !piece.is_empty() {
                wire::put_len_field(&mut change, field.number, &piece);
            }
        }
        put_change(out, &change);
        Ok(())
    }
}

/// Appends those of a repeated field's numbers that are kept, packed, whether they were packed or not.
fn keep_numbers(
    wire_type: WireType,
    mut numbers: &[u8],
    keep: impl Fn(u32) -> bool,
    out: &mut BytesMut,
) -> Result<(), MalformedChange> {
    if !matches!(wire_type, WireType::Len | WireType::Varint) {
        return Err(MalformedChange);
    }
    while !numbers.is_empty() {
        let (number, len) = wire::read_varint(numbers)?;
        numbers = &numbers[len..];
        if u32::try_from(number).is_ok_and(&keep) {
            wire::put_varint(out, number);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;
    use tidegate_proto::v1;

    fn row(values: &[(u32, Vec<u8>)]) -> BytesMut {
        let mut out = BytesMut::new();
        for (n, (field, value)) in values.iter().enumerate() {
            match n % 3 {
                0 => wire::put_len_field(&mut out, *field, value),
                1 => wire::put_varint_field(&mut out, *field, value.len() as u64 * 1_000_003),
                _ => {
                    wire::put_tag(&mut out, *field, WireType::Fixed64);
                    out.extend_from_slice(&[7; 8]);
                }
            }
        }
        out
    }

    fn values() -> impl Strategy<Value = Vec<(u32, Vec<u8>)>> {
        proptest::collection::vec((1_u32..3000, proptest::collection::vec(any::<u8>(), 0..300)), 0..12)
    }

    proptest! {
        #[test]
        fn parts_cut_anywhere_project_like_the_whole(values in values(), cuts in proptest::collection::vec(any::<u16>(), 0..6)) {
            let whole = row(&values);
            let keep = |field: u32| field.is_multiple_of(2);
            let expected: Vec<u8> = Fields::new(&whole)
                .map(|field| field.expect("valid"))
                .filter(|field| keep(field.number))
                .flat_map(|field| field.whole.to_vec())
                .collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| usize::from(cut) % (whole.len() + 1)).collect();
            cuts.push(whole.len());
            cuts.sort_unstable();
            let (mut projector, mut out, mut start) = (RowProjector::default(), BytesMut::new(), 0);
            for cut in cuts {
                projector.push(&whole[start..cut], |field, _| keep(field), &mut out).expect("valid");
                start = cut;
            }
            prop_assert!(projector.complete());
            prop_assert_eq!(&out[..], &expected[..]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), cut in 0_usize..100) {
            let mut out = BytesMut::new();
            let mut projector = RowProjector::default();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let kept_or_refused = projector.push(first, |_, _| true, &mut out).and_then(|()| projector.push(second, |_, _| true, &mut out));
            if kept_or_refused.is_ok() && projector.complete() {
                prop_assert_eq!(&out[..], &bytes[..]);
            }
            let _malformed = ChangeProjector::default().push(&bytes, |_| true, &mut out).is_err();
        }
    }

    #[test]
    fn a_change_keeps_all_but_the_values_left_out() {
        let whole = row(&[(1, b"key".to_vec()), (2, vec![]), (3, vec![])]);
        let change = v1::Change {
            op: v1::change::Op::Update as i32,
            row_type: 9,
            ordinal: 4,
            row: whole.clone().freeze(),
            old: whole.freeze(),
            old_kind: v1::change::OldKind::Full as i32,
            unchanged: vec![5, 1, 300],
            ..v1::Change::default()
        };
        let mut out = BytesMut::new();
        let mut part = BytesMut::new();
        put_change(&mut part, &change.encode_to_vec());
        ChangeProjector::default().push(&part, |field| field == 1 || field == 300, &mut out).expect("valid");
        let kept = v1::Change::decode(event_body(&out).expect("an event")).expect("valid");
        assert_eq!(kept.row[..], row(&[(1, b"key".to_vec())])[..]);
        assert_eq!(
            kept,
            v1::Change { row: kept.row.clone(), old: kept.row.clone(), unchanged: vec![1, 300], ..change }
        );
    }
}
