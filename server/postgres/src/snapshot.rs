//! Reads tables for a snapshot: chunk by chunk, in short transactions, each with what is needed to reconcile it with the stream.
//!
//! ```text
//!  catalog + publication ──▶ table_plan ──▶ TablePlan   relation as pgoutput announces it, row filter, key, Fingerprint
//!                                              │
//!                           ChunkReader::read  ▼
//!    BEGIN ─▶ LOCK ACCESS SHARE ─▶ visibility + fingerprint ─▶ COPY rows (CopyRow) ─▶ COMMIT ─▶ watermark + fingerprint again
//!                                                                                                │
//!                                                                                  ChunkFacts ◀──┘   next Cursor
//! ```
//!
//! Invariant: the rows of a chunk are those that its `visibility` sees, of a table that was, from before the first row to
//! after the last, exactly what the plan says; every commit that it sees ends at or below its `high_watermark`.
//!
//! It deliberately does not choose chunks, retry, reconcile, or keep a cursor.

mod copy_text;
mod cursor;
mod error;
mod fingerprint;
mod key;
mod part;
mod plan;
mod reader;
mod select;
mod settings;
mod shared;
mod watermark;
mod writers;

pub use copy_text::{CopyRow, CopyValues};
pub use cursor::{Cursor, CursorError};
pub use error::{SnapshotReadError, Unsupported};
pub use fingerprint::{Fingerprint, FingerprintQuery, table_fingerprint};
pub use key::KeyColumn;
pub use part::{Collation, MalformedKey, PartColumn, check_part, malformed_key, part_columns};
pub use plan::{PlanKind, Storage, TablePlan, held_table_plan, table_plan};
pub use reader::{Chunk, ChunkFacts, ChunkReader};
pub use select::{KeyValues, Range};
pub use settings::ReadLimits;
pub use shared::SharedSnapshot;
pub use watermark::current_visibility;
pub use writers::{Writer, still_running, wait_for_writers, waits_for_writers};
