//! The parts of conditions, each once for all conditions that have it: most conditions of a table are written alike but for
//! the value that they are looked up by.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::plan::Proof;
use crate::predicate::Part;

/// A part of a condition that is in the index.
#[derive(Debug)]
pub(super) enum PartOfEntry {
    /// What the entry is looked up by says the same, and so it is not kept.
    LookedUp,
    /// It is true wherever a lookup finds the entry.
    Proven(Arc<Part>),
    /// It has to be evaluated.
    Open(Arc<Part>),
}

impl PartOfEntry {
    pub(super) fn proof(&self) -> Proof {
        match self {
            PartOfEntry::LookedUp => Proof::LookedUp,
            PartOfEntry::Proven(_) => Proof::Proven,
            PartOfEntry::Open(_) => Proof::Open,
        }
    }

    fn kept(self) -> Option<Arc<Part>> {
        match self {
            PartOfEntry::LookedUp => None,
            PartOfEntry::Proven(part) | PartOfEntry::Open(part) => Some(part),
        }
    }
}

/// Those that are kept.
#[derive(Debug, Default)]
pub(super) struct Parts(HashSet<Kept>);

/// Known by what it says, and the numbers of the columns of which it says it.
#[derive(Debug)]
struct Kept(Arc<Part>);

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        (self.0.hash, &self.0.reads) == (other.0.hash, &other.0.reads)
    }
}

impl Eq for Kept {}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash.hash(state);
    }
}

impl Parts {
    pub(super) fn hold(&mut self, part: Part, proof: Proof) -> PartOfEntry {
        match proof {
            Proof::LookedUp => PartOfEntry::LookedUp,
            Proof::Proven => PartOfEntry::Proven(self.kept(part)),
            Proof::Open => PartOfEntry::Open(self.kept(part)),
        }
    }

    fn kept(&mut self, part: Part) -> Arc<Part> {
        let new = Kept(Arc::new(part));
        if let Some(known) = self.0.get(&new) {
            return Arc::clone(&known.0);
        }
        let part = Arc::clone(&new.0);
        self.0.insert(new);
        part
    }

    /// An entry has it no more.
    pub(super) fn release(&mut self, part: PartOfEntry) {
        // This one and the set's.
        if let Some(part) = part.kept().filter(|part| Arc::strong_count(part) == 2) {
            self.0.remove(&Kept(part));
        }
        if self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(2 * self.0.len());
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}
