//! Which snapshots that someone starts a subscription receives: those that begin while it asks for them.
//!
//! It may ask in one connection and not in the next. A snapshot of a table without a key is received whole or not at all: its first
//! chunk voids what was received, and who counts the rows of the others without it counts them twice. So what matters is where a snapshot
//! begins, and the token's prefix knows where the subscription has begun to ask, and ceased to.

use crate::Position;

/// Places that are remembered. A snapshot that goes on over more than so many changes is taken for one that began after them.
const TURNS_MAX: usize = 8;

/// From where to where a subscription receives them. Copied, compared and hashed as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AdHoc {
    /// It receives what begins after the first, not what begins after the second, and so on; in order, the rest zero.
    turns: [Position; TURNS_MAX],
    turn_count: u8,
}

impl AdHoc {
    /// Where it has changed, in order, beginning with on. None where that cannot be.
    #[must_use]
    pub fn of_turns(turns: &[Position]) -> Option<Self> {
        let mut all = AdHoc { turn_count: u8::try_from(turns.len()).ok()?, ..AdHoc::default() };
        all.turns.get_mut(..turns.len())?.copy_from_slice(turns);
        turns.is_sorted_by(|a, b| a < b).then_some(all)
    }

    /// Where it has changed, in order, beginning with on.
    #[must_use]
    pub fn turns(&self) -> &[Position] {
        &self.turns[..usize::from(self.turn_count)]
    }

    /// Is a snapshot received whose SnapshotBegin stands there?
    #[must_use]
    pub fn receives(&self, begin: Position) -> bool {
        self.turns().iter().filter(|turn| **turn < begin).count() % 2 == 1
    }

    /// From this place on, whose snapshots `is_on` says to receive or not. What has begun before is received or not as it was.
    #[must_use]
    pub fn turned(mut self, is_on: bool, at: Position) -> Self {
        while self.turns().last().is_some_and(|last| *last >= at) {
            self.turn_count -= 1;
            self.turns[usize::from(self.turn_count)] = Position::ZERO;
        }
        if is_on == (self.turn_count % 2 == 1) {
            return self;
        }
        if usize::from(self.turn_count) == TURNS_MAX {
            self.turns.copy_within(2.., 0);
            self.turns[TURNS_MAX - 2..].fill(Position::ZERO);
            self.turn_count -= 2;
        }
        self.turns[usize::from(self.turn_count)] = at;
        self.turn_count += 1;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lsn;

    fn at(lsn: u64) -> Position {
        Position::new(Lsn(lsn), 1)
    }

    #[test]
    fn a_snapshot_is_received_as_it_was_asked_for_where_it_began() {
        let ad_hoc =
            AdHoc::default().turned(true, at(10)).turned(true, at(15)).turned(false, at(20)).turned(true, at(30));
        let received: Vec<u64> = (1..8).map(|n| n * 5).filter(|lsn| ad_hoc.receives(at(*lsn))).collect();
        assert_eq!(received, [15, 20, 35]);
        assert_eq!(ad_hoc.turns(), [at(10), at(20), at(30)]);
        assert_eq!(AdHoc::of_turns(ad_hoc.turns()), Some(ad_hoc));
    }

    #[test]
    fn what_was_turned_at_the_same_place_is_turned_back() {
        let on = AdHoc::default().turned(true, at(10));
        assert_eq!(on.turned(false, at(20)).turned(true, at(20)), on);
        assert_eq!(on.turned(false, at(10)), AdHoc::default());
    }

    #[test]
    fn the_oldest_are_forgotten_two_by_two() {
        let turned = (1..=10).fold(AdHoc::default(), |ad_hoc, n| ad_hoc.turned(n % 2 == 1, at(n)));
        assert_eq!(turned.turns(), (3..=10).map(at).collect::<Vec<_>>());
        assert!(turned.receives(at(4)) && !turned.receives(at(11)) && !turned.receives(at(2)));
        assert_eq!(AdHoc::of_turns(turned.turns()), Some(turned));
        assert_eq!(AdHoc::of_turns(&[at(2), at(1)]), None);
        assert_eq!(AdHoc::of_turns(&[at(1); 9]), None);
    }
}
