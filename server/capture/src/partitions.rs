//! Are rows of partitions decoded as what they are now? [`Partitions`] is pure; [`PartitionWatch`] is what shares it.
//!
//! PostgreSQL 14 decides which table a row is sent as when it first decodes a row of its table over a connection, and keeps to it until the
//! connection ends. Of a table that is attached or detached since, rows would be sent under the wrong name, or not at all. So the
//! connection is ended once PostgreSQL has been told that everything before the change is stored: over the next one, nothing is
//! decoded that was written before it, and all that is decoded is sent as what it is.
//!
//! ```text
//!   rows of l as l      ATTACH l     seen, up to here: end_lsn       confirmed ≥ end_lsn: another connection
//!  ────────●───────────────●──────────────────●───────────────────────────────┼────────────▶ rows of l as the root's
//!                           rows of l, sent as l
//! ```
//!
//! In a crash, a slot may fall back behind that: PostgreSQL writes where it stands to the disk now and then only. What was decoded anew
//! from there would be decided under other trees again. So that position is recorded before anything relies on it
//! (`Control::set_settled_partitions`), and no connection begins before it ([`Partitions::begin`]), but for one that proves continuity: what
//! comes again up to there has to be what is stored, and nothing else that is followed. That connection ends there.
//!
//! Rows between are told by a snapshot of the root alone, such as that by which a mirror is compared with an altered table. So no snapshot
//! begins before ([`PartitionWatch::settled`]); one that has begun finds another fingerprint, and is planned again.
//!
//! Invariant: over a connection that is settled, no row was decoded that was written under other trees. It is deliberately blind to a table
//! that is attached and detached between two looks, a second, and is written to for the first time over the connection between.

use std::sync::{Mutex, PoisonError};

use tidegate_control::Control;
use tidegate_model::{Epoch, Lsn, SourceName, TransactionId};
use tidegate_postgres::PartitionTrees;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::CaptureError;

/// What is known of the trees of partitions, over connections.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    /// Nothing has been decoded over this connection that was written under others.
    settled: Option<PartitionTrees>,
    /// So will it be over the next one, if it begins behind their end.
    wanted: Option<PartitionTrees>,
    /// All up to here has come again over the last connection, which was for that.
    proved: Option<Lsn>,
}

/// Where a connection begins to send, and what has to come over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// Or where the slot stands, if that is further on.
    pub(crate) start_lsn: Lsn,
    /// Must come again before anything new.
    pub(crate) expected: Option<TransactionId>,
    /// The connection is for what comes again up to here, and ends there.
    pub(crate) proves_to: Option<Lsn>,
}

impl Partitions {
    /// The slot stands at `confirmed_flush_lsn`, and stood at `settled_lsn`, behind which all is sent as what it is, or further on. `expected`
    /// ends behind the former.
    pub(crate) fn begin(
        &mut self,
        (confirmed_flush_lsn, settled_lsn): (Lsn, Lsn),
        expected: Option<TransactionId>,
    ) -> Beginning {
        let proved = self.proved.take();
        if settled_lsn <= confirmed_flush_lsn {
            return Beginning { start_lsn: Lsn::ZERO, expected, proves_to: None };
        }
        // What ends behind a record's end begins there or behind it, and is sent. If it comes again, so has all before it.
        let is_sent = expected.is_some_and(|last| last.commit_end_lsn > settled_lsn);
        if is_sent {
            Beginning { start_lsn: settled_lsn, expected, proves_to: None }
        } else if proved == Some(settled_lsn) {
            Beginning { start_lsn: settled_lsn, expected: None, proves_to: None }
        } else {
            Beginning { start_lsn: Lsn::ZERO, expected, proves_to: Some(settled_lsn) }
        }
    }

    /// A connection begins, which decodes what has committed behind `begin_lsn`. The trees are those of now. Returns behind which position
    /// all is sent as what it is, if all is.
    pub(crate) fn connected(&mut self, now: Option<PartitionTrees>, begin_lsn: Lsn) -> Option<Lsn> {
        let mut known = self.wanted.take().into_iter().chain(self.settled.take());
        self.settled = known.find(|trees| trees.end_lsn <= begin_lsn);
        let is_settled = self.look(now);
        self.settled.as_ref().filter(|_| is_settled).map(|settled| settled.end_lsn)
    }

    /// The trees are these now. Are they what this connection has decoded all rows under?
    pub(crate) fn look(&mut self, now: Option<PartitionTrees>) -> bool {
        let Some(now) = now else {
            *self = Partitions::default();
            return true;
        };
        // Trees that are what they were before others: what was decoded meanwhile was decided under those.
        if self.wanted.is_none() && self.settled.as_ref().is_some_and(|settled| settled.are(&now)) {
            return true;
        }
        if !self.wanted.as_ref().is_some_and(|wanted| wanted.are(&now)) {
            self.wanted = Some(now);
        }
        false
    }

