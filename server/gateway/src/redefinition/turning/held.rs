//! A difference that has been read, until it has been given out.
//!
//! Invariant: a subscriber that does not read holds no memory for long. What has not been asked for in a while is let go of, if nothing has
//! been given out yet: another one is read then. Else the rest goes into a file, where it stays until it is asked for, however long that
//! takes: who has a part of a difference comes to its end, as long as there is room for the files. It is done by a task of its own, since nobody polls the subscription then.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tidegate_model::Position;
use tokio::{
    sync::OwnedSemaphorePermit,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::spool::{Spool, Spooled};
use crate::router::Note;

/// In memory, from one part to the next.
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
    _setting_aside: JoinSet<()>,
}

struct State {
    parts: VecDeque<Kept>,
    /// For those in memory, and then for those in the file.
    permits: Option<OwnedSemaphorePermit>,
    /// When a part was asked for last.
    asked: Instant,
    has_begun: bool,
    let_go: bool,
}

/// A part, and where it is.
#[derive(Clone)]
enum Kept {
    InMemory(Arc<Note>),
    InFile(Spooled),
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
    /// It is let go of, or put into a file, when no part is asked for in so long.
    pub(super) fn new(difference: Difference, held_for: Duration, spool: Arc<Spool>) -> Self {
        let Difference { at, parts, permits } = difference;
        let parts = parts.into_iter().map(Kept::InMemory).collect();
        let state = State { parts, permits, asked: Instant::now(), has_begun: false, let_go: false };
        let state = Arc::new(Mutex::new(state));
        let mut setting_aside = JoinSet::new();
        setting_aside.spawn(set_aside_in_time(Arc::clone(&state), held_for, spool));
        Held { at, state, _setting_aside: setting_aside }
    }

    pub(super) fn at(&self) -> Position {
        self.at
    }

    /// Cancel safe.
    pub(super) async fn part(&mut self) -> Part {
        let spooled = match self.first() {
            Ok(part) => return part,
            Err(spooled) => spooled,
        };
        let read = tokio::task::spawn_blocking(move || spooled.read()).await;
        let read = read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let mut state = locked(&self.state);
        match read {
            Ok(note) => {
                state.pop();
                Part::Note(Arc::new(note))
            }
            Err(error) => {
                tracing::warn!(%error, "what an edit of a shape brings cannot be read from the file that it was put into");
                state.let_go();
                Part::LetGo
            }
        }
    }

    /// The first part, or where it is to be read.
    fn first(&mut self) -> Result<Part, Spooled> {
        let mut state = locked(&self.state);
        (state.asked, state.has_begun) = (Instant::now(), true);
        match state.parts.front().cloned() {
            Some(Kept::InMemory(note)) => {
                state.pop();
                Ok(Part::Note(note))
            }
            Some(Kept::InFile(spooled)) => Err(spooled),
            None => Ok(if state.let_go { Part::LetGo } else { Part::None }),
        }
    }

    pub(super) fn is_let_go(&self) -> bool {
        locked(&self.state).let_go
    }

    pub(super) fn is_given_out(&self) -> bool {
        let state = locked(&self.state);
        state.parts.is_empty() && !state.let_go
    }
}

impl State {
    fn pop(&mut self) {
        self.parts.pop_front();
        if self.parts.is_empty() {
            self.permits = None;
        }
    }

    fn let_go(&mut self) {
        self.let_go = !self.parts.is_empty();
        self.parts.clear();
        self.permits = None;
    }

    /// What is to go into a file; None where nothing is, and what there was has been let go of.
    fn for_spool(&mut self) -> Option<Vec<Arc<Note>>> {
        if !self.has_begun {
            self.let_go();
        }
        let in_memory = |kept: &Kept| match kept {
            Kept::InMemory(note) => Some(Arc::clone(note)),
            Kept::InFile(_) => None,
        };
        let parts: Vec<_> = self.parts.iter().filter_map(in_memory).collect();
        (!parts.is_empty()).then_some(parts)
    }
}

async fn set_aside_in_time(state: Arc<Mutex<State>>, held_for: Duration, spool: Arc<Spool>) {
    loop {
        let asked = locked(&state).asked;
        sleep_until(asked + held_for).await;
        if locked(&state).asked == asked && set_aside(&state, &spool).await {
            return;
        }
    }
}

