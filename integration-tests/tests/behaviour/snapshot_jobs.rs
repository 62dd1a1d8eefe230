//! Snapshots as jobs: each start brings the rows to who is subscribed then, whatever runs already, and a job is done once, whenever
//! the server is killed.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{MirrorState, SnapshotPart, SnapshotRows, SnapshotState, SourceStatus, Start};
use tidegate_integration_tests::{Arrival, Cluster, Copier, Database, Seed, Server, ServerConfig, Writers, within};

/// A table `t`, and a server that reads 500 rows of it a second, whose control database is elsewhere.
async fn slow(name: &str) -> Result<(Database, Database, Server)> {
    slow_in(Cluster::shared().await?, name).await
}

async fn slow_in(cluster: &Cluster, name: &str) -> Result<(Database, Database, Server)> {
    let database = cluster.database(name).await?;
    let control = cluster.database(&format!("{name}_control")).await?;
    database.create_marker().await?;
    database.execute("create table t (id int primary key); insert into t select generate_series(1, 1500)").await?;
    let mut config = ServerConfig::of(database.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 500}".to_owned());
    Ok((database, control, Server::start(config).await?))
}

async fn open(server: &Server) -> Result<Copier> {
    let mut copier = Copier::new(&server.endpoint(), &["t", "marker"], Start::Now).with_snapshots();
    copier.until_open().await?;
    Ok(copier)
}

