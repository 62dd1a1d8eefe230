//! `fanout`: a thousand subscriptions to one table, all changes to each. `shape-fanout`: ten thousand, on a hundred connections, to one
//! shape that has them all.
//!
//! The peer is a bare tonic server that sends, on as many streams, the very messages that one subscription of Tidegate
//! received, encoded beforehand. The clients count changes without decoding them, alike for both.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::BoxStream};
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig};
use tidegate_proto::v1::{TableSelection, selection::What, start};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Response, Status, Streaming,
    body::Body,
    codegen::http,
    server::{Grpc as GrpcServer, NamedService, StreamingService},
    transport::{Channel, Server as TonicServer},
};

use crate::{
    bytes_codec::{BytesCodec, change_count},
    load,
    outcome::{Outcome, Target},
    raw_session::{self, connect, shape, subscribe},
};

/// One selection for all.
#[derive(Clone, Copy)]
struct Load {
    connections: u32,
    per_connection: u32,
    row_count: u64,
    what: fn() -> What,
}

/// Measures `fanout`.
pub(crate) async fn run() -> Result<Outcome> {
    let what = || What::Tables(TableSelection { names: vec!["feed".to_owned()], ..TableSelection::default() });
    let load = Load { connections: 10, per_connection: 100, row_count: load::row_count(10_000)?, what };
    measure("fanout", load).await
}

/// Measures `shape-fanout`.
pub(crate) async fn run_shape() -> Result<Outcome> {
    let what = || shape("feed", "author between 0 and 9 and body like 'the body%'".to_owned());
    let load = Load { connections: 100, per_connection: 100, row_count: load::row_count(1_000)?, what };
    measure("shape-fanout", load).await
}

async fn measure(case: &'static str, load: Load) -> Result<Outcome> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("bench").await?;
    let create =
        "create table feed (id bigint primary key, author int, body text); alter table feed replica identity full";
    database.execute(create).await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    fill(&database, load.row_count).await?;
    let recorded = record(&server.endpoint(), load).await?;
    let bytes: usize = recorded.iter().map(Bytes::len).sum();
    eprintln!("{} changes in {} messages, {bytes} bytes", load.row_count, recorded.len());

    // The first run of either makes the processes grow.
    receive_all(&server.endpoint(), load).await?;
    bare_tonic(recorded.clone(), load).await?;
    let ours_first = receive_all(&server.endpoint(), load).await?;
    let bare = bare_tonic(recorded.clone(), load).await?;
    let ours_second = receive_all(&server.endpoint(), load).await?;
    let bare = (bare + bare_tonic(recorded, load).await?) / 2;
    let ours = (ours_first + ours_second) / 2;
    let events = f64::from(load.connections * load.per_connection) * load.row_count as f64;
    let rate = |time: Duration| events / time.as_secs_f64();
    let mut outcome = Outcome::new(case);
    outcome.ratio("bare_tonic", rate(ours) / rate(bare), Target::AtLeast(0.7));
    outcome.figure("events_per_s", rate(ours), None);
    outcome.figure("bare_tonic_events_per_s", rate(bare), None);
    outcome.figure("server_peak_rss_mib", server.process()?.memory("VmHWM")? as f64 / f64::from(1 << 20), None);
    outcome.note("Clients run in the measuring process; Tidegate is a process of its own, the bare server is not.");
    Ok(outcome)
}

async fn fill(database: &Database, row_count: u64) -> Result<()> {
    for first in (0..row_count).step_by(100) {
        let rows = format!("generate_series({first}, {})", first + 99);
        let body = "'the body of number ' || n || repeat('.', 150)";
        database.execute(&format!("insert into feed select n, n % 10, {body} from {rows} n")).await?;
    }
    Ok(())
}

/// Opens a session with as many subscriptions.
async fn session(channel: Channel, what: fn() -> What, count: u32) -> Result<Streaming<Bytes>> {
    let subscribes = (1..=count).map(|number| subscribe(number, what(), start::Point::Earliest));
    raw_session::open(channel, subscribes).await
}

/// The messages of one subscription that hold the changes, with their marks.
async fn record(endpoint: &str, load: Load) -> Result<Vec<Bytes>> {
    let mut responses = session(connect(endpoint).await?, load.what, 1).await?;
    let (mut recorded, mut count) = (Vec::new(), 0);
    while count < load.row_count {
        let response = raw_session::next(&mut responses).await?;
        count += change_count(&response)?;
        recorded.push(response);
    }
    ensure!(count == load.row_count, "{count} changes");
    Ok(recorded)
}

/// Until every subscription of every connection has everything.
async fn receive_all(endpoint: &str, load: Load) -> Result<Duration> {
    let mut sessions = Vec::new();
    for _ in 0..load.connections {
        sessions.push(connect(endpoint).await?);
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for channel in sessions {
        tasks.spawn(async move {
            let mut responses = session(channel, load.what, load.per_connection).await?;
            let (mut count, goal) = (0, u64::from(load.per_connection) * load.row_count);
            while count < goal {
                count += change_count(&raw_session::next(&mut responses).await?)?;
            }
            ensure!(count == goal, "{count} changes");
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    eprintln!("received in {:?}", start.elapsed());
    Ok(start.elapsed())
}

/// The same from the bare server.
async fn bare_tonic(recorded: Vec<Bytes>, load: Load) -> Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let stop = CancellationToken::new();
    let serving = TonicServer::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(Bare { recorded, times: load.per_connection as usize })
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
    let mut server = JoinSet::new();
    server.spawn(serving);
    receive_all(&endpoint, load).await
}

/// A server that sends the recorded messages so many times on each stream.
#[derive(Clone)]
struct Bare {
    recorded: Vec<Bytes>,
    times: usize,
}

impl NamedService for Bare {
    const NAME: &'static str = "tidegate.v1.Changes";
}

impl StreamingService<Bytes> for Bare {
    type Response = Bytes;
    type ResponseStream = BoxStream<'static, Result<Bytes, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _request: tonic::Request<Streaming<Bytes>>) -> Self::Future {
        let recorded = self.recorded.clone();
        let count = recorded.len() * self.times;
        let messages = (0..count).map(move |number| Ok(recorded[number % recorded.len()].clone()));
        let stream = tokio_stream::iter(messages).boxed();
        Box::pin(async move { Ok(Response::new(stream)) })
    }
}

impl tonic::codegen::Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(GrpcServer::new(BytesCodec).streaming(service, request).await) })
    }
}
