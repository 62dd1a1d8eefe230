//! Accepts connections and serves gRPC on them, HTTP/2 only, with TLS where the server has a certificate.
//!
//! It deliberately leaves a call's `grpc-timeout` to the client, who resets the stream when it is over.

use std::{io, sync::Arc, time::Duration};

use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{drain::Drain, in_place::InPlace, preface::Begun};

/// Windows of requests, in bytes. Responses have the client's windows.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// A connection that does not answer a ping for this long is gone, and its subscriptions with it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait when the process or the machine has no room for another connection.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What each connection needs.
#[derive(Clone)]
struct Connections {
    tasks: TaskTracker,
    service: TowerToHyperService<Routes>,
    tls: Option<TlsAcceptor>,
    drain: Drain,
    handshake_max: Duration,
    cut_off: CancellationToken,
}

/// Serves `routes` until draining begins, then until every connection has ended. What still stands when this is dropped is
/// cut off.
pub(crate) async fn serve(
    (listener, tls): (TcpListener, Option<Arc<ServerConfig>>),
    routes: Routes,
    (drain, handshake_max): (Drain, Duration),
) {
    let tasks = TaskTracker::new();
    let cut_off = CancellationToken::new();
    let _cuts_off = cut_off.clone().drop_guard();
    let connections = Connections {
        tasks: tasks.clone(),
        service: TowerToHyperService::new(routes.prepare()),
        tls: tls.map(TlsAcceptor::from),
        drain: drain.clone(),
        handshake_max,
        cut_off,
    };
    while let Some(accepted) = accept(&listener, &drain).await {
        match accepted {
            Ok(socket) => drop(tasks.spawn(connections.clone().connection(socket))),
            Err(error) if ended_before_it_began(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; raise the limit of open files if it says so");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// The next connection, until draining begins.
async fn accept(listener: &TcpListener, drain: &Drain) -> Option<io::Result<TcpStream>> {
    tokio::select! {
        () = drain.wait() => None,
        accepted = listener.accept() => Some(accepted.map(|(socket, _)| socket)),
    }
}

/// Is it about the one connection alone?
fn ended_before_it_began(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

fn settings(executor: InPlace) -> http2::Builder<InPlace> {
    let mut settings = http2::Builder::new(executor);
    settings
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(None)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    settings
}

impl Connections {
    /// One connection, from its handshake to its end.
    async fn connection(self, socket: TcpStream) {
        let cut_off = self.cut_off.clone();
        let served = async {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "a connection ended before it began");
                return;
            }
            match self.tls.clone() {
                None => self.streams(Begun::read(socket)).await,
                Some(tls) => {
                    let begins = async move { Begun::read(tls.accept(socket).await?).await };
                    self.streams(begins).await;
                }
            }
        };
        Box::pin(cut_off.run_until_cancelled(served)).await;
    }

    /// Serves a connection as soon as it has begun; who takes too long for that is not served, nor who has not when draining begins.
    async fn streams<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self,
        begins: impl Future<Output = io::Result<Begun<S>>>,
    ) {
        let socket = tokio::select! {
            () = self.drain.wait() => return,
            begun = tokio::time::timeout(self.handshake_max, begins) => match begun {
                Ok(Ok(socket)) => socket,
                Ok(Err(error)) => return tracing::debug!(%error, "a handshake has failed"),
                Err(_) => return tracing::debug!("a handshake took too long"),
            },
        };
        let executor = InPlace::new(self.tasks);
        let connection = settings(executor.clone()).serve_connection(TokioIo::new(socket), self.service);
        let served = async move {
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = self.drain.wait() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended with an error");
            }
        };
        executor.connection(served).await;
    }
}
