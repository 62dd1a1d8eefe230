//! `tidegate tail`: prints the changes of a running server as they come.
//!
//! Invariant: each change is printed once, also when the connection is lost within its transaction: what comes again has
//! the same position, and a chunk of a snapshot, whose reads share one, the same order. Only a snapshot out of the server's mirror
//! reads rows again, at other positions, after a lost connection. How it ends: after `--limit` changes, at a signal, or when the
//! reader of the output leaves; except for the last, where to go on is said on standard error.

use std::{
    io::{self, BufWriter, Write},
    num::NonZeroU64,
    time::Duration,
};

use anyhow::bail;
use tidegate_client::{Change, Changes, Event, Op, Position, Shape, Start, Subscription, Token};
use tokio::time::timeout;

use crate::{
    remote::RemoteArgs,
    render::{Format, PrintError, Printer},
    shape_args::ValueArgs,
};

/// How long the Commit behind the last change is waited for.
const COMMIT_WAIT: Duration = Duration::from_secs(1);

/// What to print.
#[derive(clap::Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// The source; needed where the server has several.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// A table or pattern, such as orders, shop.orders, 'public.*', or '!public.audit_*' to leave out. Repeatable;
    /// without it, every table.
    #[arg(long = "table", value_name = "TABLE", allow_hyphen_values = true)]
    tables: Vec<String>,
    /// A named shape instead of tables, with --param for its parameters; `tidegate shape list` prints them.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["tables", "condition", "columns", "operations"])]
    shape: Option<String>,
    /// Only the rows of the one table for which this is true, and the changes that concern them: what a WHERE would say, with $1,
    /// $2, … for --param. The table has to be mirrored, or to have REPLICA IDENTITY FULL.
    #[arg(long = "where", value_name = "CONDITION", requires = "tables")]
    condition: Option<String>,
    #[command(flatten)]
    values: ValueArgs,
    /// Only these columns, besides the key.
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    columns: Vec<String>,
    /// Only these operations: insert, update, delete, truncate, message, and read, a row of a snapshot.
    #[arg(long = "op", value_name = "OP,…", value_delimiter = ',', conflicts_with = "condition")]
    operations: Vec<Op>,
    /// Where to start: now, earliest, snapshot (with the rows that the tables have), or a token.
    #[arg(long, value_name = "now|earliest|snapshot|TOKEN", default_value = "now", value_parser = start)]
    from: Start,
    /// Also print the rows of snapshots that someone starts (`tidegate snapshot start`).
    #[arg(long)]
    snapshots: bool,
    /// End after this many changes.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroU64>,
    /// One JSON object a line, with position, commit_time, xid, op, table, key, row, old and unchanged, and with --where, move.
    #[arg(long)]
    json: bool,
    /// No colours, also on a terminal. So does the environment variable NO_COLOR.
    #[arg(long)]
    no_color: bool,
}

/// Prints until the limit is reached or the output takes no more.
pub(crate) async fn run(args: TailArgs) -> anyhow::Result<()> {
    let client = args.remote.connect().await?;
    let format = Format::for_stdout(args.json, args.no_color);
    let limit = args.limit.map_or(u64::MAX, NonZeroU64::get);
    let changes = client.subscribe(args.subscription()?);
    let mut hint = ResumeHint(None);
    let printer = Printer::new(BufWriter::new(io::stdout()), format);
    match print(changes, printer, limit, &mut hint).await {
        Ok(()) => Ok(()),
        Err(error) if reader_left(&error) => {
            hint.0 = None;
            Ok(())
        }
        Err(error) => Err(error),
    }
}

