//! Reads chunks of tables and encodes them: rows become the same bytes as in the stream.

use std::sync::Arc;

use bytes::BytesMut;
use tidegate_model::{Lsn, Op, Part};
use tidegate_postgres::{
    ConnectConfig,
    snapshot::{
        ChunkFacts, ChunkReader, CopyRow, Cursor, KeyValues, Range, ReadLimits, SharedSnapshot, SnapshotReadError,
        TablePlan,
    },
};
use tidegate_schema::{ChangeParts, Extra, RowText, Value, push_change};
use tokio::time::Instant;

use super::{
    blocks::SharedPass,
    job::{Place, Read, Work},
    reconcile::{self, Chunk, Parts},
    requests::SnapshotError,
};
use crate::{CaptureError, table::TableCodec};

/// Keys of a list that are asked for at once, at most.
const LISTED_MAX: usize = 1_000;

/// A table as it is read: what PostgreSQL has, and how we encode it.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) plan: TablePlan,
    pub(crate) codec: Arc<TableCodec>,
    /// What of it is read.
    pub(crate) part: Option<Part>,
}

impl Planned {
    pub(crate) fn table_oid(&self) -> u32 {
        self.codec.table_oid
    }

    pub(crate) fn row_count_estimated(&self) -> u64 {
        match &self.part {
            None => self.plan.row_count_estimate.unwrap_or(0),
            Some(Part::Where(_)) => 0,
            Some(Part::Keys(keys)) => keys.len() as u64,
        }
    }

    /// Are its rows told apart by nothing?
    pub(crate) fn is_keyless(&self) -> bool {
        self.codec.key.is_empty()
    }

    fn range(&self, work: &Work, shared: Option<&SharedPass>) -> Result<Range, ReadFailure> {
        if let (Work::Chunk { from, row_limit, .. }, Some(Part::Keys(keys))) = (work, &self.part) {
            let listed = keys[listed(from, *row_limit, keys.len())].iter();
            let values = |key: &Vec<String>| key.iter().map(|value| value.as_bytes().into()).collect();
            return Ok(Range::Keys(listed.map(values).collect()));
        }
        match work {
            Work::Blocks { from, block_limit, .. } => {
                let range = shared.and_then(|shared| shared.range(from, *block_limit));
                range.map(|(range, _)| range).ok_or(ReadFailure::SharedGone)
            }
            Work::Keys { keys, .. } => {
                let keys = keys.iter().map(|key| self.key_values(key)).collect::<Result<_, _>>()?;
                Ok(Range::Keys(keys))
            }
            Work::Chunk { from: Place::After(cursor), row_limit, .. } => {
                let table = self.plan.name();
                let cursor =
                    Cursor::from_bytes(cursor).map_err(|source| SnapshotReadError::Cursor { table, source })?;
                Ok(Range::After { cursor: Some(cursor), row_limit: *row_limit })
            }
            Work::Chunk { from: Place::Start | Place::End, row_limit, .. } => {
                Ok(Range::After { cursor: None, row_limit: *row_limit })
            }
            Work::Share { .. } | Work::Finish { .. } => unreachable!("no rows are read"),
        }
    }

    /// Where the chunk that the work has read ends.
    fn end(&self, work: &Work, shared: Option<&SharedPass>, facts: &ChunkFacts) -> Option<Place> {
        let (from, row_limit) = match work {
            Work::Blocks { from, block_limit, .. } => return Some(shared?.range(from, *block_limit)?.1),
            Work::Chunk { from, row_limit, .. } => (from, row_limit),
            Work::Share { .. } | Work::Keys { .. } | Work::Finish { .. } => return None,
        };
        let after = match &self.part {
            Some(Part::Keys(keys)) => {
                let end = listed(from, *row_limit, keys.len()).end;
                (end < keys.len()).then(|| (end as u64).to_le_bytes().to_vec())
            }
            Some(Part::Where(_)) | None => facts.next.as_ref().map(Cursor::to_bytes),
        };
        Some(after.map_or(Place::End, |after| Place::After(after.into())))
    }

    /// An encoded key in PostgreSQL's texts, in the order of the plan's key.
    fn key_values(&self, key: &[u8]) -> Result<KeyValues, ReadFailure> {
        let mut text = RowText::default();
        let damaged = || ReadFailure::from(SnapshotError::Key(self.plan.name()));
        self.codec.decoder.text(key, &mut text).map_err(|_| damaged())?;
        let value = |column: usize| Some(text.value(column)?.as_bytes().into());
        self.plan.key.iter().map(|column| value(column.column).ok_or_else(damaged)).collect()
    }
}

/// Which of a list of keys a chunk has: its place is how many come before.
fn listed(from: &Place, count: u32, len: usize) -> std::ops::Range<usize> {
    let start = match from {
        Place::Start => 0,
        Place::After(before) => {
            let before = before.as_ref().try_into().map_or(u64::MAX, u64::from_le_bytes);
            usize::try_from(before).unwrap_or(len).min(len)
        }
        Place::End => len,
    };
    start..start.saturating_add((count as usize).clamp(1, LISTED_MAX)).min(len)
}

/// Rows of a chunk, as changes.
#[derive(Debug, Default)]
struct EncodedRows {
    parts: Parts,
    row: BytesMut,
}

impl EncodedRows {
    fn push(&mut self, codec: &TableCodec, row: &CopyRow<'_>) -> Result<(), ReadFailure> {
        let mut bytes = std::mem::take(&mut self.row);
        bytes.clear();
        let values = row.values().map(|value| value.map_or(Value::Null, Value::Text));
        codec.encoder.encode(values, &mut bytes).map_err(|error| SnapshotError::from(CaptureError::Encode(error)))?;
        push_change(&reconcile::read(codec.row_type, &bytes), Lsn::ZERO, &mut self.parts);
        self.row = bytes;
        Ok(())
    }

