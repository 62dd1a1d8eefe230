//! Publications: what they contain, and their life.
//!
//! Invariant: names reach SQL only quoted; a statement here touches publications, never tables.

use std::time::Duration;

use tidegate_model::TableName;

use crate::{CatalogError, Session};

/// How the comment begins of a publication that we have made. Whoever wants one of another make to be treated alike, or one
/// that we have made to be left alone, changes the comment.
const MADE_BY_US: &str = "Made by Tidegate";

/// A publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// `pg_publication.oid`: another one means that it was dropped and made again.
    pub oid: u32,
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// Changes of partitions are sent as those of the root (`publish_via_partition_root`).
    pub via_root: bool,
    /// What is sent.
    pub operations: Operations,
    /// The tables as they are sent: roots with `via_root`, else leaves.
    pub tables: Vec<PublishedTable>,
    /// [`create_publication`] has made it, as its comment says.
    pub made_by_us: bool,
    /// The role may alter it.
    pub owned: bool,
}

/// Which operations are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operations {
    /// INSERT.
    pub insert: bool,
    /// UPDATE.
    pub update: bool,
    /// DELETE.
    pub delete: bool,
    /// TRUNCATE.
    pub truncate: bool,
}

impl Operations {
    /// Names of those that are not sent.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        let all =
            [("insert", self.insert), ("update", self.update), ("delete", self.delete), ("truncate", self.truncate)];
        all.into_iter().filter(|(_, sent)| !sent).map(|(name, _)| name)
    }
}

/// A table of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// Exact name.
    pub name: TableName,
    /// `pg_class.oid`.
    pub oid: u32,
    /// Only some rows are sent.
    pub has_row_filter: bool,
    /// Names of the columns that are sent, in the table's order.
    pub columns: Vec<String>,
}

/// A publication to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPublication<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its tables; may be none.
    pub tables: &'a [TableName],
    /// Send changes of partitions as those of the root.
    pub via_root: bool,
}

/// The publication of that name, or None.
///
/// # Errors
/// The connection or the server.
pub async fn publication(session: &Session, name: &str) -> Result<Option<Publication>, CatalogError> {
    const SQL: &str = "
        SELECT oid, puballtables, pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate,
               coalesce(obj_description(oid, 'pg_publication'), ''), pg_has_role(pubowner, 'USAGE')
        FROM pg_publication WHERE pubname = $1";
    let doing = CatalogError::while_we("read the publication");
    let Some(row) = session.client().query_opt(SQL, &[&name]).await.map_err(&doing)? else { return Ok(None) };
    let flag = |at: usize| row.try_get::<_, bool>(at).map_err(&doing);
    let operations = Operations { insert: flag(3)?, update: flag(4)?, delete: flag(5)?, truncate: flag(6)? };
    Ok(Some(Publication {
        oid: row.try_get(0).map_err(&doing)?,
        all_tables: flag(1)?,
        via_root: flag(2)?,
        operations,
        tables: published_tables(session, name).await?,
        made_by_us: row.try_get::<_, &str>(7).map_err(&doing)?.starts_with(MADE_BY_US),
        owned: row.try_get(8).map_err(&doing)?,
    }))
}

/// What a publication promises to send, to be compared with what it promised before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationContent {
    /// `pg_publication.oid`.
    pub oid: u32,
    /// A line for the options, and one for each table and schema in it, in no order:
    ///
    /// ```text
    /// options <xmin of the publication's row> <all tables> <via root> <insert> <update> <delete> <truncate>
    /// table <oid> <pg_publication_rel.oid> <checksum of the row filter> <column list>
    /// schema <oid> <pg_publication_namespace.oid>
    /// ```
    ///
    /// Whatever is taken out and put back, or switched there and back, has another line afterwards.
    pub content: String,
}

/// The publication's content, or None where there is no such publication.
///
/// # Errors
/// The connection or the server.
pub async fn publication_content(session: &Session, name: &str) -> Result<Option<PublicationContent>, CatalogError> {
    // 14 knows neither column lists, row filters nor schemas.
    let (how, schemas) = if session.server_version() >= 150_000 {
        (
            "md5(r.prqual::text), r.prattrs",
            "UNION ALL SELECT concat_ws(' ', 'schema', n.pnnspid, n.oid) FROM pg_publication_namespace n WHERE n.pnpubid = p.oid",
        )
    } else {
        ("''", "")
    };
    let sql = format!(
        "SELECT p.oid, (SELECT string_agg(line, E'\\n') FROM (
             SELECT concat_ws(' ', 'options', p.xmin, p.puballtables, p.pubviaroot,
                              p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate) AS line
             UNION ALL
             SELECT concat_ws(' ', 'table', r.prrelid, r.oid, {how}) FROM pg_publication_rel r WHERE r.prpubid = p.oid
             {schemas}) lines)
         FROM pg_publication p WHERE p.pubname = $1"
    );
    let doing = CatalogError::while_we("read the publication's content");
    let Some(row) = session.client().query_opt(&sql, &[&name]).await.map_err(&doing)? else { return Ok(None) };
    let content = PublicationContent { oid: row.try_get(0).map_err(&doing)?, content: row.try_get(1).map_err(&doing)? };
    Ok(Some(content))
}

