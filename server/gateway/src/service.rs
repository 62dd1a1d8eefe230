//! `tidegate.v1.Changes` as a hand-written tower service: Session answers with frames of its own making, which a generated
//! service cannot.
//!
//! It deliberately refuses compression: the bodies are shared between subscribers.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Frame;
use tidegate_proto::v1;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::Codec as _,
    server::{Grpc, NamedService, ServerStreamingService},
};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::{session::Session, shared::Shared, watch::Watching};

/// The service.
#[derive(Clone)]
pub(crate) struct ChangesService {
    shared: Arc<Shared>,
}

impl ChangesService {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        ChangesService { shared }
    }

    fn session(&self, request: Request<Body>) -> Response<Body> {
        let mut codec = ProstCodec::<v1::SessionResponse, v1::SessionRequest>::default();
        let limit = self.shared.config.request_bytes_max;
        let requests = Streaming::new_request(codec.decoder(), request.into_body(), None, Some(limit));
        let session = Box::new(Session::new(Arc::clone(&self.shared), requests));
        let frames = stream::unfold(session, |mut session| async move {
            let frame = match session.next().await {
                Some(bytes) => Frame::data(bytes),
                None => Frame::trailers(trailers(&session.result().map_err(|error| error.to_tonic()))),
            };
            Some((frame, session))
        });
        let mut response = Response::new(Body::new(SessionBody { frames: Box::pin(frames), ended: false }));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }
}

impl NamedService for ChangesService {
    const NAME: &'static str = "tidegate.v1.Changes";
}

impl Service<Request<Body>> for ChangesService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match request.uri().path() {
            "/tidegate.v1.Changes/Session" => {
                let response = self.session(request);
                Box::pin(async { Ok(response) })
            }
            "/tidegate.v1.Changes/Watch" => {
                let method = WatchMethod(Arc::clone(&self.shared));
                let limit = self.shared.config.request_bytes_max;
                Box::pin(async move {
                    let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(limit);
                    Ok(grpc.server_streaming(method, request).await)
                })
            }
            _unknown => {
                Box::pin(async { Ok(Status::unimplemented("tidegate.v1.Changes has Session and Watch").into_http()) })
            }
        }
    }
}

/// The status that a stream ends with.
fn trailers(result: &Result<(), Status>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let added = match result {
        Ok(()) => Status::ok("").add_header(&mut trailers),
        Err(status) => status.add_header(&mut trailers),
    };
    if added.is_err() {
        trailers.insert("grpc-status", HeaderValue::from_static("13"));
    }
    trailers
}

/// A session's response, pulled by the connection. Trailers come last.
struct SessionBody<S> {
    frames: Pin<Box<S>>,
    ended: bool,
}

impl<S: Stream<Item = Frame<Bytes>>> http_body::Body for SessionBody<S> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        if body.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(body.frames.as_mut().poll_next(cx));
        body.ended = frame.as_ref().is_none_or(Frame::is_trailers);
        Poll::Ready(frame.map(Ok))
    }
}

/// Watch, as tonic calls it.
struct WatchMethod(Arc<Shared>);

impl ServerStreamingService<v1::WatchRequest> for WatchMethod {
    type Response = v1::WatchResponse;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Self::ResponseStream>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<v1::WatchRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let watching = Watching::open(shared, request.into_inner()).await?;
            let responses = stream::unfold(watching, |mut watching| async move {
                let response = watching.next().await?;
                Some((response, watching))
            });
            Ok(tonic::Response::new(Box::pin(responses) as Self::ResponseStream))
        })
    }
}
