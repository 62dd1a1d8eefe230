//! Changes of which a shape is told, once they are whole: as they came, or put together anew.

use tidegate_model::Entry;

use super::{Filter, Piece, What, damaged, number, range};
use crate::{
    selection::Routing,
    shape::{
        change::WholeChange,
        route::{ShapeRoute, Verdict},
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
        let known = self.known.map(|(_, effect)| effect);
        match route.judge_known(&change, known, entry.position()) {
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
        self.announces(entry, selection, routing);
        for (range, continues) in pieces {
            let what = What::Changes { selection: Some(number), change_count: u32::from(!continues), complete: None };
            self.append(Piece { what, range, copied: true }, false);
        }
        Ok(())
    }
}
