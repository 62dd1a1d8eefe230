//! The value of an expression for one row.
//!
//! AND and OR do not depend on the order of their operands: false wins over an error in AND, true in OR, and an error wins
//! over NULL. PostgreSQL promises no order, and with another plan answers otherwise; ours is the answer of the best plan.
//! All else is evaluated as PostgreSQL does: CASE and COALESCE stop where they have found their value, and other functions
//! evaluate all operands before they look for NULL.

use std::borrow::Cow;

use super::arithmetic::{arithmetic, cast, negate};
use super::expression::{Expression, Function, Quantified};
use super::like;
use super::value::Value;

/// What PostgreSQL would answer with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    /// `/` or `%`.
    #[error("division by zero")]
    DivisionByZero,
    /// A number that the type does not hold.
    #[error("value out of range for {type_name}")]
    OutOfRange {
        /// The type.
        type_name: &'static str,
    },
    /// A pattern that ends in the middle of an escape.
    #[error("LIKE pattern ends with its escape character")]
    Pattern,
    /// More than one character.
    #[error("the escape of LIKE is more than one character")]
    Escape,
}

/// A condition's answer for one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// True, false, or NULL; or the error.
    pub verdict: Result<Option<bool>, EvaluationError>,
    /// An operand of an AND or OR fails, and another decides all the same. PostgreSQL may report the error.
    pub hides_error: bool,
}

/// Evaluates for one row.
pub(super) struct Evaluator<'v> {
    /// Of the columns that the condition reads.
    pub(super) inputs: &'v [Value<'v>],
    pub(super) hides_error: bool,
}

impl<'v> Evaluator<'v> {
    /// True, false or NULL.
    pub(super) fn truth(&mut self, expression: &'v Expression) -> Result<Option<bool>, EvaluationError> {
        Ok(truth(&self.value(expression)?))
    }

    pub(super) fn value(&mut self, expression: &'v Expression) -> Result<Value<'v>, EvaluationError> {
        match expression {
            Expression::Constant(_, value) => Ok(value.borrowed()),
            Expression::Column(input) => Ok(self.inputs[*input].borrowed()),
            Expression::Strict(function, operands) => self.strict(function, operands),
            Expression::And(operands) => self.decide(operands, false),
            Expression::Or(operands) => self.decide(operands, true),
            Expression::Not(operand) => {
                let truth = self.truth(operand)?;
                Ok(of_truth(truth.map(|truth| !truth)))
            }
            Expression::IsNull(operand) => Ok(Value::Bool(self.value(operand)? == Value::Null)),
            Expression::Is(truth, operand) => Ok(Value::Bool(self.truth(operand)? == *truth)),
            Expression::Quantified(quantified) => self.quantified(quantified),
            Expression::Case { arms, otherwise } => {
                for (when, then) in arms {
                    if self.truth(when)? == Some(true) {
                        return self.value(then);
                    }
                }
                self.value(otherwise)
            }
            Expression::Coalesce(operands) => {
                for operand in operands {
                    let value = self.value(operand)?;
                    if value != Value::Null {
                        return Ok(value);
                    }
                }
                Ok(Value::Null)
            }
            Expression::Extreme { greatest, padded, operands } => self.extreme(*greatest, *padded, operands),
        }
    }

    fn strict(&mut self, function: &'v Function, operands: &'v [Expression]) -> Result<Value<'v>, EvaluationError> {
        let first = self.value(&operands[0])?;
        let Some(second) = operands.get(1) else {
            return match (first, function) {
                (Value::Null, _) => Ok(Value::Null),
                (value, Function::Negate(kind)) => negate(value, *kind),
                (value, Function::Cast { from, to, modifiers }) => cast(value, *from, *to, modifiers),
                (
                    value,
                    Function::Collate(_)
                    | Function::Compare { .. }
                    | Function::Arithmetic { .. }
                    | Function::Concat
                    | Function::Like { .. }
                    | Function::LikeEscape,
                ) => Ok(value),
            };
        };
        let second = self.value(second)?;
        if first == Value::Null || second == Value::Null {
            return Ok(Value::Null);
        }
        apply(function, first, second)
    }

