//! A plain SQL session of a test: what the user of a database does, not what Tidegate does.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls};

/// A session in one database. Its connection ends with it.
#[derive(Debug)]
pub struct Database {
    url: String,
    client: Client,
    _connection: JoinSet<()>,
}

impl Database {
    /// Connects.
    ///
    /// # Errors
    /// The server does not answer within five seconds, or refuses.
    pub async fn connect(url: &str) -> Result<Self> {
        let config: Config = url.parse()?;
        let connecting = tokio::time::timeout(Duration::from_secs(5), config.connect(NoTls));
        let (client, connection) = connecting.await.context("no answer")??;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // The client's calls fail when the connection has failed; there is nothing more to tell.
            connection.await.ok();
        });
        Ok(Database { url: url.to_owned(), client, _connection: task })
    }

    /// Another session in the same database.
    ///
    /// # Errors
    /// As of connecting.
    pub async fn another(&self) -> Result<Self> {
        Database::connect(&self.url).await
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The database's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.url.rsplit('/').next().unwrap_or_default()
    }

    /// Runs statements, separated by semicolons.
    ///
    /// # Errors
    /// One fails; the error names them.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.with_context(|| sql.chars().take(200).collect::<String>())
    }

    /// The first column of the first row, which must be text; None where it is NULL or there is no row.
    ///
    /// # Errors
    /// The query fails.
    pub async fn text(&self, sql: &str) -> Result<Option<String>> {
        let row = self.client.query_opt(sql, &[]).await.with_context(|| sql.to_owned())?;
        Ok(match row {
            Some(row) => row.try_get(0)?,
            None => None,
        })
    }

    /// The server's major version.
    ///
    /// # Errors
    /// The query fails.
    pub async fn server_version(&self) -> Result<u32> {
        let text = self.text("select current_setting('server_version_num')").await?.context("a version")?;
        Ok(text.parse::<u32>()? / 10_000)
    }

    /// The client, for anything else.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Drops the replication slot, ending whoever reads it.
    ///
    /// # Errors
    /// There is no such slot.
    pub async fn drop_slot(&self, slot: &str) -> Result<()> {
        self.execute(&format!(
            "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots \
             where slot_name = '{slot}' and active_pid is not null; select pg_drop_replication_slot('{slot}')"
        ))
        .await
    }

    /// Creates a table `marker` whose rows tell a subscriber that all that was written before has arrived.
    ///
    /// # Errors
    /// It exists.
    pub async fn create_marker(&self) -> Result<()> {
        self.execute("create table marker (name text primary key)").await
    }

    /// Writes a marker row.
    ///
    /// # Errors
    /// It exists.
    pub async fn mark(&self, name: &str) -> Result<()> {
        self.execute(&format!("insert into marker values ('{name}')")).await
    }
}
