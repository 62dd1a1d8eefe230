//! What a long snapshot costs: a server killed in its midst reads again only what was in flight, the rate is kept, and PostgreSQL
//! sees short transactions, no lock but ACCESS SHARE, and no write.
//!
//! Sessions are looked at all the time, from beside: a sampler of its own, over every session of the server. How old a snapshot
//! is tells an own clock, which takes a transaction ID every few milliseconds and notes when. That the sampler would see an old
//! snapshot is shown with a table without a key, for which one is held for the length of the pass, as the manual says.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::Start;
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, Server, ServerConfig, held_by_postgres, must_equal, within,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Rows of each of the two tables.
const ROWS: u64 = 75_000;
/// A chunk has 8 MiB at most, and each row some 430 bytes of text.
const CHUNK_ROWS: u64 = 20_000;
const ROWS_PER_SECOND: u64 = 20_000;
/// A chunk's statement should take a quarter of a second. The machine has other tests to run, and where it is slower still, everything is.
const CHUNK_TIME_MAX: Duration = Duration::from_millis(2_500);

/// What was seen of the server's sessions.
#[derive(Debug, Default)]
struct Seen {
    /// The oldest snapshot of a session that holds no lock on the tables, and of one that does.
    oldest_idle: Duration,
    oldest_reader: Duration,
    /// Locks on tables, other than ACCESS SHARE, and what is said of the slot.
    heavy: BTreeSet<String>,
    /// Sessions that were seen while they held a lock on a table, and how many at once.
    readers: BTreeSet<i32>,
    readers_at_once: usize,
}

impl Seen {
    fn oldest(&self) -> Duration {
        self.oldest_idle.max(self.oldest_reader)
    }
}

