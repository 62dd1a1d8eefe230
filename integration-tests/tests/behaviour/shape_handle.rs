//! A handle on a shape holds what PostgreSQL's SELECT has, whatever happens to the server under it; its readers never see a part
//! of a transaction.

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{
    Client, MirrorState, Parameter, Position, Shape, ShapeHandle, ShapeRows, ShapeUpdate, SourceStatus, Updates,
};
use tidegate_integration_tests::{
    Cluster, DEADLINE, Database, Seed, Server, ServerConfig, Writers, held_by_postgres, held_by_shape, keyed_tables,
    keyed_transaction, must_equal, within,
};
use tokio::task::JoinSet;

/// How often the server dies under the handles.
const DEATHS: u32 = 5;
const PURSES: i64 = 20;
const SUM: i64 = PURSES * 100;

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.len() == 3 && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

/// Both kinds of transactions: many that the shapes see parts of, and some that move money from purse to purse.
fn transaction(random: &mut StdRng) -> String {
    if random.random_bool(0.6) {
        return keyed_transaction(random);
    }
    let (from, to, amount) =
        (random.random_range(0..PURSES), random.random_range(0..PURSES), random.random_range(1..50_i64));
    format!(
        "begin; update purse set amount = amount - {amount} where id = {from}; update purse set amount = amount + {amount} \
         where id = {to}; commit"
    )
}

async fn served(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    database.execute("create table purse (id bigint primary key, owner text not null, amount bigint not null)").await?;
    database.execute(&rows).await?;
    database
        .execute(&format!(
            "insert into purse select n, case when n < {PURSES} then 'a' else 'b' end, 100 from generate_series(0, 99) n"
        ))
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [account, thing, purse]".to_owned());
    let server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok((database, server))
}

/// Where the WAL is now, with all that has been committed before it.
async fn now(database: &Database) -> Result<Position> {
    let end = database.text("select pg_current_wal_insert_lsn()::text").await?.context("an LSN")?;
    let end: tidegate_model::Lsn = end.parse().ok().context("an LSN")?;
    // Brings what was committed to the disk, and the WAL beyond its end.
    database.execute("select pg_logical_emit_message(true, 'caught up', '')").await?;
    Ok(Position { lsn: end.0, ordinal: 0 })
}

/// How many rows the shape has when it has all that has been committed, which are those of the query.
pub(crate) async fn must_equal_select(shape: &ShapeHandle, database: &Database, select: &str) -> Result<usize> {
    let reached = tokio::time::timeout(DEADLINE, shape.up_to(now(database).await?)).await;
    let rows = reached.with_context(|| format!("{shape:?} does not catch up"))??;
    let key: &[&str] = if select.contains("from pair") { &["a", "b"] } else { &["id"] };
    let theirs = held_by_postgres(database, &format!("({select}) t"), key).await?;
    must_equal(select, &held_by_shape(&rows)?, &theirs)?;
    Ok(rows.len())
}

