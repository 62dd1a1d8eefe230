//! Temporary folders that are removed, with the processes in them, however the test process ends.
//!
//! `Drop` is not enough: what a `static` holds is never dropped, and Ctrl-C or an abort drops nothing. So a small shell
//! process, in a group of its own, waits for the end of its standard input, whose other end only this process holds, and
//! then kills the processes that are named in the folders' `*.pid` files and removes the folders.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{LazyLock, Mutex},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

const SWEEP: &str = r#"
trap '' INT TERM HUP
dirs=''
while read -r dir; do dirs="$dirs $dir"; done
for dir in $dirs; do
  for file in "$dir"/*.pid; do [ -f "$file" ] && kill -KILL "$(cat "$file")" 2>/dev/null; done
done
[ -n "$dirs" ] && sleep 1
for dir in $dirs; do mountpoint -q "$dir/mount" && umount "$dir/mount"; rm -rf "$dir"; done
"#;

static SWEEPER: LazyLock<Mutex<Option<Child>>> = LazyLock::new(|| {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(SWEEP).process_group(0);
    let child = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Mutex::new(child.ok())
});

/// A temporary folder that anyone may enter.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// A new, empty folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("tidegate-test-").tempdir().context("temporary folder")?;
        // PostgreSQL may run as another user, who must be able to get at its own folder in here.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        if let Ok(mut sweeper) = SWEEPER.lock()
            && let Some(stdin) = sweeper.as_mut().and_then(|child| child.stdin.as_mut())
        {
            writeln!(stdin, "{}", dir.path().display()).context("sweeper")?;
        }
        Ok(Scratch { dir })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
