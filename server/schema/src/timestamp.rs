//! A timestamptz in PostgreSQL's ISO text, and its `tidegate.v1.Timestamptz`.
//!
//! The form is `2024-02-29 12:34:56.789012+00`, with ` BC` behind it where it applies, or `infinity` or `-infinity`
//! (PostgreSQL manual, section 8.5.2). Sessions pin TimeZone to UTC; another offset is understood all the same.

use std::fmt::Write;

use bytes::BytesMut;

use crate::wire::{self, Fields, Piece, WireType};

/// A well-formed timestamptz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timestamptz {
    /// Within the years 1 to 9999 of UTC.
    Time {
        /// Since 1970-01-01 UTC.
        seconds: i64,
        /// 0 to 999,999,000.
        nanos: u32,
    },
    /// Only PostgreSQL's text can hold it.
    Text,
}

/// 0001-01-01 00:00:00 and 9999-12-31 23:59:59.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The field numbers of `tidegate.v1.Timestamptz`.
const TIME: u32 = 1;
const TEXT: u32 = 2;

/// The field numbers of `google.protobuf.Timestamp`.
const SECONDS: u32 = 1;
const NANOS: u32 = 2;

impl Timestamptz {
    /// Reads PostgreSQL's text; None where PostgreSQL would not have written it.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        if matches!(text, b"infinity" | b"-infinity") {
            return Some(Timestamptz::Text);
        }
        let (text, before_christ) = match text.strip_suffix(b" BC") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let mut reader = Reader(text);
        let year = i64::from(reader.number(4, 6)?);
        if year == 0 {
            return None;
        }
        let year = if before_christ { 1 - year } else { year };
        reader.literal(b'-')?;
        let month = reader.number_up_to(12)?;
        reader.literal(b'-')?;
        let day = reader.number_up_to(days_in_month(year, month)?)?;
        if day == 0 {
            return None;
        }
        reader.literal(b' ')?;
        let second_of_day = reader.time_of_day()?;
        let nanos = reader.fraction()?;
        let offset = reader.offset()?;
        if !reader.0.is_empty() {
            return None;
        }
        let seconds = days_from_epoch(year, month, day) * 86_400 + second_of_day - offset;
        let holds = !before_christ && TIMESTAMP_SECONDS.contains(&seconds);
        Some(if holds { Timestamptz::Time { seconds, nanos } } else { Timestamptz::Text })
    }
}

/// Appends a field that holds the timestamptz; None where the text is none.
pub(crate) fn put_timestamptz(out: &mut BytesMut, field: u32, text: &[u8]) -> Option<()> {
    match Timestamptz::parse(text)? {
        Timestamptz::Time { seconds, nanos } => {
            let mut time = Piece::<20>::new();
            if seconds != 0 {
                time.put_tag(SECONDS, WireType::Varint);
                time.put_varint(seconds.cast_unsigned());
            }
            if nanos != 0 {
                time.put_tag(NANOS, WireType::Varint);
                time.put_varint(u64::from(nanos));
            }
            let time = time.as_slice();
            let mut whole = Piece::<40>::new();
            whole.put_tag(field, WireType::Len);
            whole.put_varint(time.len() as u64 + 2);
            whole.put_tag(TIME, WireType::Len);
            whole.put_varint(time.len() as u64);
            whole.put(time);
            out.extend_from_slice(whole.as_slice());
        }
        Timestamptz::Text => {
            wire::put_len_head(out, field, 1 + wire::varint_len(text.len() as u64) + text.len());
            wire::put_len_field(out, TEXT, text);
        }
    }
    Some(())
}

/// Appends the text, in UTC, of an encoded `Timestamptz`; None where it is none that was made from PostgreSQL's text.
pub(crate) fn print_timestamptz(out: &mut String, message: &[u8]) -> Option<()> {
    let mut fields = Fields::new(message);
    let field = fields.next()?.ok()?;
    if field.wire_type != WireType::Len || fields.next().is_some() {
        return None;
    }
    match field.number {
        TIME => print_time(out, field.value),
        TEXT if Timestamptz::parse(field.value) == Some(Timestamptz::Text) => {
            out.push_str(str::from_utf8(field.value).ok()?);
            Some(())
        }
        _ => None,
    }
}

fn print_time(out: &mut String, message: &[u8]) -> Option<()> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::new(message) {
        let field = field.ok()?;
        let target = match (field.number, field.wire_type) {
            (SECONDS, WireType::Varint) => &mut seconds,
            (NANOS, WireType::Varint) => &mut nanos,
            _ => return None,
        };
        *target = wire::read_varint(field.value).ok()?.0.cast_signed();
    }
    // PostgreSQL counts microseconds.
    if !TIMESTAMP_SECONDS.contains(&seconds) || !(0..1_000_000_000).contains(&nanos) || nanos % 1_000 != 0 {
        return None;
    }
    let (year, month, day) = date_from_epoch(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    write!(out, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}").ok()?;
    if nanos != 0 {
        write!(out, ".{:06}", nanos / 1_000).ok()?;
        out.truncate(out.trim_end_matches('0').len());
    }
    out.push_str("+00");
    Some(())
}

