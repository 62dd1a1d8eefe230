//! Why a subscription does not begin, or ends: an error, or a Reset, after which it is to begin anew. Each Reset says what to do.

use std::sync::Arc;

use tidegate_model::Position;
use tidegate_proto::v1;

use crate::{shape::ShapeFailure, status::GatewayError};

/// Why there is no subscription.
#[derive(Debug)]
pub(crate) enum Refusal {
    Error(GatewayError),
    Reset(v1::Reset),
}

impl From<GatewayError> for Refusal {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::SubqueriesTooOld { at } => {
                Refusal::Reset(sets_too_old(&format!("{at} is further back than is kept")))
            }
            error => Refusal::Error(error),
        }
    }
}

impl From<Arc<ShapeFailure>> for Refusal {
    fn from(failure: Arc<ShapeFailure>) -> Self {
        if failure.is_of_another_type() {
            let reason = v1::reset::Reason::DefinitionChanged as i32;
            return Refusal::Reset(v1::Reset { reason, detail: failure.to_string() });
        }
        Refusal::Error(GatewayError::ShapeFailed(failure))
    }
}

/// The mirror has to be built anew, while a snapshot was made of it.
pub(crate) fn mirror_gone(snapshot: u32) -> v1::Reset {
    let abandoned = "the mirror, of which it was made, does not have all of the tables any more".to_owned();
    self::abandoned(&v1::SnapshotEnd { snapshot, abandoned, ..v1::SnapshotEnd::default() })
}

/// What the subscriptions are told that wait for a snapshot, or have a table in part because of it, when it is given up.
pub(crate) fn abandoned(end: &v1::SnapshotEnd) -> v1::Reset {
    let v1::SnapshotEnd { snapshot, abandoned, .. } = end;
    let detail = if end.ad_hoc {
        format!(
            "snapshot {snapshot}, which someone had started, was given up ({abandoned}), and has left in part what it has read anew: {}; \
             drop what was received of the tables, and subscribe without the token to start over",
            end.incomplete.join(", ")
        )
    } else {
        format!(
            "snapshot {snapshot} was given up ({abandoned}); drop what was read, and subscribe without the token to start another"
        )
    };
    v1::Reset { reason: v1::reset::Reason::SnapshotAbandoned as i32, detail }
}

/// What follows in the changelog is another history.
pub(crate) fn discontinued(because: &str) -> v1::Reset {
    v1::Reset {
        reason: v1::reset::Reason::SourceDiscontinued as i32,
        detail: format!(
            "the source has begun another history, and what follows does not continue what was received{because}; read the \
             tables anew and subscribe without the token"
        ),
    }
}

pub(crate) fn too_old(position: Position, earliest: Position) -> v1::Reset {
    v1::Reset {
        reason: v1::reset::Reason::TokenTooOld as i32,
        detail: format!(
            "changes after {position} are needed, and the server keeps those after {earliest}; read the tables anew and \
             subscribe without the token, or let the server keep more (retention)"
        ),
    }
}

/// A token does not go on with these selections.
pub(crate) fn definition_changed() -> v1::Reset {
    v1::Reset {
        reason: v1::reset::Reason::DefinitionChanged as i32,
        detail: "the token belongs to other selections: a shape's table, condition, parameters, columns or updates, or the type of \
                 a column that it reads, are not what they were; subscribe as before, or without the token to read the rows anew"
            .to_owned(),
    }
}

/// Nobody may begin, or go on, where it wants to.
pub(crate) fn sets_too_old(why: &str) -> v1::Reset {
    v1::Reset {
        reason: v1::reset::Reason::TokenTooOld as i32,
        detail: format!(
            "what the subqueries of a shape selected at this place is not known any more ({why}); drop the shape's rows, and subscribe \
             without the token, from SNAPSHOT"
        ),
    }
}
