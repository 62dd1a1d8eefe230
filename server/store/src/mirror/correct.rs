//! Tells subscribers what a snapshot finds to be otherwise than the mirror has it, and they were told: after a schema change that has
//! changed rows, which PostgreSQL does not send.
//!
//! ```text
//! chunk:          Begin ─ read ─ update ─ read ─ read ─ insert … SnapshotCursor ─ Commit
//! closing chunk:  Begin ─ delete ─ delete …                      SnapshotCursor ─ Commit
//! ```
//!
//! Invariant: at each position, who has applied all changes up to there has what the mirror of a complete table has. A chunk's reads are for those who
//! receive its snapshot, and everything else in it for the others, but for deletes, and updates by which rows leave a shape, which are for both; either
//! is the state at its position. A field that the stored row did not have yet counts as null: that is what a subscriber has. Of a column that was gone
//! and is there again, subscribers have nothing, whatever the stored rows hold: every row is told.

use bytes::Bytes;
use tidegate_model::{Entry, Op};
use tidegate_schema::{OldKind, RowType};

use super::{
    Mirror, MirrorError,
    change::Whole,
    cut::Merged,
    error::Result,
    fill::{Filled, Output, PART_BYTES},
    key::StoredRow,
    row,
    snapshots::ChunkTable,
    table::Table,
};

/// The rows of a table that are looked through for those which a pass has not confirmed.
pub(super) struct Closing {
    table: Table,
    /// Given to what the pass has confirmed.
    generation: u32,
    rows: Merged,
    /// They are of a life under another key.
    is_former: bool,
    /// Rows of such lives that come next.
    former: Vec<Bytes>,
}

impl Mirror {
    /// What a read changes for those who were told all before; None where the row is held like this.
    pub(super) fn correction(
        &self,
        read: &Whole,
        (table, row_type): (&Table, &RowType),
        held: Option<&StoredRow>,
    ) -> Result<Option<(Op, Filled)>> {
        let Some(live) = held.filter(|held| held.generation >= table.generation_min) else {
            return Ok(table.tells_all().then(|| (Op::Insert, Filled::new(read.row.clone()))));
        };
        let known = self.row_types.get(&live.row_type);
        let old = known.map(|from| row::widened(live, &from.row_type, row_type)).transpose()?.flatten();
        Ok(match old {
            Some(old) if old == read.row && !table.has_dropped(row_type) => None,
            Some(old) => Some((Op::Update, Filled { old, old_kind: OldKind::Full, ..Filled::new(read.row.clone()) })),
            None => Some((Op::Update, Filled::new(read.row.clone()))),
        })
    }

    /// Where the cursor closes a table: hands out deletes of the rows that its pass has not confirmed. False where it is to be
    /// called again once these are appended.
    pub(super) fn close(&mut self, entry: &Entry, output: &mut Output<'_>) -> Result<bool> {
        let mut closing = match self.closing.take() {
            Some(closing) => closing,
            None => match self.closing(&ChunkTable::read(output.block, entry)?)? {
                Some(closing) => closing,
                None => return Ok(true),
            },
        };
        // A table without a row type has no row.
        let Some(known) = self.row_types.get(&closing.table.row_type) else { return Ok(true) };
        loop {
            let Some(pair) = closing.rows.next() else {
                let Some(former) = closing.former.pop() else { return Ok(true) };
                closing.rows = self.rows_now(&former);
                closing.is_former = true;
                continue;
            };
            let stored = StoredRow::decode(pair?.1)?;
            if !self.is_gone(&closing, &stored)? {
                continue;
            }
            let from = self.row_types.get(&stored.row_type);
            let from = from.ok_or(MirrorError::Damaged("a row of an unknown row type"))?;
            // It may have been stored under a name that is another table's by now, and its row type may lack what columns came since.
            let is_renamed = !row::shares_numbers(&from.row_type, &known.row_type);
            let key = if is_renamed { row::same_key(&stored, &from.row_type, known)? } else { None };
            let to = if is_renamed && key.is_none() { from } else { known };
            let (old, old_kind) = match (key, row::widened(&stored, &from.row_type, &to.row_type)?) {
                (Some(key), _) => (key, OldKind::Key),
                (None, Some(old)) => (old, OldKind::Full),
                (None, None) => (row::project(&stored.row, &to.key)?, OldKind::Key),
            };
            let row_type = to.row_type.proto().row_type;
            output.add(entry, (Op::Delete, row_type), &Filled { old, old_kind, ..Filled::default() });
            if output.byte_count >= PART_BYTES {
                self.closing = Some(closing);
                return Ok(false);
            }
        }
    }

    /// Does a row that is held not exist any more? Of one under another key, its new key is to be known.
    fn is_gone(&self, closing: &Closing, stored: &StoredRow) -> Result<bool> {
        let Closing { table, generation, is_former, .. } = closing;
        if stored.generation < table.generation_min {
            return Ok(false);
        }
        if !is_former {
            return Ok(stored.generation < *generation);
        }
        let Some(from) = self.row_types.get(&stored.row_type) else { return Ok(false) };
        let has = |field: &u32| from.row_type.column_by_field(*field).is_some() && !stored.missing.contains(field);
        let is_known = row::shares_numbers(&from.row_type, &self.row_types[&table.row_type].row_type);
        if !is_known || !table.key.iter().all(has) {
            return Ok(false);
        }
        Ok(self.stored(&table.row(&row::project(&stored.row, &table.key)?))?.is_none())
    }

    fn closing(&self, chunk: &ChunkTable) -> Result<Option<Closing>> {
        let table = self.tables.get(&chunk.table_oid).filter(|table| table.is_corrected());
        let (Some(table), Some(generation)) = (table, self.confirmed(chunk)) else { return Ok(None) };
        let (rows, former) = (self.rows_now(&table.rows()), table.former_rows());
        Ok(Some(Closing { table: table.clone(), generation, rows, is_former: false, former }))
    }

    /// All that is held under a prefix.
    fn rows_now(&self, rows: &Bytes) -> Merged {
        self.read_view(|view| view.newest(rows, self.transaction)).iter(rows, None)
    }
}
