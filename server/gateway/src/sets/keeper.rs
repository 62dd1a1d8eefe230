//! What is kept for one shape, as its subscriptions see it: the sets of its subqueries at each moment, and what has moved for them.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use tidegate_model::{Op, Position};
use tidegate_proto::v1::change::Move;
use tidegate_schema::OldKind;
use tidegate_store::Place;
use tokio::sync::watch;

use super::{Ended, given::Sets, set::Moment};
use crate::{
    mirror_snapshot::{LogPlace, Restated},
    shape::{
        ShapeFailure,
        change::WholeChange,
        route::{NoMembers, ShapeRoute, Verdict},
    },
    status::GatewayError,
};

/// What a record costs besides its rows, and a row besides its bytes.
const RECORD_BYTES: usize = 64;

/// A row that comes into a shape, or goes, for nothing that has happened to it.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) row_type: u32,
    /// Of one that goes, the key.
    pub(super) row: Bytes,
    pub(super) is_in: bool,
}

/// All that moves where a transaction ends.
#[derive(Debug)]
pub(crate) struct Record {
    /// The transaction, by the place behind it.
    pub(super) at: Position,
    pub(super) moved: Vec<Moved>,
}

impl Record {
    /// As changes of the shape, with the ordinal of the Commit before which they are told.
    pub(crate) fn changes(&self, ordinal: u32) -> impl Iterator<Item = WholeChange<'_>> {
        self.moved.iter().map(move |moved| {
            let (row, none) = (Cow::Borrowed(&moved.row[..]), Cow::Borrowed(&[][..]));
            let (op, row, old, old_kind, is_moved) = if moved.is_in {
                (Op::Insert, row, none, OldKind::None, Move::MovedIn)
            } else {
                (Op::Delete, none, row, OldKind::Key, Move::MovedOut)
            };
            let row_type = moved.row_type;
            WholeChange { op, row_type, ordinal, row, old, old_kind, unchanged: Vec::new(), moved: is_moved }
        })
    }

    fn byte_count(&self) -> usize {
        RECORD_BYTES + self.moved.iter().map(|moved| RECORD_BYTES + moved.row.len()).sum::<usize>()
    }
}

/// What can be asked.
pub(super) struct Published {
    pub(super) sets: Sets,
    /// Ascending.
    records: VecDeque<Arc<Record>>,
    record_bytes: usize,
    /// Nothing is known of moments before the end of what ends here.
    oldest: Position,
}

impl Published {
    pub(super) fn new(sets: Sets, oldest: Position) -> Self {
        Published { sets, records: VecDeque::new(), record_bytes: 0, oldest }
    }

    /// Is it known how things were then?
    fn reaches(&self, moment: Moment) -> bool {
        moment >= Moment::after(self.oldest)
    }

    pub(super) fn push(&mut self, record: Record) {
        self.record_bytes += record.byte_count();
        self.records.push_back(Arc::new(record));
    }

    /// What was has no more bytes than this afterwards, but for what is now.
    pub(super) fn keep_bytes(&mut self, bytes_max: usize) {
        loop {
            let flips = self.sets.sets.iter().map(super::set::Set::flip_bytes).sum::<usize>();
            if self.record_bytes + flips <= bytes_max {
                return;
            }
            let first = self.records.front().map(|record| record.at);
            let flips = self.sets.sets.iter().filter_map(super::set::Set::oldest_flip);
            let Some(oldest) = flips.chain(first).min() else { return };
            self.forget_through(oldest);
        }
    }

    /// About its size in memory.
    pub(super) fn byte_count(&self) -> usize {
        self.record_bytes + self.sets.sets.iter().map(super::set::Set::byte_count).sum::<usize>()
    }

    /// Nobody may ask for a moment before the end of this any more.
    pub(super) fn forget_through(&mut self, position: Position) {
        while let Some(record) = self.records.pop_front_if(|record| record.at <= position) {
            self.record_bytes -= record.byte_count();
        }
        self.sets.sets.iter_mut().for_each(|set| set.forget_through(position));
        self.oldest = self.oldest.max(position);
    }
}

/// How far it is, and who needs it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// All up to here is known; None before the sets are complete.
    pub(super) place: Option<Place>,
    pub(super) users: usize,
    pub(super) ended: Option<Arc<Ended>>,
}

/// What the task and the subscriptions have in common.
pub(super) struct Shared {
    published: RwLock<Published>,
    pub(super) progress: watch::Sender<Progress>,
}

impl Shared {
    pub(super) fn new(published: Published) -> Self {
        let progress = Progress { users: 1, ..Progress::default() };
        Shared { published: RwLock::new(published), progress: watch::Sender::new(progress) }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Published> {
        self.published.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// It goes no further, for the first reason that is given.
    pub(super) fn end(&self, ended: Ended) {
        self.progress.send_modify(|progress| {
            progress.ended.get_or_insert_with(|| Arc::new(ended));
        });
    }

    /// It goes no further where nobody needs it.
    pub(super) fn end_unused(&self) -> bool {
        self.progress.send_if_modified(|progress| {
            let ends = progress.users == 0;
            if ends {
                let why = || Ended::Later("nobody has needed the subqueries' sets for a while".to_owned());
                progress.ended.get_or_insert_with(|| Arc::new(why()));
            }
            ends
        })
    }

    /// Does it know what a subscription behind a position needs? Then it has another user.
    pub(super) fn take(self: &Arc<Self>, behind: Position) -> Option<Keeper> {
        if !self.read().reaches(Moment::after(behind)) {
            return None;
        }
        let taken = self.progress.send_if_modified(|progress| {
            let goes_on = progress.ended.is_none();
            progress.users += usize::from(goes_on);
            goes_on
        });
        taken.then(|| Keeper { shared: Arc::clone(self) })
    }
}

/// One subscription's hold on it.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.progress.send_modify(|progress| progress.users -= 1);
    }
}

