//! Rows in COPY's text format (PostgreSQL manual, COPY, "Text Format"), read in place.
//!
//! Invariant: a value without escapes is a slice of the line; only the others are copied, into a buffer that is used again.
//! A [`CopyRow`] has as many values as were asked for. The values are byte for byte those of pgoutput's text format.

/// Reads lines; keeps its buffers between them.
#[derive(Debug, Default)]
pub(super) struct CopyText {
    unescaped: Vec<u8>,
    fields: Vec<Field>,
}

/// Where a value is.
#[derive(Clone, Copy, Debug)]
enum Field {
    Null,
    InLine(usize, usize),
    Unescaped(usize, usize),
}

/// A row of a table.
#[derive(Clone, Copy, Debug)]
pub struct CopyRow<'a> {
    line: &'a [u8],
    unescaped: &'a [u8],
    fields: &'a [Field],
}

/// The values of a [`CopyRow`] in column order; None is NULL.
#[derive(Clone, Debug)]
pub struct CopyValues<'a> {
    row: CopyRow<'a>,
    next: usize,
}

/// The line is not one of COPY's text format with so many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl CopyText {
    /// Reads a line with its line feed.
    pub(super) fn read<'a>(&'a mut self, line: &'a [u8], column_count: usize) -> Result<CopyRow<'a>, Malformed> {
        // One huge value must not keep its memory for ever.
        const KEPT_BYTES: usize = 1 << 20;
        if self.unescaped.capacity() > KEPT_BYTES {
            self.unescaped = Vec::new();
        }
        self.unescaped.clear();
        self.fields.clear();
        let line = line.strip_suffix(b"\n").ok_or(Malformed)?;
        // A row of no columns and one of an empty string are both an empty line.
        if column_count > 0 {
            self.split(line)?;
        }
        if self.fields.len() != column_count || (column_count == 0 && !line.is_empty()) {
            return Err(Malformed);
        }
        Ok(CopyRow { line, unescaped: &self.unescaped, fields: &self.fields })
    }

    fn split(&mut self, line: &[u8]) -> Result<(), Malformed> {
        let (mut start, mut escaped) = (0, false);
        for (at, byte) in line.iter().enumerate() {
            match byte {
                b'\t' => {
                    self.push(line, start, at, escaped)?;
                    (start, escaped) = (at + 1, false);
                }
                b'\\' => escaped = true,
                _ => {}
            }
        }
        self.push(line, start, line.len(), escaped)
    }

    fn push(&mut self, line: &[u8], start: usize, end: usize, escaped: bool) -> Result<(), Malformed> {
        let field = match &line[start..end] {
            _ if !escaped => Field::InLine(start, end),
            b"\\N" => Field::Null,
            text => {
                let from = self.unescaped.len();
                unescape(text, &mut self.unescaped)?;
                Field::Unescaped(from, self.unescaped.len())
            }
        };
        self.fields.push(field);
        Ok(())
    }
}

fn unescape(text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        // COPY TO writes no others; a digit or x would be a number in COPY FROM.
        out.push(match bytes.next() {
            Some(b'b') => 0x08,
            Some(b'f') => 0x0C,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'v') => 0x0B,
            Some(b'\\') => b'\\',
            Some(_) | None => return Err(Malformed),
        });
    }
    Ok(())
}

impl<'a> CopyRow<'a> {
    /// The values in column order.
    #[must_use]
    pub fn values(&self) -> CopyValues<'a> {
        CopyValues { row: *self, next: 0 }
    }

    /// A column's value; None for NULL and beyond the last column.
    #[must_use]
    pub fn value(&self, column: usize) -> Option<&'a [u8]> {
        match *self.fields.get(column)? {
            Field::Null => None,
            Field::InLine(start, end) => Some(&self.line[start..end]),
            Field::Unescaped(start, end) => Some(&self.unescaped[start..end]),
        }
    }

    /// The first columns only.
    pub(super) fn first(self, column_count: usize) -> Self {
        CopyRow { fields: &self.fields[..column_count], ..self }
    }
}

impl<'a> Iterator for CopyValues<'a> {
    type Item = Option<&'a [u8]>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        (self.next < self.row.fields.len()).then(|| {
            self.next += 1;
            self.row.value(self.next - 1)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.row.fields.len() - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for CopyValues<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(line: &[u8], column_count: usize) -> Result<Vec<Option<Vec<u8>>>, Malformed> {
        let mut text = CopyText::default();
        text.read(line, column_count).map(|row| row.values().map(|value| value.map(<[u8]>::to_vec)).collect())
    }

    /// As CopyAttributeOutText of the server's copyto.c writes it.
    fn write(values: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut line = Vec::new();
        for (at, value) in values.iter().enumerate() {
            if at > 0 {
                line.push(b'\t');
            }
            let Some(value) = value else {
                line.extend_from_slice(b"\\N");
                continue;
            };
            for &byte in value {
                let escape = b"\x08b\x0Cf\nn\rr\tt\x0Bv\\\\".chunks(2).find(|pair| pair[0] == byte);
                match escape {
                    Some(pair) => line.extend_from_slice(&[b'\\', pair[1]]),
                    None => line.push(byte),
                }
            }
        }
        line.push(b'\n');
        line
    }

    #[test]
    fn null_the_empty_string_and_the_text_of_null_differ() {
        let expected = [None, Some(Vec::new()), Some(b"\\N".to_vec())];
        assert_eq!(read(b"\\N\t\t\\\\N\n", 3).expect("a row"), expected);
    }

    #[test]
    fn a_row_of_no_columns_is_not_one_of_an_empty_string() {
        assert_eq!((read(b"\n", 0), read(b"\n", 1)), (Ok(vec![]), Ok(vec![Some(vec![])])));
    }

    #[test]
    fn malformed_lines_are_refused() {
        for (line, column_count) in
            [(&b""[..], 0), (b"a", 1), (b"a\n", 2), (b"a\tb\n", 1), (b"a\\\n", 1), (b"\\q\n", 1)]
        {
            assert_eq!(read(line, column_count), Err(Malformed), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn what_the_server_writes_is_read_back(values in proptest::collection::vec(proptest::option::of(
            proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(b"\\\t\n\rNbfv".to_vec())], 0..12)), 1..6)
        ) {
            prop_assert_eq!(read(&write(&values), values.len()), Ok(values));
        }

        #[test]
        fn arbitrary_bytes_never_panic(line in proptest::collection::vec(any::<u8>(), 0..40), column_count in 0_usize..4) {
            let _read_or_refused = read(&line, column_count).is_ok();
        }
    }
}
