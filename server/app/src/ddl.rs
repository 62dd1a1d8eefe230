//! `tidegate ddl`: has schema changes announced in the stream, so that what they do to mirrored tables is looked at as soon as they
//! come, not only from time to time. Opt-in: it makes event triggers in the sources' databases.

use anyhow::{Context, anyhow};
use clap::Subcommand;
use tidegate_postgres::{
    CatalogError, DdlAnnouncements, Session, ddl_announcements, install_ddl, install_ddl_sql, remove_ddl,
    remove_ddl_sql,
};

use crate::{Outcome, config::Source, databases::DatabaseArgs};

/// PostgreSQL's `insufficient_privilege`.
const FORBIDDEN: &str = "42501";

/// Have schema changes announced in the stream.
#[derive(Subcommand)]
pub(crate) enum DdlCommand {
    /// Install the event triggers; it needs a superuser, or the role that a managed service has in its place.
    Install(DdlArgs),
    /// Print whether they are installed; exit code 3 where something of them is missing or disabled.
    Status {
        #[command(flatten)]
        databases: DatabaseArgs,
    },
    /// Remove them.
    Remove(DdlArgs),
}

/// What is done in which databases.
#[derive(clap::Args)]
pub(crate) struct DdlArgs {
    #[command(flatten)]
    databases: DatabaseArgs,
    /// Print the SQL for an administrator to run, and change nothing.
    #[arg(long)]
    sql: bool,
}

/// Runs a command on announcements.
///
/// # Errors
/// The configuration cannot be used, or a database cannot be reached or refuses.
pub(crate) async fn run(command: &DdlCommand) -> anyhow::Result<Outcome> {
    match command {
        DdlCommand::Install(args) if args.sql => print!("{}", install_ddl_sql()),
        DdlCommand::Remove(args) if args.sql => print!("{}", remove_ddl_sql()),
        DdlCommand::Install(args) => {
            for source in &args.databases.sources(&[])? {
                let installed = install_ddl(&connect(source).await?).await;
                installed.map_err(|error| refused(source, error, "install"))?;
                println!("{}: schema changes are announced", source.name);
            }
        }
        DdlCommand::Remove(args) => {
            for source in &args.databases.sources(&[])? {
                let removed = remove_ddl(&connect(source).await?).await;
                removed.map_err(|error| refused(source, error, "remove"))?;
                println!("{}: schema changes are not announced", source.name);
            }
        }
        DdlCommand::Status { databases } => return status(&databases.sources(&[])?).await,
    }
    Ok(Outcome::Done)
}

async fn status(sources: &[Source]) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Done;
    for source in sources {
        let found = match ddl_announcements(&connect(source).await?).await? {
            DdlAnnouncements::Absent => "schema changes are not announced; see tidegate ddl install --help".to_owned(),
            DdlAnnouncements::Installed { owner } => {
                format!("schema changes are announced, by event triggers of {owner}")
            }
            DdlAnnouncements::Incomplete => {
                outcome = Outcome::Findings;
                "schema changes are not all announced, since an event trigger is missing or disabled; run tidegate ddl \
                 install again, or tidegate ddl remove"
                    .to_owned()
            }
        };
        println!("{}: {found}", source.name);
    }
    Ok(outcome)
}

async fn connect(source: &Source) -> anyhow::Result<Session> {
    Session::connect(&source.connect).await.with_context(|| format!("source {}", source.name))
}

fn refused(source: &Source, error: CatalogError, command: &str) -> anyhow::Error {
    if error.code() != Some(FORBIDDEN) {
        return anyhow!(error).context(format!("source {}", source.name));
    }
    anyhow!(
        "source {}: role {} may not {command} event triggers ({error}); PostgreSQL asks for a superuser, a managed service for the \
         role in its place (rds_superuser, cloudsqlsuperuser, azure_pg_admin), and to remove them, for their owner. Give --url \
         with such a role, or have an administrator run what tidegate ddl {command} --sql prints",
        source.name,
        source.connect.user,
    )
}
