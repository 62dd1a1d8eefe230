//! The mirror's part in the writer: blocks pass through it on their way to the log, and after an fsync it takes what is durable.
//!
//! Invariant: a block that has been filled is appended before the next is filled, so that a mirror that fails can be opened again
//! from the log, and go on where it was. While it cannot be opened, for want of room perhaps, nothing is taken from the feed.

use std::{collections::VecDeque, future, sync::Arc};

use tidegate_feed::Receive;
use tidegate_model::{Block, Position, TableName};
use tokio::time::{Duration, Instant, timeout_at};

use super::{BATCH_BYTES, FULL_RETRY, Intake, Step, StoreWriter, blocking};
use crate::{LogFacts, Mirror, MirrorConfig, MirrorError, MirrorReader, StoreError, log::Log, mirror::demand};

/// A mirror that fails as often in a row, although it can be opened, is dropped.
const FAILURES_MAX: u32 = 3;
/// How often the mirror is made to survive a power failure.
const PERSIST_INTERVAL: Duration = Duration::from_secs(5);

/// A writer's mirror.
#[derive(Debug)]
pub(super) struct Mirroring {
    config: MirrorConfig,
    reader: MirrorReader,
    /// None before the first epoch, and while a thread works with it.
    mirror: Option<Mirror>,
    /// The log is needed from here on.
    needed: Position,
    has_work: bool,
    /// It has failed so often since it last took something.
    failures: u32,
    persist_from: Instant,
    /// What was asked for could not be remembered, and is tried again then.
    ask_again: Option<Instant>,
}

/// Blocks on their way through the mirror.
struct Filling {
    blocks: VecDeque<Block>,
    /// Entry of the first of them to go on with.
    at: usize,
    filled: Vec<Block>,
    failed: Option<MirrorError>,
}

impl Mirroring {
    /// There is a mirror from the first table on.
    fn follows_any(&self) -> bool {
        !self.config.tables.is_empty()
    }

    pub(super) fn asks_again(&self) -> Option<Instant> {
        self.ask_again
    }

    /// Has something been asked for that is to be followed now?
    fn has_requests(&self) -> bool {
        self.ask_again.is_none_or(|at| Instant::now() >= at) && !self.reader.table_requests().is_empty()
    }
}

impl StoreWriter {
    /// Keeps a mirror beside the changelog, from [`StoreWriter::run`] on.
    ///
    /// # Errors
    /// What has been asked for cannot be read.
    pub fn keep_mirror(&mut self, mut config: MirrorConfig) -> Result<MirrorReader, StoreError> {
        let mut asked = demand::asked(&config.dir)?;
        asked.retain(|table| config.on_demand.matches(table));
        config.tables = config.tables.with(&asked);
        let reader = MirrorReader::new(config.tables.clone(), config.on_demand.clone());
        self.mirroring = Some(Mirroring {
            config,
            reader: reader.clone(),
            mirror: None,
            needed: Position::ZERO,
            has_work: true,
            failures: 0,
            persist_from: Instant::now(),
            ask_again: None,
        });
        Ok(reader)
    }

    /// Appends a batch as the mirror completes it.
    pub(super) async fn fill_and_append<F: Receive>(
        &mut self,
        batch: Vec<Block>,
        intake: &mut Intake<F>,
    ) -> Result<Step, StoreError> {
        if !self.mirroring.as_ref().is_some_and(Mirroring::follows_any) {
            return self.append(batch, intake).await;
        }
        let mut filling = Filling { blocks: batch.into(), at: 0, filled: Vec::new(), failed: None };
        while !filling.blocks.is_empty() {
            let work = move |mirror: &mut Mirror| fill(mirror, filling);
            filling = self.on_mirror(work).await.expect("blocks come after an epoch has begun, and with it the mirror");
            if self.append(std::mem::take(&mut filling.filled), intake).await? == Step::Stopped {
                return Ok(Step::Stopped);
            }
            if let Some(error) = filling.failed.take() {
                if self.mend_mirror(error, intake).await? == Step::Stopped {
                    return Ok(Step::Stopped);
                }
                continue;
            }
            let Some(mirror) = self.mirroring.as_mut().and_then(|mirroring| mirroring.mirror.as_mut()) else {
                continue;
            };
            mirror.appended();
            if mirror.is_full() {
                self.make_durable(intake).await?;
                if self.advance_mirror(intake).await? == Step::Stopped {
                    return Ok(Step::Stopped);
                }
            }
        }
        Ok(Step::Done)
    }

