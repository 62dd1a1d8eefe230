//! Tasks that go on in place when they wake themselves, and with them the connection that they belong to.
//!
//! hyper's stream of an HTTP/2 response wakes its own task for each frame that it sends: it asks for capacity, and is told at
//! once that there is some. A task that wakes itself is put at the end of its worker's queue by tokio, which wakes another
//! worker to help with it; at a thousand small frames a second most of a server's wake-ups were such, each for nothing. A
//! task that is started here is polled again by whom it runs on instead; after [`POLLS_MAX`] polls it takes its turn as usual.
//!
//! What a stream sends is written to the socket by the task of the connection, which it wakes. Another worker would take that up at
//! once, and the two would contend for the connection's lock. So while a stream is polled its connection is not woken, but polled
//! right behind it, by the same worker, unless somebody else does so already.
//!
//! Invariant of both: a wake is followed by a poll that begins after it, by whomever.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// Polls of a task in one turn.
const POLLS_MAX: usize = 4;

/// Starts tasks among those that are tracked: the streams of one connection.
#[derive(Clone)]
pub(crate) struct InPlace {
    tasks: TaskTracker,
    connection: Arc<Connection>,
}

impl InPlace {
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        InPlace { tasks, connection: Arc::default() }
    }

    /// The connection, of which this has started the streams, or will. It ends when this is dropped.
    pub(crate) fn connection(&self, future: impl Future<Output = ()> + Send + 'static) -> Driver {
        *self.connection.locked() = Some(Box::pin(future));
        Driver(Arc::clone(&self.connection))
    }
}

impl<F> Executor<F> for InPlace
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        let connection = Arc::clone(&self.connection);
        self.tasks.spawn(Task { bell: Arc::default(), future: Box::pin(future), connection });
    }
}

/// A future that is polled again when it was woken while it was polled.
struct Task<F> {
    bell: Arc<Bell>,
    future: Pin<Box<F>>,
    connection: Arc<Connection>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let task = &mut *self;
        let _drives_on = Helper::new(&task.connection);
        task.bell.task.register(cx.waker());
        let waker = Waker::from(Arc::clone(&task.bell));
        for _ in 0..POLLS_MAX {
            task.bell.state.swap(POLLED, Ordering::AcqRel);
            if let Poll::Ready(output) = task.future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(output);
            }
            if task.bell.state.compare_exchange(POLLED, WAITS, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A connection, to be polled by its own task or by one of its streams'.
#[derive(Default)]
struct Connection {
    /// None before it begins, and when it has ended.
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    bell: Arc<ConnectionBell>,
    /// Its task has nothing more to do.
    ended: AtomicBool,
}

impl Connection {
    /// Polls it, if it has been woken and nobody else polls it: who does polls it again.
    fn drive(&self) {
        let waker = Waker::from(Arc::clone(&self.bell));
        for _ in 0..POLLS_MAX {
            fence(Ordering::SeqCst);
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let mut future = match self.future.try_lock() {
                Ok(future) => future,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            self.bell.state.swap(POLLED, Ordering::SeqCst);
            let ends = EndsByPanic(self);
            let poll = future.as_mut().map(|future| future.as_mut().poll(&mut Context::from_waker(&waker)));
            drop(ends);
            let ended = if poll.is_some_and(|poll| poll.is_ready()) { future.take() } else { None };
            let _woken = self.bell.state.compare_exchange(POLLED, WAITS, Ordering::SeqCst, Ordering::SeqCst);
            drop(future);
            if ended.is_some() {
                return self.end();
            }
            // Who has woken it while the lock was held may have found that.
            fence(Ordering::SeqCst);
            if self.bell.state.load(Ordering::SeqCst) != WOKEN {
                return;
            }
        }
        self.bell.task.wake();
    }

    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.bell.task.wake();
    }

    fn locked(&self) -> MutexGuard<'_, Option<Pin<Box<dyn Future<Output = ()> + Send>>>> {
        self.future.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that panics has ended, whoever polled it.
struct EndsByPanic<'a>(&'a Connection);

impl Drop for EndsByPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end();
        }
    }
}

