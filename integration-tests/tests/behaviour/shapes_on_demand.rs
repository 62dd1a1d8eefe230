//! The first shape of a table that is not mirrored has it mirrored: it waits, is told how far that is, and goes on by itself.

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::{
    Client, ClientError, Event, MirrorState, OrderBy, Query, Shape, SourceStatus, Start, Subscription,
};
use tidegate_integration_tests::{
    Cluster, Copier, DEADLINE, Database, Seed, Server, ServerConfig, Writers, held_by_postgres, keyed_tables,
    keyed_transaction, must_equal,
};
use tidegate_proto::v1::{self, watch_response::Mark};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

const CONDITION: &str = "id % 3 = 1 and (name like 'u%' or note is not null)";

/// A table is not read before it can be seen that it is waited for.
const SLOWLY: &str = "snapshots: {readers: 1, rows_per_second: 1500}";

async fn served(name: &str, lines: &[&str]) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    database.execute(&rows).await?;
    database.execute("create table marks (id int); insert into marks values (1)").await?;
    // So that it is known how many rows there are, about.
    database.execute("analyze account, pair, thing").await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.extend(lines.iter().map(|line| (*line).to_owned()));
    let server = Server::start(config).await?;
    server.streaming().await?;
    Ok((database, server))
}

fn accounts() -> Subscription {
    Subscription::shape(Shape::of("account").matching(CONDITION))
}

fn is_mirrored(status: &SourceStatus) -> bool {
    status.mirror.len() == 1 && status.mirror[0].state() == MirrorState::Complete
}

