//! An own PostgreSQL for the demo: found on the machine, in a temporary folder, reached only through a socket in it.
//!
//! Invariant: when the value is dropped, on errors and panics too, the server has stopped and its folder is gone.
//! It deliberately opens no TCP port: only the user that runs the demo can connect.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidegate_postgres::{ConnectConfig, Session, TlsMode};

/// How long the server may take to start, and to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who the server runs as when the demo is run by root, which PostgreSQL refuses.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// A running server.
pub(super) struct TemporaryPostgres {
    server: Child,
    folder: TempDir,
    version: String,
}

impl TemporaryPostgres {
    /// Creates a cluster and starts its server, ready for logical replication.
    ///
    /// # Errors
    /// No PostgreSQL is installed, or it does not start; the message holds its own words.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let programs = Programs::find()?;
        let account = if geteuid().is_root() { Some(Account::unprivileged()?) } else { None };
        let folder = tempfile::Builder::new().prefix("tidegate-demo-").tempdir()?;
        if let Some(account) = account {
            chown(folder.path(), Some(account.uid), Some(account.gid))?;
        }
        let program = |name: &str| {
            let mut command = Command::new(programs.folder.join(name));
            // A group of its own: the terminal's Ctrl-C is for the demo, which stops the server when it has left it.
            command.process_group(0).current_dir(folder.path()).stdin(Stdio::null());
            if let Some(account) = account {
                command.uid(account.uid).gid(account.gid);
            }
            command
        };
        let mut initdb = program("initdb");
        initdb.args(["--pgdata=cluster", "--username=postgres", "--auth=trust", "--encoding=UTF8"]);
        initdb.args(["--locale=C", "--no-sync"]);
        let output = tokio::task::spawn_blocking(move || initdb.output()).await?.context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let log = fs::File::create(folder.path().join("server.log"))?;
        let mut server = program("postgres");
        server.args(["-D", "cluster", "-k"]).arg(folder.path());
        for setting in ["listen_addresses=", "wal_level=logical", "fsync=off", "shared_buffers=32MB", "port=5432"] {
            server.args(["-c", setting]);
        }
        let server = server.stdout(Stdio::null()).stderr(log).spawn().context("cannot run postgres")?;
        let mut this = TemporaryPostgres { server, folder, version: programs.version };
        this.wait_until_ready().await?;
        Ok(this)
    }

    /// Such as `PostgreSQL 15.20`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The temporary folder; the server's socket is in it.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How to connect to one of its databases.
    pub(super) fn connect_config(&self, database: &str) -> ConnectConfig {
        ConnectConfig {
            host: self.folder.path().display().to_string(),
            database: database.to_owned(),
            tls: TlsMode::Disable,
            ..ConnectConfig::default()
        }
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let config = self.connect_config("postgres");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match Session::connect(&config).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let exited = self.server.try_wait()?;
            if exited.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
                bail!("PostgreSQL did not start: {error}\n{}", log.trim());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has the server exited within the time?
    fn wait_for_exit(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match self.server.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) | Err(_) => return true,
            }
        }
        false
    }
}

impl Drop for TemporaryPostgres {
    /// PostgreSQL manual, section 19.5: SIGINT is a fast shutdown, SIGQUIT an immediate one.
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.server);
        for signal in [Signal::INT, Signal::QUIT, Signal::KILL] {
            let sent = kill_process(pid, signal);
            if sent.is_err() || self.wait_for_exit(PATIENCE / 3) {
                break;
            }
        }
    }
}

/// The server's programs.
struct Programs {
    folder: PathBuf,
    /// As `postgres --version` says.
    version: String,
}

impl Programs {
    fn find() -> anyhow::Result<Self> {
        if let Some(folder) = std::env::var_os("TIDEGATE_PG_BIN").map(PathBuf::from) {
            return Self::at(&folder)
                .with_context(|| format!("TIDEGATE_PG_BIN: no initdb and postgres that run in {}", folder.display()));
        }
        candidates().iter().find_map(|folder| Self::at(folder)).context(
            "no PostgreSQL server (14 or newer) found; install one (Debian and Ubuntu: apt-get install postgresql, Fedora: dnf \
             install postgresql-server, macOS: brew install postgresql), or set TIDEGATE_PG_BIN to the folder of its \
             programs initdb and postgres",
        )
    }

    /// The programs in a folder, if they are there, run, and are new enough.
    fn at(folder: &Path) -> Option<Self> {
        if !folder.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&output.stdout).trim().replace("postgres (PostgreSQL)", "PostgreSQL");
        let number = version.split_whitespace().nth(1)?;
        let major: u32 = number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        (major >= 14).then(|| Programs { folder: folder.to_owned(), version: format!("PostgreSQL {number}") })
    }
}

/// Folders that may hold the programs, the best first.
fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    // Debian keeps each major version in a folder of its own, outside of PATH.
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let major = path.file_name()?.to_str()?.parse().ok()?;
            Some((major, path.join("bin")))
        })
        .collect();
    versions.sort_unstable_by_key(|(major, _)| std::cmp::Reverse(*major));
    folders.extend(versions.into_iter().map(|(_, folder)| folder));
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders
}

/// A user to run the server as.
#[derive(Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    fn unprivileged() -> anyhow::Result<Self> {
        let passwd = fs::read_to_string("/etc/passwd").context("cannot look up an unprivileged user")?;
        UNPRIVILEGED.iter().find_map(|name| Self::of(&passwd, name)).context(
            "PostgreSQL does not run as root, and neither of the users postgres and nobody exists; run the demo as an \
             ordinary user",
        )
    }

    /// From passwd(5): `name:password:uid:gid:…`
    fn of(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            Some(Account { uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\nnobody2:x:9:9::/:\nnobody:x:65534:65533:n:/:/sbin/nologin\n";
        let account = Account::of(passwd, "nobody").expect("is there");
        assert_eq!((account.uid, account.gid), (65534, 65533));
        assert!(Account::of(passwd, "postgres").is_none());
    }
}
