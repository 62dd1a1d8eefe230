//! The owner of a capture: connects, decides on the epoch, streams, and connects again.
//!
//! Invariant: an epoch is published before its first block; within an epoch, what one connection received is where the next
//! one goes on.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use tidegate_control::Control;
use tidegate_feed::{FeedItem, Publish};
use tidegate_model::{Clock, Delivered, Epoch, EpochInfo, Lsn, Position, Retry, TableName, TransactionId};
use tidegate_postgres::{
    PublicationContent, ReplicationConnection, ReplicationError, Session, StreamOptions, SystemIdentity,
    TimelineSwitch, partition_trees, pgoutput::Decoder, protocol_version, snapshot::table_plan,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    CaptureConfig, CaptureError, CaptureStatus, Discontinuity, NewTables, OnDiscontinuity, Resume, State,
    StoredSnapshot, Undeliverable,
    answer::answer,
    assembler::{Assembler, SpoolConfig},
    continuity::{Facts, Past, prove, usable_slot},
    joining::Joining,
    link::Link,
    numbers::Numbers,
    observe::observe,
    partitions::{Beginning, PartitionWatch, Record},
    prepare,
    promises::{Promised, Promises},
    publisher::Publisher,
    resolve::Resolver,
    snapshot::{
        Context, Coordinator, Covers, Label, Order, SnapshotRequests, SnapshotResume, Stage, StreamSide, coordinator,
        decode_cursor,
    },
    stream::Streaming,
    table::Followed,
    undeliverable::Stuck,
};

/// How long to wait before an error that nobody can retry is tried again all the same: someone may have mended it.
const HOPELESS: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(1);
/// Chunks and other orders that wait for the stream; each chunk is some megabytes.
const ORDERS_MAX: usize = 4;

/// Captures one source.
pub struct Capture<P> {
    config: CaptureConfig,
    promises: Promises,
    resolver: Resolver,
    publish: P,
    clock: Arc<dyn Clock>,
    link: Arc<Link>,
    partitions: Arc<PartitionWatch>,
    assembler: Assembler,
    epoch: Option<EpochInfo>,
    last_transaction: Option<TransactionId>,
    /// What had been delivered before we started.
    delivered: Delivered,
    /// The next connection starts a new epoch, because of this.
    broken: Option<Discontinuity>,
    /// The slot was made after all that may have written to a table before it was published.
    slot_is_new: bool,
    snapshots: Stage,
    orders: mpsc::Receiver<Order>,
    /// The current epoch, for the coordinator of snapshots, and whether there is a connection.
    current_epoch: watch::Sender<Option<Epoch>>,
    connected: watch::Sender<bool>,
    coordinator: Option<Coordinator>,
    requests: SnapshotRequests,
    /// Unfinished snapshots that the changelog had at the start, until they are taken up again.
    interrupted: BTreeMap<u32, SnapshotResume>,
    /// A transaction that cannot be delivered, at which the source is to stop.
    stuck: Option<Stuck>,
    /// The next connection reads transactions whole, to learn which one cannot be delivered.
    read_whole: bool,
}

impl<P: Publish> Capture<P> {
    /// A capture that goes on from `resume`, or starts a first epoch.
    pub fn new(
        config: CaptureConfig,
        control: Control,
        publish: P,
        mut resume: Option<Resume>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let row_types = resume.as_mut().map(|resume| std::mem::take(&mut resume.row_types)).unwrap_or_default();
        let spool = SpoolConfig { dir: config.spool_dir.clone(), memory_budget_bytes: config.memory_budget_bytes };
        let status = watch::Sender::new(CaptureStatus::default());
        let past = resume.as_ref();
        let interrupted = past.map(|resume| interrupted(&resume.snapshots)).unwrap_or_default();
        let over = past.map(|resume| resume.ended_snapshots.clone()).unwrap_or_default();
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let current_epoch = watch::Sender::new(past.map(|resume| resume.epoch.epoch));
        let promised = watch::Sender::new(Promised::default());
        let partitions = Arc::new(PartitionWatch::new());
        let context = Context {
            source: config.source.clone(),
            connect: config.connect.clone(),
            publication: config.publication.clone(),
            control: control.clone(),
            clock: clock.clone(),
            config: config.snapshots,
            status: status.subscribe(),
            promised: promised.subscribe(),
            partitions: Arc::clone(&partitions),
            durable: publish.durable(),
        };
        let connected = watch::Sender::new(false);
        let stream = StreamSide { orders, epoch: current_epoch.subscribe(), connected: connected.subscribe() };
        let (requests, coordinator) = coordinator(context, stream, (interrupted.clone(), over));
        Capture {
            resolver: Resolver {
                source: config.source.clone(),
                tables: config.tables.clone(),
                control: control.clone(),
                numbers: Numbers::new(row_types),
                asked: HashMap::new(),
            },
            link: Arc::new(Link::new(status)),
            partitions,
            assembler: Assembler::new(past.map_or(Position::ZERO, |resume| resume.durable), spool),
            epoch: past.map(|resume| resume.epoch),
            last_transaction: past.and_then(|resume| resume.last_transaction),
            delivered: past.map_or(Delivered::Stored, |resume| resume.delivered),
            broken: None,
            slot_is_new: false,
            promises: Promises {
                control,
                source: config.source.clone(),
                publication: config.publication.clone(),
                promised,
                mirror: config.mirror.clone(),
            },
            snapshots: Stage::new(past.map(|resume| resume.epoch.epoch)),
            orders: ordered,
            current_epoch,
            connected,
            coordinator: Some(coordinator),
            requests,
            interrupted,
            stuck: None,
            read_whole: false,
            config,
            publish,
            clock,
        }
    }

