//! Opens connections to the control database, and drives them.
//!
//! Invariant: a connection's task lives here, as long as its client may be in use; `close` ends them all.

use std::sync::{Arc, Mutex, PoisonError};
use tidegate_control::{Connector, ControlError};
use tidegate_postgres::{ConnectConfig, Session};
use tokio::task::JoinSet;

/// Hands out connectors; one for the whole process.
pub(crate) struct ControlConnector {
    config: Arc<ConnectConfig>,
    /// Tasks of connections, each in a set of its own. Those that have ended are dropped at the next connect.
    connections: Arc<Mutex<Vec<JoinSet<()>>>>,
}

impl ControlConnector {
    /// A connector for the database; connects only when asked.
    pub(crate) fn new(config: ConnectConfig) -> Self {
        ControlConnector { config: Arc::new(config), connections: Arc::default() }
    }

    /// What `Control::open` takes.
    pub(crate) fn connector(&self) -> Connector {
        let (config, connections) = (Arc::clone(&self.config), Arc::clone(&self.connections));
        Arc::new(move || {
            let (config, connections) = (Arc::clone(&config), Arc::clone(&connections));
            Box::pin(async move {
                let session =
                    Session::connect(&config).await.map_err(|error| ControlError::Connect(error.to_string()))?;
                let (client, connection) = session.into_parts();
                let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
                connections.retain_mut(|tasks| {
                    while tasks.try_join_next().is_some() {}
                    !tasks.is_empty()
                });
                connections.push(connection);
                Ok(client)
            })
        })
    }

    /// Closes all connections.
    pub(crate) fn close(&self) {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
