//! What a subscription delivers.
//!
//! Invariant: rows are slices of the received message; nothing is copied or decoded before the program asks.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use prost_reflect::DynamicMessage;
use prost_types::Timestamp;
use serde_json::{Map, Value};
use tidegate_proto::v1;

pub use tidegate_proto::v1::Difference;

use crate::{ClientError, Position, RowError, RowType, Token};

/// One thing that happened, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// The subscription is open, for the first time or again.
    Opened {
        /// Delivery starts after it.
        token: Token,
        /// Where the server's log ends at this moment.
        head: Position,
        /// The source's name.
        source: String,
    },
    /// The subscription waits until the server has read a table into its mirror, which a shape of it needs, and opens then.
    /// Told every second.
    Preparing {
        /// `schema.table`, quoted where PostgreSQL would.
        table: String,
        /// How many there are so far.
        rows_read: u64,
        /// As PostgreSQL's statistics have them; 0 where they say nothing.
        rows_estimated: u64,
        /// What it waits for, where rows are not being read.
        detail: String,
    },
    /// How rows of a table are encoded from here on: a table that is new to the subscription, or has changed.
    RowType(Arc<RowType>),
    /// A transaction starts, or a chunk of a snapshot.
    Begin {
        /// Its commit's end LSN, ordinal 0. A chunk has a position of its own, which its reads share.
        position: Position,
        /// When it was committed.
        commit_time: Timestamp,
        /// Top-level transaction id; 0 for a message outside of transactions.
        xid: u32,
        /// Replication origin, where it was replicated into the source; else empty.
        origin: String,
        /// Of a chunk of a snapshot: its number. Where it is the subscription's own, the changes are [`Op::Read`], except in a
        /// chunk that begins the pass over a table without a key: that has an [`Op::Truncate`], which voids what was received of
        /// the table, and then such changes of it as count nevertheless. Else they are what the snapshot has found to be
        /// otherwise than it was delivered. 0 for transactions.
        snapshot: u32,
    },
    /// A change of the transaction that has begun.
    Change(Change),
    /// The transaction is complete.
    Commit {
        /// Resume here once the transaction is processed.
        token: Token,
    },
    /// A snapshot begins: until its end, chunks of rows that were there already come amid the transactions. It is the one that
    /// the subscription started from, one of tables that have been published since, or, where the subscription asks for
    /// [`snapshots`](crate::Subscription::snapshots), one that someone has started.
    SnapshotBegin {
        /// Its number.
        snapshot: u32,
        /// Its tables as `schema.table`, quoted where PostgreSQL would.
        tables: Vec<String>,
        /// `pg_class.oid` of each, as in their row types: rows of another table that had the name before are not concerned.
        table_oids: Vec<u32>,
        /// Those of them of which only a part is read: what is held of them and is neither read nor changed until the end stays.
        partial: Vec<String>,
        /// Empty unless the subscription is a [`ShapeHandle`](crate::ShapeHandle)'s own, which says what rows it has: of these selections
        /// only what differs comes.
        differences: Vec<Difference>,
        /// Resume here.
        token: Token,
    },
    /// The snapshot is complete: with reads, inserts and updates taken as upserts by key, and deletes as such, what the
    /// program holds is exact here and after each commit that follows; of tables that are read in part, as far as the part goes.
    /// Of a table without a key, it counts how often each row is there; between the snapshot's begin and its end that may be below
    /// zero. It says nothing to a program that has not received the snapshot's begin.
    SnapshotEnd {
        /// Its number.
        snapshot: u32,
        /// Resume here once all before is processed.
        token: Token,
    },
    /// A snapshot was given up that the subscription did not start from. Of new tables: what the program holds of them is not
    /// complete, until another has ended, which begins by itself; none does where someone has cancelled it or the table is gone.
    /// One that someone had started: what was read is right, and the rest stays as it was; but of a table without a key there is only
    /// what was read: subscribe anew to read it whole.
    SnapshotAbandoned {
        /// Its number.
        snapshot: u32,
        /// Why.
        detail: String,
        /// Resume here once all before is processed.
        token: Token,
    },
    /// The connection was lost within a transaction: discard the changes since the last Begin; they come again.
    Abort,
    /// Nothing is missing up to a position; comes every second.
    Progress {
        /// Resume here.
        token: Token,
        /// All that the source has sent is received, and the source is connected.
        caught_up: bool,
        /// How far behind the newest change, in time between commits.
        lag: Duration,
        /// How long the source has been silent; zero while it is connected.
        source_silent: Duration,
    },
    /// What was received and what would follow do not join up. The stream ends here; subscribe again without the token.
    Reset {
        /// Why.
        reason: ResetReason,
        /// What happened, and what to do.
        detail: String,
    },
    /// The server is going to stop. The stream connects again after the current transaction, by itself.
    Drain {
        /// When it stops, where it said so.
        deadline: Option<Timestamp>,
    },
    /// The connection is lost; the stream connects again by itself.
    Interrupted {
        /// What happened.
        cause: Arc<ClientError>,
        /// When it tries again, from now.
        retry_in: Duration,
    },
}

