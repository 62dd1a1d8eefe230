//! What the coordinator of snapshots has done beside itself, each in a task of its own: reading, asking the stream.

use std::sync::Arc;

use tidegate_control::{Control, JobState};
use tidegate_feed::Durable;
use tidegate_model::{Position, Retry, SourceName};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Duration,
};
use tracing::warn;

use super::{
    job::{Read, Work},
    order::{Finish, Order, StartedRead, Ticket},
    reader::{Planned, ReadFailure, Reader},
    requests::SnapshotError,
};

/// Between attempts at what may come right by itself.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// While capture is too far behind, or the rate is used up; and before an end that could not be emitted is ordered again.
pub(super) const HOLD: Duration = Duration::from_millis(100);

/// What a task has come to.
pub(super) enum Done {
    /// The tables are known, and the stream follows them.
    Begun {
        snapshot: u32,
        begun: Result<Planning, Box<SnapshotError>>,
    },
    Read {
        snapshot: u32,
        table: usize,
        attempt: u32,
        reader: Option<Box<Reader>>,
        read: Result<Option<Read>, ReadFailure>,
    },
    Finished {
        snapshot: u32,
        table: usize,
        attempt: u32,
        finish: Finish,
    },
    Ended {
        snapshot: u32,
        is_out: bool,
    },
    /// Nothing is left to be done: it has been recorded, or the stream has stopped for good.
    Void,
}

/// The tables of a snapshot, planned, and followed by the stream.
pub(super) struct Planning {
    pub(super) after: Position,
    pub(super) plans: Vec<Arc<Planned>>,
}

/// Reads a chunk, and hands it to the stream.
pub(super) async fn read(
    orders: mpsc::Sender<Order>,
    mut reader: Box<Reader>,
    (planned, work): (Arc<Planned>, Work),
    mut ticket: Ticket,
) -> Done {
    let Ticket { snapshot, table_oid, table, attempt, .. } = ticket;
    let (reply, answer) = oneshot::channel();
    let anew = matches!(work, Work::Share { .. });
    if orders.send(Order::StartRead { snapshot, table_oid, anew, reply }).await.is_err() {
        return Done::Void;
    }
    let Ok(StartedRead { read: name, connection }) = answer.await else { return Done::Void };
    reader.beside(connection);
    // A snapshot that holds VACUUM back must not wait until the stream takes orders again.
    let room = if anew { orders.reserve().await.ok() } else { None };
    match reader.read(snapshot, &planned, work).await {
        Ok((read, chunk)) => {
            (ticket.end, ticket.byte_count) = (read.end.clone(), read.byte_count);
            let order = Order::Chunk { read: name, chunk: Box::new(chunk), ticket };
            let sent = match room {
                Some(room) => {
                    room.send(order);
                    true
                }
                None => orders.send(order).await.is_ok(),
            };
            Done::Read { snapshot, table, attempt, reader: Some(reader), read: Ok(sent.then_some(read)) }
        }
        Err(error) => {
            drop(room);
            // If the stream is gone, so is what it knew of the read.
            drop(orders.send(Order::AbandonRead { read: name }).await);
            Done::Read { snapshot, table, attempt, reader: Some(reader), read: Err(error) }
        }
    }
}

pub(super) async fn finish(
    orders: mpsc::Sender<Order>,
    (snapshot, table, table_oid): (u32, usize, u32),
    attempt: u32,
) -> Done {
    let (reply, answer) = oneshot::channel();
    if orders.send(Order::Finish { snapshot, table_oid, reply }).await.is_err() {
        return Done::Void;
    }
    answer.await.map_or(Done::Void, |finish| Done::Finished { snapshot, table, attempt, finish })
}

/// Orders the end, and waits until it is durable: what is recorded as ended must not be found unfinished after a crash. One that is
/// given up is ordered until it is out.
pub(super) async fn end(
    (orders, mut durable): (mpsc::Sender<Order>, watch::Receiver<Durable>),
    snapshot: u32,
    abandoned: String,
) -> Done {
    loop {
        let (reply, answer) = oneshot::channel();
        if orders.send(Order::End { snapshot, abandoned: abandoned.clone(), reply }).await.is_err() {
            return Done::Void;
        }
        let epoch = durable.borrow().epoch;
        match answer.await {
            Ok(None) if !abandoned.is_empty() => tokio::time::sleep(HOLD).await,
            Ok(None) => return Done::Ended { snapshot, is_out: false },
            Ok(Some(end)) => {
                // With another history, it is over in another way.
                let is_durable = |now: &Durable| now.position >= end || now.epoch != epoch;
                let is_out = durable.wait_for(is_durable).await.is_ok();
                return if is_out { Done::Ended { snapshot, is_out } } else { Done::Void };
            }
            Err(_) => return Done::Void,
        }
    }
}

/// Records what has become of a snapshot, as soon as the control database can be asked. One that it has for unfinished would be made
/// again when the server is started, unless the newest part of the changelog has its end.
pub(super) async fn record((control, source): (Control, SourceName), ended: (u32, JobState), detail: String) -> Done {
    while let Err(error) = control.set_snapshot_state(&source, ended, &detail).await {
        let Retry::After(pause) = error.retry() else {
            warn!(%source, snapshot = ended.0, %error, "the end of a snapshot is not recorded");
            break;
        };
        tokio::time::sleep(pause.max(RETRY)).await;
    }
    Done::Void
}
