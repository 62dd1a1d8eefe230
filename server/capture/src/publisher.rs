//! Publishes tables that appear and are to be followed, in a publication that we have made, and says of the others why they are
//! not published.
//!
//! Invariant: a table is published only where that lets no statement of the application fail, and only by itself: never with the
//! tables that inherit from it.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use tidegate_model::{SourceName, TableName, TablePatterns};
use tidegate_postgres::{
    CatalogError, ConnectConfig, Persistence, Publication, Session, TableInfo, TableKind, alter_publication_add_table,
    publication, tables,
};
use tokio::time::Instant;
use tracing::info;

use crate::{NewTable, NewTables};

/// Below `deadlock_timeout`, at which PostgreSQL would end an autovacuum for us.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// After a refusal.
const RETRY: Duration = Duration::from_secs(10);

/// Publishes the tables of a source.
#[derive(Debug)]
pub(crate) struct Publisher {
    source: SourceName,
    connect: ConnectConfig,
    publication: String,
    tables: TablePatterns,
    new_tables: NewTables,
    /// What the server has said, and when to ask again.
    refused: BTreeMap<TableName, (String, Instant)>,
}

impl Publisher {
    pub(crate) fn new(config: &crate::CaptureConfig) -> Self {
        Publisher {
            source: config.source.clone(),
            connect: config.connect.clone(),
            publication: config.publication.clone(),
            tables: config.tables.clone(),
            new_tables: config.new_tables,
            refused: BTreeMap::new(),
        }
    }

    /// Publishes what can be published, and returns what is not. The session reads; the lock is waited for elsewhere.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub(crate) async fn look(&mut self, session: &Session) -> Result<Vec<NewTable>, CatalogError> {
        let Some(publication) = publication(session, &self.publication).await? else { return Ok(Vec::new()) };
        let all = tables(session).await?;
        let published: HashSet<u32> = publication.tables.iter().map(|table| table.oid).collect();
        let mut left_out = Vec::new();
        for table in unpublished(&all, &self.tables, &published) {
            let refused = match obstacle(table, &all) {
                Some(obstacle) => Some(obstacle),
                None => match self.restraint(table, &publication, session.server_version()) {
                    Some(restraint) => Some(restraint),
                    None => self.publish(&table.name).await,
                },
            };
            left_out.extend(refused.map(|detail| NewTable { table: table.name.clone(), detail }));
        }
        self.refused.retain(|name, _| left_out.iter().any(|new| new.table == *name));
        Ok(left_out)
    }

    /// Why we may not publish a table that could be published, and what to do.
    fn restraint(&self, table: &TableInfo, publication: &Publication, server_version: u32) -> Option<String> {
        let (name, table_name) = (quoted(&self.publication), &table.name);
        let why = match self.new_tables {
            NewTables::Publish if !publication.made_by_us => {
                format!("Tidegate has not made publication {name}, and leaves it alone")
            }
            NewTables::Publish if !publication.owned => format!("the role does not own publication {name}"),
            NewTables::Publish if !table.owned => "the role does not own the table".to_owned(),
            NewTables::Publish if may_lose_changes(server_version) => {
                "this version of PostgreSQL may lose changes of a table that is added while transactions write to it: \
                 upgrade to its newest minor version; or, while nothing writes to the table"
                    .to_owned()
            }
            NewTables::Publish => return None,
            NewTables::Snapshot | NewTables::Follow => {
                "`new_tables` says that Tidegate is not to publish it".to_owned()
            }
        };
        Some(format!("not published: {why}; run ALTER PUBLICATION {name} ADD TABLE {table_name}"))
    }

    /// None, and it is published.
    async fn publish(&mut self, table: &TableName) -> Option<String> {
        if let Some((detail, _)) = self.refused.get(table).filter(|(_, until)| *until > Instant::now()) {
            return Some(detail.clone());
        }
        let added = async {
            let session = Session::connect(&self.connect).await.map_err(|error| error.to_string())?;
            let added = alter_publication_add_table(&session, &self.publication, table, LOCK_TIMEOUT).await;
            added.map_err(|error| error.to_string())
        };
        match added.await {
            Ok(()) => {
                info!(source = %self.source, %table, publication = self.publication, "a new table is published");
                self.refused.remove(table);
                None
            }
            Err(error) => {
                let detail = format!("not published yet, which is tried again: {error}");
                self.refused.insert(table.clone(), (detail.clone(), Instant::now() + RETRY));
                Some(detail)
            }
        }
    }
}

/// The tables to follow that are not published. A partition is published through its root.
fn unpublished<'a>(all: &'a [TableInfo], patterns: &TablePatterns, published: &HashSet<u32>) -> Vec<&'a TableInfo> {
    let is_sent = |table: &TableInfo| {
        let by_leaves = || all.iter().any(|leaf| leaf.root_oid == Some(table.oid) && published.contains(&leaf.oid));
        published.contains(&table.oid) || (table.kind == TableKind::Partitioned && by_leaves())
    };
    let is_left_out = |table: &&TableInfo| {
        let comes_and_goes = table.persistence == Persistence::Temporary;
        patterns.matches(&table.name) && table.root_oid.is_none() && !comes_and_goes && !is_sent(table)
    };
    all.iter().filter(is_left_out).collect()
}

