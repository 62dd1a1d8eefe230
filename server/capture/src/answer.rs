//! Answers the server on a clock of its own, however busy or blocked the reading is.
//!
//! Each second, when asked, and when more has become durable, at most ten times a second: PostgreSQL may write the slot to
//! its disk at each confirmation. Each regular answer asks the server to reply, so that silence
//! on an idle database is soon told from an idle one, and its WAL positions become known.

use std::{sync::Arc, time::Duration};

use tidegate_feed::Durable;
use tidegate_model::Clock;
use tidegate_postgres::{StandbyStatus, WalWriter};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{CaptureError, link::Link};

const INTERVAL: Duration = Duration::from_secs(1);
/// Between answers that only confirm.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(100);

/// Runs until the connection breaks.
pub(crate) async fn answer(
    mut writer: WalWriter,
    link: Arc<Link>,
    mut durable: watch::Receiver<Durable>,
    clock: Arc<dyn Clock>,
) -> CaptureError {
    let status = link.subscribe();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut confirm_from = Instant::now();
    loop {
        let regular = tokio::select! {
            _instant = ticks.tick() => true,
            () = link.answer_now.notified() => false,
            changed = async {
                tokio::time::sleep_until(confirm_from).await;
                durable.changed().await
            } => {
                if changed.is_err() {
                    // The store has ended; the reading side learns it when it publishes.
                    ticks.tick().await;
                }
                false
            }
        };
        let now = *durable.borrow_and_update();
        let confirmed_flush_lsn = link.durable(now);
        let received_lsn = status.borrow().received_lsn.max(confirmed_flush_lsn);
        let answer = StandbyStatus {
            received_lsn,
            flushed_lsn: confirmed_flush_lsn,
            applied_lsn: confirmed_flush_lsn,
            clock_us: clock.now_us(),
            reply_requested: link.take_wants_reply() || regular,
        };
        if let Err(error) = writer.status(answer).await {
            return error.into();
        }
        confirm_from = Instant::now() + CONFIRM_INTERVAL;
    }
}
