//! Whole transactions instead of their parts.
//!
//! Invariant: a transaction is handed out only when its Commit has come, so that nothing is ever to be discarded. Memory
//! is bounded by the limit, give or take one message; a transaction that exceeds it is an error, never cut.

use std::{
    collections::BTreeSet,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use prost_types::Timestamp;

use crate::{Change, Changes, ClientError, Event, Op, Position, Token};

/// A transaction, a message outside of transactions, or a chunk of a snapshot.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its commit's end LSN, ordinal 0.
    pub position: Position,
    /// When it was committed.
    pub commit_time: Timestamp,
    /// Top-level transaction id; 0 for a message outside of transactions.
    pub xid: u32,
    /// Replication origin, where it was replicated into the source; else empty.
    pub origin: String,
    /// Of a chunk: the snapshot's number; 0 for transactions. See [`Event::Begin`].
    pub snapshot: u32,
    /// Its changes, in order.
    pub changes: Vec<Change>,
    /// Resume here once it is processed.
    pub token: Token,
}

/// Transactions of one subscription, from [`Changes::transactions`].
///
/// ```no_run
/// use futures_util::StreamExt;
/// use tidegate_client::{Client, Subscription};
///
/// # async fn example() -> Result<(), tidegate_client::ClientError> {
/// let client = Client::connect("http://127.0.0.1:7171").await?;
/// let mut transactions = client.subscribe(Subscription::tables(["public.*"])).transactions(64 << 20);
/// while let Some(transaction) = transactions.next().await {
///     let transaction = transaction?;
///     println!("{} changes; go on with {}", transaction.changes.len(), transaction.token);
/// }
/// # Ok(())
/// # }
/// ```
///
/// Continuity that is lost is the error [`ClientError::Reset`]. After an error the stream ends.
#[derive(Debug)]
pub struct Transactions {
    changes: Changes,
    assembly: Assembly,
    ended: bool,
}

impl Transactions {
    pub(crate) fn new(changes: Changes, limit_bytes: usize) -> Self {
        Transactions { changes, assembly: Assembly::new(limit_bytes), ended: false }
    }

    /// Everything up to here has been handed out. Also moves while no selected table changes; worth keeping then.
    #[must_use]
    pub fn token(&self) -> Option<&Token> {
        self.assembly.token.as_ref()
    }

    /// The snapshot that has begun and, with what has been handed out and asked for, not yet ended: None from its end on, when
    /// the state is exact. A stream that goes on in the middle knows it from the first chunk on.
    #[must_use]
    pub fn snapshot(&self) -> Option<u32> {
        self.assembly.snapshots.first().copied()
    }

    /// As [`Changes::ack`].
    pub fn ack(&mut self, token: &Token) {
        self.changes.ack(token);
    }
}

impl Stream for Transactions {
    type Item = Result<Transaction, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.ended {
            let taken = match ready!(Pin::new(&mut self.changes).poll_next(context)) {
                Some(event) => event.and_then(|event| self.assembly.take(event)),
                None => {
                    self.ended = true;
                    break;
                }
            };
            match taken {
                Ok(None) => {}
                Ok(Some(transaction)) => return Poll::Ready(Some(Ok(transaction))),
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }
}

/// Puts events together. Pure.
#[derive(Debug)]
struct Assembly {
    limit_bytes: usize,
    open: Open,
    /// Those that have not ended: the one that the subscription started from, and those of new tables.
    snapshots: BTreeSet<u32>,
    token: Option<Token>,
}

/// What has come of a transaction.
#[derive(Debug, Default)]
struct Open {
    position: Position,
    commit_time: Timestamp,
    xid: u32,
    origin: String,
    snapshot: u32,
    changes: Vec<Change>,
    byte_count: usize,
}

impl Assembly {
    fn new(limit_bytes: usize) -> Self {
        Assembly { limit_bytes, open: Open::default(), snapshots: BTreeSet::new(), token: None }
    }

