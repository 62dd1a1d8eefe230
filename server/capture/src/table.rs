//! What the assembler needs of a table that it follows.

use bytes::Bytes;
use tidegate_schema::RowEncoder;

/// How a relation of the current connection is treated.
#[derive(Debug)]
pub(crate) enum Followed {
    /// Its changes are counted, and left out.
    No,
    /// Its changes are encoded.
    Yes(TableCodec),
}

/// A row type, ready to encode.
#[derive(Debug)]
pub(crate) struct TableCodec {
    /// Unique within the source.
    pub(crate) row_type: u32,
    /// In the order of the relation's columns.
    pub(crate) encoder: RowEncoder,
    /// Field numbers, in the order of the relation's columns.
    pub(crate) fields: Vec<u32>,
    /// The encoded `tidegate.v1.RowType`, for the changelog.
    pub(crate) announcement: Bytes,
}
