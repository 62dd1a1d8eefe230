//! A change as a whole, however many pieces it came in, and what is made of it for a shape. Rows are taken apart and put together by
//! field; no value is decoded.

use std::{borrow::Cow, ops::Range};

use bytes::{BufMut as _, Bytes, BytesMut};
use tidegate_model::Op;
use tidegate_proto::v1::change::Move;
use tidegate_schema::{
    CUT_BYTES, FieldSet, OldKind, event_body, put_change,
    wire::{self, Fields, WireType},
};

use crate::projection::MalformedChange;

/// Field numbers of `tidegate.v1.Change`.
mod number {
    pub(super) const OP: u32 = 1;
    pub(super) const ROW_TYPE: u32 = 2;
    pub(super) const ORDINAL: u32 = 3;
    pub(super) const ROW: u32 = 4;
    pub(super) const OLD: u32 = 5;
    pub(super) const OLD_KIND: u32 = 6;
    pub(super) const UNCHANGED: u32 = 7;
    pub(super) const MOVE: u32 = 8;
    pub(super) const CONTINUES: u32 = 9;
}

/// A change of a row.
#[derive(Clone, Debug)]
pub(crate) struct WholeChange<'a> {
    pub(crate) op: Op,
    pub(crate) row_type: u32,
    pub(crate) ordinal: u32,
    pub(crate) row: Cow<'a, [u8]>,
    pub(crate) old: Cow<'a, [u8]>,
    pub(crate) old_kind: OldKind,
    /// Ascending.
    pub(crate) unchanged: Vec<u32>,
    pub(crate) moved: Move,
}

impl<'a> WholeChange<'a> {
    /// A row that is read.
    pub(crate) fn reading(row_type: u32, row: &'a [u8], missing: &[u32]) -> Self {
        WholeChange {
            op: Op::Read,
            row_type,
            ordinal: 0,
            row: Cow::Borrowed(row),
            old: Cow::Borrowed(&[]),
            old_kind: OldKind::None,
            unchanged: missing.to_vec(),
            moved: Move::Stayed,
        }
    }

    /// Puts the pieces together, each a whole `events` field of a ChangeBatch.
    pub(crate) fn read(op: Op, row_type: u32, pieces: &'a [Bytes]) -> Result<Self, MalformedChange> {
        let mut whole = WholeChange {
            op,
            row_type,
            ordinal: 0,
            row: Cow::Borrowed(&[]),
            old: Cow::Borrowed(&[]),
            old_kind: OldKind::None,
            unchanged: Vec::new(),
            moved: Move::Stayed,
        };
        for piece in pieces {
            for field in Fields::new(event_body(piece)?) {
                let field = field?;
                match field.number {
                    number::ROW => append(&mut whole.row, field.value),
                    number::OLD => append(&mut whole.old, field.value),
                    number::OLD_KIND => {
                        whole.old_kind = match wire::read_varint(field.value)?.0 {
                            1 => OldKind::Key,
                            2 => OldKind::Full,
                            _none => whole.old_kind,
                        }
                    }
                    number::ORDINAL => {
                        whole.ordinal = u32::from_le_bytes(field.value.try_into().map_err(|_| MalformedChange)?);
                    }
                    number::UNCHANGED => read_numbers(field.value, &mut whole.unchanged)?,
                    number::MOVE => {
                        let value = i32::try_from(wire::read_varint(field.value)?.0).unwrap_or_default();
                        whole.moved = Move::try_from(value).unwrap_or_default();
                    }
                    _other => {}
                }
            }
        }
        whole.unchanged.sort_unstable();
        Ok(whole)
    }

    /// The old row, where all of it is known.
    pub(crate) fn whole_old(&self) -> Option<&[u8]> {
        (self.old_kind == OldKind::Full).then_some(&*self.old)
    }

