//! Client library for Tidegate: typed, ordered, resumable changes of PostgreSQL tables.
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use tidegate_client::{Client, Event, Start, Subscription};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:7171").await?;
//! let mut changes = client.subscribe(Subscription::tables(["public.orders"]).from(Start::Earliest));
//! while let Some(event) = changes.next().await {
//!     match event? {
//!         Event::Change(change) => println!("{} {:?}", change.op, change.row_json()?),
//!         Event::Commit { token, .. } => println!("all up to {token} is processed: keep this token"),
//!         Event::Abort => println!("forget the changes since the last Begin; they come again"),
//!         Event::Reset { detail, .. } => println!("start over: {detail}"),
//!         Event::Opened { .. } | Event::Preparing { .. } | Event::RowType(_) | Event::Begin { .. } | Event::Progress { .. } => {}
//!         Event::SnapshotBegin { .. } | Event::SnapshotEnd { .. } | Event::SnapshotAbandoned { .. } => {}
//!         Event::Drain { .. } | Event::Interrupted { .. } => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # The rows that are there already
//!
//! With [`Start::Snapshot`] they come as [`Op::Read`], amid the changes. Reads, inserts and updates are upserts by key, deletes
//! are deletes; at [`Event::SnapshotEnd`] the copy is exact, and so it is after every commit that follows:
//!
//! ```no_run
//! use std::collections::HashMap;
//!
//! use futures_util::StreamExt;
//! use tidegate_client::{Client, Op, Start, Subscription};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:7171").await?;
//! let orders = Subscription::tables(["public.orders"]).from(Start::Snapshot);
//! let mut transactions = client.subscribe(orders).transactions(64 << 20);
//! let mut copy: HashMap<String, serde_json::Map<String, serde_json::Value>> = HashMap::new();
//! while let Some(transaction) = transactions.next().await {
//!     for change in transaction?.changes {
//!         let text = |key: serde_json::Map<_, _>| serde_json::Value::from(key).to_string();
//!         let key = change.key_json()?.map(text).unwrap_or_default();
//!         // Where an update has changed the key, its old row says what it was.
//!         let old_key = change.old_key_json()?.map_or_else(|| key.clone(), text);
//!         let row = change.row_json()?.unwrap_or_default();
//!         let before = copy.remove(&old_key);
//!         match change.op {
//!             Op::Read | Op::Insert => {
//!                 copy.insert(key, row);
//!             }
//!             Op::Update => {
//!                 // Columns that are not sent, since they are as they were (TOAST), stay.
//!                 let mut merged = before.unwrap_or_default();
//!                 merged.extend(row);
//!                 copy.insert(key, merged);
//!             }
//!             Op::Truncate => copy.clear(),
//!             Op::Delete | Op::Message => {}
//!         }
//!     }
//!     if transactions.snapshot().is_none() {
//!         println!("exact: {} orders", copy.len());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A table that is published while the subscription is open, and that it selects, is read likewise, between a SnapshotBegin and a
//! SnapshotEnd that name it, whatever the subscription started from.
//!
//! [`Event::Reset`] ends it: drop the copy, and subscribe again from a snapshot. Else keep the copy and its token together, and
//! [`Start::Token`] goes on, also in the middle of the snapshot.
//!
//! Whoever wants whole transactions instead of their parts takes [`Changes::transactions`].
//!
//! ```text
//!            Subscribe, Grant, Ack                       what each message means
//! server ◀──────────────────────── connection ──message──▶ continuity ──events──▶ changes ──▶ the program
//!        ────────────────────────▶     ▲                       │ next token         │
//!            SessionResponse           └──── backoff ◀── lost ──┘        credit ◀────┘ bytes consumed
//! ```
//!
//! What holds, whatever happens to connections and servers: events of one [`Changes`] come in the order of the
//! transactions; with the changes before an [`Event::Abort`] left out, each transaction comes whole and once; if that
//! cannot be kept, the stream ends with [`Event::Reset`] or an error, never with a silent gap.

mod backoff;
mod catalog;
mod changes;
mod client;
mod connection;
mod continuity;
mod credit;
mod error;
mod event;
mod held;
mod json;
mod mirror;
mod position;
mod query;
mod row_type;
mod shape;
mod shape_copy;
mod shape_handle;
mod shape_rows;
mod shapes;
mod snapshots;
mod subscription;
mod transactions;

pub use catalog::{MirrorState, MirroredTable, NewTable, SourceState, SourceStatus, SubscriptionStatus};
pub use changes::{Changes, EventBatch};
pub use client::{Client, ClientBuilder};
pub use error::{ClientError, Retry, RowError, Violation};
pub use event::{Change, Difference, Event, LogicalMessage, Move, OldKind, Op, ResetReason, Truncate, UnknownOp};
pub use mirror::{MirrorComparison, MirrorDifference, MirrorDifferenceKind};
pub use position::{Position, PositionError, Token, TokenError};
pub use query::{OrderBy, Query, QueryRows};
pub use row_type::{Column, ReplicaIdentity, RowType};
pub use shape::{Parameter, Shape, Updates};
pub use shape_handle::{ShapeHandle, ShapeUpdate, ShapeUpdates};
pub use shape_rows::{RowChange, ShapeRow, ShapeRows};
pub use shapes::{
    DescribedShape, ExplainedShape, FormerShape, NamedShape, ShapeColumn, ShapeLookup, ShapeLookupKind, ShapeResidual,
    ValidShape,
};
pub use snapshots::{
    SnapshotKey, SnapshotKeys, SnapshotPart, SnapshotRows, SnapshotState, SnapshotStatus, SnapshotTable,
    StartedSnapshot,
};
pub use subscription::{Start, Subscription};
pub use transactions::{Transaction, Transactions};

/// Point in time with nanoseconds, as protobuf has it; prints as RFC 3339.
pub use prost_types::Timestamp;
