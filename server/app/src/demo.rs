//! `tidegate demo`: a temporary PostgreSQL with a small shop, the server, and the changes as they come.
//!
//! ```text
//! shop writer ─▶ PostgreSQL (temporary) ─▶ serve ─▶ gRPC ─▶ client library ─▶ render ─▶ you
//! ```
//!
//! Invariant: however it ends, its processes have ended before it and its folder is gone. What is seen passes the real
//! port and the real client library.

mod postgres;
mod shop;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::StreamExt;
use rand::SeedableRng;
use std::{net::SocketAddr, num::NonZeroU64, time::Duration};
use tidegate_client::{Client, Start, Subscription};
use tidegate_model::TablePatterns;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Listen, Log, LogFormat, Memory, NewTables, OnDiscontinuity, Retention, Snapshots, Source},
    render::{Format, Printer},
    serve::{self, Listeners},
    telemetry,
};
use postgres::TemporaryPostgres;

/// Name of the source, and of its database.
const SOURCE: &str = "shop";
/// The same kinds of changes at every start.
const SEED: u64 = 7171;

/// Watch it work: a temporary PostgreSQL, a small shop, and its changes.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// End after this many changes.
    #[arg(long, value_name = "N")]
    changes: Option<NonZeroU64>,
    /// Where to serve gRPC; the http port is the next one.
    #[arg(long, default_value = "127.0.0.1:7171", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs until it has seen enough, or `stop`.
///
/// # Errors
/// No PostgreSQL is installed, the port is in use, or a part fails.
pub(crate) async fn run(args: &DemoArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let log = Log { format: LogFormat::Text, filter: "warn".to_owned() };
    let telemetry = telemetry::start(&log)?;
    let listeners = Listeners::bind(&listen(args.listen)?, "--listen").await?;
    eprintln!("Starting a temporary PostgreSQL …");
    let postgres = TemporaryPostgres::start().await?;
    let shown = if stop.is_cancelled() { Ok(()) } else { show(args, &postgres, listeners, stop, log).await };
    tokio::task::spawn_blocking(move || drop(postgres)).await?;
    telemetry.shutdown().await;
    eprintln!("Stopped; nothing is left behind.");
    shown
}

async fn show(
    args: &DemoArgs,
    postgres: &TemporaryPostgres,
    listeners: Listeners,
    stop: CancellationToken,
    log: Log,
) -> anyhow::Result<()> {
    create_database(postgres).await?;
    let (grpc, http) = (listeners.grpc()?, listeners.http()?);
    let config = configuration(postgres, Listen { grpc, http }, log)?;
    // Dropped, and with it the tasks, before the PostgreSQL that they use.
    let mut tasks = JoinSet::new();
    let stop_server = CancellationToken::new();
    tasks.spawn(Box::pin(serve::run(config, listeners, stop_server.clone())));
    let stop_writer = CancellationToken::new();
    let random = rand::rngs::StdRng::seed_from_u64(SEED);
    tasks.spawn(shop::write(postgres.connect_config(SOURCE), random, stop_writer.clone()));
    introduce(postgres, grpc, http);
    let watched = tokio::select! {
        watched = print_changes(args, grpc) => watched,
        () = stop.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => flat(ended).and_then(|()| bail!("a part of the demo has ended by itself")),
    };
    stop_writer.cancel();
    stop_server.cancel();
    let mut result = watched;
    while let Some(ended) = tasks.join_next().await {
        result = result.and(flat(ended));
    }
    result
}

/// A panic is an error like any other here: all that matters is that everything else ends as well.
fn flat(ended: Result<anyhow::Result<()>, JoinError>) -> anyhow::Result<()> {
    ended.map_err(anyhow::Error::from).flatten()
}

/// The http port is the next one, or any where any was asked for.
fn listen(grpc: SocketAddr) -> anyhow::Result<Listen> {
    if !grpc.ip().is_loopback() {
        bail!(
            "--listen {grpc}: the demo has no authentication, and serves on loopback only; use 127.0.0.1:{}",
            grpc.port()
        );
    }
    let port =
        if grpc.port() == 0 { 0 } else { grpc.port().checked_add(1).context("--listen: no port is left for http")? };
    Ok(Listen { grpc, http: SocketAddr::new(grpc.ip(), port) })
}

async fn create_database(postgres: &TemporaryPostgres) -> anyhow::Result<()> {
    let session = tidegate_postgres::Session::connect(&postgres.connect_config("postgres")).await?;
    session.client().batch_execute(&format!("CREATE DATABASE {SOURCE}")).await?;
    shop::create(&postgres.connect_config(SOURCE)).await
}

fn configuration(postgres: &TemporaryPostgres, listen: Listen, log: Log) -> anyhow::Result<Config> {
    let connect = postgres.connect_config(SOURCE);
    let source = Source {
        name: SOURCE.parse()?,
        connect: connect.clone(),
        tables: TablePatterns::parse(["public.*"])?,
        mirror: TablePatterns::none(),
        mirror_on_demand: TablePatterns::parse(["*.*"])?,
        mirror_check: Duration::from_secs(1),
        slot: "tidegate_shop".to_owned(),
        publication: "tidegate_shop".to_owned(),
        new_tables: NewTables::Publish,
        on_discontinuity: OnDiscontinuity::Reset,
        snapshots: Snapshots { readers: 2, rows_per_second_max: 0, lag_bytes_max: 0 },
        memory: Memory {
            transaction_bytes: 16 << 20,
            feed_bytes: 8 << 20,
            tail_bytes: 16 << 20,
            mirror_bytes: 16 << 20,
        },
        shapes: tidegate_gateway::KnownShapes::new(),
    };
    Ok(Config {
        listen,
        tls: None,
        data_dir: postgres.folder().join("tidegate"),
        control: connect,
        sources: vec![source],
        retention: Retention { size_bytes: 1 << 30, age: Duration::from_secs(24 * 3600) },
        log,
        shutdown_deadline: Duration::from_secs(5),
    })
}

fn introduce(postgres: &TemporaryPostgres, grpc: SocketAddr, http: SocketAddr) {
    let (version, folder) = (postgres.version(), postgres.folder().display());
    eprintln!(
        "
{version} with a small shop, in {folder}; Tidegate serves its changes on {grpc}.
Try in another terminal:

  grpcurl -plaintext {grpc} list
  grpcurl -plaintext {grpc} describe tidegate.rows.shop.public.orders
  grpcurl -plaintext -d '{{\"tables\": {{\"names\": [\"orders\"]}}}}' {grpc} tidegate.v1.Changes/Watch
  tidegate tail --server http://{grpc} --table orders --from earliest
  curl http://{http}/metrics
  psql -h {folder} -U postgres {SOURCE}

Ctrl-C ends it.
"
    );
}

/// Prints changes until there are as many as asked for.
async fn print_changes(args: &DemoArgs, grpc: SocketAddr) -> anyhow::Result<()> {
    let client = Client::connect(format!("http://{grpc}")).await?;
    let subscription = Subscription::tables(["public.*"]).source(SOURCE).from(Start::Earliest);
    let mut changes = client.subscribe(subscription);
    let mut printer = Printer::new(std::io::stdout(), Format::for_stdout(args.json, false));
    let mut left = args.changes.map(NonZeroU64::get);
    while let Some(event) = changes.next().await {
        if printer.print(&event?)?
            && let Some(left) = &mut left
        {
            *left -= 1;
            if *left == 0 {
                return Ok(());
            }
        }
    }
    bail!("the server has ended the stream")
}
