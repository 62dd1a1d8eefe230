//! Operators and functions of arrays (`src/backend/utils/adt/arrayfuncs.c`, `array_userfuncs.c`). Comparisons stand with the others.

use std::sync::Arc;

use super::array::{Array, is_same};
use super::evaluate::{EvaluationError, grows_by, length};
use super::kind::Kind;
use super::signature::{Evaluated, Needs, Signature, Slot, function, operator};
use super::value::Value;

const ARRAY: Slot = Slot::AnyArray;
const ARRAYS: Slot = Slot::CompatibleArray;
const ELEMENT: Slot = Slot::Compatible;
const INTS: Slot = Slot::Of(Kind::Array(&Kind::Int4));
const TEXT: Slot = Slot::Of(Kind::Text);
const INT: Slot = Slot::Of(Kind::Int4);
const BOOL: Slot = Slot::Of(Kind::Bool);
const ELEMENTS: &str = "write = ANY (…) and @>, or the length of it";

pub(super) static SIGNATURES: &[Signature] = &[
    operator("@>", &[ARRAY, ARRAY], BOOL, |_, of| within(&of[1], &of[0], true)).needing(Needs::Deterministic),
    operator("<@", &[ARRAY, ARRAY], BOOL, |_, of| within(&of[0], &of[1], true)).needing(Needs::Deterministic),
    operator("&&", &[ARRAY, ARRAY], BOOL, |_, of| within(&of[0], &of[1], false)).needing(Needs::Deterministic),
    function("cardinality", &[ARRAY], INT, |_, of| Ok(Value::Int(of[0].as_array().elements.len() as i64))),
    function("array_ndims", &[ARRAY], INT, |_, of| Ok(int_or_null(of[0].as_array().dimensions.len() as i64, 0))),
    function("array_length", &[ARRAY, INT], INT, |_, of| Ok(dimension(of, |(_, length)| length.into()))),
    function("array_lower", &[ARRAY, INT], INT, |_, of| Ok(dimension(of, |(first, _)| first.into()))),
    function("array_upper", &[ARRAY, INT], INT, |_, of| {
        Ok(dimension(of, |(first, length)| i64::from(first) + i64::from(length) - 1))
    }),
    function("array_dims", &[ARRAY], TEXT, |_, of| Ok(dimensions(of[0].as_array()))),
    function("trim_array", &[ARRAY, INT], ARRAY, |_, of| trimmed(of[0].as_array(), of[1].as_int())),
    operator("||", &[ARRAYS, ARRAYS], ARRAYS, |_, of| concat(of)).called_on_null(),
    operator("||", &[ARRAYS, ELEMENT], ARRAYS, |_, of| with(&of[0], &of[1], false)).called_on_null(),
    operator("||", &[ELEMENT, ARRAYS], ARRAYS, |_, of| with(&of[1], &of[0], true)).called_on_null(),
    function("array_cat", &[ARRAYS, ARRAYS], ARRAYS, |_, of| concat(of)).called_on_null(),
    function("array_append", &[ARRAYS, ELEMENT], ARRAYS, |_, of| with(&of[0], &of[1], false)).called_on_null(),
    function("array_prepend", &[ELEMENT, ARRAYS], ARRAYS, |_, of| with(&of[1], &of[0], true)).called_on_null(),
    function("array_position", &[ARRAYS, ELEMENT], INT, |_, of| position(of)).called_on_null().needing(Needs::Equality),
    function("array_positions", &[ARRAYS, ELEMENT], INTS, |_, of| positions(of))
        .called_on_null()
        .needing(Needs::Equality),
    function("array_remove", &[ARRAYS, ELEMENT], ARRAYS, |_, of| removed(of)).called_on_null().needing(Needs::Equality),
    function("array_replace", &[ARRAYS, ELEMENT, ELEMENT], ARRAYS, |_, of| replaced(of))
        .called_on_null()
        .needing(Needs::Equality),
    function("array_to_string", &[ARRAY, TEXT], TEXT, |_, _| Ok(Value::Null)).refused(ELEMENTS),
];

