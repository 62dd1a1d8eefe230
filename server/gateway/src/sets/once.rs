//! What the subqueries of a shape select at one position of the mirror, for a query.
//!
//! Invariant: rows and sets are of the same position, since all of them are read from cuts that were made at once. It deliberately keeps
//! nothing: a query that comes again reads the subqueries' tables again.

use std::sync::Arc;

use tidegate_model::{Position, TableName};
use tidegate_store::{MirrorRow, Rows, Scan, Store};
use tidegate_views::{Members, Subquery};

use super::{
    ALL_BYTES_MAX, Ended, SET_BYTES_MAX,
    budget::Share,
    consumer::Consumer,
    consumers,
    given::Sets,
    set::{Moment, Set},
};
use crate::{
    by_row_type::ByRowType,
    facts::Known,
    mirror_snapshot::Wanted,
    reset::Refusal,
    shape::{Cause, ShapeFailure, ShapeFilter},
    source::Source,
    status::GatewayError,
};

/// The sets of one shape's subqueries. There may be none.
pub(crate) struct SetsOnce {
    /// Those within others first.
    subqueries: Vec<(Arc<Subquery>, Arc<Known>)>,
    sets: Sets,
    share: Share,
}

impl SetsOnce {
    /// That are still to be read.
    pub(crate) fn of(shape: &ShapeFilter, source: &Source) -> Self {
        let subqueries = consumers(shape);
        let sets = Sets::of(subqueries.iter().map(|(subquery, _)| subquery));
        SetsOnce { subqueries, sets, share: Share::of_query(&source.sets.budget) }
    }

    /// The rows that they read, in their order. `tables`: all of theirs.
    pub(crate) fn rows<'a>(&'a self, tables: &'a [Wanted]) -> impl Iterator<Item = Rows<'a>> {
        let of = |table: &TableName| {
            let found = tables.iter().find(|wanted| wanted.name == *table);
            Rows::Of(found.expect("the tables are those of the shape").table_oid)
        };
        self.subqueries.iter().map(move |(subquery, _)| of(subquery.table()))
    }

    /// Reads them from these, which are in the order of `rows`. `goes_on` is asked for each row. Where there is no room, sets that nobody
    /// uses make some for whoever asks again.
    pub(crate) fn read(
        &mut self,
        scans: impl IntoIterator<Item = Scan>,
        source: &Source,
        mut goes_on: impl FnMut() -> Result<(), GatewayError>,
    ) -> Result<(), GatewayError> {
        let mut room = Vec::new();
        for (number, scan) in scans.into_iter().enumerate() {
            let (of, known) = self.subqueries[number].clone();
            let mut consumer = Consumer::Subquery { of, known, bound: ByRowType::default() };
            let position = scan.position();
            for row in scan {
                goes_on()?;
                let row = row.map_err(GatewayError::Mirror)?;
                let taken = self.take(number, &row, (&mut consumer, &source.handle.store), (position, &mut room));
                if let Err(Ended::Crowded { limit: ALL_BYTES_MAX, .. }) = &taken {
                    source.sets.end_unused();
                }
                taken.map_err(refused)?;
            }
            self.sets.sets[number].end(None);
        }
        Ok(())
    }

    fn take(
        &mut self,
        number: usize,
        row: &MirrorRow,
        (consumer, store): (&mut Consumer, &Store),
        (position, room): (Position, &mut Vec<u8>),
    ) -> Result<(), Ended> {
        let row_type = store.row_type(row.row_type);
        let row_type = row_type.ok_or_else(|| Ended::Later(format!("row type {} is not known", row.row_type)))?;
        if let Some(missing) = row.missing.first() {
            let column = row_type.column_by_field(*missing).map(|column| column.name.clone()).unwrap_or_default();
            let cause = Cause::Unknown { column };
            return Err(ShapeFailure::of_row(&row_type, &row.row, position, cause).into());
        }
        let bound = consumer.bound(&row_type, store)?;
        if bound.is_selected(&row.row, &self.sets, Moment::after(position))? {
            self.sets.sets[number].add(bound.member(&row.row, room, position)?.as_deref());
            let byte_count = self.sets.sets.iter().map(Set::byte_count).sum();
            if byte_count > SET_BYTES_MAX {
                return Err(Ended::TooLarge { table: consumer.table().clone(), bytes_max: SET_BYTES_MAX });
            }
            self.share.set(byte_count)?;
        }
        Ok(())
    }

    /// Of a condition with these subqueries.
    pub(crate) fn members<'a>(&'a self, subqueries: &'a [Arc<Subquery>]) -> impl Members + 'a {
        self.sets.given(subqueries, NOW)
    }
}

/// Nothing has flipped: at every moment all is as it was read.
const NOW: Moment = Moment::END;

fn refused(ended: Ended) -> GatewayError {
    if let Ended::Failed(failure) = ended {
        return GatewayError::ShapeFailed(failure);
    }
    match ended.refusal() {
        Refusal::Error(error) => error,
        Refusal::Reset(reset) => GatewayError::Subqueries { detail: reset.detail },
    }
}
