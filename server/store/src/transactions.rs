//! Notices which transaction is the newest complete one. Pure.
//!
//! It relies on [`crate::order`]: a block either ends what it holds or completes nothing. Messages outside of transactions
//! do not count; they are told by their ordinal.

use prost::Message;
use tidegate_model::{Block, Entry, Kind, TransactionId};
use tidegate_proto::v1;
use tidegate_schema::event_body;

use crate::StoreError;

#[derive(Debug, Default)]
pub(crate) struct Transactions {
    /// Has begun in an earlier block and is not complete.
    begun: Option<TransactionId>,
    newest: Option<TransactionId>,
}

impl Transactions {
    /// Decodes at most one Begin of the block: the last.
    pub(crate) fn observe(&mut self, block: &Block) -> Result<(), StoreError> {
        let begins = |entry: &&Entry| entry.kind == Kind::Begin && entry.ordinal == 0;
        if let Some(begin) = block.entries().iter().rev().find(begins) {
            self.begun = Some(decode(block, begin)?);
        }
        if block.entries().last().is_some_and(Entry::completes) {
            self.newest = self.begun.take().or(self.newest);
        }
        Ok(())
    }

    /// The transaction that has begun and is not complete.
    pub(crate) fn begun(&self) -> Option<TransactionId> {
        self.begun
    }

    /// The newest complete transaction so far.
    pub(crate) fn newest(&self) -> Option<TransactionId> {
        self.newest
    }
}

fn decode(block: &Block, entry: &Entry) -> Result<TransactionId, StoreError> {
    let malformed = |reason: String| StoreError::Record { position: entry.position(), message: "Begin", reason };
    let field = block.slice(entry);
    let body = event_body(&field).map_err(|error| malformed(error.to_string()))?;
    let begin = v1::Begin::decode(body).map_err(|error| malformed(error.to_string()))?;
    let commit_time = begin.commit_time.unwrap_or_default();
    let commit_time_us =
        commit_time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(commit_time.nanos) / 1000);
    Ok(TransactionId { commit_end_lsn: entry.lsn, xid: begin.xid, commit_time_us })
}
