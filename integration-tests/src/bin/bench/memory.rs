//! `memory`: one transaction of ten million rows, delivered; the server's peak of resident memory.

use std::time::Instant;

use anyhow::{Result, ensure};
use tidegate_client::{Client, Event, Start, Subscription};
use tidegate_integration_tests::{Cluster, Server, ServerConfig};

use crate::{
    outcome::{Outcome, Target},
    receive,
};

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
        receive::until(&mut changes, |event| {
            count += u64::from(matches!(event, Event::Change(_)));
            matches!(event, Event::Commit { .. })
        })
        .await?;
        ensure!(count == ROW_COUNT, "{count} of {ROW_COUNT} rows");
        Ok(())
    };
    tokio::try_join!(writing, receiving)?;
    let mut outcome = Outcome::new("memory");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    outcome.figure("peak_rss_mib", mib(server.process()?.memory("VmHWM")?), Some(Target::AtMost(256.0)));
    outcome.figure("seconds", start.elapsed().as_secs_f64(), None);
    outcome.note("VmHWM of the server process, from its start to the last row's arrival.");
    Ok(outcome)
}
