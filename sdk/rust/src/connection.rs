//! One connection of one subscription: dials, subscribes, receives, and notices silence.
//!
//! Invariant: a connection that has delivered nothing for longer than the limit, although it was asked, is an error. It
//! deliberately knows nothing about what the messages mean.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf;
use futures_util::Stream;
use prost::Message;
use tidegate_proto::v1::{
    ListSourcesRequest, SessionRequest, SessionResponse, Subscribe, catalog_client::CatalogClient, session_request,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstEncoder;

use crate::{ClientError, error::innermost};

/// Requests that wait to be sent. When it is full, grants add up where they are and go out with the next message.
const REQUESTS_MAX: usize = 16;

/// Opens connections to one server.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    endpoint: Endpoint,
    address: Arc<str>,
    connect_timeout: Duration,
    silence_timeout: Duration,
}

impl Dialer {
    pub(crate) fn new(endpoint: Endpoint, connect_timeout: Duration, silence_timeout: Duration) -> Self {
        let address = endpoint.uri().to_string().trim_end_matches('/').into();
        Dialer { endpoint, address, connect_timeout, silence_timeout }
    }

    /// A new connection, whose calls may take that long.
    pub(crate) async fn dial(&self, call_timeout: Option<Duration>) -> Result<Channel, ClientError> {
        let endpoint = match call_timeout {
            Some(limit) => self.endpoint.clone().timeout(limit),
            None => self.endpoint.clone(),
        };
        match timeout(self.connect_timeout, endpoint.connect()).await {
            Ok(connected) => {
                connected.map_err(|cause| ClientError::Connect { endpoint: self.address.to_string(), cause })
            }
            Err(_) => Err(self.late()),
        }
    }

    /// Makes sure that gRPC is spoken at the other end: a connection is open before the first byte has passed, also to a
    /// server that takes only TLS. Whatever a server answers, it has answered.
    pub(crate) async fn greet(&self, channel: Channel) -> Result<(), ClientError> {
        match CatalogClient::new(channel).list_sources(ListSourcesRequest {}).await {
            Ok(_) => Ok(()),
            Err(status) => match std::error::Error::source(&status) {
                None => Ok(()),
                Some(cause) => {
                    let (endpoint, cause) = (self.address.to_string(), innermost(cause));
                    Err(ClientError::NotUnderstood { endpoint, cause })
                }
            },
        }
    }

    /// A new connection with one subscription. Opened, or an error, is its first message.
    pub(crate) async fn open(self, subscribe: Subscribe) -> Result<Connection, ClientError> {
        let channel = self.dial(None).await?;
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let first = SessionRequest { request: Some(session_request::Request::Subscribe(subscribe)) };
        requests.try_send(first).expect("the queue is new and holds more than one");
        let call = async {
            let mut grpc = Grpc::new(channel);
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::from_static("/tidegate.v1.Changes/Session");
            let request = tonic::Request::new(ReceiverStream::new(queue));
            grpc.streaming(request, path, SessionCodec).await.map(tonic::Response::into_inner)
        };
        let responses = match timeout(self.connect_timeout, call).await {
            Ok(opened) => opened.map_err(|status| ClientError::from_status(&status))?,
            Err(_) => return Err(self.late()),
        };
        let silence =
            Silence { limit: self.silence_timeout, timer: Box::pin(sleep(self.silence_timeout)), armed: false };
        Ok(Connection { requests, responses, silence })
    }

    fn late(&self) -> ClientError {
        ClientError::ConnectTimeout { endpoint: self.address.to_string(), after: self.connect_timeout }
    }
}

/// An open call. Dropping it cancels the call and closes the connection.
#[derive(Debug)]
pub(crate) struct Connection {
    requests: mpsc::Sender<SessionRequest>,
    responses: Streaming<Received>,
    silence: Silence,
}

impl Connection {
    /// The next message.
    pub(crate) fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Received, ClientError>> {
        match Pin::new(&mut self.responses).poll_next(context) {
            Poll::Ready(Some(Ok(received))) => {
                self.silence.armed = false;
                Poll::Ready(Ok(received))
            }
            Poll::Ready(Some(Err(status))) => Poll::Ready(Err(ClientError::from_status(&status))),
            Poll::Ready(None) => Poll::Ready(Err(ClientError::Closed)),
            Poll::Pending => self.silence.poll(context).map(Err),
        }
    }

    /// Sends a request if there is room for it.
    pub(crate) fn request(&self, request: session_request::Request) -> bool {
        self.requests.try_send(SessionRequest { request: Some(request) }).is_ok()
    }
}

/// Measures how long the connection has been waited for in vain. The timer is touched only when the program waits, so
/// that a backlog costs nothing and a program that is busy elsewhere is not taken for a silent server.
#[derive(Debug)]
struct Silence {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    armed: bool,
}

impl Silence {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ClientError> {
        if !self.armed {
            self.timer.as_mut().reset(Instant::now() + self.limit);
            self.armed = true;
        }
        self.timer.as_mut().poll(context).map(|()| ClientError::Silent { after: self.limit })
    }
}

/// A message and its size on the wire, which is what credit counts.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) response: SessionResponse,
    pub(crate) bytes: usize,
}

/// Protobuf, keeping each message's size; rows stay slices of the received buffer.
#[derive(Clone, Copy, Debug)]
struct SessionCodec;

impl Codec for SessionCodec {
    type Encode = SessionRequest;
    type Decode = Received;
    type Encoder = ProstEncoder<SessionRequest>;
    type Decoder = SessionCodec;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        SessionCodec
    }
}

impl Decoder for SessionCodec {
    type Item = Received;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Received>, Status> {
        let bytes = buffer.remaining();
        // Slices of one `Bytes` are cheaper than pieces split off the receive buffer one by one.
        let response = SessionResponse::decode(buffer.copy_to_bytes(bytes))
            .map_err(|error| Status::data_loss(format!("a message of the server cannot be decoded: {error}")))?;
        Ok(Some(Received { response, bytes }))
    }
}
