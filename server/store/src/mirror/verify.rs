//! Compares a table's mirror with PostgreSQL: a snapshot of the table passes by, and each row that it reads is held against the
//! row that the mirror has at that position, before it is taken in.
//!
//! ```text
//! SnapshotBegin ─▶ reads: missing, different ─▶ SnapshotEnd ─▶ sweep: what the pass did not confirm is too many ─▶ done
//! ```
//!
//! This is exact since a snapshot is: what it reads is the row at the chunk's position. What differs is put right by the same
//! pass. A row that is too many and is written again between SnapshotEnd and the sweep, which follows it, is not counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
};

use bytes::Bytes;
use tidegate_schema::RowType;
use tokio::sync::watch;

use super::{Mirror, MirrorReader, apply::Shared, change::Whole, error::Result, key::StoredRow, row, table::Table};

/// Differences that are kept one by one; more are only counted.
const DIFFERENCES_MAX: usize = 10_000;

/// How a row differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// PostgreSQL has it, the mirror had not.
    Missing,
    /// Its values differed.
    Different,
    /// The mirror had it, PostgreSQL has not.
    Extra,
}

/// A row that differed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// How.
    pub kind: DifferenceKind,
    /// The key's fields of the encoded row, in column order.
    pub key: Bytes,
}

/// Where a comparison stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The snapshot reads.
    Reading,
    /// It has ended; what it has not confirmed is looked for.
    Sweeping,
    /// All has been compared.
    Done,
    /// It cannot be said; the reason.
    Failed(&'static str),
}

/// What one snapshot has shown.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Where it stands.
    pub stage: Stage,
    /// Rows that were compared.
    pub row_count: u64,
    /// Of those, how many the mirror has, but not all of their values, which it knows: they are not used.
    pub incomplete_count: u64,
    /// Rows that differed.
    pub difference_count: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// Given to what it confirms.
    generation: u32,
    /// What was live when it began.
    generation_min: u32,
}

/// A table that is being compared.
pub(crate) struct Check {
    table: String,
    /// By number, those that have begun since.
    snapshots: watch::Sender<BTreeMap<u32, Compared>>,
}

/// Compares a table with every snapshot of it that begins, until it is dropped.
pub struct Verification {
    check: Arc<Check>,
    shared: Arc<Shared>,
}

impl MirrorReader {
    /// Compares with the snapshots of the table that begin from now on.
    ///
    /// # Errors
    /// There is no mirror, the table is not complete, or the engine fails.
    pub fn verify(&self, table: &tidegate_model::TableName) -> Result<Verification> {
        let known = self.tables()?.into_iter().find(|known| known.name == *table);
        if !known.as_ref().is_some_and(|known| known.complete) {
            return Err(super::MirrorError::NotComplete(known.map_or(0, |known| known.table_oid)));
        }
        let check = Arc::new(Check { table: table.to_string(), snapshots: watch::Sender::default() });
        self.shared.checks.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&check));
        Ok(Verification { check, shared: Arc::clone(&self.shared) })
    }
}

impl Verification {
    /// What the snapshots have shown so far, by their numbers.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<BTreeMap<u32, Compared>> {
        self.check.snapshots.subscribe()
    }
}

impl Drop for Verification {
    fn drop(&mut self) {
        let mut checks = self.shared.checks.write().unwrap_or_else(PoisonError::into_inner);
        checks.retain(|check| !Arc::ptr_eq(check, &self.check));
    }
}

impl Compared {
    fn differs(&mut self, kind: DifferenceKind, key: Bytes) {
        self.difference_count += 1;
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(Difference { kind, key });
        }
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Reading | Stage::Sweeping)
    }
}

impl Shared {
    /// What has been compared so far counts no more.
    pub(crate) fn fail_checks(&self, reason: &'static str) {
        for check in self.checks.read().unwrap_or_else(PoisonError::into_inner).iter() {
            check.snapshots.send_modify(|snapshots| {
                snapshots.values_mut().filter(|compared| compared.is_open()).for_each(|compared| {
                    compared.stage = Stage::Failed(reason);
                });
            });
        }
    }

