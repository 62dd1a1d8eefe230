//! Operators and functions of arrays (`src/backend/utils/adt/arrayfuncs.c`). Comparisons and `||` stand with the others.

use super::kind::Kind;
use super::signature::{Evaluated, Needs, Signature, Slot, function, operator};
use super::value::Value;

const ARRAY: Slot = Slot::AnyArray;
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
    function("array_to_string", &[ARRAY, Slot::Of(Kind::Text)], Slot::Of(Kind::Text), |_, _| Ok(Value::Null))
        .refused(ELEMENTS),
    function("array_position", &[ARRAY, Slot::AnyElement], INT, |_, _| Ok(Value::Null)).refused(ELEMENTS),
    function("array_positions", &[ARRAY, Slot::AnyElement], INT, |_, _| Ok(Value::Null)).refused(ELEMENTS),
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
