//! `Changes.Watch`: one selection for people and scripts, every change a response of its own with its rows as `Any`.
//!
//! Invariants: a response stays under about 1 MiB, well below gRPC's usual limit of 4 MiB, by leaving out values and naming
//! their columns; a token stands on the last change of a transaction only, for which one change is held back until
//! the next or the commit is seen. It deliberately has no credit: the connection's own flow control holds it.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tidegate_model::{Block, Entry, Kind, Position, Token, TokenPrefix};
use tidegate_proto::v1::{self, selection::What, watch_response::Mark};
use tidegate_schema::event_body;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    entering::{Entered, Entering},
    incoming::{Given, Incoming, Interrupted},
    metrics::{OpenSession, OpenSubscription},
    named_shapes::NamedInUse,
    opening::{Opened, Opening, refusal, renewed},
    progress::progress,
    readable::ReadableChange,
    redefinition::{Prepared, Turning, prepared},
    reset::{Refusal, abandoned},
    selection::{Deliver, Plan, Routing, corrects_reads},
    sets::Kept,
    shape::{
        change::WholeChange,
        route::{ShapeRoute, Verdict},
    },
    shared::Shared,
    snapshot_marks::{SnapshotMark, receives_begun, snapshot_mark},
    source::Source,
    status::GatewayError,
    time::microseconds,
};

/// One call.
pub(crate) struct Watching {
    shared: Arc<Shared>,
    /// It is not open yet.
    entering: Option<Box<Entering>>,
    /// None when the end is in the queue, and before it is open.
    live: Option<Box<Live>>,
    queue: VecDeque<Result<v1::WatchResponse, Status>>,
    next_progress: Instant,
    drain_announced: bool,
    _counted: OpenSession,
}

/// What has not ended.
struct Live {
    source: Arc<Source>,
    plan: Arc<Plan>,
    incoming: Incoming,
    prefix: TokenPrefix,
    /// From the next commit on.
    next_prefix: Option<TokenPrefix>,
    after: Position,
    position: Position,
    commit_time_us: Option<i64>,
    /// The block at hand, and its next entry.
    block: Option<(Block, usize)>,
    begin: v1::Begin,
    /// Where it stands.
    begun: Position,
    kept: Kept,
    /// Of a change that a shape is to be told of.
    pieces: Vec<Bytes>,
    /// The change that is being put together.
    change: Option<ReadableChange>,
    /// The last change, until it is known whether another follows in its transaction.
    held: Option<v1::WatchResponse>,
    announced: HashSet<u32>,
    named: NamedInUse,
    _counted: OpenSubscription,
}

impl Watching {
    /// Opens it. What can be continued only by starting over is told within the stream.
    pub(crate) async fn open(shared: Arc<Shared>, request: v1::WatchRequest) -> Result<Self, Status> {
        let failed = |error: GatewayError| {
            shared.metrics.error(error.reason());
            error.to_tonic()
        };
        if shared.drain.begun() {
            return Err(failed(GatewayError::Draining));
        }
        let v1::WatchRequest { source, tables, start, snapshots, shape } = request;
        let what = match (tables, shape) {
            (tables, None) => What::Tables(tables.unwrap_or_default()),
            (None, Some(shape)) => What::Shape(shape),
            (Some(_), Some(_)) => return Err(failed(GatewayError::TwoSelections)),
        };
        let opening = Opening {
            source,
            selections: vec![what],
            start,
            snapshots,
            shares_progress: false,
            takes_differences: true,
            held: None,
        };
        let entered = Box::new(Entering::new(opening, Arc::clone(&shared))).next().await;
        let mut watching = Watching {
            entering: None,
            live: None,
            queue: VecDeque::new(),
            next_progress: Instant::now(),
            drain_announced: false,
            _counted: OpenSession::new(&shared.metrics),
            shared: Arc::clone(&shared),
        };
        match entered {
            Entered::Refused(Refusal::Error(error)) => return Err(failed(error)),
            entered => watching.entered(entered),
        }
        Ok(watching)
    }

    fn entered(&mut self, entered: Entered) {
        match entered {
            Entered::Open(opened) => self.live = Some(Box::new(Live::new(*opened))),
            Entered::Waits(entering, told) => {
                self.entering = Some(entering);
                self.queue.push_back(Ok(mark(Mark::Preparing(told))));
            }
            Entered::Refused(refused) => self.end(refused),
        }
    }

