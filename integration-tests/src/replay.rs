//! Every state of every row, from a replay of the whole stream: what a subscriber's copy must be at any position.
//!
//! A long run has more states than fit into memory. Those who compare say how far they are: what only came before is forgotten.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::{Position, Start};
use tidegate_model::SNAPSHOT_ORDINAL;
use tokio::sync::watch;

use crate::{Arrival, Copier, DEADLINE, HeldRow, HeldTable, Replica, RowCounts, Touched, must_count_equal, must_equal};

/// After so many states it is looked which may be forgotten.
const STATES: usize = 50_000;

/// What became of a row, and where: None when it was gone.
type States = Vec<(Position, Option<HeldRow>)>;

/// A replay of the whole stream.
#[derive(Debug)]
pub struct Replay {
    kept: Mutex<Kept>,
    replayed: watch::Sender<Position>,
}

/// Of a table without a key.
#[derive(Debug, Default)]
struct Counted {
    /// How often each row was there before the first step.
    before: RowCounts,
    steps: Vec<(Position, CountStep)>,
}

#[derive(Debug)]
enum CountStep {
    /// So many more of this row.
    Row(HeldRow, i64),
    /// Every row is gone.
    Truncated,
}

#[derive(Debug, Default)]
struct Kept {
    /// By table and key.
    rows: BTreeMap<String, BTreeMap<Vec<String>, States>>,
    /// By table.
    counted: BTreeMap<String, Counted>,
    /// What was before is not known any more.
    from: Position,
    /// Where those who compare are.
    comparing: BTreeMap<u64, Position>,
    /// The least of these when it was looked last. Only the next time it is made use of: a snapshot that is being joined may end
    /// somewhat before.
    least: Position,
    /// Since it was looked last.
    state_count: usize,
    comparer_count: u64,
}

/// Someone who compares copies, from where it is on.
#[derive(Debug)]
pub struct Comparing<'a> {
    replay: &'a Replay,
    number: u64,
}

impl Comparing<'_> {
    /// Nothing before this position will be asked for.
    pub fn is_at(&self, position: Position) {
        self.replay.kept().comparing.insert(self.number, position);
    }
}

impl Drop for Comparing<'_> {
    fn drop(&mut self) {
        self.replay.kept().comparing.remove(&self.number);
    }
}

impl CountStep {
    fn apply(&self, counts: &mut RowCounts) {
        match self {
            CountStep::Row(row, count) => match counts.get_mut(row) {
                Some(known) => *known += count,
                None => drop(counts.insert(row.clone(), *count)),
            },
            CountStep::Truncated => counts.clear(),
        }
    }
}

impl Default for Replay {
    fn default() -> Self {
        Replay { kept: Mutex::default(), replayed: watch::Sender::new(Position::ZERO) }
    }
}

impl Replay {
    /// Replays: a subscriber without a snapshot, from the first change on.
    ///
    /// # Errors
    /// The subscription fails for good, or receives what it has not asked for.
    pub async fn run(&self, endpoint: &str) -> Result<()> {
        let mut copier = Copier::new(endpoint, &[], Start::Earliest);
        loop {
            match copier.next().await? {
                Arrival::Committed(_) => self.committed(&copier),
                Arrival::Progress => {}
                other => bail!("the replay received {other:?}"),
            }
            self.replayed.send_replace(copier.position);
        }
    }

