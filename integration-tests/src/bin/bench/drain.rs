//! `drain` and `drain-small`: a backlog of 1.2 M rows, until a gRPC subscriber has them all.
//!
//! The peers read the same backlog through slots that were copied from ours before it was written, one after the other, before
//! and after Tidegate; the mean of a peer's two runs counts. Each run's time includes starting the process.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tidegate_client::{Client, Event, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Scratch, Server, ServerConfig, client_tool};
use tidegate_model::Lsn;

use crate::{
    bare_reader, load,
    outcome::{Outcome, Target},
    receive,
};

const ROW_COUNT: u32 = 1_200_000;
/// What the backlog consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// 200,000 one-row transactions, and a million rows in transactions of 10,000.
    Mixed,
    /// One-row transactions only.
    Small,
}

struct Backlog {
    database: Database,
    server: Server,
    end: Lsn,
}

/// Measures one of the two cases.
pub(crate) async fn run(case: &'static str, shape: Shape) -> Result<Outcome> {
    let cluster = Cluster::start(&[("synchronous_commit", "off"), ("max_wal_size", "8GB")]).await?;
    let mut backlog = prepare(&cluster, shape).await?;
    let url = backlog.database.url().to_owned();
    let publication = backlog.server.slot().to_owned();
    let bare = async |slot: &str| bare_reader::drain(&url, slot, &publication, backlog.end).await;
    eprintln!("warm-up {:?}", bare("peer_0").await?);
    let bare_before = bare("peer_1").await?;
    let received_before = pg_recvlogical(&url, "peer_2", &publication, backlog.end).await?;
    let bare_after_slot = "peer_3";
    let ours = tidegate(&mut backlog.server).await?;
    backlog.server.terminate().await?;
    let bare_after = bare_reader::drain(&url, bare_after_slot, &publication, backlog.end).await?;
    let received_after = pg_recvlogical(&url, "peer_4", &publication, backlog.end).await?;
    eprintln!(
        "bare {bare_before:?} {bare_after:?}, pg_recvlogical {received_before:?} {received_after:?}, ours {ours:?}"
    );

    let rate = |time: Duration| f64::from(ROW_COUNT) / time.as_secs_f64();
    let (bare, received) = ((bare_before + bare_after) / 2, (received_before + received_after) / 2);
    let mut outcome = Outcome::new(case);
    match shape {
        Shape::Mixed => {
            outcome.ratio("pg_recvlogical", rate(ours) / rate(received), Target::AtLeast(1.0));
            outcome.ratio("bare_reader", rate(ours) / rate(bare), Target::AtLeast(0.7));
        }
        Shape::Small => outcome.ratio("pg_recvlogical", rate(ours) / rate(received), Target::AtLeast(0.9)),
    }
    outcome.figure("rows_per_s", rate(ours), None);
    outcome.figure("pg_recvlogical_rows_per_s", rate(received), None);
    outcome.figure("bare_reader_rows_per_s", rate(bare), None);
    outcome.note("The subscriber is the Rust client library, counting changes; Tidegate also stores and syncs them.");
    Ok(outcome)
}

/// Lets the server create its slot, copies it for the peers, stops the server, and writes the backlog.
async fn prepare(cluster: &Cluster, shape: Shape) -> Result<Backlog> {
    let database = cluster.database("bench").await?;
    database.execute(load::TABLE).await?;
    database.create_marker().await?;
    let mut server = Server::start(ServerConfig::of(database.url())).await?;
    server.terminate().await?;
    let slot = server.slot();
    for peer in 0..5 {
        database.execute(&format!("select pg_copy_logical_replication_slot('{slot}', 'peer_{peer}')")).await?;
    }
    let small = match shape {
        Shape::Mixed => ROW_COUNT / 6,
        Shape::Small => ROW_COUNT,
    };
    eprintln!("writing {ROW_COUNT} rows, {small} of them in transactions of their own");
    let row = load::ROW;
    database
        .execute(&format!(
            "do $$ begin for n in 1..{small} loop insert into load values ({}); commit; end loop; end $$",
            row
        ))
        .await?;
    for first in (small + 1..ROW_COUNT).step_by(10_000) {
        let rows = format!("generate_series({first}, {})", first + 9_999);
        database.execute(&format!("insert into load select {row} from {rows} n")).await?;
    }
    let end = database.text("select pg_current_wal_insert_lsn()::text").await?.context("no position")?.parse()?;
    database.execute("set synchronous_commit = on").await?;
    database.mark("end").await?;
    Ok(Backlog { database, server, end })
}

/// From the start of the process until the subscriber has the last transaction.
async fn tidegate(server: &mut Server) -> Result<Duration> {
    let start = Instant::now();
    server.launch().await?;
    let client = Client::connect(server.endpoint()).await?;
    let mut changes = client.subscribe(Subscription::tables(["load", "marker"]).from(Start::Earliest));
    let mut count = 0;
    receive::until(&mut changes, |event| {
        count += u32::from(matches!(event, Event::Change(_)));
        count > ROW_COUNT && matches!(event, Event::Commit { .. })
    })
    .await?;
    Ok(start.elapsed())
}

async fn pg_recvlogical(url: &str, slot: &str, publication: &str, end: Lsn) -> Result<Duration> {
    let program = client_tool("pg_recvlogical").context("no pg_recvlogical; install PostgreSQL's client programs")?;
    let scratch = Scratch::new()?;
    let mut command = Command::new(program);
    command.args(["-d", url, "--slot", slot, "--start", "--no-loop", "-o", "proto_version=1"]);
    command.arg("-o").arg(format!("publication_names={publication}"));
    command.arg("--endpos").arg(end.to_string()).arg("-f").arg(scratch.join("changes")).stdin(Stdio::null());
    let start = Instant::now();
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    ensure!(status.success(), "pg_recvlogical ended with {status}");
    Ok(start.elapsed())
}
