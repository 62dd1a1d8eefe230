//! The way of a query's responses out of the thread that reads: in batches, of which one waits for the client.
//!
//! Invariant: whoever reads finds out that nobody wants more, that its time is over, or that the mirror is being closed, also while it
//! waits for the client.

use std::time::Duration;

use prost::Message as _;
use tidegate_model::Position;
use tidegate_proto::v1::{self, query_shape_response::What};
use tidegate_store::MirrorError;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::Instant,
};

use super::QueryError;
use crate::status::GatewayError;

/// Bytes of a batch; a response more may be in it.
const BATCH_BYTES: usize = 64 << 10;
/// Rows between two looks at the clock.
const ROWS_PER_LOOK: u32 = 256;

pub(super) struct Sending {
    sender: mpsc::Sender<Vec<v1::QueryShapeResponse>>,
    batch: Vec<v1::QueryShapeResponse>,
    batch_bytes: usize,
    has_sent: bool,
    runtime: Handle,
    time: Duration,
    deadline: Instant,
    /// Of the mirror; ZERO when it is closed.
    positions: watch::Receiver<Position>,
    rows_until_look: u32,
}

impl Sending {
    pub(super) fn new(
        sender: mpsc::Sender<Vec<v1::QueryShapeResponse>>,
        (runtime, time): (Handle, Duration),
        positions: watch::Receiver<Position>,
    ) -> Self {
        Sending {
            sender,
            batch: Vec::new(),
            batch_bytes: 0,
            has_sent: false,
            runtime,
            time,
            deadline: Instant::now() + time,
            positions,
            rows_until_look: ROWS_PER_LOOK,
        }
    }

    /// Waits for something, on this thread.
    pub(super) fn wait_for<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    /// Has anything been given out that cannot be taken back?
    pub(super) fn has_sent(&self) -> bool {
        self.has_sent
    }

    /// Forgets what has not been given out.
    pub(super) fn start_over(&mut self) {
        self.batch.clear();
        self.batch_bytes = 0;
    }

    /// To be asked for each row.
    pub(super) fn goes_on(&mut self) -> Result<(), GatewayError> {
        self.rows_until_look -= 1;
        if self.rows_until_look > 0 {
            return Ok(());
        }
        self.rows_until_look = ROWS_PER_LOOK;
        if self.sender.is_closed() {
            return Err(GatewayError::Cancelled);
        }
        if *self.positions.borrow() == Position::ZERO {
            return Err(GatewayError::Mirror(MirrorError::Closed));
        }
        if Instant::now() >= self.deadline { Err(self.too_slow()) } else { Ok(()) }
    }

    /// Puts a response into the batch, and gives that out when it is large enough.
    pub(super) fn push(&mut self, what: What) -> Result<(), GatewayError> {
        let response = v1::QueryShapeResponse { what: Some(what) };
        self.batch_bytes += response.encoded_len();
        self.batch.push(response);
        if self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Gives out what there is.
    pub(super) fn flush(&mut self) -> Result<(), GatewayError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        self.has_sent = true;
        let (sender, positions, deadline) = (&self.sender, &mut self.positions, self.deadline);
        let sent = self.runtime.block_on(async move {
            tokio::select! {
                biased;
                room = sender.reserve() => {
                    room.map_err(|_| Some(GatewayError::Cancelled))?.send(batch);
                    Ok(())
                }
                // The sender lives as long as the mirror's handle.
                _closed = positions.wait_for(|position| *position == Position::ZERO) => {
                    Err(Some(GatewayError::Mirror(MirrorError::Closed)))
                }
                () = tokio::time::sleep_until(deadline) => Err(None),
            }
        });
        sent.map_err(|error| error.unwrap_or_else(|| self.too_slow()))
    }

    fn too_slow(&self) -> GatewayError {
        QueryError::TooSlow { after: self.time }.into()
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::Lsn;

    use super::*;

    struct Sent {
        receiver: mpsc::Receiver<Vec<v1::QueryShapeResponse>>,
        positions: watch::Sender<Position>,
        sending: Sending,
    }

    fn sent(time: Duration) -> Sent {
        let (sender, receiver) = mpsc::channel(1);
        let (positions, known) = watch::channel(Position::new(Lsn(7), 0));
        Sent { receiver, positions, sending: Sending::new(sender, (Handle::current(), time), known) }
    }

    fn row(byte_count: usize) -> What {
        What::Row(v1::QueryRow { rest: vec![0; byte_count].into(), ..v1::QueryRow::default() })
    }

    /// Sends for ever, on a thread of its own.
    async fn outcome(mut sending: Sending) -> GatewayError {
        let endless = move || loop {
            if let Err(error) = sending.goes_on().and_then(|()| sending.push(row(1000))) {
                return error;
            }
        };
        tokio::task::spawn_blocking(endless).await.expect("it does not panic")
    }

    #[tokio::test]
    async fn responses_come_in_batches_in_their_order() {
        let Sent { mut receiver, positions, mut sending } = sent(Duration::from_secs(60));
        let send = move || {
            (1..=100).try_for_each(|len| sending.push(row(len * 100)))?;
            sending.flush()
        };
        let sending = tokio::task::spawn_blocking(send);
        let (mut lens, mut batch_count) = (Vec::new(), 0);
        while let Some(batch) = receiver.recv().await {
            batch_count += 1;
            let len = |response: v1::QueryShapeResponse| match response.what {
                Some(What::Row(row)) => row.rest.len() / 100,
                _other => 0,
            };
            lens.extend(batch.into_iter().map(len));
        }
        sending.await.expect("it does not panic").expect("all is sent");
        assert_eq!(lens, (1..=100).collect::<Vec<_>>());
        assert!((5..=10).contains(&batch_count), "{batch_count}");
        drop(positions);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up_in_time() {
        let Sent { receiver, positions, sending } = sent(Duration::from_millis(20));
        let error = outcome(sending).await;
        assert!(matches!(error, GatewayError::Query(QueryError::TooSlow { .. })), "{error}");
        drop((receiver, positions));
    }

    #[tokio::test]
    async fn a_client_that_leaves_and_a_mirror_that_is_closed_are_noticed_while_it_waits() {
        let Sent { receiver, positions, sending } = sent(Duration::from_secs(60));
        let (error, ()) = tokio::join!(outcome(sending), async { drop(receiver) });
        assert!(matches!(error, GatewayError::Cancelled), "{error}");
        drop(positions);
        let Sent { receiver, positions, sending } = sent(Duration::from_secs(60));
        let close = async {
            positions.send_replace(Position::ZERO);
        };
        let (error, ()) = tokio::join!(outcome(sending), close);
        assert!(matches!(error, GatewayError::Mirror(MirrorError::Closed)), "{error}");
        drop(receiver);
    }
}