/// A connection's own task.
pub(crate) struct Driver(Arc<Connection>);

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Driver(connection) = &*self;
        connection.bell.task.register(cx.waker());
        connection.drive();
        if connection.ended.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let ended = self.0.locked().take();
        // Not under the lock: its streams are told.
        drop(ended);
    }
}

/// Where a connection is woken.
#[derive(Default)]
struct ConnectionBell {
    state: AtomicU8,
    task: AtomicWaker,
    /// Streams that are being polled, each of which looks at the state afterwards.
    helpers: AtomicUsize,
}

impl Wake for ConnectionBell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = self.state.swap(WOKEN, Ordering::SeqCst);
        if before == WAITS && self.helpers.load(Ordering::SeqCst) == 0 {
            self.task.wake();
        }
    }
}

/// A stream that is being polled.
struct Helper<'a>(&'a Connection);

impl<'a> Helper<'a> {
    fn new(connection: &'a Connection) -> Self {
        connection.bell.helpers.fetch_add(1, Ordering::SeqCst);
        Helper(connection)
    }
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        self.0.bell.helpers.fetch_sub(1, Ordering::SeqCst);
        if self.0.bell.state.load(Ordering::SeqCst) != WOKEN {
            return;
        }
        if std::thread::panicking() {
            self.0.bell.task.wake();
        } else {
            self.0.drive();
        }
    }
}

/// The task waits: who wakes it wakes tokio's task.
const WAITS: u8 = 0;
/// The task is polled: who wakes it leaves that to whom polls it.
const POLLED: u8 = 1;
/// The task is woken: it is polled again, or tokio knows that it is to be.
const WOKEN: u8 = 2;

