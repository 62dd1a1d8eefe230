//! The server's TLS, through the client library and `tail`: the right authority is let in, everything else is told what is
//! wrong.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tidegate_client::Client;
use tidegate_integration_tests::{
    Cluster, Database, Ended, Recorder, Scratch, Server, ServerConfig, ServerTls, tidegate,
};

/// An authority, and a certificate of it for the loopback address.
fn certificates(scratch: &Scratch, name: &str) -> Result<ServerTls> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, format!("{name} authority"));
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])?
        .signed_by(&key, &Issuer::new(authority, authority_key))?;
    let write = |kind: &str, text: String| -> Result<PathBuf> {
        let path = scratch.join(&format!("{name}-{kind}.pem"));
        std::fs::write(&path, text)?;
        Ok(path)
    };
    Ok(ServerTls {
        certificate: write("server", certificate.pem())?,
        key: write("key", key.serialize_pem())?,
        authority: write("authority", authority_pem)?,
    })
}

/// A server with TLS, the authority of another, and the folder that both are in.
async fn served(name: &str) -> Result<(Database, Server, ServerTls, Scratch)> {
    let scratch = Scratch::new()?;
    let (own, stranger) = (certificates(&scratch, "own")?, certificates(&scratch, "stranger")?);
    let database = Cluster::shared().await?.database(name).await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig { tls: Some(own), ..ServerConfig::of(database.url()) }).await?;
    database.mark("here").await?;
    Ok((database, server, stranger, scratch))
}

async fn tail(server: &str, authority: Option<&PathBuf>) -> Result<std::process::Output> {
    let mut arguments = vec!["tail", "--from", "earliest", "--limit", "1", "--server", server];
    let authority = authority.map(|path| path.display().to_string());
    arguments.extend(authority.as_deref().into_iter().flat_map(|path| ["--tls-ca", path]));
    tidegate(&arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_authority_is_let_in() -> Result<()> {
    let (database, server, _stranger, _scratch) = served("tls_right").await?;
    let client = server.client().await?;
    let mut recorder = Recorder::new(server.endpoint()).through(client);
    ensure!(recorder.until_marker("here").await? == Ended::Arrived);
    database.mark("after").await?;
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    let authority = server.tls().context("it has TLS")?.authority.clone();
    let output = tail(&server.endpoint(), Some(&authority)).await?;
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && printed.contains("name=here"), "{printed}{errors}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_told_that_the_certificate_is_not_its_own() -> Result<()> {
    let (_database, server, stranger, _scratch) = served("tls_wrong").await?;
    let refused = Client::builder(server.endpoint()).certificate_authority(std::fs::read(&stranger.authority)?);
    let error = refused.connect().await.err().context("the wrong authority")?.to_string();
    ensure!(error.contains("UnknownIssuer") && error.contains("certificate authority"), "{error}");
    let output = tail(&server.endpoint(), Some(&stranger.authority)).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && errors.contains("certificate authority"), "{errors}");
    // None at all is no better.
    let output = tail(&server.endpoint(), None).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && errors.contains("certificate authority"), "{errors}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_client_is_told_to_use_https_and_harms_nobody() -> Result<()> {
    let (_database, server, _stranger, _scratch) = served("tls_plain").await?;
    let plain = format!("http://{}", server.address());
    let error = Client::connect(&plain).await.err().context("a plain client was let in")?;
    ensure!(error.to_string().contains("https://"), "{error}");
    let output = tail(&plain, None).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && errors.contains("https://"), "{errors}");
    server.streaming().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_client_is_told_to_use_http_where_the_server_is_plain() -> Result<()> {
    let database = Cluster::shared().await?.database("tls_none").await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let output = tail(&format!("https://{}", server.address()), None).await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && errors.contains("http://"), "{errors}");
    Ok(())
}
