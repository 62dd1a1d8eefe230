//! Shapes whose condition has subqueries: at every commit a subscriber holds exactly the rows that meet the condition, whichever table the
//! transaction has changed.

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_client::{MirrorState, Shape, SourceStatus, Start, Subscription};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, HeldRow, HeldTable, Seed, Server, ServerConfig, Writers, asked_for,
    held_by_postgres, must_equal,
};

use crate::{
    shape_crowd::{Part, ShapeCrowd, Watched, held_as},
    snapshot_crowd::Scene,
};

const WRITERS: u64 = 3;
const SUBSCRIBERS: usize = 4;
const ROUNDS: u32 = 10;
/// Commits that a subscriber takes between two comparisons with PostgreSQL.
const COMMITS: u32 = 60;

const SCHEMA: &str = "
create table grp (id int primary key, live bool);
create table owner (id bigint primary key, grp int, state text);
create table item (id int primary key, owner int, tag text, v numeric, note text);
alter table item alter note set storage external;
insert into grp select n, n % 2 = 0 from generate_series(1, 6) n;
insert into owner select n, case when n % 4 > 0 then n % 7 end, (array['on', 'off'])[1 + n % 2] from generate_series(1, 15) n;
insert into item select n, nullif(n % 18, 0), (array['on', 'off', 'x'])[1 + n % 3], n, repeat('n' || n, case when n % 4 = 0 then 900 else 1 end) from generate_series(1, 80) n";

/// Conditions on `item`, and what they are by the rows of the three tables.
const CONDITIONS: [(&str, Model); 9] = [
    ("owner in (select id from owner where state = 'on')", |item, all| {
        is_in(item, "owner", &all.column("owner", "id", |owner| is(owner, "state", "on")))
    }),
    ("owner not in (select grp from owner where state = 'on')", |item, all| {
        not(is_in(item, "owner", &all.column("owner", "grp", |owner| is(owner, "state", "on"))))
    }),
    ("owner in (select id from owner where grp in (select id from grp where live))", |item, all| {
        let live = all.column("grp", "id", |grp| is(grp, "live", "t"));
        is_in(item, "owner", &all.column("owner", "id", |owner| is_in(owner, "grp", &live) == Some(true)))
    }),
    ("v > 40 or owner in (select id from owner where state = 'on')", |item, all| {
        let is_large = item["v"].as_ref().and_then(|v| v.parse::<f64>().ok()).map(|v| v > 40.0);
        let is_in = is_in(item, "owner", &all.column("owner", "id", |owner| is(owner, "state", "on")));
        match (is_large, is_in) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _unknown => None,
        }
    }),
    ("owner not in (select id from owner where grp not in (select id from grp where live))", |item, all| {
        let live = all.column("grp", "id", |grp| is(grp, "live", "t"));
        let dead = all.column("owner", "id", |owner| is_in(owner, "grp", &live) == Some(false));
        not(is_in(item, "owner", &dead))
    }),
    ("id in (select owner from item where tag = 'x')", |item, all| {
        is_in(item, "id", &all.column("item", "owner", |item| is(item, "tag", "x")))
    }),
    ("tag in (select state from owner)", |item, all| is_in(item, "tag", &all.column("owner", "state", |_| true))),
    ("(tag not in (select state from owner where grp is null)) is null", |item, all| {
        let states = all.column("owner", "state", |owner| owner["grp"].is_none());
        Some(is_in(item, "tag", &states).is_none())
    }),
    ("owner <> all (select id from grp) and v in (select id from owner)", |item, all| {
        let of_groups = not(is_in(item, "owner", &all.column("grp", "id", |_| true)));
        let of_owners = is_in(item, "v", &all.column("owner", "id", |_| true));
        Some(of_groups == Some(true) && of_owners == Some(true))
    }),
];

type Model = fn(&HeldRow, &Tables) -> Option<bool>;
type Members = Vec<Option<String>>;

