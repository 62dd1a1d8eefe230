//! The router's task: reads the end of the log, and lets seats come and go between blocks.
//!
//! Invariants: there is a task while there are seats of the current epoch, or requests. When it ends, for whatever reason, its
//! seats are closed, and their subscriptions read the log themselves, where they meet what has ended it. Who asks for a seat
//! waits for nothing; requests are as many as subscriptions that open and close, and are taken up a few at a time, so that blocks
//! do not wait for many.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tidegate_model::{Epoch, Position};
use tidegate_store::{Place, ReadError, Reader, Store};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    core::{Core, Passed, SeatId, Subject},
    seat::Seat,
};
use crate::metrics::SourceMetrics;

/// Requests that are taken up between two blocks.
const REQUESTS_AT_ONCE: usize = 64;
/// Blocks that are kept for those who have not read their notes, in bytes.
const KEPT_BYTES_MAX: usize = 32 << 20;
/// After this at the latest, the metrics have what the core has.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// After an error of the disk.
const RETRY: Duration = Duration::from_secs(1);

/// The router of one source.
pub(crate) struct Router<S> {
    shared: Arc<Shared<S>>,
    next_serial: AtomicU64,
    task: Mutex<JoinSet<()>>,
}

/// What the task and those who ask it have in common.
struct Shared<S> {
    store: Store,
    metrics: Arc<SourceMetrics>,
    /// By the subject's address, which a ticket keeps from being another's.
    tickets: Mutex<HashMap<usize, Weak<Ticket<S>>>>,
    requests: Mutex<Vec<Request<S>>>,
    requested: Notify,
    /// Of the epoch that is being followed.
    passed: Mutex<Option<(Epoch, Passed)>>,
}

enum Request<S> {
    Take { serial: u64, seat: Arc<Seat>, subject: Arc<S>, epoch: Epoch },
    Leave { serial: u64 },
}

/// A seat that is taken for as long as one of its subscriptions holds this.
pub(crate) struct Ticket<S> {
    shared: Arc<Shared<S>>,
    serial: u64,
    seat: Arc<Seat>,
    subject: Arc<S>,
    epoch: Epoch,
}

impl<S> Ticket<S> {
    pub(crate) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }

    /// What its subscriptions select.
    pub(crate) fn subject(&self) -> &Arc<S> {
        &self.subject
    }

    /// The epoch whose log it is about.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The log behind a place.
    pub(crate) fn reader_behind(&self, place: Place) -> Result<Reader, ReadError> {
        self.shared.store.reader_behind(self.epoch, place)
    }

    /// How far the router has come. Ask before the seat is looked at.
    pub(crate) fn passed(&self) -> Option<Passed> {
        let passed = *locked(&self.shared.passed);
        passed.and_then(|(epoch, passed)| (epoch == self.epoch).then_some(passed))
    }
}

impl<S> Drop for Ticket<S> {
    fn drop(&mut self) {
        let address = Arc::as_ptr(&self.subject).addr();
        let mut tickets = locked(&self.shared.tickets);
        // Another may have been given out for the subject.
        if tickets.get(&address).is_some_and(|ticket| ticket.strong_count() == 0) {
            tickets.remove(&address);
        }
        if tickets.len() < tickets.capacity() / 4 {
            let len = tickets.len();
            tickets.shrink_to(2 * len);
        }
        drop(tickets);
        self.shared.request(Request::Leave { serial: self.serial });
    }
}

impl<S> Shared<S> {
    fn request(&self, request: Request<S>) {
        locked(&self.requests).push(request);
        self.requested.notify_one();
    }

    fn take_requests(&self) -> Vec<Request<S>> {
        let mut requests = locked(&self.requests);
        let count = requests.len().min(REQUESTS_AT_ONCE);
        let taken = requests.drain(..count).collect();
        requests.shrink_to(2 * REQUESTS_AT_ONCE);
        taken
    }
}

impl<S: Subject + Send + Sync + 'static> Router<S> {
    pub(crate) fn new(store: Store, metrics: Arc<SourceMetrics>) -> Self {
        let (tickets, requests, requested, passed) = Default::default();
        Router {
            shared: Arc::new(Shared { store, metrics, tickets, requests, requested, passed }),
            next_serial: AtomicU64::new(0),
            task: Mutex::default(),
        }
    }

    /// The seat of a subject in an epoch, shared with every subscription that holds it.
    pub(crate) fn seat(&self, subject: &Arc<S>, epoch: Epoch) -> Arc<Ticket<S>> {
        let address = Arc::as_ptr(subject).addr();
        let mut tickets = locked(&self.shared.tickets);
        let known = tickets.get(&address).and_then(Weak::upgrade);
        if let Some(known) = &known
            && known.epoch == epoch
            && !known.seat.is_closed()
        {
            return Arc::clone(known);
        }
        let (seat, subject) = (Arc::new(Seat::default()), Arc::clone(subject));
        let serial = self.next_serial.fetch_add(1, Relaxed);
        let take = Request::Take { serial, seat: Arc::clone(&seat), subject: Arc::clone(&subject), epoch };
        let ticket = Arc::new(Ticket { shared: Arc::clone(&self.shared), serial, seat, subject, epoch });
        tickets.insert(address, Arc::downgrade(&ticket));
        drop(tickets);
        self.shared.request(take);
        self.see_to_task();
        ticket
    }

    /// Starts the task, unless it runs.
    fn see_to_task(&self) {
        let mut task = locked(&self.task);
        while let Some(ended) = task.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "the router of shapes has failed; it begins anew, and meanwhile each reads for itself");
            }
        }
        if task.is_empty() {
            task.spawn(follow(Arc::clone(&self.shared)));
        }
    }
}

