//! A server's address and how to speak to it.
//!
//! Invariant: each subscription has a connection of its own, so that one that is not read never holds up another, and a
//! connection that has died or is being drained is left behind for good. Calls about the catalog share one.

use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{Changes, ClientError, Subscription, connection::Dialer};

const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// A server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    dialer: Dialer,
    channel: Channel,
}

impl Client {
    /// Connects to `http://HOST:PORT`. For TLS, see [`Client::builder`].
    ///
    /// # Errors
    /// The address is malformed, or nobody answers there.
    pub async fn connect(endpoint: impl Into<String>) -> Result<Client, ClientError> {
        Self::builder(endpoint).connect().await
    }

    /// The settings of a connection, to be changed before [`ClientBuilder::connect`].
    pub fn builder(endpoint: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            endpoint: endpoint.into(),
            certificate_authority: None,
            identity: None,
            server_name: None,
            connect_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(30),
            silence_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(10),
        }
    }

    /// Subscribes. The stream connects when it is first polled, and again, by itself, whenever the connection is lost.
    #[must_use]
    pub fn subscribe(&self, subscription: Subscription) -> Changes {
        Changes::new(self.dialer.clone(), subscription)
    }

    /// The connection that unary calls share.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// The settings of a [`Client`].
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use tidegate_client::Client;
///
/// let client = Client::builder("https://tidegate.internal:7171")
///     .certificate_authority(std::fs::read("ca.pem")?)
///     .identity(std::fs::read("client.pem")?, std::fs::read("client.key")?)
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    endpoint: String,
    certificate_authority: Option<Certificate>,
    identity: Option<Identity>,
    server_name: Option<String>,
    connect_timeout: Duration,
    call_timeout: Duration,
    silence_timeout: Duration,
    keepalive_interval: Duration,
}

impl ClientBuilder {
    /// Who vouches for the server, as PEM; needed with `https://`.
    #[must_use]
    pub fn certificate_authority(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.certificate_authority = Some(Certificate::from_pem(pem));
        self
    }

    /// The client's own certificate and key, as PEM.
    #[must_use]
    pub fn identity(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// The name that the server's certificate must bear, where it is not that of the address.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// How long a connection may take to open; 10 s unless said.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a call about the catalog may take; 30 s unless said.
    #[must_use]
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// After how long without a message a subscription's connection is taken for dead; 10 s unless said. The server
    /// sends Progress every second.
    #[must_use]
    pub fn silence_timeout(mut self, timeout: Duration) -> Self {
        self.silence_timeout = timeout;
        self
    }

    /// How often an HTTP/2 ping is sent; 10 s unless said.
    #[must_use]
    pub fn keepalive_interval(mut self, interval: Duration) -> Self {
        self.keepalive_interval = interval;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// The address or the TLS settings are malformed, or nobody answers there who speaks our protocol.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let dialer = self.dialer()?;
        let channel = dialer.dial(Some(self.call_timeout)).await?;
        dialer.greet(channel.clone()).await?;
        Ok(Client { dialer, channel })
    }

    fn dialer(&self) -> Result<Dialer, ClientError> {
        let error = |cause| ClientError::Endpoint { endpoint: self.endpoint.clone(), cause };
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone())
            .and_then(|endpoint| endpoint.user_agent(concat!("tidegate-client-rust/", env!("CARGO_PKG_VERSION"))))
            .map_err(error)?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.silence_timeout)
            .keep_alive_while_idle(true);
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(self.tls()).map_err(error)?;
        }
        Ok(Dialer::new(endpoint, self.connect_timeout, self.silence_timeout))
    }

    fn tls(&self) -> ClientTlsConfig {
        let mut tls = ClientTlsConfig::new();
        if let Some(certificate) = &self.certificate_authority {
            tls = tls.ca_certificate(certificate.clone());
        }
        if let Some(identity) = &self.identity {
            tls = tls.identity(identity.clone());
        }
        match &self.server_name {
            Some(name) => tls.domain_name(name.clone()),
            None => tls,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Retry;

    #[tokio::test]
    async fn a_malformed_address_is_not_worth_another_try() {
        let error = Client::connect("no address").await.expect_err("malformed");
        assert!(matches!(error, ClientError::Endpoint { .. }), "{error}");
        assert_eq!(error.retry(), Retry::Never);
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        drop(listener);
        let error = Client::connect(address.clone()).await.expect_err("nobody listens");
        assert!(error.to_string().contains(&address), "{error}");
        assert!(matches!(error.retry(), Retry::After(_)));
    }
}
