//! What a scan of a table finds for one condition: the rows that it selects where a stretch of the log begins, or the rows
//! that it comes to select, or not any more, within the stretch, for nothing but its subqueries.

use std::sync::Arc;

use bytes::Bytes;
use tidegate_model::{Position, TableName};
use tidegate_store::Store;

use super::{
    Ended,
    budget::Share,
    changes::Key,
    consumer::Consumer,
    given::Sets,
    node::{Effect, Moves, Rows},
    set::{Moment, Set},
    versions::Version,
};
use crate::shape::change::keep;

/// What a row that is found costs besides its bytes.
const FOUND_BYTES: usize = 96;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Rows that are selected at the beginning.
    Selected,
    /// Rows that move.
    Moves,
}

/// A row that is selected from here on, or not any more.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) row_type: u32,
    pub(super) row: Bytes,
    /// The member that it brings.
    pub(super) member: Option<Box<[u8]>>,
    pub(super) is_in: bool,
}

/// One look at a table.
pub(super) struct Gathering {
    pub(super) wanted: Wanted,
    /// The stretch: behind a position, and up to another.
    pub(super) behind: Position,
    pub(super) through: Position,
    /// Its rows are wanted, and not only their members.
    pub(super) keeps_rows: bool,
    pub(super) store: Store,
    /// What moves.
    pub(super) found: Moves,
    /// What is selected, and its members.
    pub(super) begun: Begun,
    pub(super) byte_count: usize,
    pub(super) bytes_max: usize,
    pub(super) share: Arc<Share>,
    /// What is held besides.
    pub(super) held_bytes: usize,
    pub(super) room: Vec<u8>,
}

impl Gathering {
    pub(super) fn visit(&mut self, version: Version<'_>, consumer: &mut Consumer, sets: &Sets) -> Result<(), Ended> {
        let (from, until) = (version.from, version.until.min(self.through));
        let concerns = match self.wanted {
            Wanted::Selected => version.is_first,
            Wanted::Moves => sets.have_flipped(consumer.subqueries(), from, until),
        };
        if !concerns {
            return Ok(());
        }
        let Some((key, row_type, row)) = version.row else {
            return Err(Ended::Lost(format!(
                "a subquery's answer has changed while rows of {} were truncated, or were not wholly known",
                consumer.table()
            )));
        };
        let bound = consumer.bound(row_type, &self.store)?;
        if self.wanted == Wanted::Selected {
            if bound.is_selected(row, sets, Moment::after(self.behind))? {
                let member = bound.member(row, &mut self.room, self.behind)?;
                self.begun.add(key.clone(), member, (consumer.table(), self.bytes_max))?;
                self.share.set(self.held_bytes + self.begun.byte_count())?;
            }
            return Ok(());
        }
        for (at, is_in) in bound.turns(row, sets, (from, until))? {
            let member = if is_in { bound.member(row, &mut self.room, at)? } else { None };
            let row = match (self.keeps_rows, is_in) {
                (false, _) => Bytes::new(),
                (true, true) => Bytes::copy_from_slice(row),
                // Its key is enough to let it go.
                (true, false) => keep(row, |field| row_type.key().contains(field))?.into(),
            };
            self.byte_count += FOUND_BYTES + key.len() + row.len() + member.as_ref().map_or(0, |member| member.len());
            if self.byte_count > self.bytes_max {
                return Err(Ended::TooMuch { table: consumer.table().clone(), bytes_max: self.bytes_max });
            }
            let row_type = row_type.proto().row_type;
            self.found.entry(at).or_default().push(Found { key: key.clone(), row_type, row, member, is_in });
        }
        Ok(())
    }
}

/// A subquery's rows where its set begins.
#[derive(Default)]
pub(super) struct Begun {
    pub(super) rows: Rows,
    pub(super) set: Set,
}

impl Begun {
    /// One more. What is too large now is no smaller when it is built again.
    fn add(
        &mut self,
        key: Key,
        member: Option<Box<[u8]>>,
        (table, bytes_max): (&TableName, usize),
    ) -> Result<(), Ended> {
        self.rows.apply(Effect::In(key, member), &mut self.set);
        if self.byte_count() > bytes_max {
            return Err(Ended::TooLarge { table: table.clone(), bytes_max });
        }
        Ok(())
    }

    fn byte_count(&self) -> usize {
        self.rows.byte_count() + self.set.byte_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reset::Refusal;

    #[test]
    fn a_set_that_is_too_large_is_refused_and_not_built_again() {
        let (table, mut begun) = (TableName::new("public", "teams"), Begun::default());
        let ended = (0u32..).find_map(|row| {
            let row = Box::from(row.to_be_bytes());
            begun.add(Box::clone(&row), Some(row), (&table, 10_000)).err()
        });
        let refusal = ended.expect("it grows without end").refusal();
        assert!(matches!(refusal, Refusal::Error(_)), "{refusal:?}");
    }
}
