//! Subscribers of shapes amid writers and disturbances: at every commit each looks at the rows that it holds, it loses its connection at
//! times, and whenever the writers pause it holds what PostgreSQL selects.

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{Shape, Start, Subscription};
use tidegate_integration_tests::{
    Arrival, Copier, DEADLINE, Database, Seed, disturb, held_by_postgres, must_equal, selected,
};
use tokio::task::JoinSet;

use crate::snapshot_crowd::Scene;

/// A selection of a subscription, and how PostgreSQL is asked for its rows.
pub(crate) struct Part {
    pub(crate) shape: Shape,
    /// With its schema.
    pub(crate) table: &'static str,
    pub(crate) key: &'static [&'static str],
    /// As `(select …) name`.
    pub(crate) query: String,
}

/// The name by which a copier holds the rows of a part.
pub(crate) fn held_as(table: &str, part: usize) -> String {
    selected(table, u32::try_from(part).expect("a few"))
}

/// What a subscriber has subscribed to, and what must hold of its rows.
pub(crate) trait Watched: Send + 'static {
    /// In the order of the selections; at least one.
    fn parts(&self) -> &[Part];

    /// At a commit, and at the snapshot's end. Before that end the copy is not exact.
    fn must_agree(&mut self, copier: &Copier, has_read: bool) -> Result<()>;

    /// Is there a reason to reset it that says this?
    fn may_be_reset(&self, _detail: &str) -> bool {
        false
    }
}

/// What a subscriber has seen.
pub(crate) struct Seen<W> {
    pub(crate) watched: W,
    /// Commits at which it held what it should, the copy being exact.
    pub(crate) checked: u32,
    /// Why it has started over.
    resets: Vec<String>,
}

struct Subscriber<W> {
    random: StdRng,
    endpoint: String,
    seen: Seen<W>,
    copier: Copier,
    has_read: bool,
}

impl<W: Watched> Subscriber<W> {
    fn new(endpoint: &str, random: StdRng, watched: W) -> Self {
        let (copier, endpoint) = (copier(endpoint, &watched), endpoint.to_owned());
        let seen = Seen { watched, checked: 0, resets: Vec::new() };
        Subscriber { random, endpoint, seen, copier, has_read: false }
    }

    /// Receives for a while, and may lose its connection.
    async fn receive(mut self, commits_max: u32) -> Result<Self> {
        for _ in 0..self.random.random_range(1..commits_max) {
            self.take().await?;
            if self.random.random_ratio(1, 30) {
                self.copier.drop_connection();
            }
        }
        Ok(self)
    }

    async fn take(&mut self) -> Result<()> {
        match self.copier.next().await? {
            Arrival::Ended(_) => {
                self.has_read = true;
                self.must_agree()
            }
            Arrival::Committed(_) => self.must_agree(),
            Arrival::Begun(_) | Arrival::Progress => Ok(()),
            Arrival::Reset(_, detail) => self.starts_over(detail),
            other @ Arrival::Abandoned(..) => bail!("{other:?}"),
        }
    }

    fn must_agree(&mut self) -> Result<()> {
        self.seen.checked += u32::from(self.has_read);
        let agree = self.seen.watched.must_agree(&self.copier, self.has_read);
        agree.with_context(|| format!("at {}", self.copier.position))
    }

    fn starts_over(&mut self, detail: String) -> Result<()> {
        ensure!(self.seen.watched.may_be_reset(&detail), "reset: {detail}");
        self.copier = copier(&self.endpoint, &self.seen.watched);
        self.has_read = false;
        self.seen.resets.push(detail);
        Ok(())
    }

    /// Up to now: nobody writes.
    async fn must_equal_postgres(&mut self, database: &Database) -> Result<()> {
        loop {
            let reading = async {
                while !self.has_read {
                    self.take().await?;
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(DEADLINE, reading).await.context("the snapshot does not end")??;
            match self.copier.until_caught_up(database).await {
                Ok(()) => break,
                Err(error) => self.starts_over(format!("{error:#}"))?,
            }
        }
        self.must_agree()?;
        for (at, part) in self.seen.watched.parts().iter().enumerate() {
            let theirs = held_by_postgres(database, &part.query, part.key).await?;
            let ours = self.copier.replica.table(&held_as(part.table, at));
            must_equal(&format!("{} at {}", part.query, self.copier.position), &ours, &theirs)?;
        }
        Ok(())
    }
}

fn copier(endpoint: &str, watched: &impl Watched) -> Copier {
    let mut shapes = watched.parts().iter().map(|part| part.shape.clone());
    let first = Subscription::shape(shapes.next().expect("there is one at least"));
    Copier::of(endpoint, shapes.fold(first, Subscription::and_shape), Start::Snapshot)
}

pub(crate) struct ShapeCrowd<W> {
    endpoint: String,
    seed: Seed,
    joined: u64,
    there: Vec<Subscriber<W>>,
    gone: Vec<Seen<W>>,
}

impl<W: Watched> ShapeCrowd<W> {
    pub(crate) fn new(endpoint: String, seed: Seed) -> Self {
        ShapeCrowd { endpoint, seed, joined: 0, there: Vec::new(), gone: Vec::new() }
    }

    /// How many subscribers there have been.
    pub(crate) fn joined(&self) -> u64 {
        self.joined
    }

    /// One more, of what its random numbers and its own number choose.
    pub(crate) fn join(&mut self, choose: impl FnOnce(&mut StdRng, u64) -> W) {
        self.joined += 1;
        let mut random = self.seed.generator(100 + self.joined);
        let watched = choose(&mut random, self.joined);
        self.there.push(Subscriber::new(&self.endpoint, random, watched));
    }

    /// Some leave, by their places among those that are there.
    pub(crate) fn leave(&mut self, mut leaves: impl FnMut(usize) -> bool) {
        for (at, subscriber) in std::mem::take(&mut self.there).into_iter().enumerate() {
            if leaves(at) { self.gone.push(subscriber.seen) } else { self.there.push(subscriber) }
        }
    }

    /// Those that are there.
    pub(crate) fn there(&self) -> impl Iterator<Item = &Seen<W>> {
        self.there.iter().map(|subscriber| &subscriber.seen)
    }

    /// All receive so many commits at most, while something happens; then the writers pause, and all hold what PostgreSQL selects.
    pub(crate) async fn round(&mut self, scene: &mut Scene<'_>, random: &mut StdRng, commits_max: u32) -> Result<()> {
        let mut receiving: JoinSet<_> =
            self.there.drain(..).map(|subscriber| subscriber.receive(commits_max)).collect();
        disturb(random, scene.cluster, scene.server).await?;
        while let Some(received) = receiving.join_next().await {
            self.there.push(received??);
        }
        let paused = scene.writers.pause().await?;
        let database = Database::connect(&scene.cluster.url(scene.database)).await?;
        for subscriber in &mut self.there {
            subscriber.must_equal_postgres(&database).await?;
        }
        drop(paused);
        Ok(())
    }

    /// Those that are there, and those that have left.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Seen<W>> {
        self.there().chain(&self.gone)
    }

    /// Not more often reset than so.
    pub(crate) fn must_be_reset_seldom(&self, count_max: u32) -> Result<()> {
        let resets: Vec<&String> = self.all().flat_map(|subscriber| &subscriber.resets).collect();
        println!("{} resets, the last: {:?}", resets.len(), resets.last());
        ensure!(resets.len() <= usize::try_from(count_max)?, "{} resets: {resets:?}", resets.len());
        Ok(())
    }
}
