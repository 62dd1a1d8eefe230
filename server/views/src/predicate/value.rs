//! A value while a condition is evaluated: borrowed from the row or the condition where it can be.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::numeric::Numeric;

/// A value, of the type that the expression has.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Bool(bool),
    /// int2, int4, int8, oid; an enum's place among its labels; days; microseconds.
    Int(i64),
    Numeric(Cow<'a, Numeric>),
    /// float8, or a float4, which it holds exactly.
    Float(f64),
    /// text, varchar, bpchar, uuid.
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
}

impl Value<'_> {
    pub(super) fn borrowed(&self) -> Value<'_> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(value) => Value::Bool(*value),
            Value::Int(value) => Value::Int(*value),
            Value::Numeric(value) => Value::Numeric(Cow::Borrowed(value)),
            Value::Float(value) => Value::Float(*value),
            Value::Text(value) => Value::Text(Cow::Borrowed(value)),
            Value::Bytes(value) => Value::Bytes(Cow::Borrowed(value)),
        }
    }

    pub(super) fn into_owned(self) -> Value<'static> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(value) => Value::Bool(value),
            Value::Int(value) => Value::Int(value),
            Value::Numeric(value) => Value::Numeric(Cow::Owned(value.into_owned())),
            Value::Float(value) => Value::Float(value),
            Value::Text(value) => Value::Text(Cow::Owned(value.into_owned())),
            Value::Bytes(value) => Value::Bytes(Cow::Owned(value.into_owned())),
        }
    }

    /// The order of PostgreSQL's B-tree operator class for the type; text by its bytes. `padded`: spaces at the end do
    /// not count. Panics where the operands are not of one type, which typing rules out.
    pub(super) fn compare(&self, other: &Value<'_>, padded: bool) -> Ordering {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Numeric(a), Value::Numeric(b)) => a.compare(b),
            (Value::Float(a), Value::Float(b)) => compare_floats(*a, *b),
            (Value::Text(a), Value::Text(b)) if padded => a.trim_end_matches(' ').cmp(b.trim_end_matches(' ')),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (
                Value::Null
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Numeric(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::Bytes(_),
                _,
            ) => unreachable!("typing gives both operands of a comparison one type"),
        }
    }
}

/// NaN equals itself and is above all; -0 equals 0.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}
