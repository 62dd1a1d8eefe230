//! The parts of dates, times and intervals: `extract`, `date_part` and `date_trunc`.

use super::evaluate::EvaluationError;
use super::interval::Interval;
use super::kind::Kind;
use super::moment::{DATE_INFINITY, DAY, TIME_INFINITY, civil, days};
use super::numeric::Numeric;
use super::signature::Evaluated;
use super::value::Value;

/// Seconds from 1970-01-01 to 2000-01-01.
const UNIX_EPOCH_SECONDS: i64 = 946_684_800;

const FIELD: EvaluationError = EvaluationError::Argument { what: "a field that this type does not have" };

/// What `extract` and `date_part` are asked for here, the first of them `date_trunc` too.
const FIELDS: [&str; 15] = [
    "year",
    "quarter",
    "month",
    "week",
    "day",
    "hour",
    "minute",
    "second",
    "milliseconds",
    "microseconds",
    "epoch",
    "dow",
    "isodow",
    "doy",
    "isoyear",
];
const FIELDS_OF_TRUNCATION: usize = 10;

/// Is the field one that is known here?
pub(super) fn is_field(function: &str, field: &str) -> bool {
    let fields = if function == "date_trunc" { &FIELDS[..FIELDS_OF_TRUNCATION] } else { &FIELDS[..] };
    fields.contains(&field.to_ascii_lowercase().as_str())
}

/// A part.
enum Part {
    /// Digits, and how many of them stand behind the point.
    Decimal(i64, u32),
    Infinity {
        negative: bool,
    },
}

/// A date or time by its parts.
struct Moment {
    day: i64,
    /// In its day.
    micros: i64,
}

pub(super) fn extract<'v>(field: &Value<'_>, kind: Kind, of: &Value<'_>) -> Evaluated<'v> {
    Ok(match part(&field.as_str().to_ascii_lowercase(), kind, of)? {
        Some(Part::Decimal(digits, scale)) => Value::numeric(Numeric::decimal(digits, scale)),
        Some(Part::Infinity { negative }) => Value::numeric(Numeric::Infinity { negative }),
        None => Value::Null,
    })
}

/// With the roundings that PostgreSQL's sums of floats have.
pub(super) fn date_part<'v>(field: &Value<'_>, kind: Kind, of: &Value<'_>) -> Evaluated<'v> {
    let field = field.as_str().to_ascii_lowercase();
    Ok(match part(&field, kind, of)? {
        Some(Part::Decimal(digits, 0)) => Value::Float(digits as f64),
        Some(Part::Decimal(micros, _)) => {
            let (seconds, fraction) = ((micros / 1_000_000) as f64, (micros % 1_000_000) as f64);
            Value::Float(match field.as_str() {
                "second" => seconds + fraction / 1e6,
                "milliseconds" => seconds * 1e3 + fraction / 1e3,
                _ => micros as f64 / 1e6,
            })
        }
        Some(Part::Infinity { negative }) => Value::Float(if negative { f64::NEG_INFINITY } else { f64::INFINITY }),
        None => Value::Null,
    })
}

fn part(field: &str, kind: Kind, of: &Value<'_>) -> Result<Option<Part>, EvaluationError> {
    if !is_field("extract", field) {
        return Err(EvaluationError::Undecided { what: "such a field" });
    }
    if let Value::Interval(interval) = of {
        return of_interval(field, *interval).map(Some);
    }
    let value = of.as_int();
    let (infinity, moment) = match kind {
        Kind::Date => (DATE_INFINITY, Moment { day: value, micros: 0 }),
        Kind::Time => ((i64::MIN, i64::MAX), Moment { day: 0, micros: value }),
        _ => (TIME_INFINITY, Moment { day: value.div_euclid(DAY), micros: value.rem_euclid(DAY) }),
    };
    if value == infinity.0 || value == infinity.1 {
        return of_infinity(field, kind, value < 0);
    }
    let of_day = if kind == Kind::Time { None } else { of_date(field, moment.day) };
    let of_time = if kind == Kind::Date { None } else { of_clock(field, moment.micros) };
    if let Some(part) = of_day.map(|part| Part::Decimal(part, 0)).or(of_time) {
        return Ok(Some(part));
    }
    if field != "epoch" {
        return Err(FIELD);
    }
    Ok(Some(match kind {
        Kind::Date => Part::Decimal(value * 86_400 + UNIX_EPOCH_SECONDS, 0),
        Kind::Time => Part::Decimal(value, 6),
        _ => {
            let micros = value.checked_add(UNIX_EPOCH_SECONDS * 1_000_000);
            Part::Decimal(micros.ok_or(EvaluationError::Undecided { what: "the epoch of the last timestamps" })?, 6)
        }
    }))
}

