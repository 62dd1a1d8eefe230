//! Who asks sets: a subquery's condition that has subqueries itself, and the shape's condition.

use std::sync::Arc;

use tidegate_model::{Position, TableName};
use tidegate_schema::RowType;
use tidegate_views::{Failure, Members, Subquery};

use super::{
    Ended,
    given::{Given, Sets, turns},
    set::Moment,
};
use crate::{
    by_row_type::ByRowType,
    by_row_type::RowTypeLookup,
    facts::Known,
    shape::{
        Cause, ShapeFailure, ShapeFilter,
        binding::{bound, lacks},
        route::ShapeRoute,
    },
    status::GatewayError,
};

/// A condition on rows of one table, for each of its row types.
#[derive(Clone)]
pub(super) enum Consumer {
    Subquery { of: Arc<Subquery>, known: Arc<Known>, bound: ByRowType<Arc<Subquery>> },
    Shape { of: ShapeFilter, routes: ByRowType<Arc<ShapeRoute>> },
}

/// The same for one row type.
pub(super) enum Bound {
    Subquery(Arc<Subquery>, Arc<RowType>),
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
    pub(super) fn bound(&mut self, row_type: &Arc<RowType>, lookup: &impl RowTypeLookup) -> Result<Bound, Ended> {
        let (number, version) = (row_type.proto().row_type, lookup.version());
        match self {
            Consumer::Subquery { of, known, bound: all } => {
                if let Some(known) = all.get(number, lookup) {
                    return Ok(Bound::Subquery(Arc::clone(known), Arc::clone(row_type)));
                }
                let failed = |cause| ShapeFailure::of_subquery(of.table(), Position::ZERO, cause);
                let columns = of.condition().columns().chain([of.column()]);
                let lacks = lacks(known, columns, row_type, lookup).map_err(|lost| failed(Cause::Lost(lost)))?;
                let made = of.bound(&bound(known, row_type)).map_err(|error| Ended::Later(error.to_string()))?;
                let made = Arc::new(made);
                all.insert(number, Arc::clone(&made), lacks.then_some(version));
                Ok(Bound::Subquery(made, Arc::clone(row_type)))
            }
            Consumer::Shape { of, routes } => {
                if let Some(route) = routes.get(number, lookup) {
                    return Ok(Bound::Shape(Arc::clone(route)));
                }
                let route =
                    of.route(row_type, lookup).map_err(|error: GatewayError| Ended::Later(error.to_string()))?;
                let route = Arc::new(route);
                routes.insert(number, Arc::clone(&route), route.is_provisional().then_some(version));
                Ok(Bound::Shape(route))
            }
        }
    }
}

impl Bound {
    fn subqueries(&self) -> &[Arc<Subquery>] {
        match self {
            Bound::Subquery(subquery, _) => subquery.condition().subqueries(),
            Bound::Shape(route) => route.predicate().subqueries(),
        }
    }

    fn given<'a>(&'a self, sets: &'a Sets, moment: Moment) -> Given<'a> {
        sets.given(self.subqueries(), moment)
    }

    fn selects(&self, row: &[u8], members: &dyn Members) -> Result<bool, Failure> {
        match self {
            Bound::Subquery(subquery, _) => subquery.condition().selects_given(row, members),
            Bound::Shape(route) => route.predicate().selects_given(row, members),
        }
    }

    /// Is the row selected at a moment?
    pub(super) fn is_selected(&self, row: &[u8], sets: &Sets, moment: Moment) -> Result<bool, Ended> {
        let is_selected = self.selects(row, &self.given(sets, moment));
        is_selected.map_err(|failure| self.failed(row, moment.position(), failure))
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

    /// The member that a row brings which is selected at a position.
    pub(super) fn member(&self, row: &[u8], room: &mut Vec<u8>, at: Position) -> Result<Option<Box<[u8]>>, Ended> {
        match self {
            Bound::Subquery(subquery, _) => {
                let member = subquery.member(row, room).map(|member| member.map(Box::from));
                member.map_err(|failure| self.failed(row, at, failure))
            }
            Bound::Shape(_) => Ok(None),
        }
    }

    fn failed(&self, row: &[u8], position: Position, failure: Failure) -> Ended {
        match self {
            Bound::Subquery(_, row_type) => ShapeFailure::of_row(row_type, row, position, failure.into()).into(),
            Bound::Shape(route) => route.failed_for(row, position, failure).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_views::Updates;

    use super::*;
    use crate::shape::tests::{RowTypes, filter, without_and_with};

    #[test]
    fn a_subquery_has_lost_a_column_when_its_table_has_come_back_to_a_row_type_without_it() {
        let [without, with] = without_and_with();
        let shape = filter("id IN (SELECT v FROM t)", &[], Updates::FullRow);
        let (of, known) = (Arc::clone(&shape.subqueries()[0]), shape.inner(shape.table()).expect("it is read"));
        let mut subquery = Consumer::Subquery { of, known, bound: ByRowType::default() };
        let mut row_types = RowTypes(vec![without.clone(), with]);
        assert!(subquery.bound(&without, &row_types).is_ok());
        row_types.0.push(without.clone());
        let Err(Ended::Failed(failure)) = subquery.bound(&without, &row_types) else { panic!("it is lost") };
        assert!(failure.to_string().contains("column \"v\""), "{failure}");
    }

    #[test]
    fn a_shapes_route_is_made_anew_when_its_table_has_come_back_to_a_row_type() {
        let [without, with] = without_and_with();
        let of = filter("v > 10", &[], Updates::FullRow);
        let mut shape = Consumer::Shape { of, routes: ByRowType::default() };
        let mut row_types = RowTypes(vec![without.clone(), with]);
        let mut is_lost = |row_types: &RowTypes| match shape.bound(&without, row_types) {
            Ok(Bound::Shape(route)) => route.is_lost(),
            Ok(Bound::Subquery(..)) | Err(_) => panic!("it is bound"),
        };
        assert!(!is_lost(&row_types));
        row_types.0.push(without.clone());
        assert!(is_lost(&row_types));
    }
}