/// The operation of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// A row of a snapshot.
    Read,
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A row that is gone.
    Delete,
    /// All rows are gone.
    Truncate,
    /// A logical message.
    Message,
}

impl Op {
    const ALL: [Op; 6] = [Op::Read, Op::Insert, Op::Update, Op::Delete, Op::Truncate, Op::Message];

    /// Lower case, as in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Message => "message",
        }
    }

    pub(crate) fn to_proto(self) -> v1::change::Op {
        match self {
            Op::Read => v1::change::Op::Read,
            Op::Insert => v1::change::Op::Insert,
            Op::Update => v1::change::Op::Update,
            Op::Delete => v1::change::Op::Delete,
            Op::Truncate => v1::change::Op::Truncate,
            Op::Message => v1::change::Op::Message,
        }
    }

    pub(crate) fn from_proto(op: v1::change::Op) -> Option<Self> {
        match op {
            v1::change::Op::Unspecified => None,
            v1::change::Op::Read => Some(Op::Read),
            v1::change::Op::Insert => Some(Op::Insert),
            v1::change::Op::Update => Some(Op::Update),
            v1::change::Op::Delete => Some(Op::Delete),
            v1::change::Op::Truncate => Some(Op::Truncate),
            v1::change::Op::Message => Some(Op::Message),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is not an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an operation; write insert, update, delete, truncate, message or read")]
pub struct UnknownOp(pub String);

impl FromStr for Op {
    type Err = UnknownOp;

    fn from_str(text: &str) -> Result<Self, UnknownOp> {
        let found = Op::ALL.into_iter().find(|op| op.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownOp(text.to_owned()))
    }
}

/// What an old row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OldKind {
    /// No old row.
    None,
    /// The key's columns.
    Key,
    /// Every column.
    Full,
}

/// What an update of a row is to a shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Move {
    /// The row was in the shape and is; or it is no shape, or no update.
    #[default]
    Stayed,
    /// The row is in the shape now, and was not: an insert.
    In,
    /// The row was in the shape: a delete.
    Out,
}

impl Move {
    pub(crate) fn from_proto(moved: v1::change::Move) -> Self {
        match moved {
            v1::change::Move::Stayed => Move::Stayed,
            v1::change::Move::MovedIn => Move::In,
            v1::change::Move::MovedOut => Move::Out,
        }
    }
}

/// Why continuity is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetReason {
    /// The server gave none that this version knows.
    Unspecified,
    /// The token's position is older than what the server keeps.
    TokenTooOld,
    /// The source's slot, publication, timeline or data has changed since the token was handed out.
    EpochChanged,
    /// The source has lost continuity while the subscription was open.
    SourceDiscontinued,
    /// The snapshot that the subscription started from was cancelled or has failed.
    SnapshotAbandoned,
    /// What is selected is no longer what the token, or what was received, belongs to.
    DefinitionChanged,
}