/// Lets go of what is in memory, or puts it into a file. False where it was asked for meanwhile, and stays.
async fn set_aside(state: &Mutex<State>, spool: &Arc<Spool>) -> bool {
    let (parts, asked) = {
        let mut state = locked(state);
        let Some(parts) = state.for_spool() else { return true };
        (parts, state.asked)
    };
    let spool = Arc::clone(spool);
    let written = tokio::task::spawn_blocking(move || spool.write(&parts)).await;
    let written = written.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let mut state = locked(state);
    if state.asked != asked {
        return false;
    }
    match written {
        Ok((spooled, permits)) => {
            state.parts = spooled.into_iter().map(Kept::InFile).collect();
            state.permits = Some(permits);
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::QuotaExceeded {
                tracing::warn!(%error, "what an edit of a shape brings cannot be put into a file");
            }
            state.let_go();
        }
    }
    true
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tidegate_model::Lsn;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::redefinition::turning::spool::tests::note;

    /// Of three parts, for which there are three permits.
    fn difference(semaphore: &Arc<Semaphore>) -> Difference {
        let permits = Arc::clone(semaphore).try_acquire_many_owned(3).ok();
        let parts = (1..4).map(|number| Arc::new(note(number))).collect();
        Difference { at: Position::new(Lsn(7), 1), parts, permits }
    }

    fn spool(dir: &tempfile::TempDir, byte_count: usize) -> Arc<Spool> {
        Arc::new(Spool::new(dir.path().to_owned(), byte_count))
    }

    #[tokio::test]
    async fn who_does_not_ask_for_it_holds_nothing() {
        let (semaphore, dir) = (Arc::new(Semaphore::new(3)), tempfile::tempdir().expect("a directory"));
        let spool = spool(&dir, 1 << 20);
        let mut held = Held::new(difference(&semaphore), Duration::ZERO, Arc::clone(&spool));
        let given_back = semaphore.acquire_many(3).await;
        assert!(given_back.is_ok() && held.is_let_go() && !held.is_given_out());
        assert!(matches!(held.part().await, Part::LetGo));
        assert_eq!(spool.free_bytes(), 1 << 20);
    }

    #[tokio::test]
    async fn who_asks_in_time_has_it_all() {
        let (semaphore, dir) = (Arc::new(Semaphore::new(3)), tempfile::tempdir().expect("a directory"));
        let mut held = Held::new(difference(&semaphore), HELD_FOR, spool(&dir, 1 << 20));
        for left in [0, 0, 3] {
            assert!(!held.is_given_out() && matches!(held.part().await, Part::Note(_)));
            assert_eq!(semaphore.available_permits(), left);
        }
        assert!(held.is_given_out() && !held.is_let_go() && matches!(held.part().await, Part::None));
    }

    #[tokio::test]
    async fn who_has_a_part_of_it_has_it_all_however_late_and_holds_no_memory() {
        let (semaphore, dir) = (Arc::new(Semaphore::new(3)), tempfile::tempdir().expect("a directory"));
        let spool = spool(&dir, 1 << 20);
        let mut held = Held::new(difference(&semaphore), HELD_FOR, Arc::clone(&spool));
        for number in 1..4 {
            let Part::Note(part) = held.part().await else { panic!("part {number}") };
            assert_eq!((&part.routed.block, &part.found), (&note(number).routed.block, &note(number).found));
            if number < 3 {
                assert!(set_aside(&held.state, &spool).await);
                assert!(semaphore.available_permits() == 3 && spool.free_bytes() < 1 << 20 && !held.is_given_out());
            }
        }
        assert!(held.is_given_out() && matches!(held.part().await, Part::None));
        assert_eq!(spool.free_bytes(), 1 << 20);
    }

    #[tokio::test]
    async fn what_has_no_room_in_files_is_let_go() {
        let (semaphore, dir) = (Arc::new(Semaphore::new(3)), tempfile::tempdir().expect("a directory"));
        let spool = spool(&dir, 10);
        let mut held = Held::new(difference(&semaphore), HELD_FOR, Arc::clone(&spool));
        assert!(matches!(held.part().await, Part::Note(_)));
        assert!(set_aside(&held.state, &spool).await);
        assert!(semaphore.available_permits() == 3 && held.is_let_go() && spool.free_bytes() == 10);
        assert!(matches!(held.part().await, Part::LetGo));
    }
}
