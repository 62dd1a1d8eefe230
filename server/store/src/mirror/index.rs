//! Secondary indexes: from the bytes of some fields to the rows that have them.
//!
//! An index is maintained from the moment that it is made; the rows that were there before are added bit by bit, from what the
//! engine holds. That is sound since a row's entries are derived from what is stored: a change that is still to be applied
//! removes the entry of the row that it replaces. An entry too many does no harm, for rows are compared when they are looked up.
//!
//! A table has so many at most. One that nobody reads by gives way to another that is asked for ([`super::index_uses`]): readers that have begun
//! have it to their end, and others are told that it is not there.

use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;

use super::{
    Mirror, MirrorError, MirrorReader,
    error::Result,
    index_uses::IndexUses,
    key::{self, StoredRow},
    overlay::Staged,
    row,
    table::Index,
};

/// Indexes of one table: each is a cost of every change of it. One that is asked for beyond takes the place of one that is not used, or is not made.
pub const INDEXES_MAX: usize = 8;
/// Rows that are added to an index at a time.
const STEP_ROWS: usize = 1000;

/// An index of a mirror. Valid as long as the mirror lasts: ask for it again after an epoch has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IndexId(pub(crate) u32);

/// What there is of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorIndex {
    /// It.
    pub id: IndexId,
    /// Ascending.
    pub fields: Vec<u32>,
    /// It can be looked up.
    pub complete: bool,
}

impl MirrorReader {
    /// Asks for an index, which is built in the background; the same is not built twice, and no more than [`INDEXES_MAX`] of a table: beyond, it is
    /// made when it has been asked for often enough while another was not used, in the place of that. See [`MirrorReader::index`].
    pub fn add_index(&self, table_oid: u32, fields: impl IntoIterator<Item = u32>) {
        let request = (table_oid, ascending(fields));
        let mut requests = self.shared.index_requests.write().unwrap_or_else(PoisonError::into_inner);
        if !requests.contains(&request) {
            requests.push(request);
        }
        drop(requests);
        self.shared.requested.notify_one();
    }

    /// The index, once it is complete.
    ///
    /// # Errors
    /// There is no mirror, or the engine fails.
    pub fn index(&self, table_oid: u32, fields: impl IntoIterator<Item = u32>) -> Result<Option<IndexId>> {
        let fields = ascending(fields);
        let indexes = self.indexes(table_oid)?;
        Ok(indexes.into_iter().find(|index| index.fields == fields && index.complete).map(|index| index.id))
    }

    /// Every index of a table, whether it is complete or not.
    ///
    /// # Errors
    /// There is no mirror, or the engine fails.
    pub fn indexes(&self, table_oid: u32) -> Result<Vec<MirrorIndex>> {
        let cut = self.with_view(|view| Ok(view.cut(&[&[key::INDEX]])))?;
        let mut found = Vec::new();
        for record in cut.iter(&[key::INDEX], None) {
            let (at, bytes) = record?;
            let Index { oid, fields, complete, .. } = super::table::decode(&bytes)?;
            if oid == table_oid {
                found.push(MirrorIndex { id: IndexId(key::number(&at)?), fields, complete });
            }
        }
        Ok(found)
    }
}

fn ascending(fields: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut fields: Vec<u32> = fields.into_iter().collect();
    fields.sort_unstable();
    fields.dedup();
    fields
}

impl Mirror {
    /// Makes the indexes that have been asked for. They wait for their table to be known.
    pub(super) fn take_index_requests(&mut self) -> Result<()> {
        let requests = std::mem::take(&mut *self.shared.index_requests.write().unwrap_or_else(PoisonError::into_inner));
        if requests.is_empty() {
            return Ok(());
        }
        let (is_staging, mut waiting) = (self.is_staging(), Vec::new());
        for (oid, fields) in requests {
            let of_table = || self.indexes.iter().filter(|(_, index)| index.oid == oid);
            if of_table().any(|(_, index)| index.fields == fields) {
                continue;
            }
            if of_table().count() >= INDEXES_MAX {
                // What removes its entries has to come behind the last of them.
                if is_staging {
                    waiting.push((oid, fields));
                    continue;
                }
                let numbers = of_table().map(|(number, _)| *number);
                let Some(number) = self.index_uses().giving_way((oid, &fields), numbers) else { continue };
                let life = self.tables.get(&oid).map_or(0, |table| table.life);
                let writes = self.forget_index(number, life);
                self.stage_aside(writes);
                // A crash may have left one too many.
                if self.indexes.values().filter(|index| index.oid == oid).count() >= INDEXES_MAX {
                    continue;
                }
            }
            let made = self.tables.contains_key(&oid) && {
                let number = self.engine.get(key::INDEX_NEXT)?.map_or(Ok(1), |next| key::read_value(&next))?;
                let index = Index { oid, fields: fields.clone(), complete: false, built: Bytes::new() };
                self.write_index(number, index)?
            };
            if !made {
                waiting.push((oid, fields));
            }
        }
        self.shared.index_requests.write().unwrap_or_else(PoisonError::into_inner).extend(waiting);
        Ok(())
    }

