//! What the subqueries of shapes select, at every moment that a subscription may be at, and which rows move for it.
//!
//! ```text
//! log ────▶ keeping (a task per shape with subqueries) ──▶ keeper: sets at each moment ──▶ delivery, watch: is a row in the shape?
//! mirror ──▶   │ rows, as they are now                      └──── records: who moves ──▶ before the transaction's Commit
//!              └ versions: as they were (the log's old rows)
//! ```
//!
//! **Two phases.** Each change of a row is judged with the sets as they were before its transaction, its old row and its new one alike. Then, where
//! the transaction has changed the sets, each row of the table as it is at the transaction's end is judged with the sets before and
//! after, and moves in or out. So at the Commit the subscription has exactly the rows that meet the condition then, in whatever
//! order the transaction has changed the tables. A subquery within a subquery is kept by the same rule.
//!
//! **Any moment.** Subscriptions are at different places, and none waits for another: sets remember when each member came and went, and
//! records wait for whoever has not passed them. Both are bounded: with the oldest goes the moment from which on a token is good.
//! Sets are built where the first subscription begins, in the past too, since the log has what the mirror's rows were before. So
//! a restart of the server ends nothing.
//!
//! Invariants: what a subscription is told is a function of the log and its start, whichever task has kept its sets; a block is judged only when the
//! sets are known up to its end. It deliberately does not share sets between different shapes.

mod budget;
mod changes;
mod consumer;
mod ended;
mod gathering;
mod given;
mod keeper;
mod keeping;
mod node;
mod once;
mod run;
mod set;
mod versions;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tidegate_model::{Epoch, LOGGED_SNAPSHOT_ORDINAL, MESSAGE_ORDINAL, Position};
use tidegate_views::Subquery;
use tokio::{task::JoinSet, time::timeout};

pub(crate) use ended::Ended;
pub(crate) use keeper::Kept;
pub(crate) use once::SetsOnce;

use crate::{
    by_row_type::ByRowType,
    facts::Known,
    reset::{Refusal, sets_too_old},
    selection::Filter,
    shape::ShapeFilter,
    source::Source,
};
use budget::{Budget, Share};
use consumer::Consumer;
use ended::later;
use given::Sets;
use keeper::{Keeper, Published, Shared};
use keeping::Keeping;
use node::Node;
use run::Concern;

/// Sets of one shape, with the rows that bring their members.
const SET_BYTES_MAX: usize = 256 << 20;
/// Sets of all shapes of a source.
const ALL_BYTES_MAX: usize = 1 << 30;
/// Those of them that queries may have.
const QUERY_BYTES_MAX: usize = ALL_BYTES_MAX / 2;
/// Shapes of a source whose sets are kept, those of the last minutes with them.
const KEEPERS_MAX: usize = 1_024;
/// What has flipped and moved, of one shape, for those who have not passed it.
const KEPT_BYTES_MAX: usize = 32 << 20;
/// Keys that the log has touched while the mirror was read.
const TOUCHED_BYTES_MAX: usize = 64 << 20;
/// Log between the place where sets are to begin and its end.
const BEHIND_BYTES_MAX: u64 = 256 << 20;
/// The same for sets that are kept: with it, they are given up.
const LAG_BYTES_MAX: u64 = 2 * BEHIND_BYTES_MAX;
/// Sets stay for so long when their last subscription has ended.
const LINGER: Duration = Duration::from_secs(120);
/// The mirror is awaited for so long.
const MIRROR_WAIT: Duration = Duration::from_secs(30);
/// A start waits for so long for its sets.
const BUILD_WAIT: Duration = Duration::from_secs(20);

/// By shape; of one, those that have begun at different places.
type Begun = HashMap<(ShapeFilter, Epoch), Vec<Weak<Shared>>>;

/// The sets of a source's shapes.
#[derive(Default)]
pub(crate) struct SetsOfSource {
    kept: Mutex<Begun>,
    tasks: Mutex<JoinSet<()>>,
    budget: Arc<Budget>,
}

impl SetsOfSource {
    /// Makes room: who comes back has them built anew.
    fn end_unused(&self) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for shared in kept.values().flatten().filter_map(Weak::upgrade) {
            shared.end_unused();
        }
    }

    /// Is there room for another task?
    fn has_room(&self) -> bool {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "keeping the sets of a shape has failed; its subscriptions begin anew");
            }
        }
        tasks.len() < KEEPERS_MAX
    }
}

