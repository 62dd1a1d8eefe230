//! `memory`: one transaction of ten million rows, delivered; the server's peak of resident memory.

use std::time::Instant;

use anyhow::Result;
use tidegate_client::{Client, Event, Start, Subscription};
use tidegate_integration_tests::{Cluster, Server, ServerConfig};

use crate::outcome::{Outcome, Target};

const ROW_COUNT: u64 = 10_000_000;

/// Measures the case.
pub(crate) async fn run() -> Result<Outcome> {
    let cluster = Cluster::start(&[("max_wal_size", "8GB")]).await?;
    let database = cluster.database("bench").await?;
    database.execute("create table large (id bigint primary key, customer int, note text)").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let client = Client::connect(server.endpoint()).await?;
    let mut changes = client.subscribe(Subscription::tables(["large"]).from(Start::Earliest));
    let start = Instant::now();
    let insert = format!("insert into large select n, n % 1000, 'note ' || n from generate_series(1, {ROW_COUNT}) n");
    let writing = async {
        database.execute(&insert).await?;
        eprintln!("written in {:?}", start.elapsed());
        Ok(())
    };
    let receiving = async {
        let mut count = 0;
        while let Some(batch) = changes.next_batch().await? {
            for event in batch {
                match event {
                    Event::Begin { .. } | Event::Abort => count = 0,
                    Event::Change(_) => count += 1,
                    Event::Commit { .. } if count == ROW_COUNT => return Ok(()),
                    Event::Commit { .. } => anyhow::bail!("{count} of {ROW_COUNT} rows"),
                    Event::Reset { detail, .. } => anyhow::bail!("reset: {detail}"),
                    Event::Opened { .. }
                    | Event::RowType(_)
                    | Event::SnapshotBegin { .. }
                    | Event::SnapshotEnd { .. }
                    | Event::SnapshotAbandoned { .. }
                    | Event::Progress { .. }
                    | Event::Drain { .. }
                    | Event::Interrupted { .. } => {}
                }
            }
        }
        anyhow::bail!("the subscription ended")
    };
    tokio::try_join!(writing, receiving)?;
    let mut outcome = Outcome::new("memory");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    outcome.figure("peak_rss_mib", mib(server.process()?.memory("VmHWM")?), Some(Target::AtMost(256.0)));
    outcome.figure("seconds", start.elapsed().as_secs_f64(), None);
    outcome.note("VmHWM of the server process, from its start to the last row's arrival.");
    Ok(outcome)
}
