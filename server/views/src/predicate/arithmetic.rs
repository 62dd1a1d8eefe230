//! Numbers: sums, products, and casts, with PostgreSQL's errors (`int.c`, `int8.c`, `float.c`, `numeric.c`).

use std::borrow::Cow;
use std::sync::Arc;

use super::array::Array;
use super::evaluate::EvaluationError;
use super::interval::Interval;
use super::kind::Kind;
use super::literal;
use super::moment::{DATE_INFINITY, DAY, TIME_INFINITY, TIMESTAMP_END_DAY};
use super::numeric::Numeric;
use super::syntax::Arithmetic;
use super::value::Value;

type Evaluated<'v> = Result<Value<'v>, EvaluationError>;

/// Both operands have the type.
pub(super) fn arithmetic<'v>(op: Arithmetic, kind: Kind, a: &Value<'_>, b: &Value<'_>) -> Evaluated<'v> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => int_arithmetic(op, kind, *a, *b),
        (Value::Float(a), Value::Float(b)) => float_arithmetic(op, kind, *a, *b),
        (Value::Numeric(a), Value::Numeric(b)) => {
            let result = match op {
                Arithmetic::Add => a.add(b),
                Arithmetic::Subtract => a.subtract(b),
                Arithmetic::Multiply => a.multiply(b),
                Arithmetic::Divide => a.divide(b),
                Arithmetic::Remainder => a.remainder(b),
            };
            Ok(Value::Numeric(Cow::Owned(result?)))
        }
        _ => unreachable!("typing gives both operands one type of numbers"),
    }
}

fn int_arithmetic<'v>(op: Arithmetic, kind: Kind, a: i64, b: i64) -> Evaluated<'v> {
    let result = match op {
        Arithmetic::Add => a.checked_add(b),
        Arithmetic::Subtract => a.checked_sub(b),
        Arithmetic::Multiply => a.checked_mul(b),
        Arithmetic::Divide | Arithmetic::Remainder if b == 0 => return Err(EvaluationError::DivisionByZero),
        Arithmetic::Divide => a.checked_div(b),
        Arithmetic::Remainder => Some(a.wrapping_rem(b)),
    };
    int_within(kind, result)
}

pub(super) fn int_within<'v>(kind: Kind, value: Option<i64>) -> Evaluated<'v> {
    let range = match kind {
        Kind::Int2 => i64::from(i16::MIN)..=i64::from(i16::MAX),
        Kind::Int4 => i64::from(i32::MIN)..=i64::from(i32::MAX),
        Kind::Oid => 0..=i64::from(u32::MAX),
        _ => i64::MIN..=i64::MAX,
    };
    let value = value.filter(|value| range.contains(value));
    value.map(Value::Int).ok_or(EvaluationError::OutOfRange { type_name: kind.name() })
}

fn float_arithmetic<'v>(op: Arithmetic, kind: Kind, a: f64, b: f64) -> Evaluated<'v> {
    let out_of_range = Err(EvaluationError::OutOfRange { type_name: kind.name() });
    let single = kind == Kind::Float4;
    let (x, y) = (a as f32, b as f32);
    let result = match op {
        Arithmetic::Add if single => f64::from(x + y),
        Arithmetic::Add => a + b,
        Arithmetic::Subtract if single => f64::from(x - y),
        Arithmetic::Subtract => a - b,
        Arithmetic::Multiply if single => f64::from(x * y),
        Arithmetic::Multiply => a * b,
        Arithmetic::Divide | Arithmetic::Remainder => {
            if b == 0.0 && !a.is_nan() {
                return Err(EvaluationError::DivisionByZero);
            }
            if single { f64::from(x / y) } else { a / b }
        }
    };
    let divides = op == Arithmetic::Divide;
    if result.is_infinite() && !a.is_infinite() && (divides || !b.is_infinite()) {
        return out_of_range;
    }
    let multiplies = op == Arithmetic::Multiply;
    if result == 0.0 && a != 0.0 && (multiplies && b != 0.0 || divides && !b.is_infinite()) {
        return out_of_range;
    }
    Ok(Value::Float(result))
}