impl TailArgs {
    fn subscription(self) -> anyhow::Result<Subscription> {
        let selected = match (self.shape, self.condition) {
            (Some(name), _) => Subscription::shape(self.values.of(Shape::named(name))),
            (None, Some(condition)) => {
                let [table] = self.tables.as_slice() else { bail!("--where is about one table: give --table once") };
                Subscription::shape(self.values.of(Shape::of(table).matching(condition).columns(self.columns)))
            }
            (None, None) if !self.values.is_empty() => bail!("--param goes with --shape or --where"),
            (None, None) => Subscription::tables(self.tables).columns(self.columns).operations(self.operations),
        };
        Ok(selected.source(self.source.unwrap_or_default()).snapshots(self.snapshots).from(self.from))
    }
}

async fn print(
    mut changes: Changes,
    mut printer: Printer<impl Write>,
    limit: u64,
    hint: &mut ResumeHint,
) -> anyhow::Result<()> {
    let mut printed = Printed::default();
    let mut count = 0;
    loop {
        let Some(mut batch) = changes.next_batch().await? else { return Ok(()) };
        while count < limit
            && let Some(event) = batch.next()
        {
            match &event {
                Event::Change(change) if !printed.is_new(change) => continue,
                Event::Begin { snapshot, .. } => printed.begin(*snapshot),
                Event::Opened { token, .. }
                | Event::Commit { token }
                | Event::Progress { token, .. }
                | Event::SnapshotBegin { token, .. }
                | Event::SnapshotEnd { token, .. }
                | Event::SnapshotAbandoned { token, .. } => {
                    hint.0 = Some(token.clone());
                }
                Event::Interrupted { cause, retry_in } => {
                    eprintln!("tidegate: {cause}; trying again in {:.1} s", retry_in.as_secs_f64());
                }
                Event::Reset { reason, detail } => {
                    hint.0 = None;
                    bail!("continuity is lost ({reason:?}): {detail}; start again without a token");
                }
                Event::Preparing { table, rows_read, rows_estimated, detail } => {
                    eprintln!("tidegate: {}", preparing(table, (*rows_read, *rows_estimated), detail));
                }
                Event::Drain { .. } => eprintln!("tidegate: the server is stopping; looking for it again"),
                Event::Change(_) | Event::RowType(_) | Event::Abort => {}
            }
            count += u64::from(printer.print(&event)?);
        }
        let next = batch.next();
        drop(batch);
        printer.flush()?;
        if count == limit {
            finish(&mut changes, next, hint).await;
            return Ok(());
        }
    }
}

fn preparing(table: &str, (rows_read, rows_estimated): (u64, u64), detail: &str) -> String {
    let of = if rows_estimated > rows_read { format!(" of about {rows_estimated}") } else { String::new() };
    let why = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    format!("the server reads {table} for the first time: {rows_read}{of} rows{why}")
}

/// What was printed last: a position, and how many changes at it.
#[derive(Default)]
struct Printed {
    position: Position,
    count: usize,
    /// Changes of the open transaction or chunk that have come at its last position.
    come: (Position, usize),
    /// A chunk of the mirror is open, none of which comes again.
    is_of_mirror: bool,
}

/// Snapshots out of the server's mirror have numbers from here on.
const OF_MIRROR: u32 = 1 << 31;

impl Printed {
    /// Another transaction, or chunk, or the same again.
    fn begin(&mut self, snapshot: u32) {
        (self.come, self.is_of_mirror) = ((Position::ZERO, 0), snapshot >= OF_MIRROR);
    }

    /// Has the change not been printed? Then it counts as printed. Only reads share a position.
    fn is_new(&mut self, change: &Change) -> bool {
        if self.is_of_mirror {
            return true;
        }
        let (position, count) = &mut self.come;
        *count = if *position == change.position { *count + 1 } else { 1 };
        *position = change.position;
        let is_new = (*position, *count) > (self.position, self.count);
        if is_new {
            (self.position, self.count) = (*position, *count);
        }
        is_new
    }
}

