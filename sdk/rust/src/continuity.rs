//! What each message, and each loss of the connection, means for the order that the program sees.
//!
//! ```text
//!            Opened             Begin                 Commit
//! Opening ───────────▶ Between ───────▶ Within ────────────────▶ Between      every Commit and Progress moves the token
//!    ▲                    │    ─────────▶ Skipping ────────────▶ Between      a transaction that was delivered before
//!    └──── connection ────┴─ lost: what was Within is aborted ──┘
//! ```
//!
//! A message may hold many transactions or a part of one: its events are taken one by one.
//!
//! A chunk of a snapshot is like a transaction, but for its position, which its changes share: reads, or where it is of another
//! snapshot than the subscription's, what that corrects. Going on in the middle of a
//! snapshot takes nothing but the token.
//!
//! Invariant: with the changes before each Abort left out, every transaction behind the start is delivered whole, once
//! and in order, or the stream ends in an error or a Reset. The token never lies within a transaction. Pure: no I/O, no
//! clock, no randomness; `changes.rs` moves bytes and time.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tidegate_proto::v1::{self, event::What, session_response};

use crate::{
    Change, ClientError, Event, LogicalMessage, Move, OldKind, Op, Position, ResetReason, Retry, RowType, Start,
    Subscription, Token, Truncate, Violation,
};

/// The number of the only subscription on a connection.
pub(crate) const SUBSCRIPTION: u32 = 1;

/// What to do after a message.
#[derive(Debug)]
pub(crate) enum Step {
    /// Receive the next.
    Next,
    /// Leave this connection for a new one, for this reason.
    Reconnect(ClientError),
    /// Nothing more comes.
    End,
}

/// The state of a subscription over all its connections.
#[derive(Debug)]
pub(crate) struct Continuity {
    subscription: Subscription,
    /// All up to here has been delivered; None until the first Opened of a subscription without a token.
    token: Option<Token>,
    /// What this connection has stated last; ZERO when it is new.
    heard: Position,
    phase: Phase,
    /// The snapshot that it follows, once something of that has come.
    snapshot: Option<u32>,
    /// Of the chunk that has begun, and whether it comes besides the own snapshot; 0 in a transaction.
    chunk_of: (u32, bool),
    draining: bool,
    row_types: HashMap<(u32, u32), Arc<RowType>>,
    /// The row type of the last change: neighbouring changes mostly share it.
    recent: Option<((u32, u32), Arc<RowType>)>,
    cut: BTreeMap<u32, Cut>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Between,
    Within { begin: Position },
    Skipping { begin: Position },
}

/// A change of which parts are still to come.
#[derive(Debug)]
struct Cut {
    change: Change,
    row: BytesMut,
    old: BytesMut,
    content: BytesMut,
}

impl Continuity {
    pub(crate) fn new(subscription: Subscription) -> Self {
        let token = match subscription.start() {
            Start::Now | Start::Earliest | Start::Snapshot => None,
            Start::Token(token) => Some(token.clone()),
        };
        Continuity {
            subscription,
            token,
            heard: Position::ZERO,
            phase: Phase::Opening,
            snapshot: None,
            chunk_of: (0, false),
            draining: false,
            row_types: HashMap::new(),
            recent: None,
            cut: BTreeMap::new(),
        }
    }

    /// The request that opens the next connection.
    pub(crate) fn subscribe(&self) -> v1::Subscribe {
        match &self.token {
            Some(token) => self.subscription.to_proto(SUBSCRIPTION, &Start::Token(token.clone())),
            None => self.subscription.to_proto(SUBSCRIPTION, self.subscription.start()),
        }
    }

    /// The credit that each connection starts with.
    pub(crate) fn credit_bytes(&self) -> u64 {
        self.subscription.credit()
    }

    /// The connection is gone. Must be called before the next one is opened.
    pub(crate) fn disconnected(&mut self, out: &mut VecDeque<Event>) {
        if let Phase::Within { .. } = self.phase {
            out.push_back(Event::Abort);
        }
        self.cut.clear();
        self.draining = false;
        self.heard = Position::ZERO;
        self.phase = Phase::Opening;
    }

    /// A message has come. Its events are appended to `out`, also where it is an error.
    pub(crate) fn message(
        &mut self,
        response: v1::SessionResponse,
        out: &mut VecDeque<Event>,
    ) -> Result<Step, ClientError> {
        use session_response::Event as Message;
        let v1::SessionResponse { subscription, selection, event } = response;
        let message = event.ok_or(Violation::Unknown("SessionResponse"))?;
        let of_session = matches!(message, Message::Drain(_) | Message::Error(_));
        if subscription != SUBSCRIPTION && !(of_session && subscription == 0) {
            return Err(Violation::Subscription(subscription).into());
        }
        match message {
            Message::Opened(opened) => self.opened(opened, out)?,
            Message::Preparing(preparing) => {
                if self.phase != Phase::Opening {
                    return Err(self.unexpected("Preparing").into());
                }
                let v1::Preparing { table, rows_read, rows_estimated, detail } = preparing;
                out.push_back(Event::Preparing { table, rows_read, rows_estimated, detail });
            }
            Message::RowType(row_type) => self.row_type(selection, row_type, out)?,
            Message::Changes(batch) => return self.events(selection, batch, out),
            Message::SnapshotBegin(begin) => {
                let is_for_others = begin.new_tables || begin.ad_hoc;
                let token = self.snapshot_mark((begin.snapshot, is_for_others), &begin.position, "SnapshotBegin")?;
                let v1::SnapshotBegin { snapshot, tables, table_oids, partial, differences, .. } = begin;
                let begun = |token| Event::SnapshotBegin { snapshot, tables, table_oids, partial, differences, token };
                out.extend(token.map(begun));
            }
            Message::SnapshotEnd(end) => {
                let v1::SnapshotEnd { snapshot, position, abandoned: detail, new_tables, ad_hoc, .. } = end;
                let token = self.snapshot_mark((snapshot, new_tables || ad_hoc), &position, "SnapshotEnd")?;
                out.extend(token.map(|token| match detail.is_empty() {
                    true => Event::SnapshotEnd { snapshot, token },
                    false => Event::SnapshotAbandoned { snapshot, detail, token },
                }));
            }
            Message::Progress(progress) => self.progress(&progress, out)?,
            Message::Reset(reset) => {
                self.disconnected(out);
                let reason = ResetReason::from_proto(reset.reason());
                out.push_back(Event::Reset { reason, detail: reset.detail });
                return Ok(Step::End);
            }
            Message::Error(status) => {
                let error = ClientError::from_rpc(&status);
                return match error.retry() {
                    Retry::After(_) => Ok(Step::Reconnect(error)),
                    Retry::Never | Retry::Reset => Err(error),
                };
            }
            Message::Drain(drain) => {
                self.draining = true;
                out.push_back(Event::Drain { deadline: drain.deadline });
                return Ok(self.unless_draining());
            }
        }
        Ok(Step::Next)
    }