    /// Forgets an index; what has to be written for it.
    pub(super) fn forget_index(&mut self, number: u32, life: u32) -> [(Bytes, Staged); 2] {
        self.indexes.remove(&number);
        let entries = key::dead(&key::entries(number, life));
        [(key::numbered(key::INDEX, number), None), (entries, Some(Bytes::new()))]
    }

    fn index_uses(&self) -> MutexGuard<'_, IndexUses> {
        self.shared.index_uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_index(&mut self, number: u32, index: Index) -> Result<bool> {
        self.index_uses().used(index.oid, number);
        let bytes = index.encode_to_vec().into();
        let written = self.write_aside(|mirror| {
            let mut batch = mirror.engine.batch();
            mirror.engine.put(&mut batch, &key::numbered(key::INDEX, number), &Some(bytes));
            // Entries of an earlier index of this number may still be there.
            mirror.engine.put(&mut batch, &Bytes::from_static(key::INDEX_NEXT), &Some(key::value(number + 1)));
            Ok(batch)
        })?;
        if written {
            // Rows that are staged have no entries: the build starts when the engine has them.
            let through = self.transaction - u64::from(!self.read_view(|view| view.overlay.holds(self.transaction)));
            self.index_after.insert(number, through);
            self.indexes.insert(number, index);
            // Readers may wait for it instead of doing without.
            self.show_aside();
        }
        Ok(written)
    }

    /// Adds some rows to an index that is not complete; false when there is nothing to do.
    pub(super) fn build_index_step(&mut self) -> Result<bool> {
        let applied = self.applied();
        let ready = |number: &u32| self.index_after.get(number).is_none_or(|after| *after <= applied);
        let unfinished = self.indexes.iter().find(|(number, index)| !index.complete && ready(number));
        let Some((number, mut index)) = unfinished.map(|(number, index)| (*number, index.clone())) else {
            return Ok(false);
        };
        let written = self.write_aside(|mirror| {
            let mut batch = mirror.engine.batch();
            mirror.add_rows(&mut batch, number, &mut index)?;
            let record = Some(index.encode_to_vec().into());
            mirror.engine.put(&mut batch, &key::numbered(key::INDEX, number), &record);
            mirror.indexes.insert(number, index);
            Ok(batch)
        })?;
        if written && self.indexes.get(&number).is_some_and(|index| index.complete) {
            self.show_aside();
        }
        Ok(written)
    }

    fn add_rows(&mut self, batch: &mut super::engine::Batch, number: u32, index: &mut Index) -> Result<()> {
        // As the engine has it: rows of a life that is only staged have their entries staged with them.
        let table = self.engine.get(&key::numbered(key::TABLE, index.oid))?;
        let Some(table) = table.map(|bytes| super::table::decode::<super::table::Table>(&bytes)).transpose()? else {
            index.complete = true;
            return Ok(());
        };
        let rows = table.rows();
        let after = Some(index.built.clone()).filter(|built| built.starts_with(&rows));
        let snapshot = self.engine.snapshot();
        index.complete = true;
        for (count, pair) in self.engine.range(&snapshot, &rows, after.as_deref()).enumerate() {
            if count == STEP_ROWS || batch.is_full() {
                index.complete = false;
                break;
            }
            let (at, row) = pair.into_inner().map_err(MirrorError::from)?;
            let stored = StoredRow::decode(row.into())?;
            let value = row::project(&stored.row, &index.fields)?;
            self.engine.put(batch, &key::entry((number, table.life), &value, &at), &Some(Bytes::new()));
            index.built = at.into();
        }
        Ok(())
    }
}
