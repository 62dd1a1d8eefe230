//! Looks after slot and publication while they are read from: how much WAL PostgreSQL keeps, and what is published.

use std::{sync::Arc, time::Duration};

use tidegate_postgres::{PublicationContent, Session, slot_status};
use tokio::time::{MissedTickBehavior, interval};

use crate::{CaptureError, link::Link, promises::Promises};

/// A table that joins the publication is not looked after before the next look.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the session breaks, or the publication does.
pub(crate) async fn observe(
    session: Arc<Session>,
    slot: String,
    link: Arc<Link>,
    (promises, mut published): (Promises, PublicationContent),
) -> CaptureError {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match slot_status(&session, &slot).await {
            Ok(Some(status)) => link.update(|shown| shown.retained_wal_bytes = status.retained_wal_bytes),
            Ok(None) => {}
            Err(error) => return error.into(),
        }
        if let Err(error) = promises.look_after(&session, &mut published).await {
            return error;
        }
    }
}
