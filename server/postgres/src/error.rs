//! What can go wrong between us and a server, told apart as far as someone acts on it differently.
//!
//! Invariant: kinds are told apart by SQLSTATE and by the server's routine, never by messages, which are translated.

use std::{io, path::PathBuf, time::Duration};

use postgres_protocol::message::backend::ErrorFields;
use tidegate_model::Retry;
use tokio_postgres::{error::DbError, fallible_iterator::FallibleIterator};

const SOON: Retry = Retry::After(Duration::from_secs(1));
const LATER: Retry = Retry::After(Duration::from_secs(10));

/// An error as the server reports it (PostgreSQL manual, section 55.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {code}){}", self.notes())]
pub struct ServerError {
    /// ERROR, FATAL, PANIC, or a notice's severity; not translated.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// Translated to the server's language.
    pub message: String,
    /// More of it, or empty.
    pub detail: String,
    /// The server's advice, or empty.
    pub hint: String,
    /// The function of the server's source that reports it; not translated.
    pub routine: String,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse or NoticeResponse; what is malformed is left empty.
    pub(crate) fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        let mut error = ServerError::default();
        while let Ok(Some(field)) = fields.next() {
            let slot = match field.type_() {
                b'V' => &mut error.severity,
                b'C' => &mut error.code,
                b'M' => &mut error.message,
                b'D' => &mut error.detail,
                b'H' => &mut error.hint,
                b'R' => &mut error.routine,
                _ => continue,
            };
            *slot = String::from_utf8_lossy(field.value_bytes()).into_owned();
        }
        error
    }

    pub(crate) fn from_db_error(error: &DbError) -> Self {
        ServerError {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
            routine: error.routine().unwrap_or_default().to_owned(),
        }
    }

    fn notes(&self) -> String {
        let detail = if self.detail.is_empty() { String::new() } else { format!("; {}", self.detail) };
        let hint = if self.hint.is_empty() { String::new() } else { format!("; hint: {}", self.hint) };
        detail + &hint
    }

    /// Will the server be back by itself: it starts, stops, or lacks a resource for a while?
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self.code.as_str(), "57P01" | "57P02" | "57P03" | "57P05" | "53300" | "55P03" | "40001" | "40P01")
            || self.code.starts_with("08")
            || self.code.starts_with("53")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection string or the combination of its parts.
    #[error("PostgreSQL connection: {problem}")]
    Config {
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The file that holds the connection string.
    #[error("url_file {}: {problem}", path.display())]
    UrlFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers there.
    #[error("cannot reach PostgreSQL at {address}: {source}")]
    Unreachable {
        /// `host:port/database`.
        address: String,
        /// From the operating system.
        source: io::Error,
    },
    /// Resolving, connecting, TLS and log-in took too long.
    #[error("PostgreSQL at {address} did not let us in within {timeout:?}; is a firewall or an overload in the way?")]
    Timeout {
        /// `host:port/database`.
        address: String,
        /// `connect_timeout`.
        timeout: Duration,
    },
    /// The server does not speak TLS.
    #[error("PostgreSQL at {address} offers no TLS, but sslmode demands it; set ssl = on in postgresql.conf")]
    TlsNotOffered {
        /// `host:port/database`.
        address: String,
    },
    /// The handshake failed, or certificate files are unusable.
    #[error("TLS with PostgreSQL at {address}: {problem}")]
    Tls {
        /// `host:port/database`.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// The log-in is not bound to the TLS connection.
    #[error(
        "channel_binding=require, but the log-in at {address} is not bound to the TLS connection: {problem}; use TLS and a \
         scram-sha-256 password, or channel_binding=prefer"
    )]
    ChannelBinding {
        /// `host:port/database`.
        address: String,
        /// Why not.
        problem: &'static str,
    },
    /// The server asks for a password and none is configured.
    #[error("PostgreSQL asks for the password of role '{user}', and none is configured")]
    PasswordMissing {
        /// The role.
        user: String,
    },
    /// Wrong password, unknown role, or pg_hba.conf does not let it in.
    #[error("PostgreSQL refuses role '{user}': {source}")]
    Authentication {
        /// The role.
        user: String,
        /// Its words.
        source: Box<ServerError>,
    },
    /// The role may not replicate.
    #[error("role '{user}' may not replicate; run ALTER ROLE \"{user}\" REPLICATION: {source}")]
    ReplicationForbidden {
        /// The role.
        user: String,
        /// The server's words.
        source: Box<ServerError>,
    },
    /// No connection, or no walsender, is free.
    #[error("PostgreSQL has no connection left for us; raise max_connections or max_wal_senders: {source}")]
    TooManyConnections {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// A connection pooler answers in PostgreSQL's place.
    #[error("a connection pooler stands before PostgreSQL; connect to PostgreSQL itself: {source}")]
    Pooler {
        /// The pooler's words.
        source: Box<ServerError>,
    },
    /// The settings of the startup message are not in force.
    #[error(
        "the connection's setting {name} is '{found}' although '{wanted}' was asked for: a connection pooler drops it; \
         connect to PostgreSQL itself"
    )]
    SettingsLost {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        wanted: &'static str,
        /// What is in force.
        found: String,
    },
    /// A version that we do not support.
    #[error("PostgreSQL {} is too old; 14 or newer is needed", version / 10_000)]
    TooOld {
        /// Such as 130012.
        version: u32,
    },
    /// Another error of the server, such as a database that does not exist.
    #[error("PostgreSQL refuses the connection: {source}")]
    Server {
        /// Its words.
        source: Box<ServerError>,
    },
    /// What answers does not speak PostgreSQL's protocol.
    #[error("PostgreSQL at {address} breaks the protocol: {problem}")]
    Protocol {
        /// `host:port/database`.
        address: String,
        /// How.
        problem: String,
    },
}

