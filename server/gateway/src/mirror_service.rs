//! `tidegate.v1.Mirror`: is a table's mirror what PostgreSQL has?
//!
//! It deliberately compares nothing itself: the store does, while a snapshot of the table passes by.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tidegate_model::{SnapshotSpec, TableName, near};
use tidegate_proto::v1::{
    self,
    mirror_difference::Kind,
    mirror_server::{Mirror, MirrorServer},
    mirrored_table::State as MirrorState,
    snapshot_status::State,
};
use tidegate_store::{Compared, Difference, DifferenceKind, MirrorError, MirrorReader, Stage, Verification};
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use crate::{shared::Shared, snapshots::SnapshotError, source::Source, status::GatewayError};

/// Between two messages, unless it is the last.
const INTERVAL: Duration = Duration::from_secs(1);
/// Until a table whose snapshot runs is asked for again.
const RUNNING_RETRY: Duration = Duration::from_secs(5);
/// How long a snapshot that reads the table is waited for.
const RUNNING_WAIT: Duration = Duration::from_secs(2);

/// The service.
pub(crate) struct MirrorService {
    shared: Arc<Shared>,
}

/// A comparison that is being told.
struct Verifying {
    source: Arc<Source>,
    verification: Verification,
    table: TableName,
    /// 0 before it has begun, which may take as long as transactions that write the table do.
    snapshot: u32,
    /// The row message's name, for its keys.
    type_url: String,
    /// Differences that have been told.
    told: usize,
    next_at: Instant,
    is_done: bool,
}

impl MirrorService {
    pub(crate) fn server(shared: Arc<Shared>) -> MirrorServer<Self> {
        let limit = shared.config.request_bytes_max;
        MirrorServer::new(MirrorService { shared }).max_decoding_message_size(limit)
    }

    async fn open(&self, request: v1::VerifyMirrorRequest) -> Result<Verifying, GatewayError> {
        let source = self.shared.sources.get(&request.source)?;
        let table: TableName = request.table.parse()?;
        must_exist(&source, &table)?;
        let refused = |detail: String| GatewayError::Snapshot(SnapshotError::Refused { detail });
        let no_mirror = || refused(format!("table {table} has no mirror; name it in the source's `mirror`"));
        let mirror = source.handle.mirror.clone().filter(|mirror| mirror.follows(&table)).ok_or_else(no_mirror)?;
        let row_types = source.handle.store.row_types();
        let row_type = row_types.newest(&table).ok_or_else(no_mirror)?;
        let type_url = format!("type.googleapis.com/{}", row_type.proto().message);
        // One that runs has read rows already, which nobody has compared.
        let mut statuses = source.handle.snapshots.statuses();
        let mut running = None;
        let until_ended = async {
            while let Some(all) = statuses.next().await {
                running = all.iter().find(|status| reads(status, &table)).map(|status| status.snapshot);
                if running.is_none() {
                    return;
                }
            }
        };
        // One that has just ended is known to have a moment later.
        tokio::time::timeout(RUNNING_WAIT, until_ended).await.ok();
        if let Some(running) = running {
            let detail = format!("snapshot {running} of table {table} is running; verify it after that");
            return Err(SnapshotError::Later { detail, retry_in: RUNNING_RETRY }.into());
        }
        let verification = verification(mirror, table.clone()).await.map_err(|error| never(&source, &table, error))?;
        let next_at = Instant::now() + INTERVAL;
        Ok(Verifying { source, verification, table, snapshot: 0, type_url, told: 0, next_at, is_done: false })
    }
}

/// Refuses a table that the catalog does not have, once that is read. One that the stream has told of may have been dropped since, and
/// has nothing to compare with.
fn must_exist(source: &Source, table: &TableName) -> Result<(), GatewayError> {
    let known = source.handle.tables.borrow();
    if known.is_empty() || known.iter().any(|known| known.name == *table) {
        return Ok(());
    }
    let near = near(&table.to_string(), known.iter().map(|known| known.name.to_string()));
    Err(GatewayError::UnknownTable { table: table.clone(), near })
}

/// What is not complete, and as the table is never will be.
fn never(source: &Source, table: &TableName, error: SnapshotError) -> SnapshotError {
    let status = source.handle.status.borrow();
    let of_table = status.mirror.iter().find(|of| of.table == table.to_string());
    match (error, of_table.filter(|of| of.state() == MirrorState::Unsupported)) {
        (SnapshotError::Later { .. }, Some(of)) => {
            SnapshotError::Refused { detail: format!("table {table} cannot be mirrored: {}", of.detail) }
        }
        (error, _) => error,
    }
}

