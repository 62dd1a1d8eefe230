//! What a condition is told of its subqueries at a moment, and how its answer for one row goes over a stretch of the log.

use std::{cell::Cell, collections::HashMap, sync::Arc};

use tidegate_model::Position;
use tidegate_views::{Failure, Members, Subquery};

use super::set::{Moment, Set};

/// The sets of a shape's subqueries, those within others first.
#[derive(Debug, Default)]
pub(super) struct Sets {
    pub(super) sets: Vec<Set>,
    /// By the subquery's hash.
    numbers: HashMap<[u8; 32], usize>,
}

impl Sets {
    /// One for each of these.
    pub(super) fn of<'a>(subqueries: impl Iterator<Item = &'a Arc<Subquery>>) -> Self {
        let numbers: HashMap<_, _> = subqueries.enumerate().map(|(number, of)| (of.hash(), number)).collect();
        Sets { sets: numbers.iter().map(|_| Set::default()).collect(), numbers }
    }

    /// For a condition with these subqueries.
    pub(super) fn given<'a>(&'a self, subqueries: &'a [Arc<Subquery>], moment: Moment) -> Given<'a> {
        Given { sets: self, subqueries, moment: Cell::new(moment), next: Cell::new(None) }
    }

    fn set(&self, subquery: &Subquery) -> &Set {
        let number =
            self.numbers.get(&subquery.hash()).expect("a shape's sets are those of its condition's subqueries");
        &self.sets[*number]
    }

    /// Has any of these flipped behind this position, and up to the other?
    pub(super) fn have_flipped(&self, subqueries: &[Arc<Subquery>], behind: Position, through: Position) -> bool {
        subqueries.iter().any(|subquery| self.set(subquery).has_flipped(behind, through))
    }
}

/// The members at one moment.
pub(super) struct Given<'a> {
    sets: &'a Sets,
    subqueries: &'a [Arc<Subquery>],
    moment: Cell<Moment>,
    /// The first end of a transaction behind the moment that changes anything of what has been asked.
    next: Cell<Option<Position>>,
}

impl Members for Given<'_> {
    fn membership(&self, subquery: usize, member: Option<&[u8]>) -> Option<bool> {
        let (set, moment) = (self.sets.set(&self.subqueries[subquery]), self.moment.get());
        let next = [self.next.get(), set.next_flip(member, moment)].into_iter().flatten().min();
        self.next.set(next);
        set.holds(member, moment)
    }
}

/// Where a row comes to be selected, or not any more, for nothing but its subqueries: a row that is there from `from` to `until`. What is asked
/// at one moment and has not flipped is answered alike at the next, so that only flips of what was asked are looked at.
pub(super) fn turns(
    given: &Given<'_>,
    (from, until): (Position, Position),
    select: impl Fn(&dyn Members) -> Result<bool, Failure>,
) -> Result<Vec<(Position, bool)>, Failure> {
    let mut turns = Vec::new();
    given.moment.set(Moment::after(from));
    given.next.set(None);
    let mut was = select(given)?;
    while let Some(flip) = given.next.take().filter(|flip| *flip <= until) {
        given.moment.set(Moment::after(flip));
        let is = select(given)?;
        if is != was {
            turns.push((flip, is));
        }
        was = is;
    }
    Ok(turns)
}