    fn opened(&mut self, opened: v1::Opened, out: &mut VecDeque<Event>) -> Result<(), Violation> {
        if self.phase != Phase::Opening {
            return Err(self.unexpected("Opened"));
        }
        let position = position(&opened.position)?;
        let start = match &self.token {
            Some(token) if position.as_resume_point() > token.position().as_resume_point() => {
                return Err(Violation::Gap { position, asked: token.position() });
            }
            Some(token) => token.position(),
            None => {
                self.heard = position;
                position
            }
        };
        let token = Token::new(opened.token_prefix.into(), start);
        self.token = Some(token.clone());
        self.phase = Phase::Between;
        out.push_back(Event::Opened { token, head: self::position(&opened.head)?, source: opened.source });
        Ok(())
    }

    /// A server repeats its row types on each connection; the program hears of those that are new or have changed.
    fn row_type(&mut self, selection: u32, proto: v1::RowType, out: &mut VecDeque<Event>) -> Result<(), Violation> {
        if self.phase == Phase::Opening {
            return Err(self.unexpected("RowType"));
        }
        let id = (selection, proto.row_type);
        if self.row_types.get(&id).is_some_and(|known| *known.proto() == proto) {
            return Ok(());
        }
        let row_type = Arc::new(RowType::from(proto));
        self.recent = None;
        self.row_types.insert(id, row_type.clone());
        out.push_back(Event::RowType(row_type));
        Ok(())
    }

    fn begin(&mut self, begin: v1::Begin, out: &mut VecDeque<Event>) -> Result<(), Violation> {
        let (Phase::Between, Some(token)) = (self.phase, &self.token) else { return Err(self.unexpected("Begin")) };
        let position = position(&begin.position)?;
        if self.heard != Position::ZERO && position.as_resume_point() <= self.heard.as_resume_point() {
            return Err(Violation::Order { position, after: self.heard });
        }
        if position.is_of_snapshot() != (begin.snapshot != 0) {
            return Err(Violation::Ordinal(position));
        }
        if position.as_resume_point() <= token.position().as_resume_point() {
            self.phase = Phase::Skipping { begin: position };
            return Ok(());
        }
        self.phase = Phase::Within { begin: position };
        let commit_time = begin.commit_time.unwrap_or_default();
        let v1::Begin { xid, origin, snapshot, new_tables, ad_hoc, .. } = begin;
        self.chunk_of = (snapshot, new_tables || ad_hoc);
        out.push_back(Event::Begin { position, commit_time, xid, origin, snapshot });
        Ok(())
    }

    /// The token at a snapshot's mark; None where it was delivered before.
    fn snapshot_mark(
        &mut self,
        snapshot: (u32, bool),
        position: &str,
        mark: &'static str,
    ) -> Result<Option<Token>, Violation> {
        let (Phase::Between, Some(token)) = (self.phase, &self.token) else { return Err(self.unexpected(mark)) };
        let position = self::position(position)?;
        if self.heard != Position::ZERO && position.as_resume_point() <= self.heard.as_resume_point() {
            return Err(Violation::Order { position, after: self.heard });
        }
        if !position.is_of_snapshot() {
            return Err(Violation::Ordinal(position));
        }
        let delivered = position <= token.position().as_resume_point();
        self.heard = position;
        if delivered {
            return Ok(None);
        }
        self.follow(snapshot)?;
        self.advance(position).map(Some)
    }

    /// A subscription has one snapshot at most, besides those of new tables and those that someone starts.
    fn follow(&mut self, (snapshot, is_beside): (u32, bool)) -> Result<(), Violation> {
        if snapshot != 0 && !is_beside && *self.snapshot.get_or_insert(snapshot) != snapshot {
            return Err(Violation::Snapshot(snapshot));
        }
        Ok(())
    }

    /// What is left of a batch when the connection is to be left comes again.
    fn events(
        &mut self,
        selection: u32,
        batch: v1::ChangeBatch,
        out: &mut VecDeque<Event>,
    ) -> Result<Step, ClientError> {
        out.reserve(batch.events.len());
        for event in batch.events {
            match event.what.ok_or(Violation::Unknown("Event"))? {
                What::Begin(begin) => self.begin(begin, out)?,
                What::Change(part) => self.part(selection, part, out)?,
                What::Commit(commit) => {
                    if let leave @ Step::Reconnect(_) = self.commit(&commit, out)? {
                        return Ok(leave);
                    }
                }
            }
        }
        Ok(Step::Next)
    }

    /// A change, or a part of one.
    fn part(&mut self, selection: u32, mut part: v1::Change, out: &mut VecDeque<Event>) -> Result<(), ClientError> {
        let begin = match self.phase {
            Phase::Within { begin } => begin,
            Phase::Skipping { .. } => return Ok(()),
            Phase::Opening | Phase::Between => return Err(self.unexpected("a change").into()),
        };
        let continues = part.continues;
        // The pieces of a change come one after the other, those of each selection that has it.
        if self.cut.values().any(|cut| cut.change.position.ordinal != part.ordinal) {
            return Err(Violation::Unexpected { message: "a change", state: "within another" }.into());
        }
        let change = match self.cut.remove(&selection) {
            None if !continues => self.change(begin, selection, part)?,
            None => {
                let (row, old) = (std::mem::take(&mut part.row), std::mem::take(&mut part.old));
                let content = part.message.as_mut().map(|message| std::mem::take(&mut message.content));
                let change = self.change(begin, selection, part)?;
                let (row, old, content) = (row.into(), old.into(), content.unwrap_or_default().into());
                self.cut.insert(selection, Cut { change, row, old, content });
                return Ok(());
            }
            Some(mut cut) => {
                cut.append(part, self.subscription.row_limit())?;
                if continues {
                    self.cut.insert(selection, cut);
                    return Ok(());
                }
                cut.whole()
            }
        };
        out.push_back(Event::Change(change));
        Ok(())
    }

