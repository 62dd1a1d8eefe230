//! Subscribers that take one snapshot after another, lose their connections and come again, while something else disturbs the
//! servers. At each snapshot's end, and somewhat later, the copy of each is what a replay of the whole stream says of that position.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{Client, ResetReason, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, KEYED_TABLES, Replay, Seed, Server, Stop, Writers, asked_for,
    held_by_postgres, must_equal, tidegate,
};
use tokio::{sync::watch, task::JoinSet};

/// Snapshots out of the mirror have numbers from here on.
pub(crate) const OF_MIRROR: u32 = 1 << 31;

/// How long a snapshot may take: it begins anew with every TRUNCATE and every crash, and the machine has other tests to run.
const PATIENCE: Duration = Duration::from_secs(3 * DEADLINE.as_secs());

/// Where the snapshots come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// PostgreSQL; some are cancelled, for all who share them.
    Postgres,
    /// The mirror: each has its own, which begins and ends once.
    Mirror,
}

/// What happens while snapshots run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disturbance {
    /// The server is killed with -9, and started again.
    KillServer,
    /// The server is stopped in order, and started again.
    RestartServer,
    /// PostgreSQL is restarted; `Immediate` is a crash.
    RestartPostgres(Stop),
    /// Both crash.
    CrashBoth,
    /// PostgreSQL ends the connections that `pg_stat_activity` describes so.
    Terminate(&'static str),
    /// Commits that wait for a standby get stuck from now on: they are sent, and nobody sees them.
    HoldCommits,
    /// That ends, if it was so.
    ReleaseCommits,
    /// The writers pause, and a snapshot is compared with PostgreSQL.
    Pause,
}

/// What the disturbances befall.
pub(crate) struct Scene<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) server: &'a mut Server,
    pub(crate) writers: &'a Writers,
    pub(crate) database: &'a str,
}

/// Subscribers, and the replay that they are compared with.
pub(crate) struct SnapshotCrowd {
    shared: Arc<Shared>,
    replaying: JoinSet<Result<()>>,
    subscribers: JoinSet<Result<()>>,
}

struct Shared {
    endpoint: String,
    origin: Origin,
    replay: Replay,
    /// So many snapshots are to end.
    goal: u64,
    ended: watch::Sender<u64>,
    resumed: AtomicU64,
    cancelled: AtomicU64,
}

impl SnapshotCrowd {
    /// Begins the replay. `TIDEGATE_TEST_SNAPSHOTS` asks for another number than the usual one.
    pub(crate) fn new(endpoint: String, origin: Origin, usual_goal: u64) -> SnapshotCrowd {
        let shared = Arc::new(Shared {
            endpoint,
            origin,
            replay: Replay::default(),
            goal: asked_for("TIDEGATE_TEST_SNAPSHOTS", usual_goal),
            ended: watch::Sender::new(0),
            resumed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
        });
        let mut replaying = JoinSet::new();
        let replayed = Arc::clone(&shared);
        replaying.spawn(async move { replayed.replay.run(&replayed.endpoint).await });
        SnapshotCrowd { shared, replaying, subscribers: JoinSet::new() }
    }

    /// Lets so many subscribers begin.
    pub(crate) fn subscribe(&mut self, seed: &Seed, count: u64) {
        for subscriber in 0..count {
            let subscribing = subscribe(Arc::clone(&self.shared), seed.generator(100 + subscriber));
            self.subscribers.spawn(subscribing);
        }
    }

    /// Have as many snapshots ended as were to?
    pub(crate) fn is_done(&self) -> bool {
        self.shared.ended() >= self.shared.goal
    }

