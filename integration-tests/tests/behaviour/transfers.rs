//! Transactions are whole: what is moved between two tables is, at every Commit, in exactly one of several shapes of one subscription, so that
//! their sum never changes, whatever happens to the server, to PostgreSQL and to the connection.
//!
//! A transaction that came in two parts, by table, by shape or by row, would show another sum between them.

use std::{collections::BTreeSet, ops::Range};

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_client::{MirrorState, Shape, SourceStatus, Updates};
use tidegate_integration_tests::{Cluster, Copier, Seed, Server, ServerConfig, Touched, Writers, asked_for};

use crate::{
    shape_crowd::{Part, ShapeCrowd, Watched, held_as},
    snapshot_crowd::Scene,
};

const WRITERS: u64 = 3;
const SUBSCRIBERS: usize = 6;
const ROUNDS: u32 = 6;
/// Commits that a subscriber takes between two comparisons with PostgreSQL.
const COMMITS: u32 = 80;
/// What all purses and vaults have together.
const SUM: i64 = 150 * 100 + 12 * 5_000;

/// Each function moves money, and loses none: it takes what is there, and puts it where something is.
const SCHEMA: &str = "
create table holder (id int primary key, live bool not null);
create table purse (id int primary key, holder int, cents bigint not null, note text);
alter table purse alter note set storage external;
create table vault (id int primary key, region text, cents bigint not null);
insert into holder select n, n % 2 = 0 from generate_series(1, 8) n;
insert into purse select n, nullif(n % 10, 0), 100, case when n % 3 = 0 then repeat('n' || n, 900) end from generate_series(1, 150) n;
insert into vault select n, (array['north', 'south', null])[1 + n % 3], 5000 from generate_series(1, 12) n;
create function pay(of int, amount bigint, into_vault int) returns void language plpgsql as $$ begin
  update purse set cents = cents - amount where id = of;
  if found then update vault set cents = cents + amount where id = into_vault; end if;
end $$;
create function levy(rest int, amount bigint, into_vault int) returns void language plpgsql as $$ declare payers int; begin
  update purse set cents = cents - amount where id % 5 = rest;
  get diagnostics payers = row_count;
  update vault set cents = cents + amount * payers where id = into_vault;
end $$;
create function close(of int, into_vault int) returns void language plpgsql as $$ declare left_over bigint; begin
  delete from purse where id = of returning cents into left_over;
  if found then update vault set cents = cents + left_over where id = into_vault; end if;
end $$;
create function open(new int, of int, amount bigint, out_of int) returns void language plpgsql as $$ begin
  insert into purse values (new, of, amount) on conflict do nothing;
  if found then update vault set cents = cents - amount where id = out_of; end if;
end $$;
create function collect(into_vault int) returns void language plpgsql as $$ declare all_of_it bigint; begin
  lock table purse in access exclusive mode;
  select sum(cents) into all_of_it from purse;
  truncate purse;
  update vault set cents = cents + coalesce(all_of_it, 0) where id = into_vault;
  insert into purse select n, n % 10, 0 from generate_series(1, 150) n;
end $$;
create function pay_many(first int, payments int) returns void language plpgsql as $$ begin
  for n in first..first + payments loop perform pay(1 + n * 7 % 160, n % 40 - 20, 1 + n * 5 % 12); end loop;
end $$";

/// Conditions on purses and on vaults: the money itself moves rows in and out, and what it says nothing of.
const PURSES: [&str; 6] =
    ["cents > 100", "holder % 2 = 0", "note is null", "id % 7 in (1, 3)", "holder = 3", "cents % 3 = 1"];
const VAULTS: [&str; 4] =
    ["region = 'north'", "cents between 4000 and 6000", "id < 5", "cents % 2 = 0 or region is null"];