    fn into_chunk(self, (snapshot, table_oid): (u32, u32), facts: ChunkFacts, work: Work) -> Chunk {
        let (visibility, high_lsn) = (facts.visibility, facts.high_watermark);
        let asked_keys = match work {
            Work::Keys { keys, .. } => keys,
            Work::Share { .. } | Work::Blocks { .. } | Work::Chunk { .. } | Work::Finish { .. } => Vec::new(),
        };
        let parts = self.parts.finish();
        // Another fingerprint is an error of the reader's.
        let (as_planned, marks) = (true, false);
        Chunk { snapshot, table_oid, visibility, high_lsn, as_planned, marks, parts, asked_keys }
    }
}

/// Reads one chunk at a time, over a session of its own.
#[derive(Debug)]
pub(crate) struct Reader {
    config: ConnectConfig,
    reader: ChunkReader,
    /// The stream's connection at which the session began.
    connection: u64,
}

/// A chunk could not be read.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    /// Fewer rows at once are needed.
    TooLarge,
    /// The table is not what it was when it was planned.
    TableChanged,
    /// The snapshot that the table's blocks are read under has ended, or is of another connection.
    SharedGone,
    Failed(Box<SnapshotError>),
}

impl From<SnapshotReadError> for ReadFailure {
    fn from(error: SnapshotReadError) -> Self {
        match error {
            SnapshotReadError::OverBudget { .. } => ReadFailure::TooLarge,
            SnapshotReadError::DefinitionChanged { .. } => ReadFailure::TableChanged,
            SnapshotReadError::SharedSnapshotGone { .. } => ReadFailure::SharedGone,
            other => SnapshotError::from(other).into(),
        }
    }
}

impl Reader {
    pub(crate) fn new(config: &ConnectConfig) -> Self {
        let reader = ChunkReader::new(config.clone(), ReadLimits::default());
        Reader { config: config.clone(), reader, connection: 0 }
    }

    /// The stream has this connection: a session from before another may be to a server that is not the primary any more.
    pub(crate) fn beside(&mut self, connection: u64) {
        if self.connection != connection {
            self.reader = ChunkReader::new(self.config.clone(), ReadLimits::default());
            self.connection = connection;
        }
    }

    /// Reads what the work says, which is not to finish, for a snapshot.
    pub(crate) async fn read(
        &mut self,
        snapshot: u32,
        planned: &Planned,
        work: Work,
    ) -> Result<(Read, Chunk), ReadFailure> {
        let shared = match &work {
            Work::Share { attempt } => return self.share(snapshot, planned, *attempt).await,
            Work::Blocks { shared, .. } => {
                let shared = shared.upgrade().filter(|shared| shared.connection == self.connection);
                Some(shared.ok_or(ReadFailure::SharedGone)?)
            }
            Work::Chunk { .. } | Work::Keys { .. } | Work::Finish { .. } => None,
        };
        let shared = shared.as_deref();
        let range = planned.range(&work, shared)?;
        let mut rows = EncodedRows::default();
        let imported = shared.map(|shared| &shared.shared);
        let chunk = tidegate_postgres::snapshot::Chunk { plan: &planned.plan, range: &range, shared: imported };
        let mut facts = Box::pin(self.reader.read(chunk, |row| rows.push(&planned.codec, row))).await?;
        let end = planned.end(&work, shared, &facts);
        if let Some(shared) = imported {
            // Its mark has waited for all that it sees.
            facts.high_watermark = shared.high_watermark();
        }
        let read = Read {
            attempt: work.attempt(),
            row_count: facts.row_count,
            byte_count: facts.byte_count,
            elapsed: facts.elapsed,
            end,
            shared: None,
        };
        Ok((read, rows.into_chunk((snapshot, planned.table_oid()), facts, work)))
    }

    /// Takes the snapshot under which all blocks of a table are read: the mark of its pass.
    async fn share(&self, snapshot: u32, planned: &Planned, attempt: u32) -> Result<(Read, Chunk), ReadFailure> {
        let (table_oid, started) = (planned.table_oid(), Instant::now());
        let shared = Box::pin(SharedSnapshot::open(&self.config, &ReadLimits::default(), &planned.plan)).await?;
        let (fingerprint, connection) = (planned.plan.fingerprint.clone(), self.connection);
        let shared = SharedPass { shared, fingerprint, connection, attempt };
        let mut parts = Parts::default();
        let extra = Extra::Truncate { cascade: false, restart_identity: false };
        let void = ChangeParts { op: Op::Truncate, extra, ..reconcile::read(planned.codec.row_type, &[]) };
        push_change(&void, Lsn::ZERO, &mut parts);
        let chunk = Chunk {
            snapshot,
            table_oid,
            visibility: shared.shared.visibility().clone(),
            high_lsn: shared.shared.high_watermark(),
            as_planned: true,
            marks: true,
            parts: parts.finish(),
            asked_keys: Vec::new(),
        };
        let (elapsed, end) = (started.elapsed(), Some(shared.start()));
        let shared = Some(Arc::new(shared));
        Ok((Read { attempt, row_count: 0, byte_count: 0, elapsed, end, shared }, chunk))
    }
}

impl From<SnapshotError> for ReadFailure {
    fn from(error: SnapshotError) -> Self {
        ReadFailure::Failed(Box::new(error))
    }
}
