//! What an operator may change about the gateway. Defaults suit a bank and a laptop alike.

use std::time::Duration;

/// Limits and intervals of the services.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// A request message may not be larger, in bytes.
    pub request_bytes_max: usize,
    /// A subscription is told its progress at least this often.
    pub progress_interval: Duration,
    /// Credit of a subscription that names none, in bytes.
    pub credit_bytes_default: u64,
    /// Credit that a subscription may have in hand, in bytes. More is a protocol violation.
    pub credit_bytes_max: u64,
    /// Open subscriptions of one session.
    pub subscriptions_max: usize,
    /// Selections of one subscription.
    pub selections_max: usize,
    /// Names and columns of one selection, each.
    pub names_max: usize,
    /// How long a subscription waits for a source that has not connected for the first time.
    pub first_epoch_wait: Duration,
    /// Queries that run at a time, each of which holds a position of a mirror.
    pub queries_max: usize,
    /// How long a query may hold its position, that is, how long its client may take to read the rows.
    pub query_duration_max: Duration,
    /// The limit that a query with an order may have, in rows, and what it may hold of them, in bytes.
    pub query_rows_max: usize,
    /// See `query_rows_max`.
    pub query_bytes_max: usize,
    /// Filtered blocks that are kept for other subscriptions with the same selections, in bytes.
    pub share_bytes_max: usize,
    /// Time that a connection has for TLS, and to show that it speaks HTTP/2.
    pub handshake_max: Duration,
    /// Time that clients have to leave when the server stops.
    pub drain_deadline: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            request_bytes_max: 1 << 20,
            progress_interval: Duration::from_secs(1),
            credit_bytes_default: 1 << 20,
            credit_bytes_max: 1 << 30,
            subscriptions_max: 1024,
            selections_max: 64,
            names_max: 4096,
            first_epoch_wait: Duration::from_secs(5),
            queries_max: 16,
            query_duration_max: Duration::from_secs(60),
            query_rows_max: 10_000,
            query_bytes_max: 32 << 20,
            share_bytes_max: 32 << 20,
            handshake_max: Duration::from_secs(20),
            drain_deadline: Duration::from_secs(10),
        }
    }
}