/// If what was printed last ends its transaction, its Commit is the next event, of the same batch or of the one that follows:
/// going on from there does not print the transaction again.
async fn finish(changes: &mut Changes, mut next: Option<Event>, hint: &mut ResumeHint) {
    if next.is_none()
        && let Ok(Ok(Some(mut batch))) = timeout(COMMIT_WAIT, changes.next_batch()).await
    {
        next = batch.next();
    }
    if let Some(Event::Commit { token }) = next {
        hint.0 = Some(token);
    }
}

/// Says where to go on, however the command ends.
struct ResumeHint(Option<Token>);

impl Drop for ResumeHint {
    fn drop(&mut self) {
        if let Some(token) = &self.0 {
            eprintln!("resume with --from {token}");
        }
    }
}

fn reader_left(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<PrintError>() {
        Some(PrintError::Output(error)) => error.kind() == io::ErrorKind::BrokenPipe,
        Some(PrintError::Row(_)) | None => false,
    }
}

fn start(text: &str) -> Result<Start, String> {
    match text {
        "now" => Ok(Start::Now),
        "earliest" => Ok(Start::Earliest),
        "snapshot" => Ok(Start::Snapshot),
        token => {
            token.parse().map(Start::Token).map_err(|error| format!("not now, earliest or snapshot, and a {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use tidegate_client::{Move, OldKind};

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        tail: TailArgs,
    }

    #[test]
    fn options_say_what_to_print() {
        let line = ["tail", "--table", "a", "--table", "!public.b*", "--op", "insert,delete", "--columns", "x,y"];
        let args = Cli::try_parse_from(line).expect("valid").tail;
        assert_eq!(args.tables, ["a", "!public.b*"]);
        assert_eq!(args.operations, [Op::Insert, Op::Delete]);
        assert_eq!(args.columns, ["x", "y"]);
        assert_eq!(args.from, Start::Now);
    }

    #[test]
    fn a_start_is_now_earliest_or_a_token() {
        assert_eq!(start("earliest"), Ok(Start::Earliest));
        assert_eq!(start("snapshot"), Ok(Start::Snapshot));
        assert!(matches!(start("1-ab-0-cd.16/B374D848:3"), Ok(Start::Token(_))));
        assert!(start("yesterday").is_err_and(|message| message.contains("now, earliest or snapshot")));
    }

    #[test]
    fn what_comes_again_is_printed_once_also_within_a_chunk() {
        let change = |lsn, ordinal| Change {
            position: Position { lsn, ordinal },
            op: Op::Read,
            selection: 0,
            row_type: None,
            row: bytes::Bytes::new(),
            old: bytes::Bytes::new(),
            old_kind: OldKind::None,
            unchanged: Vec::new(),
            moved: Move::default(),
            message: None,
            truncate: None,
        };
        let mut printed = Printed::default();
        let mut news = |changes: &[Change]| {
            printed.begin(0);
            changes.iter().map(|change| printed.is_new(change)).collect::<Vec<_>>()
        };
        let chunk = vec![change(5, 1 << 31); 3];
        assert_eq!(news(&[change(5, 1), change(5, 2)]), [true, true]);
        assert_eq!(news(&chunk[..2]), [true, true]);
        assert_eq!(news(&chunk), [false, false, true]);
        assert_eq!(news(&chunk), [false, false, false]);
        assert_eq!(news(&[change(6, 1)]), [true]);
        assert_eq!(news(&[change(6, 1), change(6, 2)]), [false, true]);
    }

    #[test]
    fn unknown_operations_and_a_limit_of_nothing_are_refused() {
        assert!(Cli::try_parse_from(["tail", "--op", "upsert"]).is_err());
        assert!(Cli::try_parse_from(["tail", "--limit", "0"]).is_err());
    }

    #[test]
    fn only_a_reader_that_left_is_a_quiet_end() {
        let output = |kind| anyhow::Error::from(PrintError::Output(io::Error::from(kind)));
        assert!(reader_left(&output(io::ErrorKind::BrokenPipe)));
        assert!(!reader_left(&output(io::ErrorKind::StorageFull)));
    }
}
