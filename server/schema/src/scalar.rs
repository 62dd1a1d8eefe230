//! One element of PostgreSQL's text: numbers, booleans, bytea, text.
//!
//! Functions that start with `put` append to a message that is being written, and return None where PostgreSQL would not
//! have written the text. Those that start with `print` are the way back: they append PostgreSQL's text, and return None
//! where the field holds no such value. What has been appended by then is for the caller to cut off.

use std::fmt::Write;
use std::str::FromStr;

use bytes::BytesMut;

use crate::ScalarKind;
use crate::float::{print_float4, print_float8};
use crate::timestamp::{print_timestamptz, put_timestamptz};
use crate::wire::{self, Field, Piece, WireType};

/// Appends a field that holds the value, zero included.
#[inline]
pub(crate) fn put_scalar(out: &mut BytesMut, field: u32, kind: ScalarKind, text: &[u8]) -> Option<()> {
    match kind {
        ScalarKind::Bytes => put_bytea(out, field, text),
        ScalarKind::Text => {
            str::from_utf8(text).ok()?;
            wire::put_len_field(out, field, text);
            Some(())
        }
        ScalarKind::Timestamptz => put_timestamptz(out, field, text),
        ScalarKind::Bool
        | ScalarKind::Int32
        | ScalarKind::Int64
        | ScalarKind::Uint32
        | ScalarKind::Float
        | ScalarKind::Double => {
            let mut piece = Piece::<20>::new();
            piece.put_tag(field, number_wire_type(kind)?);
            put_number(&mut piece, kind, text)?;
            out.extend_from_slice(piece.as_slice());
            Some(())
        }
    }
}

/// The wire type of kinds that a packed field can hold; None for the others.
pub(crate) fn number_wire_type(kind: ScalarKind) -> Option<WireType> {
    match kind {
        ScalarKind::Bool | ScalarKind::Int32 | ScalarKind::Int64 | ScalarKind::Uint32 => Some(WireType::Varint),
        ScalarKind::Float => Some(WireType::Fixed32),
        ScalarKind::Double => Some(WireType::Fixed64),
        ScalarKind::Bytes | ScalarKind::Text | ScalarKind::Timestamptz => None,
    }
}

/// Appends a number or boolean without a tag.
#[inline]
pub(crate) fn put_number<const N: usize>(out: &mut Piece<N>, kind: ScalarKind, text: &[u8]) -> Option<()> {
    match kind {
        ScalarKind::Bool => out.put_varint(match text {
            b"t" => 1,
            b"f" => 0,
            _ => return None,
        }),
        ScalarKind::Int32 => {
            let value = i32::try_from(parse_integer(text)?).ok()?;
            // Negative numbers are extended to 64 bits, as protobuf asks.
            out.put_varint(i64::from(value).cast_unsigned());
        }
        ScalarKind::Int64 => out.put_varint(parse_integer(text)?.cast_unsigned()),
        ScalarKind::Uint32 => out.put_varint(u64::from(u32::try_from(parse_integer(text)?).ok()?)),
        ScalarKind::Float => out.put(&parse_float::<f32>(text)?.to_le_bytes()),
        ScalarKind::Double => out.put(&parse_float::<f64>(text)?.to_le_bytes()),
        ScalarKind::Bytes | ScalarKind::Text | ScalarKind::Timestamptz => return None,
    }
    Some(())
}

fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_i64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // Towards the negative, which reaches further.
        value = value.checked_mul(10)?.checked_sub(i64::from(digit))?;
    }
    if negative { Some(value) } else { value.checked_neg() }
}

/// PostgreSQL's `NaN`, `Infinity` and `-Infinity` are words that Rust reads too.
fn parse_float<F: FromStr>(text: &[u8]) -> Option<F> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// Appends a bytea in hex format (`bytea_output`'s default, which we pin) or in escape format.
fn put_bytea(out: &mut BytesMut, field: u32, text: &[u8]) -> Option<()> {
    let Some(hex) = text.strip_prefix(b"\\x") else {
        return put_escaped_bytea(out, field, text);
    };
    if hex.len() % 2 != 0 {
        return None;
    }
    wire::put_len_head(out, field, hex.len() / 2);
    let mut decoded = [0; 256];
    for part in hex.chunks(2 * decoded.len()) {
        let mut invalid = 0;
        for (byte, digits) in decoded.iter_mut().zip(part.chunks_exact(2)) {
            let (high, low) = (HEX[usize::from(digits[0])], HEX[usize::from(digits[1])]);
            invalid |= high | low;
            *byte = (high << 4) | low;
        }
        if invalid > 15 {
            return None;
        }
        out.extend_from_slice(&decoded[..part.len() / 2]);
    }
    Some(())
}

