//! What may happen to a server and its PostgreSQL at any time, for tests in which nothing may be lost by it.

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};

use crate::{Cluster, Database, Server, Stop};

/// Lets something happen, waits until all runs again, and says what it was.
///
/// # Errors
/// It does not run again.
pub async fn disturb(random: &mut StdRng, cluster: &mut Cluster, server: &mut Server) -> Result<&'static str> {
    Ok(match random.random_range(0..7_u32) {
        0 | 1 => {
            server.kill().await?;
            server.launch().await?;
            "server killed"
        }
        2 => {
            cluster.restart(Stop::Fast).await?;
            "PostgreSQL restarted, fast"
        }
        3 => {
            cluster.restart(Stop::Immediate).await?;
            "PostgreSQL restarted, immediate"
        }
        4 => {
            server.kill().await?;
            cluster.restart(Stop::Immediate).await?;
            server.launch().await?;
            "both crashed"
        }
        5 => {
            let database = Database::connect(&cluster.url("postgres")).await?;
            let walsenders = "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'";
            database.execute(walsenders).await?;
            "walsender terminated"
        }
        _ => {
            server.terminate().await?;
            server.launch().await?;
            "server stopped in order and started again"
        }
    })
}
