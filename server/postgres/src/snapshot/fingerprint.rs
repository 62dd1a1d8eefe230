//! A digest of all that decides what a table's rows are and how pgoutput tells them, the publication included.
//!
//! Invariant: whatever changes stored values, or their text, without a row change in the WAL changes the fingerprint: a rewrite,
//! a default for a new column, a renamed enum label, an attached partition, another row filter. The catalog is read under the
//! transaction's snapshot, so a transaction that locks the table first reads what its rows were written for.
//!
//! It may change where values do not (VACUUM FULL, a new enum label): that costs a second reading, no exactness.

use std::collections::HashMap;

use tidegate_model::{TableName, Visibility};
use tokio_postgres::{Statement, types::Type};

use crate::{CatalogError, Session, snapshot::SnapshotReadError};

/// SHA-256 of the facts. Comparable between sessions and restarts on the same server version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(Box<str>);

impl Fingerprint {
    /// 64 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The table's fingerprint now, or, within a transaction, under its snapshot.
///
/// # Errors
/// [`SnapshotReadError::TableMissing`]; the connection or the server.
pub async fn table_fingerprint(
    session: &Session,
    publication: &str,
    table_oid: u32,
    table: &TableName,
) -> Result<Fingerprint, SnapshotReadError> {
    let statement = facts_statement(session).await?;
    Ok(facts(session, &statement, publication, table_oid, table).await?.fingerprint)
}

/// Reads the fingerprints of many tables in one query, over one session.
#[derive(Debug)]
pub struct FingerprintQuery(Statement);

impl FingerprintQuery {
    /// Prepares it.
    ///
    /// # Errors
    /// The connection or the server.
    pub async fn prepare(session: &Session) -> Result<Self, CatalogError> {
        let sql = sql_of_many(session.server_version());
        let preparing = session.client().prepare_typed(&sql, &[Type::OID_ARRAY, Type::TEXT]).await;
        preparing.map(FingerprintQuery).map_err(CatalogError::while_we("prepare to read fingerprints"))
    }

    /// The fingerprints of those of the tables (`pg_class.oid`) that exist.
    ///
    /// # Errors
    /// The connection or the server.
    pub async fn read(
        &self,
        session: &Session,
        publication: &str,
        table_oids: &[u32],
    ) -> Result<HashMap<u32, Fingerprint>, CatalogError> {
        let doing = CatalogError::while_we("read fingerprints");
        let rows = session.client().query(&self.0, &[&table_oids, &publication]).await.map_err(&doing)?;
        let fingerprint =
            |row: &tokio_postgres::Row| Ok((row.try_get(0)?, Fingerprint(row.try_get::<_, &str>(1)?.into())));
        rows.iter().map(fingerprint).collect::<Result<_, _>>().map_err(doing)
    }
}

/// What is read at the beginning of a chunk's transaction.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) visibility: Visibility,
    pub(super) fingerprint: Fingerprint,
}

/// Prepares the statement of [`facts`]: to plan it takes longer than to run it.
pub(super) async fn facts_statement(session: &Session) -> Result<Statement, SnapshotReadError> {
    let sql = sql(session.server_version());
    let preparing = session.client().prepare_typed(&sql, &[Type::OID, Type::TEXT]).await;
    preparing.map_err(|error| CatalogError::while_we("prepare to read fingerprints")(error).into())
}

/// Visibility and fingerprint under one snapshot.
pub(super) async fn facts(
    session: &Session,
    statement: &Statement,
    publication: &str,
    table_oid: u32,
    table: &TableName,
) -> Result<Facts, SnapshotReadError> {
    let doing = SnapshotReadError::of(table, "read a table's fingerprint");
    let row = session.client().query_one(statement, &[&table_oid, &publication]).await.map_err(&doing)?;
    let unexpected = |problem| SnapshotReadError::Unexpected { table: table.clone(), problem };
    if !row.try_get::<_, bool>(2).map_err(&doing)? {
        return Err(SnapshotReadError::TableMissing { table: table.clone() });
    }
    Ok(Facts {
        visibility: row.try_get::<_, &str>(0).map_err(&doing)?.parse().map_err(|_| unexpected("no visibility"))?,
        fingerprint: Fingerprint(row.try_get::<_, &str>(1).map_err(&doing)?.into()),
    })
}

/// $1 the table, $2 the publication.
fn sql(server_version: u32) -> String {
    let facts = facts_of("$1", server_version);
    format!(
        "{facts} SELECT pg_current_snapshot()::text, {DIGEST}, EXISTS (SELECT FROM pg_class WHERE oid = $1) FROM facts"
    )
}

/// $1 the tables, $2 the publication.
fn sql_of_many(server_version: u32) -> String {
    let facts = facts_of("given.oid", server_version);
    format!(
        "SELECT given.oid, digests.digest FROM unnest($1::oid[]) AS given (oid) JOIN pg_class c ON c.oid = given.oid
         CROSS JOIN LATERAL ({facts} SELECT {DIGEST} AS digest FROM facts) AS digests"
    )
}

