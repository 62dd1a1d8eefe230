//! Snapshots of a part of a table, by a condition or by keys, amid writers and a server that is killed: for each row that is in the
//! part at the snapshot's end, what a running subscriber has received since its begin makes the whole row. What is no condition
//! and no key is refused, and does nothing.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{
    MirrorState, Position, SnapshotKey, SnapshotKeys, SnapshotPart, SnapshotRows, SnapshotState, SourceStatus, Start,
};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, HeldRow, HeldTable, Replay, Replica, Seed, Server, ServerConfig,
    Writers, held_by_postgres, keyed_tables, keyed_transaction, must_equal, within,
};
use tokio::task::JoinSet;

/// Snapshots in the random test.
const ROUNDS: u32 = 24;

/// A table, its key, a condition, and what that means.
type Condition = (&'static str, &'static [&'static str], &'static str, fn(&HeldRow) -> bool);

/// `note` and `body` are large and often left as they were, which is not sent.
const CONDITIONS: [Condition; 5] = [
    ("public.account", &["id"], "id between 500 and 1800", |row| (500..=1800).contains(&number(row, "id"))),
    ("public.account", &["id"], "name like 'n1%' and note is not null", |row| {
        value(row, "name").starts_with("n1") && row["note"].is_some()
    }),
    ("public.account", &["id"], "note is not null or name = 'new'", |row| {
        row["note"].is_some() || value(row, "name") == "new"
    }),
    ("public.pair", &["a", "b"], "v % 3 = 0 and not b in (1, 2, 3)", |row| {
        number(row, "v") % 3 == 0 && !(1..=3).contains(&number(row, "b"))
    }),
    ("public.thing", &["id"], "v < 700", |row| row["v"].is_some() && number(row, "v") < 700),
];

fn value(row: &HeldRow, column: &str) -> String {
    row[column].clone().unwrap_or_default()
}

fn number(row: &HeldRow, column: &str) -> i64 {
    value(row, column).parse().unwrap_or(i64::MIN)
}

fn by_condition(table: &str, condition: &str) -> SnapshotPart {
    SnapshotPart { table: table.to_owned(), rows: Some(SnapshotRows::Where(condition.to_owned())) }
}

fn by_keys(table: &str, columns: &[&str], keys: &[Vec<String>]) -> SnapshotPart {
    let keys = keys.iter().map(|values| SnapshotKey { values: values.clone() }).collect();
    let keys = SnapshotKeys { columns: columns.iter().map(|&name| name.to_owned()).collect(), keys };
    SnapshotPart { table: table.to_owned(), rows: Some(SnapshotRows::Keys(keys)) }
}

/// A subscriber without a copy, whose subscription is open.
pub(crate) async fn open(endpoint: &str, tables: &[&str]) -> Result<Copier> {
    let mut copier = Copier::new(endpoint, tables, Start::Now).with_snapshots();
    copier.until_open().await?;
    Ok(copier)
}

/// What is asked for, and which rows are in it.
pub(crate) struct Asked {
    pub(crate) part: SnapshotPart,
    pub(crate) table: &'static str,
    key: &'static [&'static str],
    /// For PostgreSQL.
    pub(crate) sql: String,
    holds: Box<dyn Fn(&HeldRow) -> bool + Send + Sync>,
}

/// Of the keyed tables, by a condition or by keys.
pub(crate) fn asked(random: &mut StdRng) -> Asked {
    let (table, key, condition, holds) = CONDITIONS[random.random_range(0..CONDITIONS.len())];
    if random.random_bool(0.6) {
        let part = by_condition(table, condition);
        return Asked { part, table, key, sql: condition.to_owned(), holds: Box::new(holds) };
    }
    let keys: Vec<Vec<String>> = (0..random.random_range(1..1_500_usize)).map(|_| random_key(random, table)).collect();
    let columns: &'static [&'static str] = if table == "public.pair" { &["b", "a"] } else { &["id"] };
    let literal = |key: &Vec<String>| key.iter().map(|value| format!("'{value}'")).collect::<Vec<_>>().join(", ");
    let list: Vec<String> = keys.iter().map(|key| format!("({})", literal(key))).collect();
    let sql = format!("({}) in ({})", columns.join(", "), list.join(", "));
    let part = by_keys(table, columns, &keys);
    let of = move |row: &HeldRow| columns.iter().map(|column| value(row, column)).collect::<Vec<_>>();
    Asked { part, table, key, sql, holds: Box::new(move |row| keys.contains(&of(row))) }
}

