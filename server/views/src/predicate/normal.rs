//! The normal form: conditions that are written differently and mean the same become one, as far as that is looked for.
//!
//! | Written | Normal |
//! |---|---|
//! | `NOT (a < 1)`, `NOT (a AND b)`, `NOT a = ANY (…)` | `a >= 1`, `NOT a OR NOT b`, `a <> ALL (…)` |
//! | `1 < a`, `b > a` | `a > 1`, `a < b` |
//! | `a IN (1)`, `a IN (2, 1, 1)` | `a = 1`, `a IN (1, 2)` |
//! | `b = true`, `b <> true` | `b`, `NOT b` |
//! | `n = 1.00`, `c = 'a  '` (character) | `n = 1`, `c = 'a'` |
//! | `x AND (y AND x)`, `x AND true`, `x OR true` | `x AND y`, `x`, `true` |
//! | `a IS DISTINCT FROM 1` (a CASE) | `a IS NULL OR (a IS NOT NULL AND a <> 1)` |
//!
//! Invariants: for every row it has the same value, NULL included, and fails where the condition fails. That AND and OR may be
//! put in order, and that false and true end them, follows from how they are evaluated ([`super::evaluate`]): not from left to
//! right, but so that what decides wins over what fails. Nothing else is moved past what may fail. It is no deeper than a
//! constant times the condition, and larger by a column for each CASE only.

use std::borrow::Cow;

use super::comparison::Comparison;
use super::expression::{Expression, Function, Member, Quantified};
use super::key;
use super::kind::Kind;
use super::numeric::Numeric;
use super::print::Printer;
use super::value::Value;

/// More arms than IS DISTINCT FROM has would nest deeper with each.
const ARMS_MAX: usize = 2;

/// A condition's normal form. The printer is the one of normal forms.
pub(super) fn normal(condition: Expression, printer: &Printer<'_>) -> Expression {
    Normalizer { printer }.boolean(condition, true)
}

struct Normalizer<'p> {
    printer: &'p Printer<'p>,
}

