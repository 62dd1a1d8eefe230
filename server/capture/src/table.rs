//! What the assembler needs of a table that it follows.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_postgres::OldRows;
use tidegate_schema::{FieldSet, RowDecoder, RowEncoder};

/// How a relation of the current connection is treated.
#[derive(Debug)]
pub(crate) enum Followed {
    /// Its changes are counted, and left out.
    No,
    /// Its changes are encoded.
    Yes(Arc<TableCodec>),
}

/// A row type, ready to encode.
#[derive(Debug)]
pub(crate) struct TableCodec {
    /// Unique within the source.
    pub(crate) row_type: u32,
    /// `pg_class.oid`.
    pub(crate) table_oid: u32,
    /// The key's fields; empty for a table without one.
    pub(crate) key: FieldSet,
    /// What is in old rows that the server calls whole.
    pub(crate) old_rows: OldRows,
    /// The way back, column by column.
    pub(crate) decoder: RowDecoder,
    /// In the order of the relation's columns.
    pub(crate) encoder: RowEncoder,
    /// Field numbers, in the order of the relation's columns.
    pub(crate) fields: Vec<u32>,
    /// The encoded `tidegate.v1.RowType`, for the changelog.
    pub(crate) announcement: Bytes,
}