    fn change(&mut self, begin: Position, selection: u32, change: v1::Change) -> Result<Change, Violation> {
        let op = v1::change::Op::try_from(change.op).ok().and_then(Op::from_proto);
        let op = op.ok_or(Violation::Unknown("Op"))?;
        let position = Position { lsn: begin.lsn, ordinal: change.ordinal };
        // What a chunk has beside reads: of a table with a key, what the snapshot has found to be otherwise; of one without, what
        // voids its rows, and changes that count nevertheless.
        let known = self.row_types.get(&(selection, change.row_type));
        let counts = begin.is_of_snapshot() && op != Op::Read && known.is_some_and(|known| known.is_keyless());
        let fits = match begin.is_of_snapshot() {
            true => position == begin && (op != Op::Truncate || counts),
            false => op != Op::Read,
        };
        if !fits {
            return Err(Violation::Ordinal(position));
        }
        if op == Op::Read || counts {
            self.follow(self.chunk_of)?;
        }
        let old_kind = v1::change::OldKind::try_from(change.old_kind).map_err(|_| Violation::Unknown("OldKind"))?;
        let moved = v1::change::Move::try_from(change.r#move).map_err(|_| Violation::Unknown("Move"))?;
        let moved = Move::from_proto(moved);
        let row_type = match change.row_type {
            0 => None,
            id => Some(self.known(selection, id)?),
        };
        let message = change.message.map(|message| LogicalMessage {
            prefix: message.prefix,
            content: message.content,
            transactional: message.transactional,
        });
        let truncate = change.truncate.map(|t| Truncate { cascade: t.cascade, restart_identity: t.restart_identity });
        Ok(Change {
            position,
            op,
            selection,
            row_type,
            row: change.row,
            old: change.old,
            old_kind: old_kind_of(old_kind),
            unchanged: change.unchanged,
            moved,
            message,
            truncate,
        })
    }

    fn known(&mut self, selection: u32, id: u32) -> Result<Arc<RowType>, Violation> {
        match &self.recent {
            Some((key, row_type)) if *key == (selection, id) => Ok(row_type.clone()),
            Some(_) | None => {
                let row_type = self.row_types.get(&(selection, id)).ok_or(Violation::RowType(id))?.clone();
                self.recent = Some(((selection, id), row_type.clone()));
                Ok(row_type)
            }
        }
    }

    fn commit(&mut self, commit: &v1::Commit, out: &mut VecDeque<Event>) -> Result<Step, ClientError> {
        let position = position(&commit.position)?;
        let (begin, seen) = match self.phase {
            Phase::Within { begin } if self.cut.is_empty() => (begin, true),
            Phase::Skipping { begin } => (begin, false),
            Phase::Opening | Phase::Between | Phase::Within { .. } => return Err(self.unexpected("Commit").into()),
        };
        if !begin.may_end_at(position) {
            return Err(Violation::Order { position, after: begin }.into());
        }
        self.heard = position;
        self.phase = Phase::Between;
        if seen {
            if let (Some(token), false) = (&mut self.token, commit.token_prefix.is_empty()) {
                *token = Token::new(commit.token_prefix.as_str().into(), token.position());
            }
            out.push_back(Event::Commit { token: self.advance(position)? });
        }
        Ok(self.unless_draining())
    }

    fn progress(&mut self, progress: &v1::Progress, out: &mut VecDeque<Event>) -> Result<(), Violation> {
        let position = position(&progress.position)?;
        match self.phase {
            Phase::Opening => return Err(self.unexpected("Progress")),
            Phase::Within { begin } | Phase::Skipping { begin }
                if position.as_resume_point() >= begin.as_resume_point() =>
            {
                return Err(Violation::Order { position, after: begin });
            }
            Phase::Between | Phase::Within { .. } | Phase::Skipping { .. } => {}
        }
        self.heard = self.heard.max(position);
        out.push_back(Event::Progress {
            token: self.advance(position)?,
            caught_up: progress.caught_up,
            lag: Duration::from_millis(progress.lag_ms),
            source_silent: Duration::from_secs(progress.source_silent_s.into()),
        });
        Ok(())
    }

    /// Moves the token, never backwards: a server that waits for its own log to come up to the token states less.
    fn advance(&mut self, position: Position) -> Result<Token, Violation> {
        let Some(token) = &mut self.token else {
            return Err(Violation::Unexpected { message: "a position", state: "before Opened" });
        };
        if position.as_resume_point() > token.position().as_resume_point() {
            token.advance(position);
        }
        Ok(token.clone())
    }

    /// A drained connection is left as soon as it is not within a transaction.
    fn unless_draining(&self) -> Step {
        match self.phase {
            Phase::Opening | Phase::Between if self.draining => Step::Reconnect(ClientError::Draining),
            Phase::Opening | Phase::Between | Phase::Within { .. } | Phase::Skipping { .. } => Step::Next,
        }
    }

    fn unexpected(&self, message: &'static str) -> Violation {
        let state = match self.phase {
            Phase::Opening => "before Opened",
            Phase::Between => "between transactions",
            Phase::Within { .. } if !self.cut.is_empty() => "within a change",
            Phase::Within { .. } | Phase::Skipping { .. } => "within a transaction",
        };
        Violation::Unexpected { message, state }
    }
}

impl Cut {
    fn append(&mut self, part: v1::Change, limit_bytes: usize) -> Result<(), ClientError> {
        self.row.extend_from_slice(&part.row);
        self.old.extend_from_slice(&part.old);
        if let Some(message) = &part.message {
            self.content.extend_from_slice(&message.content);
        }
        if part.old_kind != v1::change::OldKind::None as i32 {
            self.change.old_kind = old_kind_of(part.old_kind());
        }
        if self.change.unchanged.is_empty() {
            self.change.unchanged = part.unchanged;
        }
        if self.row.len() + self.old.len() + self.content.len() > limit_bytes {
            return Err(ClientError::RowTooLarge { position: self.change.position, limit_bytes });
        }
        Ok(())
    }

