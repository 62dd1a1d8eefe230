//! The state of a replication slot, and the few things that one does to it from outside.
//!
//! The view's columns differ between versions, so it is read as JSON and what a version does not have is absent.

use tidegate_model::Lsn;
use tokio_postgres::Row;

use crate::{CatalogError, Session};

/// What `pg_replication_slots` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// Output plugin; None for a physical slot.
    pub plugin: Option<String>,
    /// Database; None for a physical slot.
    pub database: Option<String>,
    /// The walsender that reads from it now.
    pub active_pid: Option<i32>,
    /// WAL is kept from here on; None once the slot is lost.
    pub restart_lsn: Option<Lsn>,
    /// Transactions that committed before are not sent again.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// Whether the WAL that it needs is still there; None where the server cannot say.
    pub wal_status: Option<WalStatus>,
    /// Why it is of no use any more: `wal_removed`, `rows_removed`, `wal_level_insufficient`, `idle_timeout`. Servers before 17 do not
    /// say; what can be concluded there is concluded.
    pub invalidation_reason: Option<String>,
    /// Standbys may take it over (17 and newer).
    pub failover: bool,
    /// It sends prepared transactions, which we do not read.
    pub two_phase: bool,
    /// Ends with the session that made it.
    pub temporary: bool,
    /// Bytes of WAL that may still be written before it is lost; None without a limit.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL that the server keeps for it.
    pub retained_wal_bytes: u64,
}

/// `pg_replication_slots.wal_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, kept for the slot.
    Extended,
    /// To be removed at the next checkpoint.
    Unreserved,
    /// Removed.
    Lost,
}

impl SlotStatus {
    /// Nothing can be read from it any more.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.wal_status == Some(WalStatus::Lost) || self.invalidation_reason.is_some()
    }

    /// The server's end of WAL, while the slot keeps any. A walsender's own messages do not tell it: they say how far it has sent.
    #[must_use]
    pub fn server_lsn(&self) -> Option<Lsn> {
        Some(Lsn(self.restart_lsn?.0.saturating_add(self.retained_wal_bytes)))
    }
}

/// The slot of that name, or None.
///
/// # Errors
/// The connection or the server.
pub async fn slot_status(session: &Session, name: &str) -> Result<Option<SlotStatus>, CatalogError> {
    const SQL: &str = "
        SELECT s.plugin::text, s.database::text, s.active_pid, s.restart_lsn::text, s.confirmed_flush_lsn::text,
               s.wal_status, s.safe_wal_size, s.two_phase, s.temporary,
               to_jsonb(s) ->> 'invalidation_reason', to_jsonb(s) ->> 'conflicting', to_jsonb(s) ->> 'failover',
               greatest(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                             ELSE pg_current_wal_lsn() END, s.restart_lsn), 0)::int8
        FROM pg_replication_slots s WHERE s.slot_name = $1";
    let doing = "read the slot's state";
    let row = session.client().query_opt(SQL, &[&name]).await.map_err(CatalogError::while_we(doing))?;
    row.map(|row| read(&row)).transpose().map_err(CatalogError::while_we(doing))
}

fn read(row: &Row) -> Result<SlotStatus, tokio_postgres::Error> {
    let lsn = |at: usize| row.try_get::<_, Option<&str>>(at).map(|text| text.and_then(|text| text.parse().ok()));
    let wal_status = match row.try_get::<_, Option<&str>>(5)? {
        Some("reserved") => Some(WalStatus::Reserved),
        Some("extended") => Some(WalStatus::Extended),
        Some("unreserved") => Some(WalStatus::Unreserved),
        Some("lost") => Some(WalStatus::Lost),
        Some(_) | None => None,
    };
    let restart_lsn = lsn(3)?;
    let stated: Option<String> = row.try_get(9)?;
    // Only 16 has the column without a reason; it is true for every invalidated slot there.
    let conflicting = row.try_get::<_, Option<&str>>(10)? == Some("true");
    let concluded = match wal_status {
        // Where WAL was removed, the place to start from is forgotten.
        Some(WalStatus::Lost) if restart_lsn.is_none() || !conflicting => Some("wal_removed".to_owned()),
        Some(WalStatus::Lost) => Some("rows_removed".to_owned()),
        Some(WalStatus::Reserved | WalStatus::Extended | WalStatus::Unreserved) | None => {
            conflicting.then(|| "rows_removed".to_owned())
        }
    };
    Ok(SlotStatus {
        plugin: row.try_get(0)?,
        database: row.try_get(1)?,
        active_pid: row.try_get(2)?,
        restart_lsn,
        confirmed_flush_lsn: lsn(4)?,
        wal_status,
        invalidation_reason: stated.or(concluded),
        failover: row.try_get::<_, Option<&str>>(11)? == Some("true"),
        two_phase: row.try_get(7)?,
        temporary: row.try_get(8)?,
        safe_wal_size: row.try_get(6)?,
        retained_wal_bytes: row.try_get::<_, Option<i64>>(12)?.and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
    })
}

/// Drops the slot; false if there is none. Fails with SQLSTATE 55006 while it is in use.
///
/// # Errors
/// The connection or the server.
pub async fn drop_slot(session: &Session, name: &str) -> Result<bool, CatalogError> {
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    let rows = session.client().query(sql, &[&name]).await.map_err(CatalogError::while_we("drop the slot"))?;
    Ok(!rows.is_empty())
}

/// Ends a backend, such as a stale walsender of ours, and waits up to `timeout_ms` until it is gone; false if it is not.
///
/// # Errors
/// The connection or the server; another role's backend needs `pg_signal_backend`.
pub async fn terminate_backend(session: &Session, pid: i32, timeout_ms: i64) -> Result<bool, CatalogError> {
    let doing = CatalogError::while_we("end a stale walsender");
    let sql = "SELECT pg_terminate_backend($1, $2)";
    let row = session.client().query_one(sql, &[&pid, &timeout_ms]).await.map_err(&doing)?;
    row.try_get(0).map_err(doing)
}

/// The application name of a backend, or None when it is gone.
///
/// # Errors
/// The connection or the server.
pub async fn backend_application(session: &Session, pid: i32) -> Result<Option<String>, CatalogError> {
    let doing = CatalogError::while_we("see who reads from the slot");
    let sql = "SELECT application_name FROM pg_stat_activity WHERE pid = $1";
    let row = session.client().query_opt(sql, &[&pid]).await.map_err(&doing)?;
    row.map(|row| row.try_get(0)).transpose().map_err(doing)
}
