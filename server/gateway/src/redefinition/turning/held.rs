//! A difference that has been read, until it has been given out.
//!
//! Invariant: a subscriber that does not read holds no memory for long. What has not been asked for in a while is let go of, by a task of
//! its own, since nobody polls the subscription then.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidegate_model::Position;
use tokio::{
    sync::OwnedSemaphorePermit,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::router::Note;

/// From one part to the next.
pub(super) const HELD_FOR: Duration = Duration::from_secs(60);

/// What the mirror had at some place.
pub(super) struct Difference {
    pub(super) at: Position,
    pub(super) parts: VecDeque<Arc<Note>>,
    /// For its bytes.
    pub(super) permits: Option<OwnedSemaphorePermit>,
}

/// The same while it is given out.
pub(super) struct Held {
    at: Position,
    state: Arc<Mutex<State>>,
    _letting_go: JoinSet<()>,
}

struct State {
    parts: VecDeque<Arc<Note>>,
    permits: Option<OwnedSemaphorePermit>,
    /// When a part was asked for last.
    asked: Instant,
    let_go: bool,
}

/// What there is to be given out.
pub(super) enum Part {
    Note(Arc<Note>),
    /// All has been.
    None,
    /// The rest is gone.
    LetGo,
}

impl Held {
    /// It is let go of when no part is asked for in so long.
    pub(super) fn new(Difference { at, parts, permits }: Difference, held_for: Duration) -> Self {
        let state = Arc::new(Mutex::new(State { parts, permits, asked: Instant::now(), let_go: false }));
        let mut letting_go = JoinSet::new();
        letting_go.spawn(let_go(Arc::clone(&state), held_for));
        Held { at, state, _letting_go: letting_go }
    }

    pub(super) fn at(&self) -> Position {
        self.at
    }

    pub(super) fn part(&mut self) -> Part {
        let mut state = locked(&self.state);
        state.asked = Instant::now();
        let part = match state.parts.pop_front() {
            Some(note) => Part::Note(note),
            None if state.let_go => Part::LetGo,
            None => Part::None,
        };
        if state.parts.is_empty() {
            state.permits = None;
        }
        part
    }

    pub(super) fn is_let_go(&self) -> bool {
        locked(&self.state).let_go
    }

    pub(super) fn is_given_out(&self) -> bool {
        let state = locked(&self.state);
        state.parts.is_empty() && !state.let_go
    }
}

async fn let_go(state: Arc<Mutex<State>>, held_for: Duration) {
    loop {
        let until = locked(&state).asked + held_for;
        sleep_until(until).await;
        let mut state = locked(&state);
        if state.asked + held_for <= Instant::now() {
            state.let_go = !state.parts.is_empty();
            state.parts.clear();
            state.permits = None;
            return;
        }
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tidegate_model::{BlockBuilder, Lsn};
    use tidegate_store::Place;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::router::RoutedBlock;

    fn note() -> Arc<Note> {
        let block = BlockBuilder::default().finish();
        let routed = Arc::new(RoutedBlock { block, end: Place::default(), open: None });
        Arc::new(Note { routed, found: Box::default(), filtered: Default::default() })
    }

    fn difference(semaphore: &Arc<Semaphore>) -> Difference {
        let permits = Arc::clone(semaphore).try_acquire_many_owned(3).ok();
        Difference { at: Position::new(Lsn(7), 1), parts: [note(), note()].into(), permits }
    }

    #[tokio::test]
    async fn who_does_not_ask_for_it_holds_nothing() {
        let semaphore = Arc::new(Semaphore::new(3));
        let mut held = Held::new(difference(&semaphore), Duration::ZERO);
        let given_back = semaphore.acquire_many(3).await;
        assert!(given_back.is_ok() && held.is_let_go() && !held.is_given_out());
        assert!(matches!(held.part(), Part::LetGo));
    }

    #[tokio::test]
    async fn who_asks_in_time_has_it_all() {
        let semaphore = Arc::new(Semaphore::new(3));
        let mut held = Held::new(difference(&semaphore), HELD_FOR);
        for left in [0, 3] {
            assert!(!held.is_given_out() && matches!(held.part(), Part::Note(_)));
            assert_eq!(semaphore.available_permits(), left);
        }
        assert!(held.is_given_out() && !held.is_let_go() && matches!(held.part(), Part::None));
    }
}
