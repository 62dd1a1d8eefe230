//! A shape whose rows are held in memory and kept current.
//!
//! ```text
//! Changes ──events──▶ ShapeCopy ──at each commit, all at once──▶ rows ──▶ readers
//!    ▲                    │                                      updates ──▶ who has subscribed
//!    └── anew, after a while ◀── what follows does not join up
//! ```
//!
//! Invariants: readers see the state at a commit, never a part of one; rows stay as they were while they are read anew. Memory: the
//! rows, the transaction that is arriving, and a bounded number of bounded lists of changes for those who are behind.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, StreamExt as _, stream};
use tidegate_proto::v1::Holds;
use tokio::{
    sync::{broadcast, watch},
    task::JoinSet,
    time::sleep,
};

use crate::{
    Client, ClientError, Event, Position, Retry, RowChange, Shape, ShapeRows, Start, Subscription,
    backoff::Backoff,
    held::Buckets,
    shape_copy::{ShapeCopy, Step},
};

/// Updates that a subscriber may be behind before it is told the rows anew.
const UPDATES_MAX: usize = 256;
/// Times in a row that the difference is asked for without coming to its end. A snapshot of everything can go on in the middle.
const DIFFERENCES_MAX: u32 = 3;

impl Client {
    /// Holds the rows of a shape in memory, and keeps them current until the handle is dropped. The source may be empty where the
    /// server has one. Must be called within a tokio runtime.
    #[must_use]
    pub fn shape(&self, source: &str, shape: Shape) -> ShapeHandle {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                rows: Arc::default(),
                is_read: false,
                updates: Some(broadcast::channel(UPDATES_MAX).0),
            }),
            status: watch::channel(Status::default()).0,
        });
        let mut task = JoinSet::new();
        let subscription = Subscription::shape(shape).source(source).from(Start::Snapshot);
        let follower = Follower { client: self.clone(), subscription, shared: Arc::clone(&shared) };
        task.spawn(follower.run());
        ShapeHandle { shared, _task: task }
    }
}

/// The rows of a shape, kept current. From [`Client::shape`].
///
/// ```no_run
/// use tidegate_client::{Client, Shape, ShapeUpdate};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::connect("http://127.0.0.1:7171").await?;
/// let open = Shape::of("orders").matching("tenant_id = $1 AND status <> 'closed'").parameter(7_i64);
/// let orders = client.shape("shop", open);
/// for row in orders.current().await?.iter() {
///     println!("{:?}", row.json()?);
/// }
/// let mut updates = orders.subscribe();
/// while let Some(update) = updates.next().await {
///     match update? {
///         ShapeUpdate::Rows(rows) => println!("{} orders", rows.len()),
///         ShapeUpdate::Changes(changes) => println!("{} of them have changed", changes.len()),
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// Lost connections and servers that restart are survived with the rows in place; when a named shape is defined anew, the rows change as
/// in a transaction; after a Reset, the server is told a digest of the rows and sends what differs from them where its mirror has the table, or
/// else everything, and the rows are replaced at once. Only an error that trying again does not mend ends it.
pub struct ShapeHandle {
    shared: Arc<Shared>,
    /// Ends with the handle.
    _task: JoinSet<()>,
}

/// What has become of the rows.
#[derive(Clone, Debug)]
pub enum ShapeUpdate {
    /// These are all of them: the first that are known, those that were read anew, or those of now where the subscriber was too
    /// far behind, or a transaction has changed too many to list.
    Rows(Arc<ShapeRows>),
    /// What one transaction has changed.
    Changes(Arc<[RowChange]>),
}

/// Updates of a shape's rows, in order: first all rows, as soon as they are known, then what has become of them. From
/// [`ShapeHandle::subscribe`].
pub struct ShapeUpdates {
    shared: Arc<Shared>,
    first: Option<Arc<ShapeRows>>,
    receiver: Option<broadcast::Receiver<ShapeUpdate>>,
}

struct Shared {
    state: Mutex<State>,
    status: watch::Sender<Status>,
}

