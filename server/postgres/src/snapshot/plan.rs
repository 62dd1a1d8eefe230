//! What is to be read of a table: as its publication sends it, so that a row that is read and one that is streamed are alike.
//!
//! Invariant: a plan was read while the fingerprint did not change; a reader refuses a table with another one.

use std::{collections::HashSet, time::Duration};

use tidegate_model::{Relation, RelationColumn, ReplicaIdentity, TableName};

use crate::{
    CatalogColumn, OldRows, Session, old_rows_of_full,
    publication::qualified,
    relation_columns,
    snapshot::{Fingerprint, KeyColumn, SnapshotReadError, Unsupported, key, table_fingerprint},
};

/// How long a lock on a table is waited for: whoever needs the table after us waits behind us.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How to read a table for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlan {
    /// The publication that it is read for.
    pub publication: String,
    /// The table as pgoutput announces it: the published columns, in the order of the rows.
    pub relation: Relation,
    /// Only rows for which this is true are published; SQL over the table's columns.
    pub row_filter: Option<String>,
    /// Of the published rows, a snapshot reads only those for which this is true; SQL over the published columns. None where it
    /// reads all: whoever asks for a part sets it.
    pub condition: Option<String>,
    /// What to read in order of; empty for a keyless table, which is read by blocks.
    pub key: Vec<KeyColumn>,
    /// What it was when the plan was made.
    pub fingerprint: Fingerprint,
    /// Where the changes of its rows come from.
    pub kind: PlanKind,
    /// Where the rows are: the table itself, or a root's leaves.
    pub storage: Vec<Storage>,
    /// As the planner estimates, before row filters; None where nothing has been analysed.
    pub row_count_estimate: Option<u64>,
}

/// What kind of table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlanKind {
    /// An ordinary table. Rows of tables that inherit from it are not its own.
    Ordinary,
    /// A partition that is published as itself.
    Leaf,
    /// A partitioned table; its partitions are published as this.
    Root,
}

/// A table that holds rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Exact name.
    pub name: TableName,
    /// Pages, as of the last VACUUM or ANALYZE.
    pub page_count_estimate: u64,
}

impl TablePlan {
    /// The table's exact name.
    #[must_use]
    pub fn name(&self) -> TableName {
        TableName::new(self.relation.schema.as_str(), self.relation.table.as_str())
    }
}

/// Reads how a publication sends a table. A transaction that the session is in must be READ COMMITTED.
///
/// # Errors
/// [`SnapshotReadError::Unsupported`] with the reason; [`SnapshotReadError::TableMissing`],
/// [`SnapshotReadError::PublicationMissing`]; [`SnapshotReadError::DefinitionChanged`] where they change meanwhile.
pub async fn table_plan(
    session: &Session,
    publication: &str,
    table: &TableName,
) -> Result<TablePlan, SnapshotReadError> {
    let class = Class::read(session, table).await?;
    let unsupported = |reason| SnapshotReadError::Unsupported { table: table.clone(), reason };
    if let Some(reason) = class.unsupported() {
        return Err(unsupported(reason));
    }
    let fingerprint = table_fingerprint(session, publication, class.oid, table).await?;
    let Some(published) = Published::read(session, publication, table, class.oid).await? else {
        return Err(unsupported(not_published(session, publication, table, &class).await?));
    };
    let catalog = relation_columns(session, class.oid).await?;
    let columns: Vec<CatalogColumn> = catalog.into_iter().filter(|column| published.has(column)).collect();
    let is_full = class.replica_identity == ReplicaIdentity::Full;
    let key = if is_full && old_rows_of_full(session, class.oid).await? == OldRows::Less {
        Vec::new()
    } else {
        key::read(session, table, class.oid, class.replica_identity, &columns).await?
    };
    let storage = read_storage(session, table, class.oid).await?;
    if let Some(partition) = storage.iter().find(|(_, streamed, _)| !streamed) {
        return Err(unsupported(Unsupported::Partition { partition: partition.0.name.clone() }));
    }
    if table_fingerprint(session, publication, class.oid, table).await? != fingerprint {
        return Err(SnapshotReadError::DefinitionChanged { table: table.clone() });
    }
    // -1 stands for "never analysed".
    let rows = storage.iter().map(|(_, _, rows)| (*rows >= 0.0).then_some(*rows as u64)).sum();
    let announced = |column: CatalogColumn| RelationColumn {
        name: column.name,
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        identity: column.in_identity,
    };
    Ok(TablePlan {
        publication: publication.to_owned(),
        relation: Relation {
            oid: class.oid,
            schema: table.schema.clone(),
            table: table.table.clone(),
            replica_identity: class.replica_identity,
            columns: columns.into_iter().map(announced).collect(),
        },
        row_filter: published.row_filter,
        condition: None,
        key,
        fingerprint,
        kind: match (class.kind, class.root) {
            ('p', _) => PlanKind::Root,
            (_, Some(_)) => PlanKind::Leaf,
            (_, None) => PlanKind::Ordinary,
        },
        storage: storage.into_iter().map(|(storage, _, _)| storage).collect(),
        row_count_estimate: rows,
    })
}

