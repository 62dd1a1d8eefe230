//! Random writers: transactions of many shapes, concurrently, from a seed.

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};

use crate::{Database, Seed, Writers};

const TABLES: &str = "
create table account (id bigint primary key, name text, amount numeric(12, 2), active boolean, note text);
create table pair (a int, \"B b\" text, v bigint, primary key (a, \"B b\"));
create table ledger (id int, entry text, body text);
alter table ledger replica identity full;
alter table account alter note set storage external;
alter table ledger alter body set storage external;
create table event (at bigint, what text);
create table counted (n serial primary key, filler text);
create table marker (name text primary key)";

/// The tables of the random writers.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    seed: Seed,
}

impl Workload {
    /// Creates the tables.
    ///
    /// # Errors
    /// They exist.
    pub async fn create(database: &Database, seed: Seed) -> Result<Self> {
        database.execute(TABLES).await?;
        Ok(Workload { seed })
    }

    /// Starts writers, which write until they are stopped.
    #[must_use]
    pub fn start(self, database_url: &str, writer_count: u64) -> Writers {
        Writers::start(writer_count, (database_url, self.seed), transaction)
    }
}

/// One transaction as SQL.
fn transaction(random: &mut StdRng) -> String {
    match random.random_range(0..100_u32) {
        0..40 => change(random),
        40..70 => {
            let changes: Vec<String> = (0..random.random_range(2..20_u32)).map(|_| change(random)).collect();
            format!("begin; {}; commit", changes.join("; "))
        }
        70..82 => savepoints(random),
        82..86 => format!("begin; {}; {}; rollback", change(random), change(random)),
        86..89 => many_rows(random),
        89..93 => format!("truncate counted{}", if random.random_bool(0.5) { " restart identity" } else { "" }),
        93 => format!(
            "alter table pair add column if not exists extra_{} text default 'd'",
            random.random_range(0..6_u32)
        ),
        94..96 => format!("begin; truncate counted; {}; commit", counted(random)),
        96..98 => "select pg_logical_emit_message(false, 'outside', md5(random()::text))".to_owned(),
        _ => format!(
            "begin; {}; select pg_logical_emit_message(true, 'inside', md5(random()::text)); {}; commit",
            change(random),
            change(random)
        ),
    }
}

/// Savepoints of which some are rolled back, nested ones too.
fn savepoints(random: &mut StdRng) -> String {
    let mut sql = format!("begin; {}", change(random));
    for level in 0..random.random_range(1..6_u32) {
        sql.push_str(&format!("; savepoint s{level}; {}; {}", change(random), change(random)));
        match random.random_range(0..3_u32) {
            0 => sql.push_str(&format!("; rollback to s{level}")),
            1 => sql.push_str(&format!("; release s{level}")),
            _ => {}
        }
    }
    sql.push_str(if random.random_bool(0.1) { "; rollback to s0; commit" } else { "; commit" });
    sql
}

/// Ten thousand rows, sometimes within a savepoint, sometimes for nothing.
fn many_rows(random: &mut StdRng) -> String {
    let rows = "insert into counted (filler) select repeat('x', n % 100) from generate_series(1, 10000) n";
    match random.random_range(0..4_u32) {
        0 => rows.to_owned(),
        1 => format!("begin; {}; savepoint s; {rows}; rollback to s; {}; commit", change(random), change(random)),
        2 => format!("begin; savepoint s; {rows}; release s; {}; commit", change(random)),
        _ => format!("begin; {rows}; rollback"),
    }
}

/// One statement that changes rows.
fn change(random: &mut StdRng) -> String {
    let id = random.random_range(0..2_000_u32);
    let other = random.random_range(0..2_000_u32);
    match random.random_range(0..14_u32) {
        0..3 => format!(
            "insert into account values ({id}, 'name {other}', {other}.50, {}, {}) on conflict (id) do update \
             set name = excluded.name",
            random.random_bool(0.5),
            large_text(random)
        ),
        // Leaves a large note as it was, unsent.
        3..5 => format!("update account set amount = {other}.25, active = null where id = {id}"),
        5 => format!(
            "update account set id = {other} where id = {id} and not exists (select from account where id = {other})"
        ),
        6 => format!("delete from account where id = {id}"),
        7 => format!("insert into pair values ({}, '{}', {id}) on conflict do nothing", id % 50, other % 20),
        8 => format!("update pair set v = {other} where a = {}", id % 50),
        9 => format!("delete from pair where a = {} and \"B b\" = '{}'", id % 50, other % 20),
        10 => format!("insert into ledger values ({}, 'entry {other}', {})", id % 200, large_text(random)),
        11 => format!("update ledger set entry = 'changed {other}' where id = {}", id % 200),
        12 => format!("insert into event values ({id}, 'it''s {other} – ä€𝄞')"),
        _ => counted(random),
    }
}

fn counted(random: &mut StdRng) -> String {
    let count = random.random_range(1..30_u32);
    format!("insert into counted (filler) select null from generate_series(1, {count})")
}

/// NULL, short, or large enough to be stored out of line.
fn large_text(random: &mut StdRng) -> String {
    match random.random_range(0..4_u32) {
        0 => "null".to_owned(),
        1 => "'short'".to_owned(),
        _ => format!(
            "(select string_agg(md5(random()::text), '') from generate_series(1, {}))",
            random.random_range(80..400_u32)
        ),
    }
}
