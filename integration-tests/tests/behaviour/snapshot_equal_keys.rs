//! Keys that PostgreSQL takes to be equal though their bytes differ: 'a' and 'A' of citext or under a collation without case, 1.5 and
//! 1.50, 0 and -0, 'a' and 'a ' of bpchar, a month and 30 days. A chunk's range and the keys that are read again follow
//! PostgreSQL's order, the stream and subscribers tell rows apart by their bytes; both must come to the same rows, amid writers that
//! turn one spelling into another, and with commits that are stuck.

use anyhow::{Result, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{MirrorState, SourceStatus, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, Database, HeldTable, Seed, Server, ServerConfig, Writers, asked_for, held_by_postgres,
    must_equal,
};

use crate::{mirror::must_be_verified, snapshot_crowd::OF_MIRROR};

/// Snapshots in one run.
const ROUNDS: u32 = 5;
const WRITERS: u64 = 3;
/// Keys of each table. The first chunk has 1,000 rows, the next at most 4,000.
const KEYS: u32 = 5_600;

/// A kind of key, in a table of its name.
struct Kind {
    table: &'static str,
    /// What the server may lack, which makes the type.
    needs: &'static str,
    columns: &'static str,
    /// Its columns' names.
    key: &'static [&'static str],
    /// The values of key n, in one of its spellings.
    spelled: fn(u32, u32) -> Vec<String>,
    /// What it is called by PostgreSQL, if not as we do.
    shown: &'static str,
}

static KINDS: [Kind; 7] = [
    Kind {
        table: "of_citext",
        needs: "create extension citext",
        columns: "a citext primary key",
        key: &["a"],
        spelled: |n, spelling| vec![cased(&format!("k{n:05}x"), spelling)],
        shown: "",
    },
    Kind {
        table: "of_collation",
        needs: "create collation caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        columns: "a text collate caseless primary key",
        key: &["a"],
        spelled: |n, spelling| vec![cased(&format!("k{n:05}é"), spelling)],
        shown: "",
    },
    Kind {
        table: "of_numeric",
        needs: "",
        columns: "a numeric primary key",
        key: &["a"],
        spelled: |n, spelling| vec![format!("{n}.5{}", "0".repeat(spelling as usize))],
        shown: "",
    },
    Kind {
        table: "of_float",
        needs: "",
        columns: "a float8 primary key",
        key: &["a"],
        // Where the first chunk ends.
        spelled: |n, spelling| match (n, spelling % 2) {
            (1_000, 0) => vec!["0".to_owned()],
            (1_000, _) => vec!["-0".to_owned()],
            _ => vec![format!("{}", f64::from(n) - 1_000.0 + if n < 1_000 { 0.5 } else { -0.5 })],
        },
        shown: "(select case a::text when '0' then '0.0' when '-0' then '-0.0' else a::text end as a, v, note from of_float) f",
    },
    Kind {
        table: "of_bpchar",
        needs: "",
        columns: "a bpchar primary key",
        key: &["a"],
        spelled: |n, spelling| vec![format!("k{n:05}{}", " ".repeat(spelling as usize))],
        shown: "",
    },
    Kind {
        table: "of_interval",
        needs: "",
        columns: "a interval primary key",
        key: &["a"],
        spelled: |n, spelling| vec![if spelling == 0 { format!("{n} mons") } else { format!("{} days", 30 * n) }],
        shown: "",
    },
    Kind {
        table: "of_two",
        needs: "create extension if not exists citext",
        columns: "a char(8), b citext, primary key (b, a)",
        key: &["a", "b"],
        spelled: |n, spelling| vec![format!("c{:03}", n % 1_000), cased(&format!("k{:02}x", n / 1_000), spelling)],
        shown: "",
    },
];

fn cased(text: &str, spelling: u32) -> String {
    match spelling {
        0 => text.to_owned(),
        1 => text.to_uppercase(),
        _ => text[..1].to_uppercase() + &text[1..],
    }
}

impl Kind {
    fn values(&self, n: u32, spelling: u32) -> String {
        let quoted: Vec<String> = (self.spelled)(n, spelling).iter().map(|value| format!("'{value}'")).collect();
        quoted.join(", ")
    }

    /// `a = …`, joined by `and` or a comma.
    fn equals(&self, (n, spelling): (u32, u32), joiner: &str) -> String {
        let values = (self.spelled)(n, spelling);
        let each: Vec<String> =
            self.key.iter().zip(&values).map(|(column, value)| format!("{column} = '{value}'")).collect();
        each.join(joiner)
    }

    /// The table, filled; false where the server lacks its type.
    async fn create(&self, database: &Database) -> Result<bool> {
        if !self.needs.is_empty()
            && let Err(error) = database.execute(self.needs).await
        {
            println!("LEFT OUT: {}, since the server refuses {:?}: {error:#}", self.table, self.needs);
            return Ok(false);
        }
        let table = self.table;
        database
            .execute(&format!(
                "create table {table} ({}, v int, note text); alter table {table} alter note set storage external",
                self.columns
            ))
            .await?;
        for first in (0..KEYS).step_by(700) {
            let rows: Vec<String> = (first..first + 700)
                .map(|n| format!("({}, {n}, repeat('x{n}', 700))", self.values(n, n % 3)))
                .collect();
            database.execute(&format!("insert into {table} values {}", rows.join(", "))).await?;
        }
        Ok(true)
    }

