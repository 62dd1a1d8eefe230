//! A streaming standby of a server, and its promotion.
//!
//! It is made from the stopped primary's files, replication slots included, as a failover slot or a storage-level
//! failover would leave them. (The binaries of some versions that the tests run against have no `pg_basebackup`.)

use std::fs;

use anyhow::Result;

use crate::{Cluster, Database, Scratch, Stop, cluster, within};

impl Cluster {
    /// Stops this server for a moment and starts a standby of it, on a port of its own.
    ///
    /// # Errors
    /// Copying or starting fails.
    pub async fn standby(&mut self) -> Result<Cluster> {
        let files = self.copied().await?;
        self.standby_of(files, &[]).await
    }

    /// The same, without the slots: the standby takes over those that are made for failover (17 and newer). `slot` is the
    /// physical one that it streams from.
    ///
    /// # Errors
    /// As above.
    pub async fn standby_that_syncs_slots(&mut self, slot: &str) -> Result<Cluster> {
        let files = self.copied().await?;
        let slots = files.join("data/pg_replslot");
        fs::remove_dir_all(&slots)?;
        fs::create_dir(&slots)?;
        self.installation.own(&slots)?;
        let settings = [("primary_slot_name", slot), ("sync_replication_slots", "on"), ("hot_standby_feedback", "on")];
        self.standby_of(files, &settings).await
    }

    /// Stops this server for a moment and copies its files.
    async fn copied(&mut self) -> Result<Scratch> {
        self.stop(Stop::Fast).await?;
        let scratch = Scratch::new()?;
        cluster::copy(&self.data(), &scratch.join("data"))?;
        self.launch().await?;
        Ok(scratch)
    }

    async fn standby_of(&self, scratch: Scratch, settings: &[(&str, &str)]) -> Result<Cluster> {
        let mut standby = Cluster::stopped(self.installation.clone(), scratch)?;
        let signal = standby.data().join("standby.signal");
        fs::write(&signal, "")?;
        standby.installation.own(&signal)?;
        let primary = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        standby.configure(settings)?;
        standby.configure(&[("primary_conninfo", &primary), ("hot_standby", "on")])?;
        standby.launch().await?;
        Ok(standby)
    }

    /// Waits until this standby has replayed all that the primary has written.
    ///
    /// # Errors
    /// It does not within the deadline.
    pub async fn catch_up(&self, primary: &Cluster) -> Result<()> {
        let primary = Database::connect(&primary.url("postgres")).await?;
        let end = primary.text("select pg_current_wal_lsn()::text").await?.unwrap_or_default();
        let standby = Database::connect(&self.url("postgres")).await?;
        let query = format!("select (pg_last_wal_replay_lsn() >= '{end}')::text");
        within("the standby to catch up", || async {
            Ok((standby.text(&query).await?.as_deref() == Some("true")).then_some(()))
        })
        .await
    }

    /// Listens where the primary did, which is stopped.
    ///
    /// # Errors
    /// It does not start again.
    pub async fn take_address(&mut self, primary: &Cluster) -> Result<()> {
        self.stop(Stop::Fast).await?;
        self.port = primary.port;
        self.launch().await
    }

    /// Makes this standby a primary, on a new timeline.
    ///
    /// # Errors
    /// It is not promoted within the deadline.
    pub async fn promote(&self) -> Result<()> {
        let postgres = Database::connect(&self.url("postgres")).await?;
        postgres.execute("select pg_promote(true, 60)").await?;
        within("the promotion", || async {
            let recovery = postgres.text("select pg_is_in_recovery()::text").await?;
            Ok((recovery.as_deref() == Some("false")).then_some(()))
        })
        .await
    }
}
