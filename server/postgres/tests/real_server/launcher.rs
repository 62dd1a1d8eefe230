//! A PostgreSQL of its own for each test: made by initdb in a temporary directory, gone when the test ends.
//!
//! Binaries come from TIDEGATE_PG_BIN, else from the newest Debian packages. Root may not run PostgreSQL, so for root the
//! role `postgres` of the system does.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;
use tidegate_postgres::{ConnectConfig, Session};

pub(crate) struct Server {
    home: TempDir,
    bin: PathBuf,
    pub(crate) port: u16,
}

impl Server {
    /// Starts a server with these lines of configuration besides the usual ones.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("tg").tempdir().expect("a temporary directory");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(home.path()));
        }
        let mut server = Server { home, bin: find_binaries(), port: 0 };
        let data = server.data();
        run(server
            .tool("initdb")
            .args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "-D"])
            .arg(&data));
        // Right before it is taken, so that it is still free then.
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port();
        server.port = port;
        let mut config = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nwal_level = logical\n\
             fsync = off\nlogical_decoding_work_mem = 64kB\nmax_wal_senders = 4\nmax_replication_slots = 4\n",
            server.home.path().display()
        );
        for line in settings {
            config.push_str(line);
            config.push('\n');
        }
        fs::write(data.join("postgresql.auto.conf"), config).expect("writing the configuration");
        server.control("start");
        server
    }

    /// Path within the data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Replaces pg_hba.conf.
    pub(crate) fn allow(&self, lines: &str) {
        fs::write(self.data().join("pg_hba.conf"), lines).expect("writing pg_hba.conf");
        self.control("reload");
    }

    /// Writes a file that only the server may read into the data directory.
    pub(crate) fn write_private(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        fs::write(&path, content).expect("writing a file");
        run(Command::new("chmod").arg("600").arg(&path));
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&path));
        }
    }

    /// Over the unix socket, as superuser.
    pub(crate) fn config(&self) -> ConnectConfig {
        let host = self.home.path().display().to_string();
        ConnectConfig { host, port: self.port, ..ConnectConfig::default() }
    }

    pub(crate) async fn session(&self) -> Session {
        Session::connect(&self.config()).await.expect("a session")
    }

    /// Runs statements as superuser.
    pub(crate) async fn sql(&self, statements: &str) {
        self.session().await.client().batch_execute(statements).await.expect("statements");
    }

    pub(crate) fn control(&self, action: &str) {
        let log = self.home.path().join("data/log");
        run(self
            .tool("pg_ctl")
            .args([action, "--mode=immediate", "--wait", "--silent", "-D"])
            .arg(self.data())
            .arg("-l")
            .arg(log));
    }

    fn tool(&self, name: &str) -> Command {
        let path = self.bin.join(name);
        let mut command = if is_root() {
            let mut runuser = Command::new("runuser");
            runuser.args(["-u", "postgres", "--"]).arg(path);
            runuser
        } else {
            Command::new(path)
        };
        command.current_dir(self.home.path());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut stop = self.tool("pg_ctl");
        stop.args(["stop", "--mode=immediate", "--silent", "-D"]).arg(self.data());
        let stopped = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !stopped.is_ok_and(|status| status.success()) {
            eprintln!("the server in {} was not running any more", self.home.path().display());
        }
    }
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).status().expect("the command starts");
    assert!(status.success(), "{command:?}: {status}");
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout.trim_ascii() == b"0"
}

fn find_binaries() -> PathBuf {
    if let Some(bin) = std::env::var_os("TIDEGATE_PG_BIN") {
        return PathBuf::from(bin);
    }
    let installed =
        fs::read_dir(Path::new("/usr/lib/postgresql")).expect("PostgreSQL is installed, or TIDEGATE_PG_BIN set");
    let version =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
    let newest = installed.flatten().map(|entry| entry.path()).max_by_key(version).expect("an installed PostgreSQL");
    newest.join("bin")
}
