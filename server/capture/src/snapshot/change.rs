//! Reads changes back out of a part, as the assembler or the chunk reader has encoded them: rows that were cut are joined.
//!
//! Nothing is copied for a change that is whole. The bytes are our own: damage is a bug, not an error.

use tidegate_model::{Entry, Op};
use tidegate_schema::{
    FieldSet, event_body,
    wire::{Field, Fields, read_varint},
};

use tidegate_schema::{ChangeParts, Extra, OldKind};

const OURS: &str = "changes in memory are as they were encoded";

/// Joins the pieces of changes, over any number of parts.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    row: Vec<u8>,
    old: Vec<u8>,
    unchanged: Vec<u32>,
    old_kind: Option<OldKind>,
    /// A piece has been taken and the change goes on.
    continues: bool,
}

/// What one piece holds.
struct Piece<'a> {
    row: &'a [u8],
    old: &'a [u8],
    old_kind: OldKind,
}

impl Joiner {
    /// Takes the next piece; the change, if that was its last.
    pub(crate) fn join<'a>(&'a mut self, entry: &Entry, payload: &'a [u8]) -> Option<ChangeParts<'a>> {
        let first = !self.continues;
        if first {
            self.unchanged.clear();
        }
        let piece = read_piece(&payload[entry.start as usize..entry.end as usize], &mut self.unchanged);
        self.continues = entry.continues;
        let (mut row, mut old, mut old_kind) = (piece.row, piece.old, piece.old_kind);
        if !first || entry.continues {
            if first {
                self.row.clear();
                self.old.clear();
                self.old_kind = Some(piece.old_kind);
            }
            self.row.extend_from_slice(piece.row);
            self.old.extend_from_slice(piece.old);
            (row, old, old_kind) = (&self.row, &self.old, self.old_kind.unwrap_or(OldKind::None));
        }
        let (op, row_type, unchanged) = (entry.op, entry.row_type, &self.unchanged[..]);
        (!entry.continues).then_some(ChangeParts { op, row_type, row, old, old_kind, unchanged, extra: Extra::None })
    }
}

fn read_piece<'a>(payload: &'a [u8], unchanged: &mut Vec<u32>) -> Piece<'a> {
    let change = event_body(payload).expect(OURS);
    let mut piece = Piece { row: &[], old: &[], old_kind: OldKind::None };
    for field in fields(change) {
        match field.number {
            4 => piece.row = field.value,
            5 => piece.old = field.value,
            6 => piece.old_kind = if field.value == [OldKind::Full as u8] { OldKind::Full } else { OldKind::Key },
            7 => {
                let mut packed = field.value;
                while !packed.is_empty() {
                    let (number, len) = read_varint(packed).expect(OURS);
                    unchanged.push(u32::try_from(number).expect(OURS));
                    packed = &packed[len..];
                }
            }
            _ => {}
        }
    }
    piece
}

/// Is it a change of a row, or a truncate?
pub(crate) fn is_of_table(entry: &Entry) -> bool {
    match entry.op {
        Op::Read | Op::Insert | Op::Update | Op::Delete | Op::Truncate => true,
        Op::None | Op::Message => false,
    }
}

/// The fields of a row.
pub(crate) fn fields(row: &[u8]) -> impl Iterator<Item = Field<'_>> {
    Fields::new(row).map(|field| field.expect(OURS))
}

/// Writes the key of a row to `out`: its key fields as they stand, ascending by number, whatever the order of the columns.
/// What the row does not hold, since a TOASTed key was left unchanged, is taken from `old`.
pub(crate) fn write_key(key: &FieldSet, row: &[u8], old: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut expected = key.iter();
    for field in fields(row).filter(|field| key.contains(field.number)) {
        if expected.next() != Some(field.number) {
            return write_key_field_by_field(key, row, old, out);
        }
        out.extend_from_slice(field.whole);
    }
    if expected.next().is_some() {
        write_key_field_by_field(key, row, old, out);
    }
}

fn write_key_field_by_field(key: &FieldSet, row: &[u8], old: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for number in key.iter() {
        let found = fields(row).chain(fields(old)).find(|field| field.number == number);
        out.extend_from_slice(found.map_or(&[], |field| field.whole));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;
    use tidegate_model::{BlockBuilder, Lsn};
    use tidegate_schema::wire::put_len_field;
    use tidegate_schema::{CUT_BYTES, push_change};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_was_encoded_is_read_back(
            lens in proptest::collection::vec((0_usize..2 * CUT_BYTES, 0_usize..2 * CUT_BYTES), 1..4),
            unchanged in proptest::collection::vec(1_u32..19_000, 0..4),
        ) {
            let mut builder = BlockBuilder::default();
            let rows: Vec<_> = lens.iter().map(|(row, old)| (vec![1_u8; *row], vec![2_u8; *old])).collect();
            for (row, old) in &rows {
                let change = ChangeParts { op: Op::Update, row_type: 3, row, old, old_kind: OldKind::Full,
                    unchanged: &unchanged, extra: Extra::None };
                push_change(&change, Lsn(1), &mut builder);
            }
            let (mut joiner, mut read) = (Joiner::default(), 0);
            for entry in &builder.entries {
                let Some(change) = joiner.join(entry, &builder.payload) else { continue };
                prop_assert_eq!((change.row, change.old), (&rows[read].0[..], &rows[read].1[..]));
                prop_assert_eq!((change.unchanged, change.old_kind), (&unchanged[..], OldKind::Full));
                read += 1;
            }
            prop_assert_eq!(read, rows.len());
        }
    }

    #[test]
    fn a_key_is_the_same_in_any_order_of_columns_and_where_a_part_is_only_in_the_old_row() {
        let row = |fields: &[u32]| {
            let mut out = BytesMut::new();
            fields.iter().for_each(|field| put_len_field(&mut out, *field, &[*field as u8]));
            out
        };
        let key: FieldSet = [2, 5].into_iter().collect();
        let mut keys = [(); 4].map(|()| Vec::new());
        write_key(&key, &row(&[1, 2, 5, 7]), &[], &mut keys[0]);
        write_key(&key, &row(&[5, 3, 2]), &[], &mut keys[1]);
        write_key(&key, &row(&[1, 5]), &row(&[2, 5]), &mut keys[2]);
        write_key(&key, &row(&[2, 1]), &row(&[2, 5]), &mut keys[3]);
        assert!(keys.iter().all(|key| key[..] == row(&[2, 5])[..]), "{keys:?}");
    }
}