/// Those with subqueries, also on the other table of a transfer.
const PURSES_OF_OTHERS: [&str; 3] = [
    "holder in (select id from holder where live)",
    "holder not in (select id from vault where cents > 5000)",
    "holder in (select id from holder where id not in (select id from vault where region = 'north'))",
];
const VAULTS_OF_OTHERS: [&str; 2] =
    ["id in (select holder from purse where cents > 120)", "id in (select id from holder where live)"];

fn transaction(random: &mut StdRng) -> String {
    let count = if random.random_ratio(1, 3) { 1 } else { random.random_range(2..6) };
    let steps: Vec<String> = (0..count).map(|_| step(random)).collect();
    let undone = format!("savepoint a; {}; rollback to a", step(random));
    let undone = if random.random_ratio(1, 6) { format!("{undone}; {}", step(random)) } else { step(random) };
    let end = if random.random_ratio(1, 12) { "rollback" } else { "commit" };
    // Subscribers add up all rows at every commit: they are to keep up.
    format!("begin; {}; {undone}; {end}; select pg_sleep(0.01)", steps.join("; "))
}

fn step(random: &mut StdRng) -> String {
    let (purse, vault, holder) = (random.random_range(1..160), random.random_range(1..13), random.random_range(1..10));
    let (other, amount) = (random.random_range(1..160), random.random_range(-40..40_i64));
    match random.random_range(0..2_000) {
        0..800 => format!("select pay({purse}, {amount}, {vault})"),
        800..1_000 => format!("select levy({}, {amount}, {vault})", purse % 5),
        1_000..1_150 => format!("select close({purse}, {vault})"),
        1_150..1_350 => format!("select open({purse}, {holder}, {amount}, {vault})"),
        1_350..1_450 => format!("update purse set holder = {holder} where id = {purse}"),
        1_450..1_550 => format!("update purse set note = repeat('m{other}', {}) where id = {purse}", other * 9),
        1_550..1_650 => format!(
            "update purse set id = {other} where id = {purse} and not exists (select from purse where id = {other})"
        ),
        1_650..1_750 => format!("update holder set live = not live where id = {holder}"),
        1_750..1_850 => {
            let region = ["'north'", "'south'", "null"].choose(random).copied().unwrap_or("null");
            format!("update vault set region = {region} where id = {vault}")
        }
        // Sent while it is written, and kept on disk until it is committed.
        1_850..1_890 => format!("select pay_many({purse}, {})", other * 10),
        1_890..1_892 => format!("select collect({vault})"),
        _ => format!(
            "update vault set cents = cents - {amount} where id = {vault}; update vault set cents = cents + {amount} where id = {}",
            13 - vault
        ),
    }
}

/// Both tables, each in two parts that have nothing in common: those that meet a condition, and the others.
fn parts(random: &mut StdRng, purses: &[&str], vaults: &[&str]) -> Vec<Part> {
    let mut parts = Vec::new();
    for (table, conditions) in [(TABLES[0], purses), (TABLES[1], vaults)] {
        let condition = conditions.choose(random).copied().unwrap_or("true");
        for test in ["is true", "is not true"] {
            let condition = format!("({condition}) {test}");
            let updates = [Updates::FullRow, Updates::ChangedColumns][random.random_range(0..2)];
            let shape = Shape::of(table).matching(&condition).updates(updates);
            let (shape, columns) =
                if random.random_bool(0.3) { (shape.columns(["cents"]), "id, cents") } else { (shape, "*") };
            let query = format!("(select {columns} from {table} where {condition}) part");
            parts.push(Part { shape, table, key: &["id"], query });
        }
    }
    parts
}

/// What `parts` gives.
const PARTS: usize = 4;

/// How a subscription reads: by the router's notes, all of the log, or with sets of subqueries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Shapes,
    ShapesAndTables,
    Subqueries,
}

struct Money {
    kind: Kind,
    parts: Vec<Part>,
    /// Commits that had touched both tables.
    transfers: u32,
}

const TABLES: [&str; 2] = ["public.purse", "public.vault"];

