//! Changes of which a shape is told, once they are whole: as they came, or put together anew.

use std::sync::Arc;

use tidegate_model::Entry;

use super::{Filter, Piece, What, damaged, number, range};
use crate::{
    by_row_type::RowTypeLookup,
    selection::{Routing, corrects_reads},
    shape::{
        ShapeFailure,
        change::WholeChange,
        route::{Judgement, ShapeRoute, Verdict},
    },
    status::GatewayError,
};

impl Filter<'_> {
    /// What is delivered of a change that is whole.
    pub(super) fn shape(
        &mut self,
        entry: &Entry,
        (selection, route): (usize, &ShapeRoute),
        routing: &Routing,
    ) -> Result<(), GatewayError> {
        let mut pieces = std::mem::take(&mut self.carry.pieces);
        let is_cut = !pieces.is_empty();
        if !is_cut {
            pieces.push(self.payload.slice(range(entry)));
        }
        let change = WholeChange::read(entry.op, entry.row_type, &pieces).map_err(|_| damaged(entry))?;
        let verdict = self.judged(selection, route, (&change, entry))?;
        let chunk = self.carry.open.as_ref().and_then(|open| open.chunk);
        match if corrects_reads(entry.op, chunk) { verdict.map(Verdict::leaving) } else { verdict } {
            Ok(Verdict::Nothing) => {}
            Ok(Verdict::AsItCame) if !is_cut => self.pass(entry, selection, routing)?,
            Ok(Verdict::AsItCame) => self.rewritten(entry, selection, (&change, routing))?,
            Ok(Verdict::Rewritten(change)) => self.rewritten(entry, selection, (&change, routing))?,
            // Whoever filters may know more, and come again with another plan.
            Err(failure) if failure.is_of_old_facts() => return Err(GatewayError::ShapeFailed(failure)),
            Err(failure) => self.failed = Some(failure),
        }
        if is_cut {
            self.carry.pieces = pieces;
        }
        Ok(())
    }

    /// What the change is to the shape: with its subqueries as they were before the transaction.
    fn judged<'c>(
        &self,
        selection: usize,
        route: &ShapeRoute,
        (change, entry): (&'c WholeChange<'c>, &Entry),
    ) -> Result<Result<Verdict<'c>, Arc<ShapeFailure>>, GatewayError> {
        let at = entry.position();
        if let Some((_, effect)) = self.known {
            return Ok(route.judge_known(change, Judgement::Known(effect), at));
        }
        let begun = self.carry.open.as_ref().map_or(at, |open| open.at);
        self.carry.kept.judge((selection, route), change, (begun, at))
    }

    /// What moves into shapes and out of them where a transaction ends, for nothing but their subqueries.
    pub(super) fn moved(&mut self, commit: &Entry, lookup: &impl RowTypeLookup) -> Result<(), GatewayError> {
        for (selection, record) in self.carry.kept.records(commit.position())? {
            for change in record.changes(commit.ordinal) {
                let routing = self.plan.routing(change.row_type, lookup)?;
                self.rewritten(commit, selection, (&change, &routing))?;
            }
        }
        Ok(())
    }

    fn rewritten(
        &mut self,
        entry: &Entry,
        selection: usize,
        (change, routing): (&WholeChange<'_>, &Routing),
    ) -> Result<(), GatewayError> {
        let number = number(selection);
        self.begin(number, true);
        let fields = routing.deliver[selection].fields();
        let pieces = change.write(fields, &mut self.copied).map_err(|_| damaged(entry))?;
        self.announces(change.row_type, selection, routing);
        for (range, continues) in pieces {
            let what = What::Changes { selection: Some(number), change_count: u32::from(!continues), complete: None };
            self.append(Piece { what, range, copied: true }, false);
        }
        Ok(())
    }
}
