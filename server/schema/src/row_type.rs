//! A row type as readers of the changelog see it: its columns by name, and projection of encoded rows.
//!
//! Invariant: the columns' names, and their field numbers, differ. Deliberately no access to values: rows pass through
//! as bytes, and who wants values decodes them, by descriptor or with a [`crate::RowDecoder`].

use std::{collections::HashMap, sync::OnceLock};

use bytes::{Bytes, BytesMut};
use prost::Message;
use tidegate_model::{Retry, TableName};
use tidegate_proto::v1;

use crate::descriptor::{FileProto, is_field_number};
use crate::wire::{Fields, WireError};

/// Why a row type, or a row, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Two columns share a name or a field number, or a number is none, or the descriptor lacks the column.
    #[error("row type {row_type}: column \"{column}\" has no name, field number or descriptor of its own")]
    Column {
        /// The row type.
        row_type: u32,
        /// The column's name.
        column: String,
    },
    /// The descriptor is damaged, or of another message.
    #[error("row type {row_type}: its file descriptor does not define {message}")]
    File {
        /// The row type.
        row_type: u32,
        /// The message's full name.
        message: String,
    },
    /// The descriptors contradict each other.
    #[error("the row types' descriptors do not fit together: {0}")]
    Pool(#[from] prost_reflect::DescriptorError),
    /// The table has no such column.
    #[error("table {table} has no column \"{column}\"; it has {}", columns.join(", "))]
    UnknownColumn {
        /// The table.
        table: TableName,
        /// What was asked for.
        column: String,
        /// What there is.
        columns: Vec<String>,
    },
    /// The bytes are not a row message.
    #[error("damaged row: {0}")]
    Row(#[from] WireError),
}

impl SchemaError {
    /// What to do: the same fails again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            SchemaError::Column { .. }
            | SchemaError::File { .. }
            | SchemaError::Pool(_)
            | SchemaError::UnknownColumn { .. }
            | SchemaError::Row(_) => Retry::Never,
        }
    }
}

/// A row type for readers.
#[derive(Clone, Debug)]
pub struct RowType {
    proto: v1::RowType,
    name: TableName,
    /// Index into the columns.
    by_name: HashMap<String, usize>,
    key: FieldSet,
    /// Made when it is first asked for.
    encoded: OnceLock<Bytes>,
}

impl RowType {
    /// Checks a row type as it was found in the changelog.
    ///
    /// # Errors
    /// The columns or the descriptor break the invariant.
    pub fn new(proto: v1::RowType) -> Result<Self, SchemaError> {
        let row_type = proto.row_type;
        file_of(&proto)?;
        let mut by_name = HashMap::with_capacity(proto.columns.len());
        let mut numbers = HashMap::with_capacity(proto.columns.len());
        for (index, column) in proto.columns.iter().enumerate() {
            let known = by_name.insert(column.name.clone(), index).is_some();
            let shared = numbers.insert(column.field, index).is_some();
            if known || shared || !is_field_number(column.field) {
                return Err(SchemaError::Column { row_type, column: column.name.clone() });
            }
        }
        let key = proto.columns.iter().filter(|column| column.key).map(|column| column.field).collect();
        let name = TableName::new(proto.schema.as_str(), proto.table.as_str());
        Ok(RowType { proto, name, by_name, key, encoded: OnceLock::new() })
    }

    /// As it was found.
    #[must_use]
    pub fn proto(&self) -> &v1::RowType {
        &self.proto
    }

    /// The same, encoded: one copy for all who announce it.
    #[must_use]
    pub fn encoded(&self) -> Bytes {
        self.encoded.get_or_init(|| self.proto.encode_to_vec().into()).clone()
    }

    /// The table's exact name.
    #[must_use]
    pub fn name(&self) -> &TableName {
        &self.name
    }

    /// The column of this exact name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&v1::Column> {
        self.by_name.get(name).map(|&index| &self.proto.columns[index])
    }

    /// The column with this field number.
    #[must_use]
    pub fn column_by_field(&self, field: u32) -> Option<&v1::Column> {
        self.proto.columns.iter().find(|column| column.field == field)
    }

    /// The key's fields; empty for a keyless table.
    #[must_use]
    pub fn key(&self) -> &FieldSet {
        &self.key
    }

    /// The fields of these columns and of the key.
    ///
    /// # Errors
    /// [`SchemaError::UnknownColumn`].
    pub fn select<'a>(&self, columns: impl IntoIterator<Item = &'a str>) -> Result<FieldSet, SchemaError> {
        let unknown = |column: &str| SchemaError::UnknownColumn {
            table: self.name.clone(),
            column: column.to_owned(),
            columns: self.proto.columns.iter().map(|column| column.name.clone()).collect(),
        };
        let field = |name: &str| self.column(name).map(|column| Ok(column.field)).unwrap_or_else(|| Err(unknown(name)));
        columns.into_iter().map(field).chain(self.key.iter().map(Ok)).collect()
    }

    /// Appends to `out` those fields of an encoded row that are in `fields`, as they stand.
    ///
    /// # Errors
    /// [`SchemaError::Row`]; `out` is then as it was.
    pub fn project(&self, row: &[u8], fields: &FieldSet, out: &mut BytesMut) -> Result<(), SchemaError> {
        let start = out.len();
        for field in Fields::new(row) {
            match field {
                Ok(field) if fields.contains(field.number) => out.extend_from_slice(field.whole),
                Ok(_) => {}
                Err(error) => {
                    out.truncate(start);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

/// Do both say the same of rows? A column's `attnum` is a hint, which DROP and ADD COLUMN change, and the descriptor follows
/// from the rest.
#[must_use]
pub fn same_rows(one: &v1::RowType, other: &v1::RowType) -> bool {
    let bare = |row_type: &v1::RowType| {
        let bare = |column: &v1::Column| v1::Column { attnum: 0, ..column.clone() };
        let columns = row_type.columns.iter().map(bare).collect();
        v1::RowType { file: Vec::new().into(), columns, ..row_type.clone() }
    };
    bare(one) == bare(other)
}

/// The row type's file, which defines one message, of the right name.
pub(crate) fn file_of(proto: &v1::RowType) -> Result<FileProto, SchemaError> {
    let error = || SchemaError::File { row_type: proto.row_type, message: proto.message.clone() };
    let file = FileProto::decode(&proto.file[..]).map_err(|_| error())?;
    let defined = match file.message_type.as_slice() {
        [message] => format!("{}.{}", file.package(), message.name()),
        _ => return Err(error()),
    };
    if defined == proto.message { Ok(file) } else { Err(error()) }
}

/// A set of field numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldSet(Box<[u32]>);

impl FieldSet {
    /// Is the number in it?
    #[must_use]
    pub fn contains(&self, field: u32) -> bool {
        self.0.binary_search(&field).is_ok()
    }

    /// Has it no number?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
}

impl FromIterator<u32> for FieldSet {
    fn from_iter<I: IntoIterator<Item = u32>>(fields: I) -> Self {
        let mut fields: Vec<u32> = fields.into_iter().collect();
        fields.sort_unstable();
        fields.dedup();
        FieldSet(fields.into())
    }
}
