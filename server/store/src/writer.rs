//! The task that applies a feed to the changelog: append, show, fsync, report.
//!
//! Blocks are appended and shown in batches of what the feed has ready. One fsync runs at a time, beside the appending, and
//! covers whatever was appended when it started (group commit); only then is it reported durable.
//!
//! What a snapshot puts in does not come again, so it is fsynced first and shown then; what came before it in the batch
//! does not wait for that.
//!
//! Invariant: what is reported durable is complete and fsynced, and so is each snapshot's record that readers see. When the disk is full, the batch is kept and tried again
//! every second, readers go on, and the feed's budget holds back capture. Any other I/O error ends the writer: after a
//! failed fsync nobody knows what is on the disk until it is read again.

use std::{
    fmt,
    fs::{self, File},
    future::Future,
    panic::resume_unwind,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tidegate_feed::{Durable, FeedItem, Receive};
use tidegate_model::{Block, Clock, Delivered, Epoch, EpochInfo, Position};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

mod mirroring;

use crate::{
    StoreConfig, StoreError,
    append::{Appender, Sync},
    layout::{self, cannot},
    order::Order,
    retention::expired,
    run::Run,
    store::Shared,
    transactions::Transactions,
    writer::mirroring::Mirroring,
};

/// A batch is appended when it has this many bytes, or a segment's, or the feed has nothing ready.
const BATCH_BYTES: usize = 1 << 20;
/// Unfinished transactions are synced in parts of this size, so that their commit does not have to wait for all of it.
const SYNC_BYTES: u64 = 16 << 20;
/// Between the starts of two fsyncs: what comes sooner shares one. Readers do not wait for it.
const SYNC_INTERVAL: Duration = Duration::from_millis(20);
/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_secs(1);
/// How often the retention's age is looked at.
const TRIM_INTERVAL: Duration = Duration::from_secs(30);

/// Applies a feed to the changelog. There is one per store; it holds the directory's lock.
pub struct StoreWriter {
    config: StoreConfig,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    /// None before the first epoch, and while a thread works with it.
    appender: Option<Appender>,
    order: Order,
    transactions: Transactions,
    /// The fsync that is under way, at most one.
    syncing: JoinSet<Result<Sync, StoreError>>,
    /// When the next fsync may start.
    sync_from: Instant,
    run: Run,
    mirroring: Option<Mirroring>,
    _lock: File,
}

impl fmt::Debug for StoreWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreWriter").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Where a writer's work comes from.
struct Intake<F> {
    feed: F,
    stop: CancellationToken,
}

/// Was a step done?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Done,
    /// The disk was full until `stop`.
    Stopped,
}

impl StoreWriter {
    pub(crate) fn new(
        config: StoreConfig,
        shared: Arc<Shared>,
        appender: Option<Appender>,
        (lock, clock, run): (File, Arc<dyn Clock>, Run),
    ) -> Self {
        let complete = appender.as_ref().map_or(Position::ZERO, Appender::complete);
        StoreWriter {
            config,
            shared,
            clock,
            appender,
            order: Order::new(complete),
            transactions: Transactions::default(),
            syncing: JoinSet::new(),
            sync_from: Instant::now(),
            run,
            mirroring: None,
            _lock: lock,
        }
    }

    /// Runs until the feed ends, or until `stop`; then it takes what the feed has ready, makes everything durable, reports
    /// it, and returns. With a full disk it returns at `stop` without what did not fit, which was never reported.
    ///
    /// # Errors
    /// Everything but a full disk: see [`StoreError`].
    pub async fn run(mut self, feed: impl Receive, stop: CancellationToken) -> Result<(), StoreError> {
        let applied = self.apply(Intake { feed, stop }).await;
        let (mut run, is_orderly) = (self.run, applied.is_ok());
        blocking(move || run.end(is_orderly)).await;
        applied
    }

    async fn apply(&mut self, mut intake: Intake<impl Receive>) -> Result<(), StoreError> {
        let mut trim = tokio::time::interval(TRIM_INTERVAL);
        trim.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.report(&intake.feed);
        if self.open_mirror(&mut intake).await? == Step::Stopped {
            return Ok(());
        }
        let mirror = self.mirror_reader();
        loop {
            let again = self.mirroring.as_ref().and_then(Mirroring::asks_again);
            tokio::select! {
                biased;
                () = intake.stop.cancelled() => break,
                Some(done) = self.syncing.join_next() => self.synced(done, &intake.feed)?,
                _ = trim.tick() => self.trim().await?,
                () = tokio::time::sleep_until(self.sync_from), if self.sync_is_due() => {}
                item = intake.feed.next() => match item {
                    Some(item) => if self.take(item, &mut intake).await? == Step::Stopped {
                        return self.make_durable(&mut intake).await;
                    },
                    None => break,
                },
                () = mirroring::asked(mirror.as_ref(), again) => self.mirror_is_asked(),
                () = std::future::ready(()), if self.mirror_has_work() => {}
            }
            if Instant::now() >= self.sync_from {
                self.start_sync();
            }
            if self.advance_mirror(&mut intake).await? == Step::Stopped {
                return self.make_durable(&mut intake).await;
            }
        }
        while let Some(Some(item)) = ready(intake.feed.next()).await {
            // Nothing may follow what did not fit: it would leave a gap.
            if self.take(item, &mut intake).await? == Step::Stopped {
                break;
            }
        }
        self.make_durable(&mut intake).await?;
        self.advance_mirror(&mut intake).await?;
        self.persist_mirror().await;
        Ok(())
    }

