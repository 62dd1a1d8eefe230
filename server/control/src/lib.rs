//! The control database: what must outlive a node.
//!
//! ```text
//! capture ── row type of a relation? ──▶ Control ──▶ schema `tidegate`: source, field, row_type, snapshot,
//!                                          ▲        shape
//! migrations/control/*.sql ── at open, under an advisory lock
//! ```
//!
//! Writes are few (a new table, a changed column, a shape), and nothing that is served needs the database: a node keeps serving
//! while it is down.

mod control;
mod error;
mod migrate;
mod row_types;
mod shapes;
mod snapshots;

pub use control::{Connector, Control, KnownPublication};
pub use error::ControlError;
pub use row_types::{ColumnRequest, FieldName, RowTypeNumbers, RowTypeRequest, UsedNumbers};
pub use shapes::{FormerShape, ShapeCopy, ShapeLimits, ShapeRecord, StoredShape};
pub use snapshots::{JobState, SnapshotJob};
