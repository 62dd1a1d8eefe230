//! Reads one replication connection until it ends: frames in, blocks out.

use std::{sync::Arc, time::Duration};

use tidegate_feed::{FeedItem, Publish};
use tidegate_model::{Block, Clock, Kind, Lsn, Relation, TableName, TransactionId};
use tidegate_postgres::{
    Frame, Session, WalReader,
    pgoutput::{Decoder, Message},
};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    CaptureError,
    assembler::{Assembler, ConfirmPoint, Step},
    emitter::Ended,
    link::Link,
    resolve::Resolver,
    snapshot::{Begun, Covers, Decoded, Order, Stage},
    status::State,
    table::Followed,
    undeliverable::Stuck,
};

/// Progress of an idle source is stored this often; each is an fsync.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Or when this much WAL has gone by.
const PROGRESS_BYTES: u64 = 16 << 20;
/// Between two questions where the server's WAL ends.
const ASK: Duration = Duration::from_millis(10);
/// How long a block may gather in a backlog.
const GATHER: Duration = Duration::from_millis(2);

/// The reading side of a capture during one connection.
pub(crate) struct Streaming<'a, P> {
    pub(crate) assembler: &'a mut Assembler,
    pub(crate) decoder: Decoder,
    pub(crate) publish: &'a mut P,
    pub(crate) resolver: &'a mut Resolver,
    pub(crate) session: &'a Session,
    pub(crate) link: Arc<Link>,
    pub(crate) clock: Arc<dyn Clock>,
    /// What goes on beside reading: answering, observing. Its end is noticed between reads only: a transaction that is being
    /// handed over is finished first, since it counts as received.
    pub(crate) beside: JoinSet<CaptureError>,
    pub(crate) stop: CancellationToken,
    pub(crate) last_transaction: &'a mut Option<TransactionId>,
    /// A transaction at which capture has stopped; it streams only when it has got past it.
    pub(crate) stuck: &'a mut Option<Stuck>,
    pub(crate) snapshots: &'a mut Stage,
    pub(crate) orders: &'a mut mpsc::Receiver<Order>,
    /// Told that a table's definition may have changed.
    pub(crate) altered: &'a Notify,
    /// A chunk waits for its watermark: when the server is asked again where its WAL ends.
    pub(crate) ask_at: Option<Instant>,
    /// The newest point whose block has not been published yet.
    pub(crate) point: Option<ConfirmPoint>,
    pub(crate) last_progress: Option<Instant>,
    /// In a backlog: when what has gathered is handed over even if no block is full.
    pub(crate) gather_until: Option<Instant>,
    /// The connection is for what comes again up to here, and ends there.
    pub(crate) proves_to: Option<Lsn>,
}

/// The capture is to stop: not an error, but it ends what is under way.
struct Stopped;

/// Why a step ended early.
enum Interrupt {
    Stopped,
    Failed(CaptureError),
}

impl From<Stopped> for Interrupt {
    fn from(_: Stopped) -> Self {
        Interrupt::Stopped
    }
}

impl<E: Into<CaptureError>> From<E> for Interrupt {
    fn from(error: E) -> Self {
        Interrupt::Failed(error.into())
    }
}