async fn refused(server: &Server, shapes: Subscription) -> Result<ClientError> {
    let mut events = Client::connect(server.endpoint()).await?.subscribe(shapes);
    loop {
        match timeout(DEADLINE, events.next()).await.context("no answer")?.context("no event")? {
            Err(error) => return Ok(error),
            Ok(Event::Preparing { .. }) => {}
            Ok(other) => bail!("{other:?} instead of an error"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_its_mirror_and_goes_on_by_itself_whatever_happens_to_the_server() -> Result<()> {
    let seed = Seed::from_environment();
    let (database, mut server) = served("shapes_on_demand", &[SLOWLY]).await?;
    ensure!(server.status().await?.mirror.is_empty(), "a mirror of nothing");
    let writers = Writers::start(3, (database.url(), seed), keyed_transaction);
    // Tables that are followed at the same time miss nothing, and nothing comes twice.
    let mut tables = Copier::new(&server.endpoint(), &["account"], Start::Snapshot);
    tables.until_snapshot_end().await?;

    let mut waiting = Client::connect(server.endpoint()).await?.subscribe(accounts().from(Start::Snapshot));
    let first = timeout(DEADLINE, waiting.next()).await.context("nothing is said")?.context("no event")??;
    let Event::Preparing { table, .. } = first else { bail!("{first:?} instead of Preparing") };
    ensure!(table == "public.account", "{table}");
    drop(waiting);
    server.kill().await?;
    server.launch().await?;

    let mut shape = Copier::of(&server.endpoint(), accounts(), Start::Snapshot);
    shape.until_snapshot_end().await?;
    server.until("shop", "one mirrored table", is_mirrored).await?;
    server.kill().await?;
    server.launch().await?;
    server.until("shop", "what was asked for, mirrored still", is_mirrored).await?;
    writers.stop().await;
    shape.until_caught_up(&database).await?;
    tables.until_caught_up(&database).await?;
    let theirs = held_by_postgres(&database, &format!("(select * from account where {CONDITION}) t"), &["id"]).await?;
    must_equal("the shape", &shape.replica.table("public.account"), &theirs)?;
    let theirs = held_by_postgres(&database, "account", &["id"]).await?;
    must_equal("the table", &tables.replica.table("public.account"), &theirs)
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_says_how_far_it_is() -> Result<()> {
    const ROWS: u64 = 2_000;
    let slowly = "snapshots: {readers: 1, rows_per_second: 500}";
    let (_database, server) = served("shapes_on_demand_watch", &[slowly]).await?;
    let mut client = v1::changes_client::ChangesClient::connect(server.endpoint()).await?;
    let shape = v1::ShapeSelection { table: "thing".into(), ..v1::ShapeSelection::default() };
    let start = v1::Start { from: Some(v1::start::From::At(v1::start::Point::Snapshot as i32)) };
    let request = v1::WatchRequest { shape: Some(shape), start: Some(start), ..v1::WatchRequest::default() };
    let mut responses = client.watch(request).await?.into_inner();
    let mut marks = Vec::new();
    while let Some(response) = timeout(DEADLINE, responses.next()).await.context("nothing comes")? {
        match response?.mark {
            Some(Mark::Preparing(preparing)) => marks.push(preparing),
            Some(Mark::SnapshotEnd(_)) => break,
            Some(_) | None => {}
        }
    }
    ensure!(!marks.is_empty() && marks.iter().all(|mark| mark.table == "public.thing"), "{marks:?}");
    ensure!(marks.is_sorted_by_key(|mark| mark.rows_read), "{marks:?}");
    // While rows are being read, of as many as there are.
    let is_amid = |mark: &v1::Preparing| (1..=ROWS).contains(&mark.rows_read) && mark.rows_estimated == ROWS;
    ensure!(marks.iter().any(is_amid), "{marks:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_mirrored_is_refused_with_the_next_step() -> Result<()> {
    let lines = ["mirror_on_demand: [\"public.*\", \"!public.account\"]"];
    let (_database, server) = served("shapes_on_demand_not", &lines).await?;
    let of = |table: &str| Subscription::shape(Shape::of(table));
    let error = refused(&server, of("account")).await?.to_string();
    ensure!(error.contains("`mirror_on_demand`"), "{error}");
    // Nor is what could be.
    let with_account = of("thing").and_shape(Shape::of("account"));
    let reads_account = Shape::of("thing").matching("body in (select name from account)");
    for shapes in [with_account, Subscription::shape(reads_account)] {
        let error = refused(&server, shapes).await?.to_string();
        ensure!(error.contains("account") && error.contains("`mirror_on_demand`"), "{error}");
    }
    let client = Client::connect(server.endpoint()).await?;
    let of_subquery = Query::of(Shape::of("thing").matching("body in (select name from account)"));
    let of_order = Query::of(Shape::of("thing")).order_by(OrderBy::ascending("nothing")).limit(1);
    for query in [of_subquery, of_order] {
        let error = client.query("", query).await.err().context("it is answered")?.to_string();
        ensure!(error.contains("`mirror_on_demand`") || error.contains("order_by"), "{error}");
    }
    let keyless = refused(&server, of("marks")).await?.to_string();
    ensure!(keyless.contains("does not hold it"), "{keyless}");
    ensure!(server.status().await?.mirror.is_empty(), "something is mirrored");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn to_validate_and_explain_a_shape_mirrors_nothing() -> Result<()> {
    let (_database, server) = served("shapes_on_demand_asked", &[]).await?;
    let client = Client::connect(server.endpoint()).await?;
    let with_subquery = "name in (select body from thing where v > 7)";
    for condition in [CONDITION, with_subquery] {
        let shape = Shape::of("account").matching(condition);
        let valid = client.validate_shape("shop", &shape).await?;
        ensure!(valid.columns.len() == 3, "{valid:?}");
        let explained = client.explain_shape("shop", &shape).await?;
        ensure!(!explained.summary.is_empty(), "{explained:?}");
    }
    server.command(&["shape", "validate", "--table", "account", "--where", CONDITION]).await?;
    server.command(&["shape", "explain", "--table", "account", "--where", CONDITION]).await?;
    // What is asked for later is mirrored, and nothing else: what had been asked for before would be there too.
    let mut shape = Copier::of(&server.endpoint(), Subscription::shape(Shape::of("pair")), Start::Snapshot);
    shape.until_snapshot_end().await?;
    let mirrored: Vec<String> = server.status().await?.mirror.into_iter().map(|table| table.table).collect();
    ensure!(mirrored == ["public.pair"], "{mirrored:?}");
    Ok(())
}
