//! `tidegate status`: the sources of a running server.

use std::io::{self, Write};

use serde_json::{Value, json};
use tidegate_client::{MirrorState, MirroredTable, NewTable, SourceState, SourceStatus, SubscriptionStatus};

use crate::remote::RemoteArgs;

/// How to print it.
#[derive(clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// One JSON document.
    #[arg(long)]
    json: bool,
}

/// Prints the sources.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let sources = args.remote.connect().await?.sources().await?;
    let text = if args.json { json(&sources) } else { table(&sources) };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

const HEAD: [&str; 10] =
    ["SOURCE", "STATE", "LAG", "RECEIVED", "DURABLE", "CONFIRMED", "RETAINED WAL", "CHANGELOG", "HEAD", "SUBSCRIBERS"];

fn table(sources: &[SourceStatus]) -> String {
    let rows: Vec<[String; 10]> = sources.iter().map(row).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).chain([HEAD[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |cells: [&str; 10]| {
        let cells: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let mut text = line(HEAD);
    for (source, row) in sources.iter().zip(&rows) {
        text.push_str(&line(row.each_ref().map(String::as_str)));
        if !source.detail.is_empty() {
            text.push_str(&format!("  {}\n", source.detail));
        }
        text.push_str(&mirror(&source.mirror));
        for NewTable { table, detail } in &source.new_tables {
            text.push_str(&format!("  table {table}: {detail}\n"));
        }
        for SubscriptionStatus { subscription, position, acked_position, credit_bytes } in &source.subscriptions {
            text.push_str(&format!(
                "  subscription {subscription}: delivered {position}, acknowledged {acked_position}, credit {credit_bytes} B\n"
            ));
        }
    }
    text
}

/// The tables that are not complete one by one; those that are, in a number.
fn mirror(tables: &[MirroredTable]) -> String {
    let is_complete = |table: &&MirroredTable| table.state() == MirrorState::Complete;
    let mut text = match tables {
        [] => String::new(),
        tables => {
            format!("  mirror: {} of {} tables complete\n", tables.iter().filter(is_complete).count(), tables.len())
        }
    };
    for table in tables.iter().filter(|table| !is_complete(table)) {
        text.push_str(&format!("  mirror of {}: {}", table.table, mirror_state(table.state())));
        if matches!(table.state(), MirrorState::Building | MirrorState::Verifying) && table.snapshot > 0 {
            text.push_str(&format!(", see snapshot {}", table.snapshot));
        }
        text.push_str(&if table.detail.is_empty() { "\n".to_owned() } else { format!(": {}\n", table.detail) });
    }
    text
}

fn mirror_state(state: MirrorState) -> &'static str {
    match state {
        MirrorState::Unknown => "unknown",
        MirrorState::Waiting => "waiting",
        MirrorState::Building => "building",
        MirrorState::Complete => "complete",
        MirrorState::Unsupported => "unsupported",
        MirrorState::Failed => "failed",
        MirrorState::Verifying => "verifying",
    }
}

fn row(source: &SourceStatus) -> [String; 10] {
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        source.name.clone(),
        state(source.state()).to_owned(),
        bytes(source.lag_bytes),
        or_none(&source.received_lsn),
        or_none(&source.durable_lsn),
        or_none(&source.confirmed_flush_lsn),
        bytes(source.retained_wal_bytes),
        bytes(source.changelog_bytes),
        or_none(&source.head_position),
        source.subscribers.to_string(),
    ]
}

fn state(state: SourceState) -> &'static str {
    match state {
        SourceState::Unknown => "unknown",
        SourceState::Connecting => "connecting",
        SourceState::Streaming => "streaming",
        SourceState::Stopped => "stopped",
        SourceState::DiskFull => "disk full",
    }
}

/// In the largest unit that leaves a number of at least 1.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let power = count.ilog2() / 10;
    let value = count as f64 / 1024_f64.powi(i32::try_from(power).expect("at most 6"));
    format!("{value:.1} {}", UNITS[power as usize - 1])
}

