//! Snapshots of tables without a key: each row is there as often as in PostgreSQL, whoever writes and whatever goes wrong
//! meanwhile: duplicates, TRUNCATE, VACUUM FULL, commits that do not wait for the disk, a server killed with -9.
//!
//! `TIDEGATE_TEST_SNAPSHOTS` asks for more than the usual number.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::Start;
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, KEYLESS_TABLES, Replay, Seed, Server, ServerConfig, Stop, Writers,
    asked_for, counted_by_postgres, held_by_postgres, keyless_tables, keyless_transaction, must_count_equal,
    must_equal, within,
};
use tokio::task::JoinSet;

/// Snapshots in one run.
const SNAPSHOTS: u64 = 25;
const SUBSCRIBERS: u64 = 2;
const WRITERS: u64 = 4;

/// Beside those without a key.
const KEYED: &str = "create table keyed (id int primary key, v int); \
                     create publication tidegate_keyless for table log, parted, keyed with (publish_via_partition_root)";

/// What the parts of the test share.
struct Stage {
    endpoint: String,
    replay: Replay,
    ended: AtomicU64,
    resumed: AtomicU64,
    voided: AtomicU64,
    goal: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_there_as_often_as_it_is() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("keyless").await?;
    let (tables, rows) = keyless_tables();
    database.execute(tables).await?;
    database.execute(KEYED).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {rows_per_second: 40000}".to_owned());
    let mut server = Server::start(config).await?;
    let goal = asked_for("TIDEGATE_TEST_SNAPSHOTS", SNAPSHOTS);
    let stage = Arc::new(Stage {
        endpoint: server.endpoint(),
        replay: Replay::default(),
        ended: AtomicU64::new(0),
        resumed: AtomicU64::new(0),
        voided: AtomicU64::new(0),
        goal,
    });
    let mut tasks = JoinSet::new();
    let replayed = Arc::clone(&stage);
    tasks.spawn(async move { replayed.replay.run(&replayed.endpoint).await });
    database.execute(&rows).await?;
    database.execute("insert into keyed select n, n from generate_series(1, 3000) n").await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), keyless_transaction);
    for subscriber in 0..SUBSCRIBERS {
        tasks.spawn(subscribe(Arc::clone(&stage), seed.generator(100 + subscriber)));
    }
    while stage.ended.load(Relaxed) < goal {
        let count = (stage.ended.load(Relaxed) + random.random_range(1..4)).min(goal);
        let waiting = within("snapshots to end", || async { Ok((stage.ended.load(Relaxed) >= count).then_some(())) });
        tokio::select! {
            waited = waiting => waited?,
            Some(ended) = tasks.join_next() => ended??,
        }
        let what = disturb(&mut random, (&mut cluster, &mut server), &stage, &writers).await?;
        println!("{what} after {} snapshots", stage.ended.load(Relaxed));
    }
    quiet(&cluster, &stage, &writers).await?;
    writers.stop().await;
    let (resumed, voided) = (stage.resumed.load(Relaxed), stage.voided.load(Relaxed));
    println!("{} snapshots, {resumed} resumed by token, {voided} passes", stage.ended.load(Relaxed));
    Ok(())
}

async fn subscribe(stage: Arc<Stage>, mut random: StdRng) -> Result<()> {
    while stage.ended.load(Relaxed) < stage.goal {
        let tables: Vec<&str> = match random.random_range(0..4_usize) {
            table @ 0..2 => vec![KEYLESS_TABLES[table]],
            // With the one that has a key.
            _ => Vec::new(),
        };
        let running = one_snapshot(&stage, &mut random, &tables);
        let ended = tokio::time::timeout(DEADLINE, running).await;
        ended.with_context(|| format!("a snapshot of {tables:?} does not end"))??;
    }
    Ok(())
}

