//! Shapes: a subscriber has exactly the rows that meet its condition, and hears of nothing else; and what is refused says what to do.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;
use tidegate_client::{
    Change, Changes, Client, Event, MirrorState, Move, Parameter, ResetReason, Shape, SourceStatus, Start,
    Subscription, Token, Updates,
};
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Server, ServerConfig};
use tokio_stream::StreamExt as _;

pub(crate) const ORDERS: &str = "
    create table orders (id bigint primary key, tenant int, status text, total numeric(10, 2), note text);
    insert into orders values (1, 7, 'new', 10, 'a'), (2, 7, 'closed', 20, 'b'), (3, 8, 'new', 30, 'c')";

/// A database with these tables, of which the named are mirrored, and no others.
pub(crate) async fn served(name: &str, sql: &str, mirror: &[&str]) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.create_marker().await?;
    database.execute("alter table marker replica identity full").await?;
    database.execute(sql).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push(format!("mirror: [{}]", mirror.join(", ")));
    config.source_lines.push("mirror_on_demand: []".to_owned());
    let server = Server::start(config).await?;
    let count = mirror.len();
    let is_complete = |status: &SourceStatus| {
        let complete = status.mirror.iter().filter(|table| table.state() == MirrorState::Complete);
        complete.count() == count
    };
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok((database, server))
}

fn open_orders() -> Shape {
    Shape::of("orders").matching("tenant = $1 and status <> 'closed'").parameter(7)
}

/// A subscriber, and the marker rows that tell it how far it is.
pub(crate) struct Watcher {
    events: Changes,
    token: Token,
}

impl Watcher {
    /// Opens it; the markers are its last selection.
    pub(crate) async fn open(server: &Server, subscription: Subscription) -> Result<Self> {
        let client = Client::connect(server.endpoint()).await?;
        let mut events = client.subscribe(subscription.and_shape(Shape::of("marker")));
        let opening = async {
            match events.next().await.context("no event")?? {
                Event::Opened { token, .. } => Ok(token),
                other => bail!("{other:?} instead of Opened"),
            }
        };
        let token = tokio::time::timeout(DEADLINE, opening).await.context("it does not open")??;
        Ok(Watcher { events, token })
    }

    async fn next(&mut self) -> Result<Event> {
        let event = tokio::time::timeout(DEADLINE, self.events.next()).await.context("nothing comes")?;
        Ok(event.context("the subscription ended")??)
    }

    /// What it hears of until a marker.
    pub(crate) async fn until(&mut self, database: &Database, marker: &str) -> Result<Vec<String>> {
        database.mark(marker).await?;
        self.heard(marker).await
    }

    pub(crate) async fn heard(&mut self, marker: &str) -> Result<Vec<String>> {
        let (mut heard, mut is_there) = (Vec::new(), false);
        loop {
            match self.next().await? {
                Event::Change(change) if change.table() == Some("public.marker") => {
                    let row = change.row_json()?.unwrap_or_default();
                    is_there = row.get("name") == Some(&Json::from(marker));
                }
                Event::Change(change) => heard.push(said(&change)?),
                Event::Commit { token } => {
                    self.token = token;
                    if is_there {
                        return Ok(heard);
                    }
                }
                Event::Reset { reason, detail } => bail!("reset {reason:?}: {detail}"),
                _mark => {}
            }
        }
    }

    /// The rows that the snapshot reads of its first selection.
    pub(crate) async fn read(&mut self) -> Result<Vec<String>> {
        let mut read = Vec::new();
        loop {
            match self.next().await? {
                Event::Change(change) if change.selection == 0 => read.push(said(&change)?),
                Event::SnapshotEnd { token, .. } => {
                    self.token = token;
                    return Ok(read);
                }
                _mark => {}
            }
        }
    }

    /// Why it ends.
    pub(crate) async fn end(&mut self) -> Result<String> {
        loop {
            match self.next().await {
                Ok(Event::Reset { reason, detail }) => return Ok(format!("{reason:?}: {detail}")),
                Ok(_) => {}
                Err(error) => return Ok(error.to_string()),
            }
        }
    }
}

