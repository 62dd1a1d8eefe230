//! Named shapes that are defined anew under their subscribers: these receive the difference, in one step, whether they are there or come
//! back with a token from before.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::{
    Change, Client, Event, MirrorState, Move, Op, Parameter, Position, ResetReason, Shape, SourceStatus, Start,
    Subscription, Token,
};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, HeldProcess, Server, ServerConfig, held_by_postgres, must_equal,
    selected, tidegate,
};
use tidegate_proto::v1::{
    self, ShapeSelection, WatchRequest, WatchResponse, changes_client::ChangesClient, watch_response::Mark,
};
use tokio_stream::StreamExt as _;

const ROWS: &str = "insert into orders select n, n % 3, n, 'note ' || n from generate_series(1, 30) n";

async fn served(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    let config = ServerConfig::of(database.url());
    let server = started(&database, config).await?;
    Ok((database, server))
}

async fn started(database: &Database, mut config: ServerConfig) -> Result<Server> {
    database.execute("create table orders (id bigint primary key, tenant int, total numeric, note text)").await?;
    database
        .execute("create table plain (id bigint primary key, v int); alter table plain replica identity full")
        .await?;
    database.execute(ROWS).await?;
    config.source_lines.push("mirror: [orders]".to_owned());
    config.source_lines.push("mirror_on_demand: []".to_owned());
    let server = Server::start(config).await?;
    let is_complete = |state| state == MirrorState::Complete;
    server.until("shop", "a mirror", |status| status.mirror.iter().any(|table| is_complete(table.state()))).await?;
    Ok(server)
}

async fn define(server: &Server, name: &str, shape: Shape) -> Result<()> {
    Client::connect(server.endpoint()).await?.define_shape("shop", name, shape).await?;
    Ok(())
}

fn orders(condition: &str) -> Shape {
    Shape::of("orders").matching(condition)
}

fn mine() -> Subscription {
    Subscription::shape(Shape::named("mine")).source("shop")
}

/// Until the copy is what PostgreSQL selects: the edit is noticed within a second.
async fn until_equal(copier: &mut Copier, database: &Database, select: &str) -> Result<()> {
    copier.until_caught_up(database).await?;
    let theirs = held_by_postgres(database, &format!("({select}) t"), &["id"]).await?;
    let receiving = async {
        while copier.replica.table("public.orders") != theirs {
            if let Arrival::Reset(reason, detail) = copier.next().await? {
                bail!("{reason:?}: {detail}");
            }
        }
        Ok(())
    };
    if let Ok(received) = tokio::time::timeout(DEADLINE, receiving).await {
        return received;
    }
    must_equal(select, &copier.replica.table("public.orders"), &theirs)
}

