//! Decodes the messages of PostgreSQL's output plugin `pgoutput`, protocol versions 1 to 4, in text or binary format.
//!
//! Format: PostgreSQL manual, section 55.9 "Logical Replication Message Formats". Pure: bytes in, a borrowed message out.
//!
//! Invariant: a message that is returned has been checked to its last byte, so that reading its tuples cannot fail; no
//! input whatsoever makes the decoder panic or allocate more than the input's own size; a refused message changes nothing.
//! It deliberately does not remember relations or assemble transactions: that is capture's.

mod reader;
mod tuple;

use reader::Reader;
use tidegate_model::{Lsn, Relation, RelationColumn, ReplicaIdentity, Retry};

pub use tuple::{OldTupleKind, Tuple, TupleValue, TupleValues};

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
pub(crate) const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// First protocol version with streamed transactions.
const STREAMING_VERSION: u8 = 2;

/// Decodes the messages of one replication stream, in order.
#[derive(Clone, Debug)]
pub struct Decoder {
    protocol_version: u8,
    /// Between StreamStart and StreamStop: row messages carry an xid there.
    in_stream_block: bool,
}

/// One message. `xid` is `Some` only inside a stream block, and is then that of the subtransaction.
///
/// Times are microseconds since 1970-01-01 UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction that is sent whole begins.
    Begin {
        /// Start of its commit record; the commit's `commit_lsn`.
        final_lsn: Lsn,
        /// Commit time.
        commit_time_us: i64,
        /// Top-level transaction id.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// End of the commit record.
        commit_end_lsn: Lsn,
        /// Commit time.
        commit_time_us: i64,
    },
    /// The transaction, or stream block, was replicated into this server from elsewhere.
    Origin {
        /// Where it committed there; zero where that is not known yet.
        commit_lsn: Lsn,
        /// Name of the replication origin.
        name: &'a str,
    },
    /// Describes a table, before its first use on this connection and after each change of it.
    Relation {
        /// Subtransaction, inside a stream block.
        xid: Option<u32>,
        /// The description.
        relation: Relation,
    },
    /// Names a type that is not built in.
    Type {
        /// Subtransaction, inside a stream block.
        xid: Option<u32>,
        /// `pg_type.oid`.
        type_oid: u32,
        /// Exact schema name.
        schema: &'a str,
        /// Exact type name.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// Subtransaction, inside a stream block.
        xid: Option<u32>,
        /// Its table.
        relation_oid: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Subtransaction, inside a stream block.
        xid: Option<u32>,
        /// Its table.
        relation_oid: u32,
        /// The old key where it changed, or the old row under REPLICA IDENTITY FULL.
        old: Option<(OldTupleKind, Tuple<'a>)>,
        /// The row; large values that did not change are [`TupleValue::Unchanged`].
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Subtransaction, inside a stream block.
        xid: Option<u32>,
        /// Its table.
        relation_oid: u32,
        /// What `old` holds.
        old_kind: OldTupleKind,
        /// The old key or row; columns that are not part of a key are null.
        old: Tuple<'a>,
    },
    /// Tables were truncated.
    Truncate {
        /// Subtransaction, inside a stream block.
        xid: Option<u32>,
        /// The tables, in the server's order.
        relation_oids: Vec<u32>,
        /// CASCADE was given.
        cascade: bool,
        /// RESTART IDENTITY was given.
        restart_identity: bool,
    },
    /// `pg_logical_emit_message` was called.
    LogicalMessage {
        /// Subtransaction, inside a stream block.
        xid: Option<u32>,
        /// Part of the transaction; else it stands alone and may come between any two transactions.
        transactional: bool,
        /// Start of its WAL record.
        message_lsn: Lsn,
        /// The prefix.
        prefix: &'a str,
        /// The content, any bytes.
        content: &'a [u8],
    },
    /// A block of changes of a transaction in progress begins.
    StreamStart {
        /// Top-level transaction id.
        xid: u32,
        /// The first block of this transaction.
        first_segment: bool,
    },
    /// The block ends.
    StreamStop,
    /// A transaction that was streamed in blocks has committed.
    StreamCommit {
        /// Top-level transaction id.
        xid: u32,
        /// Start of the commit record.
        commit_lsn: Lsn,
        /// End of the commit record.
        commit_end_lsn: Lsn,
        /// Commit time.
        commit_time_us: i64,
    },
    /// A streamed transaction (`subxid == xid`), or one of its subtransactions, was rolled back.
    StreamAbort {
        /// Top-level transaction id.
        xid: u32,
        /// What was rolled back.
        subxid: u32,
    },
}

