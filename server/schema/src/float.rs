//! Floats as PostgreSQL prints them (`float8out`, with `extra_float_digits` above 0): the fewest digits that are nearer
//! to this float than to any other, of those the nearest decimal, of two as near the even one.
//!
//! Rust's shortest digits differ in two ways: they may lie exactly between two floats, where that is rounded to this one,
//! as 1e23 is (PostgreSQL: 9.999999999999999e+22); and of two decimals as near it takes the greater one.

use std::fmt::{Display, LowerExp, Write};
use std::ops::Range;
use std::str::FromStr;

use crate::wire::Piece;

/// Digits that tell every double from all others.
const DIGITS_MAX: usize = 17;

/// Appends a float4.
pub(crate) fn print_float4(out: &mut String, value: f32) -> Option<()> {
    print(out, value, value.into(), -4..6)
}

/// Appends a float8.
pub(crate) fn print_float8(out: &mut String, value: f64) -> Option<()> {
    print(out, value, value, -4..15)
}

/// `plain`: the decimal exponents that are printed as zeros instead.
fn print<F>(out: &mut String, value: F, wide: f64, plain: Range<i32>) -> Option<()>
where
    F: Copy + Display + LowerExp + FromStr + PartialEq,
{
    if wide.is_infinite() {
        out.push_str(if wide > 0.0 { "Infinity" } else { "-Infinity" });
        return Some(());
    }
    if wide == 0.0 || wide.is_nan() {
        return write!(out, "{value}").ok();
    }
    let start = out.len();
    write!(out, "{value:e}").ok()?;
    let shortest = out[start..].bytes().take_while(|&byte| byte != b'e').filter(u8::is_ascii_digit).count();
    // Nearest is not always near enough: below a power of two, floats are closer together.
    let precisions = (shortest..=DIGITS_MAX).map(|digits| Some(digits - 1));
    let precisions = precisions.clone().take(1).chain([None]).chain(precisions.skip(1));
    for precision in precisions {
        out.truncate(start);
        match precision {
            Some(precision) => write!(out, "{value:.precision$e}").ok()?,
            None => write!(out, "{value:e}").ok()?,
        }
        if is_nearest(&out[start..], value) {
            break;
        }
    }
    let start = start + usize::from(wide < 0.0);
    let end = start + out[start..].find('e')?;
    let exponent: i32 = out[end + 1..].parse().ok()?;
    out.truncate(end);
    if plain.contains(&exponent) {
        write_out(out, start, exponent);
        return Some(());
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    write!(out, "e{sign}{:02}", exponent.abs()).ok()
}

/// Are the decimals right below and above, too, read as this value?
fn is_nearest<F: Copy + FromStr + PartialEq>(decimal: &str, value: F) -> bool {
    let Some((digits, exponent)) = decimal.split_once('e') else { return false };
    let point = if digits.contains('.') { "" } else { "." };
    let (head, last) = digits.split_at(digits.len() - 1);
    let below = match last.as_bytes() {
        [digit @ b'1'..=b'9'] => [digit - 1],
        // A digit too many.
        _ => return false,
    };
    let is_value = |digits: [&[u8]; 2], more: &[u8]| {
        let mut text = Piece::<96>::new();
        for part in [digits[0], digits[1], point.as_bytes(), more, b"e", exponent.as_bytes()] {
            text.put(part);
        }
        let read = str::from_utf8(text.as_slice()).ok().and_then(|text| text.parse::<F>().ok());
        read == Some(value)
    };
    is_value([head.as_bytes(), &below], b"999999999999999999999999999999")
        && is_value([head.as_bytes(), last.as_bytes()], b"000000000000000000000000000001")
}

/// Turns the digits that start there, such as `1.25`, into those times a power of ten.
fn write_out(out: &mut String, start: usize, exponent: i32) {
    if out.len() > start + 1 {
        out.remove(start + 1);
    }
    if exponent < 0 {
        let zeros = &"0.000"[..1 + exponent.unsigned_abs() as usize];
        out.insert_str(start, zeros);
        return;
    }
    let point = start + 1 + exponent.unsigned_abs() as usize;
    while out.len() < point {
        out.push('0');
    }
    if out.len() > point {
        out.insert(point, '.');
    }
}