/// Looks at every session of the server until it is told to stop; says whether one reads a table just now.
async fn sample(database: Database, reading: watch::Sender<bool>, stop: CancellationToken) -> Result<Seen> {
    let ticker = database.another().await?;
    let (mut seen, mut ticks) = (Seen::default(), BTreeMap::new());
    let sessions = "select a.pid, a.backend_xmin::text::bigint, l.modes, l.modes is not null and l.modes <> 'AccessShareLock' \
                    from pg_stat_activity a cross join lateral (select string_agg(distinct l.mode, ' ') as modes from pg_locks l \
                    join pg_class c on c.oid = l.relation where l.pid = a.pid and l.locktype = 'relation' and \
                    c.relnamespace = 'public'::regnamespace) l where a.application_name like 'tidegate-%'";
    let slots = "select string_agg(slot_name, ', ') from pg_replication_slots where xmin is not null";
    while !stop.is_cancelled() {
        let tick = ticker.text("select pg_current_xact_id()::text from pg_sleep(0.005)").await?.context("a tick")?;
        ticks.insert(tick.parse::<i64>()?, Instant::now());
        let mut readers = 0;
        for row in database.client().query(sessions, &[]).await? {
            let (pid, xmin): (i32, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
            let (modes, is_heavy): (Option<String>, bool) = (row.try_get(2)?, row.try_get(3)?);
            // What it sees it has seen since before the next tick that it does not see.
            let since = xmin.and_then(|xmin| ticks.range(xmin..).next()).map(|(_, since)| since.elapsed());
            let oldest = if modes.is_some() { &mut seen.oldest_reader } else { &mut seen.oldest_idle };
            *oldest = (*oldest).max(since.unwrap_or_default());
            if modes.is_some() {
                readers += 1;
                seen.readers.insert(pid);
            }
            if is_heavy {
                seen.heavy.insert(modes.unwrap_or_default());
            }
        }
        seen.heavy.extend(database.text(slots).await?.map(|slots| format!("xmin of {slots}")));
        reading.send_replace(readers > 0);
        seen.readers_at_once = seen.readers_at_once.max(readers);
    }
    Ok(seen)
}

/// How many rows of the tables PostgreSQL has read since its statistics were reset, once no session of the server is left that
/// may still tell.
async fn read_by_now(database: &Database) -> Result<u64> {
    let left = "select count(*)::text from pg_stat_activity where application_name like 'tidegate-%'";
    let read = "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::text from pg_stat_user_tables where relname like 'large%'";
    let last = Cell::new((None, 0));
    within("the server's sessions to have told what they have read", || async {
        let fresh = database.another().await?;
        if fresh.text(left).await?.as_deref() != Some("0") {
            return Ok(None);
        }
        let read: u64 = fresh.text(read).await?.context("statistics")?.parse()?;
        // Before 15, they come some time after what they count: half a second.
        let (before, times) = last.get();
        let times = if before == Some(read) { times + 1 } else { 0 };
        last.set((Some(read), times));
        Ok((times >= 25).then_some(read))
    })
    .await
}

async fn written(database: &Database) -> Result<Option<String>> {
    let written =
        "select sum(n_tup_ins + n_tup_upd + n_tup_del)::text from pg_stat_user_tables where relname like 'large%'";
    database.another().await?.text(written).await
}

/// Two tables, of which the statistics know what was written.
async fn large_tables(database: &Database) -> Result<()> {
    for table in ["large_a", "large_b"] {
        database
            .execute(&format!(
                "create table {table} (id bigint primary key, filler text); insert into {table} select n, repeat(md5(n::text), 13) \
                 from generate_series(1, {ROWS}) n; analyze {table}"
            ))
            .await?;
    }
    Ok(())
}

/// Receives until so many rows have come, or the snapshot ends.
async fn receive(copier: &mut Copier, row_count: u64) -> Result<bool> {
    let receiving = async {
        while copier.replica.read_count < row_count {
            match copier.next().await? {
                Arrival::Ended(_) => return Ok(true),
                Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
                Arrival::Begun(_) | Arrival::Committed(_) | Arrival::Abandoned(..) | Arrival::Progress => {}
            }
        }
        Ok(false)
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("the snapshot does not end")?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_large_tables_is_light_and_is_read_on_after_a_crash() -> Result<()> {
    let cluster = Cluster::start(&[("autovacuum", "off")]).await?;
    let database = cluster.database("large").await?;
    large_tables(&database).await?;
    let mut config = ServerConfig::of(database.url());
    // As many readers as there usually are.
    config.source_lines.push(format!("snapshots: {{rows_per_second: {ROWS_PER_SECOND}}}"));
    let mut server = Server::start(config).await?;
    let before = Some((2 * ROWS).to_string());
    within("the statistics to count the rows", || async { Ok((written(&database).await? == before).then_some(())) })
        .await?;
    database
        .execute("select pg_stat_reset_single_table_counters(oid) from pg_class where relname like 'large%'")
        .await?;
    let (stop, mut sampling) = (CancellationToken::new(), JoinSet::new());
    let (reading, mut is_reading) = watch::channel(false);
    sampling.spawn(sample(database.another().await?, reading, stop.clone()));
    let mut copier = Copier::new(&server.endpoint(), &["large_a", "large_b"], Start::Snapshot);
    let start = Instant::now();
    ensure!(!receive(&mut copier, ROWS).await?, "it was over too soon");
    is_reading.wait_for(|reading| *reading).await?;
    server.kill().await?;
    let (received, read_before) = (copier.replica.read_count, read_by_now(&database).await?);
    server.launch().await?;
    ensure!(receive(&mut copier, u64::MAX).await?, "it does not end");
    let took = start.elapsed();
    stop.cancel();
    let seen = sampling.join_next().await.context("spawned above")???;
    ensure!(
        took.as_secs() >= 2 * ROWS / ROWS_PER_SECOND - 2,
        "{} rows at {ROWS_PER_SECOND} a second took {took:?}",
        2 * ROWS
    );
    // A chunk is durable before a subscriber receives it.
    ensure!(copier.replica.read_count == 2 * ROWS, "{} rows were received", copier.replica.read_count);
    server.terminate().await?;
    let twice = read_by_now(&database).await? - 2 * ROWS;
    println!("{twice} rows were read twice: {read_before} were read when it was killed, {received} received; {seen:?}");
    ensure!(twice <= read_before - received, "{twice} rows were read twice, {received} of {read_before} were received");
    // Of each table one chunk is being read, and one or two wait for the stream.
    ensure!(twice <= 3 * CHUNK_ROWS, "{twice} rows were read twice");
    ensure!(written(&database).await?.as_deref() == Some("0"), "a snapshot has written");
    ensure!((1..=2).contains(&seen.readers_at_once), "readers were to be seen, two at once and no more: {seen:?}");
    ensure!(seen.heavy.is_empty(), "{:?}", seen.heavy);
    // The pass was in two parts, before and after the crash.
    ensure!(
        seen.oldest() < CHUNK_TIME_MAX.max(took / 3),
        "a snapshot was held for longer than a chunk takes: {seen:?}"
    );
    for table in ["large_a", "large_b"] {
        let theirs = held_by_postgres(&database, table, &["id"]).await?;
        must_equal(table, &copier.replica.table(&format!("public.{table}")), &theirs)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_key_holds_one_snapshot_for_its_pass_and_no_lock() -> Result<()> {
    let cluster = Cluster::start(&[("autovacuum", "off")]).await?;
    let database = cluster.database("held").await?;
    database
        .execute(
            "create table large (a int, filler text); alter table large replica identity full; \
             insert into large select n, repeat(md5(n::text), 13) from generate_series(1, 60000) n",
        )
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {rows_per_second: 10000}".to_owned());
    let server = Server::start(config).await?;
    let (stop, mut sampling) = (CancellationToken::new(), JoinSet::new());
    sampling.spawn(sample(database.another().await?, watch::Sender::new(false), stop.clone()));
    let mut copier = Copier::new(&server.endpoint(), &["large"], Start::Snapshot);
    ensure!(receive(&mut copier, u64::MAX).await?, "it does not end");
    stop.cancel();
    let seen = sampling.join_next().await.context("spawned above")???;
    println!("{seen:?}");
    ensure!(seen.heavy.is_empty() && !seen.readers.is_empty(), "{seen:?}");
    // Whoever holds the snapshot has no lock on the table.
    ensure!(seen.oldest_idle > CHUNK_TIME_MAX, "nobody holds the pass's snapshot: {seen:?}");
    // Nothing holds VACUUM back once it is over.
    let held = "select count(*)::text from pg_stat_activity where backend_xmin is not null and application_name like 'tidegate-%'";
    within("no snapshot to be held", || async {
        Ok((database.text(held).await?.as_deref() == Some("0")).then_some(()))
    })
    .await
}