/// Those of the tables (`pg_class.oid`) and schemas (`pg_namespace.oid`) that still exist, as a person would name them.
///
/// # Errors
/// The connection or the server.
pub async fn existing(session: &Session, tables: &[u32], schemas: &[u32]) -> Result<Vec<String>, CatalogError> {
    const SQL: &str = "
        SELECT format('table %I.%I', n.nspname, c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)
        UNION ALL SELECT format('schema %I', nspname) FROM pg_namespace WHERE oid = ANY ($2) ORDER BY 1";
    let doing = CatalogError::while_we("name the publication's tables");
    let rows = session.client().query(SQL, &[&tables, &schemas]).await.map_err(&doing)?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(doing)
}

/// What makes the publication send a table: lines as those of [`PublicationContent`], as far as the second OID. None for one that
/// is sent because all are.
///
/// # Errors
/// The connection or the server.
pub async fn memberships(session: &Session, name: &str, table_oid: u32) -> Result<Vec<String>, CatalogError> {
    // 14 knows no schemas.
    let schemas = match session.server_version() >= 150_000 {
        true => {
            "UNION ALL SELECT format('schema %s %s', m.pnnspid, m.oid) FROM pg_publication_namespace m
             JOIN pg_publication p ON p.oid = m.pnpubid
             WHERE p.pubname = $1 AND m.pnnspid IN (SELECT relnamespace FROM pg_class WHERE oid IN (SELECT relid FROM line))"
        }
        false => "",
    };
    let sql = format!(
        "WITH line AS (SELECT $2::oid AS relid UNION SELECT relid::oid FROM pg_partition_ancestors($2::oid))
         SELECT format('table %s %s', m.prrelid, m.oid) FROM pg_publication_rel m
         JOIN pg_publication p ON p.oid = m.prpubid
         WHERE p.pubname = $1 AND m.prrelid IN (SELECT relid FROM line) {schemas}"
    );
    let doing = CatalogError::while_we("read why a table is published");
    let rows = session.client().query(&sql, &[&name, &table_oid]).await.map_err(&doing)?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(doing)
}

/// The tables (`pg_class.oid`) that the publication sends because of one of these tables or schemas.
///
/// # Errors
/// The connection or the server; there is no such publication.
pub async fn sent_because_of(
    session: &Session,
    name: &str,
    (tables, schemas): (&[u32], &[u32]),
) -> Result<Vec<u32>, CatalogError> {
    const SQL: &str = "
        SELECT c.oid FROM pg_get_publication_tables($1::text) p JOIN pg_class c ON c.oid = p.relid
        WHERE c.oid = ANY ($2) OR c.relnamespace = ANY ($3)
           OR EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a WHERE a.relid::oid = ANY ($2))";
    let doing = CatalogError::while_we("read the tables of a publication");
    let rows = session.client().query(SQL, &[&name, &tables, &schemas]).await.map_err(&doing)?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(doing)
}

async fn published_tables(session: &Session, name: &str) -> Result<Vec<PublishedTable>, CatalogError> {
    // 14 knows neither column lists nor row filters.
    let (attrs, qual) = if session.server_version() >= 150_000 { ("p.attrs", "p.qual") } else { ("NULL", "NULL") };
    let sql = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text, {qual} IS NOT NULL,
                ARRAY(SELECT a.attname::text FROM pg_attribute a
                      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                        AND CASE WHEN {attrs} IS NULL THEN a.attgenerated = ''
                                 ELSE a.attnum = ANY ({attrs}::int2[]) END
                      ORDER BY a.attnum)
         FROM pg_get_publication_tables($1::text) p
         JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace
         ORDER BY 2, 3"
    );
    let doing = CatalogError::while_we("read the publication's tables");
    let rows = session.client().query(&sql, &[&name]).await.map_err(&doing)?;
    let table = |row: &tokio_postgres::Row| {
        Ok(PublishedTable {
            oid: row.try_get(0)?,
            name: TableName::new(row.try_get::<_, &str>(1)?, row.try_get::<_, &str>(2)?),
            has_row_filter: row.try_get(3)?,
            columns: row.try_get(4)?,
        })
    };
    rows.iter().map(table).collect::<Result<_, _>>().map_err(doing)
}

