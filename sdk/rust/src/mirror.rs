//! The server's mirror: is it what PostgreSQL has?

use futures_util::{Stream, StreamExt};
use tidegate_proto::v1::{VerifyMirrorRequest, mirror_client::MirrorClient};

use crate::{Client, ClientError};

pub use tidegate_proto::v1::{
    MirrorDifference, VerifyMirrorResponse as MirrorComparison, mirror_difference::Kind as MirrorDifferenceKind,
};

impl Client {
    /// Compares a table's mirror with PostgreSQL by a snapshot of the table; what differs is told, and put right. Messages come
    /// about once a second; the last is `done`. The source may be empty where the server has one.
    ///
    /// # Errors
    /// The server cannot be reached, or the table has no complete mirror.
    pub async fn verify_mirror(
        &self,
        source: &str,
        table: &str,
    ) -> Result<impl Stream<Item = Result<MirrorComparison, ClientError>> + use<>, ClientError> {
        let request = VerifyMirrorRequest { source: source.to_owned(), table: table.to_owned() };
        let reply = MirrorClient::new(self.channel()).verify(request).await;
        let responses = reply.map_err(|status| ClientError::from_status(&status))?.into_inner();
        Ok(responses.map(|response| response.map_err(|status| ClientError::from_status(&status))))
    }
}
