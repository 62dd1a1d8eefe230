//! Runs the capture of one source: waits for the control database, then captures until it is told to stop, and says all
//! the while how it is going.
//!
//! ```text
//! control database ─▶ Capture::run ──status──▶ SourceStatus (gateway, metrics, health)
//! ```
//!
//! A capture that nobody can retry leaves its source stopped, with the reason in its status; the changelog is served on.
//! It deliberately does not decide about restarts of the process: that is `serve`'s.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tidegate_capture::{
    Capture, CaptureConfig, CaptureStatus, MirrorLink, NewTable, NewTables, OnDiscontinuity, Resume, SnapshotConfig,
    SnapshotRequests, State, StoredSnapshot,
};
use tidegate_control::{Connector, Control};
use tidegate_feed::local::Publisher;
use tidegate_gateway::{SourceState, SourceStatus};
use tidegate_model::{Clock, Retry};
use tidegate_proto::v1;
use tidegate_store::{Recovered, SnapshotProgress, Store};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::config;

/// Between attempts to reach the control database, where its error names no time.
const CONTROL_RETRY: Duration = Duration::from_secs(5);
/// Between two reports of how far capture is: it moves with each transaction, and whoever is told is woken.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct CaptureCounters {
    pub(crate) events: AtomicU64,
    pub(crate) errors: AtomicU64,
}

/// Everything that the capture of a source needs.
pub(crate) struct CaptureTask {
    pub(crate) config: CaptureConfig,
    pub(crate) connector: Connector,
    pub(crate) publisher: Publisher,
    pub(crate) resume: Option<Resume>,
    pub(crate) status: watch::Sender<SourceStatus>,
    pub(crate) counters: Arc<CaptureCounters>,
    /// Where to ask for snapshots, as soon as there is a capture.
    pub(crate) requests: watch::Sender<Option<SnapshotRequests>>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// What capture is told about a configured source. Its connections carry the instance's name, by which capture knows its own.
pub(crate) fn capture_config(source: &config::Source, spool_dir: PathBuf, instance: &str) -> CaptureConfig {
    let mut connect = source.connect.clone();
    connect.application_name = format!("{}-{instance}", connect.application_name);
    CaptureConfig {
        source: source.name.clone(),
        connect,
        tables: source.tables.clone(),
        slot: source.slot.clone(),
        publication: source.publication.clone(),
        on_discontinuity: match source.on_discontinuity {
            config::OnDiscontinuity::Reset => OnDiscontinuity::Reset,
            config::OnDiscontinuity::Stop => OnDiscontinuity::Stop,
        },
        spool_dir,
        memory_budget_bytes: source.memory.transaction_bytes,
        snapshots: SnapshotConfig {
            readers: source.snapshots.readers.max(1),
            rows_per_second_max: source.snapshots.rows_per_second_max,
            lag_bytes_max: source.snapshots.lag_bytes_max,
        },
        new_tables: match source.new_tables {
            config::NewTables::Publish => NewTables::Publish,
            config::NewTables::Snapshot => NewTables::Snapshot,
            config::NewTables::Follow => NewTables::Follow,
        },
        mirror: MirrorLink::default(),
    }
}

/// Where the store left off.
pub(crate) fn resume(recovered: Recovered, store: &Store) -> Resume {
    let Recovered { epoch, durable, delivered, last_transaction } = recovered;
    let known = store.row_types();
    let row_types = known.iter().chain(known.unannounced()).map(|row_type| row_type.proto().clone()).collect();
    let stored = |(snapshot, progress): (&u32, &SnapshotProgress)| {
        let cursors = progress.cursors.values().cloned().collect();
        (*snapshot, StoredSnapshot { begin: progress.begin, cursors })
    };
    let snapshots = store.snapshots().iter().map(stored).collect();
    let ended_snapshots = store.ended_before().clone();
    Resume { epoch, durable, delivered, last_transaction, row_types, snapshots, ended_snapshots }
}

impl CaptureTask {
    /// Captures until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Some(control) = self.open_control(&stop).await else { return };
        let CaptureTask { config, publisher, resume, status, counters, requests, clock, .. } = self;
        let source = config.source.clone();
        let capture = Capture::new(config, control, publisher, resume, clock);
        requests.send_replace(Some(capture.snapshots()));
        let mut progress = capture.status();
        let mut run = Box::pin(capture.run(stop));
        let (mut watched, mut report_from) = (true, Instant::now());
        let result = loop {
            tokio::select! {
                result = &mut run => break result,
                changed = async {
                    sleep_until(report_from).await;
                    progress.changed().await
                }, if watched => {
                    watched = changed.is_ok();
                    report(&progress.borrow_and_update(), &status, &counters);
                    report_from = Instant::now() + REPORT_INTERVAL;
                }
            }
        };
        report(&progress.borrow(), &status, &counters);
        let detail = match result {
            Ok(()) => "the server is stopping".to_owned(),
            Err(error) => {
                tracing::error!(%source, %error, "capture has stopped; what is stored is still served");
                error.to_string()
            }
        };
        status.send_modify(|status| {
            status.state = SourceState::Stopped;
            status.detail = detail;
        });
    }

    /// None: told to stop, or it is of no use to try again.
    async fn open_control(&self, stop: &CancellationToken) -> Option<Control> {
        loop {
            let opened = tokio::select! {
                opened = Control::open(Arc::clone(&self.connector)) => opened,
                () = stop.cancelled() => return None,
            };
            let error = match opened {
                Ok(control) => return Some(control),
                Err(error) => error,
            };
            let pause = match error.retry() {
                Retry::After(pause) => Some(pause),
                Retry::Reset => Some(CONTROL_RETRY),
                Retry::Never => None,
            };
            self.counters.errors.fetch_add(1, Relaxed);
            let detail = error.to_string();
            if self.status.borrow().detail != detail {
                let source = &self.config.source;
                tracing::warn!(%source, %error, "waiting for the control database, which capture needs to start");
            }
            self.status.send_modify(|status| {
                status.state = if pause.is_some() { SourceState::Connecting } else { SourceState::Stopped };
                status.detail = detail;
            });
            tokio::select! {
                () = tokio::time::sleep(pause?) => {}
                () = stop.cancelled() => return None,
            }
        }
    }
}

fn report(capture: &CaptureStatus, status: &watch::Sender<SourceStatus>, counters: &CaptureCounters) {
    counters.events.store(capture.event_count, Relaxed);
    counters.errors.store(capture.error_count, Relaxed);
    status.send_modify(|status| {
        status.state = match capture.state {
            State::Connecting => SourceState::Connecting,
            State::Streaming => SourceState::Streaming,
            State::Stopped => SourceState::Stopped,
            State::DiskFull => SourceState::DiskFull,
        };
        status.detail.clone_from(&capture.detail);
        status.received_lsn = capture.received_lsn;
        status.durable_lsn = capture.durable_lsn;
        status.confirmed_flush_lsn = capture.confirmed_flush_lsn;
        status.server_lsn = capture.server_lsn;
        status.retained_wal_bytes = capture.retained_wal_bytes;
        status.last_heard_us = capture.last_heard_us;
        status.server_version = capture.server_version;
        let shown = |new: &NewTable| v1::NewTable { table: new.table.to_string(), detail: new.detail.clone() };
        status.new_tables = capture.new_tables.iter().map(shown).collect();
    });
}
