//! The real `tidegate` binary as a child process, on a temporary data folder and free ports.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::{Client, SourceState, SourceStatus};

use crate::{Process, Scratch, Signal, cluster::copy, port::free_port, tidegate_binary, within};

/// The source's name in these tests.
const SOURCE: &str = "shop";

/// What the server does when continuity is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDiscontinuity {
    /// Tells the subscribers and starts a new history.
    Reset,
    /// Waits for a person.
    Stop,
}

/// What the configuration file says.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Of the database to capture, or `file:` and the path of the file that holds it.
    pub url: String,
    /// Slot and publication.
    pub slot: String,
    /// Address that gRPC listens on.
    pub host: String,
    /// On a lost continuity.
    pub on_discontinuity: OnDiscontinuity,
    /// Where the data is; None for a folder of one's own.
    pub data_dir: Option<PathBuf>,
    /// Lines to add to the source's settings, such as `memory: {tail: 1MiB}`.
    pub source_lines: Vec<String>,
    /// Lines to add to the whole.
    pub lines: Vec<String>,
    /// Further sources: name and URL; slot and publication are named after the source.
    pub more_sources: Vec<(String, String)>,
    /// Environment variables of the process.
    pub environment: Vec<(String, String)>,
    /// Serve, and speak to it, with TLS.
    pub tls: Option<ServerTls>,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Of the server.
    pub certificate: PathBuf,
    /// Of the server.
    pub key: PathBuf,
    /// Who vouches for it: what clients are given.
    pub authority: PathBuf,
}

impl ServerConfig {
    /// A source of the database at the URL; the slot and the publication are named after the database, so that tests
    /// that share a server do not meet.
    #[must_use]
    pub fn of(url: &str) -> Self {
        ServerConfig {
            url: url.to_owned(),
            slot: format!("tidegate_{}", url.rsplit('/').next().unwrap_or_default()),
            host: "127.0.0.1".to_owned(),
            on_discontinuity: OnDiscontinuity::Reset,
            data_dir: None,
            source_lines: Vec::new(),
            lines: Vec::new(),
            more_sources: Vec::new(),
            environment: Vec::new(),
            tls: None,
        }
    }
}

/// A Tidegate server; it may be running or not.
#[derive(Debug)]
pub struct Server {
    scratch: Scratch,
    program: PathBuf,
    config: ServerConfig,
    grpc: u16,
    http: u16,
    process: Option<Process>,
}

impl Server {
    /// Starts one and waits until it streams from PostgreSQL.
    ///
    /// # Errors
    /// The binary is not built, or does not get so far.
    pub async fn start(config: ServerConfig) -> Result<Self> {
        let mut server = Server::stopped(config)?;
        server.launch().await?;
        server.streaming().await?;
        Ok(server)
    }

