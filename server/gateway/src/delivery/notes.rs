//! Deliveries by notes: of a block, what the router has found for a plan, and nothing of the others.
//!
//! Invariant: what comes out, and what is carried on, is what filtering the block would yield, if each note before was filtered and
//! nothing else, or every block.

use super::{Begin, Carry, Delivery, Filter, Filtered, Open};
use crate::{
    by_row_type::RowTypeLookup,
    redefinition::Turned,
    router::{Begun, Known, Note, Passed, RoutedBlock},
    selection::Plan,
    snapshot_marks::receives_chunk,
    status::GatewayError,
};

/// Filters what was found in a block for the plan.
pub(crate) fn filter_note(
    plan: &Plan,
    note: &Note,
    carry: Carry,
    lookup: &impl RowTypeLookup,
) -> Result<Filtered, GatewayError> {
    Filter::new(plan, &note.routed.block, carry).note(note, lookup)
}

/// Filters a part of what brings a subscription to other definitions. It is told also where nothing is changed.
pub(crate) fn filter_turned(
    turned: &Turned,
    carry: Carry,
    lookup: &impl RowTypeLookup,
) -> Result<Filtered, GatewayError> {
    let Turned { note, to } = turned;
    let mut filter = Filter::new(&to.plan, &note.routed.block, carry);
    filter.tells_marks = true;
    filter.note(note, lookup)
}

impl Filter<'_> {
    fn note(mut self, note: &Note, lookup: &impl RowTypeLookup) -> Result<Filtered, GatewayError> {
        let RoutedBlock { block, open, .. } = &*note.routed;
        if let Some(begun) = open {
            self.resume(begun)?;
        }
        for found in &note.found {
            self.known = match found.what {
                Known::Nothing => None,
                Known::Effect { selection, effect } => Some((selection.into(), effect)),
            };
            if !self.goes_on(&block.entries()[found.entry as usize], lookup)? {
                break;
            }
        }
        Ok(self.finish(block))
    }

    /// The block begins within this transaction, of which what came before did not concern the subscription, or it has it.
    fn resume(&mut self, Begun { entry, event }: &Begun) -> Result<(), GatewayError> {
        let at = entry.position();
        if !self.has_started(entry) || self.carry.open.as_ref().is_some_and(|open| open.at == at) {
            return Ok(());
        }
        let chunk = entry.is_of_snapshot().then(|| receives_chunk(self.plan, entry, event)).transpose()?;
        self.carry.open = Some(Open { at, begin: Begin::Kept(event.clone()), chunk, matched: false });
        Ok(())
    }
}

impl Delivery {
    /// All up to here is complete, and nothing of it concerns the subscription.
    pub(crate) fn advance(&mut self, passed: &Passed) {
        self.position = self.position.max(passed.complete);
        self.commit_time_us = passed.commit_time_us.or(self.commit_time_us);
        self.carried.close();
    }
}
