//! `mirror`: a backlog of updates of 600,000 rows (`BENCH_ROWS` for another number), until a gRPC subscriber has them all:
//! once with the table mirrored, so that each has its whole old row, and once without.
//!
//! Both read the same kind of backlog, written while the server is down; each run's time includes starting the process.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tidegate_client::{Client, Event, OldKind, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig};

use crate::{
    load,
    outcome::{Outcome, Target},
    receive,
};

/// Measures the case.
pub(crate) async fn run() -> Result<Outcome> {
    let row_count = load::row_count(600_000)?;
    let cluster = Cluster::start(&[("synchronous_commit", "off"), ("max_wal_size", "8GB")]).await?;
    let without = drain(&cluster, "plain", row_count, false).await?;
    let with = drain(&cluster, "mirrored", row_count, true).await?;
    eprintln!("without {without:?}, with {with:?}");
    let rate = |time: Duration| row_count as f64 / time.as_secs_f64();
    let mut outcome = Outcome::new("mirror");
    outcome.ratio("without_mirror", rate(with) / rate(without), Target::AtLeast(0.35));
    outcome.figure("rows_per_s", rate(with), None);
    outcome.figure("without_mirror_rows_per_s", rate(without), None);
    outcome.note("Updates in transactions of 100 rows; with the mirror each leaves with its whole old row.");
    Ok(outcome)
}

/// Writes the backlog, and drains it.
async fn drain(cluster: &Cluster, name: &str, row_count: u64, is_mirrored: bool) -> Result<Duration> {
    let database = cluster.database(name).await?;
    load::create(&database, row_count).await?;
    let mut config = ServerConfig::of(database.url());
    if is_mirrored {
        config.source_lines.push("mirror: [load]".to_owned());
    }
    let mut server = Server::start(config).await?;
    if is_mirrored {
        load::until_mirrored(&server).await?;
    }
    let head = server.status().await?.head_position;
    server.terminate().await?;
    write(&database, row_count).await?;
    let start = Instant::now();
    server.launch().await?;
    let client = Client::connect(server.endpoint()).await?;
    let mut changes = client.subscribe(Subscription::tables(["load"]).from(Start::Earliest));
    let (mut count, mut full) = (0, 0);
    receive::until(&mut changes, |event| {
        if let Event::Change(change) = event {
            count += 1;
            full += u64::from(change.old_kind == OldKind::Full);
        }
        count == row_count && matches!(event, Event::Commit { .. })
    })
    .await?;
    let elapsed = start.elapsed();
    ensure!(full == if is_mirrored { row_count } else { 0 }, "{full} whole old rows behind {head}");
    server.terminate().await?;
    Ok(elapsed)
}

/// Each row is updated once, in an order that is not that of the keys.
async fn write(database: &Database, row_count: u64) -> Result<()> {
    eprintln!("writing {row_count} updates");
    database
        .execute(&format!(
            "do $$ begin for part in 0..({row_count} - 1) / 100 loop
               update load set status = 'sent', total = total + 1
               where id in (select 1 + (n::bigint * 7919) % {row_count} from generate_series(part * 100, least(part * 100 + 99, {row_count} - 1)) n);
               commit;
             end loop; end $$",
        ))
        .await
        .context("7919 must not divide the number of rows")
}
