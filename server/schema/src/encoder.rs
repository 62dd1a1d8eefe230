//! The hot path of capture: a tuple of PostgreSQL's texts becomes a row message.
//!
//! Invariants: the bytes are appended or, on an error, nothing is. A field is written for every value that is not NULL,
//! zero and empty ones included, since the fields are `optional`. Nothing is allocated per value but for array elements
//! and range bounds with escapes.

use bytes::BytesMut;
use tidegate_model::Retry;

use crate::array::put_array;
use crate::range::put_range;
use crate::scalar::put_scalar;
use crate::{ColumnSpec, ScalarKind, ValueKind};

/// A column's value in a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL: the field is absent.
    Null,
    /// Not sent, since the update left it as it was: nothing is written, and the change lists the field.
    Unchanged,
    /// PostgreSQL's text.
    Text(&'a [u8]),
}

/// Why a tuple could not be encoded. Never tells a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// PostgreSQL would not have written this text with the settings that sessions of ours pin.
    #[error(
        "column \"{column}\" holds text that PostgreSQL does not write for {type_name} with Tidegate's session settings; \
         remove what overrides DateStyle, IntervalStyle, TimeZone, bytea_output or client_encoding (a pooler, a login trigger)"
    )]
    Malformed {
        /// The column's exact name.
        column: String,
        /// As `format_type` prints it.
        type_name: String,
    },
    /// PostgreSQL checks text when it is written, and sends that of a UTF8 database unchecked; this came past the check, as
    /// through a cast without function.
    #[error(
        "column \"{column}\" ({type_name}) holds bytes that are not UTF-8, which PostgreSQL's checks do not let in; \
         correct the value, and what wrote it past them"
    )]
    NotUtf8 {
        /// The column's exact name.
        column: String,
        /// As `format_type` prints it.
        type_name: String,
    },
    /// The tuple is not one of this row type.
    #[error("the tuple has {sent} values and its row type {expected} columns; the table's description is out of date")]
    ColumnCount {
        /// Columns of the row type.
        expected: usize,
        /// Values, as far as they were counted.
        sent: usize,
    },
}

impl EncodeError {
    /// What to do: the same tuple fails again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            EncodeError::Malformed { .. } | EncodeError::NotUtf8 { .. } | EncodeError::ColumnCount { .. } => {
                Retry::Never
            }
        }
    }
}

/// Encodes the tuples of one row type.
#[derive(Clone, Debug)]
pub struct RowEncoder {
    columns: Box<[Column]>,
}

/// What the codec needs of a column, close together.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) field: u32,
    pub(crate) codec: ValueKind,
    /// Only for errors.
    pub(crate) name: Box<str>,
    pub(crate) type_name: Box<str>,
}

impl RowEncoder {
    /// An encoder for tuples with these columns.
    #[must_use]
    pub fn new(columns: &[ColumnSpec]) -> Self {
        RowEncoder { columns: columns.iter().map(Column::of).collect() }
    }

    /// Appends the row message of a tuple to `out`; `values` stand in column order.
    ///
    /// # Errors
    /// A value is malformed, or there are more or fewer values than columns. `out` is then as it was.
    #[inline]
    pub fn encode<'a>(
        &self,
        mut values: impl Iterator<Item = Value<'a>>,
        out: &mut BytesMut,
    ) -> Result<(), EncodeError> {
        let start = out.len();
        let encoded = self.append(&mut values, out);
        if encoded.is_err() {
            out.truncate(start);
        }
        encoded
    }

    fn append<'a>(&self, values: &mut impl Iterator<Item = Value<'a>>, out: &mut BytesMut) -> Result<(), EncodeError> {
        let expected = self.columns.len();
        for (sent, column) in self.columns.iter().enumerate() {
            match values.next() {
                Some(Value::Text(text)) => column.put(text, out).ok_or_else(|| column.error(text))?,
                Some(Value::Null | Value::Unchanged) => {}
                None => return Err(EncodeError::ColumnCount { expected, sent }),
            }
        }
        match values.count() {
            0 => Ok(()),
            more => Err(EncodeError::ColumnCount { expected, sent: expected + more }),
        }
    }
}

impl Column {
    pub(crate) fn of(spec: &ColumnSpec) -> Self {
        Column {
            field: spec.field,
            codec: spec.codec,
            name: spec.name.as_str().into(),
            type_name: spec.type_name.as_str().into(),
        }
    }

    #[inline]
    fn put(&self, text: &[u8], out: &mut BytesMut) -> Option<()> {
        match self.codec {
            ValueKind::Scalar(kind) => put_scalar(out, self.field, kind, text),
            ValueKind::Array { element, delimiter } => put_array(out, self.field, element, delimiter, text),
            ValueKind::Range => put_range(out, self.field, text),
        }
    }

    #[cold]
    fn error(&self, text: &[u8]) -> EncodeError {
        let (column, type_name) = (self.name.to_string(), self.type_name.to_string());
        // bytea in escape format may hold bytes above 127 in no encoding; there, these are not what is wrong.
        let is_text = self.codec != ValueKind::Scalar(ScalarKind::Bytes);
        if is_text && str::from_utf8(text).is_err() {
            EncodeError::NotUtf8 { column, type_name }
        } else {
            EncodeError::Malformed { column, type_name }
        }
    }
}
