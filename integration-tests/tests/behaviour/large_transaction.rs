//! One transaction of a million rows: delivered once and whole, however often the walsender is ended during it; not at
//! all when it is rolled back.

use anyhow::{Result, ensure};
use futures_util::StreamExt;
use tidegate_client::{Client, Event, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig};

const ROW_COUNT: u32 = 1_000_000;
const PART_COUNT: u32 = 20;

async fn prepared(name: &str) -> Result<(&'static Cluster, Database, Server)> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database(name).await?;
    database.execute("create table large (id int primary key, filler text)").await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    Ok((cluster, database, server))
}

fn part(number: u32) -> String {
    let rows = ROW_COUNT / PART_COUNT;
    let (first, last) = (number * rows + 1, (number + 1) * rows);
    format!("insert into large select n, 'row ' || n from generate_series({first}, {last}) n")
}

/// Change counts of the transactions received, up to and including the marker's. Ordinals must count from 1.
async fn transactions(server: &Server) -> Result<Vec<u32>> {
    let client = Client::connect(server.endpoint()).await?;
    let mut events = client.subscribe(Subscription::tables(["large", "marker"]).from(Start::Earliest));
    let (mut counts, mut count, mut last) = (Vec::new(), 0, String::new());
    while let Some(event) = events.next().await {
        match event? {
            Event::Begin { .. } | Event::Abort => count = 0,
            Event::Change(change) => {
                count += 1;
                ensure!(change.position.ordinal == count, "{} is the transaction's change {count}", change.position);
                change.table().unwrap_or_default().clone_into(&mut last);
            }
            Event::Commit { .. } => {
                counts.push(count);
                if last == "public.marker" {
                    return Ok(counts);
                }
            }
            Event::Reset { detail, .. } => anyhow::bail!("reset: {detail}"),
            Event::Opened { .. } | Event::Preparing { .. } | Event::RowType(_) | Event::Progress { .. } => {}
            Event::SnapshotBegin { .. } | Event::SnapshotEnd { .. } | Event::SnapshotAbandoned { .. } => {}
            Event::Drain { .. } | Event::Interrupted { .. } => {}
        }
    }
    anyhow::bail!("the subscription ended")
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_the_walsender_during_it_delivers_it_once_and_whole() -> Result<()> {
    let (cluster, database, server) = prepared("large_terminated").await?;
    let mut walsender = cluster.walsender(server.slot(), None).await?;
    let observer = database.another().await?;
    database.execute("begin").await?;
    for number in 0..PART_COUNT {
        database.execute(&part(number)).await?;
        if number % 5 == 4 {
            observer.execute(&format!("select pg_terminate_backend({walsender})")).await?;
            walsender = cluster.walsender(server.slot(), Some(walsender)).await?;
        }
    }
    database.execute("commit").await?;
    for _ in 0..3 {
        observer.execute(&format!("select pg_terminate_backend({walsender})")).await?;
        walsender = cluster.walsender(server.slot(), Some(walsender)).await?;
    }
    database.mark("end").await?;
    ensure!(transactions(&server).await? == [ROW_COUNT, 1]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rolled_back_it_leaves_nothing() -> Result<()> {
    let (_, database, server) = prepared("large_rolled_back").await?;
    database.execute("begin").await?;
    for number in 0..PART_COUNT {
        database.execute(&part(number)).await?;
    }
    database.execute("rollback").await?;
    database.mark("end").await?;
    ensure!(transactions(&server).await? == [1]);
    Ok(())
}
