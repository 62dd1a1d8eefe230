//! Takes blocks on their way to the changelog: what they do to the rows is staged, and updates and deletes of complete tables
//! leave with the whole old row and without unchanged fields.
//!
//! Invariants: a block with nothing to fill leaves as it came, not copied. A change leaves in the place in which it came, at its
//! position; one that came in several pieces, with its last. A block that leaves ends with what completes something, or
//! completes nothing.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Op};
use tidegate_schema::{ChangeParts, Extra, OldKind, Room, RowType, push_change, set_ordinal};

use super::{
    Mirror,
    apply::Known,
    change::{Joiner, Whole, malformed},
    error::Result,
    key::{self, StoredRow},
    row,
    table::{PassTable, Table},
};
use crate::order::split;

/// What leaves is cut at this size, in bytes, so that small changes of large rows do not pile up.
pub(super) const PART_BYTES: usize = 1 << 20;

/// Blocks on their way out.
pub(super) struct Output<'a> {
    pub(super) block: &'a Block,
    /// Entries of the block that have left or been replaced.
    done: usize,
    /// None as long as everything leaves as it came.
    builder: Option<BlockBuilder>,
    full: Vec<Block>,
    pub(super) byte_count: usize,
}

/// The pieces of a change that a mirror held.
#[derive(Debug)]
pub struct Held(Joiner);

/// What a change is with what the mirror adds to it.
#[derive(Default)]
pub(super) struct Filled {
    pub(super) row: Bytes,
    pub(super) old: Bytes,
    pub(super) old_kind: OldKind,
    pub(super) unchanged: Vec<u32>,
}

impl Filled {
    /// A new row of which the old one is not known.
    pub(super) fn new(row: Bytes) -> Self {
        Filled { row, ..Filled::default() }
    }
}

/// How a change leaves.
enum Leaves {
    AsItCame,
    Filled(Filled),
    /// As it came, and behind it, what it corrects.
    Correcting(Op, Filled),
}

impl Mirror {
    /// Takes the block from the entry `at` on, which it moves on: call it until that is the number of entries. What it hands out
    /// is about 1 MiB at most but for a single larger change; it has to be appended before [`Mirror::appended`] is called.
    ///
    /// # Errors
    /// The engine fails, or the block's records are malformed. Nothing has been taken of the block then, and the mirror has to
    /// be opened again; the new one goes on with what [`Mirror::into_held`] gives of this one.
    pub fn fill(&mut self, block: &Block, at: &mut usize) -> Result<Vec<Block>> {
        let (start, joiner) = (*at, self.joiner.clone());
        let filled = self.fill_part(block, at);
        if filled.is_err() {
            (*at, self.joiner) = (start, joiner);
        }
        filled
    }

    /// The pieces of a change that have been taken and not handed out.
    #[must_use]
    pub fn into_held(mut self) -> Held {
        Held(std::mem::take(&mut self.joiner))
    }

    /// Takes over what another mirror held.
    pub fn go_on_with(&mut self, held: Held) {
        self.joiner = held.0;
    }

    fn fill_part(&mut self, block: &Block, at: &mut usize) -> Result<Vec<Block>> {
        let mut output = Output { block, done: *at, builder: None, full: Vec::new(), byte_count: 0 };
        // A part of a block is a copy.
        output.copy_from(*at);
        while let Some(entry) = block.entries().get(*at) {
            let is_new = entry.position() > self.opened_at;
            if is_new && entry.kind == Kind::SnapshotCursor && !self.close(entry, &mut output)? {
                break;
            }
            *at += 1;
            if is_new {
                self.take(entry, *at - 1, &mut output)?;
                if entry.completes() {
                    self.end_transaction(entry);
                }
            }
            if output.byte_count >= PART_BYTES {
                break;
            }
        }
        self.spill_if_large()?;
        Ok(output.finish(*at))
    }

    fn take(&mut self, entry: &Entry, at: usize, output: &mut Output<'_>) -> Result<()> {
        match entry.kind {
            Kind::Change => return self.take_change(entry, at, output),
            Kind::RowType => self.take_row_type(output.block, entry)?,
            Kind::SnapshotBegin => self.take_snapshot_begin(output.block, entry)?,
            Kind::SnapshotEnd => self.take_snapshot_end(output.block, entry)?,
            Kind::SnapshotCursor => self.take_cursor(output.block, entry)?,
            Kind::Begin => self.chunk = if entry.is_of_snapshot() { entry.row_type } else { 0 },
            Kind::Commit | Kind::Progress => {}
        }
        output.pass(at);
        Ok(())
    }

