//! Random shapes that come and go while writers write, connections are lost and servers crash: whenever a subscriber has caught up, it
//! holds what PostgreSQL selects; and at every commit, its shapes of one table tell the same of each row.

use anyhow::{Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_client::{MirrorState, Parameter, Shape, SourceStatus, Updates};
use tidegate_integration_tests::{
    Cluster, Copier, Database, KEYED_TABLES, Seed, Server, ServerConfig, Touched, Writers, asked_for, keyed_tables,
    keyed_transaction,
};

use crate::{
    shape_crowd::{Part, ShapeCrowd, Watched, held_as},
    snapshot_crowd::Scene,
};

const WRITERS: u64 = 3;
/// Shapes that are open at once, about; `TIDEGATE_TEST_SHAPES` asks for more.
const SHAPES: usize = 120;
/// Rounds of one run, `TIDEGATE_TEST_ROUNDS` asks for more; at the end of each, all is compared.
const ROUNDS: u32 = 12;
/// Of one subscriber, besides the first three.
const MORE_SHAPES: usize = 40;
/// Commits that a subscriber takes between two comparisons.
const COMMITS: u32 = 40;

/// The keyed tables, and one with the other types that conditions are often about.
const TABLES: [(&str, &[&str]); 4] = [KEYED_TABLES[0], KEYED_TABLES[1], KEYED_TABLES[2], ("public.reading", &["id"])];

/// The columns besides the key.
pub(crate) const COLUMNS: [&[&str]; 4] =
    [&["name", "note"], &["v"], &["v", "body"], &["amount", "day", "at", "data", "tags", "counts"]];

const READING: &str = "
create table reading (id bigint primary key, amount numeric, day date, at timestamptz, data jsonb, tags text[], counts int[]);
alter table reading alter data set storage external;
insert into reading select n, n % 90 + (n % 4) * 0.25, date '2024-01-01' + n % 60, timestamptz '2024-01-01 00:00Z' + n * interval '1 hour',
  jsonb_build_object('k', n % 60, 'n', (n % 70)::text), array['t' || n % 10, 't' || n % 3], array[n % 40, n % 7] from generate_series(1, 1500) n";

/// A transaction on the keyed tables, or on the other one.
fn transaction(random: &mut StdRng) -> String {
    if random.random_ratio(2, 3) {
        return keyed_transaction(random);
    }
    let changes: Vec<String> = (0..random.random_range(1..6)).map(|_| change(random)).collect();
    let end = if random.random_ratio(1, 12) { "rollback" } else { "commit" };
    format!("begin; {}; {end}", changes.join("; "))
}

fn change(random: &mut StdRng) -> String {
    let (id, other, n) =
        (random.random_range(1..1_700), random.random_range(1..1_700), random.random_range(0..60_usize));
    let amount = match n % 6 {
        0 => "null".to_owned(),
        1 => "'NaN'".to_owned(),
        2 => format!("{n}.{}00", n % 10),
        _ => format!("{n}.{n}"),
    };
    let day = match n % 7 {
        0 => "null".to_owned(),
        1 => "'infinity'".to_owned(),
        _ => format!("date '2024-01-01' + {n}"),
    };
    let at = if n % 5 == 0 {
        "null".to_owned()
    } else {
        format!("timestamptz '2024-01-01 00:00Z' + interval '{other} hours'")
    };
    let data = match n % 8 {
        0 => "null".to_owned(),
        1 => "'null'".to_owned(),
        2 => "'[1, 2, {\"k\": 3}]'".to_owned(),
        3 => format!("'\"t{n}\"'"),
        4 => format!("jsonb_build_object('k', {n}, 'pad', repeat('{other}', 900))"),
        _ => format!("jsonb_build_object('k', {n}, 'n', '{other}')"),
    };
    let tags =
        ["null".to_owned(), "'{}'".to_owned(), format!("array['t{}', null]", n % 10), format!("array['t{}']", n % 4)];
    let (tags, counts) = (&tags[n % 4], format!("array[{}, {n}]", n % 5));
    match random.random_range(0..8) {
        0 => format!("delete from reading where id = {id}"),
        1 => format!(
            "update reading set id = {other} where id = {id} and not exists (select from reading where id = {other})"
        ),
        2 => format!("update reading set amount = {amount}, day = {day} where id = {id}"),
        3 => format!("update reading set at = {at}, tags = {tags} where id = {id}"),
        4 => format!("update reading set data = {data} where id = {id}"),
        5 => format!("update reading set counts = counts || {n} where id % 50 = {n} and cardinality(counts) < 5"),
        _ => format!(
            "insert into reading values ({id}, {amount}, {day}, {at}, {data}, {tags}, {counts}) on conflict (id) do update \
             set amount = excluded.amount, tags = excluded.tags, counts = excluded.counts"
        ),
    }
}

/// A condition on one of the tables.
pub(crate) fn condition(random: &mut StdRng, table: usize, depth: u32) -> String {
    if depth > 0 && random.random_ratio(1, 2) {
        let (one, other) = (condition(random, table, depth - 1), condition(random, table, depth - 1));
        return match random.random_range(0..5) {
            0 | 1 => format!("({one} and {other})"),
            2 | 3 => format!("({one} or {other})"),
            _ => format!("not ({one})"),
        };
    }
    let (n, m) = (random.random_range(0..4_500), random.random_range(1..60));
    let conditions = match table {
        0 => vec![
            format!("id % {m} = {}", n % m),
            format!("id between {n} and {}", n + 40 * m),
            format!("name like 'u{}%'", m % 10),
            format!("name = 'n{n}'"),
            "note is null".to_owned(),
            format!("length(note) > {}", 100 * m),
            "name is distinct from 'moved'".to_owned(),
            format!("id in ({n}, {}, {})", n / 2, n / 3),
            format!("coalesce(note, name) not like '%{}'", m % 10),
        ],
        1 => vec![
            format!("b = {}", m % 25),
            format!("a = 'k{}'", n % 160),
            format!("v > {}", n / 2),
            format!("v % {m} < 3"),
            format!("b between {} and {}", m % 20, m % 20 + 6),
            format!("(b, a) <> ({}, 'k{}')", m % 25, n % 160),
            format!("a like 'k{}%'", m % 10),
        ],
        2 => vec![
            format!("v < {n}"),
            "body is not null".to_owned(),
            format!("length(body) % {m} = 0"),
            format!("v % {m} = {}", n % m),
            "id < '80000000-0000-0000-0000-000000000000'".to_owned(),
            format!("v = any ('{{{n}, {}, {}}}')", n / 2, m),
        ],
        _ => vec![
            format!("amount > {m}.5"),
            format!("amount = {}", n % 90),
            "amount % 1 = 0".to_owned(),
            format!("day between '2024-01-05' and '2024-02-{:02}'", m % 28 + 1),
            format!("day - {} < '2024-01-20'", m % 9),
            format!("at < '2024-{:02}-01 00:00+00'", m % 5 + 1),
            format!("data @> '{{\"k\": {m}}}'"),
            format!("(data ->> 'n')::numeric < {}", n % 1_500),
            "jsonb_typeof(data) = 'object' and not data ? 'pad'".to_owned(),
            format!("tags @> '{{t{}}}'", m % 10),
            format!("tags && array['t{}', 't{}']", m % 10, n % 4),
            format!("'t{}' = any (tags)", m % 4),
            format!("counts[1] < {}", m % 40),
            format!("cardinality(counts) > 2 or counts = '{{{}, {}}}'", n % 40, n % 7),
            "tags is null".to_owned(),
        ],
    };
    conditions.choose(random).cloned().unwrap_or_default()
}

/// Types and values of parameters.
type Given = Vec<(&'static str, String)>;

/// A condition on one of the tables with parameters.
fn with_parameters(random: &mut StdRng, table: usize) -> (&'static str, Given) {
    let (n, m) = (random.random_range(0..4_500), random.random_range(1..60));
    let conditions: Vec<(&str, Given)> = match table {
        0 => vec![
            ("name = $1", vec![("text", format!("n{n}"))]),
            ("id between $1 and $2", vec![("int8", n.to_string()), ("int8", (n + 40 * m).to_string())]),
            ("length(note) > $1", vec![("int4", (m * 100).to_string())]),
            ("starts_with(name, $1)", vec![("text", format!("u{}", m % 10))]),
        ],
        1 => vec![
            ("b = $1", vec![("int4", (m % 25).to_string())]),
            ("a = any ($1)", vec![("text[]", format!("{{k{m},k{}}}", n % 160))]),
            ("v > $1 and b <> $2", vec![("int8", n.to_string()), ("int4", (m % 25).to_string())]),
        ],
        2 => vec![
            ("id < $1", vec![("uuid", format!("{m:02}000000-0000-0000-0000-000000000000"))]),
            (
                "v in ($1, $2) or v % $3 = 0",
                vec![("int4", n.to_string()), ("int4", "7".to_owned()), ("int4", m.to_string())],
            ),
        ],
        _ => vec![
            ("amount < $1 + 1", vec![("numeric", format!("{m}.50"))]),
            (
                "day = $1 or day > $2",
                vec![("date", format!("2024-01-{:02}", m % 28 + 1)), ("date", "2024-02-20".to_owned())],
            ),
            ("at >= $1", vec![("timestamptz", format!("2024-02-{:02} 12:00:00+00", m % 28 + 1))]),
            ("data @> $1", vec![("jsonb", format!("{{\"k\": {m}}}"))]),
            ("data ->> $1 = $2", vec![("text", "n".to_owned()), ("text", m.to_string())]),
            ("tags && $1", vec![("text[]", format!("{{t{},t{}}}", m % 10, n % 4))]),
            ("counts @> $1", vec![("int4[]", format!("{{{}}}", m % 40))]),
        ],
    };
    conditions.choose(random).cloned().unwrap_or_default()
}

/// One of either kind, or both.
fn any_condition(random: &mut StdRng, table: usize) -> (String, Given) {
    let plain = condition(random, table, 2);
    let (asked, given) = with_parameters(random, table);
    match random.random_range(0..4) {
        0 | 1 => (plain, Given::new()),
        2 => (asked.to_owned(), given),
        _ => (format!("({plain}) or ({asked})"), given),
    }
}

fn part(table: usize, (condition, given): (&str, &Given), columns: &[&str], random: &mut StdRng) -> Part {
    let (name, key) = TABLES[table];
    let updates = [Updates::FullRow, Updates::ChangedColumns][random.random_range(0..2)];
    let shape = Shape::of(name).matching(condition).columns(columns.iter().copied()).updates(updates);
    let shape = given.iter().fold(shape, |shape, (type_name, value)| {
        // In most of these conditions the place asks for the parameter's type.
        let is_typed = condition.contains("$1 + 1") || random.random_bool(0.5);
        shape.parameter(Parameter::typed(if is_typed { *type_name } else { "" }, value.as_str()))
    });
    let columns = if columns.is_empty() { COLUMNS[table] } else { columns };
    // As a row's JSON has them.
    let shown = key.iter().chain(columns).map(|column| match *column {
        "at" => "to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') as at".to_owned(),
        "tags" | "counts" => format!("to_json({column})::text as {column}"),
        other => other.to_owned(),
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    let written = (1..).zip(given).fold(condition.to_owned(), |text, (number, (type_name, value))| {
        text.replace(&format!("${number}"), &format!("'{value}'::{type_name}"))
    });
    let filter = if written.is_empty() { written } else { format!(" where {written}") };
    Part { shape, table: name, key, query: format!("(select {shown} from {name}{filter}) shape") }
}

/// All rows of a table, those that meet a condition, those that do not, and a few more shapes.
struct Split {
    parts: Vec<Part>,
}

impl Split {
    fn new(random: &mut StdRng, _number: u64) -> Self {
        let table = random.random_range(0..TABLES.len());
        let (tested, given) = any_condition(random, table);
        let mut parts = vec![part(table, ("", &Given::new()), &[], random)];
        for test in ["is true", "is not true"] {
            parts.push(part(table, (&format!("({tested}) {test}"), &given), &[], random));
        }
        for _ in 0..random.random_range(1..MORE_SHAPES) {
            let table = random.random_range(0..TABLES.len());
            let columns: Vec<&str> = COLUMNS[table].iter().copied().filter(|_| random.random_ratio(1, 2)).collect();
            let (condition, given) = any_condition(random, table);
            parts.push(part(table, (&condition, &given), &columns, random));
        }
        Split { parts }
    }
}

impl Watched for Split {
    fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Each row that the commit has touched is in exactly one of a condition's shape and its opposite's, if it is there at all.
    fn must_agree(&mut self, copier: &Copier, has_read: bool) -> Result<()> {
        let names = [0, 1, 2].map(|part| held_as(self.parts[part].table, part));
        for touched in &copier.touched {
            let Touched::Row(name, key) = touched else { continue };
            if !names.contains(name) {
                continue;
            }
            let [all, meets, fails] = [0, 1, 2].map(|part| copier.replica.table_row(&names[part], key));
            let condition = &self.parts[1].query;
            ensure!(meets.is_none() || fails.is_none(), "{key:?} is in {condition} and in its opposite");
            let either = meets.or(fails);
            // Before the snapshot's end a row that an update has changed may lack what the update left as it was.
            let agree = if has_read { all == either } else { all.is_some() == either.is_some() };
            ensure!(agree, "{key:?} is not the same in all rows and in {condition} or its opposite");
        }
        Ok(())
    }
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.len() == TABLES.len() && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

/// A server that has the tables in its mirror, and little memory.
pub(crate) async fn mirroring(database: &Database) -> Result<Server> {
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    database.execute(READING).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [account, pair, thing, reading]".to_owned());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB, mirror: 1MiB}".to_owned());
    let server = Server::start(config).await?;
    database.execute(&rows).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_hold_what_postgres_selects_whatever_happens() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("shapes").await?;
    let mut server = mirroring(&database).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), transaction);
    let mut crowd = ShapeCrowd::new(server.endpoint(), seed);
    let (shapes, rounds) = (asked_for("TIDEGATE_TEST_SHAPES", SHAPES), asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS));
    let mut scene = Scene { cluster: &mut cluster, server: &mut server, writers: &writers, database: "shapes" };
    let mut compared = 0;
    for _ in 0..rounds {
        let count = |crowd: &ShapeCrowd<Split>| crowd.there().map(|one| one.watched.parts.len()).sum::<usize>();
        while count(&crowd) < shapes {
            crowd.join(Split::new);
        }
        crowd.round(&mut scene, &mut random, COMMITS).await?;
        compared += count(&crowd);
        crowd.leave(|at| at == 0 || random.random_ratio(1, 5));
    }
    writers.stop().await;
    ensure!(compared >= shapes, "only {compared} comparisons");
    println!("{compared} comparisons of {} subscribers' shapes", crowd.joined());
    Ok(())
}
