//! What a shape is told of a chunk whose reads the subscription receives, or does not: either way it has the rows that the table has.

use std::sync::Arc;

use tidegate_model::{AdHoc, BlockBuilder, Lsn, Op, Position, SNAPSHOT_ORDINAL};
use tidegate_proto::v1;
use tidegate_schema::{BeginParts, ChangeParts, Extra, OldKind, push_begin, push_change, push_commit, set_ordinal};
use tidegate_views::Updates;

use super::super::{Carry, Delivery, Step, filter};
use crate::{
    frame::{Outbox, tests::messages},
    selection::{Filter, Plan, PlanKey},
    shape::tests::{COLUMNS, RowTypes, filter as shape, row, row_type},
};

/// `v` before, and as it is read.
const ROWS: [(u64, u64); 4] = [(3, 9), (3, 4), (9, 3), (9, 8)];

/// Each row is read, and corrected.
fn chunk(new_tables: bool) -> BlockBuilder {
    let (lsn, mut out) = (Lsn(9), BlockBuilder::default());
    let position = Position::new(lsn, SNAPSHOT_ORDINAL);
    push_begin(&BeginParts { position, snapshot: 2, new_tables, ..BeginParts::default() }, &mut out);
    for (id, (before, now)) in (1..).zip(ROWS) {
        let (before, now) = (row(id, Some(before), None), row(id, Some(now), None));
        for (op, old, old_kind) in [(Op::Read, &[][..], OldKind::None), (Op::Update, &before[..], OldKind::Full)] {
            let change = ChangeParts { op, row_type: 1, row: &now, old, old_kind, unchanged: &[], extra: Extra::None };
            push_change(&change, lsn, &mut out);
            let BlockBuilder { entries, payload } = &mut out;
            let entry = entries.last_mut().expect("it has been pushed");
            entry.ordinal = position.ordinal;
            set_ordinal(payload, entry, position.ordinal);
        }
    }
    push_commit(position, 2, &mut out);
    out
}

/// Operations and keys.
fn told(new_tables: bool) -> Vec<(v1::change::Op, u8)> {
    let filters = vec![Filter::Shape(shape("v < 5", &[], Updates::FullRow))];
    let plan = Plan::new(PlanKey::new(filters, 0, AdHoc::default()));
    let lookup = RowTypes(vec![row_type(1, COLUMNS)]);
    let filtered = filter(&plan, &chunk(new_tables).finish(), Carry::default(), &lookup).expect("valid");
    let (mut delivery, mut outbox) = (Delivery::new(1, Position::ZERO, 1 << 20), Outbox::default());
    delivery.offer(Arc::new(filtered));
    while matches!(delivery.next(&mut outbox), Step::Sent { .. }) {}
    let mut told = Vec::new();
    for message in messages(&mut outbox) {
        let Some(v1::session_response::Event::Changes(changes)) = message.event else { continue };
        for event in changes.events {
            let Some(v1::event::What::Change(change)) = event.what else { continue };
            let row = if change.row.is_empty() { &change.old } else { &change.row };
            // The key's field is the first.
            told.push((change.op(), row[1]));
        }
    }
    told
}

#[test]
fn whoever_receives_reads_hears_of_what_leaves_a_shape_too() {
    use v1::change::Op::{Delete, Insert, Read, Update};
    assert_eq!(told(true), [(Delete, 1), (Read, 2), (Read, 3)]);
    assert_eq!(told(false), [(Delete, 1), (Update, 2), (Insert, 3)]);
}