    fn take_change(&mut self, entry: &Entry, at: usize, output: &mut Output<'_>) -> Result<()> {
        let was_cut = self.joiner.has_begun();
        if !was_cut {
            self.follow_again(entry)?;
        }
        let table = self.followed(entry);
        if table.is_none() && !was_cut {
            self.passes_by(entry);
            output.pass(at);
            return Ok(());
        }
        if !was_cut {
            // What is filled in stands in front of what has come: the pieces wait for the last.
            self.joiner.is_held =
                table.is_some_and(|table| table.complete) && matches!(entry.op, Op::Update | Op::Delete);
        }
        let is_held = self.joiner.is_held;
        let Some(whole) = self.joiner.push(output.block, entry)? else {
            if is_held {
                output.hold(at)
            } else {
                output.pass(at)
            }
            return Ok(());
        };
        match self.apply(&whole)? {
            Leaves::Filled(filled) if is_held => output.replace(at, entry, &whole, &filled),
            Leaves::Correcting(op, filled) => {
                output.pass(at);
                output.add(entry, (op, whole.row_type), &filled);
            }
            Leaves::Filled(_) | Leaves::AsItCame if was_cut && is_held => {
                let Whole { row, old, old_kind, unchanged, .. } = whole.clone();
                output.replace(at, entry, &whole, &Filled { row, old, old_kind, unchanged });
            }
            Leaves::Filled(_) | Leaves::AsItCame => output.pass(at),
        }
        Ok(())
    }

    /// A row type may be used again without being announced, in a log of an earlier release: it says that the table has its old name or
    /// key back.
    fn follow_again(&mut self, entry: &Entry) -> Result<()> {
        let known = self.row_types.get(&entry.row_type).filter(|known| known.is_mirrored);
        let Some(Known { row_type, name, .. }) = known else { return Ok(()) };
        let table = self.tables.get(&row_type.proto().table_oid);
        if table.is_some_and(|table| table.is_known_as(entry.row_type, name)) {
            return Ok(());
        }
        let row_type = Arc::clone(row_type);
        self.follow(&row_type)
    }

    /// A change that is not followed. Where it is one of a mirrored table under another name, those who follow the table do not
    /// receive it either: it is compared when it has its name back, and a snapshot that runs does not confirm it.
    fn passes_by(&mut self, entry: &Entry) {
        let Some(known) = self.row_types.get(&entry.row_type).filter(|known| !known.is_mirrored) else { return };
        let Some(table) = self.tables.get(&known.row_type.proto().table_oid).cloned() else { return };
        for snapshot in table.passes.keys() {
            let Some(mut pass) = self.passes.get(snapshot).cloned() else { continue };
            let reads_it = |named: &&mut PassTable| named.name == table.name && [0, table.oid].contains(&named.oid);
            if let Some(named) = pass.tables.iter_mut().find(reads_it).filter(|named| !named.altered) {
                named.altered = true;
                self.stage_pass(*snapshot, pass);
            }
        }
        if !table.verified.is_empty() {
            self.stage_table(Table { verified: String::new(), ..table });
        }
    }

    /// The table of a change whose rows are held.
    fn followed(&self, entry: &Entry) -> Option<&Table> {
        let known = self.row_types.get(&entry.row_type).filter(|known| known.is_mirrored)?;
        let table = self.tables.get(&known.row_type.proto().table_oid)?;
        (!known.key.is_empty() && known.key == table.key).then_some(table)
    }

    /// Stages what the change does.
    fn apply(&mut self, change: &Whole) -> Result<Leaves> {
        let known = self.row_types.get(&change.row_type);
        let Some(row_type) = known.map(|known| Arc::clone(&known.row_type)) else {
            return Ok(Leaves::AsItCame);
        };
        let Some(table) = self.tables.get(&row_type.proto().table_oid).cloned() else { return Ok(Leaves::AsItCame) };
        let of = |row: &Bytes| row::project(row, &table.key).map_err(|_| malformed(change.position, "row"));
        match change.op {
            Op::Read | Op::Insert => {
                let key = table.row(&of(&change.row)?);
                let is_checked = change.op == Op::Read && self.is_checked(&table);
                let corrects = change.op == Op::Read && table.is_corrected();
                let wanted = is_checked || corrects || self.has_indexes(table.oid);
                let held = if wanted { self.stored(&key)? } else { None };
                if is_checked {
                    self.check_read(change, (&table, &row_type), held.as_ref())?;
                }
                let correction =
                    if corrects { self.correction(change, (&table, &row_type), held.as_ref())? } else { None };
                self.put_row(&table, key, held.as_ref(), (change, change.row.clone(), Vec::new()))?;
                Ok(correction.map_or(Leaves::AsItCame, |(op, filled)| Leaves::Correcting(op, filled)))
            }
            Op::Update => self.apply_update(change, &table, &row_type),
            Op::Delete => {
                let key = table.row(&of(&change.old)?);
                let wanted = (table.complete && change.old_kind != OldKind::Full) || self.has_indexes(table.oid);
                let held = if wanted { self.stored(&key)? } else { None };
                self.remove_row(&table, key, held.as_ref())?;
                let old = self.filled_old(change, (&table, &row_type), held.as_ref())?;
                let filled = old.map(|old| Filled { old, old_kind: OldKind::Full, ..Filled::default() });
                Ok(filled.map_or(Leaves::AsItCame, Leaves::Filled))
            }
            Op::Truncate => {
                let mut table = table;
                self.begin_life(&mut table);
                self.stage_table(table);
                Ok(Leaves::AsItCame)
            }
            Op::None | Op::Message => Ok(Leaves::AsItCame),
        }
    }