    fn take(&mut self, event: Event) -> Result<Option<Transaction>, ClientError> {
        match event {
            Event::Begin { position, commit_time, xid, origin, snapshot } => {
                self.open = Open { position, commit_time, xid, origin, snapshot, ..Open::default() };
            }
            Event::Change(change) => {
                self.open.byte_count += change.byte_count();
                if self.open.byte_count > self.limit_bytes {
                    let (position, limit_bytes) = (self.open.position, self.limit_bytes);
                    return Err(ClientError::TransactionTooLarge { position, limit_bytes });
                }
                self.open.changes.push(change);
            }
            Event::Commit { token } => {
                self.token = Some(token.clone());
                let Open { position, commit_time, xid, origin, snapshot, changes, .. } = std::mem::take(&mut self.open);
                if changes.iter().any(|change| change.op == Op::Read) {
                    self.snapshots.insert(snapshot);
                }
                return Ok(Some(Transaction { position, commit_time, xid, origin, snapshot, changes, token }));
            }
            Event::SnapshotBegin { snapshot, token, .. } => {
                self.snapshots.insert(snapshot);
                self.token = Some(token);
            }
            Event::SnapshotEnd { snapshot, token } | Event::SnapshotAbandoned { snapshot, token, .. } => {
                self.snapshots.remove(&snapshot);
                self.token = Some(token);
            }
            Event::Abort => self.open = Open::default(),
            Event::Opened { token, .. } | Event::Progress { token, .. } => self.token = Some(token),
            Event::Reset { reason, detail } => return Err(ClientError::Reset { reason, detail }),
            Event::Preparing { .. } | Event::RowType(_) | Event::Drain { .. } | Event::Interrupted { .. } => {}
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Move, OldKind, Op};
    use bytes::Bytes;

    fn change(ordinal: u32, bytes: usize) -> Event {
        Event::Change(Change {
            position: Position { lsn: 7, ordinal },
            op: Op::Insert,
            selection: 0,
            row_type: None,
            row: Bytes::from(vec![0; bytes]),
            old: Bytes::new(),
            old_kind: OldKind::None,
            unchanged: Vec::new(),
            moved: Move::default(),
            message: None,
            truncate: None,
        })
    }

    fn begin() -> Event {
        let position = Position { lsn: 7, ordinal: 0 };
        Event::Begin { position, commit_time: Timestamp::default(), xid: 9, origin: String::new(), snapshot: 0 }
    }

    fn token(ordinal: u32) -> Token {
        Token::new("p".into(), Position { lsn: 7, ordinal })
    }

    fn opened() -> Assembly {
        let mut assembly = Assembly::new(1 << 20);
        let event = Event::Opened { token: token(0), head: Position::ZERO, source: "shop".into() };
        assert!(assembly.take(event).expect("opened").is_none());
        assembly
    }

    #[test]
    fn a_transaction_comes_whole_at_its_commit() {
        let mut assembly = opened();
        for event in [begin(), change(1, 10), change(2, 10)] {
            assert!(assembly.take(event).expect("within").is_none());
        }
        let transaction = assembly.take(Event::Commit { token: token(2) }).expect("whole").expect("whole");
        assert_eq!((transaction.changes.len(), transaction.xid, transaction.token), (2, 9, token(2)));
        assert_eq!(assembly.token, Some(token(2)));
    }

    #[test]
    fn what_was_aborted_leaves_nothing() {
        let mut assembly = opened();
        for event in [begin(), change(1, 10), Event::Abort, begin(), change(1, 10)] {
            assert!(assembly.take(event).expect("within").is_none());
        }
        let transaction = assembly.take(Event::Commit { token: token(1) }).expect("whole").expect("whole");
        assert_eq!(transaction.changes.len(), 1);
    }

    #[test]
    fn a_transaction_over_the_limit_is_an_error_that_names_the_mend() {
        let mut assembly = opened();
        assembly.take(begin()).expect("begins");
        let error = assembly.take(change(1, 2 << 20)).expect_err("too large");
        assert!(error.to_string().contains("raise the limit"), "{error}");
    }

    #[test]
    fn it_tells_whether_a_snapshot_goes_on() {
        let mut assembly = opened();
        assembly
            .take(Event::SnapshotBegin {
                snapshot: 3,
                tables: vec![],
                table_oids: vec![],
                partial: vec![],
                differences: vec![],
                token: token(1),
            })
            .expect("begins");
        assert_eq!((assembly.snapshots.first(), assembly.token.clone()), (Some(&3), Some(token(1))));
        assembly.take(Event::SnapshotEnd { snapshot: 3, token: token(2) }).expect("ends");
        assert_eq!((assembly.snapshots.first(), assembly.token), (None, Some(token(2))));
    }

    #[test]
    fn lost_continuity_is_an_error() {
        let reset = Event::Reset { reason: crate::ResetReason::EpochChanged, detail: "x".into() };
        let error = opened().take(reset).expect_err("lost");
        assert_eq!(error.retry(), crate::Retry::Reset);
    }
}