/// What a subscription receives of the next difference: its changes, and the token behind it.
async fn difference(changes: &mut tidegate_client::Changes) -> Result<(Vec<Change>, Token)> {
    let mut open = None;
    let receiving = async {
        loop {
            match changes.next().await.context("an event")?? {
                Event::Begin { snapshot, .. } => open = (snapshot >= 1 << 31).then(Vec::new),
                Event::Change(change) => open.iter_mut().for_each(|open| open.push(change.clone())),
                Event::Commit { token } => {
                    if let Some(changes) = open.take() {
                        return Ok((changes, token));
                    }
                }
                Event::Reset { reason, detail } => bail!("{reason:?}: {detail}"),
                _other => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("no difference came")?
}

fn prefix(token: &Token) -> String {
    token.to_string().split('.').next().unwrap_or_default().to_owned()
}

async fn snapshot(changes: &mut tidegate_client::Changes) -> Result<Token> {
    loop {
        if let Event::SnapshotEnd { token, .. } = changes.next().await.context("an event")?? {
            return Ok(token);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_enters_and_leaves_comes_as_one_step_and_tokens_go_on_behind_it() -> Result<()> {
    let (database, server) = served("edited_condition").await?;
    define(&server, "mine", orders("tenant = 1")).await?;
    let client = Client::connect(server.endpoint()).await?;
    let mut changes = client.subscribe(mine().from(Start::Snapshot));
    let read = snapshot(&mut changes).await?;
    define(&server, "mine", orders("tenant = 1 and total > 5 or total < 4")).await?;
    let (came, token) = difference(&mut changes).await?;
    let told = |op: Op, moved: Move| {
        let of = came.iter().filter(|change| change.op == op && change.moved == moved);
        of.map(|change| change.key_json().ok().flatten().and_then(|key| key["id"].as_i64())).collect::<Vec<_>>()
    };
    ensure!(told(Op::Insert, Move::In) == [Some(2), Some(3)], "{came:?}");
    ensure!(told(Op::Delete, Move::Out) == [Some(4)] && came.len() == 3, "{came:?}");
    ensure!(prefix(&token) != prefix(&read), "the token is of the new definition");

    drop(changes);
    database.execute("insert into orders values (31, 2, 3, 'in'), (32, 2, 30, 'out'), (34, 1, 4.5, 'out')").await?;
    let mut changes = client.subscribe(mine().from(token));
    loop {
        match changes.next().await.context("an event")?? {
            Event::Change(change) => {
                ensure!(change.key_json()?.is_some_and(|key| key["id"] == 31), "{change:?}");
                break;
            }
            Event::Reset { detail, .. } => bail!("{detail}"),
            _other => {}
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_changes_no_row_is_told_and_one_that_means_the_same_is_not() -> Result<()> {
    let (database, server) = served("edited_nothing").await?;
    define(&server, "mine", orders("tenant = 1 and total < 100")).await?;
    let client = Client::connect(server.endpoint()).await?;
    let mut changes = client.subscribe(mine().from(Start::Snapshot));
    let read = snapshot(&mut changes).await?;
    define(&server, "mine", orders("tenant = 1 and 100 > total")).await?;
    define(&server, "mine", orders("tenant = 1 and total < 101")).await?;
    let (came, token) = difference(&mut changes).await?;
    ensure!(came.is_empty() && prefix(&token) != prefix(&read), "{came:?}");
    database.execute("insert into orders values (40, 1, 100, 'in')").await?;
    loop {
        match changes.next().await.context("an event")?? {
            Event::Begin { snapshot, .. } => ensure!(snapshot == 0, "no other difference comes"),
            Event::Change(change) => {
                ensure!(change.key_json()?.is_some_and(|key| key["id"] == 40), "{change:?}");
                return Ok(());
            }
            _other => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_columns_come_with_all_rows_that_stay() -> Result<()> {
    let (database, server) = served("edited_columns").await?;
    define(&server, "mine", orders("tenant = 1").columns(["total"])).await?;
    let mut copier = Copier::of(&server.endpoint(), mine(), Start::Snapshot);
    copier.until_snapshot_end().await?;
    for (condition, columns) in [("tenant = 1", ["note", "tenant"]), ("tenant = 2 or id < 5", ["total", "note"])] {
        define(&server, "mine", orders(condition).columns(columns)).await?;
        let select = format!("select id, {} from orders where {condition}", columns.join(", "));
        until_equal(&mut copier, &database, &select).await?;
        database.execute("update orders set note = note || '.', total = total + 1 where id % 2 = 0").await?;
        until_equal(&mut copier, &database, &select).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_goes_on_with_the_difference_while_the_definition_is_remembered() -> Result<()> {
    let (database, mut server) = served("edited_away").await?;
    let shape =
        |n: usize| orders(&format!("id % 10 < {n}")).columns(if n.is_multiple_of(2) { vec!["total"] } else { vec![] });
    define(&server, "mine", shape(1)).await?;
    let mut copier = Copier::of(&server.endpoint(), mine(), Start::Snapshot);
    copier.until_snapshot_end().await?;
    let mut oldest = Copier::of(&server.endpoint(), mine(), Start::Snapshot);
    oldest.until_snapshot_end().await?;
    copier.drop_connection();
    oldest.drop_connection();
    for n in 2..4 {
        define(&server, "mine", shape(n)).await?;
        database
            .execute(&format!("update orders set total = -{n} where id % 10 = {n}; delete from orders where id = {n}"))
            .await?;
    }
    server.kill().await?;
    server.launch().await?;
    until_equal(&mut copier, &database, "select * from orders where id % 10 < 3").await?;
    copier.drop_connection();
    for n in 4..10 {
        define(&server, "mine", shape(n)).await?;
    }
    until_equal(&mut oldest, &database, "select * from orders where id % 10 < 9").await?;
    oldest.drop_connection();
    for n in 21..29 {
        define(&server, "mine", shape(n)).await?;
    }
    until_equal(&mut oldest, &database, "select id, total from orders").await?;
    let refused = copier.until_caught_up(&database).await.err().context("it is not remembered any more")?;
    ensure!(refused.to_string().contains("DefinitionChanged"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_amid_the_first_rows_is_told_behind_them() -> Result<()> {
    let (database, server) = served("edited_snapshot").await?;
    database
        .execute("insert into orders select n, n % 3, n, repeat('x', 3000) from generate_series(100, 2000) n")
        .await?;
    define(&server, "mine", orders("tenant = 1")).await?;
    let mut copier = Copier::of(&server.endpoint(), mine().credit_bytes(64 << 10), Start::Snapshot);
    while !matches!(copier.next().await?, Arrival::Begun(_)) {}
    define(&server, "mine", orders("tenant = 2")).await?;
    copier.next().await?;
    copier.drop_connection();
    define(&server, "mine", orders("tenant = 2 or id = 7").columns(["total"])).await?;
    copier.until_snapshot_end().await?;
    until_equal(&mut copier, &database, "select id, total from orders where tenant = 2 or id = 7").await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_selections_the_one_that_is_edited_changes() -> Result<()> {
    let (database, server) = served("edited_one_of_several").await?;
    let of = |tenant: &str| Shape::named(tenant).parameter(1_i64);
    let by_tenant = |condition: &str| orders(condition).parameter(Parameter::of_type("int8"));
    define(&server, "one", by_tenant("tenant = $1")).await?;
    define(&server, "two", by_tenant("tenant = $1 + 1")).await?;
    let subscription = Subscription::shape(of("one")).and_shape(of("two")).and_shape(orders("id < 3"));
    let subscription = subscription.and_tables(["plain"]).source("shop");
    let mut copier = Copier::of(&server.endpoint(), subscription, Start::Snapshot);
    copier.until_snapshot_end().await?;
    define(&server, "two", by_tenant("total < $1 + 4")).await?;
    define(&server, "one", by_tenant("tenant = $1 and total > 4")).await?;
    define(&server, "two", by_tenant("total < $1 + 2")).await?;
    database.execute("insert into plain values (1, 1); update orders set total = 0 where id = 20").await?;
    copier.until_caught_up(&database).await?;
    for (at, condition) in ["tenant = 1 and total > 4", "total < 3", "id < 3"].iter().enumerate() {
        let theirs =
            held_by_postgres(&database, &format!("(select * from orders where {condition}) t"), &["id"]).await?;
        let name = selected("public.orders", at as u32);
        let receiving = async {
            while copier.replica.table(&name) != theirs {
                copier.next().await?;
            }
            anyhow::Ok(())
        };
        if tokio::time::timeout(DEADLINE, receiving).await.is_err() {
            must_equal(condition, &copier.replica.table(&name), &theirs)?;
        }
    }
    ensure!(copier.replica.table(&selected("public.plain", 3)).len() == 1, "the table goes on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_difference_tells_is_a_reset_that_says_why() -> Result<()> {
    let (database, server) = served("edited_reset").await?;
    let of_others = |total: u32| format!("id in (select tenant from orders where total > {total})");
    let plain = |condition: &str| Shape::of("plain").matching(condition);
    let parameter = || Parameter::of_type("int8");
    for (before, after, why) in [
        (orders("tenant = 1"), plain("v = 1"), "table public.plain now"),
        (plain("v = 1"), plain("v = 2"), "not mirrored"),
        (orders("tenant = 1"), orders("tenant = $1").parameter(parameter()), "1 parameters"),
        (orders("tenant = 1"), orders(&of_others(5)), "a shape with subqueries is selected"),
        (orders(&of_others(5)), orders("tenant = 1"), "a shape with subqueries is selected"),
        (orders(&of_others(5)), orders(&of_others(29)), "a shape with subqueries is selected"),
    ] {
        define(&server, "mine", before).await?;
        let mut copier = Copier::of(&server.endpoint(), mine(), Start::Snapshot);
        copier.until_snapshot_end().await?;
        let condition = after.clone().into_proto().r#where;
        let select = why.contains("subqueries").then(|| format!("select * from orders where {condition}"));
        define(&server, "mine", after).await?;
        let reset = async {
            loop {
                if let Arrival::Reset(reason, detail) = copier.next().await? {
                    return anyhow::Ok((reason, detail));
                }
            }
        };
        let (reason, detail) = tokio::time::timeout(DEADLINE, reset).await.context("no reset came")??;
        ensure!(reason == ResetReason::DefinitionChanged && detail.contains(why), "{reason:?}: {detail}");
        // It is read anew, by the new definition.
        if let Some(query) = &select {
            let mut anew = Copier::of(&server.endpoint(), mine(), Start::Snapshot);
            anew.until_snapshot_end().await?;
            until_equal(&mut anew, &database, query).await?;
        }
        Client::connect(server.endpoint()).await?.delete_shape("shop", "mine").await?;
    }
    Ok(())
}

/// Receives for so long, and is told every second that nothing is missing, and nothing else.
async fn hears_of_progress_alone(changes: &mut tidegate_client::Changes, time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        match changes.next().await.context("an event")?? {
            Event::Progress { .. } => {}
            other => bail!("{other:?}"),
        }
    }
    Ok(())
}

fn ends_with_a_snapshot(status: &SourceStatus) -> bool {
    status.head_position.parse().is_ok_and(|head: Position| head.ordinal >= 3 << 30)
}

/// Has the log end with a snapshot that PostgreSQL was asked for, and lets nothing of PostgreSQL's come behind it until what is
/// returned is dropped.
async fn log_that_ends_with_a_snapshot(
    (cluster, database): (&Cluster, &Database),
    server: &Server,
) -> Result<HeldProcess> {
    // What PostgreSQL has written by itself meanwhile may have come before its sender was held.
    for _ in 0..20 {
        let started = tidegate(&["snapshot", "start", "--server", &server.endpoint(), "orders"]).await?;
        ensure!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        server.until("shop", "a snapshot at the end of its log", ends_with_a_snapshot).await?;
        let held = HeldProcess::new(cluster.walsender(server.slot(), None).await?)?;
        // Status is told once a second, and by then what had been sent has come.
        database.text("select pg_sleep(3)::text").await?;
        if ends_with_a_snapshot(&server.status().await?) {
            return Ok(held);
        }
    }
    bail!("something always comes behind the snapshot")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_waits_for_its_place_in_the_log_while_nothing_is_written() -> Result<()> {
    // PostgreSQL writes little by itself, and what is defined is written elsewhere.
    let settings = [("bgwriter_delay", "10s"), ("autovacuum", "off"), ("checkpoint_timeout", "1h")];
    let cluster = Cluster::start(&settings).await?;
    let database = cluster.database("edited_idle").await?;
    let control = Cluster::shared().await?.database("edited_idle_control").await?;
    let mut config = ServerConfig::of(database.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    let server = started(&database, config).await?;
    define(&server, "mine", orders("tenant = 1")).await?;
    let client = Client::connect(server.endpoint()).await?;
    let mut changes = client.subscribe(mine().from(Start::Snapshot));
    snapshot(&mut changes).await?;
    let held = log_that_ends_with_a_snapshot((&cluster, &database), &server).await?;
    define(&server, "mine", orders("tenant = 1 or total < 4")).await?;
    hears_of_progress_alone(&mut changes, Duration::from_secs(8)).await?;
    ensure!(ends_with_a_snapshot(&server.status().await?), "nothing was to come");
    database.execute("insert into plain values (1, 1)").await?;
    drop(held);
    let (came, _) = difference(&mut changes).await?;
    ensure!(came.len() == 2 && came.iter().all(|change| change.moved == Move::In), "{came:?}");
    Ok(())
}

/// Of a Watch, up to the response for which `last` holds.
async fn watched(
    responses: &mut tonic::Streaming<WatchResponse>,
    last: impl Fn(&WatchResponse) -> bool,
) -> Result<Vec<WatchResponse>> {
    let mut all = Vec::new();
    let receiving = async {
        loop {
            let response = responses.message().await?.context("a response")?;
            let is_last = last(&response);
            all.push(response);
            if is_last {
                return anyhow::Ok(());
            }
        }
    };
    let received = tokio::time::timeout(DEADLINE, receiving).await;
    received.with_context(|| format!("it does not come: {all:?}"))??;
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_is_told_the_difference_too() -> Result<()> {
    let (database, server) = served("edited_watch").await?;
    define(&server, "mine", orders("total < 4").columns(["total"])).await?;
    let mut client = ChangesClient::connect(server.endpoint()).await?;
    let shape = || Some(ShapeSelection { name: "mine".to_owned(), ..ShapeSelection::default() });
    let start = |from| Some(v1::Start { from: Some(from) });
    let at_snapshot = start(v1::start::From::At(v1::start::Point::Snapshot as i32));
    let request = WatchRequest { shape: shape(), start: at_snapshot, ..WatchRequest::default() };
    let mut responses = client.watch(request).await?.into_inner();
    let read = watched(&mut responses, |response| matches!(response.mark, Some(Mark::SnapshotEnd(_)))).await?;
    let before = read.last().map(|last| last.token.clone()).context("a token")?;
    define(&server, "mine", orders("total < 5 and id > 1").columns(["note"])).await?;
    let came = watched(&mut responses, |response| response.row.is_some() && !response.token.is_empty()).await?;
    let ops: Vec<i32> = came.iter().filter(|response| response.op != 0).map(|response| response.op).collect();
    let [delete, update, insert] = [v1::change::Op::Delete, v1::change::Op::Update, v1::change::Op::Insert];
    ensure!(ops == [delete, update, update, insert].map(|op| op as i32), "{came:?}");
    let token = came.last().map(|last| last.token.clone()).context("a token")?;

    // The token from before brings it again, that behind it does not.
    database.execute("insert into orders values (50, 0, 1, 'fifty')").await?;
    for (token, mut held) in [(before, BTreeSet::from([1, 2, 3])), (token, BTreeSet::from([2, 3, 4]))] {
        let is_told_again = held.contains(&1);
        let request =
            WatchRequest { shape: shape(), start: start(v1::start::From::Token(token)), ..WatchRequest::default() };
        let mut responses = client.watch(request).await?.into_inner();
        while held != BTreeSet::from([2, 3, 4, 50]) {
            let response = responses.message().await?.context("a response")?;
            let Some(id) = response.key.as_ref().and_then(|key| key.value.last()) else { continue };
            ensure!(is_told_again || *id == 50, "{response:?}");
            match response.op() {
                v1::change::Op::Delete => held.remove(id),
                _upsert => held.insert(*id),
            };
        }
    }
    Ok(())
}
