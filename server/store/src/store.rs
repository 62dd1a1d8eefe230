//! The handle that the rest of the server holds, and what it is opened with.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tidegate_model::{Clock, Delivered, Epoch, EpochInfo, Position, TransactionId};
use tidegate_schema::RowType;
use tokio::sync::watch;

use crate::{
    EndedSnapshots, Place, ReadError, Reader, RowTypes, Snapshots, StoreError, StoreWriter, layout, log::Log,
    recovery::recover, run::Run, writer::blocking,
};

/// Where and how a source's changelog is kept.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The source's own directory; made if it is missing.
    pub dir: PathBuf,
    /// A segment that has reached this size, in bytes, is followed by another.
    pub segment_bytes: u64,
    /// Bound on the newest blocks kept in memory, in bytes, shared by all readers.
    pub tail_bytes: usize,
    /// What is kept for subscribers that are behind.
    pub retention: Retention,
}

impl StoreConfig {
    /// The usual sizes: segments of 256 MiB, 64 MiB of tail, 50 GiB or 7 days.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        StoreConfig {
            dir: dir.into(),
            segment_bytes: 256 << 20,
            tail_bytes: 64 << 20,
            retention: Retention { size_bytes: 50 << 30, age: Duration::from_hours(7 * 24) },
        }
    }
}

/// Segments go, oldest first, when either bound is passed; the one being written always stays. Nothing else holds them: a
/// snapshot that takes longer than this loses its beginning, and who subscribed to it and is that far behind is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of all segments together.
    pub size_bytes: u64,
    /// Time since a segment's last record was written. (Not since its commit: what is captured late is kept as long.)
    pub age: Duration,
}

/// What was found when the store was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The epoch, on the timeline that was last received from.
    pub epoch: EpochInfo,
    /// Everything up to here is there and fsynced.
    pub durable: Position,
    /// How much subscribers may have received: an orderly stop leaves nothing in doubt, nor does the end of the process alone.
    pub delivered: Delivered,
    /// The last transaction that is complete and kept; messages outside of transactions do not count.
    pub last_transaction: Option<TransactionId>,
}

/// Where the changelog starts and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The current epoch; None before the first.
    pub epoch: Option<Epoch>,
    /// The last complete position: what readers may see.
    pub complete: Position,
    /// The last complete position that is fsynced.
    pub durable: Position,
    /// Reading after this position, or a later one, works.
    pub earliest: Position,
    /// Commit time of the newest complete transaction, in microseconds since 1970; 0 before the first.
    pub commit_time_us: i64,
    /// Bytes of all segments.
    pub changelog_bytes: u64,
    /// Nothing can be appended until there is room.
    pub disk_full: bool,
}

/// What the handles and the writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) log: RwLock<Option<Arc<Log>>>,
    pub(crate) head: watch::Sender<Head>,
    pub(crate) row_types: RwLock<Arc<RowTypes>>,
    /// Those of the epoch before, which readers of its log still need.
    pub(crate) former_row_types: RwLock<Arc<RowTypes>>,
    /// Why the epoch before this one ended.
    pub(crate) reset_reason: RwLock<Option<Arc<str>>>,
    /// Counts the versions of `row_types`.
    pub(crate) row_types_changed: watch::Sender<u64>,
    pub(crate) snapshots: RwLock<Arc<Snapshots>>,
    ended_before: EndedSnapshots,
    recovered: Option<Recovered>,
}

/// A source's changelog. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

impl Store {
    /// Opens the changelog, recovers it, and locks its directory for the writer.
    ///
    /// # Errors
    /// The directory is in use or cannot be read, or its files are damaged or of another release.
    pub async fn open(config: StoreConfig, clock: Arc<dyn Clock>) -> Result<(Store, StoreWriter), StoreError> {
        blocking(move || Self::open_blocking(config, clock)).await
    }

