//! What can go wrong with the control database.

use std::time::Duration;

use tidegate_model::Retry;

/// An operation on the control database failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached.
    #[error("control database: cannot connect: {0}; check control.url and that the server runs")]
    Connect(String),
    /// It takes connections and does not answer.
    #[error("control database: no answer within {} s; look for locks in schema tidegate, or an overload", .0.as_secs())]
    Silent(Duration),
    /// It answered with an error, or the connection broke.
    #[error("control database: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// Its schema could not be brought up to date.
    #[error("control database: migration failed: {0}; the role needs CREATE on the database, or on schema tidegate")]
    Migration(String),
    /// A table has used up protobuf's field numbers.
    #[error("table {table} has had more than {limit} different columns; rename it to start with new field numbers")]
    FieldsExhausted {
        /// The table's name.
        table: String,
        /// The number of fields.
        limit: i32,
    },
    /// The definitions of a source's named shapes have as many bytes as they may have.
    #[error(
        "the named shapes of source {source_name} would have more than {limit} bytes together; delete those that are not used any more, or make \
         conditions shorter, with parameters for what subscribers give"
    )]
    TooLargeShapes {
        /// The source's name.
        source_name: String,
        /// How many bytes there may be.
        limit: usize,
    },
    /// A source has as many named shapes as it may have.
    #[error("source {source_name} has {limit} named shapes, the most allowed; delete one that is not used any more")]
    TooManyShapes {
        /// The source's name.
        source_name: String,
        /// How many there may be.
        limit: usize,
    },
}

impl ControlError {
    /// What to do next.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ControlError::Connect(_)
            | ControlError::Silent(_)
            | ControlError::Database(_)
            | ControlError::Migration(_) => Retry::After(Duration::from_secs(2)),
            ControlError::FieldsExhausted { .. }
            | ControlError::TooManyShapes { .. }
            | ControlError::TooLargeShapes { .. } => Retry::Never,
        }
    }
}

/// tokio-postgres prints "db error" without the server's words; these say what happened.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}
