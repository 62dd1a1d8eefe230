//! Runs a source's snapshots: takes requests, lets readers read chunks, hands them to the stream, and notes what became of
//! them.
//!
//! ```text
//! requests ─▶ Coordinator ── Work ─▶ reader (own session) ── rows ─▶ encoded chunk
//!               ▲    │                                                    │
//!               │    └── control database: what is to run                 ▼ Order
//!               └─────────────── Outcome ◀──────────── stream: reconciles at the watermark, emits
//! ```
//!
//! Invariant: a snapshot's end is ordered only when each of its tables is done, and the stream agrees that no key is
//! incomplete. What was read when a connection ends is void. It deliberately knows nothing of positions and transactions:
//! the stream does.

mod begin;

use std::{collections::BTreeMap, sync::Arc};

use tidegate_control::{Control, JobState};
use tidegate_feed::Durable;
use tidegate_model::{Clock, Epoch, Retry, SnapshotSpec, SourceName};
use tidegate_postgres::ConnectConfig;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Duration, Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    errand::{Done, HOLD, Planning, RETRY, end, finish, read, record},
    job::{CHUNK_BYTES, Work},
    order::{ChunkResult, Order, Outcome, Ticket},
    pass::{Pass, SnapshotResume, Step},
    reader::{ReadFailure, Reader},
    reconcile::ReadAgain,
    requests::{Command, SnapshotError, SnapshotRequests, SnapshotStatus, Started},
};
use crate::{CaptureStatus, partitions::PartitionWatch, promises::Promised};

/// How long whoever starts a snapshot by hand waits for another one to end, before being told of it.
const BESIDE_MAX: Duration = Duration::from_secs(5);
/// Requests that wait.
const COMMANDS_MAX: usize = 64;
/// Chunks that are being read or wait for the stream, over all snapshots, and their bytes: they wait in memory.
const IN_FLIGHT_MAX: (usize, u64) = (256, 64 << 20);
/// Snapshots that someone has started or that are of new tables, and have not ended: each has memory of its own in the stream.
const AD_HOC_MAX: usize = 16;
/// Ended snapshots that are remembered.
const ENDED_MAX: usize = 100;
/// Chunks whose outcome is on its way, over all snapshots; more than can be outstanding.
const OUTCOMES_MAX: usize = 1024;

/// How snapshots are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// Chunks that are read at the same time.
    pub readers: usize,
    /// Rows a second that are read at most; 0 for no limit.
    pub rows_per_second_max: u64,
    /// No chunk is read while capture is further than this behind PostgreSQL, in bytes of WAL; 0 for no limit.
    pub lag_bytes_max: u64,
}

/// What a coordinator works with.
pub(crate) struct Context {
    pub(crate) source: SourceName,
    pub(crate) connect: ConnectConfig,
    pub(crate) publication: String,
    pub(crate) control: Control,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: SnapshotConfig,
    pub(crate) status: watch::Receiver<CaptureStatus>,
    pub(crate) promised: watch::Receiver<Promised>,
    pub(crate) partitions: Arc<PartitionWatch>,
    pub(crate) durable: watch::Receiver<Durable>,
}

/// How a coordinator is connected.
struct Channels {
    commands: mpsc::Receiver<Command>,
    statuses: watch::Sender<Arc<Vec<SnapshotStatus>>>,
    stream: StreamSide,
}

/// How the stream is reached.
pub(crate) struct StreamSide {
    pub(crate) orders: mpsc::Sender<Order>,
    /// The current one; None before the first.
    pub(crate) epoch: watch::Receiver<Option<Epoch>>,
    /// It has a connection. While it has none, it takes no orders.
    pub(crate) connected: watch::Receiver<bool>,
}