/// What changes together.
struct State {
    rows: Arc<ShapeRows>,
    /// They have been read once.
    is_read: bool,
    /// None when nothing more comes.
    updates: Option<broadcast::Sender<ShapeUpdate>>,
}

#[derive(Clone, Debug, Default)]
struct Status {
    is_current: bool,
    /// The rows have all up to here.
    position: Option<Position>,
    failure: Option<Arc<ClientError>>,
}

impl ShapeHandle {
    /// The rows of the moment: none before they have been read for the first time, and those of before while they are read anew.
    /// They do not change; ask again for newer ones. Who keeps them for long while rows change has the next change copy the list.
    #[must_use]
    pub fn rows(&self) -> Arc<ShapeRows> {
        Arc::clone(&self.shared.state().rows)
    }

    /// Are the rows what PostgreSQL has, as far as the server knows? It is connected to its source, and this is to the server.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.shared.status.borrow().is_current
    }

    /// The rows have all changes up to here; None before they have been read, and from a Reset until they have been read anew.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.shared.status.borrow().position
    }

    /// Waits until they are current.
    ///
    /// # Errors
    /// The shape has failed for good.
    pub async fn current(&self) -> Result<Arc<ShapeRows>, Arc<ClientError>> {
        self.until(|status| status.is_current).await
    }

    /// Waits until the rows have all changes up to a position, such as that of a transaction of one's own.
    ///
    /// # Errors
    /// The shape has failed for good.
    pub async fn up_to(&self, position: Position) -> Result<Arc<ShapeRows>, Arc<ClientError>> {
        self.until(|status| status.position.is_some_and(|reached| reached >= position)).await
    }

    /// All rows, and then what becomes of them.
    #[must_use]
    pub fn subscribe(&self) -> ShapeUpdates {
        let mut updates = ShapeUpdates { shared: Arc::clone(&self.shared), first: None, receiver: None };
        updates.start();
        updates
    }

    async fn until(&self, holds: impl Fn(&Status) -> bool) -> Result<Arc<ShapeRows>, Arc<ClientError>> {
        let mut statuses = self.shared.status.subscribe();
        let found = statuses.wait_for(|status| status.failure.is_some() || holds(status)).await;
        let status = found.expect("the handle holds the sender").clone();
        status.failure.map_or_else(|| Ok(self.rows()), Err)
    }
}

impl Drop for ShapeHandle {
    fn drop(&mut self) {
        self.shared.state().updates = None;
    }
}

impl fmt::Debug for ShapeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShapeHandle").field("status", &*self.shared.status.borrow()).finish_non_exhaustive()
    }
}

