//! The mirror: with replica identity default, updates and deletes arrive with whole old rows and complete values, whatever
//! happens to the server; before a table's mirror is complete, as without one.
//!
//! The oracle's account says less than what is received: what it leaves out is filled in from a model of the tables that is kept
//! from the same account.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{MirrorState, MirroredTable, ResetReason, SnapshotState, SnapshotStatus, SourceStatus};
use tidegate_integration_tests::{
    Change, Cluster, Database, Ended, History, OnDiscontinuity, Oracle, Recorder, Row, Seed, Server, ServerConfig,
    Value, asked_for, tidegate, within,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Crashes of the server in one run; `TIDEGATE_TEST_ROUNDS` asks for more.
const ROUNDS: u32 = 8;

/// Those that `change` writes to, and the markers.
pub(crate) const WRITTEN: &str = "
create table account (id bigint primary key, name text, amount numeric(12, 2), active boolean, note text);
create table pair (a int, \"B b\" text, v bigint, body text, primary key (a, \"B b\"));
alter table account alter note set storage external;
alter table pair alter body set storage external;
create table marker (name text primary key)";
const COUNTED: &str = "create table counted (n int primary key, filler text)";

/// What `account` and `pair` have at first.
pub(crate) const INITIAL: &str = "
insert into account select n, 'initial', n, true, repeat(md5(n::text), 100) from generate_series(0, 400) n;
insert into pair select n % 50, (n % 20)::text, n, repeat(md5(n::text), 100) from generate_series(0, 99) n";

/// A row by table and key.
type Model = BTreeMap<(String, Vec<Value>), Vec<(String, Value)>>;

fn key_columns(table: &str) -> Result<&'static [&'static str]> {
    Ok(match table {
        "public.account" => &["id"],
        "public.pair" => &["a", "B b"],
        "public.counted" => &["n"],
        "public.marker" => &["name"],
        other => bail!("no table {other}"),
    })
}

fn key_of(table: &str, row: &[(String, Value)]) -> Result<(String, Vec<Value>)> {
    let value = |name: &&str| row.iter().find(|(column, _)| column == name).map(|(_, value)| value.clone());
    let values = key_columns(table)?.iter().map(value).collect::<Option<_>>();
    Ok((table.to_owned(), values.context("a row without its key")?))
}

/// The change with what the model knows, which follows it.
fn fill(change: &mut Change, model: &mut Model) -> Result<()> {
    let what = change.what.clone();
    let (op, table) = what.split_once(' ').context("operation and table")?;
    if op == "truncate" {
        model.retain(|(of, _), _| of != table);
        return Ok(());
    }
    let old_key = match (&change.old, &change.row) {
        (Row::Key(old) | Row::Full(old), _) => key_of(table, old)?,
        (Row::None, Row::Full(row)) => key_of(table, row)?,
        (Row::None, Row::None | Row::Key(_)) => bail!("a {op} of no row"),
    };
    let known = model.remove(&old_key);
    if op == "insert" {
        ensure!(known.is_none(), "{what} of a row that is there");
    } else {
        let known = known.with_context(|| format!("{what} of a row that is not there"))?;
        if let Row::Full(row) = &mut change.row {
            for ((_, value), (_, old)) in row.iter_mut().zip(&known) {
                if *value == Value::Unchanged {
                    value.clone_from(old);
                }
            }
        }
        change.old = Row::Full(known);
    }
    if let Row::Full(row) = &change.row {
        model.insert(key_of(table, row)?, row.clone());
    }
    Ok(())
}

/// Received is what the oracle has, filled from the model: all behind the marker `complete`, and before it where it was filled.
pub(crate) fn must_be_filled(received: &History, oracle: &History) -> Result<()> {
    let (mut model, mut filled_count) = (Model::new(), 0_usize);
    let mut ours = received.transactions().iter().peekable();
    let (mut is_received, mut is_complete) = (false, false);
    for transaction in oracle.transactions() {
        let mut filled = transaction.clone();
        for change in &mut filled.changes {
            fill(change, &mut model)?;
        }
        let marks = |name: &str| {
            let of = |change: &Change| {
                matches!(&change.row, Row::Full(row) if change.what == "insert public.marker"
                    && row.iter().any(|(_, value)| *value == Value::Text(name.to_owned())))
            };
            transaction.changes.iter().any(of)
        };
        if is_received {
            let received = ours.next().with_context(|| format!("not received:\n{transaction}"))?;
            let same = |(ours, (filled, bare)): (&Change, (&Change, &Change))| {
                ours == filled || (!is_complete && ours == bare)
            };
            let pairs = received.changes.iter().zip(filled.changes.iter().zip(&transaction.changes));
            let is_same = received.changes.len() == filled.changes.len() && pairs.clone().all(same);
            let differing = pairs.clone().find(|pair| !same(*pair));
            ensure!(
                is_same && (received.lsn, received.xid) == (filled.lsn, filled.xid),
                "received:\n{received}\nexpected:\n{filled}\nfirst difference: {differing:?}"
            );
            filled_count += pairs.filter(|(ours, (filled, bare))| ours == filled && filled != bare).count();
        }
        is_received |= marks("initial");
        is_complete |= marks("complete");
    }
    ensure!(ours.peek().is_none(), "more was received than was committed");
    println!("{filled_count} changes were filled");
    ensure!(filled_count > 100, "only {filled_count} changes were filled");
    Ok(())
}

/// One transaction as SQL.
fn transaction(random: &mut StdRng) -> String {
    match random.random_range(0..40_u32) {
        0..20 => change(random),
        20..34 => {
            let changes: Vec<String> = (0..random.random_range(2..20_u32)).map(|_| change(random)).collect();
            format!("begin; {}; commit", changes.join("; "))
        }
        34 => format!(
            "begin; {}; savepoint s; {}; rollback to s; {}; commit",
            change(random),
            change(random),
            change(random)
        ),
        35 => "truncate counted".to_owned(),
        36 => format!("begin; truncate counted; {}; commit", many(random)),
        37 => format!("begin; {}; update counted set filler = 'changed ' || n; commit", many(random)),
        38 => "update counted set n = -n where n > 0 and not exists (select from counted o where o.n = -counted.n)"
            .to_owned(),
        _ => "delete from counted where n % 3 = 0".to_owned(),
    }
}

fn many(random: &mut StdRng) -> String {
    let first = random.random_range(0..6_000_u32);
    format!(
        "insert into counted select n, repeat('x', n % 300) from generate_series({first}, {}) n on conflict do nothing",
        first + 500
    )
}

/// A change of a row of `account` or `pair` as SQL.
pub(crate) fn change(random: &mut StdRng) -> String {
    let (id, other) = (random.random_range(0..600_u32), random.random_range(0..600_u32));
    let text = match random.random_range(0..4_u32) {
        0 => "null".to_owned(),
        1 => "'short'".to_owned(),
        _ => format!("(select string_agg(md5(random()::text), '') from generate_series(1, {}))", 80 + other),
    };
    match random.random_range(0..12_u32) {
        0..3 => format!(
            "insert into account values ({id}, 'name {other}', {other}.50, true, {text}) on conflict (id) do update set name = \
             excluded.name"
        ),
        // Leaves a large note as it was, unsent.
        3..6 => format!("update account set amount = {other}.25, active = null where id = {id}"),
        6 => format!(
            "update account set id = {other} where id = {id} and not exists (select from account where id = {other})"
        ),
        7 => format!("delete from account where id = {id}"),
        8 => format!("insert into pair values ({}, '{}', {id}, {text}) on conflict do nothing", id % 50, other % 20),
        9 => format!("update pair set v = {other} where a = {}", id % 50),
        10 => format!("delete from pair where a = {} and \"B b\" = '{}'", id % 50, other % 20),
        _ => format!("update account set note = {text} where id = {id}"),
    }
}

/// Writes until it is told to stop.
fn start_writers(url: &str, seed: Seed, stop: &CancellationToken) -> JoinSet<()> {
    let mut writers = JoinSet::new();
    for writer in 0..2 {
        let (url, stop, mut random) = (url.to_owned(), stop.clone(), seed.generator(1 + writer));
        writers.spawn(async move {
            let Ok(database) = Database::connect(&url).await else { return };
            database.execute("set lock_timeout = '2s'").await.ok();
            while !stop.is_cancelled() {
                // Whether a statement fails does not matter: what was committed is the oracle's business.
                if database.execute(&transaction(&mut random)).await.is_err() {
                    database.execute("rollback").await.ok();
                }
            }
        });
    }
    writers
}

fn mirror_is_complete(status: &SourceStatus) -> bool {
    // A table that is truncated again and again is verified again and again, and is complete meanwhile.
    let is_truncated = |table: &MirroredTable| table.table == "public.counted";
    let complete = |table: &MirroredTable| {
        table.state() == MirrorState::Complete || (table.state() == MirrorState::Verifying && is_truncated(table))
    };
    status.mirror.len() == 3 && status.mirror.iter().all(complete)
}

/// Tables with rows from before, a publication and the oracle's slot; the server has yet to be started.
async fn prepared(database: &Database) -> Result<(ServerConfig, Oracle)> {
    database.execute(WRITTEN).await?;
    database.execute(COUNTED).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [account, pair, counted]".to_owned());
    // Small enough that large transactions leave memory, in capture and in the mirror.
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB, mirror: 1MiB}".to_owned());
    database.execute(&format!("create publication {} for table account, pair, counted, marker", config.slot)).await?;
    let oracle = Oracle::create(database, &config.slot).await?;
    database.execute(INITIAL).await?;
    database.execute("insert into counted select n, 'initial' from generate_series(0, 4000) n").await?;
    database.mark("initial").await?;
    Ok((config, oracle))
}

