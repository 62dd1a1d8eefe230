//! Why there is no answer to a query.

use std::time::Duration;

use tidegate_model::Retry;

/// Why a query is refused, or ends without all of its rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueryError {
    #[error(
        "an order needs a limit, of at most {max} rows; give one, or leave the order out, and sort the rows where they are received"
    )]
    Limit { max: usize },
    #[error("nulls is {value}, which this server does not know; use DEFAULT, FIRST or LAST")]
    Nulls { value: i32 },
    #[error("the rows that come first have more than {max} bytes; ask for fewer, or for fewer columns")]
    TooLarge { max: usize },
    #[error("{max} queries are running, the most allowed; ask again in a moment")]
    Busy { max: usize },
    #[error(
        "the rows have not been read within {} s, the longest that a query may hold their position; read faster, ask for fewer rows, or \
         subscribe from SNAPSHOT, which may take as long as it likes", after.as_secs()
    )]
    TooSlow { after: Duration },
    #[error("the table has changed while its rows were read; ask again")]
    Changed,
}

impl QueryError {
    /// What to do after it.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            QueryError::Busy { .. } => Retry::After(Duration::from_millis(500)),
            QueryError::Changed => Retry::After(Duration::from_millis(100)),
            QueryError::Limit { .. }
            | QueryError::Nulls { .. }
            | QueryError::TooLarge { .. }
            | QueryError::TooSlow { .. } => Retry::Never,
        }
    }
}
