//! Why a table could not be read for a snapshot.
//!
//! Invariant: kinds are told apart by SQLSTATE and by the server's routine, never by messages, which are translated.

use std::time::Duration;

use tidegate_model::{Retry, TableName};

use crate::{CatalogError, ConnectError, ServerError, error::is_allocation, snapshot::CursorError};

const AT_ONCE: Retry = Retry::After(Duration::ZERO);
const SOON: Retry = Retry::After(Duration::from_secs(1));
const LATER: Retry = Retry::After(Duration::from_secs(10));

/// Why a relation has no rows that a snapshot could read and the stream would go on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// A view, materialised view, sequence or index.
    #[error("it is no table: its rows are not in the WAL")]
    NotATable,
    /// A foreign table.
    #[error("it is a foreign table: its changes are not in the WAL")]
    Foreign,
    /// An unlogged table.
    #[error("it is unlogged: its changes are not in the WAL; ALTER TABLE … SET LOGGED makes it an ordinary table")]
    Unlogged,
    /// A temporary table.
    #[error("it is temporary: its changes are not in the WAL")]
    Temporary,
    /// A partition whose changes are not in the WAL, below a root that is published through the root.
    #[error("its partition {partition} is foreign or unlogged, so that its changes are not in the WAL; detach it")]
    Partition {
        /// The partition.
        partition: TableName,
    },
    /// Not in the publication.
    #[error("publication \"{publication}\" does not hold it; add it with ALTER PUBLICATION … ADD TABLE")]
    NotPublished {
        /// The publication.
        publication: String,
    },
    /// Changes of the partition are sent as those of its root.
    #[error("publication \"{publication}\" sends it as part of its root {root}; take the root")]
    ThroughRoot {
        /// The publication.
        publication: String,
        /// The root.
        root: TableName,
    },
    /// Changes of the root are sent as those of its partitions.
    #[error("publication \"{publication}\" sends its partitions, not the root; take the partitions")]
    ByPartitions {
        /// The publication.
        publication: String,
    },
}

/// Reading a table for a snapshot failed. Nothing of it holds a lock or a transaction any more.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotReadError {
    /// The reader could not connect.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke, or another error of the server.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The relation cannot be read for a snapshot.
    #[error("{table} cannot be read for a snapshot: {reason}")]
    Unsupported {
        /// The relation.
        table: TableName,
        /// Why.
        reason: Unsupported,
    },
    /// No publication of that name.
    #[error("publication \"{publication}\" does not exist")]
    PublicationMissing {
        /// Its name.
        publication: String,
    },
    /// The table does not exist, or not any more.
    #[error("table {table} does not exist (any more)")]
    TableMissing {
        /// The table.
        table: TableName,
    },
    /// Table or publication are not what they were when the plan was made; a new plan is needed.
    #[error("table {table} or its publication changed while it was read")]
    DefinitionChanged {
        /// The table.
        table: TableName,
    },
    /// A privilege is missing.
    #[error("the role may not read {table}; grant it SELECT on the table, and USAGE on its schema and types: {source}")]
    Forbidden {
        /// The table.
        table: TableName,
        /// The server's words.
        source: Box<ServerError>,
    },
    /// Policies hide rows from the role.
    #[error(
        "row-level security hides rows of {table} from the role, so that a snapshot would be incomplete; \
         run ALTER ROLE … BYPASSRLS for the role: {source}"
    )]
    RowSecurity {
        /// The table.
        table: TableName,
        /// The server's words.
        source: Box<ServerError>,
    },
    /// Someone alters the table, or waits to.
    #[error("a lock on {table} was not free in time (a schema change is under way?): {source}")]
    LockTimeout {
        /// The table.
        table: TableName,
        /// The server's words.
        source: Box<ServerError>,
    },
    /// `statement_timeout`, or someone cancelled it; the server does not tell which.
    #[error(
        "reading {table} was cancelled, by our statement_timeout or by an administrator; smaller chunks take less time: {source}"
    )]
    Cancelled {
        /// The table.
        table: TableName,
        /// The server's words.
        source: Box<ServerError>,
    },
    /// The chunk is larger than the budget.
    #[error("a chunk of {table} exceeds the budget of {byte_budget} bytes; read fewer rows at once")]
    OverBudget {
        /// The table.
        table: TableName,
        /// The budget.
        byte_budget: u64,
    },
    /// A row's text form exceeds PostgreSQL's limit of 1 GiB.
    #[error("a row of {table} is too large for the text format (1 GiB): {source}")]
    RowTooLarge {
        /// The table.
        table: TableName,
        /// The server's words.
        source: Box<ServerError>,
    },
    /// The shared snapshot's transaction has ended.
    #[error("the shared snapshot has ended; begin the table again: {source}")]
    SharedSnapshotGone {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// The cursor does not continue a pass over this table as it is now.
    #[error("the snapshot of {table} cannot be continued: {source}; begin the table again")]
    Cursor {
        /// The table.
        table: TableName,
        /// Why.
        source: CursorError,
    },
    /// PostgreSQL does not take what a part of the table was asked for with, or not any more.
    #[error("the part of {table} that was asked for cannot be read: {problem}; start the snapshot again")]
    Part {
        /// The table.
        table: TableName,
        /// Why.
        problem: &'static str,
    },
    /// The condition fails for a row. The server's words may hold the row's values, and are left out.
    #[error(
        "the condition fails for a row of {table} (SQLSTATE {code}); write it so that it does not, as in CASE WHEN n <> 0 THEN 1 / n > 2 END"
    )]
    Condition {
        /// The table.
        table: TableName,
        /// SQLSTATE, of class 22.
        code: String,
    },
    /// Reading by key was asked of a table without one.
    #[error("table {table} has no key; read it by blocks")]
    Keyless {
        /// The table.
        table: TableName,
    },
    /// A standby cannot say how far its WAL is written.
    #[error("the server is a standby; snapshots are read from the primary: {source}")]
    NotPrimary {
        /// The server's words.
        source: Box<ServerError>,
    },
    /// An answer that breaks PostgreSQL's documentation.
    #[error("unexpected answer while we read {table} for a snapshot: {problem}")]
    Unexpected {
        /// The table.
        table: TableName,
        /// How.
        problem: &'static str,
    },
}

