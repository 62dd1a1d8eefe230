//! What two definitions of a shape make of the rows of its table: the changes that bring a subscription from one to the other.
//!
//! ```text
//! before    │ after │ delivered                          before        │ after │ delivered
//! out       │ in    │ an insert, moved in                in, or failed │ out   │ a delete, moved out, with the key
//! in        │ in    │ an update with all columns, if these are others  failed │ in │ the same, as an upsert
//! ```
//!
//! A row for which the condition before fails has been in the shape, or not: it is taken to have been. One for which the condition after
//! fails ends the subscription, as it would have ended one that starts. Pure.

use std::{borrow::Cow, sync::Arc};

use bytes::BytesMut;
use prost::Message as _;
use tidegate_model::{BlockBuilder, Entry, Kind, Op, Position};
use tidegate_proto::v1::{self, change::Move};
use tidegate_schema::{BeginParts, OldKind, push_begin};
use tidegate_store::{MirrorRow, Place};
use tidegate_views::Effect;

use super::Redefinition;
use crate::{
    by_row_type::RowTypeLookup,
    router::{Found, Known, Note, RoutedBlock},
    selection::{Deliver, Routing},
    shape::{
        ShapeFailure,
        change::{WholeChange, keep},
        route::ShapeRoute,
    },
    status::GatewayError,
};

/// Payload of a part, in bytes; a row more may be in it.
const PART_BYTES: usize = 128 << 10;

/// Why there is none.
pub(super) enum Unjudged {
    /// The condition fails for a row.
    Failed(Arc<ShapeFailure>),
    Error(GatewayError),
}

impl From<GatewayError> for Unjudged {
    fn from(error: GatewayError) -> Self {
        Unjudged::Error(error)
    }
}

/// A difference that is being made, row by row.
pub(super) struct Judging<'a, L> {
    to: &'a Redefinition,
    lookup: &'a L,
    /// The row type of the last row, and what it means before and after.
    routings: Option<(u32, Arc<Routing>, Arc<Routing>)>,
    /// Where the difference is stated.
    position: Position,
    part: BlockBuilder,
    found: Vec<Found>,
    parts: Vec<Arc<Note>>,
    byte_count: usize,
}

impl<'a, L: RowTypeLookup> Judging<'a, L> {
    pub(super) fn new(to: &'a Redefinition, lookup: &'a L, position: Position) -> Self {
        let mut judging = Judging {
            to,
            lookup,
            routings: None,
            position,
            part: BlockBuilder::default(),
            found: Vec::new(),
            parts: Vec::new(),
            byte_count: 0,
        };
        push_begin(&BeginParts { position, snapshot: to.snapshot, ..BeginParts::default() }, &mut judging.part);
        judging.note(Known::Nothing);
        judging
    }

    /// What it takes so far.
    pub(super) fn byte_count(&self) -> usize {
        self.byte_count + self.part.byte_count()
    }

    /// Takes the next row.
    pub(super) fn row(&mut self, row: &MirrorRow) -> Result<(), Unjudged> {
        let (before, after) = match self.routings.take() {
            Some((row_type, before, after)) if row_type == row.row_type => (before, after),
            Some(_) | None => {
                let routing = |plan: &crate::selection::Plan| plan.routing(row.row_type, self.lookup);
                (routing(&self.to.before)?, routing(&self.to.plan)?)
            }
        };
        for at in 0..self.to.selections.len() {
            let selection = self.to.selections[at];
            if let (Some(was), Some(is)) = (route(&before, selection), route(&after, selection)) {
                self.judge(selection, (was, is), row)?;
            }
        }
        self.routings = Some((row.row_type, before, after));
        if self.part.payload.len() >= PART_BYTES {
            self.finish_part();
        }
        Ok(())
    }

    fn judge(
        &mut self,
        selection: usize,
        (was, is): (&ShapeRoute, &ShapeRoute),
        row: &MirrorRow,
    ) -> Result<(), Unjudged> {
        let was_in = was.has(row, self.position).ok();
        let is_in = is.has(row, self.position).map_err(Unjudged::Failed)?;
        let reading = WholeChange::reading(row.row_type, &row.row, &row.missing);
        let whole = WholeChange { ordinal: self.position.ordinal, ..reading };
        let change = match (was_in, is_in) {
            (Some(false), false) => return Ok(()),
            (Some(true), true) if was.fields() == is.fields() => return Ok(()),
            (Some(false), true) => WholeChange { op: Op::Insert, moved: Move::MovedIn, ..whole },
            (Some(true) | None, true) => WholeChange { op: Op::Update, ..whole },
            (Some(true) | None, false) => {
                let key = is.key();
                let old = keep(&row.row, |field| key.contains(field)).map_err(|_| self.damaged())?;
                let (row, old, old_kind) = (Cow::Borrowed(&[][..]), Cow::Owned(old), OldKind::Key);
                WholeChange { op: Op::Delete, moved: Move::MovedOut, row, old, old_kind, unchanged: vec![], ..whole }
            }
        };
        let mut bytes = BytesMut::new();
        let pieces = change.write(is.fields(), &mut bytes).map_err(|_| self.damaged())?;
        let selection = selection as u16;
        for (range, continues) in pieces {
            let kind = Kind::Change;
            self.part
                .push(Entry { row_type: change.row_type, op: change.op, continues, ..self.entry(kind) }, &bytes[range]);
            self.note(Known::Effect { selection, effect: Effect::Update });
        }
        Ok(())
    }

