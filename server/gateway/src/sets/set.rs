//! What a subquery yields, and since when: for each member how many rows bring it, and at which transactions it came or went.
//!
//! ```text
//! rows      +1            +1       -1              -1
//! member ───┬─────────────┬────────┬───────────────┬────────▶ log
//!           └ flip: comes                          └ flip: goes
//! ```
//!
//! Invariant: at every moment from where flips are kept on, the answer is that of the rows as they were at that moment. Within a
//! transaction nothing changes: what its rows do counts from its end on. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tidegate_model::Position;

/// What a member costs besides its bytes.
const MEMBER_BYTES: usize = 96;
/// What a flip costs, the member's handle included.
const FLIP_BYTES: usize = 64;

/// A place between transactions: just before what ends at a position, or just behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(Position, bool);

impl Moment {
    /// Behind all others.
    pub(super) const END: Self = Moment(Position { lsn: tidegate_model::Lsn(u64::MAX), ordinal: u32::MAX }, true);

    /// All that ends before the position has happened, and nothing that ends at it.
    pub(super) fn before(position: Position) -> Self {
        Moment(position, false)
    }

    /// All that ends at the position has happened.
    pub(super) fn after(position: Position) -> Self {
        Moment(position, true)
    }

    pub(super) fn position(self) -> Position {
        self.0
    }

    fn has_seen(self, flip: Position) -> bool {
        self >= Moment::after(flip)
    }
}

/// Something that rows bring about, and when that began or ended.
#[derive(Debug, Default)]
struct Flag {
    rows: u64,
    /// As of the last transaction that has ended.
    is: bool,
    /// Ascending.
    flips: VecDeque<Position>,
}

impl Flag {
    fn at(&self, moment: Moment) -> bool {
        let unseen = self.flips.iter().rev().take_while(|flip| !moment.has_seen(**flip)).count();
        self.is ^ (unseen % 2 == 1)
    }

    fn next(&self, moment: Moment) -> Option<Position> {
        let unseen = self.flips.partition_point(|flip| moment.has_seen(*flip));
        self.flips.get(unseen).copied()
    }

    /// The transaction has ended; true where that has changed it.
    fn end(&mut self, at: Option<Position>) -> bool {
        let flips = self.is != (self.rows > 0);
        if flips {
            self.is = !self.is;
            self.flips.extend(at);
        }
        flips
    }
}

/// Whose flip it is.
#[derive(Clone, Debug)]
enum Whose {
    Member(Arc<[u8]>),
    Null,
    Any,
}

/// One subquery's rows, as a multiset of members.
#[derive(Debug, Default)]
pub(super) struct Set {
    members: HashMap<Arc<[u8]>, Flag>,
    null: Flag,
    /// Is there any row at all?
    any: Flag,
    /// Members that the transaction which has not ended has touched.
    touched: Vec<Arc<[u8]>>,
    /// All flips, the oldest first.
    flips: VecDeque<(Position, Whose)>,
    byte_count: usize,
}

impl Set {
    /// One row more brings this member, which is returned to be held with the row; None for NULL.
    pub(super) fn add(&mut self, member: Option<&[u8]>) -> Option<Arc<[u8]>> {
        self.any.rows += 1;
        let Some(member) = member else {
            self.null.rows += 1;
            return None;
        };
        let member = match self.members.get_key_value(member) {
            Some((known, _)) => Arc::clone(known),
            None => {
                let member: Arc<[u8]> = Arc::from(member);
                self.byte_count += MEMBER_BYTES + member.len();
                self.members.insert(Arc::clone(&member), Flag::default());
                member
            }
        };
        if self.count(&member, 1) == 1 {
            self.touched.push(Arc::clone(&member));
        }
        Some(member)
    }

    /// One row less, which had been added.
    pub(super) fn remove(&mut self, member: Option<&[u8]>) {
        self.any.rows -= 1;
        let Some(member) = member else {
            self.null.rows -= 1;
            return;
        };
        let known = self.members.get_key_value(member).map(|(member, _)| Arc::clone(member));
        let member = known.expect("a row that is removed was added with its member");
        if self.count(&member, -1) == 0 {
            self.touched.push(member);
        }
    }

    fn count(&mut self, member: &Arc<[u8]>, by: i64) -> u64 {
        let flag = self.members.get_mut(member).expect("it has just been found");
        flag.rows = flag.rows.checked_add_signed(by).expect("no more rows are removed than were added");
        flag.rows
    }

    /// The transaction has ended here: from now on its rows count. Without a place they always have.
    pub(super) fn end(&mut self, at: Option<Position>) {
        for member in std::mem::take(&mut self.touched) {
            let Some(flag) = self.members.get_mut(&member) else { continue };
            let flips = flag.end(at);
            if let Some(at) = at.filter(|_| flips) {
                self.keep(at, Whose::Member(member));
            } else {
                self.drop_idle(&member);
            }
        }
        for whose in [Whose::Null, Whose::Any] {
            let flag = if matches!(whose, Whose::Null) { &mut self.null } else { &mut self.any };
            if let Some(at) = at.filter(|_| flag.end(at)) {
                self.keep(at, whose);
            } else if at.is_none() {
                flag.end(None);
            }
        }
    }

    fn keep(&mut self, at: Position, whose: Whose) {
        self.byte_count += FLIP_BYTES;
        self.flips.push_back((at, whose));
    }

    /// Forgets a member that no row brings and of which no flip is kept.
    fn drop_idle(&mut self, member: &Arc<[u8]>) {
        let is_idle = self.members.get(member).is_some_and(|flag| flag.rows == 0 && !flag.is && flag.flips.is_empty());
        if is_idle {
            self.members.remove(member);
            self.byte_count -= MEMBER_BYTES + member.len();
        }
    }

