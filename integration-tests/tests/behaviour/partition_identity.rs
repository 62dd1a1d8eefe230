//! Old rows of a partitioned table that is published as one: they say what they hold, which the partitions' replica identities decide, while
//! PostgreSQL goes by the root's. A mirror makes them whole.

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use tidegate_client::{Changes, Event, MirrorState, OldKind, Op, SourceStatus, Start, Subscription};
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Server, ServerConfig};

use super::schema_change::texts_of;

const SCHEMA: &str = "create table t (id int primary key, a int, b text default 'b') partition by range (id);
    create table low partition of t for values from (0) to (1000);
    create table high partition of t for values from (1000) to (2000);
    alter table t replica identity full; alter table high replica identity full";
/// An update that leaves the key, one that changes it, and a delete, in both partitions.
const WRITES: &str =
    "insert into t (id, a) values (1, 1), (1001, 1); update t set a = 2; update t set id = id + 1; delete from t";

async fn captured(name: &str, mirror: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.execute(SCHEMA).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push(format!("mirror: [{mirror}]"));
    let slot = config.slot.clone();
    database.execute(&format!("create publication {slot} for table t with (publish_via_partition_root)")).await?;
    let server = Server::start(config).await?;
    Ok((database, server))
}

async fn subscribed(server: &Server, start: Start) -> Result<Changes> {
    let mut changes = server.client().await?.subscribe(Subscription::tables(["public.t"]).from(start));
    match changes.next().await.context("a subscription")?? {
        Event::Opened { .. } => Ok(changes),
        other => bail!("{other:?}"),
    }
}

/// Of so many updates and deletes, what their old rows hold, in the order in which they come.
async fn old_rows(changes: &mut Changes, count: usize) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let receiving = async {
        while found.len() < count {
            let Event::Change(change) = changes.next().await.context("the subscription ended")?? else { continue };
            if matches!(change.op, Op::Update | Op::Delete) {
                // All that the bytes have, whatever they are said to be.
                let held = texts_of(&change, &change.old)?;
                let held = held.into_iter().filter_map(|(column, value)| Some(format!("{column}={}", value?)));
                let held: Vec<String> = held.collect();
                let said = match change.old_kind {
                    OldKind::None => "none",
                    OldKind::Key => "key",
                    OldKind::Full => "full",
                };
                found.push(format!("{} {said} {}", change.op, held.join(" ")).trim_end().to_owned());
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("not all changes come")??;
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_of_a_full_root_are_what_its_partitions_hold() -> Result<()> {
    let (database, mut server) = captured("leaf_identity", "").await?;
    let mut changes = subscribed(&server, Start::Now).await?;
    database.execute(WRITES).await?;
    let expected = [
        "update none",
        "update key id=1001",
        "update key id=1",
        "update key id=1001",
        "delete key id=2",
        "delete key id=1002",
    ];
    ensure!(old_rows(&mut changes, 6).await? == expected);

    database.execute("alter table low replica identity full").await?;
    database.execute(WRITES).await?;
    let whole: Vec<String> = [("update", 0, 1), ("update", 0, 2), ("delete", 1, 2)]
        .iter()
        .flat_map(|(op, more, a)| [1, 1001].map(|id| format!("{op} full a={a} b=b id={}", id + more)))
        .collect();
    ensure!(old_rows(&mut changes, 6).await? == whole);

    // The catalog is ahead of what has been written meanwhile.
    server.kill().await?;
    database.execute(&format!("alter table low replica identity default; {WRITES}")).await?;
    database.execute("alter table low replica identity full").await?;
    server.launch().await?;
    let found = old_rows(&mut subscribed(&server, Start::Earliest).await?, 18).await?;
    let is_honest = |old: &String| old.ends_with("none") || old.contains(" full ") == old.contains(" a=");
    ensure!(found.iter().all(is_honest), "{found:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_makes_old_rows_of_a_full_root_whole() -> Result<()> {
    let (database, server) = captured("leaf_identity_mirrored", "t").await?;
    let is_complete = |status: &SourceStatus| {
        status.mirror.iter().any(|table| table.table == "public.t" && table.state() == MirrorState::Complete)
    };
    server.until("shop", "a complete mirror", is_complete).await?;
    let mut changes = subscribed(&server, Start::Now).await?;
    for identity in ["default", "full", "default"] {
        database.execute(&format!("alter table low replica identity {identity}")).await?;
        database.execute(WRITES).await?;
        let found = old_rows(&mut changes, 6).await?;
        ensure!(found.iter().all(|old| old.contains(" full ") && old.contains(" a=")), "{found:#?}");
    }
    Ok(())
}
