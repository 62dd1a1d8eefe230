//! What the old rows of a partitioned table hold, which is sent as one: pgoutput calls them whole where the root has REPLICA IDENTITY FULL,
//! while each partition's own identity decides what of them is in the WAL.
//!
//! As the catalog has it now; rows in the stream may have been written under another identity.

use crate::{CatalogError, Session};

/// What is in old rows that the server calls whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OldRows {
    /// Everything: the table has no partitions that are sent as it.
    AsCalled,
    /// Everything, since each partition has REPLICA IDENTITY FULL.
    Whole,
    /// The root's primary key: a partition has another identity, of which that is a part.
    PrimaryKey,
    /// Not even that.
    Less,
}

/// What is in the old rows of a table that has REPLICA IDENTITY FULL itself.
///
/// # Errors
/// The connection or the server.
pub async fn old_rows_of_full(session: &Session, oid: u32) -> Result<OldRows, CatalogError> {
    // Of a partition without any identity there are no old rows.
    const SQL: &str = "
        WITH leaves AS (
            SELECT l.oid, l.relreplident FROM pg_partition_tree($1::oid) t JOIN pg_class l ON l.oid = t.relid
            WHERE t.level > 0 AND l.relkind = 'r' AND l.relreplident <> 'n'),
        identities AS (
            SELECT l.oid, a.attname FROM leaves l
            JOIN pg_index i ON i.indrelid = l.oid AND i.indisvalid
                AND CASE l.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary AND i.indimmediate END
            JOIN pg_attribute a ON a.attrelid = l.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])),
        key AS (
            SELECT a.attname FROM pg_index i
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
            WHERE i.indrelid = $1 AND i.indisprimary AND i.indisvalid)
        SELECT EXISTS (SELECT FROM leaves),
               EXISTS (SELECT FROM leaves WHERE relreplident <> 'f'),
               EXISTS (SELECT FROM key) AND NOT EXISTS (
                   SELECT FROM leaves l CROSS JOIN key k WHERE l.relreplident <> 'f'
                   AND NOT EXISTS (SELECT FROM identities o WHERE o.oid = l.oid AND o.attname = k.attname))";
    let doing = CatalogError::while_we("read the replica identities of partitions");
    let row = session.client().query_one(SQL, &[&oid]).await.map_err(&doing)?;
    let is = |at: usize| row.try_get::<_, bool>(at).map_err(&doing);
    Ok(match (is(0)?, is(1)?, is(2)?) {
        (false, _, _) => OldRows::AsCalled,
        (true, false, _) => OldRows::Whole,
        (true, true, true) => OldRows::PrimaryKey,
        (true, true, false) => OldRows::Less,
    })
}
