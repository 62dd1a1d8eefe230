//! What coordinator and stream say to each other.

use std::sync::Arc;

use tidegate_model::{Epoch, Position, Relation, TableName};
use tidegate_postgres::snapshot::Fingerprint;
use tokio::sync::{mpsc, oneshot};

use super::{
    job::{Place, Work},
    label::Label,
    reader::Planned,
    reconcile::{Chunk, ReadAgain},
    touched::Covers,
    tracking::ReadId,
};
use crate::{CaptureError, table::TableCodec};

/// What the stream is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Describe these tables. Follow them for the snapshot, and emit its begin, unless that was done before. One of an epoch that has
    /// ended is not answered.
    Begin {
        snapshot: u32,
        /// Of which the snapshot is.
        epoch: Epoch,
        /// What its records say of it.
        label: Label,
        tables: Vec<(TableName, Relation)>,
        /// Which of each table's rows its chunks have.
        covers: Vec<Covers>,
        reply: oneshot::Sender<Result<Begun, CaptureError>>,
    },
    /// A chunk is about to be read: its name. `anew`: it begins the table's pass, whatever was read of it before.
    StartRead { snapshot: u32, table_oid: u32, anew: bool, reply: oneshot::Sender<StartedRead> },
    /// It could not be read.
    AbandonRead { read: ReadId },
    /// Reconcile the chunk when its watermark is passed, and emit it.
    Chunk { read: ReadId, chunk: Box<Chunk>, ticket: Ticket },
    /// Is the table done?
    Finish { snapshot: u32, table_oid: u32, reply: oneshot::Sender<Finish> },
    /// Emit the snapshot's end, complete unless a reason is given. None where a row is still to be read.
    End { snapshot: u32, abandoned: String, reply: oneshot::Sender<Option<Position>> },
}

/// A snapshot that the stream follows.
#[derive(Debug)]
pub(crate) struct Begun {
    /// What its subscribers read after.
    pub(crate) after: Position,
    /// How the tables are encoded; None for one that is not followed.
    pub(crate) codecs: Vec<Option<Arc<TableCodec>>>,
    /// It has not begun: this table, without a key, is being read by the snapshot with this number.
    pub(crate) beside: Option<(TableName, u32)>,
}

/// A read as the stream knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StartedRead {
    pub(crate) read: ReadId,
    /// Of the stream's connections, the one that it counts for: a session from before may be to another server.
    pub(crate) connection: u64,
}

/// What is left to be read of a table whose chunks are all out.
#[derive(Debug)]
pub(crate) enum Finish {
    /// The rows of these keys; none, and it is done.
    Keys(Vec<Box<[u8]>>),
    /// Chunks from there on: all of them, where the table must be read once more.
    From(Place),
}

/// What a chunk is to its job, and who wants to know what becomes of it.
#[derive(Debug)]
pub(crate) struct Ticket {
    pub(crate) snapshot: u32,
    pub(crate) table_oid: u32,
    /// Its place among the snapshot's tables.
    pub(crate) table: usize,
    pub(crate) attempt: u32,
    /// Where the chunk starts; None for keys that were read again.
    pub(crate) start: Option<Place>,
    /// Where it ended; None for keys that were read again.
    pub(crate) end: Option<Place>,
    /// What it takes in memory, as [`super::job::Read`] says.
    pub(crate) byte_count: u64,
    /// Of the definition that the chunk is read under.
    pub(crate) fingerprint: Fingerprint,
    pub(crate) outcomes: mpsc::Sender<Outcome>,
}

/// What became of a chunk.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) snapshot: u32,
    pub(crate) table: usize,
    pub(crate) attempt: u32,
    pub(crate) end: Option<Place>,
    pub(crate) result: ChunkResult,
}

/// Is it out?
#[derive(Debug)]
pub(crate) enum ChunkResult {
    Emitted {
        row_count: u64,
        byte_count: u64,
        /// Some keys that are to be read again, where the rest of the pass may not cover them.
        keys: Vec<Box<[u8]>>,
    },
    /// It must be read again, because of this.
    Again(ReadAgain),
}

impl Ticket {
    /// For a chunk that is to be read of a snapshot's table.
    pub(crate) fn new(
        (snapshot, table): (u32, usize),
        planned: &Planned,
        work: &Work,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Self {
        let (attempt, start, fingerprint) = (work.attempt(), work.start(), planned.plan.fingerprint.clone());
        Ticket {
            snapshot,
            table_oid: planned.table_oid(),
            table,
            attempt,
            start,
            end: None,
            byte_count: 0,
            fingerprint,
            outcomes,
        }
    }

    /// Tells the coordinator. There are never more chunks than the channel holds; if it is gone, nobody needs to know.
    pub(crate) fn tell(self, result: ChunkResult) {
        let Ticket { snapshot, table, attempt, end, outcomes, .. } = self;
        drop(outcomes.try_send(Outcome { snapshot, table, attempt, end, result }));
    }
}
