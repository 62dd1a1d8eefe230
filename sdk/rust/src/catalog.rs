//! What the server has: sources and tables.

use std::sync::Arc;

use tidegate_proto::v1::{GetTableRequest, ListSourcesRequest, ListTablesRequest, catalog_client::CatalogClient};

use crate::{Client, ClientError, RowType};

pub use tidegate_proto::v1::{
    MirroredTable, NewTable, SourceStatus, SubscriptionStatus, mirrored_table::State as MirrorState,
    source_status::State as SourceState,
};

impl Client {
    /// The sources with their positions and lag.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn sources(&self) -> Result<Vec<SourceStatus>, ClientError> {
        let reply = CatalogClient::new(self.channel()).list_sources(ListSourcesRequest {}).await;
        Ok(reply.map_err(|status| ClientError::from_status(&status))?.into_inner().sources)
    }

    /// The tables of a source that have been seen in its stream. The source may be empty where the server has one.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such source.
    pub async fn tables(&self, source: &str) -> Result<Vec<Arc<RowType>>, ClientError> {
        let request = ListTablesRequest { source: source.to_owned() };
        let reply = CatalogClient::new(self.channel()).list_tables(request).await;
        let tables = reply.map_err(|status| ClientError::from_status(&status))?.into_inner().tables;
        Ok(tables.into_iter().map(RowType::from).map(Arc::new).collect())
    }

    /// One table, named in PostgreSQL's identifier syntax. The source may be empty where the server has one.
    ///
    /// # Errors
    /// The server cannot be reached, or has no such table.
    pub async fn table(&self, source: &str, table: &str) -> Result<Arc<RowType>, ClientError> {
        let request = GetTableRequest { source: source.to_owned(), table: table.to_owned() };
        let reply = CatalogClient::new(self.channel()).get_table(request).await;
        let table = reply.map_err(|status| ClientError::from_status(&status))?.into_inner().table;
        let missing = || ClientError::Violation(crate::Violation::Unknown("GetTableResponse"));
        table.map(RowType::from).map(Arc::new).ok_or_else(missing)
    }
}