/// One that may be there or not.
fn random_key(random: &mut StdRng, table: &str) -> Vec<String> {
    match table {
        "public.account" => vec![random.random_range(0..4_500_u32).to_string()],
        "public.pair" => {
            vec![random.random_range(0..25_u32).to_string(), format!("k{}", random.random_range(0..200_u32))]
        }
        _thing => vec![format!("{:08x}-0000-0000-0000-000000000000", random.random_range(0..u32::MAX))],
    }
}

fn only(table: &HeldTable, holds: impl Fn(&HeldRow) -> bool) -> HeldTable {
    table.iter().filter(|(_, row)| holds(row)).map(|(key, row)| (key.clone(), row.clone())).collect()
}

/// Of what is held, the rows that these have.
fn of_keys(held: &HeldTable, keys: &HeldTable) -> HeldTable {
    held.iter().filter(|(key, _)| keys.contains_key(*key)).map(|(key, row)| (key.clone(), row.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_is_exact_for_a_running_subscriber() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let cluster = Cluster::start(&[("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("parts").await?;
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {readers: 2, rows_per_second: 4000}".to_owned());
    let mut server = Server::start(config).await?;
    let replay = Arc::new(Replay::default());
    let (mut replaying, replayed, endpoint) = (JoinSet::new(), Arc::clone(&replay), server.endpoint());
    replaying.spawn(async move { replayed.run(&endpoint).await });
    database.execute(&rows).await?;
    let writers = Writers::start(3, (database.url(), seed), keyed_transaction);
    let (mut killed, mut quiet) = (0, 0);
    for round in 0..ROUNDS {
        let asked = asked(&mut random);
        let pause = if random.random_bool(0.25) { Some(writers.pause().await?) } else { None };
        let kills = random.random_bool(0.4);
        let what = format!("round {round}: {} where {}", asked.table, asked.sql);
        let mut copier = one_part(&mut server, &replay, &asked, kills).await.with_context(|| what.clone())?;
        killed += u32::from(kills);
        if pause.is_some() {
            quiet += 1;
            copier.until_caught_up(&database).await?;
            let select = format!("(select * from {} where {}) t", asked.table, asked.sql);
            let theirs = held_by_postgres(&database, &select, asked.key).await?;
            must_equal(&what, &of_keys(&copier.replica.table(asked.table), &theirs), &theirs)?;
        }
    }
    writers.stop().await;
    println!("{ROUNDS} parts were exact, {killed} over a server killed, {quiet} compared with PostgreSQL");
    Ok(())
}

/// From a subscription to a snapshot's end, where the copy is compared with a replay of the stream.
async fn one_part(server: &mut Server, replay: &Replay, asked: &Asked, kills: bool) -> Result<Copier> {
    let mut copier = open(&server.endpoint(), &[asked.table]).await?;
    let started = server.client().await?.start_snapshot_of_parts("", vec![asked.part.clone()]).await?;
    let mut has_ended = false;
    if kills {
        let end = Arrival::Ended(started.snapshot);
        let is_there = |arrival: &Arrival, held: &Replica| held.read_count > 0 || *arrival == end;
        has_ended = copier.until("a row of the part, or its end", is_there).await? == end;
        server.kill().await?;
        server.launch().await?;
    }
    if !has_ended {
        until_ended(&mut copier, started.snapshot).await?;
    }
    holds_the_part(replay, (copier.position, copier.replica.table(asked.table)), asked).await?;
    Ok(copier)
}

/// Each row of the part is there, as the replay has it, and none that is gone.
pub(crate) async fn holds_the_part(
    replay: &Replay,
    (position, held): (Position, HeldTable),
    asked: &Asked,
) -> Result<()> {
    let truth = replay.table(asked.table, position).await?;
    let expected = only(&truth, &asked.holds);
    must_equal("the part", &of_keys(&held, &expected), &expected)?;
    let gone: Vec<_> = held.into_keys().filter(|key| !truth.contains_key(key)).collect();
    ensure!(gone.is_empty(), "rows are held that are gone: {gone:?}");
    Ok(())
}

async fn until_ended(copier: &mut Copier, snapshot: u32) -> Result<()> {
    match outcome(copier, snapshot).await? {
        None => Ok(()),
        Some(detail) => bail!("given up: {detail}"),
    }
}

/// None where it is complete, else why it was given up.
async fn outcome(copier: &mut Copier, snapshot: u32) -> Result<Option<String>> {
    let receiving = async {
        loop {
            match copier.next().await? {
                Arrival::Ended(ended) if ended == snapshot => return Ok(None),
                Arrival::Abandoned(ended, detail) if ended == snapshot => return Ok(Some(detail)),
                Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
                Arrival::Begun(_) | Arrival::Ended(_) | Arrival::Abandoned(..) => {}
                Arrival::Committed(_) | Arrival::Progress => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("the snapshot does not end")?
}

/// Keys of int, text and a domain, an enum, and a table without a key.
const TABLES: &str = "
create type mood as enum ('sad', 'so happy');
create domain code as text;
create table item (id int primary key, name text, mood mood, price numeric);
insert into item
    select n, 'n' || n, case when n % 2 = 0 then 'sad' else 'so happy' end::mood, n / 4.0 from generate_series(1, 50) n;
create table line (b text, a int, c code, note text, primary key (c, b, a));
insert into line select 'b' || n % 5, n, 'c''' || n % 3, null from generate_series(1, 50) n;
create table keyless (id int);
alter table keyless replica identity full";

async fn small(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.execute(TABLES).await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    server.streaming().await?;
    Ok((database, server))
}

fn keys(keys: &[&[&str]]) -> Vec<Vec<String>> {
    keys.iter().map(|key| key.iter().map(|&value| value.to_owned()).collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_part_of_a_table_is_refused_and_does_nothing() -> Result<()> {
    let (database, server) = small("bad_parts").await?;
    let client = server.client().await?;
    let item = |condition: &str| by_condition("item", condition);
    let item_keys = |list: &[&[&str]]| by_keys("item", &[], &keys(list));
    let many: Vec<Vec<String>> = (0..10_001).map(|id: u32| vec![id.to_string()]).collect();
    let long = vec![vec!["x".repeat(600_000), "1".to_owned(), "c".to_owned()]; 2];
    let line = ["b", "a", "c"];
    let cases: Vec<(SnapshotPart, &str)> = vec![
        (item("id = 1 and colour = 'red'"), "line 1, column 12: the table has no column colour; it has id, name"),
        (item("id = 1; drop table item"), "line 1, column 7"),
        (item("id = 1) or (true"), "line 1, column 7"),
        (item("id in (select 1)"), "line 1, column 15"),
        (item("id in (select id from line)"), "cannot read the table"),
        (item("pg_sleep(10) is null"), "line 1, column"),
        (item("name collate ucs_basic < 'b'"), "write COLLATE"),
        (item("id = 'one'"), "line 1, column 6: this is no int4"),
        (item("mood = 'angry'"), "line 1, column 8"),
        (item("id = $1"), "there is no parameter $1"),
        (item(""), "line 1, column 1"),
        (item("id"), "this has the type int4"),
        (by_condition("keyless", "id = 1"), "it has none that the stream carries"),
        (by_condition("items", "id = 1"), "did you mean public.item?"),
        (by_condition("public.*", "id = 1"), "*"),
        (SnapshotPart { table: "item".to_owned(), rows: None }, "nothing says which rows"),
        (item_keys(&[&["1"], &["2; drop table item"]]), "key 2: PostgreSQL does not read '2; drop table item'"),
        (item_keys(&[&["1"], &["99999999999"]]), "key 2: PostgreSQL does not read '99999999999'"),
        (item_keys(&[&["1", "2"]]), "key 1 is to have a value for each of id; it has 2"),
        (by_keys("item", &["name"], &keys(&[&["n1"]])), "the key's columns are id, and not name"),
        (item_keys(&[]), "the list of keys is empty"),
        (by_keys("item", &[], &many), "10001 keys are too many; the limit is 10000"),
        (by_keys("line", &line, &long), "bytes of keys are too many"),
        (by_keys("line", &line, &keys(&[&["b", "x' or true --", "c"]])), "the column a"),
    ];
    for (part, expected) in cases {
        let refused = client.start_snapshot_of_parts("", vec![part]).await;
        let said = refused.err().with_context(|| format!("{expected}: it was taken"))?.to_string();
        ensure!(said.contains(expected), "expected '{expected}' in: {said}");
    }
    let twice = vec![item("id = 1"), item("id = 2")];
    let said = client.start_snapshot_of_parts("", twice).await.err().context("it was taken")?.to_string();
    ensure!(said.contains("asked for twice"), "{said}");
    ensure!(client.snapshots("").await?.iter().all(|status| status.new_tables), "a snapshot was started");
    ensure!(database.text("select count(*)::text from item").await?.as_deref() == Some("50"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_every_kind_reach_postgresql_as_they_are_meant() -> Result<()> {
    let (database, server) = small("part_values").await?;
    database.execute(r"insert into line values ('o''clock', 101, 'a\b', ''), (E'tab\t', 102, ';--', null)").await?;
    let client = server.client().await?;
    let wanted: &[&[&str]] =
        &[&["o'clock", "101", r"a\b"], &["tab\t", "102", ";--"], &["b2", " 7", "c'1"], &["none", "0", "c"]];
    let literal = r"b = 'o''clock' or c = ';--' or note = ''";
    let typed = "mood = 'so happy' and price > 3.5 and name like 'n1_'";
    for (part, table, sql) in [
        (by_keys("line", &["b", "a", "c"], &keys(wanted)), "line", "a in (101, 102, 7)"),
        (by_condition("line", literal), "line", literal),
        (by_condition("item", typed), "item", typed),
    ] {
        let mut copier = open(&server.endpoint(), &[table]).await?;
        let started = client.start_snapshot_of_parts("", vec![part]).await?;
        until_ended(&mut copier, started.snapshot).await?;
        let key = if table == "line" { ["a"] } else { ["id"] };
        let theirs = held_by_postgres(&database, &format!("(select * from {table} where {sql}) t"), &key).await?;
        let ours: Vec<_> = copier.replica.table(&format!("public.{table}")).into_values().collect();
        let is_same = ours.len() == theirs.len() && theirs.values().all(|row| ours.contains(row));
        ensure!(is_same && !ours.is_empty(), "{sql}: {ours:?} are not {theirs:?}");
        let status = client.snapshots("").await?.into_iter().find(|status| status.snapshot == started.snapshot);
        let status = status.context("it is not listed")?;
        ensure!(status.ad_hoc && status.tables[0].rows_read == ours.len() as u64, "{status:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_asks_for_snapshots_receives_one_and_nobody_loses_a_row() -> Result<()> {
    let database = Cluster::shared().await?.database("asked").await?;
    database.create_marker().await?;
    database
        .execute("create table m (id int primary key, v int); insert into m select n, n from generate_series(1, 500) n")
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [m]".to_owned());
    let server = Server::start(config).await?;
    let complete = |status: &SourceStatus| status.mirror.iter().any(|table| table.state() == MirrorState::Complete);
    server.until("shop", "a complete mirror", complete).await?;
    let mut whole = Copier::new(&server.endpoint(), &["m", "marker"], Start::Snapshot);
    whole.until_snapshot_end().await?;
    let mut asking = open(&server.endpoint(), &["m", "marker"]).await?;
    let mut other = Copier::new(&server.endpoint(), &["m", "marker"], Start::Now);
    other.until_open().await?;
    let client = server.client().await?;
    let started = client.start_snapshot_of_parts("", vec![by_condition("m", "v <= 20")]).await?;
    until_ended(&mut asking, started.snapshot).await?;
    ensure!(asking.replica.table("public.m").len() == 20 && asking.replica.read_count == 20);
    database.mark("after").await?;
    let key = ["after".to_owned()];
    for copier in [&mut whole, &mut other] {
        let reads = copier.replica.read_count;
        while copier.replica.table_row("public.marker", &key).is_none() {
            let arrived = copier.next().await?;
            ensure!(!matches!(arrived, Arrival::Begun(_) | Arrival::Ended(_)), "a mark that it did not ask for");
        }
        ensure!(copier.replica.read_count == reads, "reads that it did not ask for");
    }
    ensure!(other.replica.table("public.m").is_empty() && whole.replica.table("public.m").len() == 500);
    // The mirror has all rows still.
    let mut again = Copier::new(&server.endpoint(), &["m"], Start::Snapshot);
    again.until_snapshot_end().await?;
    must_equal("m", &again.replica.table("public.m"), &held_by_postgres(&database, "m", &["id"]).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_starts_a_part_and_prints_its_rows() -> Result<()> {
    let (_database, server) = small("part_cli").await?;
    let endpoint = server.endpoint();
    let file = server.scratch("keys.jsonl").to_str().context("a path")?.to_owned();
    std::fs::write(&file, "[\"c'1\", \"b2\", 7]\n{\"a\": 1}\n")?;
    let mixed = server.command(&["snapshot", "start", "line", "--keys-file", &file, "--server", &endpoint]).await;
    let said = format!("{:#}", mixed.err().context("it was taken")?);
    ensure!(said.contains("key 2: all keys name the same columns"), "{said}");
    std::fs::write(&file, "[\"c'1\", \"b2\", 7]\n[\"c'1\", \"b4\", 4]\n[\"none\", \"\", 0]\n")?;
    let named = r#"{"a": 10, "b": "b0", "c": "c'1"}"#;
    for (arguments, table, expected) in [
        (vec!["item", "--where", "id <= 3 or name = 'n50'"], "item", 4),
        (vec!["item", "--key", "7", "--key", "8", "--key", "-1"], "item", 2),
        (vec!["line", "--key", named], "line", 1),
        (vec!["line", "--keys-file", &file], "line", 2),
    ] {
        let limit = expected.to_string();
        let printing = ["tail", "--table", table, "--snapshots", "--op", "read", "--json", "--limit", &limit];
        let starting = async {
            // Whoever prints has subscribed.
            let subscribed = async || Ok((!server.status().await?.subscriptions.is_empty()).then_some(()));
            within("the subscription", subscribed).await?;
            server.command(&[&["snapshot", "start"][..], &arguments, &["--server", &endpoint]].concat()).await
        };
        let (printed, started) = tokio::join!(server.command(&printing), starting);
        let (printed, started) = (printed?, started?);
        ensure!(started.contains(&format!("done  {expected} rows")), "{arguments:?}: {started}");
        ensure!(printed.lines().count() == expected, "{arguments:?}: {printed}");
    }
    let list = server.command(&["snapshot", "list", "--server", &endpoint]).await?;
    ensure!(list.contains("of 3 keys") && list.contains("where ("), "{list}");
    let both = ["snapshot", "start", "item", "--where", "id = 1", "--key", "1", "--server", &endpoint];
    ensure!(server.command(&both).await.is_err(), "a condition and keys");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_fails_for_a_row_fails_the_snapshot_and_nothing_else() -> Result<()> {
    let (_database, server) = small("part_fails").await?;
    let client = server.client().await?;
    let mut copier = open(&server.endpoint(), &["item"]).await?;
    let failed = client.start_snapshot_of_parts("", vec![by_condition("item", "1 / (id - 7) >= 0")]).await?;
    let said = outcome(&mut copier, failed.snapshot).await?.context("it ended")?;
    ensure!(said.contains("the condition fails for a row"), "{said}");
    // Subscribers learn it first.
    within("the snapshot to have failed", async || {
        let status = client.snapshots("").await?.into_iter().find(|status| status.snapshot == failed.snapshot);
        Ok(status.filter(|status| status.state() == SnapshotState::Failed))
    })
    .await?;
    let started = client.start_snapshot_of_parts("", vec![by_condition("item", "price > 3")]).await?;
    until_ended(&mut copier, started.snapshot).await?;
    ensure!(copier.replica.table("public.item").len() == 38, "{}", copier.replica.table("public.item").len());
    Ok(())
}