impl Normalizer<'_> {
    /// A boolean expression, or its negation.
    fn boolean(&self, expression: Expression, truth: bool) -> Expression {
        match expression {
            Expression::Not(operand) => self.boolean(*operand, !truth),
            Expression::And(operands) => self.joined(operands, truth, truth),
            Expression::Or(operands) => self.joined(operands, truth, !truth),
            Expression::Constant(kind, Value::Bool(value)) => Expression::Constant(kind, Value::Bool(value == truth)),
            null @ Expression::Constant(_, Value::Null) => null,
            Expression::Strict(Function::Compare { op, padded }, operands) => {
                let op = if truth { op } else { op.negated() };
                self.compared(op, padded, operands.into_iter().map(|operand| self.other(operand)).collect())
            }
            Expression::Quantified(quantified) => self.quantified(quantified, truth),
            Expression::Case { arms, otherwise } => {
                let arm = |(when, then)| (self.boolean(when, true), self.boolean(then, truth));
                let arms = arms.into_iter().map(arm).collect();
                self.case(arms, self.boolean(*otherwise, truth), true)
            }
            other => negated(self.other(other), truth),
        }
    }

    /// What need not be boolean.
    fn other(&self, expression: Expression) -> Expression {
        match expression {
            Expression::Not(_) | Expression::And(_) | Expression::Or(_) | Expression::Quantified(_) => {
                self.boolean(expression, true)
            }
            Expression::Strict(Function::Compare { .. }, _) => self.boolean(expression, true),
            Expression::Is(truth, operand) => match self.boolean(*operand, true) {
                Expression::Constant(_, value) => {
                    let known = if let Value::Bool(value) = value { Some(value) } else { None };
                    of_truth(known == truth)
                }
                operand => Expression::Is(truth, Box::new(operand)),
            },
            Expression::IsNull(operand) => match self.other(*operand) {
                Expression::Constant(_, value) => of_truth(value == Value::Null),
                operand => Expression::IsNull(Box::new(operand)),
            },
            Expression::Case { arms, otherwise } => {
                let arms = arms.into_iter().map(|(when, then)| (self.boolean(when, true), self.other(then))).collect();
                self.case(arms, self.other(*otherwise), false)
            }
            other => other.map_below(&mut |below| self.other(below)),
        }
    }

    /// AND, or OR, of operands that are negated unless `truth`.
    fn joined(&self, operands: Vec<Expression>, truth: bool, is_and: bool) -> Expression {
        self.join(operands.into_iter().map(|operand| self.boolean(operand, truth)).collect(), is_and)
    }

    /// AND, or OR, of operands that have their normal form already.
    fn join(&self, operands: Vec<Expression>, is_and: bool) -> Expression {
        let mut parts = Vec::with_capacity(operands.len());
        for operand in operands {
            match operand {
                Expression::And(below) if is_and => parts.extend(below),
                Expression::Or(below) if !is_and => parts.extend(below),
                Expression::Constant(_, Value::Bool(value)) if value == is_and => {}
                decided @ Expression::Constant(_, Value::Bool(_)) => return decided,
                part => parts.push(part),
            }
        }
        let mut printed: Vec<_> = parts.into_iter().map(|part| (self.printer.sql(&part), part)).collect();
        printed.sort_by(|(a, _), (b, _)| a.cmp(b));
        printed.dedup_by(|(a, _), (b, _)| a == b);
        let mut parts: Vec<_> = printed.into_iter().map(|(_, part)| part).collect();
        match parts.pop() {
            None => of_truth(is_and),
            Some(only) if parts.is_empty() => only,
            Some(last) => {
                parts.push(last);
                if is_and { Expression::And(parts) } else { Expression::Or(parts) }
            }
        }
    }

    /// A constant stands on the right, and columns are compared with `<`.
    fn compared(&self, op: Comparison, padded: bool, mut operands: Vec<Expression>) -> Expression {
        let turns = match (&operands[0], &operands[1]) {
            (_, Expression::Constant(..)) => false,
            (Expression::Constant(..), _) => true,
            (left, right) => match op {
                Comparison::Equal | Comparison::NotEqual => self.printer.sql(left) > self.printer.sql(right),
                Comparison::Less | Comparison::LessOrEqual => false,
                Comparison::Greater | Comparison::GreaterOrEqual => true,
            },
        };
        if turns {
            operands.reverse();
        }
        let op = if turns { op.exchanged() } else { op };
        match operands.pop() {
            Some(Expression::Constant(_, Value::Bool(value))) if !op.orders() => {
                let left = operands.pop().expect("a comparison has two operands");
                return self.boolean(left, value == (op == Comparison::Equal));
            }
            Some(Expression::Constant(kind, value)) => operands.push(Expression::Constant(kind, plain(value, padded))),
            other => operands.extend(other),
        }
        Expression::Strict(Function::Compare { op, padded }, operands)
    }

    fn quantified(&self, quantified: Quantified, truth: bool) -> Expression {
        let Quantified { all, op, kind, left, values } = quantified;
        let (all, op) = if truth { (all, op) } else { (!all, op.negated()) };
        let padded = kind == Kind::Bpchar;
        let left = self.other(*left);
        let mut values: Vec<_> = values.into_iter().map(|value| plain(value, padded)).collect();
        in_order(&mut values, padded);
        match values.as_slice() {
            [value] if *value != Value::Null => {
                self.compared(op, padded, vec![left, Expression::Constant(kind, value.clone())])
            }
            _ => Expression::Quantified(Quantified { all, op, kind, left: Box::new(left), values }),
        }
    }

    /// Arms that are never taken, or always, are left out; a boolean one that looks for NULL becomes AND and OR.
    fn case(&self, arms: Vec<(Expression, Expression)>, mut otherwise: Expression, boolean: bool) -> Expression {
        let mut kept = Vec::with_capacity(arms.len());
        for (when, then) in arms {
            match when {
                Expression::Constant(_, Value::Bool(true)) => {
                    otherwise = then;
                    break;
                }
                Expression::Constant(..) => {}
                when => kept.push((when, then)),
            }
        }
        if kept.is_empty() {
            return otherwise;
        }
        if !boolean || kept.len() > ARMS_MAX || !kept.iter().all(|(when, _)| looks_for_null(when)) {
            return Expression::Case { arms: kept, otherwise: Box::new(otherwise) };
        }
        for (when, then) in kept.into_iter().rev() {
            let here = self.join(vec![when.clone(), then], true);
            let further = self.join(vec![self.boolean(when, false), otherwise], true);
            otherwise = self.join(vec![here, further], false);
        }
        otherwise
    }
}

/// True or false for every row, without an error.
fn looks_for_null(expression: &Expression) -> bool {
    match expression {
        Expression::IsNull(operand) => matches!(**operand, Expression::Column(_)),
        Expression::Not(operand) => looks_for_null(operand),
        _ => false,
    }
}

fn negated(expression: Expression, truth: bool) -> Expression {
    match expression {
        Expression::Constant(kind, Value::Bool(value)) => Expression::Constant(kind, Value::Bool(value == truth)),
        null @ Expression::Constant(_, Value::Null) => null,
        other if truth => other,
        other => Expression::Not(Box::new(other)),
    }
}

fn of_truth(truth: bool) -> Expression {
    Expression::Constant(Kind::Bool, Value::Bool(truth))
}

