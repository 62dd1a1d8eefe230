//! A snapshot that several readers use: a table without a key is read by block ranges, all of which must see the same rows.
//!
//! Invariant: the holder's transaction has no lock on a user's table, so it never delays a schema change. What happens to the
//! table meanwhile is found by the readers, which compare the fingerprint after each range. It does hold back VACUUM.

use tidegate_model::{Lsn, Visibility};

use crate::{
    CatalogError, ConnectConfig,
    snapshot::{
        ReadLimits, SnapshotReadError, TablePlan,
        settings::{ReadingSession, reading_session},
        watermark::high_watermark,
    },
};

/// An open transaction whose snapshot is exported. Dropping it ends the transaction.
#[derive(Debug)]
pub struct SharedSnapshot {
    session: ReadingSession,
    id: String,
    visibility: Visibility,
    high_watermark: Lsn,
    blocks: Vec<(u32, u32)>,
}

impl SharedSnapshot {
    /// Begins the transaction and exports its snapshot.
    ///
    /// # Errors
    /// [`SnapshotReadError::DefinitionChanged`] where the table is not what the plan says; the connection or the server.
    pub async fn open(
        config: &ConnectConfig,
        limits: &ReadLimits,
        plan: &TablePlan,
    ) -> Result<Self, SnapshotReadError> {
        let table = plan.name();
        let session = reading_session(config, limits).await?;
        let doing = SnapshotReadError::of(&table, "export a snapshot");
        session.client().batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(&doing)?;
        let facts = session.facts(plan).await?;
        if facts.fingerprint != plan.fingerprint {
            return Err(SnapshotReadError::DefinitionChanged { table: table.clone() });
        }
        let oids: Vec<u32> = plan.storage.iter().map(|storage| storage.oid).collect();
        // A file's size now, after the snapshot was taken: it holds every row that the snapshot sees.
        let sql = "SELECT pg_export_snapshot(),
                          ARRAY(SELECT coalesce(pg_relation_size(oid) / current_setting('block_size')::int8, 0)
                                FROM unnest($1::oid[]) WITH ORDINALITY AS s (oid, at) ORDER BY at)";
        let row = session.client().query_one(sql, &[&oids]).await.map_err(&doing)?;
        let sizes: Vec<i64> = row.try_get(1).map_err(&doing)?;
        let sizes = sizes.into_iter().map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX));
        Ok(SharedSnapshot {
            id: row.try_get(0).map_err(&doing)?,
            visibility: facts.visibility,
            high_watermark: high_watermark(session.session(), &table).await?,
            blocks: oids.into_iter().zip(sizes).collect(),
            session,
        })
    }

    /// For readers to import.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it sees.
    #[must_use]
    pub fn visibility(&self) -> &Visibility {
        &self.visibility
    }

    /// Every transaction that it sees ends at or below this end LSN.
    #[must_use]
    pub fn high_watermark(&self) -> Lsn {
        self.high_watermark
    }

    /// `pg_class.oid` and number of blocks of each of the plan's `storage`: no row that the snapshot sees lies beyond.
    #[must_use]
    pub fn blocks(&self) -> &[(u32, u32)] {
        &self.blocks
    }

    /// Ends the transaction in good order.
    ///
    /// # Errors
    /// The connection or the server: the transaction may have ended before, which ranges that were read do not suffer from.
    pub async fn close(self) -> Result<(), CatalogError> {
        let closing = self.session.client().batch_execute("COMMIT").await;
        closing.map_err(CatalogError::while_we("end a shared snapshot"))
    }
}
