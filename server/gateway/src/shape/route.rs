//! What a change of a row is to a shape, for one row type.
//!
//! ```text
//! before │ after │ delivered                                  before │ after │ delivered
//! in     │ in    │ the update, if a selected column changed   not known │ in  │ the update, as an upsert
//! in     │ out   │ a delete, moved out                        not known │ out │ a delete, moved out
//! out    │ in    │ an insert, moved in                        out    │ out   │ nothing
//! ```
//!
//! Invariant: who applies what is delivered (reads, inserts and updates as upserts, deletes as such) holds exactly the rows that
//! meet the condition. Where the old row is not known (its table's mirror was not complete then, or the row had not been read since a
//! column was added), it may have been in the shape, and is taken to have been. Pure.

use std::{borrow::Cow, sync::Arc};

use tidegate_model::{Op, Position};
use tidegate_proto::v1::{self, change::Move};
use tidegate_schema::{FieldSet, OldKind, RowType, wire::Fields};
use tidegate_store::MirrorRow;
use tidegate_views::{Effect, Failure, Members, Order, Predicate, Rank, Shape, Updates, changed_fields};

use super::change::{WholeChange, keep};
use super::failure::{Cause, Lost, ShapeFailure};
use crate::projection::MalformedChange;

/// A shape of rows of one row type.
#[derive(Clone, Debug)]
pub(crate) struct ShapeRoute {
    shape: Shape,
    row_type: Arc<RowType>,
    /// The selected columns' and the key's; None for all.
    fields: Option<FieldSet>,
    lost: Option<Lost>,
    /// It lacks a column that no row type before it had. Once the table has come back to it, that is lost.
    is_provisional: bool,
}

/// By what a change is judged.
#[derive(Clone, Copy)]
pub(crate) enum Judgement<'a> {
    /// It is known what it is to the shape.
    Known(Effect),
    /// The condition, with these members of its subqueries.
    By(&'a dyn Members),
}

impl Judgement<'_> {
    fn is_known(self) -> bool {
        matches!(self, Judgement::Known(_))
    }
}

/// Of a condition without subqueries.
pub(crate) struct NoMembers;

impl Members for NoMembers {
    fn membership(&self, _: usize, _: Option<&[u8]>) -> Option<bool> {
        unreachable!("a condition asks for its own subqueries only, and it has none")
    }
}

/// What is delivered of a change.
#[derive(Debug)]
pub(crate) enum Verdict<'a> {
    Nothing,
    /// The change, with the selected columns.
    AsItCame,
    Rewritten(WholeChange<'a>),
}

impl Verdict<'_> {
    /// What is told of it where the rest has been.
    pub(crate) fn leaving(self) -> Self {
        match self {
            Verdict::Rewritten(change) if change.op == Op::Delete => Verdict::Rewritten(change),
            Verdict::Nothing | Verdict::AsItCame | Verdict::Rewritten(_) => Verdict::Nothing,
        }
    }
}

impl ShapeRoute {
    pub(super) fn new(shape: Shape, row_type: Arc<RowType>, lost: Option<Lost>) -> Self {
        let fields = shape.columns().and_then(|columns| {
            let is_selected = |column: &&v1::Column| column.key || columns.binary_search(&column.name).is_ok();
            let all = &row_type.proto().columns;
            let some = !all.iter().all(|column| is_selected(&column));
            some.then(|| all.iter().filter(is_selected).map(|column| column.field).collect())
        });
        ShapeRoute { shape, row_type, fields, lost, is_provisional: false }
    }

    pub(super) fn provisional(self, is_provisional: bool) -> Self {
        ShapeRoute { is_provisional, ..self }
    }

    /// The selected columns' and the key's; None for all.
    pub(crate) fn fields(&self) -> Option<&FieldSet> {
        self.fields.as_ref()
    }

    /// The key's.
    pub(crate) fn key(&self) -> &FieldSet {
        self.row_type.key()
    }

    /// Which rows are in it.
    pub(crate) fn predicate(&self) -> &Predicate {
        self.shape.predicate()
    }

    /// Can what comes not be compared with what a subscription has?
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// May it be another when the table has come back to its row type?
    pub(crate) fn is_provisional(&self) -> bool {
        self.is_provisional
    }

