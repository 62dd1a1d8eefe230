//! `definitions_per_s` of the case `shapes`: how many shapes come and go in a second, each with a condition that no other has, while changes
//! flow (`BENCH_DEFINITIONS` for another number of them).
//!
//! A definition is a Subscribe, its Opened, a Cancel, and its end. Each session has so many underway.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use prost::Message as _;
use tidegate_integration_tests::Database;
use tidegate_proto::v1::{Cancel, SessionResponse, session_request::Request, session_response::Event, start};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    load,
    raw_session::{self, encoded, shape},
};

const SESSIONS: u64 = 4;
/// Of one session.
const UNDERWAY: u64 = 50;
/// Between two transactions of the writer.
const PAUSE: Duration = Duration::from_millis(10);

/// What was measured.
pub(crate) struct Defined {
    pub(crate) per_s: f64,
    /// Rows that were written meanwhile.
    pub(crate) rows_per_s: f64,
}

/// Defines and removes. `row`: a row of the table `items`, by its number, from `first` on; `condition`: of each shape.
pub(crate) async fn measure(
    (endpoint, url): (&str, &str),
    (first, row): (u64, &'static str),
    condition: fn(u64) -> String,
) -> Result<Defined> {
    let count = load::number("BENCH_DEFINITIONS", 20_000)?;
    let database = Database::connect(url).await?;
    let mut writing = JoinSet::new();
    let (stop, mut stopped) = mpsc::channel::<()>(1);
    writing.spawn(async move {
        let mut low = first;
        while stopped.try_recv() == Err(mpsc::error::TryRecvError::Empty) {
            let rows = format!("insert into items select {row} from generate_series({low}, {}) n", low + 99);
            database.execute(&rows).await?;
            low += 100;
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(low - first)
    });
    let start = Instant::now();
    let mut defining = JoinSet::new();
    for session in 0..SESSIONS {
        let channel = raw_session::connect(endpoint).await?;
        let of_session = count / SESSIONS;
        let conditions = (0..of_session).map(move |number| condition(session * of_session + number));
        defining.spawn(async move { define(channel, conditions).await });
    }
    while let Some(defined) = defining.join_next().await {
        defined??;
    }
    let took = start.elapsed().as_secs_f64();
    drop(stop);
    let rows = writing.join_next().await.context("a writer")???;
    ensure!(rows > 0, "no changes flowed");
    Ok(Defined { per_s: count as f64 / took, rows_per_s: rows as f64 / took })
}

/// Each of them comes and goes.
async fn define(channel: tonic::transport::Channel, conditions: impl Iterator<Item = String>) -> Result<()> {
    let (sender, requests) = mpsc::channel::<Bytes>(2 * UNDERWAY as usize);
    let mut session = raw_session::with_requests(channel, ReceiverStream::new(requests)).await?;
    let mut waiting = (1..).zip(conditions).map(|(subscription, condition)| {
        let what = shape("items", condition);
        encoded(Request::Subscribe(raw_session::subscribe(subscription, what, start::Point::Now)))
    });
    let mut underway = 0_u64;
    for request in waiting.by_ref().take(UNDERWAY as usize) {
        sender.send(request).await?;
        underway += 1;
    }
    while underway > 0 {
        let response = session.message().await?.context("the session ended")?;
        let SessionResponse { subscription, event, .. } = SessionResponse::decode(response)?;
        match event {
            Some(Event::Opened(_)) => sender.send(encoded(Request::Cancel(Cancel { subscription }))).await?,
            // Code::Cancelled.
            Some(Event::Error(status)) if status.code == 1 => match waiting.next() {
                Some(request) => sender.send(request).await?,
                None => underway -= 1,
            },
            Some(Event::Error(status)) => bail!("a definition is refused: {}", status.message),
            Some(Event::Reset(reset)) => bail!("a definition is reset: {}", reset.detail),
            _other => {}
        }
    }
    Ok(())
}