/// Where a task is woken.
#[derive(Default)]
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == WAITS {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize, time::Duration};

    use tokio::sync::Notify;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A task that wakes itself in so many of its polls, polled once: how often it was, and how often it woke who runs it.
    fn polled(own_wakes: usize) -> (usize, usize) {
        let wakes = Arc::new(Wakes::default());
        let mut polls = 0;
        let future = poll_fn(|cx| {
            polls += 1;
            if polls <= own_wakes {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        let mut task = Task { bell: Arc::default(), future: Box::pin(future), connection: Arc::default() };
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&Waker::from(Arc::clone(&wakes)))).is_pending());
        drop(task);
        (polls, wakes.0.load(Ordering::Relaxed))
    }

    #[test]
    fn who_wakes_itself_goes_on_in_place_for_a_while() {
        assert_eq!(polled(0), (1, 0));
        assert_eq!(polled(2), (3, 0), "nobody else is woken");
        assert_eq!(polled(usize::MAX), (POLLS_MAX, 1), "it leaves the turn to others, and has another");
    }

    #[test]
    fn a_wake_between_polls_is_told_once() {
        let wakes = Arc::new(Wakes::default());
        let mut inner = None;
        let future = poll_fn(|cx| {
            inner = Some(cx.waker().clone());
            Poll::<()>::Pending
        });
        let mut task = Task { bell: Arc::default(), future: Box::pin(future), connection: Arc::default() };
        let waker = Waker::from(Arc::clone(&wakes));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(task);
        let inner = inner.expect("polled");
        inner.wake_by_ref();
        inner.wake();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_connection_that_its_stream_wakes_is_polled_behind_it_and_its_task_is_not_woken() {
        let (wakes, polls) = (Arc::new(Wakes::default()), Arc::new(AtomicUsize::default()));
        let executor = InPlace::new(TaskTracker::new());
        let wakers = Arc::new(Mutex::new(Vec::<Waker>::new()));
        let connection = {
            let (polls, wakers) = (Arc::clone(&polls), Arc::clone(&wakers));
            poll_fn(move |cx| {
                wakers.lock().expect("nobody panics").push(cx.waker().clone());
                if polls.fetch_add(1, Ordering::Relaxed) == 2 { Poll::Ready(()) } else { Poll::Pending }
            })
        };
        let wake = move || wakers.lock().expect("nobody panics").last().expect("it was polled").wake_by_ref();
        let mut driver = executor.connection(connection);
        let (waker, idle) = (Waker::from(Arc::clone(&wakes)), Waker::noop());
        assert!(Pin::new(&mut driver).poll(&mut Context::from_waker(&waker)).is_pending());
        let stream = poll_fn(|_| {
            wake();
            assert_eq!(polls.load(Ordering::Relaxed), 1, "not while its stream is polled");
            Poll::Ready(())
        });
        let (bell, connection) = (Arc::default(), Arc::clone(&executor.connection));
        let mut stream = Task { bell, future: Box::pin(stream), connection };
        assert!(Pin::new(&mut stream).poll(&mut Context::from_waker(idle)).is_ready());
        assert_eq!((polls.load(Ordering::Relaxed), wakes.0.load(Ordering::Relaxed)), (2, 0));
        drop(stream);
        wake();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "no stream is polled");
        assert!(Pin::new(&mut driver).poll(&mut Context::from_waker(&waker)).is_ready());
    }

    #[test]
    fn a_connection_that_ends_or_panics_behind_its_stream_ends_its_task() {
        for panics in [false, true] {
            let wakes = Arc::new(Wakes::default());
            let executor = InPlace::new(TaskTracker::new());
            let mut polls = 0;
            let connection = poll_fn(move |cx| {
                polls += 1;
                assert!(polls == 1 || !panics, "it panics");
                cx.waker().wake_by_ref();
                if polls == 1 + POLLS_MAX { Poll::Ready(()) } else { Poll::Pending }
            });
            let mut driver = executor.connection(connection);
            let waker = Waker::from(Arc::clone(&wakes));
            executor.connection.bell.task.register(&waker);
            let drives = || drop(Helper::new(&executor.connection));
            executor.connection.bell.state.store(WOKEN, Ordering::SeqCst);
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(drives)).is_err();
            assert_eq!(panicked, panics);
            drives();
            assert!(wakes.0.load(Ordering::Relaxed) >= 1);
            assert!(Pin::new(&mut driver).poll(&mut Context::from_waker(&waker)).is_ready());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_wake_of_a_connection_is_lost_whoever_polls_it() {
        const ROUNDS: usize = 50_000;
        const STREAMS: usize = 6;
        let tasks = TaskTracker::new();
        let executor = InPlace::new(tasks.clone());
        let (sender, mut sent) = tokio::sync::mpsc::channel::<usize>(STREAMS + 1);
        let answers: Arc<Vec<Notify>> = Arc::new((0..=STREAMS).map(|_| Notify::new()).collect());
        let answering = Arc::clone(&answers);
        let driver = executor.connection(async move {
            while let Some(stream) = sent.recv().await {
                answering[stream].notify_one();
            }
        });
        tasks.spawn(driver);
        for stream in 0..=STREAMS {
            let (sender, answers) = (sender.clone(), Arc::clone(&answers));
            let asks = async move {
                for _ in 0..ROUNDS {
                    sender.send(stream).await.expect("the connection lasts as long as who sends");
                    answers[stream].notified().await;
                }
            };
            // One wakes it from elsewhere, as its socket does.
            if stream == STREAMS { drop(tasks.spawn(asks)) } else { executor.execute(asks) }
        }
        drop(sender);
        tasks.close();
        tokio::time::timeout(Duration::from_secs(60), tasks.wait()).await.expect("every wake arrives");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_wake_is_lost_between_threads() {
        const ROUNDS: usize = 20_000;
        let tasks = TaskTracker::new();
        let executor = InPlace::new(tasks.clone());
        for _ in 0..4 {
            let (there, back) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            for (hears, tells) in [(Arc::clone(&there), Arc::clone(&back)), (back, Arc::clone(&there))] {
                executor.execute(async move {
                    for _ in 0..ROUNDS {
                        hears.notified().await;
                        tells.notify_one();
                    }
                });
            }
            there.notify_one();
        }
        tasks.close();
        tokio::time::timeout(Duration::from_secs(60), tasks.wait()).await.expect("every wake arrives");
    }
}
