//! The table that several cases share, and how a case begins.

use anyhow::{Context, Result};
use tidegate_client::{MirrorState, SourceStatus};
use tidegate_integration_tests::{Database, Server};

/// Without rows.
pub(crate) const TABLE: &str = "create table load (id bigint primary key, customer int, placed timestamptz, status text, \
                                total numeric(12, 2), express boolean, reference uuid, note text)";
/// Row number `n`.
pub(crate) const ROW: &str = "n, n % 1000, now(), 'open', n / 100.0, n % 2 = 0, md5(n::text)::uuid, 'note ' || n";

/// `BENCH_ROWS`, to see that a case works; figures are comparable only without it.
pub(crate) fn row_count(usual: u64) -> Result<u64> {
    number("BENCH_ROWS", usual)
}

/// A number from the environment.
pub(crate) fn number(name: &str, usual: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is '{text}', which is no number")),
        Err(_) => Ok(usual),
    }
}

/// Creates the table with so many rows.
pub(crate) async fn create(database: &Database, row_count: u64) -> Result<()> {
    eprintln!("writing {row_count} rows");
    database.execute(&format!("{TABLE}; insert into load select {ROW} from generate_series(1, {row_count}) n")).await
}

/// Waits until the server has the mirror of a table.
pub(crate) async fn until_mirrored(server: &Server) -> Result<()> {
    let is_complete = |status: &SourceStatus| status.mirror.iter().any(|table| table.state() == MirrorState::Complete);
    server.until("shop", "a complete mirror", is_complete).await.map(drop)
}
