//! Which tables there are, and how a snapshot makes them complete.
//!
//! ```text
//! SnapshotBegin ─▶ each named table: another generation ─▶ reads and changes carry it ─▶ SnapshotEnd: older rows are gone
//! ```
//!
//! A table of which a snapshot reads a part is no concern of its end: what is read of it is put right, and nothing is gone.
//!
//! A snapshot counts for the incarnation that its chunks were of (the cursor of each says which), if the mirror has followed that
//! one since SnapshotBegin, and it has kept its key.

use std::sync::Arc;

use prost::Message;
use tidegate_model::{Block, Entry, TableName};
use tidegate_proto::v1;
use tidegate_schema::RowType;

use super::{
    Mirror,
    apply::Known,
    change::malformed,
    error::Result,
    key, row,
    table::{self, Pass, PassTable, Table},
};

/// What concerns the mirror of the message `SnapshotCursor`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ChunkTable {
    #[prost(uint32, tag = "1")]
    pub(super) snapshot: u32,
    #[prost(uint32, tag = "2")]
    pub(super) table_oid: u32,
    #[prost(string, tag = "6")]
    pub(super) schema: String,
    #[prost(string, tag = "7")]
    pub(super) table: String,
    #[prost(string, tag = "8")]
    pub(super) fingerprint: String,
    #[prost(bool, tag = "9")]
    pub(super) closes: bool,
}

impl ChunkTable {
    pub(super) fn read(block: &Block, entry: &Entry) -> Result<Self> {
        ChunkTable::decode(block.slice(entry)).map_err(|_| malformed(entry.position(), "SnapshotCursor"))
    }

    fn name(&self) -> TableName {
        TableName::new(self.schema.as_str(), self.table.as_str())
    }
}

impl Mirror {
    pub(super) fn take_row_type(&mut self, block: &Block, entry: &Entry) -> Result<()> {
        let invalid = || malformed(entry.position(), "RowType");
        let proto = v1::RowType::decode(block.slice(entry)).map_err(|_| invalid())?;
        let number = proto.row_type;
        let row_type = match self.row_types.get(&number) {
            Some(known) if *known.row_type.proto() == proto => Arc::clone(&known.row_type),
            Some(_) | None => Arc::new(RowType::new(proto).map_err(|_| invalid())?),
        };
        self.row_types.insert(number, Known::new(&row_type, &self.config.tables));
        self.read_view(|view| view.know(&row_type));
        self.follow(&row_type)
    }

    /// Makes the table known, or its new row type.
    pub(super) fn follow(&mut self, row_type: &RowType) -> Result<()> {
        let (oid, name) = (row_type.proto().table_oid, row_type.name());
        if oid == 0 || !self.config.tables.matches(name) {
            return Ok(());
        }
        let (key, name) = (table::key_fields(row_type), name.to_string());
        let known = self.tables.get(&oid).cloned();
        let mut table = match &known {
            Some(table) => table.clone(),
            None => self.new_table(oid, &name)?,
        };
        let first = table.row_type == 0;
        if !first && table.key != key {
            // Rows are held under another key. What is read from here on is under the new one, but not all of it may be.
            if table.tells_all() {
                let life = table.life;
                self.leave_life(&mut table);
                table.former_lives.push(life);
            } else {
                self.begin_life(&mut table);
            }
            table.is_told |= table.complete;
            table.complete = false;
            table.passes.clear();
        }
        self.take_name(&mut table, name);
        self.drop_columns(&mut table, row_type);
        (table.key, table.row_type) = (key, row_type.proto().row_type);
        table.complete &= !table.is_keyless();
        if known.as_ref() != Some(&table) {
            self.stage_table(table);
        }
        Ok(())
    }

    /// Notes what the table's rows have no more under another row type.
    fn drop_columns(&self, table: &mut Table, to: &RowType) {
        let Some(from) = self.row_types.get(&table.row_type) else { return };
        if !row::shares_numbers(&from.row_type, to) {
            return;
        }
        let fields = from.row_type.proto().columns.iter().map(|column| column.field);
        let gone = fields.filter(|field| to.column_by_field(*field).is_none());
        table.dropped.extend(gone.map(|field| (field, table.generation)));
    }

