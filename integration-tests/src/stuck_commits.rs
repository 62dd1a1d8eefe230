//! Commits that wait for a synchronous standby that does not exist: they are in the WAL and are delivered, and nobody sees them.

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::{Database, within};

impl Database {
    /// From now on, commits with `synchronous_commit = on` get stuck, on the whole server.
    ///
    /// # Errors
    /// The server refuses, or they do not.
    pub async fn hold_commits(&self) -> Result<()> {
        self.set_standby("'nobody'").await?;
        // Each session hears of the setting for itself, but whether commits wait they are told by the checkpointer: only one that
        // waits shows it.
        let probe = self.another().await?;
        let pid = probe.text("select pg_backend_pid()::text").await?.context("a session")?;
        let stuck = format!("select 'yes' from pg_stat_activity where pid = {pid} and wait_event = 'SyncRep'");
        let mut probing = JoinSet::new();
        probing.spawn(async move {
            probe.execute("set synchronous_commit = on").await?;
            loop {
                probe.execute("create temporary table probe (); drop table probe").await?;
            }
        });
        within("a commit to be stuck", || self.text(&stuck)).await?;
        self.execute(&format!("select pg_terminate_backend({pid})")).await?;
        let ended: Option<Result<Result<()>, _>> = probing.join_next().await;
        drop(ended.context("spawned above")??.err());
        Ok(())
    }

    /// Ends that, and what is stuck goes on.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn release_commits(&self) -> Result<()> {
        self.set_standby("''").await
    }

    async fn set_standby(&self, names: &str) -> Result<()> {
        self.execute(&format!("alter system set synchronous_standby_names = {names}")).await?;
        self.execute("select pg_reload_conf()").await
    }
}
