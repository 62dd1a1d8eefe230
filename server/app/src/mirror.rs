//! `tidegate mirror`: the mirror of a running server.

use std::pin::pin;

use anyhow::Context;
use clap::Subcommand;
use futures_util::StreamExt;
use serde_json::Value;
use tidegate_client::{MirrorComparison, MirrorDifference, MirrorDifferenceKind, RowType};

use crate::{Outcome, remote::RemoteArgs};

/// About the mirror.
#[derive(Subcommand)]
pub(crate) enum MirrorCommand {
    /// Compare a table's mirror with PostgreSQL, by reading the table once; what differs is printed and put right. Exit code 3 if
    /// something differs.
    Verify {
        /// The table.
        #[arg(value_name = "TABLE")]
        table: String,
        /// The source; needed where the server has several.
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        source: String,
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Runs the command.
///
/// # Errors
/// The server refuses or cannot be reached, or the comparison breaks off.
pub(crate) async fn run(command: MirrorCommand) -> anyhow::Result<Outcome> {
    let MirrorCommand::Verify { table, source, remote } = command;
    let client = remote.connect().await?;
    let comparisons = client.verify_mirror(&source, &table).await?;
    let row_type = client.table(&source, &table).await?;
    let mut comparisons = pin!(comparisons);
    while let Some(comparison) = comparisons.next().await {
        let comparison = comparison?;
        for difference in &comparison.differences {
            println!("{}", difference_line(&row_type, difference)?);
        }
        if comparison.done {
            println!("{}", summary(&comparison));
            return Ok(if comparison.rows_different == 0 { Outcome::Done } else { Outcome::Findings });
        }
        eprintln!("snapshot {}: {} rows compared", comparison.snapshot, comparison.rows_compared);
    }
    anyhow::bail!("the server has ended the comparison; verify the table again")
}

fn difference_line(row_type: &RowType, difference: &MirrorDifference) -> anyhow::Result<String> {
    let what = match difference.kind() {
        MirrorDifferenceKind::Missing => "was not in the mirror",
        MirrorDifferenceKind::Different => "had other values in the mirror",
        MirrorDifferenceKind::Extra => "is not in PostgreSQL, and was in the mirror",
        MirrorDifferenceKind::Unknown => "differs",
    };
    let key = difference.key.clone().context("the server names no key")?;
    let key = row_type.json(&row_type.dynamic(&key.value.into())?, |column| column.key)?;
    Ok(format!("{} {what}", Value::Object(key)))
}

fn summary(comparison: &MirrorComparison) -> String {
    let MirrorComparison { snapshot, rows_compared, rows_incomplete, rows_different, .. } = comparison;
    let incomplete = match rows_incomplete {
        0 => String::new(),
        count => format!("; {count} have values that the mirror has not received, which it does not use"),
    };
    match rows_different {
        0 => format!("{rows_compared} rows compared by snapshot {snapshot}: no difference{incomplete}"),
        count => format!(
            "{rows_compared} rows compared by snapshot {snapshot}: {count} differed, and are put right{incomplete}; please report \
             it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_differences_from_values_that_are_not_known() {
        let comparison = MirrorComparison { snapshot: 3, rows_compared: 9, rows_incomplete: 2, ..Default::default() };
        let text = summary(&comparison);
        assert!(text.contains("no difference") && text.contains("2 have values"), "{text}");
        assert!(summary(&MirrorComparison { rows_different: 1, ..comparison }).contains("1 differed"));
    }
}