    /// Takes an item, and whatever else the feed has ready, up to a batch.
    async fn take<F: Receive>(&mut self, item: FeedItem, intake: &mut Intake<F>) -> Result<Step, StoreError> {
        let batch_bytes = BATCH_BYTES.min(usize::try_from(self.config.segment_bytes).unwrap_or(BATCH_BYTES));
        let (mut batch, mut byte_count) = (Vec::new(), 0);
        let mut item = Some(item);
        while let Some(next) = item {
            match next {
                FeedItem::Block(block) => {
                    if self.appender.is_none() {
                        return Err(StoreError::NoEpoch);
                    }
                    byte_count += block.byte_count();
                    batch.extend(self.order.accept(block)?);
                }
                FeedItem::Epoch(info, _) | FeedItem::Timeline(info) if self.current_epoch() == Some(info.epoch) => {
                    if self.fill_and_append(std::mem::take(&mut batch), intake).await? == Step::Stopped {
                        return Ok(Step::Stopped);
                    }
                    return self.change_timeline(info, intake).await;
                }
                FeedItem::Epoch(info, reason) => {
                    // Readers of the old epoch receive all that it had before they are told of the new one.
                    if self.fill_and_append(std::mem::take(&mut batch), intake).await? == Step::Stopped {
                        return Ok(Step::Stopped);
                    }
                    let reason = reason.map(|reason| Arc::from(reason.replace(['\n', '\r'], " ")));
                    return self.begin_epoch(info, reason, intake).await;
                }
                FeedItem::Timeline(_) => return Err(StoreError::NoEpoch),
                FeedItem::DeliveredUpTo(delivered_lsn) => {
                    let mut run = self.run.clone();
                    self.run = blocking(move || {
                        run.delivered(Delivered::UpTo(delivered_lsn));
                        run
                    })
                    .await;
                }
            }
            if byte_count >= batch_bytes {
                break;
            }
            item = ready(intake.feed.next()).await.flatten();
        }
        self.fill_and_append(batch, intake).await
    }

    /// Appends and shows a batch; from the first block on that completes a part of a snapshot, only when it is fsynced.
    async fn append<F: Receive>(&mut self, mut batch: Vec<Block>, intake: &mut Intake<F>) -> Result<Step, StoreError> {
        let at = batch.iter().position(completes_of_snapshot).unwrap_or(batch.len());
        let synced_first = batch.split_off(at);
        for (part, sync_first) in [(batch, false), (synced_first, true)] {
            if !part.is_empty() && self.append_part(part, sync_first, intake).await? == Step::Stopped {
                return Ok(Step::Stopped);
            }
        }
        Ok(Step::Done)
    }

    async fn append_part<F: Receive>(
        &mut self,
        batch: Vec<Block>,
        sync_first: bool,
        intake: &mut Intake<F>,
    ) -> Result<Step, StoreError> {
        let batch: Arc<[Block]> = batch.into();
        let placed = loop {
            let (blocks, now_us) = (Arc::clone(&batch), self.clock.now_us());
            let mut appender = self.appender.take().ok_or(StoreError::NoEpoch)?;
            let (appender, appended) = if appender.is_quick(&blocks) {
                let appended = appender.append(&blocks, now_us);
                (appender, appended)
            } else {
                blocking(move || {
                    let appended = appender.append(&blocks, now_us);
                    (appender, appended)
                })
                .await
            };
            self.appender = Some(appender);
            match appended {
                Ok(placed) => break placed,
                Err(error) if error.is_disk_full() => {
                    if self.wait_for_room(&error, intake).await? == Step::Stopped {
                        return Ok(Step::Stopped);
                    }
                }
                Err(error) => return Err(error),
            }
        };
        for block in batch.iter() {
            self.transactions.observe(block)?;
        }
        if sync_first {
            self.sync_all(&intake.feed).await?;
        }
        let Some(appender) = &self.appender else { return Ok(Step::Done) };
        self.show_row_types(appender);
        self.show_snapshots(appender);
        appender.log.publish(placed);
        self.show_head(appender);
        self.room_again(&intake.feed);
        if self.shared.head.borrow().changelog_bytes > self.config.retention.size_bytes {
            self.trim().await?;
        }
        Ok(Step::Done)
    }