fn json(sources: &[SourceStatus]) -> String {
    let sources: Vec<Value> = sources
        .iter()
        .map(|source| {
            json!({
                "name": source.name,
                "state": state(source.state()),
                "detail": source.detail,
                "epoch": source.epoch,
                "received_lsn": source.received_lsn,
                "durable_lsn": source.durable_lsn,
                "confirmed_flush_lsn": source.confirmed_flush_lsn,
                "server_lsn": source.server_lsn,
                "retained_wal_bytes": source.retained_wal_bytes,
                "lag_bytes": source.lag_bytes,
                "last_heard": source.last_heard.map(|time| time.to_string()),
                "earliest_position": source.earliest_position,
                "head_position": source.head_position,
                "changelog_bytes": source.changelog_bytes,
                "subscribers": source.subscribers,
                "server_version": source.server_version,
                "slot": source.slot,
                "publication": source.publication,
                "mirror": source.mirror.iter().map(mirrored_table).collect::<Vec<_>>(),
                "new_tables": source.new_tables.iter().map(new_table).collect::<Vec<_>>(),
                "subscriptions": source.subscriptions.iter().map(subscription).collect::<Vec<_>>(),
            })
        })
        .collect();
    format!("{:#}\n", json!({ "sources": sources }))
}

fn mirrored_table(of: &MirroredTable) -> Value {
    json!({
        "table": of.table,
        "state": mirror_state(of.state()),
        "detail": of.detail,
        "snapshot": (of.snapshot != 0).then_some(of.snapshot),
    })
}

fn new_table(of: &NewTable) -> Value {
    json!({ "table": of.table, "detail": of.detail })
}

fn subscription(of: &SubscriptionStatus) -> Value {
    json!({
        "subscription": of.subscription,
        "position": of.position,
        "acked_position": of.acked_position,
        "credit_bytes": of.credit_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> SourceStatus {
        SourceStatus {
            name: "shop".into(),
            state: SourceState::Streaming as i32,
            received_lsn: "0/15A3F48".into(),
            retained_wal_bytes: 5 << 20,
            subscribers: 3,
            ..SourceStatus::default()
        }
    }

    #[test]
    fn columns_are_as_wide_as_what_stands_in_them() {
        let stopped = SourceStatus { name: "a_long_source_name".into(), detail: "create the slot".into(), ..shop() };
        let text = table(&[shop(), stopped]);
        let lines: Vec<&str> = text.lines().collect();
        let at = lines[0].find("STATE").expect("a column");
        assert!(lines[1][at..].starts_with("streaming") && lines[2][at..].starts_with("streaming"));
        assert_eq!(lines[3], "  create the slot");
        assert!(lines[1].contains("5.0 MiB") && lines[1].contains(" -  "));
    }

    #[test]
    fn mirrored_tables_that_are_not_complete_are_named_with_the_reason() {
        let table = |table: &str, state: MirrorState, detail: &str| MirroredTable {
            table: table.to_owned(),
            state: state as i32,
            detail: detail.to_owned(),
            snapshot: 7,
        };
        let tables = [
            table("public.a", MirrorState::Complete, ""),
            table("public.b", MirrorState::Building, ""),
            table("public.c", MirrorState::Unsupported, "no key"),
        ];
        assert_eq!(
            mirror(&tables),
            "  mirror: 1 of 3 tables complete\n  mirror of public.b: building, see snapshot 7\n  mirror of public.c: \
             unsupported: no key\n"
        );
    }

    #[test]
    fn sizes_have_units_that_fit() {
        let shown: Vec<_> = [0, 1023, 1024, 1 << 30, u64::MAX].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 GiB", "16.0 EiB"]);
    }

    #[test]
    fn json_is_one_document() {
        let document: Value = serde_json::from_str(&json(&[shop()])).expect("JSON");
        assert_eq!(document["sources"][0]["subscribers"], 3);
        assert_eq!(document["sources"][0]["last_heard"], Value::Null);
    }
}
