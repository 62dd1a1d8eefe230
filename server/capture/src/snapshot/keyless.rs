//! What transactions have done to a table without a key while a snapshot of it runs: pure, the counterpart of [`super::touched`].
//!
//! ```text
//! change ─▶ told: transaction ─▶ its changes     mark of a pass: "the rows so far are void", then what its S does not see
//! ```
//!
//! Rows that cannot be told apart cannot be reconciled one by one, so all of a pass are read under one snapshot S. Its first
//! chunk is the **mark**: at a position that all of what S sees has passed, it voids what subscribers have received of the table, and
//! tells them again what S does not see. From there on, S's rows and the stream only have to be added up.
//!
//! Invariants: every writer of the table that was decoded since the tracking began, and that an S to come may not see, is in `told`
//! with all of its changes, or in `must_see`. Memory is bounded: over the budget, changes are given up and their writers
//! must be seen.

use std::collections::VecDeque;

use tidegate_model::{BlockBuilder, Lsn, Op, Visibility};
use tidegate_schema::{ChangeParts, FieldSet, push_change};

use super::{
    gaps::Gaps,
    reconcile::{Chunk, Parts, ReadAgain},
};

/// Bytes of a transaction beyond its changes.
const TOLD_BYTES: usize = 256;
/// Bytes of a change beyond its rows.
const CHANGE_BYTES: usize = 64;

/// What transactions have done to a table without a key.
#[derive(Debug)]
pub(crate) struct Keyless {
    bytes_max: usize,
    byte_count: usize,
    /// In the order of their commits.
    told: VecDeque<Told>,
    /// Writers whose changes are not here.
    must_see: Vec<u32>,
    /// Since the last mark.
    truncated: bool,
    rekeyed: bool,
    pass_done: bool,
    /// Never a key; only that the whole table is to be read once more.
    gaps: Gaps,
}

/// What a transaction has done to the table.
#[derive(Debug)]
struct Told {
    xid: u32,
    byte_count: usize,
    parts: Parts,
    truncates: bool,
}

impl Keyless {
    /// Tracking begins, as in [`super::touched::Touched::new`].
    pub(crate) fn new(bytes_max: usize, must_see: Vec<u32>, gaps: Gaps, pass_done: bool) -> Self {
        Keyless {
            bytes_max,
            byte_count: 0,
            told: VecDeque::new(),
            must_see,
            truncated: false,
            rekeyed: false,
            pass_done,
            gaps,
        }
    }

    /// The row type that changes come with from here on has this key.
    pub(crate) fn keyed_by(&mut self, key: &FieldSet) {
        self.rekeyed |= !key.is_empty();
    }

    /// A writer of the table whose changes are not told.
    pub(crate) fn must_see(&mut self, xid: u32) {
        if self.must_see.last() != Some(&xid) {
            self.must_see.push(xid);
        }
    }

    /// A change of the table, in commit order, whatever was rolled back left out.
    pub(crate) fn change(&mut self, xid: u32, change: &ChangeParts<'_>) {
        self.truncated |= change.op == Op::Truncate;
        // It was given up in the midst.
        if self.must_see.last() == Some(&xid) {
            return;
        }
        if self.told.back().is_none_or(|told| told.xid != xid) {
            self.byte_count += TOLD_BYTES;
            let (parts, truncates) = Default::default();
            self.told.push_back(Told { xid, byte_count: TOLD_BYTES, parts, truncates });
        }
        let told = self.told.back_mut().expect("it was pushed");
        if change.op == Op::Truncate {
            told.truncates = true;
        } else {
            push_change(change, Lsn::ZERO, &mut told.parts);
            let byte_count = CHANGE_BYTES + change.row.len() + change.old.len();
            told.byte_count += byte_count;
            self.byte_count += byte_count;
        }
        if self.byte_count > self.bytes_max {
            self.must_see.extend(self.told.drain(..).map(|told| told.xid));
            self.byte_count = 0;
        }
    }

    /// Every S that is still to be marked sees at least this.
    pub(crate) fn prune(&mut self, visibility: &Visibility) {
        self.must_see.retain(|xid| !visibility.sees_xid(*xid));
        self.told.retain(|told| !visibility.sees_xid(told.xid));
        self.byte_count = self.told.iter().map(|told| told.byte_count).sum();
    }

    /// A chunk's turn has come: what is emitted of it is in its parts then, or it must be read again.
    pub(crate) fn pass(&mut self, chunk: &mut Chunk) -> Result<(), ReadAgain> {
        if self.rekeyed {
            return Err(ReadAgain::Rekeyed);
        }
        if !chunk.marks {
            // A truncate empties what S sees as well.
            return if self.truncated { Err(ReadAgain::Truncated) } else { Ok(()) };
        }
        let hidden = |xid: u32| !chunk.visibility.sees_xid(xid);
        if self.must_see.iter().any(|xid| hidden(*xid)) {
            return Err(ReadAgain::Hidden);
        }
        let unseen = || self.told.iter().filter(|told| hidden(told.xid));
        if unseen().any(|told| told.truncates) {
            return Err(ReadAgain::Truncated);
        }
        let again: Vec<BlockBuilder> = unseen().flat_map(|told| told.parts.copies()).collect();
        chunk.parts.extend(again);
        self.truncated = false;
        Ok(())
    }

