//! Reads a chunk of a table in one short transaction.
//!
//! The order of the statements is the proof. The lock comes before the snapshot, so that the table is what the snapshot's catalog
//! says until the rows are read. The watermark comes after it, so that every commit that the snapshot sees lies below.
//! What needs no lock on the table (a renamed enum label, an attached partition) would slip through: therefore the
//! fingerprint is compared once more at the end, under a new snapshot.
//!
//! Invariant: however a reading ends, also by dropping its future, no transaction stays open: a session is kept only after a
//! reading that has succeeded.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::TryStreamExt;
use tidegate_model::{Lsn, TableName, Visibility};
use tokio::time::Instant;

use crate::{
    ConnectConfig,
    snapshot::{
        CopyRow, Cursor, Fingerprint, Range, ReadLimits, SharedSnapshot, SnapshotReadError, TablePlan,
        copy_text::CopyText,
        key::order_of,
        select::Select,
        settings::{ReadingSession, reading_session},
        watermark::high_watermark,
    },
};

/// Reads chunks over a session of its own, which it connects when it is needed.
#[derive(Debug)]
pub struct ChunkReader {
    config: ConnectConfig,
    limits: ReadLimits,
    session: Option<ReadingSession>,
}

/// A chunk to be read.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The table.
    pub plan: &'a TablePlan,
    /// The rows.
    pub range: &'a Range,
    /// See what this sees; None: what is visible now.
    pub shared: Option<&'a SharedSnapshot>,
}

/// What is known of a chunk when all its rows were handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkFacts {
    /// What the rows were read under.
    pub visibility: Visibility,
    /// The plan's: with another one the chunk is an error.
    pub fingerprint: Fingerprint,
    /// Every transaction that `visibility` sees ends at or below this end LSN.
    pub high_watermark: Lsn,
    /// Rows that were handed over.
    pub row_count: u64,
    /// Their size in COPY's text format, and that of rows that the row filter leaves out.
    pub byte_count: u64,
    /// What to read after; None where there is no more, and for all but [`Range::After`].
    pub next: Option<Cursor>,
    /// From the first statement to the last.
    pub elapsed: Duration,
}

/// What a COPY has brought so far.
#[derive(Default)]
struct Progress {
    /// Rows that the row filter leaves out included.
    scanned_row_count: u64,
    row_count: u64,
    byte_count: u64,
    last: Option<Bytes>,
}

impl ChunkReader {
    /// A reader; it connects with the first chunk.
    #[must_use]
    pub fn new(config: ConnectConfig, limits: ReadLimits) -> Self {
        ChunkReader { config, limits, session: None }
    }

    /// Reads a chunk and hands each row to `sink`. Rows count only once the facts are there: after an error, those that were
    /// handed over are void.
    ///
    /// # Errors
    /// What [`SnapshotReadError`] tells apart, and the sink's own. `retry()` says what to do; the reader can be used again.
    pub async fn read<E: From<SnapshotReadError>>(
        &mut self,
        chunk: Chunk<'_>,
        mut sink: impl FnMut(&CopyRow<'_>) -> Result<(), E>,
    ) -> Result<ChunkFacts, E> {
        let session = match self.session.take().filter(|session| !session.client().is_closed()) {
            Some(session) => session,
            None => reading_session(&self.config, &self.limits).await?,
        };
        let started = Instant::now();
        let reading = Reading { session: &session, limits: &self.limits, chunk, table: chunk.plan.name() };
        let mut facts = Box::pin(reading.read(&mut sink)).await?;
        facts.elapsed = started.elapsed();
        self.session = Some(session);
        Ok(facts)
    }
}

/// One chunk's reading.
struct Reading<'a> {
    session: &'a ReadingSession,
    limits: &'a ReadLimits,
    chunk: Chunk<'a>,
    table: TableName,
}

