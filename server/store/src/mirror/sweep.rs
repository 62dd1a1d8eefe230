//! Work in the background: removes what no longer counts, and builds indexes, in small steps between other writes.
//!
//! Nothing depends on when it is done: what it removes is not seen by any reader.

use bytes::Bytes;

use super::{
    Mirror,
    engine::Batch,
    error::Result,
    key::{self, StoredRow},
    row,
    table::{self, Table},
};

/// Keys that are looked at in a step.
const STEP_KEYS: usize = 2000;

impl Mirror {
    /// Does a little of what there is to do; false when there is nothing, or it has to wait for an fsync.
    ///
    /// # Errors
    /// The engine fails.
    pub fn work(&mut self) -> Result<bool> {
        if !self.is_unspilled() {
            return Ok(false);
        }
        self.take_index_requests()?;
        Ok(self.build_index_step()? || self.sweep_dead()? || self.sweep_stale()?)
    }

    /// Removes keys under a prefix that is dead.
    fn sweep_dead(&mut self) -> Result<bool> {
        let snapshot = self.engine.snapshot();
        let Some(record) = self.engine.range(&snapshot, &[key::DEAD], None).next() else { return Ok(false) };
        let record = Bytes::from(record.key()?);
        self.write_aside(|mirror| {
            let mut batch = mirror.engine.batch();
            let mut left = false;
            for (count, pair) in mirror.engine.range(&snapshot, &record[1..], None).enumerate() {
                if count == STEP_KEYS {
                    left = true;
                    break;
                }
                mirror.engine.put(&mut batch, &Bytes::from(pair.key()?), &None);
            }
            if !left {
                mirror.engine.put(&mut batch, &record, &None);
            }
            Ok(batch)
        })
    }

    /// Removes rows of a table that are of an older generation than count.
    fn sweep_stale(&mut self) -> Result<bool> {
        let snapshot = self.engine.snapshot();
        let Some(record) = self.engine.range(&snapshot, &[key::STALE], None).next() else { return Ok(false) };
        let (record, from) = record.into_inner()?;
        let (record, from) = (Bytes::from(record), Bytes::from(from));
        let oid = key::number(&record)?;
        let table = self.engine.get(&key::numbered(key::TABLE, oid))?;
        let table = table.map(|bytes| table::decode::<Table>(&bytes)).transpose()?;
        self.write_aside(|mirror| {
            let mut batch = mirror.engine.batch();
            let last = match &table {
                Some(table) => mirror.remove_stale(&mut batch, table, &from)?,
                None => None,
            };
            mirror.engine.put(&mut batch, &record, &last);
            Ok(batch)
        })
    }

    /// Removes those behind `from`; where to go on, unless that was the end.
    fn remove_stale(&mut self, batch: &mut Batch, table: &Table, from: &Bytes) -> Result<Option<Bytes>> {
        let rows = table.rows();
        let after = Some(from).filter(|from| from.starts_with(&rows));
        let snapshot = self.engine.snapshot();
        let is_checked = self.is_checked(table);
        let mut stale = Vec::new();
        for (count, pair) in self.engine.range(&snapshot, &rows, after.map(|after| &after[..])).enumerate() {
            let (at, bytes) = pair.into_inner()?;
            let at = Bytes::from(at);
            let stored = StoredRow::decode(bytes.into())?;
            if stored.generation < table.generation_min {
                for (number, index) in self.indexes.iter().filter(|(_, index)| index.oid == table.oid) {
                    let value = row::project(&stored.row, &index.fields)?;
                    self.engine.put(batch, &key::entry((*number, table.life), &value, &at), &None);
                }
                self.engine.put(batch, &at, &None);
                if is_checked {
                    stale.push(stored);
                }
            }
            if count == STEP_KEYS {
                self.check_swept(table, &stale, false)?;
                return Ok(Some(at));
            }
        }
        self.check_swept(table, &stale, true)?;
        Ok(None)
    }
}
