//! Typing of subqueries: their condition reads their own table, and the operand is compared with their column as `=` compares it
//! (`transformSubLink` in `src/backend/parser/parse_expr.c`).

use std::sync::Arc;

use super::access;
use super::collation::Collation;
use super::comparison::Comparison;
use super::expression::{Expression, Member};
use super::input::Input;
use super::kind::Kind;
use super::members::has_members;
use super::refusal::{Reason, Refusal};
use super::resolution;
use super::subquery::Subquery;
use super::syntax::{Negated, Query, Syntax, What};
use super::table::TableFacts;
use super::typing::{Given, Scope, Typed, Typing};
use super::{Predicate, condition_of};

/// A subquery's column and condition, before it is known what the column is compared with.
struct Selected<'t> {
    facts: &'t TableFacts,
    input: Input,
    collation: Collation,
    condition: Predicate,
}

impl<'t> Typing<'t> {
    pub(super) fn in_query(
        &mut self,
        at: usize,
        operand: &Syntax,
        query: &Query,
        negated: Negated,
    ) -> Result<Typed, Refusal> {
        // As in PostgreSQL, the subquery is the first to say which types parameters have.
        let Selected { facts, input, collation: beside, condition } = self.selected(query)?;
        if let What::Row(_) = operand.what {
            return self.no_such_row(operand.at);
        }
        self.columns_named += 1;
        let operand = self.typed(operand)?;
        let (operand_kind, kind) = self.compared_as(at, &operand, (facts, input.kind))?;
        let operand = self.coerced(operand, operand_kind, "the comparison")?;
        let collation = self.merged(at, operand.collation.clone(), &beside)?;
        self.check_comparable(at, operand_kind, &collation, false)?;
        let labels = match operand_kind {
            Kind::Enum(column) => self.table.enum_facts(column).map(|facts| facts.labels.clone()).unwrap_or_default(),
            _ => Vec::new(),
        };
        let subquery = Arc::new(Subquery::new(facts, input, kind, condition));
        let operand = Box::new(self.collated_beside(&beside, operand.tree, &collation));
        let member = Expression::Member(Member { subquery, number: 0, operand, labels: labels.into() });
        let tree = if negated { Expression::Not(Box::new(member)) } else { member };
        Ok(Typed::known(at, Kind::Bool, tree))
    }

    fn selected(&mut self, query: &Query) -> Result<Selected<'t>, Refusal> {
        let Some(facts) = self.others.iter().find(|facts| facts.is_named(&query.table)) else {
            let table = query.table.to_string();
            return self.refuse(query.table_at, Reason::UnreadableTable { table });
        };
        let mut around = self.around.clone();
        around.push(Scope { table: self.table, alias: self.alias.clone() });
        let parameters = std::mem::take(&mut self.parameters);
        let before = parameters.clone();
        let mut inner = Typing {
            alias: query.alias.clone(),
            around,
            parameters: carried(parameters, self.table, facts),
            room: self.room,
            ..Typing::new(facts, self.others)
        };
        let What::Column(name) = &query.column.what else {
            unreachable!("the parser reads a column there");
        };
        let column = inner.column(query.column.at, name)?;
        let index = inner.inputs.pop().expect("the column is an input");
        let condition = match &query.condition {
            Some(condition) => condition_of(&mut inner, condition)?,
            None => condition_of(&mut inner, &Syntax::leaf(query.table_at, What::Bool(true)))?,
        };
        let parameters = carried(inner.parameters, facts, self.table);
        self.parameters = before.into_iter().zip(parameters).map(|(before, now)| now.returned_to(before)).collect();
        self.room = inner.room;
        let input = Input::of(facts, index).expect("typing takes columns of types that it knows");
        Ok(Selected { facts, input, collation: column.collation, condition })
    }

    /// The operand's type, and the column's, in which they are compared.
    fn compared_as(
        &self,
        at: usize,
        operand: &Typed,
        (facts, column): (&TableFacts, Kind),
    ) -> Result<(Kind, Kind), Refusal> {
        let no_operator = || {
            let (left, right) = (self.name(operand.kind), facts.kind_name(column));
            self.refuse(at, Reason::NoOperator { operator: Comparison::Equal.symbol(), left, right })
        };
        let Some(beside) = facts.kind_within(column, self.table) else {
            if operand.kind.is_some() {
                return no_operator();
            }
            let what = format!("a constant beside a subquery's {}", facts.kind_name(column));
            let instead = "no column of this table has that type; compare a column with what the subquery selects";
            return self.refuse(at, Reason::Unsupported { what, instead });
        };
        let differ = || {
            let what = format!("comparing {} with a subquery's {}", self.name(operand.kind), facts.kind_name(column));
            let instead = "cast the operand to the type of the column that is selected";
            self.refuse(at, Reason::Unsupported { what, instead })
        };
        let Some((left, right)) = resolution::comparison(operand.kind, Some(beside)) else {
            let is_mixed = [operand.kind, Some(column)].map(|kind| matches!(kind, Some(Kind::Date | Kind::Timestamp)));
            return if is_mixed == [true; 2] { differ() } else { no_operator() };
        };
        // An enum stays what it is in its own table.
        let right = if right == beside { column } else { right };
        if !has_members(right) {
            let what = format!("a subquery that selects {}", facts.kind_name(column));
            let instead = "select a column of a type that is neither an array, a range nor JSON";
            return self.refuse(at, Reason::Unsupported { what, instead });
        }
        if access::cast_may_fail(column, right) {
            return differ();
        }
        Ok((left, right))
    }
}

/// Parameters on their way into a subquery or out of it. One that is an enum has its type by another number there, or none.
fn carried(mut parameters: Vec<Given>, from: &TableFacts, to: &TableFacts) -> Vec<Given> {
    for given in parameters.iter_mut().filter(|given| !given.is_foreign) {
        if let Some(kind) = given.kind {
            match from.kind_within(kind, to) {
                Some(kind) => given.kind = Some(kind),
                None => given.is_foreign = true,
            }
        }
    }
    parameters
}

impl Given {
    /// Behind a subquery: with the type that it had before it.
    fn returned_to(self, before: Given) -> Given {
        match before.kind {
            Some(_) => Given { used: self.used, ..before },
            None => self,
        }
    }
}
