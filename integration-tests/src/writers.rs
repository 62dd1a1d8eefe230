//! Writers of random transactions, which go on over lost connections, and pause when they are asked to.
//!
//! Whether a transaction fails (a deadlock, a server that restarts) does not matter: what was committed is the oracle's business.

use std::sync::Arc;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use tokio::{sync::RwLock, task::JoinSet, time::Duration};
use tokio_util::sync::CancellationToken;

use crate::{DEADLINE, Database, Seed};

/// Before a writer connects again.
const PAUSE: Duration = Duration::from_millis(20);

/// Writers, until they are stopped.
#[derive(Debug)]
pub struct Writers {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// A writer holds it while it writes a transaction.
    writing: RwLock<()>,
    stop: CancellationToken,
}

impl Writers {
    /// Starts so many, of transactions as SQL; one that fails is rolled back.
    #[must_use]
    pub fn start(count: u64, (url, seed): (&str, Seed), transaction: fn(&mut StdRng) -> String) -> Self {
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        for writer in 0..count {
            let (url, shared) = (url.to_owned(), Arc::clone(&shared));
            tasks.spawn(write(url, shared, seed.generator(10 + writer), transaction));
        }
        Writers { tasks, shared }
    }

    /// Nobody writes while this is held.
    ///
    /// # Errors
    /// A writer does not end its transaction within the deadline.
    pub async fn pause(&self) -> Result<impl Drop + use<'_>> {
        let paused = tokio::time::timeout(DEADLINE, self.shared.writing.write()).await;
        paused.context("a writer does not end its transaction")
    }

    /// Lets each finish its transaction.
    pub async fn stop(mut self) {
        self.shared.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn write(url: String, shared: Arc<Shared>, mut random: StdRng, transaction: fn(&mut StdRng) -> String) {
    while !shared.stop.is_cancelled() {
        let Ok(database) = Database::connect(&url).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // A short limit, so that a truncate that waits for a writer that waits for it does not hold up the test.
        database.execute("set lock_timeout = '2s'").await.ok();
        while !shared.stop.is_cancelled() && !database.client().is_closed() {
            let _writing = shared.writing.read().await;
            if database.execute(&transaction(&mut random)).await.is_err() {
                database.execute("rollback").await.ok();
            }
        }
    }
}