    fn checks_of(&self, table: &Table) -> Vec<Arc<Check>> {
        let checks = self.checks.read().unwrap_or_else(PoisonError::into_inner);
        checks.iter().filter(|check| check.table == table.name).cloned().collect()
    }
}

impl Mirror {
    pub(super) fn is_checked(&self, table: &Table) -> bool {
        let checks = self.shared.checks.read().unwrap_or_else(PoisonError::into_inner);
        checks.iter().any(|check| check.table == table.name)
    }

    /// A snapshot of the table begins; the generation is its.
    pub(super) fn check_begins(&self, snapshot: u32, table: &Table) {
        let compared = Compared {
            stage: if table.complete { Stage::Reading } else { Stage::Failed("the table has no complete mirror") },
            row_count: 0,
            incomplete_count: 0,
            difference_count: 0,
            differences: Vec::new(),
            generation: table.generation,
            generation_min: table.generation_min,
        };
        for check in self.shared.checks_of(table) {
            check.snapshots.send_modify(|snapshots| drop(snapshots.insert(snapshot, compared.clone())));
        }
    }

    /// The chunk that is being taken has this row; the mirror has `held`.
    pub(super) fn check_read(
        &self,
        change: &Whole,
        (table, row_type): (&Table, &RowType),
        held: Option<&StoredRow>,
    ) -> Result<()> {
        let key = row::project(&change.row, &table.key)?;
        let live = held.filter(|held| held.generation >= table.generation_min);
        let known = |live: &StoredRow| match self.row_types.get(&live.row_type) {
            Some(from) => row::conform(live, &from.row_type, row_type),
            None => Ok(None),
        };
        let (kind, is_incomplete) = match live.map(known).transpose()? {
            None => (Some(DifferenceKind::Missing), false),
            Some(None) => (None, true),
            Some(Some(row)) => ((row != change.row).then_some(DifferenceKind::Different), false),
        };
        let snapshot = self.chunk;
        for check in self.shared.checks_of(table) {
            check.snapshots.send_modify(|snapshots| {
                let Some(compared) = snapshots.get_mut(&snapshot).filter(|compared| compared.is_open()) else { return };
                compared.row_count += 1;
                compared.incomplete_count += u64::from(is_incomplete);
                kind.into_iter().for_each(|kind| compared.differs(kind, key.clone()));
            });
        }
        Ok(())
    }

    /// The snapshot has ended; did it confirm the whole table?
    pub(super) fn check_ends(&self, snapshot: u32, table: &Table, is_whole: bool) {
        for check in self.shared.checks_of(table) {
            check.snapshots.send_modify(|snapshots| {
                if let Some(compared) = snapshots.get_mut(&snapshot).filter(|compared| compared.is_open()) {
                    let reason = "the table has changed during the snapshot, or the snapshot was given up";
                    compared.stage = if is_whole { Stage::Sweeping } else { Stage::Failed(reason) };
                }
            });
        }
    }

    /// The sweep has found rows that do not count, and may have come to the end of the table.
    pub(super) fn check_swept(&self, table: &Table, stale: &[StoredRow], is_end: bool) -> Result<()> {
        for check in self.shared.checks_of(table) {
            let keys = stale.iter().map(|row| Ok((row.generation, row::project(&row.row, &table.key)?)));
            let keys = keys.collect::<Result<Vec<_>>>()?;
            check.snapshots.send_modify(|snapshots| {
                for compared in snapshots.values_mut().filter(|compared| compared.is_open()) {
                    for (generation, key) in &keys {
                        if *generation >= compared.generation_min && *generation < compared.generation {
                            compared.differs(DifferenceKind::Extra, key.clone());
                        }
                    }
                    let is_through = is_end && table.generation_min >= compared.generation;
                    if is_through && compared.stage == Stage::Sweeping {
                        compared.stage = Stage::Done;
                    }
                }
            });
        }
        Ok(())
    }
}
