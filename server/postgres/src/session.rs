//! An ordinary SQL session with the pinned settings.
//!
//! Invariant: the connection's task lives in the session and ends with it; the settings were read back and are in force.

use secrecy::ExposeSecret;
use tokio::{task::JoinSet, time::timeout};
use tokio_postgres::{
    Client,
    config::{ChannelBinding as Binding, SslMode, SslNegotiation},
};

use crate::{
    ChannelBinding, ConnectConfig, ConnectError, ServerError, pins,
    replication::OLDEST_VERSION,
    socket::{AsItIs, Socket},
    wire::parse_version,
};

/// A session. Statements run one after the other, also when they are sent at the same time.
pub struct Session {
    client: Client,
    config: ConnectConfig,
    server_version: u32,
    /// Moves bytes for the client; aborted when the session is dropped. Its death closes the client, whose next statement says so.
    _connection: JoinSet<()>,
}

impl Session {
    /// Connects, logs in, and checks version and pinned settings.
    ///
    /// # Errors
    /// Everything that [`ConnectError`] tells apart.
    pub async fn connect(config: &ConnectConfig) -> Result<Session, ConnectError> {
        let connecting = Box::pin(Self::connect_unbounded(config));
        timeout(config.connect_timeout, connecting).await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout { address: config.address(), timeout: config.connect_timeout })
        })
    }

    async fn connect_unbounded(config: &ConnectConfig) -> Result<Session, ConnectError> {
        let given = config;
        let config = &*config.current().await?;
        let mut login = tokio_postgres::Config::new();
        login.user(&config.user).dbname(&config.database).application_name(&config.application_name);
        login.options(pins::options()).channel_binding(match config.channel_binding {
            ChannelBinding::Disable => Binding::Disable,
            ChannelBinding::Prefer => Binding::Prefer,
            ChannelBinding::Require => Binding::Require,
        });
        if let Some(password) = &config.password {
            login.password(password.expose_secret());
        }
        let socket = Socket::open(config).await?;
        // The socket is encrypted already where it should be; the client library need only know.
        login.ssl_mode(if socket.is_encrypted() { SslMode::Require } else { SslMode::Disable });
        login.ssl_negotiation(SslNegotiation::Direct);
        let refused = |error: tokio_postgres::Error| refused(config, &error);
        let (client, connection) = login.connect_raw(socket, AsItIs).await.map_err(refused)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a session's connection has ended");
            }
        });
        let row = client.query_one(&pins::query(), &[]).await.map_err(refused)?;
        pins::check((0..pins::PINS.len()).map(|at| row.try_get::<_, &str>(at).ok()))?;
        let version = client.query_one("SELECT pg_catalog.current_setting('server_version')", &[]).await;
        let version = version.and_then(|row| row.try_get::<_, String>(0)).map_err(refused)?;
        let server_version = parse_version(&version).unwrap_or(0);
        if server_version < OLDEST_VERSION {
            return Err(ConnectError::TooOld { version: server_version });
        }
        Ok(Session { client, config: given.clone(), server_version, _connection: tasks })
    }

    /// The client to run statements with.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The client, and the task that moves its bytes, for an owner that keeps the two apart. Dropping the task closes the
    /// client.
    #[must_use]
    pub fn into_parts(self) -> (Client, JoinSet<()>) {
        (self.client, self._connection)
    }

    /// What the session was connected with.
    #[must_use]
    pub fn config(&self) -> &ConnectConfig {
        &self.config
    }

    /// The server's version, such as 150020.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.server_version
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("config", &self.config).field("server_version", &self.server_version).finish()
    }
}

fn refused(config: &ConnectConfig, error: &tokio_postgres::Error) -> ConnectError {
    if let Some(db_error) = error.as_db_error() {
        return ConnectError::from_server(&config.user, ServerError::from_db_error(db_error));
    }
    let cause = std::error::Error::source(error);
    match cause.and_then(|cause| cause.downcast_ref::<std::io::Error>()) {
        Some(io_error) => ConnectError::Unreachable {
            address: config.address(),
            source: std::io::Error::new(io_error.kind(), io_error.to_string()),
        },
        // Where the server asks for a password that is not configured, the client library has no kind of its own for it.
        None if config.password.is_none() && cause.is_some_and(|cause| cause.to_string().contains("password")) => {
            ConnectError::PasswordMissing { user: config.user.clone() }
        }
        // Nor for a log-in that is not bound to the TLS connection.
        None if cause.is_some_and(|cause| cause.to_string().contains("channel binding")) => {
            ConnectError::ChannelBinding { address: config.address(), problem: "the server did not ask for it" }
        }
        None => ConnectError::Protocol {
            address: config.address(),
            problem: cause.map_or_else(|| error.to_string(), ToString::to_string),
        },
    }
}
