//! What the behaviour tests and benchmarks stand on: real PostgreSQL servers, the real `tidegate` binary, a writer, a
//! subscriber, and an oracle that reads the same WAL through a second slot.
//!
//! ```text
//! workload ──SQL──▶ Cluster (postgres) ──▶ Server (tidegate) ──gRPC──▶ Recorder (subscriber) ──▶ History ─┐
//!                          └────────── second slot ──▶ oracle ─────────────────────────────────▶ History ─┴▶ equal?
//! ```
//!
//! The oracle deliberately shares no code with the product: it has a pgoutput reader of its own.
//! Nothing here is part of the product, and nothing here is a fake of PostgreSQL or of the server.

mod cluster;
mod database;
mod disturbance;
mod history;
mod installation;
mod keyed_tables;
mod keyless_tables;
mod oracle;
mod pgoutput;
mod pooler;
mod port;
mod process;
mod replay;
mod replica;
mod scratch;
mod seed;
mod server;
mod standby;
mod stuck_commits;
mod subscriber;
mod type_table;
mod wait;
mod workload;
mod writers;

pub use cluster::{Cluster, Image, Stop};
pub use database::Database;
pub use disturbance::disturb;
pub use history::{Change, History, Row, Transaction, Value, hex};
pub use installation::{Installation, client_tool, tidegate_binary, tool};
pub use keyed_tables::{KEYED_TABLES, keyed_tables, keyed_transaction};
pub use keyless_tables::{KEYLESS_TABLES, keyless_tables, keyless_transaction};
pub use oracle::Oracle;
pub use pooler::Pooler;
pub use process::{HeldProcess, Process, Signal};
pub use replay::{Comparing, Replay};
pub use replica::{
    Arrival, Copier, HeldRow, HeldTable, Replica, RowCounts, Touched, counted_by_postgres, held_by_postgres,
    held_by_shape, must_count_equal, must_equal, selected,
};
pub use scratch::Scratch;
pub use seed::{Seed, asked_for};
pub use server::{OnDiscontinuity, Server, ServerConfig, ServerTls, tidegate, tidegate_with};
pub use subscriber::{Ended, Recorder};
pub use type_table::{define_types, has_equality, lacks_equality, literal, type_table, written};
pub use wait::{DEADLINE, within};
pub use workload::Workload;
pub use writers::Writers;