    /// The next response; None when the call has ended.
    pub(crate) async fn next(&mut self) -> Option<Result<v1::WatchResponse, Status>> {
        loop {
            if let Some(response) = self.queue.pop_front() {
                return Some(response);
            }
            if let Some(entering) = self.entering.take() {
                let entered = tokio::select! {
                    entered = entering.next() => entered,
                    () = self.shared.drain.wait() => Entered::Refused(Refusal::Error(GatewayError::Draining)),
                };
                self.entered(entered);
                continue;
            }
            self.live.as_ref()?;
            // A long run of blocks in which nothing matches must not keep other calls waiting.
            tokio::task::coop::consume_budget().await;
            self.keep_time();
            let Some(live) = &mut self.live else { continue };
            if live.block.is_some() {
                if let Err(refused) = live.advance(&mut self.queue)
                    && let Err(refused) = live.renew(refused).await
                {
                    self.end(refused);
                }
            } else if live.is_to_turn() {
                if let Err(refused) = live.turn(Arc::clone(&self.shared)).await {
                    self.end(refused);
                }
            } else if self.queue.is_empty() {
                self.wait().await;
            }
        }
    }

    /// Waits for a block, or for the clock.
    async fn wait(&mut self) {
        let Some(live) = &mut self.live else { return };
        let drain = &self.shared.drain;
        let wake = if self.drain_announced { self.next_progress.min(drain.deadline()) } else { self.next_progress };
        let read: Option<Result<Given, Interrupted>> = tokio::select! {
            read = live.incoming.next() => Some(read),
            () = tokio::time::sleep_until(wake) => None,
            () = drain.wait(), if !self.drain_announced => None,
        };
        match read {
            Some(Ok(given)) => live.given(given),
            Some(Err(error)) => {
                let refused = refusal(error, live.position, &live.source);
                self.end(refused);
            }
            None => {}
        }
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        let drain = &self.shared.drain;
        if drain.begun() {
            if !self.drain_announced {
                self.drain_announced = true;
                self.queue.push_back(Ok(mark(Mark::Drain(drain.message()))));
            } else if now >= drain.deadline() {
                return self.end(Refusal::Error(GatewayError::Draining));
            }
        }
        if now >= self.next_progress
            && let Some(live) = &mut self.live
        {
            self.next_progress = now + self.shared.config.progress_interval;
            live.named.look();
            live.named.remind();
            if let Some(gone) = live.named.gone() {
                return self.end(gone);
            }
            let progress = progress(&live.source, &*self.shared.clock, live.position, live.commit_time_us);
            let token = live.token(live.position);
            self.queue.push_back(Ok(v1::WatchResponse { token, ..mark(Mark::Progress(progress)) }));
        }
    }

    fn end(&mut self, refused: Refusal) {
        self.live = None;
        let error = match refused {
            Refusal::Error(error) => error,
            Refusal::Reset(reset) => {
                let detail = reset.detail.clone();
                self.queue.push_back(Ok(mark(Mark::Reset(reset))));
                GatewayError::Reset { detail }
            }
        };
        self.shared.metrics.error(error.reason());
        self.queue.push_back(Err(error.to_tonic()));
    }
}

impl Live {
    fn new(opened: Opened) -> Self {
        Live {
            source: opened.source,
            plan: opened.plan,
            incoming: opened.incoming,
            prefix: opened.prefix,
            next_prefix: None,
            after: opened.after.as_resume_point(),
            position: opened.after,
            commit_time_us: None,
            block: None,
            begin: v1::Begin::default(),
            begun: Position::ZERO,
            kept: opened.kept,
            pieces: Vec::new(),
            change: None,
            held: None,
            announced: HashSet::new(),
            named: opened.named,
            _counted: opened.counted,
        }
    }

    fn token(&self, position: Position) -> String {
        Token { prefix: self.prefix, position }.to_string()
    }

    /// Is it time to see what an edit of its named shape is to it? Once.
    fn is_to_turn(&mut self) -> bool {
        self.incoming.is_plain() && self.named.take_due()
    }

    /// Goes on to what the shape is now.
    async fn turn(&mut self, shared: Arc<Shared>) -> Result<(), Refusal> {
        let (source, plan) = (Arc::clone(&self.source), Arc::clone(&self.plan));
        match prepared(shared, source, plan, self.named.clone()).await? {
            Prepared::Same(named) => self.named = named,
            Prepared::Later => {}
            Prepared::Difference(to) => {
                let is_within = self.begun > self.position;
                if let Some(turning) = Turning::new(to, &self.source, (self.position, is_within)) {
                    self.incoming.turn(turning);
                }
            }
        }
        Ok(())
    }

