//! Subscribers that take one snapshot after another, of every kind there is, lose their connections and come again, while something
//! else disturbs the servers. At each snapshot's end, and somewhat later, the copy of each is what a replay of the whole stream says of
//! that position.

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
    Arrival, Cluster, Copier, DEADLINE, Database, KEYED_TABLES, KEYLESS_TABLES, Replay, Seed, Server, Stop, Writers,
    asked_for, counted_by_postgres, held_by_postgres, must_count_equal, must_equal, tidegate, within,
};
use tokio::{sync::watch, task::JoinSet};

use crate::snapshot_parts::{Asked, asked, holds_the_part, open};

/// Snapshots out of the mirror have numbers from here on.
pub(crate) const OF_MIRROR: u32 = 1 << 31;

/// How long a snapshot may take: it begins anew with every TRUNCATE and every crash, and the machine has other tests to run.
const PATIENCE: Duration = Duration::from_secs(3 * DEADLINE.as_secs());

/// What the subscribers ask for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    /// Of the keyed tables, those that are mirrored. A snapshot of only these is made of the mirror.
    pub(crate) mirrored: &'static [&'static str],
    /// There are tables without a key, too.
    pub(crate) keyless: bool,
    /// Parts of keyed tables, too, that are delivered to a subscription that runs.
    pub(crate) parts: bool,
}

/// What a snapshot is of, or out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Tables with keys, out of PostgreSQL; some are cancelled, for all who share them.
    Keyed,
    /// Tables without a key are among them; the same.
    Keyless,
    /// Out of the mirror: each subscriber has its own, which begins and ends once.
    Mirrored,
    /// A part of a table, for whoever is subscribed.
    Part,
}

const KINDS: [Kind; 4] = [Kind::Keyed, Kind::Keyless, Kind::Mirrored, Kind::Part];

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
    wishes: Wishes,
    replay: Replay,
    /// So many snapshots are to end.
    goal: u64,
    ended: watch::Sender<u64>,
    ended_of: [AtomicU64; KINDS.len()],
    resumed: AtomicU64,
    cancelled: AtomicU64,
    /// Given up, since the mirror was not complete when the connection came back.
    without_mirror: AtomicU64,
}

impl SnapshotCrowd {
    /// Begins the replay. `TIDEGATE_TEST_SNAPSHOTS` asks for another number than the usual one.
    pub(crate) fn new(endpoint: String, wishes: Wishes, usual_goal: u64) -> SnapshotCrowd {
        let shared = Arc::new(Shared {
            endpoint,
            wishes,
            replay: Replay::default(),
            goal: asked_for("TIDEGATE_TEST_SNAPSHOTS", usual_goal),
            ended: watch::Sender::new(0),
            ended_of: Default::default(),
            resumed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            without_mirror: AtomicU64::new(0),
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
                Err(error) if shared.kind(&[]) != Kind::Mirrored && error.to_string().contains("cancelled") => {}
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
        for name in shared.keyless_tables() {
            let theirs = counted_by_postgres(&database, name).await?;
            must_count_equal(&format!("{name}, quiet"), &copier.replica.counts(name), &theirs)?;
        }
        shared.must_equal_replay(&mut copier, &shared.all_tables()).await
    }

    /// Waits for the subscribers, each of which ends what it has begun. Where as many snapshots were taken as usual or more, there were
    /// some of each kind.
    pub(crate) async fn finish(mut self, usual_goal: u64) -> Result<()> {
        while let Some(ended) = self.subscribers.join_next().await {
            ended??;
        }
        let ended = self.shared.ended();
        let Shared { resumed, cancelled, without_mirror, .. } = &*self.shared;
        let [resumed, cancelled, without_mirror] =
            [resumed, cancelled, without_mirror].map(|count| count.load(Relaxed));
        let counts = KINDS.map(|kind| (kind, self.shared.ended_of[kind as usize].load(Relaxed)));
        println!(
            "{ended} snapshots were exact: {counts:?}; connections lost {resumed} times, {cancelled} cancelled, {without_mirror} without \
             a mirror"
        );
        ensure!(without_mirror <= 3 + ended / 20, "{without_mirror} snapshots had no mirror to go on with");
        let mut missing = counts.iter().filter(|(kind, count)| self.shared.has(*kind) && *count == 0);
        ensure!(ended < usual_goal || missing.next().is_none(), "not of each kind: {counts:?}");
        Ok(())
    }
}

impl Shared {
    fn ended(&self) -> u64 {
        *self.ended.borrow()
    }

    fn has_ended(&self, kind: Kind) {
        self.ended_of[kind as usize].fetch_add(1, Relaxed);
        self.ended.send_modify(|ended| *ended += 1);
    }

    /// Is this kind asked for?
    fn has(&self, kind: Kind) -> bool {
        match kind {
            Kind::Keyed => self.wishes.mirrored.len() < KEYED_TABLES.len(),
            Kind::Keyless => self.wishes.keyless,
            Kind::Mirrored => !self.wishes.mirrored.is_empty(),
            Kind::Part => self.wishes.parts,
        }
    }

    fn keyless_tables(&self) -> &'static [&'static str] {
        if self.wishes.keyless { &KEYLESS_TABLES } else { &[] }
    }

    fn all_tables(&self) -> Vec<&'static str> {
        KEYED_TABLES.iter().map(|(name, _)| *name).chain(self.keyless_tables().iter().copied()).collect()
    }

