//! What of a snapshot a plan receives: all of the one that its subscription started from; and of snapshots of new tables, and of those
//! that someone has started where its subscription asks for them, such as have a table whose reads it selects.
//!
//! Of these, one that is given up ends nothing: what its subscriptions have of other tables is not concerned. Unless someone has
//! started it and it leaves a table without a key in part, for which nothing else makes up.

use prost::Message as _;
use tidegate_model::{Entry, Kind, Position, TableName};
use tidegate_proto::v1;
use tidegate_schema::event_body;

use crate::{selection::Plan, status::GatewayError};

/// A mark of a snapshot, for those who receive it.
#[derive(Debug)]
pub(crate) enum SnapshotMark {
    Begin(v1::SnapshotBegin),
    /// Complete; or not the subscription's own, and given up.
    End(v1::SnapshotEnd),
    /// Given up, and what was received is void: the subscription started from it, or has a table in part now.
    Abandoned(v1::SnapshotEnd),
}

/// The mark that the bytes hold, if the plan receives it.
pub(crate) fn snapshot_mark(plan: &Plan, entry: &Entry, bytes: &[u8]) -> Result<Option<SnapshotMark>, GatewayError> {
    let follows = plan.follows(entry.row_type);
    if entry.kind == Kind::SnapshotBegin {
        let begin = v1::SnapshotBegin::decode(bytes).map_err(|_| damaged(entry))?;
        let wanted = follows
            || (plan.receives(begin.new_tables, begun(begin.ad_hoc, "", entry)) && reads_one(plan, &begin.tables));
        return Ok(wanted.then_some(SnapshotMark::Begin(begin)));
    }
    let end = v1::SnapshotEnd::decode(bytes).map_err(|_| damaged(entry))?;
    Ok(match (follows, end.abandoned.is_empty()) {
        (true, false) => Some(SnapshotMark::Abandoned(end)),
        (true, true) => Some(SnapshotMark::End(end)),
        (false, _) => {
            let begun = begun(end.ad_hoc, &end.begin, entry);
            let wanted = plan.receives(end.new_tables, begun) && reads_one(plan, &end.tables);
            let is_void = end.ad_hoc && reads_one(plan, &end.incomplete);
            wanted.then_some(if is_void { SnapshotMark::Abandoned(end) } else { SnapshotMark::End(end) })
        }
    })
}

/// Does the plan receive what it selects of the chunk that begins with this event?
pub(crate) fn receives_chunk(plan: &Plan, entry: &Entry, event: &[u8]) -> Result<bool, GatewayError> {
    let body = event_body(event).map_err(|_| damaged(entry))?;
    let begin = v1::Begin::decode(body).map_err(|_| damaged(entry))?;
    Ok(receives_begun(plan, entry, &begin))
}

/// The same, of a Begin that was read.
pub(crate) fn receives_begun(plan: &Plan, entry: &Entry, begin: &v1::Begin) -> bool {
    let begun = begun(begin.ad_hoc, &begin.snapshot_begin, entry);
    plan.follows(begin.snapshot) || plan.receives(begin.new_tables, begun)
}

/// Where a snapshot has begun that someone has started. A record that does not say so counts as the first.
fn begun(ad_hoc: bool, begin: &str, entry: &Entry) -> Option<Position> {
    ad_hoc.then(|| begin.parse().unwrap_or_else(|_| entry.position()))
}

fn reads_one(plan: &Plan, tables: &[String]) -> bool {
    tables.iter().filter_map(|table| table.parse::<TableName>().ok()).any(|table| plan.reads(&table))
}

fn damaged(entry: &Entry) -> GatewayError {
    GatewayError::Damaged { at: entry.position().to_string() }
}