    fn apply_update(&mut self, change: &Whole, table: &Table, row_type: &RowType) -> Result<Leaves> {
        let invalid = |_| malformed(change.position, "row");
        let own_old: &[u8] = &change.old;
        // A key that is unchanged and stored out of line is sent in the old row only.
        let (sent, _) = row::completed(change, row_type, &[own_old])?;
        let new_key = table.row(&row::project(&sent, &table.key).map_err(invalid)?);
        let old_key = match change.old_kind {
            OldKind::None => new_key.clone(),
            OldKind::Key | OldKind::Full => table.row(&row::project(own_old, &table.key).map_err(invalid)?),
        };
        let wanted = !change.unchanged.is_empty()
            || (table.complete && change.old_kind != OldKind::Full)
            || self.has_indexes(table.oid);
        let held = if wanted { self.stored(&old_key)? } else { None };
        let live = held.as_ref().filter(|held| held.generation >= table.generation_min);
        let known: &[u8] = live.map_or(&[], |held| &held.row);
        let (row, missing) = row::completed(change, row_type, &[own_old, known])?;
        let old = self.filled_old(change, (table, row_type), held.as_ref())?;

        if old_key == new_key {
            self.put_row(table, new_key, held.as_ref(), (change, row.clone(), missing.clone()))?;
        } else {
            self.remove_row(table, old_key, held.as_ref())?;
            let held = if self.has_indexes(table.oid) { self.stored(&new_key)? } else { None };
            self.put_row(table, new_key, held.as_ref(), (change, row.clone(), missing.clone()))?;
        }
        if old.is_none() && missing.len() == change.unchanged.len() {
            return Ok(Leaves::AsItCame);
        }
        let unchanged = change.unchanged.iter().copied().filter(|field| missing.contains(field)).collect();
        let (old, old_kind) = old.map_or((change.old.clone(), change.old_kind), |old| (old, OldKind::Full));
        Ok(Leaves::Filled(Filled { row, old, old_kind, unchanged }))
    }

    /// The whole old row, where the change does not have it and it is known.
    fn filled_old(
        &self,
        change: &Whole,
        (table, row_type): (&Table, &RowType),
        held: Option<&StoredRow>,
    ) -> Result<Option<Bytes>> {
        let live = held.filter(|held| held.generation >= table.generation_min);
        let Some(held) = live.filter(|_| table.complete && change.old_kind != OldKind::Full) else { return Ok(None) };
        let Some(from) = self.row_types.get(&held.row_type) else { return Ok(None) };
        row::conform(held, &from.row_type, row_type)
    }

    /// The newest row under a key of the engine, whether it counts or not.
    pub(super) fn stored(&self, key: &Bytes) -> Result<Option<StoredRow>> {
        self.newest(key)?.map(StoredRow::decode).transpose()
    }

    fn put_row(
        &mut self,
        table: &Table,
        key: Bytes,
        held: Option<&StoredRow>,
        (change, row, missing): (&Whole, Bytes, Vec<u32>),
    ) -> Result<()> {
        let stored = StoredRow { generation: table.generation, row_type: change.row_type, missing, row };
        self.stage_entries(table, &key, (held, Some(&stored)))?;
        self.stage(key, Some(stored.encode()));
        Ok(())
    }

    fn remove_row(&mut self, table: &Table, key: Bytes, held: Option<&StoredRow>) -> Result<()> {
        self.stage_entries(table, &key, (held, None))?;
        self.stage(key, None);
        Ok(())
    }

    fn has_indexes(&self, oid: u32) -> bool {
        self.indexes.values().any(|index| index.oid == oid)
    }

