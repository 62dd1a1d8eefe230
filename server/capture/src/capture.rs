//! The owner of a capture: connects, decides on the epoch, streams, and connects again.
//!
//! Invariant: an epoch is published before its first block; within an epoch, what one connection received is where the next
//! one goes on.

use std::{sync::Arc, time::Duration};

use tidegate_control::Control;
use tidegate_feed::{FeedItem, Publish};
use tidegate_model::{Clock, Epoch, EpochInfo, Lsn, Position, Retry, TransactionId};
use tidegate_postgres::{
    ReplicationConnection, ReplicationError, Session, StreamOptions, SystemIdentity, TimelineSwitch, pgoutput::Decoder,
    protocol_version,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    CaptureConfig, CaptureError, CaptureStatus, Discontinuity, OnDiscontinuity, Resume, State,
    answer::answer,
    assembler::{Assembler, SpoolConfig},
    continuity::{Facts, Past, prove, usable_slot},
    link::Link,
    observe::observe,
    prepare,
    resolve::Resolver,
    stream::Streaming,
};

/// How long to wait before an error that nobody can retry is tried again all the same: someone may have mended it.
const HOPELESS: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(1);

/// Captures one source.
pub struct Capture<P> {
    config: CaptureConfig,
    control: Control,
    resolver: Resolver,
    publish: P,
    clock: Arc<dyn Clock>,
    link: Arc<Link>,
    assembler: Assembler,
    epoch: Option<EpochInfo>,
    last_transaction: Option<TransactionId>,
    /// The next connection starts a new epoch, because of this.
    broken: Option<Discontinuity>,
}

impl<P: Publish> Capture<P> {
    /// A capture that goes on from `resume`, or starts a first epoch.
    pub fn new(
        config: CaptureConfig,
        control: Control,
        publish: P,
        resume: Option<Resume>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let spool = SpoolConfig { dir: config.spool_dir.clone(), memory_budget_bytes: config.memory_budget_bytes };
        let status = watch::Sender::new(CaptureStatus::default());
        Capture {
            resolver: Resolver {
                source: config.source.clone(),
                tables: config.tables.clone(),
                control: control.clone(),
            },
            link: Arc::new(Link::new(status)),
            assembler: Assembler::new(resume.map_or(Position::ZERO, |resume| resume.durable), spool),
            epoch: resume.map(|resume| resume.epoch),
            last_transaction: resume.and_then(|resume| resume.last_transaction),
            broken: None,
            config,
            control,
            publish,
            clock,
        }
    }

    /// How it is doing, from now on.
    pub fn status(&self) -> watch::Receiver<CaptureStatus> {
        self.link.subscribe()
    }