    /// Someone is to compare copies with what comes from now on. As long as nobody does so, nothing is forgotten.
    #[must_use]
    pub fn comparing(&self) -> Comparing<'_> {
        let mut kept = self.kept();
        kept.comparer_count += 1;
        let (number, from) = (kept.comparer_count, kept.from);
        kept.comparing.insert(number, from);
        Comparing { replay: self, number }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic holds it")
    }

    /// Is a copy what the replay says of its position? Of a table without a key, each row is to be there as often.
    ///
    /// # Errors
    /// It is not, or the replay does not come so far.
    pub async fn check(&self, (position, held): (Position, &Replica), tables: &[&str]) -> Result<()> {
        for name in tables {
            let what = format!("{name} at {position}");
            must_equal(&what, &held.table(name), &self.table(name, position).await?)?;
            let counts = self.kept().counts_at(name, position);
            must_count_equal(&what, &held.counts(name), &counts)?;
        }
        Ok(())
    }

    /// A table as it was at a position.
    ///
    /// # Errors
    /// The replay does not come so far.
    pub async fn table(&self, name: &str, position: Position) -> Result<HeldTable> {
        let mut replayed = self.replayed.subscribe();
        // What a snapshot has of its own at an LSN stands behind all that the stream has there.
        let is_own = position.ordinal >= SNAPSHOT_ORDINAL;
        let there = replayed.wait_for(|at| *at >= position || (is_own && at.lsn == position.lsn));
        tokio::time::timeout(DEADLINE, there).await.context("the replay is stuck")??;
        self.kept().at(name, position)
    }

    fn committed(&self, copier: &Copier) {
        let mut kept = self.kept();
        let Kept { rows, counted, state_count, .. } = &mut *kept;
        for touched in &copier.touched {
            match touched {
                Touched::Row(name, key) => {
                    let row = copier.replica.table_row(name, key);
                    *state_count += 1;
                    rows.entry(name.clone()).or_default().entry(key.clone()).or_default().push((copier.position, row));
                }
                Touched::Counted(name, row, count) => {
                    *state_count += 1;
                    let step = (copier.position, CountStep::Row(row.clone(), *count));
                    counted.entry(name.clone()).or_default().steps.push(step);
                }
                Touched::Table(name) => {
                    if let Some(of_table) = counted.get_mut(name) {
                        of_table.steps.push((copier.position, CountStep::Truncated));
                    }
                    // Keys that were gone before stay so: a long run sees many.
                    let is_held = |states: &States| states.last().is_some_and(|(_, row)| row.is_some());
                    let of_table = rows.entry(name.clone()).or_default().iter_mut();
                    for (key, states) in of_table.filter(|(_, states)| is_held(states)) {
                        states.push((copier.position, copier.replica.table_row(name, key)));
                        *state_count += 1;
                    }
                }
            }
        }
        if kept.state_count >= STATES {
            kept.forget();
        }
    }
}

impl Kept {
    /// What nobody will ask for.
    fn forget(&mut self) {
        let Some(least) = self.comparing.values().min().copied() else { return };
        let from = std::mem::replace(&mut self.least, least).min(least);
        self.state_count = 0;
        if from <= self.from {
            return;
        }
        self.from = from;
        for of_table in self.rows.values_mut() {
            of_table.retain(|_, states| {
                let known = states.partition_point(|(at, _)| *at <= from);
                states.drain(..known.saturating_sub(1));
                states.len() > 1 || states.last().is_some_and(|(at, row)| *at > from || row.is_some())
            });
        }
        for Counted { before, steps } in self.counted.values_mut() {
            let known = steps.partition_point(|(at, _)| *at <= from);
            steps.drain(..known).for_each(|(_, step)| step.apply(before));
        }
    }

    /// How often each row of a table without a key was there at a position.
    fn counts_at(&self, name: &str, position: Position) -> RowCounts {
        let Some(Counted { before, steps }) = self.counted.get(name) else { return RowCounts::new() };
        let mut counts = before.clone();
        steps.iter().take_while(|(at, _)| *at <= position).for_each(|(_, step)| step.apply(&mut counts));
        counts.retain(|_, count| *count != 0);
        counts
    }

    fn at(&self, name: &str, position: Position) -> Result<HeldTable> {
        ensure!(position >= self.from, "{position} is asked for, and nothing is known before {}", self.from);
        let state = |states: &Vec<(Position, Option<HeldRow>)>| {
            let known = states.partition_point(|(at, _)| *at <= position);
            states[..known].last().and_then(|(_, row)| row.clone())
        };
        let keys = self.rows.get(name).into_iter().flatten();
        Ok(keys.filter_map(|(key, states)| Some((key.clone(), state(states)?))).collect())
    }
}
