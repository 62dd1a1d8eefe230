//! The way back: a row message becomes PostgreSQL's text of each column, to read rows again by key and to compare them.
//!
//! Invariant: PostgreSQL reads the text as the value that was encoded, and encoding the text gives the same bytes. It is
//! also the very text that PostgreSQL writes in sessions of ours; a timestamptz of another time zone is in UTC, and bytea
//! in escape format in hex. Bytes from outside never panic.
//!
//! Deliberately not here: why a column is absent. It is NULL, or the row is a projection, or the change says that the
//! column is unchanged; the caller knows.

use std::ops::Range;

use tidegate_model::Retry;
use tidegate_proto::v1;

use crate::array::print_array;
use crate::encoder::Column;
use crate::range::print_range;
use crate::row_type::file_of;
use crate::scalar::print_scalar;
use crate::value_kind::ScalarKind;
use crate::wire::{Field, Fields, WireError, WireType};
use crate::{ColumnSpec, FieldSet, RowType, SchemaError, ValueKind};

/// Why a row could not be decoded. Never tells a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not a message.
    #[error("damaged row: {0}")]
    Row(#[from] WireError),
    /// The column has no value of its type, or more than one.
    #[error("damaged row: column \"{column}\" holds no value that {type_name} has")]
    Column {
        /// The column's exact name.
        column: String,
        /// As `format_type` prints it.
        type_name: String,
    },
}

impl DecodeError {
    /// What to do: the same bytes fail again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            DecodeError::Row(_) | DecodeError::Column { .. } => Retry::Never,
        }
    }
}

/// Decodes the rows of one row type, or some of their columns.
#[derive(Clone, Debug)]
pub struct RowDecoder {
    columns: Box<[Column]>,
    /// Field numbers, ascending, with their indexes into the columns.
    by_field: Box<[(u32, usize)]>,
}

/// The text of a row's columns. Kept between rows, it allocates only when it grows.
#[derive(Clone, Debug, Default)]
pub struct RowText {
    text: String,
    /// Of each column; None where it is absent.
    values: Vec<Option<Range<usize>>>,
}

impl RowText {
    /// The text of a column, counted from 0 in the decoder's order; None where the row does not have it (NULL). Panics
    /// beyond the last column, and after an error.
    #[must_use]
    pub fn value(&self, column: usize) -> Option<&str> {
        self.values[column].clone().map(|range| &self.text[range])
    }

    /// The texts of all columns, in the decoder's order; nothing after an error.
    pub fn values(&self) -> impl ExactSizeIterator<Item = Option<&str>> {
        (0..self.values.len()).map(|column| self.value(column))
    }
}

impl RowDecoder {
    /// A decoder of these columns; what else a row holds is passed over.
    #[must_use]
    pub fn new<'a>(columns: impl IntoIterator<Item = &'a ColumnSpec>) -> Self {
        Self::of_columns(columns.into_iter().map(Column::of).collect())
    }

    /// A decoder of all columns of a row type that was found in the changelog.
    ///
    /// The row type does not tell what stands between the elements of an array: `delimiter` is asked for it
    /// (`pg_type.typdelim` of the element), with the OIDs of array types that PostgreSQL does not ship. It is a comma for
    /// all but a few extensions' types, such as PostGIS's `geometry`, whose colon would be missed without an error.
    ///
    /// # Errors
    /// [`SchemaError::File`] and [`SchemaError::Column`]: the descriptor is damaged, or lacks a column.
    pub fn of_row_type(row_type: &RowType, mut delimiter: impl FnMut(u32) -> u8) -> Result<Self, SchemaError> {
        let proto = row_type.proto();
        let message = file_of(proto)?.message_type.pop().unwrap_or_default();
        let column = |column: &v1::Column| {
            let mut fields = message.field.iter();
            let codec = fields.find(|field| field.number() == column.field).and_then(|field| field.codec(b','));
            let codec = match codec {
                // Only what is held as text can come from a type that PostgreSQL does not ship.
                Some(ValueKind::Array { element: element @ ScalarKind::Text, delimiter: _ }) => ValueKind::Array {
                    element,
                    delimiter: shipped_delimiter(column.type_oid).unwrap_or_else(|| delimiter(column.type_oid)),
                },
                Some(codec) => codec,
                None => {
                    return Err(SchemaError::Column { row_type: proto.row_type, column: column.name.clone() });
                }
            };
            Ok(Column {
                field: column.field,
                codec,
                name: column.name.as_str().into(),
                type_name: column.r#type.as_str().into(),
            })
        };
        Ok(Self::of_columns(proto.columns.iter().map(column).collect::<Result<_, _>>()?))
    }

    /// A decoder of those of its columns that are in `fields`, such as a row type's key.
    #[must_use]
    pub fn only(&self, fields: &FieldSet) -> Self {
        Self::of_columns(self.columns.iter().filter(|column| fields.contains(column.field)).cloned().collect())
    }

    fn of_columns(columns: Box<[Column]>) -> Self {
        let mut by_field: Box<[_]> = columns.iter().enumerate().map(|(index, column)| (column.field, index)).collect();
        by_field.sort_unstable();
        RowDecoder { columns, by_field }
    }

    /// The columns' field numbers, in the order of the texts.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = u32> {
        self.columns.iter().map(|column| column.field)
    }

    /// Replaces what is in `out` by the text of each column of an encoded row, or of a projection of one.
    ///
    /// # Errors
    /// The row is damaged. `out` is then empty.
    pub fn text(&self, row: &[u8], out: &mut RowText) -> Result<(), DecodeError> {
        out.text.clear();
        out.values.clear();
        out.values.resize(self.columns.len(), None);
        let decoded = self.append(row, out);
        if decoded.is_err() {
            out.values.clear();
        }
        decoded
    }

    fn append(&self, row: &[u8], out: &mut RowText) -> Result<(), DecodeError> {
        for field in Fields::new(row) {
            let field = field?;
            let Ok(found) = self.by_field.binary_search_by_key(&field.number, |&(number, _)| number) else { continue };
            let index = self.by_field[found].1;
            let column = &self.columns[index];
            let start = out.text.len();
            let printed = column.print(&field, &mut out.text);
            let twice = out.values[index].replace(start..out.text.len()).is_some();
            if printed.is_none() || twice {
                let (column, type_name) = (column.name.to_string(), column.type_name.to_string());
                return Err(DecodeError::Column { column, type_name });
            }
        }
        Ok(())
    }
}

/// What stands between the elements of an array type that PostgreSQL ships; None for all other types.
fn shipped_delimiter(type_oid: u32) -> Option<u8> {
    match ValueKind::of(type_oid, crate::TypeShape::Base) {
        ValueKind::Array { delimiter, .. } => Some(delimiter),
        ValueKind::Scalar(_) | ValueKind::Range => None,
    }
}

impl Column {
    fn print(&self, field: &Field<'_>, out: &mut String) -> Option<()> {
        match self.codec {
            ValueKind::Scalar(kind) => print_scalar(out, kind, field),
            ValueKind::Array { .. } | ValueKind::Range if field.wire_type != WireType::Len => None,
            ValueKind::Array { element, delimiter } => print_array(out, element, delimiter, field.value),
            ValueKind::Range => print_range(out, field.value),
        }
    }
}
