//! Sums of dates, times and intervals, and their parts (`date.c`, `timestamp.c` of `src/backend/utils/adt`).
//!
//! Not here: what depends on the session's TimeZone, which is all arithmetic with `timestamptz` but the difference of two.
//! Versions differ in what an infinity gives: it is an error here.

use super::arithmetic::date_to_timestamp;
use super::evaluate::EvaluationError;
use super::interval::Interval;
use super::kind::Kind;
use super::moment::{self, DATE_INFINITY, DAY, TIME_INFINITY};
use super::moment_parts::{date_part, extract, truncated};
use super::operand::NOT_IMMUTABLE;
use super::signature::{Evaluated, Signature, Slot, function, operator};
use super::value::Value;
use super::zone::{to_instant, to_local};

const DATE: Slot = Slot::Of(Kind::Date);
const TIME: Slot = Slot::Of(Kind::Time);
const TIMESTAMP: Slot = Slot::Of(Kind::Timestamp);
const TIMESTAMPTZ: Slot = Slot::Of(Kind::Timestamptz);
const INTERVAL: Slot = Slot::Of(Kind::Interval);
const INT: Slot = Slot::Of(Kind::Int4);
const TEXT: Slot = Slot::Of(Kind::Text);
const NUMERIC: Slot = Slot::Of(Kind::Numeric);
const BOOL: Slot = Slot::Of(Kind::Bool);
const FLOAT8: Slot = Slot::Of(Kind::Float8);

pub(super) const ZONE: &str =
    "it depends on the session's TimeZone; use columns of the type timestamp, or compare with a constant";
const AS_TIMESTAMP: &str =
    "it takes a date as timestamptz, which depends on the session's TimeZone; cast it to timestamp";
const NAMED: &str = "write the zone's name, as in AT TIME ZONE 'Europe/Berlin'";
const FACTOR: &str = "its fractions are rounded otherwise by other versions; write the interval that is meant";

