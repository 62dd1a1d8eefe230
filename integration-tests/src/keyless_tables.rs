//! Two tables without a key, one of them partitioned, in which rows are often there twice, and transactions that do everything to them.

use rand::{RngExt, rngs::StdRng};

/// Their names.
pub const KEYLESS_TABLES: [&str; 2] = ["public.log", "public.parted"];

/// The tables, and behind the first `insert` their rows.
const SCHEMA: &str = "
create table log (a int, b text, note text);
alter table log alter note set storage external;
alter table log replica identity full;
create table parted (a int, b text) partition by range (a);
create table parted_low partition of parted for values from (minvalue) to (50);
create table parted_high partition of parted for values from (50) to (maxvalue);
alter table parted replica identity full;
alter table parted_low replica identity full;
alter table parted_high replica identity full;
insert into log select n % 100, repeat('b', n % 7), case when n % 5 = 0 then repeat('x', 3000 + n % 2) end \
from generate_series(1, 12000) n;
insert into parted select n % 100, repeat('c', n % 3) from generate_series(1, 12000) n";

/// What makes the tables, and what fills them.
#[must_use]
pub fn keyless_tables() -> (&'static str, String) {
    let (tables, rows) = SCHEMA.split_once("insert").expect("rows follow the tables");
    (tables, format!("insert{rows}"))
}

/// One transaction on them as SQL.
#[must_use]
pub fn keyless_transaction(random: &mut StdRng) -> String {
    let many = |random: &mut StdRng, count: u32| {
        let changes: Vec<String> = (0..random.random_range(1..count)).map(|_| change(random)).collect();
        changes.join("; ")
    };
    let synchronous = if random.random_bool(0.3) { "off" } else { "on" };
    // Seldom: a table that is truncated more often than it can be read is never read in full.
    let seldom = random.random_bool(0.002);
    let kind = if seldom { random.random_range(180..182) } else { random.random_range(0..200_u32) };
    let body = match kind {
        0..120 => many(random, 6),
        120..140 => format!("{}; select pg_sleep({})", many(random, 4), random.random_range(0..300_u32) as f64 / 1e3),
        140..150 => return format!("begin; {}; rollback", many(random, 6)),
        150..180 => format!("{}; savepoint a; {}; rollback to a; {}", change(random), many(random, 4), change(random)),
        180 if seldom => {
            "truncate log; insert into log select n % 90, 'after', null from generate_series(1, 4000) n".to_owned()
        }
        181 if seldom => {
            "truncate parted; insert into parted select n % 90, 'p' from generate_series(1, 4000) n".to_owned()
        }
        182 => "update log set b = b || '.' where a % 11 = 3".to_owned(),
        183..190 => format!(
            "insert into log select n % 5, 'new', null from generate_series(1, {}) n",
            random.random_range(0..400_u32)
        ),
        _ => change(random),
    };
    format!("begin; set local synchronous_commit = {synchronous}; {body}; commit")
}

fn change(random: &mut StdRng) -> String {
    let (a, b) = (random.random_range(0..100_u32), random.random_range(0..100_u32));
    // One of several rows that are alike.
    let one =
        |table: &str| format!("(select tableoid, ctid from {table} where a = {a} limit 1 for update skip locked)");
    match random.random_range(0..9_u32) {
        0 | 1 => format!("insert into log values ({a}, repeat('b', {}), null)", b % 7),
        2 => format!("insert into log select {a}, 'twice', repeat('y', 3000) from generate_series(1, 2)"),
        // A large note stays as it was, and is not sent.
        3 => format!("update log set b = 'u{}' where (tableoid, ctid) = any {}", b % 3, one("log")),
        4 => format!("update log set a = {b} where (tableoid, ctid) = any {}", one("log")),
        5 => format!("delete from log where (tableoid, ctid) = any {}", one("log")),
        6 => format!("insert into parted values ({a}, 'c'), ({b}, 'c'), ({a}, 'c')"),
        7 => format!("delete from parted where (tableoid, ctid) = any {}", one("parted")),
        // From one partition to another, at times.
        _ => format!("update parted set a = {b} where (tableoid, ctid) = any {}", one("parted")),
    }
}
