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
//!         Event::Opened { .. } | Event::RowType(_) | Event::Begin { .. } | Event::Progress { .. } => {}
//!         Event::Drain { .. } | Event::Interrupted { .. } => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
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
mod json;
mod position;
mod row_type;
mod subscription;
mod transactions;

pub use catalog::{SourceState, SourceStatus, SubscriptionStatus};
pub use changes::{Changes, EventBatch};
pub use client::{Client, ClientBuilder};
pub use error::{ClientError, Retry, RowError, Violation};
pub use event::{Change, Event, LogicalMessage, OldKind, Op, ResetReason, Truncate, UnknownOp};
pub use position::{Position, PositionError, Token, TokenError};
pub use row_type::{Column, ReplicaIdentity, RowType};
pub use subscription::{Start, Subscription};
pub use transactions::{Transaction, Transactions};

/// Point in time with nanoseconds, as protobuf has it; prints as RFC 3339.
pub use prost_types::Timestamp;
