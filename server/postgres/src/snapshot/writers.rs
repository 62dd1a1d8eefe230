//! Transactions that may have written to a table before it was published, and waiting for their end.
//!
//! A transaction that wrote before ALTER PUBLICATION … ADD TABLE and commits after it may be decoded without the table. So a
//! snapshot of a table that was added begins when all that held a writer's lock then have ended.
//!
//! Invariant: a writer is told by its virtual transaction and by its transaction ids, since PREPARE TRANSACTION gives its locks
//! to another virtual transaction.

use std::time::Duration;

use crate::{CatalogError, Session};

/// A transaction that holds a writer's lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// As `pg_locks.virtualtransaction` prints it.
    pub virtual_transaction: String,
    /// Its transaction ids, those of subtransactions included; none where it has written nothing yet.
    pub xids: Vec<u32>,
    /// Its backend; None for a prepared transaction, which ends only by COMMIT PREPARED or ROLLBACK PREPARED.
    pub pid: Option<i32>,
}

/// The transactions that hold ROW EXCLUSIVE or a stronger writer's lock on one of the tables, its root, or a table below that.
/// VACUUM and CREATE INDEX, which hold other locks, write no rows.
///
/// # Errors
/// The connection or the server.
pub async fn waits_for_writers(session: &Session, table_oids: &[u32]) -> Result<Vec<Writer>, CatalogError> {
    const SQL: &str = "
        WITH tables AS (
            SELECT oid FROM unnest($1::oid[]) AS oid
            UNION
            SELECT t.relid::oid FROM unnest($1::oid[]) AS oid, pg_partition_tree(pg_partition_root(oid)) t),
        locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted)
        SELECT w.virtualtransaction, w.pid,
               ARRAY(SELECT l.transactionid::text::int8 FROM locks l
                     WHERE l.locktype = 'transactionid' AND l.virtualtransaction = w.virtualtransaction ORDER BY 1)
        FROM locks w
        WHERE w.locktype = 'relation' AND w.relation IN (SELECT oid FROM tables)
          AND w.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND w.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
          AND w.pid IS DISTINCT FROM pg_backend_pid()
        GROUP BY 1, 2 ORDER BY 1";
    let doing = CatalogError::while_we("look for writers");
    let rows = session.client().query(SQL, &[&table_oids]).await.map_err(&doing)?;
    let writer = |row: &tokio_postgres::Row| {
        let xids: Vec<i64> = row.try_get(2)?;
        Ok(Writer {
            virtual_transaction: row.try_get(0)?,
            pid: row.try_get(1)?,
            xids: xids.into_iter().filter_map(|xid| u32::try_from(xid).ok()).collect(),
        })
    };
    rows.iter().map(writer).collect::<Result<_, _>>().map_err(doing)
}

/// Those of the writers that have not ended.
///
/// # Errors
/// The connection or the server.
pub async fn still_running(session: &Session, writers: &[Writer]) -> Result<Vec<Writer>, CatalogError> {
    const SQL: &str =
        "SELECT virtualtransaction, CASE WHEN locktype = 'transactionid' THEN transactionid::text::int8 END
                       FROM pg_locks WHERE granted";
    let doing = CatalogError::while_we("wait for writers");
    let rows = session.client().query(SQL, &[]).await.map_err(&doing)?;
    let mut running = Vec::with_capacity(rows.len());
    for row in &rows {
        let lock: (&str, Option<i64>) = (row.try_get(0).map_err(&doing)?, row.try_get(1).map_err(&doing)?);
        running.push(lock);
    }
    let runs = |writer: &&Writer| {
        running.iter().any(|(virtual_transaction, xid)| {
            *virtual_transaction == writer.virtual_transaction
                || xid.is_some_and(|xid| writer.xids.iter().any(|own| i64::from(*own) == xid))
        })
    };
    Ok(writers.iter().filter(runs).cloned().collect())
}

/// Returns when the writers have ended, asking every `interval`. It may take for ever: a caller that cannot wait drops it.
///
/// # Errors
/// The connection or the server.
pub async fn wait_for_writers(
    session: &Session,
    mut writers: Vec<Writer>,
    interval: Duration,
) -> Result<(), CatalogError> {
    while !writers.is_empty() {
        writers = still_running(session, &writers).await?;
        if let Some(writer) = writers.first() {
            tracing::debug!(
                ?writer,
                count = writers.len(),
                "waiting for transactions that may have written to a new table"
            );
            tokio::time::sleep(interval).await;
        }
    }
    Ok(())
}