impl ConnectError {
    /// Tells the server's refusals apart.
    pub(crate) fn from_server(user: &str, error: ServerError) -> Self {
        let user = user.to_owned();
        let source = Box::new(error);
        match source.code.as_str() {
            "28000" | "28P01" => ConnectError::Authentication { user, source },
            "42501" => ConnectError::ReplicationForbidden { user, source },
            "53300" => ConnectError::TooManyConnections { source },
            // PgBouncer and its kin have no server routine to name; PostgreSQL always has one.
            "08P01" if source.routine.is_empty() => ConnectError::Pooler { source },
            _ => ConnectError::Server { source },
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ConnectError::Unreachable { .. } | ConnectError::Timeout { .. } | ConnectError::UrlFile { .. } => SOON,
            ConnectError::TooManyConnections { .. } | ConnectError::Protocol { .. } => LATER,
            // Someone has to act, but on the server, and what they do should take effect without a restart here.
            ConnectError::Authentication { .. }
            | ConnectError::ReplicationForbidden { .. }
            | ConnectError::ChannelBinding { .. }
            | ConnectError::TlsNotOffered { .. }
            | ConnectError::Tls { .. }
            | ConnectError::Pooler { .. }
            | ConnectError::SettingsLost { .. } => LATER,
            ConnectError::Server { source } => {
                if source.is_passing() {
                    SOON
                } else {
                    LATER
                }
            }
            ConnectError::Config { .. } | ConnectError::PasswordMissing { .. } | ConnectError::TooOld { .. } => {
                Retry::Never
            }
        }
    }
}

