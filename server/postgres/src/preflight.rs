//! Whether a server is ready to be captured from, and if not, what is wrong and how it is mended.
//!
//! ```text
//! server_facts ─▶ server ─┐
//! slot_status  ─▶ slot   ─┤
//! publication ──▶ tables ─┼─▶ findings, errors first
//! replication connection ─┘
//! zones of conditions ─▶ zones ─▶ a finding, where they are given
//! ```
//!
//! Invariant: each finding says what is wrong and the next step, as SQL where SQL does it. Checking changes nothing on the server.

mod server;
mod setup;
mod slot;
mod tables;
mod zones;

use tidegate_model::TablePatterns;

use crate::{CatalogError, ConnectError, ReplicationConnection, Session, publication, server_facts, slot_status};

pub use setup::{Setup, setup, setup_sql};
pub use zones::{ZoneClocks, zone_finding};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Capture does not work, or breaks the application.
    Error,
    /// It works, with a loss or a risk.
    Warning,
    /// Good to know.
    Info,
}

/// Something worth saying about a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable name of the kind, such as `wal_level`.
    pub code: &'static str,
    /// What is the case.
    pub problem: String,
    /// The next step.
    pub mend: String,
}

impl Finding {
    fn error(code: &'static str, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { severity: Severity::Error, code, problem: problem.into(), mend: mend.into() }
    }

    fn warning(code: &'static str, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, ..Self::error(code, problem, mend) }
    }

    fn info(code: &'static str, problem: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { severity: Severity::Info, ..Self::error(code, problem, mend) }
    }

    /// A connection that could not be made, as a finding.
    #[must_use]
    pub fn of_connect_error(error: &ConnectError) -> Self {
        let (code, mend) = match error {
            ConnectError::Config { .. } => ("connection_config", "correct the source's url"),
            ConnectError::UrlFile { .. } => ("connection_config", "correct the file, or its path"),
            ConnectError::ChannelBinding { .. } => {
                ("channel_binding", "check ssl and password_encryption on the server, and its pg_hba.conf")
            }
            ConnectError::Unreachable { .. } | ConnectError::Timeout { .. } => {
                ("unreachable", "check host, port, listen_addresses and firewalls; is the server running?")
            }
            ConnectError::TlsNotOffered { .. } | ConnectError::Tls { .. } => {
                ("tls", "check ssl on the server, and sslmode, sslrootcert, sslcert and sslkey in the url")
            }
            ConnectError::PasswordMissing { .. } => ("password_missing", "put the password into the source's url"),
            ConnectError::Authentication { .. } => (
                "authentication",
                "check user and password, and pg_hba.conf: with logical replication a line for the database is enough, \
                 'replication' lines are for physical replication",
            ),
            ConnectError::ReplicationForbidden { .. } => ("replication_privilege", "run ALTER ROLE … REPLICATION"),
            ConnectError::TooManyConnections { .. } => (
                "connections_used_up",
                "raise max_connections or max_wal_senders, or end connections that are not used",
            ),
            ConnectError::Pooler { .. } | ConnectError::SettingsLost { .. } => {
                ("pooler", "give the address of PostgreSQL itself, not of the pooler")
            }
            ConnectError::TooOld { .. } => ("too_old", "upgrade PostgreSQL to 14 or newer"),
            ConnectError::Server { .. } => ("connection_refused", "see the server's message; does the database exist?"),
            ConnectError::Protocol { .. } => ("protocol", "is it PostgreSQL that listens there?"),
        };
        Finding::error(code, error.to_string(), mend)
    }
}

/// What is going to be captured.
#[derive(Clone, Debug)]
pub struct CheckRequest {
    /// Name of the slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// The tables.
    pub patterns: TablePatterns,
}

/// Looks at everything that capture needs. The findings, errors first; none at all if the server is ready.
///
/// # Errors
/// The session broke, or a catalog is not readable: what could not be looked at is no finding.
pub async fn check(session: &Session, request: &CheckRequest) -> Result<Vec<Finding>, CatalogError> {
    let facts = server_facts(session).await?;
    let slot = slot_status(session, &request.slot).await?;
    let publication = publication(session, &request.publication).await?;
    let all_tables = crate::tables(session).await?;

    let mut findings = server::findings(&facts, slot.is_some());
    findings.extend(replication_findings(session, &facts).await);
    findings.extend(slot::findings(&facts, request, slot.as_ref()));
    findings.extend(tables::findings(&facts, request, publication.as_ref(), &all_tables));
    findings.sort_by_key(|finding| finding.severity);
    Ok(findings)
}

/// Tries the second kind of connection that capture needs.
async fn replication_findings(session: &Session, facts: &crate::ServerFacts) -> Option<Finding> {
    // What is already explained by the facts need not be tried.
    if facts.wal_level == "minimal" || !facts.can_replicate || facts.used_wal_senders >= facts.max_wal_senders {
        return None;
    }
    match Box::pin(ReplicationConnection::connect(session.config())).await {
        Ok(connection) if connection.is_behind_pooler() => Some(Finding::warning(
            "pooler",
            "a connection pooler passes the replication connection on",
            "give the address of PostgreSQL itself: the pooler's restarts and timeouts end the stream",
        )),
        Ok(_) => None,
        Err(error) => Some(Finding::of_connect_error(&error)),
    }
}