    /// Moves the index entries of a row from what it was to what it is.
    fn stage_entries(
        &mut self,
        table: &Table,
        row: &Bytes,
        (held, stored): (Option<&StoredRow>, Option<&StoredRow>),
    ) -> Result<()> {
        if self.indexes.is_empty() {
            return Ok(());
        }
        let of_table = self.indexes.iter().filter(|(_, index)| index.oid == table.oid);
        let mut writes = Vec::new();
        for (number, index) in of_table {
            let entry = |stored: &StoredRow| {
                let value = row::project(&stored.row, &index.fields)?;
                Ok::<_, super::MirrorError>(key::entry((*number, table.life), &value, row))
            };
            let (old, new) = (held.map(entry).transpose()?, stored.map(entry).transpose()?);
            if let Some(old) = old.filter(|old| Some(old) != new.as_ref()) {
                writes.push((old, None));
            }
            if let Some(new) = new {
                writes.push((new, Some(Bytes::new())));
            }
        }
        writes.into_iter().for_each(|(key, value)| self.stage(key, value));
        Ok(())
    }
}

impl Output<'_> {
    /// What follows is copied, unless the whole block is taken from its start.
    fn copy_from(&mut self, at: usize) {
        if at > 0 {
            self.builder = Some(BlockBuilder::default());
        }
    }

    /// The entry leaves as it came.
    fn pass(&mut self, at: usize) {
        if self.builder.is_some() {
            self.copy(at..at + 1);
        }
        self.done = at + 1;
    }

    /// The entry does not leave.
    fn hold(&mut self, at: usize) {
        self.diverge(at);
        self.done = at + 1;
    }

    fn replace(&mut self, at: usize, entry: &Entry, change: &Whole, filled: &Filled) {
        self.diverge(at);
        self.put(entry, (change.op, change.row_type), filled);
        self.done = at + 1;
    }

    /// Another change leaves behind what has left, where the entry stands.
    pub(super) fn add(&mut self, entry: &Entry, change: (Op, u32), filled: &Filled) {
        self.diverge(self.done);
        self.put(entry, change, filled);
    }

    fn put(&mut self, entry: &Entry, (op, row_type): (Op, u32), filled: &Filled) {
        let parts = ChangeParts {
            op,
            row_type,
            row: &filled.row,
            old: &filled.old,
            old_kind: filled.old_kind,
            unchanged: &filled.unchanged,
            extra: Extra::None,
        };
        let mut pieces = Pieces { output: self, ordinal: entry.ordinal };
        push_change(&parts, entry.lsn, &mut pieces);
        pieces.set_ordinals();
    }

    /// From here on the block is another one: copies what has been passed so far.
    fn diverge(&mut self, at: usize) {
        if self.builder.is_none() {
            self.builder = Some(BlockBuilder::default());
            self.copy(0..at);
        }
    }

    fn copy(&mut self, entries: Range<usize>) {
        let Some(builder) = &mut self.builder else { return };
        for entry in &self.block.entries()[entries] {
            builder.push(*entry, &self.block.payload()[entry.start as usize..entry.end as usize]);
            self.byte_count += (entry.end - entry.start) as usize;
        }
    }

    fn set_aside(&mut self) {
        let full = self.builder.as_mut().filter(|builder| !builder.is_empty()).map(BlockBuilder::finish);
        self.full.extend(full.into_iter().flat_map(split));
    }

    fn finish(mut self, at: usize) -> Vec<Block> {
        if self.builder.is_none() && at == self.block.entries().len() {
            return vec![self.block.clone()];
        }
        self.diverge(at);
        self.set_aside();
        self.full
    }
}

/// Where the pieces of a change go: into blocks that stay small.
struct Pieces<'a, 'b> {
    output: &'a mut Output<'b>,
    ordinal: u32,
}

impl Pieces<'_, '_> {
    /// The pieces were written without their ordinal.
    fn set_ordinals(&mut self) {
        let Some(builder) = &mut self.output.builder else { return };
        let BlockBuilder { entries, payload } = builder;
        for entry in entries.iter_mut().rev().take_while(|entry| entry.ordinal == 0 && entry.kind == Kind::Change) {
            entry.ordinal = self.ordinal;
            set_ordinal(payload, entry, self.ordinal);
            self.output.byte_count += (entry.end - entry.start) as usize;
        }
    }
}

impl Room for Pieces<'_, '_> {
    fn room(&mut self) -> &mut BlockBuilder {
        self.set_ordinals();
        if self.output.builder.as_ref().is_some_and(|builder| builder.byte_count() >= PART_BYTES) {
            self.output.set_aside();
        }
        self.output.builder.get_or_insert_default()
    }
}
