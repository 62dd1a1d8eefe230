//! Where in the log that stands which a snapshot out of the mirror puts among it: chunks of its own, and what other snapshots have, are stated
//! at positions that the log does not have. Whoever has to know what had happened before them asks here.
//!
//! Invariant: it knows of all that has been woven since the last block but one was handed out, and so of every block that is looked at.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidegate_model::Position;

/// What is known of one snapshot. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Restated(Arc<Mutex<Vec<(Position, LogPlace)>>>);

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogPlace {
    /// The mirror as it is where all up to here has happened.
    Behind(Position),
    /// The log has it at this position.
    At(Position),
}

impl Restated {
    /// None for what is stated as the log has it.
    pub(crate) fn place(&self, stated: Position) -> Option<LogPlace> {
        self.known().iter().rev().find(|(at, _)| *at == stated).map(|(_, place)| *place)
    }

    pub(super) fn note(&self, stated: Position, place: LogPlace) {
        self.known().push((stated, place));
    }

    /// What has been handed out has been looked at.
    pub(super) fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, Vec<(Position, LogPlace)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
