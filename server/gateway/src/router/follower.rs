//! A subscription's way through the notes of its seat.
//!
//! Invariant: all that concerns it up to its place has been handed out. It holds nothing but the place, so that it may be
//! left at any time, and the log be read from there; and it listens to its seat until it is dropped, once it has found nothing.

use std::sync::Arc;

use tidegate_store::Place;

use super::{
    bell::Bell,
    core::Passed,
    seat::{Ear, Next, Seat},
};

/// At a place in the log.
#[derive(Debug)]
pub(crate) struct Follower {
    seat: Arc<Seat>,
    passed: Place,
    /// Where it was before the last note.
    before: Place,
    /// Once it has listened.
    ear: Option<Ear>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(ear) = self.ear {
            self.seat.leave(ear);
        }
    }
}

impl Follower {
    /// Whoever has passed this place goes on with notes, if none are missing.
    pub(crate) fn join(seat: &Arc<Seat>, passed: Place) -> Option<Self> {
        match seat.next(passed) {
            Next::Note(_) | Next::Nothing => {
                Some(Follower { seat: Arc::clone(seat), passed, before: passed, ear: None })
            }
            Next::Lost => None,
        }
    }

    /// What comes next; a note is handed out once. Where there is nothing, the subscription of this number is rung when there is.
    pub(crate) fn next(&mut self, (bell, subscription): (&Arc<Bell>, u32)) -> Next {
        let next = self.seat.next_or_listen(self.passed, (bell, subscription), &mut self.ear);
        if let Next::Note(note) = &next {
            (self.before, self.passed) = (self.passed, note.end());
        }
        next
    }

    /// Moves on to where the router was before this call, if there is no note up to there and it is further on. Then all up to
    /// there is known to be complete.
    pub(crate) fn advance(&mut self, to: &Passed) -> bool {
        let advances = to.place > self.passed && matches!(self.seat.next(self.passed), Next::Nothing);
        if advances {
            self.passed = to.place;
        }
        advances
    }

    /// All that concerns the subscription up to here has been handed out.
    pub(crate) fn passed(&self) -> Place {
        self.passed
    }

    /// The same before the last note.
    pub(crate) fn before(&self) -> Place {
        self.before
    }
}
