//! Values that are larger than a message are cut on their way and arrive whole.

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use tidegate_client::{Change, Changes, Client, ClientError, Event, Op, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig};

async fn served(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.execute("create table note (id int primary key, kind text, body text)").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    Ok((database, server))
}

/// Writes a value of so many MiB that compresses badly enough to be stored out of line.
async fn write(database: &Database, id: u32, mib: usize) -> Result<()> {
    let rows = mib << 15;
    let body = format!("select string_agg(md5(n::text), '') from generate_series(1, {rows}) n");
    database.execute(&format!("insert into note select {id}, 'large', ({body})")).await
}

async fn subscribed(server: &Server, subscription: Subscription) -> Result<Changes> {
    Ok(Client::connect(server.endpoint()).await?.subscribe(subscription.from(Start::Earliest)))
}

fn notes() -> Subscription {
    Subscription::tables(["note"])
}

/// The next change. A token is given at its commit only.
async fn change(events: &mut Changes) -> Result<Change> {
    let mut found = None;
    while let Some(event) = events.next().await {
        match event? {
            Event::Change(change) => ensure!(found.replace(change).is_none(), "more than one change"),
            Event::Commit { .. } => return found.context("a commit without a change"),
            Event::Reset { detail, .. } => bail!("reset: {detail}"),
            Event::Progress { .. } => ensure!(found.is_none(), "a token within a transaction"),
            Event::Begin { .. } | Event::Opened { .. } | Event::Preparing { .. } | Event::RowType(_) => {}
            Event::SnapshotBegin { .. } | Event::SnapshotEnd { .. } | Event::SnapshotAbandoned { .. } => {}
            Event::Abort | Event::Drain { .. } | Event::Interrupted { .. } => {}
        }
    }
    bail!("the subscription ended")
}

async fn md5_of(database: &Database, id: u32) -> Result<String> {
    database.text(&format!("select md5(body) from note where id = {id}")).await?.context("no such row")
}

/// PostgreSQL says whether it is the same value.
async fn must_be_the_stored(database: &Database, change: &Change, id: u32) -> Result<()> {
    let row = change.row_json()?.context("no row")?;
    let body = row.get("body").and_then(|body| body.as_str()).context("no body")?;
    let found = database.client().query_one("select md5($1)", &[&body]).await?;
    ensure!(found.get::<_, String>(0) == md5_of(database, id).await?, "another value of {} bytes", body.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_20_mib_arrives_whole() -> Result<()> {
    let (database, server) = served("value_20").await?;
    write(&database, 1, 20).await?;
    database.execute("update note set kind = 'changed'").await?;
    let mut events = subscribed(&server, notes()).await?;
    let inserted = change(&mut events).await?;
    ensure!(inserted.op == Op::Insert && inserted.row.len() > 20 << 20);
    must_be_the_stored(&database, &inserted, 1).await?;
    let updated = change(&mut events).await?;
    ensure!(updated.op == Op::Update && updated.unchanged_columns().collect::<Vec<_>>() == ["body"]);
    ensure!(updated.row.len() < 100);
    // Selected columns are cut out of the pieces.
    let mut events = subscribed(&server, notes().columns(["id", "body"])).await?;
    must_be_the_stored(&database, &change(&mut events).await?, 1).await?;
    let mut events = subscribed(&server, notes().columns(["id", "kind"])).await?;
    ensure!(change(&mut events).await?.row.len() < 100);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_128_mib_arrives_whole() -> Result<()> {
    let (database, server) = served("value_128").await?;
    write(&database, 1, 128).await?;
    let mut events = subscribed(&server, notes()).await?;
    must_be_the_stored(&database, &change(&mut events).await?, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_sets_its_own_limit() -> Result<()> {
    let (database, server) = served("value_limit").await?;
    write(&database, 1, 3).await?;
    let mut events = subscribed(&server, notes().row_bytes_max(2 << 20)).await?;
    let refused = change(&mut events).await.err().context("it was received")?;
    let limit = 2 << 20;
    ensure!(
        matches!(refused.downcast_ref(), Some(ClientError::RowTooLarge { limit_bytes, .. }) if *limit_bytes == limit),
        "{refused}"
    );
    let mut events = subscribed(&server, notes().row_bytes_max(4 << 20)).await?;
    must_be_the_stored(&database, &change(&mut events).await?, 1).await
}
