//! `fanout`: a thousand subscriptions to one table, all changes to each.
//!
//! The peer is a bare tonic server that sends, on as many streams, the very messages that one subscription of Tidegate
//! received, encoded beforehand. The clients count changes without decoding them, alike for both.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::BoxStream};
use prost::Message;
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig};
use tidegate_proto::v1::{
    Selection, SessionRequest, Start, Subscribe, TableSelection, selection::What, session_request::Request, start,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Response, Status, Streaming,
    body::Body,
    client::Grpc as GrpcClient,
    codegen::http::{self, uri::PathAndQuery},
    server::{Grpc as GrpcServer, NamedService, StreamingService},
    transport::{Channel, Endpoint, Server as TonicServer},
};

use crate::{
    bytes_codec::{BytesCodec, change_count},
    outcome::{Outcome, Target},
};

const CONNECTIONS: u32 = 10;
const PER_CONNECTION: u32 = 100;
const ROW_COUNT: u64 = 10_000;

/// Measures the case.
pub(crate) async fn run() -> Result<Outcome> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("bench").await?;
    database.execute("create table feed (id bigint primary key, author int, body text)").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    fill(&database).await?;
    let recorded = record(&server.endpoint()).await?;
    let bytes: usize = recorded.iter().map(Bytes::len).sum();
    eprintln!("{ROW_COUNT} changes in {} messages, {bytes} bytes", recorded.len());

    // The first run of either makes the processes grow.
    receive_all(&server.endpoint(), PER_CONNECTION).await?;
    bare_tonic(recorded.clone()).await?;
    let ours_first = receive_all(&server.endpoint(), PER_CONNECTION).await?;
    let bare = bare_tonic(recorded.clone()).await?;
    let ours_second = receive_all(&server.endpoint(), PER_CONNECTION).await?;
    let bare = (bare + bare_tonic(recorded).await?) / 2;
    let ours = (ours_first + ours_second) / 2;
    let events = f64::from(CONNECTIONS * PER_CONNECTION) * ROW_COUNT as f64;
    let rate = |time: Duration| events / time.as_secs_f64();
    let mut outcome = Outcome::new("fanout");
    outcome.ratio("bare_tonic", rate(ours) / rate(bare), Target::AtLeast(0.7));
    outcome.figure("events_per_s", rate(ours), None);
    outcome.figure("bare_tonic_events_per_s", rate(bare), None);
    outcome.figure("server_peak_rss_mib", server.process()?.memory("VmHWM")? as f64 / f64::from(1 << 20), None);
    outcome.note("Clients run in the measuring process; Tidegate is a process of its own, the bare server is not.");
    Ok(outcome)
}

async fn fill(database: &Database) -> Result<()> {
    for first in (0..ROW_COUNT).step_by(100) {
        let rows = format!("generate_series({first}, {})", first + 99);
        let body = "'the body of number ' || n || repeat('.', 150)";
        database.execute(&format!("insert into feed select n, n % 10, {body} from {rows} n")).await?;
    }
    Ok(())
}

fn subscribe(subscription: u32) -> Bytes {
    let feed = TableSelection { names: vec!["feed".to_owned()], ..TableSelection::default() };
    let subscribe = Subscribe {
        subscription,
        selections: vec![Selection { what: Some(What::Tables(feed)) }],
        start: Some(Start { from: Some(start::From::At(start::Point::Earliest.into())) }),
        // More than all there is: flow control is not what is measured here.
        credit_bytes: 64 << 20,
        ..Subscribe::default()
    };
    SessionRequest { request: Some(Request::Subscribe(subscribe)) }.encode_to_vec().into()
}

async fn connect(endpoint: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    let windows = endpoint.initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20);
    Ok(windows.tcp_nodelay(true).connect().await?)
}

/// Opens a session with subscriptions 1 to `count`.
async fn session(channel: Channel, count: u32) -> Result<Streaming<Bytes>> {
    let mut client = GrpcClient::new(channel).max_decoding_message_size(16 << 20);
    client.ready().await?;
    let requests: Vec<Bytes> = (1..=count).map(subscribe).collect();
    let open = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let path = PathAndQuery::from_static("/tidegate.v1.Changes/Session");
    Ok(client.streaming(tonic::Request::new(open), path, BytesCodec).await?.into_inner())
}

/// The messages of one subscription that hold the changes, with their marks.
async fn record(endpoint: &str) -> Result<Vec<Bytes>> {
    let mut responses = session(connect(endpoint).await?, 1).await?;
    let (mut recorded, mut count) = (Vec::new(), 0);
    while count < ROW_COUNT {
        let response = responses.message().await?.context("the session ended")?;
        count += change_count(&response)?;
        recorded.push(response);
    }
    ensure!(count == ROW_COUNT, "{count} changes");
    Ok(recorded)
}

/// Until every subscription of every connection has everything.
async fn receive_all(endpoint: &str, per_connection: u32) -> Result<Duration> {
    let mut sessions = Vec::new();
    for _ in 0..CONNECTIONS {
        sessions.push(connect(endpoint).await?);
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for channel in sessions {
        tasks.spawn(async move {
            let mut responses = session(channel, per_connection).await?;
            let (mut count, goal) = (0, u64::from(per_connection) * ROW_COUNT);
            while count < goal {
                count += change_count(&responses.message().await?.context("the session ended")?)?;
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
async fn bare_tonic(recorded: Vec<Bytes>) -> Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let stop = CancellationToken::new();
    let serving = TonicServer::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(Bare { recorded })
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
    let mut server = JoinSet::new();
    server.spawn(serving);
    receive_all(&endpoint, PER_CONNECTION).await
}

/// A server that sends the recorded messages [`PER_CONNECTION`] times on each stream.
#[derive(Clone)]
struct Bare {
    recorded: Vec<Bytes>,
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
        let count = recorded.len() * PER_CONNECTION as usize;
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
