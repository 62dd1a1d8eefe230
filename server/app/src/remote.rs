//! Which running server a client command speaks to, and of which source.

use std::{fs, path::PathBuf};

use anyhow::Context;
use tidegate_client::Client;

/// The server, and how to trust it.
#[derive(clap::Args)]
pub(crate) struct RemoteArgs {
    /// The server's address.
    #[arg(long, env = "TIDEGATE_SERVER", default_value = "http://127.0.0.1:7171", value_name = "URL")]
    server: String,
    /// Who vouches for an https server: PEM file of certificates.
    #[arg(long, env = "TIDEGATE_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// This client's certificate: PEM file.
    #[arg(long, env = "TIDEGATE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of this client's certificate: PEM file.
    #[arg(long, env = "TIDEGATE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The name in the server's certificate, where it is not that of the address.
    #[arg(long, env = "TIDEGATE_TLS_SERVER_NAME", value_name = "NAME")]
    tls_server_name: Option<String>,
}

/// Which server and source.
#[derive(clap::Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) remote: RemoteArgs,
    /// The source; needed where the server has several.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub(crate) source: String,
}

impl RemoteArgs {
    /// Connects to it.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut builder = Client::builder(&self.server);
        if let Some(path) = &self.tls_ca {
            builder = builder.certificate_authority(read(path)?);
        }
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            builder = builder.identity(read(certificate)?, read(key)?);
        }
        if let Some(name) = &self.tls_server_name {
            builder = builder.server_name(name);
        }
        Ok(builder.connect().await?)
    }
}