    /// What `IN` says of an operand; None both for a NULL operand and for an answer that is NULL.
    pub(super) fn holds(&self, member: Option<&[u8]>, moment: Moment) -> Option<bool> {
        if !self.any.at(moment) {
            return Some(false);
        }
        let flag = self.members.get(member?);
        if flag.is_some_and(|flag| flag.at(moment)) {
            return Some(true);
        }
        if self.null.at(moment) { None } else { Some(false) }
    }

    /// The end of the first transaction behind the moment that changes what `holds` says of this operand.
    pub(super) fn next_flip(&self, member: Option<&[u8]>, moment: Moment) -> Option<Position> {
        // That there are rows at all matters to NULL alone: no other operand is in an empty set, nor in one that lacks it.
        let Some(member) = member else { return self.any.next(moment) };
        let flag = self.members.get(member);
        let comes_or_goes = flag.and_then(|flag| flag.next(moment));
        // Nor does a NULL matter while the member is there.
        let null = if flag.is_some_and(|flag| flag.at(moment)) { None } else { self.null.next(moment) };
        comes_or_goes.into_iter().chain(null).min()
    }

    /// Has anything flipped behind this position, and up to the other?
    pub(super) fn has_flipped(&self, behind: Position, through: Position) -> bool {
        let at = self.flips.partition_point(|(flip, _)| *flip <= behind);
        self.flips.get(at).is_some_and(|(flip, _)| *flip <= through)
    }

    /// The oldest flip that is kept.
    pub(super) fn oldest_flip(&self) -> Option<Position> {
        self.flips.front().map(|(at, _)| *at)
    }

    /// Forgets what has flipped up to there: nobody may ask for a moment before it any more.
    pub(super) fn forget_through(&mut self, position: Position) {
        while let Some((_, whose)) = self.flips.pop_front_if(|(at, _)| *at <= position) {
            self.byte_count -= FLIP_BYTES;
            match whose {
                Whose::Null => drop(self.null.flips.pop_front()),
                Whose::Any => drop(self.any.flips.pop_front()),
                Whose::Member(member) => {
                    let flag = self.members.get_mut(&member).expect("a member stays while flips of it are kept");
                    flag.flips.pop_front();
                    self.drop_idle(&member);
                }
            }
        }
    }

    /// About its size in memory.
    pub(super) fn byte_count(&self) -> usize {
        self.byte_count
    }

    /// What of that is flips.
    pub(super) fn flip_bytes(&self) -> usize {
        self.flips.len() * FLIP_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_model::Lsn;

    use super::*;

    fn end(transaction: usize) -> Position {
        Position::new(Lsn(10 * transaction as u64), 3)
    }

    /// What a plain list of rows says.
    fn of_rows(rows: &[Option<u8>], member: Option<u8>) -> Option<bool> {
        match member {
            _ if rows.is_empty() => Some(false),
            None => None,
            some if rows.contains(&some) => Some(true),
            Some(_) if rows.contains(&None) => None,
            Some(_) => Some(false),
        }
    }

    proptest! {
        /// Rows that come (or go, where they are there), in transactions: at each moment the set says what the rows then say.
        #[test]
        fn at_each_moment_it_is_what_the_rows_were(
            transactions in prop::collection::vec(prop::collection::vec(prop::option::weighted(0.8, 0u8..4), 0..6), 1..12),
            kept in 0usize..12,
        ) {
            let mut set = Set::default();
            let mut rows: Vec<Option<u8>> = Vec::new();
            let mut states = Vec::new();
            for (at, members) in transactions.iter().enumerate() {
                for member in members {
                    let bytes = member.map(|member| [member]);
                    let bytes = bytes.as_ref().map(|bytes| &bytes[..]);
                    match rows.iter().position(|row| row == member) {
                        Some(found) if (at + found) % 3 > 0 => {
                            rows.swap_remove(found);
                            set.remove(bytes);
                        }
                        Some(_) | None => {
                            rows.push(*member);
                            set.add(bytes);
                        }
                    }
                }
                set.end((at > 0).then(|| end(at)));
                states.push(rows.clone());
            }
            set.forget_through(end(kept));
            for (at, state) in states.iter().enumerate().filter(|(at, _)| *at >= kept) {
                let next = states.get(at + 1);
                for member in [None, Some(0), Some(1), Some(2), Some(3), Some(9)] {
                    let bytes = member.map(|member| [member]);
                    let bytes = bytes.as_ref().map(|bytes| &bytes[..]);
                    let says = of_rows(state, member);
                    prop_assert_eq!(set.holds(bytes, Moment::after(end(at))), says);
                    prop_assert_eq!(set.holds(bytes, Moment::before(end(at + 1))), says);
                    let differs = next.is_some_and(|next| of_rows(next, member) != says);
                    let flips = set.next_flip(bytes, Moment::after(end(at))) == Some(end(at + 1));
                    prop_assert_eq!(flips, differs);
                }
            }
        }
    }

    #[test]
    fn what_nobody_asks_for_costs_nothing() {
        let mut set = Set::default();
        for at in 1..100 {
            set.add(Some(b"a"));
            set.end(Some(end(2 * at)));
            set.remove(Some(b"a"));
            set.end(Some(end(2 * at + 1)));
        }
        assert!(set.has_flipped(end(150), end(152)) && !set.has_flipped(end(199), end(500)));
        assert!(set.byte_count() > 0 && set.oldest_flip() == Some(end(2)));
        set.forget_through(end(199));
        assert_eq!((set.byte_count(), set.flip_bytes(), set.oldest_flip()), (0, 0, None));
    }
}
