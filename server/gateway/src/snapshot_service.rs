//! `tidegate.v1.Snapshots`: snapshots as jobs.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use tidegate_model::{SnapshotSpec, TableName};
use tidegate_proto::v1::{
    self,
    snapshot_status::State,
    snapshots_server::{Snapshots, SnapshotsServer},
};
use tonic::{Request, Response, Status};

use crate::{
    opening::matched_tables,
    selection::{Filter, TableFilter},
    shared::Shared,
    snapshot_parts::{KEY_BYTES_MAX, PartError, part_tables, parts},
    snapshots::{SnapshotError, Statuses},
    source::Source,
    status::GatewayError,
};

/// The service.
pub(crate) struct SnapshotService {
    shared: Arc<Shared>,
}

impl SnapshotService {
    pub(crate) fn server(shared: Arc<Shared>) -> SnapshotsServer<Self> {
        let limit = shared.config.request_bytes_max + KEY_BYTES_MAX;
        SnapshotsServer::new(SnapshotService { shared }).max_decoding_message_size(limit)
    }

    fn source(&self, name: &str) -> Result<Arc<Source>, Status> {
        self.shared.sources.get(name).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &GatewayError) -> Status {
        self.shared.metrics.error(error.reason());
        error.to_tonic()
    }

    async fn started(&self, request: v1::StartSnapshotRequest) -> Result<v1::StartSnapshotResponse, GatewayError> {
        let v1::StartSnapshotRequest { source, tables: names, parts: requested } = request;
        let source = self.shared.sources.get(&source)?;
        let of_parts = part_tables(&requested)?;
        let filter = |names| {
            let selection = v1::TableSelection { names, ..v1::TableSelection::default() };
            TableFilter::parse(&selection, &self.shared.config)
        };
        let mut filters = Vec::new();
        if of_parts.is_empty() || !names.is_empty() {
            let whole = filter(names)?;
            if let Some(twice) = of_parts.iter().find(|table| whole.reads(table)) {
                return Err(GatewayError::Part { table: twice.clone(), error: Box::new(PartError::Twice) });
            }
            filters.push(Filter::Tables(Box::new(whole)));
        }
        if !of_parts.is_empty() {
            let of_parts = filter(of_parts.iter().map(TableName::to_string).collect())?;
            filters.push(Filter::Tables(Box::new(of_parts)));
        }
        let tables = matched_tables(&source, &filters, &self.shared.config).await?;
        let parts = parts(&source, requested).await?;
        let spec = SnapshotSpec { tables: tables.clone(), parts, ad_hoc: true };
        let start = source.handle.snapshots.start(spec).await?;
        Ok(v1::StartSnapshotResponse {
            snapshot: start.snapshot,
            position: start.after.to_string(),
            tables: tables.iter().map(TableName::to_string).collect(),
        })
    }

    /// What a request that was granted is answered with.
    async fn answer(
        &self,
        source: &Source,
        snapshot: u32,
        granted: Result<(), SnapshotError>,
    ) -> Result<Response<v1::SnapshotResponse>, Status> {
        granted.map_err(|error| self.failed(&error.into()))?;
        let statuses = all(source).next().await.unwrap_or_default();
        let status = statuses.into_iter().find(|status| status.snapshot == snapshot);
        Ok(Response::new(v1::SnapshotResponse { status }))
    }
}

/// A source's snapshots, with its name.
fn all(source: &Source) -> Statuses {
    let name = source.name().to_string();
    let named = move |mut statuses: Vec<v1::SnapshotStatus>| {
        statuses.iter_mut().for_each(|status| status.source.clone_from(&name));
        statuses
    };
    source.handle.snapshots.statuses().map(named).boxed()
}

fn has_ended(status: &v1::SnapshotStatus) -> bool {
    match status.state() {
        State::Done | State::Cancelled | State::Failed => true,
        State::Unknown | State::Queued | State::Running | State::Paused | State::Waiting => false,
    }
}

/// One of them, whenever it has changed, up to its end.
fn one(statuses: Statuses, snapshot: u32) -> impl Stream<Item = v1::SnapshotStatus> + Send {
    let shown = v1::SnapshotStatus::default();
    stream::unfold((statuses, shown), move |(mut statuses, shown)| async move {
        if has_ended(&shown) {
            return None;
        }
        loop {
            let status = statuses.next().await?.into_iter().find(|status| status.snapshot == snapshot);
            if let Some(status) = status.filter(|status| *status != shown) {
                return Some((status.clone(), (statuses, status)));
            }
        }
    })
}

#[tonic::async_trait]
impl Snapshots for SnapshotService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::SnapshotStatus, Status>> + Send>>;

    async fn start(
        &self,
        request: Request<v1::StartSnapshotRequest>,
    ) -> Result<Response<v1::StartSnapshotResponse>, Status> {
        self.started(request.into_inner()).await.map(Response::new).map_err(|error| self.failed(&error))
    }

    async fn watch(&self, request: Request<v1::SnapshotRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let v1::SnapshotRequest { source, snapshot } = request.into_inner();
        let source = self.source(&source)?;
        let known = all(&source).next().await.unwrap_or_default();
        if !known.iter().any(|status| status.snapshot == snapshot) {
            return Err(self.failed(&SnapshotError::Unknown(snapshot).into()));
        }
        let drain = self.shared.drain.clone();
        let statuses = one(all(&source), snapshot).map(Ok).take_until(async move { drain.wait().await });
        Ok(Response::new(statuses.boxed()))
    }

    async fn pause(&self, request: Request<v1::SnapshotRequest>) -> Result<Response<v1::SnapshotResponse>, Status> {
        let v1::SnapshotRequest { source, snapshot } = request.into_inner();
        let source = self.source(&source)?;
        let granted = source.handle.snapshots.pause(snapshot).await;
        self.answer(&source, snapshot, granted).await
    }

    async fn resume(&self, request: Request<v1::SnapshotRequest>) -> Result<Response<v1::SnapshotResponse>, Status> {
        let v1::SnapshotRequest { source, snapshot } = request.into_inner();
        let source = self.source(&source)?;
        let granted = source.handle.snapshots.resume(snapshot).await;
        self.answer(&source, snapshot, granted).await
    }

    async fn cancel(&self, request: Request<v1::SnapshotRequest>) -> Result<Response<v1::SnapshotResponse>, Status> {
        let v1::SnapshotRequest { source, snapshot } = request.into_inner();
        let source = self.source(&source)?;
        let granted = source.handle.snapshots.cancel(snapshot).await;
        self.answer(&source, snapshot, granted).await
    }

    async fn list(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let name = request.into_inner().source;
        let sources: Vec<Arc<Source>> = match name.as_str() {
            "" => self.shared.sources.iter().cloned().collect(),
            name => vec![self.source(name)?],
        };
        let mut snapshots = Vec::new();
        for source in sources {
            snapshots.extend(all(&source).next().await.unwrap_or_default());
        }
        Ok(Response::new(v1::ListSnapshotsResponse { snapshots }))
    }
}
