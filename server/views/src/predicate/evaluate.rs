//! The value of an expression for one row.
//!
//! AND and OR do not depend on the order of their operands: false wins over an error in AND, true in OR, and an error wins
//! over NULL. PostgreSQL promises no order, and with another plan answers otherwise; ours is the answer of the best plan.
//! All else is evaluated as PostgreSQL does: CASE and COALESCE stop where they have found their value, and other functions
//! evaluate all operands before they look for NULL.

use std::sync::Arc;

use super::arithmetic::{arithmetic, cast, negate};
use super::array::Array;
use super::comparison::Comparison;
use super::expression::{Expression, Function, Member, Quantified};
use super::kind::Kind;
use super::like;
use super::members::Members;
use super::signature::{Does, Signature};
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
    /// Text that the type's input function does not take.
    #[error("text that is no {type_name}")]
    Malformed {
        /// The type.
        type_name: &'static str,
    },
    /// A function's operand that it does not take.
    #[error("{what}")]
    Argument {
        /// What, and of which function.
        what: &'static str,
    },
    /// A value that grows too large.
    #[error("a value of more than {max} bytes arises")]
    TooLarge {
        /// In bytes.
        max: usize,
    },
    /// Functions make too much of what they are given.
    #[error("values grow by more than {max} bytes")]
    GrowsTooLarge {
        /// In bytes.
        max: usize,
    },
    /// Versions or settings of PostgreSQL answer otherwise, or it is not evaluated here. PostgreSQL may have a value.
    #[error("{what} is not evaluated exactly here")]
    Undecided {
        /// What.
        what: &'static str,
    },
}

/// How large a text or an array may be that is put together.
const BYTES_MAX: usize = 64 << 20;
/// How much functions may make of what they are given while a condition is evaluated: of all results, what is longer than its operands.
pub(super) const GROWTH_MAX: usize = 1 << 20;

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
    /// Of the condition's subqueries, if they are known.
    pub(super) members: Option<&'v dyn Members>,
    pub(super) hides_error: bool,
    /// How much longer the results so far are than their operands, in bytes.
    pub(super) growth: usize,
}

