//! Turns ended transactions, messages and progress into blocks, in position order.
//!
//! Invariant: positions increase; a row type is announced before its first use; what a transaction contributes stands
//! between its Begin and its Commit; a transaction without a followed change leaves nothing.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, MAX_BLOCK_BYTES, MESSAGE_ORDINAL, Op, Position};
use tidegate_proto::v1;

use crate::{
    CaptureError,
    encode::{ChangeParts, push_change, set_ordinal},
    transaction::{PART_BYTES, Parts},
};

/// A block is finished at this size even within a part of a transaction.
const LARGE_BYTES: usize = MAX_BLOCK_BYTES / 4;

/// Builds blocks.
#[derive(Debug, Default)]
pub(crate) struct Emitter {
    builder: BlockBuilder,
    /// Blocks that were finished while a part was being written: many announcements can make it large.
    full: VecDeque<Block>,
    announcements: HashMap<u32, Bytes>,
    announced: HashSet<u32>,
}

/// A transaction on its way out.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) parts: Parts,
    pub(crate) commit_end_lsn: Lsn,
    pub(crate) commit_time_us: i64,
    pub(crate) xid: u32,
    pub(crate) origin: String,
    /// Of the change before the next one.
    pub(crate) ordinal: u32,
    /// The Begin has been written.
    pub(crate) begun: bool,
    /// The last change of the part before is cut and goes on.
    pub(crate) continues: bool,
}

impl Emitter {
    /// Makes a row type known, to be announced when it is used.
    pub(crate) fn describe(&mut self, row_type: u32, announcement: Bytes) {
        self.announcements.insert(row_type, announcement);
    }

    /// A new epoch starts an empty log; what has not been taken belongs to the old one.
    pub(crate) fn start_epoch(&mut self) {
        self.announced.clear();
        self.full.clear();
        self.builder = BlockBuilder::default();
    }

    /// Writes the next part of a transaction, about 64 KiB at most; false when its Commit has been written.
    ///
    /// # Errors
    /// The spool cannot be read, or the transaction has too many changes to count.
    pub(crate) fn emit_part(&mut self, ended: &mut Ended) -> Result<bool, CaptureError> {
        let Some(mut part) = ended.parts.next().map_err(CaptureError::SpoolRead)? else {
            if ended.begun {
                let position = Position::new(ended.commit_end_lsn, ended.ordinal);
                self.push_commit(position);
            }
            return Ok(false);
        };
        for at in 0..part.entries.len() {
            let entry = part.entries[at];
            if !ended.continues {
                ended.ordinal += 1;
                if ended.ordinal >= MESSAGE_ORDINAL {
                    return Err(CaptureError::TooManyChanges { xid: ended.xid });
                }
            }
            ended.continues = entry.continues;
            if entry.op == Op::None {
                continue;
            }
            if self.builder.byte_count() >= LARGE_BYTES {
                self.full.push_back(self.builder.finish());
            }
            let position = Position::new(ended.commit_end_lsn, ended.ordinal);
            if !ended.begun {
                self.announce(entry.row_type, Position::new(ended.commit_end_lsn, 0));
                self.push_begin(ended);
            } else {
                self.announce(entry.row_type, position);
            }
            set_ordinal(&mut part.payload, &entry, ended.ordinal);
            let moved = Entry { lsn: position.lsn, ordinal: position.ordinal, ..entry };
            self.builder.push(moved, &part.payload[entry.start as usize..entry.end as usize]);
        }
        Ok(true)
    }

    /// Writes a message that stands outside of transactions.
    pub(crate) fn emit_message(&mut self, message_lsn: Lsn, change: &ChangeParts<'_>) {
        let position = Position::new(message_lsn, MESSAGE_ORDINAL);
        let begin = v1::Begin { position: position.to_string(), ..v1::Begin::default() };
        self.push_mark(Kind::Begin, position, &begin.encode_to_vec());
        let first = self.builder.entries.len();
        push_change(change, message_lsn, &mut self.builder);
        for at in first..self.builder.entries.len() {
            let entry = &mut self.builder.entries[at];
            entry.ordinal = MESSAGE_ORDINAL;
            set_ordinal(&mut self.builder.payload, entry, MESSAGE_ORDINAL);
        }
        self.push_commit(position);
    }

    /// States that nothing else happened up to `lsn`.
    pub(crate) fn emit_progress(&mut self, lsn: Lsn) {
        self.push_mark(Kind::Progress, Position::new(lsn, 0), &[]);
    }

    /// The block so far, when it is worth sending.
    pub(crate) fn take_full(&mut self) -> Option<Block> {
        if let Some(block) = self.full.pop_front() {
            return Some(block);
        }
        (self.builder.byte_count() >= PART_BYTES).then(|| self.builder.finish())
    }

    /// The block so far, whatever its size.
    pub(crate) fn take(&mut self) -> Option<Block> {
        if let Some(block) = self.full.pop_front() {
            return Some(block);
        }
        (!self.builder.is_empty()).then(|| self.builder.finish())
    }

    fn announce(&mut self, row_type: u32, position: Position) {
        if row_type == 0 || !self.announced.insert(row_type) {
            return;
        }
        let announcement = self.announcements.get(&row_type).expect("a row type is described before rows are encoded");
        let entry = Entry { row_type, ..mark(Kind::RowType, position) };
        self.builder.push(entry, announcement);
    }

    fn push_begin(&mut self, ended: &mut Ended) {
        ended.begun = true;
        let position = Position::new(ended.commit_end_lsn, 0);
        let begin = v1::Begin {
            position: position.to_string(),
            commit_time: Some(timestamp(ended.commit_time_us)),
            xid: ended.xid,
            origin: ended.origin.clone(),
            snapshot: 0,
        };
        self.push_mark(Kind::Begin, position, &begin.encode_to_vec());
    }

    fn push_commit(&mut self, position: Position) {
        let commit = v1::Commit { position: position.to_string() };
        self.push_mark(Kind::Commit, position, &commit.encode_to_vec());
    }

    fn push_mark(&mut self, kind: Kind, position: Position, payload: &[u8]) {
        self.builder.push(mark(kind, position), payload);
    }
}

fn mark(kind: Kind, position: Position) -> Entry {
    Entry {
        lsn: position.lsn,
        ordinal: position.ordinal,
        row_type: 0,
        start: 0,
        end: 0,
        kind,
        op: Op::None,
        continues: false,
    }
}

fn timestamp(us: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: us.div_euclid(1_000_000),
        nanos: i32::try_from(us.rem_euclid(1_000_000) * 1_000).expect("less than a second"),
    }
}
