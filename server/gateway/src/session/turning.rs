//! A subscription whose named shapes are defined anew: it is brought to the new definitions ([`crate::redefinition`]).

use std::sync::Arc;

use super::{Arrived, Open, Session, State};
use crate::{
    opening::refusal,
    redefinition::{Prepared, Turning, prepared},
    reset::Refusal,
    router::{Inflow, Piece},
    selection::Plan,
    source::inflow,
};

impl Session {
    /// At a turn of the clock: ends the subscriptions of which a named shape has been deleted. One that waits for notes has a turn where
    /// one has been defined anew.
    pub(super) fn look_at_names(&mut self) {
        let (mut gone, mut edited) = (Vec::new(), Vec::new());
        for (&subscription, found) in &mut self.subscriptions {
            let State::Open(open) = &mut found.state else { continue };
            open.named.look();
            open.named.remind();
            if let Some(deleted) = open.named.gone() {
                gone.push((subscription, deleted));
            } else if open.awaits_note && open.named.is_due() {
                open.awaits_note = false;
                edited.push(subscription);
            }
        }
        for subscription in edited {
            self.enqueue(subscription);
        }
        for (subscription, deleted) in gone {
            self.close(subscription, deleted);
        }
    }

    /// Has the subscription wait for what an edit is to it.
    pub(super) fn prepare(&mut self, subscription: u32) {
        let Some(Open { incoming, named, source, plan, .. }) = super::open_of(&mut self.subscriptions, subscription)
        else {
            return;
        };
        let Some(incoming) = incoming.take() else { return };
        let (source, plan, named) = (Arc::clone(source), Arc::clone(plan), named.clone());
        let preparing = prepared(Arc::clone(&self.shared), source, plan, named);
        self.wait_for(subscription, async move { Arrived::Prepared(incoming, preparing.await) });
    }
}

impl Open {
    /// Is it time to see what an edit is to it? Once. Not amid a snapshot out of the mirror, which is of one definition.
    pub(super) fn is_to_turn(&mut self) -> bool {
        self.named.look();
        self.incoming.as_ref().is_some_and(Inflow::is_plain) && self.named.take_due()
    }

    /// Goes on, on its way to other definitions or as it is.
    pub(super) fn prepared(
        &mut self,
        mut incoming: Inflow<Plan>,
        prepared: Result<Prepared, Refusal>,
    ) -> Result<(), Refusal> {
        if let Some(passed) = incoming.advance() {
            self.delivery.advance(&passed);
        }
        let (position, is_within) = (self.delivery.position(), self.delivery.is_within());
        let incoming = match prepared? {
            Prepared::Same(named) => {
                self.named = named;
                incoming
            }
            Prepared::Later => incoming,
            Prepared::Difference(to) => match Turning::new(to, &self.source, (position, is_within)) {
                None => incoming,
                Some(turning) => {
                    incoming.turning(turning).map_err(|error| refusal(error.into(), position, &self.source))?
                }
            },
        };
        self.incoming = Some(incoming);
        Ok(())
    }

    /// A piece has come: with the first of a difference, it goes on with the plan behind that.
    pub(super) fn turned(&mut self, incoming: Inflow<Plan>, piece: &Piece<Plan>) -> Inflow<Plan> {
        let Piece::Turned(turned) = piece else { return incoming };
        if Arc::ptr_eq(&self.plan, &turned.to.plan) {
            return incoming;
        }
        self.plan = Arc::clone(&turned.to.plan);
        self.named = turned.to.named.clone();
        self.delivery.turn();
        let epoch = turned.to.prefix.epoch;
        match incoming.into_log() {
            Ok(incoming) => inflow(&self.source, &self.plan, incoming, epoch),
            Err(_) => unreachable!("a difference comes by the log"),
        }
    }
}
