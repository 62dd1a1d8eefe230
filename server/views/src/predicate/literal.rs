//! The value of a constant's text, where PostgreSQL 14 to 18 read it alike with any settings; the way back is in
//! [`super::print`].

use std::borrow::Cow;
use std::sync::Arc;

use tidegate_schema as schema;

use super::array::Array;
use super::evaluate::EvaluationError;
use super::interval::Interval;
use super::json::Json;
use super::kind::Kind;
use super::moment;
use super::numeric::Numeric;
use super::range::{Bound, Range};
use super::table::TableFacts;
use super::value::Value;

/// What to write instead, where the text is not read.
type Instead = &'static str;

const WHOLE: Instead = "write decimal digits within the type's range";

/// Reads the text as the type's input function does.
pub(super) fn constant(table: &TableFacts, kind: Kind, text: &str) -> Result<Value<'static>, Instead> {
    let Kind::Enum(column) = kind else { return shipped(kind, text) };
    let labels = table.enum_facts(column).map_or(&[][..], |facts| &facts.labels);
    let place = labels.iter().position(|label| label == text);
    place.map(|place| Value::Int(place as i64)).ok_or("write one of its labels")
}

/// The same for text that comes out of a row. What some versions take and others do not has no value here.
pub(super) fn of_row(kind: Kind, text: &str) -> Result<Value<'static>, EvaluationError> {
    let has_letters = || text.bytes().any(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    shipped(kind, text).map_err(|_| match kind {
        Kind::Bool => EvaluationError::Malformed { type_name: kind.name() },
        number if number.is_number() && !has_letters() => EvaluationError::Malformed { type_name: number.name() },
        _ => EvaluationError::Undecided { what: "text that not every version of PostgreSQL reads alike" },
    })
}

fn shipped(kind: Kind, text: &str) -> Result<Value<'static>, Instead> {
    let trimmed = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let int = |value: Option<i64>, instead| value.map(Value::Int).ok_or(instead);
    match kind {
        Kind::Bool => boolean(trimmed).map(Value::Bool).ok_or("write true or false"),
        Kind::Int2 => int(whole::<i16>(trimmed), WHOLE),
        Kind::Int4 => int(whole::<i32>(trimmed), WHOLE),
        Kind::Int8 => int(whole::<i64>(trimmed), WHOLE),
        Kind::Oid => int(whole::<u32>(trimmed), WHOLE),
        Kind::Numeric => {
            let number = Numeric::parse(trimmed).map(|number| Value::Numeric(Cow::Owned(number)));
            number.ok_or("write decimal digits, NaN, Infinity or -Infinity")
        }
        Kind::Float4 => float(trimmed, |text| text.parse::<f32>().ok().map(f64::from)),
        Kind::Float8 => float(trimmed, |text| text.parse().ok()),
        Kind::Text | Kind::Varchar | Kind::Bpchar => Ok(Value::Text(Cow::Owned(text.to_owned()))),
        Kind::Uuid => uuid(text).ok_or("write it as 123e4567-e89b-12d3-a456-426614174000"),
        Kind::Date => int(moment::parse_date(trimmed), "write it as 2024-02-29, 0044-03-15 BC, infinity or -infinity"),
        Kind::Time => int(moment::parse_time(trimmed), "write it as 23:59:59.999999"),
        Kind::Timestamp => {
            let instead = "write it as 2024-02-29 23:59:59.999999, without a time zone, or infinity or -infinity";
            int(moment::parse_timestamp(trimmed, false), instead)
        }
        Kind::Timestamptz => {
            let instead =
                "write it with its offset from UTC, as 2024-02-29 23:59:59.999999+00, or infinity or -infinity";
            int(moment::parse_timestamp(trimmed, true), instead)
        }
        Kind::Bytea => bytes(text).ok_or("write it in hexadecimal, as \\x00ff"),
        Kind::Interval => {
            let instead =
                "write it as 1 year 2 mons 3 days 04:05:06.789, with a sign for each part where one is below zero";
            Interval::parse(trimmed).map(Value::Interval).ok_or(instead)
        }
        Kind::Json => {
            let text = Json::parse(text).map(|_| Value::text(text.to_owned()));
            text.ok_or("write JSON")
        }
        Kind::Jsonb => {
            let json = Json::parse(text).map(|json| Value::Json(Arc::new(json)));
            json.ok_or("write JSON, without \\u0000 and with exponents up to 1000")
        }
        Kind::Array(element) => {
            let texts = elements(text).ok_or("write it as {1,2,NULL}, of one dimension")?;
            let read = |text: Option<String>| text.map_or(Ok(Value::Null), |text| shipped(*element, &text));
            let elements = texts.into_iter().map(read).collect::<Result<_, _>>()?;
            Ok(Value::Array(Arc::new(Array::of(elements))))
        }
        Kind::Range(subtype) => {
            let instead = "write it as [1,10), (,5] or empty, with bounds as their type is written, in \"…\" where they have spaces";
            let range = schema::Range::parse(trimmed).ok_or(instead)?;
            range_of(*subtype, range).ok_or(instead)
        }
        Kind::Enum(_) => Err("write one of its labels"),
    }
}