    /// Appends it with these columns, in pieces of a length that a message can have: each piece's place, and whether another
    /// follows it.
    pub(crate) fn write(
        &self,
        fields: Option<&FieldSet>,
        out: &mut BytesMut,
    ) -> Result<Vec<(Range<usize>, bool)>, MalformedChange> {
        let (row, old) = (project(&self.row, fields)?, project(&self.old, fields)?);
        let (mut row, mut old) = (&*row, &*old);
        let mut pieces = Vec::with_capacity(1);
        loop {
            let mut left = CUT_BYTES;
            let mut take = |bytes: &mut &[u8]| {
                let (piece, rest) = bytes.split_at(left.min(bytes.len()));
                left -= piece.len();
                *bytes = rest;
                piece.len()
            };
            let (whole_old, whole_row) = (old, row);
            let (old_len, row_len) = (take(&mut old), take(&mut row));
            let continues = !(old.is_empty() && row.is_empty());
            let mut change = BytesMut::with_capacity(old_len + row_len + 64);
            self.write_head(&mut change);
            put_bytes(number::ROW, &whole_row[..row_len], &mut change);
            put_bytes(number::OLD, &whole_old[..old_len], &mut change);
            if pieces.is_empty() {
                self.write_unchanged(fields, &mut change);
            }
            if continues {
                wire::put_varint_field(&mut change, number::CONTINUES, 1);
            }
            wire::put_tag(&mut change, number::ORDINAL, WireType::Fixed32);
            change.put_u32_le(self.ordinal);
            let start = out.len();
            put_change(out, &change);
            pieces.push((start..out.len(), continues));
            if !continues {
                return Ok(pieces);
            }
        }
    }

    fn write_head(&self, out: &mut BytesMut) {
        wire::put_varint_field(out, number::OP, self.op as u64);
        wire::put_varint_field(out, number::ROW_TYPE, u64::from(self.row_type));
        if self.old_kind != OldKind::None {
            wire::put_varint_field(out, number::OLD_KIND, self.old_kind as u64);
        }
        if self.moved != Move::Stayed {
            wire::put_varint_field(out, number::MOVE, self.moved as u64);
        }
    }

    fn write_unchanged(&self, fields: Option<&FieldSet>, out: &mut BytesMut) {
        let mut numbers = BytesMut::new();
        let selected = self.unchanged.iter().filter(|&&field| fields.is_none_or(|fields| fields.contains(field)));
        selected.for_each(|&field| wire::put_varint(&mut numbers, u64::from(field)));
        put_bytes(number::UNCHANGED, &numbers, out);
    }
}

/// The fields of a row that are wanted.
pub(crate) fn project<'a>(row: &'a [u8], fields: Option<&FieldSet>) -> Result<Cow<'a, [u8]>, MalformedChange> {
    match fields {
        None => Ok(Cow::Borrowed(row)),
        Some(fields) => keep(row, |number| fields.contains(number)).map(Cow::Owned),
    }
}

/// The fields of a row that `is_kept` names.
pub(crate) fn keep(row: &[u8], is_kept: impl Fn(u32) -> bool) -> Result<Vec<u8>, MalformedChange> {
    let mut kept = Vec::with_capacity(row.len());
    for field in Fields::new(row) {
        let field = field?;
        if is_kept(field.number) {
            kept.extend_from_slice(field.whole);
        }
    }
    Ok(kept)
}

fn append<'a>(to: &mut Cow<'a, [u8]>, more: &'a [u8]) {
    if to.is_empty() {
        *to = Cow::Borrowed(more);
    } else {
        to.to_mut().extend_from_slice(more);
    }
}

/// A repeated field's numbers, packed or not.
fn read_numbers(mut bytes: &[u8], numbers: &mut Vec<u32>) -> Result<(), MalformedChange> {
    while !bytes.is_empty() {
        let (number, len) = wire::read_varint(bytes)?;
        numbers.push(u32::try_from(number).map_err(|_| MalformedChange)?);
        bytes = &bytes[len..];
    }
    Ok(())
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut BytesMut) {
    if !bytes.is_empty() {
        wire::put_len_field(out, number, bytes);
    }
}