/// Why bytes are not a message. All of these mean that server and decoder disagree on the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends too early.
    #[error("pgoutput message '{}' ends too early", *tag as char)]
    Truncated {
        /// First byte of the message; 0 for no bytes at all.
        tag: u8,
    },
    /// Bytes follow the message's end.
    #[error("pgoutput message '{}' has {byte_count} bytes behind its end", *tag as char)]
    Trailing {
        /// First byte of the message.
        tag: u8,
        /// How many.
        byte_count: usize,
    },
    /// Not one of the known messages.
    #[error("unknown pgoutput message 0x{tag:02x}")]
    UnknownMessage {
        /// First byte of the message.
        tag: u8,
    },
    /// A name that is not UTF-8: the connection's client_encoding is not pinned.
    #[error("pgoutput message '{}' holds a name that is not UTF-8", *tag as char)]
    NotUtf8 {
        /// First byte of the message.
        tag: u8,
    },
    /// A byte within the message has none of its possible values.
    #[error("pgoutput message '{}' holds the unknown {what} 0x{value:02x}", *tag as char)]
    UnknownValue {
        /// First byte of the message.
        tag: u8,
        /// What the byte stands for.
        what: &'static str,
        /// The byte.
        value: u8,
    },
    /// A message that cannot stand here: a transaction's begin within a stream block, or a stream message in version 1.
    #[error("pgoutput message '{}' is out of place", *tag as char)]
    OutOfPlace {
        /// First byte of the message.
        tag: u8,
    },
    /// Two-phase decoding, which we never ask for, so the slot was made by someone else.
    #[error(
        "pgoutput sent the two-phase message '{}': the slot was created with two_phase; create it without, or let Tidegate create it",
        *tag as char
    )]
    TwoPhase {
        /// First byte of the message.
        tag: u8,
    },
}

impl DecodeError {
    /// The same bytes come again, so trying again is no use.
    #[must_use]
    pub fn retry(&self) -> Retry {
        Retry::Never
    }
}

impl Decoder {
    /// A decoder for a new stream of this protocol version (1 to 4).
    #[must_use]
    pub fn new(protocol_version: u8) -> Self {
        Decoder { protocol_version, in_stream_block: false }
    }

