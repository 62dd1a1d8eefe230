//! Where a plan's notes lie until its subscriptions have taken them.
//!
//! Invariant: of every block that lies wholly behind `from` and that the router has passed, there is a note if the block
//! concerns the plan. Whoever has passed a place at or behind `from` misses nothing by reading notes; whoever has not reads the
//! log until he has. Notes are shared: a seat holds no place of a subscription, and a note goes when the router lets go of its
//! block, whether it was read or not.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tidegate_store::Place;
use tokio::sync::Notify;

use super::note::Note;

/// The notes of one plan.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// None until the router has taken it up.
    from: Option<Place>,
    /// Nothing more comes.
    closed: bool,
    /// In the log's order.
    notes: VecDeque<Arc<Note>>,
}

/// What there is for a subscription.
#[derive(Debug)]
pub(crate) enum Next {
    /// Of the next block that concerns it.
    Note(Arc<Note>),
    /// Nothing that the router has passed concerns it.
    Nothing,
    /// Notes may be missing: read the log.
    Lost,
}

impl Seat {
    /// The first note behind a place.
    pub(crate) fn next(&self, passed: Place) -> Next {
        let state = self.locked();
        if state.from.is_none_or(|from| passed < from) {
            return Next::Lost;
        }
        match state.notes.get(state.notes.partition_point(|note| note.end() <= passed)) {
            Some(note) => Next::Note(Arc::clone(note)),
            None if state.closed => Next::Lost,
            None => Next::Nothing,
        }
    }

    /// Waits until there is something behind the place. Cancel safe.
    pub(crate) async fn wait(&self, passed: Place) {
        loop {
            let changed = self.changed.notified();
            match self.next(passed) {
                Next::Nothing => changed.await,
                Next::Note(_) | Next::Lost => return,
            }
        }
    }

    /// Waits until whoever has passed the place may read notes; for ever, where he never may. Cancel safe.
    pub(crate) async fn wait_open(&self, passed: Place) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.locked();
                if !state.closed && state.from.is_some_and(|from| from <= passed) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Will there never be a note again?
    pub(crate) fn is_closed(&self) -> bool {
        self.locked().closed
    }

    /// From here on nothing is missing.
    pub(super) fn open(&self, from: Place) {
        self.locked().from = Some(from);
        self.changed.notify_waiters();
    }

    pub(super) fn push(&self, note: Arc<Note>) {
        self.locked().notes.push_back(note);
        self.changed.notify_waiters();
    }

    /// Forgets the notes up to a place.
    pub(super) fn forget(&self, through: Place) {
        let mut state = self.locked();
        while state.notes.pop_front_if(|note| note.end() <= through).is_some() {
            state.from = state.from.map(|from| from.max(through));
        }
        if state.notes.is_empty() {
            state.notes.shrink_to_fit();
        }
    }

    pub(super) fn close(&self) {
        self.locked().closed = true;
        self.changed.notify_waiters();
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