/// A range whose bounds are text.
pub(super) fn range_of(subtype: Kind, range: schema::Range<'_>) -> Option<Value<'static>> {
    let (lower, upper, brackets) = match range {
        schema::Range::Empty => return Some(Value::Range(Arc::new(Range::Empty))),
        schema::Range::Bounded { lower, upper, brackets } => (lower, upper, brackets),
    };
    let bound = |text: Option<Cow<'_, str>>, inclusive| match text {
        Some(text) => shipped(subtype, &text).ok().map(|value| Some(Bound { value, inclusive })),
        None => Some(None),
    };
    let (lower, upper) = (bound(lower, brackets[0] == b'[')?, bound(upper, brackets[1] == b']')?);
    Range::of(subtype, lower, upper).map(|range| Value::Range(Arc::new(range)))
}

fn whole<T: std::str::FromStr + Into<i64>>(text: &str) -> Option<i64> {
    text.parse::<T>().ok().map(Into::into)
}

/// Any beginning of the words that tells them apart (`parse_bool_with_len`).
fn boolean(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    match text.as_str() {
        "" => None,
        "1" | "on" => Some(true),
        "0" | "of" | "off" => Some(false),
        _ if "true".starts_with(&text) || "yes".starts_with(&text) => Some(true),
        _ if "false".starts_with(&text) || "no".starts_with(&text) => Some(false),
        _ => None,
    }
}

fn float(text: &str, parse: impl Fn(&str) -> Option<f64>) -> Result<Value<'static>, Instead> {
    let instead = "write decimal digits within the type's range, NaN, Infinity or -Infinity";
    let word = matches!(text, "NaN" | "Infinity" | "-Infinity");
    let digits = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-');
    if !word && !text.bytes().all(digits) {
        return Err(instead);
    }
    let value = parse(text).ok_or(instead)?;
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let is_zero = !mantissa.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
    if !word && (value.is_infinite() || value == 0.0 && !is_zero) { Err(instead) } else { Ok(Value::Float(value)) }
}

fn uuid(text: &str) -> Option<Value<'static>> {
    let dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    let fits = |(at, byte): (usize, u8)| if dash(at) { byte == b'-' } else { byte.is_ascii_hexdigit() };
    let valid = text.len() == 36 && text.bytes().enumerate().all(fits);
    valid.then(|| Value::Text(Cow::Owned(text.to_ascii_lowercase())))
}

fn bytes(text: &str) -> Option<Value<'static>> {
    let hex = text.strip_prefix("\\x")?.as_bytes();
    if hex.len() % 2 != 0 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let decoded = hex.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?));
    decoded.collect::<Option<Vec<u8>>>().map(|bytes| Value::Bytes(Cow::Owned(bytes)))
}

/// The elements of an array of one dimension, as text; None for NULL.
pub(super) fn elements(text: &str) -> Option<Vec<Option<String>>> {
    let mut rest = text.trim_matches(' ').strip_prefix('{')?.strip_suffix('}')?;
    let mut found = Vec::new();
    if rest.trim_matches(' ').is_empty() {
        return Some(found);
    }
    loop {
        rest = rest.trim_start_matches(' ');
        let (element, behind) = if rest.starts_with('"') { quoted_element(rest)? } else { plain_element(rest)? };
        found.push(element);
        rest = behind.trim_start_matches(' ');
        if rest.is_empty() {
            return Some(found);
        }
        rest = rest.strip_prefix(',')?;
    }
}

fn quoted_element(text: &str) -> Option<(Option<String>, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((Some(value), &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

fn plain_element(text: &str) -> Option<(Option<String>, &str)> {
    let end = text.find(',').unwrap_or(text.len());
    let value = text[..end].trim_end_matches(' ');
    if value.is_empty() || value.contains(['{', '}', '"', '\\', '\t', '\n', '\r', '\x0b', '\x0c']) {
        return None;
    }
    let value = if value.eq_ignore_ascii_case("null") { None } else { Some(value.to_owned()) };
    Some((value, &text[end..]))
}