impl Reading<'_> {
    async fn read<E: From<SnapshotReadError>>(
        &self,
        sink: &mut impl FnMut(&CopyRow<'_>) -> Result<(), E>,
    ) -> Result<ChunkFacts, E> {
        let plan = self.chunk.plan;
        let select = Select::new(plan, self.chunk.range)?;
        self.begin(&select).await?;
        let began = self.session.facts(plan).await?;
        // The catalog is the shared snapshot's there, which the lock came too late for; the second comparison decides.
        if self.chunk.shared.is_none() {
            self.check(&began.fingerprint)?;
        }
        let copied = self.copy(&select, sink).await?;
        let doing = SnapshotReadError::of(&self.table, "end a chunk's transaction");
        self.session.client().batch_execute("COMMIT").await.map_err(doing)?;
        let high_watermark = high_watermark(self.session.session(), &self.table).await?;
        let ended = self.session.facts(plan).await?;
        self.check(&ended.fingerprint)?;
        Ok(ChunkFacts {
            visibility: began.visibility,
            fingerprint: ended.fingerprint,
            high_watermark,
            row_count: copied.row_count,
            byte_count: copied.byte_count,
            next: self.next(&select, &copied)?,
            elapsed: Duration::ZERO,
        })
    }

    async fn begin(&self, select: &Select) -> Result<(), SnapshotReadError> {
        // An exported snapshot's name is PostgreSQL's own: digits, letters, dashes.
        let import = self.chunk.shared.map(|shared| format!("SET TRANSACTION SNAPSHOT '{}'; ", shared.id()));
        let sql = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}LOCK TABLE {} IN ACCESS SHARE MODE",
            import.unwrap_or_default(),
            select.lock
        );
        let doing = SnapshotReadError::of(&self.table, "begin a chunk's transaction");
        self.session.client().batch_execute(&sql).await.map_err(doing)
    }

    fn check(&self, fingerprint: &Fingerprint) -> Result<(), SnapshotReadError> {
        if *fingerprint == self.chunk.plan.fingerprint {
            return Ok(());
        }
        Err(SnapshotReadError::DefinitionChanged { table: self.table.clone() })
    }

    async fn copy<E: From<SnapshotReadError>>(
        &self,
        select: &Select,
        sink: &mut impl FnMut(&CopyRow<'_>) -> Result<(), E>,
    ) -> Result<Progress, E> {
        let failed = SnapshotReadError::of(&self.table, "read a chunk's rows");
        let doing = |error| match self.chunk.plan.condition {
            Some(_) => failed(error).of_condition(&self.table),
            None => failed(error),
        };
        let sql = format!("COPY ({}) TO STDOUT", select.query);
        let mut lines = pin!(self.session.client().copy_out(&sql).await.map_err(&doing)?);
        let mut text = CopyText::default();
        let mut progress = Progress::default();
        // PostgreSQL sends a line a message (manual, section 55.2.7).
        while let Some(line) = lines.try_next().await.map_err(&doing)? {
            progress.scanned_row_count += 1;
            progress.byte_count += line.len() as u64;
            if progress.byte_count > self.limits.byte_budget && !self.chunk.range.is_single() {
                let (table, byte_budget) = (self.table.clone(), self.limits.byte_budget);
                return Err(SnapshotReadError::OverBudget { table, byte_budget }.into());
            }
            let row = self.row(select, &mut text, &line)?;
            if !select.tells_filter || row.value(self.column_count()) == Some(b"t") {
                progress.row_count += 1;
                sink(&row.first(self.column_count()))?;
            }
            progress.last = Some(line);
        }
        Ok(progress)
    }

    fn column_count(&self) -> usize {
        self.chunk.plan.relation.columns.len()
    }

    fn row<'a>(
        &self,
        select: &Select,
        text: &'a mut CopyText,
        line: &'a [u8],
    ) -> Result<CopyRow<'a>, SnapshotReadError> {
        let column_count = self.column_count() + usize::from(select.tells_filter);
        let unexpected =
            |_| SnapshotReadError::Unexpected { table: self.table.clone(), problem: "a malformed COPY line" };
        text.read(line, column_count).map_err(unexpected)
    }

    /// The last row's key, where there may be rows behind it.
    fn next(&self, select: &Select, copied: &Progress) -> Result<Option<Cursor>, SnapshotReadError> {
        let Range::After { row_limit, .. } = self.chunk.range else { return Ok(None) };
        let Some(last) = copied.last.as_ref().filter(|_| copied.scanned_row_count >= u64::from((*row_limit).max(1)))
        else {
            return Ok(None);
        };
        let mut text = CopyText::default();
        let row = self.row(select, &mut text, last)?;
        let key = &self.chunk.plan.key;
        let value = |column: usize| {
            let null = SnapshotReadError::Unexpected { table: self.table.clone(), problem: "a key that is NULL" };
            row.value(column).map(Into::into).ok_or(null)
        };
        let values = key.iter().map(|column| value(column.column)).collect::<Result<_, _>>()?;
        Ok(Some(Cursor { order: order_of(key), key: values }))
    }
}
