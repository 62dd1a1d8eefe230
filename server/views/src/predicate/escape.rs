//! `E'…'`: backslashes in strings (manual, section 4.1.2.2).
//!
//! `\\'` is refused: whether it is a quote is a setting (`backslash_quote`).

use super::refusal::{Reason, Refusal};

/// Reads from the quote that opens the string; gives its value and its length in the text.
pub(super) fn read(text: &str, at: usize) -> Result<(String, usize), Refusal> {
    let refuse = |what: &str, instead| Err(Refusal::at(at, Reason::Unsupported { what: what.to_owned(), instead }));
    let bytes = text.as_bytes();
    let mut value = Vec::new();
    let mut next = 1;
    loop {
        match (bytes.get(next), bytes.get(next + 1)) {
            (None, _) => return Err(Refusal::at(at, Reason::Unclosed { what: "string" })),
            (Some(b'\''), Some(b'\'')) => {
                value.push(b'\'');
                next += 2;
            }
            (Some(b'\''), _) => {
                next += 1;
                break;
            }
            (Some(b'\\'), Some(b'\'')) => return refuse("\\' in a string", "write '' for a quote"),
            (Some(b'\\'), Some(_)) => match escape(&text[next + 1..]) {
                Some((bytes, len)) => {
                    value.extend(bytes);
                    next += 1 + len;
                }
                None => return refuse("such an escape in a string", "write the character itself"),
            },
            (Some(&byte), _) => {
                value.push(byte);
                next += 1;
            }
        }
    }
    match String::from_utf8(value) {
        Ok(value) if !value.contains('\0') => Ok((value, next)),
        Ok(_) => refuse("the character with the code zero", "PostgreSQL's text never holds it"),
        Err(_) => refuse("a string that is not UTF-8", "write the characters themselves"),
    }
}

/// The bytes of what stands behind a backslash, and its length.
fn escape(text: &str) -> Option<(Vec<u8>, usize)> {
    let first = text.chars().next()?;
    let one = |byte: u8| Some((vec![byte], 1));
    match first {
        'b' => one(8),
        'f' => one(12),
        'n' => one(b'\n'),
        'r' => one(b'\r'),
        't' => one(b'\t'),
        'v' => one(11),
        '0'..='7' => {
            let digits = prefix(text, 3, 8);
            let value = u32::from_str_radix(digits, 8).ok()?;
            // Three digits may be more than a byte, whose lowest bits PostgreSQL takes.
            Some((vec![value as u8], digits.len()))
        }
        'x' if !prefix(&text[1..], 2, 16).is_empty() => {
            let digits = prefix(&text[1..], 2, 16);
            Some((vec![u8::from_str_radix(digits, 16).ok()?], 1 + digits.len()))
        }
        'u' | 'U' => {
            let (code, len) = unicode(text)?;
            if !(0xd800..0xdc00).contains(&code) {
                return char::from_u32(code).map(|char| (char.to_string().into_bytes(), len));
            }
            let (low, low_len) = unicode(text[len..].strip_prefix('\\')?)?;
            let low = low.checked_sub(0xdc00).filter(|&low| low < 0x400)?;
            let char = char::from_u32(0x10000 + ((code - 0xd800) << 10) + low)?;
            Some((char.to_string().into_bytes(), len + 1 + low_len))
        }
        other => Some((other.to_string().into_bytes(), other.len_utf8())),
    }
}

/// `u0041` or `U00000041`
fn unicode(text: &str) -> Option<(u32, usize)> {
    let len = match text.as_bytes().first()? {
        b'u' => 4,
        b'U' => 8,
        _ => return None,
    };
    let digits = prefix(&text[1..], len, 16);
    if digits.len() == len { Some((u32::from_str_radix(digits, 16).ok()?, 1 + len)) } else { None }
}

fn prefix(text: &str, max: usize, radix: u32) -> &str {
    let len = text.bytes().take(max).take_while(|&byte| char::from(byte).is_digit(radix)).count();
    &text[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_read_as_in_postgresql() {
        for (text, value) in [
            (r"'a\n\\b''c'", "a\n\\b'c"),
            (r"'\x41\101\u0041\U00000041\q\xg'", "AAAAqxg"),
            (r"'\xc3\xa9\ud83d\ude00'", "é😀"),
        ] {
            assert_eq!(read(text, 0).expect("valid"), (value.to_owned(), text.len()));
        }
        for text in [r"'\''", r"'a", r"'\", r"'\u00g0'", r"'\ud83d'", r"'\xff'", r"'\0'"] {
            assert!(read(text, 0).is_err(), "{text}");
        }
    }
}
