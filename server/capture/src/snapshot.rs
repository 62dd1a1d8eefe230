//! Snapshots that are exact, with no writes and no row locks: the pure core.
//!
//! ```text
//!  PostgreSQL ─ stream ──▶ Unseen ── confirm floor: what is invisible yet is sent again after a restart
//!      │                     │ writers, when a table's tracking begins
//!      │        changes ──▶ Touched: key ─▶ newest image ──┐
//!      └ chunk: rows, visibility S, then watermark H ──────┴▶ reconcile ─▶ Emitter, at R = max(H, received)
//!                                  └▶ or is read again
//! ```
//!
//! # Why it is exact
//!
//! Words: T *ends* at its commit's end LSN. S *sees* T where `pg_current_snapshot()` says so. H is the insert LSN, taken
//! after S. The chunk enters the stream at R ≥ H, when every commit that ends up to R has been decoded. Claim: what is emitted
//! for a key is its row at R, where that is not what the stream has said already.
//!
//! 1. What S sees has ended by R: PostgreSQL makes a commit visible only after its record is in the WAL, so the record ends at
//!    or before H. Nothing that the chunk shows is from beyond R.
//! 2. What has ended by R and S does not see is in `Touched`, or the chunk is read again. Decoded since the tracking began: it is
//!    there, by construction. Decoded before: when the tracking began, either a snapshot had seen it, and then S, which is
//!    younger, sees it too; or it was in `Unseen`, and is in `must_see`. Decoded before a restart: the confirmation has not
//!    passed it, it came again, and was told again.
//! 3. Per key, all that S sees precedes all that S does not see: a row lock, and a unique index's wait, end only when the
//!    transaction that holds it has become visible. So if S does not see the newest writer of a key, the stream's image is the row
//!    at R; and if it does, or there is none, every writer up to R is seen, and the chunk's row is the row at R.
//! 4. A field that the image lacks was left unchanged by every writer since the row came to this key (its *lineage*). If S
//!    sees the one who brought it there, the chunk's row is one of the same lineage and has the value. Else the key is read again.
//! 5. A row that exists at the end was read by a chunk that covered its key, or was inserted at or moved to this key after the
//!    tracking began, and then the stream has told it: whole, or the key is in the `Gaps`. These are empty at the end.
//!
//! # Tables without a key
//!
//! Rows that cannot be told apart cannot be reconciled one by one: subscribers count them, and what they have counted must be the rows
//! that one snapshot S sees, and every change that S does not see, each once (`keyless.rs`). S is taken first, and its chunks read by
//! ranges of blocks. The first of them, the *mark*, enters the stream at R ≥ H as above: it voids what has been received of the
//! table, and tells again what ended up to R and S does not see. Of what follows, S sees nothing (1). What S does not see and
//! ended up to R has been told since the tracking began, and is told again; or S is taken anew (2). A TRUNCATE that S does
//! not see, another fingerprint (VACUUM FULL moves rows), the end of S or of the stream's connection, also in a restart: another
//! pass begins, whose mark voids this one. Until the pass is done a count may be less than nothing: a deletion stands before its
//! row.
//!
//! TRUNCATE writes every key. LSNs alone do not do: a commit may be in the WAL, below H, and be invisible to S for as long as
//! a synchronous standby takes; the simulation shows how that fails.
//!
//! Not here: sessions, queries, ranges of keys, and who waits for what.

mod requests;

mod blocks;
mod coordinator;
mod errand;
mod job;
mod label;
mod order;
mod pass;
mod reader;

mod change;
mod gaps;
mod keyless;
mod reconcile;
mod stage;
mod touched;
mod traces;
mod tracking;
mod unseen;

#[cfg(test)]
mod simulation;

pub use coordinator::SnapshotConfig;
pub(crate) use coordinator::{Context, Coordinator, StreamSide, coordinator};
pub(crate) use label::Label;
pub(crate) use order::{Begun, Order};
pub(crate) use pass::SnapshotResume;
pub(crate) use requests::NewTables;
pub use requests::{PartStatus, SnapshotError, SnapshotRequests, SnapshotStatus, Started, TableStatus};
pub(crate) use stage::{Stage, decode_cursor};
pub(crate) use touched::Covers;
pub(crate) use unseen::{Decoded, TableSet, Unseen};
