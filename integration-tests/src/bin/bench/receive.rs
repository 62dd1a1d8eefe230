//! Receiving events until a case has what it waits for.

use anyhow::{Result, bail};
use tidegate_client::{Changes, Event};

/// Receives until an event is the last.
///
/// # Errors
/// The stream ends before, is reset, or is interrupted within a transaction: what was counted of it comes again.
pub(crate) async fn until(changes: &mut Changes, mut is_last: impl FnMut(&Event) -> bool) -> Result<()> {
    while let Some(batch) = changes.next_batch().await? {
        for event in batch {
            if matches!(event, Event::Abort | Event::Reset { .. }) {
                bail!("the stream was interrupted: {event:?}");
            }
            if is_last(&event) {
                return Ok(());
            }
        }
    }
    bail!("the stream ended")
}