fn all_of(table: &str) -> SnapshotPart {
    SnapshotPart { table: table.to_owned(), rows: Some(SnapshotRows::Where("id > 0".to_owned())) }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_subscribes_and_starts_what_runs_already_receives_all_of_it() -> Result<()> {
    let (_database, _control, server) = slow("started_twice").await?;
    let client = server.client().await?;
    let mut early = open(&server).await?;
    let first = client.start_snapshot_of_parts("", vec![all_of("t")]).await?.snapshot;
    early.until("the first row", |_, held| held.read_count > 0).await?;
    let mut late = open(&server).await?;
    let second = client.start_snapshot_of_parts("", vec![all_of("t")]).await?.snapshot;
    ensure!(first != second, "it is the one that has begun before the subscription");
    late.until("the end of the second", |arrival, _| *arrival == Arrival::Ended(second)).await?;
    ensure!(late.replica.table("public.t").len() == 1500, "{} rows", late.replica.table("public.t").len());
    early.until("the end of the second, too", |arrival, _| *arrival == Arrival::Ended(second)).await?;
    ensure!(early.replica.read_count == 3000, "{} rows of both", early.replica.read_count);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_end_could_not_be_recorded_before_a_crash_is_not_made_again() -> Result<()> {
    let (database, control, mut server) = slow("ended_once").await?;
    let client = server.client().await?;
    let mut copier = open(&server).await?;
    let number = client.start_snapshot_of_parts("", vec![all_of("t")]).await?.snapshot;
    copier.until("the first row", |_, held| held.read_count > 0).await?;
    // Its end can be written, and not recorded.
    control.execute("begin; lock table tidegate.snapshot in share row exclusive mode").await?;
    copier.until("the end", |arrival, _| *arrival == Arrival::Ended(number)).await?;
    server.kill().await?;
    // What the server had asked for must not be done after its death.
    let ended = format!(
        "select count(pg_terminate_backend(pid))::text from pg_stat_activity where application_name like 'tidegate%' and datname = '{}'",
        control.name()
    );
    within("the killed server's sessions to end", || async {
        Ok((database.text(&ended).await?.as_deref() == Some("0")).then_some(()))
    })
    .await?;
    control.execute("rollback").await?;
    server.launch().await?;
    server.streaming().await?;
    let client = server.client().await?;
    within("the snapshot to be done", || async {
        let status = client.snapshots("").await?.into_iter().find(|status| status.snapshot == number);
        Ok((status.context("it is listed")?.state() == SnapshotState::Done).then_some(()))
    })
    .await?;
    let reads = copier.replica.read_count;
    database.mark("after").await?;
    let key = ["after".to_owned()];
    let marked = copier.until("the marker", |arrival, held| {
        matches!(arrival, Arrival::Begun(_)) || held.table_row("public.marker", &key).is_some()
    });
    ensure!(!matches!(marked.await?, Arrival::Begun(_)), "it begins again");
    ensure!(copier.replica.read_count == reads && reads == 1500, "{} rows were read", copier.replica.read_count);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_snapshot_is_recorded_as_soon_as_it_can_be() -> Result<()> {
    let (_database, control, server) = slow("recorded_later").await?;
    let client = server.client().await?;
    let mut copier = open(&server).await?;
    let number = client.start_snapshot_of_parts("", vec![all_of("t")]).await?.snapshot;
    copier.until("the first row", |_, held| held.read_count > 0).await?;
    control.execute("begin; lock table tidegate.snapshot in share row exclusive mode").await?;
    copier.until("the end", |arrival, _| *arrival == Arrival::Ended(number)).await?;
    within("the server to go on without", || async {
        let status = client.snapshots("").await?.into_iter().find(|status| status.snapshot == number);
        Ok((status.context("it is listed")?.state() == SnapshotState::Done).then_some(()))
    })
    .await?;
    control.execute("rollback").await?;
    let recorded = format!("select state from tidegate.snapshot where snapshot = {number}");
    within("the end to be recorded", || async { Ok(control.text(&recorded).await?.filter(|state| state == "done")) })
        .await?;
    Ok(())
}

/// A snapshot that was planned before another history began belongs to the one in which it was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_another_history_overtakes_never_begins() -> Result<()> {
    /// How long a plan takes, at most; nobody tells that it has been made.
    const PLANNING: Duration = Duration::from_secs(1);
    // An own one: whoever makes a slot waits for the open transaction.
    let cluster = Cluster::start(&[]).await?;
    let (database, _control, server) = slow_in(&cluster, "overtaken").await?;
    server.streaming().await?;
    let (open_transaction, publication) = (database.another().await?, server.slot());
    let mut before = open(&server).await?;
    open_transaction.execute("begin; select pg_current_xact_id()").await?;
    database.execute(&format!("alter publication {publication} drop table marker")).await?;
    database.mark("lost").await?;
    database.execute(&format!("alter publication {publication} add table marker")).await?;
    // The new history's slot waits for the open transaction, and the stream with it.
    let waits = "select count(*)::text from pg_stat_activity where query like 'CREATE_REPLICATION_SLOT%' and wait_event_type = 'Lock' \
                 and datname = current_database()";
    within("the new slot to wait", || async { Ok(database.text(waits).await?.filter(|count| count == "1")) }).await?;
    let client = server.client().await?;
    let starting =
        tokio::task::JoinSet::from_iter([async move { client.start_snapshot("", vec!["t".to_owned()]).await }]);
    tokio::time::sleep(PLANNING).await;
    open_transaction.execute("rollback").await?;
    before.until("another history", |arrival, _| matches!(arrival, Arrival::Reset(..))).await?;
    server.streaming().await?;
    let mut after = Copier::new(&server.endpoint(), &["t", "marker"], Start::Earliest).with_snapshots();
    for started in starting.join_all().await {
        ensure!(started.is_err(), "it has begun: {started:?}");
    }
    // Whatever was ordered before has come by then.
    let client = server.client().await?;
    let next = client.start_snapshot_of_parts("", vec![all_of("t")]).await?.snapshot;
    let begun = after.until("the next snapshot's begin", |arrival, _| matches!(arrival, Arrival::Begun(_))).await?;
    ensure!(begun == Arrival::Begun(next), "{begun:?} comes before snapshot {next}");
    Ok(())
}

/// Subscriptions that ask for the same share one pass, whenever they come: PostgreSQL is read once, and each has every row.
#[tokio::test(flavor = "multi_thread")]
async fn who_starts_from_a_snapshot_that_runs_shares_it() -> Result<()> {
    let (database, _control, mut server) = slow("shared_pass").await?;
    let mut copiers = Vec::new();
    for _ in 0..3 {
        let mut copier = Copier::new(&server.endpoint(), &["t"], Start::Snapshot);
        let Arrival::Begun(number) =
            copier.until("its begin", |arrival, _| matches!(arrival, Arrival::Begun(_))).await?
        else {
            unreachable!("it was waited for")
        };
        copier.until("rows", |_, held| held.read_count > 0).await?;
        copiers.push((number, copier));
    }
    let first = copiers[0].0;
    for (number, copier) in &mut copiers {
        ensure!(*number == first && copier.until_snapshot_end().await? == first, "snapshot {number}, not {first}");
        ensure!(copier.replica.read_count == 1500, "{} rows", copier.replica.read_count);
        ensure!(copier.replica.table("public.t").len() == 1500);
    }
    // Who comes behind its end has one of its own.
    let mut late = Copier::new(&server.endpoint(), &["t"], Start::Snapshot);
    ensure!(late.until_snapshot_end().await? != first);
    drop((copiers, late));
    server.terminate().await?;
    // What a session has done is told when it ends at the latest.
    let read = "select (seq_tup_read + coalesce(idx_tup_fetch, 0))::text from pg_stat_user_tables where relname = 't'";
    within("the rows to be counted", || async {
        let read: u32 = database.another().await?.text(read).await?.context("statistics")?.parse()?;
        ensure!(read <= 3000, "{read} rows were read for two snapshots of 1500");
        Ok((read == 3000).then_some(()))
    })
    .await
}

/// The server asks for a table's mirror, and someone subscribes before that snapshot has begun.
async fn subscribed_before_it_begins(table: &str, sql: &str) -> Result<(Server, Copier)> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database(&format!("shared_begin_{table}")).await?;
    let control = cluster.database(&format!("shared_begin_{table}_control")).await?;
    database.execute(sql).await?;
    let mut config = ServerConfig::of(database.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    let mut server = Server::start(config).await?;
    server.streaming().await?;
    server.terminate().await?;
    // Nothing is known of the table any more, and what is asked for cannot be recorded.
    std::fs::remove_dir_all(server.scratch("data"))?;
    control.execute("begin; lock table tidegate.snapshot in share row exclusive mode").await?;
    server.config_mut().source_lines.push(format!("mirror: [{table}]"));
    server.launch().await?;
    within("the server to ask", || async {
        let waits = "select count(*) filter (where not granted)::text from pg_locks where relation = 'tidegate.snapshot'::regclass";
        Ok(control.text(waits).await?.is_some_and(|count| count == "1").then_some(()))
    })
    .await?;
    let mut copier = Copier::new(&server.endpoint(), &[table], Start::Snapshot);
    // Until it begins, nothing tells that it is waited for.
    ensure!(tokio::time::timeout(Duration::from_secs(2), copier.until_open()).await.is_err(), "it has begun");
    control.execute("commit").await?;
    copier.until_snapshot_end().await?;
    let count = server.client().await?.snapshots("").await?.len();
    ensure!(count == 1, "{table} is read {count} times");
    Ok((server, copier))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_starts_from_a_snapshot_that_has_not_begun_shares_it() -> Result<()> {
    let sql = "create table t (id int primary key); insert into t select generate_series(1, 100)";
    let (server, copier) = subscribed_before_it_begins("t", sql).await?;
    ensure!(copier.replica.table("public.t").len() == 100);
    let is_complete = |status: &SourceStatus| status.mirror.iter().any(|of| of.state() == MirrorState::Complete);
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok(())
}

/// The server is refused it, since what has no key has no mirror, and who has joined it receives it.
#[tokio::test(flavor = "multi_thread")]
async fn who_starts_from_a_snapshot_that_is_refused_to_others_receives_it() -> Result<()> {
    let sql = "create table keyless (v int); alter table keyless replica identity full;
        insert into keyless select generate_series(1, 100)";
    let (server, copier) = subscribed_before_it_begins("keyless", sql).await?;
    ensure!(copier.replica.counts("public.keyless").len() == 100);
    let is_refused = |status: &SourceStatus| status.mirror.iter().any(|of| of.state() == MirrorState::Unsupported);
    server.until("shop", "a table that cannot be mirrored", is_refused).await?;
    Ok(())
}

/// Of tables that are truncated at once, each read tells that its table is not what it was planned as.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_tables_that_are_truncated_all_the_time_begins_once() -> Result<()> {
    /// Snapshots in a row.
    const SNAPSHOTS: usize = 25;
    /// How long one that is over could begin again.
    const AFTERWARDS: Duration = Duration::from_millis(50);
    let database = Cluster::shared().await?.database("truncated_tables").await?;
    database.execute("create table a (id int primary key); create table b (id int primary key)").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    server.streaming().await?;
    // At times it is quiet for longer than a busy machine needs for a snapshot: one can only end then.
    let truncate = |random: &mut StdRng| {
        let pause_s = if random.random_ratio(1, 20) { 2.0 } else { 0.1 };
        format!(
            "begin; truncate a, b; insert into a select generate_series(1, 500); insert into b select generate_series(1, 500); \
             commit; select pg_sleep({pause_s})"
        )
    };
    let writers = Writers::start(1, (database.url(), Seed::from_environment()), truncate);
    for _ in 0..SNAPSHOTS {
        let mut copier = Copier::new(&server.endpoint(), &["a", "b"], Start::Snapshot);
        let ended = copier.until_snapshot_end().await?;
        let afterwards = async {
            loop {
                if let Arrival::Begun(again) = copier.next().await? {
                    bail!("snapshot {again} begins after the end of {ended}");
                }
            }
        };
        if let Ok(begun) = tokio::time::timeout(AFTERWARDS, afterwards).await {
            return begun;
        }
    }
    writers.stop().await;
    Ok(())
}