/// The whole of the tables, as a subscriber holds them.
struct Tables([(&'static str, HeldTable); 3]);

impl Tables {
    fn column(&self, table: &str, column: &str, meets: impl Fn(&HeldRow) -> bool) -> Members {
        let rows = self.0.iter().filter(|(name, _)| *name == table).flat_map(|(_, rows)| rows.values());
        rows.filter(|row| meets(row)).map(|row| row[column].clone()).collect()
    }
}

fn is(row: &HeldRow, column: &str, value: &str) -> bool {
    row[column].as_deref() == Some(value)
}

fn is_in(row: &HeldRow, column: &str, members: &Members) -> Option<bool> {
    // 5.0 is 5.
    let value = row[column].as_ref().map(|value| value.strip_suffix(".0").unwrap_or(value).to_owned());
    match value {
        _any if members.is_empty() => Some(false),
        None => None,
        some if members.contains(&some) => Some(true),
        Some(_) if members.contains(&None) => None,
        Some(_) => Some(false),
    }
}

fn not(truth: Option<bool>) -> Option<bool> {
    truth.map(|truth| !truth)
}

fn transaction(random: &mut StdRng) -> String {
    let count = if random.random_ratio(1, 3) { 1 } else { random.random_range(2..7) };
    let changes: Vec<String> = (0..count).map(|_| change(random)).collect();
    let end = if random.random_ratio(1, 12) { "rollback" } else { "commit" };
    // Subscribers check all rows at every commit: they are to keep up, or they are reset for what they have missed.
    format!("begin; {}; {end}; select pg_sleep(0.01)", changes.join("; "))
}

fn change(random: &mut StdRng) -> String {
    // Seldom: who has not passed it is reset where a subquery's answer has just changed.
    if random.random_ratio(1, 12_000) {
        return "truncate owner; insert into owner select n, n % 5, 'on' from generate_series(1, 9) n".to_owned();
    }
    if random.random_ratio(1, 12_000) {
        return "truncate item; insert into item select n, n % 17, 'x', n from generate_series(1, 40) n".to_owned();
    }
    let (id, owner, grp) = (random.random_range(1..90), random.random_range(1..18), random.random_range(1..8));
    let state = ["'on'", "'off'", "'x'", "null"].choose(random).copied().unwrap_or_default();
    let some_owner = if random.random_ratio(1, 8) { "null".to_owned() } else { owner.to_string() };
    let some_grp = if random.random_ratio(1, 4) { "null".to_owned() } else { grp.to_string() };
    match random.random_range(0..59) {
        0..8 => format!("update owner set state = {state} where id = {owner}"),
        8..14 => format!("update owner set grp = {some_grp} where id = {owner}"),
        14..18 => format!("delete from owner where id = {owner}"),
        18..24 => format!("insert into owner values ({owner}, {some_grp}, {state}) on conflict do nothing"),
        24..28 => format!("update grp set live = not live where id = {grp}"),
        28..30 => format!("delete from grp where id = {grp}"),
        30..33 => format!("insert into grp values ({grp}, true) on conflict do nothing"),
        33..40 => format!("update item set owner = {some_owner} where id = {id}"),
        40..44 => format!("update item set tag = {state}, v = {} where id = {id}", id % 20),
        44..47 => format!("delete from item where id = {id}"),
        47..52 => format!(
            "insert into item values ({id}, {some_owner}, {state}, {grp}.0, repeat('m{id}', {})) on conflict do nothing",
            if id % 4 == 0 { 900 } else { 1 }
        ),
        52..55 => format!(
            "update item set id = {id} where id = {} and not exists (select from item where id = {id})",
            owner * 4
        ),
        55 => "update owner set state = case state when 'on' then 'off' else 'on' end".to_owned(),
        56 => "delete from owner".to_owned(),
        _ => "update item set owner = owner + 1 where id % 5 = 2".to_owned(),
    }
}

/// Shapes of items, and the whole tables, by which it is computed at every commit what the shapes have.
struct Conditions {
    /// The whole tables are the first parts.
    has_tables: bool,
    conditions: Vec<usize>,
    parts: Vec<Part>,
}

const TABLES: [&str; 3] = ["public.item", "public.owner", "public.grp"];

impl Conditions {
    fn new(random: &mut StdRng, has_tables: bool) -> Self {
        let mut conditions: Vec<usize> = (0..CONDITIONS.len()).collect();
        if !has_tables {
            conditions.retain(|_| random.random_ratio(1, 3));
            conditions.push(random.random_range(0..CONDITIONS.len()));
        }
        let part = |table: &'static str, shape, filter: &str| {
            let query = format!("(select * from {table}{filter}) shape");
            Part { shape, table, key: &["id"], query }
        };
        let tables = TABLES.iter().filter(|_| has_tables).map(|table| part(table, Shape::of(*table), ""));
        let shapes = conditions.iter().map(|at| {
            let condition = CONDITIONS[*at].0;
            part(TABLES[0], Shape::of("item").matching(condition), &format!(" where {condition}"))
        });
        let parts = tables.chain(shapes).collect();
        Conditions { has_tables, conditions, parts }
    }
}

impl Watched for Conditions {
    fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The shapes have the rows that the whole tables say.
    fn must_agree(&mut self, copier: &Copier, has_read: bool) -> Result<()> {
        if !self.has_tables || !has_read {
            return Ok(());
        }
        let table = |at: usize| copier.replica.table(&held_as(TABLES[at], at));
        let tables = Tables([("item", table(0)), ("owner", table(1)), ("grp", table(2))]);
        for (at, number) in self.conditions.iter().enumerate() {
            let (condition, model) = CONDITIONS[*number];
            let ours = copier.replica.table(&held_as(TABLES[0], TABLES.len() + at));
            let items = tables.0[0].1.iter().filter(|(_, row)| model(row, &tables) == Some(true));
            let theirs: HeldTable = items.map(|(key, row)| (key.clone(), row.clone())).collect();
            must_equal(condition, &ours, &theirs)?;
        }
        Ok(())
    }

    /// Rows were truncated while it was looked for those that move.
    fn may_be_reset(&self, detail: &str) -> bool {
        detail.contains("subqueries")
    }
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.len() == TABLES.len() && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

#[tokio::test(flavor = "multi_thread")]
async fn subqueries_select_what_postgres_selects_at_every_commit_whatever_happens() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("subqueries").await?;
    database.execute(SCHEMA).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [item, owner, grp]".to_owned());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB, mirror: 1MiB}".to_owned());
    let mut server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), transaction);
    let mut crowd = ShapeCrowd::new(server.endpoint(), seed);
    let choose = |random: &mut StdRng, number| Conditions::new(random, number % 2 == 0);
    (0..SUBSCRIBERS).for_each(|_| crowd.join(choose));
    let rounds = asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS);
    let mut scene = Scene { cluster: &mut cluster, server: &mut server, writers: &writers, database: "subqueries" };
    for _ in 0..rounds {
        crowd.round(&mut scene, &mut random, COMMITS).await?;
        let gone = random.random_range(0..SUBSCRIBERS);
        crowd.leave(|at| at == gone);
        crowd.join(choose);
    }
    writers.stop().await;
    let with_tables = crowd.all().filter(|subscriber| subscriber.watched.has_tables);
    let checked: u32 = with_tables.map(|subscriber| subscriber.checked).sum();
    println!("{checked} commits checked");
    ensure!(checked > 10 * rounds, "only {checked} commits were checked");
    // A truncate resets those that are there, at most; and truncates are rare.
    crowd.must_be_reset_seldom(2 * rounds)
}

