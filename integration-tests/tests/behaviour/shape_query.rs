//! A query answers with the rows of a shape as they were at one version of the table, in PostgreSQL's order, while writers write; and
//! a subscription goes on behind it with exactly what changes them.
//!
//! Row 0 counts transactions: it is in every answer and says of which version that is. What the table held at each version stands in a
//! history that a trigger writes, and PostgreSQL's ORDER BY over that is the oracle.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use tidegate_client::{
    Change, Client, Event, MirrorState, Op, OrderBy, Query, Shape, ShapeRow, Start, Subscription, Token,
};
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Seed, Server, ServerConfig, Writers, tidegate, within};
use tokio_stream::StreamExt as _;

const WRITERS: u64 = 2;
const QUERIES: u32 = 150;
/// What row 0 counts to when nobody writes any more.
pub(crate) const LAST: i64 = 1_000_000_000;

const SCHEMA: &str = "
create type mood as enum ('sad', 'ok', 'happy');
create table item (id int primary key, v bigint, n int, d numeric, f float8, r float4, t text, p char(4), b bool, m mood, u uuid, y bytea,
  at timestamptz, day date, i interval, a int[], s int4range);
create table history (version bigint, step bigserial, gone bool, was item);
create function remember() returns trigger language plpgsql as $$
declare version bigint := (select v from item where id = 0);
begin
  if TG_OP <> 'INSERT' then insert into history (version, gone, was) values (version, true, OLD); end if;
  if TG_OP <> 'DELETE' then insert into history (version, gone, was) values (version, false, NEW); end if;
  return null;
end $$;
create trigger remember after insert or update or delete on item for each row execute function remember();
insert into item (id, v) values (0, 0);
create table other (id int primary key);
alter table other replica identity full";

const COLUMNS: &str = "n, d, f, r, t, p, b, m, u, y, at, day, i, a, s";

/// Values of each of the columns, such that many are alike, and the odd ones are among them.
const VALUES: [&[&str]; 15] = [
    &["1", "2", "-7", "0"],
    &["'1.0'", "'1.00'", "'NaN'", "'-3.25'", "'100000000000000000000.5'"],
    &["'NaN'", "'-0'", "0", "'Infinity'", "1.5", "-2e300"],
    &["'NaN'", "0.1", "'-Infinity'", "3"],
    &["'a'", "'B'", "'ä'", "''", "'a '", "'日本'", "'a-b'"],
    &["'a'", "'ab'", "'B'", "''"],
    &["true", "false"],
    &["'sad'", "'ok'", "'happy'"],
    &["'00000000-0000-0000-0000-00000000000a'", "'ffffffff-0000-0000-0000-000000000000'"],
    &[r"'\x'", r"'\x00'", r"'\xff'", r"'\x0001'"],
    &["'2024-02-29 12:00:00+00'", "'infinity'", "'-infinity'", "'0044-03-15 00:00:00+00 BC'"],
    &["'2024-02-29'", "'infinity'", "'0001-01-01 BC'"],
    &["'1 month'", "'30 days'", "'29 days 25 hours'", "'-1 day'"],
    &["'{1,2}'", "'{}'", "'{1,NULL}'", "'{1}'", "'[2:3]={1,2}'"],
    &["'[1,5)'", "'empty'", "'(,3]'", "'[1,)'"],
];

const CONDITIONS: [&str; 8] = [
    "true",
    "n > 0",
    "n = 1",
    "t like 'a%' or n is null",
    "b is not true",
    "m = 'ok' or m is null",
    "coalesce(d, 0) < 10",
    "id % 3 <> 1",
];

const TERMS: [&str; 22] = [
    "n",
    "d",
    "f",
    "r",
    "t collate \"C\"",
    "p collate \"C\"",
    "b",
    "m",
    "u",
    "y",
    "at",
    "day",
    "i",
    "a",
    "s",
    "v",
    "n + id % 5",
    "abs(n)",
    "lower(t) collate \"C\"",
    "t collate \"C\" like 'a%'",
    "coalesce(d, 2)",
    "case when b then id else -id end",
];

