//! The state at one position: a snapshot of the engine, and what the overlay has on top of it.
//!
//! Invariant: a cut never changes, whatever is written meanwhile. It copies only what the overlay holds under the prefixes that
//! it was made for, which is bounded by the overlay's budget.

use std::{
    collections::{BTreeMap, HashMap, btree_map},
    iter::Peekable,
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use fjall::{Iter, Snapshot};
use tidegate_model::Position;
use tidegate_schema::RowType;

use super::{
    engine::Engine,
    error::Result,
    key::{self, StoredRow},
    overlay::{Overlay, Staged},
    row,
    table::{self, Index, Table},
};

/// What readers see of a mirror.
pub(crate) struct View {
    pub(crate) engine: Engine,
    /// The engine at a position up to `position`.
    pub(crate) base: Snapshot,
    pub(crate) overlay: Overlay,
    /// The last transaction that readers may see.
    pub(crate) shown: u64,
    /// Where it ends.
    pub(crate) position: Position,
    /// By number; what cuts share of it grows with it.
    pub(crate) row_types: KnownRowTypes,
}

/// Row types by number.
pub(crate) type KnownRowTypes = Arc<RwLock<HashMap<u32, Arc<RowType>>>>;

impl View {
    pub(crate) fn know(&self, row_type: &Arc<RowType>) {
        let mut known = self.row_types.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(row_type.proto().row_type, Arc::clone(row_type));
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Staged> {
        match self.overlay.at(key, self.shown) {
            Some(staged) => Ok(staged.clone()),
            None => self.engine.get_at(&self.base, key),
        }
    }

    pub(crate) fn table(&self, oid: u32) -> Result<Option<Table>> {
        self.get(&key::numbered(key::TABLE, oid))?.map(|bytes| table::decode(&bytes)).transpose()
    }

    pub(crate) fn index(&self, index: u32) -> Result<Option<Index>> {
        self.get(&key::numbered(key::INDEX, index))?.map(|bytes| table::decode(&bytes)).transpose()
    }

    /// For one key.
    pub(crate) fn cut_of(&self, key: &Bytes) -> Cut {
        let mut cut = self.cut(&[]);
        cut.staged.extend(self.overlay.at(key, self.shown).map(|staged| (key.clone(), staged.clone())));
        cut
    }

    /// Of what starts with the prefix and stands behind `after`, with at most so many staged keys. Where there are more, it holds
    /// up to the key that is returned.
    pub(crate) fn cut_behind(&self, prefix: &[u8], after: Option<&[u8]>, count_max: usize) -> (Cut, Option<Bytes>) {
        let mut cut = self.cut(&[]);
        let behind = (prefix, after.unwrap_or(prefix));
        let until = self.overlay.copy_some(behind, self.shown, count_max, &mut cut.staged);
        (cut, until)
    }

    /// What is newest under a prefix, up to a transaction that readers do not see yet.
    pub(crate) fn newest(&self, prefix: &[u8], transaction: u64) -> Cut {
        let mut staged = BTreeMap::new();
        self.overlay.copy(prefix, transaction, &mut staged);
        self.cut_at(self.engine.snapshot(), staged)
    }

    pub(crate) fn cut(&self, prefixes: &[&[u8]]) -> Cut {
        let mut staged = BTreeMap::new();
        prefixes.iter().for_each(|prefix| self.overlay.copy(prefix, self.shown, &mut staged));
        self.cut_at(self.base.clone(), staged)
    }

    fn cut_at(&self, base: Snapshot, staged: BTreeMap<Bytes, Staged>) -> Cut {
        let row_types = Arc::clone(&self.row_types);
        Cut { engine: self.engine.clone(), base, staged, position: self.position, row_types }
    }
}

/// A part of the state at a position.
pub(crate) struct Cut {
    engine: Engine,
    base: Snapshot,
    staged: BTreeMap<Bytes, Staged>,
    pub(crate) position: Position,
    row_types: KnownRowTypes,
}

impl Cut {
    /// A row of the table, in the table's row type. One that was renamed has another message: what has not been read since keeps its own.
    pub(crate) fn row(&self, table: &Table, stored: StoredRow) -> Result<MirrorRow> {
        if stored.row_type == table.row_type {
            return Ok(stored.into());
        }
        let known = self.row_types.read().unwrap_or_else(PoisonError::into_inner);
        let to = match (known.get(&stored.row_type), known.get(&table.row_type)) {
            (Some(from), Some(to)) if row::shares_numbers(from, to) => to,
            _unknown => return Ok(stored.into()),
        };
        row::described(&stored, to)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Staged> {
        match self.staged.get(key) {
            Some(staged) => Ok(staged.clone()),
            None => self.engine.get_at(&self.base, key),
        }
    }

    /// What starts with the prefix and stands behind `after`, in order.
    pub(crate) fn iter(&self, prefix: &[u8], after: Option<&[u8]>) -> Merged {
        let from = self
            .staged
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let behind = from.filter(|(key, _)| after.is_none_or(|after| &key[..] > after));
        let staged: BTreeMap<Bytes, Staged> = behind.map(|(key, value)| (key.clone(), value.clone())).collect();
        let base = self.engine.range(&self.base, prefix, after);
        Merged { base, next: None, staged: staged.into_iter().peekable() }
    }
}

/// Keys and values in order; what is staged supersedes.
pub(crate) struct Merged {
    base: Iter,
    next: Option<(Bytes, Bytes)>,
    staged: Peekable<btree_map::IntoIter<Bytes, Staged>>,
}

impl Merged {
    fn advance(&mut self) -> Result<Option<(Bytes, Bytes)>> {
        loop {
            if self.next.is_none()
                && let Some(pair) = self.base.next()
            {
                let (key, value) = pair.into_inner()?;
                self.next = Some((key.into(), value.into()));
            }
            let superseded = match (&self.next, self.staged.peek()) {
                (_, None) => return Ok(self.next.take()),
                (None, Some(_)) => false,
                (Some((base, _)), Some((staged, _))) if base < staged => return Ok(self.next.take()),
                (Some((base, _)), Some((staged, _))) => base == staged,
            };
            if superseded {
                self.next = None;
            }
            if let Some((key, Some(value))) = self.staged.next() {
                return Ok(Some((key, value)));
            }
        }
    }
}

impl Iterator for Merged {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

/// A row of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRow {
    /// In which it is encoded: the table's at the position of the read, unless the table has been renamed and the row not read since.
    pub row_type: u32,
    /// The encoded row. A column that its table did not have when it was delivered is absent, as null is.
    pub row: Bytes,
    /// Fields whose values are not known: an update left unchanged what had never come. Of a complete table, none.
    pub missing: Vec<u32>,
}

/// Rows as of one position. Blocks the thread.
pub struct Scan {
    cut: Cut,
    table: Table,
    source: Source,
    form: RowForm,
}

/// In which row type rows are handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowForm {
    /// In the table's, as of the position.
    #[default]
    OfTable,
    /// In that which each came with: as it was delivered to who follows the log.
    AsStored,
}

enum Source {
    Rows(Merged),
    Index { entries: Merged, prefix: Bytes, fields: Vec<u32>, value: Bytes },
}

impl Scan {
    /// All rows behind one.
    pub(crate) fn rows(cut: Cut, table: Table, after: Option<&[u8]>) -> Self {
        let source = Source::Rows(cut.iter(&table.rows(), after));
        Scan { cut, table, source, form: RowForm::OfTable }
    }

    pub(crate) fn with(self, form: RowForm) -> Self {
        Scan { form, ..self }
    }

    /// The rows that an index has for a value, behind one of them.
    pub(crate) fn lookup(
        cut: Cut,
        table: Table,
        (number, index): (u32, Index),
        (value, behind): (&[u8], Option<&[u8]>),
    ) -> Self {
        let prefix = key::entries_of(number, table.life, value);
        let after = behind.map(|behind| key::joined(&prefix, behind));
        let entries = cut.iter(&prefix, after.as_deref());
        let source = Source::Index { entries, prefix, fields: index.fields, value: Bytes::copy_from_slice(value) };
        Scan { cut, table, source, form: RowForm::OfTable }
    }

    /// Where the rows were as they are here.
    #[must_use]
    pub fn position(&self) -> Position {
        self.cut.position
    }

    /// The next row that counts, with its key in the engine.
    pub(crate) fn advance(&mut self) -> Result<Option<(Bytes, MirrorRow)>> {
        loop {
            let found = match &mut self.source {
                Source::Rows(rows) => rows.next().transpose()?,
                Source::Index { entries, prefix, .. } => {
                    let Some((entry, _)) = entries.next().transpose()? else { return Ok(None) };
                    let at = key::row_of_entry(&entry, prefix, (self.table.oid, self.table.life));
                    match self.cut.get(&at)? {
                        Some(row) => Some((at, row)),
                        // The entry is about to be removed.
                        None => continue,
                    }
                }
            };
            let Some((at, bytes)) = found else { return Ok(None) };
            let row = StoredRow::decode(bytes)?;
            let meant = match &self.source {
                Source::Rows(_) => true,
                Source::Index { fields, value, .. } => row::project(&row.row, fields)? == *value,
            };
            if meant && row.generation >= self.table.generation_min {
                let row = match self.form {
                    RowForm::OfTable => self.cut.row(&self.table, row)?,
                    RowForm::AsStored => row.into(),
                };
                return Ok(Some((at, row)));
            }
        }
    }
}

impl From<StoredRow> for MirrorRow {
    fn from(StoredRow { row_type, row, missing, .. }: StoredRow) -> Self {
        MirrorRow { row_type, row, missing }
    }
}

impl Iterator for Scan {
    type Item = Result<MirrorRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().map(|row| row.map(|(_, row)| row)).transpose()
    }
}
