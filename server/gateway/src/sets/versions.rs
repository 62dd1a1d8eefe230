//! The rows of a table as they were over a stretch of the log: those that the mirror has now, and before each change, those that the
//! change has replaced.
//!
//! ```text
//! log     A ───── c1 ────────── c2 ───────── M        c1, c2 change the row with this key
//! row     ├ old of c1 ┤ old of c2 ├ mirror's ┤
//! ```
//!
//! A version is there from the end of the transaction before that which has made it, so that what flips in that transaction itself
//! concerns it, up to the end of the one before that which has replaced it. Pure.

use std::{collections::HashMap, sync::Arc};

use tidegate_model::Position;
use tidegate_schema::RowType;

use super::changes::{Key, RowChange, Step};

/// What a key costs besides its bytes.
const KEY_BYTES: usize = 64;

/// A row while it was one and the same.
pub(super) struct Version<'a> {
    /// None where it is not known what it was, or how many there were.
    pub(super) row: Option<(&'a Key, &'a Arc<RowType>, &'a [u8])>,
    /// Flips behind this.
    pub(super) from: Position,
    /// Flips up to this.
    pub(super) until: Position,
    /// It was there when the stretch began.
    pub(super) is_first: bool,
}

/// Which keys changes have touched so far, and when last.
pub(super) struct Versions {
    /// Untouched rows are there from here on.
    base: Position,
    /// The end of the last transaction.
    ended: Position,
    /// All rows that were there at first are gone.
    is_emptied: bool,
    touched: HashMap<Key, Position>,
    byte_count: usize,
}

impl Versions {
    /// Behind a position.
    pub(super) fn behind(position: Position) -> Self {
        Versions { base: position, ended: position, is_emptied: false, touched: HashMap::new(), byte_count: 0 }
    }

