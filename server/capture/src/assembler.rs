//! From pgoutput's messages to whole transactions: pure but for the spool files.
//!
//! ```text
//! Begin … Commit ───────────────────▶ plain ────┐
//! StreamStart … StreamStop, repeated ▶ streams ─┴▶ Ended ─▶ Emitter ─▶ blocks
//! ```
//!
//! Invariant: a transaction leaves only at its commit, once, in commit order; what was received before (position at or before
//! `resume_after`) is left out, after its identity was compared with what is stored.

use std::{collections::HashMap, path::PathBuf};

use bytes::BytesMut;
use tidegate_model::{Block, BlockBuilder, Lsn, Op, Position, Relation, TableName, TransactionId};
use tidegate_postgres::{
    DDL_MESSAGE_PREFIX, OldRows,
    pgoutput::{Message, OldTupleKind, Tuple, TupleValue},
};
use tidegate_schema::{ChangeParts, Extra, OldKind, Value, push_change};

use crate::{
    CaptureError, Place, Undeliverable,
    continuity::Discontinuity,
    emitter::{Emitter, Ended},
    snapshot::{Decoded, Label},
    table::{Followed, TableCodec},
    transaction::{Parts, Transaction},
};

/// Logical messages with a longer prefix are left out.
const PREFIX_BYTES: usize = 64 << 10;

/// Assembles the transactions of one connection at a time.
#[derive(Debug)]
pub(crate) struct Assembler {
    relations: HashMap<u32, Followed>,
    plain: Option<Transaction>,
    streams: HashMap<u32, Transaction>,
    current_stream: Option<u32>,
    emitter: Emitter,
    /// Start of the commit record of `plain`.
    final_lsn: Lsn,
    /// Of the relations described on this connection.
    names: HashMap<u32, TableName>,
    /// The relation that was described last, or whose row is being encoded; None once something else has followed.
    row_of: Option<u32>,
    /// The relation of the last row of the open transaction.
    last_row_of: Option<u32>,
    resume_after: Position,
    expected: Option<TransactionId>,
    /// Between this and `resume_after`, as they were when the connection began, there is no followed change.
    known_end_lsn: Lsn,
    spool: SpoolConfig,
    scratch: Scratch,
}

/// Where and when transactions in progress go to disk.
#[derive(Clone, Debug)]
pub(crate) struct SpoolConfig {
    /// Directory for the files.
    pub(crate) dir: PathBuf,
    /// Bytes of changes in memory, over all transactions.
    pub(crate) memory_budget_bytes: usize,
}

/// Rows under construction; kept to keep their memory.
#[derive(Debug, Default)]
struct Scratch {
    row: BytesMut,
    old: BytesMut,
    unchanged: Vec<u32>,
}

/// What a message asks for.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing.
    Done,
    /// Look the relation up and call `set_relation` before the next message.
    Resolve(Relation),
    /// Call `emit_part` until it is false; then everything up to this place is out.
    Emit(Box<Ended>, ConfirmPoint),
    /// A message outside of transactions is out.
    Emitted(ConfirmPoint),
    /// A transaction has come again, with these parts.
    Again(Decoded, Parts),
}

/// When `position` is durable, PostgreSQL may be told `confirm_lsn`: the *start* of the last commit record, so that this
/// transaction is sent again at the next start and its identity can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfirmPoint {
    pub(crate) position: Position,
    pub(crate) confirm_lsn: Lsn,
}

/// The facts of a commit.
struct Commit {
    commit_lsn: Lsn,
    commit_end_lsn: Lsn,
    commit_time_us: i64,
}

impl Assembler {
    /// Starts after what is stored already.
    pub(crate) fn new(resume_after: Position, spool: SpoolConfig) -> Self {
        Assembler {
            relations: HashMap::new(),
            plain: None,
            streams: HashMap::new(),
            current_stream: None,
            emitter: Emitter::default(),
            final_lsn: Lsn::ZERO,
            names: HashMap::new(),
            row_of: None,
            last_row_of: None,
            resume_after: resume_after.as_resume_point(),
            expected: None,
            known_end_lsn: Lsn::ZERO,
            spool,
            scratch: Scratch::default(),
        }
    }

    /// A connection begins: everything unfinished is sent again. `expected` must come before anything new, and what comes
    /// again beyond `known_end_lsn`, the end of the last transaction that was received, can hold no followed change.
    pub(crate) fn connected(&mut self, expected: Option<TransactionId>, known_end_lsn: Lsn) {
        self.known_end_lsn = known_end_lsn;
        self.relations.clear();
        self.names.clear();
        self.row_of = None;
        self.plain = None;
        self.streams.clear();
        self.current_stream = None;
        self.expected = expected;
    }

