//! The http port: `/metrics`, `/health/live`, `/health/ready`.
//!
//! Ready means: the changelogs can be served. A PostgreSQL outage does not make a node unready, since subscribers can go
//! on reading what is there; a shutdown does. No rows and no credentials pass here.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{fmt::Write, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, ObservedSource};

/// What the port tells about.
pub(crate) struct Observed {
    pub(crate) metrics: Metrics,
    pub(crate) sources: Vec<ObservedSource>,
    /// Subscribers are being asked to leave.
    pub(crate) draining: CancellationToken,
}

/// Serves until `stop`.
///
/// # Errors
/// The listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    observed: Arc<Observed>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(async || "alive\n"))
        .route("/health/ready", get(ready))
        .with_state(observed);
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(observed): State<Arc<Observed>>) -> Response {
    match observed.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

/// The first line is for machines, the others are for the person who looks.
async fn ready(State(observed): State<Arc<Observed>>) -> Response {
    let draining = observed.draining.is_cancelled();
    let mut text = if draining { "stopping\n" } else { "ready\n" }.to_owned();
    for source in &observed.sources {
        let status = source.status.borrow();
        let colon = if status.detail.is_empty() { "" } else { ": " };
        writeln!(text, "{} {:?}{colon}{}", source.name, status.state, status.detail).expect("writing to a String");
    }
    let code = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, text).into_response()
}
