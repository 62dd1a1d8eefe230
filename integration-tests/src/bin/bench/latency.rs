//! `latency`: a thousand transactions a second, from sending the statement to a subscriber's having the row. `shape-latency`: the same
//! for an equality shape among 100,000 that have none of the rows.
//!
//! The bare reader receives the same commits at the same time through a slot of its own. Both times include PostgreSQL's own for
//! the statement and its commit, since a commit has no other moment that this side can see.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tidegate_client::{Client, Event, Shape, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig};
use tidegate_postgres::{
    Frame,
    pgoutput::{Decoder, Message, TupleValue},
};
use tokio::task::JoinSet;

use crate::{
    bare_reader, load,
    outcome::{Outcome, Target},
    raw_session::shape,
    shapes::Sessions,
};

const WRITERS: u64 = 4;
const PER_WRITER: u64 = 5_000;
/// Each writer's; together a thousand a second.
const INTERVAL: Duration = Duration::from_millis(WRITERS);
/// Left out at the beginning.
const WARM_UP: u64 = 1_000;

/// Of each row.
const FILLER: &str = "a row of some size, as rows are";

/// When each row was seen.
type Times = HashMap<u64, Instant>;

/// Measures `latency`.
pub(crate) async fn run() -> Result<Outcome> {
    measure("latency", 0).await
}

/// Measures `shape-latency`.
pub(crate) async fn run_shape() -> Result<Outcome> {
    measure("shape-latency", load::number("BENCH_SHAPES", 100_000)?).await
}

/// The subscription is to a shape with all rows, among so many others, or to the table where there are none.
async fn measure(case: &'static str, shape_count: u64) -> Result<Outcome> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("bench").await?;
    let create = "create table ping (id bigint primary key, filler text); alter table ping replica identity full";
    database.execute(create).await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let slot = server.slot().to_owned();
    database.execute("select pg_create_logical_replication_slot('peer', 'pgoutput')").await?;
    let condition = |number| shape("ping", format!("filler = 'number {number}'"));
    let _others = Sessions::open(&server.endpoint(), (0..shape_count).map(condition)).await?;

    let (ours, bare) = (Arc::new(Mutex::new(Times::new())), Arc::new(Mutex::new(Times::new())));
    let mut readers = JoinSet::new();
    readers.spawn(receive(server.endpoint(), shape_count > 0, Arc::clone(&ours)));
    readers.spawn(read_bare(database.url().to_owned(), slot, Arc::clone(&bare)));
    let mut writers = JoinSet::new();
    let start = tokio::time::Instant::now() + Duration::from_secs(1);
    for writer in 0..WRITERS {
        writers.spawn(write(database.url().to_owned(), writer, start));
    }
    let mut sent = Times::new();
    while let Some(times) = writers.join_next().await {
        sent.extend(times??);
    }
    while let Some(ended) = readers.join_next().await {
        ended??;
    }
    let ours = latencies(&sent, &ours.lock().unwrap_or_else(PoisonError::into_inner));
    let bare = latencies(&sent, &bare.lock().unwrap_or_else(PoisonError::into_inner));
    let mut outcome = Outcome::new(case);
    outcome.ratio("p50_vs_bare_reader", at(&ours, 50) / at(&bare, 50), Target::AtMost(1.5));
    outcome.figure("p50_ms", at(&ours, 50), None);
    outcome.figure("p99_ms", at(&ours, 99), Some(Target::AtMost(10.0)));
    outcome.figure("bare_reader_p50_ms", at(&bare, 50), None);
    outcome.figure("bare_reader_p99_ms", at(&bare, 99), None);
    outcome.note("From sending the INSERT, so PostgreSQL's time for statement and commit is in both.");
    Ok(outcome)
}

/// The writers take turns, so that transactions come one by one.
async fn write(url: String, writer: u64, start: tokio::time::Instant) -> Result<Times> {
    let database = Database::connect(&url).await?;
    let insert = database.client().prepare(&format!("insert into ping values ($1, '{FILLER}')")).await?;
    let turn = INTERVAL.mul_f64(writer as f64 / WRITERS as f64);
    let mut clock = tokio::time::interval_at(start + turn, INTERVAL);
    let mut sent = Times::new();
    for number in 0..PER_WRITER {
        clock.tick().await;
        let id = number * WRITERS + writer;
        sent.insert(id, Instant::now());
        database.client().execute(&insert, &[&i64::try_from(id)?]).await?;
    }
    Ok(sent)
}

fn record(times: &Mutex<Times>, id: u64) -> bool {
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
    times.insert(id, Instant::now());
    times.len() as u64 == WRITERS * PER_WRITER
}

async fn receive(endpoint: String, is_shape: bool, times: Arc<Mutex<Times>>) -> Result<()> {
    let subscription = match is_shape {
        true => Subscription::shape(Shape::of("ping").matching(format!("filler = '{FILLER}'"))),
        false => Subscription::tables(["ping"]),
    };
    let client = Client::connect(endpoint).await?;
    let mut changes = client.subscribe(subscription.from(Start::Earliest));
    while let Some(batch) = changes.next_batch().await? {
        for event in batch {
            if let Event::Change(change) = event {
                let row: PingRow = change.decode()?.context("a change without a row")?;
                if record(&times, row.id) {
                    return Ok(());
                }
            }
        }
    }
    anyhow::bail!("the subscription ended")
}

/// A row, as a generated type has it.
#[derive(prost::Message)]
struct PingRow {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    filler: String,
}

async fn read_bare(url: String, publication: String, times: Arc<Mutex<Times>>) -> Result<()> {
    let (mut reader, mut writer, version) = bare_reader::open(&url, "peer", &publication).await?;
    let mut decoder = Decoder::new(version);
    loop {
        let mut reply = None;
        for frame in reader.read().await? {
            match frame {
                Frame::XLogData { data, .. } => {
                    if let Message::Insert { new, .. } = decoder.decode(data)?
                        && let Some(TupleValue::Text(id)) = new.iter().next()
                        && record(&times, std::str::from_utf8(id)?.parse()?)
                    {
                        return Ok(());
                    }
                }
                Frame::Keepalive { server_lsn, reply_requested } => {
                    if reply_requested {
                        reply = Some(server_lsn);
                    }
                }
            }
        }
        if let Some(received_lsn) = reply {
            writer.status(bare_reader::alive(received_lsn)).await?;
        }
    }
}

/// In milliseconds, sorted.
fn latencies(sent: &Times, seen: &Times) -> Vec<f64> {
    let after_warm_up = sent.iter().filter(|(id, _)| **id >= WARM_UP);
    let times = after_warm_up.filter_map(|(id, sent)| Some(seen.get(id)?.duration_since(*sent).as_secs_f64() * 1e3));
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    times
}

/// A percentile.
pub(crate) fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or(f64::NAN)
}
