//! The snapshots of a source as the gateway asks for them, carried out by its capture, once that runs.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tidegate_capture::{SnapshotError as CaptureSnapshotError, SnapshotRequests, SnapshotStatus, TableStatus};
use tidegate_control::JobState;
use tidegate_gateway::{Answer, SnapshotError, SnapshotStart, Snapshots, Statuses};
use tidegate_model::{Retry, TableName};
use tidegate_proto::v1;
use tokio::sync::watch;

/// Until a capture that has not started is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Forwards to the capture of a source.
pub(crate) struct CapturedSnapshots(pub(crate) watch::Receiver<Option<SnapshotRequests>>);

impl CapturedSnapshots {
    fn requests(&self) -> Result<SnapshotRequests, SnapshotError> {
        let requests = self.0.borrow().clone();
        requests.ok_or_else(|| SnapshotError::Later {
            detail: "the source has not been connected yet".to_owned(),
            retry_in: RETRY,
        })
    }
}

impl Snapshots for CapturedSnapshots {
    fn start(&self, tables: Vec<TableName>) -> Answer<'_, SnapshotStart> {
        Box::pin(async move {
            let started = self.requests()?.start(tables).await.map_err(refusal)?;
            Ok(SnapshotStart { snapshot: started.snapshot, after: started.after })
        })
    }

    fn pause(&self, snapshot: u32) -> Answer<'_, ()> {
        Box::pin(async move { self.requests()?.pause(snapshot).await.map_err(refusal) })
    }

    fn resume(&self, snapshot: u32) -> Answer<'_, ()> {
        Box::pin(async move { self.requests()?.resume(snapshot).await.map_err(refusal) })
    }

    fn cancel(&self, snapshot: u32) -> Answer<'_, ()> {
        Box::pin(async move { self.requests()?.cancel(snapshot).await.map_err(refusal) })
    }

    fn statuses(&self) -> Statuses {
        let Ok(requests) = self.requests() else {
            return stream::once(std::future::ready(Vec::new())).boxed();
        };
        let current = |statuses: &Arc<Vec<SnapshotStatus>>| statuses.iter().map(status).collect::<Vec<_>>();
        stream::unfold((requests.statuses(), true), move |(mut statuses, is_first)| async move {
            if !is_first {
                statuses.changed().await.ok()?;
            }
            let shown = current(&statuses.borrow_and_update());
            Some((shown, (statuses, false)))
        })
        .boxed()
    }
}

fn refusal(error: CaptureSnapshotError) -> SnapshotError {
    if let CaptureSnapshotError::Unknown(snapshot) = error {
        return SnapshotError::Unknown(snapshot);
    }
    let detail = error.to_string();
    match error.retry() {
        Retry::After(retry_in) => SnapshotError::Later { detail, retry_in },
        Retry::Never | Retry::Reset => SnapshotError::Refused { detail },
    }
}

fn status(status: &SnapshotStatus) -> v1::SnapshotStatus {
    use v1::snapshot_status::State;
    let state = match (status.state, status.after, status.detail.is_empty()) {
        (JobState::Running, None, _) => State::Queued,
        (JobState::Running, Some(_), true) => State::Running,
        (JobState::Running, Some(_), false) => State::Waiting,
        (JobState::Paused, _, _) => State::Paused,
        (JobState::Done, _, _) => State::Done,
        (JobState::Cancelled, _, _) => State::Cancelled,
        (JobState::Failed, _, _) => State::Failed,
    };
    let table = |table: &TableStatus| v1::SnapshotTable {
        table: table.name.to_string(),
        state: if table.is_done { State::Done } else { state } as i32,
        rows_read: table.row_count,
        rows_estimated: table.row_count_estimated,
    };
    v1::SnapshotStatus {
        snapshot: status.snapshot,
        source: String::new(),
        state: state as i32,
        detail: status.detail.clone(),
        tables: status.tables.iter().map(table).collect(),
        rows_read: status.tables.iter().map(|table| table.row_count).sum(),
        rows_estimated: status.tables.iter().map(|table| table.row_count_estimated).sum(),
        rows_per_second: status.rows_per_second,
        started: Some(timestamp(status.created_us)),
        ended: status.ended_us.map(timestamp),
        begin: status.after.map(|after| after.to_string()).unwrap_or_default(),
        new_tables: status.new_tables,
    }
}

fn timestamp(us: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(us.rem_euclid(1_000_000) * 1_000).expect("less than a second");
    prost_types::Timestamp { seconds: us.div_euclid(1_000_000), nanos }
}
