//! The writing side of a mirror: takes what happens into the overlay, and from there into the engine.
//!
//! Invariants: transactions are counted, and each record is staged under the number of its own. What readers see is the last
//! transaction that was *appended*; what the engine holds, the last that was *synced*, or that and a part of the next with what
//! undoes it, where that one is larger than the overlay may be. Everything here blocks.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use bytes::Bytes;
use fjall::Snapshot;
use prost::Message;
use tidegate_model::{Block, Entry, Epoch, Position, TableName, TablePatterns};
use tidegate_schema::RowType;
use tokio::sync::watch;

use super::{
    MirrorConfig, MirrorError, MirrorReader,
    change::Joiner,
    correct::Closing,
    cut::View,
    engine::{self, Batch, Engine},
    error::Result,
    index_uses::IndexUses,
    key,
    overlay::{Overlay, Staged},
    table::{self, Index, Pass, Table},
    verify::Check,
};
use crate::RowTypes;

/// What a mirror and its readers share.
pub(crate) struct Shared {
    /// None while there is no mirror.
    pub(crate) view: RwLock<Option<View>>,
    /// The view's; ZERO while there is none.
    pub(crate) position: watch::Sender<Position>,
    /// Counts what may have changed what readers can rely on: tables, snapshots, indexes.
    pub(crate) changed: watch::Sender<u64>,
    /// Asked for, and not begun.
    pub(crate) index_requests: RwLock<Vec<(u32, Vec<u32>)>>,
    /// Which are read by.
    pub(crate) index_uses: Mutex<IndexUses>,
    pub(crate) requested: tokio::sync::Notify,
    /// As the writer keeps them, or is about to.
    pub(crate) tables: RwLock<TablePatterns>,
    /// Others that may be asked for.
    pub(crate) on_demand: TablePatterns,
    /// Those that have been, and are not followed yet.
    pub(crate) table_requests: RwLock<BTreeSet<TableName>>,
    /// Tables that are being compared with PostgreSQL.
    pub(crate) checks: RwLock<Vec<Arc<Check>>>,
}

/// The changelog as a mirror finds it.
#[derive(Clone, Copy, Debug)]
pub struct LogFacts {
    /// The epoch.
    pub epoch: Epoch,
    /// Reading after this position works.
    pub earliest: Position,
    /// Where it ends.
    pub complete: Position,
}

impl LogFacts {
    fn holds_all_after(&self, position: Position) -> bool {
        self.earliest <= position.as_resume_point() && position <= self.complete
    }
}

/// A row type and its key's fields, in column order.
pub(super) struct Known {
    pub(super) row_type: Arc<RowType>,
    pub(super) key: Vec<u32>,
    /// As the mirror keeps it.
    pub(super) name: String,
    /// The table has a name here under which it is mirrored.
    pub(super) is_mirrored: bool,
}

impl Known {
    pub(super) fn new(row_type: &Arc<RowType>, patterns: &TablePatterns) -> Self {
        let is_mirrored = patterns.matches(row_type.name());
        let name = row_type.name().to_string();
        Known { key: table::key_fields(row_type), row_type: Arc::clone(row_type), name, is_mirrored }
    }
}

/// The current rows of a source's mirrored tables. There is one per changelog; its writer owns it.
pub struct Mirror {
    pub(super) config: MirrorConfig,
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    /// By number.
    pub(super) row_types: HashMap<u32, Known>,
    /// By OID, as of the newest record.
    pub(super) tables: HashMap<u32, Table>,
    pub(super) passes: BTreeMap<u32, Pass>,
    /// By number.
    pub(super) indexes: BTreeMap<u32, Index>,
    /// An index that has just been made is built when this transaction is in the engine.
    pub(super) index_after: HashMap<u32, u64>,
    pub(super) joiner: Joiner,
    /// A table that is being closed.
    pub(super) closing: Option<Closing>,
    /// The snapshot whose chunk is being taken; 0 within transactions.
    pub(super) chunk: u32,
    /// Numbers the transaction that is being staged.
    pub(super) transaction: u64,
    /// Of the last transaction that was staged to its end.
    pub(super) complete: Position,
    /// Records up to here were in the engine when it was opened; a replay may bring some of them.
    pub(super) opened_at: Position,
    /// Transactions that are not in the engine, and where they end.
    ends: VecDeque<(u64, Position)>,
    /// A part of this transaction is in the engine.
    spilled: Option<u64>,
    /// The engine at its position.
    at_position: Snapshot,
    /// Something that readers go by has been staged.
    news: bool,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mirror").field("config", &self.config).field("complete", &self.complete).finish_non_exhaustive()
    }
}

