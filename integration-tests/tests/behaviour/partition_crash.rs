//! PostgreSQL crashes after a table has become a partition, or has ceased to be one, and its slot falls back behind that: the table's rows
//! come as what they are now, whether the server was there all the time or not.
//!
//! PostgreSQL 14 is what this is about: over a connection it goes on to send a table as what it was when its first row was decoded.

use anyhow::{Context, Result, bail, ensure};
use tidegate_integration_tests::{
    Cluster, Database, Ended, Recorder, Seed, Server, ServerConfig, Stop, Writers, within,
};
use tidegate_model::Lsn;

use super::{
    discontinuity::must_reset,
    mirror_altered::{ALL, PARTITIONED, Stage},
};

const ATTACH: &str = "alter table t attach partition t3 for values from (5000) to (6000)";
const DETACH: &str = "alter table t detach partition t3";

/// WAL that is no transaction, as every server writes some.
const TICK: &str = "select pg_create_restore_point('tick'), pg_sleep(0.05)";

/// What happens besides in a round.
struct Round {
    ddl: &'static str,
    /// The server does not see the crash.
    is_down: bool,
    /// A transaction comes between the schema change and the crash; else the last one is the schema change.
    is_written: bool,
}

const ROUNDS: [Round; 4] = [
    Round { ddl: ATTACH, is_down: true, is_written: false },
    Round { ddl: DETACH, is_down: false, is_written: false },
    Round { ddl: ATTACH, is_down: false, is_written: true },
    Round { ddl: DETACH, is_down: true, is_written: true },
];
/// Where a slot stands may be written to the disk at any time, and it does not fall back then.
const ROUNDS_MAX: usize = 20;

async fn lsn(database: &Database, of: &str) -> Result<Lsn> {
    let text = database.text(&format!("select ({of})::text")).await?.context("an LSN")?;
    text.parse().ok().context("an LSN")
}

