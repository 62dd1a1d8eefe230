//! The `tidegate` binary: its commands, and what their exit codes mean.
//!
//! ```text
//! serve ─▶ config ─▶ serve ─▶ capture_task, known_tables, mirror_keeper (a source each), named_shapes ─▶ gateway, http
//! check, source, ddl ─▶ config ─▶ the source's database
//! tail, status, snapshot, mirror, shape ─▶ a running server, by the client library
//! demo ───────────▶ own PostgreSQL + shop + serve + what tail does
//! ```
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 `check`, `ddl status` or `mirror verify` has findings. What a command prints goes to
//! standard output, everything else to standard error.

mod capture_task;
mod captured_snapshots;
mod check;
mod config;
mod control_connector;
mod databases;
mod ddl;
mod demo;
mod http;
mod known_tables;
mod metrics;
mod mirror;
mod mirror_definitions;
mod mirror_keeper;
mod named_shapes;
mod query;
mod remote;
mod render;
mod serve;
mod shape;
mod shape_args;
mod signals;
mod snapshot;
mod snapshot_part;
mod source;
mod status;
mod tail;
mod telemetry;
mod tls;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};
use tokio_util::sync::CancellationToken;

use config::{Config, ConfigError};

/// Rows become many small blocks that one thread makes and another drops, which the C library's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Typed, ordered, resumable changes of PostgreSQL tables, over gRPC.
#[derive(Parser)]
#[command(name = "tidegate", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Capture the configured sources and serve their changes.
    Serve(ServeArgs),
    /// Examine whether databases can be captured; exit code 3 if something must be mended.
    Check(check::CheckArgs),
    /// Print changes as they come, from a running server.
    Tail(tail::TailArgs),
    /// Print the sources of a running server: positions, lag, retained WAL, subscribers.
    Status(status::StatusArgs),
    /// Run snapshots of tables on a running server.
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Define shapes on a running server: rows of a table that meet a condition.
    #[command(subcommand)]
    Shape(shape::ShapeCommand),
    /// About the mirror of a running server.
    #[command(subcommand)]
    Mirror(mirror::MirrorCommand),
    /// Watch it work: a temporary PostgreSQL, a small shop, and its changes.
    Demo(demo::DemoArgs),
    /// Manage sources.
    #[command(subcommand)]
    Source(source::SourceCommand),
    /// Have schema changes announced in the stream, by event triggers in the sources' databases.
    #[command(subcommand)]
    Ddl(ddl::DdlCommand),
    /// About the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
struct ServeArgs {
    /// YAML file; without it, the environment alone configures. See: tidegate config reference.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every option with its default, as Markdown.
    Reference,
}

/// What a command has found out, besides failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing to report.
    Done,
    /// Something must be mended.
    Findings,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Runtime::new()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(cli.command)));
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(3),
        Err(error) => {
            if telemetry::lines_are_json() {
                tracing::error!(error = format!("{error:#}"), "tidegate has failed");
            } else {
                eprintln!("tidegate: {error:#}");
            }
            ExitCode::from(if error.downcast_ref::<ConfigError>().is_some() { 2 } else { 1 })
        }
    }
}

/// Runs a command until it is done; a second signal ends it without waiting.
async fn run(command: Command) -> anyhow::Result<Outcome> {
    let stop = CancellationToken::new();
    tokio::select! {
        outcome = Box::pin(run_until(command, stop.clone())) => outcome,
        twice = signals::watch(stop) => {
            twice.context("cannot watch for signals")?;
            anyhow::bail!("stopped at once, by a second signal")
        }
    }
}

async fn run_until(command: Command, stop: CancellationToken) -> anyhow::Result<Outcome> {
    match command {
        Command::Serve(args) => serve_command(&args, stop).await?,
        Command::Check(args) => return check::run(&args).await,
        Command::Tail(args) => unless_stopped(&stop, tail::run(args)).await?,
        Command::Status(args) => unless_stopped(&stop, status::run(args)).await?,
        Command::Snapshot(command) => unless_stopped(&stop, snapshot::run(command)).await?,
        Command::Shape(command) => unless_stopped(&stop, shape::run(command)).await?,
        Command::Mirror(command) => {
            return tokio::select! {
                result = mirror::run(command) => result,
                () = stop.cancelled() => Err(anyhow::anyhow!("stopped before every row was compared")),
            };
        }
        Command::Demo(args) => demo::run(&args, stop).await?,
        Command::Source(command) => source::run(&command).await?,
        Command::Ddl(command) => return ddl::run(&command).await,
        Command::Config(ConfigCommand::Reference) => print!("{}", config::reference::markdown()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut std::io::stdout());
        }
    }
    Ok(Outcome::Done)
}

async fn serve_command(args: &ServeArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref())?;
    let telemetry = telemetry::start(&config.log)?;
    let served = async {
        let listeners = serve::Listeners::bind(&config.listen, "listen").await?;
        serve::run(config, listeners, stop).await
    };
    let served = served.await;
    telemetry.shutdown().await;
    served
}

/// A reader can be left at any moment: nothing needs to be tidied up.
async fn unless_stopped(
    stop: &CancellationToken,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        result = work => result,
        () = stop.cancelled() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
