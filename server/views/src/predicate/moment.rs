//! Dates and times in ISO text, as PostgreSQL writes them with DateStyle ISO and reads them whatever it is.
//!
//! A date is its days and a timestamp its microseconds since 2000-01-01, as in PostgreSQL; infinities are the farthest
//! numbers. What PostgreSQL reads only with some settings, or on some days (`today`), is not read here.

pub(super) const DAY: i64 = 86_400_000_000;
/// Days from 2000-01-01 to 1970-01-01.
const UNIX_EPOCH: i64 = -10_957;

/// PostgreSQL's infinities.
pub(super) const DATE_INFINITY: (i64, i64) = (i32::MIN as i64, i32::MAX as i64);
pub(super) const TIME_INFINITY: (i64, i64) = (i64::MIN, i64::MAX);

/// 4714-11-24 BC, the first day of both; the ends are 5874898-01-01 and 294277-01-01, exclusive.
const FIRST_DAY: i64 = -2_451_545;
const DATE_END: i64 = 2_145_031_949;
pub(super) const TIMESTAMP_END_DAY: i64 = 106_751_983;

/// Microseconds of a `google.protobuf.Timestamp`.
pub(super) fn of_unix(seconds: i64, nanos: i64) -> Option<i64> {
    let seconds = seconds.checked_add(UNIX_EPOCH.checked_mul(86_400)?)?;
    seconds.checked_mul(1_000_000)?.checked_add(nanos / 1_000)
}

/// Days.
pub(super) fn parse_date(text: &str) -> Option<i64> {
    if let Some(infinity) = infinity(text, DATE_INFINITY) {
        return Some(infinity);
    }
    let (text, before_christ) = before_christ(text);
    let mut reader = Reader(text.as_bytes());
    let day = reader.date(before_christ)?;
    reader.end()?;
    valid_date(day)
}

/// Microseconds since midnight.
pub(super) fn parse_time(text: &str) -> Option<i64> {
    let mut reader = Reader(text.as_bytes());
    let time = reader.time(true)?;
    reader.end()?;
    Some(time)
}

/// Microseconds; with an offset from UTC exactly if `zoned`.
pub(super) fn parse_timestamp(text: &str, zoned: bool) -> Option<i64> {
    if let Some(infinity) = infinity(text, TIME_INFINITY) {
        return Some(infinity);
    }
    let (text, before_christ) = before_christ(text);
    let mut reader = Reader(text.as_bytes());
    let day = reader.date(before_christ)?;
    let time = match reader.0.first() {
        Some(b' ' | b'T') => {
            reader.0 = &reader.0[1..];
            reader.time(false)?
        }
        _ if zoned => return None,
        _ => 0,
    };
    let offset = if zoned { reader.offset()? } else { 0 };
    reader.end()?;
    valid_timestamp(i128::from(day) * i128::from(DAY) + i128::from(time - offset))
}

pub(super) fn print_date(day: i64) -> String {
    if let Some(word) = infinity_word(day, DATE_INFINITY) {
        return word.to_owned();
    }
    let (date, era) = calendar(day);
    format!("{date}{era}")
}

pub(super) fn print_time(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    format!("{:02}:{:02}:{:02}.{fraction:06}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

pub(super) fn print_timestamp(micros: i64, zone: &str) -> String {
    if let Some(word) = infinity_word(micros, TIME_INFINITY) {
        return word.to_owned();
    }
    let (date, era) = calendar(micros.div_euclid(DAY));
    format!("{date} {}{zone}{era}", print_time(micros.rem_euclid(DAY)))
}

fn infinity(text: &str, (low, high): (i64, i64)) -> Option<i64> {
    match text {
        "infinity" => Some(high),
        "-infinity" => Some(low),
        _ => None,
    }
}

fn infinity_word(value: i64, (low, high): (i64, i64)) -> Option<&'static str> {
    if value == high {
        Some("infinity")
    } else if value == low {
        Some("-infinity")
    } else {
        None
    }
}

fn before_christ(text: &str) -> (&str, bool) {
    match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    }
}

/// Days from 2000-01-01 of a date in the proleptic Gregorian calendar (Howard Hinnant, chrono-compatible algorithms).
pub(super) fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 730_425
}

