//! Puts the services together and serves them.
//!
//! Shutdown, in order: the `stop` token is cancelled; no new connection or subscription is taken; every stream is told its
//! deadline (Drain); clients leave, or are cut off at the deadline; `serve` returns.

use std::{sync::Arc, time::Duration};

use tidegate_model::{Clock, Retry};
use tidegate_proto::v1::catalog_server::CatalogServer;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server::ServerReflectionServer,
    v1alpha::server_reflection_server::ServerReflectionServer as ServerReflectionServerV1Alpha,
};

use crate::{
    catalog::CatalogService,
    config::GatewayConfig,
    connections,
    drain::Drain,
    health::HealthService,
    held,
    metrics::GatewayMetrics,
    mirror_service::MirrorService,
    reflection::ReflectionService,
    service::ChangesService,
    shape_service::ShapeService,
    share::ShareCache,
    shared::Shared,
    snapshot_service::SnapshotService,
    source::{Source, SourceHandle, Sources},
};

/// Time for streams to write their end after the drain's deadline.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The gRPC services over a set of sources.
pub struct Gateway {
    shared: Arc<Shared>,
}

/// The services cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What reflection is to serve cannot be read.
    #[error("the API's descriptors cannot be read: {0}")]
    Descriptors(String),
}

impl ServeError {
    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ServeError::Descriptors(_) => Retry::Never,
        }
    }
}

impl Gateway {
    /// A gateway over sources whose names differ. Cancelling `stop` begins the drain.
    #[must_use]
    pub fn new(
        sources: Vec<SourceHandle>,
        config: GatewayConfig,
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
    ) -> Self {
        let metrics = Arc::new(GatewayMetrics::new(sources.iter().map(|source| source.name.clone())));
        let sources = sources.into_iter().map(|handle| {
            let counted = metrics.source(&handle.name);
            Source::new(handle, counted)
        });
        let shared = Shared {
            sources: Sources::new(sources),
            drain: Drain::new(stop, config.drain_deadline, Arc::clone(&clock)),
            share: ShareCache::new(config.share_bytes_max, Arc::clone(&metrics)),
            metrics: Arc::clone(&metrics),
            queries: Arc::new(Semaphore::new(config.queries_max)),
            held_room: Arc::new(Semaphore::new(held::ROOM_KIB)),
            config,
            clock,
        };
        Gateway { shared: Arc::new(shared) }
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> Arc<GatewayMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    /// The services, for a server that sets up its own connections.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn routes(&self) -> Result<Routes, ServeError> {
        let shared = || Arc::clone(&self.shared);
        let limit = self.shared.config.request_bytes_max;
        let reflection =
            ReflectionService::new(shared()).map_err(|error| ServeError::Descriptors(error.to_string()))?;
        let mut routes = Routes::builder();
        routes
            .add_service(ChangesService::new(shared()))
            .add_service(CatalogServer::new(CatalogService::new(shared())).max_decoding_message_size(limit))
            .add_service(SnapshotService::server(shared()))
            .add_service(MirrorService::server(shared()))
            .add_service(ShapeService::server(shared()))
            .add_service(HealthServer::new(HealthService::new(shared())).max_decoding_message_size(limit))
            .add_service(ServerReflectionServer::new(reflection.clone()).max_decoding_message_size(limit))
            .add_service(ServerReflectionServerV1Alpha::new(reflection).max_decoding_message_size(limit));
        Ok(routes.routes())
    }

    /// Serves until stopped and drained.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve(self, listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Result<(), ServeError> {
        let drain = self.shared.drain.clone();
        let serving =
            connections::serve((listener, tls), self.routes()?, (drain.clone(), self.shared.config.handshake_max));
        let cut_off = async {
            drain.wait().await;
            tokio::time::sleep_until(drain.deadline() + LAST_WORDS).await;
        };
        tokio::select! {
            () = serving => {}
            () = cut_off => {}
        }
        Ok(())
    }
}