    /// Has something to come again that has not come yet?
    pub(crate) fn expects(&self) -> bool {
        self.expected.is_some()
    }

    /// A new epoch begins: nothing was received yet, nothing is announced.
    pub(crate) fn start_epoch(&mut self, start: Position) {
        self.resume_after = start.as_resume_point();
        self.emitter.start_epoch();
        self.expected = None;
    }

    /// Everything up to here is out, or was before.
    pub(crate) fn received(&self) -> Position {
        self.resume_after
    }

    /// A row cannot be delivered, for this reason: the transaction that it belongs to, if one is being sent whole.
    pub(crate) fn undeliverable(&self, reason: String) -> Option<Undeliverable> {
        let transaction = self.plain.as_ref()?;
        // PostgreSQL describes a table right before its first row on a connection.
        let name = |oid: Option<u32>| oid.and_then(|oid| self.names.get(&oid)).cloned();
        let place = match (name(self.row_of), name(self.last_row_of)) {
            (Some(table), _) => Place::In(table),
            (None, Some(table)) => Place::After(table),
            (None, None) => Place::Unknown,
        };
        Some(Undeliverable { xid: transaction.xid, commit_lsn: self.final_lsn, place, reason })
    }

    /// The transaction that messages belong to, where it is being sent whole, since it has committed.
    pub(crate) fn whole_xid(&self) -> Option<u32> {
        self.plain.as_ref().map(|transaction| transaction.xid)
    }

