//! Why sets are not kept any more, or not had, and what the subscriptions are told that need them.

use std::sync::Arc;

use tidegate_model::TableName;
use tidegate_store::ReadError;

use crate::{
    projection::MalformedChange,
    reset::{Refusal, discontinued, sets_too_old},
    shape::{ShapeFailure, ShapeRefusal},
    status::GatewayError,
};

/// Why sets are not kept any more, or not had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// They may be built anew, elsewhere.
    #[error("{0}")]
    Lost(String),
    /// The changelog has begun anew.
    #[error("the source has begun another history")]
    Discontinued,
    /// They may be built anew at the same place.
    #[error("{0}; subscribe again")]
    Later(String),
    #[error(transparent)]
    Failed(Arc<ShapeFailure>),
    #[error("more than {bytes_max} bytes of rows of {table} move at a time")]
    TooMuch { table: TableName, bytes_max: usize },
    #[error("the subquery's rows need more than {bytes_max} bytes")]
    TooLarge { table: TableName, bytes_max: usize },
    #[error("the sets of all shapes have more than {limit} {what}")]
    Crowded { what: &'static str, limit: usize },
}

impl From<Arc<ShapeFailure>> for Ended {
    fn from(failure: Arc<ShapeFailure>) -> Self {
        Ended::Failed(failure)
    }
}

impl From<MalformedChange> for Ended {
    fn from(_: MalformedChange) -> Self {
        Ended::Later("the changelog has a change that cannot be read".to_owned())
    }
}

impl From<ReadError> for Ended {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::TooOld { .. } => Ended::Lost(error.to_string()),
            ReadError::OtherEpoch { .. } => Ended::Discontinued,
            ReadError::Damaged { .. } | ReadError::Io { .. } => Ended::Later(error.to_string()),
        }
    }
}

impl Ended {
    pub(super) fn unknown(table: &TableName, column: &str) -> Self {
        Ended::Lost(format!("of a row of {table}, which a subquery reads, the value of \"{column}\" has never come"))
    }

    /// May it be otherwise with what the catalog says now?
    pub(super) fn is_of_old_facts(&self) -> bool {
        matches!(self, Ended::Failed(failure) if failure.is_of_old_facts())
    }

    /// How a subscription to a shape of the table is told.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Ended::Lost(_) | Ended::TooMuch { .. } => Refusal::Reset(sets_too_old(&self.to_string())),
            Ended::Discontinued => Refusal::Reset(discontinued("")),
            Ended::Later(detail) => later(detail).into(),
            Ended::Failed(failure) if failure.is_of_old_facts() => later(&failure.to_string()).into(),
            Ended::Failed(failure) => Arc::clone(failure).into(),
            Ended::TooLarge { table, bytes_max } => {
                let error = Box::new(ShapeRefusal::SetTooLarge { bytes_max: *bytes_max });
                GatewayError::Shape { table: table.clone(), error }.into()
            }
            Ended::Crowded { what, limit } => GatewayError::TooManySets { what, limit: *limit }.into(),
        }
    }
}

pub(super) fn later(detail: &str) -> GatewayError {
    GatewayError::Subqueries { detail: detail.to_owned() }
}