    async fn begin_epoch<F: Receive>(
        &mut self,
        info: EpochInfo,
        reason: Option<Arc<str>>,
        intake: &mut Intake<F>,
    ) -> Result<Step, StoreError> {
        // An fsync of the old log may not be mistaken for one of the new.
        while let Some(done) = self.syncing.join_next().await {
            sync_outcome(done)?;
        }
        let appender = loop {
            let (dir, bytes) = (self.config.dir.clone(), (self.config.segment_bytes, self.config.tail_bytes));
            let why = reason.clone();
            match blocking(move || Appender::begin(&dir, &info, why.as_deref(), bytes)).await {
                Ok(appender) => break appender,
                Err(error) if error.is_disk_full() => {
                    if self.wait_for_room(&error, intake).await? == Step::Stopped {
                        return Ok(Step::Stopped);
                    }
                }
                Err(error) => return Err(error),
            }
        };
        tracing::info!(epoch = %info.epoch, start_lsn = %info.start_lsn, timeline = info.timeline, "the changelog begins anew");
        let complete = appender.complete();
        self.order = Order::new(complete);
        self.transactions = Transactions::default();
        *self.shared.reset_reason.write().unwrap_or_else(PoisonError::into_inner) = reason;
        let log = Arc::clone(&appender.log);
        let old = self.shared.log.write().unwrap_or_else(PoisonError::into_inner).replace(log);
        let former = self.shared.row_types.read().unwrap_or_else(PoisonError::into_inner).clone();
        *self.shared.former_row_types.write().unwrap_or_else(PoisonError::into_inner) = former;
        self.show_row_types(&appender);
        self.show_snapshots(&appender);
        // Whoever knows the epoch and finds a mirror finds this epoch's.
        if let Some(reader) = self.mirror_reader() {
            reader.close();
        }
        self.shared.head.send_modify(|head| {
            head.epoch = Some(info.epoch);
            (head.complete, head.durable, head.earliest) = (complete, complete, complete);
            (head.commit_time_us, head.changelog_bytes) = (0, 0);
        });
        self.appender = Some(appender);
        if let Some(old) = old {
            old.supersede(info.epoch);
        }
        self.room_again(&intake.feed);
        self.report(&intake.feed);
        let (dir, mut run) = (self.config.dir.clone(), self.run.clone());
        self.run = blocking(move || {
            run.delivered(Delivered::Stored);
            layout::remove_other_epochs(&dir, info.epoch).map(|()| run)
        })
        .await?;
        self.drop_mirror().await;
        self.open_mirror(intake).await
    }