impl Mirror {
    /// Opens the mirror of an epoch, for this reader's users. One that does not fit the changelog or cannot be read is dropped.
    /// It has to be brought up to date next, with [`Mirror::replay`] of all after [`Mirror::position`].
    ///
    /// # Errors
    /// The directory or the engine fails.
    pub fn open(config: MirrorConfig, log: LogFacts, row_types: &RowTypes, reader: &MirrorReader) -> Result<Self> {
        // A mirror that is opened again must let go of the files first.
        reader.close();
        reader.shared.fail_checks("the mirror was opened again meanwhile");
        remove_others(&config, log.epoch)?;
        let dir = config.dir.join(log.epoch.to_string());
        let engine = match Engine::open(&dir, config.budgets.cache) {
            Ok(Some(engine)) if log.holds_all_after(engine.position) => Some(engine),
            Ok(Some(engine)) => {
                tracing::warn!(position = %engine.position, earliest = %log.earliest, complete = %log.complete,
                    "the mirror does not fit the changelog; it is dropped, and its tables need a snapshot");
                None
            }
            Ok(None) => None,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                tracing::error!(%error, "the mirror cannot be read; it is dropped, and its tables need a snapshot");
                None
            }
        };
        let engine = match engine {
            Some(engine) => engine,
            None => Engine::create(&dir, config.budgets.cache, log.complete)?,
        };
        let mut mirror = Self::around(engine, config, Arc::clone(&reader.shared), row_types)?;
        mirror.follow_known(row_types)?;
        // Whoever found none looks again.
        mirror.shared.changed.send_modify(|version| *version += 1);
        Ok(mirror)
    }

    /// Takes up tables whose row types were announced before the mirror's position, which it does not come across again: all of
    /// them at first, and later those that the configuration has come to name. What it knows by itself it knows better.
    fn follow_known(&mut self, row_types: &RowTypes) -> Result<()> {
        let patterns = Bytes::from(format!("{:?}", self.config.tables));
        if self.engine.get(key::PATTERNS)?.as_ref() == Some(&patterns) {
            return Ok(());
        }
        let is_unknown = |row_type: &&Arc<RowType>| {
            let (oid, name) = (row_type.proto().table_oid, row_type.name().to_string());
            self.tables.values().all(|table| table.oid != oid && table.name != name)
        };
        let mut newest: Vec<_> = row_types.tables().map(|(_, row_type)| row_type).filter(is_unknown).collect();
        // A table that was renamed has several; the last counts.
        newest.sort_unstable_by_key(|row_type| row_type.proto().row_type);
        for row_type in newest {
            self.follow(row_type)?;
            if let Some(mut table) = self.tables.get(&row_type.proto().table_oid).cloned() {
                // It has not been followed since they began.
                table.passes.clear();
                self.stage_table(table);
            }
        }
        self.stage(Bytes::from_static(key::PATTERNS), Some(patterns));
        self.ends.push_back((self.transaction, self.complete));
        self.transaction += 1;
        self.appended();
        Ok(())
    }

    fn around(engine: Engine, config: MirrorConfig, shared: Arc<Shared>, row_types: &RowTypes) -> Result<Self> {
        let snapshot = engine.snapshot();
        let known = |known: &Arc<RowType>| (known.proto().row_type, Known::new(known, &config.tables));
        let mut mirror = Mirror {
            tables: records(&engine, &snapshot, key::TABLE)?.into_iter().collect(),
            passes: records(&engine, &snapshot, key::PASS)?.into_iter().collect(),
            indexes: records(&engine, &snapshot, key::INDEX)?.into_iter().collect(),
            complete: engine.position,
            opened_at: engine.position,
            row_types: row_types.iter().map(known).collect(),
            config,
            engine,
            shared,
            index_after: HashMap::new(),
            joiner: Joiner::default(),
            closing: None,
            chunk: 0,
            transaction: 1,
            ends: VecDeque::new(),
            spilled: None,
            at_position: snapshot,
            news: false,
        };
        mirror.drop_unfollowed()?;
        mirror.at_position = mirror.engine.snapshot();
        let view = View {
            engine: mirror.engine.clone(),
            base: mirror.at_position.clone(),
            overlay: Overlay::default(),
            shown: 0,
            position: mirror.engine.position,
            row_types: Arc::default(),
        };
        row_types.iter().for_each(|row_type| view.know(row_type));
        *mirror.shared.view.write().unwrap_or_else(PoisonError::into_inner) = Some(view);
        mirror.shared.position.send_replace(mirror.engine.position);
        Ok(mirror)
    }

    /// The state at this position is in the engine; the changelog is needed from here on.
    #[must_use]
    pub fn position(&self) -> Position {
        self.engine.position
    }

    /// Brings it up to date with the changelog: with all that is appended after [`Mirror::position`], in order, in one call or
    /// several. It is fsynced up to `durable`.
    ///
    /// # Errors
    /// The changelog cannot be read, or the engine fails.
    pub fn replay<E: From<MirrorError>>(
        &mut self,
        durable: Position,
        blocks: impl Iterator<Item = std::result::Result<Block, E>>,
    ) -> std::result::Result<(), E> {
        for block in blocks {
            let (block, mut at) = (block?, 0);
            while at < block.entries().len() {
                self.fill(&block, &mut at)?;
            }
            if self.is_full() {
                self.appended();
                self.synced(durable)?;
            }
        }
        self.appended();
        self.synced(durable)?;
        Ok(())
    }

    /// What has been handed out by [`Mirror::fill`] is in the changelog: readers may see it.
    pub fn appended(&mut self) {
        let Some(&(shown, position)) = self.ends.back() else { return };
        {
            let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
            let Some(view) = view.as_mut() else { return };
            // Of a transaction that has been spilled in part, the engine holds one part and the overlay the other.
            if self.spilled.is_some_and(|spilled| view.shown < spilled && spilled <= shown) {
                view.base = self.engine.snapshot();
            }
            (view.shown, view.position) = (shown, position);
        }
        self.shared.position.send_replace(position);
        if std::mem::take(&mut self.news) {
            self.shared.changed.send_modify(|version| *version += 1);
        }
    }

    /// The changelog is fsynced up to here: what it covers goes to the engine.
    ///
    /// # Errors
    /// The engine fails: drop this mirror and open it again.
    pub fn synced(&mut self, durable: Position) -> Result<()> {
        let covered = self.ends.partition_point(|(_, position)| *position <= durable);
        let Some((through, position)) = self.ends.drain(..covered).next_back() else { return Ok(()) };
        let mut batch = self.engine.batch();
        self.read_view(|view| {
            for (key, value) in view.overlay.through(through) {
                self.engine.put(&mut batch, key, value);
            }
        });
        if self.spilled.take_if(|spilled| *spilled <= through).is_some() {
            self.engine.put(&mut batch, &key::dead(&key::undo_prefix(self.engine.undo)), &Some(Bytes::new()));
        }
        self.engine.set_position(&mut batch, position);
        self.engine.commit(batch)?;
        self.at_position = self.engine.snapshot();
        self.write_view(|view, mirror| {
            view.overlay.remove_through(through);
            view.base = mirror.at_position.clone();
            // What must be durable before it is seen is.
            if view.shown < through {
                (view.shown, view.position) = (through, position);
            }
            mirror.shared.position.send_replace(view.position);
        });
        Ok(())
    }

    /// Is there something that is durable and not in the engine?
    #[must_use]
    pub fn is_behind(&self, durable: Position) -> bool {
        self.ends.front().is_some_and(|(_, position)| *position <= durable)
    }

    /// Is there more in memory than may be? Then what has been appended has to be fsynced before more is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.read_view(|view| view.overlay.byte_count()) > self.config.budgets.overlay && !self.ends.is_empty()
    }

    /// Makes what the engine holds survive a power failure; without it, only a crash of this process.
    ///
    /// # Errors
    /// The engine fails.
    pub fn persist(&self) -> Result<()> {
        self.engine.persist()
    }

    /// The newest value of a key.
    pub(super) fn newest(&self, key: &[u8]) -> Result<Staged> {
        match self.read_view(|view| view.overlay.newest(key).cloned()) {
            Some(staged) => Ok(staged),
            None => self.engine.get(key),
        }
    }

    /// Stages a value of the transaction that is being taken.
    pub(super) fn stage(&mut self, key: Bytes, value: Staged) {
        let transaction = self.transaction;
        self.write_view(|view, _| view.overlay.put(key, transaction, value));
    }

    /// Stages what is known of a table.
    pub(super) fn stage_table(&mut self, table: Table) {
        self.news = true;
        self.stage(key::numbered(key::TABLE, table.oid), Some(table.encode_to_vec().into()));
        self.tables.insert(table.oid, table);
    }

    pub(super) fn stage_pass(&mut self, snapshot: u32, pass: Pass) {
        self.stage(key::numbered(key::PASS, snapshot), Some(pass.encode_to_vec().into()));
        self.passes.insert(snapshot, pass);
    }

    pub(super) fn end_pass(&mut self, snapshot: u32) -> Option<Pass> {
        let pass = self.passes.remove(&snapshot)?;
        self.news = true;
        self.stage(key::numbered(key::PASS, snapshot), None);
        Some(pass)
    }

    /// A record that ends something has been staged.
    pub(super) fn end_transaction(&mut self, entry: &Entry) {
        self.complete = entry.position();
        self.ends.push_back((self.transaction, self.complete));
        self.transaction += 1;
    }

    /// Moves a part of the transaction that is being taken to the engine, when it is too large for the overlay.
    pub(super) fn spill_if_large(&mut self) -> Result<()> {
        let large = self.read_view(|view| view.overlay.byte_count()) > self.config.budgets.overlay;
        // What came before has to be in the engine: it is what is undone to.
        if !large || !self.ends.is_empty() {
            return Ok(());
        }
        let undo = key::undo_prefix(self.engine.undo);
        let staged: Vec<(Bytes, Staged)> = self.read_view(|view| {
            view.overlay.through(self.transaction).map(|(key, value)| (key.clone(), value.clone())).collect()
        });
        self.spilled = Some(self.transaction);
        let mut batch = self.engine.batch();
        for (key, value) in &staged {
            let held = self.engine.get_at(&self.at_position, key)?;
            self.engine.put(&mut batch, &key::joined(&undo, key), &Some(engine::undo_value(held)));
            self.engine.put(&mut batch, key, value);
            if batch.is_full() {
                self.engine.commit(std::mem::replace(&mut batch, self.engine.batch()))?;
            }
        }
        self.engine.commit(batch)?;
        let transaction = self.transaction;
        self.write_view(|view, _| view.overlay.remove_through(transaction));
        Ok(())
    }

    /// Writes what is not of the changelog; false while the engine holds a part of a transaction, which may be undone.
    pub(super) fn write_aside(&mut self, write: impl FnOnce(&mut Self) -> Result<Batch>) -> Result<bool> {
        if self.spilled.is_some() {
            return Ok(false);
        }
        let batch = write(self)?;
        self.engine.commit(batch)?;
        self.at_position = self.engine.snapshot();
        Ok(true)
    }

    /// Is a transaction staged in part?
    pub(super) fn is_staging(&self) -> bool {
        self.read_view(|view| view.overlay.holds(self.transaction))
    }

    /// Stages what is of no record of the log, behind all that is staged. No transaction may be staged in part.
    pub(super) fn stage_aside(&mut self, writes: impl IntoIterator<Item = (Bytes, Staged)>) {
        writes.into_iter().for_each(|(key, value)| self.stage(key, value));
        self.ends.push_back((self.transaction, self.complete));
        self.transaction += 1;
    }

    /// The last transaction that is in the engine as a whole.
    pub(super) fn applied(&self) -> u64 {
        self.ends.front().map_or(self.transaction, |(first, _)| *first) - 1
    }

    /// May what is not of the changelog be written?
    pub(super) fn is_unspilled(&self) -> bool {
        self.spilled.is_none()
    }

    /// Shows readers what has been written aside.
    pub(super) fn show_aside(&mut self) {
        self.write_view(|view, mirror| view.base = mirror.at_position.clone());
        self.shared.changed.send_modify(|version| *version += 1);
    }

    pub(super) fn read_view<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        read(view.as_ref().expect("there is a view from open on, until the mirror is dropped"))
    }

    fn write_view(&self, write: impl FnOnce(&mut View, &Self)) {
        let mut view = self.shared.view.write().unwrap_or_else(PoisonError::into_inner);
        write(view.as_mut().expect("there is a view from open on, until the mirror is dropped"), self);
    }

    /// Removes the tables that the configuration no longer names.
    fn drop_unfollowed(&mut self) -> Result<()> {
        let patterns = &self.config.tables;
        let named = |table: &Table| table.name.parse().is_ok_and(|name| patterns.matches(&name));
        let gone: Vec<Table> = self.tables.values().filter(|table| !named(table)).cloned().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let mut batch = self.engine.batch();
        for table in gone {
            for (key, value) in self.forget(&table, false) {
                self.engine.put(&mut batch, &key, &value);
            }
        }
        self.engine.commit(batch)
    }

    /// Forgets a table; what has to be written for it. `is_told`: should it come back, subscribers have its rows, and are told what is
    /// otherwise.
    pub(super) fn forget(&mut self, table: &Table, is_told: bool) -> Vec<(Bytes, Staged)> {
        self.tables.remove(&table.oid);
        let gone = Some(Bytes::new());
        let mut writes = vec![
            (key::numbered(key::TABLE, table.oid), None),
            (key::dead(&table.rows()), gone.clone()),
            // Should the incarnation come back, it must not use what is being removed.
            (key::numbered(key::LIFE, table.oid), Some(key::last_life(table.life, is_told))),
        ];
        writes.extend(table.former_rows().into_iter().map(|rows| (key::dead(&rows), gone.clone())));
        let of_table: Vec<u32> =
            self.indexes.iter().filter(|(_, index)| index.oid == table.oid).map(|(number, _)| *number).collect();
        writes.extend(of_table.into_iter().flat_map(|number| self.forget_index(number, table.life)));
        writes
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.position.send_replace(Position::ZERO);
        *self.shared.view.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.shared.changed.send_modify(|version| *version += 1);
    }
}

/// All records under a tag, by number.
fn records<M: Message + Default>(engine: &Engine, snapshot: &Snapshot, tag: u8) -> Result<Vec<(u32, M)>> {
    let mut records = Vec::new();
    for pair in engine.range(snapshot, &[tag], None) {
        let (key, value) = pair.into_inner()?;
        records.push((key::number(&key)?, table::decode(&value)?));
    }
    Ok(records)
}

/// Removes the mirrors of other epochs, and what a crash has left of one that was being made.
fn remove_others(config: &MirrorConfig, epoch: Epoch) -> Result<()> {
    let cannot = |source| MirrorError::Io { operation: "list", source };
    fs::create_dir_all(&config.dir).map_err(|source| MirrorError::Io { operation: "create", source })?;
    for entry in fs::read_dir(&config.dir).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let path = entry.path();
        let other = path.file_stem().and_then(|name| name.to_str()?.parse::<Epoch>().ok());
        let is_whole = path.extension().is_none_or(|extension| extension != engine::NEW);
        if other.is_some_and(|other| other != epoch || !is_whole) {
            engine::remove_dir(&path)?;
        }
    }
    Ok(())
}
