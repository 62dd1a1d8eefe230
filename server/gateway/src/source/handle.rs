//! What the application hands over for each source, and what it says of it.

use std::{path::PathBuf, sync::Arc};

use tidegate_model::{Clock, Lsn, SourceName, TableName};
use tidegate_proto::v1;
use tidegate_store::{MirrorReader, Store};
use tokio::sync::watch;

use crate::{named_shapes::NamedShapes, snapshots::Snapshots};

/// What the application hands over for each source.
#[derive(Clone)]
pub struct SourceHandle {
    /// Its name.
    pub name: SourceName,
    /// Its changelog.
    pub store: Store,
    /// Its state, kept current by the application; `last_heard_us` at least once a second while connected.
    pub status: watch::Receiver<SourceStatus>,
    /// The tables that the source's catalog has and that are followed, so that a mistyped name is refused before its
    /// table was ever seen in the stream. Empty until the catalog is read.
    pub tables: watch::Receiver<Arc<Vec<KnownTable>>>,
    /// Makes its snapshots.
    pub snapshots: Arc<dyn Snapshots>,
    /// Its mirror, where it has one.
    pub mirror: Option<MirrorReader>,
    /// Its shapes that have a name.
    pub named_shapes: Arc<dyn NamedShapes>,
    /// A folder for files without names.
    pub spool_dir: PathBuf,
}

/// A table of the source's catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTable {
    /// Its exact name.
    pub name: TableName,
    /// The exact names of its columns.
    pub columns: Vec<String>,
    /// The publication sends its changes.
    pub published: bool,
}

/// What a source is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// Not yet started.
    #[default]
    Unknown,
    /// Connecting, or waiting to try again.
    Connecting,
    /// Receiving.
    Streaming,
    /// Stopped until someone acts.
    Stopped,
    /// The store's disk is full.
    DiskFull,
}

/// A source's state and positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// What it is doing.
    pub state: SourceState,
    /// Why, and what to do; empty when all is well.
    pub detail: String,
    /// Received from PostgreSQL.
    pub received_lsn: Lsn,
    /// Durable here.
    pub durable_lsn: Lsn,
    /// What PostgreSQL has been told.
    pub confirmed_flush_lsn: Lsn,
    /// PostgreSQL's end of WAL as last seen: while connected, some seconds ago at most.
    pub server_lsn: Lsn,
    /// WAL that PostgreSQL keeps for the slot, in bytes.
    pub retained_wal_bytes: u64,
    /// When anything was last received, in microseconds since 1970 UTC; 0 for never.
    pub last_heard_us: i64,
    /// PostgreSQL's version, such as 150020.
    pub server_version: u32,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The tables that are to be mirrored, by name.
    pub mirror: Vec<v1::MirroredTable>,
    /// Tables that are to be captured and are not, or not from their beginning yet, by name.
    pub new_tables: Vec<v1::NewTable>,
}

impl SourceStatus {
    /// Is the source connected, so that silence means that nothing happened?
    #[must_use]
    pub fn connected(&self) -> bool {
        matches!(self.state, SourceState::Streaming | SourceState::DiskFull)
    }

    /// Whole seconds since the source was last heard of; 0 while it is connected.
    #[must_use]
    pub fn silent_s(&self, clock: &dyn Clock) -> u32 {
        if self.connected() || self.last_heard_us == 0 {
            return 0;
        }
        let silent_us = clock.now_us().saturating_sub(self.last_heard_us).max(0);
        u32::try_from(silent_us / 1_000_000).unwrap_or(u32::MAX)
    }
}
