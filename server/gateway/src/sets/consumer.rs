//! Who asks sets: a subquery's condition that has subqueries itself, and the shape's condition.

use std::{collections::HashMap, sync::Arc};

use tidegate_model::{Position, TableName};
use tidegate_schema::RowType;
use tidegate_store::Store;
use tidegate_views::{Failure, Members, Subquery};

use super::{
    Ended,
    given::{Given, Sets, turns},
    set::Moment,
};
use crate::{
    facts::Known,
    shape::{
        ShapeFilter,
        binding::{bound, lost},
        route::{Cause, ShapeFailure, ShapeRoute},
    },
    status::GatewayError,
};

/// A condition on rows of one table, for each of its row types.
#[derive(Clone)]
pub(super) enum Consumer {
    Subquery { of: Arc<Subquery>, known: Arc<Known>, bound: HashMap<u32, Arc<Subquery>> },
    Shape { of: ShapeFilter, routes: HashMap<u32, Arc<ShapeRoute>> },
}

/// The same for one row type.
pub(super) enum Bound {
    Subquery(Arc<Subquery>),
    Shape(Arc<ShapeRoute>),
}

impl Consumer {
    pub(super) fn table(&self) -> &TableName {
        match self {
            Consumer::Subquery { of, .. } => of.table(),
            Consumer::Shape { of, .. } => of.table(),
        }
    }

    /// The sets that it asks.
    pub(super) fn subqueries(&self) -> &[Arc<Subquery>] {
        match self {
            Consumer::Subquery { of, .. } => of.condition().subqueries(),
            Consumer::Shape { of, .. } => of.subqueries(),
        }
    }

    /// For rows of a row type of its table.
    pub(super) fn bound(&mut self, row_type: &Arc<RowType>, store: &Store) -> Result<Bound, Ended> {
        let number = row_type.proto().row_type;
        match self {
            Consumer::Subquery { of, known, bound: all } => {
                if let Some(known) = all.get(&number) {
                    return Ok(Bound::Subquery(Arc::clone(known)));
                }
                let failed = |cause| ShapeFailure::of_subquery(of.table(), Position::ZERO, cause);
                let mut columns = of.condition().columns().chain([of.column()]);
                if let Some(lost) = columns.find_map(|column| lost((known, of.table()), column, row_type, store)) {
                    return Err(failed(Cause::Lost(lost)).into());
                }
                let made = of.bound(&bound(known, row_type)).map_err(|error| Ended::Later(error.to_string()))?;
                let made = Arc::new(made);
                all.insert(number, Arc::clone(&made));
                Ok(Bound::Subquery(made))
            }
            Consumer::Shape { of, routes } => {
                if let Some(route) = routes.get(&number) {
                    return Ok(Bound::Shape(Arc::clone(route)));
                }
                let route = of.route(row_type, store).map_err(|error: GatewayError| Ended::Later(error.to_string()))?;
                let route = Arc::new(route);
                routes.insert(number, Arc::clone(&route));
                Ok(Bound::Shape(route))
            }
        }
    }
}

impl Bound {
    fn subqueries(&self) -> &[Arc<Subquery>] {
        match self {
            Bound::Subquery(subquery) => subquery.condition().subqueries(),
            Bound::Shape(route) => route.predicate().subqueries(),
        }
    }

    fn given<'a>(&'a self, sets: &'a Sets, moment: Moment) -> Given<'a> {
        sets.given(self.subqueries(), moment)
    }

    fn selects(&self, row: &[u8], members: &dyn Members) -> Result<bool, Failure> {
        match self {
            Bound::Subquery(subquery) => subquery.condition().selects_given(row, members),
            Bound::Shape(route) => route.predicate().selects_given(row, members),
        }
    }

    /// Is the row selected at a moment?
    pub(super) fn is_selected(&self, row: &[u8], sets: &Sets, moment: Moment) -> Result<bool, Ended> {
        let is_selected = self.selects(row, &self.given(sets, moment));
        is_selected.map_err(|failure| self.failed(row, Position::ZERO, failure))
    }

    /// Where a row that is there from one position to another comes to be selected, or not any more.
    pub(super) fn turns(
        &self,
        row: &[u8],
        sets: &Sets,
        (from, until): (Position, Position),
    ) -> Result<Vec<(Position, bool)>, Ended> {
        let given = self.given(sets, Moment::after(from));
        let turned = turns(&given, (from, until), |members| self.selects(row, members));
        turned.map_err(|failure| self.failed(row, until, failure))
    }

    /// The member that a selected row brings.
    pub(super) fn member(&self, row: &[u8], room: &mut Vec<u8>) -> Result<Option<Box<[u8]>>, Ended> {
        match self {
            Bound::Subquery(subquery) => {
                let member = subquery.member(row, room).map(|member| member.map(Box::from));
                member.map_err(|failure| self.failed(row, Position::ZERO, failure))
            }
            Bound::Shape(_) => Ok(None),
        }
    }

    fn failed(&self, row: &[u8], position: Position, failure: Failure) -> Ended {
        match self {
            Bound::Subquery(subquery) => ShapeFailure::of_subquery(subquery.table(), position, failure.into()).into(),
            Bound::Shape(route) => route.failed_for(row, position, failure).into(),
        }
    }
}
