//! Functions of numbers whose results are exact (`int.c`, `numeric.c`, `float.c` of `src/backend/utils/adt`).

use super::arithmetic::{arithmetic, int_within};
use super::kind::Kind;
use super::numeric::Numeric;
use super::signature::{Evaluated, Signature, Slot, function};
use super::syntax::Arithmetic;
use super::value::Value;

const INT2: Slot = Slot::Of(Kind::Int2);
const INT4: Slot = Slot::Of(Kind::Int4);
const INT8: Slot = Slot::Of(Kind::Int8);
const NUMERIC: Slot = Slot::Of(Kind::Numeric);
const FLOAT4: Slot = Slot::Of(Kind::Float4);
const FLOAT8: Slot = Slot::Of(Kind::Float8);
const INEXACT: &str = "its digits are not computed here; compare the operands of it";

pub(super) static SIGNATURES: &[Signature] = &[
    function("abs", &[INT2], INT2, abs),
    function("abs", &[INT4], INT4, abs),
    function("abs", &[INT8], INT8, abs),
    function("abs", &[NUMERIC], NUMERIC, abs),
    function("abs", &[FLOAT4], FLOAT4, abs),
    function("abs", &[FLOAT8], FLOAT8, abs),
    function("sign", &[NUMERIC], NUMERIC, |_, of| numeric(of[0].as_numeric().signum())),
    function("sign", &[FLOAT8], FLOAT8, |_, of| float(sign(of[0].as_float()))),
    function("ceil", &[NUMERIC], NUMERIC, |_, of| numeric(of[0].as_numeric().ceil())),
    function("ceil", &[FLOAT8], FLOAT8, |_, of| float(of[0].as_float().ceil())),
    function("ceiling", &[NUMERIC], NUMERIC, |_, of| numeric(of[0].as_numeric().ceil())),
    function("ceiling", &[FLOAT8], FLOAT8, |_, of| float(of[0].as_float().ceil())),
    function("floor", &[NUMERIC], NUMERIC, |_, of| numeric(of[0].as_numeric().floor())),
    function("floor", &[FLOAT8], FLOAT8, |_, of| float(of[0].as_float().floor())),
    function("round", &[NUMERIC], NUMERIC, |_, of| numeric(of[0].as_numeric().clone().rounded_at(0))),
    function("round", &[NUMERIC, INT4], NUMERIC, |_, of| {
        numeric(of[0].as_numeric().clone().rounded_at(of[1].as_int()))
    }),
    function("round", &[FLOAT8], FLOAT8, |_, of| float(of[0].as_float().round_ties_even())),
    function("trunc", &[NUMERIC], NUMERIC, |_, of| numeric(of[0].as_numeric().truncated_at(0))),
    function("trunc", &[NUMERIC, INT4], NUMERIC, |_, of| numeric(of[0].as_numeric().truncated_at(of[1].as_int()))),
    function("trunc", &[FLOAT8], FLOAT8, |_, of| float(of[0].as_float().trunc())),
    function("mod", &[INT2, INT2], INT2, remainder),
    function("mod", &[INT4, INT4], INT4, remainder),
    function("mod", &[INT8, INT8], INT8, remainder),
    function("mod", &[NUMERIC, NUMERIC], NUMERIC, remainder),
    function("div", &[NUMERIC, NUMERIC], NUMERIC, |_, of| {
        Ok(Value::numeric(of[0].as_numeric().whole_quotient(of[1].as_numeric())?))
    }),
    function("gcd", &[INT4, INT4], INT4, gcd),
    function("gcd", &[INT8, INT8], INT8, gcd),
    function("gcd", &[NUMERIC, NUMERIC], NUMERIC, abs).refused("write it for whole numbers"),
    function("power", &[NUMERIC, NUMERIC], NUMERIC, abs).refused(INEXACT),
    function("power", &[FLOAT8, FLOAT8], FLOAT8, abs).refused(INEXACT),
    function("sqrt", &[NUMERIC], NUMERIC, abs).refused(INEXACT),
    function("sqrt", &[FLOAT8], FLOAT8, abs).refused(INEXACT),
];

fn numeric<'v>(number: Numeric) -> Evaluated<'v> {
    Ok(Value::numeric(number))
}

fn float<'v>(number: f64) -> Evaluated<'v> {
    Ok(Value::Float(number))
}

fn abs<'v>(kind: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    match &of[0] {
        Value::Float(value) => float(value.abs()),
        Value::Numeric(value) => numeric(value.abs()),
        other => int_within(kind, other.as_int().checked_abs()),
    }
}

/// Zero, of either sign, and NaN have none.
fn sign(value: f64) -> f64 {
    if value > 0.0 {
        1.0
    } else if value < 0.0 {
        -1.0
    } else {
        0.0
    }
}

fn gcd<'v>(kind: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    let (mut a, mut b) = (of[0].as_int().unsigned_abs(), of[1].as_int().unsigned_abs());
    while b != 0 {
        (a, b) = (b, a % b);
    }
    int_within(kind, i64::try_from(a).ok())
}

fn remainder<'v>(kind: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    arithmetic(Arithmetic::Remainder, kind, &of[0], &of[1])
}
