//! `tidegate tail --from snapshot` reads a table from PostgreSQL amid writers: its lines, applied as they come, are the table.

use std::{collections::BTreeMap, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use serde_json::Value;
use tidegate_integration_tests::{
    Cluster, DEADLINE, HeldRow, HeldTable, Seed, Server, ServerConfig, Writers, held_by_postgres, must_equal,
    tidegate_binary,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

fn texts(row: &Value) -> Result<HeldRow> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    Ok(row.as_object().context("a row")?.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

fn id(row: &Value) -> Result<Vec<String>> {
    Ok(vec![row["id"].as_i64().context("an id")?.to_string()])
}

/// Applies a line, and counts what it was.
fn apply(line: &Value, held: &mut HeldTable, counts: &mut BTreeMap<String, usize>) -> Result<()> {
    let op = line["op"].as_str().context("an operation")?;
    *counts.entry(op.to_owned()).or_default() += 1;
    if op == "delete" {
        held.remove(&id(&line["key"])?);
        return Ok(());
    }
    if !line["old"].is_null() {
        held.remove(&id(&line["old"])?);
    }
    ensure!(line["unchanged"].as_array().is_some_and(Vec::is_empty), "{line}");
    held.insert(id(&line["row"])?, texts(&line["row"])?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tail_prints_from_a_snapshot_amid_writers_is_the_table() -> Result<()> {
    const ROWS: usize = 12_000;
    let database = Cluster::shared().await?.database("tailed").await?;
    database
        .execute(&format!(
            "create table t (id int primary key, v int); insert into t select n, 0 from generate_series(1, {ROWS}) n"
        ))
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {rows_per_second: 6000}".to_owned());
    let server = Server::start(config).await?;
    let writers = Writers::start(2, (database.url(), Seed::from_environment()), |random| {
        let (id, other) = (random.random_range(1..ROWS), random.random_range(1..2 * ROWS));
        match random.random_range(0..4_u32) {
            0 => format!("insert into t values ({other}, -1) on conflict do nothing"),
            1 => format!("delete from t where id = {id}"),
            2 => format!("update t set id = {other} where id = {id} and not exists (select from t where id = {other})"),
            _ => format!("update t set v = v + 1 where id between {id} and {id} + 5"),
        }
    });
    let mut command = Command::new(tidegate_binary()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
        command.env_remove(name);
    }
    command.args(["tail", "--server", &server.endpoint(), "--table", "t", "--from", "snapshot", "--json"]);
    let mut tail = command.stdout(Stdio::piped()).stdin(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(tail.stdout.take().context("its output")?).lines();
    let (mut held, mut counts, mut paused) = (HeldTable::new(), BTreeMap::new(), None);
    let receiving = async {
        loop {
            let line = lines.next_line().await?.context("tail has ended")?;
            apply(&serde_json::from_str(&line)?, &mut held, &mut counts)?;
            if paused.is_none() && counts.get("read").is_some_and(|reads| *reads > ROWS / 2) {
                paused = Some(writers.pause().await?);
                database.execute("insert into t values (-1, -1)").await?;
            }
            // Behind the last change only rows are read, and none goes away.
            if held.contains_key(&["-1".to_owned()][..]) {
                let theirs = database.text("select count(*)::text from t").await?;
                if theirs == Some(held.len().to_string()) {
                    return anyhow::Ok(());
                }
            }
        }
    };
    match tokio::time::timeout(DEADLINE, receiving).await {
        Ok(received) => received?,
        Err(_) => bail!("{counts:?}, {} rows are held", held.len()),
    }
    tail.kill().await?;
    println!("{counts:?}");
    ensure!(["insert", "update", "delete"].iter().all(|op| counts.contains_key(*op)), "nobody wrote: {counts:?}");
    must_equal("t", &held, &held_by_postgres(&database, "t", &["id"]).await?)
}
