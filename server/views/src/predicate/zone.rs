//! `AT TIME ZONE`, by zone data of our own: the IANA data that the crate jiff brings along.
//!
//! PostgreSQL has data of its own, or the operating system's, which may be older or newer, and differs for many zones before
//! 1970, which is therefore not decided here. Zones are taken by name; abbreviations and POSIX rules are not. What clocks show here
//! can be compared with what they show in PostgreSQL ([`zone_clocks`]).

use std::collections::BTreeMap;

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

/// What the clocks of zones show, at some instants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneClocks {
    /// Zones whose clocks always show the same, by their IANA names.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub instants: Vec<i64>,
    /// At each of them, how far they are ahead of UTC, in seconds.
    pub offsets: Vec<i32>,
}

/// Of every zone that conditions know, right before and at each change from 1970 to 2040, and once in each month between.
#[must_use]
pub fn zone_clocks() -> Vec<ZoneClocks> {
    let (first, last) = (Timestamp::UNIX_EPOCH, Timestamp::constant(2_208_988_800, 0));
    let mut zones: BTreeMap<(Vec<i64>, Vec<i32>), Vec<String>> = BTreeMap::new();
    for name in TimeZoneDatabase::bundled().available() {
        let Some(Zone::Named(zone)) = Zone::of(name.as_str()) else { continue };
        let changes = zone.following(first).map(|change| change.timestamp()).take_while(|change| *change < last);
        let around = changes.map(Timestamp::as_second).flat_map(|change| [change - 1, change]);
        let mut instants: Vec<i64> = (1..last.as_second() / MONTH).map(|month| month * MONTH).chain(around).collect();
        instants.sort_unstable();
        instants.dedup();
        let offset = |&second: &i64| Timestamp::from_second(second).map(|instant| zone.to_offset(instant).seconds());
        let Ok(offsets) = instants.iter().map(offset).collect() else { continue };
        zones.entry((instants, offsets)).or_default().push(name.as_str().to_owned());
    }
    zones.into_iter().map(|((instants, offsets), names)| ZoneClocks { names, instants, offsets }).collect()
}

/// Seconds of the shortest one.
const MONTH: i64 = 28 * 86_400;

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
    fn clocks_are_told_around_each_change() {
        let all = zone_clocks();
        let berlin = all.iter().find(|zone| zone.names.iter().any(|name| name == "Europe/Berlin")).expect("Berlin");
        // 2024-03-31 01:00:00+00
        let change = berlin.instants.binary_search(&1_711_846_800).expect("an instant");
        assert_eq!((berlin.offsets[change - 1], berlin.offsets[change]), (3600, 7200));
        assert_eq!(berlin.instants[change - 1], 1_711_846_799);
        assert!(all.len() > 200 && all.iter().map(|zone| zone.names.len()).sum::<usize>() > 400, "{}", all.len());
        assert!(all.iter().all(|zone| zone.instants.len() == zone.offsets.len() && zone.instants.is_sorted()));
    }

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