/// What goes on and on is infinite, and what comes again is NULL.
fn of_infinity(field: &str, kind: Kind, negative: bool) -> Result<Option<Part>, EvaluationError> {
    if matches!(field, "year" | "isoyear" | "epoch") {
        return Ok(Some(Part::Infinity { negative }));
    }
    let known = of_date(field, 0).is_some() || kind == Kind::Timestamp && of_clock(field, 0).is_some();
    if known { Ok(None) } else { Err(FIELD) }
}

fn of_date(field: &str, day: i64) -> Option<i64> {
    let (year, month, day_of_month) = civil(day);
    let before_christ = |year: i64| if year > 0 { year } else { year - 1 };
    Some(match field {
        "year" => before_christ(year),
        "quarter" => (month - 1) / 3 + 1,
        "month" => month,
        "day" => day_of_month,
        "doy" => day - days(year, 1, 1) + 1,
        // 2000-01-01 was a Saturday.
        "dow" => (day + 6).rem_euclid(7),
        "isodow" => (day + 5).rem_euclid(7) + 1,
        "week" => (monday(day) - first_monday(iso_year(day))) / 7 + 1,
        "isoyear" => before_christ(iso_year(day)),
        _ => return None,
    })
}

fn of_clock(field: &str, micros: i64) -> Option<Part> {
    Some(match field {
        "hour" => Part::Decimal(micros / 3_600_000_000, 0),
        "minute" => Part::Decimal(micros / 60_000_000 % 60, 0),
        "second" => Part::Decimal(micros % 60_000_000, 6),
        "milliseconds" => Part::Decimal(micros % 60_000_000, 3),
        "microseconds" => Part::Decimal(micros % 60_000_000, 0),
        _ => return None,
    })
}

/// Of years, months, days and time, each for itself.
fn of_interval(field: &str, interval: Interval) -> Result<Part, EvaluationError> {
    if !interval.is_finite() {
        return Err(EvaluationError::Undecided { what: "an infinite interval" });
    }
    let Interval { months, days, micros } = interval;
    Ok(match field {
        "year" => Part::Decimal(i64::from(months / 12), 0),
        "month" => Part::Decimal(i64::from(months % 12), 0),
        "day" => Part::Decimal(days.into(), 0),
        "hour" | "minute" | "second" | "milliseconds" | "microseconds" => of_clock(field, micros).ok_or(FIELD)?,
        "epoch" | "quarter" | "week" => return Err(EvaluationError::Undecided { what: "this part of an interval" }),
        _ => return Err(FIELD),
    })
}

fn monday(day: i64) -> i64 {
    day - (day + 5).rem_euclid(7)
}

/// Of the week that holds January 4th.
fn first_monday(year: i64) -> i64 {
    monday(days(year, 1, 4))
}

/// The year of the week's Thursday.
fn iso_year(day: i64) -> i64 {
    civil(monday(day) + 3).0
}

/// `date_trunc`
pub(super) fn truncated<'v>(field: &Value<'_>, micros: i64) -> Evaluated<'v> {
    let (day, time) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let (year, month, _) = civil(day);
    let (day, time) = match field.as_str().to_ascii_lowercase().as_str() {
        "microseconds" => (day, time),
        "milliseconds" => (day, time - time % 1_000),
        "second" => (day, time - time % 1_000_000),
        "minute" => (day, time - time % 60_000_000),
        "hour" => (day, time - time % 3_600_000_000),
        "day" => (day, 0),
        "week" => (monday(day), 0),
        "month" => (days(year, month, 1), 0),
        "quarter" => (days(year, month - (month - 1) % 3, 1), 0),
        "year" => (days(year, 1, 1), 0),
        _ => return Err(EvaluationError::Undecided { what: "such a field" }),
    };
    if micros == TIME_INFINITY.0 || micros == TIME_INFINITY.1 {
        return Ok(Value::Int(micros));
    }
    let truncated = super::moment::valid_timestamp(i128::from(day) * i128::from(DAY) + i128::from(time));
    truncated.map(Value::Int).ok_or(EvaluationError::OutOfRange { type_name: "timestamp" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predicate::moment::parse_date;

    #[test]
    fn weeks_begin_on_mondays_and_belong_to_the_year_of_their_thursday() {
        for (text, week, year, dow) in [
            ("2024-12-30", 1, 2025, 1),
            ("2021-01-03", 53, 2020, 0),
            ("2000-01-01", 52, 1999, 6),
            ("2024-02-29", 9, 2024, 4),
        ] {
            let day = parse_date(text).expect("a date");
            let parts = ["week", "isoyear", "dow"].map(|field| of_date(field, day));
            assert_eq!(parts, [Some(week), Some(year), Some(dow)], "{text}");
        }
    }
}
