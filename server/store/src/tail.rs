//! The newest blocks, in memory, shared by all readers that are caught up.
//!
//! Invariant: the blocks are a gapless end of the log, and their bytes stay within the bound. When it is full the oldest
//! leave: a reader that still needs them finds them in the segments. It deliberately knows nothing of who reads.

use std::collections::VecDeque;

use tidegate_model::Position;

use crate::segment::Placed;

/// What a block costs besides its bytes.
const BLOCK_BYTES: usize = 128;

#[derive(Debug)]
pub(crate) struct Tail {
    blocks: VecDeque<Placed>,
    byte_count: usize,
    bytes_max: usize,
    /// Offset from which on everything is here.
    start: u64,
    /// Offset behind the newest block.
    end: u64,
    /// Last position before `start`.
    before: Position,
}

impl Tail {
    /// An empty tail of a log that ends at `end`, with the record at `before`.
    pub(crate) fn new(bytes_max: usize, end: u64, before: Position) -> Self {
        Tail { blocks: VecDeque::new(), byte_count: 0, bytes_max, start: end, end, before }
    }

    pub(crate) fn push(&mut self, placed: Placed) {
        self.byte_count += placed.block.byte_count() + BLOCK_BYTES;
        self.end = placed.end;
        self.blocks.push_back(placed);
        while self.byte_count > self.bytes_max
            && let Some(oldest) = self.blocks.pop_front()
        {
            self.byte_count -= oldest.block.byte_count() + BLOCK_BYTES;
            self.start = oldest.end;
            self.before = oldest.block.last();
        }
    }

    /// Does it hold all that follows the offset?
    pub(crate) fn covers(&self, offset: u64) -> bool {
        offset >= self.start
    }

    /// The first block at or behind the offset, which must be covered.
    pub(crate) fn at(&self, offset: u64) -> Option<&Placed> {
        self.blocks.get(self.blocks.partition_point(|placed| placed.start < offset))
    }

    /// Where the first block lies that holds anything after `after`; None if that may be before the tail.
    pub(crate) fn locate(&self, after: Position) -> Option<u64> {
        if after < self.before {
            return None;
        }
        let at = self.blocks.partition_point(|placed| placed.block.last() <= after);
        Some(self.blocks.get(at).map_or(self.end, |placed| placed.start))
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::{BlockBuilder, Entry, Kind, Lsn, Op};

    use super::*;

    fn placed(start: u64, lsn: u64) -> Placed {
        let mut builder = BlockBuilder::default();
        let (kind, op) = (Kind::Commit, Op::None);
        let entry = Entry { lsn: Lsn(lsn), ordinal: 1, row_type: 0, start: 0, end: 0, kind, op, continues: false };
        builder.push(entry, b"");
        Placed { start, end: start + 10, block: builder.finish() }
    }

    fn position(lsn: u64) -> Position {
        Position::new(Lsn(lsn), 1)
    }

    #[test]
    fn the_oldest_leave_when_it_is_full() {
        let each = placed(0, 1).block.byte_count() + BLOCK_BYTES;
        let mut tail = Tail::new(2 * each, 100, position(1));
        assert_eq!(tail.locate(position(1)), Some(100));
        for n in 0..3 {
            tail.push(placed(100 + 10 * n, 2 + n));
        }
        assert!(!tail.covers(100) && tail.covers(110));
        assert_eq!(tail.at(110).unwrap().block.last(), position(3));
        assert!(tail.at(130).is_none());
        assert_eq!(tail.locate(position(1)), None);
        assert_eq!(tail.locate(position(2)), Some(110));
        assert_eq!(tail.locate(position(9)), Some(130));
    }

    #[test]
    fn a_gap_for_a_segments_header_is_stepped_over() {
        let mut tail = Tail::new(1 << 20, 100, position(1));
        tail.push(placed(100, 2));
        tail.push(placed(158, 3));
        assert_eq!(tail.at(110).unwrap().start, 158);
    }

    #[test]
    fn a_block_beyond_the_bound_passes_through() {
        let mut tail = Tail::new(0, 100, position(1));
        tail.push(placed(100, 2));
        assert!(tail.covers(110) && !tail.covers(100) && tail.at(110).is_none());
    }
}
