//! A query of a shape with subqueries answers with the rows as they were at one version of all tables that it reads, while writers write; and
//! a subscription goes on behind it.
//!
//! Row 0 counts transactions: it is in every answer and says of which version that is. What each table held at each version stands in a
//! history that triggers write, and PostgreSQL's own subqueries over that are the oracle.

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use tidegate_client::{Change, Client, Op, OrderBy, Query, Shape};
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Seed, Server, ServerConfig, Writers, asked_for, within};

use crate::shape_query::{HeldNumbers, LAST, follow};

const WRITERS: u64 = 3;
const QUERIES: u32 = 80;

const SCHEMA: &str = "
create table item (id int primary key, v bigint, owner int, tag text);
create table owner (id bigint primary key, grp int, state text);
create table grp (id int primary key, live bool);
create table history (version bigint, step bigserial, tab text, gone bool, was jsonb);
create function remember() returns trigger language plpgsql as $$
declare version bigint := (select v from item where id = 0);
begin
  if TG_OP <> 'INSERT' then insert into history (version, tab, gone, was) values (version, TG_TABLE_NAME, true, to_jsonb(OLD)); end if;
  if TG_OP <> 'DELETE' then insert into history (version, tab, gone, was) values (version, TG_TABLE_NAME, false, to_jsonb(NEW)); end if;
  return null;
end $$;
insert into item (id, v) values (0, 0);
create trigger remember after insert or update or delete on item for each row execute function remember();
create trigger remember after insert or update or delete on owner for each row execute function remember();
create trigger remember after insert or update or delete on grp for each row execute function remember();
update item set v = 0;
insert into grp select n, n % 2 = 0 from generate_series(1, 6) n;
insert into owner select n, nullif(n % 7, 0), (array['on', 'off'])[1 + n % 2] from generate_series(1, 15) n;
insert into item select n, 0, nullif(n % 18, 0), (array['on', 'off', 'x'])[1 + n % 3] from generate_series(1, 80) n";

const CONDITIONS: [&str; 9] = [
    "owner in (select id from owner where state = 'on')",
    "owner not in (select grp from owner where state = 'on')",
    "owner in (select id from owner where grp in (select id from grp where live))",
    "id > 60 or owner in (select id from owner where state = 'on')",
    "owner not in (select id from owner where grp not in (select id from grp where live))",
    "id in (select owner from item where tag = 'x')",
    "tag in (select state from owner)",
    "(tag not in (select state from owner where grp is null)) is null",
    "owner <> all (select id from grp) and owner = 7",
];

fn transaction(random: &mut StdRng) -> String {
    let changes: Vec<String> = (0..random.random_range(1..6)).map(|_| change(random)).collect();
    let end = if random.random_ratio(1, 10) { "rollback" } else { "commit" };
    format!("begin; update item set v = v + 1 where id = 0; {}; {end}", changes.join("; "))
}

fn change(random: &mut StdRng) -> String {
    let (id, owner, grp) = (random.random_range(1..90), random.random_range(1..18), random.random_range(1..8));
    let state = ["'on'", "'off'", "'x'", "null"].choose(random).copied().unwrap_or_default();
    let version = "v = (select v from item where id = 0)";
    match random.random_range(0..9) {
        0 | 1 => format!("update owner set state = {state} where id = {owner}"),
        2 => format!("update owner set grp = nullif({grp}, 1) where id = {owner}"),
        3 => format!("delete from owner where id = {owner}"),
        4 => format!("insert into owner values ({owner}, {grp}, {state}) on conflict do nothing"),
        5 => format!("update grp set live = not live where id = {grp}"),
        6 => format!("update item set owner = {owner}, {version} where id = {id}"),
        7 => format!("delete from item where id = {id}"),
        _ => format!(
            "insert into item select {id}, v, {owner}, {state} from item where id = 0 on conflict (id) do nothing"
        ),
    }
}

type Rows = Vec<(i64, i64)>;

fn pair(row: &serde_json::Map<String, Value>) -> Result<(i64, i64)> {
    let number = |name: &str| row.get(name).and_then(Value::as_i64).with_context(|| format!("{name} in {row:?}"));
    Ok((number("id")?, number("v")?))
}

