//! `tidegate source drop`: removes what a source has in its database, slot and publication. A slot that nobody reads fills
//! the database's disk.
//!
//! The changelog and the numbers of the row types stay, so that the same name never means something else.

use anyhow::{Context, bail};
use clap::Subcommand;
use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
};
use tidegate_postgres::{
    Session, backend_application, drop_publication, drop_slot, publication, slot_status, terminate_backend,
};

use crate::config::{Config, Source};

/// How often a reader of the slot is ended, and how long each may take.
const ATTEMPTS: u32 = 5;
const PATIENCE_MS: i64 = 2_000;

/// Manage sources.
#[derive(Subcommand)]
pub(crate) enum SourceCommand {
    /// Remove a source's replication slot and publication from its database. Stop the server first.
    Drop {
        /// The source's name.
        name: String,
        /// YAML file with the source; without it, the environment names it.
        #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

/// Runs a command on sources.
///
/// # Errors
/// The source is not configured, its database refuses, or the person says no.
pub(crate) async fn run(command: &SourceCommand) -> anyhow::Result<()> {
    match command {
        SourceCommand::Drop { name, config, yes } => {
            let config = Config::load(config.as_deref())?;
            let source = config.source(Some(name))?;
            if !yes {
                confirm(source)?;
            }
            drop_source(source).await?;
            let changelog = config.data_dir.join(source.name.as_str());
            println!("the changelog is kept: {}; delete it if it is no longer wanted", changelog.display());
            Ok(())
        }
    }
}

fn confirm(source: &Source) -> anyhow::Result<()> {
    let question = format!(
        "Remove slot {} and publication {} from {}? Subscribers of {} cannot resume after that.",
        source.slot,
        source.publication,
        source.connect.address(),
        source.name
    );
    if !std::io::stdin().is_terminal() {
        bail!("{question} Add --yes.");
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was removed");
    }
    Ok(())
}

async fn drop_source(source: &Source) -> anyhow::Result<()> {
    let session = Session::connect(&source.connect).await?;
    drop_slot_of(&session, source).await?;
    let name = &source.publication;
    if publication(&session, name).await?.is_some() {
        drop_publication(&session, name).await?;
        println!("publication {name} is removed");
    } else {
        println!("publication {name} is not there");
    }
    Ok(())
}

/// A walsender that still holds the slot is ended. One that comes back belongs to a running server.
async fn drop_slot_of(session: &Session, source: &Source) -> anyhow::Result<()> {
    let name = &source.slot;
    for _ in 0..ATTEMPTS {
        let Some(slot) = slot_status(session, name).await? else {
            println!("slot {name} is not there");
            return Ok(());
        };
        if slot.database.as_deref() != Some(source.connect.database.as_str()) {
            bail!("slot {name} belongs to another database; correct the source's slot or url");
        }
        let Some(pid) = slot.active_pid else {
            drop_slot(session, name).await.with_context(|| format!("slot {name} cannot be removed"))?;
            println!("slot {name} is removed");
            return Ok(());
        };
        let reader = backend_application(session, pid).await?;
        if reader.as_ref().is_some_and(|reader| !reader.starts_with(&source.connect.application_name)) {
            bail!("slot {name} is read by '{}' (pid {pid}), which is not Tidegate", reader.unwrap_or_default());
        }
        terminate_backend(session, pid, PATIENCE_MS).await?;
        eprintln!("slot {name} was being read; a server that still captures {} makes it again: stop it", source.name);
    }
    bail!("slot {name} is in use again and again; stop the server that captures {}, then try again", source.name)
}
