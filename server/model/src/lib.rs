//! The domain's words, pure: no clock, no I/O, no async.
//!
//! ```text
//! PostgreSQL's         ours
//! ------------         ----
//! Lsn ───────────────▶ Position (lsn, ordinal) ──▶ Token (epoch + position, given to clients)
//! Relation ──────────▶ row type (see the schema crate)
//! pgoutput messages ─▶ Block (entries + encoded changes): feed, changelog and sessions pass it on unchanged
//! ```
//!
//! # Glossary
//!
//! - **Source**: one database, by name. **Slot**, **Publication**, **Relation**: PostgreSQL's.
//! - **Lsn**: a place in PostgreSQL's WAL. **Position**: a place in the order that subscribers see.
//! - **Epoch**: random id of one provably continuous history of a source. **Token**: epoch and position, for resuming.
//! - **Transaction**: begins with its commit end LSN, holds changes counted by ordinal, ends with a commit.
//! - **Key**: the columns that identify a row in the stream. **Incarnation**: one life of a table, from CREATE to DROP.
//! - **Row type**: the encoding of a table's rows; its number is unique within the source, for ever.
//! - **Block**: a run of records in position order; what the **Feed** carries, the **Changelog** stores, sessions slice.
//! - **Selection**: what one watches. **Subscription**: a source and selections on one stream. **Credit**: bytes that a
//!   client allows to be sent. **Reset**: what was received and what follows do not join up. **Drain**: leave soon.
//! - **Snapshot**: a numbered pass over the rows that tables have already, delivered amid the changes; exact at its end.
//!   **Chunk**: a part of it, read at once. **Watermark**: the LSN that the stream must pass before a chunk is reconciled.
//!   **Visibility**: the transactions that a chunk's query has seen. **Mirror**: the current rows of a table, kept here.
//! - **Shape**: the rows of one table that meet a condition, with some of their columns. A row **moves in** when an update makes it
//!   meet the condition, and **out** when it ceases to.
//! - **Aggregate**, **Group**, **Lease**, **Term**: not built yet.

mod ad_hoc;
mod block;
mod clock;
mod epoch;
mod lsn;
mod name;
mod near;
mod part;
mod pattern;
mod position;
mod relation;
mod retry;
mod token;
mod visibility;

pub use ad_hoc::AdHoc;
pub use block::{Block, BlockBuilder, BlockError, ENTRY_BYTES, Entry, Kind, MAX_BLOCK_BYTES, Op};
pub use clock::{Clock, SystemClock};
pub use epoch::{Delivered, Epoch, EpochInfo, TransactionId};
pub use lsn::{Lsn, LsnError};
pub use name::{NameError, ShapeName, SourceName, TableName, quote_identifier};
pub use near::near;
pub use part::{Part, Parts, SnapshotSpec};
pub use pattern::{PatternError, TablePatterns};
pub use position::{LOGGED_SNAPSHOT_ORDINAL, MESSAGE_ORDINAL, Position, PositionError, PositionText, SNAPSHOT_ORDINAL};
pub use relation::{Relation, RelationColumn, ReplicaIdentity};
pub use retry::Retry;
pub use token::{Token, TokenError, TokenPrefix};
pub use visibility::{FullXid, Visibility, VisibilityError};
