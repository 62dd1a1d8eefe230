//! What the catalog says of tables, for shapes: asked once for all who want to know it at a time, and kept.
//!
//! Asked anew when the table's row type is another, when something did not fit what is kept, and after a while, since a collation or an
//! enum changes without a row type. Where the source is away, what is kept has to do.
//!
//! Invariant: a question that has been put is carried through though nobody waits for it any more: asking holds a lock on the table, which must
//! not stay until someone comes by again.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::Shared};
use tidegate_model::{Retry, TableName};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    snapshots::{Described, SnapshotError},
    source::SourceHandle,
};

/// What is kept is used for so long.
const KEPT: Duration = Duration::from_secs(60);
/// Who is refused for what is kept has it asked anew, unless it is as young as this.
const YOUNG: Duration = Duration::from_secs(1);

type Answer = Result<Arc<Known>, SnapshotError>;
type Asking = Shared<Pin<Box<dyn Future<Output = Answer> + Send>>>;

/// A table as the catalog had it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) table: Arc<TableName>,
    pub(crate) described: Described,
    asked: Instant,
}

impl Known {
    /// As a shape needs it, asked just now.
    #[cfg(test)]
    pub(crate) fn of(described: Described) -> Arc<Self> {
        let table = Arc::new(TableName::new(&described.facts.schema, &described.facts.name));
        Arc::new(Known { table, described, asked: Instant::now() })
    }

    /// May the table have changed since, as far as a person can tell?
    pub(crate) fn is_young(&self) -> bool {
        self.asked.elapsed() < YOUNG
    }
}

/// The tables of one source.
#[derive(Default)]
pub(crate) struct Facts(Mutex<HashMap<TableName, Entry>>);

struct Entry {
    asked: Instant,
    /// The table's newest row type when it was asked.
    row_type: Option<u32>,
    asking: Asking,
    /// The last that was answered.
    good: Option<Arc<Known>>,
}

impl Facts {
    /// The table as the catalog has it, or had it not long ago.
    pub(crate) async fn known(&self, source: &SourceHandle, table: &TableName) -> Answer {
        let row_type = newest(source, table);
        let is_current = |entry: &Entry| {
            let failed = matches!(entry.asking.peek(), Some(Err(_)));
            entry.asked.elapsed() < KEPT && entry.row_type == row_type && !failed
        };
        let asking = self.asking(source, table, is_current);
        let error = match self.answer(table, asking).await {
            Ok(known) => return Ok(known),
            Err(error) => error,
        };
        let kept = self.entries().get(table).and_then(|entry| entry.good.clone());
        match (error.retry(), kept) {
            (Retry::After(_), Some(kept)) => Ok(kept),
            (Retry::After(_) | Retry::Never | Retry::Reset, _) => Err(error),
        }
    }

    /// The table as it is now, where `than` did not fit.
    pub(crate) async fn renewed(&self, source: &SourceHandle, table: &TableName, than: &Arc<Known>) -> Answer {
        let is_newer = |entry: &Entry| match entry.asking.peek() {
            None => true,
            Some(Ok(known)) => !Arc::ptr_eq(known, than),
            Some(Err(_)) => false,
        };
        let asking = self.asking(source, table, is_newer);
        self.answer(table, asking).await
    }

    /// The question that is underway or answered, if it will do; else a new one.
    fn asking(&self, source: &SourceHandle, table: &TableName, will_do: impl Fn(&Entry) -> bool) -> Asking {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(table).filter(|entry| will_do(entry)) {
            return entry.asking.clone();
        }
        let (snapshots, name, asked) = (Arc::clone(&source.snapshots), table.clone(), Instant::now());
        let asking = carried_through(async move {
            let table = Arc::new(name.clone());
            let described = snapshots.describe(name).await?;
            Ok(Arc::new(Known { table, described, asked }))
        });
        let good = entries.remove(table).and_then(|entry| entry.good);
        entries.insert(table.clone(), Entry { asked, row_type: newest(source, table), asking: asking.clone(), good });
        asking
    }

    async fn answer(&self, table: &TableName, asking: Asking) -> Answer {
        let answer = asking.await;
        let mut entries = self.entries();
        match (&answer, entries.get_mut(table)) {
            (Ok(known), Some(entry)) => entry.good = Some(Arc::clone(known)),
            // Names that mean nothing are not remembered.
            (Err(_), Some(entry)) if entry.good.is_none() => drop(entries.remove(table)),
            (Ok(_) | Err(_), _) => {}
        }
        answer
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<TableName, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes on whether anyone waits for it or not, unless it is forgotten.
fn carried_through(ask: impl Future<Output = Answer> + Send + 'static) -> Asking {
    let mut task = JoinSet::new();
    task.spawn(ask);
    let answer = async move {
        match task.join_next().await.expect("one was spawned, and is awaited once") {
            Ok(answer) => answer,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    };
    (Box::pin(answer) as Pin<Box<dyn Future<Output = Answer> + Send>>).shared()
}

fn newest(source: &SourceHandle, table: &TableName) -> Option<u32> {
    source.store.row_types().newest(table).map(|row_type| row_type.proto().row_type)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_question_is_carried_through_though_nobody_waits() {
        let ((started, has_started), (go, may_go), (done, is_done)) =
            (oneshot::channel(), oneshot::channel::<()>(), oneshot::channel());
        let asking = carried_through(async move {
            started.send(()).expect("the test waits");
            may_go.await.expect("the test lets it go on");
            done.send(()).expect("the test waits");
            Err(SnapshotError::Unavailable)
        });
        let waiting = asking.clone();
        tokio::select! {
            _answer = waiting => panic!("it may not go on yet"),
            begun = has_started => begun.expect("it has begun"),
        }
        go.send(()).expect("it waits");
        is_done.await.expect("it goes on by itself");
        drop(asking);
    }
}