pub(super) fn negate<'v>(value: Value<'_>, kind: Kind) -> Evaluated<'v> {
    match value {
        Value::Int(value) => int_within(kind, value.checked_neg()),
        Value::Float(value) => Ok(Value::Float(-value)),
        Value::Numeric(value) => Ok(Value::Numeric(Cow::Owned(value.into_owned().negate()))),
        _ => unreachable!("typing gives the sign a number"),
    }
}

/// A cast that is written, or that PostgreSQL puts there.
pub(super) fn cast<'v>(value: Value<'v>, from: Kind, to: Kind, modifiers: &[u32]) -> Evaluated<'v> {
    if let (Kind::Array(from), Kind::Array(to), Value::Array(array)) = (from, to, &value) {
        let element = |element: &Value<'static>| match element {
            Value::Null => Ok(Value::Null),
            element => cast(element.clone(), *from, *to, modifiers),
        };
        let elements = array.elements.iter().map(element).collect::<Result<_, _>>()?;
        return Ok(Value::Array(Arc::new(Array { elements, dimensions: array.dimensions.clone() })));
    }
    if let (true, Value::Json(json)) = (to.is_text(), &value) {
        json.check_text()?;
    }
    if to.is_text() {
        return Ok(Value::Text(to_text(value, from, to, modifiers)));
    }
    match value {
        Value::Text(text) if from.is_text() || to == Kind::Jsonb => {
            numeric_typmod(literal::of_row(to, &text)?, modifiers)
        }
        Value::Interval(interval) if to == Kind::Time => time_of(interval),
        Value::Int(value) => int_cast(value, from, to, modifiers),
        Value::Float(value) => float_cast(value, from, to),
        Value::Bool(value) if to == Kind::Int4 => Ok(Value::Int(value.into())),
        Value::Numeric(number) => match to {
            Kind::Numeric if modifiers.is_empty() => Ok(Value::Numeric(number)),
            Kind::Float4 => float_of(&number, Kind::Float4),
            Kind::Float8 => float_of(&number, Kind::Float8),
            Kind::Numeric => numeric(number.into_owned(), modifiers),
            _ => int_within(to, number.to_int()),
        },
        value @ (Value::Null
        | Value::Bool(_)
        | Value::Text(_)
        | Value::Bytes(_)
        | Value::Interval(_)
        | Value::Json(_)
        | Value::Array(_)
        | Value::Range(_)) => Ok(value),
    }
}

/// Of what was read, which has no scale yet.
fn numeric_typmod<'v>(value: Value<'static>, modifiers: &[u32]) -> Evaluated<'v> {
    match value {
        Value::Numeric(number) => numeric(number.into_owned(), modifiers),
        other => Ok(other),
    }
}

/// What is above whole days.
fn time_of<'v>(interval: Interval) -> Evaluated<'v> {
    if !interval.is_finite() {
        return Err(EvaluationError::Undecided { what: "an infinite interval" });
    }
    Ok(Value::Int(interval.micros.rem_euclid(DAY)))
}

fn numeric<'v>(number: Numeric, modifiers: &[u32]) -> Evaluated<'v> {
    let fitted = match modifiers {
        [precision] => number.fitted(*precision, 0)?,
        [precision, scale, ..] => number.fitted(*precision, *scale)?,
        [] => number,
    };
    Ok(Value::Numeric(Cow::Owned(fitted)))
}

fn int_cast<'v>(value: i64, from: Kind, to: Kind, modifiers: &[u32]) -> Evaluated<'v> {
    match (from, to) {
        (Kind::Date, Kind::Timestamp) => date_to_timestamp(value),
        (Kind::Timestamp, Kind::Date) => Ok(Value::Int(timestamp_to_date(value))),
        // An infinity has none.
        (Kind::Timestamp, Kind::Time) if value == TIME_INFINITY.0 || value == TIME_INFINITY.1 => Ok(Value::Null),
        (Kind::Timestamp, Kind::Time) => Ok(Value::Int(value.rem_euclid(DAY))),
        (Kind::Time, Kind::Interval) => Ok(Value::Interval(Interval::of_micros(value))),
        // The same 32 bits.
        (Kind::Int2 | Kind::Int4, Kind::Oid) => Ok(Value::Int((value as i32).cast_unsigned().into())),
        (Kind::Oid, Kind::Int4) => Ok(Value::Int((value as u32).cast_signed().into())),
        (_, Kind::Bool) => Ok(Value::Bool(value != 0)),
        (_, Kind::Numeric) => numeric(Numeric::of_int(value), modifiers),
        (_, Kind::Float4) => Ok(Value::Float(f64::from(value as f32))),
        (_, Kind::Float8) => Ok(Value::Float(value as f64)),
        (_, Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid) => int_within(to, Some(value)),
        _ => Ok(Value::Int(value)),
    }
}

