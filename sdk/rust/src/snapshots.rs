//! Snapshots as jobs of the server: start, watch, stop. A subscription from [`Start::Snapshot`](crate::Start::Snapshot) needs
//! none of this.

use futures_util::{Stream, StreamExt};
use tidegate_proto::v1::{
    ListSnapshotsRequest, SnapshotRequest, StartSnapshotRequest, snapshots_client::SnapshotsClient,
};
use tonic::transport::Channel;

use crate::{Client, ClientError};

pub use tidegate_proto::v1::{
    SnapshotKey, SnapshotKeys, SnapshotPart, SnapshotStatus, SnapshotTable, StartSnapshotResponse as StartedSnapshot,
    snapshot_part::Rows as SnapshotRows, snapshot_status::State as SnapshotState,
};

impl Client {
    /// Starts a snapshot of the tables that any of the names or patterns means, or joins the one of just the same that has not
    /// begun yet. The source may be empty where the server has one. Subscriptions with
    /// [`snapshots`](crate::Subscription::snapshots) receive it.
    ///
    /// # Errors
    /// The server cannot be reached, or the tables cannot be read.
    pub async fn start_snapshot(&self, source: &str, tables: Vec<String>) -> Result<StartedSnapshot, ClientError> {
        self.start_snapshot_request(StartSnapshotRequest { source: source.to_owned(), tables, parts: Vec::new() }).await
    }

    /// Starts a snapshot of parts of tables: of rows that meet a condition, or have one of some keys. A row that changes meanwhile
    /// may be among what is read though it does not meet the condition any more.
    ///
    /// # Errors
    /// The server cannot be reached, the tables cannot be read, or a condition or a key is refused: the text says where and why.
    pub async fn start_snapshot_of_parts(
        &self,
        source: &str,
        parts: Vec<SnapshotPart>,
    ) -> Result<StartedSnapshot, ClientError> {
        self.start_snapshot_request(StartSnapshotRequest { source: source.to_owned(), tables: Vec::new(), parts }).await
    }

    async fn start_snapshot_request(&self, request: StartSnapshotRequest) -> Result<StartedSnapshot, ClientError> {
        let reply = self.snapshots_client().start(request).await;
        Ok(reply.map_err(|status| ClientError::from_status(&status))?.into_inner())
    }

    /// The snapshots of a source, or, where it is empty, of all, that have not ended, and the last that have.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such source.
    pub async fn snapshots(&self, source: &str) -> Result<Vec<SnapshotStatus>, ClientError> {
        let request = ListSnapshotsRequest { source: source.to_owned() };
        let reply = self.snapshots_client().list(request).await;
        Ok(reply.map_err(|status| ClientError::from_status(&status))?.into_inner().snapshots)
    }

    /// A snapshot's status, now and whenever it changes, until it has ended. A lost connection is an error of the stream.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such snapshot.
    pub async fn watch_snapshot(
        &self,
        source: &str,
        snapshot: u32,
    ) -> Result<impl Stream<Item = Result<SnapshotStatus, ClientError>> + use<>, ClientError> {
        let reply = self.snapshots_client().watch(one(source, snapshot)).await;
        let statuses = reply.map_err(|status| ClientError::from_status(&status))?.into_inner();
        Ok(statuses.map(|status| status.map_err(|status| ClientError::from_status(&status))))
    }

    /// Lets a snapshot wait; it keeps what it has.
    ///
    /// # Errors
    /// The server cannot be reached, or the snapshot has ended.
    pub async fn pause_snapshot(&self, source: &str, snapshot: u32) -> Result<(), ClientError> {
        let reply = self.snapshots_client().pause(one(source, snapshot)).await;
        reply.map(|_| ()).map_err(|status| ClientError::from_status(&status))
    }

    /// Lets a paused snapshot go on.
    ///
    /// # Errors
    /// The server cannot be reached, or the snapshot has ended.
    pub async fn resume_snapshot(&self, source: &str, snapshot: u32) -> Result<(), ClientError> {
        let reply = self.snapshots_client().resume(one(source, snapshot)).await;
        reply.map(|_| ()).map_err(|status| ClientError::from_status(&status))
    }

    /// Gives a snapshot up. Subscriptions that wait for its end receive [`Event::Reset`](crate::Event::Reset).
    ///
    /// # Errors
    /// The server cannot be reached, or the snapshot has ended.
    pub async fn cancel_snapshot(&self, source: &str, snapshot: u32) -> Result<(), ClientError> {
        let reply = self.snapshots_client().cancel(one(source, snapshot)).await;
        reply.map(|_| ()).map_err(|status| ClientError::from_status(&status))
    }

    fn snapshots_client(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel())
    }
}

fn one(source: &str, snapshot: u32) -> SnapshotRequest {
    SnapshotRequest { source: source.to_owned(), snapshot }
}
