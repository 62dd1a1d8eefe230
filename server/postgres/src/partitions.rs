//! Which table is a partition of which, as far as that decides under which name the walsender sends rows.
//!
//! PostgreSQL 14 decides it for a table when it first decodes a row of it over a connection, and keeps to it until the connection ends
//! (`rel_sync_cache_relation_cb` of pgoutput leaves `publish_as_relid` as it is). Later versions decide anew.

use tidegate_model::Lsn;

use crate::{CatalogError, Session};

/// Does the walsender of such a server keep to what it has decided?
#[must_use]
pub const fn keeps_partitions(server_version: u32) -> bool {
    server_version < 150_000
}

/// Partitions with their parents, and who has attached them: where they are the same, nothing was attached or detached between.
#[derive(Clone, Debug)]
pub struct PartitionTrees {
    /// A digest of them.
    partitions: String,
    /// The end of the WAL behind all that has led to them.
    pub end_lsn: Lsn,
}

impl PartitionTrees {
    /// Are these the same trees, whenever they were read?
    #[must_use]
    pub fn are(&self, other: &PartitionTrees) -> bool {
        self.partitions == other.partitions
    }

    /// Made up, for simulations: `partitions` is compared.
    #[must_use]
    pub fn of(partitions: &str, end_lsn: Lsn) -> Self {
        PartitionTrees { partitions: partitions.to_owned(), end_lsn }
    }
}

/// The partitions of the database. None where the walsender does not keep to what it has decided, or there is nothing to decide.
///
/// # Errors
/// The connection or the server.
pub async fn partition_trees(session: &Session, publication: &str) -> Result<Option<PartitionTrees>, CatalogError> {
    // Where every table is published as itself, partitions are, too, whatever they are part of. A temporary tree is sent by nobody.
    // The end of the WAL is asked for after the query's snapshot was taken: what the snapshot sees, stands before it.
    const SQL: &str = "
        SELECT md5(coalesce(string_agg(concat_ws(' ', i.inhrelid, i.inhparent, i.xmin), E'\\n' ORDER BY i.inhrelid), '')),
               pg_current_wal_insert_lsn()::text
        FROM pg_class p LEFT JOIN pg_inherits i ON i.inhparent = p.oid
        WHERE p.relkind = 'p' AND p.relpersistence = 'p'
          AND EXISTS (SELECT FROM pg_publication WHERE pubname = $1 AND (pubviaroot OR NOT puballtables))
        HAVING count(*) > 0";
    if !keeps_partitions(session.server_version()) {
        return Ok(None);
    }
    let doing = CatalogError::while_we("read which tables are partitions");
    let Some(row) = session.client().query_opt(SQL, &[&publication]).await.map_err(&doing)? else { return Ok(None) };
    let lsn: &str = row.try_get(1).map_err(&doing)?;
    // What cannot be read stands behind everything.
    let end_lsn = lsn.parse().unwrap_or(Lsn(u64::MAX));
    Ok(Some(PartitionTrees { partitions: row.try_get(0).map_err(&doing)?, end_lsn }))
}
