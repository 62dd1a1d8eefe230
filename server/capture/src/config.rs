//! What a capture is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use tidegate_model::{Delivered, EpochInfo, Position, SourceName, TablePatterns, TransactionId};
use tidegate_postgres::ConnectConfig;
use tidegate_proto::v1;
use tokio::sync::{Notify, watch};

use crate::SnapshotConfig;

/// How to capture a source.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// The source.
    pub source: SourceName,
    /// Its database.
    pub connect: ConnectConfig,
    /// The tables to follow.
    pub tables: TablePatterns,
    /// Name of the replication slot; created when it is missing at the first start.
    pub slot: String,
    /// Name of the publication; created when it is missing.
    pub publication: String,
    /// What to do when continuity cannot be proved.
    pub on_discontinuity: OnDiscontinuity,
    /// Directory for transactions in progress that exceed the memory budget. Must exist.
    pub spool_dir: PathBuf,
    /// Memory for transactions in progress, in bytes.
    pub memory_budget_bytes: usize,
    /// How snapshots are read.
    pub snapshots: SnapshotConfig,
    /// What happens to tables that appear.
    pub new_tables: NewTables,
    /// The mirror that follows.
    pub mirror: MirrorLink,
}

/// What to do about a table that appears and is one of those to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewTables {
    /// Add it to the publication, if that is one that we have made; then as `Snapshot`.
    #[default]
    Publish,
    /// Once it is in the publication, a snapshot of it starts, which every subscription receives that selects it.
    Snapshot,
    /// Once it is in the publication, its changes are followed.
    Follow,
}

/// What capture and the keeper of the source's mirror tell each other.
#[derive(Clone, Debug, Default)]
pub struct MirrorLink {
    /// Told whenever the stream suggests that a table's definition has changed.
    pub altered: Arc<Notify>,
    /// The tables (`pg_class.oid`) whose mirror is complete, and is verified again when their definition changes; None before
    /// that is known.
    pub complete: Option<watch::Receiver<Option<Arc<BTreeSet<u32>>>>>,
}

/// What to do when continuity cannot be proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDiscontinuity {
    /// Mint a new epoch and go on from where the server can; subscribers receive a Reset.
    #[default]
    Reset,
    /// Stop capturing, leave slot and store as they are, and wait for someone to look.
    Stop,
}

/// What the store has: where to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Resume {
    /// The current epoch.
    pub epoch: EpochInfo,
    /// The last durable position.
    pub durable: Position,
    /// How much subscribers may have received.
    pub delivered: Delivered,
    /// The last stored transaction.
    pub last_transaction: Option<TransactionId>,
    /// Every row type that the stored rows may have.
    pub row_types: Vec<v1::RowType>,
    /// Snapshots that have begun and not ended, by number.
    pub snapshots: BTreeMap<u32, StoredSnapshot>,
    /// Snapshots that have ended of late, by number, and why they were given up; empty where they are complete.
    pub ended_snapshots: BTreeMap<u32, String>,
}

/// What the store has of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSnapshot {
    /// Where its SnapshotBegin stands.
    pub begin: Position,
    /// The newest cursor of each table that has one.
    pub cursors: Vec<v1::SnapshotCursor>,
}
