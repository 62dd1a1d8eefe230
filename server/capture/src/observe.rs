//! Looks after the slot while it is read from: how much WAL PostgreSQL keeps for it.

use std::{sync::Arc, time::Duration};

use tidegate_postgres::{Session, slot_status};
use tokio::time::{MissedTickBehavior, interval};

use crate::{CaptureError, link::Link};

const INTERVAL: Duration = Duration::from_secs(5);

/// Runs until the session breaks.
pub(crate) async fn observe(session: Arc<Session>, slot: String, link: Arc<Link>) -> CaptureError {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match slot_status(&session, &slot).await {
            Ok(Some(status)) => link.update(|shown| shown.retained_wal_bytes = status.retained_wal_bytes),
            Ok(None) => {}
            Err(error) => return error.into(),
        }
    }
}