    /// Of a snapshot of these tables; of all where there are none.
    fn kind(&self, tables: &[&str]) -> Kind {
        let all = self.all_tables();
        let of = if tables.is_empty() { &all[..] } else { tables };
        if of.iter().any(|name| self.keyless_tables().contains(name)) {
            Kind::Keyless
        } else if of.iter().all(|name| self.wishes.mirrored.contains(name)) {
            Kind::Mirrored
        } else {
            Kind::Keyed
        }
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
    let singles: Vec<&str> = shared.all_tables();
    while shared.ended() < shared.goal {
        if shared.wishes.parts && random.random_bool(0.25) {
            let asked = asked(&mut random);
            let what = format!("{} where {}", asked.table, asked.sql);
            let running = one_part(&shared, &mut random, &asked);
            tokio::time::timeout(PATIENCE, running)
                .await
                .with_context(|| format!("a snapshot of a part does not end: {what}"))?
                .with_context(|| what)?;
            continue;
        }
        let tables: Vec<&str> = match random.random_range(0..singles.len() + 2) {
            table if table < singles.len() => vec![singles[table]],
            table if table == singles.len() => KEYED_TABLES.iter().map(|(name, _)| *name).collect(),
            _ => Vec::new(),
        };
        let checked = if tables.is_empty() { singles.clone() } else { tables.clone() };
        let mut copier = Copier::new(&shared.endpoint, &tables, Start::Snapshot);
        let running = one_snapshot(&shared, &mut random, (&mut copier, shared.kind(&tables)), &checked);
        tokio::time::timeout(PATIENCE, running)
            .await
            .with_context(|| format!("a snapshot of {tables:?} does not end"))??;
    }
    Ok(())
}

/// From a subscription, over lost connections, to the end of a snapshot that is started meanwhile and brings it a part of a table.
async fn one_part(shared: &Shared, random: &mut StdRng, asked: &Asked) -> Result<()> {
    let _comparing = shared.replay.comparing();
    let mut copier = open(&shared.endpoint, &[asked.table]).await?;
    // The server may be gone at this moment, or restarted amid the answer.
    let start = || async {
        let Ok(client) = Client::connect(shared.endpoint.as_str()).await else { return Ok(None) };
        Ok(client.start_snapshot_of_parts("", vec![asked.part.clone()]).await.ok())
    };
    let started = within("a snapshot of a part to be started", start).await?;
    // The token goes on before the snapshot, or in the midst of it.
    let mut may_be_lost = random.random_bool(0.3);
    loop {
        match copier.next().await? {
            Arrival::Ended(ended) if ended == started.snapshot => break,
            Arrival::Abandoned(ended, detail) if ended == started.snapshot => bail!("given up: {detail}"),
            Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
            Arrival::Committed(_) if std::mem::take(&mut may_be_lost) => {
                copier.drop_connection();
                shared.resumed.fetch_add(1, Relaxed);
            }
            // Others ask for parts of the table, too.
            Arrival::Begun(_) | Arrival::Ended(_) | Arrival::Abandoned(..) => {}
            Arrival::Committed(_) | Arrival::Progress => {}
        }
    }
    holds_the_part(&shared.replay, (copier.position, copier.replica.table(asked.table)), asked).await?;
    shared.has_ended(Kind::Part);
    Ok(())
}

/// From a snapshot's begin to somewhat after its end, over lost connections, or until it is cancelled.
async fn one_snapshot(
    shared: &Shared,
    random: &mut StdRng,
    (copier, kind): (&mut Copier, Kind),
    tables: &[&str],
) -> Result<()> {
    let (mut begun, mut after_end) = (None, None);
    let comparing = shared.replay.comparing();
    loop {
        let arrival = copier.next().await?;
        comparing.is_at(copier.position);
        match (arrival, kind) {
            (Arrival::Begun(snapshot), Kind::Mirrored) => {
                ensure!(snapshot >= OF_MIRROR, "snapshot {snapshot} was read from PostgreSQL");
                ensure!(begun.replace(snapshot).is_none(), "it begins twice");
            }
            (Arrival::Begun(snapshot), _) => {
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
                shared.has_ended(kind);
                after_end = Some(random.random_range(0..30_u32));
            }
            (Arrival::Reset(ResetReason::SnapshotAbandoned, detail), Kind::Keyed | Kind::Keyless) => {
                ensure!(detail.contains("cancelled"), "a snapshot was given up: {detail}");
                return Ok(());
            }
            // It is being compared with PostgreSQL again when the connection comes back.
            (Arrival::Reset(ResetReason::SnapshotAbandoned, detail), Kind::Mirrored)
                if detail.contains("the mirror") =>
            {
                shared.without_mirror.fetch_add(1, Relaxed);
                return Ok(());
            }
            (Arrival::Abandoned(snapshot, detail), _) => bail!("snapshot {snapshot} of new tables: {detail}"),
            (Arrival::Reset(reason, detail), _) => bail!("{reason:?}: {detail}"),
        }
    }
}