    fn whole(self) -> Change {
        let Cut { mut change, row, old, content } = self;
        (change.row, change.old) = (row.freeze(), old.freeze());
        if let Some(message) = &mut change.message {
            message.content = content.freeze();
        }
        change
    }
}

fn old_kind_of(kind: v1::change::OldKind) -> OldKind {
    match kind {
        v1::change::OldKind::None => OldKind::None,
        v1::change::OldKind::Key => OldKind::Key,
        v1::change::OldKind::Full => OldKind::Full,
    }
}

fn position(text: &str) -> Result<Position, Violation> {
    text.parse().map_err(|cause| Violation::Position { text: text.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::{orders, row};
    use bytes::Bytes;
    use proptest::prelude::*;
    use session_response::Event as Message;

    const PREFIX: &str = "1-ab-0-cd";

    fn response(event: Message) -> v1::SessionResponse {
        v1::SessionResponse { subscription: SUBSCRIPTION, selection: 0, event: Some(event) }
    }

    fn opened(position: &str) -> Message {
        Message::Opened(v1::Opened {
            token_prefix: PREFIX.into(),
            position: position.into(),
            head: "9/0:1".into(),
            source: "shop".into(),
        })
    }

    fn batch(whats: impl IntoIterator<Item = What>) -> Message {
        let events = whats.into_iter().map(|what| v1::Event { what: Some(what) }).collect();
        Message::Changes(v1::ChangeBatch { events })
    }

    fn begin(position: &str) -> Message {
        batch([What::Begin(v1::Begin { position: position.into(), xid: 7, ..Default::default() })])
    }

    fn commit(position: &str) -> Message {
        batch([What::Commit(v1::Commit { position: position.into(), token_prefix: String::new() })])
    }

    fn progress(position: &str) -> Message {
        Message::Progress(v1::Progress { position: position.into(), ..Default::default() })
    }

    fn part(ordinal: u32, row: Bytes, continues: bool) -> v1::Change {
        let op = v1::change::Op::Insert as i32;
        v1::Change { op, row_type: 5, ordinal, row, continues, ..Default::default() }
    }

    fn insert(ordinal: u32) -> v1::Change {
        part(ordinal, row(ordinal.into(), Some("1.00")), false)
    }

    fn changes(changes: &[v1::Change]) -> Message {
        batch(changes.iter().cloned().map(What::Change))
    }

    /// Feeds messages; the events in short, and how it ended.
    fn feed(continuity: &mut Continuity, messages: Vec<Message>) -> (Vec<String>, Result<Step, ClientError>) {
        let mut out = VecDeque::new();
        let mut result = Ok(Step::Next);
        for message in messages {
            result = continuity.message(response(message), &mut out);
            if !matches!(result, Ok(Step::Next)) {
                break;
            }
        }
        (out.iter().map(short).collect(), result)
    }

    fn short(event: &Event) -> String {
        match event {
            Event::Opened { token, .. } => format!("opened {}", token.position()),
            Event::RowType(row_type) => format!("row type {}", row_type.id()),
            Event::Begin { position, .. } => format!("begin {position}"),
            Event::Change(change) => format!("{} {}", change.op, change.position),
            Event::Commit { token } => format!("commit {}", token.position()),
            Event::SnapshotBegin { token, .. } => format!("snapshot begin {}", token.position()),
            Event::SnapshotEnd { token, .. } => format!("snapshot end {}", token.position()),
            Event::SnapshotAbandoned { token, .. } => format!("snapshot abandoned {}", token.position()),
            Event::Abort => "abort".into(),
            Event::Progress { token, .. } => format!("progress {}", token.position()),
            Event::Reset { reason, .. } => format!("reset {reason:?}"),
            Event::Drain { .. } => "drain".into(),
            Event::Preparing { table, .. } => format!("preparing {table}"),
            Event::Interrupted { .. } => "interrupted".into(),
        }
    }

    fn fresh() -> Continuity {
        Continuity::new(Subscription::tables(["public.orders"]))
    }

    /// Opened at 0/1:0, with the row type known.
    fn between() -> Continuity {
        let mut continuity = fresh();
        feed(&mut continuity, vec![opened("0/1:0"), Message::RowType(orders())]).1.expect("opens");
        continuity
    }

    fn within() -> Continuity {
        let mut continuity = between();
        feed(&mut continuity, vec![begin("0/5:0"), changes(&[insert(1)])]).1.expect("begins");
        continuity
    }

    fn asked(continuity: &Continuity) -> String {
        match continuity.subscribe().start.and_then(|start| start.from).expect("always set") {
            v1::start::From::At(point) => format!("at {point}"),
            v1::start::From::Token(token) => token,
        }
    }

    fn violates(continuity: &mut Continuity, message: Message) -> Violation {
        match feed(continuity, vec![message]).1 {
            Err(ClientError::Violation(violation)) => violation,
            other => panic!("a violation was expected, not {other:?}"),
        }
    }

    #[test]
    fn a_transaction_is_delivered_and_moves_the_token() {
        let mut continuity = between();
        let messages = vec![begin("0/5:0"), changes(&[insert(1), insert(2)]), changes(&[insert(3)]), commit("0/5:3")];
        let (events, result) = feed(&mut continuity, messages);
        let expected = ["begin 0/5:0", "insert 0/5:1", "insert 0/5:2", "insert 0/5:3", "commit 0/5:3"];
        assert_eq!(events, expected);
        assert!(matches!(result, Ok(Step::Next)));
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/5:3"));
    }

    /// One message of these.
    fn joined(messages: Vec<Message>) -> Message {
        let events = messages.into_iter().flat_map(|message| match message {
            Message::Changes(batch) => batch.events,
            other => panic!("{other:?} is none of events"),
        });
        Message::Changes(v1::ChangeBatch { events: events.collect() })
    }

    #[test]
    fn a_message_may_hold_many_transactions_and_end_within_one() {
        let mut continuity = between();
        let first = vec![begin("0/5:0"), changes(&[insert(1)]), commit("0/5:1"), begin("0/6:0"), changes(&[insert(1)])];
        let rest = vec![changes(&[insert(2)]), commit("0/6:2"), begin("0/7:0"), changes(&[insert(1)]), commit("0/7:1")];
        let (events, result) = feed(&mut continuity, vec![joined(first.clone()), joined(rest.clone())]);
        assert!(matches!(result, Ok(Step::Next)));
        assert_eq!(events, feed(&mut between(), [first, rest].concat()).0);
        assert_eq!(events.len(), 10);
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/7:1"));
    }

    #[test]
    fn tokens_have_the_prefix_that_a_commit_brings_from_there_on() {
        let mut continuity = between();
        let at = "0/5:3221159936";
        let begin_of_difference =
            What::Begin(v1::Begin { position: at.into(), snapshot: 1 << 31, ..Default::default() });
        let commit_with = What::Commit(v1::Commit { position: at.into(), token_prefix: "1-ab-7-ef".into() });
        let (events, _) = feed(&mut continuity, vec![batch([begin_of_difference])]);
        assert_eq!(events, [format!("begin {at}")]);
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/1:0"));
        let (events, result) = feed(&mut continuity, vec![batch([commit_with])]);
        assert_eq!((events, result.is_ok()), (vec![format!("commit {at}")], true));
        assert_eq!(asked(&continuity), format!("1-ab-7-ef.{at}"));
        feed(&mut continuity, vec![begin("0/6:0"), commit("0/6:1")]).1.expect("a transaction");
        assert_eq!(asked(&continuity), "1-ab-7-ef.0/6:1");
    }

    #[test]
    fn a_draining_connection_is_left_at_the_first_commit_of_a_message() {
        let mut continuity = within();
        feed(&mut continuity, vec![Message::Drain(v1::Drain::default())]).1.expect("a drain");
        let (events, result) = feed(&mut continuity, vec![joined(vec![commit("0/5:1"), begin("0/6:0")])]);
        assert_eq!(events, ["commit 0/5:1"]);
        assert!(matches!(result, Ok(Step::Reconnect(ClientError::Draining))));
    }

    #[test]
    fn before_anything_is_opened_the_start_is_what_was_asked() {
        assert_eq!(asked(&fresh()), "at 0");
        let earliest = Subscription::tables(["a"]).from(Start::Earliest);
        assert_eq!(asked(&Continuity::new(earliest)), "at 1");
    }

    #[test]
    fn a_loss_before_the_first_progress_resumes_where_delivery_began() {
        let mut continuity = between();
        continuity.disconnected(&mut VecDeque::new());
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/1:0"));
    }

    #[test]
    fn a_loss_within_a_transaction_aborts_it_and_resumes_before_it() {
        let mut continuity = within();
        let mut out = VecDeque::new();
        continuity.disconnected(&mut out);
        assert_eq!(out.iter().map(short).collect::<Vec<_>>(), ["abort"]);
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/1:0"));
    }

    #[test]
    fn a_loss_between_transactions_aborts_nothing() {
        let mut out = VecDeque::new();
        between().disconnected(&mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn what_was_delivered_is_skipped_when_a_server_repeats_it() {
        let mut continuity = within();
        feed(&mut continuity, vec![commit("0/5:1")]).1.expect("commits");
        continuity.disconnected(&mut VecDeque::new());
        let repeat = vec![opened("0/1:0"), begin("0/5:0"), changes(&[insert(1)]), commit("0/5:1"), begin("0/6:0")];
        assert_eq!(feed(&mut continuity, repeat).0, ["opened 0/5:1", "begin 0/6:0"]);
    }

    #[test]
    fn a_message_at_a_transactions_end_is_not_taken_for_it() {
        let mut continuity = within();
        feed(&mut continuity, vec![commit("0/5:1")]).1.expect("commits");
        let message = vec![begin("0/5:1073741824"), commit("0/5:1073741824")];
        assert_eq!(feed(&mut continuity, message).0, ["begin 0/5:1073741824", "commit 0/5:1073741824"]);
    }

    #[test]
    fn row_types_that_are_repeated_after_a_reconnect_are_not_news() {
        let mut continuity = between();
        continuity.disconnected(&mut VecDeque::new());
        let changed = v1::RowType { table_oid: 1, ..orders() };
        let messages = vec![opened("0/1:0"), Message::RowType(orders()), Message::RowType(changed)];
        assert_eq!(feed(&mut continuity, messages).0, ["opened 0/1:0", "row type 5"]);
    }

    #[test]
    fn progress_moves_the_token_but_never_backwards() {
        let mut continuity = between();
        let (events, _) = feed(&mut continuity, vec![progress("0/9:0"), progress("0/9:0")]);
        assert_eq!(events, ["progress 0/9:0", "progress 0/9:0"]);
        continuity.disconnected(&mut VecDeque::new());
        let (events, _) = feed(&mut continuity, vec![opened("0/9:0"), progress("0/3:0")]);
        assert_eq!(events, ["opened 0/9:0", "progress 0/9:0"]);
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/9:0"));
    }

    #[test]
    fn progress_within_a_transaction_stays_before_it() {
        assert_eq!(feed(&mut within(), vec![progress("0/4:0")]).0, ["progress 0/4:0"]);
        assert!(matches!(violates(&mut within(), progress("0/5:1")), Violation::Order { .. }));
    }

    const CHUNK: &str = "0/5:2147483649";

    fn snapshot_begin(snapshot: u32, position: &str) -> Message {
        Message::SnapshotBegin(v1::SnapshotBegin {
            snapshot,
            position: position.into(),
            tables: vec!["a".into()],
            ..Default::default()
        })
    }

    fn snapshot_end(position: &str) -> Message {
        Message::SnapshotEnd(v1::SnapshotEnd { snapshot: 3, position: position.into(), ..Default::default() })
    }

    fn chunk(snapshot: u32) -> Message {
        batch([What::Begin(v1::Begin { position: CHUNK.into(), snapshot, ..Default::default() })])
    }

    fn read() -> v1::Change {
        v1::Change { op: v1::change::Op::Read as i32, ..insert((1 << 31) + 1) }
    }

    /// Opened, with a snapshot begun and one of its chunks within.
    fn within_chunk() -> Continuity {
        let mut continuity = between();
        let messages = vec![snapshot_begin(3, "0/5:2147483648"), chunk(3), changes(&[read(), read()])];
        feed(&mut continuity, messages).1.expect("a snapshot");
        continuity
    }

    #[test]
    fn only_the_rows_of_a_table_without_a_key_are_voided_by_a_chunk() {
        let truncate = v1::Change { op: v1::change::Op::Truncate as i32, row: Bytes::new(), ..read() };
        let violation = violates(&mut within_chunk(), changes(std::slice::from_ref(&truncate)));
        assert!(matches!(violation, Violation::Ordinal(_)), "{violation}");
        let mut keyless = orders();
        keyless.columns.iter_mut().for_each(|column| column.key = false);
        let chunk = [chunk(3), changes(&[truncate, insert((1 << 31) + 1), read()]), commit(CHUNK)];
        let mut continuity = between();
        let begins = vec![Message::RowType(keyless), snapshot_begin(3, "0/5:2147483648")];
        let (events, result) = feed(&mut continuity, begins.into_iter().chain(chunk).collect());
        result.expect("it counts");
        assert_eq!(events.len(), 7, "{events:?}");
    }

    #[test]
    fn a_snapshot_goes_on_in_the_middle_by_its_token() {
        let subscription = Subscription::tables(["a"]).from(Start::Snapshot);
        let mut continuity = Continuity::new(subscription);
        assert_eq!(asked(&continuity), "at 2");
        let messages = vec![
            opened("0/1:0"),
            Message::RowType(orders()),
            snapshot_begin(3, "0/5:2147483648"),
            chunk(3),
            changes(&[read(), read()]),
        ];
        let (events, _) = feed(&mut continuity, messages);
        let read_at = format!("read {CHUNK}");
        assert_eq!(events[2..], ["snapshot begin 0/5:2147483648", &format!("begin {CHUNK}"), &read_at, &read_at]);
        continuity.disconnected(&mut VecDeque::new());
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/5:2147483648"));

        // A server may repeat what was delivered.
        let again = vec![opened("0/1:0"), snapshot_begin(3, "0/5:2147483648"), chunk(3), changes(&[read()])];
        let end = vec![commit(CHUNK), snapshot_end("0/5:2147483650"), begin("0/6:0")];
        let (events, _) = feed(&mut continuity, [again, end].concat());
        let chunk = [format!("begin {CHUNK}"), read_at, format!("commit {CHUNK}")];
        assert_eq!(events[1..4], chunk);
        assert_eq!(events[4..], ["snapshot end 0/5:2147483650", "begin 0/6:0"]);
        assert_eq!(asked(&continuity), format!("{PREFIX}.0/5:2147483650"));
    }

    #[test]
    fn a_snapshot_of_new_tables_comes_amid_the_own_one() {
        let mut continuity = between();
        let new =
            |at: &str| v1::SnapshotBegin { snapshot: 4, position: at.into(), new_tables: true, ..Default::default() };
        let end = |abandoned: &str| {
            let position = "0/9:2147483648".into();
            let end = v1::SnapshotEnd {
                snapshot: 4,
                position,
                abandoned: abandoned.into(),
                new_tables: true,
                ..Default::default()
            };
            Message::SnapshotEnd(end)
        };
        let begin =
            v1::Begin { position: "0/8:2147483648".into(), snapshot: 4, new_tables: true, ..Default::default() };
        let chunk = batch([What::Begin(begin)]);
        let messages = vec![
            snapshot_begin(3, "0/5:2147483648"),
            Message::SnapshotBegin(new("0/7:2147483648")),
            chunk,
            commit("0/8:2147483648"),
            end("cancelled"),
            snapshot_end("0/9:2147483649"),
        ];
        let (events, ended) = feed(&mut continuity, messages);
        ended.expect("both");
        let expected = ["snapshot begin 0/5:2147483648", "snapshot begin 0/7:2147483648", "begin 0/8:2147483648"];
        assert!(expected.iter().all(|expected| events.contains(&(*expected).to_string())), "{events:?}");
        assert_eq!(events[events.len() - 2..], ["snapshot abandoned 0/9:2147483648", "snapshot end 0/9:2147483649"]);
    }

    #[test]
    fn what_does_not_fit_into_a_snapshot_is_a_violation() {
        assert!(matches!(violates(&mut within(), changes(&[read()])), Violation::Ordinal(_)));
        assert!(matches!(violates(&mut within_chunk(), changes(&[insert(1)])), Violation::Ordinal(_)));
        feed(&mut between(), vec![chunk(4), changes(&[insert((1 << 31) + 1)]), commit(CHUNK)])
            .1
            .expect("what another corrects");
        let elsewhere = v1::Change { ordinal: (1 << 31) + 2, ..read() };
        assert!(matches!(violates(&mut within_chunk(), changes(&[elsewhere])), Violation::Ordinal(_)));
        assert!(matches!(violates(&mut between(), chunk(0)), Violation::Ordinal(_)));
        assert!(matches!(violates(&mut between(), snapshot_begin(3, "0/5:1")), Violation::Ordinal(_)));
        assert!(matches!(violates(&mut within(), snapshot_end("0/5:2147483650")), Violation::Unexpected { .. }));
        let mut continuity = within_chunk();
        feed(&mut continuity, vec![commit(CHUNK)]).1.expect("commits");
        assert!(matches!(violates(&mut continuity, snapshot_end(CHUNK)), Violation::Order { .. }));
        assert_eq!(violates(&mut continuity, snapshot_begin(4, "0/6:2147483648")), Violation::Snapshot(4));
    }

    #[test]
    fn a_cut_change_is_put_together_over_batches() {
        let whole = row(3, Some("1234567890"));
        let mut continuity = between();
        let first = [insert(1), part(2, whole.slice(..2), true)];
        let batches = vec![begin("0/5:0"), changes(&first), changes(&[part(2, whole.slice(2..5), true)])];
        assert_eq!(feed(&mut continuity, batches).0, ["begin 0/5:0", "insert 0/5:1"]);
        let mut out = VecDeque::new();
        let last = changes(&[part(2, whole.slice(5..), false), insert(3)]);
        continuity.message(response(last), &mut out).expect("the last part");
        let Some(Event::Change(change)) = out.pop_front() else { panic!("a change") };
        assert_eq!((change.row, change.position.ordinal), (whole, 2));
        assert_eq!(out.len(), 1);
    }

    #[test]
    fn a_cut_change_of_two_selections_is_put_together_for_each() {
        let of = |selection, part: v1::Change| v1::SessionResponse { selection, ..response(changes(&[part])) };
        let row_type = |selection| v1::SessionResponse { selection, ..response(Message::RowType(orders())) };
        let whole = row(1, Some("1.00"));
        let (first, last) = (part(1, whole.slice(..2), true), part(1, whole.slice(2..), false));
        let mut continuity = between();
        let mut out = VecDeque::new();
        let messages = [
            row_type(1),
            response(begin("0/5:0")),
            of(0, first.clone()),
            of(1, first),
            of(0, last.clone()),
            of(1, last),
            response(commit("0/5:1")),
        ];
        for message in messages {
            continuity.message(message, &mut out).expect("in order");
        }
        let rows = out.iter().filter_map(|event| match event {
            Event::Change(change) => Some((change.selection, change.row.clone())),
            _other => None,
        });
        assert_eq!(rows.collect::<Vec<_>>(), [(0, whole.clone()), (1, whole)]);
    }

    #[test]
    fn a_cut_change_is_forgotten_with_its_connection() {
        let mut continuity = between();
        feed(&mut continuity, vec![begin("0/5:0"), changes(&[part(1, row(1, None), true)])]).1.expect("cut");
        continuity.disconnected(&mut VecDeque::new());
        let again = vec![opened("0/1:0"), begin("0/5:0"), changes(&[insert(1)]), commit("0/5:1")];
        let expected = ["opened 0/1:0", "begin 0/5:0", "insert 0/5:1", "commit 0/5:1"];
        assert_eq!(feed(&mut continuity, again).0, expected);
    }

    #[test]
    fn a_cut_change_ends_before_others_and_before_the_commit() {
        let cut = || {
            let mut continuity = between();
            feed(&mut continuity, vec![begin("0/5:0"), changes(&[part(1, row(1, None), true)])]).1.expect("cut");
            continuity
        };
        assert!(matches!(violates(&mut cut(), changes(&[insert(2)])), Violation::Unexpected { .. }));
        assert!(matches!(violates(&mut cut(), commit("0/5:1")), Violation::Unexpected { .. }));
    }

    #[test]
    fn a_row_over_the_limit_is_an_error_that_names_the_mend() {
        let mut continuity = Continuity::new(Subscription::tables(["a"]).row_bytes_max(10));
        let half = || part(1, Bytes::from_static(&[0; 8]), true);
        let messages = vec![opened("0/1:0"), Message::RowType(orders()), begin("0/5:0"), changes(&[half(), half()])];
        let error = feed(&mut continuity, messages).1.expect_err("too large");
        assert!(error.to_string().contains("row_bytes_max"), "{error}");
    }

    #[test]
    fn a_drain_waits_for_the_end_of_the_transaction() {
        let drain = || Message::Drain(v1::Drain::default());
        let (events, result) =
            feed(&mut within(), vec![drain(), changes(&[insert(2)]), commit("0/5:2"), begin("0/6:0")]);
        assert_eq!(events, ["drain", "insert 0/5:2", "commit 0/5:2"]);
        assert!(matches!(result, Ok(Step::Reconnect(ClientError::Draining))));
        assert!(matches!(feed(&mut between(), vec![drain()]).1, Ok(Step::Reconnect(_))));
        assert!(matches!(feed(&mut fresh(), vec![drain()]).1, Ok(Step::Reconnect(_))));
    }

    #[test]
    fn a_drain_may_be_of_the_whole_session() {
        let drain = Some(Message::Drain(v1::Drain::default()));
        let response = v1::SessionResponse { subscription: 0, selection: 0, event: drain };
        assert!(matches!(between().message(response, &mut VecDeque::new()), Ok(Step::Reconnect(_))));
    }

    #[test]
    fn a_reset_ends_the_stream_and_aborts_what_was_open() {
        let reset = v1::Reset { reason: v1::reset::Reason::EpochChanged as i32, detail: "x".into() };
        let (events, result) = feed(&mut within(), vec![Message::Reset(reset)]);
        assert_eq!(events, ["abort", "reset EpochChanged"]);
        assert!(matches!(result, Ok(Step::End)));
    }

    #[test]
    fn an_error_without_retry_info_is_final() {
        let error = tidegate_proto::rpc::Status { code: 5, message: "no table x".into(), details: Vec::new() };
        let result = feed(&mut between(), vec![Message::Error(error)]).1;
        assert!(matches!(result, Err(ClientError::Refused { .. })));
    }

    #[test]
    fn an_error_with_retry_info_is_a_reconnect() {
        let any = prost_types::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: Vec::new() };
        let error = tidegate_proto::rpc::Status { code: 14, message: "later".into(), details: vec![any] };
        let result = feed(&mut within(), vec![Message::Error(error)]).1;
        assert!(matches!(result, Ok(Step::Reconnect(ClientError::Refused { .. }))));
    }

    #[test]
    fn messages_out_of_turn_are_violations() {
        let turns: [(fn() -> Continuity, Message); 9] = [
            (fresh, begin("0/5:0")),
            (fresh, progress("0/5:0")),
            (fresh, Message::RowType(orders())),
            (fresh, commit("0/5:0")),
            (between, opened("0/1:0")),
            (between, changes(&[insert(1)])),
            (between, commit("0/5:0")),
            (within, begin("0/6:0")),
            (within, opened("0/1:0")),
        ];
        for (state, message) in turns {
            let text = format!("{message:?}");
            assert!(matches!(violates(&mut state(), message), Violation::Unexpected { .. }), "{text}");
        }
    }

    #[test]
    fn a_start_behind_the_token_would_be_a_gap() {
        let mut continuity = between();
        continuity.disconnected(&mut VecDeque::new());
        assert!(matches!(violates(&mut continuity, opened("0/2:0")), Violation::Gap { .. }));
    }

    #[test]
    fn positions_that_go_backwards_are_violations() {
        assert!(matches!(violates(&mut between(), begin("0/1:0")), Violation::Order { .. }));
        assert!(matches!(violates(&mut within(), commit("0/6:1")), Violation::Order { .. }));
        let mut continuity = within();
        feed(&mut continuity, vec![commit("0/5:1")]).1.expect("commits");
        assert!(matches!(violates(&mut continuity, begin("0/4:0")), Violation::Order { .. }));
        assert!(matches!(violates(&mut continuity, begin("0/5:0")), Violation::Order { .. }));
    }

    #[test]
    fn what_is_not_understood_is_a_violation() {
        let mut unknown = insert(1);
        unknown.row_type = 6;
        assert_eq!(violates(&mut within(), changes(&[unknown])), Violation::RowType(6));
        let op = v1::Change { op: 77, ..insert(1) };
        assert_eq!(violates(&mut within(), changes(&[op])), Violation::Unknown("Op"));
        assert!(matches!(violates(&mut between(), begin("5")), Violation::Position { .. }));
        assert_eq!(
            violates(&mut within(), Message::Changes(v1::ChangeBatch { events: vec![v1::Event::default()] })),
            Violation::Unknown("Event")
        );
        let empty = v1::SessionResponse { subscription: SUBSCRIPTION, selection: 0, event: None };
        assert!(between().message(empty, &mut VecDeque::new()).is_err());
        let other = v1::SessionResponse { subscription: 9, selection: 0, event: Some(begin("0/5:0")) };
        assert!(between().message(other, &mut VecDeque::new()).is_err());
    }

    /// A log of transactions, and a server that delivers it from any token, in some division into messages.
    #[derive(Clone, Debug)]
    struct Log(Vec<(Position, Vec<Bytes>)>);

    impl Log {
        /// All messages behind `after`. `pace` varies batches, cuts and marks.
        fn serve(&self, after: Position, pace: usize) -> Vec<Message> {
            let mut messages = vec![opened(&after.to_string()), Message::RowType(orders())];
            for (index, (start, rows)) in self.0.iter().enumerate() {
                if start.as_resume_point() <= after.as_resume_point() {
                    continue;
                }
                if (index + pace).is_multiple_of(3) {
                    messages.push(progress(&Position { lsn: start.lsn - 1, ordinal: 0 }.to_string()));
                }
                messages.push(begin(&start.to_string()));
                let ordinal = |at: usize| if start.ordinal == 0 { at as u32 + 1 } else { start.ordinal };
                let parts: Vec<_> = rows.iter().enumerate().flat_map(|(at, row)| cut(ordinal(at), row, pace)).collect();
                messages.extend(parts.chunks(pace % 4 + 1).map(changes));
                let end = Position { lsn: start.lsn, ordinal: ordinal(rows.len().saturating_sub(1)) };
                messages.push(commit(&end.to_string()));
            }
            join(messages, pace)
        }
    }

    /// Puts up to `pace` neighbours of events into one message.
    fn join(messages: Vec<Message>, pace: usize) -> Vec<Message> {
        let mut joined: Vec<Message> = Vec::new();
        let mut room = 0;
        for message in messages {
            match (joined.last_mut(), message) {
                (Some(Message::Changes(last)), Message::Changes(next)) if room > 0 => {
                    last.events.extend(next.events);
                    room -= 1;
                }
                (_, message) => {
                    joined.push(message);
                    room = pace;
                }
            }
        }
        joined
    }

    fn cut(ordinal: u32, row: &Bytes, pace: usize) -> Vec<v1::Change> {
        let at = row.len() / 2;
        match pace % 2 {
            0 => vec![part(ordinal, row.clone(), false)],
            _ => vec![part(ordinal, row.slice(..at), true), part(ordinal, row.slice(at..), false)],
        }
    }

    fn logs() -> impl Strategy<Value = Log> {
        let rows = prop::collection::vec((0_i64..1_000).prop_map(|id| row(id, None)), 1..6);
        let transaction = (2_u64..5, any::<bool>(), rows);
        prop::collection::vec(transaction, 1..12).prop_map(|transactions| {
            let mut lsn = 1;
            let place = |(step, alone, mut rows): (u64, bool, Vec<Bytes>)| {
                lsn += step;
                if alone {
                    rows.truncate(1);
                }
                (Position { lsn, ordinal: if alone { 1 << 30 } else { 0 } }, rows)
            };
            Log(transactions.into_iter().map(place).collect())
        })
    }

    /// What a program that obeys Abort has seen, transaction by transaction.
    #[derive(Default)]
    struct Program {
        seen: Vec<(Position, Vec<Bytes>)>,
        committed: usize,
    }

    impl Program {
        fn take(&mut self, event: Event) {
            match event {
                Event::Begin { position, .. } => self.seen.push((position, Vec::new())),
                Event::Change(change) => self.seen.last_mut().expect("begun").1.push(change.row),
                Event::Commit { .. } => self.committed = self.seen.len(),
                Event::SnapshotBegin { .. } | Event::SnapshotEnd { .. } | Event::SnapshotAbandoned { .. } => {
                    panic!("no snapshot")
                }
                Event::Abort => self.seen.truncate(self.committed),
                Event::Opened { .. } | Event::Preparing { .. } | Event::RowType(_) | Event::Progress { .. } => {}
                Event::Drain { .. } | Event::Interrupted { .. } => {}
                Event::Reset { .. } => panic!("nothing resets"),
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_breaks_the_sequence_is_the_original(
            log in logs(),
            breaks in prop::collection::vec((0_usize..40, 0_usize..12, 0_u64..3, any::<bool>()), 0..12),
        ) {
            let mut continuity = Continuity::new(Subscription::tables(["public.*"]).from(Start::Earliest));
            let (mut program, mut out) = (Program::default(), VecDeque::new());
            for (length, pace, rewind, drain) in breaks.into_iter().chain([(usize::MAX, 0, 0, false)]) {
                let mut after = continuity.token.as_ref().map_or(Position { lsn: 1, ordinal: 0 }, Token::position);
                // A server may go further back than it was asked.
                if continuity.token.is_some() && rewind > 0 {
                    after = Position { lsn: after.lsn.saturating_sub(rewind).max(1), ordinal: 0 };
                }
                for (at, message) in log.serve(after, pace).into_iter().enumerate().take(length) {
                    if drain && at == length / 2 {
                        let drain = response(Message::Drain(v1::Drain::default()));
                        if let Step::Reconnect(_) = continuity.message(drain, &mut out).expect("a drain") {
                            break;
                        }
                    }
                    if let Step::Reconnect(_) = continuity.message(response(message), &mut out).expect("in order") {
                        break;
                    }
                }
                if length < usize::MAX {
                    continuity.disconnected(&mut out);
                }
                out.drain(..).for_each(|event| program.take(event));
            }
            prop_assert_eq!(program.committed, program.seen.len());
            prop_assert_eq!(program.seen, log.0);
        }
    }
}