    /// The message in `data`, which is the content of one XLogData frame.
    ///
    /// # Errors
    /// The bytes are not exactly one message that may stand here; the decoder is unchanged then.
    pub fn decode<'a>(&mut self, data: &'a [u8]) -> Result<Message<'a>, DecodeError> {
        let mut reader = Reader::new(data)?;
        let tag = reader.tag();
        let message = match tag {
            b'B' | b'C' => self.transaction_mark(&mut reader)?,
            b'S' | b'E' | b'c' | b'A' => self.stream_mark(&mut reader)?,
            b'O' => Message::Origin { commit_lsn: reader.lsn()?, name: reader.text()? },
            b'R' => Message::Relation { xid: self.xid(&mut reader)?, relation: relation(&mut reader)? },
            b'Y' => Message::Type {
                xid: self.xid(&mut reader)?,
                type_oid: reader.u32()?,
                schema: schema_name(reader.text()?),
                name: reader.text()?,
            },
            b'I' | b'U' | b'D' => self.row(&mut reader)?,
            b'T' => truncate(self.xid(&mut reader)?, &mut reader)?,
            b'M' => logical_message(self.xid(&mut reader)?, &mut reader)?,
            b'b' | b'P' | b'K' | b'r' | b'p' => return Err(DecodeError::TwoPhase { tag }),
            _ => return Err(DecodeError::UnknownMessage { tag }),
        };
        reader.finish()?;
        match message {
            Message::StreamStart { .. } => self.in_stream_block = true,
            Message::StreamStop => self.in_stream_block = false,
            Message::Begin { .. }
            | Message::Commit { .. }
            | Message::Origin { .. }
            | Message::Relation { .. }
            | Message::Type { .. }
            | Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate { .. }
            | Message::LogicalMessage { .. }
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => {}
        }
        Ok(message)
    }

    fn xid(&self, reader: &mut Reader<'_>) -> Result<Option<u32>, DecodeError> {
        if self.in_stream_block { reader.u32().map(Some) } else { Ok(None) }
    }

    fn transaction_mark<'a>(&self, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
        let tag = reader.tag();
        if self.in_stream_block {
            return Err(DecodeError::OutOfPlace { tag });
        }
        if tag == b'B' {
            return Ok(Message::Begin {
                final_lsn: reader.lsn()?,
                commit_time_us: reader.time_us()?,
                xid: reader.u32()?,
            });
        }
        // Flags: unused so far.
        reader.u8()?;
        Ok(Message::Commit {
            commit_lsn: reader.lsn()?,
            commit_end_lsn: reader.lsn()?,
            commit_time_us: reader.time_us()?,
        })
    }

    fn stream_mark<'a>(&self, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
        let tag = reader.tag();
        let ends_block = tag == b'E';
        if self.protocol_version < STREAMING_VERSION || self.in_stream_block != ends_block {
            return Err(DecodeError::OutOfPlace { tag });
        }
        match tag {
            b'S' => Ok(Message::StreamStart { xid: reader.u32()?, first_segment: reader.u8()? == 1 }),
            b'E' => Ok(Message::StreamStop),
            b'c' => {
                let xid = reader.u32()?;
                // Flags: unused so far.
                reader.u8()?;
                Ok(Message::StreamCommit {
                    xid,
                    commit_lsn: reader.lsn()?,
                    commit_end_lsn: reader.lsn()?,
                    commit_time_us: reader.time_us()?,
                })
            }
            // The abort's LSN and time follow only under streaming 'parallel', which we never ask for.
            _ => Ok(Message::StreamAbort { xid: reader.u32()?, subxid: reader.u32()? }),
        }
    }

    fn row<'a>(&self, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
        let tag = reader.tag();
        let xid = self.xid(reader)?;
        let relation_oid = reader.u32()?;
        let kind = reader.u8()?;
        let old_kind = match kind {
            b'K' => Some(OldTupleKind::Key),
            b'O' => Some(OldTupleKind::Full),
            _ => None,
        };
        match (tag, old_kind) {
            (b'D', Some(old_kind)) => Ok(Message::Delete { xid, relation_oid, old_kind, old: Tuple::read(reader)? }),
            (b'U', Some(old_kind)) => {
                let old = Tuple::read(reader)?;
                let new_kind = reader.u8()?;
                if new_kind != b'N' {
                    return Err(DecodeError::UnknownValue { tag, what: "kind of tuple", value: new_kind });
                }
                Ok(Message::Update { xid, relation_oid, old: Some((old_kind, old)), new: Tuple::read(reader)? })
            }
            (b'U', None) if kind == b'N' => {
                Ok(Message::Update { xid, relation_oid, old: None, new: Tuple::read(reader)? })
            }
            (b'I', None) if kind == b'N' => Ok(Message::Insert { xid, relation_oid, new: Tuple::read(reader)? }),
            _ => Err(DecodeError::UnknownValue { tag, what: "kind of tuple", value: kind }),
        }
    }
}

/// The server sends no name for `pg_catalog`.
fn schema_name(name: &str) -> &str {
    if name.is_empty() { "pg_catalog" } else { name }
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, DecodeError> {
    let oid = reader.u32()?;
    let schema = schema_name(reader.text()?).to_owned();
    let table = reader.text()?.to_owned();
    let replica_identity = match reader.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        value => return Err(DecodeError::UnknownValue { tag: reader.tag(), what: "replica identity", value }),
    };
    let column_count = reader.u16()?;
    let mut columns = Vec::new();
    for _ in 0..column_count {
        columns.push(RelationColumn {
            identity: reader.u8()? & 1 != 0,
            name: reader.text()?.to_owned(),
            type_oid: reader.u32()?,
            type_modifier: reader.i32()?,
        });
    }
    Ok(Relation { oid, schema, table, replica_identity, columns })
}

fn truncate<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation_count = reader.u32()?;
    let options = reader.u8()?;
    let mut relation_oids = Vec::new();
    for _ in 0..relation_count {
        relation_oids.push(reader.u32()?);
    }
    Ok(Message::Truncate { xid, relation_oids, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
}

fn logical_message<'a>(xid: Option<u32>, reader: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let transactional = reader.u8()? & 1 != 0;
    let message_lsn = reader.lsn()?;
    let prefix = reader.text()?;
    let content = reader.sized_bytes()?;
    Ok(Message::LogicalMessage { xid, transactional, message_lsn, prefix, content })
}

#[cfg(test)]
mod tests;
