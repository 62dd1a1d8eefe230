//! Values as bytes: equal exactly where PostgreSQL's `=` says so, and in the order of its B-tree operator class. An index
//! then knows nothing of types: it hashes bytes and orders bytes.
//!
//! Invariant: `key(a).cmp(key(b)) == a.compare(b)` for two values of one type.

use std::io::Write;

use super::value::Value;

/// Writes the value's key over what stands in `out`. False for NULL, and for what has no key.
pub(super) fn write(value: &Value<'_>, padded: bool, out: &mut Vec<u8>) -> bool {
    out.clear();
    match value {
        Value::Bool(value) => out.push((*value).into()),
        Value::Int(value) => out.extend_from_slice(&(value.cast_unsigned() ^ 1 << 63).to_be_bytes()),
        Value::Float(value) => out.extend_from_slice(&float(*value).to_be_bytes()),
        Value::Text(text) if padded => out.extend_from_slice(text.trim_end_matches(' ').as_bytes()),
        Value::Text(text) => out.extend_from_slice(text.as_bytes()),
        Value::Bytes(bytes) => out.extend_from_slice(bytes),
        Value::Numeric(number) => return write_numeric(&number.to_string(), out),
        // What is not named here has no key, and is not looked up by value: sound, whatever it is.
        _ => return false,
    }
    true
}

/// -0 is 0, and NaN, of which there is one, above all.
fn float(value: f64) -> u64 {
    let bits = if value.is_nan() {
        f64::NAN.to_bits() & !(1 << 63)
    } else if value == 0.0 {
        0
    } else {
        value.to_bits()
    };
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

const MINUS_INFINITY: u8 = 0;
const NEGATIVE: u8 = 1;
const ZERO: u8 = 2;
const POSITIVE: u8 = 3;
const INFINITY: u8 = 4;
const NAN: u8 = 5;

/// The key of a numeric in PostgreSQL's text, straight from its digits: the sign, the place of the first digit, the digits
/// without zeros at either end; for a negative number the same turned around, with an end that is above every digit.
/// False where it is none.
pub(super) fn write_numeric(text: &str, out: &mut Vec<u8>) -> bool {
    out.clear();
    let special = match text {
        "NaN" => Some(NAN),
        "Infinity" => Some(INFINITY),
        "-Infinity" => Some(MINUS_INFINITY),
        _ => None,
    };
    if let Some(special) = special {
        out.push(special);
        return true;
    }
    let (negative, unsigned) = text.strip_prefix('-').map_or((false, text), |unsigned| (true, unsigned));
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    if whole.len() + fraction.len() == 0 || !digits().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    let Some(first) = digits().position(|digit| digit != b'0') else {
        out.push(ZERO);
        return true;
    };
    let zeros = fraction.bytes().rev().take_while(|&digit| digit == b'0').count();
    let zeros = if zeros == fraction.len() {
        zeros + whole.bytes().rev().take_while(|&digit| digit == b'0').count()
    } else {
        zeros
    };
    let Ok(place) = i32::try_from(whole.len() as i64 - first as i64) else { return false };
    let turned = if negative { u8::MAX } else { 0 };
    out.push(if negative { NEGATIVE } else { POSITIVE });
    out.extend((place.cast_unsigned() ^ 1 << 31).to_be_bytes().map(|byte| byte ^ turned));
    let significant = whole.len() + fraction.len() - zeros - first;
    out.extend(digits().skip(first).take(significant).map(|digit| digit ^ turned));
    if negative {
        out.push(u8::MAX);
    }
    true
}

/// The key of a whole number as a numeric.
pub(super) fn write_int_as_numeric(value: i64, out: &mut Vec<u8>) -> bool {
    // The longest has 20 characters.
    let mut text = [0; 20];
    let mut rest = &mut text[..];
    let written = write!(rest, "{value}").map(|()| 20 - rest.len());
    let text = written.ok().and_then(|len| str::from_utf8(&text[..len]).ok());
    text.is_some_and(|text| write_numeric(text, out))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::predicate::numeric::Numeric;

    fn compared(values: &[Value<'_>], padded: bool) {
        let key = |value: &Value<'_>| {
            let mut key = Vec::new();
            assert!(write(value, padded, &mut key));
            key
        };
        for a in values {
            for b in values {
                assert_eq!(key(a).cmp(&key(b)), a.compare(b, padded), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn keys_are_ordered_as_values() {
        compared(&[Value::Bool(false), Value::Bool(true)], false);
        compared(&[i64::MIN, -1, 0, 1, 255, 256, i64::MAX].map(Value::Int), false);
        let floats = [f64::NEG_INFINITY, -1.5, -5e-324, -0.0, 0.0, 5e-324, 1.0, f64::INFINITY, f64::NAN, -f64::NAN];
        compared(&floats.map(Value::Float), false);
        let texts = ["", " ", "a", "a ", "a  ", "ab", "a\t", "é", "日本"].map(|text| Value::Text(Cow::Borrowed(text)));
        compared(&texts, false);
        compared(&texts, true);
        compared(&[&b""[..], b"\0", b"\0\xff", b"\xff"].map(|bytes| Value::Bytes(Cow::Borrowed(bytes))), false);
    }

    #[test]
    fn keys_of_numerics_are_ordered_and_have_no_scale() {
        let texts = [
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "0.00",
            "-0.0",
            "1",
            "1.0",
            "1.00",
            "10",
            "100",
            "0.1",
            "0.10",
            "0.01",
            "12",
            "12.3",
            "123",
            "120",
            "-1",
            "-1.0",
            "-10",
            "-12",
            "-12.3",
            "-123",
            "-0.1",
            "-0.01",
            "99999999999999999999.5",
            "9223372036854775807",
            "-9223372036854775808",
            "0.00000000000000000000001",
        ];
        let values = texts.map(|text| Value::Numeric(Cow::Owned(Numeric::parse(text).expect("a number"))));
        compared(&values, false);
        for whole in [0, 1, -1, 10, i64::MAX, i64::MIN] {
            let (mut direct, mut other) = (Vec::new(), Vec::new());
            assert!(write_int_as_numeric(whole, &mut direct));
            assert!(write(&Value::Numeric(Cow::Owned(Numeric::of_int(whole))), false, &mut other));
            assert_eq!(direct, other);
        }
        for text in ["", "-", ".", "1e5", "+1", "1.2.3", "x"] {
            assert!(!write_numeric(text, &mut Vec::new()), "{text}");
        }
    }
}