    /// What a step of the log replaces.
    pub(super) fn step<E>(
        &mut self,
        step: Step<'_>,
        visit: &mut impl FnMut(Version<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let until = self.ended;
        match step {
            Step::Begin(_) => {}
            Step::End(position) => self.ended = position,
            Step::Change(RowChange::Truncate) => {
                visit(Version { row: None, from: self.base, until, is_first: !self.is_emptied })?;
                (self.base, self.is_emptied) = (until, true);
                self.touched.clear();
                self.byte_count = 0;
            }
            Step::Change(RowChange::Row { row_type, old, new }) => {
                if let Some((key, row)) = old {
                    let (from, is_first) = self.since(&key);
                    let row = row.as_ref().map(|row| (&key, row_type, &**row));
                    visit(Version { row, from, until, is_first })?;
                    self.touch(key);
                }
                if let Some(new) = new {
                    self.touch(new.key);
                }
            }
        }
        Ok(())
    }

    /// A row of the mirror at the end of the stretch.
    pub(super) fn last<'a>(
        &self,
        key: &'a Key,
        row: Option<(&'a Arc<RowType>, &'a [u8])>,
        until: Position,
    ) -> Version<'a> {
        let (from, is_first) = self.since(key);
        Version { row: row.map(|(row_type, row)| (key, row_type, row)), from, until, is_first }
    }

    fn since(&self, key: &Key) -> (Position, bool) {
        match self.touched.get(key) {
            Some(touched) => (*touched, false),
            None => (self.base, !self.is_emptied),
        }
    }

    fn touch(&mut self, key: Key) {
        let len = key.len();
        if self.touched.insert(key, self.ended).is_none() {
            self.byte_count += KEY_BYTES + len;
        }
    }

    pub(super) fn byte_count(&self) -> usize {
        self.byte_count
    }
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, collections::BTreeMap};

    use proptest::prelude::*;
    use tidegate_model::Lsn;
    use tidegate_schema::{RowTypeSpec, ValueKind};

    use super::{super::changes::New, *};

    type Rows = BTreeMap<u8, u8>;

    /// Key, and the row that it has from then on; None where it is gone.
    #[derive(Clone, Debug)]
    enum Change {
        Put(u8, u8),
        Gone(u8),
        /// From one key to another.
        Move(u8, u8),
        Truncate,
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            6 => (0u8..5, any::<u8>()).prop_map(|(key, row)| Change::Put(key, row)),
            3 => (0u8..5).prop_map(Change::Gone),
            2 => (0u8..5, 0u8..5).prop_map(|(from, to)| Change::Move(from, to)),
            1 => Just(Change::Truncate),
        ]
    }

    fn row_type() -> Arc<RowType> {
        let column = tidegate_schema::ColumnSpec {
            name: "id".to_owned(),
            attnum: 1,
            type_oid: 20,
            type_name: "bigint".to_owned(),
            codec: ValueKind::of(20, tidegate_schema::TypeShape::Base),
            key: true,
            field: 1,
        };
        let spec = RowTypeSpec {
            row_type: 1,
            source: "shop".parse().expect("a name"),
            name: tidegate_model::TableName::new("public", "t"),
            table_oid: 1,
            identity: tidegate_proto::v1::ReplicaIdentity::Key,
            columns: vec![column],
        };
        Arc::new(RowType::new(spec.to_proto()).expect("a row type"))
    }

    fn end(transaction: usize) -> Position {
        Position::new(Lsn(10 * transaction as u64), 5)
    }

    fn key(key: u8) -> Key {
        [key].into()
    }

    /// Has it happen, and tells it as the log would; None where it cannot.
    fn happen<'a>(rows: &mut Rows, change: &Change, row_type: &'a Arc<RowType>) -> Option<RowChange<'a>> {
        let old = |key_: u8, row: u8| (key(key_), Some(Cow::Owned(vec![row])));
        let new = |key_: u8, row: u8| New { key: key(key_), row: Cow::Owned(vec![row]), missing: Vec::new() };
        let of = |old, new| Some(RowChange::Row { row_type, old, new });
        match *change {
            Change::Put(at, row) => {
                let replaced = rows.insert(at, row);
                of(replaced.map(|row| old(at, row)), Some(new(at, row)))
            }
            Change::Gone(at) => {
                let row = rows.remove(&at)?;
                of(Some(old(at, row)), None)
            }
            Change::Move(from, to) if from != to && !rows.contains_key(&to) => {
                let row = rows.remove(&from)?;
                rows.insert(to, row);
                of(Some(old(from, row)), Some(new(to, row)))
            }
            Change::Move(..) => None,
            Change::Truncate => {
                rows.clear();
                Some(RowChange::Truncate)
            }
        }
    }

    proptest! {
        /// At the end of each transaction, the versions that are there are the rows that were there, but for those that a TRUNCATE took.
        #[test]
        fn the_versions_of_each_moment_are_its_rows(
            first in prop::collection::btree_map(0u8..5, any::<u8>(), 0..5),
            transactions in prop::collection::vec(prop::collection::vec(change(), 1..5), 0..6),
        ) {
            let row_type = row_type();
            let mut rows: Rows = first.clone();
            let (mut versions, mut seen) = (Versions::behind(end(0)), Vec::new());
            let (mut states, mut unknown) = (vec![first], Vec::new());
            let mut visit = |version: Version<'_>| {
                match version.row {
                    Some((key, _, row)) => seen.push((key[0], row[0], version.from, version.until, version.is_first)),
                    None => unknown.push((version.from, version.until, version.is_first)),
                }
                Ok::<_, ()>(())
            };
            for (at, changes) in (1..).zip(&transactions) {
                versions.step(Step::Begin(Position::new(end(at).lsn, 0)), &mut visit).expect("visited");
                for change in changes {
                    if let Some(change) = happen(&mut rows, change, &row_type) {
                        versions.step(Step::Change(change), &mut visit).expect("visited");
                    }
                }
                versions.step(Step::End(end(at)), &mut visit).expect("visited");
                states.push(rows.clone());
            }
            for (at, row) in &rows {
                let (key, row) = (key(*at), [*row]);
                visit(versions.last(&key, Some((&row_type, &row)), end(transactions.len()))).expect("visited");
            }
            for (at, state) in states.iter().enumerate() {
                let is_there = |from: Position, until: Position, is_first: bool| {
                    if at == 0 { is_first } else { from < end(at) && end(at) <= until }
                };
                if unknown.iter().any(|(from, until, is_first)| is_there(*from, *until, *is_first)) {
                    continue;
                }
                let there = seen.iter().filter(|(_, _, from, until, is_first)| is_there(*from, *until, *is_first));
                let there: Rows = there.map(|(key, row, ..)| (*key, *row)).collect();
                prop_assert_eq!(&there, state, "after {}", at);
            }
        }
    }
}