    async fn held(&self, database: &Database) -> Result<HeldTable> {
        held_by_postgres(database, if self.shown.is_empty() { self.table } else { self.shown }, self.key).await
    }
}

/// One transaction as SQL. One in three is where the first chunk ends, or the second.
fn transaction(random: &mut StdRng) -> String {
    let kind = &KINDS[random.random_range(0..KINDS.len())];
    let count = random.random_range(1..6_u32);
    let changes: Vec<String> = (0..count).map(|_| change(random, kind)).collect();
    format!("begin; {}; commit", changes.join("; "))
}

fn change(random: &mut StdRng, kind: &Kind) -> String {
    let n = match random.random_range(0..6_u32) {
        0 => random.random_range(995..1_005_u32),
        1 => random.random_range(4_990..5_010_u32),
        _ => random.random_range(0..KEYS),
    };
    let mut spelling = || random.random_range(0..3_u32);
    let (table, old, new) = (kind.table, (n, spelling()), (n, spelling()));
    let (found, set) = (kind.equals(old, " and "), kind.equals(new, ", "));
    match random.random_range(0..12_u32) {
        // A large note stays as it was, and is not sent.
        0..5 => format!("update {table} set {set}, v = v + 1 where {found}"),
        5 => format!(
            "update {table} set {set} where {found}; update {table} set {}, v = -v where {found}",
            kind.equals(old, ", ")
        ),
        6 | 7 => format!(
            "delete from {table} where {found}; insert into {table} values ({}, -1, repeat('y', {})) on conflict do nothing",
            kind.values(new.0, new.1),
            random.random_range(0..3_000_u32)
        ),
        8 => format!(
            "insert into {table} values ({}, -2, 'short') on conflict ({}) do update set {set}, v = -3",
            kind.values(new.0, new.1),
            kind.key.join(", ")
        ),
        9 => format!("delete from {table} where {found}"),
        10 => format!("update {table} set note = repeat('n', {}) where {found}", random.random_range(0..3_000_u32)),
        _ => format!("update {table} set v = v + 1 where {found}"),
    }
}

fn is_complete(status: &SourceStatus) -> bool {
    !status.mirror.is_empty() && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

/// Snapshots amid writers, and then what PostgreSQL has.
async fn exact_amid_writers(name: &str, mirror: bool) -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database(name).await?;
    // Of the server's own sessions, and of those of the test that must not be stuck.
    database.execute(&format!("alter database {name} set synchronous_commit = local")).await?;
    let database = database.another().await?;
    let mut kinds = Vec::new();
    for kind in &KINDS {
        if kind.create(&database).await? {
            kinds.push(kind);
        }
    }
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {rows_per_second: 20000}".to_owned());
    if mirror {
        config.source_lines.push("mirror: ['public.*']".to_owned());
    }
    let server = Server::start(config).await?;
    if mirror {
        server.until("shop", "a complete mirror", is_complete).await?;
    }
    let writers = Writers::start(WRITERS, (database.url(), seed), |random| {
        format!(
            "set synchronous_commit = {}; {}",
            if random.random_bool(0.5) { "on" } else { "local" },
            transaction(random)
        )
    });
    for round in 0..asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS) {
        let mut copier = Copier::new(&server.endpoint(), &[], Start::Snapshot);
        let begun = copier.until("its begin", |arrival, _| matches!(arrival, Arrival::Begun(_))).await?;
        let Arrival::Begun(number) = begun else { unreachable!() };
        ensure!((number >= OF_MIRROR) == mirror, "snapshot {number}");
        if random.random_bool(0.5) {
            database.hold_commits().await?;
            let goal = copier.replica.read_count + random.random_range(1..5_000_u64);
            copier.until("some rows", |_, held| held.read_count >= goal).await?;
            database.release_commits().await?;
        }
        copier.until_snapshot_end().await?;
        let _nobody_writes = writers.pause().await?;
        copier.until_caught_up(&database).await?;
        for kind in &kinds {
            let ours = copier.replica.table(&format!("public.{}", kind.table));
            must_equal(&format!("{}, round {round}", kind.table), &ours, &kind.held(&database).await?)?;
        }
    }
    writers.stop().await;
    for kind in kinds.iter().filter(|_| mirror) {
        must_be_verified(&server, kind.table).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_equal_in_other_bytes_are_exact_in_a_snapshot_amid_writers() -> Result<()> {
    exact_amid_writers("equal_keys", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_equal_in_other_bytes_are_exact_in_the_mirror() -> Result<()> {
    exact_amid_writers("equal_keys_mirror", true).await
}
