//! A pooler in between: it is found and named, by `check` and by the capture, however it treats what it does not know.

use anyhow::{Context, Result, ensure};
use tidegate_client::SourceState;
use tidegate_integration_tests::{Cluster, Pooler, Server, ServerConfig, tidegate};

/// Both must say that a pooler is in the way.
async fn is_found(name: &str, settings: &[(&str, &str)]) -> Result<()> {
    let cluster = Cluster::shared().await?;
    let Some(pooler) = Pooler::start(cluster, settings).await? else { return Ok(()) };
    cluster.database(name).await?.create_marker().await?;
    let url = pooler.url(name);
    let output = tidegate(&["check", "--url", &url]).await?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(3), "exit code {:?}: {printed}", output.status.code());
    ensure!(printed.contains(" pooler: ") && printed.contains("not of the pooler"), "{printed}");

    let mut server = Server::stopped(ServerConfig::of(&url))?;
    server.launch().await?;
    let names_it = |detail: &str| detail.contains("pooler") && detail.contains("connect to PostgreSQL itself");
    let status = server.until("shop", "names the pooler", |status| names_it(&status.detail)).await?;
    ensure!(status.state() == SourceState::Connecting, "{status:?}");
    let log = server.process()?.log();
    let line = log.lines().find(|line| line.contains("pooler")).context("the log does not name the pooler")?;
    ensure!(line.contains("WARN") || line.contains("ERROR"), "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn that_refuses_our_settings() -> Result<()> {
    is_found("pooled", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn that_drops_our_settings_in_silence() -> Result<()> {
    is_found("pooled_silently", &[("ignore_startup_parameters", "options,extra_float_digits")]).await
}
