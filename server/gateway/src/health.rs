//! `grpc.health.v1`: the server as a whole, and each source.
//!
//! The empty service name is SERVING while the changelog can be served, whatever PostgreSQL does: an outage of the database
//! must not take the pods down. `tidegate.source.<name>` is SERVING while the source is connected and its keepalives arrive.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use crate::shared::Shared;

/// PostgreSQL sends a keepalive at least each half `wal_sender_timeout`, 30 seconds by default. Twice that is silence.
const SILENT_US: i64 = 60_000_000;
/// How often a Watch looks for changes.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// What precedes a source's name.
const SOURCE_PREFIX: &str = "tidegate.source.";
/// The services that share the state of the whole.
const SERVICES: [&str; 5] =
    ["", "tidegate.v1.Changes", "tidegate.v1.Catalog", "tidegate.v1.Snapshots", "tidegate.v1.Mirror"];

/// The service.
pub(crate) struct HealthService {
    shared: Arc<Shared>,
}

impl HealthService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        HealthService { shared }
    }
}

/// The state of a service; None where there is no such service.
fn state(shared: &Shared, service: &str) -> Option<ServingStatus> {
    let serving = |serving| if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    if SERVICES.contains(&service) {
        return Some(serving(!shared.drain.begun()));
    }
    let name = service.strip_prefix(SOURCE_PREFIX)?;
    let source = shared.sources.iter().find(|source| source.name().as_str() == name)?;
    let status = source.handle.status.borrow();
    let heard_us_ago = shared.clock.now_us().saturating_sub(status.last_heard_us);
    Some(serving(status.connected() && heard_us_ago < SILENT_US))
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        match state(&self.shared, service) {
            Some(status) => Ok(Response::new(response(status))),
            None => Err(Status::not_found(format!("no service '{service}'; sources are {SOURCE_PREFIX}<name>"))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// States the service's health now, and again whenever it changes; an unknown service may yet come.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (shared, service) = (Arc::clone(&self.shared), request.into_inner().service);
        let changes = stream::unfold((shared, service, None), |(shared, service, told)| async move {
            if told.is_some() && shared.drain.begun() && shared.drain.deadline() <= tokio::time::Instant::now() {
                return None;
            }
            loop {
                let now = state(&shared, &service).unwrap_or(ServingStatus::ServiceUnknown);
                if told != Some(now) {
                    return Some((Ok(response(now)), (shared, service, Some(now))));
                }
                if shared.drain.begun() {
                    tokio::time::sleep_until(shared.drain.deadline()).await;
                    return None;
                }
                tokio::select! {
                    () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    () = shared.drain.wait() => {}
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
