//! The changelog of a source: a segmented, append-only log of blocks on the node's own disk.
//!
//! ```text
//!                StoreWriter (one)                                       Store (handles)
//!  feed ─▶ order ─▶ append ─▶ segment file ─▶ tail in memory ─▶ visible ─▶ Reader ─▶ sessions
//!   ▲                           │    └────────── what is older ──────────────▲
//!   └── Durable ◀── fsync ◀─────┘    (meanwhile the next blocks are appended)
//!
//!  open:   layout ─▶ recovery: cut the torn tail and the unfinished transaction ─▶ Recovered (what capture goes on from)
//!  trim:   retention ─▶ whole segments, oldest first ─▶ Head.earliest
//! ```
//!
//! Three places in the log matter. *Durable* ≤ *complete* ≤ end: behind durable an fsync has succeeded, up to complete
//! readers may see, and between complete and the end lies a transaction whose commit has not come. Nothing waits for a
//! reader. After a crash the log is cut to its last complete position, and capture publishes the rest again.
//!
//! What a snapshot puts in does not come again after a crash, so it is fsynced before it may be seen; all else may be seen
//! at once. `snapshots` keeps how far each unfinished snapshot has come, for capture to go on from.
//!
//! An epoch has a directory of its own; when another begins, the old one's readers end and its directory goes.

mod append;
mod error;
mod frame;
mod layout;
mod log;
mod mirror;
mod order;
mod reader;
mod recovery;
mod retention;
mod row_types;
mod run;
mod segment;
mod snapshots;
mod store;
mod tail;
mod transactions;
mod writer;

pub use error::{ReadError, StoreError};
pub use mirror::{
    Budgets, Checksum, Compared, Difference, DifferenceKind, Held, INDEXES_MAX, IndexId, LogFacts, Mirror,
    MirrorConfig, MirrorError, MirrorIndex, MirrorReader, MirrorRow, MirroredTable, RowChunk, RowForm, Rows, Scan,
    Stage, Verification,
};
pub use reader::{Place, Reader};
pub use row_types::RowTypes;
pub use snapshots::{EndedSnapshots, SnapshotProgress, Snapshots};
pub use store::{Head, Recovered, Retention, Store, StoreConfig};
pub use tidegate_schema::RowType;
pub use writer::StoreWriter;
