//! A child process of a test, killed when it is dropped, and by the sweeper when the test process dies.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// A running child process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid_file: PathBuf,
    log: PathBuf,
}

/// A process that does nothing until this is dropped.
#[derive(Debug)]
pub struct HeldProcess(Pid);

impl HeldProcess {
    /// One of PostgreSQL's, say.
    ///
    /// # Errors
    /// It is gone.
    pub fn new(process: i32) -> Result<Self> {
        let process = Pid::from_raw(process).context("process id")?;
        kill_process(process, Signal::STOP).with_context(|| format!("hold process {process:?}"))?;
        Ok(HeldProcess(process))
    }
}

impl Drop for HeldProcess {
    fn drop(&mut self) {
        if let Err(error) = kill_process(self.0, Signal::CONT) {
            eprintln!("{:?} does not go on: {error}", self.0);
        }
    }
}

impl Process {
    /// Starts the command in a process group of its own, so that Ctrl-C reaches it through us only. What it prints is
    /// appended to `<scratch>/<name>.log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, scratch: &Path, name: &str) -> Result<Self> {
        let log = scratch.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log)?;
        command.process_group(0).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
        let pid_file = scratch.join(format!("{name}.pid"));
        fs::write(&pid_file, child.id().to_string())?;
        Ok(Process { child, pid_file, log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("process id")?;
        kill_process(pid, signal).with_context(|| format!("signal process {pid:?}"))
    }

    /// Has it ended by itself?
    ///
    /// # Errors
    /// Its state cannot be asked for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// It is still there after a minute; it is then killed when dropped.
    pub async fn stop(mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_mins(1) {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("process {} did not end after {signal:?}; it printed:\n{}", self.id(), self.log_tail())
    }

    /// All that it printed.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of what it printed.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// A line of `/proc/<id>/status` that counts kB, such as `VmRSS` or `VmHWM`, in bytes.
    ///
    /// # Errors
    /// The process is gone.
    pub fn memory(&self, field: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = text.lines().find(|line| line.starts_with(field)).context("no such field")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(&self.pid_file).ok();
    }
}
