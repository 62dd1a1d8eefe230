//! A real PgBouncer in front of a server.

use std::{fs, process::Command};

use anyhow::{Result, bail};
use tokio::net::TcpStream;

use crate::{Cluster, DEADLINE, Process, Scratch, port::free_port, tool};

/// A running PgBouncer.
#[derive(Debug)]
pub struct Pooler {
    port: u16,
    _process: Process,
    _scratch: Scratch,
}

impl Pooler {
    /// Starts one in front of the server, with settings on top of the usual; None, with a message, where there is no PgBouncer.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(cluster: &Cluster, settings: &[(&str, &str)]) -> Result<Option<Pooler>> {
        let Ok(program) = tool("pgbouncer") else {
            println!("skipped: no PgBouncer; run `make pgbouncer`, or install it");
            return Ok(None);
        };
        let (scratch, port) = (Scratch::new()?, free_port()?);
        let (users, config) = (scratch.join("users"), scratch.join("pgbouncer.ini"));
        fs::write(&users, "\"postgres\" \"\"\n")?;
        let mut text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n",
            cluster.port,
            users.display()
        );
        for (name, value) in settings {
            text.push_str(&format!("{name} = {value}\n"));
        }
        fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg(&config);
        cluster.installation.unprivileged(&mut command);
        let mut process = Process::start(command, scratch.path(), "pgbouncer")?;
        let start = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if process.ended()?.is_some() || start.elapsed() > DEADLINE {
                bail!("PgBouncer does not serve; it printed:\n{}", process.log_tail());
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(Some(Pooler { port, _process: process, _scratch: scratch }))
    }

    /// Connection URL of a database, through the pooler.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}