/// From a snapshot's begin to somewhat after its end.
async fn one_snapshot(stage: &Stage, random: &mut StdRng, tables: &[&str]) -> Result<()> {
    let mut copier = Copier::new(&stage.endpoint, tables, Start::Snapshot);
    let checked = if tables.is_empty() { &KEYLESS_TABLES[..] } else { tables };
    let mut after_end = None;
    let comparing = stage.replay.comparing();
    loop {
        let arrival = copier.next().await?;
        comparing.is_at(copier.position);
        match arrival {
            Arrival::Begun(_) => {}
            Arrival::Committed(_) | Arrival::Progress => match &mut after_end {
                None if random.random_bool(0.01) => {
                    copier.drop_connection();
                    stage.resumed.fetch_add(1, Relaxed);
                }
                None => {}
                Some(0) => {
                    return stage
                        .replay
                        .check((copier.position, &copier.replica), checked)
                        .await
                        .context("after the end");
                }
                Some(left) => *left -= 1,
            },
            Arrival::Ended(snapshot) => {
                stage
                    .replay
                    .check((copier.position, &copier.replica), checked)
                    .await
                    .with_context(|| format!("at the end of snapshot {snapshot}"))?;
                stage.ended.fetch_add(1, Relaxed);
                stage.voided.fetch_add(copier.replica.void_count, Relaxed);
                after_end = Some(random.random_range(0..20_u32));
            }
            Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
            Arrival::Abandoned(_, detail) => bail!("abandoned: {detail}"),
        }
    }
}

/// While nobody writes, a snapshot is what PostgreSQL says.
async fn quiet(cluster: &Cluster, stage: &Stage, writers: &Writers) -> Result<()> {
    let _comparing = stage.replay.comparing();
    let _nobody_writes = writers.pause().await?;
    let mut copier = Copier::new(&stage.endpoint, &[], Start::Snapshot);
    copier.until_snapshot_end().await?;
    let database = Database::connect(&cluster.url("keyless")).await?;
    for table in KEYLESS_TABLES {
        let theirs = counted_by_postgres(&database, table).await?;
        must_count_equal(&format!("{table}, quiet"), &copier.replica.counts(table), &theirs)?;
    }
    let theirs = held_by_postgres(&database, "public.keyed", &["id"]).await?;
    must_equal("keyed, quiet", &copier.replica.table("public.keyed"), &theirs)?;
    stage.replay.check((copier.position, &copier.replica), &KEYLESS_TABLES).await
}

async fn disturb(
    random: &mut StdRng,
    (cluster, server): (&mut Cluster, &mut Server),
    stage: &Stage,
    writers: &Writers,
) -> Result<&'static str> {
    let terminate = |what: &str| {
        format!("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and {what}")
    };
    Ok(match random.random_range(0..9_u32) {
        0 | 1 => {
            server.kill().await?;
            server.launch().await?;
            "server killed"
        }
        2 => {
            cluster.restart(Stop::Immediate).await?;
            "PostgreSQL restarted, immediate"
        }
        3 => {
            let database = Database::connect(&cluster.url("postgres")).await?;
            let readers = "backend_type = 'client backend' and application_name like 'tidegate%'";
            database.execute(&terminate(readers)).await?;
            "readers terminated"
        }
        4 => {
            let database = Database::connect(&cluster.url("postgres")).await?;
            database.execute(&terminate("backend_type = 'walsender'")).await?;
            "walsender terminated"
        }
        5..8 => {
            let database = Database::connect(&cluster.url("keyless")).await?;
            database.execute("vacuum full log").await?;
            database.execute("vacuum full parted_high").await?;
            "VACUUM FULL"
        }
        _ => {
            quiet(cluster, stage, writers).await?;
            "quiet"
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_its_snapshot_begins_the_pass_anew() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("anew").await?;
    database
        .execute(
            "create table t (a int, b text); alter table t replica identity full; create table k (id int primary key)",
        )
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 6000}".to_owned());
    let mut server = Server::start(config).await?;
    let endpoint = server.endpoint();
    let holder = "select pg_terminate_backend(pid) from pg_stat_activity where state = 'idle in transaction' \
                  and application_name like 'tidegate%'";
    let disturbances = [
        "vacuum full t",
        "truncate t; insert into t select n % 70, 'after' from generate_series(1, 9000) n",
        "alter table t add column more text default 'd'",
        holder,
        "kill",
        "pause",
    ];
    for what in disturbances {
        database
            .execute("truncate t; insert into t select n % 100, repeat('b', 200) from generate_series(1, 24000) n")
            .await?;
        let mut copier = Copier::new(&endpoint, &["t"], Start::Snapshot);
        let mut number = 0;
        while copier.replica.read_count == 0 {
            if let Arrival::Begun(snapshot) = copier.next().await? {
                number = snapshot;
            }
        }
        let number = number.to_string();
        match what {
            "kill" => {
                server.kill().await?;
                server.launch().await?;
            }
            "pause" => {
                server.command(&["snapshot", "pause", &number, "--server", &endpoint]).await?;
                server.command(&["snapshot", "resume", &number, "--server", &endpoint]).await?;
            }
            sql => database.execute(sql).await?,
        }
        ensure!(copier.replica.void_count == 1, "{what}: it was over too soon");
        copier.until_snapshot_end().await.context(what)?;
        ensure!(copier.replica.void_count == 2, "{what}: {} passes", copier.replica.void_count);
        must_count_equal(what, &copier.replica.counts("public.t"), &counted_by_postgres(&database, "t").await?)?;
    }
    // Nothing holds VACUUM back once it is over.
    let held = "select count(*)::text from pg_stat_activity where state = 'idle in transaction'";
    within("no transaction is open", || async {
        Ok((database.text(held).await?.as_deref() == Some("0")).then_some(()))
    })
    .await
}

/// A table `t` without a key, read in some seconds, and a server whose control database is elsewhere.
async fn slow(name: &str) -> Result<(Database, Database, Server)> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database(name).await?;
    let control = cluster.database(&format!("{name}_control")).await?;
    database
        .execute(
            "create table t (a int, b text); alter table t replica identity full;
             insert into t select n % 100, repeat('b', 200) from generate_series(1, 24000) n",
        )
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 6000}".to_owned());
    let server = Server::start(config).await?;
    server.streaming().await?;
    Ok((database, control, server))
}

