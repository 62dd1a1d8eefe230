//! The first rows of an order, of those that come by.
//!
//! Invariants: it holds at most so many rows, and at most so many bytes and one row more; of rows that stand alike, those that came first
//! are kept, and come first. Pure.

use std::{cmp::Ordering, collections::BinaryHeap};

use tidegate_views::Rank;

/// What a row costs besides its bytes and its rank.
const ROW_BYTES: usize = 96;

/// The rows, with what is kept of each.
pub(super) struct FirstRows<T> {
    /// The last of them is on top.
    held: BinaryHeap<Held<T>>,
    count_max: usize,
    bytes_max: usize,
    byte_count: usize,
    come: u64,
}

struct Held<T> {
    rank: Rank,
    came: u64,
    byte_count: usize,
    row: T,
}

impl<T> Ord for Held<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank).then(self.came.cmp(&other.came))
    }
}

impl<T> PartialOrd for Held<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Held<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Held<T> {}

impl<T> FirstRows<T> {
    pub(super) fn new(count_max: usize, bytes_max: usize) -> Self {
        FirstRows { held: BinaryHeap::new(), count_max, bytes_max, byte_count: 0, come: 0 }
    }

    /// Would a row that stands there be kept?
    pub(super) fn admits(&self, rank: &Rank) -> bool {
        self.held.len() < self.count_max || self.held.peek().is_some_and(|last| *rank < last.rank)
    }

    /// Takes a row of so many bytes. False where there are too many bytes now.
    pub(super) fn take(&mut self, rank: Rank, (row, byte_count): (T, usize)) -> bool {
        let byte_count = byte_count + rank.byte_count() + ROW_BYTES;
        self.byte_count += byte_count;
        self.held.push(Held { rank, came: self.come, byte_count, row });
        self.come += 1;
        while self.held.len() > self.count_max {
            let Some(last) = self.held.pop() else { break };
            self.byte_count -= last.byte_count;
        }
        self.byte_count <= self.bytes_max
    }

    /// In their order.
    pub(super) fn into_rows(self) -> impl Iterator<Item = T> {
        self.held.into_sorted_vec().into_iter().map(|held| held.row)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use tidegate_schema::wire::put_varint_field;
    use tidegate_views::{CollationFacts, ColumnFacts, Order, OrderBy, TableFacts};

    use super::*;

    fn order() -> Order {
        let collation = CollationFacts { name: "C".to_owned(), is_default: true, deterministic: true, is_c: true };
        let columns =
            vec![ColumnFacts { name: "v".to_owned(), field: 1, type_oid: 20, collation: None, enum_type: None }];
        let facts =
            TableFacts { schema: "public".to_owned(), name: "t".to_owned(), columns, default_collation: collation };
        let by = OrderBy { expression: "v".to_owned(), descending: true, nulls_first: None };
        Order::new(&[by], &[], &facts).expect("an order")
    }

    fn rank(order: &Order, value: u64) -> Rank {
        let mut row = BytesMut::new();
        put_varint_field(&mut row, 1, value);
        order.rank(&row).expect("a row")
    }

    proptest! {
        #[test]
        fn they_are_the_first_of_all_in_a_stable_order(
            values in proptest::collection::vec(0_u64..20, 0..60), limit in 1_usize..20,
        ) {
            let order = order();
            let mut first = FirstRows::new(limit, usize::MAX);
            for (at, value) in values.iter().enumerate() {
                let rank = rank(&order, *value);
                if first.admits(&rank) {
                    prop_assert!(first.take(rank, ((*value, at), 0)));
                }
            }
            let mut sorted: Vec<_> = values.iter().copied().enumerate().map(|(at, value)| (value, at)).collect();
            sorted.sort_by_key(|(value, _)| std::cmp::Reverse(*value));
            sorted.truncate(limit);
            prop_assert_eq!(first.into_rows().collect::<Vec<_>>(), sorted);
        }
    }

    #[test]
    fn it_says_when_it_holds_too_many_bytes() {
        let order = order();
        let mut first = FirstRows::new(2, 3_000);
        assert!(first.take(rank(&order, 5), ((), 1_000)));
        assert!(first.take(rank(&order, 4), ((), 1_000)));
        assert!(first.take(rank(&order, 6), ((), 1_000)), "one of the others has gone");
        assert!(!first.take(rank(&order, 7), ((), 3_000)));
    }
}
