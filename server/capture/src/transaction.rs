//! A transaction that is still in progress: its encoded changes, in memory up to a budget and then on disk.
//!
//! ```text
//! spooled (file)  ◀── sealed (memory) ◀── open (memory, ≤ 64 KiB)
//! ```
//!
//! Parts keep their order: all that is spooled precedes all that is sealed, which precedes what is open. An entry's LSN
//! holds the subtransaction's xid until the commit; changes of aborted subtransactions are left out only then, since
//! an abort may name any of them at any time. The spool file has no name: it is gone with the process.

use std::{collections::HashSet, fs::File, io, os::unix::fs::FileExt, path::Path};

use bytes::BytesMut;
use tidegate_model::{BlockBuilder, Entry, Kind, Lsn, Op};
use tidegate_schema::Room;

use crate::snapshot::TableSet;

/// A part is sealed when it is larger than this; also the size of the blocks that the feed carries.
pub(crate) const PART_BYTES: usize = 64 << 10;

/// The changes of one top-level transaction so far.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// Top-level xid, without epoch.
    pub(crate) xid: u32,
    /// Replication origin, or empty.
    pub(crate) origin: String,
    /// Followed tables with a change, be it of a subtransaction that was rolled back.
    pub(crate) tables: TableSet,
    /// It says that it changes the schema; perhaps in a subtransaction that was rolled back.
    pub(crate) announces_ddl: bool,
    aborted: HashSet<u32>,
    spool: Option<Spool>,
    sealed: Vec<BlockBuilder>,
    sealed_bytes: usize,
    open: BlockBuilder,
}

/// Parts on disk.
#[derive(Debug)]
struct Spool {
    file: File,
    /// Offset and length of each part.
    parts: Vec<(u64, usize)>,
    end: u64,
}

impl Room for Transaction {
    fn room(&mut self) -> &mut BlockBuilder {
        if self.open.byte_count() >= PART_BYTES {
            let full = std::mem::take(&mut self.open);
            self.sealed_bytes += full.byte_count();
            self.sealed.push(full);
        }
        &mut self.open
    }
}

impl Transaction {
    /// An empty transaction.
    pub(crate) fn new(xid: u32) -> Self {
        Transaction { xid, ..Transaction::default() }
    }

    /// Counts a change that nobody follows: it takes an ordinal like any other.
    pub(crate) fn count_unfollowed(&mut self, tag: Lsn) {
        let builder = self.room();
        let at = builder.offset();
        builder.entries.push(Entry {
            lsn: tag,
            ordinal: 0,
            row_type: 0,
            start: at,
            end: at,
            kind: Kind::Change,
            op: Op::None,
            continues: false,
        });
    }

    /// A subtransaction has been rolled back.
    pub(crate) fn abort(&mut self, subxid: u32) {
        self.aborted.insert(subxid);
    }

    /// Bytes that `spill` would free.
    pub(crate) fn spillable_bytes(&self) -> usize {
        self.sealed_bytes
    }

    /// Moves the sealed parts to the spool file, which is made in `dir`.
    ///
    /// # Errors
    /// The disk is full or broken; the transaction is then unusable.
    pub(crate) fn spill(&mut self, dir: &Path) -> io::Result<()> {
        let spool = match &mut self.spool {
            Some(spool) => spool,
            None => self.spool.insert(Spool { file: tempfile::tempfile_in(dir)?, parts: Vec::new(), end: 0 }),
        };
        for part in self.sealed.drain(..) {
            let bytes = part.encode();
            spool.file.write_all_at(&bytes, spool.end)?;
            spool.parts.push((spool.end, bytes.len()));
            spool.end += bytes.len() as u64;
        }
        self.sealed_bytes = 0;
        Ok(())
    }

    /// The transaction has ended: its parts in order, without what was rolled back.
    pub(crate) fn into_parts(self) -> Parts {
        Parts {
            aborted: self.aborted,
            spool: self.spool,
            next_spooled: 0,
            sealed: self.sealed.into_iter(),
            open: Some(self.open),
        }
    }
}