    fn open_blocking(config: StoreConfig, clock: Arc<dyn Clock>) -> Result<(Store, StoreWriter), StoreError> {
        let lock = layout::lock(&config.dir)?;
        let (appender, recovered) = recover(&config)?.unzip();
        let log = appender.as_ref().map(|appender| Arc::clone(&appender.log));
        let row_types = appender.as_ref().map(|appender| Arc::clone(appender.row_types.known())).unwrap_or_default();
        let snapshots = appender.as_ref().map(|appender| Arc::clone(appender.snapshots.known())).unwrap_or_default();
        let ended_before = appender.as_ref().map(|appender| appender.snapshots.ended().clone()).unwrap_or_default();
        let durable = recovered.map_or(Position::ZERO, |recovered: Recovered| recovered.durable);
        let newest = recovered.and_then(|recovered| recovered.last_transaction);
        let head = Head {
            epoch: recovered.map(|recovered| recovered.epoch.epoch),
            complete: durable,
            durable,
            earliest: log.as_ref().map_or(Position::ZERO, |log| log.earliest()),
            commit_time_us: newest.map_or(0, |transaction| transaction.commit_time_us),
            changelog_bytes: log.as_ref().map_or(0, |log| log.byte_count()),
            disk_full: false,
        };
        let shared = Arc::new(Shared {
            log: RwLock::new(log),
            head: watch::Sender::new(head),
            row_types: RwLock::new(row_types),
            former_row_types: RwLock::default(),
            reset_reason: RwLock::new(layout::read_reason(&config.dir).map(Arc::from)),
            row_types_changed: watch::Sender::new(0),
            snapshots: RwLock::new(snapshots),
            ended_before,
            recovered,
        });
        let run = Run::begin(&config.dir, recovered.map(|recovered: Recovered| recovered.delivered));
        let writer = StoreWriter::new(config, Arc::clone(&shared), appender, (lock, clock, run));
        Ok((Store { shared }, writer))
    }

    /// What was there at open; None for a store without an epoch.
    #[must_use]
    pub fn recovered(&self) -> Option<Recovered> {
        self.shared.recovered
    }

    /// Where it starts and ends, kept current.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Head> {
        self.shared.head.subscribe()
    }

    /// A reader of all that comes after a position, which may lie ahead of the head: the reader then waits. The position's
    /// transaction counts as received whole ([`Position::as_resume_point`]).
    ///
    /// # Errors
    /// [`ReadError::TooOld`] and [`ReadError::OtherEpoch`].
    pub fn reader(&self, epoch: Epoch, after: Position) -> Result<Reader, ReadError> {
        Reader::new(self.log(epoch)?, after)
    }

    /// A reader of all behind a place that another reader of the epoch has told.
    ///
    /// # Errors
    /// [`ReadError::OtherEpoch`]. Where the retention has overtaken the place, the reader says so.
    pub fn reader_behind(&self, epoch: Epoch, place: Place) -> Result<Reader, ReadError> {
        Ok(Reader::behind(self.log(epoch)?, place))
    }

    fn log(&self, epoch: Epoch) -> Result<Arc<Log>, ReadError> {
        match self.shared.log.read().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(log) if log.epoch == epoch => Ok(log),
            other => Err(ReadError::OtherEpoch { current: other.map(|log| log.epoch) }),
        }
    }

    /// The row types as of now. Whatever a reader has yielded is described here.
    #[must_use]
    pub fn row_types(&self) -> Arc<RowTypes> {
        Arc::clone(&self.shared.row_types.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A row type of the current epoch, or of the one before, whose log a reader may not have read to its end.
    #[must_use]
    pub fn row_type(&self, row_type: u32) -> Option<Arc<RowType>> {
        let get = |row_types: &RwLock<Arc<RowTypes>>| {
            row_types.read().unwrap_or_else(PoisonError::into_inner).get(row_type).cloned()
        };
        get(&self.shared.row_types).or_else(|| get(&self.shared.former_row_types))
    }

    /// Why the epoch before the current one ended; None where that is not known, or there was none.
    #[must_use]
    pub fn reset_reason(&self) -> Option<Arc<str>> {
        self.shared.reset_reason.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another after each change of the row types.
    #[must_use]
    pub fn row_types_version(&self) -> u64 {
        *self.shared.row_types_changed.borrow()
    }

    /// Changes whenever row types are added, and when an epoch begins, which has none at first.
    #[must_use]
    pub fn row_types_changed(&self) -> watch::Receiver<u64> {
        self.shared.row_types_changed.subscribe()
    }

    /// The snapshots that have begun and not ended, and how far each has come. Right after `open`, this is what has to go on.
    /// Never ahead of what is durable.
    #[must_use]
    pub fn snapshots(&self) -> Arc<Snapshots> {
        Arc::clone(&self.shared.snapshots.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Snapshots of which the newest segment had the end at `open`.
    #[must_use]
    pub fn ended_before(&self) -> &EndedSnapshots {
        &self.shared.ended_before
    }
}