    /// Something has come: with the first part of a difference, it goes on with the plan behind that.
    fn given(&mut self, given: Given) {
        let block = match given {
            Given::Block(block) => block,
            Given::Turned(turned) => {
                self.plan = Arc::clone(&turned.to.plan);
                self.next_prefix = Some(turned.to.prefix);
                self.named = turned.to.named.clone();
                self.announced.clear();
                turned.note.routed.block.clone()
            }
        };
        self.block = Some((block, 0));
    }

    /// Goes through the block until there is a response, or it is through.
    fn advance(&mut self, queue: &mut VecDeque<Result<v1::WatchResponse, Status>>) -> Result<(), Refusal> {
        let Some((block, mut at)) = self.block.take() else { return Ok(()) };
        let mut advanced = Ok(());
        while queue.is_empty() {
            let Some(entry) = block.entries().get(at) else { return Ok(()) };
            if entry.position() > self.after {
                advanced = self.entry(&block, entry, queue);
                if advanced.is_err() {
                    break;
                }
            }
            at += 1;
        }
        self.block = Some((block, at));
        advanced
    }

    /// Makes the shape of what the catalog says now, where that may help; else it is refused.
    async fn renew(&mut self, refused: Refusal) -> Result<(), Refusal> {
        match &refused {
            Refusal::Error(GatewayError::ShapeFailed(failure)) if failure.is_of_old_facts() => {
                self.plan = renewed(&self.source, &self.plan).await?.ok_or(refused)?;
                Ok(())
            }
            Refusal::Error(_) | Refusal::Reset(_) => Err(refused),
        }
    }

    fn entry(
        &mut self,
        block: &Block,
        entry: &Entry,
        queue: &mut VecDeque<Result<v1::WatchResponse, Status>>,
    ) -> Result<(), Refusal> {
        match entry.kind {
            Kind::RowType | Kind::SnapshotCursor => {}
            Kind::SnapshotBegin | Kind::SnapshotEnd => {
                self.position = entry.position();
                let what = match snapshot_mark(&self.plan, entry, &block.slice(entry))? {
                    None => return Ok(()),
                    Some(SnapshotMark::Begin(begin)) => Mark::SnapshotBegin(begin),
                    Some(SnapshotMark::End(end)) => Mark::SnapshotEnd(end),
                    Some(SnapshotMark::Abandoned(end)) => return Err(Refusal::Reset(abandoned(&end))),
                };
                let token = self.token(self.position);
                queue.push_back(Ok(v1::WatchResponse { token, ..mark(what) }));
            }
            Kind::Begin => {
                let field = block.slice(entry);
                let body = event_body(&field).map_err(|_| damaged(entry))?;
                self.begin = v1::Begin::decode(body).map_err(|_| damaged(entry))?;
                self.begun = entry.position();
            }
            Kind::Change => self.change(block, entry, queue)?,
            Kind::Commit => {
                self.moved(entry, queue)?;
                if self.begin.snapshot == 0 {
                    self.commit_time_us = self.begin.commit_time.as_ref().map(microseconds);
                }
                self.position = entry.position();
                self.prefix = self.next_prefix.take().unwrap_or(self.prefix);
                if let Some(mut last) = self.held.take() {
                    last.token = self.token(entry.position());
                    queue.push_back(Ok(last));
                }
            }
            Kind::Progress => self.position = entry.position(),
        }
        Ok(())
    }

    /// Is the chunk received that has begun before this entry of it? None in a transaction.
    fn chunk(&self, entry: &Entry) -> Option<bool> {
        (self.begin.snapshot != 0).then(|| receives_begun(&self.plan, entry, &self.begin))
    }

