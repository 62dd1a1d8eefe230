//! The mirror: the current row of each mirrored table, by key, in an embedded key-value engine.
//!
//! ```text
//!  blocks ─▶ Mirror::fill ─▶ blocks, with whole old rows ─▶ append ─▶ Mirror::appended ─▶ seen by MirrorReader
//!               │    ▲                                        │
//!               ▼    │ newest                                 └─ fsync ─▶ Mirror::synced
//!            overlay ┴──────────────── batch, with its position ─────────────▶ engine (fjall)
//!            what is not fsynced yet                                           the rest
//!
//!  crash: roll back what an unfinished transaction has spilled ─▶ replay the changelog from the engine's position
//! ```
//!
//! Invariants:
//! - What the engine holds is the state at its position, which is the end of a transaction that the changelog has fsynced; or
//!   that and a part of the next transaction, with what undoes it.
//! - A table is *complete* from the end of a snapshot that began while it was followed. Only then are its changes filled and its
//!   rows read. What the snapshot did not confirm is gone with its end: each row carries the number of the pass (generation)
//!   that confirmed it last, and older ones count as absent.
//! - A later snapshot of a complete table corrects it in place, and what it corrects goes into the log as changes. With its end the
//!   table is *verified* under the definition that the snapshot was read under, if that was one and the same.
//! - What is filled into a change is what the row encoder would have written. Where that is not known (a column that the stored
//!   row did not have yet, a row that never came), the change stays as it was: unchanged is never taken for null.
//! - The changelog is the truth. A mirror that does not fit it, or cannot be read, is dropped, and its tables need a snapshot.
//!
//! Deliberately not here: what rows mean. Keys and indexed values are compared as bytes. A table without a key has no mirror.

mod apply;
mod change;
mod chunk;
mod correct;
mod cut;
pub(crate) mod demand;
mod engine;
mod error;
mod fill;
mod index;
mod index_uses;
mod key;
mod overlay;
mod reader;
mod row;
mod snapshots;
mod sweep;
mod table;
mod verify;

use std::path::PathBuf;

use tidegate_model::TablePatterns;

pub use apply::{LogFacts, Mirror};
pub use chunk::RowChunk;
pub use cut::{MirrorRow, RowForm, Scan};
pub(crate) use engine::remove_dir;
pub use error::MirrorError;
pub use fill::Held;
pub use index::{INDEXES_MAX, IndexId, MirrorIndex};
pub use reader::{Checksum, MirrorReader, MirroredTable, Rows};
pub use verify::{Compared, Difference, DifferenceKind, Stage, Verification};

/// Which tables are mirrored, and where.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// The source's own directory; made if it is missing.
    pub dir: PathBuf,
    /// The tables.
    pub tables: TablePatterns,
    /// Others that may be asked for while it is kept.
    pub on_demand: TablePatterns,
    /// Bounds on memory.
    pub budgets: Budgets,
}

/// Bounds on a mirror's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Of what is not in the engine yet. When it is reached, the writer waits for an fsync, and a transaction that is larger goes
    /// to the engine in parts. A single row may exceed it.
    pub overlay: usize,
    /// Of the engine's cache of what is on the disk.
    pub cache: u64,
}

impl Default for Budgets {
    fn default() -> Self {
        Budgets { overlay: 64 << 20, cache: 128 << 20 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests only")]
mod tests;