    async fn change_timeline<F: Receive>(
        &mut self,
        info: EpochInfo,
        intake: &mut Intake<F>,
    ) -> Result<Step, StoreError> {
        loop {
            let dir = self.config.dir.clone();
            let reason = self.shared.reset_reason.read().unwrap_or_else(PoisonError::into_inner).clone();
            match blocking(move || layout::write_manifest(&dir, &info, reason.as_deref())).await {
                Ok(()) => break,
                Err(error) if error.is_disk_full() => {
                    if self.wait_for_room(&error, intake).await? == Step::Stopped {
                        return Ok(Step::Stopped);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        tracing::info!(epoch = %info.epoch, timeline = info.timeline, "the epoch goes on on another timeline");
        self.room_again(&intake.feed);
        Ok(Step::Done)
    }

    /// Says that the disk is full, and waits a while; what has been appended becomes durable meanwhile.
    async fn wait_for_room<F: Receive>(
        &mut self,
        error: &StoreError,
        intake: &mut Intake<F>,
    ) -> Result<Step, StoreError> {
        if !self.shared.head.borrow().disk_full {
            tracing::error!(%error, "the disk is full; capture waits, and goes on by itself when there is room");
            self.shared.head.send_modify(|head| head.disk_full = true);
            self.report(&intake.feed);
        }
        self.trim().await?;
        self.start_sync();
        let retry = tokio::time::sleep(FULL_RETRY);
        tokio::pin!(retry);
        loop {
            tokio::select! {
                () = &mut retry => return Ok(Step::Done),
                () = intake.stop.cancelled() => return Ok(Step::Stopped),
                Some(done) = self.syncing.join_next() => self.synced(done, &intake.feed)?,
            }
        }
    }

    fn room_again(&self, feed: &impl Receive) {
        if self.shared.head.borrow().disk_full {
            tracing::info!("there is room on the disk again");
            self.shared.head.send_modify(|head| head.disk_full = false);
            self.report(feed);
        }
    }

    /// Is there something to gain from an fsync, and none under way?
    fn sync_is_due(&self) -> bool {
        let durable = self.shared.head.borrow().durable;
        self.syncing.is_empty()
            && self
                .appender
                .as_ref()
                .is_some_and(|appender| appender.complete() > durable || appender.unsynced() >= SYNC_BYTES)
    }

    /// Starts an fsync, unless one is under way or there is nothing to gain.
    fn start_sync(&mut self) {
        if !self.sync_is_due() {
            return;
        }
        if let Some(sync) = self.appender.as_ref().and_then(Appender::next_sync) {
            self.sync_from = Instant::now() + SYNC_INTERVAL;
            self.syncing.spawn_blocking(move || sync.run().map(|()| sync));
        }
    }

    fn synced(
        &mut self,
        done: Result<Result<Sync, StoreError>, JoinError>,
        feed: &impl Receive,
    ) -> Result<(), StoreError> {
        let sync = sync_outcome(done)?;
        if let Some(appender) = &mut self.appender {
            appender.synced(sync.end);
        }
        self.shared.head.send_if_modified(|head| std::mem::replace(&mut head.durable, sync.complete) != sync.complete);
        self.report(feed);
        Ok(())
    }

    async fn make_durable<F: Receive>(&mut self, intake: &mut Intake<F>) -> Result<(), StoreError> {
        self.sync_all(&intake.feed).await
    }

    /// Makes durable all that has been appended.
    async fn sync_all(&mut self, feed: &impl Receive) -> Result<(), StoreError> {
        while let Some(done) = self.syncing.join_next().await {
            self.synced(done, feed)?;
        }
        self.start_sync();
        while let Some(done) = self.syncing.join_next().await {
            self.synced(done, feed)?;
        }
        Ok(())
    }

    /// Removes the segments that the retention no longer allows.
    async fn trim(&mut self) -> Result<(), StoreError> {
        let Some(appender) = &self.appender else { return Ok(()) };
        let (log, durable) = (Arc::clone(&appender.log), self.shared.head.borrow().durable);
        let mut count = expired(&log.facts(), self.config.retention, self.clock.now_us(), durable);
        if count > 0 {
            let needed = self.persist_mirror().await;
            count = expired(&log.facts(), self.config.retention, self.clock.now_us(), needed);
        }
        let Some(appender) = self.appender.as_ref().filter(|_| count > 0) else { return Ok(()) };
        let removed = log.take_oldest(count);
        self.show_head(appender);
        tracing::info!(segments = count, earliest = %log.earliest(), "trimmed the changelog");
        let epoch_dir = layout::epoch_dir(&self.config.dir, log.epoch);
        blocking(move || {
            for segment in removed {
                fs::remove_file(&segment.path).map_err(cannot("remove", &segment.path))?;
                // One by one, so that a crash leaves no gap.
                layout::sync_dir(&epoch_dir)?;
            }
            Ok(())
        })
        .await
    }

    fn show_head(&self, appender: &Appender) {
        let newest = self.transactions.newest();
        self.shared.head.send_modify(|head| {
            head.complete = appender.complete();
            head.earliest = appender.log.earliest();
            head.changelog_bytes = appender.log.byte_count();
            head.commit_time_us = newest.map_or(head.commit_time_us, |transaction| transaction.commit_time_us);
        });
    }

    fn show_row_types(&self, appender: &Appender) {
        let known = appender.row_types.known();
        let mut shown = self.shared.row_types.write().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&shown, known) {
            *shown = Arc::clone(known);
            self.shared.row_types_changed.send_modify(|version| *version += 1);
        }
    }

    fn show_snapshots(&self, appender: &Appender) {
        let known = appender.snapshots.known();
        let is_shown = Arc::ptr_eq(&self.shared.snapshots.read().unwrap_or_else(PoisonError::into_inner), known);
        if !is_shown {
            *self.shared.snapshots.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(known);
        }
    }

    fn report(&self, feed: &impl Receive) {
        let head = *self.shared.head.borrow();
        feed.report(Durable { position: head.durable, epoch: head.epoch, disk_full: head.disk_full });
    }

    fn current_epoch(&self) -> Option<Epoch> {
        self.appender.as_ref().map(|appender| appender.log.epoch)
    }
}

/// Does the block complete a chunk, or is it a snapshot's mark?
fn completes_of_snapshot(block: &Block) -> bool {
    block.entries().iter().any(|entry| entry.completes() && entry.is_of_snapshot())
}

fn sync_outcome(done: Result<Result<Sync, StoreError>, JoinError>) -> Result<Sync, StoreError> {
    match done {
        Ok(synced) => synced,
        Err(error) => resume_unwind(error.into_panic()),
    }
}

/// The output, if the future is ready at once.
async fn ready<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down, and will not poll this again.
            Err(_) => std::future::pending().await,
        },
    }
}