/// The date, and ` BC` where it applies.
fn calendar(day: i64) -> (String, &'static str) {
    let (year, month, day) = civil(day);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

/// The way back: year, 0 being 1 BC, month and day.
pub(super) fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 730_425;
    let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, (shifted + 2) % 12 + 1);
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A timestamp, if PostgreSQL has it.
pub(super) fn valid_timestamp(micros: i128) -> Option<i64> {
    let range = i128::from(FIRST_DAY) * i128::from(DAY)..i128::from(TIMESTAMP_END_DAY) * i128::from(DAY);
    range.contains(&micros).then(|| i64::try_from(micros).ok())?
}

pub(super) fn valid_date(day: i64) -> Option<i64> {
    (FIRST_DAY..DATE_END).contains(&day).then_some(day)
}

pub(super) fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self, min: usize, max: usize) -> Option<i64> {
        let len = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(min..=max).contains(&len) {
            return None;
        }
        let (digits, rest) = self.0.split_at(len);
        self.0 = rest;
        Some(digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    fn literal(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn date(&mut self, before_christ: bool) -> Option<i64> {
        let year = self.number(4, 7)?;
        self.literal(b'-')?;
        let month = self.number(2, 2)?;
        self.literal(b'-')?;
        let day = self.number(2, 2)?;
        let year_from_one = if before_christ { 1 - year } else { year };
        let valid = year > 0 && (1..=12).contains(&month) && (1..=days_in_month(year_from_one, month)).contains(&day);
        valid.then(|| days(year_from_one, month, day))
    }

    /// `end`: may it be 24:00:00?
    fn time(&mut self, end: bool) -> Option<i64> {
        let hour = self.number(2, 2)?;
        self.literal(b':')?;
        let minute = self.number(2, 2)?;
        let mut micros = 0;
        if self.0.first() == Some(&b':') {
            self.literal(b':')?;
            micros = self.number(2, 2)? * 1_000_000;
            if self.0.first() == Some(&b'.') {
                self.literal(b'.')?;
                let before = self.0.len();
                let fraction = self.number(1, 6)?;
                micros += fraction * 10_i64.pow(6 - (before - self.0.len()) as u32);
            }
        }
        let total = (hour * 60 + minute) * 60_000_000 + micros;
        let valid = hour < 24 && minute < 60 && micros < 60_000_000 || end && total == DAY && hour == 24;
        valid.then_some(total)
    }

    /// In microseconds, east of UTC.
    fn offset(&mut self) -> Option<i64> {
        if self.literal(b'Z').is_some() {
            return Some(0);
        }
        let sign = match self.0.first()? {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        self.0 = &self.0[1..];
        let mut seconds = self.number(2, 2)? * 3_600;
        for unit in [60, 1] {
            if self.0.first() == Some(&b':') {
                self.literal(b':')?;
                let number = self.number(2, 2).filter(|&number| number < 60)?;
                seconds += number * unit;
            }
        }
        (seconds < 15 * 3_600).then_some(sign * seconds * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_come_back_as_they_were() {
        for text in
            ["2000-01-01", "1999-12-31", "2024-02-29", "0001-01-01", "0001-12-31 BC", "4714-11-24 BC", "5874897-12-31"]
        {
            assert_eq!(parse_date(text).map(print_date).as_deref(), Some(text));
        }
        for text in ["2024-02-29 12:34:56.000001", "4714-11-24 00:00:00.000000 BC", "294276-12-31 23:59:59.999999"] {
            assert_eq!(parse_timestamp(text, false).map(|micros| print_timestamp(micros, "")).as_deref(), Some(text));
        }
        assert_eq!(parse_date("2000-01-01"), Some(0));
        assert_eq!(of_unix(0, 0), parse_timestamp("1970-01-01 00:00:00Z", true));
    }

    #[test]
    fn what_is_beyond_or_no_date_is_refused() {
        for text in ["2023-02-29", "0000-01-01", "4714-11-23 BC", "5874898-01-01", "1-1-1", "today", "2024-13-01"] {
            assert_eq!(parse_date(text), None, "{text}");
        }
    }
}
