//! What goes on from one block to the next.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tidegate_model::Position;

use crate::{projection::ChangeProjector, sets::Kept};

/// What the end of a block cuts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Carry {
    /// The subscription has all up to here, and nothing has come that stands behind it.
    pub(super) start: Option<Position>,
    /// The transaction or chunk that is open.
    pub(super) open: Option<Open>,
    /// Projections of changes. Empty almost always.
    pub(super) cut: Vec<(u32, ChangeProjector)>,
    /// The pieces of a change that has to be whole; at most as much as one change may be. Empty almost always.
    pub(super) pieces: Vec<Bytes>,
    /// What subqueries select, for whoever filters; it does not go on with what is shared.
    pub(super) kept: Kept,
}

impl Carry {
    /// Does the next block depend on where the subscription starts? If not, then on the plan alone.
    pub(crate) fn is_start(&self) -> bool {
        self.start.is_some()
    }
}

/// The same while there is no block: mostly nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Carried {
    start: Option<Position>,
    /// What else there is; shared by all who have had the block.
    rest: Option<Arc<Carry>>,
}

impl Carried {
    /// Of a subscription that starts after a position, before its first block.
    pub(super) fn starting(after: Position) -> Self {
        Carried { start: Some(after.as_resume_point()), rest: None }
    }

    /// For the next block.
    pub(super) fn carry(&self, kept: &Kept) -> Carry {
        let rest = self.rest.as_deref().cloned().unwrap_or_default();
        Carry { start: self.start, kept: kept.clone(), ..rest }
    }

    /// Has a transaction begun whose Commit has not come?
    pub(super) fn is_within(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| rest.open.is_some())
    }

    /// It goes on between transactions.
    pub(super) fn close(&mut self) {
        self.rest = None;
    }
}

impl From<Carry> for Carried {
    fn from(carry: Carry) -> Self {
        let Carry { start, open, cut, pieces, kept: _ } = carry;
        let is_rest = open.is_some() || !cut.is_empty() || !pieces.is_empty();
        let rest = || Arc::new(Carry { open, cut, pieces, ..Carry::default() });
        Carried { start, rest: is_rest.then(rest) }
    }
}

/// A transaction whose Commit has not come.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) at: Position,
    pub(super) begin: Begin,
    /// Of a chunk: is it of a snapshot that the plan receives?
    pub(super) chunk: Option<bool>,
    /// Something in it has matched, and its Begin is in a piece.
    pub(super) matched: bool,
}

/// Where a Begin is to be had.
#[derive(Clone, Debug)]
pub(super) enum Begin {
    /// In the payload.
    Here(Range<usize>),
    /// It was in an earlier block, which is not held for it.
    Kept(Bytes),
}

impl Begin {
    pub(super) fn bytes<'a>(&'a self, payload: &'a [u8]) -> &'a [u8] {
        match self {
            Begin::Here(range) => &payload[range.clone()],
            Begin::Kept(begin) => begin,
        }
    }
}