    /// One that does not run yet.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn stopped(config: ServerConfig) -> Result<Self> {
        let program = tidegate_binary()?;
        let scratch = Scratch::new()?;
        Ok(Server { scratch, program, config, grpc: free_port()?, http: free_port()?, process: None })
    }

    /// Starts it, on the same ports and data folder, and waits until it accepts calls.
    ///
    /// # Errors
    /// It ends by itself, or does not answer; the error holds what it printed.
    pub async fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the server is running already");
        std::fs::write(self.config_file(), self.yaml())?;
        let mut command = Command::new(&self.program);
        unconfigured(&mut command).args(["serve", "--config", &self.config_file()]);
        command.envs(self.config.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start(command, self.scratch.path(), "tidegate")?;
        let start = std::time::Instant::now();
        loop {
            ensure!(start.elapsed() < crate::DEADLINE, "it accepts no calls; it printed:\n{}", process.log_tail());
            if let Some(status) = process.ended()? {
                bail!("tidegate ended with {status}; it printed:\n{}", process.log_tail());
            }
            if let Ok(client) = self.client().await
                && client.sources().await.is_ok()
            {
                self.process = Some(process);
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Starts it, expecting it to end by itself; returns what it printed.
    ///
    /// # Errors
    /// It does not end within the deadline.
    pub async fn launch_in_vain(&mut self) -> Result<String> {
        std::fs::write(self.config_file(), self.yaml())?;
        let output = tidegate(&["serve", "--config", &self.config_file()]).await?;
        ensure!(!output.status.success(), "it ended without an error");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout))
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.take().context("the server does not run")?.stop(Signal::KILL).await.map(drop)
    }

    /// Stops it as an orchestrator would; it must end with exit code 0.
    ///
    /// # Errors
    /// It does not run, or ends otherwise.
    pub async fn terminate(&mut self) -> Result<()> {
        let process = self.process.take().context("the server does not run")?;
        let status = process.stop(Signal::TERM).await?;
        ensure!(status.success(), "tidegate ended with {status} after SIGTERM");
        Ok(())
    }

    /// Keeps a copy of the stopped server's files.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn keep_files(&self) -> Result<PathBuf> {
        let kept = self.scratch.join("kept");
        copy(&self.data_dir(), &kept)?;
        Ok(kept)
    }

    /// Puts the copy in the place of the stopped server's files, as if what was written since had never reached the disk
    /// when the machine failed; the machine has been started again since.
    ///
    /// # Errors
    /// They cannot be copied or written.
    pub fn lose_power(&self, kept: &Path) -> Result<()> {
        let data_dir = self.data_dir();
        std::fs::remove_dir_all(&data_dir)?;
        copy(kept, &data_dir)?;
        let run = data_dir.join(SOURCE).join("run");
        let text = std::fs::read_to_string(&run)?;
        ensure!(text.contains("\nboot "), "the run file names no boot: {text}");
        let other = |line: &str| if line.starts_with("boot ") { "boot another".to_owned() } else { line.to_owned() };
        let lines: Vec<String> = text.lines().map(other).collect();
        Ok(std::fs::write(&run, lines.join("\n") + "\n")?)
    }

    /// Waits until it ends by itself with an error; returns all that it has printed.
    ///
    /// # Errors
    /// It goes on running, or ends as if nothing had happened.
    pub async fn failed(&mut self) -> Result<String> {
        let mut process = self.process.take().context("the server does not run")?;
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = process.ended()? {
                ensure!(!status.success(), "it ended without an error");
                return Ok(process.log());
            }
            ensure!(start.elapsed() < crate::DEADLINE, "it goes on running; it printed:\n{}", process.log_tail());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Its process.
    ///
    /// # Errors
    /// It does not run.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the server does not run")
    }

    /// The configuration; changes hold from the next launch.
    pub fn config_mut(&mut self) -> &mut ServerConfig {
        &mut self.config
    }

    /// Path of the configuration file.
    #[must_use]
    pub fn config_file(&self) -> String {
        self.scratch.join("tidegate.yaml").display().to_string()
    }

    /// The slot's, and the publication's, name.
    #[must_use]
    pub fn slot(&self) -> &str {
        &self.config.slot
    }

    /// `http://…` of the gRPC port; with TLS, `https://…`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.config.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Its TLS files.
    #[must_use]
    pub fn tls(&self) -> Option<&ServerTls> {
        self.config.tls.as_ref()
    }

    /// A path in the server's own folder, which goes with it.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Address and port of gRPC.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.grpc)
    }

    /// A client.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn client(&self) -> Result<Client> {
        let builder = Client::builder(self.endpoint());
        let builder = match &self.config.tls {
            Some(tls) => builder.certificate_authority(std::fs::read(&tls.authority)?),
            None => builder,
        };
        Ok(builder.connect().await?)
    }

    /// The state of its source, or of the first where there are several.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn status(&self) -> Result<SourceStatus> {
        self.status_of(SOURCE).await
    }

    /// The state of a source.
    ///
    /// # Errors
    /// The server does not answer, or has no such source.
    pub async fn status_of(&self, source: &str) -> Result<SourceStatus> {
        let sources = self.client().await?.sources().await?;
        sources.into_iter().find(|status| status.name == source).with_context(|| format!("no source {source}"))
    }

    /// Waits until its source is in a state.
    ///
    /// # Errors
    /// It is not within the deadline; the error holds what the server printed.
    pub async fn until_state(&self, state: SourceState) -> Result<SourceStatus> {
        self.until(SOURCE, &format!("{state:?}"), |status| status.state() == state).await
    }

    /// Waits until something holds of a source.
    ///
    /// # Errors
    /// It does not within the deadline; the error holds what the server printed.
    pub async fn until(&self, source: &str, what: &str, holds: impl Fn(&SourceStatus) -> bool) -> Result<SourceStatus> {
        let what = format!("source {source}: {what}");
        let asked = within(&what, || async {
            let status = self.status_of(source).await?;
            Ok(holds(&status).then_some(status))
        });
        let log = || self.process.as_ref().map_or_else(String::new, Process::log_tail);
        asked.await.with_context(|| format!("the server printed:\n{}", log()))
    }

    /// Waits until it streams.
    ///
    /// # Errors
    /// It does not within the deadline.
    pub async fn streaming(&self) -> Result<SourceStatus> {
        self.until_state(SourceState::Streaming).await
    }

    /// Runs another command of the binary, such as `status`, against this server; returns what it printed.
    ///
    /// # Errors
    /// It fails.
    pub async fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut arguments = arguments.to_vec();
        let endpoint = self.endpoint();
        if arguments.first().is_some_and(|command| ["tail", "status", "shape"].contains(command)) {
            arguments.extend(["--server", endpoint.as_str()]);
        }
        let output = tidegate(&arguments).await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tidegate {arguments:?}: {}: {stderr}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The metrics page.
    ///
    /// # Errors
    /// The http port does not answer with it.
    pub async fn metrics(&self) -> Result<String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.http)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        let (head, body) = reply.split_once("\r\n\r\n").context("no HTTP reply")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        Ok(body.to_owned())
    }

    fn data_dir(&self) -> PathBuf {
        self.config.data_dir.clone().unwrap_or_else(|| self.scratch.join("data"))
    }

    fn yaml(&self) -> String {
        let config = &self.config;
        let data_dir = self.data_dir();
        let policy = match config.on_discontinuity {
            OnDiscontinuity::Reset => "reset",
            OnDiscontinuity::Stop => "stop",
        };
        let mut yaml = format!(
            "listen: {{grpc: '{}:{}', http: '127.0.0.1:{}'}}\ndata_dir: '{}'\n",
            config.host,
            self.grpc,
            self.http,
            data_dir.display()
        );
        for line in &config.lines {
            yaml.push_str(&format!("{line}\n"));
        }
        if let Some(tls) = &config.tls {
            yaml.push_str(&format!("tls: {{certificate: {:?}, key: {:?}}}\n", tls.certificate, tls.key));
        }
        let url = match config.url.strip_prefix("file:") {
            Some(file) => format!("url_file: '{file}'"),
            None => format!("url: '{}'", config.url),
        };
        yaml.push_str("sources:\n");
        for (name, url) in &config.more_sources {
            yaml.push_str(&format!("  {name}:\n    url: '{url}'\n"));
        }
        yaml.push_str(&format!("  {SOURCE}:\n    {url}\n    slot: {}\n", config.slot));
        yaml.push_str(&format!("    publication: {}\n    on_discontinuity: {policy}\n", config.slot));
        for line in &config.source_lines {
            yaml.push_str(&format!("    {line}\n"));
        }
        yaml
    }
}

/// Runs the binary to its end.
///
/// # Errors
/// It goes on running.
pub async fn tidegate(arguments: &[&str]) -> Result<Output> {
    tidegate_with(arguments, &[]).await
}

/// Runs the binary to its end, with environment variables.
///
/// # Errors
/// It goes on running.
pub async fn tidegate_with(arguments: &[&str], environment: &[(&str, &OsStr)]) -> Result<Output> {
    let mut command = Command::new(tidegate_binary()?);
    unconfigured(&mut command).args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let running = tokio::time::timeout(crate::DEADLINE, command.output());
    Ok(running.await.with_context(|| format!("tidegate {arguments:?} goes on running"))??)
}

/// Takes away what would configure the binary: the variables that steer these tests among them.
fn unconfigured(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if (text.starts_with("TIDEGATE_") || text.starts_with("POSTGRES_")) && text != "TIDEGATE_PG_BIN" {
            command.env_remove(&name);
        }
    }
    command.env("NO_COLOR", "1")
}