    /// Says how a relation is treated from here on.
    pub(crate) fn set_relation(&mut self, oid: u32, followed: Followed) {
        if let Followed::Yes(table) = &followed {
            self.describe(table);
        }
        self.relations.insert(oid, followed);
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// The message does not fit what came before; a value cannot be encoded; history has diverged.
    pub(crate) fn handle(&mut self, message: Message<'_>) -> Result<Step, CaptureError> {
        self.row_of = None;
        match message {
            Message::Begin { xid, final_lsn, .. } => {
                self.plain = Some(Transaction::new(xid));
                self.final_lsn = final_lsn;
                self.last_row_of = None;
            }
            Message::Commit { commit_lsn, commit_end_lsn, commit_time_us } => {
                let transaction = self.plain.take().ok_or(CaptureError::Protocol("commit without begin"))?;
                return self.end(transaction, Commit { commit_lsn, commit_end_lsn, commit_time_us });
            }
            Message::Origin { name, .. } => name.clone_into(&mut self.open()?.origin),
            Message::Relation { relation, .. } => {
                let name = TableName::new(relation.schema.clone(), relation.table.clone());
                self.names.insert(relation.oid, name);
                self.row_of = Some(relation.oid);
                return Ok(Step::Resolve(relation));
            }
            Message::Type { .. } => {}
            Message::Insert { xid, relation_oid, new } => self.row(xid, (relation_oid, Op::Insert), None, Some(new))?,
            Message::Update { xid, relation_oid, old, new } => {
                self.row(xid, (relation_oid, Op::Update), old, Some(new))?;
            }
            Message::Delete { xid, relation_oid, old_kind, old } => {
                self.row(xid, (relation_oid, Op::Delete), Some((old_kind, old)), None)?;
            }
            Message::Truncate { xid, relation_oids, cascade, restart_identity } => {
                for oid in relation_oids {
                    self.truncate(xid, oid, Extra::Truncate { cascade, restart_identity })?;
                }
            }
            // It would be repeated in each piece of the message; PostgreSQL's own uses are a few bytes.
            Message::LogicalMessage { xid, transactional, prefix, .. } if prefix.len() > PREFIX_BYTES => {
                tracing::warn!(prefix_bytes = prefix.len(), "a logical message with an overlong prefix was left out");
                if transactional {
                    let (tag, transaction) = self.tagged(xid)?;
                    transaction.count_unfollowed(tag);
                }
            }
            // It is for us, and no application's.
            Message::LogicalMessage { xid, transactional: true, prefix: DDL_MESSAGE_PREFIX, .. } => {
                let (tag, transaction) = self.tagged(xid)?;
                transaction.count_unfollowed(tag);
                transaction.announces_ddl = true;
            }
            Message::LogicalMessage { xid, transactional, message_lsn, prefix, content } => {
                let change = message_change(Extra::Message { prefix, content, transactional });
                if !transactional {
                    return Ok(self.message(message_lsn, &change));
                }
                let (tag, transaction) = self.tagged(xid)?;
                push_change(&change, tag, transaction);
            }
            Message::StreamStart { xid, .. } => {
                self.streams.entry(xid).or_insert_with(|| Transaction::new(xid));
                self.current_stream = Some(xid);
            }
            Message::StreamStop => self.current_stream = None,
            Message::StreamAbort { xid, subxid } => self.abort(xid, subxid),
            Message::StreamCommit { xid, commit_lsn, commit_end_lsn, commit_time_us } => {
                let transaction = self.streams.remove(&xid).unwrap_or_else(|| Transaction::new(xid));
                return self.end(transaction, Commit { commit_lsn, commit_end_lsn, commit_time_us });
            }
        }
        Ok(Step::Done)
    }

    /// Writes the next part of an ended transaction, after `look` was shown it; false when it is out.
    ///
    /// # Errors
    /// The spool cannot be read.
    pub(crate) fn emit_part(
        &mut self,
        ended: &mut Ended,
        look: impl FnOnce(&BlockBuilder),
    ) -> Result<bool, CaptureError> {
        self.emitter.emit_part(ended, look)
    }

    /// The server has sent all commits up to `server_lsn`. States so, unless something is under way or it is old news.
    ///
    /// # Errors
    /// A transaction that had to come again did not.
    pub(crate) fn progress(&mut self, server_lsn: Lsn) -> Result<Option<ConfirmPoint>, CaptureError> {
        if !self.is_between_transactions() {
            return Ok(None);
        }
        if self.expected.is_some_and(|expected| server_lsn > expected.commit_end_lsn) {
            return Err(CaptureError::Discontinuity(Discontinuity::Diverged));
        }
        if server_lsn <= self.resume_after.lsn {
            return Ok(None);
        }
        self.emitter.emit_progress(server_lsn);
        self.resume_after = Position::end_of_transaction(server_lsn);
        Ok(Some(ConfirmPoint { position: Position::new(server_lsn, 0), confirm_lsn: server_lsn }))
    }

    /// Writes a chunk of a snapshot, which must follow everything received.
    pub(crate) fn emit_chunk(&mut self, position: Position, snapshot: u32, parts: Vec<BlockBuilder>, cursor: &[u8]) {
        self.emitter.emit_chunk(position, snapshot, parts, cursor);
        self.resume_after = position;
    }

    /// What all records of the snapshot are to say of it.
    pub(crate) fn label_snapshot(&mut self, snapshot: u32, label: Label) {
        self.emitter.label_snapshot(snapshot, label);
    }

    /// Do subscriptions receive the snapshot that have not started from it?
    pub(crate) fn is_for_others(&self, snapshot: u32) -> bool {
        let label = self.emitter.label(snapshot);
        label.new_tables || label.ad_hoc
    }

    /// Writes a snapshot's begin.
    pub(crate) fn emit_snapshot_begin(&mut self, position: Position, snapshot: u32, tables: (Vec<String>, Vec<u32>)) {
        self.emitter.emit_snapshot_begin(position, snapshot, tables);
        self.resume_after = position;
    }

    /// Writes a snapshot's end.
    pub(crate) fn emit_snapshot_end(&mut self, position: Position, snapshot: u32, abandoned: (&str, Vec<String>)) {
        self.emitter.emit_snapshot_end(position, snapshot, abandoned);
        self.resume_after = position;
    }

    /// Makes a row type known that was not announced by the stream.
    pub(crate) fn describe(&mut self, table: &TableCodec) {
        self.emitter.describe(table.table_oid, table.row_type, table.announcement.clone());
    }

    /// Has the server sent all of what it has begun to send, as far as transactions that have committed go?
    pub(crate) fn is_between_transactions(&self) -> bool {
        self.plain.is_none() && self.current_stream.is_none()
    }

    /// A block that is large enough to be sent.
    pub(crate) fn take_full(&mut self) -> Option<Block> {
        self.emitter.take_full()
    }

    /// What is there, when nothing more has been received.
    pub(crate) fn take(&mut self) -> Option<Block> {
        self.emitter.take()
    }

    /// Brings memory back under the budget.
    ///
    /// # Errors
    /// The spool's disk is full or broken.
    pub(crate) fn spill(&mut self) -> Result<(), CaptureError> {
        let budget = self.spool.memory_budget_bytes;
        let transactions = || self.streams.values().chain(&self.plain);
        let mut total: usize = transactions().map(Transaction::spillable_bytes).sum();
        while total > budget {
            let all = self.streams.values_mut().chain(&mut self.plain);
            let Some(largest) = all.max_by_key(|transaction| transaction.spillable_bytes()) else { break };
            total -= largest.spillable_bytes();
            largest.spill(&self.spool.dir).map_err(CaptureError::Spool)?;
        }
        Ok(())
    }

    fn end(&mut self, mut transaction: Transaction, commit: Commit) -> Result<Step, CaptureError> {
        self.compare(&transaction, &commit)?;
        let position = Position::end_of_transaction(commit.commit_end_lsn);
        let tables = std::mem::take(&mut transaction.tables);
        if position <= self.resume_after {
            let is_news = commit.commit_end_lsn > self.known_end_lsn;
            let Commit { commit_lsn, commit_end_lsn, .. } = commit;
            let again = Decoded { commit_lsn, commit_end_lsn, xid: transaction.xid, tables };
            let mut parts = transaction.into_parts();
            if is_news && has_followed_change(&mut parts)? {
                return Err(CaptureError::Discontinuity(Discontinuity::Diverged));
            }
            return Ok(Step::Again(again, parts));
        }
        self.resume_after = position;
        self.known_end_lsn = commit.commit_end_lsn;
        let point = ConfirmPoint { position: Position::new(commit.commit_end_lsn, 0), confirm_lsn: commit.commit_lsn };
        let ended = Ended {
            commit_end_lsn: commit.commit_end_lsn,
            commit_time_us: commit.commit_time_us,
            xid: transaction.xid,
            origin: std::mem::take(&mut transaction.origin),
            announces_ddl: transaction.announces_ddl,
            tables,
            parts: transaction.into_parts(),
            ordinal: 0,
            begun: false,
            continues: false,
        };
        Ok(Step::Emit(Box::new(ended), point))
    }

    /// Is this the transaction that is stored, or does it prove that the stored one comes no more?
    fn compare(&mut self, transaction: &Transaction, commit: &Commit) -> Result<(), CaptureError> {
        let Some(expected) = self.expected else { return Ok(()) };
        if commit.commit_end_lsn < expected.commit_end_lsn {
            return Ok(());
        }
        let found = TransactionId {
            commit_end_lsn: commit.commit_end_lsn,
            xid: transaction.xid,
            commit_time_us: commit.commit_time_us,
        };
        if found != expected {
            return Err(CaptureError::Discontinuity(Discontinuity::Diverged));
        }
        self.expected = None;
        Ok(())
    }

    fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.streams.remove(&xid);
        } else if let Some(transaction) = self.streams.get_mut(&xid) {
            transaction.abort(subxid);
        }
    }

    fn message(&mut self, message_lsn: Lsn, change: &ChangeParts<'_>) -> Step {
        let position = Position::of_message(message_lsn);
        if position <= self.resume_after {
            return Step::Done;
        }
        self.emitter.emit_message(position, change);
        self.resume_after = position;
        Step::Emitted(ConfirmPoint { position, confirm_lsn: message_lsn })
    }

    fn open(&mut self) -> Result<&mut Transaction, CaptureError> {
        let open = match self.current_stream {
            Some(xid) => self.streams.get_mut(&xid),
            None => self.plain.as_mut(),
        };
        open.ok_or(CaptureError::Protocol("change outside of a transaction"))
    }

    /// The open transaction, and what its entries are marked with until the commit.
    fn tagged(&mut self, subxid: Option<u32>) -> Result<(Lsn, &mut Transaction), CaptureError> {
        let open = self.open()?;
        Ok((Lsn(u64::from(subxid.unwrap_or(open.xid))), open))
    }

    fn truncate(&mut self, xid: Option<u32>, relation_oid: u32, extra: Extra<'_>) -> Result<(), CaptureError> {
        let row_type = match self.relations.get(&relation_oid).ok_or(CaptureError::UnknownRelation(relation_oid))? {
            Followed::No => 0,
            Followed::Yes(table) => table.row_type,
        };
        let (tag, transaction) = self.tagged(xid)?;
        if row_type == 0 {
            transaction.count_unfollowed(tag);
        } else {
            let change = ChangeParts { op: Op::Truncate, row_type, extra, ..message_change(Extra::None) };
            push_change(&change, tag, transaction);
            transaction.tables.insert(relation_oid);
        }
        Ok(())
    }

    fn row(
        &mut self,
        xid: Option<u32>,
        (relation_oid, op): (u32, Op),
        old: Option<(OldTupleKind, Tuple<'_>)>,
        new: Option<Tuple<'_>>,
    ) -> Result<(), CaptureError> {
        let table = self.relations.get(&relation_oid).ok_or(CaptureError::UnknownRelation(relation_oid))?;
        let open = match self.current_stream {
            Some(stream) => self.streams.get_mut(&stream),
            None => self.plain.as_mut(),
        };
        let transaction = open.ok_or(CaptureError::Protocol("change outside of a transaction"))?;
        let tag = Lsn(u64::from(xid.unwrap_or(transaction.xid)));
        let Followed::Yes(table) = table else {
            self.last_row_of = Some(relation_oid);
            transaction.count_unfollowed(tag);
            return Ok(());
        };
        self.row_of = Some(relation_oid);
        let old_kind = self.scratch.encode(table, old, new)?;
        (self.row_of, self.last_row_of) = (None, self.row_of);
        let change = ChangeParts {
            op,
            row_type: table.row_type,
            row: &self.scratch.row,
            old: &self.scratch.old,
            old_kind,
            unchanged: &self.scratch.unchanged,
            extra: Extra::None,
        };
        push_change(&change, tag, transaction);
        transaction.tables.insert(relation_oid);
        self.scratch.shrink();
        Ok(())
    }
}

