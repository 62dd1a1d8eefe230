//! What of a block concerns a plan.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tidegate_model::{Block, Entry};
use tidegate_store::Place;
use tidegate_views::Effect;

use crate::delivery::Filtered;

/// A block with what was found in it for one plan.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) routed: Arc<RoutedBlock>,
    /// By entry. Of each transaction with a change for the plan, Begin and Commit are among them.
    pub(crate) found: Box<[Found]>,
    /// As the first subscription has filtered it; None where that failed.
    pub(crate) filtered: OnceLock<Option<Arc<Filtered>>>,
}

impl Note {
    /// Behind its block.
    pub(crate) fn end(&self) -> Place {
        self.routed.end
    }
}

/// A block and its place.
#[derive(Debug)]
pub(crate) struct RoutedBlock {
    pub(crate) block: Block,
    /// Behind it.
    pub(crate) end: Place,
    /// The transaction that it begins in the middle of.
    pub(crate) open: Option<Arc<Begun>>,
}

/// The Begin of a transaction that goes on in later blocks.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) entry: Entry,
    pub(crate) event: Bytes,
}

/// An entry of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Which one.
    pub(crate) entry: u32,
    pub(crate) what: Known,
}

/// What is known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is to be looked at as by who reads the log: all but changes, and changes that could not be judged.
    Nothing,
    /// What the change is to one of the plan's selections. To those that are not named it is nothing.
    Effect { selection: u16, effect: Effect },
}
