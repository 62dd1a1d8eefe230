//! TLS of the gRPC port, out of the files that the configuration names.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::config::Tls;

/// What gRPC speaks, as TLS's application protocols name it.
const HTTP_2: &[u8] = b"h2";

/// A server with the certificate; clients need one of theirs where `client_ca` is given.
pub(crate) fn server(tls: &Tls) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("tls.client_ca", file)? {
                roots.add(authority).with_context(|| unusable("tls.client_ca", file))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .with_context(|| unusable("tls.client_ca", file))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key).with_context(|| unusable("tls.key", &tls.key))?;
    let mut config = builder
        .with_single_cert(certificates("tls.certificate", &tls.certificate)?, key)
        .with_context(|| unusable("tls.certificate and tls.key", &tls.certificate))?;
    config.alpn_protocols.push(HTTP_2.to_vec());
    Ok(Arc::new(config))
}

/// What a PEM file has, at least one.
fn certificates(option: &str, file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect).with_context(|| unusable(option, file))?;
    anyhow::ensure!(!certificates.is_empty(), "{option}: {} has no certificate in PEM form", file.display());
    Ok(certificates)
}

fn unusable(option: &str, file: &Path) -> String {
    format!("{option}: cannot use {}", file.display())
}
