//! What may be confirmed to PostgreSQL, given what is durable here and what is visible there. Pure.
//!
//! Invariant: what is confirmed never exceeds what is durable nor the visible floor, and never goes back.

use std::collections::VecDeque;

use tidegate_model::{Epoch, Lsn, Position};

use crate::assembler::ConfirmPoint;

/// Points that are not durable yet, in order; one a block, so that the feed's budget bounds them.
#[derive(Debug, Default)]
pub(crate) struct Confirmations {
    epoch: Option<Epoch>,
    waiting: VecDeque<ConfirmPoint>,
    /// Of the last point that is durable.
    durable_confirm_lsn: Lsn,
    confirmed_flush_lsn: Lsn,
}

impl Confirmations {
    /// Something has been handed to the feed.
    pub(crate) fn published(&mut self, point: ConfirmPoint) {
        self.waiting.push_back(point);
    }

    /// Everything up to `position` of `epoch` is durable: what may be confirmed now. Positions of another epoch say nothing.
    /// `visible_floor_lsn` (see [`crate::snapshot::Unseen::confirm_floor`]) must be newer than `position`.
    pub(crate) fn durable(&mut self, epoch: Option<Epoch>, position: Position, visible_floor_lsn: Option<Lsn>) -> Lsn {
        if epoch != self.epoch {
            return self.confirmed_flush_lsn;
        }
        while let Some(point) = self.waiting.front()
            && point.position <= position
        {
            self.durable_confirm_lsn = self.durable_confirm_lsn.max(point.confirm_lsn);
            self.waiting.pop_front();
        }
        let allowed = visible_floor_lsn.map_or(self.durable_confirm_lsn, |floor| floor.min(self.durable_confirm_lsn));
        self.confirmed_flush_lsn = self.confirmed_flush_lsn.max(allowed);
        self.confirmed_flush_lsn
    }

    /// A connection begins where the slot stands.
    pub(crate) fn connected(&mut self, epoch: Option<Epoch>, confirmed_flush_lsn: Lsn) {
        self.epoch = epoch;
        self.confirmed_flush_lsn = self.confirmed_flush_lsn.max(confirmed_flush_lsn);
    }

    /// A new epoch: nothing published before counts. Its start may lie beyond what the slot has confirmed, and is confirmed
    /// when the epoch itself is durable: after a crash, the old one would find that the slot has gone ahead of it.
    pub(crate) fn start_epoch(&mut self, epoch: Epoch, start_lsn: Lsn) {
        let start = ConfirmPoint { position: Position::new(start_lsn, 0), confirm_lsn: start_lsn };
        *self = Confirmations { epoch: Some(epoch), waiting: [start].into(), ..Confirmations::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(end: u64, ordinal: u32, confirm: u64) -> ConfirmPoint {
        ConfirmPoint { position: Position::new(Lsn(end), ordinal), confirm_lsn: Lsn(confirm) }
    }

    #[test]
    fn nothing_is_confirmed_before_it_is_durable_and_the_last_transaction_stays_unconfirmed() {
        let epoch = Epoch(7);
        let mut confirmations = Confirmations::default();
        confirmations.start_epoch(epoch, Lsn(10));
        confirmations.connected(Some(epoch), Lsn(5));
        assert_eq!(confirmations.durable(Some(Epoch(6)), Position::new(Lsn(40), 1), None), Lsn(5));
        assert_eq!(confirmations.durable(Some(epoch), Position::end_of_transaction(Lsn(10)), None), Lsn(10));
        confirmations.published(point(20, 0, 18));
        confirmations.published(point(30, 0, 28));
        assert_eq!(confirmations.durable(Some(epoch), Position::new(Lsn(19), 7), None), Lsn(10));
        assert_eq!(confirmations.durable(Some(epoch), Position::new(Lsn(20), 1), None), Lsn(18));
        assert_eq!(confirmations.durable(Some(Epoch(8)), Position::new(Lsn(40), 1), None), Lsn(18));
        assert_eq!(confirmations.durable(Some(epoch), Position::new(Lsn(40), 1), None), Lsn(28));
    }

    #[test]
    fn what_no_snapshot_has_seen_stays_unconfirmed_and_is_confirmed_once_it_is_seen() {
        let epoch = Epoch(7);
        let mut confirmations = Confirmations::default();
        confirmations.start_epoch(epoch, Lsn(10));
        confirmations.published(point(20, 0, 18));
        confirmations.published(point(30, 0, 28));
        let all = Position::new(Lsn(40), 1);
        assert_eq!(confirmations.durable(Some(epoch), all, Some(Lsn(5))), Lsn(5));
        assert_eq!(confirmations.durable(Some(epoch), all, Some(Lsn(18))), Lsn(18));
        assert_eq!(confirmations.durable(Some(epoch), all, Some(Lsn(90))), Lsn(28));
        assert_eq!(confirmations.durable(Some(epoch), all, Some(Lsn(18))), Lsn(28));
    }
}
