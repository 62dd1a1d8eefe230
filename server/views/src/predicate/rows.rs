//! Typing of rows of values, which are compared value by value (manual, section 9.24.5).

use super::comparison::Comparison;
use super::expression::Expression;
use super::kind::Kind;
use super::refusal::{Reason, Refusal};
use super::syntax::{Negated, Syntax, What};
use super::typing::{Typed, Typing, constant};
use super::value::Value;

impl Typing<'_> {
    /// `(a, b) = (c, d)` is `a = c AND b = d`, and `(a, b) < (c, d)` is `CASE WHEN a = c THEN b < d ELSE a < c END`.
    pub(super) fn compare_rows(
        &mut self,
        at: usize,
        op: Comparison,
        left: &[Syntax],
        right: &[Syntax],
    ) -> Result<Typed, Refusal> {
        let left = self.row(left)?;
        let right = self.row(right)?;
        self.compare_pairs(at, op, left, right)
    }

    /// Its values. PostgreSQL looks at all rows before it compares them, which matters to parameters without a type.
    fn row(&mut self, values: &[Syntax]) -> Result<Vec<Typed>, Refusal> {
        values.iter().map(|value| self.typed(value)).collect()
    }

    fn compare_pairs(
        &mut self,
        at: usize,
        op: Comparison,
        left: Vec<Typed>,
        right: Vec<Typed>,
    ) -> Result<Typed, Refusal> {
        let pairs = self.pairs(at, left, right)?;
        let tree = match op {
            Comparison::Equal | Comparison::NotEqual => {
                let compare = |(left, right)| self.compare(at, op, left, right).map(|typed| typed.tree);
                let parts = pairs.into_iter().map(compare).collect::<Result<_, _>>()?;
                if op == Comparison::Equal { Expression::And(parts) } else { Expression::Or(parts) }
            }
            Comparison::Less => self.in_order(at, (Comparison::Less, op), pairs)?,
            Comparison::LessOrEqual => self.in_order(at, (Comparison::Less, op), pairs)?,
            Comparison::Greater => self.in_order(at, (Comparison::Greater, op), pairs)?,
            Comparison::GreaterOrEqual => self.in_order(at, (Comparison::Greater, op), pairs)?,
        };
        self.folded(Typed::known(at, Kind::Bool, tree))
    }

    /// Is each of the values NULL, or none of them?
    pub(super) fn row_is_null(&mut self, at: usize, values: &[Syntax], negated: Negated) -> Result<Typed, Refusal> {
        let mut parts = Vec::with_capacity(values.len());
        for value in self.row(values)? {
            let is_null = Expression::IsNull(Box::new(self.settled(value)?.tree));
            parts.push(if negated { Expression::Not(Box::new(is_null)) } else { is_null });
        }
        self.folded(Typed::known(at, Kind::Bool, Expression::And(parts)))
    }

    /// Is one of the pairs?
    pub(super) fn distinct_rows(&mut self, at: usize, left: &[Syntax], right: &[Syntax]) -> Result<Typed, Refusal> {
        let (left, right) = (self.row(left)?, self.row(right)?);
        let pairs = self.pairs(at, left, right)?.into_iter();
        let parts = pairs.map(|(left, right)| self.distinct_values(at, left, right).map(|typed| typed.tree));
        let tree = Expression::Or(parts.collect::<Result<_, _>>()?);
        self.folded(Typed::known(at, Kind::Bool, tree))
    }

    fn pairs(&self, at: usize, left: Vec<Typed>, right: Vec<Typed>) -> Result<Vec<(Typed, Typed)>, Refusal> {
        if left.len() != right.len() {
            let what = format!("comparing a row of {} values with one of {}", left.len(), right.len());
            return self.refuse(at, Reason::Unsupported { what, instead: "write as many on both sides" });
        }
        Ok(left.into_iter().zip(right).collect())
    }

    /// From the last pair, which `last` compares, to the first.
    fn in_order(
        &mut self,
        at: usize,
        (strict, last): (Comparison, Comparison),
        mut pairs: Vec<(Typed, Typed)>,
    ) -> Result<Expression, Refusal> {
        // PostgreSQL evaluates what stands beside a NULL here, and nowhere else.
        if let Some((left, _)) = pairs.iter().find(|(left, right)| left.tree.is_null() || right.tree.is_null()) {
            let what = "NULL in a row whose order is asked for".to_owned();
            return self.refuse(left.at, Reason::Unsupported { what, instead: "the answer is NULL; leave it out" });
        }
        let Some((left, right)) = pairs.pop() else { return Ok(constant(at, Kind::Bool, Value::Null).tree) };
        let mut tree = self.compare(at, last, left, right)?.tree;
        while let Some((left, right)) = pairs.pop() {
            let (left_again, right_again) = (self.again(&left)?, self.again(&right)?);
            let before = self.compare(at, strict, left, right)?.tree;
            let equal = self.compare(at, Comparison::Equal, left_again, right_again)?.tree;
            tree = Expression::Case { arms: vec![(equal, tree)], otherwise: Box::new(before) };
        }
        Ok(tree)
    }

    /// Each row is compared for itself.
    pub(super) fn rows_in_list(
        &mut self,
        at: usize,
        left: &[Syntax],
        rows: &[Syntax],
        (op, negated): (Comparison, bool),
    ) -> Result<Typed, Refusal> {
        let (left, mut others) = (self.row(left)?, Vec::with_capacity(rows.len()));
        for row in rows {
            let What::Row(right) = &row.what else { return self.no_such_row(row.at) };
            others.push((row.at, self.row(right)?));
        }
        let mut parts = Vec::with_capacity(others.len());
        for (at, right) in others {
            let left = left.iter().map(|value| self.again(value)).collect::<Result<_, _>>()?;
            parts.push(self.compare_pairs(at, op, left, right)?.tree);
        }
        let tree = if negated { Expression::And(parts) } else { Expression::Or(parts) };
        self.folded(Typed::known(at, Kind::Bool, tree))
    }

    pub(super) fn no_such_row<T>(&self, at: usize) -> Result<T, Refusal> {
        let instead = "rows stand on both sides of = <> < <= > >= and IN only; write ROW (…) or parentheses";
        self.refuse(at, Reason::Unsupported { what: "a row of values here".to_owned(), instead })
    }
}
