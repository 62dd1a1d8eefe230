//! Looks after the slot while it is read from: how much WAL PostgreSQL keeps, and which of the transactions that were decoded
//! have become visible, so that they may be confirmed.

use std::{sync::Arc, time::Duration};

use tidegate_postgres::{Session, slot_status, visibility};
use tokio::time::{MissedTickBehavior, interval};

use crate::{CaptureError, link::Link};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks between two looks at the slot.
const SLOT_EVERY: u32 = 5;

/// Runs until the session breaks.
pub(crate) async fn observe(session: Arc<Session>, slot: String, link: Arc<Link>) -> CaptureError {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        for tick in 0..SLOT_EVERY {
            ticks.tick().await;
            let observed = if tick == 0 { observe_slot(&session, &slot, &link).await } else { Ok(()) };
            if let Err(error) = observed.and(observe_visibility(&session, &link).await) {
                return error;
            }
        }
    }
}

async fn observe_slot(session: &Session, slot: &str, link: &Link) -> Result<(), CaptureError> {
    if let Some(status) = slot_status(session, slot).await? {
        link.update(|shown| shown.retained_wal_bytes = status.retained_wal_bytes);
    }
    Ok(())
}

/// Asks only while something waits for it: an idle source is left alone.
async fn observe_visibility(session: &Session, link: &Link) -> Result<(), CaptureError> {
    if link.waits_for_visibility() {
        link.seen(visibility(session).await?);
    }
    Ok(())
}