    /// Lets the mirror take what is durable, and do a little of its own work.
    pub(super) async fn advance_mirror<F: Receive>(&mut self, intake: &mut Intake<F>) -> Result<Step, StoreError> {
        if self.mirroring.as_ref().is_some_and(Mirroring::has_requests)
            && self.follow_requested(intake).await? == Step::Stopped
        {
            return Ok(Step::Stopped);
        }
        let durable = self.shared.head.borrow().durable;
        let Some(mirroring) = &mut self.mirroring else { return Ok(Step::Done) };
        let is_behind = mirroring.mirror.as_ref().is_some_and(|mirror| mirror.is_behind(durable));
        if !is_behind && !mirroring.has_work {
            return Ok(Step::Done);
        }
        let persist = Instant::now() >= mirroring.persist_from;
        if persist {
            mirroring.persist_from = Instant::now() + PERSIST_INTERVAL;
        }
        let work = move |mirror: &mut Mirror| {
            mirror.synced(durable)?;
            if persist {
                mirror.persist()?;
            }
            Ok((mirror.work()?, persist.then(|| mirror.position())))
        };
        match self.on_mirror(work).await {
            Some(Ok((has_work, persisted))) => {
                if let Some(mirroring) = &mut self.mirroring {
                    mirroring.has_work = has_work || is_behind;
                    mirroring.failures = 0;
                    mirroring.needed = persisted.unwrap_or(mirroring.needed);
                }
                Ok(Step::Done)
            }
            Some(Err(error)) => self.mend_mirror(error, intake).await,
            None => Ok(Step::Done),
        }
    }

    /// Follows what has been asked for: the mirror is opened again, of more tables.
    async fn follow_requested<F: Receive>(&mut self, intake: &mut Intake<F>) -> Result<Step, StoreError> {
        let Some(mirroring) = &mut self.mirroring else { return Ok(Step::Done) };
        let requested = mirroring.reader.table_requests();
        let (dir, tables) = (mirroring.config.dir.clone(), mirroring.config.tables.with(&requested));
        let names = requested.iter().map(TableName::to_string).collect::<Vec<_>>();
        if let Err(error) = blocking(move || demand::remember(&dir, &requested)).await {
            tracing::error!(%error, tables = ?names, "tables that a shape needs cannot be mirrored yet; it is tried again");
            mirroring.ask_again = Some(Instant::now() + FULL_RETRY);
            return Ok(Step::Done);
        }
        tracing::info!(tables = ?names, "tables are mirrored from now on, as a shape needs them");
        mirroring.ask_again = None;
        mirroring.config.tables = tables.clone();
        mirroring.reader.follow(tables);
        self.make_durable(intake).await?;
        self.open_mirror(intake).await
    }