impl SnapshotReadError {
    /// Tells the client library's errors apart; `doing` is for those without a kind of their own.
    pub(super) fn of(table: &TableName, doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Self {
        move |error| match CatalogError::while_we(doing)(error) {
            CatalogError::Server { doing, source } => Self::from_server(table, doing, source),
            other @ (CatalogError::ConnectionLost { .. } | CatalogError::Unexpected { .. }) => other.into(),
        }
    }

    /// The same while rows are chosen by a condition, which may fail for one.
    pub(super) fn of_condition(self, table: &TableName) -> Self {
        match self {
            SnapshotReadError::Catalog(CatalogError::Server { source, .. }) if source.code.starts_with("22") => {
                SnapshotReadError::Condition { table: table.clone(), code: source.code }
            }
            other => other,
        }
    }

    fn from_server(table: &TableName, doing: &'static str, source: Box<ServerError>) -> Self {
        let table = table.clone();
        match (source.code.as_str(), source.routine.as_str()) {
            ("42501", "check_enable_rls") => SnapshotReadError::RowSecurity { table, source },
            ("42501", _) => SnapshotReadError::Forbidden { table, source },
            ("55P03", _) => SnapshotReadError::LockTimeout { table, source },
            ("57014", _) => SnapshotReadError::Cancelled { table, source },
            // Before 15 an identifier that is gone is an invalid one.
            (_, "ImportSnapshot") => SnapshotReadError::SharedSnapshotGone { source },
            ("42P01" | "3F000", _) => SnapshotReadError::TableMissing { table },
            // A column, type, operator or kind of relation that the plan relies on.
            ("42703" | "42704" | "42883" | "42809" | "42804", _) => SnapshotReadError::DefinitionChanged { table },
            ("54000", _) => SnapshotReadError::RowTooLarge { table, source },
            ("XX000", routine) if is_allocation(routine) => SnapshotReadError::RowTooLarge { table, source },
            ("55000", "pg_current_wal_insert_lsn") => SnapshotReadError::NotPrimary { source },
            _ => CatalogError::Server { doing, source }.into(),
        }
    }

    /// What to do about it. `After(0)`: with a new plan, or fewer rows, at once.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            SnapshotReadError::Connect(error) => error.retry(),
            SnapshotReadError::Catalog(error) => error.retry(),
            SnapshotReadError::DefinitionChanged { .. } | SnapshotReadError::OverBudget { .. } => AT_ONCE,
            SnapshotReadError::LockTimeout { .. } | SnapshotReadError::Cancelled { .. } => SOON,
            SnapshotReadError::PublicationMissing { .. } | SnapshotReadError::NotPrimary { .. } => LATER,
            SnapshotReadError::SharedSnapshotGone { .. } | SnapshotReadError::Cursor { .. } => Retry::Reset,
            SnapshotReadError::Unsupported { .. }
            | SnapshotReadError::Forbidden { .. }
            | SnapshotReadError::RowSecurity { .. }
            | SnapshotReadError::TableMissing { .. }
            | SnapshotReadError::RowTooLarge { .. }
            | SnapshotReadError::Part { .. }
            | SnapshotReadError::Condition { .. }
            | SnapshotReadError::Keyless { .. }
            | SnapshotReadError::Unexpected { .. } => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_condition_fails_with_holds_no_value() {
        let source = Box::new(ServerError {
            severity: "ERROR".to_owned(),
            code: "22P02".to_owned(),
            message: "invalid input syntax for type numeric: \"a secret\"".to_owned(),
            detail: String::new(),
            hint: String::new(),
            routine: "numeric_in".to_owned(),
        });
        let failed = SnapshotReadError::from(CatalogError::Server { doing: "read", source });
        let text = failed.of_condition(&TableName::new("public", "orders")).to_string();
        assert!(text.contains("public.orders") && text.contains("22P02") && !text.contains("secret"), "{text}");
    }
}
