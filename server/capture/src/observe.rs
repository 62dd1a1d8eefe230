//! Looks after the slot while it is read from: how much WAL PostgreSQL keeps, where its WAL ends, and which of the transactions that
//! were decoded have become visible, so that they may be confirmed.
//!
//! Where the WAL ends a walsender does not tell: in a backlog, its messages and keepalives say how far it has sent.

use std::{sync::Arc, time::Duration};

use tidegate_postgres::{Session, slot_status, visibility};
use tokio::time::{MissedTickBehavior, interval};

use crate::{CaptureError, link::Link};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks between two looks at the slot of an idle source.
const SLOT_EVERY: u32 = 5;

/// Runs until the session breaks.
pub(crate) async fn observe(session: Arc<Session>, slot: String, link: Arc<Link>) -> CaptureError {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        for tick in 0..SLOT_EVERY {
            ticks.tick().await;
            // While commits come, more often.
            let looks = tick == 0 || link.waits_for_visibility();
            let observed = if looks { observe_slot(&session, &slot, &link).await } else { Ok(()) };
            if let Err(error) = observed.and(observe_visibility(&session, &link).await) {
                return error;
            }
        }
    }
}

async fn observe_slot(session: &Session, slot: &str, link: &Link) -> Result<(), CaptureError> {
    if let Some(status) = slot_status(session, slot).await? {
        link.update(|shown| {
            shown.retained_wal_bytes = status.retained_wal_bytes;
            shown.server_lsn = shown.server_lsn.max(status.server_lsn().unwrap_or_default());
        });
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
