//! The key-value engine (fjall): two keyspaces, written by one thread, in batches that are atomic over both and stay in order.
//!
//! Rows and index entries lie in one of them, everything else in the other: the position is written with every batch, and would
//! stand at the beginning of each of the engine's files. So files of rows that are read in the order of their keys do not overlap, and
//! are moved down the levels without being written again.
//!
//! Known about fjall 3.1, and why it is used as it is: a keyspace that idles keeps the journal from being trimmed (its issue 288),
//! until the journals are [`JOURNALS_BYTES`]: then what it holds is flushed, however little it is. The journal is fsynced before
//! what it covers is flushed (329), so that a power failure leaves neither keyspace ahead of the other. `clear` had lost its mark
//! on recovery (241), so neither is ever cleared. A commit waits without end for a flush thread that has died of an I/O error
//! (257), so room is awaited before the commit, where a failure is noticed.
//!
//! Batches are not fsynced one by one: after a power failure the engine is at an older position, and the changelog is replayed.

use std::{
    fs::{self, File},
    io,
    path::Path,
    thread,
    time::Duration,
};

use bytes::Bytes;
use fjall::{Database, Iter, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot};
use prost::Message;
use tidegate_model::{Lsn, Position};

use super::{
    error::{MirrorError, Result},
    key,
    overlay::Staged,
};

/// Of what the mirror has written.
const VERSION: u32 = 2;
/// Memory of one memtable; up to four are held while flushing lags.
const MEMTABLE_BYTES: u64 = 32 << 20;
/// The same, of what is not rows.
const RECORDS_MEMTABLE_BYTES: u64 = 4 << 20;
/// Journals on the disk, after which whatever keeps the oldest of them is flushed.
const JOURNALS_BYTES: u64 = 128 << 20;
/// Above these a commit might wait inside of the engine.
const SEALED_MAX: usize = 2;
const TABLES_MAX: usize = 18;
/// Ends the name of a directory that is being made.
pub(crate) const NEW: &str = "new";
/// A batch is written at this size, in bytes.
pub(crate) const BATCH_BYTES: usize = 4 << 20;

/// The record about the whole.
#[derive(Clone, PartialEq, prost::Message)]
struct About {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    lsn: u64,
    #[prost(uint32, tag = "3")]
    ordinal: u32,
    #[prost(uint64, tag = "4")]
    undo: u64,
}

#[derive(Clone)]
pub(crate) struct Engine {
    database: Database,
    /// Of what is not rows.
    records: Keyspace,
    rows: Keyspace,
    /// The state at this position is there.
    pub(crate) position: Position,
    /// Number of the undo records that count.
    pub(crate) undo: u64,
}

/// An atomic batch, written in order after all before it.
pub(crate) struct Batch {
    inner: OwnedWriteBatch,
    byte_count: usize,
}

