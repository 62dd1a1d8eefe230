//! `tidegate snapshot`: snapshots as jobs of a running server. What `watch` and `start` show is a view: leaving it with
//! Ctrl-C leaves the snapshot running.

use std::{
    io::{self, IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use clap::Subcommand;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tidegate_client::{Client, Retry, SnapshotState, SnapshotStatus, SnapshotTable};
use tokio::time::sleep;

use crate::{remote::ServerArgs, snapshot_part::PartArgs};

/// Characters of the bar.
const BAR_WIDTH: usize = 24;
/// How long to wait before a lost connection is opened again.
const RETRY: Duration = Duration::from_secs(1);

/// Run snapshots of tables.
#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Start a snapshot, or join the one of the same that has not begun yet, and show how it goes. Subscriptions that ask for snapshots
    /// receive its rows (`tidegate tail --snapshots` does).
    Start {
        /// Tables or patterns, such as orders or 'public.*'; without any, every table.
        #[arg(value_name = "TABLE")]
        tables: Vec<String>,
        #[command(flatten)]
        part: PartArgs,
        /// Print its number and leave.
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Print the snapshots that have not ended, and the last that have.
    List {
        /// One JSON document.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show how a snapshot goes, until it has ended.
    Watch(OneArgs),
    /// Let a snapshot wait; it keeps what it has.
    Pause(OneArgs),
    /// Let a paused snapshot go on.
    Resume(OneArgs),
    /// Give a snapshot up; subscriptions that wait for its end are reset.
    Cancel(OneArgs),
}

/// Which snapshot.
#[derive(clap::Args)]
pub(crate) struct OneArgs {
    /// Its number.
    #[arg(value_name = "SNAPSHOT")]
    snapshot: u32,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs the command.
///
/// # Errors
/// The server refuses or cannot be reached, or a snapshot that is watched does not end well.
pub(crate) async fn run(command: SnapshotCommand) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Start { tables, part, detach, server } => {
            let parts = part.parts(&tables)?;
            let client = server.remote.connect().await?;
            let started = match parts.is_empty() {
                true => client.start_snapshot(&server.source, tables).await?,
                false => client.start_snapshot_of_parts(&server.source, parts).await?,
            };
            println!("snapshot {} of {}", started.snapshot, started.tables.join(", "));
            if detach { Ok(()) } else { watch(&client, &server.source, started.snapshot).await }
        }
        SnapshotCommand::List { json, server } => {
            let snapshots = server.remote.connect().await?.snapshots(&server.source).await?;
            let text = if json { self::json(&snapshots) } else { list(&snapshots) };
            match io::stdout().write_all(text.as_bytes()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
                Ok(()) | Err(_) => Ok(()),
            }
        }
        SnapshotCommand::Watch(OneArgs { snapshot, server }) => {
            watch(&server.remote.connect().await?, &server.source, snapshot).await
        }
        SnapshotCommand::Pause(OneArgs { snapshot, server }) => {
            server.remote.connect().await?.pause_snapshot(&server.source, snapshot).await?;
            println!("snapshot {snapshot} waits; `tidegate snapshot resume {snapshot}` lets it go on");
            Ok(())
        }
        SnapshotCommand::Resume(OneArgs { snapshot, server }) => {
            server.remote.connect().await?.resume_snapshot(&server.source, snapshot).await?;
            println!("snapshot {snapshot} goes on");
            Ok(())
        }
        SnapshotCommand::Cancel(OneArgs { snapshot, server }) => {
            server.remote.connect().await?.cancel_snapshot(&server.source, snapshot).await?;
            println!("snapshot {snapshot} is given up");
            Ok(())
        }
    }
}

/// Shows a snapshot until it has ended; over lost connections.
async fn watch(client: &Client, source: &str, snapshot: u32) -> anyhow::Result<()> {
    let mut view = View::new();
    loop {
        let lost = match client.watch_snapshot(source, snapshot).await {
            Ok(statuses) => {
                let mut statuses = pin!(statuses);
                loop {
                    match statuses.next().await {
                        Some(Ok(status)) => {
                            view.show(&status)?;
                            if let Some(ended) = outcome(&status) {
                                return ended;
                            }
                        }
                        Some(Err(error)) => break Some(error),
                        // The server is stopping.
                        None => break None,
                    }
                }
            }
            Err(error) => Some(error),
        };
        if let Some(error) = lost {
            match error.retry() {
                Retry::After(_) => view.say(&format!("tidegate: {error}; trying again"))?,
                Retry::Never | Retry::Reset => return Err(error.into()),
            }
        }
        sleep(RETRY).await;
    }
}

/// How it has ended; None while it goes on.
fn outcome(status: &SnapshotStatus) -> Option<anyhow::Result<()>> {
    let ended = |how: &str| {
        let because = if status.detail.is_empty() { String::new() } else { format!(": {}", status.detail) };
        Some(Err(anyhow::anyhow!("snapshot {} {how}{because}", status.snapshot)))
    };
    match status.state() {
        SnapshotState::Done => Some(Ok(())),
        SnapshotState::Cancelled => ended("was cancelled"),
        SnapshotState::Failed => ended("has failed"),
        SnapshotState::Unknown
        | SnapshotState::Queued
        | SnapshotState::Running
        | SnapshotState::Paused
        | SnapshotState::Waiting => None,
    }
}

/// A line that is written anew on a terminal, and lines elsewhere.
struct View {
    on_terminal: bool,
    /// What stands on the line.
    shown: String,
}

impl View {
    fn new() -> Self {
        View { on_terminal: io::stdout().is_terminal(), shown: String::new() }
    }

    fn show(&mut self, status: &SnapshotStatus) -> io::Result<()> {
        let line = progress_line(status);
        if line == self.shown {
            return Ok(());
        }
        let mut out = io::stdout();
        if self.on_terminal {
            // Back to the line's start; what was longer is erased.
            write!(out, "\r{line}\x1b[K")?;
            if outcome(status).is_some() {
                writeln!(out)?;
            }
        } else {
            writeln!(out, "{line}")?;
        }
        self.shown = line;
        out.flush()
    }

    fn say(&self, line: &str) -> io::Result<()> {
        if self.on_terminal && !self.shown.is_empty() {
            writeln!(io::stdout())?;
        }
        writeln!(io::stderr(), "{line}")
    }
}

/// `running  [████      ]  40%  40000 of about 100000 rows  5000 rows/s  12 s left`.
fn progress_line(status: &SnapshotStatus) -> String {
    let SnapshotStatus { rows_read, rows_estimated, rows_per_second, .. } = status;
    let mut parts = vec![state(status.state()).to_owned()];
    match rows_estimated {
        _known if status.state() == SnapshotState::Done => parts.push(format!("{rows_read} rows")),
        0 => parts.push(format!("{rows_read} rows")),
        estimated => {
            // The estimate may be too low; it is done only when it says so.
            let percent = (u128::from(*rows_read) * 100 / u128::from(*estimated)).min(99);
            let percent = usize::try_from(percent).expect("at most 99");
            let full = percent * BAR_WIDTH / 100;
            parts.push(format!("[{}{}]", "█".repeat(full), " ".repeat(BAR_WIDTH - full)));
            parts.push(format!("{percent}%"));
            parts.push(format!("{rows_read} of about {estimated} rows"));
        }
    }
    if status.state() == SnapshotState::Running && *rows_per_second > 0 {
        parts.push(format!("{rows_per_second} rows/s"));
        let left = rows_estimated.saturating_sub(*rows_read).div_ceil(*rows_per_second);
        if left > 0 {
            parts.push(format!("{} left", humantime::format_duration(Duration::from_secs(left))));
        }
    }
    if !status.detail.is_empty() {
        parts.push(status.detail.chars().map(|c| if c.is_control() { ' ' } else { c }).collect());
    }
    parts.join("  ")
}

fn state(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Unknown => "unknown",
        SnapshotState::Queued => "queued",
        SnapshotState::Running => "running",
        SnapshotState::Paused => "paused",
        SnapshotState::Waiting => "waiting",
        SnapshotState::Done => "done",
        SnapshotState::Cancelled => "cancelled",
        SnapshotState::Failed => "failed",
    }
}

/// Each snapshot and, below it, its tables.
fn list(snapshots: &[SnapshotStatus]) -> String {
    if snapshots.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let mut text = String::new();
    for status in snapshots {
        text.push_str(&format!("{}  {}  {}\n", status.snapshot, status.source, progress_line(status)));
        for table in &status.tables {
            let done = if table.state() == SnapshotState::Done { ", done" } else { "" };
            text.push_str(&format!("    {}  {} rows{done}{}\n", table.table, table.rows_read, part(table)));
        }
    }
    text
}

/// Which part of the table is read, if not all of it.
fn part(table: &SnapshotTable) -> String {
    match (table.r#where.as_str(), table.keys) {
        ("", 0) => String::new(),
        ("", keys) => format!(", of {keys} keys"),
        (condition, _) => {
            format!(", where {}", condition.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
        }
    }
}

fn json(snapshots: &[SnapshotStatus]) -> String {
    let table = |table: &SnapshotTable| {
        json!({
            "table": table.table,
            "state": state(table.state()),
            "rows_read": table.rows_read,
            "rows_estimated": table.rows_estimated,
            "where": table.r#where,
            "keys": table.keys,
        })
    };
    let snapshot = |status: &SnapshotStatus| {
        json!({
            "snapshot": status.snapshot,
            "source": status.source,
            "state": state(status.state()),
            "detail": status.detail,
            "tables": status.tables.iter().map(table).collect::<Vec<_>>(),
            "rows_read": status.rows_read,
            "rows_estimated": status.rows_estimated,
            "rows_per_second": status.rows_per_second,
            "started": status.started.map(|time| time.to_string()),
            "ended": status.ended.map(|time| time.to_string()),
            "begin": status.begin,
            "ad_hoc": status.ad_hoc,
        })
    };
    let snapshots: Vec<Value> = snapshots.iter().map(snapshot).collect();
    format!("{:#}\n", json!({ "snapshots": snapshots }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: SnapshotState, rows_read: u64, rows_estimated: u64) -> SnapshotStatus {
        SnapshotStatus { snapshot: 3, state: state as i32, rows_read, rows_estimated, ..SnapshotStatus::default() }
    }

    #[test]
    fn progress_shows_rows_rate_and_what_is_left() {
        let running = SnapshotStatus { rows_per_second: 5000, ..status(SnapshotState::Running, 40_000, 100_000) };
        let bar = format!("[{}{}]", "█".repeat(9), " ".repeat(15));
        assert_eq!(
            progress_line(&running),
            format!("running  {bar}  40%  40000 of about 100000 rows  5000 rows/s  12s left")
        );
    }

    #[test]
    fn an_estimate_that_is_too_low_or_missing_is_no_end() {
        assert!(progress_line(&status(SnapshotState::Running, 300, 200)).contains("99%"));
        assert_eq!(progress_line(&status(SnapshotState::Running, 300, 0)), "running  300 rows");
        assert_eq!(progress_line(&status(SnapshotState::Done, 300, 200)), "done  300 rows");
    }

    #[test]
    fn only_a_complete_snapshot_is_success() {
        assert!(outcome(&status(SnapshotState::Running, 0, 0)).is_none());
        assert!(outcome(&status(SnapshotState::Done, 0, 0)).is_some_and(|outcome| outcome.is_ok()));
        let failed = SnapshotStatus { detail: "the table is gone".into(), ..status(SnapshotState::Failed, 0, 0) };
        let error = outcome(&failed).expect("ended").expect_err("not well").to_string();
        assert_eq!(error, "snapshot 3 has failed: the table is gone");
    }

    #[test]
    fn a_list_has_each_table() {
        let done = SnapshotTable {
            table: "public.orders".into(),
            state: SnapshotState::Done as i32,
            rows_read: 7,
            ..SnapshotTable::default()
        };
        let listed = list(&[SnapshotStatus { tables: vec![done], ..status(SnapshotState::Running, 7, 0) }]);
        assert!(listed.contains("    public.orders  7 rows, done"), "{listed}");
        let document: Value = serde_json::from_str(&json(&[])).expect("JSON");
        assert_eq!(document["snapshots"], json!([]));
    }
}
