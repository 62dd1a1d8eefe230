//! The handle on the control database: one connection, opened again when it has broken.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tidegate_model::SourceName;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};
use tokio_postgres::Client;

use crate::{ControlError, RowTypeNumbers, RowTypeRequest, migrate::migrate, row_types};

/// A query may wait this long, behind another node's for instance.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens a connection. Who supplies it also drives the connection's task.
pub type Connector = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Client, ControlError>> + Send>> + Send + Sync>;

/// The publication that a source was last captured through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPublication {
    /// `pg_publication.oid`.
    pub oid: u32,
    /// What it promised to send, one promise a line; None where an earlier release has not recorded it.
    pub content: Option<String>,
}

/// A cheap handle on the control database.
#[derive(Clone)]
pub struct Control {
    connector: Connector,
    client: Arc<Mutex<Option<Client>>>,
}

impl Control {
    /// Connects and brings the schema up to date.
    ///
    /// # Errors
    /// The database cannot be reached, or the schema not be created.
    pub async fn open(connector: Connector) -> Result<Self, ControlError> {
        let mut client = connector().await?;
        migrate(&mut client).await?;
        Ok(Control { connector, client: Arc::new(Mutex::new(Some(client))) })
    }

    /// The numbers of a row type and of its fields: those given before to the same fingerprint, or new ones.
    ///
    /// # Errors
    /// The database cannot be reached; or the table has used up its field numbers.
    pub async fn row_type(
        &self,
        source: &SourceName,
        request: &RowTypeRequest,
    ) -> Result<RowTypeNumbers, ControlError> {
        let mut guard = self.connected().await?;
        let client = guard.as_mut().expect("connected() leaves a client");
        match timeout(ANSWER_TIMEOUT, row_types::allocate(client, source, request)).await {
            Ok(numbers) => numbers,
            Err(_elapsed) => {
                // The connection may be gone without a word: the next call opens another.
                *guard = None;
                Err(ControlError::Connect(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))
            }
        }
    }

    /// The publication that the source was last captured through; None at the first time.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn publication(&self, source: &SourceName) -> Result<Option<KnownPublication>, ControlError> {
        let guard = self.connected().await?;
        let client = guard.as_ref().expect("connected() leaves a client");
        let row = client
            .query_opt(
                "SELECT publication_oid, publication_content FROM tidegate.source WHERE name = $1",
                &[&source.as_str()],
            )
            .await?;
        let known =
            |row: tokio_postgres::Row| Some(KnownPublication { oid: row.get::<_, Option<_>>(0)?, content: row.get(1) });
        Ok(row.and_then(known))
    }

    /// Records the publication that the source is captured through.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn set_publication(&self, source: &SourceName, (oid, content): (u32, &str)) -> Result<(), ControlError> {
        let guard = self.connected().await?;
        let client = guard.as_ref().expect("connected() leaves a client");
        client
            .execute(
                "INSERT INTO tidegate.source (name, publication_oid, publication_content) VALUES ($1, $2, $3)
                 ON CONFLICT (name) DO UPDATE
                 SET (publication_oid, publication_content) = (excluded.publication_oid, excluded.publication_content)
                 WHERE (source.publication_oid, source.publication_content)
                       IS DISTINCT FROM (excluded.publication_oid, excluded.publication_content)",
                &[&source.as_str(), &oid, &content],
            )
            .await?;
        Ok(())
    }

    /// Forgets a source that is dropped for good, its numbers included.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn drop_source(&self, source: &SourceName) -> Result<(), ControlError> {
        let guard = self.connected().await?;
        let client = guard.as_ref().expect("connected() leaves a client");
        client.execute("DELETE FROM tidegate.source WHERE name = $1", &[&source.as_str()]).await?;
        Ok(())
    }

    async fn connected(&self) -> Result<MutexGuard<'_, Option<Client>>, ControlError> {
        let mut guard = self.client.lock().await;
        if guard.as_ref().is_none_or(Client::is_closed) {
            *guard = Some((self.connector)().await?);
        }
        Ok(guard)
    }
}
