//! What kind of server it is: version, limits, privileges, and who runs it.

use tidegate_model::{Lsn, Visibility};
use tokio_postgres::Row;

use crate::{CatalogError, Session};

/// Facts that decide whether a server can be captured from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// Such as 150020.
    pub version: u32,
    /// `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// Setting.
    pub max_replication_slots: i32,
    /// Slots that exist.
    pub used_replication_slots: i32,
    /// Setting.
    pub max_wal_senders: i32,
    /// Walsenders at work.
    pub used_wal_senders: i32,
    /// It is a standby.
    pub in_recovery: bool,
    /// The session's role.
    pub role: String,
    /// The role is a superuser.
    pub is_superuser: bool,
    /// The role may replicate, by its attribute or as a managed service grants it.
    pub can_replicate: bool,
    /// The role may create publications and schemas in the database.
    pub can_create: bool,
    /// The database.
    pub database: String,
    /// `server_encoding`: the database's.
    pub encoding: String,
    /// Made at initdb; None where the role may not read it.
    pub system_identifier: Option<u64>,
    /// Current timeline; None on a standby.
    pub timeline: Option<u32>,
    /// End of the flushed WAL; of the replayed WAL on a standby.
    pub current_wal_flush_lsn: Lsn,
    /// Mebibytes; None for no limit.
    pub max_slot_wal_keep_size_mib: Option<i64>,
    /// 0 for never.
    pub wal_sender_timeout_ms: i64,
    /// Seconds (18 and newer); 0 for never.
    pub idle_replication_slot_timeout_s: i64,
    /// Who runs it, where that can be told.
    pub managed: Option<ManagedService>,
}

/// A service that runs PostgreSQL for its users, who are not superusers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ManagedService {
    /// Amazon RDS and Aurora.
    AmazonRds,
    /// Google Cloud SQL.
    CloudSql,
    /// Google AlloyDB.
    AlloyDb,
    /// Azure Database.
    Azure,
    /// Supabase.
    Supabase,
    /// Neon.
    Neon,
}

impl ManagedService {
    /// How `wal_level = logical` is had there.
    #[must_use]
    pub fn enabling_logical_decoding(self) -> &'static str {
        match self {
            ManagedService::AmazonRds => {
                "set rds.logical_replication = 1 in the DB (cluster) parameter group and reboot the writer"
            }
            ManagedService::CloudSql => {
                "set the database flag cloudsql.logical_decoding = on, which restarts the instance"
            }
            ManagedService::AlloyDb => {
                "set the database flag alloydb.logical_decoding = on, which restarts the instance"
            }
            ManagedService::Azure => "set the server parameter wal_level = logical and restart the server",
            ManagedService::Supabase => "it is on by default there; connect directly, not to the pooler's address",
            ManagedService::Neon => "enable Logical Replication in the project's settings",
        }
    }

    /// How a role is allowed to replicate there; `role` is quoted already.
    #[must_use]
    pub fn allowing_replication(self, role: &str) -> String {
        match self {
            ManagedService::AmazonRds => format!("GRANT rds_replication TO {role}"),
            ManagedService::CloudSql | ManagedService::AlloyDb | ManagedService::Azure => {
                format!("ALTER ROLE {role} REPLICATION, as the service's administrator")
            }
            ManagedService::Supabase => format!("ALTER ROLE {role} REPLICATION, as role postgres"),
            ManagedService::Neon => {
                format!("create {role} in the console, or as a member of neon_superuser, which has REPLICATION")
            }
        }
    }
}