    /// What is delivered of a change; a row is read no further than the condition needs.
    /// `members`: of the condition's subqueries, before the transaction.
    pub(crate) fn judge<'a>(
        &self,
        change: &'a WholeChange<'a>,
        members: &dyn Members,
        position: Position,
    ) -> Result<Verdict<'a>, Arc<ShapeFailure>> {
        self.judge_known(change, Judgement::By(members), position)
    }

    /// Where it is known what the change is to the shape, the condition is not evaluated.
    pub(crate) fn judge_known<'a>(
        &self,
        change: &'a WholeChange<'a>,
        by: Judgement<'_>,
        position: Position,
    ) -> Result<Verdict<'a>, Arc<ShapeFailure>> {
        self.verdict(change, by).map_err(|cause| self.failure(change, position, cause))
    }

    /// Is a row of the mirror in it? Its condition has no subqueries.
    pub(crate) fn has(&self, row: &MirrorRow, position: Position) -> Result<bool, Arc<ShapeFailure>> {
        self.has_given(row, &NoMembers, position)
    }

    /// The same with the members of its condition's subqueries at that position.
    pub(crate) fn has_given(
        &self,
        row: &MirrorRow,
        members: &dyn Members,
        position: Position,
    ) -> Result<bool, Arc<ShapeFailure>> {
        let change = WholeChange::reading(row.row_type, &row.row, &row.missing);
        let verdict = self.judge(&change, members, position)?;
        Ok(!matches!(verdict, Verdict::Nothing))
    }

    /// Where a row that is read stands in an order, which is made for its row type.
    pub(crate) fn rank(
        &self,
        order: &Order,
        change: &WholeChange<'_>,
        position: Position,
    ) -> Result<Rank, Arc<ShapeFailure>> {
        order.rank(&change.row).map_err(|failure| self.failure(change, position, Cause::Order(failure)))
    }

    fn failure(&self, change: &WholeChange<'_>, position: Position, cause: Cause) -> Arc<ShapeFailure> {
        let row = if change.row.is_empty() { &change.old } else { &change.row };
        ShapeFailure::of_row(&self.row_type, row, position, cause)
    }

    /// The condition fails for a row.
    pub(crate) fn failed_for(&self, row: &[u8], position: Position, failure: Failure) -> Arc<ShapeFailure> {
        ShapeFailure::of_row(&self.row_type, row, position, failure.into())
    }

    fn verdict<'a>(&self, change: &'a WholeChange<'a>, by: Judgement<'_>) -> Result<Verdict<'a>, Cause> {
        // Where it is known what a change is to the shape, that has been told by the row as it is.
        if let Some(lost) = self.lost.as_ref().filter(|lost| lost.concerns(change.op) && !by.is_known()) {
            return Err(lost.clone().into());
        }
        match change.op {
            Op::Read | Op::Insert | Op::Delete if by.is_known() => Ok(Verdict::AsItCame),
            Op::Read | Op::Insert => {
                self.check_known(&change.unchanged)?;
                Ok(if self.selects(&change.row, by)? { Verdict::AsItCame } else { Verdict::Nothing })
            }
            Op::Delete => match change.whole_old() {
                Some(old) if !self.selects(old, by)? => Ok(Verdict::Nothing),
                Some(_) | None => Ok(Verdict::AsItCame),
            },
            Op::Update => self.update(change, by),
            Op::Truncate => Ok(Verdict::AsItCame),
            Op::None | Op::Message => Ok(Verdict::Nothing),
        }
    }

    fn update<'a>(&self, change: &'a WholeChange<'a>, by: Judgement<'_>) -> Result<Verdict<'a>, Cause> {
        let Some(old) = change.whole_old() else {
            self.check_known(&change.unchanged)?;
            return Ok(if self.selects(&change.row, by)? {
                Verdict::AsItCame
            } else {
                Verdict::Rewritten(self.moved_out(change)?)
            });
        };
        let (row, missing) = completed(change, old)?;
        self.check_known(&missing)?;
        let is_selected = |field| self.is_selected(field);
        let effect = match by {
            Judgement::Known(known) => Some(known),
            Judgement::By(members) => self.shape.effect_given(Some(old), Some(&row), is_selected, members)?,
        };
        Ok(match effect {
            None => Verdict::Nothing,
            Some(Effect::MoveIn) => Verdict::Rewritten(WholeChange {
                op: Op::Insert,
                moved: Move::MovedIn,
                row,
                old: Cow::Borrowed(&[]),
                old_kind: OldKind::None,
                unchanged: missing,
                ..*change
            }),
            Some(Effect::MoveOut) => Verdict::Rewritten(self.moved_out(change)?),
            Some(Effect::Update) => match self.shape.updates() {
                Updates::FullRow => Verdict::AsItCame,
                Updates::ChangedColumns => Verdict::Rewritten(self.changed_columns(change, (&row, missing), old)?),
            },
        })
    }

    fn moved_out<'a>(&self, change: &'a WholeChange<'a>) -> Result<WholeChange<'a>, Cause> {
        let (old, old_kind) = match change.old_kind {
            OldKind::Full | OldKind::Key => (Cow::Borrowed(&*change.old), change.old_kind),
            OldKind::None => {
                let key = self.row_type.key();
                self.check_sent(key, &change.unchanged)?;
                (Cow::Owned(keep(&change.row, |field| key.contains(field))?), OldKind::Key)
            }
        };
        Ok(WholeChange {
            op: Op::Delete,
            moved: Move::MovedOut,
            row: Cow::Borrowed(&[]),
            old,
            old_kind,
            unchanged: Vec::new(),
            ..*change
        })
    }

    /// The key and what has changed; all, and the old key, where that has: amid a snapshot, a row may move from keys that are still
    /// to be read to those that have been.
    fn changed_columns<'a>(
        &self,
        change: &WholeChange<'a>,
        (row, missing): (&[u8], Vec<u32>),
        old: &[u8],
    ) -> Result<WholeChange<'a>, Cause> {
        let key = self.row_type.key();
        let changed = changed_fields(old, row)?;
        let has_changed = |field: u32| changed.binary_search(&field).is_ok();
        if key.iter().any(has_changed) {
            return Ok(WholeChange {
                row: Cow::Owned(row.to_vec()),
                old: Cow::Owned(keep(old, |field| key.contains(field))?),
                old_kind: OldKind::Key,
                unchanged: missing,
                ..*change
            });
        }
        let is_sent = |field: u32| key.contains(field) || has_changed(field);
        let columns = self.row_type.proto().columns.iter().map(|column| column.field);
        let mut unchanged: Vec<u32> = columns.filter(|&field| self.is_selected(field) && !is_sent(field)).collect();
        unchanged.sort_unstable();
        Ok(WholeChange {
            row: Cow::Owned(keep(row, is_sent)?),
            old: Cow::Borrowed(&[]),
            old_kind: OldKind::None,
            unchanged,
            ..*change
        })
    }

    fn is_selected(&self, field: u32) -> bool {
        self.fields.as_ref().is_none_or(|fields| fields.contains(field))
    }

    fn selects(&self, row: &[u8], by: Judgement<'_>) -> Result<bool, Failure> {
        match by {
            Judgement::Known(_) => Ok(true),
            Judgement::By(members) => self.shape.predicate().selects_given(row, members),
        }
    }

    /// Refuses a row that lacks a value which the condition reads.
    fn check_known(&self, missing: &[u32]) -> Result<(), Cause> {
        if missing.is_empty() {
            return Ok(());
        }
        self.check_sent(&self.shape.predicate().fields().collect(), missing)
    }

    fn check_sent(&self, fields: &FieldSet, missing: &[u32]) -> Result<(), Cause> {
        let Some(&field) = missing.iter().find(|&&field| fields.contains(field)) else { return Ok(()) };
        let column = self.row_type.column_by_field(field);
        Err(Cause::Unknown { column: column.map(|column| column.name.clone()).unwrap_or_default() })
    }
}

impl Lost {
    fn concerns(&self, op: Op) -> bool {
        match self {
            Lost::Key => op != Op::Truncate,
            Lost::Column { for_reads, .. } => match op {
                Op::Read => *for_reads,
                Op::Insert | Op::Update | Op::Delete => true,
                Op::None | Op::Truncate | Op::Message => false,
            },
        }
    }
}

/// The new row with what the update has left as it was, and what the old row does not have either.
pub(crate) fn completed<'a>(
    change: &'a WholeChange<'a>,
    old: &[u8],
) -> Result<(Cow<'a, [u8]>, Vec<u32>), MalformedChange> {
    let mut row = Cow::Borrowed(&*change.row);
    let mut missing = change.unchanged.clone();
    if missing.is_empty() {
        return Ok((row, missing));
    }
    for field in Fields::new(old) {
        let field = field?;
        if let Ok(at) = missing.binary_search(&field.number) {
            missing.remove(at);
            row.to_mut().extend_from_slice(field.whole);
        }
    }
    Ok((row, missing))
}
