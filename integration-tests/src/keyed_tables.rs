//! Three tables with keys of several kinds, and transactions that do everything to them: many small transactions and large ones, moved
//! keys, TRUNCATE, savepoints, rollbacks, values out of line, commits that are not waited for.

use rand::{RngExt, rngs::StdRng};

/// Name, columns of the key.
pub const KEYED_TABLES: [(&str, &[&str]); 3] =
    [("public.account", &["id"]), ("public.pair", &["a", "b"]), ("public.thing", &["id"])];

/// The tables, and behind the first `insert` their rows.
const SCHEMA: &str = "
create table account (id bigint primary key, name text, note text);
alter table account alter note set storage external;
create table pair (b int, a text, v bigint, primary key (a, b));
create table thing (id uuid primary key, v int, body text);
alter table thing alter body set storage external;
insert into account select n, 'n' || n, case when n % 3 = 0 then repeat('x' || n, 900) end from generate_series(1, 4000) n;
insert into pair select n % 20, 'k' || n / 20, n from generate_series(1, 3000) n;
insert into thing select md5(n::text)::uuid, n, case when n % 2 = 0 then repeat('y' || n, 800) end from generate_series(1, 2000) n";

/// What makes the tables, and what fills them.
#[must_use]
pub fn keyed_tables() -> (&'static str, String) {
    let (tables, rows) = SCHEMA.split_once("insert").expect("rows follow the tables");
    (tables, format!("insert{rows}"))
}

/// One transaction on them as SQL.
#[must_use]
pub fn keyed_transaction(random: &mut StdRng) -> String {
    let many = |random: &mut StdRng, count: u32| {
        let changes: Vec<String> = (0..random.random_range(1..count)).map(|_| change(random)).collect();
        changes.join("; ")
    };
    let synchronous = if random.random_bool(0.3) { "off" } else { "on" };
    let body = match random.random_range(0..100_u32) {
        0..60 => many(random, 8),
        60..70 => format!("{}; select pg_sleep({})", many(random, 5), random.random_range(0..400_u32) as f64 / 1e3),
        70..75 => return format!("begin; {}; rollback", many(random, 8)),
        75..87 => format!(
            "{}; savepoint a; {}; savepoint b; {}; rollback to {}; {}",
            change(random),
            many(random, 5),
            many(random, 5),
            if random.random_bool(0.5) { "a" } else { "b" },
            many(random, 3)
        ),
        87 => {
            let (table, rows) = match random.random_range(0..3_u32) {
                0 => ("account", "select n, 'after', null from generate_series(1, 2500) n"),
                1 => ("pair", "select n % 20, 'k' || n / 20, -n from generate_series(1, 1500) n"),
                _ => ("thing", "select md5(n::text)::uuid, n, repeat('z' || n, 700) from generate_series(1, 1500) n"),
            };
            format!("truncate {table}; insert into {table} {rows}")
        }
        88..91 => "update account set name = name || '.' where id % 7 = 3".to_owned(),
        91..93 => "delete from thing where v % 50 = 1".to_owned(),
        _ => {
            let id = random.random_range(0..4_500_u32);
            format!(
                "delete from account where id = {id}; insert into account values ({id}, 'again', repeat('w', {})) \
                 on conflict do nothing",
                random.random_range(0..6_000_u32)
            )
        }
    };
    format!("begin; set local synchronous_commit = {synchronous}; {body}; commit")
}

fn change(random: &mut StdRng) -> String {
    let (id, other) = (random.random_range(0..4_500_u32), random.random_range(0..4_500_u32));
    match random.random_range(0..11_u32) {
        0 => format!(
            "insert into account values ({id}, 'new', repeat('v{other}', {})) on conflict (id) do update set \
             note = excluded.note",
            random.random_range(0..1_500_u32)
        ),
        // A large note stays as it was, and is not sent.
        1 | 2 => format!("update account set name = 'u{other}' where id = {id}"),
        3 => format!(
            "update account set id = {other}, name = 'moved' where id = {id} and not exists \
             (select from account where id = {other})"
        ),
        4 => format!("delete from account where id = {id}"),
        5 => format!("update pair set v = {other} where a = 'k{}'", id % 150),
        6 => format!("insert into pair values ({}, 'k{}', {other}) on conflict do nothing", other % 25, id % 160),
        7 => format!("delete from pair where a = 'k{}' and b = {}", id % 160, other % 25),
        8 => format!("update thing set v = {other} where id = md5('{}')::uuid", id % 2_200),
        9 => format!(
            "update thing set id = md5('{0}')::uuid where id = md5('{1}')::uuid and not exists \
             (select from thing where id = md5('{0}')::uuid)",
            other % 2_200,
            id % 2_200
        ),
        _ => format!(
            "insert into thing values (md5('{}')::uuid, {other}, repeat('t', {other})) on conflict do nothing",
            id % 2_200
        ),
    }
}