/// Why a replication command or stream failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The connection broke.
    #[error("the replication connection broke: {source}")]
    ConnectionLost {
        /// From the operating system or TLS.
        source: io::Error,
    },
    /// The server stops, restarts, ended our walsender, or lacks a resource for a while.
    #[error("PostgreSQL ended the replication connection: {source}")]
    ServerStopped {
        /// Its words.
        source: Box<ServerError>,
    },
    /// The server ended the stream in good order, as it does when it shuts down.
    #[error("PostgreSQL ended the replication stream")]
    StreamEnded,
    /// No slot of that name.
    #[error("the replication slot does not exist: {source}")]
    SlotMissing {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// Another connection reads from the slot.
    #[error("the replication slot is in use: {source}")]
    SlotInUse {
        /// The backend that does, where the server says so.
        active_pid: Option<i32>,
        /// The server's words.
        source: Box<ServerError>,
    },
    /// WAL that the slot needs is gone.
    #[error("the replication slot has lost its WAL: {source}")]
    SlotInvalidated {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// A slot of that name is there already.
    #[error("the replication slot exists already: {source}")]
    SlotExists {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// The slot is not one of pgoutput in this database.
    #[error("the replication slot is of another plugin or database; choose another slot name: {source}")]
    SlotUnsuitable {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// No publication of that name existed at the point of the WAL that is being decoded.
    #[error("the publication did not exist at this point of the WAL: {source}")]
    PublicationMissing {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// `max_replication_slots` is reached.
    #[error("PostgreSQL has no replication slot left; raise max_replication_slots or drop unused ones: {source}")]
    TooManySlots {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// `max_wal_senders` is reached.
    #[error("PostgreSQL has no walsender left; raise max_wal_senders: {source}")]
    TooManySenders {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// `wal_level` is not `logical`.
    #[error("PostgreSQL does not decode its WAL; set wal_level = logical and restart it: {source}")]
    DecodingOff {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// A privilege is missing.
    #[error("the role lacks a privilege: {source}")]
    Forbidden {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// A row's text form exceeds PostgreSQL's limit of 1 GiB; it fails again at the same place.
    #[error("a row is too large for the text format (1 GiB): {source}")]
    RowTooLarge {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// A row that PostgreSQL cannot turn into UTF-8 text: it holds bytes that its database's encoding does not know (any bytes
    /// are in SQL_ASCII), or a type's output function or a publication's row filter fails on it. It fails again at the same
    /// place.
    // The server's message may quote the value.
    #[error(
        "PostgreSQL cannot send a row{} (SQLSTATE {} in {}); its own log says more",
        if is_encoding(&source.code) { ": text in it is not valid in the database's encoding, or has no form in UTF-8" } else { "" },
        source.code,
        source.routine
    )]
    RowUnreadable {
        /// The server's words; may hold the value.
        source: Box<ServerError>,
    },
    /// Any other error of the server.
    #[error("PostgreSQL: {source}")]
    Server {
        /// Its words.
        source: Box<ServerError>,
    },
    /// The server's bytes break the protocol.
    #[error("the replication protocol is broken: {problem}")]
    Protocol {
        /// How.
        problem: String,
    },
}

impl From<io::Error> for ReplicationError {
    fn from(source: io::Error) -> Self {
        ReplicationError::ConnectionLost { source }
    }
}

impl From<ServerError> for ReplicationError {
    /// Tells the server's errors apart, for versions 14 to 18.
    fn from(error: ServerError) -> Self {
        let source = Box::new(error);
        let routine = source.routine.as_str();
        match source.code.as_str() {
            "42704" if routine.contains("ublication") => ReplicationError::PublicationMissing { source },
            "42704" if routine.contains("Slot") => ReplicationError::SlotMissing { source },
            "42710" if routine.contains("Slot") => ReplicationError::SlotExists { source },
            "55006" => ReplicationError::SlotInUse { active_pid: last_number(&source.message), source },
            // From 18 on a missing publication is only a warning, and its changes are left out.
            "55000" if routine.contains("ublication") => ReplicationError::PublicationMissing { source },
            "55000" if routine == "CheckLogicalDecodingRequirements" => ReplicationError::DecodingOff { source },
            "55000" if is_slot_unsuitable(&source) => ReplicationError::SlotUnsuitable { source },
            "55000" if is_slot_routine(routine) => ReplicationError::SlotInvalidated { source },
            "58P01" => ReplicationError::SlotInvalidated { source },
            "0A000" if is_slot_routine(routine) => ReplicationError::SlotUnsuitable { source },
            "53400" => ReplicationError::TooManySlots { source },
            "53300" => ReplicationError::TooManySenders { source },
            "42501" => ReplicationError::Forbidden { source },
            "54000" => ReplicationError::RowTooLarge { source },
            "XX000" if is_allocation(routine) => ReplicationError::RowTooLarge { source },
            // 22023 is an option of START_REPLICATION that the server does not know.
            code if code.starts_with("22") && code != "22023" => ReplicationError::RowUnreadable { source },
            _ if source.is_passing() => ReplicationError::ServerStopped { source },
            _ => ReplicationError::Server { source },
        }
    }
}

impl ReplicationError {
    /// What to do about it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ReplicationError::ConnectionLost { .. }
            | ReplicationError::ServerStopped { .. }
            | ReplicationError::StreamEnded
            | ReplicationError::SlotInUse { .. } => SOON,
            ReplicationError::TooManySlots { .. }
            | ReplicationError::TooManySenders { .. }
            | ReplicationError::DecodingOff { .. }
            | ReplicationError::Forbidden { .. }
            | ReplicationError::RowUnreadable { .. }
            | ReplicationError::Server { .. }
            | ReplicationError::Protocol { .. } => LATER,
            ReplicationError::SlotMissing { .. }
            | ReplicationError::SlotInvalidated { .. }
            | ReplicationError::PublicationMissing { .. } => Retry::Reset,
            ReplicationError::SlotExists { .. }
            | ReplicationError::SlotUnsuitable { .. }
            | ReplicationError::RowTooLarge { .. } => Retry::Never,
        }
    }

    /// Is it about a row, so that reading the same transaction again fails again?
    #[must_use]
    pub fn is_about_a_row(&self) -> bool {
        matches!(self, ReplicationError::RowTooLarge { .. } | ReplicationError::RowUnreadable { .. })
    }
}

fn is_slot_routine(routine: &str) -> bool {
    matches!(routine, "StartLogicalReplication" | "CreateDecodingContext" | "StartReplication")
        || routine.starts_with("ReplicationSlot")
}

/// CreateDecodingContext reports a slot of another database or of physical replication as 55000 too. It is the same in every
/// version that those say so in the message alone, without a detail, and an invalidated slot with one.
fn is_slot_unsuitable(error: &ServerError) -> bool {
    error.routine == "CreateDecodingContext" && error.detail.is_empty()
}

/// character_not_in_repertoire, untranslatable_character.
fn is_encoding(code: &str) -> bool {
    matches!(code, "22021" | "22P05")
}

/// PostgreSQL refuses to allocate 1 GiB with an internal error.
pub(crate) fn is_allocation(routine: &str) -> bool {
    ["palloc", "repalloc", "MemoryContext", "AllocSet", "enlargeStringInfo"]
        .iter()
        .any(|name| routine.starts_with(name))
}

/// The process id ends "…is active for PID 4711" in every translation's digits.
fn last_number(text: &str) -> Option<i32> {
    let digits = |character: &char| character.is_ascii_digit();
    let reversed: String = text.chars().rev().skip_while(|c| !digits(c)).take_while(digits).collect();
    reversed.chars().rev().collect::<String>().parse().ok()
}

/// Why a statement over a session failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The connection broke.
    #[error("the connection to PostgreSQL broke while we {doing}: {source}")]
    ConnectionLost {
        /// What the statement was for.
        doing: &'static str,
        /// From the client library.
        source: tokio_postgres::Error,
    },
    /// The server refuses.
    #[error("PostgreSQL, while we {doing}: {source}")]
    Server {
        /// What the statement was for.
        doing: &'static str,
        /// Its words.
        source: Box<ServerError>,
    },
    /// An answer that we do not understand.
    #[error("unexpected answer while we {doing}: {problem}")]
    Unexpected {
        /// What the statement was for.
        doing: &'static str,
        /// How.
        problem: String,
    },
}

impl CatalogError {
    /// Makes a client library's error ours.
    pub(crate) fn while_we(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Self {
        move |error| match error.as_db_error() {
            Some(db_error) => CatalogError::Server { doing, source: Box::new(ServerError::from_db_error(db_error)) },
            None if error.is_closed() || std::error::Error::source(&error).is_some_and(|e| e.is::<io::Error>()) => {
                CatalogError::ConnectionLost { doing, source: error }
            }
            None => CatalogError::Unexpected { doing, problem: error.to_string() },
        }
    }

    /// SQLSTATE, where the server reports one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            CatalogError::Server { source, .. } => Some(&source.code),
            CatalogError::ConnectionLost { .. } | CatalogError::Unexpected { .. } => None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            CatalogError::ConnectionLost { .. } => SOON,
            CatalogError::Server { source, .. } => {
                if source.is_passing() {
                    SOON
                } else {
                    LATER
                }
            }
            CatalogError::Unexpected { .. } => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, routine: &str, message: &str, detail: &str) -> ReplicationError {
        ReplicationError::from(ServerError {
            severity: "ERROR".to_owned(),
            code: code.to_owned(),
            message: message.to_owned(),
            detail: detail.to_owned(),
            hint: String::new(),
            routine: routine.to_owned(),
        })
    }

    #[test]
    fn errors_of_every_version_are_told_apart() {
        use ReplicationError as E;
        let lost = "This slot has been invalidated because it exceeded the maximum reserved size.";
        assert!(matches!(server("42704", "ReplicationSlotAcquire", "", ""), E::SlotMissing { .. }));
        assert!(matches!(server("42704", "get_publication_oid", "", ""), E::PublicationMissing { .. }));
        assert!(matches!(server("55000", "LoadPublications", "", ""), E::PublicationMissing { .. }));
        for routine in ["StartLogicalReplication", "CreateDecodingContext", "ReplicationSlotAcquire"] {
            assert!(matches!(server("55000", routine, "", lost), E::SlotInvalidated { .. }), "{routine}");
        }
        assert!(matches!(server("55000", "CreateDecodingContext", "", ""), E::SlotUnsuitable { .. }));
        assert!(matches!(server("58P01", "XLogReadDetermineTimeline", "", ""), E::SlotInvalidated { .. }));
        assert!(matches!(server("57P01", "ProcessInterrupts", "", ""), E::ServerStopped { .. }));
        assert!(matches!(server("XX000", "palloc", "", ""), E::RowTooLarge { .. }));
        assert!(matches!(server("XX000", "ReorderBufferCommit", "", ""), E::Server { .. }));
        assert!(matches!(server("22P05", "report_untranslatable_char", "", ""), E::RowUnreadable { .. }));
    }

    #[test]
    fn the_holder_of_a_slot_is_read_from_any_translation() {
        let german = "Replikations-Slot »s15« ist aktiv für PID 4711";
        let error = server("55006", "ReplicationSlotAcquire", german, "");
        assert!(matches!(error, ReplicationError::SlotInUse { active_pid: Some(4711), .. }));
    }

    #[test]
    fn a_poolers_refusal_is_recognised() {
        let error = ServerError { code: "08P01".to_owned(), ..ServerError::default() };
        assert!(matches!(ConnectError::from_server("u", error), ConnectError::Pooler { .. }));
    }
}