fn row(random: &mut StdRng) -> String {
    let value = |values: &[&str]| match random.random_ratio(1, 5) {
        true => "null".to_owned(),
        false => values.choose(random).copied().unwrap_or("null").to_owned(),
    };
    VALUES.map(value).join(", ")
}

/// One that counts first, which holds up the others until it is committed.
fn transaction(random: &mut StdRng) -> String {
    let changes = (0..random.random_range(1..6)).map(|_| {
        let (id, other) = (random.random_range(1..300), random.random_range(1..300));
        match random.random_range(0..6) {
            0..3 => format!(
                "insert into item select {id}, v, {} from item where id = 0 on conflict (id) do nothing",
                row(random)
            ),
            3 => format!(
                "update item set v = (select v from item where id = 0), ({COLUMNS}) = row ({}) where id = {id}",
                row(random)
            ),
            4 => format!(
                "update item set id = {other}, v = (select v from item where id = 0) where id = {id} and not exists \
                 (select from item where id = {other})"
            ),
            _ => format!("delete from item where id = {id}"),
        }
    });
    let changes = changes.collect::<Vec<_>>().join("; ");
    let end = if random.random_ratio(1, 10) { "rollback" } else { "commit" };
    format!("begin; update item set v = v + 1 where id = 0; {changes}; {end}")
}

/// A database whose table `item`, and no other, has a complete mirror.
pub(super) async fn served(name: &str, schema: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.execute(schema).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [item]".to_owned());
    config.source_lines.push("mirror_on_demand: []".to_owned());
    let server = Server::start(config).await?;
    let is_complete = |state| state == MirrorState::Complete;
    server.until("shop", "a mirror", |status| status.mirror.iter().any(|table| is_complete(table.state()))).await?;
    Ok((database, server))
}

/// A row's key, and the version that wrote it, which tells its values.
fn read(row: &ShapeRow) -> Result<(i64, i64)> {
    let values = row.json()?;
    let number = |name: &str| values.get(name).and_then(Value::as_i64).with_context(|| format!("{name} in {values:?}"));
    Ok((number("id")?, number("v")?))
}

