//! The stream of a subscription's events, which outlives its connections.
//!
//! Invariant: what `continuity.rs` decides is what happens; this file moves bytes and time. At most one message is held,
//! and nothing is received while the program does not ask: then the credit runs out, and the server waits. Dropping the
//! stream ends the subscription; a `next()` that is dropped before it is ready loses nothing.

use std::{
    collections::{VecDeque, vec_deque},
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, future::BoxFuture};
use tidegate_proto::v1::{Ack, Grant, event::What, session_request::Request, session_response};
use tokio::time::{Sleep, sleep};

use crate::{
    ClientError, Event, Retry, Subscription, Token, Transactions,
    backoff::Backoff,
    connection::{Connection, Dialer, Received},
    continuity::{Continuity, SUBSCRIPTION, Step},
    credit::Credit,
};

/// Events of one subscription, in order, from [`Client::subscribe`](crate::Client::subscribe).
///
/// A lost connection is opened again by itself, from the last token on; [`Event::Interrupted`] and [`Event::Abort`] tell
/// of it. The stream ends after [`Event::Reset`], and after the first error, which trying again does not mend.
pub struct Changes {
    dialer: Dialer,
    continuity: Continuity,
    backoff: Backoff,
    link: Link,
    /// Events of the last message that the program has not taken.
    queue: VecDeque<Event>,
    credit: Credit,
    /// Size of the last message, to be granted back when the queue is empty.
    unread_bytes: usize,
    ack: Option<Token>,
    failure: Option<ClientError>,
}

enum Link {
    Idle,
    Waiting(Pin<Box<Sleep>>),
    Opening(BoxFuture<'static, Result<Connection, ClientError>>),
    Open(Box<Connection>),
    Ended,
}

impl Changes {
    pub(crate) fn new(dialer: Dialer, subscription: Subscription) -> Self {
        let continuity = Continuity::new(subscription);
        Changes {
            dialer,
            credit: Credit::new(continuity.credit_bytes()),
            continuity,
            backoff: Backoff::default(),
            link: Link::Idle,
            queue: VecDeque::new(),
            unread_bytes: 0,
            ack: None,
            failure: None,
        }
    }

    /// All events of the next message at once; None at the end. Faster than event by event, in a backlog above all. What
    /// is left in the batch when it is dropped is gone.
    ///
    /// # Errors
    /// As for the stream.
    pub async fn next_batch(&mut self) -> Result<Option<EventBatch<'_>>, ClientError> {
        match std::future::poll_fn(|context| self.poll_fill(context)).await {
            Some(Ok(())) => Ok(Some(EventBatch(self.queue.drain(..)))),
            Some(Err(error)) => Err(error),
            None => Ok(None),
        }
    }

    /// Whole transactions instead of their parts, each up to `limit_bytes` in memory.
    #[must_use]
    pub fn transactions(self, limit_bytes: usize) -> Transactions {
        Transactions::new(self, limit_bytes)
    }

    /// Tells the server that all up to the token is processed. It shows in the server's status; delivery does not
    /// depend on it. Only the latest counts.
    pub fn ack(&mut self, token: &Token) {
        self.ack = Some(token.clone());
        self.pay();
    }

    /// Receives until there are events to take.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<(), ClientError>>> {
        loop {
            if !self.queue.is_empty() {
                return Poll::Ready(Some(Ok(())));
            }
            self.credit.consume(mem::take(&mut self.unread_bytes));
            self.pay();
            match &mut self.link {
                Link::Idle => {
                    self.credit = Credit::new(self.continuity.credit_bytes());
                    let open = self.dialer.clone().open(self.continuity.subscribe());
                    self.link = Link::Opening(Box::pin(open));
                }
                Link::Waiting(timer) => {
                    ready!(timer.as_mut().poll(context));
                    self.link = Link::Idle;
                }
                Link::Opening(opening) => match ready!(opening.as_mut().poll(context)) {
                    Ok(connection) => self.link = Link::Open(Box::new(connection)),
                    Err(error) => self.lost(error),
                },
                Link::Open(connection) => match ready!(connection.poll_message(context)) {
                    Ok(received) => self.received(received),
                    Err(error) => self.lost(error),
                },
                Link::Ended => return Poll::Ready(self.failure.take().map(Err)),
            }
        }
    }

    fn received(&mut self, received: Received) {
        match &received.response.event {
            Some(session_response::Event::Changes(batch)) => {
                self.unread_bytes = received.bytes;
                if batch.events.iter().rev().any(|event| matches!(event.what, Some(What::Commit(_)))) {
                    self.backoff.succeeded();
                }
            }
            // The server may accept and then fail again and again: commits and these show that the subscription moves.
            Some(
                session_response::Event::Progress(_)
                | session_response::Event::Preparing(_)
                | session_response::Event::SnapshotBegin(_)
                | session_response::Event::SnapshotEnd(_),
            ) => self.backoff.succeeded(),
            Some(_) | None => {}
        }
        match self.continuity.message(received.response, &mut self.queue) {
            Ok(Step::Next) => {}
            Ok(Step::Reconnect(cause)) => self.lost(cause),
            Ok(Step::End) => self.link = Link::Ended,
            Err(error) => self.failed(error),
        }
    }

    /// Connects again after a while, if that can help.
    fn lost(&mut self, cause: ClientError) {
        let asked = match cause.retry() {
            Retry::After(delay) => delay,
            Retry::Never | Retry::Reset => return self.failed(cause),
        };
        self.continuity.disconnected(&mut self.queue);
        let retry_in = self.backoff.failed(asked, rand::random());
        // Of a drain the program has heard before.
        if !matches!(cause, ClientError::Draining) {
            self.queue.push_back(Event::Interrupted { cause: Arc::new(cause), retry_in });
        }
        self.unread_bytes = 0;
        self.link = Link::Waiting(Box::pin(sleep(retry_in)));
    }

    fn failed(&mut self, error: ClientError) {
        self.continuity.disconnected(&mut self.queue);
        self.failure = Some(error);
        self.link = Link::Ended;
    }

    /// Sends what is due to the server, or keeps it for the next time where there is no room.
    fn pay(&mut self) {
        let Link::Open(connection) = &self.link else { return };
        if let Some(credit_bytes) = self.credit.due()
            && connection.request(Request::Grant(Grant { subscription: SUBSCRIPTION, credit_bytes }))
        {
            self.credit.granted(credit_bytes);
        }
        if let Some(token) = &self.ack {
            let position = token.position().to_string();
            if connection.request(Request::Ack(Ack { subscription: SUBSCRIPTION, position })) {
                self.ack = None;
            }
        }
    }
}

impl Stream for Changes {
    type Item = Result<Event, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match ready!(self.poll_fill(context)) {
            Some(Ok(())) => Poll::Ready(self.queue.pop_front().map(Ok)),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(None),
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("continuity", &self.continuity).finish_non_exhaustive()
    }
}

/// The events of one message, from [`Changes::next_batch`]. Never empty.
#[derive(Debug)]
pub struct EventBatch<'a>(vec_deque::Drain<'a, Event>);

impl Iterator for EventBatch<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for EventBatch<'_> {}
