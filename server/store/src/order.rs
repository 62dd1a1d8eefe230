//! Decides what becomes of a block that the feed brings. Pure.
//!
//! Invariant: what it lets through is in order, and each block either ends what it holds (a commit or progress is its last
//! record) or completes nothing. So what readers may see always ends with a block, and so does what recovery keeps.

use tidegate_model::{Block, BlockBuilder, MAX_BLOCK_BYTES, Position};

use crate::StoreError;

#[derive(Debug)]
pub(crate) struct Order {
    /// The last record.
    last: Position,
    /// The last complete position.
    complete: Position,
}

impl Order {
    /// Everything up to `complete` is there, and nothing else.
    pub(crate) fn new(complete: Position) -> Self {
        Order { last: complete, complete }
    }

    /// The blocks to append: none for what is there already, two where the block ends within a transaction.
    ///
    /// # Errors
    /// It does not follow what came before, or is too large to be read back.
    pub(crate) fn accept(&mut self, block: Block) -> Result<Vec<Block>, StoreError> {
        if block.entries().is_empty() || block.last() <= self.complete {
            return Ok(Vec::new());
        }
        let found = block.first();
        if found < self.last || found <= self.complete {
            return Err(StoreError::OutOfOrder { last: self.last, found });
        }
        if block.byte_count() > MAX_BLOCK_BYTES {
            return Err(StoreError::TooLarge { position: found, byte_count: block.byte_count() });
        }
        self.last = block.last();
        self.complete = block.complete_through().unwrap_or(self.complete);
        Ok(split(block))
    }
}

pub(crate) fn split(block: Block) -> Vec<Block> {
    match block.entries().iter().rposition(|entry| entry.completes()) {
        Some(at) if at + 1 < block.entries().len() => {
            let (complete, rest) = block.entries().split_at(at + 1);
            [complete, rest].map(|entries| copy(&block, entries)).into()
        }
        Some(_) | None => vec![block],
    }
}

fn copy(block: &Block, entries: &[tidegate_model::Entry]) -> Block {
    let mut builder = BlockBuilder::default();
    for entry in entries {
        builder.push(*entry, &block.payload()[entry.start as usize..entry.end as usize]);
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use tidegate_model::{Entry, Kind, Lsn, Op};

    use super::*;

    fn block(records: &[(u64, u32, Kind)]) -> Block {
        let mut builder = BlockBuilder::default();
        for (lsn, ordinal, kind) in records.iter().copied() {
            let (lsn, op) = (Lsn(lsn), Op::None);
            let entry = Entry { lsn, ordinal, row_type: 0, start: 0, end: 0, kind, op, continues: false };
            builder.push(entry, format!("{lsn}:{ordinal}").as_bytes());
        }
        builder.finish()
    }

    #[test]
    fn a_block_that_ends_within_a_transaction_is_split() {
        let mut order = Order::new(Position::ZERO);
        let records = [
            (5, 0, Kind::Begin),
            (5, 1, Kind::Change),
            (5, 1, Kind::Commit),
            (9, 0, Kind::Begin),
            (9, 1, Kind::Change),
        ];
        let parts = order.accept(block(&records)).unwrap();
        assert_eq!(parts, [block(&records[..3]), block(&records[3..])]);
        assert_eq!(order.accept(block(&[(9, 1, Kind::Commit)])).unwrap().len(), 1);
    }

    #[test]
    fn what_is_there_already_is_dropped() {
        let mut order = Order::new(Position::new(Lsn(5), 1));
        assert_eq!(order.accept(block(&[(4, 0, Kind::Begin), (5, 1, Kind::Commit)])).unwrap(), []);
        assert_eq!(order.accept(block(&[])).unwrap(), []);
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let mut order = Order::new(Position::new(Lsn(5), 1));
        order.accept(block(&[(9, 0, Kind::Begin), (9, 7, Kind::Change)])).unwrap();
        for first in [(5, 1), (4, 0), (9, 0), (9, 6)] {
            let refused = order.accept(block(&[(first.0, first.1, Kind::Begin), (9, 8, Kind::Change)]));
            assert!(matches!(refused, Err(StoreError::OutOfOrder { .. })), "{first:?}");
        }
        assert_eq!(order.accept(block(&[(9, 7, Kind::Change), (9, 7, Kind::Commit)])).unwrap().len(), 1);
    }
}