    /// The difference, with the prefix of the tokens behind it.
    pub(super) fn finish(mut self) -> Vec<Arc<Note>> {
        let (position, token_prefix) = (self.position.to_string(), self.to.prefix.to_string());
        let commit = v1::Event { what: Some(v1::event::What::Commit(v1::Commit { position, token_prefix })) };
        let commit = v1::ChangeBatch { events: vec![commit] }.encode_to_vec();
        self.part.push(Entry { row_type: self.to.snapshot, ..self.entry(Kind::Commit) }, &commit);
        self.note(Known::Nothing);
        self.finish_part();
        self.parts
    }

    fn finish_part(&mut self) {
        let block = self.part.finish();
        self.byte_count += block.byte_count();
        let routed = Arc::new(RoutedBlock { block, end: Place::default(), open: None });
        let found = std::mem::take(&mut self.found).into();
        self.parts.push(Arc::new(Note { routed, found, filtered: Default::default() }));
    }

    /// Notes the last entry.
    fn note(&mut self, what: Known) {
        self.found.push(Found { entry: self.part.entries.len() as u32 - 1, what });
    }

    fn entry(&self, kind: Kind) -> Entry {
        let Position { lsn, ordinal } = self.position;
        Entry { lsn, ordinal, row_type: 0, start: 0, end: 0, kind, op: Op::None, continues: false }
    }

    fn damaged(&self) -> GatewayError {
        GatewayError::Damaged { at: self.position.to_string() }
    }
}