    /// Waits until so many more snapshots have ended. It may be dropped meanwhile.
    pub(crate) async fn until_ended(&mut self, count: u64) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let goal = (shared.ended() + count).min(shared.goal);
        let mut ended = shared.ended.subscribe();
        let mut waiting = std::pin::pin!(tokio::time::timeout(PATIENCE, ended.wait_for(|ended| *ended >= goal)));
        loop {
            tokio::select! {
                waited = &mut waiting => return waited.map(|_| ()).context("no snapshot ends"),
                Some(ended) = self.subscribers.join_next() => ended??,
                Some(ended) = self.replaying.join_next() => return ended?.and_then(|()| bail!("the replay ended")),
            }
        }
    }

    /// Lets one thing after the other happen, until as many snapshots have ended as were to.
    pub(crate) async fn disturb_until_done(
        &mut self,
        scene: &mut Scene<'_>,
        random: &mut StdRng,
        (each, disturbances): (Range<u64>, &[Disturbance]),
    ) -> Result<()> {
        let mut are_held = false;
        while !self.is_done() {
            let (count, hold_ms) = (random.random_range(each.clone()), random.random_range(0..1_500_u64));
            if are_held {
                // A snapshot that began behind what is stuck waits for it.
                let some = tokio::time::timeout(Duration::from_millis(hold_ms), self.until_ended(count)).await;
                some.unwrap_or(Ok(()))?;
            } else {
                self.until_ended(count).await?;
            }
            let what = disturbances[random.random_range(0..disturbances.len())];
            self.disturb(scene, what).await?;
            are_held = match what {
                Disturbance::HoldCommits => true,
                Disturbance::ReleaseCommits | Disturbance::Pause => false,
                Disturbance::KillServer
                | Disturbance::RestartServer
                | Disturbance::RestartPostgres(_)
                | Disturbance::CrashBoth
                | Disturbance::Terminate(_) => are_held,
            };
        }
        Ok(())
    }

    /// Lets something happen.
    pub(crate) async fn disturb(&self, scene: &mut Scene<'_>, what: Disturbance) -> Result<()> {
        println!("{what:?} after {} snapshots", self.shared.ended());
        match what {
            Disturbance::KillServer => {
                scene.server.kill().await?;
                scene.server.launch().await?;
            }
            Disturbance::RestartServer => {
                scene.server.terminate().await?;
                scene.server.launch().await?;
            }
            Disturbance::RestartPostgres(stop) => scene.cluster.restart(stop).await?,
            Disturbance::CrashBoth => {
                scene.server.kill().await?;
                scene.cluster.restart(Stop::Immediate).await?;
                scene.server.launch().await?;
            }
            Disturbance::Terminate(whose) => {
                let database = Database::connect(&scene.cluster.url("postgres")).await?;
                let terminate = "select pg_terminate_backend(pid) from pg_stat_activity";
                database.execute(&format!("{terminate} where pid <> pg_backend_pid() and {whose}")).await?;
            }
            Disturbance::HoldCommits => self.control(scene).await?.hold_commits().await?,
            Disturbance::ReleaseCommits => self.control(scene).await?.release_commits().await?,
            Disturbance::Pause => self.must_equal_postgres(scene).await?,
        }
        Ok(())
    }

    /// A session whose commits wait for no standby.
    async fn control(&self, scene: &Scene<'_>) -> Result<Database> {
        let database = Database::connect(&scene.cluster.url(scene.database)).await?;
        database.execute("set synchronous_commit = local").await?;
        Ok(database)
    }

    /// While nobody writes, a snapshot of all tables is what PostgreSQL says.
    pub(crate) async fn must_equal_postgres(&self, scene: &Scene<'_>) -> Result<()> {
        let shared = &self.shared;
        let _comparing = shared.replay.comparing();
        let database = self.control(scene).await?;
        // A writer whose commit is stuck does not pause.
        database.release_commits().await?;
        let _nobody_writes = scene.writers.pause().await?;
        let mut copier = loop {
            let mut copier = Copier::new(&shared.endpoint, &[], Start::Snapshot);
            match copier.until_snapshot_end().await {
                Ok(_) => break copier,
                Err(error) if shared.origin == Origin::Postgres && error.to_string().contains("cancelled") => {}
                Err(error) => {
                    let under_way = tidegate(&["snapshot", "list", "--server", &shared.endpoint]).await?.stdout;
                    return Err(error.context(String::from_utf8(under_way)?));
                }
            }
        };
        // Its snapshot may have begun before the writers paused.
        copier.until_caught_up(&database).await?;
        for (name, key) in KEYED_TABLES {
            let theirs = held_by_postgres(&database, name, key).await?;
            must_equal(&format!("{name}, quiet"), &copier.replica.table(name), &theirs)?;
        }
        shared.must_equal_replay(&mut copier, &KEYED_TABLES.map(|(name, _)| name)).await
    }

    /// Waits for the subscribers, each of which ends what it has begun.
    pub(crate) async fn finish(mut self) -> Result<()> {
        while let Some(ended) = self.subscribers.join_next().await {
            ended??;
        }
        let ended = self.shared.ended();
        let [resumed, cancelled] = [&self.shared.resumed, &self.shared.cancelled].map(|count| count.load(Relaxed));
        println!("{ended} snapshots were exact; connections lost {resumed} times, {cancelled} cancelled");
        Ok(())
    }
}

