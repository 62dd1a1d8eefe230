//! A pass over a table without a key: by ranges of blocks, all under one snapshot of PostgreSQL.
//!
//! Invariant: a place belongs to one pass; after another snapshot was taken, no chunk goes on from it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tidegate_postgres::snapshot::{Fingerprint, Range, SharedSnapshot};

use super::job::Place;

/// The snapshot that the pass reads under. It holds VACUUM back until it is dropped.
#[derive(Debug)]
pub(crate) struct SharedPass {
    pub(crate) shared: SharedSnapshot,
    /// What the table was when the snapshot was taken.
    pub(crate) fingerprint: Fingerprint,
    /// Of the stream's connections, the one beside which it was taken.
    pub(crate) connection: u64,
    /// The attempt that it was taken for, which tells its places from those of others.
    pub(crate) attempt: u32,
}

impl SharedPass {
    /// Where the first range starts.
    pub(crate) fn start(&self) -> Place {
        start_of(self.attempt, self.shared.blocks())
    }

    /// Does the place belong to this pass?
    pub(crate) fn has(&self, place: &Place) -> bool {
        self.read_place(place).is_some()
    }

    /// The range that starts there, of so many blocks at most, and the place behind it. None for a place of another pass.
    pub(crate) fn range(&self, from: &Place, block_limit: u32) -> Option<(Range, Place)> {
        let (at, from) = self.read_place(from)?;
        let (table_oid, block_count) = *self.shared.blocks().get(at)?;
        let to = from.saturating_add(block_limit.max(1)).min(block_count);
        Some((Range::Blocks { table_oid, from, to }, self.place(at, to)))
    }

    /// This block of the `at`th table that holds rows, or the first behind it.
    fn place(&self, at: usize, block: u32) -> Place {
        place_of(self.attempt, self.shared.blocks(), (at, block))
    }

    fn read_place(&self, place: &Place) -> Option<(usize, u32)> {
        read_place(self.attempt, place)
    }
}

/// Of tables that have no blocks at all, one range is read nevertheless: whoever reads it finds out whether the table is still the one
/// whose rows the snapshot sees.
fn start_of(attempt: u32, blocks: &[(u32, u32)]) -> Place {
    match place_of(attempt, blocks, (0, 0)) {
        Place::End if !blocks.is_empty() => place_at(attempt, (0, 0)),
        place @ (Place::Start | Place::After(_) | Place::End) => place,
    }
}

fn place_of(attempt: u32, blocks: &[(u32, u32)], (at, block): (usize, u32)) -> Place {
    let behind = blocks.iter().enumerate().skip(at).map(|(index, (_, count))| {
        let block = if index == at { block } else { 0 };
        (index, block, *count)
    });
    let mut behind = behind.filter(|(_, block, count)| block < count);
    behind.next().map_or(Place::End, |(index, block, _)| place_at(attempt, (index, block)))
}

fn place_at(attempt: u32, (index, block): (usize, u32)) -> Place {
    let mut out = BytesMut::with_capacity(12);
    out.put_u32_le(attempt);
    out.put_u32_le(u32::try_from(index).expect("a table has fewer partitions than there are OIDs"));
    out.put_u32_le(block);
    Place::After(out.freeze())
}

fn read_place(attempt: u32, place: &Place) -> Option<(usize, u32)> {
    let Place::After(bytes) = place else { return None };
    let mut bytes: Bytes = bytes.clone();
    let of = bytes.try_get_u32_le().ok()?;
    let (at, block) = (bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?);
    (of == attempt && bytes.is_empty()).then_some((at as usize, block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_tables_are_passed_over_and_a_place_is_of_its_pass_only() {
        let blocks = [(1, 0), (2, 5), (3, 0), (4, 1)];
        let after = |at, block| place_of(7, &blocks, (at, block));
        let read = |place: &Place| read_place(7, place);
        assert_eq!(read(&after(0, 0)), Some((1, 0)));
        assert_eq!(read(&after(1, 4)), Some((1, 4)));
        assert_eq!(read(&after(1, 5)), Some((3, 0)));
        assert_eq!(after(3, 1), Place::End);
        assert_eq!(place_of(7, &[], (0, 0)), Place::End);
        let start = |blocks: &[(u32, u32)]| read(&start_of(7, blocks));
        assert_eq!((start(&blocks), start(&[(1, 0), (2, 0)]), start(&[])), (Some((1, 0)), Some((0, 0)), None));
        assert_eq!((read_place(8, &after(1, 4)), read(&Place::Start), read(&Place::End)), (None, None, None));
    }
}
