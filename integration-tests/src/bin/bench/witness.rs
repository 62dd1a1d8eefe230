//! Someone who is there while a case does something else: how long a writer's commits take to come to a subscriber of a shape.
//!
//! A time is from sending the INSERT to the subscriber's having the row, as in `latency`.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tidegate_client::{Client, Event, Shape, Start, Subscription};
use tidegate_integration_tests::Database;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

/// Between two commits.
const INTERVAL: Duration = Duration::from_millis(5);
/// Of the status of the last row.
const LAST: &str = "last";

/// When each row was sent, or seen, by its id.
type Times = HashMap<i64, Instant>;

/// A writer and a subscriber, until they are asked what they have seen.
pub(crate) struct Witness {
    stop: CancellationToken,
    writing: JoinSet<Result<Times>>,
    reading: JoinSet<Result<Times>>,
}

/// When each commit was sent, and after how many milliseconds it was there.
pub(crate) struct Witnessed(Vec<(Instant, f64)>);

impl Witness {
    /// Of rows of the table `items` with a tenant that no other row has; their ids are from `first` on.
    pub(crate) async fn begin((endpoint, url): (&str, &str), (first, tenant): (u64, u64)) -> Result<Self> {
        let client = Client::connect(endpoint.to_owned()).await?;
        let shape = Shape::of("items").matching(format!("tenant = {tenant}"));
        let mut changes = client.subscribe(Subscription::shape(shape).from(Start::Now));
        while !matches!(changes.next().await.context("an event")??, Event::Opened { .. }) {}
        let mut reading = JoinSet::new();
        reading.spawn(read(changes));
        let (stop, mut writing) = (CancellationToken::new(), JoinSet::new());
        writing.spawn(write(url.to_owned(), (i64::try_from(first)?, i32::try_from(tenant)?), stop.clone()));
        Ok(Witness { stop, writing, reading })
    }

    /// Stops the writer, and waits until all that it has written has come.
    pub(crate) async fn end(mut self) -> Result<Witnessed> {
        self.stop.cancel();
        let sent = self.writing.join_next().await.context("a writer")???;
        let seen = self.reading.join_next().await.context("a subscriber")???;
        let time = |(id, sent): (&i64, &Instant)| {
            let seen = seen.get(id).with_context(|| format!("row {id} has not come"))?;
            Ok((*sent, seen.duration_since(*sent).as_secs_f64() * 1e3))
        };
        Ok(Witnessed(sent.iter().map(time).collect::<Result<_>>()?))
    }
}

impl Witnessed {
    /// The times of what was sent between two moments, sorted.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Vec<f64> {
        let within = self.0.iter().filter(|(sent, _)| (from..to).contains(sent));
        let mut times: Vec<f64> = within.map(|(_, time)| *time).collect();
        times.sort_by(f64::total_cmp);
        times
    }
}

async fn write(url: String, (first, tenant): (i64, i32), stop: CancellationToken) -> Result<Times> {
    let database = Database::connect(&url).await?;
    // Else it would be PostgreSQL's WAL writer that is waited for.
    database.execute("set synchronous_commit = on").await?;
    let insert = database.client().prepare("insert into items values ($1, $2, $3, 'a row of some size')").await?;
    let mut clock = tokio::time::interval(INTERVAL);
    let mut sent = Times::new();
    for id in first.. {
        clock.tick().await;
        let is_last = stop.is_cancelled();
        sent.insert(id, Instant::now());
        let status = if is_last { LAST } else { "open" };
        database.client().execute(&insert, &[&id, &tenant, &status]).await?;
        if is_last {
            break;
        }
    }
    Ok(sent)
}

async fn read(mut changes: tidegate_client::Changes) -> Result<Times> {
    let mut seen = Times::new();
    while let Some(batch) = changes.next_batch().await? {
        for event in batch {
            match event {
                Event::Change(change) => {
                    let row: Row = change.decode()?.context("a change without a row")?;
                    seen.insert(row.id, Instant::now());
                    if row.status == LAST {
                        return Ok(seen);
                    }
                }
                Event::Reset { detail, .. } => bail!("it is reset: {detail}"),
                _other => {}
            }
        }
    }
    bail!("the subscription ended")
}

/// The first of its columns.
#[derive(prost::Message)]
struct Row {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(string, tag = "3")]
    status: String,
}