impl Shared {
    fn ended(&self) -> u64 {
        *self.ended.borrow()
    }

    async fn must_equal_replay(&self, copier: &mut Copier, tables: &[&str]) -> Result<()> {
        self.replay.check((copier.position, &copier.replica), tables).await
    }

    async fn cancel(&self, snapshot: u32) {
        // It may have ended, or the server be gone.
        if let Ok(client) = Client::connect(self.endpoint.as_str()).await
            && client.cancel_snapshot("", snapshot).await.is_ok()
        {
            self.cancelled.fetch_add(1, Relaxed);
        }
    }
}

async fn subscribe(shared: Arc<Shared>, mut random: StdRng) -> Result<()> {
    while shared.ended() < shared.goal {
        let tables: Vec<&str> = match random.random_range(0..5_usize) {
            table @ 0..3 => vec![KEYED_TABLES[table].0],
            3 => KEYED_TABLES.iter().map(|(name, _)| *name).collect(),
            _ => Vec::new(),
        };
        let is_checked = |name: &&str| tables.is_empty() || tables.contains(name);
        let checked: Vec<&str> = KEYED_TABLES.iter().map(|(name, _)| *name).filter(is_checked).collect();
        let mut copier = Copier::new(&shared.endpoint, &tables, Start::Snapshot);
        let running = one_snapshot(&shared, &mut random, &mut copier, &checked);
        tokio::time::timeout(PATIENCE, running)
            .await
            .with_context(|| format!("a snapshot of {tables:?} does not end"))??;
    }
    Ok(())
}

/// From a snapshot's begin to somewhat after its end, over lost connections, or until it is cancelled.
async fn one_snapshot(shared: &Shared, random: &mut StdRng, copier: &mut Copier, tables: &[&str]) -> Result<()> {
    let (mut begun, mut after_end) = (None, None);
    let comparing = shared.replay.comparing();
    loop {
        let arrival = copier.next().await?;
        comparing.is_at(copier.position);
        match (arrival, shared.origin) {
            (Arrival::Begun(snapshot), Origin::Mirror) => {
                ensure!(snapshot >= OF_MIRROR, "snapshot {snapshot} was read from PostgreSQL");
                ensure!(begun.replace(snapshot).is_none(), "it begins twice");
            }
            (Arrival::Begun(snapshot), Origin::Postgres) => {
                ensure!(after_end.is_none(), "snapshot {snapshot} begins after the end of {begun:?}");
                begun = Some(snapshot);
                if random.random_bool(0.05) {
                    shared.cancel(snapshot).await;
                }
            }
            (Arrival::Committed(_) | Arrival::Progress, _) => {
                match &mut after_end {
                    None => {}
                    Some(0) => return shared.must_equal_replay(copier, tables).await.context("after the end"),
                    Some(left) => *left -= 1,
                }
                // The token goes on in the midst of the snapshot, or behind its end in the log.
                if random.random_bool(0.03) {
                    copier.drop_connection();
                    shared.resumed.fetch_add(1, Relaxed);
                }
            }
            (Arrival::Ended(snapshot), _) => {
                ensure!(begun == Some(snapshot) && after_end.is_none(), "an end of {snapshot} after {begun:?}");
                let compared = shared.must_equal_replay(copier, tables).await;
                compared.with_context(|| format!("at the end of snapshot {snapshot}"))?;
                shared.ended.send_modify(|ended| *ended += 1);
                after_end = Some(random.random_range(0..30_u32));
            }
            (Arrival::Reset(ResetReason::SnapshotAbandoned, detail), Origin::Postgres) => {
                ensure!(detail.contains("cancelled"), "a snapshot was given up: {detail}");
                return Ok(());
            }
            (Arrival::Abandoned(snapshot, detail), _) => bail!("snapshot {snapshot} of new tables: {detail}"),
            (Arrival::Reset(reason, detail), _) => bail!("{reason:?}: {detail}"),
        }
    }
}
