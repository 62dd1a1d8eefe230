//! Why a shape is not to be had.

use tidegate_model::Retry;
use tidegate_views::{Refusal, ShapeError};

/// Why a shape is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShapeRefusal {
    #[error(transparent)]
    Definition(#[from] ShapeError),
    #[error("updates is {value}, which this server does not know; use FULL_ROW or CHANGED_COLUMNS")]
    Updates { value: i32 },
    #[error(
        "a shape needs whole old rows, by which rows leave it; let the server mirror the table (`mirror` or `mirror_on_demand` of the \
         source), or, unless it is a root of partitions, ALTER TABLE … REPLICA IDENTITY FULL"
    )]
    OldRows,
    #[error(
        "a condition with a subquery is for mirrored tables; let the server mirror this one, the shape's and all that subqueries read \
         (`mirror` or `mirror_on_demand` of the source)"
    )]
    NotMirrored,
    #[error(
        "what its subqueries select needs more than {bytes_max} bytes here; narrow them by conditions of their own, or keep a column in \
         the table that says the same"
    )]
    SetTooLarge { bytes_max: usize },
    #[error(
        "a query reads the server's mirror, and the table has none; name it in the source's `mirror` or `mirror_on_demand`, or subscribe from \
         SNAPSHOT"
    )]
    Unmirrored,
    #[error("order_by, term {term}, {}", of_order(refusal))]
    Order {
        /// From 1.
        term: usize,
        refusal: Refusal,
    },
    #[error("its mirror is not complete yet; `tidegate status` says how far it is: try again then")]
    Building,
    #[error("a shape needs a mirror of the table, which cannot be made: {detail}")]
    MirrorFailed { detail: String },
}

impl ShapeRefusal {
    /// What to do.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            ShapeRefusal::Definition(error) => error.retry(),
            ShapeRefusal::Updates { .. }
            | ShapeRefusal::OldRows
            | ShapeRefusal::NotMirrored
            | ShapeRefusal::MirrorFailed { .. }
            | ShapeRefusal::Unmirrored
            | ShapeRefusal::Order { .. }
            | ShapeRefusal::SetTooLarge { .. } => Retry::Never,
            ShapeRefusal::Building => Retry::After(std::time::Duration::from_secs(2)),
        }
    }
}

impl ShapeRefusal {
    /// Will it come right by itself, when a mirror is complete?
    pub(crate) fn is_building(&self) -> bool {
        matches!(self, ShapeRefusal::Building)
    }
}

fn of_order(Refusal { place, reason }: &Refusal) -> String {
    format!("line {}, column {}: {reason}", place.line, place.column)
}
