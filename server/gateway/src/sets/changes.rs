//! The changes of one table, whole, and the transactions that they stand in.
//!
//! A transaction, and a chunk that corrects rows, is known by the place in the log behind which a subscription would go on after it; what a
//! snapshot out of the mirror states elsewhere is looked up (`mirror_snapshot/restated.rs`). Reads of chunks are passed over: what they find to be otherwise than the mirror
//! had it stands behind them as a change.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tidegate_model::{Block, Entry, Kind, Op, Position, TableName};
use tidegate_schema::{FieldSet, OldKind, RowType};

use crate::{
    by_row_type::RowTypeLookup,
    projection::MalformedChange,
    shape::{
        change::{WholeChange, keep},
        route::completed,
    },
};

/// Longer keys are held as their hash.
const KEY_BYTES_MAX: usize = 64;

/// A row's key: its fields as they are encoded.
pub(super) type Key = Box<[u8]>;

pub(super) fn key_of(row: &[u8], fields: &FieldSet) -> Result<Key, MalformedChange> {
    let key = keep(row, |field| fields.contains(field))?;
    Ok(if key.len() > KEY_BYTES_MAX { Sha256::digest(&key)[..].into() } else { key.into() })
}

/// What happens next.
pub(super) enum Step<'a> {
    /// Something begins: a transaction, or a chunk.
    Begin(Position),
    Change(RowChange<'a>),
    /// It ends: by this place.
    End(Position),
}

/// A change of a row, or of all.
pub(super) enum RowChange<'a> {
    Row { row_type: &'a Arc<RowType>, old: Option<(Key, Old<'a>)>, new: Option<New<'a>> },
    Truncate,
}

/// A row as it was; None where not all of it is known.
pub(super) type Old<'a> = Option<Cow<'a, [u8]>>;

/// A row as it has become.
pub(super) struct New<'a> {
    pub(super) key: Key,
    pub(super) row: Cow<'a, [u8]>,
    /// Fields whose values have never come.
    pub(super) missing: Vec<u32>,
}

/// Goes through blocks for one table.
pub(super) struct TableChanges {
    table: TableName,
    /// Of a change that is cut.
    pieces: Vec<Bytes>,
    /// The last row type that was looked up; None where it is another table's.
    last: Option<(u32, Option<Arc<RowType>>)>,
}

impl TableChanges {
    pub(super) fn of(table: &TableName) -> Self {
        TableChanges { table: table.clone(), pieces: Vec::new(), last: None }
    }

    /// What the block has behind a place, and up to another.
    pub(super) fn each<E: From<MalformedChange>>(
        &mut self,
        (block, behind, through): (&Block, Position, Position),
        lookup: &impl RowTypeLookup,
        mut visit: impl FnMut(Step<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let wanted = |entry: &&Entry| entry.position() > behind && entry.position() <= through;
        for entry in block.entries().iter().filter(wanted) {
            match entry.kind {
                Kind::Begin => visit(Step::Begin(entry.position()))?,
                Kind::Commit => visit(Step::End(entry.position().as_resume_point()))?,
                Kind::Change => self.change(block, entry, lookup, &mut visit)?,
                Kind::RowType | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd | Kind::SnapshotCursor => {}
            }
        }
        Ok(())
    }

    fn change<E: From<MalformedChange>>(
        &mut self,
        block: &Block,
        entry: &Entry,
        lookup: &impl RowTypeLookup,
        visit: &mut impl FnMut(Step<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if matches!(entry.op, Op::None | Op::Read | Op::Message) {
            return Ok(());
        }
        let Some(row_type) = self.row_type(entry.row_type, lookup) else { return Ok(()) };
        self.pieces.push(block.slice(entry));
        if entry.continues {
            return Ok(());
        }
        let pieces = std::mem::take(&mut self.pieces);
        let change = WholeChange::read(entry.op, entry.row_type, &pieces)?;
        visit(Step::Change(row_change(&change, &row_type)?))
    }

    fn row_type(&mut self, number: u32, lookup: &impl RowTypeLookup) -> Option<Arc<RowType>> {
        if let Some((_, known)) = self.last.as_ref().filter(|(last, _)| *last == number) {
            return known.clone();
        }
        let found = lookup.row_type(number).filter(|row_type| *row_type.name() == self.table);
        self.last = Some((number, found.clone()));
        found
    }
}

fn row_change<'a>(change: &'a WholeChange<'a>, row_type: &'a Arc<RowType>) -> Result<RowChange<'a>, MalformedChange> {
    let key = row_type.key();
    let whole_old = change.whole_old();
    let new = || {
        let (row, missing) = completed(change, whole_old.unwrap_or_default())?;
        Ok::<_, MalformedChange>(New { key: key_of(&row, key)?, row, missing })
    };
    let old = || match change.old_kind {
        OldKind::None => Ok(None),
        OldKind::Key | OldKind::Full => {
            let key = key_of(&change.old, key)?;
            Ok::<_, MalformedChange>(Some((key, whole_old.map(Cow::Borrowed))))
        }
    };
    Ok(match change.op {
        Op::Truncate => RowChange::Truncate,
        Op::Delete => RowChange::Row { row_type, old: old()?, new: None },
        Op::Update => {
            let new = new()?;
            // An update that has no old row leaves the key as it was.
            let old = old()?.or_else(|| Some((new.key.clone(), None)));
            RowChange::Row { row_type, old, new: Some(new) }
        }
        Op::None | Op::Read | Op::Insert | Op::Message => RowChange::Row { row_type, old: None, new: Some(new()?) },
    })
}
