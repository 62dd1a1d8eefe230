//! Announcements of schema changes: event triggers in the source's database that write a logical message of a few bytes, by which
//! a schema change has a place in the stream. Opt-in, since PostgreSQL lets only superusers make event triggers.
//!
//! Not announced, since no event trigger fires: TRUNCATE, VACUUM FULL and CLUSTER.

use crate::{CatalogError, Session};

/// Prefix of the messages. Their content is the command's tag, such as `ALTER TABLE`.
pub const DDL_MESSAGE_PREFIX: &str = "tidegate.ddl";

const INSTALL: &str = include_str!("../../../migrations/source/ddl_install.sql");
const REMOVE: &str = include_str!("../../../migrations/source/ddl_remove.sql");
/// Without what DROP says of things that are not there.
const QUIET: &str = "SET LOCAL client_min_messages = warning;";

/// How the announcements of a database are doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DdlAnnouncements {
    /// They are not installed.
    Absent,
    /// They are made, by triggers of this role.
    Installed {
        /// Of the triggers.
        owner: String,
    },
    /// Something of them is missing or disabled.
    Incomplete,
}

/// The script that installs the announcements, in place of others.
#[must_use]
pub fn install_ddl_sql() -> String {
    format!("BEGIN;\n{QUIET}\n{REMOVE}\n{INSTALL}COMMIT;\n")
}

/// The script that removes them.
#[must_use]
pub fn remove_ddl_sql() -> String {
    format!("BEGIN;\n{QUIET}\n{REMOVE}COMMIT;\n")
}

/// Installs the announcements; leaves nothing where that fails.
///
/// # Errors
/// The connection or the server: 42501 where the role may not.
pub async fn install_ddl(session: &Session) -> Result<(), CatalogError> {
    let doing = CatalogError::while_we("install the announcements of schema changes");
    session.client().batch_execute(&install_ddl_sql()).await.map_err(doing)
}

/// Removes them, where there are any.
///
/// # Errors
/// The connection or the server: 42501 where they are another role's.
pub async fn remove_ddl(session: &Session) -> Result<(), CatalogError> {
    let doing = CatalogError::while_we("remove the announcements of schema changes");
    session.client().batch_execute(&remove_ddl_sql()).await.map_err(doing)
}

/// How they are doing.
///
/// # Errors
/// The connection or the server.
pub async fn ddl_announcements(session: &Session) -> Result<DdlAnnouncements, CatalogError> {
    const SQL: &str = "
        SELECT count(e.oid) FILTER (WHERE e.evtenabled IN ('A', 'O')), max(pg_get_userbyid(e.evtowner)::text)
        FROM pg_namespace n LEFT JOIN pg_proc p ON p.pronamespace = n.oid AND p.proname = 'announce'
        LEFT JOIN pg_event_trigger e ON e.evtfoid = p.oid
        WHERE n.nspname = 'tidegate_ddl' GROUP BY n.oid";
    let doing = CatalogError::while_we("see whether schema changes are announced");
    let Some(row) = session.client().query_opt(SQL, &[]).await.map_err(&doing)? else {
        return Ok(DdlAnnouncements::Absent);
    };
    let (enabled, owner): (i64, Option<String>) = (row.try_get(0).map_err(&doing)?, row.try_get(1).map_err(doing)?);
    Ok(match owner {
        Some(owner) if enabled == 2 => DdlAnnouncements::Installed { owner },
        Some(_) | None => DdlAnnouncements::Incomplete,
    })
}
