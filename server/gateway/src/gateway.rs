//! Puts the services together and serves them.
//!
//! Shutdown, in order: the `stop` token is cancelled; no new connection or subscription is taken; every stream is told its
//! deadline (Drain); clients leave, or are cut off at the deadline; `serve` returns.

use std::{sync::Arc, time::Duration};

use tidegate_model::{Clock, Retry};
use tidegate_proto::v1::catalog_server::CatalogServer;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server::ServerReflectionServer,
    v1alpha::server_reflection_server::ServerReflectionServer as ServerReflectionServerV1Alpha,
};

use crate::{
    catalog::CatalogService,
    config::GatewayConfig,
    drain::Drain,
    health::HealthService,
    metrics::GatewayMetrics,
    mirror_service::MirrorService,
    reflection::ReflectionService,
    service::ChangesService,
    shape_service::ShapeService,
    share::ShareCache,
    snapshot_service::SnapshotService,
    source::{Source, SourceHandle, Sources},
};

/// Windows of requests, in bytes. Responses have the client's windows.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// A connection that does not answer a ping for this long is gone, and its subscriptions with it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for streams to write their end after the drain's deadline.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The gRPC services over a set of sources.
pub struct Gateway {
    shared: Arc<Shared>,
}

/// What all services share.
pub(crate) struct Shared {
    pub(crate) sources: Sources,
    pub(crate) config: GatewayConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) drain: Drain,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) share: ShareCache,
    /// A permit for each query that runs.
    pub(crate) queries: Arc<Semaphore>,
}

/// The services cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Certificate and key do not make a TLS server.
    #[error("the server's TLS certificate or key cannot be used: {0}")]
    Tls(String),
    /// What reflection is to serve cannot be read.
    #[error("the API's descriptors cannot be read: {0}")]
    Descriptors(String),
    /// The listener failed.
    #[error("serving gRPC failed: {0}")]
    Transport(String),
}

impl ServeError {
    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ServeError::Tls(_) | ServeError::Descriptors(_) => Retry::Never,
            ServeError::Transport(_) => Retry::After(Duration::from_secs(1)),
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
    pub async fn serve(self, listener: TcpListener, tls: Option<ServerTlsConfig>) -> Result<(), ServeError> {
        let mut server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
        if let Some(tls) = tls {
            server = server.tls_config(tls).map_err(|error| ServeError::Tls(describe(&error)))?;
        }
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let drain = self.shared.drain.clone();
        let signal = drain.clone();
        let serving = server
            .add_routes(self.routes()?)
            .serve_with_incoming_shutdown(incoming, async move { signal.wait().await });
        let cut_off = async {
            drain.wait().await;
            tokio::time::sleep_until(drain.deadline() + LAST_WORDS).await;
        };
        tokio::select! {
            served = serving => served.map_err(|error| ServeError::Transport(describe(&error))),
            () = cut_off => Ok(()),
        }
    }
}

/// An error with its causes, which tonic does not print.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
