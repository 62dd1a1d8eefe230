//! What is known of a table incarnation, of a running snapshot and of an index, as the engine holds it.
//!
//! These records are versioned with the rows, so that a reader at a position sees them as they were there.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use tidegate_schema::RowType;

use super::{
    error::{MirrorError, Result},
    key,
};

/// One incarnation of a table.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Table {
    /// `schema.table`, quoted where PostgreSQL would.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The newest; 0 as long as only a snapshot has named the table.
    #[prost(uint32, tag = "2")]
    pub(crate) row_type: u32,
    /// The key's fields, in column order; none for a keyless table.
    #[prost(uint32, repeated, tag = "3")]
    pub(crate) key: Vec<u32>,
    /// Rows of other lives are gone.
    #[prost(uint32, tag = "4")]
    pub(crate) life: u32,
    /// Given to rows that are written now.
    #[prost(uint32, tag = "5")]
    pub(crate) generation: u32,
    /// Rows of older generations are gone.
    #[prost(uint32, tag = "6")]
    pub(crate) generation_min: u32,
    /// Every row is here.
    #[prost(bool, tag = "7")]
    pub(crate) complete: bool,
    /// Snapshots that run and can make it complete, with the generation that each began.
    #[prost(btree_map = "uint32, uint32", tag = "8")]
    pub(crate) passes: BTreeMap<u32, u32>,
    /// `pg_class.oid`.
    #[prost(uint32, tag = "9")]
    pub(crate) oid: u32,
    /// The fingerprint of the definition under which a snapshot has confirmed every row; empty where none has.
    #[prost(string, tag = "10")]
    pub(crate) verified: String,
    /// It is not complete, but stands for one that was: before its key was changed, or it was created anew. Subscribers have of
    /// it what it holds, or know it under another key.
    #[prost(bool, tag = "11")]
    pub(crate) is_told: bool,
    /// Lives under other keys whose rows subscribers have: those that are not among the rows of this one are gone when a pass has
    /// confirmed the table.
    #[prost(uint32, repeated, tag = "12")]
    pub(crate) former_lives: Vec<u32>,
    /// Another table has its name by now: it is gone, or has one that is not known yet.
    #[prost(bool, tag = "13")]
    pub(crate) displaced: bool,
    /// Columns that a row type lacked which came behind one that had them, by field, with the generation of then: who holds rows
    /// has dropped their values. Where one is there again, every row is told.
    #[prost(btree_map = "uint32, uint32", tag = "14")]
    pub(crate) dropped: BTreeMap<u32, u32>,
}

impl Table {
    pub(crate) fn is_keyless(&self) -> bool {
        self.row_type != 0 && self.key.is_empty()
    }

    /// Are subscribers told of rows that a snapshot finds beyond those that it holds?
    pub(crate) fn tells_all(&self) -> bool {
        self.complete || self.is_told
    }

    /// May it hold a row that is otherwise than a snapshot finds it? The first that reads it finds what the stream has brought only.
    pub(crate) fn is_corrected(&self) -> bool {
        self.tells_all() || self.generation > 2
    }

    /// Is it known under this row type, and under this name?
    pub(crate) fn is_known_as(&self, row_type: u32, name: &str) -> bool {
        self.row_type == row_type && self.name == name && !self.displaced
    }

    /// Has the row type a column whose values who holds rows has dropped?
    pub(crate) fn has_dropped(&self, row_type: &RowType) -> bool {
        self.dropped.keys().any(|field| row_type.column_by_field(*field).is_some())
    }

    pub(crate) fn rows(&self) -> Bytes {
        key::rows(self.oid, self.life)
    }

    /// The rows of each former life.
    pub(crate) fn former_rows(&self) -> Vec<Bytes> {
        self.former_lives.iter().map(|life| key::rows(self.oid, *life)).collect()
    }

    pub(crate) fn row(&self, row_key: &[u8]) -> Bytes {
        key::row(self.oid, self.life, row_key)
    }
}

/// A snapshot that runs.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Pass {
    #[prost(message, repeated, tag = "1")]
    pub(crate) tables: Vec<PassTable>,
}

/// A table of a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PassTable {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The incarnation that its chunks are of; 0 before the first.
    #[prost(uint32, tag = "2")]
    pub(crate) oid: u32,
    /// Chunks were of several incarnations: none of them is whole.
    #[prost(bool, tag = "3")]
    pub(crate) mixed: bool,
    /// The fingerprint of the definition that its chunks were read under.
    #[prost(string, tag = "4")]
    pub(crate) fingerprint: String,
    /// That has changed between two of them, or the table has had another name: what was read before may be otherwise now.
    #[prost(bool, tag = "5")]
    pub(crate) altered: bool,
}

impl PassTable {
    /// Does the pass confirm the table, with all that it has read so far?
    pub(crate) fn confirms(&self, oid: u32) -> bool {
        self.oid == oid && !self.mixed && !self.altered
    }
}

/// A secondary index.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Index {
    #[prost(uint32, tag = "1")]
    pub(crate) oid: u32,
    /// The indexed fields, ascending.
    #[prost(uint32, repeated, tag = "2")]
    pub(crate) fields: Vec<u32>,
    #[prost(bool, tag = "3")]
    pub(crate) complete: bool,
    /// The last row that has been built, as the engine's key.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) built: Bytes,
}

/// Reads one of these.
pub(crate) fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M> {
    M::decode(bytes).map_err(|_| MirrorError::Damaged("a record about a table is malformed"))
}

/// The key's fields, in column order.
pub(crate) fn key_fields(row_type: &RowType) -> Vec<u32> {
    row_type.proto().columns.iter().filter(|column| column.key).map(|column| column.field).collect()
}