fn sum(rows: &ShapeRows) -> Result<i64> {
    rows.iter().map(|row| row.json()?["amount"].as_i64().context("an amount")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_holds_what_a_select_has_whatever_happens_to_the_server() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let (database, mut server) = served("shape_handle").await?;
    let client = Client::connect(server.endpoint()).await?;
    let account = "id % 3 = $1 and (name like 'u%' or note is not null)";
    let accounts = client.shape("shop", Shape::of("account").matching(account).parameter(1_i64));
    let things = Shape::of("thing").matching("v between $1 and $2").parameter(Parameter::from(0)).parameter(2_000);
    let things = client.shape("", things.columns(["v"]).updates(Updates::ChangedColumns));
    let purses = client.shape("shop", Shape::of("purse").matching("owner = $1").parameter("a"));
    let writers = Writers::start(3, (database.url(), seed), transaction);

    let mut updates = purses.subscribe();
    let mut watching = JoinSet::new();
    watching.spawn(async move {
        let mut count = 0_u64;
        while let Some(update) = updates.next().await {
            if let ShapeUpdate::Rows(rows) = update? {
                ensure!(sum(&rows)? == SUM, "{} in {} purses", sum(&rows)?, rows.len());
            }
            count += 1;
        }
        Ok(count)
    });
    for death in 0..DEATHS {
        for shape in [&accounts, &things, &purses] {
            tokio::time::timeout(DEADLINE, shape.current()).await.context("does not get current")??;
        }
        for _ in 0..200 {
            ensure!(sum(&purses.rows())? == SUM, "a part of a transaction is seen");
            tokio::task::yield_now().await;
        }
        if random.random_bool(0.7) {
            server.kill().await?
        } else {
            server.terminate().await?
        }
        let held = purses.rows();
        ensure!(sum(&held)? == SUM && death < DEATHS, "the rows stay while the server is away");
        server.launch().await?;
    }
    writers.stop().await;
    // The last transaction may have been a TRUNCATE.
    database.execute("insert into account (id, name) values (1000000, 'u') on conflict do nothing").await?;
    let count = must_equal_select(
        &accounts,
        &database,
        "select * from account where id % 3 = 1 and (name like 'u%' or note is not null)",
    );
    ensure!(count.await? > 0, "nothing was compared");
    must_equal_select(&things, &database, "select id, v from thing where v between 0 and 2000").await?;
    must_equal_select(&purses, &database, "select * from purse where owner = 'a'").await?;
    drop(purses);
    let seen = watching.join_next().await.context("the watcher")???;
    ensure!(seen > 0, "no update was seen");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_whether_its_rows_are_current() -> Result<()> {
    let (database, mut server) = served("shape_is_current").await?;
    let client = Client::connect(server.endpoint()).await?;
    let purses = client.shape("shop", Shape::of("purse").matching("owner = 'a'"));
    let current = async || {
        tokio::time::timeout(DEADLINE, purses.current()).await.context("does not get current")??;
        anyhow::Ok(purses.is_current())
    };
    ensure!(current().await?, "its rows are those of a server that has told all");
    for is_killed in [true, false] {
        if is_killed {
            server.kill().await?;
        } else {
            server.terminate().await?;
        }
        within("it to notice that the server is away", async || Ok((!purses.is_current()).then_some(()))).await?;
        ensure!(purses.rows().len() == 20, "the rows stay");
        database.execute("update purse set amount = amount + 1").await?;
        server.launch().await?;
        must_equal_select(&purses, &database, "select * from purse where owner = 'a'").await?;
        ensure!(current().await?, "it is current again");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_receives_the_difference_when_its_shape_is_defined_anew() -> Result<()> {
    let (database, server) = served("shape_redefined").await?;
    let client = Client::connect(server.endpoint()).await?;
    let defined = |owner: &str| Shape::of("purse").matching(format!("owner = '{owner}'"));
    client.define_shape("shop", "purses", defined("a")).await?;
    let purses = client.shape("shop", Shape::named("purses"));
    ensure!(must_equal_select(&purses, &database, "select * from purse where owner = 'a'").await? == 20);
    let mut updates = purses.subscribe();
    let ShapeUpdate::Rows(first) = updates.next().await.context("rows")?? else { anyhow::bail!("rows come first") };
    ensure!(first.len() == 20);
    client.define_shape("shop", "purses", defined("b").columns(["amount"])).await?;
    let changed = async {
        loop {
            if let ShapeUpdate::Changes(changes) = updates.next().await.context("the handle goes on")?? {
                return anyhow::Ok(changes);
            }
        }
    };
    let changes = tokio::time::timeout(DEADLINE, changed).await.context("no difference comes")??;
    let (came, went) = changes.iter().partition::<Vec<_>, _>(|change| change.after.is_some());
    ensure!(came.len() == 80 && went.len() == 20, "{} rows came, {} went", came.len(), went.len());
    must_equal_select(&purses, &database, "select id, amount from purse where owner = 'b'").await?;
    client.delete_shape("shop", "purses").await?;
    let ended = async { while updates.next().await.is_some_and(|update| update.is_ok()) {} };
    tokio::time::timeout(DEADLINE, ended).await.context("it does not end")?;
    let error = purses.up_to(now(&database).await?).await.err().context("it has ended")?;
    ensure!(error.to_string().contains("purses"), "{error}");
    Ok(())
}
