//! Waiting for what happens outside of this process.
//!
//! Another process's state can only be asked for again and again; this is the one place that does so. Within the stream,
//! tests wait for positions and marker rows instead.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, bail};

/// After this time a thing that was to happen is taken not to happen. Generous: a loaded machine must not fail a test.
pub const DEADLINE: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(25);

/// Asks until the answer is there, at most for [`DEADLINE`].
///
/// # Errors
/// The question fails, or the time is over; the error says what was waited for.
pub async fn within<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let asking = async {
        loop {
            if let Some(answer) = ask().await? {
                return anyhow::Ok(answer);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(DEADLINE, asking).await {
        Ok(answer) => answer.with_context(|| format!("while waiting: {what}")),
        Err(_) => bail!("{what}: not within {} s", DEADLINE.as_secs()),
    }
}