/// A coordinator, and the handle to ask it. What is stored is of snapshots that have not ended, and why others have.
pub(crate) fn coordinator(
    context: Context,
    stream: StreamSide,
    stored: (BTreeMap<u32, SnapshotResume>, BTreeMap<u32, String>),
) -> (SnapshotRequests, Coordinator) {
    let (commands, commanded) = mpsc::channel(COMMANDS_MAX);
    let statuses = watch::Sender::default();
    let requests = SnapshotRequests { commands, statuses: statuses.subscribe() };
    let channels = Channels { commands: commanded, statuses, stream };
    (requests, Coordinator::new(context, channels, stored))
}

/// The owner of a source's snapshots.
pub(crate) struct Coordinator {
    context: Arc<Context>,
    commands: mpsc::Receiver<Command>,
    statuses: watch::Sender<Arc<Vec<SnapshotStatus>>>,
    orders: mpsc::Sender<Order>,
    epoch: watch::Receiver<Option<Epoch>>,
    connected: watch::Receiver<bool>,
    outcomes: mpsc::Sender<Outcome>,
    results: mpsc::Receiver<Outcome>,
    tasks: JoinSet<Done>,
    /// Unfinished ones.
    passes: BTreeMap<u32, Pass>,
    /// The last that have ended.
    ended: Vec<SnapshotStatus>,
    /// What the changelog has of unfinished ones, until they are taken up.
    resume: BTreeMap<u32, SnapshotResume>,
    /// Those of which it has the end, and why they were given up.
    over: BTreeMap<u32, String>,
    /// What the control database knows has been read.
    is_loaded: bool,
    idle_readers: Vec<Reader>,
    /// Chunks that are being read.
    reading: usize,
    /// No chunk is read before.
    hold_until: Option<Instant>,
    /// Requests that wait for their snapshot to begin.
    waiting: BTreeMap<u32, Waiting>,
}

/// Those who wait for a snapshot to begin.
type Waiting = Vec<Waits>;

/// Who waits, and since when.
struct Waits {
    since: Instant,
    /// Would have tables without a key refused.
    keyed_only: bool,
    reply: oneshot::Sender<Result<Started, SnapshotError>>,
}

impl Waits {
    fn new(reply: oneshot::Sender<Result<Started, SnapshotError>>, keyed_only: bool) -> Self {
        Waits { since: Instant::now(), keyed_only, reply }
    }
}

impl Coordinator {
    fn new(
        context: Context,
        channels: Channels,
        (resume, over): (BTreeMap<u32, SnapshotResume>, BTreeMap<u32, String>),
    ) -> Self {
        let Channels { commands, statuses, stream: StreamSide { orders, epoch, connected } } = channels;
        let (outcomes, results) = mpsc::channel(OUTCOMES_MAX);
        Coordinator {
            context: Arc::new(context),
            commands,
            statuses,
            orders,
            epoch,
            connected,
            outcomes,
            results,
            tasks: JoinSet::new(),
            passes: BTreeMap::new(),
            ended: Vec::new(),
            resume,
            over,
            is_loaded: false,
            idle_readers: Vec::new(),
            reading: 0,
            hold_until: None,
            waiting: BTreeMap::new(),
        }
    }

