//! `tidegate tail`: prints the changes of a running server as they come.
//!
//! Invariant: each change is printed once, also when the connection is lost within its transaction: what comes again has
//! the same position. How it ends: after `--limit` changes, at a signal, or when the reader of the output leaves;
//! except for the last, where to go on is said on standard error.

use std::{
    io::{self, BufWriter, Write},
    num::NonZeroU64,
    time::Duration,
};

use anyhow::bail;
use tidegate_client::{Changes, Event, Op, Position, Start, Subscription, Token};
use tokio::time::timeout;

use crate::{
    remote::RemoteArgs,
    render::{Format, PrintError, Printer},
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
    /// Only these columns, besides the key.
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',')]
    columns: Vec<String>,
    /// Only these operations: insert, update, delete, truncate, message.
    #[arg(long = "op", value_name = "OP,…", value_delimiter = ',')]
    operations: Vec<Op>,
    /// Where to start: now, earliest, or a token.
    #[arg(long, value_name = "now|earliest|TOKEN", default_value = "now", value_parser = start)]
    from: Start,
    /// End after this many changes.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroU64>,
    /// One JSON object a line, with position, commit_time, xid, op, table, key, row, old and unchanged.
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
    let changes = client.subscribe(args.subscription());
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
    fn subscription(self) -> Subscription {
        Subscription::tables(self.tables)
            .columns(self.columns)
            .operations(self.operations)
            .source(self.source.unwrap_or_default())
            .from(self.from)
    }
}

async fn print(
    mut changes: Changes,
    mut printer: Printer<impl Write>,
    limit: u64,
    hint: &mut ResumeHint,
) -> anyhow::Result<()> {
    let mut printed = Position::ZERO;
    let mut count = 0;
    loop {
        let Some(mut batch) = changes.next_batch().await? else { return Ok(()) };
        while count < limit
            && let Some(event) = batch.next()
        {
            match &event {
                Event::Change(change) if change.position <= printed => continue,
                Event::Change(change) => printed = change.position,
                Event::Opened { token, .. } | Event::Commit { token } | Event::Progress { token, .. } => {
                    hint.0 = Some(token.clone());
                }
                Event::Interrupted { cause, retry_in } => {
                    eprintln!("tidegate: {cause}; trying again in {:.1} s", retry_in.as_secs_f64());
                }
                Event::Reset { reason, detail } => {
                    hint.0 = None;
                    bail!("continuity is lost ({reason:?}): {detail}; start again without a token");
                }
                Event::Drain { .. } => eprintln!("tidegate: the server is stopping; looking for it again"),
                Event::Begin { .. } | Event::RowType(_) | Event::Abort => {}
            }
            count += u64::from(printer.print(&event)?);
        }
        let at_the_last = batch.len() == 0;
        drop(batch);
        printer.flush()?;
        if count == limit {
            if at_the_last {
                finish(&mut changes, hint).await;
            }
            return Ok(());
        }
    }
}

/// If what was printed last ends its transaction, its Commit is the next message: going on from there does not print the
/// transaction again.
async fn finish(changes: &mut Changes, hint: &mut ResumeHint) {
    if let Ok(Ok(Some(mut batch))) = timeout(COMMIT_WAIT, changes.next_batch()).await
        && let Some(Event::Commit { token }) = batch.next()
    {
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
        token => token.parse().map(Start::Token).map_err(|error| format!("not now or earliest, and a {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

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
        assert!(matches!(start("1-ab-0-cd.16/B374D848:3"), Ok(Start::Token(_))));
        assert!(start("yesterday").is_err_and(|message| message.contains("now or earliest")));
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
