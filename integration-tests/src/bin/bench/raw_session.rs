//! Sessions whose responses are counted and not decoded, so that many of them cost the measuring process little.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use prost::Message;
use tidegate_proto::v1::{
    Selection, SessionRequest, SessionResponse, ShapeSelection, Start, Subscribe, selection::What,
    session_request::Request, session_response::Event, start,
};
use tonic::{
    Streaming,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

use crate::bytes_codec::{BytesCodec, has_event};

/// Numbers of SessionResponse's events.
pub(crate) const OPENED: u64 = 3;
pub(crate) const SNAPSHOT_END: u64 = 9;
const RESET: u64 = 11;
const ERROR: u64 = 12;

/// With windows that hold nobody up.
pub(crate) async fn connect(endpoint: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
    let windows = endpoint.initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20);
    Ok(windows.tcp_nodelay(true).connect().await?)
}

/// Opens a session with these subscriptions.
pub(crate) async fn open(
    channel: Channel,
    subscribes: impl IntoIterator<Item = Subscribe>,
) -> Result<Streaming<Bytes>> {
    let requests: Vec<Bytes> = subscribes.into_iter().map(|of| encoded(Request::Subscribe(of))).collect();
    with_requests(channel, tokio_stream::iter(requests).chain(tokio_stream::pending())).await
}

/// A request of a session.
pub(crate) fn encoded(request: Request) -> Bytes {
    SessionRequest { request: Some(request) }.encode_to_vec().into()
}

/// Opens a session with these requests, as they come.
pub(crate) async fn with_requests(
    channel: Channel,
    open: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<Streaming<Bytes>> {
    let mut client = Grpc::new(channel).max_decoding_message_size(16 << 20);
    client.ready().await?;
    let path = PathAndQuery::from_static("/tidegate.v1.Changes/Session");
    Ok(client.streaming(tonic::Request::new(open), path, BytesCodec).await?.into_inner())
}

/// A subscription with more credit than all that there is: flow control is not what is measured. As whoever has many would ask for, its
/// progress comes with that of others.
pub(crate) fn subscribe(subscription: u32, what: What, at: start::Point) -> Subscribe {
    Subscribe {
        subscription,
        selections: vec![Selection { what: Some(what) }],
        start: Some(Start { from: Some(start::From::At(at.into())) }),
        credit_bytes: 64 << 20,
        shared_progress: true,
        ..Subscribe::default()
    }
}

/// The rows of a table that meet a condition.
pub(crate) fn shape(table: &str, condition: String) -> What {
    What::Shape(ShapeSelection { table: table.to_owned(), r#where: condition, ..ShapeSelection::default() })
}

/// The next response; an error where it ends a subscription.
pub(crate) async fn next(session: &mut Streaming<Bytes>) -> Result<Bytes> {
    let response = session.message().await?.context("the session ended")?;
    if has_event(&response, ERROR)? || has_event(&response, RESET)? {
        match SessionResponse::decode(response)?.event {
            Some(Event::Error(status)) => bail!("a subscription has ended: {}", status.message),
            other => bail!("a subscription has ended: {other:?}"),
        }
    }
    Ok(response)
}

/// Receives until so many subscriptions are open.
pub(crate) async fn until_open(session: &mut Streaming<Bytes>, count: usize) -> Result<()> {
    let mut open = 0;
    while open < count {
        open += usize::from(has_event(&next(session).await?, OPENED)?);
    }
    Ok(())
}
