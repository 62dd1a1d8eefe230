//! An fsync that fails. The kernel then drops the pages that it could not write and reports the error once: a second fsync
//! succeeds although the data is gone. So nothing may be confirmed to PostgreSQL from there on, nothing may be synced again
//! as if it were fine, and a restart goes on from what had been synced before.
//!
//! A library in front of libc's plays the kernel: the first sync after a file appears fails, the later ones succeed, and
//! before the restart the test takes away what had not been synced, as a crash of the machine would.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use tidegate_integration_tests::{Cluster, Database, Ended, Oracle, Recorder, Scratch, Server, ServerConfig};

const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static off_t synced[4096];

/* FAIL_WHEN is removed by the sync that fails; FAIL_RECORD then tells of which file how much is safe. */
static int run(long call, int fd) {
  char link[64], path[PATH_MAX] = "";
  struct stat data;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length > 0 && strstr(path, getenv("FAIL_PATH")) && fstat(fd, &data) == 0 && fd < 4096) {
    pthread_mutex_lock(&lock);
    int fails = unlink(getenv("FAIL_WHEN")) == 0;
    if (fails) {
      FILE *record = fopen(getenv("FAIL_RECORD"), "w");
      if (record) { fprintf(record, "%lld %s", (long long) synced[fd], path); fclose(record); }
    } else {
      synced[fd] = data.st_size;
    }
    pthread_mutex_unlock(&lock);
    if (fails) { errno = atoi(getenv("FAIL_ERRNO")); return -1; }
  }
  return syscall(call, fd);
}

int fsync(int fd) { return run(SYS_fsync, fd); }
int fdatasync(int fd) { return run(SYS_fdatasync, fd); }
"#;

/// Where the library is and what steers it; None, with a message, where there is no C compiler.
struct FailingDisk(Scratch);

impl FailingDisk {
    fn new() -> Result<Option<Self>> {
        let scratch = Scratch::new()?;
        fs::write(scratch.join("fails.c"), LIBRARY)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(scratch.join("fails.so")).arg(scratch.join("fails.c"));
        match compiler.arg("-ldl").output() {
            Ok(output) => {
                ensure!(output.status.success(), "cc: {}", String::from_utf8_lossy(&output.stderr));
                Ok(Some(FailingDisk(scratch)))
            }
            Err(error) => {
                println!("skipped: there is no cc to build a failing fsync with ({error})");
                Ok(None)
            }
        }
    }

    /// For syncs of files whose path holds `path`.
    fn environment(&self, path: &str, errno: i32) -> Vec<(String, String)> {
        let own = |name: &str| self.0.join(name).display().to_string();
        let variables = [
            ("LD_PRELOAD", own("fails.so")),
            ("FAIL_WHEN", own("now")),
            ("FAIL_RECORD", own("failed")),
            ("FAIL_PATH", path.to_owned()),
            ("FAIL_ERRNO", errno.to_string()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn fail_next(&self) -> Result<()> {
        Ok(fs::write(self.0.join("now"), "")?)
    }

    /// Takes away what was not synced.
    fn crash(&self) -> Result<PathBuf> {
        let record = fs::read_to_string(self.0.join("failed")).context("no sync has failed")?;
        let (size, path) = record.split_once(' ').context("size and path")?;
        let path = PathBuf::from(path);
        if path.is_file() {
            fs::File::options().write(true).open(&path)?.set_len(size.parse()?)?;
        }
        Ok(path)
    }
}

async fn confirmed(database: &Database, slot: &str) -> Result<Option<String>> {
    let query = format!("select confirmed_flush_lsn::text from pg_replication_slots where slot_name = '{slot}'");
    database.text(&query).await
}

/// `provoke` makes the server sync a file whose path holds `path`; that sync fails.
async fn a_failed_sync_loses_nothing(name: &str, path: &str, errno: i32, provoke: &str) -> Result<()> {
    let Some(disk) = FailingDisk::new()? else { return Ok(()) };
    let database = Cluster::shared().await?.database(name).await?;
    database.create_marker().await?;
    database.execute("create table other (id int primary key)").await?;
    let mut config = ServerConfig::of(database.url());
    config.environment = disk.environment(path, errno);
    let mut server = Server::start(config).await?;
    let oracle = Oracle::create(&database, server.slot()).await?;
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("before").await?;
    ensure!(recorder.until_marker("before").await? == Ended::Arrived);
    // From here on nothing is being synced: the marker is, and nothing follows it.
    server.until("shop", "durable", |status| status.durable_lsn == head_lsn(&status.head_position)).await?;

    disk.fail_next()?;
    let end = database.text("select pg_current_wal_lsn()::text").await?.context("a position")?;
    database.execute(provoke).await?;
    let printed = server.failed().await?;
    ensure!(printed.contains("cannot ") && printed.contains("restart the server"), "no clear error in:\n{printed}");
    let failed = disk.crash()?;
    ensure!(printed.contains(&failed.display().to_string()), "{} is not named in:\n{printed}", failed.display());
    let confirmed = confirmed(&database, server.slot()).await?.context("the slot")?;
    let beyond = format!("select ('{confirmed}'::pg_lsn > '{end}')::text");
    ensure!(database.text(&beyond).await?.as_deref() == Some("false"), "{confirmed} is confirmed, beyond {end}");

    server.launch().await?;
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    let expected = oracle.read(&database).await?;
    recorder.history().must_equal(&expected)?;
    // What is stored is the same: it is read again from the start.
    let mut again = Recorder::new(server.endpoint());
    ensure!(again.until_marker("after").await? == Ended::Arrived);
    again.history().must_equal(&expected)
}

fn head_lsn(position: &str) -> &str {
    position.split(':').next().unwrap_or_default()
}

const MORE: &str = "insert into marker select 'more ' || n from generate_series(1, 100) n";

#[tokio::test(flavor = "multi_thread")]
async fn of_a_segment() -> Result<()> {
    a_failed_sync_loses_nothing("fsync_segment", ".log", 5, MORE).await
}

/// ENOSPC at an fsync is no full disk that one may wait for: the pages are gone all the same.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_segment_for_want_of_room() -> Result<()> {
    a_failed_sync_loses_nothing("fsync_room", ".log", 28, MORE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_row_types() -> Result<()> {
    a_failed_sync_loses_nothing("fsync_row_types", "row_types", 5, "insert into other values (1)").await
}