/// One of the values that compare as equal, the same for all of them.
fn plain(value: Value<'static>, padded: bool) -> Value<'static> {
    match value {
        Value::Numeric(number) => Value::Numeric(Cow::Owned(without_zeros(&number))),
        Value::Float(0.0) => Value::Float(0.0),
        Value::Text(text) if padded => Value::Text(Cow::Owned(text.trim_end_matches(' ').to_owned())),
        other => other,
    }
}

/// Each value once, in order, NULL last; as they are where one has no key.
fn in_order(values: &mut Vec<Value<'static>>, padded: bool) {
    let mut keyed = Vec::with_capacity(values.len());
    for value in values.iter() {
        let mut bytes = Vec::new();
        if !key::write(value, padded, &mut bytes) && *value != Value::Null {
            return;
        }
        keyed.push((*value == Value::Null, bytes, value.clone()));
    }
    keyed.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    keyed.dedup_by(|a, b| (a.0, &a.1) == (b.0, &b.1));
    *values = keyed.into_iter().map(|(_, _, value)| value).collect();
}

/// The same number with the least scale.
fn without_zeros(number: &Numeric) -> Numeric {
    let text = number.to_string();
    let short = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    Numeric::parse(short).unwrap_or_else(|| number.clone())
}

impl Comparison {
    /// What is true where it is false.
    pub(super) fn negated(self) -> Self {
        match self {
            Comparison::Equal => Comparison::NotEqual,
            Comparison::NotEqual => Comparison::Equal,
            Comparison::Less => Comparison::GreaterOrEqual,
            Comparison::LessOrEqual => Comparison::Greater,
            Comparison::Greater => Comparison::LessOrEqual,
            Comparison::GreaterOrEqual => Comparison::Less,
        }
    }
}

impl Expression {
    /// With each of the expressions directly below replaced.
    pub(super) fn map_below(self, map: &mut impl FnMut(Expression) -> Expression) -> Self {
        let mut each = |operands: Vec<Expression>| operands.into_iter().map(&mut *map).collect::<Vec<_>>();
        match self {
            leaf @ (Expression::Constant(..) | Expression::Column(_)) => leaf,
            Expression::Strict(function, operands) => Expression::Strict(function, each(operands)),
            Expression::And(operands) => Expression::And(each(operands)),
            Expression::Or(operands) => Expression::Or(each(operands)),
            Expression::Coalesce(operands) => Expression::Coalesce(each(operands)),
            Expression::Array(kind, operands) => Expression::Array(kind, each(operands)),
            Expression::CalledOnNull { signature, result, operands } => {
                Expression::CalledOnNull { signature, result, operands: each(operands) }
            }
            Expression::QuantifiedArray { all, op, kind, operands } => {
                Expression::QuantifiedArray { all, op, kind, operands: each(operands) }
            }
            Expression::Extreme { greatest, padded, operands } => {
                Expression::Extreme { greatest, padded, operands: each(operands) }
            }
            Expression::Not(operand) => Expression::Not(Box::new(map(*operand))),
            Expression::IsNull(operand) => Expression::IsNull(Box::new(map(*operand))),
            Expression::Is(truth, operand) => Expression::Is(truth, Box::new(map(*operand))),
            Expression::Quantified(quantified) => {
                let left = Box::new(map(*quantified.left));
                Expression::Quantified(Quantified { left, ..quantified })
            }
            Expression::Member(member) => {
                let operand = Box::new(map(*member.operand));
                Expression::Member(Member { operand, ..member })
            }
            Expression::Case { arms, otherwise } => Expression::Case {
                arms: arms.into_iter().map(|(when, then)| (map(when), map(then))).collect(),
                otherwise: Box::new(map(*otherwise)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::Predicate;
    use crate::predicate::evaluate::Evaluator;
    use crate::predicate::input;
    use crate::random::{AnySets, Random, table};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_normal_form_has_the_same_value(seed: u64) {
            let mut random = Random::asking(StdRng::seed_from_u64(seed));
            for _ in 0..40 {
                let condition = random.condition(4);
                let made = Predicate::with_tables(&condition, &[], &table(), &[table()]);
                let Ok(predicate) = made else { continue };
                let parts = predicate.parts.iter().map(|part| part.condition.clone()).collect();
                let normal = Expression::And(parts);
                for _ in 0..10 {
                    let values = random.values();
                    let row = random.row(&values);
                    let Ok(inputs) = input::read(&predicate.by_field, &predicate.columns, &row) else { continue };
                    let value = |expression| {
                        let mut evaluator = Evaluator { members: Some(&AnySets), ..Evaluator::new(&inputs) };
                        // Which of several errors is reported follows the order of operands.
                        evaluator.truth(expression).map_err(|_| ())
                    };
                    prop_assert_eq!(
                        value(&predicate.expression),
                        value(&normal),
                        "{} {} {:?}", condition, predicate.normal, values
                    );
                }
            }
        }

        #[test]
        fn the_normal_form_of_a_normal_form_is_itself(seed: u64) {
            let mut random = Random::asking(StdRng::seed_from_u64(seed));
            let table = table();
            for _ in 0..40 {
                let condition = random.condition(4);
                let made = Predicate::with_tables(&condition, &[], &table, std::slice::from_ref(&table));
                let Ok(predicate) = made else { continue };
                let inputs: Vec<usize> = predicate.columns.iter().map(|input| input.field as usize - 1).collect();
                let printer = Printer { table: &table, inputs: &inputs, normal: true };
                let parts = predicate.parts.iter().map(|part| part.condition.clone()).collect();
                let again = normal(Expression::And(parts), &printer);
                prop_assert_eq!(printer.sql(&again), predicate.normal, "{}", condition);
            }
        }
    }
}