/// The same with the table locked (ACCESS SHARE) meanwhile, so that one that is truncated again and again has a plan too.
///
/// # Errors
/// As of [`table_plan`]; [`SnapshotReadError::LockTimeout`], [`SnapshotReadError::Forbidden`].
pub async fn held_table_plan(
    session: &Session,
    publication: &str,
    table: &TableName,
) -> Result<TablePlan, SnapshotReadError> {
    // What cannot be locked is told apart before.
    if let Some(reason) = Class::read(session, table).await?.unsupported() {
        return Err(SnapshotReadError::Unsupported { table: table.clone(), reason });
    }
    let (timeout_ms, name) = (LOCK_TIMEOUT.as_millis(), qualified(table));
    let hold =
        format!("BEGIN READ ONLY; SET LOCAL lock_timeout = {timeout_ms}; LOCK TABLE {name} IN ACCESS SHARE MODE");
    let planned = async {
        session.client().batch_execute(&hold).await.map_err(SnapshotReadError::of(table, "lock a table"))?;
        table_plan(session, publication, table).await
    }
    .await;
    let ended = session.client().batch_execute("ROLLBACK").await;
    planned.and_then(|plan| ended.map(|()| plan).map_err(SnapshotReadError::of(table, "end a transaction")))
}

/// A relation in `pg_class`.
struct Class {
    oid: u32,
    /// `relkind`
    kind: char,
    /// `relpersistence`
    persistence: char,
    replica_identity: ReplicaIdentity,
    /// Of a partition: the topmost table.
    root: Option<TableName>,
}

impl Class {
    async fn read(session: &Session, table: &TableName) -> Result<Self, SnapshotReadError> {
        const SQL: &str = "
            SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relreplident::text, rn.nspname::text, r.relname::text
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid)
            LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
            WHERE n.nspname = $1 AND c.relname = $2";
        let doing = SnapshotReadError::of(table, "read a table's kind");
        let row = session.client().query_opt(SQL, &[&table.schema, &table.table]).await.map_err(&doing)?;
        let row = row.ok_or_else(|| SnapshotReadError::TableMissing { table: table.clone() })?;
        let letter = |at: usize| row.try_get::<_, &str>(at).map(|text| text.chars().next().unwrap_or(' '));
        let root: (Option<String>, Option<String>) = (row.try_get(4).map_err(&doing)?, row.try_get(5).map_err(&doing)?);
        Ok(Class {
            oid: row.try_get(0).map_err(&doing)?,
            kind: letter(1).map_err(&doing)?,
            persistence: letter(2).map_err(&doing)?,
            replica_identity: match letter(3).map_err(&doing)? {
                'f' => ReplicaIdentity::Full,
                'n' => ReplicaIdentity::Nothing,
                'i' => ReplicaIdentity::Index,
                _ => ReplicaIdentity::Default,
            },
            root: root.0.zip(root.1).map(|(schema, table)| TableName::new(schema, table)),
        })
    }

    fn unsupported(&self) -> Option<Unsupported> {
        match (self.kind, self.persistence) {
            ('f', _) => Some(Unsupported::Foreign),
            ('r' | 'p', 'u') => Some(Unsupported::Unlogged),
            ('r' | 'p', 't') => Some(Unsupported::Temporary),
            ('r' | 'p', _) => None,
            _ => Some(Unsupported::NotATable),
        }
    }
}