    fn change(
        &mut self,
        block: &Block,
        entry: &Entry,
        queue: &mut VecDeque<Result<v1::WatchResponse, Status>>,
    ) -> Result<(), Refusal> {
        let routing = self.plan.routing(entry.row_type, &self.source.handle.store)?;
        if !self.plan.wants(0, entry.op, self.chunk(entry), &routing) {
            return Ok(());
        }
        let pieces = match &routing.deliver[0] {
            Deliver::Skip => return Ok(()),
            Deliver::Whole | Deliver::Columns(_) => vec![block.slice(entry)],
            // A difference has been judged, and has the columns that are delivered.
            Deliver::Shape(_) if self.next_prefix.is_some() => vec![block.slice(entry)],
            Deliver::Shape(route) => self.judged(route, block.slice(entry), entry)?,
        };
        if pieces.is_empty() {
            return Ok(());
        }
        let is_cut = entry.continues;
        self.tell(pieces, (entry, entry.row_type, is_cut), &routing, queue)
    }

    /// What moves into the shape and out of it where a transaction ends, for nothing but its subqueries.
    fn moved(
        &mut self,
        commit: &Entry,
        queue: &mut VecDeque<Result<v1::WatchResponse, Status>>,
    ) -> Result<(), Refusal> {
        for (_, record) in self.kept.records(commit.position())? {
            for change in record.changes(commit.ordinal) {
                let routing = self.plan.routing(change.row_type, &self.source.handle.store)?;
                let pieces = written(&change, commit)?;
                self.tell(pieces, (commit, change.row_type, false), &routing, queue)?;
            }
        }
        Ok(())
    }

    /// A change, or with the next pieces a part of one.
    fn tell(
        &mut self,
        pieces: Vec<Bytes>,
        (entry, row_type, is_cut): (&Entry, u32, bool),
        routing: &Routing,
        queue: &mut VecDeque<Result<v1::WatchResponse, Status>>,
    ) -> Result<(), Refusal> {
        let mut change = self.change.take().unwrap_or_else(|| ReadableChange::new(routing.row_type.clone()));
        for piece in pieces {
            change.push(piece, routing.deliver[0].fields()).map_err(|_| damaged(entry))?;
        }
        if is_cut {
            self.change = Some(change);
            return Ok(());
        }
        let mut response = change.finish().map_err(|_| damaged(entry))?;
        response.position = entry.position().to_string();
        response.commit_time = self.begin.commit_time;
        response.xid = self.begin.xid;
        self.source.metrics.sent(1, response.encoded_len() as u64);
        queue.extend(self.held.take().map(Ok));
        if row_type != 0 && self.announced.insert(row_type) {
            let announcement = v1::RowType::decode(routing.announcements[0].clone()).map_err(|_| damaged(entry))?;
            // The descriptor is served by reflection; here it would only hide the rest.
            let announcement = v1::RowType { file: Bytes::new(), ..announcement };
            queue.push_back(Ok(mark(Mark::RowType(announcement))));
        }
        self.held = Some(response);
        Ok(())
    }

    /// What a shape is told of a change, once that is whole; nothing before.
    fn judged(&mut self, route: &ShapeRoute, piece: Bytes, entry: &Entry) -> Result<Vec<Bytes>, Refusal> {
        self.pieces.push(piece);
        if entry.continues {
            return Ok(Vec::new());
        }
        let mut pieces = std::mem::take(&mut self.pieces);
        let change = WholeChange::read(entry.op, entry.row_type, &pieces).map_err(|_| damaged(entry))?;
        let verdict = self.kept.judge((0, route), &change, (self.begun, entry.position()))?;
        let only_leaves = corrects_reads(entry.op, self.chunk(entry));
        let rewritten = match if only_leaves { verdict.map(Verdict::leaving) } else { verdict } {
            Ok(Verdict::Nothing) => return Ok(Vec::new()),
            Ok(Verdict::AsItCame) => return Ok(pieces),
            Ok(Verdict::Rewritten(change)) => change,
            Err(failure) => {
                // The entry may come again.
                pieces.pop();
                self.pieces = pieces;
                return Err(failure.into());
            }
        };
        Ok(written(&rewritten, entry)?)
    }
}

/// In pieces.
fn written(change: &WholeChange<'_>, entry: &Entry) -> Result<Vec<Bytes>, GatewayError> {
    let mut out = BytesMut::new();
    let ranges = change.write(None, &mut out).map_err(|_| damaged(entry))?;
    let out = out.freeze();
    Ok(ranges.into_iter().map(|(range, _)| out.slice(range)).collect())
}

fn mark(mark: Mark) -> v1::WatchResponse {
    v1::WatchResponse { mark: Some(mark), ..v1::WatchResponse::default() }
}

fn damaged(entry: &Entry) -> GatewayError {
    GatewayError::Damaged { at: entry.position().to_string() }
}
