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
    /// The server's end of WAL as last seen: while connected, some seconds ago at most.
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

impl CaptureStatus {
    /// Is more WAL than that written and not received, in bytes? Never with 0, which stands for no limit.
    pub(crate) fn is_behind(&self, lag_bytes_max: u64) -> bool {
        lag_bytes_max > 0 && self.server_lsn.bytes_since(self.received_lsn) > lag_bytes_max
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_behind_with_more_than_the_limit_and_never_without_one() {
        let at = |received_lsn, server_lsn| CaptureStatus {
            received_lsn: Lsn(received_lsn),
            server_lsn: Lsn(server_lsn),
            ..CaptureStatus::default()
        };
        assert!(!at(100, 164).is_behind(64) && at(100, 165).is_behind(64));
        // What was received may be beyond what was seen last.
        assert!(!at(200, 100).is_behind(1));
        assert!(!at(0, u64::MAX).is_behind(0));
    }
}