    /// AND (`winner` false) and OR (`winner` true).
    fn decide(&mut self, operands: &'v [Expression], winner: bool) -> Result<Value<'v>, EvaluationError> {
        let (mut error, mut null) = (None, false);
        for operand in operands {
            match self.truth(operand) {
                Ok(Some(truth)) if truth == winner => {
                    self.hides_error |= error.is_some();
                    return Ok(Value::Bool(winner));
                }
                Ok(Some(_)) => {}
                Ok(None) => null = true,
                Err(failed) => error = error.or(Some(failed)),
            }
        }
        match error {
            Some(error) => Err(error),
            None => Ok(of_truth((!null).then_some(!winner))),
        }
    }

    fn quantified(&mut self, quantified: &'v Quantified) -> Result<Value<'v>, EvaluationError> {
        let left = self.value(&quantified.left)?;
        // Of no values at all, every one fits.
        if quantified.values.is_empty() {
            return Ok(Value::Bool(quantified.all));
        }
        if left == Value::Null {
            return Ok(Value::Null);
        }
        let padded = quantified.kind == super::kind::Kind::Bpchar;
        let mut null = false;
        for value in &quantified.values {
            if *value == Value::Null {
                null = true;
            } else if quantified.op.holds(left.compare(value, padded)) != quantified.all {
                return Ok(Value::Bool(!quantified.all));
            }
        }
        Ok(of_truth((!null).then_some(quantified.all)))
    }

    fn extreme(
        &mut self,
        greatest: bool,
        padded: bool,
        operands: &'v [Expression],
    ) -> Result<Value<'v>, EvaluationError> {
        let mut found = Value::Null;
        for operand in operands {
            let value = self.value(operand)?;
            if value == Value::Null {
                continue;
            }
            let ordering = if found == Value::Null { None } else { Some(value.compare(&found, padded)) };
            let better = ordering.is_none_or(|ordering| if greatest { ordering.is_gt() } else { ordering.is_lt() });
            if better {
                found = value;
            }
        }
        Ok(found)
    }
}

fn apply<'v>(function: &Function, first: Value<'v>, second: Value<'v>) -> Result<Value<'v>, EvaluationError> {
    match (function, first, second) {
        (Function::Compare { op, padded }, a, b) => Ok(Value::Bool(op.holds(a.compare(&b, *padded)))),
        (Function::Arithmetic { op, kind }, a, b) => arithmetic(*op, *kind, &a, &b),
        (Function::Concat, Value::Text(a), Value::Text(b)) => Ok(Value::Text(Cow::Owned(a.into_owned() + &b))),
        (Function::Concat, Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes(Cow::Owned([a, b].concat()))),
        (Function::Like { fold: false }, Value::Text(a), Value::Text(b)) => Ok(Value::Bool(like::matches(&a, &b)?)),
        (Function::Like { fold: true }, Value::Text(a), Value::Text(b)) => {
            let (text, pattern) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
            Ok(Value::Bool(like::matches(&text, &pattern)?))
        }
        (Function::LikeEscape, Value::Text(a), Value::Text(b)) => Ok(Value::Text(Cow::Owned(like::escaped(&a, &b)?))),
        (
            Function::Concat
            | Function::Like { .. }
            | Function::LikeEscape
            | Function::Negate(_)
            | Function::Cast { .. }
            | Function::Collate(_),
            ..,
        ) => unreachable!("typing gives operators the operands that they take"),
    }
}

/// Of a boolean; NULL otherwise, which typing rules out.
fn truth(value: &Value<'_>) -> Option<bool> {
    if let Value::Bool(truth) = value { Some(*truth) } else { None }
}

fn of_truth(truth: Option<bool>) -> Value<'static> {
    truth.map_or(Value::Null, Value::Bool)
}
