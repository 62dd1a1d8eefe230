//! What becomes of a chunk when it enters the stream: pure, the heart of a snapshot's exactness (see [`super`]).
//!
//! Cost: nothing per row where the chunk sees every transaction that touched the table; else one look-up per row. Rows that stay
//! are not copied unless another row of the chunk does not.

use std::collections::HashSet;

use tidegate_model::{BlockBuilder, Lsn, Op, Visibility};

use super::{
    change::{Joiner, write_key},
    touched::{Fate, Touched},
};
use crate::transaction::PART_BYTES;
use tidegate_schema::{ChangeParts, Extra, OldKind, Room, push_change};

/// Rows that were read at once, in one short transaction.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// The snapshot's number.
    pub(crate) snapshot: u32,
    /// The table.
    pub(crate) table_oid: u32,
    /// What the query saw.
    pub(crate) visibility: Visibility,
    /// The high watermark, as an end LSN: taken after the query.
    pub(crate) high_lsn: Lsn,
    /// The catalog's fingerprint, read with the rows, is the one that the pass was planned with.
    pub(crate) as_planned: bool,
    /// It begins a pass over a table without a key: what subscribers have of the table is void.
    pub(crate) marks: bool,
    /// The rows, as changes with [`Op::Read`]; each part as large as a transaction's.
    pub(crate) parts: Vec<BlockBuilder>,
    /// The keys that were asked for, in the bytes of [`super::gaps::Gaps`]; empty for a chunk of a range.
    pub(crate) asked_keys: Vec<Box<[u8]>>,
}

/// Why a chunk must be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadAgain {
    /// The table has changed since the pass was planned.
    #[error("the table was altered")]
    Altered,
    /// The table has another key: the pass must begin anew.
    #[error("the table has another key")]
    Rekeyed,
    /// A transaction is committed, and was decoded before its keys were remembered, but is not visible yet.
    #[error("a transaction that is committed is not visible yet; a synchronous standby may be slow or gone")]
    Hidden,
    /// The table was emptied while it was read: the pass must begin anew.
    #[error("the table was truncated while it was read")]
    Truncated,
    /// The connection has ended since, or a chunk before it is to be read again.
    #[error("what was read no longer joins what was delivered")]
    Void,
}

/// What becomes of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// None of it counts.
    ReadAgain(ReadAgain),
    /// It may be emitted, once these are done to it; rows are counted from 0, ascending. Empty: as it stands.
    Emit(Vec<(usize, Edit)>),
}

/// What is done to a row of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// It is left out.
    Drop,
    /// This row stands in its place.
    Replace { row_type: u32, row: Vec<u8> },
}

/// Reconciles a chunk with the changes up to the position where it is emitted, all of which `touched` has been told.
pub(crate) fn reconcile(chunk: &Chunk, touched: &mut Touched) -> Verdict {
    let visibility = &chunk.visibility;
    if touched.is_rekeyed() {
        return Verdict::ReadAgain(ReadAgain::Rekeyed);
    }
    if !chunk.as_planned {
        return Verdict::ReadAgain(ReadAgain::Altered);
    }
    if touched.hides(visibility) {
        return Verdict::ReadAgain(ReadAgain::Hidden);
    }
    let is_clean = touched.is_clean_for(visibility);
    if is_clean && touched.gaps().is_empty() {
        return Verdict::Emit(Vec::new());
    }
    let (mut edits, mut key, mut joiner, mut row_count) = (Vec::new(), Vec::new(), Joiner::default(), 0);
    for part in &chunk.parts {
        for entry in &part.entries {
            let Some(ChangeParts { row, .. }) = joiner.join(entry, &part.payload) else { continue };
            write_key(touched.key(), row, &[], &mut key);
            let fate = if is_clean { Fate::Keep } else { touched.fate(&key, row, visibility) };
            match fate {
                Fate::Keep => {
                    touched.gaps_mut().remove(&key);
                }
                Fate::Gone => edits.push((row_count, Edit::Drop)),
                Fate::Replace { row_type, row } => {
                    touched.gaps_mut().remove(&key);
                    edits.push((row_count, Edit::Replace { row_type, row }));
                }
                Fate::Incomplete => {
                    // It is in already, unless this row lacks a field that the newer one has.
                    if !touched.is_pass_done() {
                        touched.gaps_mut().add(&key);
                    }
                    edits.push((row_count, Edit::Drop));
                }
            }
            row_count += 1;
        }
    }
    for key in missing_keys(chunk, touched) {
        touched.gaps_mut().remove(&key);
    }
    Verdict::Emit(edits)
}

/// The keys that were asked for and do not exist any more: neither did the query see a row, nor has the stream a newer one.
fn missing_keys(chunk: &Chunk, touched: &Touched) -> Vec<Box<[u8]>> {
    if chunk.asked_keys.is_empty() {
        return Vec::new();
    }
    let mut found: HashSet<Box<[u8]>> = HashSet::new();
    let (mut key, mut joiner) = (Vec::new(), Joiner::default());
    for part in &chunk.parts {
        for entry in &part.entries {
            let Some(change) = joiner.join(entry, &part.payload) else { continue };
            write_key(touched.key(), change.row, &[], &mut key);
            found.insert(key.as_slice().into());
        }
    }
    let is_missing = |key: &[u8]| !found.contains(key) && !touched.has_newer(key, &chunk.visibility);
    chunk.asked_keys.iter().filter(|key| is_missing(key)).cloned().collect()
}

/// Parts under construction.
#[derive(Debug, Default)]
pub(super) struct Parts {
    done: Vec<BlockBuilder>,
    open: BlockBuilder,
}

impl Parts {
    /// All that was pushed.
    pub(super) fn finish(mut self) -> Vec<BlockBuilder> {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        self.done
    }

    /// Copies of all that was pushed.
    pub(super) fn copies(&self) -> impl Iterator<Item = BlockBuilder> {
        let copy = |part: &BlockBuilder| BlockBuilder { entries: part.entries.clone(), payload: part.payload.clone() };
        self.done.iter().chain([&self.open]).filter(|part| !part.is_empty()).map(copy)
    }
}

impl Room for Parts {
    fn room(&mut self) -> &mut BlockBuilder {
        if self.open.byte_count() >= PART_BYTES {
            self.done.push(std::mem::take(&mut self.open));
        }
        &mut self.open
    }
}

/// The parts with the edits done to their rows.
pub(crate) fn edited(parts: Vec<BlockBuilder>, edits: Vec<(usize, Edit)>) -> Vec<BlockBuilder> {
    if edits.is_empty() {
        return parts;
    }
    let mut out = Parts::default();
    let mut edits = edits.into_iter().peekable();
    let (mut row_count, mut continues, mut edit) = (0, false, None);
    for part in &parts {
        for entry in &part.entries {
            if !continues {
                edit = edits.next_if(|(row, _)| *row == row_count).map(|(_, edit)| edit);
                row_count += 1;
                if let Some(Edit::Replace { row_type, row }) = &edit {
                    push_change(&read(*row_type, row), entry.lsn, &mut out);
                }
            }
            continues = entry.continues;
            if edit.is_none() {
                out.room().push(*entry, &part.payload[entry.start as usize..entry.end as usize]);
            }
        }
    }
    out.finish()
}

/// A row of a chunk, as it is encoded.
pub(crate) fn read(row_type: u32, row: &[u8]) -> ChangeParts<'_> {
    ChangeParts { op: Op::Read, row_type, row, old: &[], old_kind: OldKind::None, unchanged: &[], extra: Extra::None }
}
