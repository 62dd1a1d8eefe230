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
    router::{Found, Known, Note, RoutedBlock},
    selection::{Deliver, Routing, RowTypeLookup},
    shape::{
        change::{WholeChange, keep},
        route::{ShapeFailure, ShapeRoute},
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