impl Scratch {
    fn encode(
        &mut self,
        table: &TableCodec,
        old: Option<(OldTupleKind, Tuple<'_>)>,
        new: Option<Tuple<'_>>,
    ) -> Result<OldKind, CaptureError> {
        self.row.clear();
        self.old.clear();
        self.unchanged.clear();
        if let Some(new) = new {
            encode_tuple(table, &new, |_| true, &mut self.row)?;
            let fields = table.fields.iter().zip(new.iter());
            self.unchanged.extend(fields.filter(|(_, value)| *value == TupleValue::Unchanged).map(|(field, _)| *field));
        }
        let Some((kind, old)) = old else { return Ok(OldKind::None) };
        let (old_kind, key_only) = match kind {
            OldTupleKind::Key => (OldKind::Key, false),
            OldTupleKind::Full if is_whole(table, &old) => (OldKind::Full, false),
            OldTupleKind::Full => (OldKind::Key, !table.key.is_empty()),
        };
        encode_tuple(table, &old, |field| !key_only || table.key.contains(field), &mut self.old)?;
        Ok(old_kind)
    }

    /// One huge row must not keep its memory for ever.
    fn shrink(&mut self) {
        const KEPT_BYTES: usize = 1 << 20;
        for buffer in [&mut self.row, &mut self.old] {
            if buffer.capacity() > KEPT_BYTES {
                *buffer = BytesMut::new();
            }
        }
    }
}

fn has_followed_change(parts: &mut Parts) -> Result<bool, CaptureError> {
    while let Some(part) = parts.next().map_err(CaptureError::Spool)? {
        if part.entries.iter().any(|entry| entry.op != Op::None) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Is an old row whole that the server calls so?
fn is_whole(table: &TableCodec, old: &Tuple<'_>) -> bool {
    match table.old_rows {
        OldRows::AsCalled => true,
        OldRows::PrimaryKey | OldRows::Less => false,
        // The catalog may be ahead of the stream: a partition whose identity was the key alone has left all else null. Who is told the
        // key of a row in which all else is null indeed is told the truth.
        OldRows::Whole => {
            let is_of_key = |field: &u32| table.key.contains(*field);
            let mut beside = table.fields.iter().zip(old.iter()).filter(|(field, _)| !is_of_key(field));
            table.fields.iter().all(is_of_key) || beside.any(|(_, value)| value != TupleValue::Null)
        }
    }
}

/// Encodes the fields of a tuple that are wanted.
fn encode_tuple(
    table: &TableCodec,
    tuple: &Tuple<'_>,
    wanted: impl Fn(u32) -> bool,
    out: &mut BytesMut,
) -> Result<(), CaptureError> {
    if tuple.column_count() != table.fields.len() {
        return Err(CaptureError::Protocol("a row has another number of columns than its table"));
    }
    let values = tuple.iter().zip(&table.fields).map(|(value, field)| match value {
        _ if !wanted(*field) => Value::Null,
        TupleValue::Null => Value::Null,
        TupleValue::Unchanged => Value::Unchanged,
        TupleValue::Text(text) | TupleValue::Binary(text) => Value::Text(text),
    });
    table.encoder.encode(values, out).map_err(CaptureError::Encode)
}

/// A change without rows.
fn message_change(extra: Extra<'_>) -> ChangeParts<'_> {
    ChangeParts { op: Op::Message, row_type: 0, row: &[], old: &[], old_kind: OldKind::None, unchanged: &[], extra }
}

#[cfg(test)]
mod tests;
