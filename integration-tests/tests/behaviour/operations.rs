//! What an operator does: look at a source, tail it, check a database, stop a server, take a source away.

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use serde_json::Value;
use tidegate_client::{Event, Start, Subscription, SubscriptionStatus};
use tidegate_integration_tests::{Cluster, Database, Ended, Recorder, Server, ServerConfig};

async fn served(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.execute("create table orders (id bigint primary key, total numeric(10, 2), note text)").await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    Ok((database, server))
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_one_json_object_a_change() -> Result<()> {
    let (database, server) = served("tail").await?;
    database.execute("insert into orders values (1, 9.50, null)").await?;
    database.execute("update orders set note = 'paid'").await?;
    database.execute("delete from orders").await?;
    let printed = server.command(&["tail", "--json", "--from", "earliest", "--limit", "3"]).await?;
    let lines: Vec<Value> = printed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let [insert, update, delete] = lines.as_slice() else { anyhow::bail!("three changes were made:\n{printed}") };
    for field in ["position", "commit_time", "xid", "op", "table", "key", "row", "old", "unchanged"] {
        ensure!(insert.get(field).is_some(), "no {field} in {insert}");
    }
    ensure!(insert["table"] == "public.orders" && insert["row"]["total"] == "9.50" && insert["row"]["note"].is_null());
    ensure!(update["op"] == "update" && update["row"]["note"] == "paid", "{update}");
    ensure!(delete["op"] == "delete" && delete["key"]["id"] == 1, "{delete}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_metrics_tell_where_a_source_stands() -> Result<()> {
    let (database, server) = served("status").await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("here").await?;
    ensure!(recorder.until_marker("here").await? == Ended::Arrived);
    let status = server.command(&["status"]).await?;
    ensure!(status.contains("shop") && status.to_lowercase().contains("streaming"), "{status}");
    let metrics = server.metrics().await?;
    for word in ["retained", "received", "durable", "confirmed", "lag", "subscribers"] {
        let line = metrics.lines().find(|line| line.starts_with("tidegate_") && line.contains(word));
        let line = line.with_context(|| format!("no metric about {word} in\n{metrics}"))?;
        ensure!(line.contains("source=\"shop\""), "{line} names no source");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_what_each_subscription_has_acknowledged_and_its_credit() -> Result<()> {
    let (database, server) = served("acknowledged").await?;
    let client = server.client().await?;
    let mut events = client.subscribe(Subscription::tables(["marker"]).from(Start::Earliest));
    database.mark("here").await?;
    let token = loop {
        let event = events.next().await.transpose()?.context("the stream ended")?;
        if let Event::Commit { token } = event {
            break token;
        }
    };
    let position = token.position().to_string();
    let before = server.status().await?.subscriptions;
    ensure!(before.len() == 1 && before[0].acked_position != position, "{before:?}");
    events.ack(&token);
    let mut reading = tokio::task::JoinSet::new();
    reading.spawn(async move { while events.next().await.is_some() {} });
    let acked = |of: &SubscriptionStatus| of.acked_position == position && of.credit_bytes > 0;
    let all = server.until("shop", "acknowledged", |status| status.subscriptions.iter().any(acked)).await?;
    ensure!(all.subscriptions[0].position >= position, "{all:?}");
    let printed = server.command(&["status"]).await?;
    ensure!(printed.contains(&format!("acknowledged {position}, credit ")), "{printed}");
    reading.shutdown().await;
    server.until("shop", "without subscriptions", |status| status.subscriptions.is_empty()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_asks_subscribers_to_leave_and_loses_nothing() -> Result<()> {
    let (database, mut server) = served("stop").await?;
    let client = server.client().await?;
    let mut events = client.subscribe(Subscription::tables(["marker"]).from(Start::Earliest));
    ensure!(matches!(events.next().await.transpose()?, Some(Event::Opened { .. })), "no subscription");
    let mut drained = tokio::task::JoinSet::new();
    drained.spawn(async move {
        while let Some(event) = events.next().await {
            if matches!(event, Ok(Event::Drain { .. })) {
                return true;
            }
        }
        false
    });
    database.mark("before").await?;
    server.terminate().await?;
    let told = tokio::time::timeout(tidegate_integration_tests::DEADLINE, drained.join_next()).await?;
    ensure!(matches!(told, Some(Ok(true))), "the subscriber was not asked to leave");
    database.mark("while down").await?;
    server.launch().await?;
    let mut recorder = Recorder::new(server.endpoint());
    ensure!(recorder.until_marker("while down").await? == Ended::Arrived);
    ensure!(recorder.history().transactions().len() == 2, "{:?}", recorder.history());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_source_removes_slot_and_publication() -> Result<()> {
    let (database, mut server) = served("dropped").await?;
    server.terminate().await?;
    let config = server.config_file();
    server.command(&["source", "drop", "shop", "--yes", "--config", &config]).await?;
    let slot = server.slot();
    let left = format!(
        "select ((select count(*) from pg_replication_slots where slot_name = '{slot}') + \
         (select count(*) from pg_publication where pubname = '{slot}'))::text"
    );
    ensure!(database.text(&left).await?.as_deref() == Some("0"), "something is left in the database");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_wrong_with_a_database_and_how_to_mend_it() -> Result<()> {
    let cluster = Cluster::start(&[("wal_level", "replica")]).await?;
    let database = cluster.database("checked").await?;
    let output = tidegate_integration_tests::tidegate(&["check", "--url", database.url()]).await?;
    ensure!(output.status.code() == Some(3), "exit code {:?}", output.status.code());
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(printed.contains("wal_level") && printed.contains("logical"), "{printed}");
    Ok(())
}

/// The zones that it names are those in which PostgreSQL says something else than conditions do.
#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_zones_whose_clocks_the_server_sets_otherwise() -> Result<()> {
    let database = Cluster::shared().await?.database("zones_checked").await?;
    let output = tidegate_integration_tests::tidegate(&["check", "--url", database.url()]).await?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let told = printed.lines().find(|line| line.contains("time_zones:")).unwrap_or_default();
    let known = database.client().query("select name from pg_timezone_names", &[]).await?;
    let known: Vec<String> = known.iter().map(|row| row.get(0)).collect();
    let differing = "
        select name from unnest($1::text[]) name where exists (
            select from unnest($2::int8[], $3::int4[]) as sample (instant, ahead)
            where timestamp '1970-01-01' + make_interval(secs => instant + ahead)
                <> (timestamptz '1970-01-01 00:00:00+00' + make_interval(secs => instant)) at time zone name)";
    let mut expected = Vec::new();
    for zone in tidegate_views::zone_clocks() {
        let (there, missing): (Vec<String>, Vec<String>) =
            zone.names.into_iter().partition(|name| known.contains(name));
        expected.extend(missing);
        let rows = database.client().query(differing, &[&there, &zone.instants, &zone.offsets]).await?;
        expected.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    expected.sort_unstable();
    println!("zones that differ: {expected:?}");
    ensure!(told.is_empty() == expected.is_empty(), "{expected:?} differ\n{printed}");
    let named = expected.iter().take(10).all(|name| told.contains(&format!(" {name} (")));
    ensure!(named && told.matches(" (").count() == expected.len().min(10), "{expected:?} differ\n{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_refused_with_the_nearest_known_one() -> Result<()> {
    let mut config = ServerConfig::of("postgres://nobody@127.0.0.1:1/nothing");
    config.lines.push("retentoin: {size: 1GiB}".to_owned());
    let printed = Server::stopped(config)?.launch_in_vain().await?;
    ensure!(printed.contains("retentoin") && printed.contains("retention"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_refuses_to_serve_the_world_without_being_told() -> Result<()> {
    let mut config = ServerConfig::of("postgres://nobody@127.0.0.1:1/nothing");
    config.host = "0.0.0.0".to_owned();
    let printed = Server::stopped(config)?.launch_in_vain().await?;
    ensure!(printed.contains("insecure"), "{printed}");
    Ok(())
}
