//! Comparisons of dates with timestamps (`date_cmp_timestamp_internal` in `src/backend/utils/adt/date.c`): a date that is
//! beyond all timestamps is above them, and below infinity.

use super::comparison::Comparison;
use super::kind::Kind;
use super::moment::{DATE_INFINITY, DAY, TIME_INFINITY, TIMESTAMP_END_DAY};
use super::signature::{Signature, Slot, operator};
use super::value::Value;

const DATE: Slot = Slot::Of(Kind::Date);
const TIMESTAMP: Slot = Slot::Of(Kind::Timestamp);
const BOOL: Slot = Slot::Of(Kind::Bool);

macro_rules! comparisons {
    ($($symbol:literal $op:ident;)*) => {
        &[$(
            operator($symbol, &[DATE, TIMESTAMP], BOOL, |_, of| {
                Ok(Value::Bool(Comparison::$op.holds(first_micros(&of[0]).cmp(&of[1].as_int()))))
            }),
            operator($symbol, &[TIMESTAMP, DATE], BOOL, |_, of| {
                Ok(Value::Bool(Comparison::$op.holds(of[0].as_int().cmp(&first_micros(&of[1])))))
            }),
        )*]
    };
}

pub(super) static SIGNATURES: &[Signature] = comparisons! {
    "=" Equal;
    "<>" NotEqual;
    "<" Less;
    "<=" LessOrEqual;
    ">" Greater;
    ">=" GreaterOrEqual;
};

/// Of the day.
fn first_micros(date: &Value<'_>) -> i64 {
    match date.as_int() {
        day if day == DATE_INFINITY.0 => TIME_INFINITY.0,
        day if day == DATE_INFINITY.1 => TIME_INFINITY.1,
        day if day >= TIMESTAMP_END_DAY => TIME_INFINITY.1 - 1,
        day => day * DAY,
    }
}