impl Engine {
    /// Opens the directory, undoes what an unfinished transaction has left, and says where it is; None where there is none.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<Option<Self>> {
        if !dir.exists() {
            return Ok(None);
        }
        let mut engine = Self::connect(dir, cache_bytes)?;
        let Some(bytes) = engine.get(key::ABOUT)? else { return Ok(None) };
        let about = About::decode(bytes).map_err(|_| MirrorError::Damaged("its head is malformed"))?;
        if about.version != VERSION {
            return Err(MirrorError::Damaged("another release has written it"));
        }
        engine.position = Position::new(Lsn(about.lsn), about.ordinal);
        engine.undo = about.undo;
        engine.roll_back()?;
        Ok(Some(engine))
    }

    /// Makes the directory anew, with nothing in it, at a position. Under another name first: what a crash leaves of one that is being
    /// made cannot be opened.
    pub(crate) fn create(dir: &Path, cache_bytes: u64, position: Position) -> Result<Self> {
        let new = dir.with_extension(NEW);
        remove_dir(&new)?;
        remove_dir(dir)?;
        let mut engine = Self::connect(&new, cache_bytes)?;
        let mut batch = engine.batch();
        engine.set_position(&mut batch, position);
        engine.commit(batch)?;
        engine.persist()?;
        let undo = engine.undo;
        drop(engine);
        fs::rename(&new, dir).map_err(|source| MirrorError::Io { operation: "rename", source })?;
        // As much as what it holds, its name has to survive a power failure.
        let synced = File::open(parent_of(dir)).and_then(|parent| parent.sync_all());
        synced.map_err(|source| MirrorError::Io { operation: "sync", source })?;
        let engine = Self::connect(dir, cache_bytes)?;
        Ok(Engine { position, undo, ..engine })
    }

    fn connect(dir: &Path, cache_bytes: u64) -> Result<Self> {
        fs::create_dir_all(parent_of(dir)).map_err(|source| MirrorError::Io { operation: "create", source })?;
        let builder = Database::builder(dir).cache_size(cache_bytes).worker_threads(2);
        let database = builder.max_journaling_size(JOURNALS_BYTES).open()?;
        let options = |memtable_bytes| KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes);
        let records = database.keyspace("records", || options(RECORDS_MEMTABLE_BYTES))?;
        let rows = database.keyspace("rows", || options(MEMTABLE_BYTES))?;
        Ok(Engine { database, records, rows, position: Position::ZERO, undo: 0 })
    }

    /// Where a key lies, and all that begin with it.
    fn keyspace(&self, key: &[u8]) -> &Keyspace {
        if key::is_of_rows(key) { &self.rows } else { &self.records }
    }

    /// The newest value.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.keyspace(key).get(key)?.map(Bytes::from))
    }

    /// The value that a snapshot sees.
    pub(crate) fn get_at(&self, snapshot: &Snapshot, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(snapshot.get(self.keyspace(key), key)?.map(Bytes::from))
    }

    /// What a snapshot sees behind `after` (not itself) and with the prefix, in order.
    pub(crate) fn range(&self, snapshot: &Snapshot, prefix: &[u8], after: Option<&[u8]>) -> Iter {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = after.map_or(Included(prefix), Excluded);
        let end = following(prefix);
        snapshot.range::<&[u8], _>(self.keyspace(prefix), (start, end.as_deref().map_or(Unbounded, Excluded)))
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.database.snapshot()
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch { inner: self.database.batch(), byte_count: 0 }
    }

    pub(crate) fn put(&self, batch: &mut Batch, key: &Bytes, value: &Staged) {
        batch.byte_count += key.len() + value.as_ref().map_or(0, Bytes::len) + 32;
        match value {
            Some(value) => batch.inner.insert(self.keyspace(key), key.clone(), value.clone()),
            None => batch.inner.remove(self.keyspace(key), key.clone()),
        }
    }

    /// The batch brings the state to this position; what could be undone no longer can.
    pub(crate) fn set_position(&mut self, batch: &mut Batch, position: Position) {
        self.position = position;
        self.undo += 1;
        let about =
            About { version: VERSION, lsn: position.lsn.0, ordinal: position.ordinal, undo: self.undo }.encode_to_vec();
        self.put(batch, &Bytes::from_static(key::ABOUT), &Some(about.into()));
    }

    pub(crate) fn commit(&self, batch: Batch) -> Result<()> {
        let is_full = |keyspace: &Keyspace| {
            keyspace.sealed_memtable_count() > SEALED_MAX || keyspace.l0_table_count() > TABLES_MAX
        };
        while is_full(&self.rows) || is_full(&self.records) {
            // Fails once a flush or compaction has failed.
            self.database.persist(PersistMode::Buffer)?;
            thread::sleep(Duration::from_millis(2));
        }
        Ok(batch.inner.commit()?)
    }

    /// Fsyncs what has been written.
    pub(crate) fn persist(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    /// Brings the state back to the position. May be cut off and done again.
    fn roll_back(&mut self) -> Result<()> {
        let prefix = key::undo_prefix(self.undo);
        let snapshot = self.snapshot();
        let mut batch = self.batch();
        let mut any = false;
        for pair in self.range(&snapshot, &prefix, None) {
            let (undo, value) = pair.into_inner()?;
            let (undo, value) = (Bytes::from(undo), Bytes::from(value));
            let held = match value.first() {
                Some(0) => None,
                Some(1) => Some(value.slice(1..)),
                Some(_) | None => return Err(MirrorError::Damaged("an undo record is malformed")),
            };
            self.put(&mut batch, &undo.slice(prefix.len()..), &held);
            any = true;
            if batch.byte_count >= BATCH_BYTES {
                self.commit(std::mem::replace(&mut batch, self.batch()))?;
            }
        }
        if any {
            self.put(&mut batch, &key::dead(&prefix), &Some(Bytes::new()));
            self.set_position(&mut batch, self.position);
            self.commit(batch)?;
        }
        Ok(())
    }
}

impl Batch {
    pub(crate) fn is_full(&self) -> bool {
        self.byte_count >= BATCH_BYTES
    }
}

pub(crate) fn parent_of(dir: &Path) -> &Path {
    dir.parent().unwrap_or(dir)
}

/// What an undo record holds.
pub(crate) fn undo_value(held: Staged) -> Bytes {
    match held {
        None => Bytes::from_static(&[0]),
        Some(value) => key::joined(&[1], &value),
    }
}

/// The first key behind all that start with the prefix.
fn following(prefix: &[u8]) -> Option<Vec<u8>> {
    let at = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=at].to_vec();
    end[at] += 1;
    Some(end)
}

/// Removes the directory, if there is one.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(MirrorError::Io { operation: "remove", source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