impl Keeper {
    /// Waits until its sets are complete.
    pub(super) async fn complete(&self) -> Result<(), Arc<Ended>> {
        self.wait(|progress| progress.place.is_some()).await
    }

    /// Waits until all before a place is known.
    async fn passed(&self, place: Place) -> Result<(), Arc<Ended>> {
        self.wait(|progress| progress.place >= Some(place)).await
    }

    async fn wait(&self, is_there: impl Fn(&Progress) -> bool) -> Result<(), Arc<Ended>> {
        let mut progress = self.shared.progress.subscribe();
        let known = progress.wait_for(|progress| is_there(progress) || progress.ended.is_some()).await;
        // The sender lives as long as the handle.
        let known = known.expect("it is held").clone();
        match known.ended.clone().filter(|_| !is_there(&known)) {
            Some(ended) => Err(ended),
            None => Ok(()),
        }
    }

    /// How things were at a moment, which is told as a position.
    fn at(&self, moment: Moment, position: Position) -> Result<RwLockReadGuard<'_, Published>, GatewayError> {
        let published = self.shared.read();
        if published.reaches(moment) {
            Ok(published)
        } else {
            Err(GatewayError::SubqueriesTooOld { at: position.to_string() })
        }
    }

    /// What moves where a transaction ends.
    fn record(&self, end: Position) -> Result<Option<Arc<Record>>, GatewayError> {
        let published = self.at(Moment::before(end), end)?;
        let at = published.records.binary_search_by_key(&end, |record| record.at);
        Ok(at.ok().and_then(|at| published.records.get(at).cloned()))
    }
}

/// What is kept for the shapes of a subscription whose conditions have subqueries. Nothing, for most subscriptions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept(Option<Arc<KeptSets>>);

#[derive(Debug)]
struct KeptSets {
    /// By selection.
    keepers: Box<[Option<Keeper>]>,
    /// Of the snapshot that the subscription reads.
    restated: Restated,
}

impl Kept {
    pub(super) fn new(keepers: Vec<Option<Keeper>>) -> Self {
        let is_kept = keepers.iter().any(Option::is_some);
        let kept = || Arc::new(KeptSets { keepers: keepers.into(), restated: Restated::default() });
        Kept(is_kept.then(kept))
    }

    /// For who reads a snapshot out of the mirror, to say where in the log stands what that states elsewhere.
    pub(crate) fn restated(&self) -> Restated {
        self.0.as_ref().map(|kept| kept.restated.clone()).unwrap_or_default()
    }

    /// What a change is to a selected shape, in a transaction that has begun at a position.
    pub(crate) fn judge<'c>(
        &self,
        (selection, route): (usize, &ShapeRoute),
        change: &'c WholeChange<'c>,
        (begun, at): (Position, Position),
    ) -> Result<Result<Verdict<'c>, Arc<ShapeFailure>>, GatewayError> {
        let kept = self.0.as_deref();
        let keeper = kept.and_then(|kept| kept.keepers.get(selection)).and_then(Option::as_ref);
        let Some((kept, keeper)) = kept.zip(keeper) else {
            return Ok(route.judge(change, &NoMembers, at));
        };
        let moment = match kept.restated.place(begun) {
            Some(LogPlace::Behind(seen)) => Moment::after(seen),
            Some(LogPlace::At(begun)) => Moment::before(begun),
            None => Moment::before(begun),
        };
        let published = keeper.at(moment, begun)?;
        let given = published.sets.given(route.predicate().subqueries(), moment);
        Ok(route.judge(change, &given, at))
    }

    /// What moves where something ends with a Commit at this position, by selection.
    pub(crate) fn records(&self, commit: Position) -> Result<Vec<(usize, Arc<Record>)>, GatewayError> {
        let Some(kept) = &self.0 else { return Ok(Vec::new()) };
        let end = match kept.restated.place(commit) {
            // Nothing happens in the mirror's own chunks.
            Some(LogPlace::Behind(_)) => return Ok(Vec::new()),
            Some(LogPlace::At(commit)) => commit.as_resume_point(),
            None => commit.as_resume_point(),
        };
        let mut records = Vec::new();
        for (selection, keeper) in self.all() {
            records.extend(keeper.record(end)?.map(|record| (selection, record)));
        }
        Ok(records)
    }

    fn all(&self) -> impl Iterator<Item = (usize, &Keeper)> {
        let keepers = self.0.iter().flat_map(|kept| &kept.keepers);
        keepers.enumerate().filter_map(|(selection, keeper)| Some((selection, keeper.as_ref()?)))
    }

    /// Waits until all before a place is known.
    pub(crate) async fn passed(&self, place: Place) -> Result<(), Arc<Ended>> {
        for (_, keeper) in self.all() {
            keeper.passed(place).await?;
        }
        Ok(())
    }
}
