//! Watches the definitions of the tables that a mirror knows: their fingerprints, of all in one query, from time to time and
//! whenever the stream suggests that one has changed.
//!
//! Invariant: the query takes a small part of the time only, however many tables there are. It deliberately draws no conclusion:
//! that is the keeper's.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use tidegate_postgres::{
    ConnectConfig, Session,
    snapshot::{Fingerprint, FingerprintQuery},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// After a look that has failed, and after one that the stream has suggested: what it has sent may not have been visible yet.
const SOON: Duration = Duration::from_secs(1);
/// Between two looks, at least so many times as long as a look takes.
const REST: u32 = 20;
/// The same, where looks are suggested one after the other.
const SUGGESTED_REST: u32 = 4;
/// What is suggested in a row shares a look.
const SETTLE: Duration = Duration::from_millis(50);
/// Without an answer the connection may be gone without a word.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// By `pg_class.oid`. Empty before the first look.
pub(crate) type Definitions = Arc<HashMap<u32, Fingerprint>>;

/// Tables by `pg_class.oid`.
pub(crate) type Tables = Arc<BTreeSet<u32>>;

/// Watches the definitions of one source's tables.
pub(crate) struct DefinitionWatch {
    pub(crate) connect: ConnectConfig,
    pub(crate) publication: String,
    pub(crate) tables: watch::Receiver<Tables>,
    pub(crate) altered: Arc<Notify>,
    /// Between two looks, unless something is suggested.
    pub(crate) interval: Duration,
    pub(crate) seen: watch::Sender<Definitions>,
}

impl DefinitionWatch {
    /// Works until `stop`. A database that does not answer leaves what is known as it is.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(&mut self) {
        let mut session = None;
        let mut is_suggested = false;
        loop {
            let tables: Vec<u32> = self.tables.borrow_and_update().iter().copied().collect();
            let started = Instant::now();
            let looked = timeout(ANSWER_TIMEOUT, self.look(&mut session, &tables)).await;
            let has_failed = match looked {
                Ok(Ok(seen)) => {
                    self.seen.send_if_modified(|known| {
                        let differs = **known != seen;
                        if differs {
                            *known = Arc::new(seen);
                        }
                        differs
                    });
                    false
                }
                // Capture meets the same outage, and says so.
                Ok(Err(error)) => {
                    tracing::debug!(error = format!("{error:#}"), "definitions cannot be read");
                    true
                }
                Err(_) => true,
            };
            if has_failed {
                session = None;
            }
            let is_soon = has_failed || std::mem::take(&mut is_suggested);
            let interval = if is_soon { self.interval.min(SOON) } else { self.interval };
            let look = Look { started, ended: Instant::now() };
            tokio::select! {
                () = sleep_until(look.next(interval)) => {}
                () = self.altered.notified() => {
                    is_suggested = true;
                    sleep_until(look.suggested(Instant::now())).await;
                }
                Ok(()) = self.tables.changed() => {}
            }
        }
    }

    async fn look(
        &self,
        session: &mut Option<(Session, FingerprintQuery)>,
        tables: &[u32],
    ) -> anyhow::Result<HashMap<u32, Fingerprint>> {
        if tables.is_empty() {
            return Ok(HashMap::new());
        }
        let (session, query) = match session {
            Some(open) => open,
            None => {
                let fresh = Session::connect(&self.connect).await?;
                let query = FingerprintQuery::prepare(&fresh).await?;
                session.insert((fresh, query))
            }
        };
        Ok(query.read(session, &self.publication, tables).await?)
    }
}

/// The last look: when there is another depends on how long it took.
#[derive(Clone, Copy)]
struct Look {
    started: Instant,
    ended: Instant,
}

impl Look {
    fn next(self, interval: Duration) -> Instant {
        self.started + ((self.ended - self.started) * REST).max(interval)
    }

    /// It is suggested now.
    fn suggested(self, now: Instant) -> Instant {
        (now + SETTLE).max(self.ended + (self.ended - self.started) * SUGGESTED_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_are_suggested_in_a_row_take_a_small_part_of_the_time() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let (mut now, mut busy) = (start, Duration::ZERO);
        for _ in 0..100 {
            let look = Look { started: now, ended: now + second };
            busy += second;
            now = look.suggested(look.ended);
        }
        assert!(busy * 5 <= now - start);
        // One by itself is looked at soon.
        let look = Look { started: start, ended: start + second };
        assert_eq!(look.suggested(start + 10 * second), start + 10 * second + SETTLE);
        assert_eq!(look.next(second), start + 20 * second);
    }
}