/// Of all facts.
const DIGEST: &str = "encode(sha256(convert_to(coalesce(string_agg(fact, E'\\n' ORDER BY fact COLLATE \"C\"), ''),
                                          getdatabaseencoding())), 'hex')";

/// The facts about a table, an expression, for the publication $2. A fact is a row's text, told from those of other kinds by its
/// first field. A partition that was detached and is attached again, with rows that were written meanwhile, is told by who attached it.
fn facts_of(table: &str, server_version: u32) -> String {
    // 14 publishes no schemas.
    let schemas = if server_version >= 150_000 {
        "UNION ALL SELECT ROW('schema', s.*)::text FROM pg_publication_namespace s
           JOIN pg_publication p ON p.oid = s.pnpubid AND p.pubname = $2
           WHERE s.pnnspid IN (SELECT c.relnamespace FROM pg_class c JOIN ancestors a ON a.oid = c.oid)"
    } else {
        ""
    };
    format!(
        "WITH RECURSIVE
         members AS (
           SELECT {table} AS oid
           UNION ALL SELECT i.inhrelid FROM members m JOIN pg_class c ON c.oid = m.oid AND c.relkind = 'p'
             JOIN pg_inherits i ON i.inhparent = m.oid),
         ancestors AS (
           SELECT {table} AS oid
           UNION ALL SELECT i.inhparent FROM ancestors a JOIN pg_class c ON c.oid = a.oid AND c.relispartition
             JOIN pg_inherits i ON i.inhrelid = a.oid),
         types AS (
           SELECT atttypid AS oid FROM pg_attribute WHERE attrelid = {table} AND attnum > 0 AND NOT attisdropped
           UNION
           SELECT x.oid FROM types y JOIN pg_type t ON t.oid = y.oid
             LEFT JOIN pg_range r ON r.rngtypid = t.oid OR r.rngmultitypid = t.oid
             LEFT JOIN pg_attribute a ON t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
             CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem), (r.rngsubtype), (a.atttypid)) x (oid)
             WHERE x.oid <> 0),
         facts (fact) AS (
           SELECT ROW('table', c.oid, n.nspname, c.relname, c.relkind, c.relreplident)::text
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {table}
           UNION ALL SELECT ROW('storage', c.oid, c.relfilenode, c.relpersistence, c.relkind)::text
             FROM pg_class c JOIN members m ON m.oid = c.oid
           UNION ALL SELECT ROW('partition', i.inhrelid, i.inhparent, i.inhdetachpending, i.xmin)::text
             FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
             WHERE i.inhrelid IN (SELECT oid FROM members UNION SELECT oid FROM ancestors)
           UNION ALL SELECT ROW('column', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attgenerated,
                                CASE WHEN a.attgenerated <> '' THEN d.adbin::text END)::text
             FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
             WHERE a.attrelid = {table} AND a.attnum > 0 AND NOT a.attisdropped
           UNION ALL SELECT ROW('missing', a.attrelid, a.attnum, a.attmissingval::text)::text
             FROM pg_attribute a JOIN members m ON m.oid = a.attrelid WHERE a.atthasmissing AND NOT a.attisdropped
           UNION ALL SELECT ROW('label', e.enumtypid, e.enumsortorder, e.enumlabel)::text
             FROM pg_enum e JOIN types t ON t.oid = e.enumtypid
           UNION ALL SELECT ROW('attribute', y.oid, a.attnum, a.atttypid, a.atttypmod)::text
             FROM types y JOIN pg_type t ON t.oid = y.oid AND t.typtype = 'c'
             JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
           UNION ALL SELECT ROW('key', i.indisprimary, i.indisreplident, i.indisvalid, i.indimmediate, i.indnkeyatts,
                                i.indkey, i.indclass, i.indcollation, i.indoption)::text
             FROM pg_index i WHERE i.indrelid = {table} AND (i.indisprimary OR i.indisreplident)
           UNION ALL SELECT ROW('identity', l.oid, l.relreplident,
                                (SELECT i.indkey FROM pg_index i WHERE i.indrelid = l.oid AND i.indisreplident))::text
             FROM pg_class l JOIN members m ON m.oid = l.oid JOIN pg_class c ON c.oid = {table} AND c.relreplident = 'f'
             WHERE l.oid <> {table} AND l.relkind = 'r'
           UNION ALL SELECT ROW('publication', to_jsonb(p) - 'pubname' - 'pubowner')::text
             FROM pg_publication p WHERE p.pubname = $2
           UNION ALL SELECT ROW('published', r.*)::text
             FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid AND p.pubname = $2
             WHERE r.prrelid IN (SELECT oid FROM ancestors)
           {schemas})"
    )
}