    /// Captures until told to stop; connects again by itself.
    ///
    /// # Errors
    /// The store has ended, or a transaction was handed over in part: only a restart can go on.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), CaptureError> {
        while !stop.is_cancelled() {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                prepared = self.prepare() => match prepared {
                    Ok(connection) => self.stream(connection, &stop).await,
                    Err(error) => Err(error),
                },
            };
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
        let retry = error.retry();
        let detail = error.to_string();
        let (state, pause) = match (retry, error, self.config.on_discontinuity) {
            (Retry::Reset, CaptureError::Discontinuity(reason), OnDiscontinuity::Reset) => {
                self.broken = Some(reason);
                (State::Connecting, Duration::ZERO)
            }
            (Retry::After(pause), _, _) => (State::Connecting, pause),
            // A slot that is lost or gone: the next attempt says so in full.
            (Retry::Reset, CaptureError::Replication(_), _) => (State::Connecting, SOON),
            (Retry::Reset | Retry::Never, _, _) => (State::Stopped, HOPELESS),
        };
        warn!(source = %self.config.source, error = detail, ?state, "capture interrupted");
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
        let publication_oid = prepare::ensure_publication(&session, &self.config).await?;
        let mut replication = ReplicationConnection::connect(&self.config.connect).await?;
        let identity = replication.identify_system().await?;
        let expected = match self.continuity(&session, &mut replication, &identity, publication_oid).await {
            Ok(expected) => expected,
            Err(CaptureError::Discontinuity(reason)) if self.epoch.is_none() => {
                // The first start: there is nothing to continue, only a slot to make.
                self.start_epoch(&session, &mut replication, &identity, Some(reason)).await?;
                None
            }
            Err(error) => return Err(error),
        };
        self.control.set_publication_oid(&self.config.source, publication_oid).await?;
        let known_end_lsn = match (self.last_transaction, self.epoch) {
            (Some(last), _) => last.commit_end_lsn,
            (None, Some(epoch)) => epoch.start_lsn,
            (None, None) => Lsn::ZERO,
        };
        self.assembler.connected(expected, known_end_lsn);
        let slot = prepare::usable_status(&session, &self.config).await?;
        let confirmed_flush_lsn = usable_slot(&self.config.slot, slot.as_ref())?;
        let epoch = self.epoch.map(|epoch| epoch.epoch);
        self.link.confirmations(|confirmations| confirmations.connected(epoch, confirmed_flush_lsn));
        self.link.update(|status| {
            status.server_version = server_version;
            status.confirmed_flush_lsn = confirmed_flush_lsn;
            status.retained_wal_bytes = slot.map_or(0, |slot| slot.retained_wal_bytes);
        });
        Ok(Connection { session, replication })
    }

    /// What must come again before anything new; a new epoch is started where the last connection ended in a break.
    async fn continuity(
        &mut self,
        session: &Session,
        replication: &mut ReplicationConnection,
        identity: &SystemIdentity,
        publication_oid: u32,
    ) -> Result<Option<TransactionId>, CaptureError> {
        if let Some(reason) = self.broken.take() {
            self.start_epoch(session, replication, identity, Some(reason)).await?;
            return Ok(None);
        }
        let slot = prepare::usable_status(session, &self.config).await?;
        let Some(epoch) = self.epoch else {
            let start_lsn = usable_slot(&self.config.slot, slot.as_ref())?;
            self.publish_epoch(identity, start_lsn).await?;
            return Ok(None);
        };
        let known = self.control.publication_oid(&self.config.source).await?;
        // Unknown is as bad as another: the control database was lost, and with it the proof.
        if known != Some(publication_oid) {
            let publication = self.config.publication.clone();
            return Err(Discontinuity::PublicationRecreated { publication }.into());
        }
        let history = self.history(replication, identity, &epoch).await?;
        let past = Past { epoch, received: self.assembler.received(), last_transaction: self.last_transaction };
        let facts = Facts { identity, slot_name: &self.config.slot, slot: slot.as_ref(), history: &history };
        let continues = prove(&past, &facts)?;
        if continues.timeline != epoch.timeline {
            let moved = EpochInfo { timeline: continues.timeline, ..epoch };
            info!(source = %self.config.source, timeline = moved.timeline, "the epoch goes on on another timeline");
            self.epoch = Some(moved);
            self.publish.publish(FeedItem::Timeline(moved)).await?;
        }
        Ok(continues.expected)
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
        self.publish_epoch(identity, start_lsn).await
    }

    async fn publish_epoch(&mut self, identity: &SystemIdentity, start_lsn: Lsn) -> Result<(), CaptureError> {
        let epoch = EpochInfo {
            epoch: Epoch(rand::random()),
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            start_lsn,
        };
        info!(source = %self.config.source, epoch = %epoch.epoch, %start_lsn, "a new epoch starts");
        self.epoch = Some(epoch);
        self.last_transaction = None;
        self.assembler.start_epoch(Position::end_of_transaction(start_lsn));
        self.link.confirmations(|confirmations| confirmations.start_epoch(epoch.epoch, start_lsn));
        self.link.update(|status| (status.received_lsn, status.server_lsn) = (start_lsn, start_lsn));
        self.publish.publish(FeedItem::Epoch(epoch)).await?;
        Ok(())
    }

    async fn stream(&mut self, connection: Connection, stop: &CancellationToken) -> Result<(), CaptureError> {
        let Connection { session, replication } = connection;
        let decoder = Decoder::new(protocol_version(replication.server_version()));
        let options = StreamOptions {
            slot: self.config.slot.clone(),
            publication: self.config.publication.clone(),
            start_lsn: Lsn::ZERO,
        };
        let (reader, writer) = replication.start(&options).await?;
        let now_us = self.clock.now_us();
        self.link.update(|status| {
            status.state = State::Streaming;
            status.detail.clear();
            status.last_heard_us = now_us;
        });
        info!(source = %self.config.source, slot = self.config.slot, "streaming");
        let session = Arc::new(session);
        let mut beside = JoinSet::new();
        beside.spawn(answer(writer, self.link.clone(), self.publish.durable(), self.clock.clone()));
        beside.spawn(observe(session.clone(), self.config.slot.clone(), self.link.clone()));
        let mut streaming = Streaming {
            assembler: &mut self.assembler,
            decoder,
            publish: &mut self.publish,
            resolver: &self.resolver,
            session: &session,
            link: self.link.clone(),
            clock: self.clock.clone(),
            beside,
            stop: stop.clone(),
            last_transaction: &mut self.last_transaction,
            point: None,
            last_progress: None,
            gather_until: None,
        };
        streaming.run(reader).await
    }
}

/// A connection that is ready to stream.
struct Connection {
    session: Session,
    replication: ReplicationConnection,
}
