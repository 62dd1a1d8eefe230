//! How far a subscription is, so that its client can tell silence from lag.

use tidegate_model::{Clock, Position};
use tidegate_proto::v1;

use crate::source::Source;

/// Progress of a subscription that has everything up to `position`; `commit_time_us` is the commit time of the last
/// transaction that it has passed.
pub(crate) fn progress(
    source: &Source,
    clock: &dyn Clock,
    position: Position,
    commit_time_us: Option<i64>,
) -> v1::Progress {
    let head = *source.handle.store.head().borrow();
    let status = source.handle.status.borrow();
    let at_head = position >= head.complete;
    let behind_us = commit_time_us.map_or(0, |passed| head.commit_time_us.saturating_sub(passed).max(0));
    v1::Progress {
        position: position.to_string(),
        caught_up: at_head && status.connected(),
        lag_ms: if at_head { 0 } else { u64::try_from(behind_us / 1000).unwrap_or(0) },
        source_silent_s: status.silent_s(clock),
        subscriptions: Vec::new(),
    }
}