/// The rows that PostgreSQL has for it, in their order, at a version.
async fn oracle(
    database: &Database,
    version: i64,
    (condition, order, limit): (&str, &str, u64),
) -> Result<Vec<(i64, i64)>> {
    let sql = format!(
        "with newest as (select distinct on ((was).id) gone, (was).* from history where version <= {version} \
         order by (was).id, version desc, step desc) \
         select id::int8, v from newest where not gone and (id = 0 or ({condition})) order by {order} id limit {}",
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

/// What is asked, of us and of PostgreSQL.
struct Asked {
    condition: &'static str,
    terms: Vec<OrderBy>,
    order: String,
    limit: u64,
}

impl Asked {
    fn new(random: &mut StdRng) -> Self {
        let condition = CONDITIONS.choose(random).copied().unwrap_or("true");
        if random.random_ratio(1, 4) {
            return Asked { condition, terms: Vec::new(), order: String::new(), limit: 0 };
        }
        // Row 0 comes first, so that it is in every answer.
        let (mut terms, mut order) = (vec![OrderBy::ascending("id <> 0")], "id <> 0, ".to_owned());
        for _ in 0..random.random_range(0..4) {
            let term = TERMS.choose(random).copied().unwrap_or("id");
            let descending = random.random_bool(0.5);
            let by = if descending { OrderBy::descending(term) } else { OrderBy::ascending(term) };
            let (by, nulls) = match random.random_range(0..4) {
                0 => (by.nulls_first(), " nulls first"),
                1 => (by.nulls_last(), " nulls last"),
                _ => (by, ""),
            };
            terms.push(by);
            order.push_str(&format!("{term}{}{nulls}, ", if descending { " desc" } else { "" }));
        }
        Asked { condition, terms, order, limit: random.random_range(1..40) }
    }

    fn shape(&self) -> Shape {
        Shape::of("item").matching(format!("id = 0 or ({})", self.condition))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_postgresql_does_at_one_version_and_a_subscription_goes_on_behind_it() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let (database, server) = served("shape_query", SCHEMA).await?;
    let client = Client::connect(server.endpoint()).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), transaction);
    let (mut followed, mut row_count) = (Vec::new(), 0);
    for number in 0..QUERIES {
        let asked = Asked::new(&mut random);
        let query = asked.terms.iter().cloned().fold(Query::of(asked.shape()).limit(asked.limit), Query::order_by);
        let mut rows = client.query("shop", query).await?;
        let mut ours = rows.all().await?.iter().map(read).collect::<Result<Vec<_>>>()?;
        let token = rows.token().context("an end")?.clone();
        ensure!(token.position() == rows.position());
        if asked.terms.is_empty() {
            ours.sort_unstable();
        }
        let version = ours.first().filter(|(id, _)| *id == 0).context("row 0")?.1;
        let theirs = oracle(&database, version, (asked.condition, &asked.order, asked.limit)).await?;
        let (condition, order, limit) = (asked.condition, &asked.order, asked.limit);
        ensure!(
            ours == theirs,
            "where {condition} order by {order} limit {limit}, version {version}:\n{ours:?}\n{theirs:?}"
        );
        row_count += ours.len();
        if asked.terms.is_empty() && number % 3 == 0 {
            followed.push((asked, token, ours));
        }
    }
    writers.stop().await;
    database.execute(&format!("update item set v = {LAST} where id = 0")).await?;
    for (asked, token, rows) in &followed {
        let ours = tokio::time::timeout(DEADLINE, follow(&client, asked.shape(), (token, rows), apply))
            .await
            .context("its end")??;
        let theirs = oracle(&database, LAST, (asked.condition, "", 0)).await?;
        ensure!(ours == theirs, "where {}, followed from {token}:\n{ours:?}\n{theirs:?}", asked.condition);
    }
    // The first of these has an index built, by which the others are looked up as soon as it is there.
    for n in [1, 2, -7, 0].repeat(5) {
        let query = Query::of(Shape::of("item").matching("n = $1").parameter(n));
        let ours = client.query("shop", query.order_by(OrderBy::ascending("id")).limit(1_000)).await?.all().await?;
        let ours = ours.iter().map(read).collect::<Result<Vec<_>>>()?;
        let theirs = oracle(&database, LAST, (&format!("n = {n}"), "", 0)).await?;
        ensure!(ours == theirs[1..], "n = {n}:\n{ours:?}\n{theirs:?}");
    }
    println!("{row_count} rows of {QUERIES} queries, {} of them followed", followed.len());
    Ok(())
}

/// Numbers by key.
pub(crate) type HeldNumbers = BTreeMap<i64, i64>;

/// The rows with what has become of them, by a subscription to the shape from the token, until row 0 has counted to the last.
pub(crate) async fn follow(
    client: &Client,
    shape: Shape,
    (token, rows): (&Token, &[(i64, i64)]),
    apply: fn(&Change, &mut HeldNumbers) -> Result<()>,
) -> Result<Vec<(i64, i64)>> {
    let subscription = Subscription::shape(shape).source("shop").from(Start::Token(token.clone()));
    let mut held: HeldNumbers = rows.iter().copied().collect();
    let mut changes = client.subscribe(subscription);
    let mut open: Vec<Change> = Vec::new();
    while held.get(&0) != Some(&LAST) {
        match changes.next().await.context("more")?? {
            Event::Begin { .. } | Event::Abort => open.clear(),
            Event::Change(change) => open.push(change),
            Event::Commit { .. } => open.drain(..).try_for_each(|change| apply(&change, &mut held))?,
            Event::Reset { detail, .. } => anyhow::bail!("reset: {detail}"),
            _mark => {}
        }
    }
    Ok(held.into_iter().collect())
}

/// Strictly: what is inserted was not there, what is updated or deleted was.
fn apply(change: &Change, held: &mut HeldNumbers) -> Result<()> {
    let number = |row: Option<serde_json::Map<String, Value>>, name: &str| {
        row.and_then(|row| row.get(name).and_then(Value::as_i64)).with_context(|| format!("{name} in {change:?}"))
    };
    let is_insert = change.op == Op::Insert;
    if !is_insert {
        let old = number(change.old_key_json()?.or(change.key_json()?), "id")?;
        ensure!(held.remove(&old).is_some(), "row {old} was not there: {change:?}");
    }
    if is_insert || change.op == Op::Update {
        let (id, v) = (number(change.row_json()?, "id")?, number(change.row_json()?, "v")?);
        ensure!(held.insert(id, v).is_none(), "row {id} was there: {change:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_asked_on_the_command_line_and_what_it_cannot_answer_is_refused_with_the_reason() -> Result<()> {
    let (database, server) = served("shape_query_command", SCHEMA).await?;
    database
        .execute("insert into item (id, v, n, t) select n, n, n % 4, repeat('x', n) from generate_series(1, 20) n")
        .await?;
    let client = Client::connect(server.endpoint()).await?;
    // A value that does not fit a message, and one more that does not fit what is left.
    let large = "update item set t = repeat('ab', 800000), y = decode(repeat('cd', 1200000), 'hex') where id = 7";
    database.execute(large).await?;
    let seven = Shape::of("item").matching("id = 7").columns(["t", "y"]);
    within("the mirror to have the large row", || async {
        let rows = client.query("", Query::of(seven.clone())).await?.all().await?;
        let values = rows.first().context("row 7")?.json()?;
        let len = |name: &str| values.get(name).and_then(Value::as_str).map_or(0, str::len);
        Ok((len("t") == 1_600_000 && len("y") == 2_400_002).then_some(()))
    })
    .await?;

    let ask = ["shape", "query", "--table", "item", "--where", "n = $1", "--param", "2", "--columns", "v"];
    let printed = server.command(&[&ask[..], &["--order", "v desc nulls last", "--limit", "3"]].concat()).await?;
    ensure!(printed == "id  v\n18  18\n14  14\n10  10\n", "{printed}");
    let printed = server.command(&[&ask[..], &["--order", "v", "--limit", "1", "--json"]].concat()).await?;
    let line: Value = serde_json::from_str(&printed)?;
    ensure!((&line["table"], &line["key"]["id"], &line["row"]["v"]) == (&"public.item".into(), &2.into(), &2.into()));
    let printed = server.command(&ask).await?;
    ensure!(printed.lines().count() == 6, "{printed}");

    let refused = async |arguments: &[&str]| {
        let endpoint = server.endpoint();
        let output = tidegate(&[&["shape", "query", "--server", &endpoint], arguments].concat()).await?;
        ensure!(!output.status.success(), "{arguments:?} is answered");
        anyhow::Ok(String::from_utf8(output.stderr)?)
    };
    let message = refused(&["--table", "item", "--order", "t collate \"de_DE\"", "--limit", "1"]).await?;
    ensure!(message.contains("order_by, term 1, line 1") && message.contains("COLLATE \"C\""), "{message}");
    let message = refused(&["--table", "item", "--order", "n", "--limit", "10001"]).await?;
    ensure!(message.contains("an order needs a limit, of at most 10000 rows"), "{message}");
    let message = refused(&["--table", "other"]).await?;
    ensure!(message.contains("a query reads the server's mirror, and the table has none"), "{message}");
    let message = refused(&["--table", "item", "--order", "1 / (n - n)", "--limit", "1"]).await?;
    ensure!(message.contains("division by zero"), "{message}");
    Ok(())
}