impl Money {
    fn new(random: &mut StdRng, number: u64) -> Self {
        let kind = [Kind::Shapes, Kind::ShapesAndTables, Kind::Subqueries][usize::try_from(number % 3).unwrap_or(0)];
        let mut parts = match kind {
            Kind::Shapes | Kind::ShapesAndTables => parts(random, &PURSES, &VAULTS),
            Kind::Subqueries => {
                parts(random, &PURSES_OF_OTHERS, [&VAULTS[..], &VAULTS_OF_OTHERS[..]].concat().as_slice())
            }
        };
        if kind == Kind::ShapesAndTables {
            let whole =
                |table: &'static str| Part { shape: Shape::of(table), table, key: &["id"], query: table.to_owned() };
            parts.extend(TABLES.map(whole));
        }
        Money { kind, parts, transfers: 0 }
    }

    /// Of these parts.
    fn sum(&self, copier: &Copier, parts: Range<usize>) -> Result<i64> {
        let names = parts.map(|at| held_as(self.parts[at].table, at));
        let rows = names.flat_map(|name| copier.replica.table(&name).into_values());
        rows.map(|row| {
            let cents = row.get("cents").and_then(Option::as_deref).with_context(|| format!("no cents in {row:?}"))?;
            Ok(cents.parse::<i64>()?)
        })
        .sum()
    }
}

impl Watched for Money {
    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn must_agree(&mut self, copier: &Copier, has_read: bool) -> Result<()> {
        if !has_read {
            return Ok(());
        }
        for parts in [0..PARTS, PARTS..self.parts.len()] {
            let queries: Vec<&String> = self.parts[parts.clone()].iter().map(|part| &part.query).collect();
            let sum = self.sum(copier, parts)?;
            ensure!(sum == SUM || queries.is_empty(), "{sum} instead of {SUM} in {queries:?}");
        }
        let tables = copier.touched.iter().map(|touched| match touched {
            Touched::Row(name, _) | Touched::Table(name) | Touched::Counted(name, ..) => name.contains("purse"),
        });
        self.transfers += u32::from(tables.collect::<BTreeSet<bool>>().len() == 2);
        Ok(())
    }

    /// Where purses were collected while rows moved for a subquery; else there is no reason to.
    fn may_be_reset(&self, detail: &str) -> bool {
        self.kind == Kind::Subqueries && detail.contains("subqueries")
    }
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.len() == 3 && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_moves_between_shapes_of_two_tables_is_never_seen_in_part_whatever_happens() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("transfers").await?;
    database.execute(SCHEMA).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [purse, vault, holder]".to_owned());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB, mirror: 1MiB}".to_owned());
    let mut server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), transaction);
    let mut crowd = ShapeCrowd::new(server.endpoint(), seed);
    (0..SUBSCRIBERS).for_each(|_| crowd.join(Money::new));
    let rounds = asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS);
    let mut scene = Scene { cluster: &mut cluster, server: &mut server, writers: &writers, database: "transfers" };
    for _ in 0..rounds {
        crowd.round(&mut scene, &mut random, COMMITS).await?;
        let gone = random.random_range(0..SUBSCRIBERS);
        crowd.leave(|at| at == gone);
        crowd.join(Money::new);
    }
    writers.stop().await;
    for kind in [Kind::Shapes, Kind::ShapesAndTables, Kind::Subqueries] {
        let all = || crowd.all().filter(|subscriber| subscriber.watched.kind == kind);
        let checked: u32 = all().map(|subscriber| subscriber.checked).sum();
        let transfers: u32 = all().map(|subscriber| subscriber.watched.transfers).sum();
        println!("{kind:?}: {checked} commits checked, {transfers} of them of both tables");
        ensure!(transfers > rounds, "{kind:?}: {transfers} of {checked} commits were of both tables");
    }
    crowd.must_be_reset_seldom(2 * rounds)
}
