//! Shapes as they are printed: what `Watch` and `tail` tell of rows that move.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;
use tidegate_client::{Client, Event, Shape, Subscription};
use tidegate_integration_tests::{DEADLINE, tidegate};
use tidegate_proto::v1;
use tokio_stream::StreamExt as _;

use crate::shapes::{ORDERS, served};

#[tokio::test(flavor = "multi_thread")]
async fn watch_and_tail_print_a_shape() -> Result<()> {
    let (database, server) = served("shape_watch", ORDERS, &["orders"]).await?;
    let mut client = v1::changes_client::ChangesClient::connect(server.endpoint()).await?;
    let shape = v1::ShapeSelection {
        table: "orders".to_owned(),
        r#where: "tenant = $1".to_owned(),
        parameters: vec![v1::Parameter { r#type: String::new(), value: Some("7".to_owned()) }],
        columns: vec!["status".to_owned()],
        ..Default::default()
    };
    let at = |point: v1::start::Point| Some(v1::Start { from: Some(v1::start::From::At(point.into())) });
    let request = v1::WatchRequest { shape: Some(shape), start: at(v1::start::Point::Snapshot), ..Default::default() };
    let mut watch = client.watch(request.clone()).await?.into_inner();
    let mut seen = Vec::new();
    let mut token = String::new();
    let watching = async {
        while seen.len() < 3 {
            let response = watch.message().await?.context("it ended")?;
            match response.mark {
                None => seen.push((response.op(), response.r#move(), response.row.is_some(), response.old.is_some())),
                Some(v1::watch_response::Mark::SnapshotEnd(_)) => {
                    token.clone_from(&response.token);
                    database.execute("update orders set note = 'n'; update orders set tenant = 9 where id = 1").await?;
                }
                Some(_) => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, watching).await.context("Watch is stuck")??;
    use v1::change::{Move as Moved, Op};
    let read = (Op::Read, Moved::Stayed, true, false);
    ensure!(seen == [read, read, (Op::Delete, Moved::MovedOut, false, true)], "{seen:?}");

    let resumed = v1::Start { from: Some(v1::start::From::Token(token)) };
    let mut watch = client.watch(v1::WatchRequest { start: Some(resumed), ..request.clone() }).await?.into_inner();
    let again = async {
        loop {
            let response = watch.message().await?.context("it ended")?;
            if response.mark.is_none() {
                return anyhow::Ok(response.r#move());
            }
        }
    };
    ensure!(tokio::time::timeout(DEADLINE, again).await.context("Watch is stuck")?? == Moved::MovedOut);
    let both = v1::WatchRequest { tables: Some(v1::TableSelection::default()), ..request };
    let refused = client.watch(both).await.err().context("both are taken")?;
    ensure!(refused.message().contains("set one of them"), "{refused}");

    let condition = "tenant = $1 and status <> $2";
    let arguments = ["tail", "--table", "orders", "--where", condition, "--param", "8", "--param", "closed"];
    let options = ["--columns", "total", "--from", "snapshot", "--limit", "1", "--json"];
    let printed: Json = serde_json::from_str(&server.command(&[&arguments[..], &options].concat()).await?)?;
    ensure!(printed["row"] == serde_json::json!({"id": 3, "total": "30.00"}), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_by_what_a_subquery_selects() -> Result<()> {
    let tenants =
        "create table tenant (id int primary key, live bool); insert into tenant values (7, true), (8, false);
                   create table elsewhere (id int primary key)";
    let (database, server) = served("shape_subquery", &format!("{ORDERS}; {tenants}"), &["orders", "tenant"]).await?;
    let mut client = v1::changes_client::ChangesClient::connect(server.endpoint()).await?;
    let at = Some(v1::Start { from: Some(v1::start::From::At(v1::start::Point::Snapshot.into())) });
    let request = |condition: &str| {
        let shape = v1::ShapeSelection {
            table: "orders".to_owned(),
            r#where: condition.to_owned(),
            columns: vec!["status".to_owned()],
            ..Default::default()
        };
        v1::WatchRequest { shape: Some(shape), start: at.clone(), ..Default::default() }
    };
    let refused = client.watch(request("tenant in (select id from elsewhere)")).await.err().context("it is open")?;
    ensure!(refused.message().contains("is for mirrored tables"), "{refused}");
    let mut watch = client.watch(request("tenant in (select id from tenant where live)")).await?.into_inner();
    let mut seen = Vec::new();
    let watching = async {
        while seen.len() < 5 {
            let response = watch.message().await?.context("it ended")?;
            match response.mark {
                None => seen.push((response.op(), response.r#move(), response.row.is_some(), response.old.is_some())),
                Some(v1::watch_response::Mark::SnapshotEnd(_)) => {
                    database.execute("update tenant set live = not live").await?;
                }
                Some(_) => {}
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, watching).await.context("Watch is stuck")??;
    use v1::change::{Move as Moved, Op};
    let read = (Op::Read, Moved::Stayed, true, false);
    let moved_out = seen[2..].iter().filter(|(op, moved, ..)| (*op, *moved) == (Op::Delete, Moved::MovedOut));
    ensure!(seen[..2] == [read, read] && moved_out.count() == 2, "{seen:?}");
    ensure!(seen[2..].contains(&(Op::Insert, Moved::MovedIn, true, false)), "{seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_prints_a_shape_from_now_on_and_behind_a_token() -> Result<()> {
    let (database, server) = served("shape_tail", ORDERS, &["orders"]).await?;
    let tail = ["tail", "--table", "orders", "--where", "tenant = $1", "--param", "7", "--json", "--limit"];
    let lines = |printed: &str| -> Result<Vec<Json>> {
        printed.lines().map(|line| Ok(serde_json::from_str::<Json>(line)?)).collect()
    };
    let client = Client::connect(server.endpoint()).await?;
    let mut events = client.subscribe(Subscription::shape(Shape::of("orders").matching("tenant = 7")));
    let first = tokio::time::timeout(DEADLINE, events.next()).await.context("nothing comes")?.context("no event")??;
    let Event::Opened { token, .. } = first else { bail!("{first:?} instead of Opened") };
    drop(events);

    // It is not known when it has begun: written until it has seen something, and that is nothing of before.
    let arguments = [&tail[..], &["1", "--from", "now"]].concat();
    let is_over = std::cell::Cell::new(false);
    let printing = async {
        let printed = server.command(&arguments).await;
        is_over.set(true);
        printed
    };
    let writing = async {
        let mut number = 100;
        while !is_over.get() {
            number += 1;
            let rows = format!("({number}, 8, 'x', 1), (-{number}, 7, 'y', 2)");
            database.execute(&format!("insert into orders values {rows}")).await?;
        }
        anyhow::Ok(number)
    };
    let (printed, number) = tokio::join!(printing, writing);
    let (printed, number) = (lines(&printed?)?, number?);
    let id = printed[0]["key"]["id"].as_i64().context("an id")?;
    ensure!(printed.len() == 1 && printed[0]["op"] == "insert" && (-number..=-101).contains(&id), "{printed:?}");

    // All that has been written since, in order, and how rows move.
    database.execute("update orders set tenant = 7 where id = 3; update orders set tenant = 8 where id = 1").await?;
    let count = usize::try_from(number - 100)? + 2;
    let (limit, token) = (count.to_string(), token.to_string());
    let printed = lines(&server.command(&[&tail[..], &[limit.as_str(), "--from", token.as_str()]].concat()).await?)?;
    let told: Vec<i64> = printed.iter().filter_map(|line| line["key"]["id"].as_i64()).collect();
    let expected: Vec<i64> = (101..=number).map(|number: i64| -number).chain([3, 1]).collect();
    ensure!(told == expected, "{told:?} instead of {expected:?}");
    let moves = [&printed[count - 2]["move"], &printed[count - 1]["move"]];
    ensure!(moves == ["in", "out"], "{printed:?}");

    let endpoint = server.endpoint();
    let both = ["tail", "--server", &endpoint, "--shape", "mine", "--table", "orders", "--where", "tenant = 7"];
    let refused = tidegate(&both).await?;
    let message = String::from_utf8(refused.stderr)?;
    ensure!(refused.status.code() == Some(2) && message.contains("'--shape <NAME>' cannot be used with"), "{message}");
    Ok(())
}