impl ResetReason {
    pub(crate) fn from_proto(reason: v1::reset::Reason) -> Self {
        match reason {
            v1::reset::Reason::Unspecified => ResetReason::Unspecified,
            v1::reset::Reason::TokenTooOld => ResetReason::TokenTooOld,
            v1::reset::Reason::EpochChanged => ResetReason::EpochChanged,
            v1::reset::Reason::SourceDiscontinued => ResetReason::SourceDiscontinued,
            v1::reset::Reason::SnapshotAbandoned => ResetReason::SnapshotAbandoned,
            v1::reset::Reason::DefinitionChanged => ResetReason::DefinitionChanged,
        }
    }
}

/// A message of `pg_logical_emit_message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalMessage {
    /// The sender's word for what it is.
    pub prefix: String,
    /// As it was emitted.
    pub content: Bytes,
    /// Part of a transaction; else it stands alone, whatever became of the transaction that emitted it.
    pub transactional: bool,
}

/// What a TRUNCATE said besides the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncate {
    /// CASCADE was given.
    pub cascade: bool,
    /// RESTART IDENTITY was given.
    pub restart_identity: bool,
}

/// One change of a row, a truncate, or a logical message.
#[derive(Clone, Debug)]
pub struct Change {
    /// Where it stands.
    pub position: Position,
    /// What was done.
    pub op: Op,
    /// Index of the selection that it belongs to.
    pub selection: u32,
    /// The table and how its rows are encoded; None for a logical message.
    pub row_type: Option<Arc<RowType>>,
    /// The new row (read, insert, update), in the encoding of its row type; else empty.
    pub row: Bytes,
    /// The old row (update, delete), as far as `old_kind` says.
    pub old: Bytes,
    /// What `old` holds.
    pub old_kind: OldKind,
    /// Field numbers of columns that the update left as they were and whose values are not sent (TOAST; in a shape with
    /// [`Updates::ChangedColumns`](crate::Updates::ChangedColumns) all that it left as they were).
    pub unchanged: Vec<u32>,
    /// In a shape: whether an update made the row enter or leave it.
    pub moved: Move,
    /// Of a logical message.
    pub message: Option<LogicalMessage>,
    /// Of a truncate.
    pub truncate: Option<Truncate>,
}

impl Change {
    /// The table as `schema.table`, quoted where PostgreSQL would; None for a logical message.
    #[must_use]
    pub fn table(&self) -> Option<&str> {
        self.row_type.as_deref().map(RowType::table_name)
    }

    /// Does it carry a new row? (A row whose columns are all NULL has no bytes.)
    #[must_use]
    pub fn has_row(&self) -> bool {
        match self.op {
            Op::Read | Op::Insert | Op::Update => true,
            Op::Delete | Op::Truncate | Op::Message => false,
        }
    }