/// The schema change, the crash, and what is written about both. Has the slot fallen back behind the schema change, where that is known?
async fn round(cluster: &mut Cluster, stage: &mut Stage, (n, round): (usize, &Round)) -> Result<bool> {
    let Round { ddl, is_down, is_written } = round;
    let write = |part: usize| {
        let id = 5500 + 10 * n + part;
        let old = id - 400;
        format!(
            "update t3 set c = c + 1 where id % 7 = {part}; delete from t3 where id = {old}; insert into t3 values ({id}, 1)"
        )
    };
    let background_writer = cluster.held_background_writer().await?;
    let before_lsn = lsn(&stage.database, "pg_current_wal_insert_lsn()").await?;
    stage.database.execute(&write(0)).await?;
    stage.database.execute(ddl).await?;
    stage.converges().await.with_context(|| format!("{n}: {ddl}"))?;
    if *is_written {
        stage.database.execute(&write(1)).await?;
        stage.copier.until_caught_up(&stage.database).await?;
    }
    if *is_down {
        stage.server.kill().await?;
        stage.copier.drop_connection();
    }
    drop(background_writer);
    cluster.restart(Stop::Immediate).await?;
    stage.database = Database::connect(stage.database.url()).await?;
    // What comes first over the next connection.
    stage.database.execute(&write(2)).await?;
    let mut has_fallen_back = false;
    if *is_down {
        let slot = stage.server.slot();
        let stands_at = format!("select confirmed_flush_lsn from pg_replication_slots where slot_name = '{slot}'");
        has_fallen_back = lsn(&stage.database, &stands_at).await? <= before_lsn;
        stage.server.launch().await?;
        stage.copier.moved_to(&stage.server.endpoint());
    }
    stage.converges().await.with_context(|| format!("{n}: crash after {ddl}"))?;
    stage.database.execute(&write(3)).await?;
    stage.converges().await.with_context(|| format!("{n}: after the crash after {ddl}"))?;
    Ok(has_fallen_back)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_partitions_come_as_what_they_are_after_a_crash_of_postgresql() -> Result<()> {
    let mut cluster = Cluster::start(&[("checkpoint_timeout", "1h")]).await?;
    let mut stage = Stage::on(&cluster, "crash", PARTITIONED, (ALL, "t"), &[]).await?;
    let ticks = Writers::start(1, (stage.database.url(), Seed::from_environment()), |_| TICK.to_owned());
    let mut fallen_back = [false; ROUNDS.len()];
    for n in 0..ROUNDS_MAX {
        let kind = n % ROUNDS.len();
        fallen_back[kind] |= round(&mut cluster, &mut stage, (n, &ROUNDS[kind])).await?;
        let is_known = |(kind, round): (usize, &Round)| fallen_back[kind] || !round.is_down;
        if kind + 1 == ROUNDS.len() && ROUNDS.iter().enumerate().all(is_known) {
            ticks.stop().await;
            // Where nothing was written behind the schema change, what was written before it had to come again first.
            let is_passed = stage.server.process()?.log().contains("what is stored is continued behind them");
            ensure!(is_passed || stage.database.server_version().await? >= 15, "the server has passed nothing over");
            return Ok(());
        }
    }
    bail!("the slot has not fallen back behind a schema change: {fallen_back:?}")
}

/// Up to where the slot is passed over stands in another database, and is not restored. Is there something in the history that is lost
/// which has to come again?
async fn an_image_is_restored(name: &str, loses_rows: bool) -> Result<()> {
    let mut cluster = Cluster::start(&[]).await?;
    let control = Cluster::shared().await?.database(&format!("{name}_control")).await?;
    let mut database = cluster.database(name).await?;
    database.create_marker().await?;
    database.execute(PARTITIONED).await?;
    let mut config = ServerConfig::of(database.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    let mut server = Server::start(config).await?;
    database.mark("before the image").await?;
    server.kill().await?;
    let image = cluster.image().await?;
    database = Database::connect(database.url()).await?;
    server.launch().await?;
    let mut recorder = Recorder::new(server.endpoint());
    ensure!(recorder.until_marker("before the image").await? == Ended::Arrived);
    if loses_rows {
        database.mark("in the lost history").await?;
        ensure!(recorder.until_marker("in the lost history").await? == Ended::Arrived);
    }
    database.execute("create table t4 partition of t for values from (7000) to (8000)").await?;
    let behind_lsn = lsn(&database, "pg_current_wal_insert_lsn()").await?;
    if database.server_version().await? < 15 {
        let is_behind = format!("select (partitions_lsn >= '{behind_lsn}')::text from tidegate.source");
        within("what is behind the change is recorded", || async {
            database.execute(TICK).await?;
            Ok((control.text(&is_behind).await? == Some("true".to_owned())).then_some(()))
        })
        .await?;
    }
    server.terminate().await?;
    let received_lsn = lsn(&database, "pg_current_wal_insert_lsn()").await?;
    cluster.restore(&image).await?;
    database = Database::connect(database.url()).await?;
    // Before what is passed over ends, and nothing until behind all that was received.
    for row in 0..20 {
        database.mark(&format!("in the new history {row}")).await?;
    }
    ensure!(lsn(&database, "pg_current_wal_insert_lsn()").await? < behind_lsn, "too much for what was there");
    database.execute("select pg_switch_wal()").await?;
    database.mark("later in the new history").await?;
    ensure!(lsn(&database, "pg_current_wal_insert_lsn()").await? > received_lsn, "too little for what was there");
    server.launch().await?;
    if loses_rows {
        return must_reset(&database, &server, &mut recorder).await;
    }
    // Nothing of what is stored is contradicted: all of it comes, or it is told that something may be missing.
    for row in 0..20 {
        if let Ended::Reset(..) = recorder.until_marker(&format!("in the new history {row}")).await? {
            return Ok(());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_disk_image_resets_though_its_slot_is_passed_over() -> Result<()> {
    an_image_is_restored("partition_image", true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_disk_image_that_lacks_nothing_of_what_is_stored_loses_nothing() -> Result<()> {
    an_image_is_restored("partition_image_whole", false).await
}
