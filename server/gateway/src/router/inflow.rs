//! What a subscription to shapes is handed: blocks of the log until it may have notes, and again when it has lost some.
//!
//! Invariant: nothing that concerns it is left out between two pieces. Whatever it is handed, its delivery goes on with the carry
//! that the piece before has left.

use std::sync::Arc;

use tidegate_model::{Block, Epoch};
use tidegate_store::ReadError;

use super::{
    bell::Bell,
    core::{Passed, Subject},
    follower::Follower,
    following::{Router, Ticket},
    note::Note,
    seat::Next,
};
use crate::{
    incoming::{Given, Incoming, Interrupted},
    redefinition::{Turned, Turning},
};

/// A subscription's place.
pub(crate) struct Inflow<S> {
    way: Way,
    /// None: it reads the log.
    routed: Option<Routed<S>>,
}

enum Way {
    Log(Box<Incoming>),
    Notes(Follower),
}

/// Where notes come from.
struct Routed<S> {
    router: Arc<Router<S>>,
    ticket: Arc<Ticket<S>>,
}

/// What there is of notes.
pub(crate) enum Noted<S> {
    /// One.
    Piece(Piece<S>),
    /// None yet.
    Waits,
    /// It reads the log, for now.
    InLog,
}

/// What is to be filtered.
pub(crate) enum Piece<S> {
    Block(Block),
    Note {
        note: Arc<Note>,
        /// Whom it was written for.
        subject: Arc<S>,
        /// Others wait for it too.
        is_shared: bool,
    },
    /// For the definitions that it brings the subscription to.
    Turned(Turned),
}

impl<S> From<Given> for Piece<S> {
    fn from(given: Given) -> Self {
        match given {
            Given::Block(block) => Piece::Block(block),
            Given::Turned(turned) => Piece::Turned(turned),
        }
    }
}

impl<S: Subject + Send + Sync + 'static> Inflow<S> {
    /// Of the log alone.
    pub(crate) fn log(incoming: Incoming) -> Self {
        Inflow { way: Way::Log(Box::new(incoming)), routed: None }
    }

    /// With notes, as soon as none are missing.
    pub(crate) fn routed(incoming: Incoming, router: &Arc<Router<S>>, subject: &Arc<S>, epoch: Epoch) -> Self {
        let routed = Routed { router: Arc::clone(router), ticket: router.seat(subject, epoch) };
        Inflow { way: Way::Log(Box::new(incoming)), routed: Some(routed) }
    }

    /// The note that comes next, if it has notes. Changes between log and notes where it can, or must. A subscription that
    /// waits is rung, by its number.
    pub(crate) fn noted(&mut self, (bell, subscription): (&Arc<Bell>, u32)) -> Result<Noted<S>, ReadError> {
        let Inflow { way, routed } = self;
        let Some(Routed { ticket, .. }) = routed else { return Ok(Noted::InLog) };
        loop {
            match way {
                Way::Notes(follower) => match follower.next((bell, subscription)) {
                    Next::Note(note) => {
                        let (subject, is_shared) = (Arc::clone(ticket.subject()), Arc::strong_count(ticket) > 1);
                        return Ok(Noted::Piece(Piece::Note { note, subject, is_shared }));
                    }
                    Next::Nothing => return Ok(Noted::Waits),
                    Next::Lost => {
                        let behind = ticket.reader_behind(follower.passed())?;
                        *way = Way::Log(Box::new(Incoming::log(behind)));
                    }
                },
                Way::Log(incoming) => match incoming.place().and_then(|passed| Follower::join(ticket.seat(), passed)) {
                    Some(follower) => *way = Way::Notes(follower),
                    None => return Ok(Noted::InLog),
                },
            }
        }
    }

    /// The log's next block; None where there may be notes instead. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece<S>>, Interrupted> {
        let Inflow { way, routed } = self;
        let Way::Log(incoming) = way else { return Ok(None) };
        let (Some(Routed { router, ticket }), Some(passed)) = (routed, incoming.place()) else {
            return Ok(Some(incoming.next().await?.into()));
        };
        if ticket.seat().is_closed() {
            // The router has begun anew. Where the epoch has ended, the log says so.
            *ticket = router.seat(ticket.subject(), ticket.epoch());
        }
        tokio::select! {
            biased;
            given = incoming.next() => Ok(Some(given?.into())),
            () = ticket.seat().wait_open(passed) => Ok(None),
        }
    }

    /// Moves on to where the router has come, if nothing up to there concerns the subscription. All is complete there.
    pub(crate) fn advance(&mut self) -> Option<Passed> {
        let (Way::Notes(follower), Some(routed)) = (&mut self.way, &self.routed) else { return None };
        let passed = routed.ticket.passed()?;
        follower.advance(&passed).then_some(passed)
    }

    /// Is nothing woven into what it receives?
    pub(crate) fn is_plain(&self) -> bool {
        match &self.way {
            Way::Notes(_) => true,
            Way::Log(incoming) => incoming.is_plain(),
        }
    }

    /// The same on its way to other definitions. It has to be plain, and what it has handed out filtered.
    pub(crate) fn turning(self, turning: Turning) -> Result<Self, ReadError> {
        let mut incoming = self.into_log()?;
        incoming.turn(turning);
        Ok(Inflow::log(incoming))
    }

    /// Of the log alone, from where it is.
    pub(crate) fn into_log(self) -> Result<Incoming, ReadError> {
        match (self.way, self.routed) {
            (Way::Log(incoming), _) => Ok(*incoming),
            (Way::Notes(follower), Some(routed)) => Ok(Incoming::log(routed.ticket.reader_behind(follower.passed())?)),
            (Way::Notes(_), None) => unreachable!("notes come from the router"),
        }
    }

    /// From here on for another subject. A note that has just been handed out did not fit: the log is read from before it.
    pub(crate) fn change(&mut self, subject: &Arc<S>) -> Result<(), ReadError> {
        let Some(Routed { router, ticket }) = &mut self.routed else { return Ok(()) };
        if let Way::Notes(follower) = &self.way {
            self.way = Way::Log(Box::new(Incoming::log(ticket.reader_behind(follower.before())?)));
        }
        *ticket = router.seat(subject, ticket.epoch());
        Ok(())
    }
}
