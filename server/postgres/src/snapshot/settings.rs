//! Sessions that read tables: what they have set besides the pins, and how much they may do at once.

use std::time::Duration;

use tokio_postgres::{Client, Statement};

use crate::{
    CatalogError, ConnectConfig, Session,
    snapshot::{
        SnapshotReadError, TablePlan,
        fingerprint::{Facts, facts, facts_statement},
    },
};

/// What one chunk may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// How long to wait for a lock that a schema change holds or waits for; others queue behind us for as long.
    pub lock_timeout: Duration,
    /// How long one statement may take, and how long our lock may keep a schema change waiting at most.
    pub statement_timeout: Duration,
    /// A chunk with more than one row ends with an error above this many bytes of text.
    pub byte_budget: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        ReadLimits {
            lock_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(60),
            byte_budget: 32 << 20,
        }
    }
}

/// A session that reads tables.
#[derive(Debug)]
pub(super) struct ReadingSession {
    session: Session,
    facts_statement: Statement,
}

impl ReadingSession {
    pub(super) fn client(&self) -> &Client {
        self.session.client()
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Under the snapshot of the transaction, where there is one.
    pub(super) async fn facts(&self, plan: &TablePlan) -> Result<Facts, SnapshotReadError> {
        let (oid, table) = (plan.relation.oid, plan.name());
        facts(&self.session, &self.facts_statement, &plan.publication, oid, &table).await
    }
}

/// Connects a session that reads tables.
pub(super) async fn reading_session(
    config: &ConnectConfig,
    limits: &ReadLimits,
) -> Result<ReadingSession, SnapshotReadError> {
    let session = Box::pin(Session::connect(config)).await?;
    // Hidden rows must be an error. All else fixes how to read: by index, one row after the other, whatever statistics say; a
    // catalog of a hundred thousand tables, or a table that was never analysed, must not make a chunk read all of it. What
    // has no index is read nevertheless.
    let mut sql = format!(
        "SET row_security = off; SET lock_timeout = {}; SET statement_timeout = {}; \
         SET idle_in_transaction_session_timeout = 0; SET plan_cache_mode = force_generic_plan; SET jit = off; \
         SET enable_seqscan = off; SET enable_sort = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
         SET max_parallel_workers_per_gather = 0",
        limits.lock_timeout.as_millis().max(1),
        limits.statement_timeout.as_millis().max(1),
    );
    if session.server_version() >= 170_000 {
        sql.push_str("; SET transaction_timeout = 0");
    }
    session.client().batch_execute(&sql).await.map_err(CatalogError::while_we("prepare a session for reading"))?;
    let facts_statement = facts_statement(&session).await?;
    Ok(ReadingSession { session, facts_statement })
}
