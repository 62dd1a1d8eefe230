//! A real PostgreSQL server on a temporary folder and a free port.
//!
//! One is shared by the tests of a process that only need a database; those that stop, freeze or restore a server start
//! their own. fsync is off: these tests kill processes, not machines, and what a process has written stays.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::OnceCell;

use crate::{Database, HeldProcess, Installation, Process, Scratch, Signal, port::free_port, within};

const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("max_replication_slots", "500"),
    ("max_wal_senders", "500"),
    ("max_connections", "600"),
    ("shared_buffers", "128MB"),
    ("max_wal_size", "2GB"),
    ("fsync", "off"),
    ("log_min_messages", "warning"),
];

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Orderly: sessions end, all WAL is sent.
    Fast,
    /// As in a crash: recovery follows.
    Immediate,
}

/// A PostgreSQL server.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) installation: Installation,
    pub(crate) scratch: Scratch,
    pub(crate) port: u16,
    process: Option<Process>,
}

/// A copy of a stopped server's files.
#[derive(Debug)]
pub struct Image(PathBuf);

static SHARED: OnceCell<Cluster> = OnceCell::const_new();

impl Cluster {
    /// The server that the tests of this process share. Nobody may stop it.
    ///
    /// # Errors
    /// No programs, or it does not start.
    pub async fn shared() -> Result<&'static Cluster> {
        SHARED.get_or_try_init(|| Cluster::start(&[])).await
    }

    /// A new server of one's own, with settings on top of the usual.
    ///
    /// # Errors
    /// No programs, or it does not start.
    pub async fn start(settings: &[(&str, &str)]) -> Result<Cluster> {
        Cluster::started(Cluster::stopped(Installation::find()?, Scratch::new()?)?, "C", settings).await
    }

    /// A new server whose databases have a locale of the operating system's, which is compiled for it: it need not be installed.
    ///
    /// # Errors
    /// As of starting; the locale's sources are not there.
    pub async fn start_in(locale: &str) -> Result<Cluster> {
        let mut cluster = Cluster::stopped(Installation::find()?, Scratch::new()?)?;
        let folder = cluster.scratch.join("locales");
        fs::create_dir(&folder)?;
        let (name, encoding) = locale.split_once('.').context("a locale with its encoding")?;
        let mut localedef = Command::new("localedef");
        localedef.args(["-i", name, "-f", encoding]).arg(folder.join(locale));
        run(localedef).context("the locale's sources are in Debian's package `locales`")?;
        cluster.installation.locales = Some(folder);
        Cluster::started(cluster, locale, &[]).await
    }

    async fn started(mut cluster: Cluster, locale: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
        let data = cluster.data();
        fs::create_dir(&data)?;
        cluster.installation.own(&data)?;
        let mut initdb = cluster.installation.command("initdb");
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]);
        initdb.arg(format!("--locale={locale}"));
        run(initdb)?;
        cluster.configure(SETTINGS)?;
        cluster.configure(settings)?;
        cluster.launch().await?;
        Ok(cluster)
    }

    /// Appends settings; they hold from the next start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        let path = self.data().join("postgresql.conf");
        let mut text = fs::read_to_string(&path)?;
        for (name, value) in settings {
            text.push_str(&format!("{name} = '{value}'\n"));
        }
        Ok(fs::write(path, text)?)
    }

    /// Puts these lines into the place of pg_hba.conf's; they hold from the next reload.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn allow(&self, lines: &str) -> Result<()> {
        Ok(fs::write(self.data().join("pg_hba.conf"), lines)?)
    }

    /// Starts it again, on the same port, and waits until it answers.
    ///
    /// # Errors
    /// It ends by itself, or does not answer; the error holds what it printed.
    pub async fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "PostgreSQL is running already");
        let data = self.data();
        let mut postgres = self.installation.command("postgres");
        postgres.arg("-D").arg(&data).arg("-k").arg(&data).arg("-p").arg(self.port.to_string());
        let mut process = Process::start(postgres, self.scratch.path(), "postgres")?;
        loop {
            if let Some(status) = process.ended()? {
                bail!("PostgreSQL ended with {status}; it printed:\n{}", process.log_tail());
            }
            if Database::connect(&self.url("postgres")).await.is_ok() {
                self.process = Some(process);
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        }
    }

    /// All that it has printed.
    ///
    /// # Errors
    /// It does not run.
    pub fn log(&self) -> Result<String> {
        Ok(self.process.as_ref().context("PostgreSQL does not run")?.log())
    }

    /// Stops it.
    ///
    /// # Errors
    /// It does not run, or does not end within a minute.
    pub async fn stop(&mut self, how: Stop) -> Result<()> {
        let signal = match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        self.process.take().context("PostgreSQL does not run")?.stop(signal).await?;
        Ok(())
    }

    /// Stops it and starts it again.
    ///
    /// # Errors
    /// As of stopping and starting.
    pub async fn restart(&mut self, how: Stop) -> Result<()> {
        self.stop(how).await?;
        self.launch().await
    }

    /// Stops it, keeps a copy of its files as a disk image would, and starts it again.
    ///
    /// # Errors
    /// As of stopping, copying and starting.
    pub async fn image(&mut self) -> Result<Image> {
        self.stop(Stop::Fast).await?;
        let image = Image(self.scratch.join("image"));
        copy(&self.data(), &image.0)?;
        self.launch().await?;
        Ok(image)
    }

    /// Stops it and puts the copy in its place: same system identifier, same timeline, an earlier state.
    ///
    /// # Errors
    /// As of stopping, copying and starting.
    pub async fn restore(&mut self, image: &Image) -> Result<()> {
        self.stop(Stop::Immediate).await?;
        fs::remove_dir_all(self.data())?;
        copy(&image.0, &self.data())?;
        self.launch().await
    }

    /// Connection URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates a database and connects to it.
    ///
    /// # Errors
    /// It exists, or the server does not answer.
    pub async fn database(&self, name: &str) -> Result<Database> {
        self.database_in(name, "UTF8").await
    }

    /// Creates a database with another encoding and connects to it.
    ///
    /// # Errors
    /// It exists, or the server does not answer.
    pub async fn database_in(&self, name: &str, encoding: &str) -> Result<Database> {
        let postgres = Database::connect(&self.url("postgres")).await?;
        // template0 has no sessions that could be in the way when two tests create at once.
        postgres.execute(&format!("create database {name} template template0 encoding '{encoding}'")).await?;
        Database::connect(&self.url(name)).await
    }

    /// Waits until the slot is streamed from, by a walsender other than `not`; returns the walsender's pid.
    ///
    /// # Errors
    /// It is not within the deadline.
    pub async fn walsender(&self, slot: &str, not: Option<i32>) -> Result<i32> {
        let postgres = Database::connect(&self.url("postgres")).await?;
        let query = format!("select active_pid::text from pg_replication_slots where slot_name = '{slot}'");
        within("a walsender for the slot", || async {
            let pid = postgres.text(&query).await?.and_then(|text| text.parse::<i32>().ok());
            Ok(pid.filter(|pid| Some(*pid) != not))
        })
        .await
    }

    /// The background writer, which does nothing until what is returned is dropped: what it writes now and then has slots saved.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn held_background_writer(&self) -> Result<HeldProcess> {
        let postgres = Database::connect(&self.url("postgres")).await?;
        let query = "select pid::text from pg_stat_activity where backend_type = 'background writer'";
        let pid = within("a background writer", || async {
            Ok(postgres.text(query).await?.and_then(|text| text.parse::<i32>().ok()))
        });
        HeldProcess::new(pid.await?)
    }

    /// A server that does not run yet; its files are, or will be, in the folder's `data`.
    pub(crate) fn stopped(installation: Installation, scratch: Scratch) -> Result<Self> {
        Ok(Cluster { installation, scratch, port: free_port()?, process: None })
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.join("data")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Its children notice the death of the postmaster and end by themselves.
        self.process.take();
    }
}

/// Copies a folder with owners and modes.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = Command::new("cp");
    cp.arg("-a").arg(from).arg(to);
    run(cp)
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
