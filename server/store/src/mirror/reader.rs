//! The handle through which a mirror is read. It outlives the mirror: while there is none, reads say so.
//!
//! Everything here but the listing of tables blocks on the engine; use a thread that may.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tidegate_model::{Position, TableName, TablePatterns};
use tokio::sync::watch;

use super::{
    MirrorError, MirrorRow, Scan,
    apply::Shared,
    cut::{Cut, View},
    error::Result,
    index::IndexId,
    key::{self, StoredRow},
    table::{self, Index, Table},
};

/// Reads a mirror. Cheap to clone.
#[derive(Clone)]
pub struct MirrorReader {
    pub(crate) shared: Arc<Shared>,
}

/// What there is of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirroredTable {
    /// Its name.
    pub name: TableName,
    /// The incarnation.
    pub table_oid: u32,
    /// All rows are here; changes are filled.
    pub complete: bool,
    /// It has no key, and can have no mirror.
    pub keyless: bool,
    /// Snapshots that run and are going to complete it.
    pub snapshots: Vec<u32>,
    /// The fingerprint of the definition under which a snapshot has confirmed every row; empty where none has.
    pub verified: String,
    /// The name is another table's by now: this one is gone, or has a name that is not known yet.
    pub displaced: bool,
}

/// Rows of a table that a scan reads.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// All of the table's.
    Of(u32),
    /// Those whose indexed fields have exactly these bytes (a projection of the encoded row).
    With(IndexId, &'a [u8]),
}

/// A scan that is to begin: all that has to be known for it at once.
type Begun<'a> = (Cut, Table, Option<(u32, Index, &'a [u8])>);

/// A chunk of rows in a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where the rows were as they are here.
    pub position: Position,
    /// How many there are; fewer than asked for at the table's end.
    pub row_count: u64,
    /// CRC-32 of the rows' lengths and bytes, in the order of their keys' bytes.
    pub crc32: u32,
    /// The last row, to go on behind it; None where there is no row.
    pub last: Option<bytes::Bytes>,
}

impl fmt::Debug for MirrorReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MirrorReader").finish_non_exhaustive()
    }
}

impl MirrorReader {
    /// For a mirror of these tables that is still to be opened. `on_demand`: others that may be asked for.
    #[must_use]
    pub fn new(tables: TablePatterns, on_demand: TablePatterns) -> Self {
        let shared = Shared {
            view: RwLock::new(None),
            position: watch::Sender::new(Position::ZERO),
            changed: watch::Sender::new(0),
            index_requests: RwLock::default(),
            index_uses: Mutex::default(),
            requested: tokio::sync::Notify::new(),
            tables: RwLock::new(tables),
            on_demand,
            table_requests: RwLock::default(),
            checks: RwLock::default(),
        };
        MirrorReader { shared: Arc::new(shared) }
    }

    /// The row with this key (its fields of the encoded row, in column order), and where that is so.
    ///
    /// # Errors
    /// The table is not complete, or the engine fails.
    pub fn get(&self, table_oid: u32, key: &[u8]) -> Result<(Position, Option<MirrorRow>)> {
        let (table, cut) = self.with_view(|view| {
            let table = complete(view, table_oid)?;
            let cut = view.cut_of(&table.row(key));
            Ok((table, cut))
        })?;
        // Not under the lock: this may read from the disk.
        let stored = cut.get(&table.row(key))?.map(StoredRow::decode).transpose()?;
        let live = stored.filter(|stored| stored.generation >= table.generation_min);
        Ok((cut.position, live.map(|row| cut.row(&table, row)).transpose()?))
    }

    /// All rows of a table at one position, in the order of their keys' bytes.
    ///
    /// # Errors
    /// The table is not complete, or the engine fails.
    pub fn scan(&self, table_oid: u32) -> Result<Scan> {
        self.scan_behind(table_oid, None)
    }

