//! The handle on the control database: one connection, opened again when it has broken.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tidegate_model::{Epoch, Lsn, ShapeName, SnapshotSpec, SourceName, TableName};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};
use tokio_postgres::{Client, GenericClient, types::ToSql};

use crate::{
    ControlError, RowTypeNumbers, RowTypeRequest,
    migrate::migrate,
    row_types,
    shapes::{self, ShapeCopy, ShapeLimits, ShapeRecord, StoredShape},
    snapshots::{self, JobState, SnapshotJob},
};

/// A query may wait this long, behind another node's for instance.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Opening may wait this long, for another node that migrates the schema.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The database cannot be reached, does not answer, or the schema cannot be created.
    #[tracing::instrument(level = "debug", name = "open control database", skip_all)]
    pub async fn open(connector: Connector) -> Result<Self, ControlError> {
        let mut client = connector().await?;
        timeout(OPEN_TIMEOUT, migrate(&mut client)).await.map_err(|_| ControlError::Silent(OPEN_TIMEOUT))??;
        Ok(Control { connector, client: Arc::new(Mutex::new(Some(client))) })
    }

    /// The numbers of a row type and of its fields: those given before to the same fingerprint, or new ones.
    ///
    /// # Errors
    /// The database cannot be reached; or the table has used up its field numbers.
    #[tracing::instrument(level = "debug", name = "number a row type", skip_all, fields(%source, table = %request.name))]
    pub async fn row_type(
        &self,
        source: &SourceName,
        request: &RowTypeRequest,
    ) -> Result<RowTypeNumbers, ControlError> {
        self.ask(async |client| row_types::allocate(client, source, request).await).await
    }

    /// The publication that the source was last captured through; None at the first time.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn publication(&self, source: &SourceName) -> Result<Option<KnownPublication>, ControlError> {
        const SQL: &str = "SELECT publication_oid, publication_content FROM tidegate.source WHERE name = $1";
        let row = self.ask(async |client| Ok(client.query_opt(SQL, &[&source.as_str()]).await?)).await?;
        let known =
            |row: tokio_postgres::Row| Some(KnownPublication { oid: row.get::<_, Option<_>>(0)?, content: row.get(1) });
        Ok(row.and_then(known))
    }

    /// Records the publication that the source is captured through.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn set_publication(&self, source: &SourceName, promised: (u32, &str)) -> Result<(), ControlError> {
        self.ask(async |client| set_publication(client, source, promised).await).await
    }

    /// Behind which position of which epoch rows of partitions are sent as what they are; None where nothing was recorded.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn settled_partitions(&self, source: &SourceName) -> Result<Option<(Epoch, Lsn)>, ControlError> {
        const SQL: &str = "SELECT partitions_epoch, partitions_lsn::text FROM tidegate.source
             WHERE name = $1 AND partitions_epoch IS NOT NULL AND partitions_lsn IS NOT NULL";
        let row = self.ask(async |client| Ok(client.query_opt(SQL, &[&source.as_str()]).await?)).await?;
        Ok(row.and_then(|row| Some((row.get::<_, &str>(0).parse().ok()?, row.get::<_, &str>(1).parse().ok()?))))
    }

    /// Records the same.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn set_settled_partitions(
        &self,
        source: &SourceName,
        (epoch, end_lsn): (Epoch, Lsn),
    ) -> Result<(), ControlError> {
        const SQL: &str = "INSERT INTO tidegate.source (name, partitions_epoch, partitions_lsn)
             VALUES ($1, $2, $3::text::pg_lsn) ON CONFLICT (name) DO UPDATE
             SET (partitions_epoch, partitions_lsn) = (excluded.partitions_epoch, excluded.partitions_lsn)";
        self.execute(SQL, &[&source.as_str(), &epoch.to_string(), &end_lsn.to_string()]).await
    }

    /// Records a snapshot that is to run, with a number above `at_least`.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn create_snapshot(
        &self,
        source: &SourceName,
        (epoch, at_least): (Epoch, u32),
        spec: &SnapshotSpec,
    ) -> Result<SnapshotJob, ControlError> {
        self.ask(async |client| {
            let transaction = client.transaction().await?;
            let job = snapshots::create(&transaction, source, (epoch, at_least), (spec, false)).await?;
            transaction.commit().await?;
            Ok(job)
        })
        .await
    }

    /// Records a snapshot of tables that have joined the publication, and with it what the publication promises now, which
    /// names the snapshot: both or neither.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn create_snapshot_of_new(
        &self,
        source: &SourceName,
        (epoch, at_least): (Epoch, u32),
        tables: &[TableName],
        (oid, content): (u32, &(dyn Fn(u32) -> String + Sync)),
    ) -> Result<SnapshotJob, ControlError> {
        let spec = SnapshotSpec { tables: tables.to_vec(), ..SnapshotSpec::default() };
        self.ask(async |client| {
            let transaction = client.transaction().await?;
            let job = snapshots::create(&transaction, source, (epoch, at_least), (&spec, true)).await?;
            set_publication(&transaction, source, (oid, &content(job.snapshot))).await?;
            transaction.commit().await?;
            Ok(job)
        })
        .await
    }

    /// The source's unfinished snapshots and the last hundred that have ended, oldest first.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn snapshots(&self, source: &SourceName) -> Result<Vec<SnapshotJob>, ControlError> {
        self.ask(async |client| snapshots::list(client, source).await).await
    }

    /// Changes what is to become of a snapshot; false where it has ended already, or never was.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn set_snapshot_state(
        &self,
        source: &SourceName,
        (snapshot, state): (u32, JobState),
        detail: &str,
    ) -> Result<bool, ControlError> {
        self.ask(async |client| snapshots::set_state(client, source, (snapshot, state), detail).await).await
    }

    /// Defines a named shape, or defines it anew. The source's shapes may be so much.
    ///
    /// # Errors
    /// The database cannot be reached, or it would be too much.
    pub async fn define_shape(
        &self,
        source: &SourceName,
        (name, shape): (&ShapeName, &ShapeRecord),
        limits: ShapeLimits,
    ) -> Result<StoredShape, ControlError> {
        self.ask(async |client| shapes::define(client, source, (name, shape), limits).await).await
    }

    /// Removes a named shape; false where there is none.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn delete_shape(&self, source: &SourceName, name: &ShapeName) -> Result<bool, ControlError> {
        self.ask(async |client| shapes::delete(client, source, name).await).await
    }

    /// Brings a copy of the named shapes of all sources up to date; false where it is.
    ///
    /// # Errors
    /// The database cannot be reached; the copy is then what it was.
    pub async fn refresh_shapes(&self, copy: &mut ShapeCopy) -> Result<bool, ControlError> {
        self.ask(async |client| shapes::refresh(client, copy).await).await
    }

    /// Forgets a source that is dropped for good, its numbers included.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn drop_source(&self, source: &SourceName) -> Result<(), ControlError> {
        self.execute("DELETE FROM tidegate.source WHERE name = $1", &[&source.as_str()]).await
    }

    async fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<(), ControlError> {
        self.ask(async |client| Ok(client.execute(sql, parameters).await.map(drop)?)).await
    }

    /// Asks, and waits so long. Without an answer the connection may be gone without a word: the next question opens another.
    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut Client) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let mut guard = self.connected().await?;
        let client = guard.as_mut().expect("connected() leaves a client");
        let answer = timeout(ANSWER_TIMEOUT, question(client)).await;
        answer.unwrap_or_else(|_| {
            *guard = None;
            Err(ControlError::Silent(ANSWER_TIMEOUT))
        })
    }

    async fn connected(&self) -> Result<MutexGuard<'_, Option<Client>>, ControlError> {
        let mut guard = self.client.lock().await;
        if guard.as_ref().is_none_or(Client::is_closed) {
            *guard = Some((self.connector)().await?);
        }
        Ok(guard)
    }
}

async fn set_publication(
    client: &impl GenericClient,
    source: &SourceName,
    (oid, content): (u32, &str),
) -> Result<(), ControlError> {
    const SQL: &str = "INSERT INTO tidegate.source (name, publication_oid, publication_content) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO UPDATE
         SET (publication_oid, publication_content) = (excluded.publication_oid, excluded.publication_content)
         WHERE (source.publication_oid, source.publication_content)
               IS DISTINCT FROM (excluded.publication_oid, excluded.publication_content)";
    Ok(client.execute(SQL, &[&source.as_str(), &oid, &content]).await.map(drop)?)
}