pub(super) static SIGNATURES: &[Signature] = &[
    operator("+", &[DATE, INT], DATE, |_, of| day_after(of[0].as_int(), of[1].as_int())),
    operator("+", &[INT, DATE], DATE, |_, of| day_after(of[1].as_int(), of[0].as_int())),
    operator("+", &[DATE, INTERVAL], TIMESTAMP, |_, of| after(date_to_micros(&of[0])?, of[1].as_interval())),
    operator("+", &[INTERVAL, DATE], TIMESTAMP, |_, of| after(date_to_micros(&of[1])?, of[0].as_interval())),
    operator("+", &[DATE, TIME], TIMESTAMP, |_, of| at_time(&of[0], &of[1])),
    operator("+", &[TIME, DATE], TIMESTAMP, |_, of| at_time(&of[1], &of[0])),
    operator("+", &[TIMESTAMP, INTERVAL], TIMESTAMP, |_, of| after(of[0].as_int(), of[1].as_interval())),
    operator("+", &[INTERVAL, TIMESTAMP], TIMESTAMP, |_, of| after(of[1].as_int(), of[0].as_interval())),
    operator("+", &[TIMESTAMPTZ, INTERVAL], TIMESTAMPTZ, |_, _| Ok(Value::Null)).refused(ZONE),
    operator("+", &[INTERVAL, TIMESTAMPTZ], TIMESTAMPTZ, |_, _| Ok(Value::Null)).refused(ZONE),
    operator("+", &[INTERVAL, INTERVAL], INTERVAL, |_, of| sum(of[0].as_interval(), Some(of[1].as_interval()))),
    operator("+", &[TIME, INTERVAL], TIME, |_, of| wrapped(of[0].as_int(), Some(of[1].as_interval()))),
    operator("+", &[INTERVAL, TIME], TIME, |_, of| wrapped(of[1].as_int(), Some(of[0].as_interval()))),
    operator("-", &[DATE, DATE], INT, |_, of| days_between(of[0].as_int(), of[1].as_int())),
    operator("-", &[DATE, INT], DATE, |_, of| day_after(of[0].as_int(), -of[1].as_int())),
    operator("-", &[DATE, INTERVAL], TIMESTAMP, |_, of| before(date_to_micros(&of[0])?, of[1].as_interval())),
    operator("-", &[TIMESTAMP, TIMESTAMP], INTERVAL, |_, of| between(of[0].as_int(), of[1].as_int())),
    operator("-", &[TIMESTAMPTZ, TIMESTAMPTZ], INTERVAL, |_, of| between(of[0].as_int(), of[1].as_int())),
    operator("-", &[TIMESTAMP, INTERVAL], TIMESTAMP, |_, of| before(of[0].as_int(), of[1].as_interval())),
    operator("-", &[TIMESTAMPTZ, INTERVAL], TIMESTAMPTZ, |_, _| Ok(Value::Null)).refused(ZONE),
    operator("-", &[INTERVAL, INTERVAL], INTERVAL, |_, of| sum(of[0].as_interval(), of[1].as_interval().negated())),
    operator("-", &[TIME, TIME], INTERVAL, |_, of| {
        Ok(Value::Interval(Interval::of_micros(of[0].as_int() - of[1].as_int())))
    }),
    operator("-", &[TIME, INTERVAL], TIME, |_, of| wrapped(of[0].as_int(), of[1].as_interval().negated())),
    operator("-", &[INTERVAL], INTERVAL, |_, of| sum(Interval::default(), of[0].as_interval().negated())),
    operator("*", &[INTERVAL, FLOAT8], INTERVAL, |_, _| Ok(Value::Null)).refused(FACTOR),
    operator("*", &[FLOAT8, INTERVAL], INTERVAL, |_, _| Ok(Value::Null)).refused(FACTOR),
    operator("/", &[INTERVAL, FLOAT8], INTERVAL, |_, _| Ok(Value::Null)).refused(FACTOR),
    function("extract", &[TEXT, DATE], NUMERIC, |_, of| extract(&of[0], Kind::Date, &of[1])),
    function("extract", &[TEXT, TIME], NUMERIC, |_, of| extract(&of[0], Kind::Time, &of[1])),
    function("extract", &[TEXT, TIMESTAMP], NUMERIC, |_, of| extract(&of[0], Kind::Timestamp, &of[1])),
    function("extract", &[TEXT, TIMESTAMPTZ], NUMERIC, |_, of| extract(&of[0], Kind::Timestamp, &of[1])),
    function("extract", &[TEXT, INTERVAL], NUMERIC, |_, of| extract(&of[0], Kind::Interval, &of[1])),
    function("date_part", &[TEXT, DATE], FLOAT8, |_, of| {
        date_part(&of[0], Kind::Timestamp, &date_to_timestamp(of[1].as_int())?)
    }),
    function("date_part", &[TEXT, TIME], FLOAT8, |_, of| date_part(&of[0], Kind::Time, &of[1])),
    function("date_part", &[TEXT, TIMESTAMP], FLOAT8, |_, of| date_part(&of[0], Kind::Timestamp, &of[1])),
    function("date_part", &[TEXT, TIMESTAMPTZ], FLOAT8, |_, of| date_part(&of[0], Kind::Timestamp, &of[1])),
    function("date_part", &[TEXT, INTERVAL], FLOAT8, |_, of| date_part(&of[0], Kind::Interval, &of[1])),
    function("isfinite", &[DATE], BOOL, |_, of| {
        Ok(Value::Bool(![DATE_INFINITY.0, DATE_INFINITY.1].contains(&of[0].as_int())))
    }),
    function("isfinite", &[TIMESTAMP], BOOL, |_, of| Ok(Value::Bool(!is_infinite(of[0].as_int())))),
    function("isfinite", &[TIMESTAMPTZ], BOOL, |_, of| Ok(Value::Bool(!is_infinite(of[0].as_int())))),
    function("isfinite", &[INTERVAL], BOOL, |_, of| Ok(Value::Bool(of[0].as_interval().is_finite()))),
    function("age", &[TIMESTAMP, TIMESTAMP], INTERVAL, |_, of| age(of[0].as_int(), of[1].as_int())),
    function("age", &[TIMESTAMPTZ, TIMESTAMPTZ], INTERVAL, |_, _| Ok(Value::Null)).refused(AS_TIMESTAMP),
    function("age", &[TIMESTAMP], INTERVAL, |_, _| Ok(Value::Null)).refused(NOT_IMMUTABLE),
    function("age", &[TIMESTAMPTZ], INTERVAL, |_, _| Ok(Value::Null)).refused(NOT_IMMUTABLE),
    function("timezone", &[TEXT, TIMESTAMP], TIMESTAMPTZ, |_, of| to_instant(&of[0], of[1].as_int())),
    function("timezone", &[TEXT, TIMESTAMPTZ], TIMESTAMP, |_, of| to_local(&of[0], of[1].as_int())),
    function("timezone", &[INTERVAL, TIMESTAMP], TIMESTAMPTZ, |_, _| Ok(Value::Null)).refused(NAMED),
    function("timezone", &[INTERVAL, TIMESTAMPTZ], TIMESTAMP, |_, _| Ok(Value::Null)).refused(NAMED),
    function("date_trunc", &[TEXT, TIMESTAMP], TIMESTAMP, |_, of| truncated(&of[0], of[1].as_int())),
    function("date_trunc", &[TEXT, TIMESTAMPTZ], TIMESTAMPTZ, |_, _| Ok(Value::Null)).refused(AS_TIMESTAMP),
    function("date_trunc", &[TEXT, TIMESTAMPTZ, TEXT], TIMESTAMPTZ, |_, _| Ok(Value::Null)).refused(ZONE),
    function("date_trunc", &[TEXT, INTERVAL], INTERVAL, |_, _| Ok(Value::Null)).refused("compare the interval itself"),
];

fn out_of_range(type_name: &'static str) -> EvaluationError {
    EvaluationError::OutOfRange { type_name }
}

fn is_infinite(micros: i64) -> bool {
    micros == TIME_INFINITY.0 || micros == TIME_INFINITY.1
}