/// The parts of an ended transaction, read back one at a time.
#[derive(Debug)]
pub(crate) struct Parts {
    aborted: HashSet<u32>,
    spool: Option<Spool>,
    next_spooled: usize,
    sealed: std::vec::IntoIter<BlockBuilder>,
    open: Option<BlockBuilder>,
}

impl Parts {
    /// The next part; the LSNs of its entries are still subtransactions.
    ///
    /// # Errors
    /// The spool file cannot be read.
    pub(crate) fn next(&mut self) -> io::Result<Option<BlockBuilder>> {
        let part = match self.next_spooled()? {
            Some(part) => Some(part),
            None => self.sealed.next().or_else(|| self.open.take()),
        };
        Ok(part.map(|part| without_aborted(part, &self.aborted)))
    }

    fn next_spooled(&mut self) -> io::Result<Option<BlockBuilder>> {
        let Some(spool) = &self.spool else { return Ok(None) };
        let Some(&(offset, len)) = spool.parts.get(self.next_spooled) else { return Ok(None) };
        let mut bytes = BytesMut::zeroed(len);
        spool.file.read_exact_at(&mut bytes, offset)?;
        self.next_spooled += 1;
        BlockBuilder::decode(bytes.freeze()).map(Some).map_err(io::Error::other)
    }
}

/// Payloads of what is kept are moved together, so that neighbouring changes still touch.
fn without_aborted(part: BlockBuilder, aborted: &HashSet<u32>) -> BlockBuilder {
    let is_aborted = |entry: &Entry| aborted.contains(&(entry.lsn.0 as u32));
    if aborted.is_empty() || !part.entries.iter().any(is_aborted) {
        return part;
    }
    let mut kept = BlockBuilder::default();
    for entry in part.entries.iter().filter(|entry| !is_aborted(entry)) {
        kept.push(*entry, &part.payload[entry.start as usize..entry.end as usize]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidegate_schema::{ChangeParts, Extra, OldKind, push_change};

    fn row_of(part: &BlockBuilder, entry: &Entry) -> Vec<u8> {
        part.payload[entry.start as usize..entry.end as usize].to_vec()
    }

    proptest! {
        #[test]
        fn spilling_changes_nothing_and_aborted_subtransactions_leave_nothing(
            changes in proptest::collection::vec((1_u32..5, 0_usize..40_000, any::<bool>()), 0..40),
            aborted in proptest::collection::hash_set(1_u32..5, 0..3),
        ) {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (mut spilled, mut kept) = (Transaction::new(1), Transaction::new(1));
            for (n, (subxid, len, spill)) in changes.iter().enumerate() {
                let row = vec![n as u8; *len];
                let change = ChangeParts { op: Op::Insert, row_type: 1, row: &row, old: &[], old_kind: OldKind::None,
                    unchanged: &[], extra: Extra::None };
                for transaction in [&mut spilled, &mut kept] {
                    push_change(&change, Lsn(u64::from(*subxid)), transaction);
                }
                if *spill {
                    spilled.spill(dir.path()).expect("disk space");
                }
            }
            for subxid in &aborted {
                spilled.abort(*subxid);
                kept.abort(*subxid);
            }
            let read = |transaction: Transaction| {
                let mut parts = transaction.into_parts();
                let mut rows = Vec::new();
                while let Some(part) = parts.next().expect("readable") {
                    rows.extend(part.entries.iter().map(|entry| (entry.lsn, row_of(&part, entry))));
                }
                rows
            };
            let (spilled, kept) = (read(spilled), read(kept));
            prop_assert_eq!(&spilled, &kept);
            let expected: Vec<u64> = changes.iter().map(|change| change.0).filter(|xid| !aborted.contains(xid)).map(u64::from).collect();
            prop_assert_eq!(kept.iter().map(|row| row.0.0).collect::<Vec<_>>(), expected);
        }
    }
}
