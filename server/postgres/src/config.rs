//! Where a server is and how to log in. Parsing lives in `url`.
//!
//! Invariant: `Debug` never shows the password.

use std::{fmt, path::PathBuf, time::Duration};

use secrecy::SecretString;

/// Whether and how a connection is encrypted; libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// If the server can; the certificate is not verified. libpq's default, and ours.
    Prefer,
    /// Always; the certificate is verified only where a root certificate is given.
    Require,
    /// Always; the certificate must come from the root certificate.
    VerifyCa,
    /// Always; it must also carry the host's name.
    VerifyFull,
}

/// Whether a log-in by SCRAM is bound to the TLS connection, which keeps out who sits in between even where certificates are
/// not verified; libpq's `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server can. libpq's default, and ours.
    Prefer,
    /// Always: a log-in of any other kind is refused.
    Require,
}

/// Where a server is and how to log in.
#[derive(Clone)]
pub struct ConnectConfig {
    /// Name or address, or the directory of a unix socket, which starts with `/`.
    pub host: String,
    /// TCP port, also part of the unix socket's name.
    pub port: u16,
    /// Database.
    pub database: String,
    /// Role.
    pub user: String,
    /// Password, where the server asks for one.
    pub password: Option<SecretString>,
    /// Must the log-in be bound to the TLS connection?
    pub channel_binding: ChannelBinding,
    /// Encryption; does not apply to unix sockets.
    pub tls: TlsMode,
    /// PEM file of the authorities that the server's certificate must come from.
    pub root_certificate: Option<PathBuf>,
    /// PEM file of our certificate and those between it and its authority.
    pub client_certificate: Option<PathBuf>,
    /// PEM file of our certificate's private key.
    pub client_key: Option<PathBuf>,
    /// Shown in `pg_stat_activity` and `pg_stat_replication`.
    pub application_name: String,
    /// The file that all but `application_name` was read from. It is read again at each connection, so that a rotated password
    /// is taken up.
    pub url_file: Option<PathBuf>,
    /// For resolving, connecting, TLS and log-in together.
    pub connect_timeout: Duration,
}

impl Default for ConnectConfig {
    fn default() -> Self {
        ConnectConfig {
            host: "localhost".to_owned(),
            port: 5432,
            database: "postgres".to_owned(),
            user: "postgres".to_owned(),
            password: None,
            channel_binding: ChannelBinding::Prefer,
            tls: TlsMode::Prefer,
            root_certificate: None,
            client_certificate: None,
            client_key: None,
            application_name: "tidegate".to_owned(),
            url_file: None,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

impl ConnectConfig {
    /// Is the host the directory of a unix socket?
    #[must_use]
    pub fn is_unix_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// The server as a person would name it: `host:port/database`, without user and password.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{}/{}", self.host, self.port, self.database)
    }
}

impl fmt::Debug for ConnectConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("database", &self.database)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("channel_binding", &self.channel_binding)
            .field("tls", &self.tls)
            .field("root_certificate", &self.root_certificate)
            .field("client_certificate", &self.client_certificate)
            .field("client_key", &self.client_key)
            .field("application_name", &self.application_name)
            .field("url_file", &self.url_file)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}