/// Until rows of a snapshot have come.
async fn until_read(copier: &mut Copier) -> Result<()> {
    let before = copier.replica.read_count;
    copier.until("rows of a snapshot", |_, held| held.read_count != before).await.map(drop)
}

/// Nothing holds VACUUM back.
async fn nothing_is_open(database: &Database) -> Result<()> {
    let open = "select count(*)::text from pg_stat_activity
                where state = 'idle in transaction' and application_name like 'tidegate%' and datname = current_database()";
    within("no transaction is open", || async {
        Ok((database.text(open).await?.as_deref() == Some("0")).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_may_begin_and_cease_to_ask_for_snapshots_amid_one() -> Result<()> {
    let (database, _control, server) = slow("asking").await?;
    let endpoint = server.endpoint();
    let mut begins = Copier::new(&endpoint, &["t"], Start::Snapshot);
    let mut ceases = Copier::new(&endpoint, &["t"], Start::Snapshot).with_snapshots();
    let mut asks = Copier::new(&endpoint, &["t"], Start::Snapshot).with_snapshots();
    for copier in [&mut begins, &mut ceases, &mut asks] {
        copier.until_snapshot_end().await?;
    }
    server.client().await?.start_snapshot("", vec!["t".to_owned()]).await?;
    until_read(&mut asks).await?;
    until_read(&mut ceases).await?;
    database.execute("delete from t where a = 7; insert into t values (1000, 'new'), (1000, 'new')").await?;
    begins.until_caught_up(&database).await?;
    for (copier, asks) in [(&mut begins, true), (&mut ceases, false)] {
        copier.drop_connection();
        copier.asks_for_snapshots(asks);
    }
    asks.until_snapshot_end().await?;
    let theirs = counted_by_postgres(&database, "t").await?;
    for (what, copier) in [("asks", &mut asks), ("begins", &mut begins), ("ceases", &mut ceases)] {
        copier.until_caught_up(&database).await?;
        must_count_equal(what, &copier.replica.counts("public.t"), &theirs)?;
    }
    // What begins afterwards is received as it is asked for now.
    server.client().await?.start_snapshot("", vec!["t".to_owned()]).await?;
    let reads = ceases.replica.read_count;
    begins.until_snapshot_end().await?;
    ceases.until_caught_up(&database).await?;
    ensure!(ceases.replica.read_count == reads, "it does not ask for snapshots any more");
    must_count_equal("begins", &begins.replica.counts("public.t"), &theirs)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_part_only_of_what_was_given_up_is_reset() -> Result<()> {
    let (_database, _control, server) = slow("given_up").await?;
    let mut copiers = [true, false].map(|asks| {
        let mut copier = Copier::new(&server.endpoint(), &["t"], Start::Now);
        copier.asks_for_snapshots(asks);
        copier
    });
    for copier in &mut copiers {
        copier.until_open().await?;
    }
    let [mut asks, mut other] = copiers;
    let client = server.client().await?;
    let started = client.start_snapshot("", vec!["t".to_owned()]).await?;
    until_read(&mut asks).await?;
    client.cancel_snapshot("", started.snapshot).await?;
    let reset = async {
        loop {
            match asks.next().await? {
                Arrival::Reset(_, detail) => return anyhow::Ok(detail),
                Arrival::Abandoned(..) | Arrival::Ended(_) => bail!("it holds a part of the table"),
                Arrival::Begun(_) | Arrival::Committed(_) | Arrival::Progress => {}
            }
        }
    };
    let detail = tokio::time::timeout(DEADLINE, reset).await.context("no reset")??;
    ensure!(detail.contains("public.t") && detail.contains("without the token"), "{detail}");
    other.until_open().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_transaction_stays_open_while_the_stream_is_away_or_the_snapshot_waits() -> Result<()> {
    let (database, control, server) = slow("away").await?;
    let mut copier = Copier::new(&server.endpoint(), &["t"], Start::Snapshot);
    until_read(&mut copier).await?;
    control.execute("begin; lock table tidegate.source").await?;
    let end = "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = ";
    database.execute(&format!("{end}'{}'", server.slot())).await?;
    nothing_is_open(&database).await?;
    control.execute("rollback").await?;
    copier.until_snapshot_end().await?;
    must_count_equal("t", &copier.replica.counts("public.t"), &counted_by_postgres(&database, "t").await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_paused_snapshot_is_told() -> Result<()> {
    let (database, _control, server) = slow("told").await?;
    let client = server.client().await?;
    let first = client.start_snapshot("", vec!["t".to_owned()]).await?.snapshot;
    client.pause_snapshot("", first).await?;
    nothing_is_open(&database).await?;
    let refused = tokio::time::timeout(DEADLINE, client.start_snapshot("", vec!["t".to_owned()])).await;
    let refused = refused.context("no answer")?.err().context("it is read twice at once")?.to_string();
    ensure!(refused.contains(&format!("tidegate snapshot resume {first}")), "{refused}");
    let mut copier = Copier::new(&server.endpoint(), &["t"], Start::Snapshot);
    client.resume_snapshot("", first).await?;
    copier.until_snapshot_end().await?;
    must_count_equal("t", &copier.replica.counts("public.t"), &counted_by_postgres(&database, "t").await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_starts_another_beside_one_that_runs_is_told_which() -> Result<()> {
    let (database, _control, server) = slow("beside").await?;
    database.execute("insert into t select n % 100, repeat('c', 200) from generate_series(1, 96000) n").await?;
    let mut asks = Copier::new(&server.endpoint(), &["t"], Start::Now).with_snapshots();
    asks.until_open().await?;
    let client = server.client().await?;
    let first = client.start_snapshot("", vec!["t".to_owned()]).await?.snapshot;
    until_read(&mut asks).await?;
    let refused = tokio::time::timeout(DEADLINE, client.start_snapshot("", vec!["t".to_owned()])).await;
    let refused = refused.context("no answer")?.err().context("it is read twice at once")?.to_string();
    ensure!(refused.contains(&format!("read by snapshot {first}")) && refused.contains("by itself"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_empty_when_its_pass_began_is_read_as_it_was() -> Result<()> {
    let (database, _control, server) = slow("empty").await?;
    database.execute("truncate t").await?;
    let mut copier = Copier::new(&server.endpoint(), &["t"], Start::Snapshot);
    copier.until_snapshot_end().await?;
    database.execute("insert into t values (1, 'one')").await?;
    copier.until_caught_up(&database).await?;
    must_count_equal("t", &copier.replica.counts("public.t"), &counted_by_postgres(&database, "t").await?)
}
