//! `tidegate.v1.Catalog`: sources with their positions and lag, tables with their newest row types.

use std::sync::Arc;

use tidegate_model::{TableName, near};
use tidegate_proto::v1::{self, catalog_server::Catalog, source_status::State};
use tonic::{Request, Response, Status};

use crate::{
    open_subscriptions::Whereabouts,
    shared::Shared,
    source::{Source, SourceState},
    status::GatewayError,
    time::timestamp,
};

/// The service.
pub(crate) struct CatalogService {
    shared: Arc<Shared>,
}

impl CatalogService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        CatalogService { shared }
    }

    fn table(&self, request: &v1::GetTableRequest) -> Result<v1::RowType, GatewayError> {
        let source = self.shared.sources.get(&request.source)?;
        let table: TableName = request.table.parse()?;
        let row_types = source.handle.store.row_types();
        match row_types.newest(&table) {
            Some(row_type) => Ok(row_type.proto().clone()),
            None => {
                let near = near(&table.to_string(), row_types.tables().map(|(name, _)| name.to_string()));
                Err(GatewayError::UnknownTable { table, near })
            }
        }
    }

    fn failed(&self, error: &GatewayError) -> Status {
        self.shared.metrics.error(error.reason());
        error.to_tonic()
    }
}

#[tonic::async_trait]
impl Catalog for CatalogService {
    async fn list_sources(
        &self,
        _: Request<v1::ListSourcesRequest>,
    ) -> Result<Response<v1::ListSourcesResponse>, Status> {
        let sources = self.shared.sources.iter().map(|source| source_status(source)).collect();
        Ok(Response::new(v1::ListSourcesResponse { sources }))
    }

    async fn list_tables(
        &self,
        request: Request<v1::ListTablesRequest>,
    ) -> Result<Response<v1::ListTablesResponse>, Status> {
        let source = self.shared.sources.get(&request.get_ref().source).map_err(|error| self.failed(&error))?;
        let row_types = source.handle.store.row_types();
        let mut tables: Vec<_> = row_types.tables().collect();
        tables.sort_by_key(|(name, _)| *name);
        let tables = tables.into_iter().map(|(_, row_type)| row_type.proto().clone()).collect();
        Ok(Response::new(v1::ListTablesResponse { tables }))
    }

    async fn get_table(&self, request: Request<v1::GetTableRequest>) -> Result<Response<v1::GetTableResponse>, Status> {
        let table = self.table(request.get_ref()).map_err(|error| self.failed(&error))?;
        Ok(Response::new(v1::GetTableResponse { table: Some(table) }))
    }
}

fn source_status(source: &Source) -> v1::SourceStatus {
    let head = *source.handle.store.head().borrow();
    let status = source.handle.status.borrow();
    let state = match status.state {
        SourceState::Unknown => State::Unknown,
        SourceState::Connecting => State::Connecting,
        SourceState::Streaming => State::Streaming,
        SourceState::Stopped => State::Stopped,
        SourceState::DiskFull => State::DiskFull,
    };
    v1::SourceStatus {
        name: source.name().to_string(),
        state: state as i32,
        detail: status.detail.clone(),
        epoch: head.epoch.map(|epoch| epoch.to_string()).unwrap_or_default(),
        received_lsn: status.received_lsn.to_string(),
        durable_lsn: status.durable_lsn.to_string(),
        confirmed_flush_lsn: status.confirmed_flush_lsn.to_string(),
        server_lsn: status.server_lsn.to_string(),
        retained_wal_bytes: status.retained_wal_bytes,
        lag_bytes: status.server_lsn.bytes_since(status.received_lsn),
        last_heard: (status.last_heard_us != 0).then(|| timestamp(status.last_heard_us)),
        earliest_position: head.earliest.to_string(),
        head_position: head.complete.to_string(),
        changelog_bytes: head.changelog_bytes,
        subscribers: u32::try_from(source.metrics.subscribers()).unwrap_or(u32::MAX),
        server_version: status.server_version,
        slot: status.slot.clone(),
        publication: status.publication.clone(),
        subscriptions: source.subscriptions.list().into_iter().map(subscription_status).collect(),
        mirror: status.mirror.clone(),
        new_tables: status.new_tables.clone(),
    }
}

fn subscription_status(at: Whereabouts) -> v1::SubscriptionStatus {
    v1::SubscriptionStatus {
        subscription: at.subscription,
        position: at.position.to_string(),
        acked_position: at.acked.to_string(),
        credit_bytes: at.credit_bytes,
    }
}