    /// That the whole table is to be read once more.
    pub(crate) fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    pub(crate) fn gaps_mut(&mut self) -> &mut Gaps {
        &mut self.gaps
    }

    /// Has every chunk of the pass been emitted?
    pub(crate) fn is_pass_done(&self) -> bool {
        self.pass_done
    }

    /// The last chunk of the pass has been emitted.
    pub(crate) fn pass_done(&mut self) {
        self.pass_done = true;
    }

    /// The pass begins anew, with another S.
    pub(crate) fn restart_pass(&mut self) {
        self.pass_done = false;
        self.gaps.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::reconcile::read;

    const ROW_TYPE: u32 = 9;

    fn keyless(bytes_max: usize, must_see: Vec<u32>) -> Keyless {
        Keyless::new(bytes_max, must_see, Gaps::default(), false)
    }

    fn write(keyless: &mut Keyless, xid: u32, op: Op) {
        keyless.change(xid, &ChangeParts { op, ..read(ROW_TYPE, b"\x08\x07") });
    }

    fn chunk(marks: bool, visibility: &str) -> Chunk {
        Chunk {
            snapshot: 1,
            table_oid: 5,
            visibility: visibility.parse().expect("a snapshot"),
            high_lsn: Lsn(96),
            as_planned: true,
            marks,
            parts: Vec::new(),
            asked_keys: Vec::new(),
        }
    }

    /// How many changes come with it.
    fn pass(keyless: &mut Keyless, marks: bool, visibility: &str) -> Result<usize, ReadAgain> {
        let mut chunk = chunk(marks, visibility);
        keyless.pass(&mut chunk)?;
        Ok(chunk.parts.iter().map(|part| part.entries.len()).sum())
    }

    #[test]
    fn a_mark_tells_again_what_its_snapshot_does_not_see() {
        let mut keyless = keyless(1 << 20, vec![9]);
        write(&mut keyless, 10, Op::Insert);
        write(&mut keyless, 11, Op::Insert);
        write(&mut keyless, 11, Op::Delete);
        assert_eq!(pass(&mut keyless, true, "9:12:9"), Err(ReadAgain::Hidden));
        assert_eq!(pass(&mut keyless, true, "11:12:11"), Ok(2));
        assert_eq!(pass(&mut keyless, true, "12:12:"), Ok(0));
        keyless.prune(&"11:12:11".parse().expect("a snapshot"));
        assert_eq!(keyless.told.len(), 1);
    }

    #[test]
    fn what_is_given_up_must_be_seen_and_no_part_of_it_is_told() {
        let mut keyless = keyless(700, Vec::new());
        write(&mut keyless, 10, Op::Insert);
        (0..20).for_each(|_| write(&mut keyless, 11, Op::Insert));
        assert!(keyless.told.is_empty() && keyless.byte_count == 0);
        assert_eq!(pass(&mut keyless, true, "11:12:11"), Err(ReadAgain::Hidden));
        assert_eq!(pass(&mut keyless, true, "12:12:"), Ok(0));
        write(&mut keyless, 12, Op::Insert);
        assert_eq!(pass(&mut keyless, true, "12:12:"), Ok(1));
    }

    #[test]
    fn a_truncate_voids_what_its_snapshot_does_not_see_and_the_pass_that_runs() {
        let mut keyless = keyless(1 << 20, Vec::new());
        write(&mut keyless, 10, Op::Truncate);
        assert_eq!(pass(&mut keyless, true, "10:11:10"), Err(ReadAgain::Truncated));
        assert_eq!(pass(&mut keyless, true, "11:11:"), Ok(0));
        assert_eq!(pass(&mut keyless, false, "11:11:"), Ok(0));
        write(&mut keyless, 11, Op::Truncate);
        assert_eq!(pass(&mut keyless, false, "11:11:"), Err(ReadAgain::Truncated));
    }

    #[test]
    fn a_table_that_is_given_a_key_ends_the_pass() {
        let mut keyless = keyless(1 << 20, Vec::new());
        keyless.keyed_by(&FieldSet::default());
        assert_eq!(pass(&mut keyless, false, "11:11:"), Ok(0));
        keyless.keyed_by(&[1].into_iter().collect());
        assert_eq!(pass(&mut keyless, true, "11:11:"), Err(ReadAgain::Rekeyed));
    }
}
