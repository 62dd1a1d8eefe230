//! Operators and functions of ranges. Comparisons stand with the others.

use super::kind::Kind;
use super::signature::{Evaluated, Signature, Slot, function, operator};
use super::value::Value;

const RANGE: Slot = Slot::AnyRange;
const ELEMENT: Slot = Slot::AnyElement;
const BOOL: Slot = Slot::Of(Kind::Bool);

pub(super) static SIGNATURES: &[Signature] = &[
    operator("@>", &[RANGE, RANGE], BOOL, |_, of| bool(of[0].as_range().contains(of[1].as_range()))),
    operator("@>", &[RANGE, ELEMENT], BOOL, |_, of| bool(of[0].as_range().holds(&of[1]))),
    operator("<@", &[RANGE, RANGE], BOOL, |_, of| bool(of[1].as_range().contains(of[0].as_range()))),
    operator("<@", &[ELEMENT, RANGE], BOOL, |_, of| bool(of[1].as_range().holds(&of[0]))),
    operator("&&", &[RANGE, RANGE], BOOL, |_, of| bool(of[0].as_range().overlaps(of[1].as_range()))),
    operator("<<", &[RANGE, RANGE], BOOL, |_, of| bool(of[0].as_range().is_before(of[1].as_range()))),
    operator(">>", &[RANGE, RANGE], BOOL, |_, of| bool(of[1].as_range().is_before(of[0].as_range()))),
    operator("&<", &[RANGE, RANGE], BOOL, |_, of| bool(of[0].as_range().ends_by(of[1].as_range()))),
    operator("&>", &[RANGE, RANGE], BOOL, |_, of| bool(of[0].as_range().begins_by(of[1].as_range()))),
    operator("-|-", &[RANGE, RANGE], BOOL, |_, of| bool(of[0].as_range().is_adjacent(of[1].as_range()))),
    function("isempty", &[RANGE], BOOL, |_, of| bool(*of[0].as_range() == super::range::Range::Empty)),
    function("lower", &[RANGE], ELEMENT, |_, of| bound(&of[0], true)),
    function("upper", &[RANGE], ELEMENT, |_, of| bound(&of[0], false)),
    function("lower_inc", &[RANGE], BOOL, |_, of| is_inclusive(&of[0], true)),
    function("upper_inc", &[RANGE], BOOL, |_, of| is_inclusive(&of[0], false)),
    function("lower_inf", &[RANGE], BOOL, |_, of| is_infinite(&of[0], true)),
    function("upper_inf", &[RANGE], BOOL, |_, of| is_infinite(&of[0], false)),
];

fn bool<'v>(value: bool) -> Evaluated<'v> {
    Ok(Value::Bool(value))
}

fn bound<'v>(range: &Value<'_>, is_lower: bool) -> Evaluated<'v> {
    Ok(range.as_range().bound(is_lower).map_or(Value::Null, |bound| bound.value.clone()))
}

/// Without a bound there; the value infinity is one.
fn is_infinite<'v>(range: &Value<'_>, is_lower: bool) -> Evaluated<'v> {
    bool(*range.as_range() != super::range::Range::Empty && range.as_range().bound(is_lower).is_none())
}

fn is_inclusive<'v>(range: &Value<'_>, is_lower: bool) -> Evaluated<'v> {
    bool(range.as_range().bound(is_lower).is_some_and(|bound| bound.inclusive))
}