pub(crate) async fn subscribe(mut recorder: Recorder) -> Result<History> {
    let ended = recorder.until_marker("the end").await?;
    ensure!(ended == Ended::Arrived, "continuity was not lost, but the server says {ended:?}");
    Ok(recorder.history().clone())
}

/// Waits until so many more transactions have been received.
pub(crate) async fn received(committed: &mut watch::Receiver<usize>, count: usize) -> Result<()> {
    let goal = *committed.borrow() + count;
    let waiting = committed.wait_for(|now| *now >= goal);
    let arrived = tokio::time::timeout(tidegate_integration_tests::DEADLINE, waiting).await;
    ensure!(arrived.is_ok_and(|arrived| arrived.is_ok()), "stalled");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_and_large_values_are_whole_whatever_happens_to_the_server() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let cluster = Cluster::start(&[("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("mirror").await?;
    let (config, oracle) = prepared(&database).await?;
    let mut server = Server::start(config).await?;
    let recorder = Recorder::new(server.endpoint());
    let mut committed = recorder.committed();
    let mut subscriber = JoinSet::new();
    subscriber.spawn(subscribe(recorder));
    let stop = CancellationToken::new();
    let mut writers = start_writers(database.url(), seed, &stop);
    server.until("shop", "a complete mirror", mirror_is_complete).await?;
    database.mark("complete").await?;
    let rounds = asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS);
    for _ in 0..rounds {
        received(&mut committed, random.random_range(20..200)).await?;
        if random.random_bool(0.7) {
            server.kill().await?;
        } else {
            server.terminate().await?;
        }
        server.launch().await?;
    }
    received(&mut committed, 50).await?;
    stop.cancel();
    while writers.join_next().await.is_some() {}
    for table in ["account", "pair", "counted"] {
        must_be_verified(&server, table).await?;
    }
    database.mark("the end").await?;
    let history = subscriber.join_next().await.context("spawned above")???;
    must_be_filled(&history, &oracle.read(&database).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_epoch_builds_it_anew() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("mirror_epoch").await?;
    let (mut config, _oracle) = prepared(&database).await?;
    config.on_discontinuity = OnDiscontinuity::Reset;
    let mut server = Server::start(config).await?;
    let before = server.until("shop", "a complete mirror", mirror_is_complete).await?.epoch;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);
    server.kill().await?;
    database.drop_slot(server.slot()).await?;
    database.execute("update account set name = 'unseen' where id < 100; delete from account where id = 100").await?;
    server.launch().await?;
    match recorder.until_marker("none").await? {
        Ended::Reset(ResetReason::EpochChanged | ResetReason::SourceDiscontinued, _) => {}
        other => bail!("a reset was to come, not {other:?}"),
    }
    let again = |status: &SourceStatus| status.epoch != before && mirror_is_complete(status);
    server.until("shop", "a complete mirror of another epoch", again).await?;
    // What the status shows may still be of the epoch before; a comparison needs the mirror of this one.
    within("the mirror can be compared", || async {
        Ok((verify(&server, "account").await?.0 == Some(0)).then_some(()))
    })
    .await?;
    database.execute("update account set amount = 1 where id = 50; delete from account where id = 101").await?;
    database.mark("after").await?;
    let mut fresh = Recorder::new(server.endpoint());
    ensure!(fresh.until_marker("after").await? == Ended::Arrived);
    let changes = || fresh.history().transactions().iter().flat_map(|transaction| &transaction.changes);
    let update = changes().find(|change| change.what == "update public.account").context("an update")?;
    let Row::Full(old) = &update.old else { bail!("no whole old row: {update:?}") };
    ensure!(old.contains(&("name".to_owned(), Value::Text("unseen".to_owned()))), "{old:?}");
    let Row::Full(row) = &update.row else { bail!("no row: {update:?}") };
    ensure!(row.iter().all(|(_, value)| *value != Value::Unchanged), "{row:?}");
    let delete = changes().find(|change| change.what == "delete public.account").context("a delete")?;
    ensure!(matches!(delete.old, Row::Full(_)), "no whole old row: {delete:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_mirrored_is_named_and_holds_up_no_other() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("mirror_unsupported").await?;
    database.execute("create table a_keyless (a int); create table b (id int primary key)").await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: ['public.*', mistyped]".to_owned());
    let mut server = Server::start(config).await?;
    let state = |status: &SourceStatus, name: &str| -> Option<MirroredTable> {
        status.mirror.iter().find(|table| table.table == name).cloned()
    };
    let has = |status: &SourceStatus, name: &str, wanted: MirrorState| {
        state(status, name).is_some_and(|table| table.state() == wanted)
    };
    let settled = |status: &SourceStatus| {
        has(status, "public.b", MirrorState::Complete) && has(status, "public.a_keyless", MirrorState::Unsupported)
    };
    let status = server.until("shop", "what can be mirrored is", settled).await?;
    let keyless = state(&status, "public.a_keyless").context("listed")?;
    ensure!(keyless.detail.contains("primary key"), "{}", keyless.detail);
    let mistyped = state(&status, "public.mistyped").context("listed")?;
    ensure!(mistyped.state() == MirrorState::Unsupported && mistyped.detail.contains("no such table"), "{mistyped:?}");
    let text = server.command(&["status"]).await?;
    ensure!(text.contains("mirror: 1 of 3 tables complete") && text.contains("mirror of public.a_keyless"), "{text}");

    // What is no longer wanted is removed.
    server.terminate().await?;
    server.config_mut().source_lines.clear();
    server.launch().await?;
    ensure!(server.streaming().await?.mirror.is_empty());
    ensure!(!server.scratch("data/shop.mirror").exists());
    Ok(())
}

/// Changes the mirror's files: the first account's last byte, which is of its note, and the second account as a whole.
fn plant_differences(mirror: &Path) -> Result<()> {
    let epoch = std::fs::read_dir(mirror)?.next().context("the mirror of an epoch")??;
    let database = fjall::Database::builder(epoch.path()).open()?;
    let keyspace = database.keyspace("rows", fjall::KeyspaceCreateOptions::default)?;
    // See the store's mirror/key.rs: rows start with 0x10.
    let rows: Vec<_> =
        keyspace.prefix([0x10]).take(2).map(fjall::Guard::into_inner).collect::<std::result::Result<_, _>>()?;
    let [(key, row), (other, _)] = rows.as_slice() else { bail!("{} rows", rows.len()) };
    let mut row = row.to_vec();
    *row.last_mut().context("a row")? ^= 1;
    keyspace.insert(key.clone(), row)?;
    keyspace.remove(other.clone())?;
    database.persist(fjall::PersistMode::SyncAll)?;
    Ok(())
}

/// A table `account` of 500 rows, and a server whose mirror of it is complete.
async fn mirrored_account(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database
        .execute(
            "create table account (id bigint primary key, note text);
             insert into account select n, 'note ' || n from generate_series(1, 500) n",
        )
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [account]".to_owned());
    let server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_mirrored).await?;
    Ok((database, server))
}

fn is_mirrored(status: &SourceStatus) -> bool {
    status.mirror.iter().any(|table| table.state() == MirrorState::Complete)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_difference_is_found_named_and_mended() -> Result<()> {
    let (_database, mut server) = mirrored_account("mirror_verify").await?;
    let (code, text) = verify(&server, "account").await?;
    ensure!(code == Some(0) && text.contains("500 rows compared") && text.contains("no difference"), "{text}");
    // One that has not ended is read again after a restart, and mends what is planted.
    let client = server.client().await?;
    within("no snapshot to run", || async {
        let is_over = |status: &SnapshotStatus| status.state() == SnapshotState::Done;
        Ok(client.snapshots("").await?.iter().all(is_over).then_some(()))
    })
    .await?;
    server.terminate().await?;
    plant_differences(&server.scratch("data/shop.mirror"))?;
    server.launch().await?;
    server.streaming().await?;
    server.until("shop", "a complete mirror", is_mirrored).await?;
    let (code, text) = verify(&server, "account").await?;
    ensure!(code == Some(3) && text.contains("2 differed"), "{code:?} {text}");
    ensure!(text.matches("had other values in the mirror").count() == 1, "{text}");
    ensure!(text.matches("was not in the mirror").count() == 1 && text.matches("{\"id\":").count() == 2, "{text}");
    let (code, text) = verify(&server, "account").await?;
    ensure!(code == Some(0) && text.contains("no difference"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_exist_is_told_from_one_without_a_mirror() -> Result<()> {
    let (database, server) = mirrored_account("mirror_verify_none").await?;
    let (code, text) = verify(&server, "public.acount").await?;
    let is_unknown = text.contains("there is no table public.acount") && text.contains("did you mean public.account?");
    ensure!(code == Some(1) && is_unknown && !text.contains("`mirror`"), "{text}");
    database.execute("create table other (id int primary key)").await?;
    within("it is known", || async {
        let (code, text) = verify(&server, "other").await?;
        Ok((code == Some(1) && text.contains("has no mirror; name it in the source's `mirror`")).then_some(()))
    })
    .await?;
    database.execute("drop table account").await?;
    within("it is known to be gone", || async {
        let (code, text) = verify(&server, "account").await?;
        ensure!(code == Some(1), "{code:?} {text}");
        Ok(text.contains("there is no table public.account").then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_not_complete_yet_is_verified_later() -> Result<()> {
    let (_database, mut server) = mirrored_account("mirror_verify_later").await?;
    let waited = AtomicBool::new(false);
    // Lost with its directory, it is built anew from a snapshot, which the server asks for by itself.
    for _restart in 0..5 {
        server.terminate().await?;
        std::fs::remove_dir_all(server.scratch("data/shop.mirror"))?;
        server.launch().await?;
        within("the mirror can be compared", || async {
            let (code, text) = verify(&server, "account").await?;
            let is_later = text.contains("Unavailable") && text.contains("public.account");
            ensure!(code == Some(0) || is_later, "{code:?} {text}");
            waited.fetch_or(is_later, Ordering::Relaxed);
            Ok((code == Some(0)).then_some(()))
        })
        .await?;
    }
    ensure!(waited.into_inner(), "the mirror was complete each time, before it was asked about");
    Ok(())
}

/// The mirror is what PostgreSQL has, as soon as it can be compared: a table that was truncated is being read by a snapshot.
pub(crate) async fn must_be_verified(server: &Server, table: &str) -> Result<()> {
    let (code, text) = within("the mirror can be compared", || async {
        let (code, text) = verify(server, table).await?;
        Ok((!text.contains("Unavailable")).then_some((code, text)))
    })
    .await?;
    ensure!(code == Some(0), "{table}: {text}");
    Ok(())
}

/// Exit code and all that is printed.
async fn verify(server: &Server, table: &str) -> Result<(Option<i32>, String)> {
    let output = tidegate(&["mirror", "verify", table, "--server", &server.endpoint()]).await?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8(printed)?))
}