impl ShapeUpdates {
    /// The next; None when the handle was dropped, and after an error.
    pub async fn next(&mut self) -> Option<Result<ShapeUpdate, Arc<ClientError>>> {
        loop {
            if let Some(rows) = self.first.take() {
                return Some(Ok(ShapeUpdate::Rows(rows)));
            }
            match self.receiver.as_mut()?.recv().await {
                Ok(update) => return Some(Ok(update)),
                Err(broadcast::error::RecvError::Lagged(_)) => self.start(),
                Err(broadcast::error::RecvError::Closed) => {
                    self.receiver = None;
                    return self.shared.status.borrow().failure.clone().map(Err);
                }
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<ShapeUpdate, Arc<ClientError>>> + Send + Unpin {
        stream::unfold(self, |mut updates| async move { updates.next().await.map(|update| (update, updates)) }).boxed()
    }

    /// With the rows of this moment, and what follows them.
    fn start(&mut self) {
        let state = self.shared.state();
        self.first = state.is_read.then(|| Arc::clone(&state.rows));
        // One that has ended says so to a receiver that nobody sends to.
        self.receiver = Some(match &state.updates {
            Some(updates) => updates.subscribe(),
            None => broadcast::channel(1).1,
        });
    }
}

impl fmt::Debug for ShapeUpdates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShapeUpdates").finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the shape, again and again if it must be.
struct Follower {
    client: Client,
    subscription: Subscription,
    shared: Arc<Shared>,
}

impl Follower {
    async fn run(self) {
        let mut backoff = Backoff::default();
        // Of those that have not come to an end.
        let mut differences = 0;
        loop {
            let held = if differences < DIFFERENCES_MAX { self.held().await } else { None };
            differences += 1;
            let ended = self.read(held, &mut backoff, &mut differences).await;
            // What follows a Reset may be another history, whose positions say nothing of those before.
            let is_reset = ended.is_ok();
            self.shared.status.send_modify(|status| {
                status.is_current = false;
                status.position = status.position.filter(|_| !is_reset);
            });
            if let Err(error) = ended
                && error.retry() == Retry::Never
            {
                self.shared.status.send_modify(|status| status.failure = Some(Arc::new(error)));
                self.shared.state().updates = None;
                return;
            }
            sleep(backoff.failed(std::time::Duration::ZERO, rand::random())).await;
        }
    }

    /// What is held, as a server can compare it. None where it is nothing, or cannot be compared.
    async fn held(&self) -> Option<(Buckets, Holds)> {
        let rows = Arc::clone(&self.shared.state().rows);
        let buckets = Buckets::new(&rows, rand::random())?;
        // Millions of rows take seconds.
        let holds = tokio::task::spawn_blocking(move || buckets.holds(&rows)).await.ok()?;
        Some((buckets, holds.ok()?))
    }

    /// Reads it, and follows it until what follows does not join up.
    async fn read(
        &self,
        held: Option<(Buckets, Holds)>,
        backoff: &mut Backoff,
        differences: &mut u32,
    ) -> Result<(), ClientError> {
        let (buckets, holds) = held.unzip();
        let mut changes = self.client.subscribe(self.subscription.clone().holding(holds));
        let mut copy = ShapeCopy::holding(buckets);
        loop {
            let Some(batch) = changes.next_batch().await? else { return Ok(()) };
            for event in batch {
                let moment = Moment::of(&event);
                if !self.take(event, &mut copy)? {
                    return Ok(());
                }
                self.tell(moment, &copy, backoff);
            }
            if copy.is_whole() {
                *differences = 0;
            }
        }
    }

    /// False where everything is to be read anew.
    fn take(&self, event: Event, copy: &mut ShapeCopy) -> Result<bool, ClientError> {
        let mut state = self.shared.state();
        let State { rows, is_read, updates } = &mut *state;
        let update = match copy.take(event, rows)? {
            Step::Nothing => return Ok(true),
            Step::StartOver => return Ok(false),
            Step::Changed(changes) => ShapeUpdate::Changes(changes.into()),
            Step::Replaced => ShapeUpdate::Rows(Arc::clone(rows)),
        };
        *is_read = true;
        if let Some(updates) = updates {
            // Nobody may have subscribed.
            updates.send(update).ok();
        }
        Ok(true)
    }

    fn tell(&self, moment: Moment, copy: &ShapeCopy, backoff: &mut Backoff) {
        match moment {
            Moment::Lost => self.shared.status.send_modify(|status| status.is_current = false),
            Moment::At(position, caught_up) if copy.is_whole() => {
                backoff.succeeded();
                self.shared.status.send_modify(|status| {
                    status.position = Some(position);
                    status.is_current = caught_up.unwrap_or(status.is_current);
                });
            }
            Moment::None | Moment::At(..) => {}
        }
    }
}

/// What an event says of how far the rows are.
enum Moment {
    None,
    /// They have all up to here; and is that all there is?
    At(Position, Option<bool>),
    Lost,
}

impl Moment {
    fn of(event: &Event) -> Self {
        match event {
            Event::Commit { token } | Event::SnapshotEnd { token, .. } => Moment::At(token.position(), None),
            Event::Progress { token, caught_up, .. } => Moment::At(token.position(), Some(*caught_up)),
            Event::Interrupted { .. } | Event::SnapshotBegin { .. } => Moment::Lost,
            Event::Opened { .. }
            | Event::Preparing { .. }
            | Event::RowType(_)
            | Event::Begin { .. }
            | Event::Change(_)
            | Event::SnapshotAbandoned { .. }
            | Event::Abort
            | Event::Reset { .. }
            | Event::Drain { .. } => Moment::None,
        }
    }
}