    /// The new row as a message generated from the table's descriptor. Columns in `unchanged` are absent.
    ///
    /// # Errors
    /// The bytes are not such a message.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<Option<M>, RowError> {
        if self.has_row() { self.decode_as(&self.row).map(Some) } else { Ok(None) }
    }

    /// The old row likewise, as far as `old_kind` says.
    ///
    /// # Errors
    /// The bytes are not such a message.
    pub fn decode_old<M: prost::Message + Default>(&self) -> Result<Option<M>, RowError> {
        match self.old_kind {
            OldKind::None => Ok(None),
            OldKind::Key | OldKind::Full => self.decode_as(&self.old).map(Some),
        }
    }

    /// The new row by reflection, for programs that do not know the table.
    ///
    /// # Errors
    /// The row type or the bytes are not usable.
    pub fn dynamic(&self) -> Result<Option<DynamicMessage>, RowError> {
        match &self.row_type {
            Some(row_type) if self.has_row() => row_type.dynamic(&self.row).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    /// The old row by reflection.
    ///
    /// # Errors
    /// The row type or the bytes are not usable.
    pub fn dynamic_old(&self) -> Result<Option<DynamicMessage>, RowError> {
        match (&self.row_type, self.old_kind) {
            (Some(row_type), OldKind::Key | OldKind::Full) => row_type.dynamic(&self.old).map(Some),
            (None, _) | (_, OldKind::None) => Ok(None),
        }
    }

    /// The new row as JSON: values by exact column name; NULL is null; a column that was not sent is absent.
    ///
    /// # Errors
    /// The row type or the bytes are not usable.
    pub fn row_json(&self) -> Result<Option<Map<String, Value>>, RowError> {
        let Some(row_type) = self.row_type.as_deref().filter(|_| self.has_row()) else { return Ok(None) };
        let sent = |column: &v1::Column| !self.unchanged.contains(&column.field);
        row_type.json(&row_type.dynamic(&self.row)?, sent).map(Some)
    }

    /// The old row as JSON, as far as `old_kind` says.
    ///
    /// # Errors
    /// The row type or the bytes are not usable.
    pub fn old_json(&self) -> Result<Option<Map<String, Value>>, RowError> {
        let Some(row_type) = self.row_type.as_deref() else { return Ok(None) };
        match self.old_kind {
            OldKind::None => Ok(None),
            OldKind::Key => row_type.json(&row_type.dynamic(&self.old)?, |column| column.key).map(Some),
            OldKind::Full => row_type.json(&row_type.dynamic(&self.old)?, |_| true).map(Some),
        }
    }

    /// The key as JSON: of the new row, or of the old one where there is no new; None where the table has no key.
    ///
    /// # Errors
    /// The row type or the bytes are not usable.
    pub fn key_json(&self) -> Result<Option<Map<String, Value>>, RowError> {
        let Some(row_type) = self.row_type.as_deref() else { return Ok(None) };
        let bytes = match (self.has_row(), self.old_kind) {
            (true, _) => &self.row,
            (false, OldKind::Key | OldKind::Full) => &self.old,
            (false, OldKind::None) => return Ok(None),
        };
        if row_type.is_keyless() {
            return Ok(None);
        }
        row_type.json(&row_type.dynamic(bytes)?, |column| column.key).map(Some)
    }

    /// The key of the old row as JSON; None where there is no old row, or the table has no key. (The old row of an update is
    /// sent where its key has changed, or all of it, if the replica identity is FULL.)
    ///
    /// # Errors
    /// The row type or the bytes are not usable.
    pub fn old_key_json(&self) -> Result<Option<Map<String, Value>>, RowError> {
        let Some(row_type) = self.row_type.as_deref() else { return Ok(None) };
        if self.old_kind == OldKind::None || row_type.is_keyless() {
            return Ok(None);
        }
        row_type.json(&row_type.dynamic(&self.old)?, |column| column.key).map(Some)
    }

    /// Names of the columns that the update left as they were and whose values are not sent.
    pub fn unchanged_columns(&self) -> impl Iterator<Item = &str> {
        let columns = self.row_type.as_deref().map_or(&[][..], RowType::columns);
        let unchanged = columns.iter().filter(|column| self.unchanged.contains(&column.field));
        unchanged.map(|column| column.name.as_str())
    }

    /// Bytes that it holds, roughly.
    pub(crate) fn byte_count(&self) -> usize {
        let message = self.message.as_ref().map_or(0, |message| message.prefix.len() + message.content.len());
        size_of::<Change>() + self.row.len() + self.old.len() + self.unchanged.len() * size_of::<u32>() + message
    }

    fn decode_as<M: prost::Message + Default>(&self, bytes: &Bytes) -> Result<M, RowError> {
        M::decode(bytes.clone()).map_err(|cause| RowError::Decode {
            message: self.row_type.as_deref().map_or_else(String::new, |row_type| row_type.message().to_owned()),
            cause,
        })
    }
}