/// What is left of the text.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn literal(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    /// A number of so many digits; takes as many as there are.
    fn number(&mut self, digits_min: usize, digits_max: usize) -> Option<u32> {
        let digits = self.0.iter().take(digits_max).take_while(|byte| byte.is_ascii_digit()).count();
        if digits < digits_min {
            return None;
        }
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        Some(number.iter().fold(0, |sum, byte| sum * 10 + u32::from(byte - b'0')))
    }

    fn number_up_to(&mut self, max: u32) -> Option<u32> {
        self.number(2, 2).filter(|&number| number <= max)
    }

    fn time_of_day(&mut self) -> Option<i64> {
        let hour = self.number_up_to(23)?;
        self.literal(b':')?;
        let minute = self.number_up_to(59)?;
        self.literal(b':')?;
        let second = self.number_up_to(59)?;
        Some(i64::from(hour * 3_600 + minute * 60 + second))
    }

    /// Nanoseconds of a fraction of up to six digits; 0 where there is none.
    fn fraction(&mut self) -> Option<u32> {
        if self.literal(b'.').is_none() {
            return Some(0);
        }
        let before = self.0.len();
        let number = self.number(1, 6)?;
        let digits = u32::try_from(before - self.0.len()).ok()?;
        Some(number * 10_u32.pow(9 - digits))
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Option<i64> {
        let east = self.literal(b'+').is_some();
        if !east {
            self.literal(b'-')?;
        }
        let mut seconds = self.number_up_to(99)? * 3_600;
        for unit in [60, 1] {
            if self.literal(b':').is_some() {
                seconds += self.number_up_to(59)? * unit;
            }
        }
        Some(if east { i64::from(seconds) } else { -i64::from(seconds) })
    }
}

fn days_in_month(year: i64, month: u32) -> Option<u32> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 if leap => Some(29),
        2 => Some(28),
        _ => None,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `days_from_civil`).
fn days_from_epoch(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = i64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day from the days since 1970-01-01 (ibid., `civil_from_days`).
fn date_from_epoch(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn time(seconds: i64, nanos: u32) -> Option<Timestamptz> {
        Some(Timestamptz::Time { seconds, nanos })
    }

    /// prost-types prints RFC 3339, by an implementation of its own.
    fn printed(seconds: i64, micros: u32) -> String {
        let text = prost_types::Timestamp { seconds, nanos: micros.cast_signed() * 1_000 }.to_string();
        text.replace('T', " ").replace('Z', "+00")
    }

    proptest! {
        #[test]
        fn every_time_that_a_timestamp_holds_is_read(seconds in TIMESTAMP_SECONDS, micros in 0_u32..1_000_000) {
            let text = printed(seconds, micros);
            prop_assert_eq!(Timestamptz::parse(text.as_bytes()), time(seconds, micros * 1_000), "{}", text);
        }

        #[test]
        fn arbitrary_text_never_panics(text in prop_oneof!["\\PC{0,40}", "[-0-9]{0,12} [0-9:.+ BC]{0,24}"]) {
            let mut out = BytesMut::new();
            let read = put_timestamptz(&mut out, 1, text.as_bytes()).is_some();
            prop_assert_eq!(read, !out.is_empty());
        }
    }

    #[test]
    fn known_times_are_read() {
        let parse = |text: &str| Timestamptz::parse(text.as_bytes());
        assert_eq!(parse("1970-01-01 00:00:00+00"), time(0, 0));
        assert_eq!(parse("1969-12-31 23:59:59.5+00"), time(-1, 500_000_000));
        assert_eq!(parse("2024-02-29 12:34:56.000001+00"), time(1_709_210_096, 1_000));
        assert_eq!(parse("2024-02-29 18:04:56.000001+05:30"), time(1_709_210_096, 1_000));
        assert_eq!(parse("2024-02-29 12:34:55-00:00:01"), time(1_709_210_096, 0));
        assert_eq!(parse("0001-01-01 00:00:00+00"), time(*TIMESTAMP_SECONDS.start(), 0));
        assert_eq!(parse("9999-12-31 23:59:59.999999+00"), time(*TIMESTAMP_SECONDS.end(), 999_999_000));
    }

    #[test]
    fn what_a_timestamp_cannot_hold_stays_text() {
        for text in [
            "infinity",
            "-infinity",
            "0044-03-15 12:00:00+00 BC",
            "4713-02-29 00:00:00+00 BC",
            "10000-01-01 00:00:00+00",
            "294276-12-31 23:59:59.999999+00",
            "9999-12-31 23:59:59-01",
            "0001-01-01 00:00:00+01",
        ] {
            assert_eq!(Timestamptz::parse(text.as_bytes()), Some(Timestamptz::Text), "{text}");
        }
    }

    #[test]
    fn malformed_times_are_refused() {
        for text in [
            "",
            "now",
            "2024-02-30 00:00:00+00",
            "2023-02-29 00:00:00+00",
            "2024-13-01 00:00:00+00",
            "2024-00-01 00:00:00+00",
            "2024-01-00 00:00:00+00",
            "0000-01-01 00:00:00+00",
            "2024-01-01T00:00:00+00",
            "2024-01-01 24:00:00+00",
            "2024-01-01 00:00:00",
            "2024-01-01 00:00:00.+00",
            "2024-01-01 00:00:00.1234567+00",
            "2024-01-01 00:00:00+00 AD",
            "01/02/2024 00:00:00 UTC",
        ] {
            assert_eq!(Timestamptz::parse(text.as_bytes()), None, "{text}");
        }
    }
}
