//! A full disk under the changelog: capture pauses, nothing is confirmed, serving goes on; room brings it back without a
//! restart. The disk is a small tmpfs, so the test needs the right to mount; without it, it says so and passes.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use tidegate_client::SourceState;
use tidegate_integration_tests::{Cluster, Database, Ended, Oracle, Recorder, Scratch, Server, ServerConfig};

fn mount(options: &str, at: &Path) -> bool {
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status();
    status.is_ok_and(|status| status.success())
}

/// Unmounts before the folder is removed.
struct Mounted(Scratch);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a server that is still being killed does not keep it.
        Command::new("umount").arg("-l").arg(self.0.join("mount")).status().ok();
    }
}

/// A server with its data on a disk of 32 MiB, and a subscriber that has received a row; None, with a message, where mounting
/// is not allowed.
async fn on_a_small_disk(name: &str) -> Result<Option<(Mounted, Database, Server, Oracle, Recorder)>> {
    let scratch = Scratch::new()?;
    let disk = scratch.join("mount");
    fs::create_dir(&disk)?;
    if !mount("size=32m", &disk) {
        println!("skipped: no right to mount a tmpfs");
        return Ok(None);
    }
    let mounted = Mounted(scratch);
    let database = Cluster::shared().await?.database(name).await?;
    database.execute("create table bulk (id bigint generated always as identity primary key, filler text)").await?;
    database.create_marker().await?;
    let mut config = ServerConfig::of(database.url());
    config.data_dir = Some(disk);
    let server = Server::start(config).await?;
    let oracle = Oracle::create(&database, server.slot()).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);
    Ok(Some((mounted, database, server, oracle, recorder)))
}

/// 100 MB in a thousand transactions.
const LOAD: &str = "do $$ begin for i in 1..1000 loop \
    insert into bulk (filler) select repeat('x', 1000) from generate_series(1, 100) n; commit; end loop; end $$";

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_pauses_capture_and_nothing_else() -> Result<()> {
    let Some((mounted, database, server, oracle, mut recorder)) = on_a_small_disk("disk_full").await? else {
        return Ok(());
    };
    database.execute(LOAD).await?;
    let full = server.until_state(SourceState::DiskFull).await?;
    ensure!(full.detail.contains("disk"), "'{}' does not say what is wrong", full.detail);
    let confirmed: Vec<String> = confirmed(&database, server.slot()).await?;
    let again = {
        let mut another = Recorder::new(server.endpoint());
        another.until_marker("before").await?
    };
    ensure!(again == Ended::Arrived, "a full disk must not stop serving");
    ensure!(self::confirmed(&database, server.slot()).await? == confirmed, "confirmed without having been stored");

    ensure!(mount("remount,size=512m", &mounted.0.join("mount")), "remount");
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    server.streaming().await?;
    recorder.history().must_equal(&oracle.read(&database).await?)
}

/// What did not fit is in no file when the server stops, and nothing after it either: all of it comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_with_a_full_disk_loses_nothing() -> Result<()> {
    let Some((mounted, database, mut server, oracle, mut recorder)) = on_a_small_disk("disk_full_stop").await? else {
        return Ok(());
    };
    database.execute(LOAD).await?;
    server.until_state(SourceState::DiskFull).await?;
    // It would fit where the large ones do not.
    database.mark("small").await?;
    server.terminate().await?;

    ensure!(mount("remount,size=512m", &mounted.0.join("mount")), "remount");
    server.launch().await?;
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    let expected = oracle.read(&database).await?;
    recorder.history().must_equal(&expected)?;
    let mut again = Recorder::new(server.endpoint());
    ensure!(again.until_marker("after").await? == Ended::Arrived);
    again.history().must_equal(&expected)
}

async fn confirmed(database: &Database, slot: &str) -> Result<Vec<String>> {
    let query = format!("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{slot}'");
    Ok(database.text(&query).await?.into_iter().collect())
}