async fn follow<S: Subject + Send + Sync + 'static>(shared: Arc<Shared<S>>) {
    loop {
        let Some((epoch, reader, complete)) = begin(&shared).await else { continue };
        // Not the reader's own place: where the head is not in memory any more that may lie before blocks that it leaves out.
        let passed = Passed { place: reader.end(), complete, commit_time_us: None };
        let mut following = Following {
            shared: Arc::clone(&shared),
            epoch,
            reader,
            core: Core::new(passed, KEPT_BYTES_MAX),
            seats: HashMap::new(),
            counted: [0; 4],
            count_at: None,
        };
        let ended = following.run().await;
        shared.metrics.router.has([0; 3]);
        tracing::debug!(error = %ended, "the router of shapes begins anew");
        if !matches!(ended, ReadError::OtherEpoch { .. }) {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Waits for a request, and for a log.
async fn begin<S>(shared: &Shared<S>) -> Option<(Epoch, Reader, Position)> {
    loop {
        let requested = shared.requested.notified();
        if !locked(&shared.requests).is_empty() {
            break;
        }
        requested.await;
    }
    let mut head = shared.store.head();
    let head = *head.wait_for(|head| head.epoch.is_some()).await.ok()?;
    let epoch = head.epoch?;
    // The head may have moved on meanwhile: look again.
    let reader = shared.store.reader(epoch, head.complete).ok()?;
    *locked(&shared.passed) = None;
    Some((epoch, reader, head.complete))
}

/// An epoch that is being followed.
struct Following<S: Subject> {
    shared: Arc<Shared<S>>,
    epoch: Epoch,
    reader: Reader,
    core: Core<S>,
    seats: HashMap<u64, SeatId>,
    /// Of the core's work, what the metrics have.
    counted: [u64; 4],
    /// When it is counted what the core has; None while nothing has happened since it was.
    count_at: Option<Instant>,
}

impl<S: Subject> Following<S> {
    async fn run(&mut self) -> ReadError {
        loop {
            // What is ready for long must not keep others waiting.
            tokio::task::coop::consume_budget().await;
            self.count_if_due();
            let shared = Arc::clone(&self.shared);
            let requested = shared.requested.notified();
            if self.take_requests() {
                shared.requested.notify_one();
            }
            let block = tokio::select! {
                biased;
                block = self.reader.next() => block,
                () = requested => continue,
                () = until(self.count_at) => continue,
            };
            match block {
                Ok(block) => self.core.route(&block, self.reader.place(), &shared.store),
                Err(error) => return error,
            }
            self.show_passed();
        }
    }

    fn show_passed(&mut self) {
        *locked(&self.shared.passed) = Some((self.epoch, self.core.passed()));
        let work = self.core.work();
        let counted = std::mem::replace(&mut self.counted, work);
        self.shared.metrics.router.did(std::array::from_fn(|of| work[of] - counted[of]));
        self.count_at.get_or_insert_with(|| Instant::now() + COUNT_INTERVAL);
    }

    fn count_if_due(&mut self) {
        if self.count_at.is_some_and(|at| at <= Instant::now()) {
            self.shared.metrics.router.has(self.core.counts());
            self.count_at = None;
        }
    }

    /// Are there more?
    fn take_requests(&mut self) -> bool {
        let requests = self.shared.take_requests();
        for request in &requests {
            match request {
                Request::Take { serial, seat, subject, epoch } if *epoch == self.epoch => {
                    let id = self.core.take(Arc::clone(seat), Arc::clone(subject), &self.shared.store);
                    self.seats.insert(*serial, id);
                }
                Request::Take { seat, .. } => seat.close(),
                Request::Leave { serial } => {
                    if let Some(id) = self.seats.remove(serial) {
                        self.core.leave(id);
                    }
                }
            }
        }
        if self.seats.is_empty() {
            self.seats = HashMap::new();
        }
        if !requests.is_empty() {
            self.show_passed();
        }
        requests.len() == REQUESTS_AT_ONCE
    }
}

/// Never where there is no time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