    /// A table that has not been seen before takes the place of others of its name.
    fn new_table(&mut self, oid: u32, name: &str) -> Result<Table> {
        let replaced: Vec<Table> = self.tables.values().filter(|table| table.name == name).cloned().collect();
        let mut is_told = replaced.iter().any(Table::tells_all);
        for table in replaced {
            tracing::info!(
                table = name,
                old = table.oid,
                new = oid,
                "the table has been created anew; it needs a snapshot"
            );
            // It may be there still, under a name that is not known yet.
            for (key, value) in self.forget(&table, table.tells_all()) {
                self.stage(key, value);
            }
        }
        let names = |pass: &&Pass| pass.tables.iter().any(|table| table.name == name);
        let passes = self.passes.iter().filter(|(_, pass)| names(pass)).map(|(snapshot, _)| (*snapshot, 1)).collect();
        let last = self.newest(&key::numbered(key::LIFE, oid))?;
        let (last, was_told) = last.map_or(Ok((0, false)), |last| key::read_last_life(&last))?;
        is_told |= was_told;
        let life = 1 + last;
        Ok(Table { name: name.to_owned(), life, generation: 1, passes, oid, is_told, ..Table::default() })
    }

    /// The name is this table's now, and no other's.
    fn take_name(&mut self, table: &mut Table, name: String) {
        if table.displaced || table.name != name {
            let others = self.tables.values().filter(|other| other.oid != table.oid && other.name == name);
            for other in others.cloned().collect::<Vec<_>>() {
                self.stage_table(Table { displaced: true, ..other });
            }
        }
        (table.name, table.displaced) = (name, false);
    }

    /// All rows so far are gone.
    pub(super) fn begin_life(&mut self, table: &mut Table) {
        self.stage(key::dead(&table.rows()), Some(bytes::Bytes::new()));
        self.forget_former(table);
        self.leave_life(table);
    }

    /// What subscribers have of former lives is settled.
    fn forget_former(&mut self, table: &mut Table) {
        for rows in table.former_rows() {
            self.stage(key::dead(&rows), Some(bytes::Bytes::new()));
        }
        table.former_lives.clear();
    }

    /// Rows are held anew; those so far stay, and count no more.
    fn leave_life(&mut self, table: &mut Table) {
        let gone = Some(bytes::Bytes::new());
        let of_table: Vec<u32> =
            self.indexes.iter().filter(|(_, index)| index.oid == table.oid).map(|(number, _)| *number).collect();
        for number in of_table {
            self.stage(key::dead(&key::entries(number, table.life)), gone.clone());
        }
        table.life += 1;
    }

    pub(super) fn take_snapshot_begin(&mut self, block: &Block, entry: &Entry) -> Result<()> {
        let mut begin =
            v1::SnapshotBegin::decode(block.slice(entry)).map_err(|_| malformed(entry.position(), "SnapshotBegin"))?;
        begin.tables.retain(|table| !begin.partial.contains(table));
        let is_named = |table: &&Table| !table.displaced && begin.tables.contains(&table.name);
        let named: Vec<Table> = self.tables.values().filter(is_named).cloned().collect();
        for mut table in named {
            table.generation += 1;
            table.passes.insert(begin.snapshot, table.generation);
            self.check_begins(begin.snapshot, &table);
            self.stage_table(table);
        }
        let entry = |name: String| PassTable { name, ..PassTable::default() };
        self.stage_pass(begin.snapshot, Pass { tables: begin.tables.into_iter().map(entry).collect() });
        Ok(())
    }