    /// Is another connection to begin, since it would begin there?
    pub(crate) fn wants_another_connection(&self, confirmed_flush_lsn: Lsn) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| wanted.end_lsn <= confirmed_flush_lsn)
    }
}

/// What is known over crashes: it stands in the control database.
pub(crate) struct Record<'a> {
    pub(crate) control: &'a Control,
    pub(crate) source: &'a SourceName,
    pub(crate) epoch: Option<Epoch>,
    /// What a store has lost that had been confirmed comes again, wherever that is.
    pub(crate) received_lsn: Lsn,
}

impl Record<'_> {
    /// Behind it, all is sent as what it is; nothing where that is not known.
    async fn settled_lsn(&self) -> Result<Lsn, CaptureError> {
        let known = self.control.settled_partitions(self.source).await?;
        let holds = |(epoch, end_lsn): &(Epoch, Lsn)| Some(*epoch) == self.epoch && *end_lsn <= self.received_lsn;
        Ok(known.filter(holds).map_or(Lsn::ZERO, |(_, end_lsn)| end_lsn))
    }

    async fn settle(&self, end_lsn: Lsn) -> Result<(), CaptureError> {
        let Some(epoch) = self.epoch else { return Ok(()) };
        Ok(self.control.set_settled_partitions(self.source, (epoch, end_lsn)).await?)
    }
}

/// What is known of the trees, for those who look and those who wait.
#[derive(Debug)]
pub(crate) struct PartitionWatch {
    partitions: Mutex<Partitions>,
    /// When it was last asked what they are, and they were settled.
    settled_at: watch::Sender<Option<Instant>>,
    /// Someone waits for the next look.
    pub(crate) look_now: Notify,
}

impl PartitionWatch {
    pub(crate) fn new() -> Self {
        let settled_at = watch::Sender::new(None);
        PartitionWatch { partitions: Mutex::default(), settled_at, look_now: Notify::new() }
    }

