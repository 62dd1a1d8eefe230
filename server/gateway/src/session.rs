//! `Changes.Session`: many subscriptions on one stream.
//!
//! ```text
//! requests ──▶ subscriptions ──read──▶ arrivals (blocks) ──filter──▶ ready, in turns ──▶ outbox ──▶ connection
//!                   ▲ credit                                             (delivery.rs)     (frame.rs)
//! ```
//!
//! The connection pulls: nothing is read or filtered unless it asks for bytes. So a client that stops reading, or one without
//! credit, costs its subscriptions' positions and at most the block that each is in. No task belongs to a session; it
//! ends when the connection drops it.
//!
//! Only a violation of the protocol or the end of the server ends the stream; anything else ends one subscription. A closed
//! request stream ends nothing: what is open goes on.

mod open;
mod places;
mod turning;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, abortable},
    stream::FuturesUnordered,
};
use tidegate_proto::v1::{self, session_request::Request, session_response::Event};
use tokio::time::Instant;
use tonic::Streaming;

use open::Open;

use crate::{
    delivery::Step,
    entering::{Entered, Entering},
    frame::Outbox,
    incoming::Interrupted,
    metrics::OpenSession,
    opening::{Opened, Opening, refusal, renewed},
    redefinition::Prepared,
    reset::Refusal,
    router::{Bell, Inflow, Noted, Piece},
    selection::Plan,
    shape::ShapeFailure,
    shared::Shared,
    status::GatewayError,
};

/// Bytes that are collected before the connection is given them.
const OUTBOX_BYTES: usize = 64 << 10;
/// Bytes that a subscription may send in its turn (and one message more).
const TURN_BYTES: usize = 32 << 10;
/// Turns before the session looks at the clock and its requests again.
const TURNS_MAX: usize = 64;
/// Requests that are handled between turns.
const REQUESTS_PER_TURN: usize = 32;
/// Numbers of subscriptions that a session remembers; with more, it no longer tells mistakes from late requests.
const NUMBERS_REMEMBERED: usize = 65_536;

type Arriving = Pin<Box<dyn Future<Output = Option<Arrival>> + Send>>;

/// Something that a subscription has waited for.
struct Arrival {
    subscription: u32,
    /// Tells a subscription from an earlier one of the same number.
    serial: u64,
    what: Arrived,
}

enum Arrived {
    Entered(Entered),
    Piece(Inflow<Plan>, Result<Option<Piece<Plan>>, Interrupted>),
    /// What an edit of its named shapes is to it.
    Prepared(Inflow<Plan>, Result<Prepared, Refusal>),
    /// The piece does not fit what its shapes were made of: the plan with what the catalog says now, if that is different.
    Renewed {
        incoming: Inflow<Plan>,
        piece: Piece<Plan>,
        plan: Result<Option<Arc<Plan>>, GatewayError>,
        failure: Arc<ShapeFailure>,
    },
}

/// One stream.
pub(crate) struct Session {
    shared: Arc<Shared>,
    /// None when the client has closed its side.
    requests: Option<Streaming<v1::SessionRequest>>,
    subscriptions: HashMap<u32, Subscription>,
    /// Numbers that were ever opened, so that a request for a subscription that has just ended is told from a mistake.
    numbers: HashSet<u32>,
    next_serial: u64,
    /// Subscriptions that may have something to send, each once, in turns.
    ready: VecDeque<u32>,
    arrivals: FuturesUnordered<Arriving>,
    /// Rung for subscriptions that wait for notes.
    bell: Arc<Bell>,
    rung: Vec<u32>,
    outbox: Outbox,
    next_progress: Instant,
    drain_announced: bool,
    ended: Option<Result<(), GatewayError>>,
    _counted: OpenSession,
}

struct Subscription {
    serial: u64,
    /// Ends what it waits for.
    waiting: Option<AbortHandle>,
    state: State,
}

