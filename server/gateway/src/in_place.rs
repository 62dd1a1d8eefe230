//! Tasks that go on in place when they wake themselves.
//!
//! hyper's stream of an HTTP/2 response wakes its own task for each frame that it sends: it asks for capacity, and is told at
//! once that there is some. A task that wakes itself is put at the end of its worker's queue by tokio, which wakes another
//! worker to help with it; at a thousand small frames a second most of a server's wake-ups were such, each for nothing. A
//! task that is started here is polled again by whom it runs on instead; after [`POLLS_MAX`] polls it takes its turn as usual.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// Polls of a task in one turn.
const POLLS_MAX: usize = 4;

/// Starts tasks among those that are tracked.
#[derive(Clone)]
pub(crate) struct InPlace {
    tasks: TaskTracker,
}

impl InPlace {
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        InPlace { tasks }
    }
}

impl<F> Executor<F> for InPlace
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(Task { bell: Arc::default(), future: Box::pin(future) });
    }
}

/// A future that is polled again when it was woken while it was polled.
struct Task<F> {
    bell: Arc<Bell>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let task = &mut *self;
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
        let mut task = Task { bell: Arc::default(), future: Box::pin(future) };
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
        let mut task = Task { bell: Arc::default(), future: Box::pin(future) };
        let waker = Waker::from(Arc::clone(&wakes));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(task);
        let inner = inner.expect("polled");
        inner.wake_by_ref();
        inner.wake();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
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