fn route(routing: &Routing, selection: usize) -> Option<&ShapeRoute> {
    match routing.deliver.get(selection) {
        Some(Deliver::Shape(route)) => Some(route),
        Some(Deliver::Skip | Deliver::Whole | Deliver::Columns(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use tidegate_model::{AdHoc, Epoch, Lsn, TableName};
    use tidegate_proto::v1::event::What;
    use tidegate_views::Updates;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        mirror_snapshot::Wanted,
        named_shapes::{NOW, looked_up},
        selection::{Filter, Plan, PlanKey},
        shape::{
            ShapeFilter,
            change::project,
            tests::{COLUMNS, RowTypes, filter, row, row_type},
        },
    };

    const CONDITIONS: [&str; 6] =
        ["true", "v > 3", "v is null", "note like 'a%'", "10 / v > 2", "v < 2 or note is null"];
    /// What follows the key.
    const SELECTED: [&[&str]; 3] = [&[], &["v"], &["note"]];
    const POSITION: Position = Position { lsn: Lsn(9), ordinal: 1 << 31 };

    /// Rows by their keys, as a subscription has them.
    type Has = BTreeMap<Vec<u8>, Vec<u8>>;

    fn redefinition(before: &[ShapeFilter], after: &[ShapeFilter]) -> Redefinition {
        let plan = |filters: &[ShapeFilter]| {
            let filters = filters.iter().cloned().map(Filter::Shape).collect();
            Arc::new(Plan::new(PlanKey::new(filters, 0, AdHoc::default())))
        };
        let (plan, before) = (plan(after), plan(before));
        let prefix = plan.key.prefix(Epoch(7));
        let (_, named) = looked_up(vec![], watch::channel(Arc::default()).1, NOW).expect("nothing is named");
        let (selections, rows) = ((0..after.len()).collect(), Wanted::all(TableName::new("public", "t"), 1));
        Redefinition { before, plan, prefix, named, selections, rows, snapshot: 1 << 31 }
    }

    fn mirrored(row: &[u8]) -> MirrorRow {
        MirrorRow { row_type: 1, row: row.to_vec().into(), missing: vec![] }
    }

    fn key(row: &[u8]) -> Vec<u8> {
        keep(row, |field| field == 1).expect("a row")
    }

    /// Reads the rows, and says what came of it.
    fn judged(to: &Redefinition, rows: &[Vec<u8>]) -> Result<Vec<Arc<Note>>, Arc<ShapeFailure>> {
        let lookup = RowTypes(vec![row_type(1, COLUMNS)]);
        let mut judging = Judging::new(to, &lookup, POSITION);
        for row in rows {
            match judging.row(&mirrored(row)) {
                Ok(()) => {}
                Err(Unjudged::Failed(failure)) => return Err(failure),
                Err(Unjudged::Error(error)) => panic!("{error}"),
            }
        }
        Ok(judging.finish())
    }

    /// All of it is one transaction; its changes are applied, each as strictly as it is told.
    fn apply(parts: &[Arc<Note>], to: &Redefinition, has: &mut [Has], may_have: bool) {
        let entries: Vec<(Entry, Known, bytes::Bytes)> = parts
            .iter()
            .flat_map(|note| {
                let block = &note.routed.block;
                note.found.iter().map(|found| {
                    let entry = block.entries()[found.entry as usize];
                    (entry, found.what, block.slice(&entry))
                })
            })
            .collect();
        let kinds: Vec<Kind> = entries.iter().map(|(entry, ..)| entry.kind).collect();
        let (first, last) = (kinds.first().copied(), kinds.last().copied());
        assert_eq!((first, last), (Some(Kind::Begin), Some(Kind::Commit)));
        assert!(kinds[1..kinds.len() - 1].iter().all(|kind| *kind == Kind::Change));
        let commit = v1::ChangeBatch::decode(entries[entries.len() - 1].2.clone()).expect("a batch");
        let Some(What::Commit(commit)) = commit.events.into_iter().find_map(|event| event.what) else { panic!("none") };
        assert_eq!(commit.token_prefix, to.prefix.to_string());
        for (entry, what, bytes) in &entries[1..entries.len() - 1] {
            let Known::Effect { selection, .. } = what else { panic!("{what:?}") };
            let has = &mut has[usize::from(*selection)];
            assert_eq!((entry.lsn, entry.ordinal), (POSITION.lsn, POSITION.ordinal));
            let bytes = std::slice::from_ref(bytes);
            let change = WholeChange::read(entry.op, entry.row_type, bytes).expect("a change");
            match (change.op, change.moved) {
                (Op::Insert, Move::MovedIn) => assert!(has.insert(key(&change.row), change.row.to_vec()).is_none()),
                (Op::Update, Move::Stayed) => {
                    assert!(has.insert(key(&change.row), change.row.to_vec()).is_some() || may_have);
                }
                (Op::Delete, Move::MovedOut) => assert!(has.remove(&key(&change.old)).is_some() || may_have),
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn whoever_has_the_rows_before_has_those_after(
            values in prop::collection::vec((prop::option::of(0u64..6), prop::option::of("[ab]{0,2}")), 0..20),
            shapes in prop::collection::vec(((0usize..6, 0usize..3), (0usize..6, 0usize..3)), 1..3),
            had_failed: bool,
        ) {
            let rows: Vec<Vec<u8>> = (1..).zip(&values).map(|(id, (v, note))| row(id, *v, note.as_deref())).collect();
            let of = |(condition, columns): (usize, usize)| {
                filter(CONDITIONS[condition], SELECTED[columns], Updates::FullRow)
            };
            let before: Vec<ShapeFilter> = shapes.iter().map(|(before, _)| of(*before)).collect();
            let after: Vec<ShapeFilter> = shapes.iter().map(|(_, after)| of(*after)).collect();
            let to = redefinition(&before, &after);
            // What each shape has, where a row for which its condition fails is taken for one that it has, or has not.
            let lookup = RowTypes(vec![row_type(1, COLUMNS)]);
            let selected = |shape: &ShapeFilter| -> Result<Has, ()> {
                let route = shape.route(&row_type(1, COLUMNS), &lookup).expect("a route");
                let mut failed = false;
                let has = rows.iter().filter(|row| route.has(&mirrored(row), POSITION).unwrap_or_else(|_| {
                    failed = true;
                    had_failed
                }));
                let project = |row: &Vec<u8>| (key(row), project(row, route.fields()).expect("a row").into_owned());
                let has: Has = has.map(project).collect();
                if failed && after.contains(shape) { Err(()) } else { Ok(has) }
            };
            let fails = after.iter().any(|shape| selected(shape).is_err());
            match judged(&to, &rows) {
                Err(_) => prop_assert!(fails),
                Ok(parts) => {
                    prop_assert!(!fails);
                    let mut has: Vec<Has> = before.iter().map(|shape| selected(shape).expect("it may fail")).collect();
                    let may_have = before.iter().any(|shape| shape.definition().condition.contains('/'));
                    apply(&parts, &to, &mut has, may_have);
                    let after: Vec<Has> = after.iter().map(|shape| selected(shape).expect("it does not fail")).collect();
                    prop_assert_eq!(has, after);
                }
            }
        }
    }

    #[test]
    fn what_is_large_comes_in_parts_of_one_transaction() {
        let (before, after) = ([filter("v > 3", &[], Updates::FullRow)], [filter("v < 2", &[], Updates::FullRow)]);
        let to = redefinition(&before, &after);
        let rows: Vec<Vec<u8>> = (1..=20).map(|id| row(id, Some(id % 6), Some(&"n".repeat(40_000)))).collect();
        let parts = judged(&to, &rows).unwrap_or_else(|failure| panic!("{failure}"));
        assert!(parts.len() > 1, "{} parts", parts.len());
        let of = |selects: fn(u64) -> bool| -> Has {
            let rows = (1..).zip(&rows).filter(|(id, _)| selects(id % 6));
            rows.map(|(_, row)| (key(row), row.clone())).collect()
        };
        let mut has = [of(|v| v > 3)];
        apply(&parts, &to, &mut has, false);
        assert_eq!(has, [of(|v| v < 2)]);
    }
}