impl<P: Publish> Streaming<'_, P> {
    /// Reads until told to stop.
    ///
    /// # Errors
    /// The connection broke, or what it sent cannot be used.
    pub(crate) async fn run(&mut self, mut reader: WalReader) -> Result<(), CaptureError> {
        loop {
            match self.read(&mut reader).await {
                Ok(()) => {}
                Err(Interrupt::Stopped) => return Ok(()),
                Err(Interrupt::Failed(error)) => return Err(error),
            }
        }
    }

    async fn read(&mut self, reader: &mut WalReader) -> Result<(), Interrupt> {
        let stop = self.stop.clone();
        let (gather_until, ask_at) = (self.gather_until, self.ask_at);
        let takes_orders = self.snapshots.takes_orders(self.assembler.received());
        let frames = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Interrupt::Stopped),
            Some(ended) = self.beside.join_next() => {
                return Err(ended.unwrap_or(CaptureError::Protocol("a task of the capture has died")).into());
            }
            Some(order) = self.orders.recv(), if takes_orders => return self.order(order).await,
            frames = reader.read() => frames?,
            () = async { tokio::time::sleep_until(gather_until.expect("only polled when set")).await },
                if gather_until.is_some() => return self.hand_over_rest().await,
            () = async { tokio::time::sleep_until(ask_at.expect("only polled when set")).await }, if ask_at.is_some() => {
                self.ask_at = None;
                self.ask_for_watermark();
                return Ok(());
            }
        };
        let mut heard = Lsn::ZERO;
        for frame in frames {
            match frame {
                Frame::XLogData { server_lsn, data, .. } => {
                    heard = heard.max(server_lsn);
                    self.message(data).await?;
                }
                Frame::Keepalive { server_lsn, reply_requested } => {
                    heard = heard.max(server_lsn);
                    self.passes(server_lsn)?;
                    self.keepalive(server_lsn)?;
                    if reply_requested {
                        self.link.answer_now.notify_one();
                    }
                }
            }
        }
        self.link.heard(heard, &*self.clock);
        self.assembler.spill()?;
        self.snapshots.observed(|| self.link.take_polled());
        self.ask_for_watermark();
        // In a backlog, whoever receives a block is better served by a full one.
        if !reader.in_backlog() || self.gather_until.is_some_and(|until| until <= Instant::now()) {
            return self.hand_over_rest().await;
        }
        self.gather_until.get_or_insert_with(|| Instant::now() + GATHER);
        Ok(())
    }

    /// Hands over what is there, full or not.
    async fn hand_over_rest(&mut self) -> Result<(), Interrupt> {
        self.gather_until = None;
        while let Some(block) = self.assembler.take() {
            self.hand_over(block).await?;
        }
        Ok(())
    }

    async fn message(&mut self, data: &[u8]) -> Result<(), Interrupt> {
        let message = self.decoder.decode(data)?;
        if let Message::Begin { final_lsn: lsn, .. }
        | Message::StreamCommit { commit_lsn: lsn, .. }
        | Message::LogicalMessage { transactional: false, message_lsn: lsn, .. } = &message
        {
            self.passes(*lsn)?;
        }
        // Chunks whose watermark comes before it pass first.
        if let Message::Commit { commit_end_lsn, .. } | Message::StreamCommit { commit_end_lsn, .. } = &message {
            self.snapshots.before_transaction(*commit_end_lsn, self.assembler);
        } else if let Message::LogicalMessage { transactional: false, message_lsn, .. } = &message {
            self.snapshots.passed(*message_lsn, self.assembler);
        }
        match self.assembler.handle(message)? {
            Step::Done => Ok(()),
            Step::Resolve(relation) => self.relation(&relation).await,
            Step::Emitted(point) => {
                self.point = Some(point);
                self.snapshots.passed(point.position.lsn, self.assembler);
                self.hand_over_full().await
            }
            Step::Again(decoded, mut parts) => {
                let (xid, commit_end_lsn) = (decoded.xid, decoded.commit_end_lsn);
                self.link.decoded(decoded);
                while self.snapshots.wants(commit_end_lsn)
                    && let Some(part) = parts.next().map_err(CaptureError::Spool)?
                {
                    self.snapshots.part(xid, commit_end_lsn, &part);
                }
                self.snapshots.passed(commit_end_lsn, self.assembler);
                Ok(())
            }
            Step::Emit(ended, point) => self.emit(*ended, point).await,
        }
    }

    /// What comes next stands there, or behind it. Ends a connection that is for what comes before.
    fn passes(&self, lsn: Lsn) -> Result<(), Interrupt> {
        let is_over =
            |end_lsn: &Lsn| lsn >= *end_lsn && !self.assembler.expects() && self.assembler.is_between_transactions();
        self.proves_to.filter(is_over).map_or(Ok(()), |end_lsn| Err(CaptureError::Proved(end_lsn).into()))
    }

    async fn emit(&mut self, mut ended: Ended, point: ConfirmPoint) -> Result<(), Interrupt> {
        // Noted first: nothing of it may be confirmed before it is known to be visible.
        self.link.decoded(Decoded {
            commit_lsn: point.confirm_lsn,
            commit_end_lsn: ended.commit_end_lsn,
            xid: ended.xid,
            tables: std::mem::take(&mut ended.tables),
        });
        let (xid, commit_end_lsn) = (ended.xid, ended.commit_end_lsn);
        if ended.announces_ddl {
            let source = &self.resolver.source;
            tracing::info!(%source, xid, %commit_end_lsn, "a schema change is announced");
            self.altered.notify_one();
        }
        while self.assembler.emit_part(&mut ended, |part| self.snapshots.part(xid, commit_end_lsn, part))? {
            self.hand_over_full().await?;
        }
        if ended.begun {
            self.point = Some(point);
            *self.last_transaction = Some(TransactionId {
                commit_end_lsn: ended.commit_end_lsn,
                xid: ended.xid,
                commit_time_us: ended.commit_time_us,
            });
        }
        self.snapshots.passed(commit_end_lsn, self.assembler);
        self.hand_over_full().await
    }

    /// A table is described whose rows follow.
    async fn relation(&mut self, relation: &Relation) -> Result<(), Interrupt> {
        self.altered.notify_one();
        let whole = self.assembler.whole_xid();
        let followed = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Interrupt::Stopped),
            followed = self.resolver.resolve(self.session, relation, whole) => followed?,
        };
        if let Followed::Yes(table) = &followed {
            self.snapshots.set_row_type(table);
        }
        self.assembler.set_relation(relation.oid, followed);
        Ok(())
    }

    /// Asks where the server's WAL ends, as long as a chunk waits for it to be passed: an idle server does not say so by itself.
    fn ask_for_watermark(&mut self) {
        if self.snapshots.is_waiting() && self.ask_at.is_none() {
            self.link.ask();
            self.ask_at = Some(Instant::now() + ASK);
        }
    }

    /// Carries out what the coordinator of snapshots orders. Whoever wants to know what came of it may have gone.
    async fn order(&mut self, order: Order) -> Result<(), Interrupt> {
        match order {
            // It was planned in an epoch that has ended since, and with it the snapshot.
            Order::Begin { epoch, .. } if !self.snapshots.is_of(epoch) => {}
            Order::Begin { snapshot, label, tables, covers, reply, .. } => {
                self.assembler.label_snapshot(snapshot, label);
                let stop = self.stop.clone();
                let begun = tokio::select! {
                    biased;
                    () = stop.cancelled() => return Err(Interrupt::Stopped),
                    begun = self.begin_snapshot(snapshot, tables, covers) => begun,
                };
                reply.send(begun).ok();
            }
            Order::StartRead { snapshot, table_oid, anew, reply } => {
                reply.send(self.snapshots.start_read(snapshot, table_oid, anew)).ok();
            }
            Order::AbandonRead { read } => self.snapshots.abandon_read(read),
            Order::Chunk { read, chunk, ticket } => self.snapshots.chunk(read, *chunk, ticket, self.assembler),
            Order::Finish { snapshot, table_oid, reply } => {
                reply.send(self.snapshots.finish(snapshot, table_oid, self.assembler)).ok();
            }
            Order::End { snapshot, abandoned, reply } => {
                reply.send(self.snapshots.end(snapshot, &abandoned, self.assembler)).ok();
            }
        }
        self.ask_for_watermark();
        self.hand_over_rest().await
    }

    async fn begin_snapshot(
        &mut self,
        snapshot: u32,
        tables: Vec<(TableName, Relation)>,
        covers: Vec<Covers>,
    ) -> Result<Begun, CaptureError> {
        let mut codecs = Vec::with_capacity(tables.len());
        for (_, relation) in &tables {
            let codec = match self.resolver.resolve(self.session, relation, None).await? {
                Followed::Yes(codec) => Some(codec),
                Followed::No => None,
            };
            if let Some(codec) = &codec {
                self.assembler.describe(codec);
                self.snapshots.set_row_type(codec);
            }
            codecs.push(codec);
        }
        let received = self.assembler.received();
        let followed: Option<Vec<_>> = codecs.iter().cloned().collect();
        let beside = codecs.iter().flatten().zip(&tables).find_map(|(codec, (name, _))| {
            let other = self.snapshots.readers(codec.table_oid).find(|other| self.is_beside(snapshot, *other))?;
            codec.key.is_empty().then(|| (name.clone(), other))
        });
        let after = match (self.snapshots.after(snapshot)?, followed) {
            (None, _) if beside.is_some() => return Ok(Begun { after: received, codecs, beside }),
            (Some(after), _) => {
                self.snapshots.planned_again(snapshot, &codecs)?;
                after
            }
            // Nothing begins: whoever asked finds the table that is not followed.
            (None, None) => received,
            (None, Some(followed)) => {
                let names = tables.into_iter().map(|(name, _)| name);
                let tables = names.zip(followed).zip(covers).map(|((name, codec), covers)| (name, codec, covers));
                let tables: Vec<_> = tables.collect();
                let link = Arc::clone(&self.link);
                let begun = self.snapshots.begin(snapshot, &tables, |oid| link.writers(oid), self.assembler);
                begun.unwrap_or(received)
            }
        };
        Ok(Begun { after, codecs, beside: None })
    }

    /// Are there subscriptions that receive both snapshots?
    fn is_beside(&self, snapshot: u32, other: u32) -> bool {
        snapshot != other && (self.assembler.is_for_others(snapshot) || self.assembler.is_for_others(other))
    }

    fn keepalive(&mut self, server_lsn: Lsn) -> Result<(), Interrupt> {
        if self.assembler.is_between_transactions() {
            self.snapshots.passed(server_lsn, self.assembler);
        }
        let recent = self.last_progress.is_some_and(|at| at.elapsed() < PROGRESS_INTERVAL);
        if recent && server_lsn.bytes_since(self.assembler.received().lsn) < PROGRESS_BYTES {
            return Ok(());
        }
        if let Some(point) = self.assembler.progress(server_lsn)? {
            self.point = Some(point);
            self.last_progress = Some(Instant::now());
        }
        Ok(())
    }

    async fn hand_over_full(&mut self) -> Result<(), Interrupt> {
        while let Some(block) = self.assembler.take_full() {
            self.hand_over(block).await?;
        }
        Ok(())
    }

    /// Waits while the store is behind; the answering side goes on meanwhile.
    async fn hand_over(&mut self, block: Block) -> Result<(), Interrupt> {
        let event_count = block.entries().iter().filter(|entry| entry.kind == Kind::Change).count() as u64;
        let point = self.point.take();
        let received_lsn = self.assembler.received().lsn;
        if self.stuck.take_if(|stuck| received_lsn > stuck.at.commit_lsn).is_some() {
            self.link.update(|status| {
                status.state = State::Streaming;
                status.detail.clear();
            });
        }
        // Registered first: the store may be done before `publish` returns.
        self.link.published(point, received_lsn, event_count);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Stopped.into()),
            published = self.publish.publish(FeedItem::Block(block)) => Ok(published?),
        }
    }
}
