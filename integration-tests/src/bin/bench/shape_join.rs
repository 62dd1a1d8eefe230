//! `shape-join`: two thousand clients at once open a shape each, of 500 of a million mirrored rows, and receive it
//! (`BENCH_ROWS` for another number of rows). A client's time is from its Subscribe to its SnapshotEnd.
//!
//! Meanwhile a writer commits two hundred times a second what concerns a shape that was open before, and none of theirs: how long that takes to
//! come to its subscriber is told for the seconds before anyone joins, and for the time in which all join (`resident_…`).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tidegate_integration_tests::{Cluster, Server, ServerConfig};
use tidegate_proto::v1::start;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::{
    bytes_codec::{change_count, has_event},
    latency::at,
    load,
    outcome::Outcome,
    raw_session::{self, SNAPSHOT_END, shape},
    witness::Witness,
};

const ROWS_OF_A_SHAPE: u64 = 500;
const CONNECTIONS: usize = 20;
/// In which nobody joins.
const BEFORE: Duration = Duration::from_secs(5);

/// Measures the case.
pub(crate) async fn run() -> Result<Outcome> {
    let row_count = load::row_count(1_000_000)?;
    let clients = row_count / ROWS_OF_A_SHAPE;
    let cluster = Cluster::start(&[("synchronous_commit", "off"), ("max_wal_size", "8GB")]).await?;
    let database = cluster.database("bench").await?;
    let row = format!("n, n % {clients}, 'open', 'row number ' || n");
    database
        .execute(&format!(
            "create table items (id bigint primary key, tenant int, status text, note text);
             insert into items select {row} from generate_series(1, {row_count}) n"
        ))
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [items]".to_owned());
    let server = Server::start(config).await?;
    load::until_mirrored(&server).await?;
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(raw_session::connect(&server.endpoint()).await?);
    }
    let witness = Witness::begin((&server.endpoint(), database.url()), (row_count + 1, clients)).await?;
    let quiet = Instant::now();
    tokio::time::sleep(BEFORE).await;
    let before = Instant::now();
    // The first shape on the column asks for the index; those that come before it is there read the whole table.
    let first = join(channels[0].clone(), 0).await?;
    let start = Instant::now();
    let mut joining = JoinSet::new();
    for client in 0..clients {
        joining.spawn(join(channels[client as usize % CONNECTIONS].clone(), client));
    }
    let mut times = Vec::new();
    while let Some(joined) = joining.join_next().await {
        times.push(joined??);
    }
    let end = Instant::now();
    times.sort_by(f64::total_cmp);
    let witnessed = witness.end().await?;
    let (before, meanwhile) = (witnessed.between(quiet, before), witnessed.between(start, end));
    let mut outcome = Outcome::new("shape-join");
    outcome.figure("p50_ms", at(&times, 50), None);
    outcome.figure("p99_ms", at(&times, 99), None);
    outcome.figure("first_ms", first, None);
    outcome.figure("joins_per_s", clients as f64 / (end - start).as_secs_f64(), None);
    outcome.figure("resident_p50_ms_before", at(&before, 50), None);
    outcome.figure("resident_p99_ms_before", at(&before, 99), None);
    outcome.figure("resident_p50_ms_while_others_join", at(&meanwhile, 50), None);
    outcome.figure("resident_p99_ms_while_others_join", at(&meanwhile, 99), None);
    outcome.note(format!(
        "The resident: from sending the INSERT to having the row, of {} commits before and {} while others joined. The clients that join, \
         PostgreSQL and the server share the processors with it.",
        before.len(),
        meanwhile.len()
    ));
    outcome.note(format!("{clients} clients at once, each on a stream of its own, on {CONNECTIONS} connections."));
    Ok(outcome)
}

/// In milliseconds.
async fn join(channel: Channel, tenant: u64) -> Result<f64> {
    let start = Instant::now();
    let selected = shape("items", format!("tenant = {tenant}"));
    let subscribe = raw_session::subscribe(1, selected, start::Point::Snapshot);
    let mut session = raw_session::open(channel, [subscribe]).await?;
    let mut count = 0;
    loop {
        let response = raw_session::next(&mut session).await?;
        count += change_count(&response)?;
        if has_event(&response, SNAPSHOT_END)? {
            break;
        }
    }
    ensure!(count == ROWS_OF_A_SHAPE, "{count} rows of tenant {tenant}");
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