    /// Runs until `stop`. While the source is not connected, what is ordered waits.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.coordinate() => {}
        }
    }

    /// Ends only when the capture does.
    async fn coordinate(&mut self) {
        loop {
            let epoch = *self.epoch.borrow_and_update();
            let mut wake = None;
            if let Some(epoch) = epoch {
                wake = match self.load(epoch).await {
                    Ok(()) => self.dispatch(),
                    Err(error) => {
                        warn!(source = %self.context.source, %error, "snapshots wait for the control database");
                        Some(Instant::now() + RETRY)
                    }
                };
            }
            self.publish();
            tokio::select! {
                Some(command) = self.commands.recv() => self.command(command, epoch).await,
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.done(done).await,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                Some(outcome) = self.results.recv() => self.outcome(outcome),
                changed = self.epoch.changed() => if changed.is_err() { return },
                // Its sender goes with the epoch's.
                Ok(()) = self.connected.changed() => if !*self.connected.borrow_and_update() {
                    self.passes.values_mut().for_each(Pass::release);
                },
                () = async { sleep_until(wake.expect("only polled with a time")).await }, if wake.is_some() => {}
            }
        }
    }

    /// Takes up what the control database has, once; what belongs to another epoch is over.
    async fn load(&mut self, epoch: Epoch) -> Result<(), SnapshotError> {
        if !self.is_loaded {
            // Given up, but their subscribers have not heard of it.
            let mut given_up = BTreeMap::new();
            for job in self.context.control.snapshots(&self.context.source).await? {
                if job.state.has_ended() {
                    if self.resume.remove(&job.snapshot).is_some() {
                        given_up.insert(job.snapshot, job.detail.clone());
                    }
                    self.ended.push(SnapshotStatus::of_ended(&job));
                } else {
                    let resume = self.resume.remove(&job.snapshot);
                    self.passes.insert(job.snapshot, Pass::new(job, resume));
                }
            }
            given_up.extend(std::mem::take(&mut self.resume).into_keys().map(|snapshot| (snapshot, String::new())));
            for (snapshot, detail) in given_up {
                warn!(source = %self.context.source, snapshot, detail, "a snapshot that was given up is ended");
                let channels = (self.orders.clone(), self.context.durable.clone());
                let detail = if detail.is_empty() { "it was given up".to_owned() } else { detail };
                self.tasks.spawn(end(channels, snapshot, detail));
            }
            self.is_loaded = true;
            for (snapshot, given_up) in std::mem::take(&mut self.over) {
                let Some(pass) = self.passes.get_mut(&snapshot) else { continue };
                if !given_up.is_empty() {
                    pass.abandon(JobState::Failed, given_up);
                }
                self.ended(snapshot).await;
            }
        }
        let other: Vec<u32> = self.passes.values().filter(|pass| pass.epoch() != epoch).map(Pass::number).collect();
        for snapshot in other {
            let detail = "the source has begun another history; start the snapshot again";
            self.fail(snapshot, detail.to_owned()).await;
            self.forget(snapshot);
        }
        Ok(())
    }

    async fn command(&mut self, command: Command, epoch: Option<Epoch>) {
        match command {
            Command::Start { spec, keyed_only, reply } => self.start((spec, keyed_only), epoch, reply).await,
            // Whoever asks may have gone.
            Command::StartNew { new, reply } => drop(reply.send(self.start_new(new, epoch).await)),
            Command::Change { snapshot, state, reply } => {
                // Whoever asks may have gone.
                drop(reply.send(self.change(snapshot, state).await));
            }
        }
    }

    /// Joins a snapshot of just the same, or records a new one. Whoever asks may have gone.
    async fn start(
        &mut self,
        (spec, keyed_only): (SnapshotSpec, bool),
        epoch: Option<Epoch>,
        reply: oneshot::Sender<Result<Started, SnapshotError>>,
    ) {
        if spec.tables.is_empty() {
            return drop(reply.send(Err(SnapshotError::NoTable)));
        }
        let Some(epoch) = epoch.filter(|_| self.is_loaded) else {
            return drop(reply.send(Err(SnapshotError::NotConnected)));
        };
        if let Some(same) = self.passes.values().find(|pass| pass.can_be_joined(&spec)) {
            match same.after() {
                Some(after) => drop(reply.send(Ok(Started { snapshot: same.number(), after }))),
                None => {
                    let waiting = self.waiting.entry(same.number()).or_default();
                    waiting.retain(|waits| !waits.reply.is_closed());
                    waiting.push(Waits::new(reply, keyed_only));
                }
            }
            return;
        }
        if spec.ad_hoc && self.passes.values().filter(|pass| pass.is_for_others()).count() >= AD_HOC_MAX {
            return drop(reply.send(Err(SnapshotError::TooMany(AD_HOC_MAX))));
        }
        let at_least = self.passes.keys().max().copied().unwrap_or(0);
        match self.context.control.create_snapshot(&self.context.source, (epoch, at_least), &spec).await {
            Ok(job) => {
                let (snapshot, tables, parts) = (job.snapshot, spec.tables.len(), spec.parts.len());
                info!(source = %self.context.source, snapshot, tables, parts, "a snapshot starts");
                self.waiting.entry(job.snapshot).or_default().push(Waits::new(reply, keyed_only));
                let mut pass = Pass::new(job, None);
                pass.set_keyed_only(keyed_only);
                self.passes.insert(pass.number(), pass);
            }
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    async fn change(&mut self, number: u32, state: JobState) -> Result<(), SnapshotError> {
        let pass = self.passes.get_mut(&number).ok_or(SnapshotError::Unknown(number))?;
        let context = &self.context;
        let detail = if state.has_ended() { "cancelled" } else { "" };
        if !context.control.set_snapshot_state(&context.source, (number, state), detail).await? {
            return Err(SnapshotError::Unknown(number));
        }
        if state.has_ended() {
            // Its subscribers learn it from the changelog; only then is it over.
            pass.abandon(state, detail.to_owned());
        } else {
            pass.set_state(state);
        }
        Ok(())
    }

    /// Starts whatever can be done now. Returns when to look again though nothing has happened.
    fn dispatch(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if self.context.status.borrow().is_behind(self.context.config.lag_bytes_max) {
            self.hold_until = self.hold_until.max(Some(now + HOLD));
        }
        let held = self.hold_until.filter(|until| *until > now);
        let add = |total: (usize, u64), more: (usize, u64)| (total.0 + more.0, total.1 + more.1);
        let mut in_flight = self.passes.values().map(Pass::in_flight).fold((0, 0), add);
        let mut beginning = Vec::new();
        for (number, pass) in &mut self.passes {
            loop {
                let has_room = in_flight.0 < IN_FLIGHT_MAX.0 && in_flight.1 < IN_FLIGHT_MAX.1;
                let may_read = held.is_none() && has_room && self.reading < self.context.config.readers;
                let Some(step) = pass.next_step(now, may_read) else { break };
                let orders = self.orders.clone();
                match step {
                    Step::Begin => beginning.push(*number),
                    Step::Table(table, Work::Finish { attempt }) => {
                        let table_oid = pass.plan(table).table_oid();
                        self.tasks.spawn(finish(orders, (*number, table, table_oid), attempt));
                    }
                    Step::Table(table, work) => {
                        (self.reading, in_flight) = (self.reading + 1, add(in_flight, (1, CHUNK_BYTES)));
                        let reader = self.idle_readers.pop();
                        let reader = Box::new(reader.unwrap_or_else(|| Reader::new(&self.context.connect)));
                        let planned = pass.plan(table);
                        let ticket = Ticket::new((*number, table), &planned, &work, self.outcomes.clone());
                        self.tasks.spawn(read(orders, reader, (planned, work), ticket));
                    }
                    Step::End(abandoned) => {
                        let channels = (orders, self.context.durable.clone());
                        self.tasks.spawn(end(channels, *number, abandoned));
                    }
                }
            }
        }
        beginning.into_iter().for_each(|snapshot| self.begin(snapshot));
        self.passes.values().filter_map(Pass::wake_at).chain(held).min()
    }

    async fn done(&mut self, done: Done) {
        let retry_at = Instant::now() + RETRY;
        match done {
            Done::Begun { snapshot, begun } => self.begun(snapshot, begun, retry_at).await,
            Done::Read { snapshot, table, attempt, reader, read } => {
                self.reading -= 1;
                self.idle_readers.extend(reader.map(|reader| *reader));
                let Some(pass) = self.passes.get_mut(&snapshot) else { return };
                match read {
                    Ok(Some(read)) => {
                        self.spend(read.row_count);
                        self.passes.get_mut(&snapshot).expect("it was there").table(table).was_read(&read);
                    }
                    // The stream takes no more orders: its end is noticed elsewhere.
                    Ok(None) => {}
                    Err(ReadFailure::TooLarge) => pass.table(table).chunk_was_too_large(attempt),
                    Err(ReadFailure::TableChanged) => pass.table_changed(table, attempt),
                    Err(ReadFailure::SharedGone) => {
                        pass.waits("the snapshot that a table without a key was read under is gone".to_owned());
                        pass.table(table).begin_anew(attempt, retry_at);
                    }
                    Err(ReadFailure::Failed(error)) => match error.retry() {
                        Retry::After(pause) => {
                            pass.waits(error.to_string());
                            pass.table(table).read_failed(attempt, Instant::now() + pause.max(RETRY));
                        }
                        Retry::Never | Retry::Reset => self.fail(snapshot, error.to_string()).await,
                    },
                }
            }
            Done::Finished { snapshot, table, attempt, finish } => {
                if let Some(pass) = self.passes.get_mut(&snapshot) {
                    pass.table(table).finished(attempt, finish, Instant::now());
                }
            }
            Done::Ended { snapshot, is_out: true } => self.ended(snapshot).await,
            Done::Ended { snapshot, is_out: false } => {
                if let Some(pass) = self.passes.get_mut(&snapshot) {
                    pass.end_refused(Instant::now() + HOLD);
                }
            }
            Done::Void => {}
        }
    }

    async fn begun(&mut self, snapshot: u32, begun: Result<Planning, Box<SnapshotError>>, retry_at: Instant) {
        let Some(pass) = self.passes.get_mut(&snapshot) else { return };
        let waiting = self.waiting.remove(&snapshot).unwrap_or_default();
        match begun {
            Ok(Planning { after, plans }) => {
                for Waits { reply, .. } in waiting {
                    // Whoever asked may have gone.
                    drop(reply.send(Ok(Started { snapshot, after })));
                }
                pass.has_begun(after, plans);
            }
            Err(error) => self.cannot_begin(snapshot, (*error, waiting), retry_at).await,
        }
    }

    /// Tells those who wait, unless it may begin by itself. Who asked may have gone.
    async fn cannot_begin(&mut self, snapshot: u32, (error, waiting): (SnapshotError, Waiting), retry_at: Instant) {
        let paused = |other: u32| self.passes.get(&other).is_some_and(Pass::is_paused);
        let error = match error {
            SnapshotError::Beside { table, snapshot } if paused(snapshot) => {
                SnapshotError::BesidePaused { table, snapshot }
            }
            error => error,
        };
        let Some(pass) = self.passes.get_mut(&snapshot) else { return };
        let detail = error.to_string();
        // It is tried each second: the same is said once.
        if pass.begin_failed(detail.clone(), retry_at) {
            warn!(source = %self.context.source, snapshot, %error, "a snapshot cannot begin");
        }
        let is_for_others = pass.is_for_others();
        let is_told = |waits: &Waits| match &error {
            SnapshotError::BesidePaused { .. } => true,
            // When the other one ends, nobody knows.
            SnapshotError::Beside { .. } => is_for_others && waits.since.elapsed() >= BESIDE_MAX,
            _ => false,
        };
        let (told, waiting): (Waiting, Waiting) = waiting.into_iter().partition(is_told);
        for Waits { reply, .. } in told {
            drop(reply.send(Err(error.beside().expect("it is one of these"))));
        }
        match error.retry() {
            Retry::After(_) => {
                self.waiting.insert(snapshot, waiting.into_iter().filter(|waits| !waits.reply.is_closed()).collect());
            }
            Retry::Never | Retry::Reset => {
                // Some of those who wait may have joined one that others would have refused.
                let is_refused = |waits: &Waits| waits.keyed_only || !pass.is_keyed_only();
                let (refused, mut others): (Waiting, Waiting) = match &error {
                    SnapshotError::Keyless(_) => waiting.into_iter().partition(is_refused),
                    _ => (waiting, Waiting::new()),
                };
                let mut error = Some(error);
                for Waits { reply, .. } in refused {
                    let error = error.take().unwrap_or(SnapshotError::Failed(detail.clone()));
                    drop(reply.send(Err(error)));
                }
                others.retain(|waits| !waits.reply.is_closed());
                if others.is_empty() {
                    return self.fail(snapshot, detail).await;
                }
                pass.set_keyed_only(false);
                self.waiting.insert(snapshot, others);
            }
        }
    }

    /// It cannot be completed: its subscribers learn it from the changelog.
    async fn fail(&mut self, snapshot: u32, detail: String) {
        warn!(source = %self.context.source, snapshot, detail, "a snapshot has failed");
        let Some(pass) = self.passes.get_mut(&snapshot) else { return };
        let state = (snapshot, JobState::Failed);
        if let Err(error) = self.context.control.set_snapshot_state(&self.context.source, state, &detail).await {
            warn!(source = %self.context.source, snapshot, %error, "that a snapshot has failed is not recorded");
        }
        pass.abandon(JobState::Failed, detail);
        if pass.after().is_none() {
            // The changelog has nothing of it.
            self.forget(snapshot);
        }
    }

    /// Its end is in the changelog.
    async fn ended(&mut self, snapshot: u32) {
        let Some(pass) = self.passes.get(&snapshot) else { return };
        let (state, detail) = pass.outcome();
        info!(source = %self.context.source, snapshot, ?state, "a snapshot has ended");
        let recorded = self.context.control.set_snapshot_state(&self.context.source, (snapshot, state), detail).await;
        if let Err(error) = recorded {
            warn!(source = %self.context.source, snapshot, %error, "the end of a snapshot is not recorded yet");
            let of = (self.context.control.clone(), self.context.source.clone());
            self.tasks.spawn(record(of, (snapshot, state), detail.to_owned()));
        }
        self.forget(snapshot);
    }

    fn forget(&mut self, snapshot: u32) {
        let Some(pass) = self.passes.remove(&snapshot) else { return };
        let (state, detail) = pass.outcome();
        for Waits { reply, .. } in self.waiting.remove(&snapshot).unwrap_or_default() {
            // Whoever asked may have gone.
            drop(reply.send(Err(SnapshotError::Failed(detail.to_owned()))));
        }
        let ended_us = Some(self.context.clock.now_us());
        self.ended.push(SnapshotStatus { state, detail: detail.to_owned(), ended_us, ..pass.status() });
        if self.ended.len() > ENDED_MAX {
            self.ended.remove(0);
        }
    }

    fn outcome(&mut self, outcome: Outcome) {
        let Some(pass) = self.passes.get_mut(&outcome.snapshot) else { return };
        let now = Instant::now();
        match outcome.result {
            ChunkResult::Emitted { row_count, byte_count, keys } => {
                let table = pass.table(outcome.table);
                table.was_emitted(outcome.attempt, outcome.end, (row_count, byte_count));
                table.read_between(outcome.attempt, keys);
                pass.measured(now);
            }
            ChunkResult::Again(ReadAgain::Rekeyed) => {
                let detail = format!("{}; start the snapshot again", ReadAgain::Rekeyed);
                pass.abandon(JobState::Failed, detail);
            }
            ChunkResult::Again(ReadAgain::Truncated) => {
                pass.waits(ReadAgain::Truncated.to_string());
                pass.table(outcome.table).begin_anew(outcome.attempt, now);
            }
            ChunkResult::Again(reason) => {
                pass.waits(reason.to_string());
                pass.table(outcome.table).read_again(outcome.attempt, now);
            }
        }
    }

    /// Rows were read: the next may have to wait.
    fn spend(&mut self, row_count: u64) {
        let rows_per_second_max = self.context.config.rows_per_second_max;
        if rows_per_second_max > 0 {
            let now = Instant::now();
            let from = self.hold_until.filter(|until| *until > now).unwrap_or(now);
            self.hold_until = Some(from + Duration::from_secs_f64(row_count as f64 / rows_per_second_max as f64));
        }
    }

    fn publish(&self) {
        let statuses: Vec<SnapshotStatus> =
            self.ended.iter().cloned().chain(self.passes.values().map(Pass::status)).collect();
        self.statuses.send_if_modified(|shown| {
            let is_new = **shown != statuses;
            if is_new {
                *shown = Arc::new(statuses);
            }
            is_new
        });
    }
}