/// Makes a publication of all operations.
///
/// # Errors
/// The server: the role needs CREATE on the database and must own the tables.
pub async fn create_publication(session: &Session, new: &NewPublication<'_>) -> Result<(), CatalogError> {
    let comment = format!("COMMENT ON PUBLICATION {} IS '{MADE_BY_US}, which adds new tables to it'", quoted(new.name));
    run(session, "create the publication", &format!("{}; {comment}", create_statement(new))).await
}

/// Adds a table to the publication; not the tables that inherit from it. Waits for the lock no longer than that, so that
/// neither VACUUM nor a change of the table's definition is held up. Writers are not.
///
/// # Errors
/// The server: the role must own the publication and the table.
pub async fn alter_publication_add_table(
    session: &Session,
    name: &str,
    table: &TableName,
    lock_timeout: Duration,
) -> Result<(), CatalogError> {
    let sql = format!(
        "SET LOCAL lock_timeout = {}; ALTER PUBLICATION {} ADD TABLE ONLY {}",
        lock_timeout.as_millis(),
        quoted(name),
        qualified(table)
    );
    run(session, "add a table to the publication", &sql).await
}

/// Makes these the publication's tables, without row filters or column lists.
///
/// # Errors
/// The server: the role must own the publication and the tables.
pub async fn alter_publication_set_tables(
    session: &Session,
    name: &str,
    tables: &[TableName],
) -> Result<(), CatalogError> {
    let doing = "set the publication's tables";
    if !tables.is_empty() {
        let sql = format!("ALTER PUBLICATION {} SET TABLE {}", quoted(name), list(tables));
        return run(session, doing, &sql).await;
    }
    // SET TABLE cannot say "none".
    let listed = "SELECT n.nspname::text, c.relname::text FROM pg_publication p
                  JOIN pg_publication_rel r ON r.prpubid = p.oid
                  JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE p.pubname = $1";
    let rows = session.client().query(listed, &[&name]).await.map_err(CatalogError::while_we(doing))?;
    let names: Result<Vec<TableName>, _> =
        rows.iter().map(|row| Ok(TableName::new(row.try_get::<_, &str>(0)?, row.try_get::<_, &str>(1)?))).collect();
    let names = names.map_err(CatalogError::while_we(doing))?;
    if names.is_empty() {
        return Ok(());
    }
    run(session, doing, &format!("ALTER PUBLICATION {} DROP TABLE {}", quoted(name), list(&names))).await
}

/// From now on the session's statements wait for locks no longer than that.
///
/// # Errors
/// The connection or the server.
pub async fn set_lock_timeout(session: &Session, lock_timeout: Duration) -> Result<(), CatalogError> {
    run(session, "set lock_timeout", &format!("SET lock_timeout = {}", lock_timeout.as_millis())).await
}

/// Drops the publication if it exists.
///
/// # Errors
/// The server: the role must own it.
pub async fn drop_publication(session: &Session, name: &str) -> Result<(), CatalogError> {
    run(session, "drop the publication", &format!("DROP PUBLICATION IF EXISTS {}", quoted(name))).await
}

/// The statement that makes a publication.
pub(crate) fn create_statement(new: &NewPublication<'_>) -> String {
    let tables = if new.tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", list(new.tables)) };
    format!(
        "CREATE PUBLICATION {}{tables} WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = {})",
        quoted(new.name),
        new.via_root
    )
}

/// Always quoted: key words are identifiers too.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// `"schema"."table"`, always quoted.
pub(crate) fn qualified(table: &TableName) -> String {
    format!("{}.{}", quoted(&table.schema), quoted(&table.table))
}

fn list(tables: &[TableName]) -> String {
    tables.iter().map(qualified).collect::<Vec<_>>().join(", ")
}

async fn run(session: &Session, doing: &'static str, sql: &str) -> Result<(), CatalogError> {
    session.client().batch_execute(sql).await.map_err(CatalogError::while_we(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        let tables = [TableName::new("public", "order"), TableName::new("S\"x", "a'b")];
        let sql = create_statement(&NewPublication { name: "p;q", tables: &tables, via_root: true });
        assert!(
            sql.starts_with("CREATE PUBLICATION \"p;q\" FOR TABLE \"public\".\"order\", \"S\"\"x\".\"a'b\" WITH"),
            "{sql}"
        );
        let none = create_statement(&NewPublication { name: "p", tables: &[], via_root: false });
        assert!(
            none.starts_with("CREATE PUBLICATION \"p\" WITH") && none.ends_with("publish_via_partition_root = false)")
        );
    }

    #[test]
    fn operations_that_are_left_out_are_named() {
        let operations = Operations { insert: true, update: true, delete: false, truncate: false };
        assert_eq!(operations.missing().collect::<Vec<_>>(), ["delete", "truncate"]);
    }
}
