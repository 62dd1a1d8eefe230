//! Reads chunks of tables and encodes them: rows become the same bytes as in the stream.

use std::sync::Arc;

use bytes::BytesMut;
use tidegate_model::{BlockBuilder, Lsn};
use tidegate_postgres::{
    ConnectConfig,
    snapshot::{ChunkFacts, ChunkReader, CopyRow, Cursor, KeyValues, Range, ReadLimits, SnapshotReadError, TablePlan},
};
use tidegate_schema::{RowText, Value};

use super::{
    job::{Place, Read, Work},
    reconcile::{self, Chunk},
    requests::SnapshotError,
};
use crate::{CaptureError, table::TableCodec, transaction::PART_BYTES};
use tidegate_schema::{Room, push_change};

/// A table as it is read: what PostgreSQL has, and how we encode it.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) plan: TablePlan,
    pub(crate) codec: Arc<TableCodec>,
}

impl Planned {
    pub(crate) fn table_oid(&self) -> u32 {
        self.codec.table_oid
    }

    pub(crate) fn row_count_estimated(&self) -> u64 {
        self.plan.row_count_estimate.unwrap_or(0)
    }

    fn range(&self, work: &Work) -> Result<Range, ReadFailure> {
        match work {
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
            Work::Finish { .. } => unreachable!("the stream is asked, not PostgreSQL"),
        }
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

/// Rows of a chunk, as changes.
#[derive(Debug, Default)]
struct EncodedRows {
    done: Vec<BlockBuilder>,
    open: BlockBuilder,
    row: BytesMut,
}

impl Room for EncodedRows {
    fn room(&mut self) -> &mut BlockBuilder {
        if self.open.byte_count() >= PART_BYTES {
            self.done.push(std::mem::take(&mut self.open));
        }
        &mut self.open
    }
}

impl EncodedRows {
    fn push(&mut self, codec: &TableCodec, row: &CopyRow<'_>) -> Result<(), ReadFailure> {
        let mut bytes = std::mem::take(&mut self.row);
        bytes.clear();
        let values = row.values().map(|value| value.map_or(Value::Null, Value::Text));
        codec.encoder.encode(values, &mut bytes).map_err(|error| SnapshotError::from(CaptureError::Encode(error)))?;
        push_change(&reconcile::read(codec.row_type, &bytes), Lsn::ZERO, self);
        self.row = bytes;
        Ok(())
    }

    fn into_chunk(mut self, (snapshot, table_oid): (u32, u32), facts: ChunkFacts, work: Work) -> Chunk {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        Chunk {
            snapshot,
            table_oid,
            visibility: facts.visibility,
            high_lsn: facts.high_watermark,
            // Another fingerprint is an error of the reader's.
            as_planned: true,
            parts: self.done,
            asked_keys: match work {
                Work::Keys { keys, .. } => keys,
                Work::Chunk { .. } | Work::Finish { .. } => Vec::new(),
            },
        }
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
    Failed(Box<SnapshotError>),
}

impl From<SnapshotReadError> for ReadFailure {
    fn from(error: SnapshotReadError) -> Self {
        match error {
            SnapshotReadError::OverBudget { .. } => ReadFailure::TooLarge,
            SnapshotReadError::DefinitionChanged { .. } => ReadFailure::TableChanged,
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
        let range = planned.range(&work)?;
        let mut rows = EncodedRows::default();
        let chunk = tidegate_postgres::snapshot::Chunk { plan: &planned.plan, range: &range, shared: None };
        let facts = Box::pin(self.reader.read(chunk, |row| rows.push(&planned.codec, row))).await?;
        let end = matches!(work, Work::Chunk { .. }).then(|| match &facts.next {
            Some(cursor) => Place::After(cursor.to_bytes().into()),
            None => Place::End,
        });
        let read = Read {
            attempt: work.attempt(),
            row_count: facts.row_count,
            byte_count: facts.byte_count,
            elapsed: facts.elapsed,
            end,
        };
        Ok((read, rows.into_chunk((snapshot, planned.table_oid()), facts, work)))
    }
}

impl From<SnapshotError> for ReadFailure {
    fn from(error: SnapshotError) -> Self {
        ReadFailure::Failed(Box::new(error))
    }
}
