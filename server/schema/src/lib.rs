//! Row types and the row codec: from PostgreSQL's text to protobuf messages that carry the table's own names.
//!
//! ```text
//! catalog ──ColumnSpec──▶ RowTypeSpec ──to_proto──▶ v1::RowType (message name, columns, file descriptor)
//!                │                                        │ written to the changelog before its first use
//!                ▼                                        ▼
//! tuple ──▶ RowEncoder ──row bytes──▶ changelog ──▶ RowType (project) ──▶ subscribers
//!                                                         │
//!                                                         ├──▶ RowDecoder ──▶ PostgreSQL's text again
//!                                                         └──▶ Descriptors ──▶ reflection, JSON
//! ```
//!
//! Invariants: a value's encoding follows from its column's type alone; a column that is NULL has no field, and one
//! that is not NULL has one even where it is zero; nothing that PostgreSQL sends is approximated or dropped. Text that
//! PostgreSQL would not have written is an error that names the column, never the value, and never a panic.
//!
//! Not here: which column has which field number (capture and the control database), and what was not sent at all
//! (the change itself says so).

pub mod wire;

mod array;
mod change;
mod decoder;
mod descriptor;
mod descriptors;
mod encoder;
mod event;
mod float;
mod name;
mod range;
mod row_type;
mod scalar;
mod timestamp;
mod value_kind;

pub use array::EncodedArray;
pub use change::{CUT_BYTES, ChangeParts, Extra, OldKind, Room, push_change, set_ordinal};
pub use decoder::{DecodeError, RowDecoder, RowText};
pub use descriptor::{ColumnSpec, RowTypeSpec, is_field_number};
pub use descriptors::Descriptors;
pub use encoder::{EncodeError, RowEncoder, Value};
pub use event::{BeginParts, event_body, push_begin, push_commit, put_change};
pub use name::message_name;
pub use range::Range;
pub use row_type::{FieldSet, RowType, SchemaError, same_rows};
pub use value_kind::{ScalarKind, TypeShape, ValueKind};
