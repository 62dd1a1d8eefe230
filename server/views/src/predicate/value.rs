//! A value while a condition is evaluated: borrowed from the row or the condition where it can be.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use super::array::Array;
use super::interval::Interval;
use super::json::Json;
use super::numeric::Numeric;
use super::range::Range;

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
    /// text, varchar, bpchar, uuid, json.
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    Interval(Interval),
    Json(Arc<Json>),
    Array(Arc<Array>),
    Range(Arc<Range>),
}

impl<'a> Value<'a> {
    pub(super) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Value::Text(text.into())
    }

    pub(super) fn numeric(number: Numeric) -> Self {
        Value::Numeric(Cow::Owned(number))
    }

    pub(super) fn borrowed(&self) -> Value<'_> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(value) => Value::Bool(*value),
            Value::Int(value) => Value::Int(*value),
            Value::Numeric(value) => Value::Numeric(Cow::Borrowed(value)),
            Value::Float(value) => Value::Float(*value),
            Value::Text(value) => Value::Text(Cow::Borrowed(value)),
            Value::Bytes(value) => Value::Bytes(Cow::Borrowed(value)),
            Value::Interval(value) => Value::Interval(*value),
            Value::Json(value) => Value::Json(value.clone()),
            Value::Array(value) => Value::Array(value.clone()),
            Value::Range(value) => Value::Range(value.clone()),
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
            Value::Interval(value) => Value::Interval(value),
            Value::Json(value) => Value::Json(value),
            Value::Array(value) => Value::Array(value),
            Value::Range(value) => Value::Range(value),
        }
    }

    /// The order of PostgreSQL's B-tree operator class for the type; text by its bytes; JSON is equal or not, and has no
    /// order here. `padded`: spaces at the end do not count. Panics where the operands are not of one type, which typing
    /// rules out.
    pub(super) fn compare(&self, other: &Value<'_>, padded: bool) -> Ordering {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Numeric(a), Value::Numeric(b)) => a.compare(b),
            (Value::Float(a), Value::Float(b)) => compare_floats(*a, *b),
            (Value::Text(a), Value::Text(b)) if padded => a.trim_end_matches(' ').cmp(b.trim_end_matches(' ')),
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            (Value::Interval(a), Value::Interval(b)) => a.span().cmp(&b.span()),
            (Value::Json(a), Value::Json(b)) => {
                if a.equals(b) {
                    Ordering::Equal
                } else {
                    Ordering::Less
                }
            }
            (Value::Array(a), Value::Array(b)) => a.compare(b, padded),
            (Value::Range(a), Value::Range(b)) => a.compare(b),
            (
                Value::Null
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Numeric(_)
                | Value::Float(_)
                | Value::Text(_)
                | Value::Bytes(_)
                | Value::Interval(_)
                | Value::Json(_)
                | Value::Array(_)
                | Value::Range(_),
                _,
            ) => unreachable!("typing gives both operands of a comparison one type"),
        }
    }
}

/// What a function's operands hold, where typing has seen to their types. Each panics on another type.
impl Value<'_> {
    pub(super) fn as_str(&self) -> &str {
        if let Value::Text(text) = self { text } else { unreachable!("typing gives this operand as text") }
    }

    pub(super) fn as_int(&self) -> i64 {
        if let Value::Int(int) = self { *int } else { unreachable!("typing gives this operand as a whole number") }
    }

    pub(super) fn as_float(&self) -> f64 {
        if let Value::Float(float) = self { *float } else { unreachable!("typing gives this operand as a float") }
    }

    pub(super) fn as_numeric(&self) -> &Numeric {
        if let Value::Numeric(number) = self { number } else { unreachable!("typing gives this operand as numeric") }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        if let Value::Bytes(bytes) = self { bytes } else { unreachable!("typing gives this operand as bytea") }
    }

    pub(super) fn as_json(&self) -> &Arc<Json> {
        if let Value::Json(json) = self { json } else { unreachable!("typing gives this operand as jsonb") }
    }

    pub(super) fn as_array(&self) -> &Array {
        if let Value::Array(array) = self { array } else { unreachable!("typing gives this operand as an array") }
    }

    pub(super) fn as_range(&self) -> &Range {
        if let Value::Range(range) = self { range } else { unreachable!("typing gives this operand as a range") }
    }

    pub(super) fn as_interval(&self) -> Interval {
        if let Value::Interval(interval) = self { *interval } else { unreachable!("typing gives an interval") }
    }
}

/// NaN equals itself and is above all; -0 equals 0.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}
