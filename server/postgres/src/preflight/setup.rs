//! The SQL that makes a server ready, for someone with more privileges than the role of the source.

use std::collections::BTreeSet;

use tidegate_model::TableName;

use super::{CheckRequest, tables::followed};
use crate::{
    CatalogError, ManagedService, NewPublication, Session, TableKind,
    publication::{create_statement, qualified, quoted},
    server_facts,
};

/// What is to be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The source's role.
    pub role: String,
    /// The source's database.
    pub database: String,
    /// The publication's name.
    pub publication: String,
    /// The tables to publish: partitioned tables as such, not their partitions.
    pub tables: Vec<TableName>,
    /// Who runs the server.
    pub managed: Option<ManagedService>,
}

/// Finds out what is to be set up for a request.
///
/// # Errors
/// The connection or the server.
pub async fn setup(session: &Session, request: &CheckRequest) -> Result<Setup, CatalogError> {
    let facts = server_facts(session).await?;
    let tables = crate::tables(session).await?;
    // Partitions come with their root.
    let published = |table: &&crate::TableInfo| table.root_oid.is_none() && table.kind != TableKind::Foreign;
    let followed = followed(request, &tables);
    Ok(Setup {
        role: facts.role,
        database: facts.database,
        publication: request.publication.clone(),
        tables: followed.into_iter().filter(published).map(|table| table.name.clone()).collect(),
        managed: facts.managed,
    })
}

/// The statements, with comments, in order; to be read before it is run.
#[must_use]
pub fn setup_sql(setup: &Setup) -> String {
    let (role, database) = (quoted(&setup.role), quoted(&setup.database));
    let mut sql = String::from("-- 1. Settings: PostgreSQL restarts for them.\n");
    match setup.managed {
        Some(service) => {
            sql += &format!("-- {}.\n", capitalised(service.enabling_logical_decoding()));
            sql += &format!("\n-- 2. The role.\nCREATE ROLE {role} LOGIN PASSWORD 'choose one';\n");
            sql += &format!("-- {};\n", service.allowing_replication(&role));
        }
        None => {
            sql += "ALTER SYSTEM SET wal_level = 'logical';\n";
            sql += "-- Optional: the WAL that may pile up while Tidegate is down.\n";
            sql += "-- ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';\n";
            sql += &format!("\n-- 2. The role.\nCREATE ROLE {role} LOGIN REPLICATION PASSWORD 'choose one';\n");
        }
    }
    sql += &format!("GRANT CONNECT ON DATABASE {database} TO {role};\n");
    sql += "-- For the schema tidegate, unless another control database is configured.\n";
    sql += &format!("GRANT CREATE ON DATABASE {database} TO {role};\n");
    let schemas: BTreeSet<&str> = setup.tables.iter().map(|table| table.schema.as_str()).collect();
    for schema in schemas {
        sql += &format!("GRANT USAGE ON SCHEMA {} TO {role};\n", quoted(schema));
    }
    for table in &setup.tables {
        sql += &format!("GRANT SELECT ON {} TO {role};\n", qualified(table));
    }
    let new = NewPublication { name: &setup.publication, tables: &setup.tables, via_root: true };
    sql += "\n-- 3. The publication, as the tables' owner.\n";
    sql += &format!("{};\n", create_statement(&new));
    sql += "\n-- 4. The slot: Tidegate makes it at its first start, and `tidegate source drop` removes it.\n";
    sql
}

fn capitalised(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + rest.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop(managed: Option<ManagedService>) -> String {
        setup_sql(&Setup {
            role: "cdc".to_owned(),
            database: "shop".to_owned(),
            publication: "tidegate_shop".to_owned(),
            tables: vec![TableName::new("public", "orders"), TableName::new("public", "Items")],
            managed,
        })
    }

    #[test]
    fn a_server_of_ones_own_is_set_up() {
        let sql = shop(None);
        for expected in [
            "ALTER SYSTEM SET wal_level = 'logical';",
            "CREATE ROLE \"cdc\" LOGIN REPLICATION",
            "GRANT SELECT ON \"public\".\"Items\" TO \"cdc\";",
            "CREATE PUBLICATION \"tidegate_shop\" FOR TABLE \"public\".\"orders\", \"public\".\"Items\"",
        ] {
            assert!(sql.contains(expected), "{expected} in\n{sql}");
        }
        assert_eq!(sql.matches("USAGE ON SCHEMA").count(), 1);
    }

    #[test]
    fn a_managed_server_is_set_up_its_own_way() {
        let sql = shop(Some(ManagedService::AmazonRds));
        assert!(sql.contains("rds.logical_replication") && !sql.contains("ALTER SYSTEM"), "{sql}");
    }
}
