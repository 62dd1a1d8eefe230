//! How a capture is doing, for metrics, health and `tidegate status`.

use tidegate_model::{Lsn, TableName};

/// A capture's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureStatus {
    /// What it is doing.
    pub state: State,
    /// Why, and what to do, where it is not streaming; never holds values or credentials.
    pub detail: String,
    /// Everything up to here has been received.
    pub received_lsn: Lsn,
    /// Everything up to here is on disk.
    pub durable_lsn: Lsn,
    /// What PostgreSQL has been told.
    pub confirmed_flush_lsn: Lsn,
    /// The server's end of WAL as last heard.
    pub server_lsn: Lsn,
    /// When the server was last heard, in microseconds since 1970-01-01 UTC; 0 for never.
    pub last_heard_us: i64,
    /// Such as 150020; 0 before the first connection.
    pub server_version: u32,
    /// WAL that PostgreSQL keeps for the slot, in bytes, as last heard.
    pub retained_wal_bytes: u64,
    /// Changes handed to the feed since the start.
    pub event_count: u64,
    /// Connections that ended with an error since the start.
    pub error_count: u64,
    /// Tables that are to be captured and are not published, or not to be read yet, by name.
    pub new_tables: Vec<NewTable>,
}

/// A table that is to be captured and is not, or not from its beginning yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// The table.
    pub table: TableName,
    /// Why, and what to do; or what it waits for.
    pub detail: String,
}

/// What a capture is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Connecting, or waiting to try again.
    #[default]
    Connecting,
    /// Receiving.
    Streaming,
    /// Waiting for someone to act.
    Stopped,
    /// The store's disk is full: nothing is confirmed until there is room.
    DiskFull,
}