/// A change in a line.
fn said(change: &Change) -> Result<String> {
    let moved = match change.moved {
        Move::Stayed => "",
        Move::In => " in",
        Move::Out => " out",
    };
    let values = |row: serde_json::Map<String, Json>| {
        let values = row.into_iter().map(|(name, value)| match value {
            Json::String(text) => format!("{name}={}", text.chars().take(8).collect::<String>()),
            other => format!("{name}={other}"),
        });
        let mut values: Vec<String> = values.collect();
        values.sort_unstable();
        values.join(" ")
    };
    let row = change.row_json()?.map(values).unwrap_or_default();
    let old = change.old_json()?.map(|old| format!(" | {}", values(old))).unwrap_or_default();
    let unchanged: Vec<&str> = change.unchanged_columns().collect();
    let unchanged = if unchanged.is_empty() { String::new() } else { format!(" | unchanged {}", unchanged.join(" ")) };
    Ok(format!("{}{moved}: {row}{old}{unchanged}", change.op))
}

/// The error of a shape that is not opened.
pub(crate) async fn refusal(server: &Server, shape: Shape) -> Result<String> {
    let client = Client::connect(server.endpoint()).await?;
    let mut events = client.subscribe(Subscription::shape(shape));
    let answer = tokio::time::timeout(DEADLINE, events.next()).await.context("no answer")?.context("no event")?;
    match answer {
        Err(error) => Ok(error.to_string()),
        Ok(Event::Interrupted { cause, .. }) => Ok(cause.to_string()),
        Ok(other) => bail!("{other:?} instead of an error"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_in_and_out_of_a_shape() -> Result<()> {
    let (database, server) = served("shape_moves", ORDERS, &["orders"]).await?;
    let mut watcher = Watcher::open(&server, Subscription::shape(open_orders())).await?;
    database
        .execute(
            "insert into orders values (4, 7, 'new', 1, null), (5, 8, 'new', 1, null), (6, null, 'new', 1, null);
             update orders set status = 'new' where id = 2;
             update orders set total = total + 1;
             update orders set tenant = 9 where id = 1;
             update orders set status = null where id = 4;
             update orders set id = 20 where id = 2;
             update orders set id = 21, tenant = 8 where id = 20;
             delete from orders where id in (3, 21);
             update orders set tenant = 7, status = 'x' where id = 5;
             delete from orders where id = 5",
        )
        .await?;
    let expected = [
        "insert: id=4 note=null status=new tenant=7 total=1.00",
        "insert in: id=2 note=b status=new tenant=7 total=20.00",
        "update: id=1 note=a status=new tenant=7 total=11.00 | id=1 note=a status=new tenant=7 total=10.00",
        "update: id=4 note=null status=new tenant=7 total=2.00 | id=4 note=null status=new tenant=7 total=1.00",
        "update: id=2 note=b status=new tenant=7 total=21.00 | id=2 note=b status=new tenant=7 total=20.00",
        "delete out:  | id=1 note=a status=new tenant=7 total=11.00",
        "delete out:  | id=4 note=null status=new tenant=7 total=2.00",
        "update: id=20 note=b status=new tenant=7 total=21.00 | id=2 note=b status=new tenant=7 total=21.00",
        "delete out:  | id=20 note=b status=new tenant=7 total=21.00",
        "insert in: id=5 note=null status=x tenant=7 total=2.00",
        "delete:  | id=5 note=null status=x tenant=7 total=2.00",
    ];
    must_hear(watcher.until(&database, "moved").await?, &expected)?;
    database.execute("truncate orders").await?;
    must_hear(watcher.until(&database, "truncated").await?, &["truncate: "])
}

/// In any order within an update of several rows.
pub(crate) fn must_hear(heard: Vec<String>, expected: &[&str]) -> Result<()> {
    let sorted = |lines: Vec<String>| {
        let mut lines = lines;
        lines.sort_unstable();
        lines
    };
    let expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
    let (heard, expected) = (sorted(heard), sorted(expected));
    ensure!(heard == expected, "heard\n  {}\nand not\n  {}", heard.join("\n  "), expected.join("\n  "));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_has_its_columns_and_hears_only_of_these() -> Result<()> {
    let (database, server) = served("shape_columns", ORDERS, &["orders"]).await?;
    let some = open_orders().columns(["total"]);
    let changed = open_orders().updates(Updates::ChangedColumns);
    let few = open_orders().columns(["total", "note"]).updates(Updates::ChangedColumns);
    let (mut some, mut changed, mut few) = (
        Watcher::open(&server, Subscription::shape(some)).await?,
        Watcher::open(&server, Subscription::shape(changed)).await?,
        Watcher::open(&server, Subscription::shape(few)).await?,
    );
    database
        .execute(
            "update orders set note = 'z', status = 'paid' where id = 1;
             update orders set total = 12 where id = 1;
             update orders set total = 12 where id = 1;
             update orders set id = 10 where id = 1;
             update orders set tenant = 8 where id = 10",
        )
        .await?;
    let expected = [
        "update: id=1 total=12.00 | id=1 total=10.00",
        "update: id=10 total=12.00 | id=1 total=12.00",
        "delete out:  | id=10 total=12.00",
    ];
    must_hear(some.until(&database, "end").await?, &expected)?;
    let expected = [
        "update: id=1 note=z status=paid | unchanged tenant total",
        "update: id=1 total=12.00 | unchanged tenant status note",
        "update: id=10 note=z status=paid tenant=7 total=12.00 | id=1",
        "delete out:  | id=10 note=z status=paid tenant=7 total=12.00",
    ];
    must_hear(changed.heard("end").await?, &expected)?;
    let expected = [
        "update: id=1 note=z | unchanged total",
        "update: id=1 total=12.00 | unchanged note",
        "update: id=10 note=z total=12.00 | id=1",
        "delete out:  | id=10 note=z total=12.00",
    ];
    must_hear(few.heard("end").await?, &expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_have_types_and_may_be_null() -> Result<()> {
    let sql = "create table t (id int primary key, at timestamptz, tags text[], kind uuid, n numeric);
               insert into t values (1, '2024-01-01 00:00Z', '{a,b}', '00000000-0000-0000-0000-000000000001', 1.50),
                                    (2, null, null, null, null)";
    let (_database, server) = served("shape_parameters", sql, &["t"]).await?;
    let reads = async |shape: Shape| -> Result<Vec<Json>> {
        let mut watcher = Watcher::open(&server, Subscription::shape(shape).from(Start::Snapshot)).await?;
        let mut ids = Vec::new();
        loop {
            match watcher.next().await? {
                Event::Change(change) => ids.extend(change.row_json()?.and_then(|row| row.get("id").cloned())),
                Event::SnapshotEnd { .. } => return Ok(ids),
                _mark => {}
            }
        }
    };
    let shape = |condition: &str| Shape::of("t").matching(condition);
    let typed = Parameter::typed("text[]", "{b}");
    ensure!(reads(shape("tags @> $1").parameter(typed)).await? == [1]);
    ensure!(reads(shape("at < $1").parameter("2025-01-01 00:00Z")).await? == [1]);
    ensure!(
        reads(shape("kind = $1 and n = $2").parameter("00000000-0000-0000-0000-000000000001").parameter(1.5)).await?
            == [1]
    );
    ensure!(reads(shape("n = $1").parameter(Parameter::null())).await?.is_empty());
    ensure!(reads(shape("n is not distinct from $1").parameter(Parameter::null())).await? == [2]);
    ensure!(reads(shape("n > 1 or n is null")).await?.len() == 2);
    ensure!(reads(shape("not (n > 1)")).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_shape_is_refused_with_what_to_do() -> Result<()> {
    let sql = "create table orders (id bigint primary key, tenant int, status text);
               create table plain (id int primary key, v int); create table keyless (v int);
               alter table keyless replica identity full";
    let (_database, server) = served("shape_refusals", sql, &["orders"]).await?;
    let orders = |condition: &str| Shape::of("orders").matching(condition);
    for (shape, expected) in [
        (Shape::of("oders"), "did you mean public.orders?"),
        (Shape::of("public.*"), "public.*"),
        (orders("tenant = 7").columns(["statu"]), "no column 'statu' (did you mean status?)"),
        (orders("tennant = 7"), "where, line 1, column 1: the table has no column tennant; it has id, tenant, status"),
        (orders("tenant =\n 'x'"), "where, line 2, column 2: "),
        (orders("tenant = $1"), "there is no parameter $1; give its value in `parameters`"),
        (orders("tenant = 1").parameter(5), "parameter $1 is not used; leave it out"),
        (orders("random() < 0.5"), "where, line 1, column 1: "),
        (orders("tenant"), "cast it, or compare it with something"),
        (Shape::of("plain").matching("v = 1"), "REPLICA IDENTITY FULL"),
        (Shape::of("keyless").matching("v = 1"), "give it a primary key"),
    ] {
        let refused = refusal(&server, shape.clone()).await?;
        ensure!(refused.contains(expected), "{shape:?}: {refused}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_for_which_the_condition_fails_ends_one_subscription_only() -> Result<()> {
    let (database, server) = served("shape_poison", ORDERS, &["orders"]).await?;
    let poisoned = Shape::of("orders").matching("100 / tenant > 2");
    let mut poisoned = Watcher::open(&server, Subscription::shape(poisoned)).await?;
    let mut other = Watcher::open(&server, Subscription::shape(open_orders())).await?;
    database.execute("insert into orders values (4, 7, 'new', 1, null)").await?;
    ensure!(poisoned.until(&database, "before").await?.len() == 1);
    database.execute("insert into orders values (5, 0, 'new', 1, null)").await?;
    let why = poisoned.end().await?;
    for expected in ["table public.orders", "row (id = 5)", "division by zero", "change it so that it does not"] {
        ensure!(why.contains(expected), "{why}");
    }
    database.execute("insert into orders values (6, 7, 'new', 1, null)").await?;
    ensure!(other.until(&database, "after").await?.len() == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_on_with_its_own_shape_alone() -> Result<()> {
    let (database, mut server) = served("shape_token", ORDERS, &["orders"]).await?;
    let mut watcher = Watcher::open(&server, Subscription::shape(open_orders()).from(Start::Snapshot)).await?;
    ensure!(watcher.read().await?.len() == 1);
    let token = watcher.token.clone();
    drop(watcher);
    database.execute("update orders set status = 'open' where id = 2").await?;
    server.kill().await?;
    server.launch().await?;
    let from = |shape: Shape| Subscription::shape(shape).from(token.clone());
    let same = Shape::of("public.orders").matching("status <> 'closed' AND 7 = tenant");
    let mut same = Watcher::open(&server, from(same)).await?;
    must_hear(same.until(&database, "on").await?, &["insert in: id=2 note=b status=open tenant=7 total=20.00"])?;
    for other in [open_orders().columns(["note"]), Shape::of("orders").matching("tenant = 8"), Shape::of("orders")] {
        let client = Client::connect(server.endpoint()).await?;
        let mut events = client.subscribe(from(other).and_tables(["marker"]));
        match events.next().await.context("an event")?? {
            Event::Reset { reason: ResetReason::DefinitionChanged, detail } => {
                ensure!(detail.contains("without the token"))
            }
            unexpected => bail!("{unexpected:?}"),
        }
    }
    let client = Client::connect(server.endpoint()).await?;
    let mut events = client.subscribe(Subscription::tables(["orders"]).from(token));
    let first = events.next().await.context("an event")??;
    ensure!(matches!(first, Event::Reset { reason: ResetReason::DefinitionChanged, .. }), "{first:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_of_a_table_with_whole_old_rows_needs_no_mirror() -> Result<()> {
    let sql = "create table docs (id int primary key, v int, body text);
               alter table docs replica identity full; alter table docs alter body set storage external;
               insert into docs select n, n, repeat('b', 9000) from generate_series(1, 4) n";
    let (database, server) = served("shape_full", sql, &[]).await?;
    let shape = Shape::of("docs").matching("v > 2 and length(body) > 10");
    let mut watcher = Watcher::open(&server, Subscription::shape(shape).from(Start::Snapshot)).await?;
    let reads = ["read: body=bbbbbbbb id=3 v=3", "read: body=bbbbbbbb id=4 v=4"];
    must_hear(watcher.read().await?, &reads)?;
    database
        .execute(
            "update docs set v = 9 where id = 1; update docs set v = 0 where id = 3; update docs set v = 5 where id = 4;
             update docs set v = -1 where id = 2; delete from docs where id = 2",
        )
        .await?;
    let expected = [
        "insert in: body=bbbbbbbb id=1 v=9",
        "delete out:  | body=bbbbbbbb id=3 v=3",
        "update: id=4 v=5 | body=bbbbbbbb id=4 v=4 | unchanged body",
    ];
    must_hear(watcher.until(&database, "moved").await?, &expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_come_in_pieces_move_as_a_whole() -> Result<()> {
    let sql = "create table docs (id int primary key, v int, body text);
               insert into docs values (1, 0, repeat('b', 3000000)), (2, 1, repeat('c', 3000000))";
    let (database, server) = served("shape_pieces", sql, &["docs"]).await?;
    let subscription = || Subscription::shape(Shape::of("docs").matching("v > 0")).and_tables(["docs"]);
    let mut watcher = Watcher::open(&server, subscription()).await?;
    let small = Shape::of("docs").matching("v > 0 and length(body) < 5000000").columns(["v"]);
    let mut small = Watcher::open(&server, Subscription::shape(small).and_shape(Shape::of("docs"))).await?;
    database.execute("update docs set v = 1 - v; update docs set v = 5, body = body || body where v = 1").await?;
    let tables = [
        "update: body=bbbbbbbb id=1 v=1 | body=bbbbbbbb id=1 v=0",
        "update: body=cccccccc id=2 v=0 | body=cccccccc id=2 v=1",
        "update: body=bbbbbbbb id=1 v=5 | body=bbbbbbbb id=1 v=1",
    ];
    let moves = [
        "insert in: body=bbbbbbbb id=1 v=1",
        "delete out:  | body=cccccccc id=2 v=1",
        "update: body=bbbbbbbb id=1 v=5 | body=bbbbbbbb id=1 v=1",
    ];
    must_hear(watcher.until(&database, "end").await?, &[&tables[..], &moves].concat())?;
    let moves = ["insert in: id=1 v=1", "delete out:  | id=2 v=1", "delete out:  | id=1 v=1"];
    must_hear(small.heard("end").await?, &[&tables[..], &moves].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_goes_on_over_schema_changes_that_leave_its_columns() -> Result<()> {
    let sql = format!("create type mood as enum ('sad', 'ok'); {ORDERS}; alter table orders add mood mood");
    let (database, server) = served("shape_schema", &sql, &["orders"]).await?;
    let mut plain = Watcher::open(&server, Subscription::shape(open_orders().columns(["total"]))).await?;
    let moody = Shape::of("orders").matching("mood > 'sad'").columns(["mood"]);
    let mut moody = Watcher::open(&server, Subscription::shape(moody)).await?;
    database
        .execute(
            "alter table orders add extra int default 5;
             alter table orders drop note;
             update orders set total = 11 where id = 1;
             update orders set tenant = 9 where id = 1;
             update orders set mood = null",
        )
        .await?;
    // What a row was is not known before it is written under the new row type: it may have been in the shape.
    let heard = plain.until(&database, "altered").await?;
    let mut of_moods = moody.heard("altered").await?;
    of_moods.sort_unstable();
    ensure!(of_moods == ["delete out:  | id=1", "delete out:  | id=2", "delete out:  | id=3"], "{of_moods:?}");
    ensure!(heard[0].starts_with("update: id=1 total=11.00"), "{heard:?}");
    ensure!(heard[1].starts_with("delete out:  | id=1"), "{heard:?}");
    // A label that is newer than what the shape was made of.
    database.execute("alter type mood add value 'happy'").await?;
    database.execute("update orders set mood = 'happy' where id = 3").await?;
    let heard = moody.until(&database, "label").await?;
    must_hear(heard, &["insert in: id=3 mood=happy"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_ends_when_a_column_that_it_reads_is_gone_or_another() -> Result<()> {
    let (database, server) = served("shape_dropped", ORDERS, &["orders"]).await?;
    let of = |condition: &str| Subscription::shape(Shape::of("orders").matching(condition));
    let mut dropped = Watcher::open(&server, of("note = 'a'")).await?;
    let mut retyped = Watcher::open(&server, of("tenant = 7")).await?;
    let token = retyped.token.clone();
    database.execute("alter table orders drop note; update orders set total = 1").await?;
    let why = dropped.end().await?;
    ensure!(why.contains("column \"note\", which the condition reads, is gone"), "{why}");
    let gone = refusal(&server, Shape::of("orders").matching("note = 'a'")).await?;
    ensure!(gone.contains("no column note"), "{gone}");
    database.execute("alter table orders alter tenant type bigint; update orders set total = 2").await?;
    let why = retyped.end().await?;
    ensure!(why.starts_with("DefinitionChanged: ") && why.contains("has another type now"), "{why}");
    // Its token is not taken either: what was received before is of the other type.
    let client = Client::connect(server.endpoint()).await?;
    let mut events = client.subscribe(of("tenant = 7").and_tables(["marker"]).from(token));
    let first = events.next().await.context("an event")??;
    ensure!(matches!(first, Event::Reset { reason: ResetReason::DefinitionChanged, .. }), "{first:?}");
    let mut anew = Watcher::open(&server, of("tenant = 7")).await?;
    database.execute("update orders set total = 3 where id = 1").await?;
    let heard = anew.until(&database, "anew").await?;
    ensure!(heard.iter().any(|line| line.contains("total=3.00")), "{heard:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_ends_when_a_column_that_it_reads_has_an_earlier_type_again() -> Result<()> {
    let (database, server) = served("shape_column_again", ORDERS, &["orders"]).await?;
    database.execute("alter table orders alter tenant type text; update orders set total = 1").await?;
    let shape = || Subscription::shape(Shape::of("orders").matching("tenant = '7'"));
    let mut watcher = Watcher::open(&server, shape().from(Start::Snapshot)).await?;
    let read = watcher.read().await?;
    ensure!(read.len() == 2, "{read:?}");
    database.execute("alter table orders alter tenant type int using tenant::int; update orders set total = 2").await?;
    let why = watcher.end().await?;
    ensure!(why.starts_with("DefinitionChanged: ") && why.contains("has another type now"), "{why}");
    Ok(())
}
