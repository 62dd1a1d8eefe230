//! The gRPC services: what clients see of Tidegate.
//!
//! ```text
//!               ┌───────────────────────────── gateway ──────────────────────────────┐
//! store ──────▶ │ opening ─▶ reader ─▶ share ─▶ delivery ─▶ frame ─▶ session (Session)│ ──▶ SDKs
//!  blocks       │   │ selection, shape: plan   (filtered once per plan)               │
//!  mirror ────▶ │   │ mirror_snapshot: rows woven into the log    query (Shapes.Query)│
//!  blocks ────▶ │   │ router: notes for the shapes that a block concerns ─▶ share     │
//!  both ──────▶ │   │ sets: what subqueries select, who moves for it ─▶ delivery      │
//!  mirror ────▶ │   │ redefinition: a named shape's difference, woven into the log    │
//!               │   └──────▶ reader ─▶ readable ─▶ watch (Watch)                      │ ──▶ grpcurl
//!  row types ─▶ │ catalog, reflection                                                 │
//! app ────────▶ │ source: status, tables ─▶ health, progress                          │
//! app ◀───────▶ │ named_shapes ─▶ opening, shape_service                              │
//! capture ◀───▶ │ snapshots ─▶ opening, snapshot_service, mirror_service              │
//!               └─────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: what a subscription receives is a function of the changelog, its selections and its start; a transaction is
//! delivered whole or its end is not told; a start that cannot be continued is a Reset. Nothing is kept per subscriber
//! beyond its position and the block it is in, and no task runs for one: the connection pulls, the router runs for all of a source's, and a
//! task for each shape that has subqueries, for all who have that open.
//!
//! `gateway` puts the services together, `connections` accepts who wants them, and `in_place` runs a connection and what
//! it starts.
//!
//! It deliberately does not know PostgreSQL, and it does not write anything.

mod config;
mod connections;
mod gateway;
mod in_place;
mod preface;
mod shared;
mod source;

mod service;
mod session;

mod mirror_service;
mod named_shapes;
mod open_subscriptions;
mod shape_service;
mod snapshot_marks;
mod snapshot_parts;
mod snapshot_service;
mod snapshots;

mod by_row_type;
mod facts;
mod held;
mod incoming;
mod mirror_snapshot;
mod opening;
mod query;
mod redefinition;
mod reset;
mod selection;
mod shape;

mod router;

mod sets;

mod delivery;
mod projection;
mod share;

mod frame;

mod readable;
mod watch;

mod catalog;
mod drain;
mod entering;
mod health;
mod metrics;
mod progress;
mod reflection;
#[cfg(test)]
mod refusals;
mod status;
mod time;

pub use config::GatewayConfig;
pub use gateway::{Gateway, ServeError};
pub use metrics::{GatewayMetrics, RouterMetrics, SourceMetrics};
pub use named_shapes::{
    FormerShape, KnownShapes, NamedShape, NamedShapeError, NamedShapes, NoNamedShapes, ShapeAnswer,
};
pub use snapshots::{Answer, Described, MalformedKey, NoSnapshots, SnapshotError, SnapshotStart, Snapshots, Statuses};
pub use source::{KnownTable, SourceHandle, SourceState, SourceStatus};