    fn partitions<T>(&self, change: impl FnOnce(&mut Partitions) -> T) -> T {
        change(&mut self.partitions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection begins, and what it relies on is recorded. See [`Partitions::begin`] and [`Partitions::connected`].
    ///
    /// # Errors
    /// The control database cannot be asked.
    pub(crate) async fn begin(
        &self,
        record: &Record<'_>,
        trees: Option<PartitionTrees>,
        (confirmed_flush_lsn, expected): (Lsn, Option<TransactionId>),
    ) -> Result<Beginning, CaptureError> {
        let settled_lsn = if trees.is_some() { record.settled_lsn().await? } else { Lsn::ZERO };
        let (beginning, settled) = self.partitions(|partitions| {
            let beginning = partitions.begin((confirmed_flush_lsn, settled_lsn), expected);
            (beginning, partitions.connected(trees, confirmed_flush_lsn.max(settled_lsn)))
        });
        if let Some(end_lsn) = settled.filter(|end_lsn| *end_lsn > settled_lsn) {
            record.settle(end_lsn).await?;
        }
        Ok(beginning)
    }

    /// A connection has ended, or could not begin. See [`Partitions::begin`] for what it has proved.
    pub(crate) fn ended(&self, proved: Option<Lsn>) {
        self.partitions(|partitions| partitions.proved = proved);
    }

    /// As of [`Partitions::look`]; the trees were asked for at that time or later.
    pub(crate) fn look(&self, now: Option<PartitionTrees>, asked_at: Instant) -> bool {
        let is_settled = self.partitions(|partitions| partitions.look(now));
        if is_settled {
            self.settled_at.send_replace(Some(asked_at));
        }
        is_settled
    }

    /// As of [`Partitions::wants_another_connection`].
    pub(crate) fn wants_another_connection(&self, confirmed_flush_lsn: Lsn) -> bool {
        self.partitions(|partitions| partitions.wants_another_connection(confirmed_flush_lsn))
    }

    /// Waits until the trees of now, or later ones, are those under which the connection has decoded everything.
    pub(crate) async fn settled(&self) {
        let now = Instant::now();
        let mut settled_at = self.settled_at.subscribe();
        self.look_now.notify_one();
        // The sender is our own.
        settled_at.wait_for(|at| at.is_some_and(|at| at >= now)).await.map(drop).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trees(partitions: &str, end_lsn: u64) -> Option<PartitionTrees> {
        Some(PartitionTrees::of(partitions, Lsn(end_lsn)))
    }

    #[test]
    fn another_connection_begins_behind_the_change() {
        let mut partitions = Partitions::default();
        partitions.connected(trees("a", 10), Lsn(5));
        // What was decoded under since 5 is not known.
        assert!(!partitions.look(trees("a", 20)) && !partitions.wants_another_connection(Lsn(9)));
        assert!(partitions.wants_another_connection(Lsn(10)));
        partitions.connected(trees("a", 30), Lsn(12));
        assert!(partitions.look(trees("a", 40)) && !partitions.wants_another_connection(Lsn(90)));
        // Attached.
        assert!(!partitions.look(trees("a b", 50)) && !partitions.look(trees("a b", 60)));
        assert!(!partitions.wants_another_connection(Lsn(49)) && partitions.wants_another_connection(Lsn(50)));
        partitions.connected(trees("a b", 70), Lsn(50));
        assert!(partitions.look(trees("a b", 80)));
    }

    #[test]
    fn a_connection_that_begins_before_the_change_decodes_what_was_written_before_it() {
        let mut partitions = Partitions::default();
        partitions.connected(trees("a", 10), Lsn(5));
        partitions.connected(trees("a", 30), Lsn(12));
        assert!(!partitions.look(trees("a b", 50)));
        // It was lost by itself.
        partitions.connected(trees("a b", 60), Lsn(40));
        assert!(!partitions.look(trees("a b", 70)) && partitions.wants_another_connection(Lsn(60)));
        partitions.connected(trees("a b", 80), Lsn(61));
        assert!(partitions.look(trees("a b", 90)));
        // The slot has fallen back behind it.
        partitions.connected(trees("a b", 100), Lsn(45));
        assert!(!partitions.look(trees("a b", 110)));
    }

    #[test]
    fn a_slot_that_has_fallen_back_is_passed_once_continuity_is_proved() {
        let ends_at = |lsn| Some(TransactionId { commit_end_lsn: Lsn(lsn), xid: 7, commit_time_us: 9 });
        let begins = |start_lsn, expected, proves_to: u64| Beginning {
            start_lsn: Lsn(start_lsn),
            expected,
            proves_to: (proves_to > 0).then_some(Lsn(proves_to)),
        };
        let mut partitions = Partitions::default();
        // It has not.
        assert_eq!(partitions.begin((Lsn(50), Lsn(50)), ends_at(60)), begins(0, ends_at(60), 0));
        assert_eq!(partitions.begin((Lsn(50), Lsn(0)), None), begins(0, None, 0));
        // What has to come again comes behind it.
        assert_eq!(partitions.begin((Lsn(40), Lsn(50)), ends_at(51)), begins(50, ends_at(51), 0));
        // It comes before it, or nothing has to: nothing else may have come up to there. Where that led to nothing, once more.
        for expected in [ends_at(50), None] {
            assert_eq!(partitions.begin((Lsn(40), Lsn(50)), expected), begins(0, expected, 50));
            assert_eq!(partitions.begin((Lsn(40), Lsn(50)), expected), begins(0, expected, 50));
            partitions.proved = Some(Lsn(50));
            assert_eq!(partitions.begin((Lsn(40), Lsn(50)), expected), begins(50, None, 0));
            assert_eq!(partitions.begin((Lsn(40), Lsn(50)), expected), begins(0, expected, 50));
        }
        partitions.proved = Some(Lsn(45));
        assert_eq!(partitions.begin((Lsn(40), Lsn(50)), None), begins(0, None, 50));
        // The trees are still what all behind it is decoded under.
        partitions.connected(trees("a", 50), Lsn(45));
        assert_eq!(partitions.connected(trees("a", 55), Lsn(52)), Some(Lsn(50)));
        assert_eq!(partitions.connected(trees("a", 70), Lsn(50)), Some(Lsn(50)));
        assert_eq!(partitions.connected(trees("a b", 80), Lsn(50)), None);
    }

    #[test]
    fn a_change_that_is_taken_back_is_another_and_where_nothing_is_decided_all_is_settled() {
        let mut partitions = Partitions::default();
        partitions.connected(None, Lsn(5));
        assert!(partitions.look(None) && !partitions.wants_another_connection(Lsn(90)));
        partitions.connected(trees("a", 10), Lsn(15));
        partitions.connected(trees("a", 20), Lsn(15));
        assert!(partitions.look(trees("a", 30)));
        assert!(!partitions.look(trees("b", 40)) && !partitions.look(trees("a", 50)));
        assert!(!partitions.wants_another_connection(Lsn(49)) && partitions.wants_another_connection(Lsn(50)));
    }
}
