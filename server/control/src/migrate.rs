//! Brings the schema up to date. Nodes that start together take turns by an advisory lock.

use std::error::Error;

use tokio_postgres::Client;

use crate::ControlError;

mod embedded {
    refinery::embed_migrations!("../../migrations/control");
}

/// Any constant that no one else is likely to use: "tidegate" in ASCII.
const LOCK: i64 = 0x7469_6465_6761_7465;

/// Runs the migrations that are missing.
pub(crate) async fn migrate(client: &mut Client) -> Result<(), ControlError> {
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await?;
    let result = run(client).await;
    // A failure here ends the session, and with it the lock.
    client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await?;
    result
}

async fn run(client: &mut Client) -> Result<(), ControlError> {
    // CREATE SCHEMA IF NOT EXISTS asks for the privilege even when the schema is there.
    let exists = client.query_one("SELECT to_regnamespace('tidegate') IS NOT NULL", &[]).await?;
    if !exists.get::<_, bool>(0) {
        client.batch_execute("CREATE SCHEMA tidegate").await?;
    }
    embedded::migrations::runner()
        .set_migration_table_name("tidegate.migration")
        .run_async(client)
        .await
        .map_err(|error| ControlError::Migration(chain(&error)))?;
    Ok(())
}

/// The error and what caused it: refinery hides the server's words two levels down.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