/// The sets that a subscription with these selections needs from a place on. Waits until they are complete.
pub(crate) async fn kept(
    source: &Arc<Source>,
    filters: &[Filter],
    (epoch, after): (Epoch, Position),
) -> Result<Kept, Refusal> {
    let behind = place_of(after);
    let mut keepers = Vec::with_capacity(filters.len());
    for filter in filters {
        let shape = filter.shape().filter(|shape| !shape.subqueries().is_empty());
        keepers.push(shape.map(|shape| keeper(source, shape, (epoch, behind))).transpose()?);
    }
    let complete = async {
        for keeper in keepers.iter().flatten() {
            keeper.complete().await.map_err(|ended| ended.refusal())?;
        }
        Ok(())
    };
    match timeout(BUILD_WAIT, complete).await {
        Ok(complete) => complete.map(|()| Kept::new(keepers)),
        Err(_elapsed) => Err(later("the sets of its subqueries are being built").into()),
    }
}

/// A place in the log that means the same as what a token states, and that the mirror comes to by itself.
fn place_of(after: Position) -> Position {
    if after.ordinal < MESSAGE_ORDINAL || after.ordinal >= LOGGED_SNAPSHOT_ORDINAL {
        after.as_resume_point()
    } else {
        // Of two records with the same LSN, one at most concerns rows.
        Position::new(after.lsn, 0).as_resume_point()
    }
}

fn keeper(source: &Arc<Source>, shape: &ShapeFilter, (epoch, behind): (Epoch, Position)) -> Result<Keeper, Refusal> {
    let sets = &source.sets;
    if !sets.has_room() {
        sets.end_unused();
    }
    let mut kept = sets.kept.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (shape.clone(), epoch);
    let mut known = kept.get(&key).into_iter().flatten().filter_map(Weak::upgrade);
    if let Some(keeper) = known.find_map(|shared| shared.take(behind)) {
        return Ok(keeper);
    }
    if !sets.has_room() {
        return Err(Ended::Crowded { what: "shapes", limit: KEEPERS_MAX }.refusal());
    }
    let store = &source.handle.store;
    let reader = store.reader(epoch, behind).map_err(|error| Ended::from(error).refusal())?;
    let bytes = reader.end().0.saturating_sub(reader.place().0);
    if bytes > BEHIND_BYTES_MAX {
        let why =
            format!("{bytes} bytes of changes lie behind it, and sets begin at most {BEHIND_BYTES_MAX} from the end");
        return Err(Refusal::Reset(sets_too_old(&why)));
    }
    let consumers = consumers(shape);
    let concern = Concern::of(consumers.iter().map(|(subquery, _)| subquery.table().clone()));
    let published = Published::new(Sets::of(consumers.iter().map(|(subquery, _)| subquery)), behind);
    let shared = Arc::new(Shared::new(published));
    let node = |(of, known): (Arc<Subquery>, Arc<Known>)| {
        Node::new(Consumer::Subquery { of, known, bound: ByRowType::default() })
    };
    let keeping = Keeping {
        shared: Arc::clone(&shared),
        share: Arc::new(Share::of(&sets.budget)),
        handle: source.handle.clone(),
        source: Arc::downgrade(source),
        reads: Arc::clone(&source.subquery_reads),
        epoch,
        nodes: consumers.into_iter().map(node).collect(),
        shape: Consumer::Shape { of: shape.clone(), routes: ByRowType::default() },
        reader,
        concern,
        found_bytes: None,
        start: behind,
        at: behind,
    };
    kept.retain(|_, all| {
        all.retain(|shared| shared.strong_count() > 0);
        !all.is_empty()
    });
    kept.entry(key).or_default().push(Arc::downgrade(&shared));
    sets.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(keeping.run());
    Ok(Keeper { shared })
}

/// All subqueries of a shape, each once, those within others first.
fn consumers(shape: &ShapeFilter) -> Vec<(Arc<Subquery>, Arc<Known>)> {
    let (mut ordered, mut seen) = (Vec::new(), HashSet::new());
    let mut rest: Vec<(Arc<Subquery>, bool)> = shape.subqueries().iter().map(|of| (Arc::clone(of), false)).collect();
    while let Some((subquery, is_expanded)) = rest.pop() {
        if is_expanded {
            let known = shape.inner(subquery.table()).expect("a condition reads only tables that it was made with");
            ordered.push((subquery, known));
        } else if seen.insert(subquery.hash()) {
            let within = subquery.condition().subqueries().iter().map(|of| (Arc::clone(of), false));
            let within: Vec<_> = within.collect();
            rest.push((subquery, true));
            rest.extend(within);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_history_is_told_as_to_any_subscription() {
        let ended = Ended::from(tidegate_store::ReadError::OtherEpoch { current: None });
        let Refusal::Reset(reset) = ended.refusal() else { panic!("{ended:?}") };
        assert_eq!(reset.reason(), tidegate_proto::v1::reset::Reason::SourceDiscontinued);
    }
}