/// Of a database in which nothing else happens, so that the log stands still.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_amid_corrections_of_a_quiet_database_is_exact() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("subqueries_quiet").await?;
    database.execute(SCHEMA).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [item, owner, grp]".to_owned());
    let server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    let (condition, _) = CONDITIONS[0];
    let open =
        |start| Copier::of(&server.endpoint(), Subscription::shape(Shape::of("item").matching(condition)), start);
    let select = format!("(select * from item where {condition}) t");
    let mut early = open(Start::Snapshot);
    early.until_snapshot_end().await?;
    for round in 0..3 {
        // Written by PostgreSQL alone: the server finds what has changed, and corrects it.
        let rewrite = "alter table owner alter state type text using case when state = 'on' then 'off' else 'on' end";
        database.execute(rewrite).await?;
        let theirs = held_by_postgres(&database, &select, &["id"]).await?;
        let corrected = async {
            while early.replica.table("public.item") != theirs {
                early.next().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(DEADLINE, corrected).await.with_context(|| format!("round {round}: not corrected"))??;
        let mut late = open(Start::Snapshot);
        late.until_snapshot_end().await?;
        must_equal(&format!("round {round}"), &late.replica.table("public.item"), &theirs)?;
    }
    Ok(())
}

/// What becomes of an open subscription.
enum Fate {
    /// It has what PostgreSQL selects.
    GoesOn,
    /// It is told, with these words among others, and what it has been given is not to be used on.
    Ends(&'static str),
}

/// Schema changes of the table `inner_N` that a subquery of an open shape reads.
const CHANGES: [(&str, Fate); 7] = [
    ("alter table inner_N add column extra int default 3", Fate::GoesOn),
    ("alter table inner_N rename column note to remark", Fate::GoesOn),
    ("alter table inner_N alter state type varchar(9)", Fate::Ends("state")),
    ("alter table inner_N rename column state to status", Fate::Ends("state")),
    ("alter table inner_N drop column state", Fate::Ends("state")),
    ("alter table inner_N rename to other_N", Fate::Ends("inner_N")),
    ("drop table inner_N", Fate::Ends("inner_N")),
];

#[tokio::test(flavor = "multi_thread")]
async fn schema_changes_of_what_a_subquery_reads_are_exact_or_told() -> Result<()> {
    let database = Cluster::shared().await?.database("subqueries_altered").await?;
    let tables = |number: usize| {
        format!(
            "create table outer_{number} (id int primary key, of int);
             create table inner_{number} (id int primary key, state text, note text);
             insert into inner_{number} select n, case when n % 2 = 0 then 'on' else 'off' end from generate_series(1, 10) n;
             insert into outer_{number} select n, n % 12 from generate_series(1, 40) n"
        )
    };
    for number in 0..CHANGES.len() {
        database.execute(&tables(number)).await?;
    }
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut failures = Vec::new();
    for (number, (change, fate)) in CHANGES.iter().enumerate() {
        let named = |text: &str| text.replace("_N", &format!("_{number}"));
        let condition = named("of in (select id from inner_N where state = 'on')");
        let shape = Shape::of(named("outer_N")).matching(&condition);
        let mut copier = Copier::of(&server.endpoint(), Subscription::shape(shape), Start::Snapshot);
        tokio::time::timeout(DEADLINE, copier.until_snapshot_end()).await.context("a snapshot")??;
        database.execute(&named(change)).await?;
        database.execute(&named("insert into outer_N select n, 2 from generate_series(41, 45) n")).await?;
        // Where it is there still, something of it moves.
        database.execute(&named("update inner_N set id = 20 where id = 4")).await.ok();
        let outcome =
            tokio::time::timeout(DEADLINE, fate_of(&mut copier, &database, (&named("outer_N"), &condition))).await;
        let wrong = match (fate, outcome) {
            (Fate::GoesOn, Ok(Ok(None))) => None,
            (Fate::Ends(words), Ok(Ok(Some(told)))) if told.contains(&named(words)) => None,
            (_, outcome) => Some(format!("{change}: {outcome:?}")),
        };
        failures.extend(wrong);
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// How the subscription is ended; None where it comes to have what PostgreSQL selects.
async fn fate_of(copier: &mut Copier, database: &Database, (table, condition): (&str, &str)) -> Result<Option<String>> {
    let query = format!("(select * from {table} where {condition}) shape");
    loop {
        if let Ok(theirs) = held_by_postgres(database, &query, &["id"]).await
            && copier.replica.table(&format!("public.{table}")) == theirs
        {
            return Ok(None);
        }
        match copier.next().await {
            Ok(Arrival::Reset(_, detail)) => return Ok(Some(detail)),
            Ok(_) => {}
            Err(error) => return Ok(Some(format!("{error:#}"))),
        }
    }
}