fn within<'v>(part: &Value<'v>, whole: &Value<'v>, all: bool) -> Evaluated<'v> {
    Ok(Value::Bool(part.as_array().is_within(whole.as_array(), all)))
}

fn int_or_null<'v>(value: i64, null: i64) -> Value<'v> {
    if value == null { Value::Null } else { Value::Int(value) }
}

/// Of the dimension with this number, from 1; NULL where there is none.
fn dimension<'v>(of: &[Value<'_>], what: impl Fn((i32, u32)) -> i64) -> Value<'v> {
    let at = usize::try_from(of[1].as_int() - 1).ok();
    at.and_then(|at| of[0].as_array().dimensions.get(at)).map_or(Value::Null, |&dimension| Value::Int(what(dimension)))
}

/// `[1:3][1:2]`
fn dimensions<'v>(array: &Array) -> Value<'v> {
    let bounds = array.dimensions.iter().map(|&(first, length)| {
        let last = i64::from(first) + i64::from(length) - 1;
        format!("[{first}:{last}]")
    });
    if array.dimensions.is_empty() { Value::Null } else { Value::text(bounds.collect::<String>()) }
}

/// Without so many of the last elements, of the first dimension.
fn trimmed<'v>(array: &Array, count: i64) -> Evaluated<'v> {
    let (first, length) = array.dimensions.first().copied().unwrap_or((1, 0));
    if !(0..=i64::from(length)).contains(&count) {
        return Err(EvaluationError::Argument { what: "trim_array of more elements than there are, or fewer than 0" });
    }
    let last = i64::from(first) + i64::from(length) - count - 1;
    Ok(array_of(array.slice(&[(None, Some(last))])))
}

fn array_of<'v>(array: Array) -> Value<'v> {
    Value::Array(Arc::new(array))
}

/// None of NULL.
fn array<'a>(value: &'a Value<'_>) -> Option<&'a Array> {
    (*value != Value::Null).then(|| value.as_array())
}

/// NULL is nothing here.
fn concat<'v>(of: &[Value<'v>]) -> Evaluated<'v> {
    match (array(&of[0]), array(&of[1])) {
        (Some(first), Some(second)) => first.concat(second).map(array_of),
        (Some(_), None) => Ok(of[0].clone()),
        (None, _) => Ok(of[1].clone()),
    }
}

/// NULL for an array is one without elements, and an element as any other.
fn with<'v>(whole: &Value<'v>, element: &Value<'v>, is_first: bool) -> Evaluated<'v> {
    let element = element.clone().into_owned();
    match array(whole) {
        Some(array) => array.with(element, is_first).map(array_of),
        None => Ok(array_of(Array::of(vec![element]))),
    }
}

fn position<'v>(of: &[Value<'v>]) -> Evaluated<'v> {
    let Some(array) = array(&of[0]) else { return Ok(Value::Null) };
    Ok(array.positions(&of[1])?.next().map_or(Value::Null, Value::Int))
}

fn positions<'v>(of: &[Value<'v>]) -> Evaluated<'v> {
    let Some(array) = array(&of[0]) else { return Ok(Value::Null) };
    Ok(array_of(Array::of(array.positions(&of[1])?.map(Value::Int).collect())))
}

fn removed<'v>(of: &[Value<'v>]) -> Evaluated<'v> {
    let Some(array) = array(&of[0]) else { return Ok(Value::Null) };
    array.without(&of[1]).map(array_of)
}

fn replaced<'v>(of: &[Value<'v>]) -> Evaluated<'v> {
    let Some(array) = array(&of[0]) else { return Ok(Value::Null) };
    let count = array.elements.iter().filter(|element| is_same(element, &of[1])).count();
    grows_by(count.saturating_mul(length(&of[2]).saturating_sub(length(&of[1]))))?;
    let replacement = of[2].clone().into_owned();
    let other = |element: &Value<'static>| if is_same(element, &of[1]) { replacement.clone() } else { element.clone() };
    Ok(array_of(Array { elements: array.elements.iter().map(other).collect(), dimensions: array.dimensions.clone() }))
}
