//! `tidegate demo`, as the README's first command runs it.

use std::fs;

use anyhow::{Result, ensure};
use tidegate_integration_tests::{Scratch, tidegate_with};

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_twenty_changes_and_leaves_nothing_behind() -> Result<()> {
    let scratch = Scratch::new()?;
    let folder = [("TMPDIR", scratch.path().as_os_str())];
    let output = tidegate_with(&["demo", "--changes", "20"], &folder).await?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {printed}{errors}", output.status);
    let events = printed
        .lines()
        .filter(|line| ["insert", "update", "delete", "truncate"].iter().any(|op| line.to_lowercase().contains(op)));
    ensure!(events.count() >= 20, "fewer than 20 events:\n{printed}");
    ensure!(printed.contains("grpcurl") || errors.contains("grpcurl"), "no grpcurl lines to try");
    let left: Vec<_> = fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path()).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}
