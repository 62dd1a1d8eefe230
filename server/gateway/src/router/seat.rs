//! Where a plan's notes lie until its subscriptions have taken them.
//!
//! Invariants: of every block that lies wholly behind `from` and that the router has passed, there is a note if the block
//! concerns the plan. Whoever has passed a place at or behind `from` misses nothing by reading notes; whoever has not reads the
//! log until he has. Notes are shared: a seat holds no place of a subscription, and a note goes when the router lets go of its
//! block, whether it was read or not. Who listens is rung once there is something for him, and then listens no more until he
//! says so again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use slab::Slab;
use tidegate_store::Place;
use tokio::sync::Notify;

use super::{bell::Bell, note::Note};

/// The notes of one plan.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    state: Mutex<State>,
    /// It has been taken up, or closed.
    opened: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// None until the router has taken it up.
    from: Option<Place>,
    /// Nothing more comes.
    closed: bool,
    /// In the log's order.
    notes: VecDeque<Arc<Note>>,
    listeners: Slab<Listener>,
}

#[derive(Debug)]
struct Listener {
    bell: Arc<Bell>,
    subscription: u32,
    listens: bool,
}

/// A listener's number at its seat.
pub(super) type Ear = u32;

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

impl State {
    fn next(&self, passed: Place) -> Next {
        if self.from.is_none_or(|from| passed < from) {
            return Next::Lost;
        }
        match self.notes.get(self.notes.partition_point(|note| note.end() <= passed)) {
            Some(note) => Next::Note(Arc::clone(note)),
            None if self.closed => Next::Lost,
            None => Next::Nothing,
        }
    }

    fn ring(&mut self) {
        for (_, listener) in &mut self.listeners {
            if std::mem::take(&mut listener.listens) {
                listener.bell.ring(listener.subscription);
            }
        }
    }
}

impl Seat {
    /// The first note behind a place.
    pub(crate) fn next(&self, passed: Place) -> Next {
        self.locked().next(passed)
    }

    /// As `next`; where that is nothing, the subscription is rung once there is something. `ear`: the number that it has got, for
    /// [`Seat::leave`].
    pub(super) fn next_or_listen(
        &self,
        passed: Place,
        (bell, subscription): (&Arc<Bell>, u32),
        ear: &mut Option<Ear>,
    ) -> Next {
        let mut state = self.locked();
        let next = state.next(passed);
        if let Next::Nothing = next {
            let listeners = &mut state.listeners;
            if listeners.capacity() == 0 {
                // Most seats have one.
                listeners.reserve_exact(1);
            }
            let listener = || Listener { bell: Arc::clone(bell), subscription, listens: false };
            let number = *ear.get_or_insert_with(|| listeners.insert(listener()) as u32);
            listeners[number as usize].listens = true;
        }
        next
    }

    /// Is not rung any more.
    pub(super) fn leave(&self, ear: Ear) {
        let mut state = self.locked();
        state.listeners.remove(ear as usize);
        if state.listeners.is_empty() {
            state.listeners = Slab::new();
        }
    }

    /// Waits until whoever has passed the place may read notes; for ever, where he never may. Cancel safe.
    pub(crate) async fn wait_open(&self, passed: Place) {
        loop {
            let opened = self.opened.notified();
            {
                let state = self.locked();
                if !state.closed && state.from.is_some_and(|from| from <= passed) {
                    return;
                }
            }
            opened.await;
        }
    }

    /// Will there never be a note again?
    pub(crate) fn is_closed(&self) -> bool {
        self.locked().closed
    }

    /// From here on nothing is missing.
    pub(super) fn open(&self, from: Place) {
        self.locked().from = Some(from);
        self.opened.notify_waiters();
    }

    pub(super) fn push(&self, note: Arc<Note>) {
        let mut state = self.locked();
        state.notes.push_back(note);
        state.ring();
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
        let mut state = self.locked();
        state.closed = true;
        state.ring();
        drop(state);
        self.opened.notify_waiters();
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
