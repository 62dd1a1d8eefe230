//! TLS as libpq's `sslmode` means it, by rustls with aws-lc-rs.
//!
//! | mode | certificate |
//! |---|---|
//! | prefer, require | not verified: protects from eavesdroppers, not from impostors |
//! | require with a root certificate, verify-ca | comes from the root certificate; for any host |
//! | verify-full | comes from the root certificate and carries the host's name |
//!
//! It deliberately has no default root certificates: an operator says whom to trust. The provider is named here, so it does
//! not depend on what the process has installed.

use std::{io, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio_rustls::TlsConnector;

use crate::{ConnectConfig, ConnectError, TlsMode};

/// What is demanded of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verification {
    None,
    Authority,
    AuthorityAndName,
}

/// A connector for the configured mode.
///
/// # Errors
/// [`ConnectError::Config`]: a certificate file is missing or unusable.
pub(crate) fn connector(config: &ConnectConfig) -> Result<TlsConnector, ConnectError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier::new(config, &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let client_config = match (&config.client_certificate, &config.client_key) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("sslkey", key, &error))?;
            let chain = certificates("sslcert", certificate)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => return Err(problem("sslcert is given without sslkey; give both")),
        (None, Some(_)) => return Err(problem("sslkey is given without sslcert; give both")),
    };
    Ok(TlsConnector::from(Arc::new(client_config)))
}

/// The host as TLS names it.
///
/// # Errors
/// [`ConnectError::Config`]: neither a DNS name nor an address.
pub(crate) fn server_name(config: &ConnectConfig) -> Result<ServerName<'static>, ConnectError> {
    ServerName::try_from(config.host.clone())
        .map_err(|_| problem(format!("host '{}' is neither a DNS name nor an address", config.host)))
}

/// The handshake's failure with the next step.
pub(crate) fn refused(config: &ConnectConfig, error: &io::Error) -> ConnectError {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let advice = match cause {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "; give the authority's certificate as sslrootcert"
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) => {
            "; connect by a name in the certificate, or use sslmode=verify-ca"
        }
        Some(_) | None => "",
    };
    ConnectError::Tls { address: config.address(), problem: format!("{error}{advice}") }
}

fn problem(text: impl Into<String>) -> ConnectError {
    ConnectError::Config { problem: text.into() }
}

fn unusable(error: &rustls::Error) -> ConnectError {
    problem(format!("TLS set-up: {error}"))
}

fn unreadable(parameter: &str, path: &Path, error: &dyn std::fmt::Display) -> ConnectError {
    problem(format!("{parameter} '{}': {error}", path.display()))
}

fn certificates(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(unreadable(parameter, path, &"holds no certificate in PEM form")),
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(parameter, path, &error)),
    }
}

/// Verifies as much as the mode demands, and the handshake's signature always.
#[derive(Debug)]
struct Verifier {
    verification: Verification,
    /// None: nothing is demanded.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(config: &ConnectConfig, provider: &Arc<CryptoProvider>) -> Result<Self, ConnectError> {
        let verification = match (config.tls, &config.root_certificate) {
            (TlsMode::Disable | TlsMode::Prefer, _) | (TlsMode::Require, None) => Verification::None,
            (TlsMode::Require | TlsMode::VerifyCa, Some(_)) => Verification::Authority,
            (TlsMode::VerifyFull, Some(_)) => Verification::AuthorityAndName,
            (TlsMode::VerifyCa | TlsMode::VerifyFull, None) => {
                return Err(problem("sslmode verify-ca and verify-full need sslrootcert, the authority's PEM file"));
            }
        };
        let authorities = match (&config.root_certificate, verification) {
            (Some(path), Verification::Authority | Verification::AuthorityAndName) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates("sslrootcert", path)? {
                    roots.add(certificate).map_err(|error| unreadable("sslrootcert", path, &error))?;
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
                Some(verifier.build().map_err(|error| unreadable("sslrootcert", path, &error))?)
            }
            (Some(_) | None, _) => None,
        };
        Ok(Verifier { verification, authorities, provider: Arc::clone(provider) })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let verified = authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is checked last, after the chain.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verification == Verification::Authority => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifying_needs_an_authority() {
        for tls in [TlsMode::VerifyCa, TlsMode::VerifyFull] {
            let config = ConnectConfig { tls, ..ConnectConfig::default() };
            assert!(matches!(connector(&config), Err(ConnectError::Config { .. })));
        }
        assert!(connector(&ConnectConfig::default()).is_ok());
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let config = ConnectConfig { client_certificate: Some("client.pem".into()), ..ConnectConfig::default() };
        assert!(matches!(connector(&config), Err(ConnectError::Config { .. })));
    }
}
