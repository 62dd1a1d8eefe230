//! A plan as the router sees it: shapes of tables.

use tidegate_model::{Entry, TableName};

use super::core::{Insert, Subject};
use crate::{
    by_row_type::RowTypeLookup,
    selection::{Filter, Plan},
    snapshot_marks::snapshot_mark,
};

impl Subject for Plan {
    fn tables(&self) -> impl Iterator<Item = &TableName> {
        self.key.filters().iter().filter_map(Filter::shape).map(|shape| shape.table())
    }

    fn index(&self, selection: usize, row_type: u32, lookup: &impl RowTypeLookup, insert: &mut Insert<'_>) -> bool {
        let Some(shape) = self.key.filters().get(selection).and_then(Filter::shape) else { return false };
        let route = lookup.row_type(row_type).and_then(|row_type| shape.route(&row_type, lookup).ok());
        // What the row type has lost ends the subscription, by its own evaluation; also where it turns out later to have lost it.
        let Some(route) = route.filter(|route| !route.is_lost() && !route.is_provisional()) else { return false };
        let fields: Option<Vec<u32>> = route.fields().map(|fields| fields.iter().collect());
        insert(route.predicate(), fields.as_deref());
        true
    }

    fn receives(&self, mark: &Entry, bytes: &[u8]) -> bool {
        // One that is damaged is reported by whoever looks at it.
        !matches!(snapshot_mark(self, mark, bytes), Ok(None))
    }
}