/// The value of each hexadecimal digit; 255 for all other bytes.
static HEX: [u8; 256] = {
    let mut table = [255; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

/// `\\` for a backslash, `\ooo` in octal for what is not printable (PostgreSQL manual, section 8.4.2).
fn put_escaped_bytea(out: &mut BytesMut, field: u32, mut text: &[u8]) -> Option<()> {
    let open = wire::begin_len_field(out, field);
    while let Some(at) = text.iter().position(|&byte| byte == b'\\') {
        out.extend_from_slice(&text[..at]);
        text = &text[at + 1..];
        let (byte, len) = match text {
            [b'\\', ..] => (b'\\', 1),
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                (((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'), 3)
            }
            _ => return None,
        };
        out.extend_from_slice(&[byte]);
        text = &text[len..];
    }
    out.extend_from_slice(text);
    wire::end_len_field(out, open);
    Some(())
}

/// Appends the text of a field's value.
pub(crate) fn print_scalar(out: &mut String, kind: ScalarKind, field: &Field<'_>) -> Option<()> {
    if field.wire_type != number_wire_type(kind).unwrap_or(WireType::Len) {
        return None;
    }
    let value = field.value;
    let varint = || wire::read_varint(value).ok().map(|(value, _)| value);
    match kind {
        ScalarKind::Bool => match varint()? {
            0 => out.push('f'),
            1 => out.push('t'),
            _ => return None,
        },
        ScalarKind::Int32 => write!(out, "{}", i32::try_from(varint()?.cast_signed()).ok()?).ok()?,
        ScalarKind::Int64 => write!(out, "{}", varint()?.cast_signed()).ok()?,
        ScalarKind::Uint32 => write!(out, "{}", u32::try_from(varint()?).ok()?).ok()?,
        ScalarKind::Float => print_float4(out, f32::from_le_bytes(value.try_into().ok()?))?,
        ScalarKind::Double => print_float8(out, f64::from_le_bytes(value.try_into().ok()?))?,
        ScalarKind::Bytes => print_bytea(out, value),
        ScalarKind::Text => out.push_str(str::from_utf8(value).ok()?),
        ScalarKind::Timestamptz => print_timestamptz(out, value)?,
    }
    Some(())
}

fn print_bytea(out: &mut String, value: &[u8]) {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    out.reserve(2 + 2 * value.len());
    out.push_str("\\x");
    out.extend(value.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytea(text: &[u8]) -> Option<Vec<u8>> {
        let mut out = BytesMut::new();
        put_bytea(&mut out, 1, text)?;
        let field = wire::Fields::new(&out).next().expect("a field").expect("well formed");
        assert_eq!(field.whole.len(), out.len());
        Some(field.value.to_vec())
    }

    proptest! {
        #[test]
        fn integers_are_read_as_rust_reads_them(value in any::<i64>(), shift in 0_u32..64) {
            let value: i64 = value >> shift;
            prop_assert_eq!(parse_integer(value.to_string().as_bytes()), Some(value));
        }

        #[test]
        fn bytea_is_read_in_both_formats(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(bytea(format!("\\x{hex}").as_bytes()), Some(bytes.clone()));
            let escaped: String = bytes.iter().map(|byte| match byte {
                b'\\' => "\\\\".to_owned(),
                0x20..=0x7e => char::from(*byte).to_string(),
                _ => format!("\\{byte:03o}"),
            }).collect();
            prop_assert_eq!(bytea(escaped.as_bytes()), Some(bytes));
        }
    }

    #[test]
    fn integers_at_the_edge_are_read_and_beyond_it_refused() {
        assert_eq!(parse_integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(parse_integer(b"9223372036854775807"), Some(i64::MAX));
        for text in ["", "-", "9223372036854775808", "-9223372036854775809", "1 ", "+1", "1.0", "x"] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn malformed_bytea_is_refused() {
        for text in ["\\x0", "\\x0g", "\\xé", "\\", "\\8", "\\477", "a\\01"] {
            assert_eq!(bytea(text.as_bytes()), None, "{text}");
        }
    }
}
