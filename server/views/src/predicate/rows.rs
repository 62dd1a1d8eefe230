//! Typing of rows of values, which are compared value by value (manual, section 9.24.5).

use super::comparison::Comparison;
use super::expression::Expression;
use super::kind::Kind;
use super::refusal::{Reason, Refusal};
use super::syntax::{Syntax, What};
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
        if left.len() != right.len() {
            let what = format!("comparing a row of {} values with one of {}", left.len(), right.len());
            return self.refuse(at, Reason::Unsupported { what, instead: "write as many on both sides" });
        }
        let mut pairs = Vec::with_capacity(left.len());
        for (left, right) in left.iter().zip(right) {
            pairs.push((self.typed(left)?, self.typed(right)?));
        }
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
        let mut parts = Vec::with_capacity(rows.len());
        for row in rows {
            let What::Row(right) = &row.what else { return self.no_such_row(row.at) };
            parts.push(self.compare_rows(row.at, op, left, right)?.tree);
        }
        let tree = if negated { Expression::And(parts) } else { Expression::Or(parts) };
        self.folded(Typed::known(at, Kind::Bool, tree))
    }

    pub(super) fn no_such_row<T>(&self, at: usize) -> Result<T, Refusal> {
        let instead = "rows stand on both sides of = <> < <= > >= and IN only; write ROW (…) or parentheses";
        self.refuse(at, Reason::Unsupported { what: "a row of values here".to_owned(), instead })
    }
}
