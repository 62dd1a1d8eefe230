//! What a scan of a table finds for one condition: the rows that it selects where a stretch of the log begins, or the rows
//! that it comes to select, or not any more, within the stretch, for nothing but its subqueries.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidegate_model::Position;
use tidegate_store::Store;

use super::{Ended, changes::Key, consumer::Consumer, given::Sets, set::Moment, versions::Version};
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
    pub(super) found: BTreeMap<Position, Vec<Found>>,
    pub(super) byte_count: usize,
    pub(super) bytes_max: usize,
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
        let turns = match self.wanted {
            Wanted::Moves => bound.turns(row, sets, (from, until))?,
            Wanted::Selected if bound.is_selected(row, sets, Moment::after(self.behind))? => vec![(self.behind, true)],
            Wanted::Selected => Vec::new(),
        };
        for (at, is_in) in turns {
            let member = if is_in { bound.member(row, &mut self.room)? } else { None };
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