/// What PostgreSQL selects, at a version.
async fn oracle(database: &Database, version: i64, condition: &str, limit: u64) -> Result<Rows> {
    let table = |name: &str| {
        format!(
            "{name} as (select rows.* from newest, jsonb_populate_record(null::public.{name}, was) rows where tab = '{name}' and not gone)"
        )
    };
    let sql = format!(
        "with newest as (select distinct on (tab, was -> 'id') tab, gone, was from history where version <= {version} \
         order by tab, was -> 'id', version desc, step desc), {}, {}, {} \
         select id::int8, v from item where id = 0 or ({condition}) order by id limit {}",
        table("item"),
        table("owner"),
        table("grp"),
        if limit == 0 { "all".to_owned() } else { limit.to_string() }
    );
    // A commit comes a moment before others see it.
    within("the version to be seen", || async {
        let seen = database.client().query_one("select v from item where id = 0", &[]).await?;
        Ok((seen.try_get::<_, i64>(0)? >= version).then_some(()))
    })
    .await?;
    let rows = database.client().query(&sql, &[]).await.with_context(|| sql.clone())?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

fn shape(condition: &str) -> Shape {
    Shape::of("item").matching(format!("id = 0 or ({condition})"))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_postgresql_does_at_one_version_of_all_tables() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let database = Cluster::shared().await?.database("shape_query_subqueries").await?;
    database.execute(SCHEMA).await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let client = Client::connect(server.endpoint()).await?;
    // It has the tables mirrored that it reads, and may be asked again meanwhile.
    let all = CONDITIONS[2];
    within("the first answer", || async { Ok(client.query("", Query::of(shape(all))).await.ok().map(drop)) }).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), transaction);
    let (mut followed, mut row_count) = (Vec::new(), 0);
    for number in 0..asked_for("TIDEGATE_TEST_QUERIES", QUERIES) {
        let condition = CONDITIONS.choose(&mut random).copied().context("a condition")?;
        let limit = if random.random_bool(0.3) { random.random_range(1..30) } else { 0 };
        let query = Query::of(shape(condition)).limit(limit);
        let query = if limit > 0 { query.order_by(OrderBy::ascending("id")) } else { query };
        let mut rows = client.query("", query).await?;
        let mut ours = rows.all().await?.iter().map(|row| pair(&row.json()?)).collect::<Result<Rows>>()?;
        ours.sort_unstable();
        let version = ours.first().filter(|(id, _)| *id == 0).context("row 0")?.1;
        // The history grows only while a query is answered.
        let paused = writers.pause().await;
        let theirs = oracle(&database, version, condition, limit).await?;
        drop(paused);
        ensure!(ours == theirs, "where {condition} limit {limit}, version {version}:\n{ours:?}\n{theirs:?}");
        row_count += ours.len();
        if limit == 0 && number % 8 == 0 {
            followed.push((condition, rows.token().context("an end")?.clone(), ours));
        }
    }
    writers.stop().await;
    database.execute(&format!("update item set v = {LAST} where id = 0")).await?;
    for (condition, token, rows) in &followed {
        let ours = tokio::time::timeout(DEADLINE, follow(&client, shape(condition), (token, rows), apply))
            .await
            .context("its end")??;
        let theirs = oracle(&database, LAST, condition, 0).await?;
        ensure!(ours == theirs, "where {condition}, followed from {token}:\n{ours:?}\n{theirs:?}");
    }
    println!("{row_count} rows, {} queries followed", followed.len());
    Ok(())
}

/// A row may be told twice in one transaction: what is inserted may be there.
fn apply(change: &Change, held: &mut HeldNumbers) -> Result<()> {
    if change.op == Op::Insert || change.op == Op::Update {
        let (id, v) = pair(&change.row_json()?.context("a row")?)?;
        held.insert(id, v);
    } else {
        let key = change.old_key_json()?.or(change.key_json()?).context("a key")?;
        held.remove(&key.get("id").and_then(Value::as_i64).context("id")?);
    }
    Ok(())
}
