//! The values of one row as pgoutput sends them, read in place.
//!
//! Invariant: a [`Tuple`] has been walked once to its end when it was made, so iterating it cannot fail. It does not
//! know what the values mean: names and types come with the relation.

use super::{DecodeError, reader::Reader};

/// A row: as many values as the relation has columns, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    column_count: u16,
    values: &'a [u8],
}

/// One value of a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TupleValue<'a> {
    /// NULL; in a key-only old tuple also: not part of the key.
    Null,
    /// Stored out of line (TOAST) and left as it was: not sent.
    Unchanged,
    /// The type's text form, in the connection's pinned settings and UTF-8.
    Text(&'a [u8]),
    /// The type's binary form; only on streams that ask for it.
    Binary(&'a [u8]),
}

/// What an old tuple holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OldTupleKind {
    /// The columns of the replica identity; all others are null.
    Key,
    /// Every column: REPLICA IDENTITY FULL.
    Full,
}

impl<'a> Tuple<'a> {
    /// Reads and checks a tuple.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let column_count = reader.u16()?;
        let values = reader.rest();
        for _ in 0..column_count {
            match reader.u8()? {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    reader.sized_bytes()?;
                }
                value => return Err(DecodeError::UnknownValue { tag: reader.tag(), what: "kind of value", value }),
            }
        }
        let values = &values[..values.len() - reader.rest().len()];
        Ok(Tuple { column_count, values })
    }

    /// Number of values.
    #[must_use]
    pub fn column_count(&self) -> usize {
        usize::from(self.column_count)
    }

    /// Size of the values as they were sent, in bytes.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.values.len()
    }

    /// The values in column order.
    #[must_use]
    pub fn iter(&self) -> TupleValues<'a> {
        TupleValues { left: self.column_count, rest: self.values }
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = TupleValue<'a>;
    type IntoIter = TupleValues<'a>;

    fn into_iter(self) -> TupleValues<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &Tuple<'a> {
    type Item = TupleValue<'a>;
    type IntoIter = TupleValues<'a>;

    fn into_iter(self) -> TupleValues<'a> {
        self.iter()
    }
}

/// The values of a [`Tuple`], in column order.
#[derive(Clone, Debug)]
pub struct TupleValues<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> TupleValues<'a> {
    fn sized(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.rest = rest;
        Some(bytes)
    }
}

impl<'a> Iterator for TupleValues<'a> {
    type Item = TupleValue<'a>;

    #[inline]
    fn next(&mut self) -> Option<TupleValue<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (&kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        match kind {
            b'n' => Some(TupleValue::Null),
            b'u' => Some(TupleValue::Unchanged),
            b't' => self.sized().map(TupleValue::Text),
            _ => self.sized().map(TupleValue::Binary),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for TupleValues<'_> {}
