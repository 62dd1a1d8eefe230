//! What transactions have done to a table under snapshot, whether its rows can be told apart or not.

use tidegate_model::Visibility;
use tidegate_schema::{ChangeParts, FieldSet};

use super::{
    gaps::Gaps,
    keyless::Keyless,
    reconcile::{Chunk, ReadAgain, Verdict, edited, reconcile},
    touched::{Covers, Limits, Touched},
};

/// By key, or whole transactions.
#[derive(Debug)]
pub(crate) enum Traces {
    Keyed(Touched),
    Keyless(Keyless),
}

impl Traces {
    /// Tracking begins: [`Touched::new`], [`Keyless::new`].
    pub(crate) fn new(
        (key, covers): (FieldSet, Covers),
        limits: Limits,
        must_see: Vec<u32>,
        (gaps, pass_done): (Gaps, bool),
    ) -> Self {
        if key.is_empty() {
            Traces::Keyless(Keyless::new(limits.image_bytes, must_see, gaps, pass_done))
        } else {
            Traces::Keyed(Touched::new(key, limits, must_see, gaps, pass_done).covering(covers))
        }
    }

    /// A change of the table by a transaction, with the key that its row type has.
    pub(crate) fn change(&mut self, xid: u32, key: &FieldSet, change: &ChangeParts<'_>) {
        match self {
            Traces::Keyed(touched) => {
                touched.keyed_by(key);
                touched.change(xid, change);
            }
            Traces::Keyless(keyless) => {
                keyless.keyed_by(key);
                keyless.change(xid, change);
            }
        }
    }

    /// A writer of the table whose changes are not told.
    pub(crate) fn must_see(&mut self, xid: u32) {
        match self {
            Traces::Keyed(touched) => touched.must_see(xid),
            Traces::Keyless(keyless) => keyless.must_see(xid),
        }
    }

    /// Every chunk that is still to be reconciled sees at least this.
    pub(crate) fn prune(&mut self, visibility: &Visibility) {
        match self {
            Traces::Keyed(touched) => touched.prune(visibility),
            Traces::Keyless(keyless) => keyless.prune(visibility),
        }
    }

    /// A chunk's turn has come: what is emitted of it is in its parts then, or it must be read again.
    pub(crate) fn pass(&mut self, chunk: &mut Chunk) -> Result<(), ReadAgain> {
        match self {
            Traces::Keyed(touched) => match reconcile(chunk, touched) {
                Verdict::ReadAgain(reason) => Err(reason),
                Verdict::Emit(edits) => {
                    chunk.parts = edited(std::mem::take(&mut chunk.parts), edits);
                    Ok(())
                }
            },
            Traces::Keyless(keyless) => keyless.pass(chunk),
        }
    }

    /// What must be read again.
    pub(crate) fn gaps(&self) -> &Gaps {
        match self {
            Traces::Keyed(touched) => touched.gaps(),
            Traces::Keyless(keyless) => keyless.gaps(),
        }
    }

    pub(crate) fn gaps_mut(&mut self) -> &mut Gaps {
        match self {
            Traces::Keyed(touched) => touched.gaps_mut(),
            Traces::Keyless(keyless) => keyless.gaps_mut(),
        }
    }

    /// Has every chunk of the pass been emitted?
    pub(crate) fn is_pass_done(&self) -> bool {
        match self {
            Traces::Keyed(touched) => touched.is_pass_done(),
            Traces::Keyless(keyless) => keyless.is_pass_done(),
        }
    }

    /// The last chunk of the pass has been emitted.
    pub(crate) fn pass_done(&mut self) {
        match self {
            Traces::Keyed(touched) => touched.pass_done(),
            Traces::Keyless(keyless) => keyless.pass_done(),
        }
    }

    /// The pass begins anew.
    pub(crate) fn restart_pass(&mut self) {
        match self {
            Traces::Keyed(touched) => touched.restart_pass(),
            Traces::Keyless(keyless) => keyless.restart_pass(),
        }
    }
}
