//! What a capture is told.

use std::path::PathBuf;

use tidegate_model::{EpochInfo, Position, SourceName, TablePatterns, TransactionId};
use tidegate_postgres::ConnectConfig;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The current epoch.
    pub epoch: EpochInfo,
    /// The last durable position.
    pub durable: Position,
    /// The last stored transaction.
    pub last_transaction: Option<TransactionId>,
}
