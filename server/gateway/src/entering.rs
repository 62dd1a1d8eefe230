//! A subscription on its way to being open, which may take a while: the mirror of a table that its shapes need is made first.
//!
//! ```text
//! Opening ──open──▶ Opened
//!    ▲      └─ a mirror is not complete ─▶ Preparing, told each second ─┐
//!    └───────────────────────── it is complete ────────────────────────┘
//! ```
//!
//! Nothing is kept of the first attempt: once the mirror is complete, the subscription is opened as if it had just been asked for.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tidegate_model::TableName;
use tidegate_proto::v1::{self, mirrored_table::State};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    opening::{Opened, Opening},
    reset::Refusal,
    shape::ShapeRefusal,
    shared::Shared,
    source::Source,
    status::GatewayError,
};

/// Between two attempts, at least.
const PAUSE: Duration = Duration::from_millis(100);
/// While the source does not know of the table's mirror, it is asked for again after so long.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);

/// Not open yet.
pub(crate) struct Entering {
    opening: Opening,
    shared: Arc<Shared>,
    waits: Option<Waits>,
}

/// For a table's mirror.
struct Waits {
    source: Arc<Source>,
    table: TableName,
    /// Nothing is done before.
    not_before: Instant,
    /// What has been asked for should be known by then.
    known_by: Instant,
    told: bool,
}

/// What has come of it.
pub(crate) enum Entered {
    Open(Box<Opened>),
    /// Not yet: tell the client, and go on.
    Waits(Box<Entering>, v1::Preparing),
    Refused(Refusal),
}

impl Entering {
    pub(crate) fn new(opening: Opening, shared: Arc<Shared>) -> Self {
        Entering { opening, shared, waits: None }
    }

    /// Goes on until there is something to tell.
    pub(crate) async fn next(mut self: Box<Self>) -> Entered {
        loop {
            if let Some(waits) = &mut self.waits {
                match waits.next(self.shared.config.progress_interval).await {
                    Ok(Some(told)) => return Entered::Waits(self, told),
                    Ok(None) => {}
                    Err(refused) => return Entered::Refused(refused.into()),
                }
            }
            let refused = match self.opening.clone().open(Arc::clone(&self.shared)).await {
                Ok(opened) => return Entered::Open(Box::new(opened)),
                Err(refused) => refused,
            };
            let table = match &refused {
                Refusal::Error(GatewayError::Shape { table, error }) if error.is_building() => table.clone(),
                Refusal::Error(_) | Refusal::Reset(_) => return Entered::Refused(refused),
            };
            let told = self.waits.as_ref().is_some_and(|waits| waits.table == table);
            match self.shared.sources.get(&self.opening.source) {
                Ok(source) => {
                    let now = Instant::now();
                    let (not_before, known_by) = (now + PAUSE, now + UNKNOWN_FOR);
                    self.waits = Some(Waits { source, table, not_before, known_by, told });
                }
                Err(error) => return Entered::Refused(error.into()),
            }
        }
    }
}

impl Waits {
    /// What to tell next, at once or after `interval`; None when it is worth another attempt.
    async fn next(&mut self, interval: Duration) -> Result<Option<v1::Preparing>, GatewayError> {
        let tell_at = if std::mem::replace(&mut self.told, true) { Instant::now() + interval } else { Instant::now() };
        sleep_until(self.not_before.min(tell_at)).await;
        let mut status = self.source.handle.status.clone();
        let name = self.table.to_string();
        let settled = status.wait_for(|status| {
            let of = status.mirror.iter().find(|of| of.table == name);
            of.is_some_and(|of| matches!(of.state(), State::Complete | State::Verifying | State::Unsupported))
        });
        let is_settled = timeout_at(tell_at.max(self.not_before), settled).await.is_ok_and(|status| status.is_ok());
        if !is_settled {
            let is_lost = Instant::now() >= self.known_by && self.status().is_none();
            return Ok(if is_lost { None } else { Some(self.told().await) });
        }
        match self.status() {
            Some(of) if of.state() == State::Unsupported => {
                let error = Box::new(ShapeRefusal::MirrorFailed { detail: of.detail });
                Err(GatewayError::Shape { table: self.table.clone(), error })
            }
            Some(_) | None => Ok(None),
        }
    }

    fn status(&self) -> Option<v1::MirroredTable> {
        let name = self.table.to_string();
        self.source.handle.status.borrow().mirror.iter().find(|of| of.table == name).cloned()
    }

    /// How far it is.
    async fn told(&self) -> v1::Preparing {
        let table = self.table.to_string();
        let of = self.status().unwrap_or_default();
        let statuses = self.source.handle.snapshots.statuses().next().await.unwrap_or_default();
        let snapshot = statuses.into_iter().find(|status| status.snapshot == of.snapshot).unwrap_or_default();
        let detail = if of.detail.is_empty() { snapshot.detail } else { of.detail };
        v1::Preparing { table, rows_read: snapshot.rows_read, rows_estimated: snapshot.rows_estimated, detail }
    }
}