fn day_after<'v>(day: i64, days: i64) -> Evaluated<'v> {
    if day == DATE_INFINITY.0 || day == DATE_INFINITY.1 {
        return Ok(Value::Int(day));
    }
    // PostgreSQL adds in 32 bits.
    let day = i32::try_from(day + days).ok().and_then(|day| moment::valid_date(day.into()));
    day.map(Value::Int).ok_or(out_of_range("date"))
}

fn days_between<'v>(a: i64, b: i64) -> Evaluated<'v> {
    let infinite = |day: i64| day == DATE_INFINITY.0 || day == DATE_INFINITY.1;
    if infinite(a) || infinite(b) { Err(out_of_range("int4")) } else { Ok(Value::Int(a - b)) }
}

fn date_to_micros(date: &Value<'_>) -> Result<i64, EvaluationError> {
    date_to_timestamp(date.as_int()).map(|timestamp| timestamp.as_int())
}

fn at_time<'v>(date: &Value<'_>, time: &Value<'_>) -> Evaluated<'v> {
    after(date_to_micros(date)?, Interval::of_micros(time.as_int()))
}

/// Months, then days, then the rest; a day that the month does not have is its last.
fn after<'v>(micros: i64, interval: Interval) -> Evaluated<'v> {
    if !interval.is_finite() {
        return Err(EvaluationError::Undecided { what: "an infinite interval" });
    }
    if is_infinite(micros) {
        return Ok(Value::Int(micros));
    }
    let (mut day, time) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let valid = |day: i64| moment::valid_timestamp(i128::from(day) * i128::from(DAY) + i128::from(time));
    if interval.months != 0 {
        let (year, month, day_of_month) = moment::civil(day);
        let months = year * 12 + month - 1 + i64::from(interval.months);
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        day = moment::days(year, month, day_of_month.min(moment::days_in_month(year, month)));
        valid(day).ok_or(out_of_range("timestamp"))?;
    }
    day += i64::from(interval.days);
    let moved = valid(day).ok_or(out_of_range("timestamp"))?;
    let moved = moment::valid_timestamp(i128::from(moved) + i128::from(interval.micros));
    moved.map(Value::Int).ok_or(out_of_range("timestamp"))
}

fn before<'v>(micros: i64, interval: Interval) -> Evaluated<'v> {
    match interval.negated() {
        Some(negated) if interval.is_finite() => after(micros, negated),
        Some(_) | None => Err(EvaluationError::Undecided { what: "the negative of the least interval" }),
    }
}

fn between<'v>(a: i64, b: i64) -> Evaluated<'v> {
    if is_infinite(a) || is_infinite(b) {
        return Err(EvaluationError::Undecided { what: "the difference of infinite timestamps" });
    }
    let interval = a.checked_sub(b).and_then(Interval::of_difference);
    interval.map(Value::Interval).ok_or(out_of_range("interval"))
}

fn sum<'v>(a: Interval, b: Option<Interval>) -> Evaluated<'v> {
    let b = b.ok_or(EvaluationError::Undecided { what: "the negative of the least interval" })?;
    if !a.is_finite() || !b.is_finite() {
        return Err(EvaluationError::Undecided { what: "an infinite interval" });
    }
    a.plus(b).map(Value::Interval).ok_or(out_of_range("interval"))
}

/// The difference in months, days of the month in which it ends, and the rest (`timestamp_age`).
fn age<'v>(a: i64, b: i64) -> Evaluated<'v> {
    if is_infinite(a) || is_infinite(b) {
        return Err(EvaluationError::Undecided { what: "the difference of infinite timestamps" });
    }
    let parts = |micros: i64| (moment::civil(micros.div_euclid(DAY)), micros.rem_euclid(DAY));
    let (((year, month, day), time), ((other_year, other_month, other_day), other_time)) = (parts(a), parts(b));
    let sign = if a < b { -1 } else { 1 };
    let mut months = ((year - other_year) * 12 + month - other_month) * sign;
    let (mut days, mut micros) = ((day - other_day) * sign, (time - other_time) * sign);
    if micros < 0 {
        (micros, days) = (micros + DAY, days - 1);
    }
    // Of the month in which the earlier one lies.
    let length =
        if a < b { moment::days_in_month(year, month) } else { moment::days_in_month(other_year, other_month) };
    while days < 0 {
        (days, months) = (days + length, months - 1);
    }
    let within = |value: i64| i32::try_from(value * sign).ok();
    let interval = within(months).zip(within(days));
    let interval = interval.map(|(months, days)| Interval { months, days, micros: micros * sign });
    interval.map(Value::Interval).ok_or(out_of_range("interval"))
}

/// Within the day.
fn wrapped<'v>(time: i64, interval: Option<Interval>) -> Evaluated<'v> {
    match interval {
        Some(interval) if interval.is_finite() => Ok(Value::Int((time + interval.micros % DAY).rem_euclid(DAY))),
        Some(_) | None => Err(EvaluationError::Undecided { what: "an infinite interval" }),
    }
}