    /// A chunk says which incarnation it is of, and which definition; the last one, that there are no more.
    pub(super) fn take_cursor(&mut self, block: &Block, entry: &Entry) -> Result<()> {
        let chunk = ChunkTable::read(block, entry)?;
        let Some(mut pass) = self.passes.get(&chunk.snapshot).cloned() else { return Ok(()) };
        let (name, text) = (chunk.name(), chunk.name().to_string());
        let Some(named) = pass.tables.iter_mut().find(|table| table.name == text) else { return Ok(()) };
        let before = named.clone();
        // A cursor from before the first chunk says nothing of a definition.
        if named.fingerprint.is_empty() {
            named.fingerprint.clone_from(&chunk.fingerprint);
        }
        named.altered |= !chunk.fingerprint.is_empty() && named.fingerprint != chunk.fingerprint;
        named.mixed |= before.oid != 0 && before.oid != chunk.table_oid;
        named.oid = chunk.table_oid;
        if *named != before {
            self.stage_pass(chunk.snapshot, pass);
        }
        match self.tables.get(&chunk.table_oid).cloned() {
            None if self.config.tables.matches(&name) => {
                let table = self.new_table(chunk.table_oid, &text)?;
                self.stage_table(table);
            }
            // Nothing else tells the new name of a table without rows. The next snapshot confirms it.
            Some(mut table) if (table.name != text || table.displaced) && self.config.tables.matches(&name) => {
                self.take_name(&mut table, text);
                self.stage_table(table);
            }
            Some(mut table) if chunk.closes => {
                if let Some(generation) = self.confirmed(&chunk) {
                    self.forget_former(&mut table);
                    // What has been dropped since it began may have been read before that.
                    table.dropped.retain(|_, dropped| *dropped >= generation);
                    let known = self.row_types.get(&table.row_type);
                    let is_told = known.is_none_or(|known| !table.has_dropped(&known.row_type));
                    table.verified = if is_told { chunk.fingerprint } else { String::new() };
                    table.generation_min = table.generation_min.max(generation);
                    self.stage_table(table);
                }
            }
            Some(_) | None => {}
        }
        Ok(())
    }

    /// What a pass that closes a table has confirmed carries this generation; None where it does not close it, or has not confirmed
    /// the table as a whole.
    pub(super) fn confirmed(&self, chunk: &ChunkTable) -> Option<u32> {
        let table = self.tables.get(&chunk.table_oid).filter(|table| chunk.closes && !table.is_keyless())?;
        let name = chunk.name().to_string();
        let named = self.passes.get(&chunk.snapshot)?.tables.iter().find(|table| table.name == name)?;
        let is_confirmed = named.confirms(table.oid) && named.fingerprint == chunk.fingerprint;
        table.passes.get(&chunk.snapshot).filter(|_| is_confirmed).copied()
    }

    pub(super) fn take_snapshot_end(&mut self, block: &Block, entry: &Entry) -> Result<()> {
        let end =
            v1::SnapshotEnd::decode(block.slice(entry)).map_err(|_| malformed(entry.position(), "SnapshotEnd"))?;
        let Some(pass) = self.end_pass(end.snapshot) else { return Ok(()) };
        let named = |table: &Table| {
            let read = end.abandoned.is_empty() && !table.is_keyless();
            pass.tables.iter().find(|named| read && named.oid == table.oid && !named.mixed)
        };
        let waiting: Vec<Table> =
            self.tables.values().filter(|table| table.passes.contains_key(&end.snapshot)).cloned().collect();
        for mut table in waiting {
            let generation = table.passes.remove(&end.snapshot).unwrap_or_default();
            let confirms = named(&table).map(|named| named.confirms(table.oid));
            self.check_ends(end.snapshot, &table, confirms == Some(true));
            // Where subscribers have what it holds, a row goes only if they are told, by a pass that confirms the table.
            if confirms == Some(true) || (confirms.is_some() && !table.tells_all()) {
                table.generation_min = table.generation_min.max(generation);
                self.stage(key::numbered(key::STALE, table.oid), Some(bytes::Bytes::new()));
            }
            if confirms.is_some() {
                (table.complete, table.is_told) = (true, false);
            } else if end.abandoned.is_empty() && !table.is_keyless() {
                tracing::warn!(
                    table = table.name,
                    snapshot = end.snapshot,
                    "the table has changed during its snapshot, which therefore does not complete its mirror"
                );
            }
            self.stage_table(table);
        }
        Ok(())
    }
}
