//! An open subscription of a session, and how far it tells that it is.

use std::sync::Arc;

use tidegate_model::Clock;

use super::places::{At, Places};
use crate::{
    delivery::Delivery,
    metrics::OpenSubscription,
    named_shapes::NamedInUse,
    open_subscriptions::{Entry, Whereabouts},
    opening::Opened,
    progress::progress,
    reset::Refusal,
    router::{Inflow, Piece},
    selection::Plan,
    share::ShareCache,
    source::{Source, inflow},
    status::GatewayError,
};

pub(super) struct Open {
    pub(super) source: Arc<Source>,
    pub(super) plan: Arc<Plan>,
    pub(super) delivery: Delivery,
    /// None while it waits for a piece.
    pub(super) incoming: Option<Inflow<Plan>>,
    /// It waits for a note.
    pub(super) awaits_note: bool,
    /// It is among the ready.
    pub(super) queued: bool,
    /// Progress was sent since the last turn of the clock, so that catching up is told at once, but not for each block.
    pub(super) told_caught_up: bool,
    /// Its progress may be told together with that of others.
    pub(super) shares_progress: bool,
    pub(super) entry: Entry,
    pub(super) named: NamedInUse,
    pub(super) _counted: OpenSubscription,
}

impl Open {
    pub(super) fn new(opened: Opened, (subscription, credit_bytes): (u32, u64)) -> Self {
        let Opened { source, plan, incoming, prefix, after, kept, named, counted, shares_progress, .. } = opened;
        let delivery = Delivery::new(subscription, after, credit_bytes).with_sets(kept);
        let start = Whereabouts { subscription, position: after, acked: after, credit_bytes: delivery.credit_bytes() };
        Open {
            incoming: Some(inflow(&source, &plan, incoming, prefix.epoch)),
            awaits_note: false,
            queued: false,
            told_caught_up: false,
            shares_progress,
            entry: source.subscriptions.add(start),
            source,
            plan,
            delivery,
            named,
            _counted: counted,
        }
    }

    /// Something is to arrive.
    pub(super) fn is_waiting(&self) -> bool {
        self.awaits_note || self.incoming.is_none()
    }

    /// With what it waits for next.
    pub(super) fn goes_on(&mut self, incoming: Inflow<Plan>) -> Result<(), Refusal> {
        self.incoming = Some(incoming);
        Ok(())
    }

    /// Takes the next piece.
    pub(super) fn filter(&mut self, piece: &Piece<Plan>, share: &ShareCache) -> Result<(), GatewayError> {
        let filtered = share.filtered(&self.plan, piece, &self.delivery, &self.source.handle.store)?;
        self.delivery.offer(filtered);
        Ok(())
    }

    /// What is said of where it is: with the router, if nothing up to there concerns it.
    pub(super) fn place<'p>(&mut self, clock: &dyn Clock, places: &'p mut Places) -> &'p mut At {
        let incoming = self.incoming.as_mut().filter(|_| !self.delivery.holds_block());
        if let Some(passed) = incoming.and_then(Inflow::advance) {
            self.delivery.advance(&passed);
        }
        let (position, commit_time_us) = (self.delivery.position(), self.delivery.commit_time_us());
        self.entry.note(position, self.delivery.credit_bytes());
        let place = (Arc::as_ptr(&self.source).addr(), position, commit_time_us);
        places.at(place, || progress(&self.source, clock, position, commit_time_us))
    }
}
