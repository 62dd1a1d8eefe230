//! Intervals: months, days and microseconds, which PostgreSQL keeps apart (`src/backend/utils/adt/timestamp.c`).
//!
//! Text is read where every IntervalStyle reads it alike, and without fractions of anything but seconds.

use super::moment::DAY;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Interval {
    pub(super) months: i32,
    pub(super) days: i32,
    pub(super) micros: i64,
}

/// As PostgreSQL 17 and newer have it; the negative is the same with the least numbers.
const INFINITY: Interval = Interval { months: i32::MAX, days: i32::MAX, micros: i64::MAX };
const MINUS_INFINITY: Interval = Interval { months: i32::MIN, days: i32::MIN, micros: i64::MIN };

impl Interval {
    pub(super) fn of_micros(micros: i64) -> Self {
        Interval { micros, ..Interval::default() }
    }

    pub(super) fn is_finite(self) -> bool {
        self != INFINITY && self != MINUS_INFINITY
    }

    /// By which intervals are compared: in microseconds, a month being 30 days and a day 24 hours.
    pub(super) fn span(self) -> i128 {
        (i128::from(self.months) * 30 + i128::from(self.days)) * i128::from(DAY) + i128::from(self.micros)
    }

    /// None beyond what an interval holds.
    pub(super) fn plus(self, other: Self) -> Option<Self> {
        Some(Interval {
            months: self.months.checked_add(other.months)?,
            days: self.days.checked_add(other.days)?,
            micros: self.micros.checked_add(other.micros)?,
        })
    }

    pub(super) fn negated(self) -> Option<Self> {
        Some(Interval {
            months: self.months.checked_neg()?,
            days: self.days.checked_neg()?,
            micros: self.micros.checked_neg()?,
        })
    }

    /// Days, and hours up to 24 (`interval_justify_hours` of what has one sign).
    pub(super) fn of_difference(micros: i64) -> Option<Self> {
        Some(Interval { months: 0, days: i32::try_from(micros / DAY).ok()?, micros: micros % DAY })
    }

    /// Reads `1 year 2 mons -3 days +04:05:06.7` and `2 hours`, each unit once.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "infinity" => return Some(INFINITY),
            "-infinity" => return Some(MINUS_INFINITY),
            _ => {}
        }
        let mut words = text.split_ascii_whitespace().peekable();
        words.peek()?;
        let (mut months, mut days, mut micros) = (0_i64, 0_i64, 0_i64);
        let (mut seen, mut fields, mut signs) = (Vec::new(), 0, 0);
        while let Some(word) = words.next() {
            fields += 1;
            signs += usize::from(word.starts_with(['+', '-']));
            if word.contains(':') {
                if seen.contains(&Unit::Hour) || seen.contains(&Unit::Minute) || seen.contains(&Unit::Second) {
                    return None;
                }
                micros = micros.checked_add(clock(word)?)?;
                // Nothing stands behind it in what PostgreSQL prints.
                words.peek().is_none().then_some(())?;
                break;
            }
            let unit = Unit::of(words.next()?)?;
            if seen.contains(&unit) {
                return None;
            }
            seen.push(unit);
            let whole = || word.parse::<i32>().ok().map(i64::from);
            match unit {
                Unit::Year => months = months.checked_add(whole()?.checked_mul(12)?)?,
                Unit::Month => months = months.checked_add(whole()?)?,
                Unit::Week => days = days.checked_add(whole()?.checked_mul(7)?)?,
                Unit::Day => days = days.checked_add(whole()?)?,
                Unit::Hour => micros = micros.checked_add(whole()?.checked_mul(3_600_000_000)?)?,
                Unit::Minute => micros = micros.checked_add(whole()?.checked_mul(60_000_000)?)?,
                Unit::Second => micros = micros.checked_add(seconds(word)?)?,
            }
        }
        // With the SQL standard's style, a sign before the first counts for all that have none.
        if text.trim_start().starts_with('-') && fields > 1 && signs == 1 {
            return None;
        }
        Some(Interval { months: i32::try_from(months).ok()?, days: i32::try_from(days).ok()?, micros })
    }
}

/// In the form that all styles read alike: every part has its sign.
impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Interval { months, days, micros } = self;
        let (sign, micros) = (if *micros < 0 { '-' } else { '+' }, micros.unsigned_abs());
        let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
        let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        write!(f, "{months:+} mons {days:+} days {sign}{hours:02}:{minutes:02}:{seconds:02}.{fraction:06}")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
}

impl Unit {
    fn of(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "year" | "years" => Unit::Year,
            "mon" | "mons" | "month" | "months" => Unit::Month,
            "week" | "weeks" => Unit::Week,
            "day" | "days" => Unit::Day,
            "hour" | "hours" => Unit::Hour,
            "min" | "mins" | "minute" | "minutes" => Unit::Minute,
            "sec" | "secs" | "second" | "seconds" => Unit::Second,
            _ => return None,
        })
    }
}

/// `04:05:06.7` with a sign, in microseconds.
fn clock(word: &str) -> Option<i64> {
    let unsigned = word.strip_prefix(['+', '-']).unwrap_or(word);
    let mut parts = unsigned.split(':');
    let digits = |part: &str, max: i64| {
        let all = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<i64>().ok().filter(|&value| all && value <= max)
    };
    let hours = digits(parts.next()?, i64::MAX / 3_600_000_000)?;
    let minutes = digits(parts.next()?, 59)?;
    let seconds = match parts.next() {
        Some(part) => seconds(part).filter(|&micros| (0..60_000_000).contains(&micros))?,
        None => 0,
    };
    parts.next().is_none().then_some(())?;
    let micros = (hours * 60 + minutes).checked_mul(60_000_000)?.checked_add(seconds)?;
    Some(if word.starts_with('-') { -micros } else { micros })
}

/// With at most six digits behind the point.
fn seconds(word: &str) -> Option<i64> {
    let (whole, fraction) = word.split_once('.').unwrap_or((word, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole.strip_prefix(['+', '-']).unwrap_or(whole)) || !digits(fraction) || fraction.len() > 6 {
        return None;
    }
    let fraction = format!("{fraction:0<6}").parse::<i64>().ok()?;
    let whole = i64::from(whole.parse::<i32>().ok()?) * 1_000_000;
    Some(if word.starts_with('-') { whole - fraction } else { whole + fraction })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_as_they_are_printed() {
        for (text, months, days, micros) in [
            ("1 day", 0, 1, 0),
            ("1 year 2 mons -3 days +04:05:06.7", 14, -3, 14_706_700_000),
            ("-00:00:00.5", 0, 0, -500_000),
            ("90 minutes", 0, 0, 5_400_000_000),
            ("-1 mons -2 days", -1, -2, 0),
        ] {
            let interval = Interval { months, days, micros };
            assert_eq!(Interval::parse(text), Some(interval), "{text}");
            assert_eq!(Interval::parse(&interval.to_string()), Some(interval), "{interval}");
        }
        for text in ["", "1", "1.5 days", "-1 day 2 hours", "1 day 1 day", "P1D", "1 day ago", "1:60", "01:02 1 day"] {
            assert_eq!(Interval::parse(text), None, "{text}");
        }
        assert_eq!(Interval::parse("1 mon").map(Interval::span), Interval::parse("30 days").map(Interval::span));
    }
}