/// What a publication says of a table.
struct Published {
    /// Column numbers; None for all that are not generated.
    columns: Option<HashSet<i16>>,
    row_filter: Option<String>,
}

impl Published {
    async fn read(
        session: &Session,
        publication: &str,
        table: &TableName,
        oid: u32,
    ) -> Result<Option<Self>, SnapshotReadError> {
        // 14 knows neither column lists nor row filters.
        let (attrs, filter) = if session.server_version() >= 150_000 {
            ("p.attrs::int2[]", "pg_get_expr(p.qual, p.relid)")
        } else {
            ("NULL::int2[]", "NULL::text")
        };
        let sql = format!("SELECT {attrs}, {filter} FROM pg_get_publication_tables($1::text) p WHERE p.relid = $2");
        let doing = "read a table's publication";
        let rows = session.client().query(&sql, &[&publication, &oid]).await;
        let rows = rows.map_err(|error| match crate::CatalogError::while_we(doing)(error) {
            // Of all that the statement names, only the publication may not exist.
            error if error.code() == Some("42704") => {
                SnapshotReadError::PublicationMissing { publication: publication.to_owned() }
            }
            error => error.into(),
        })?;
        let Some(row) = rows.first() else { return Ok(None) };
        let doing = SnapshotReadError::of(table, doing);
        let columns: Option<Vec<i16>> = row.try_get(0).map_err(&doing)?;
        Ok(Some(Published { columns: columns.map(HashSet::from_iter), row_filter: row.try_get(1).map_err(&doing)? }))
    }

    fn has(&self, column: &CatalogColumn) -> bool {
        match &self.columns {
            Some(columns) => i16::try_from(column.attnum).is_ok_and(|attnum| columns.contains(&attnum)),
            None => !column.generated,
        }
    }
}

/// Why a table that exists is not among the publication's.
async fn not_published(
    session: &Session,
    publication: &str,
    table: &TableName,
    class: &Class,
) -> Result<Unsupported, SnapshotReadError> {
    const SQL: &str = "
        SELECT EXISTS (SELECT FROM pg_get_publication_tables($1::text) p WHERE p.relid = pg_partition_root($2::oid)),
               EXISTS (SELECT FROM pg_get_publication_tables($1::text) p
                       WHERE p.relid IN (SELECT relid FROM pg_partition_tree($2::oid)))";
    let doing = SnapshotReadError::of(table, "read a table's publication");
    let row = session.client().query_one(SQL, &[&publication, &class.oid]).await.map_err(&doing)?;
    let publication = publication.to_owned();
    Ok(match &class.root {
        Some(root) if row.try_get(0).map_err(&doing)? => Unsupported::ThroughRoot { publication, root: root.clone() },
        _ if class.kind == 'p' && row.try_get(1).map_err(&doing)? => Unsupported::ByPartitions { publication },
        _ => Unsupported::NotPublished { publication },
    })
}

/// The tables that hold the rows; whether their changes are in the WAL; their `reltuples`.
async fn read_storage(
    session: &Session,
    table: &TableName,
    oid: u32,
) -> Result<Vec<(Storage, bool, f32)>, SnapshotReadError> {
    const SQL: &str = "
        SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'r' AND c.relpersistence = 'p', c.reltuples, c.relpages
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid IN (SELECT $1::oid UNION SELECT relid::oid FROM pg_partition_tree($1::oid)) AND c.relkind <> 'p'
        ORDER BY c.oid";
    let doing = SnapshotReadError::of(table, "read a table's partitions");
    let rows = session.client().query(SQL, &[&oid]).await.map_err(&doing)?;
    let storage = |row: &tokio_postgres::Row| {
        let storage = Storage {
            oid: row.try_get(0)?,
            name: TableName::new(row.try_get::<_, &str>(1)?, row.try_get::<_, &str>(2)?),
            page_count_estimate: u64::try_from(row.try_get::<_, i32>(5)?).unwrap_or(0),
        };
        Ok((storage, row.try_get(3)?, row.try_get(4)?))
    };
    rows.iter().map(storage).collect::<Result<_, _>>().map_err(doing)
}