/// Why a table cannot be published as it is, and what to do.
fn obstacle(table: &TableInfo, all: &[TableInfo]) -> Option<String> {
    match (table.kind, table.persistence) {
        (TableKind::Foreign, _) => {
            return Some("not published: a foreign table's changes are not in the WAL".to_owned());
        }
        (TableKind::Ordinary | TableKind::Partitioned, Persistence::Unlogged | Persistence::Temporary) => {
            return Some("not published: an unlogged table's changes are not in the WAL; SET LOGGED".to_owned());
        }
        (TableKind::Ordinary | TableKind::Partitioned, Persistence::Permanent) => {}
    }
    if table.inherits {
        return Some(
            "not published: it inherits from another table; add it to the publication if that is meant".to_owned(),
        );
    }
    let leaves = all.iter().filter(|leaf| leaf.is_leaf() && leaf.root_oid == Some(table.oid));
    let lacking = leaves.chain(Some(table)).find(|table| !table.has_replica_identity())?;
    Some(format!(
        "not published: {} has no replica identity, so that publishing it would make the application's UPDATE and DELETE fail; give \
         it a primary key that is not deferrable, or ALTER TABLE … REPLICA IDENTITY FULL",
        lacking.name
    ))
}

/// Versions in which a transaction that wrote to a table before it was added makes the walsender take it for unpublished: decoding did
/// not tell running transactions of what had changed (PostgreSQL's release notes of 14.18, 15.13, 16.9 and 17.5).
fn may_lose_changes(server_version: u32) -> bool {
    match server_version / 10_000 {
        14 => server_version < 140_018,
        15 => server_version < 150_013,
        16 => server_version < 160_009,
        17 => server_version < 170_005,
        major => major < 14,
    }
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_model::ReplicaIdentity;

    fn table(oid: u32, name: &str) -> TableInfo {
        TableInfo {
            oid,
            name: TableName::new("public", name),
            kind: TableKind::Ordinary,
            persistence: Persistence::Permanent,
            root_oid: None,
            replica_identity: ReplicaIdentity::Default,
            primary_key: vec![1],
            primary_key_deferrable: false,
            identity_index: Vec::new(),
            owned: true,
            readable: true,
            inherits: false,
        }
    }

    fn left(all: &[TableInfo], published: &[u32]) -> Vec<u32> {
        let patterns = TablePatterns::parse(["public.*", "!public.audit_*"]).expect("patterns");
        unpublished(all, &patterns, &published.iter().copied().collect()).iter().map(|table| table.oid).collect()
    }

    #[test]
    fn partitions_come_with_their_root_and_temporary_tables_not_at_all() {
        let root = TableInfo { kind: TableKind::Partitioned, ..table(1, "a") };
        let leaf = TableInfo { root_oid: Some(1), ..table(2, "a_1") };
        let temporary = TableInfo { persistence: Persistence::Temporary, ..table(3, "t") };
        let all = [root, leaf, temporary, table(4, "b"), table(5, "audit_b")];
        assert_eq!(left(&all, &[]), [1, 4]);
        assert_eq!(left(&all, &[1]), [4]);
        // Published by its partitions.
        assert_eq!(left(&all, &[2, 4]), [0; 0]);
    }

    #[test]
    fn minor_versions_that_lose_changes_are_known() {
        assert!([140_017, 150_012, 160_008, 170_004].into_iter().all(may_lose_changes));
        assert!(![140_018, 150_013, 160_009, 170_005, 180_000].into_iter().any(may_lose_changes));
    }

    #[test]
    fn what_would_break_the_application_is_not_published() {
        let keyless = TableInfo { primary_key: Vec::new(), ..table(1, "a") };
        let detail = obstacle(&keyless, &[]).expect("an obstacle");
        assert!(detail.contains("public.a has no replica identity"), "{detail}");
        let full = TableInfo { replica_identity: ReplicaIdentity::Full, ..keyless.clone() };
        assert_eq!(obstacle(&full, &[]), None);
        let deferrable = TableInfo { primary_key_deferrable: true, ..table(2, "b") };
        assert!(obstacle(&deferrable, &[]).is_some());
        // What the root says does not count for its partitions.
        let root = TableInfo { kind: TableKind::Partitioned, ..full };
        let leaf = TableInfo { root_oid: Some(1), name: TableName::new("public", "a_1"), ..keyless };
        let detail = obstacle(&root, std::slice::from_ref(&leaf)).expect("an obstacle");
        assert!(detail.contains("public.a_1 has no replica identity"), "{detail}");
        let child = TableInfo { inherits: true, ..table(3, "c") };
        let unlogged = TableInfo { persistence: Persistence::Unlogged, ..table(4, "d") };
        let foreign = TableInfo { kind: TableKind::Foreign, ..table(5, "e") };
        assert!([child, unlogged, foreign].iter().all(|table| obstacle(table, &[]).is_some()));
    }
}