/// The listing of tables reads the disk.
async fn verification(mirror: MirrorReader, table: TableName) -> Result<Verification, SnapshotError> {
    let begin = move || {
        let refused = |detail: String| SnapshotError::Refused { detail };
        let failed = |error: MirrorError| refused(format!("the mirror of table {table} cannot be read: {error}"));
        match mirror.verify(&table) {
            Ok(verification) => return Ok(verification),
            // Nothing is known of a table before the mirror is open.
            Err(MirrorError::NotComplete(_) | MirrorError::Closed) => {}
            Err(error) => return Err(failed(error)),
        }
        let detail = format!(
            "the mirror of table {table} is not complete yet; verify it when `tidegate status` says that it is"
        );
        Err(SnapshotError::Later { detail, retry_in: RUNNING_RETRY })
    };
    tokio::task::spawn_blocking(begin).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn reads(status: &v1::SnapshotStatus, table: &TableName) -> bool {
    let has_ended = matches!(status.state(), State::Done | State::Cancelled | State::Failed);
    !has_ended && status.tables.iter().any(|read| read.table == table.to_string())
}

impl Verifying {
    /// The next message; None behind the last.
    async fn next(&mut self) -> Option<Result<v1::VerifyMirrorResponse, GatewayError>> {
        if self.is_done {
            return None;
        }
        if self.snapshot == 0 {
            match self.source.handle.snapshots.start(SnapshotSpec::of_tables(vec![self.table.clone()])).await {
                Ok(started) => self.snapshot = started.snapshot,
                Err(error) => {
                    self.is_done = true;
                    return Some(Err(error.into()));
                }
            }
        }
        let mut snapshots = self.verification.snapshots();
        loop {
            let stage = snapshots.borrow_and_update().get(&self.snapshot).map(|compared| compared.stage);
            let is_due = Instant::now() >= self.next_at;
            match stage {
                Some(Stage::Done) => {
                    self.is_done = true;
                    return Some(Ok(self.response()));
                }
                Some(Stage::Failed(reason)) => return Some(Err(self.failed(reason))),
                Some(Stage::Reading | Stage::Sweeping) if is_due => return Some(Ok(self.response())),
                None if is_due && self.has_ended().await && !self.has_begun() => {
                    return Some(Err(self.failed("its snapshot had begun before")));
                }
                None if is_due => self.next_at = Instant::now() + INTERVAL,
                Some(Stage::Reading | Stage::Sweeping) | None => {}
            }
            // It changes with every row; what is told is told once a second.
            let until_done = snapshots.wait_for(|snapshots| {
                let stage = snapshots.get(&self.snapshot).map(|compared| compared.stage);
                matches!(stage, Some(Stage::Done | Stage::Failed(_)))
            });
            tokio::select! {
                // The sender lives as long as the verification.
                _ended = until_done => {}
                () = sleep_until(self.next_at) => {}
            }
        }
    }

    fn has_begun(&self) -> bool {
        self.verification.snapshots().borrow().contains_key(&self.snapshot)
    }

    async fn has_ended(&self) -> bool {
        let statuses = self.source.handle.snapshots.statuses().next().await.unwrap_or_default();
        let status = statuses.iter().find(|status| status.snapshot == self.snapshot);
        status.is_none_or(|status| matches!(status.state(), State::Done | State::Cancelled | State::Failed))
    }

    fn failed(&mut self, reason: &str) -> GatewayError {
        self.is_done = true;
        let detail =
            format!("the mirror could not be compared by snapshot {}: {reason}; verify it again", self.snapshot);
        SnapshotError::Later { detail, retry_in: RUNNING_RETRY }.into()
    }

    fn response(&mut self) -> v1::VerifyMirrorResponse {
        self.next_at = Instant::now() + INTERVAL;
        let snapshots = self.verification.snapshots();
        let snapshots = snapshots.borrow();
        let Some(compared) = snapshots.get(&self.snapshot) else { return v1::VerifyMirrorResponse::default() };
        let Compared { row_count, incomplete_count, difference_count, differences, .. } = compared;
        let response = v1::VerifyMirrorResponse {
            snapshot: self.snapshot,
            rows_compared: *row_count,
            rows_incomplete: *incomplete_count,
            rows_different: *difference_count,
            differences: differences[self.told..].iter().map(|found| difference(found, &self.type_url)).collect(),
            done: self.is_done,
        };
        self.told = differences.len();
        response
    }
}

fn difference(Difference { kind, key }: &Difference, type_url: &str) -> v1::MirrorDifference {
    let kind = match kind {
        DifferenceKind::Missing => Kind::Missing,
        DifferenceKind::Different => Kind::Different,
        DifferenceKind::Extra => Kind::Extra,
    };
    let key = prost_types::Any { type_url: type_url.to_owned(), value: key.to_vec() };
    v1::MirrorDifference { kind: kind as i32, key: Some(key) }
}

#[tonic::async_trait]
impl Mirror for MirrorService {
    type VerifyStream = Pin<Box<dyn Stream<Item = Result<v1::VerifyMirrorResponse, Status>> + Send>>;

    async fn verify(&self, request: Request<v1::VerifyMirrorRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let failed = |shared: &Shared, error: &GatewayError| {
            shared.metrics.error(error.reason());
            error.to_tonic()
        };
        let verifying = self.open(request.into_inner()).await.map_err(|error| failed(&self.shared, &error))?;
        let (shared, drain) = (Arc::clone(&self.shared), self.shared.drain.clone());
        let responses = stream::unfold(verifying, move |mut verifying| {
            let shared = Arc::clone(&shared);
            async move {
                let response = verifying.next().await?;
                Some((response.map_err(|error| failed(&shared, &error)), verifying))
            }
        });
        Ok(Response::new(responses.take_until(async move { drain.wait().await }).boxed()))
    }
}
