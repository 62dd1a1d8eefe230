//! `AT TIME ZONE`, by zone data of our own: the IANA data that the crate jiff brings along.
//!
//! PostgreSQL has data of its own, or the operating system's, which may be older or newer, and differs for many zones before
//! 1970, which is therefore not decided here. Zones are taken by name; abbreviations and POSIX rules are not.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan};

use super::evaluate::EvaluationError;
use super::moment::{self, TIME_INFINITY};
use super::signature::Evaluated;
use super::value::Value;

/// Microseconds from 1970-01-01 to 2000-01-01.
const UNIX_EPOCH: i64 = 946_684_800_000_000;

const UNDECIDED: EvaluationError =
    EvaluationError::Undecided { what: "such a zone, or a time before 1970 or after 9999 in one" };

/// A zone.
enum Zone {
    Utc,
    Named(TimeZone),
}

/// Is it a zone that is known here?
pub(super) fn is_zone(name: &str) -> bool {
    Zone::of(name).is_some()
}

impl Zone {
    fn of(name: &str) -> Option<Self> {
        if ["UTC", "GMT", "Etc/UTC"].iter().any(|utc| utc.eq_ignore_ascii_case(name)) {
            return Some(Zone::Utc);
        }
        // A name without a slash may be an abbreviation, which settings change.
        let named = name.contains('/').then(|| TimeZoneDatabase::bundled().get(name).ok())?;
        named.map(Zone::Named)
    }
}

/// Of a point in time, what the zone's clocks show.
pub(super) fn to_local<'v>(zone: &Value<'_>, micros: i64) -> Evaluated<'v> {
    shifted(zone, micros, |zone, micros| {
        let instant = Timestamp::from_microsecond(micros).ok()?;
        micros.checked_add(i64::from(zone.to_offset(instant).seconds()) * 1_000_000)
    })
}

/// The way back. What the clocks show twice is the later, and what they skip is counted on from before.
pub(super) fn to_instant<'v>(zone: &Value<'_>, micros: i64) -> Evaluated<'v> {
    shifted(zone, micros, |zone, micros| {
        let clock = DateTime::constant(1970, 1, 1, 0, 0, 0, 0).checked_add(micros.microseconds()).ok()?;
        let offset = match zone.to_ambiguous_timestamp(clock).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset,
            AmbiguousOffset::Gap { before, .. } => before,
            AmbiguousOffset::Fold { after, .. } => after,
        };
        micros.checked_sub(i64::from(offset.seconds()) * 1_000_000)
    })
}

/// Applies what is given microseconds since 1970 and gives others.
fn shifted<'v>(zone: &Value<'_>, micros: i64, shift: impl Fn(&TimeZone, i64) -> Option<i64>) -> Evaluated<'v> {
    let zone = Zone::of(zone.as_str()).ok_or(UNDECIDED)?;
    if micros == TIME_INFINITY.0 || micros == TIME_INFINITY.1 {
        return Ok(Value::Int(micros));
    }
    let Zone::Named(zone) = zone else { return Ok(Value::Int(micros)) };
    let unix = micros.checked_add(UNIX_EPOCH).filter(|&unix| unix > 86_400_000_000).ok_or(UNDECIDED)?;
    let shifted =
        shift(&zone, unix).and_then(|unix| moment::valid_timestamp(i128::from(unix) - i128::from(UNIX_EPOCH)));
    shifted.map(Value::Int).ok_or(UNDECIDED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predicate::moment::parse_timestamp;

    #[test]
    fn clocks_that_are_changed_mean_what_postgresql_takes_them_for() {
        for (clock, instant) in [
            ("2024-03-31 02:30:00", "2024-03-31 01:30:00"),
            ("2024-10-27 02:30:00", "2024-10-27 01:30:00"),
            ("2024-07-01 12:00:00", "2024-07-01 10:00:00"),
            ("2050-07-01 12:00:00", "2050-07-01 10:00:00"),
        ] {
            let [clock, instant] = [clock, instant].map(|text| parse_timestamp(text, false).expect("a timestamp"));
            assert_eq!(to_instant(&Value::text("Europe/Berlin"), clock), Ok(Value::Int(instant)));
        }
        assert!(is_zone("utc") && is_zone("America/New_York") && !is_zone("EST") && !is_zone("UTC+3"));
    }
}
