//! Every state of every row, from a replay of the whole stream: what a subscriber's copy must be at any position.

use std::{collections::BTreeMap, sync::Mutex};

use anyhow::{Context, Result, bail};
use tidegate_client::{Position, Start};
use tidegate_model::SNAPSHOT_ORDINAL;
use tokio::sync::watch;

use crate::{Arrival, Copier, DEADLINE, HeldRow, HeldTable, Replica, Touched, must_equal};

/// What became of a row, and where: None when it was gone.
type States = Vec<(Position, Option<HeldRow>)>;

/// A replay of the whole stream.
#[derive(Debug)]
pub struct Replay {
    /// By table and key.
    rows: Mutex<BTreeMap<String, BTreeMap<Vec<String>, States>>>,
    replayed: watch::Sender<Position>,
}

impl Default for Replay {
    fn default() -> Self {
        Replay { rows: Mutex::default(), replayed: watch::Sender::new(Position::ZERO) }
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

    /// Is a copy what the replay says of its position?
    ///
    /// # Errors
    /// It is not, or the replay does not come so far.
    pub async fn check(&self, (position, held): (Position, &Replica), tables: &[&str]) -> Result<()> {
        for name in tables {
            must_equal(&format!("{name} at {position}"), &held.table(name), &self.table(name, position).await?)?;
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
        Ok(self.at(name, position))
    }

    fn committed(&self, copier: &Copier) {
        let mut rows = self.rows.lock().expect("no panic holds it");
        for touched in &copier.touched {
            match touched {
                Touched::Row(name, key) => {
                    let row = copier.replica.table_row(name, key);
                    rows.entry(name.clone()).or_default().entry(key.clone()).or_default().push((copier.position, row));
                }
                Touched::Counted(..) => {}
                Touched::Table(name) => {
                    // Keys that were gone before stay so: a long run sees many.
                    let is_held = |states: &States| states.last().is_some_and(|(_, row)| row.is_some());
                    let of_table = rows.entry(name.clone()).or_default().iter_mut();
                    for (key, states) in of_table.filter(|(_, states)| is_held(states)) {
                        states.push((copier.position, copier.replica.table_row(name, key)));
                    }
                }
            }
        }
    }

    fn at(&self, name: &str, position: Position) -> HeldTable {
        let rows = self.rows.lock().expect("no panic holds it");
        let state = |states: &Vec<(Position, Option<HeldRow>)>| {
            let known = states.partition_point(|(at, _)| *at <= position);
            states[..known].last().and_then(|(_, row)| row.clone())
        };
        let keys = rows.get(name).into_iter().flatten();
        keys.filter_map(|(key, states)| Some((key.clone(), state(states)?))).collect()
    }
}
