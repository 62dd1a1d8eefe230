//! Captures a source: WAL into one ordered feed.
//!
//! ```text
//! Capture ─ connects again and again, decides on epochs
//!   │ prepare     publication, slot, proof of continuity
//!   ▼
//! Streaming ── frames ─▶ Decoder ─▶ Assembler ─▶ Emitter ─▶ blocks ─▶ feed
//!   │                      relations ─▶ Resolver (catalog, control database)
//! answer ── standby status ◀── Confirmations ◀── durable position ◀── feed
//! joining ── tables that appear: published, their writers waited for, their snapshots started
//! ```
//!
//! Invariants: transactions leave whole, once, in commit order, at positions that are the same after every restart; nothing
//! is confirmed to PostgreSQL that is not durable here; where continuity cannot be proved, an epoch ends. It writes
//! nothing to user tables, and takes no lock on them but the one of ALTER PUBLICATION, which writers do not notice.

mod answer;
mod assembler;
mod capture;
mod config;
mod confirm;
mod continuity;
mod emitter;
mod error;
mod joining;
mod link;
mod numbers;
mod observe;
mod partitions;
mod prepare;
mod promises;
mod publisher;
mod resolve;
mod snapshot;
mod status;
mod stream;
mod table;
mod transaction;
mod undeliverable;

pub use capture::Capture;
pub use config::{CaptureConfig, MirrorLink, NewTables, OnDiscontinuity, Resume, StoredSnapshot};
pub use continuity::Discontinuity;
pub use error::CaptureError;
pub use snapshot::{PartStatus, SnapshotConfig, SnapshotError, SnapshotRequests, SnapshotStatus, Started, TableStatus};
pub use status::{CaptureStatus, NewTable, State};
pub use tidegate_postgres::snapshot::{SnapshotReadError, Unsupported};
pub use undeliverable::{Place, Undeliverable};