/// Reads the facts.
///
/// # Errors
/// The connection or the server.
pub async fn server_facts(session: &Session) -> Result<ServerFacts, CatalogError> {
    const SQL: &str = "
        SELECT current_setting('wal_level'), current_setting('max_replication_slots')::int4,
               (SELECT count(*) FROM pg_replication_slots)::int4, current_setting('max_wal_senders')::int4,
               (SELECT count(*) FROM pg_stat_replication)::int4, pg_is_in_recovery(), current_user::text, r.rolsuper,
               r.rolsuper OR r.rolreplication
                   OR coalesce((SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = 'rds_replication'), false),
               has_database_privilege(current_database(), 'CREATE'), current_database()::text,
               CASE WHEN pg_is_in_recovery() THEN NULL
                    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8))::bit(32)::int4 END,
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
               (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
               (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_sender_timeout'),
               (SELECT setting::int8 FROM pg_settings WHERE name = 'idle_replication_slot_timeout'),
               ARRAY(SELECT rolname::text FROM pg_roles), current_setting('server_encoding')
        FROM pg_roles r WHERE r.rolname = current_user";
    let doing = CatalogError::while_we("read the server's settings");
    let row = session.client().query_one(SQL, &[]).await.map_err(&doing)?;
    let mut facts = read(session.server_version(), &row).map_err(&doing)?;
    facts.system_identifier = system_identifier(session).await?;
    Ok(facts)
}

fn read(version: u32, row: &Row) -> Result<ServerFacts, tokio_postgres::Error> {
    let roles: Vec<String> = row.try_get(16)?;
    Ok(ServerFacts {
        version,
        wal_level: row.try_get(0)?,
        max_replication_slots: row.try_get(1)?,
        used_replication_slots: row.try_get(2)?,
        max_wal_senders: row.try_get(3)?,
        used_wal_senders: row.try_get(4)?,
        in_recovery: row.try_get(5)?,
        role: row.try_get(6)?,
        is_superuser: row.try_get(7)?,
        can_replicate: row.try_get(8)?,
        can_create: row.try_get(9)?,
        database: row.try_get(10)?,
        encoding: row.try_get(17)?,
        system_identifier: None,
        // A timeline is an unsigned number, which SQL has no type for.
        timeline: row.try_get::<_, Option<i32>>(11)?.map(i32::cast_unsigned),
        current_wal_flush_lsn: row.try_get::<_, Option<&str>>(12)?.and_then(|t| t.parse().ok()).unwrap_or(Lsn::ZERO),
        max_slot_wal_keep_size_mib: row.try_get::<_, Option<i64>>(13)?.filter(|mib| *mib >= 0),
        wal_sender_timeout_ms: row.try_get::<_, Option<i64>>(14)?.unwrap_or(0),
        idle_replication_slot_timeout_s: row.try_get::<_, Option<i64>>(15)?.unwrap_or(0),
        managed: managed_service(&roles),
    })
}

/// None where the service has taken the function away from its users.
async fn system_identifier(session: &Session) -> Result<Option<u64>, CatalogError> {
    let doing = CatalogError::while_we("read the system identifier");
    match session.client().query_one("SELECT system_identifier FROM pg_control_system()", &[]).await {
        // An unsigned number, which SQL has no type for.
        Ok(row) => row.try_get::<_, i64>(0).map(|id| Some(id.cast_unsigned())).map_err(doing),
        Err(error) => match doing(error) {
            error if error.code() == Some("42501") => Ok(None),
            error => Err(error),
        },
    }
}

/// Each service has an administrators' role of its own.
fn managed_service(roles: &[String]) -> Option<ManagedService> {
    let known = [
        ("rds_superuser", ManagedService::AmazonRds),
        ("alloydbsuperuser", ManagedService::AlloyDb),
        ("cloudsqlsuperuser", ManagedService::CloudSql),
        ("azure_pg_admin", ManagedService::Azure),
        ("supabase_admin", ManagedService::Supabase),
        ("neon_superuser", ManagedService::Neon),
    ];
    known.into_iter().find(|(name, _)| roles.iter().any(|role| role == name)).map(|(_, service)| service)
}

/// Which transactions are visible now.
///
/// # Errors
/// The session broke, or the answer is no snapshot.
pub async fn visibility(session: &Session) -> Result<Visibility, CatalogError> {
    let doing = "read which transactions are visible";
    let row = session.client().query_one("SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text", &[]).await;
    let text: String = row.and_then(|row| row.try_get(0)).map_err(CatalogError::while_we(doing))?;
    text.parse().map_err(|_| CatalogError::Unexpected { doing, problem: "not a snapshot".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_told_by_their_roles() {
        let roles = |names: &[&str]| managed_service(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(roles(&["postgres"]), None);
        assert_eq!(roles(&["postgres", "rds_superuser"]), Some(ManagedService::AmazonRds));
        // AlloyDB has Cloud SQL's role too.
        assert_eq!(roles(&["cloudsqlsuperuser", "alloydbsuperuser"]), Some(ManagedService::AlloyDb));
    }
}