    fn scan_behind(&self, table_oid: u32, after: Option<&[u8]>) -> Result<Scan> {
        let (cut, table, _) = self.with_view(|view| begun(view, Rows::Of(table_oid)))?;
        Ok(Scan::rows(cut, table, after))
    }

    /// All of these rows, at one position.
    ///
    /// # Errors
    /// A table or an index is not complete, or the engine fails.
    pub fn scans<'a>(&self, of: impl IntoIterator<Item = Rows<'a>>) -> Result<Vec<Scan>> {
        let begun =
            self.with_view(|view| of.into_iter().map(|rows| begun(view, rows)).collect::<Result<Vec<Begun<'a>>>>())?;
        begun.iter().for_each(|begun| self.uses(begun));
        let scan = |(cut, table, index): Begun<'a>| match index {
            None => Scan::rows(cut, table, None),
            Some((number, index, value)) => Scan::lookup(cut, table, (number, index), (value, None)),
        };
        Ok(begun.into_iter().map(scan).collect())
    }

    /// Its index is read by, if it has one.
    fn uses(&self, (_, _, index): &Begun<'_>) {
        if let Some((number, index, _)) = index {
            self.shared.index_uses.lock().unwrap_or_else(PoisonError::into_inner).used(index.oid, *number);
        }
    }

    /// The checksum of the next `row_count` rows behind one that a checksum has named.
    ///
    /// # Errors
    /// The table is not complete, or the engine fails.
    pub fn checksum(&self, table_oid: u32, after: Option<&[u8]>, row_count: u64) -> Result<Checksum> {
        let mut scan = self.scan_behind(table_oid, after)?;
        let mut hasher = crc32fast::Hasher::new();
        let mut sum = Checksum { position: scan.position(), row_count: 0, crc32: 0, last: None };
        while sum.row_count < row_count {
            let Some((at, row)) = scan.advance()? else { break };
            hasher.update(&(row.row.len() as u64).to_le_bytes());
            hasher.update(&row.row);
            sum.row_count += 1;
            sum.last = Some(at);
        }
        sum.crc32 = hasher.finalize();
        Ok(sum)
    }

    /// The rows whose indexed fields have exactly these bytes (a projection of the encoded row), at one position.
    ///
    /// # Errors
    /// Index or table are not complete, or the engine fails.
    pub fn lookup(&self, index: IndexId, value: &[u8]) -> Result<Scan> {
        Ok(self.lookup_behind(index, value, None)?.0)
    }

    /// Behind a row, whose key is without what all of the table begin with; also how long that is, and the snapshots that run there.
    pub(super) fn lookup_behind(
        &self,
        index: IndexId,
        value: &[u8],
        behind: Option<&[u8]>,
    ) -> Result<(Scan, usize, Cut)> {
        let (begun, passes) = self.with_view(|view| Ok((begun(view, Rows::With(index, value))?, passes(view))))?;
        self.uses(&begun);
        let (cut, table, found) = begun;
        let (number, found, _) = found.expect("these are an index's rows");
        let prefix_len = table.rows().len();
        Ok((Scan::lookup(cut, table, (number, found), (value, behind)), prefix_len, passes))
    }

    /// Every table that the mirror has come across, by the name that it has now. Nothing while there is no mirror.
    ///
    /// # Errors
    /// The engine fails.
    pub fn tables(&self) -> Result<Vec<MirroredTable>> {
        let mut tables = self.incarnations()?;
        tables.retain(|table| !table.displaced);
        Ok(tables)
    }

    /// Every table that the mirror has come across, and those whose names others have by now. Nothing while there is no mirror.
    ///
    /// # Errors
    /// The engine fails.
    pub fn incarnations(&self) -> Result<Vec<MirroredTable>> {
        let records = self.with_view(|view| Ok(view.cut(&[&[key::TABLE]])));
        let cut = match records {
            Err(MirrorError::Closed) => return Ok(Vec::new()),
            other => other?,
        };
        cut.iter(&[key::TABLE], None)
            .map(|record| {
                let table: Table = table::decode(&record?.1)?;
                Ok(MirroredTable {
                    name: table.name.parse().map_err(|_| MirrorError::Damaged("a table's name is malformed"))?,
                    table_oid: table.oid,
                    complete: table.complete,
                    keyless: table.is_keyless(),
                    snapshots: table.passes.into_keys().collect(),
                    verified: table.verified,
                    displaced: table.displaced,
                })
            })
            .collect()
    }

    /// Those of the source's followed tables that are to be mirrored, are not complete, and that no running snapshot is going to
    /// complete: start a snapshot of them.
    ///
    /// # Errors
    /// There is no mirror, or the engine fails.
    pub fn needs_snapshot<'a>(&self, followed: impl IntoIterator<Item = &'a TableName>) -> Result<Vec<TableName>> {
        let running = being_read(&self.with_view(|view| Ok(passes(view)))?)?;
        let known = self.tables()?;
        let needs = |name: &&TableName| match known.iter().find(|table| table.name == **name) {
            Some(table) => !table.complete && !table.keyless && table.snapshots.is_empty(),
            // Nothing has been seen of it; a snapshot that runs will bring it.
            None => !running.contains(&name.to_string()),
        };
        let tables = self.tables_followed();
        let followed = followed.into_iter().filter(|name| tables.matches(name));
        Ok(followed.filter(needs).cloned().collect())
    }

    /// Changes whenever a table, a snapshot or an index may have come to be complete, or needed.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Resolves when a table or an index has been asked for.
    pub(crate) async fn requested(&self) {
        self.shared.requested.notified().await;
    }

    /// Up to where its rows are to be seen; ZERO while there is no mirror, or it is being opened again.
    #[must_use]
    pub fn positions(&self) -> watch::Receiver<Position> {
        self.shared.position.subscribe()
    }

    /// Is the table among those that are to be mirrored?
    #[must_use]
    pub fn follows(&self, table: &TableName) -> bool {
        self.shared.tables.read().unwrap_or_else(PoisonError::into_inner).matches(table)
    }

    /// Which tables are to be mirrored; they become more where others may be asked for.
    #[must_use]
    pub fn tables_followed(&self) -> TablePatterns {
        self.shared.tables.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets go of the mirror.
    pub(crate) fn close(&self) {
        self.shared.position.send_replace(Position::ZERO);
        *self.shared.view.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn with_view<T>(&self, read: impl FnOnce(&View) -> Result<T>) -> Result<T> {
        let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        read(view.as_ref().ok_or(MirrorError::Closed)?)
    }
}

fn begun<'a>(view: &View, rows: Rows<'a>) -> Result<Begun<'a>> {
    match rows {
        Rows::Of(oid) => {
            let table = complete(view, oid)?;
            Ok((view.cut(&[&table.rows()]), table, None))
        }
        Rows::With(IndexId(number), value) => {
            let index = view.index(number)?.filter(|index| index.complete).ok_or(MirrorError::IndexNotComplete)?;
            let table = complete(view, index.oid)?;
            let cut = view.cut(&[&table.rows(), &key::entries_of(number, table.life, value)]);
            Ok((cut, table, Some((number, index, value))))
        }
    }
}

/// The snapshots that run there.
pub(super) fn passes(view: &View) -> Cut {
    view.cut(&[&[key::PASS]])
}

/// The tables that they read, by name.
pub(super) fn being_read(passes: &Cut) -> Result<Vec<String>> {
    let tables = passes.iter(&[key::PASS], None).map(|record| Ok(table::decode::<table::Pass>(&record?.1)?.tables));
    let tables = tables.collect::<Result<Vec<_>>>()?;
    Ok(tables.into_iter().flatten().map(|table| table.name).collect())
}

pub(super) fn complete(view: &View, oid: u32) -> Result<Table> {
    view.table(oid)?.filter(|table| table.complete).ok_or(MirrorError::NotComplete(oid))
}
