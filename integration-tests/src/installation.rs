//! Where PostgreSQL's programs and ours are on this machine, and as whom the servers run.
//!
//! Servers: `TIDEGATE_PG_BIN` (a folder), else the version that `TIDEGATE_PG` names, else the newest, of
//! `/usr/lib/postgresql/<version>/bin` and `target/pg/<version>/bin` (put there by `make test-matrix`).

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};

/// Server programs of one version, and the user that runs them.
#[derive(Clone, Debug)]
pub struct Installation {
    bin: PathBuf,
    /// Set when we are root, as whom PostgreSQL refuses to run.
    user: Option<(u32, u32)>,
    /// A folder of compiled locales, beside the operating system's own.
    pub(crate) locales: Option<PathBuf>,
}

impl Installation {
    /// Finds the programs.
    ///
    /// # Errors
    /// There are none; the error says how to get them.
    pub fn find() -> Result<Self> {
        let wanted = std::env::var("TIDEGATE_PG").ok();
        let bin = match std::env::var_os("TIDEGATE_PG_BIN") {
            Some(bin) => PathBuf::from(bin),
            None => newest(&folders()?, wanted.as_deref()).with_context(|| {
                let version = wanted.as_deref().unwrap_or("14 to 18");
                format!("no PostgreSQL {version} server programs; run `make postgres`, or set TIDEGATE_PG_BIN")
            })?,
        };
        ensure!(bin.join("postgres").is_file(), "no server program in {}", bin.display());
        let user = if rustix::process::geteuid().is_root() { Some(unprivileged()?) } else { None };
        Ok(Installation { bin, user, locales: None })
    }

    /// A command for one of its programs, as the right user.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        self.unprivileged(&mut command);
        command.current_dir("/").env_remove("PGDATA");
        if let Some(locales) = &self.locales {
            command.env("LOCPATH", locales);
        }
        command
    }

    /// Makes the command run as the user that PostgreSQL runs as, where that is not us.
    pub(crate) fn unprivileged(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
    }

    /// Gives a folder to the user that the servers run as.
    ///
    /// # Errors
    /// It cannot be given.
    pub fn own(&self, path: &Path) -> Result<()> {
        if let Some((uid, gid)) = self.user {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
        }
        Ok(())
    }
}

/// A client program such as `pg_recvlogical`, which need not be of the server's version; None where there is none.
#[must_use]
pub fn client_tool(name: &str) -> Option<PathBuf> {
    let chosen = std::env::var_os("TIDEGATE_PG_BIN").map(PathBuf::from);
    let mut folders = folders().unwrap_or_default();
    folders.sort_by_key(|(version, _)| *version);
    let paths = chosen.into_iter().chain(folders.into_iter().rev().map(|(_, bin)| bin));
    paths.map(|bin| bin.join(name)).find(|path| path.is_file())
}

/// A program that set-up has put into `target/tools`, or that stands in the search path.
///
/// # Errors
/// It is in neither place.
pub fn tool(name: &str) -> Result<PathBuf> {
    let own = target()?.join("tools/bin").join(name);
    let search = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(own).chain(std::env::split_paths(&search).map(|dir| dir.join(name)));
    places.find(|path| path.is_file()).with_context(|| format!("no {name}; run `make {name}`"))
}

/// The `tidegate` binary: `TIDEGATE_BIN`, else the one that was built with the same profile as the running test.
///
/// # Errors
/// It is not built, or older than its sources: the tests would then test something else.
pub fn tidegate_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TIDEGATE_BIN") {
        return Ok(PathBuf::from(path));
    }
    let path = profile()?.join("tidegate");
    let build = "build it with `cargo build --workspace --all-targets`, as `make test` does";
    ensure!(path.is_file(), "no {}; {build}", path.display());
    let built = fs::metadata(&path)?.modified()?;
    let sources = fs::read_to_string(path.with_extension("d")).unwrap_or_default();
    for source in sources.split_once(':').map_or("", |(_, list)| list).split_whitespace() {
        let changed = fs::metadata(source).and_then(|data| data.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        ensure!(changed <= built, "the tidegate binary is older than {source}; {build}");
    }
    Ok(path)
}

/// `target/<profile>`, in or below which this program stands.
fn profile() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().context("folder of this program")?;
    Ok(if dir.ends_with("deps") { dir.parent().context("profile folder")? } else { dir }.to_path_buf())
}

fn target() -> Result<PathBuf> {
    Ok(profile()?.parent().context("target folder")?.to_path_buf())
}

/// Every folder with server or client programs, with its version.
fn folders() -> Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for base in [PathBuf::from("/usr/lib/postgresql"), target()?.join("pg")] {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            let version = entry.file_name().to_string_lossy().parse();
            let bin = entry.path().join("bin");
            if let Ok(version) = version
                && bin.is_dir()
            {
                found.push((version, bin));
            }
        }
    }
    Ok(found)
}

fn newest(folders: &[(u32, PathBuf)], wanted: Option<&str>) -> Option<PathBuf> {
    let fits = |version: u32| wanted.is_none_or(|wanted| wanted == version.to_string());
    let servers = folders.iter().filter(|(version, bin)| fits(*version) && bin.join("postgres").is_file());
    servers.max_by_key(|(version, _)| *version).map(|(_, bin)| bin.clone())
}

/// User and group of `postgres`, which Debian's packages create, else of `nobody`.
fn unprivileged() -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    for name in ["postgres", "nobody"] {
        let line = users.lines().find(|line| line.split(':').next() == Some(name));
        let mut fields = line.unwrap_or_default().split(':').skip(2);
        if let (Some(Ok(uid)), Some(Ok(gid))) = (fields.next().map(str::parse), fields.next().map(str::parse)) {
            return Ok((uid, gid));
        }
    }
    bail!("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
}