    /// How it is doing, from now on.
    pub fn status(&self) -> watch::Receiver<CaptureStatus> {
        self.link.subscribe()
    }

    /// Asks for snapshots, from now on.
    pub fn snapshots(&self) -> SnapshotRequests {
        self.requests.clone()
    }

    /// Captures until told to stop; connects again by itself.
    ///
    /// # Errors
    /// The store has ended, or a transaction was handed over in part: only a restart can go on.
    ///
    /// # Panics
    /// Where the coordinator of snapshots does.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), CaptureError> {
        // It ends with this function, whichever way.
        let mut coordinating = JoinSet::new();
        if let Some(coordinator) = self.coordinator.take() {
            coordinating.spawn(coordinator.run(stop.clone()));
        }
        let coordinated = async {
            while let Some(ended) = coordinating.join_next().await {
                if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
                    std::panic::resume_unwind(panic);
                }
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            captured = self.capture(stop) => captured,
            never = coordinated => match never {},
        }
    }

    async fn capture(&mut self, stop: CancellationToken) -> Result<(), CaptureError> {
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                prepared = self.prepare() => match prepared {
                    Ok(connection) => self.stream(connection, &stop).await,
                    Err(error) => Err(error),
                },
            };
            self.connected.send_if_modified(std::mem::take);
            let Err(error) = ended else { return Ok(()) };
            if error.is_fatal() {
                self.link.update(|status| (status.state, status.detail) = (State::Stopped, error.to_string()));
                return Err(error);
            }
            let pause = self.after(error);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// What an error means for the next connection, and how long to wait for it.
    fn after(&mut self, error: CaptureError) -> Duration {
        let error = match error {
            CaptureError::Replication(ReplicationError::PublicationMissing { .. }) => {
                Discontinuity::PublicationRecreated { publication: self.config.publication.clone() }.into()
            }
            error => error,
        };
        self.partitions.ended(if let CaptureError::Proved(end_lsn) = &error { Some(*end_lsn) } else { None });
        if matches!(error, CaptureError::PartitionsChanged | CaptureError::Proved(_)) {
            info!(source = %self.config.source, "{error}");
            return Duration::ZERO;
        }
        let retry = error.retry();
        let mut detail = error.to_string();
        let (state, pause) = match (retry, error, self.config.on_discontinuity) {
            (Retry::Reset, CaptureError::Discontinuity(reason), OnDiscontinuity::Reset) => {
                self.broken = Some(reason);
                (State::Connecting, Duration::ZERO)
            }
            (Retry::Reset, CaptureError::Discontinuity(Discontinuity::Undeliverable(at)), OnDiscontinuity::Stop) => {
                let stuck = Stuck::failed(self.stuck.take(), at);
                detail = stuck.advice();
                self.stuck = Some(stuck);
                (State::Stopped, HOPELESS)
            }
            (Retry::After(pause), _, _) => (State::Connecting, pause),
            // A slot that is lost or gone: the next attempt says so in full.
            (Retry::Reset, CaptureError::Replication(_), _) => (State::Connecting, SOON),
            (Retry::Reset | Retry::Never, _, _) => (State::Stopped, HOPELESS),
        };
        if state == State::Stopped && self.stuck.as_ref().is_some_and(Stuck::again) {
            info!(source = %self.config.source, error = detail, "capture still waits at the same transaction");
        } else {
            warn!(source = %self.config.source, error = detail, ?state, "capture interrupted");
        }
        self.link.update(|status| {
            status.state = state;
            status.detail = detail;
            status.error_count += 1;
        });
        pause
    }

    /// Connects, and settles which epoch what comes belongs to.
    #[tracing::instrument(level = "debug", name = "connect", skip_all, fields(source = %self.config.source))]
    async fn prepare(&mut self) -> Result<Connection, CaptureError> {
        let session = Session::connect(&self.config.connect).await?;
        let server_version = prepare::check_settings(&session).await?;
        let published = prepare::ensure_publication(&session, &self.config).await?;
        let mut replication = ReplicationConnection::connect(&self.config.connect).await?;
        let identity = replication.identify_system().await?;
        let expected = match self.continuity(&session, &mut replication, &identity, &published).await {
            Ok(expected) => expected,
            Err(CaptureError::Discontinuity(reason)) if self.epoch.is_none() => {
                // The first start: there is nothing to continue, only a slot to make.
                self.start_epoch(&session, &mut replication, &identity, Some(reason)).await?;
                None
            }
            Err(error) => return Err(error),
        };
        self.promises.connected(&published, self.slot_is_new).await?;
        self.slot_is_new = false;
        self.restore_snapshots(&session).await?;
        self.resolver.connected();
        self.snapshots.connected(identity.flush_lsn);
        let known_end_lsn = match (self.last_transaction, self.epoch) {
            (Some(last), _) => last.commit_end_lsn,
            (None, Some(epoch)) => epoch.start_lsn,
            (None, None) => Lsn::ZERO,
        };
        let slot = prepare::usable_status(&session, &self.config).await?;
        let confirmed_flush_lsn = usable_slot(&self.config.slot, slot.as_ref())?;
        let trees = partition_trees(&session, &self.config.publication).await?;
        let record = Record {
            control: &self.resolver.control,
            source: &self.config.source,
            epoch: self.epoch.map(|epoch| epoch.epoch),
            received_lsn: self.assembler.received().lsn,
        };
        let beginning = self.partitions.begin(&record, trees, (confirmed_flush_lsn, expected)).await?;
        self.assembler.connected(beginning.expected, known_end_lsn);
        let epoch = self.epoch.map(|epoch| epoch.epoch);
        self.link.confirmations(|confirmations| confirmations.connected(epoch, confirmed_flush_lsn));
        self.link.update(|status| {
            status.server_version = server_version;
            status.confirmed_flush_lsn = confirmed_flush_lsn;
            status.retained_wal_bytes = slot.map_or(0, |slot| slot.retained_wal_bytes);
        });
        Ok(Connection { session, replication, published, beginning })
    }

    /// What must come again before anything new; a new epoch is started where the last connection ended in a break.
    async fn continuity(
        &mut self,
        session: &Session,
        replication: &mut ReplicationConnection,
        identity: &SystemIdentity,
        published: &PublicationContent,
    ) -> Result<Option<TransactionId>, CaptureError> {
        let skipped = match self.broken.take() {
            Some(Discontinuity::Undeliverable(skipped)) => Some(skipped),
            Some(reason) => {
                self.start_epoch(session, replication, identity, Some(reason)).await?;
                return Ok(None);
            }
            None => None,
        };
        let slot = prepare::usable_status(session, &self.config).await?;
        let Some(epoch) = self.epoch else {
            let start_lsn = usable_slot(&self.config.slot, slot.as_ref())?;
            self.publish_epoch(identity, start_lsn, None).await?;
            return Ok(None);
        };
        self.promises.compare(session, published).await?;
        let history = self.history(replication, identity, &epoch).await?;
        let past = Past {
            epoch,
            received: self.assembler.received(),
            delivered: self.delivered,
            last_transaction: self.last_transaction,
        };
        let facts = Facts { identity, slot_name: &self.config.slot, slot: slot.as_ref(), history: &history };
        let continues = prove(&past, &facts)?;
        // Another server's WAL may have been longer.
        self.link.update(|status| status.server_lsn = identity.flush_lsn);
        if continues.timeline != epoch.timeline {
            let moved = EpochInfo { timeline: continues.timeline, ..epoch };
            info!(source = %self.config.source, timeline = moved.timeline, "the epoch goes on on another timeline");
            self.epoch = Some(moved);
            self.publish.publish(FeedItem::Timeline(moved)).await?;
        }
        if self.delivered == Delivered::Unknown {
            // Whatever had been delivered, this server's disk held it before: it sends it again.
            self.delivered = Delivered::UpTo(identity.flush_lsn);
            self.publish.publish(FeedItem::DeliveredUpTo(identity.flush_lsn)).await?;
        }
        let Some(skipped) = skipped else { return Ok(continues.expected) };
        self.skip(identity, skipped).await?;
        Ok(None)
    }

    /// Starts a new epoch, out of the same slot, behind a transaction that is left out. Continuity up to it has been proved.
    async fn skip(&mut self, identity: &SystemIdentity, skipped: Undeliverable) -> Result<(), CaptureError> {
        let (start_lsn, flush_lsn) = (skipped.next_start_lsn(), identity.flush_lsn);
        if flush_lsn < start_lsn {
            return Err(Discontinuity::ServerBehind { flush_lsn, received_lsn: start_lsn }.into());
        }
        warn!(source = %self.config.source, xid = skipped.xid, commit_lsn = %skipped.commit_lsn, "a transaction is left out");
        self.publish_epoch(identity, start_lsn, Some(skipped.into())).await
    }

    /// Takes up the snapshots that were interrupted by a restart: their tables are followed before anything is received.
    async fn restore_snapshots(&mut self, session: &Session) -> Result<(), CaptureError> {
        while let Some((&snapshot, resume)) = self.interrupted.first_key_value() {
            let resume = resume.clone();
            let jobs = self.resolver.control.snapshots(&self.config.source).await?;
            let job = jobs.into_iter().find(|job| job.snapshot == snapshot);
            if let Some(job) = &job {
                let begin = Some(resume.begin);
                self.assembler.label_snapshot(snapshot, Label { begin, ..Label::of(job) });
            }
            let job = job.filter(|job| !job.state.has_ended());
            let (names, parts) = job.map(|job| (job.tables, job.parts)).unwrap_or_default();
            // All are known before one is followed: an attempt that fails is made again.
            let mut codecs = Vec::with_capacity(names.len());
            for name in &names {
                codecs.push(self.restored(session, snapshot, name).await?);
            }
            for (name, codec) in names.iter().zip(codecs) {
                match codec {
                    Followed::Yes(codec) => {
                        self.assembler.describe(&codec);
                        let table = resume.tables.iter().find(|table| table.name == *name);
                        let covers = Covers::of(parts.get(name));
                        self.snapshots.restore(snapshot, resume.begin, (name, &codec, covers), table);
                    }
                    Followed::No => self.snapshots.not_restored(snapshot, &resume),
                }
            }
            if names.is_empty() {
                self.snapshots.not_restored(snapshot, &resume);
            }
            self.interrupted.remove(&snapshot);
        }
        Ok(())
    }

    /// How a table is encoded of which a snapshot was interrupted.
    async fn restored(&mut self, session: &Session, snapshot: u32, name: &TableName) -> Result<Followed, CaptureError> {
        match table_plan(session, &self.config.publication, name).await {
            Ok(plan) => self.resolver.resolve(session, &plan.relation, None).await,
            Err(error) if matches!(error.retry(), Retry::After(_)) => Err(error.into()),
            Err(error) => {
                warn!(source = %self.config.source, snapshot, %error, "a snapshot cannot be taken up again");
                Ok(Followed::No)
            }
        }
    }

    async fn history(
        &self,
        replication: &mut ReplicationConnection,
        identity: &SystemIdentity,
        epoch: &EpochInfo,
    ) -> Result<Vec<TimelineSwitch>, CaptureError> {
        if identity.timeline == epoch.timeline || identity.system_identifier != epoch.system_identifier {
            return Ok(Vec::new());
        }
        Ok(replication.timeline_history(identity.timeline).await?)
    }

    /// Makes a new slot and starts a new epoch there.
    async fn start_epoch(
        &mut self,
        session: &Session,
        replication: &mut ReplicationConnection,
        identity: &SystemIdentity,
        reason: Option<Discontinuity>,
    ) -> Result<(), CaptureError> {
        let start_lsn = match prepare::recreate_slot(session, replication, &self.config).await {
            Ok(start_lsn) => start_lsn,
            Err(error) => {
                self.broken = reason;
                return Err(error);
            }
        };
        self.slot_is_new = true;
        self.publish_epoch(identity, start_lsn, reason).await
    }

    async fn publish_epoch(
        &mut self,
        identity: &SystemIdentity,
        start_lsn: Lsn,
        reason: Option<Discontinuity>,
    ) -> Result<(), CaptureError> {
        // What the last connection has received is the old epoch's.
        while let Some(block) = self.assembler.take() {
            self.publish.publish(FeedItem::Block(block)).await?;
        }
        // At the first start nothing is discontinued.
        let reason = reason.filter(|_| self.epoch.is_some()).map(|reason| reason.to_string().into());
        let epoch = EpochInfo {
            epoch: Epoch(rand::random()),
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            start_lsn,
        };
        info!(source = %self.config.source, epoch = %epoch.epoch, %start_lsn, "a new epoch starts");
        self.epoch = Some(epoch);
        self.last_transaction = None;
        self.delivered = Delivered::Stored;
        self.assembler.start_epoch(Position::end_of_transaction(start_lsn));
        self.link.start_epoch(epoch.epoch, start_lsn);
        self.snapshots.start_epoch(epoch.epoch);
        self.interrupted.clear();
        self.current_epoch.send_replace(Some(epoch.epoch));
        self.link.update(|status| (status.received_lsn, status.server_lsn) = (start_lsn, start_lsn));
        self.publish.publish(FeedItem::Epoch(epoch, reason)).await?;
        Ok(())
    }

    async fn stream(&mut self, connection: Connection, stop: &CancellationToken) -> Result<(), CaptureError> {
        let Connection { session, replication, published, beginning } = connection;
        let in_progress = self.stuck.is_none() && !std::mem::take(&mut self.read_whole);
        let decoder = Decoder::new(protocol_version(replication.server_version()));
        let options = StreamOptions {
            slot: self.config.slot.clone(),
            publication: self.config.publication.clone(),
            // The slot may stand at a transaction that this epoch leaves out, or before a change of partitions.
            start_lsn: self.epoch.map_or(Lsn::ZERO, |epoch| epoch.start_lsn).max(beginning.start_lsn),
            in_progress,
        };
        let (reader, writer) = replication.start(&options).await?;
        let now_us = self.clock.now_us();
        let is_stuck = self.stuck.is_some();
        self.link.update(|status| {
            if !is_stuck {
                status.state = State::Streaming;
                status.detail.clear();
            }
            status.last_heard_us = now_us;
        });
        self.connected.send_replace(true);
        drop(self.link.take_polled());
        info!(source = %self.config.source, slot = self.config.slot, "streaming");
        // Nobody may have looked meanwhile.
        self.config.mirror.altered.notify_one();
        let session = Arc::new(session);
        let mut beside = JoinSet::new();
        beside.spawn(answer(writer, self.link.clone(), self.publish.durable(), self.clock.clone()));
        beside.spawn(observe(session.clone(), self.config.slot.clone(), self.link.clone()));
        let joining = Joining {
            connect: self.config.connect.clone(),
            link: self.link.clone(),
            slot: self.config.slot.clone(),
            partitions: Arc::clone(&self.partitions),
            promises: self.promises.clone(),
            publisher: Publisher::new(&self.config),
            requests: self.requests.clone(),
            tables: self.config.tables.clone(),
            epoch: self.epoch.map_or(Epoch(0), |epoch| epoch.epoch),
            reads: self.config.new_tables != NewTables::Follow,
            seen: published,
        };
        beside.spawn(joining.run());
        let mut streaming = Streaming {
            assembler: &mut self.assembler,
            decoder,
            publish: &mut self.publish,
            resolver: &mut self.resolver,
            session: &session,
            link: self.link.clone(),
            clock: self.clock.clone(),
            beside,
            stop: stop.clone(),
            last_transaction: &mut self.last_transaction,
            stuck: &mut self.stuck,
            point: None,
            last_progress: None,
            gather_until: None,
            snapshots: &mut self.snapshots,
            orders: &mut self.orders,
            altered: &self.config.mirror.altered,
            ask_at: None,
            proves_to: beginning.proves_to,
        };
        streaming.run(reader).await.map_err(|error| self.named(error, in_progress))
    }

    /// An error about a row becomes one about its transaction, which the next connection can leave out.
    fn named(&mut self, error: CaptureError, in_progress: bool) -> CaptureError {
        if !error.is_about_a_row() {
            return error;
        }
        match self.assembler.undeliverable(error.to_string()) {
            Some(undeliverable) => Discontinuity::from(undeliverable).into(),
            None if in_progress => {
                self.read_whole = true;
                CaptureError::Unnamed(Box::new(error))
            }
            None => error,
        }
    }
}

/// What the changelog has of unfinished snapshots, in capture's words; a damaged cursor means that the table begins anew.
fn interrupted(stored: &BTreeMap<u32, StoredSnapshot>) -> BTreeMap<u32, SnapshotResume> {
    let resume = |stored: &StoredSnapshot| SnapshotResume {
        begin: stored.begin,
        tables: stored.cursors.iter().filter_map(decode_cursor).collect(),
    };
    stored.iter().map(|(snapshot, stored)| (*snapshot, resume(stored))).collect()
}

/// A connection that is ready to stream.
struct Connection {
    session: Session,
    replication: ReplicationConnection,
    published: PublicationContent,
    beginning: Beginning,
}