    /// Opens the mirror of the current epoch, where there is one, and brings it up to date.
    pub(super) async fn open_mirror<F: Receive>(&mut self, intake: &mut Intake<F>) -> Result<Step, StoreError> {
        loop {
            let (Some(mirroring), Some(appender)) = (&mut self.mirroring, &self.appender) else {
                return Ok(Step::Done);
            };
            if !mirroring.follows_any() {
                let dir = mirroring.config.dir.clone();
                blocking(move || crate::mirror::remove_dir(&dir)).await?;
                return Ok(Step::Done);
            }
            let (log, row_types) = (Arc::clone(&appender.log), Arc::clone(appender.row_types.known()));
            let facts = LogFacts { epoch: log.epoch, earliest: log.earliest(), complete: appender.complete() };
            let (config, reader) = (mirroring.config.clone(), mirroring.reader.clone());
            let failed = mirroring.mirror.take();
            let opened = blocking(move || {
                // Its files are let go of before they are opened again.
                let held = failed.map(Mirror::into_held);
                let mut mirror = Mirror::open(config, facts, &row_types, &reader)?;
                replay(&mut mirror, &log, facts.complete)?;
                if let Some(held) = held {
                    mirror.go_on_with(held);
                }
                Ok(mirror)
            });
            match opened.await {
                Ok(mirror) => {
                    tracing::info!(position = %mirror.position(), "the mirror is open");
                    (mirroring.needed, mirroring.has_work) = (mirror.position(), true);
                    mirroring.mirror = Some(mirror);
                    return Ok(Step::Done);
                }
                Err(StoreError::Mirror(error)) if error.is_transient() => {
                    tracing::error!(%error, "the mirror cannot be opened; it is tried again, and capture waits");
                    tokio::select! {
                        () = tokio::time::sleep(FULL_RETRY) => {}
                        () = intake.stop.cancelled() => return Ok(Step::Stopped),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// After an error: opens the mirror again, or, where it is damaged, another in its place.
    async fn mend_mirror<F: Receive>(
        &mut self,
        error: MirrorError,
        intake: &mut Intake<F>,
    ) -> Result<Step, StoreError> {
        if matches!(error, MirrorError::Record { .. }) {
            return Err(error.into());
        }
        tracing::error!(%error, "the mirror is opened again");
        self.make_durable(intake).await?;
        let (Some(mirroring), Some(appender)) = (&mut self.mirroring, &self.appender) else { return Ok(Step::Done) };
        mirroring.failures += 1;
        if mirroring.failures > 1 {
            tokio::select! {
                () = tokio::time::sleep(FULL_RETRY) => {}
                () = intake.stop.cancelled() => return Ok(Step::Stopped),
            }
        }
        if !error.is_transient() || mirroring.failures > FAILURES_MAX {
            tracing::error!("the mirror is dropped, and its tables need a snapshot");
            let (dir, reader) = (mirroring.config.dir.join(appender.log.epoch.to_string()), mirroring.reader.clone());
            blocking(move || {
                reader.close();
                crate::mirror::remove_dir(&dir)
            })
            .await?;
        }
        self.open_mirror(intake).await
    }

    /// Makes what the mirror has survive; the log is needed from the returned position on.
    pub(super) async fn persist_mirror(&mut self) -> Position {
        let durable = self.shared.head.borrow().durable;
        let persisted = self.on_mirror(|mirror| mirror.persist().map(|()| mirror.position())).await;
        let Some(mirroring) = self.mirroring.as_mut().filter(|mirroring| mirroring.follows_any()) else {
            return durable;
        };
        match persisted {
            Some(Ok(position)) => mirroring.needed = position,
            // Whoever writes to it next meets the error again, and mends it.
            Some(Err(error)) => tracing::warn!(%error, "the mirror could not be fsynced"),
            None => {}
        }
        mirroring.needed.min(durable)
    }

    /// The mirror was of another epoch.
    pub(super) async fn drop_mirror(&mut self) {
        let mirror = self.mirroring.as_mut().and_then(|mirroring| mirroring.mirror.take());
        blocking(move || drop(mirror)).await;
    }

    pub(super) fn mirror_has_work(&self) -> bool {
        self.mirroring.as_ref().is_some_and(|mirroring| mirroring.has_work && mirroring.mirror.is_some())
    }

    /// Notes that the mirror may have something to do.
    pub(super) fn mirror_is_asked(&mut self) {
        if let Some(mirroring) = &mut self.mirroring {
            mirroring.has_work = true;
        }
    }

    pub(super) fn mirror_reader(&self) -> Option<MirrorReader> {
        self.mirroring.as_ref().map(|mirroring| mirroring.reader.clone())
    }

    async fn on_mirror<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Mirror) -> T + Send + 'static,
    ) -> Option<T> {
        let mut mirror = self.mirroring.as_mut()?.mirror.take()?;
        let (mirror, output) = blocking(move || {
            let output = work(&mut mirror);
            (mirror, output)
        })
        .await;
        if let Some(mirroring) = &mut self.mirroring {
            mirroring.mirror = Some(mirror);
        }
        Some(output)
    }
}

/// Resolves when something is asked of the mirror, or is to be tried again.
pub(super) async fn asked(reader: Option<&MirrorReader>, again: Option<Instant>) {
    let Some(reader) = reader else { return future::pending().await };
    match again {
        Some(again) => _ = timeout_at(again, reader.requested()).await,
        None => reader.requested().await,
    }
}

/// Fills until there is a batch to append.
fn fill(mirror: &mut Mirror, mut filling: Filling) -> Filling {
    let mut byte_count = 0;
    while let Some(block) = filling.blocks.front() {
        match mirror.fill(block, &mut filling.at) {
            Ok(blocks) => {
                byte_count += blocks.iter().map(Block::byte_count).sum::<usize>();
                filling.filled.extend(blocks);
            }
            Err(error) => {
                filling.failed = Some(error);
                break;
            }
        }
        if filling.at >= block.entries().len() {
            filling.blocks.pop_front();
            filling.at = 0;
        }
        if byte_count >= BATCH_BYTES {
            break;
        }
    }
    filling
}

/// Brings a mirror up to date with all that the log has, the beginning of an unfinished transaction included.
fn replay(mirror: &mut Mirror, log: &Log, durable: Position) -> Result<(), StoreError> {
    let mut at = log.locate(mirror.position().as_resume_point())?;
    while at < log.end() {
        let segment = log.segment_at(at)?;
        let to = segment.end();
        let frames = segment.frames(at, to);
        mirror.replay(durable, frames.map(|placed| placed.map(|placed| placed.block).map_err(StoreError::from)))?;
        at = to;
    }
    Ok(())
}
