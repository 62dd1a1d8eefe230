//! Publications: what they contain, and their life.
//!
//! Invariant: names reach SQL only quoted; a statement here touches publications, never tables.

use tidegate_model::TableName;

use crate::{CatalogError, Session};

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
        SELECT oid, puballtables, pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate
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
    run(session, "create the publication", &create_statement(new)).await
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
