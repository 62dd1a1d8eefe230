//! The oracle: a second slot, read with PostgreSQL's own `pg_recvlogical` where it is installed, else with
//! `pg_logical_slot_peek_binary_changes`.
//!
//! It reads once, at the end, in one go and without streaming, so none of the test's disturbances touch it. Its slot must be
//! created while nothing is being written that the subscriber under test does not receive.

use std::fs;

use anyhow::{Context, Result};

use crate::{Database, History, Scratch, client_tool, cluster, pgoutput};

/// A slot of one's own and the publication that Tidegate uses.
#[derive(Debug)]
pub struct Oracle {
    slot: String,
    publication: String,
}

impl Oracle {
    /// Creates the slot; what is committed from here on will be in the account.
    ///
    /// # Errors
    /// No free slot.
    pub async fn create(database: &Database, publication: &str) -> Result<Self> {
        let slot = format!("oracle_{}", database.name());
        database.execute(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await?;
        Ok(Oracle { slot, publication: publication.to_owned() })
    }

    /// Everything committed since, up to now.
    ///
    /// # Errors
    /// Reading fails, or what was read is not pgoutput.
    pub async fn read(&self, database: &Database) -> Result<History> {
        match client_tool("pg_recvlogical") {
            Some(program) => self.receive(&program, database).await,
            None => self.peek(database).await,
        }
    }

    async fn receive(&self, program: &std::path::Path, database: &Database) -> Result<History> {
        let end = database.text("select pg_current_wal_lsn()::text").await?.context("no position")?;
        let scratch = Scratch::new()?;
        let file = scratch.join("changes");
        let mut command = std::process::Command::new(program);
        command.arg("-d").arg(database.url()).arg("--slot").arg(&self.slot).args(["--start", "--no-loop", "-f"]);
        command.arg(&file).arg("--endpos").arg(end).args(["-o", "proto_version=1", "-o", "messages=true"]);
        command.arg("-o").arg(format!("publication_names={}", self.publication));
        command.env("PGOPTIONS", "-c logical_decoding_work_mem=256MB");
        tokio::task::spawn_blocking(move || cluster::run(command)).await??;
        // pg_recvlogical writes a line feed behind each message.
        pgoutput::read(&fs::read(file)?, Some(b'\n'))
    }

    async fn peek(&self, database: &Database) -> Result<History> {
        let query = format!(
            "select data from pg_logical_slot_peek_binary_changes('{}', null, null, 'proto_version', '1', \
             'publication_names', '{}', 'messages', 'true')",
            self.slot, self.publication
        );
        let mut bytes = Vec::new();
        for row in database.client().query(&query, &[]).await? {
            bytes.extend_from_slice(row.try_get(0)?);
        }
        pgoutput::read(&bytes, None)
    }
}