impl<'v> Evaluator<'v> {
    /// Without subqueries.
    pub(super) fn new(inputs: &'v [Value<'v>]) -> Self {
        Evaluator { inputs, members: None, hides_error: false, growth: 0 }
    }

    /// True, false or NULL.
    pub(super) fn truth(&mut self, expression: &'v Expression) -> Result<Option<bool>, EvaluationError> {
        Ok(truth(&self.value(expression)?))
    }

    pub(super) fn value(&mut self, expression: &'v Expression) -> Result<Value<'v>, EvaluationError> {
        match expression {
            Expression::Constant(_, value) => Ok(value.borrowed()),
            Expression::Column(input) => Ok(self.inputs[*input].borrowed()),
            Expression::Strict(function, operands) => self.strict(function, operands),
            Expression::CalledOnNull { signature, result, operands } => {
                let operands = self.values(operands)?;
                let value = called(signature, *result, &operands)?;
                self.grown(value, &operands)
            }
            Expression::Array(_, operands) => {
                let elements = self.values(operands)?;
                // All of it is copied: the elements may be the row's.
                self.growth += elements.iter().map(length).sum::<usize>();
                grows_by(self.growth)?;
                Ok(Value::Array(Arc::new(Array::of(elements.into_iter().map(Value::into_owned).collect()))))
            }
            Expression::And(operands) => self.decide(operands, false),
            Expression::Or(operands) => self.decide(operands, true),
            Expression::Not(operand) => {
                let truth = self.truth(operand)?;
                Ok(of_truth(truth.map(|truth| !truth)))
            }
            Expression::IsNull(operand) => Ok(Value::Bool(self.value(operand)? == Value::Null)),
            Expression::Is(truth, operand) => Ok(Value::Bool(self.truth(operand)? == *truth)),
            Expression::Quantified(quantified) => self.quantified(quantified),
            Expression::Member(member) => self.member(member),
            Expression::QuantifiedArray { all, op, kind, operands } => {
                let (left, array) = (self.value(&operands[0])?, self.value(&operands[1])?);
                let Value::Array(array) = array else { return Ok(Value::Null) };
                Ok(with_each(&left, (*op, *all, *kind), &array.elements))
            }
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

    fn values(&mut self, operands: &'v [Expression]) -> Result<Vec<Value<'v>>, EvaluationError> {
        operands.iter().map(|operand| self.value(operand)).collect()
    }

    fn strict(&mut self, function: &'v Function, operands: &'v [Expression]) -> Result<Value<'v>, EvaluationError> {
        let first = self.value(&operands[0])?;
        match operands {
            [_] if first == Value::Null => Ok(first),
            [_] => self.apply(function, &[first]),
            [_, second] => {
                let second = self.value(second)?;
                if first == Value::Null || second == Value::Null {
                    Ok(Value::Null)
                } else {
                    self.apply(function, &[first, second])
                }
            }
            more => {
                let mut values = vec![first];
                values.extend(self.values(&more[1..])?);
                if values.contains(&Value::Null) { Ok(Value::Null) } else { self.apply(function, &values) }
            }
        }
    }

    fn apply(&mut self, function: &Function, of: &[Value<'v>]) -> Result<Value<'v>, EvaluationError> {
        let value = apply(function, of)?;
        match function {
            // Elements are no more than they were, whatever type they have now.
            Function::Cast { to: Kind::Array(_), .. } => Ok(value),
            _other => self.grown(value, of),
        }
    }

    /// What was made of operands.
    fn grown(&mut self, value: Value<'v>, of: &[Value<'v>]) -> Result<Value<'v>, EvaluationError> {
        let made = length(&value);
        if made > 0 {
            self.growth += made.saturating_sub(of.iter().map(length).sum());
            grows_by(self.growth)?;
        }
        Ok(value)
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
        Ok(with_each(&left, (quantified.op, quantified.all, quantified.kind), &quantified.values))
    }

    fn member(&mut self, member: &'v Member) -> Result<Value<'v>, EvaluationError> {
        let Some(members) = self.members else {
            return Err(EvaluationError::Undecided { what: "a subquery whose values are not at hand" });
        };
        let says = |key: Option<&[u8]>| Ok(of_truth(members.membership(member.number, key)));
        match self.value(&member.operand) {
            Ok(Value::Null) => says(None),
            Ok(value) => {
                let mut key = Vec::new();
                says(Some(member.key(&value, &mut key)))
            }
            // PostgreSQL does not evaluate what it compares with no row.
            Err(_) if members.membership(member.number, None) == Some(false) => {
                self.hides_error = true;
                Ok(Value::Bool(false))
            }
            Err(error) => Err(error),
        }
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

/// `left op ANY (values)`, or ALL.
fn with_each<'v>(left: &Value<'_>, (op, all, kind): (Comparison, bool, Kind), values: &[Value<'_>]) -> Value<'v> {
    // Of no values at all, every one fits.
    if values.is_empty() {
        return Value::Bool(all);
    }
    if *left == Value::Null {
        return Value::Null;
    }
    let padded = kind == Kind::Bpchar;
    let mut null = false;
    for value in values {
        if *value == Value::Null {
            null = true;
        } else if op.holds(left.compare(value, padded)) != all {
            return Value::Bool(!all);
        }
    }
    of_truth((!null).then_some(all))
}

/// Refuses what would make too much of what is given.
pub(super) fn grows_by(bytes: usize) -> Result<(), EvaluationError> {
    if bytes > GROWTH_MAX { Err(EvaluationError::GrowsTooLarge { max: GROWTH_MAX }) } else { Ok(()) }
}

/// In bytes, of what may be long.
pub(super) fn length(value: &Value<'_>) -> usize {
    match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Array(array) => array.byte_count(),
        Value::Numeric(number) => number.byte_count(),
        _other => 0,
    }
}

/// Of operands that are not NULL.
fn apply<'v>(function: &Function, of: &[Value<'v>]) -> Result<Value<'v>, EvaluationError> {
    match function {
        Function::Compare { op, padded } => Ok(Value::Bool(op.holds(of[0].compare(&of[1], *padded)))),
        Function::Arithmetic { op, kind } => arithmetic(*op, *kind, &of[0], &of[1]),
        Function::Negate(kind) => negate(of[0].clone(), *kind),
        Function::Cast { from, to, modifiers } => cast(of[0].clone(), *from, *to, modifiers),
        Function::Collate(_) => Ok(of[0].clone()),
        Function::Like { fold: false } => Ok(Value::Bool(like::matches(of[0].as_str(), of[1].as_str())?)),
        Function::Like { fold: true } => {
            let [text, pattern] = [&of[0], &of[1]].map(|text| text.as_str().to_ascii_lowercase());
            Ok(Value::Bool(like::matches(&text, &pattern)?))
        }
        Function::Regex { compiled, .. } => Ok(Value::Bool(compiled.is_match(of[0].as_str()))),
        Function::LikeEscape => Ok(Value::text(like::escaped(of[0].as_str(), of[1].as_str())?)),
        Function::Subscript => Ok(of[0].as_array().element(of[1..].iter().map(Value::as_int))),
        Function::Slice(bounds) => {
            let mut given = of[1..].iter().map(Value::as_int);
            let mut next = |is_given: bool| if is_given { given.next() } else { None };
            let bounds: Vec<_> = bounds.iter().map(|&(lower, upper)| (next(lower), next(upper))).collect();
            Ok(Value::Array(Arc::new(of[0].as_array().slice(&bounds))))
        }
        Function::Call { signature, result } => called(signature, *result, of),
    }
}

fn called<'v>(signature: &Signature, result: Kind, of: &[Value<'v>]) -> Result<Value<'v>, EvaluationError> {
    match signature.does {
        Does::Run(run) => run(result, of),
        Does::Refused(_) => unreachable!("typing refuses what is not evaluated"),
    }
}

/// Refuses a value of so many bytes that is put together.
pub(super) fn fits(bytes: usize) -> Result<(), EvaluationError> {
    if bytes > BYTES_MAX { Err(EvaluationError::TooLarge { max: BYTES_MAX }) } else { Ok(()) }
}

/// Of a boolean; NULL otherwise, which typing rules out.
fn truth(value: &Value<'_>) -> Option<bool> {
    if let Value::Bool(truth) = value { Some(*truth) } else { None }
}

fn of_truth(truth: Option<bool>) -> Value<'static> {
    truth.map_or(Value::Null, Value::Bool)
}