pub(super) fn date_to_timestamp<'v>(day: i64) -> Evaluated<'v> {
    let micros = if day == DATE_INFINITY.0 {
        TIME_INFINITY.0
    } else if day == DATE_INFINITY.1 {
        TIME_INFINITY.1
    } else if day >= TIMESTAMP_END_DAY {
        return Err(EvaluationError::OutOfRange { type_name: "timestamp" });
    } else {
        day * DAY
    };
    Ok(Value::Int(micros))
}

fn timestamp_to_date(micros: i64) -> i64 {
    if micros == TIME_INFINITY.0 {
        DATE_INFINITY.0
    } else if micros == TIME_INFINITY.1 {
        DATE_INFINITY.1
    } else {
        micros.div_euclid(DAY)
    }
}

fn float_cast<'v>(value: f64, from: Kind, to: Kind) -> Evaluated<'v> {
    if to == Kind::Float8 || to == from {
        return Ok(Value::Float(value));
    }
    let out_of_range = EvaluationError::OutOfRange { type_name: to.name() };
    if to == Kind::Float4 {
        let single = f64::from(value as f32);
        let lost = single.is_infinite() && !value.is_infinite() || single == 0.0 && value != 0.0;
        return if lost { Err(out_of_range) } else { Ok(Value::Float(single)) };
    }
    // 2^63 is a float8; the greatest int8 is none.
    let whole = value.round_ties_even();
    if !(-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&whole) {
        return Err(out_of_range);
    }
    int_within(to, Some(whole as i64))
}

/// Through its digits, rounded once.
fn float_of<'v>(number: &Numeric, kind: Kind) -> Evaluated<'v> {
    let text = number.to_string();
    let parsed = match kind {
        Kind::Float4 => text.parse::<f32>().map(f64::from),
        _ => text.parse::<f64>(),
    };
    let out_of_range = EvaluationError::OutOfRange { type_name: kind.name() };
    let value = parsed.map_err(|_| out_of_range)?;
    let is_zero = !text.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    let finite = matches!(number, Numeric::Finite { .. });
    if finite && (value.is_infinite() || value == 0.0 && !is_zero) {
        Err(out_of_range)
    } else {
        Ok(Value::Float(value))
    }
}

fn to_text<'v>(value: Value<'v>, from: Kind, to: Kind, modifiers: &[u32]) -> Cow<'v, str> {
    let text = match value {
        // As text or varchar, character loses its padding.
        Value::Text(text) if from == Kind::Bpchar && to != Kind::Bpchar => match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.trim_end_matches(' ')),
            Cow::Owned(text) => Cow::Owned(text.trim_end_matches(' ').to_owned()),
        },
        Value::Text(text) => text,
        Value::Bool(value) => Cow::Borrowed(if value { "true" } else { "false" }),
        Value::Int(value) => Cow::Owned(value.to_string()),
        Value::Numeric(value) => Cow::Owned(value.to_string()),
        Value::Json(value) => Cow::Owned(value.to_string()),
        Value::Null | Value::Float(_) | Value::Bytes(_) | Value::Interval(_) | Value::Array(_) | Value::Range(_) => {
            unreachable!("typing casts to text what has one text whatever the settings")
        }
    };
    let Some(&length) = modifiers.first() else { return text };
    let length = length as usize;
    let chars = text.chars().count();
    if chars > length {
        return Cow::Owned(text.chars().take(length).collect());
    }
    if to == Kind::Bpchar && chars < length { Cow::Owned(format!("{text:length$}")) } else { text }
}