enum State {
    Opening { credit_bytes: u64 },
    Open(Box<Open>),
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, requests: Streaming<v1::SessionRequest>) -> Self {
        let next_progress = Instant::now() + shared.config.progress_interval;
        let counted = OpenSession::new(&shared.metrics);
        Session {
            shared,
            requests: Some(requests),
            subscriptions: HashMap::new(),
            numbers: HashSet::new(),
            next_serial: 0,
            ready: VecDeque::new(),
            arrivals: FuturesUnordered::new(),
            bell: Arc::default(),
            rung: Vec::new(),
            outbox: Outbox::default(),
            next_progress,
            drain_announced: false,
            ended: None,
            _counted: counted,
        }
    }

    /// The next bytes for the connection; None when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.outbox.pop() {
                return Some(frame);
            }
            if self.ended.is_some() {
                return None;
            }
            self.keep_time();
            self.take_requests();
            self.take_arrivals();
            self.deliver();
            if self.outbox.byte_count() > 0 || self.ended.is_some() {
                continue;
            }
            if self.ready.is_empty() {
                self.wait().await;
            } else {
                // A long run of blocks in which nothing matches must not keep other sessions, or the clock, waiting.
                tokio::task::yield_now().await;
            }
        }
    }

    /// How it ended.
    pub(crate) fn result(&mut self) -> Result<(), GatewayError> {
        self.ended.take().unwrap_or(Ok(()))
    }

    /// Waits for anything to do.
    async fn wait(&mut self) {
        if self.requests.is_none() && self.subscriptions.is_empty() {
            self.ended = Some(Ok(()));
            return;
        }
        let Session { shared, requests, arrivals, bell, next_progress, drain_announced, .. } = self;
        let drain = &shared.drain;
        let mut wake = *next_progress;
        if *drain_announced {
            wake = wake.min(drain.deadline());
        }
        let (mut request, mut arrival) = (None, None);
        tokio::select! {
            received = receive(requests), if requests.is_some() => request = Some(received),
            arrived = arrivals.next(), if !arrivals.is_empty() => arrival = arrived.flatten(),
            () = bell.rung() => {}
            () = tokio::time::sleep_until(wake) => {}
            () = drain.wait(), if !*drain_announced => {}
        }
        if let Some(request) = request {
            self.request(request);
        }
        if let Some(arrival) = arrival {
            self.arrival(arrival);
        }
    }

    /// What is due by the clock.
    fn keep_time(&mut self) {
        let now = Instant::now();
        if self.shared.drain.begun() {
            if !self.drain_announced {
                self.drain_announced = true;
                let event = Event::Drain(self.shared.drain.message());
                self.send(0, event);
            } else if now >= self.shared.drain.deadline() {
                self.end(GatewayError::Draining);
            }
        }
        if now >= self.next_progress {
            self.next_progress = now + self.shared.config.progress_interval;
            self.look_at_names();
            self.tell_all();
        }
    }

    fn take_requests(&mut self) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(request) = receive(&mut self.requests).now_or_never() else { return };
            self.request(request);
            if self.requests.is_none() || self.ended.is_some() {
                return;
            }
        }
    }

    fn take_arrivals(&mut self) {
        let mut rung = std::mem::take(&mut self.rung);
        self.bell.take(&mut rung);
        for subscription in rung.drain(..) {
            if let Some(open) = open_of(&mut self.subscriptions, subscription)
                && std::mem::take(&mut open.awaits_note)
            {
                self.enqueue(subscription);
            }
        }
        self.rung = rung;
        while let Some(Some(arrival)) = self.arrivals.next().now_or_never() {
            if let Some(arrival) = arrival {
                self.arrival(arrival);
            }
        }
    }

    /// Lets the ready subscriptions take turns until there is enough for the connection, or it took long.
    fn deliver(&mut self) {
        for _ in 0..TURNS_MAX {
            if self.outbox.byte_count() >= OUTBOX_BYTES {
                return;
            }
            let Some(subscription) = self.ready.pop_front() else { return };
            self.turn(subscription);
            self.take_arrivals();
        }
    }

    fn turn(&mut self, subscription: u32) {
        let Some(open) = open_of(&mut self.subscriptions, subscription) else { return };
        open.queued = false;
        let mut sent_bytes = 0;
        while sent_bytes < TURN_BYTES {
            match open.delivery.next(&mut self.outbox) {
                Step::Sent { change_count, byte_count } => {
                    open.source.metrics.sent(u64::from(change_count), byte_count as u64);
                    sent_bytes += byte_count;
                }
                Step::Starved => return,
                Step::Abandoned(reset) => return self.close(subscription, Refusal::Reset(reset)),
                Step::Failed(failure) => return self.close(subscription, failure.into()),
                Step::Exhausted => {
                    if open.delivery.has_credit() {
                        self.read(subscription);
                    }
                    return;
                }
            }
        }
        open.queued = true;
        self.ready.push_back(subscription);
    }

    /// Waits for the subscription's next block.
    fn read(&mut self, subscription: u32) {
        let Some(found) = self.subscriptions.get_mut(&subscription) else { return };
        let State::Open(open) = &mut found.state else { return };
        if open.is_waiting() {
            return;
        }
        if open.is_to_turn() {
            return self.prepare(subscription);
        }
        let Some(mut incoming) = open.incoming.take() else { return };
        let piece = match incoming.noted((&self.bell, subscription)) {
            Ok(Noted::Piece(piece)) => Ok(Some(piece)),
            Ok(Noted::Waits) => {
                (open.incoming, open.awaits_note) = (Some(incoming), true);
                return self.tell_caught_up(subscription);
            }
            Ok(Noted::InLog) => {
                let edited = open.named.edited();
                self.wait_for(subscription, async move {
                    let piece = tokio::select! {
                        biased;
                        piece = incoming.next() => piece,
                        () = edited => Ok(None),
                    };
                    Arrived::Piece(incoming, piece)
                });
                self.take_arrivals();
                return self.tell_caught_up(subscription);
            }
            Err(error) => Err(error.into()),
        };
        let arrival = Arrival { subscription, serial: found.serial, what: Arrived::Piece(incoming, piece) };
        self.arrival(arrival);
    }

    /// Has a subscription wait for one thing, until it is closed.
    fn wait_for(&mut self, subscription: u32, what: impl Future<Output = Arrived> + Send + 'static) {
        let Some(found) = self.subscriptions.get_mut(&subscription) else { return };
        let serial = found.serial;
        let (arriving, handle) = abortable(async move { Arrival { subscription, serial, what: what.await } });
        found.waiting = Some(handle);
        self.arrivals.push(Box::pin(arriving.map(Result::ok)));
    }

    /// Reads on for nobody itself: any number may arrive at once, and whoever reads takes what has arrived.
    fn arrival(&mut self, arrival: Arrival) {
        let Arrival { subscription, serial, what } = arrival;
        let Some(found) = self.subscriptions.get_mut(&subscription).filter(|found| found.serial == serial) else {
            return;
        };
        found.waiting = None;
        let outcome = match (what, &mut found.state) {
            (Arrived::Entered(Entered::Open(opened)), State::Opening { credit_bytes }) => {
                let event = opened_event(&opened);
                found.state = State::Open(Box::new(Open::new(*opened, (subscription, *credit_bytes))));
                self.send(subscription, event);
                Ok(())
            }
            (Arrived::Entered(Entered::Waits(entering, told)), State::Opening { .. }) => {
                self.send(subscription, Event::Preparing(told));
                return self.wait_for(subscription, async move { Arrived::Entered(entering.next().await) });
            }
            (Arrived::Piece(incoming, Ok(None)), State::Open(open)) => open.goes_on(incoming),
            (Arrived::Prepared(incoming, prepared), State::Open(open)) => open.prepared(incoming, prepared),
            (Arrived::Piece(incoming, Ok(Some(piece))), State::Open(open)) => {
                let incoming = open.turned(incoming, &piece);
                match open.filter(&piece, &self.shared.share) {
                    Ok(()) => open.goes_on(incoming),
                    Err(GatewayError::ShapeFailed(failure)) if failure.is_of_old_facts() => {
                        let (source, plan) = (Arc::clone(&open.source), Arc::clone(&open.plan));
                        return self.wait_for(subscription, async move {
                            let plan = renewed(&source, &plan).await;
                            Arrived::Renewed { incoming, piece, plan, failure }
                        });
                    }
                    Err(error) => Err(error.into()),
                }
            }
            (Arrived::Renewed { mut incoming, piece, plan, failure }, State::Open(open)) => match plan {
                Ok(Some(plan)) => {
                    let changed = open.source.routed(&plan).map_or(Ok(()), |plan| incoming.change(&plan));
                    open.plan = plan;
                    let is_to_filter = match &piece {
                        Piece::Block(_) => true,
                        Piece::Note { .. } => false,
                        Piece::Turned(_) => unreachable!("the rows of a difference have been judged"),
                    };
                    if is_to_filter && changed.is_ok() {
                        let what = Arrived::Piece(incoming, Ok(Some(piece)));
                        return self.arrival(Arrival { subscription, serial, what });
                    }
                    open.incoming = Some(incoming);
                    changed.map_err(|error| refusal(error.into(), open.delivery.position(), &open.source))
                }
                Ok(None) => Err(failure.into()),
                Err(error) => Err(Refusal::Error(error)),
            },
            (Arrived::Piece(_, Err(error)), State::Open(open)) => {
                Err(refusal(error, open.delivery.position(), &open.source))
            }
            (Arrived::Entered(Entered::Refused(refused)), State::Opening { .. }) => Err(refused),
            (Arrived::Entered(_), State::Open(_))
            | (Arrived::Piece(..) | Arrived::Prepared(..) | Arrived::Renewed { .. }, State::Opening { .. }) => {
                unreachable!("a subscription is opened once, and read only then")
            }
        };
        match outcome {
            Ok(()) => self.enqueue(subscription),
            Err(refused) => self.close(subscription, refused),
        }
    }

    /// Gives the subscription a turn.
    fn enqueue(&mut self, subscription: u32) {
        if let Some(open) = open_of(&mut self.subscriptions, subscription)
            && !open.queued
        {
            open.queued = true;
            self.ready.push_back(subscription);
        }
    }

    /// Ends one subscription.
    fn close(&mut self, subscription: u32, refused: Refusal) {
        let Some(closed) = self.subscriptions.remove(&subscription) else { return };
        if let Some(waiting) = closed.waiting {
            waiting.abort();
        }
        // An entry may be left among the ready, where a later subscription of the same number would find a spare turn.
        match refused {
            Refusal::Reset(reset) => self.send(subscription, Event::Reset(reset)),
            Refusal::Error(error) => self.send_error(subscription, &error),
        }
    }

    fn request(&mut self, received: Option<Result<v1::SessionRequest, tonic::Status>>) {
        let request = match received {
            None => {
                self.requests = None;
                return;
            }
            Some(Err(status)) => {
                self.requests = None;
                return self.end(GatewayError::Request(status));
            }
            Some(Ok(request)) => request.request,
        };
        let handled = match request {
            Some(Request::Subscribe(subscribe)) => self.subscribe(subscribe),
            Some(Request::Grant(grant)) => self.grant(&grant),
            Some(Request::Ack(ack)) => self.ack(&ack),
            Some(Request::Cancel(cancel)) => {
                if self.subscriptions.contains_key(&cancel.subscription) {
                    self.close(cancel.subscription, Refusal::Error(GatewayError::Cancelled));
                } else {
                    self.not_open(cancel.subscription);
                }
                Ok(())
            }
            None => Err(GatewayError::EmptyRequest),
        };
        if let Err(violation) = handled {
            self.end(violation);
        }
    }

    fn subscribe(&mut self, subscribe: v1::Subscribe) -> Result<(), GatewayError> {
        let subscription = subscribe.subscription;
        if subscription == 0 {
            return Err(GatewayError::SubscriptionZero);
        }
        if self.subscriptions.contains_key(&subscription) {
            return Err(GatewayError::DuplicateSubscription { subscription });
        }
        if self.numbers.len() < NUMBERS_REMEMBERED {
            self.numbers.insert(subscription);
        }
        let config = &self.shared.config;
        let limit = config.subscriptions_max;
        if self.subscriptions.len() >= limit {
            self.send_error(subscription, &GatewayError::TooManySubscriptions { limit });
            return Ok(());
        }
        if self.shared.drain.begun() {
            self.send_error(subscription, &GatewayError::Draining);
            return Ok(());
        }
        let credit_bytes =
            if subscribe.credit_bytes == 0 { config.credit_bytes_default } else { subscribe.credit_bytes };
        let opening = match Opening::of_subscribe(subscribe, &self.shared) {
            Ok(opening) => opening,
            Err(error) => {
                self.send_error(subscription, &error);
                return Ok(());
            }
        };
        self.next_serial += 1;
        let (serial, shared) = (self.next_serial, Arc::clone(&self.shared));
        let state = State::Opening { credit_bytes };
        self.subscriptions.insert(subscription, Subscription { serial, waiting: None, state });
        let entering = Box::new(Entering::new(opening, shared));
        self.wait_for(subscription, async move { Arrived::Entered(entering.next().await) });
        Ok(())
    }

    /// A request for a subscription that is not open: passed over where it may have crossed the subscription's end.
    fn not_open(&mut self, subscription: u32) {
        if !self.numbers.contains(&subscription) && self.numbers.len() < NUMBERS_REMEMBERED {
            self.send_error(subscription, &GatewayError::UnknownSubscription { subscription });
        }
    }

    fn grant(&mut self, grant: &v1::Grant) -> Result<(), GatewayError> {
        let (subscription, limit) = (grant.subscription, self.shared.config.credit_bytes_max);
        let overflow = |credit_bytes| GatewayError::CreditOverflow { subscription, credit_bytes, limit };
        match self.subscriptions.get_mut(&subscription).map(|found| &mut found.state) {
            None => {
                self.not_open(subscription);
                return Ok(());
            }
            Some(State::Opening { credit_bytes }) => {
                let granted = credit_bytes.saturating_add(grant.credit_bytes);
                if granted > limit {
                    return Err(overflow(granted));
                }
                *credit_bytes = granted;
            }
            Some(State::Open(open)) => {
                open.delivery.grant(grant.credit_bytes, limit).map_err(overflow)?;
                open.entry.note(open.delivery.position(), open.delivery.credit_bytes());
                if open.is_waiting() || !(open.delivery.has_credit() || open.delivery.holds_block()) {
                    return Ok(());
                }
            }
        }
        self.enqueue(subscription);
        Ok(())
    }

    fn ack(&mut self, ack: &v1::Ack) -> Result<(), GatewayError> {
        let position = ack.position.parse().map_err(GatewayError::AckPosition)?;
        if let Some(open) = open_of(&mut self.subscriptions, ack.subscription) {
            open.entry.note(open.delivery.position(), open.delivery.credit_bytes());
            open.entry.ack(position);
        } else if !self.subscriptions.contains_key(&ack.subscription) {
            self.not_open(ack.subscription);
        }
        Ok(())
    }

    fn send(&mut self, subscription: u32, event: Event) {
        self.outbox.message(&v1::SessionResponse { subscription, selection: 0, event: Some(event) });
    }

    fn send_error(&mut self, subscription: u32, error: &GatewayError) {
        self.shared.metrics.error(error.reason());
        self.send(subscription, Event::Error(error.to_rpc()));
    }

    fn end(&mut self, error: GatewayError) {
        self.shared.metrics.error(error.reason());
        self.ended.get_or_insert(Err(error));
    }
}

/// The next request; only asked while the client's side is open.
async fn receive(
    requests: &mut Option<Streaming<v1::SessionRequest>>,
) -> Option<Result<v1::SessionRequest, tonic::Status>> {
    match requests {
        Some(requests) => requests.next().await,
        None => None,
    }
}

fn open_of(subscriptions: &mut HashMap<u32, Subscription>, subscription: u32) -> Option<&mut Open> {
    match subscriptions.get_mut(&subscription).map(|found| &mut found.state) {
        Some(State::Open(open)) => Some(open),
        Some(State::Opening { .. }) | None => None,
    }
}

fn opened_event(opened: &Opened) -> Event {
    Event::Opened(v1::Opened {
        token_prefix: opened.prefix.to_string(),
        position: opened.after.to_string(),
        head: opened.head.to_string(),
        source: opened.source.name().to_string(),
    })
}
