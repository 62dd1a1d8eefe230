//! PostgreSQL's range text (manual, section 8.17.5; `range_deparse`), and its `tidegate.v1.Range`.
//!
//! `empty`, `[1,10)`, `(,"2024-01-01 00:00:00+00"]`: a bound that is not there is infinite; one that is empty text or
//! holds anything special is quoted, with `""` and `\\` for a quote and a backslash. Bounds stay text: a range type's
//! subtype is for the reader to interpret.

use std::borrow::Cow;

use bytes::BytesMut;

use crate::wire::{self, Fields, WireType};

/// The field numbers of `tidegate.v1.Range`.
const LOWER: u32 = 1;
const UPPER: u32 = 2;
const BOUNDS: u32 = 3;
const EMPTY: u32 = 4;

/// A range by its bounds, which are text.
#[derive(Debug, PartialEq, Eq)]
pub enum Range<'a> {
    /// It holds no value.
    Empty,
    /// It holds what is between the bounds.
    Bounded {
        /// Absent: infinite.
        lower: Option<Cow<'a, str>>,
        /// Absent: infinite.
        upper: Option<Cow<'a, str>>,
        /// The opening and the closing bracket.
        brackets: [u8; 2],
    },
}

/// Appends a field that holds the range; None where the text is none.
pub(crate) fn put_range(out: &mut BytesMut, field: u32, text: &[u8]) -> Option<()> {
    let range = Range::parse(str::from_utf8(text).ok()?)?;
    let open = wire::begin_len_field(out, field);
    match range {
        Range::Empty => wire::put_varint_field(out, EMPTY, 1),
        Range::Bounded { lower, upper, brackets } => {
            if let Some(lower) = lower {
                wire::put_len_field(out, LOWER, lower.as_bytes());
            }
            if let Some(upper) = upper {
                wire::put_len_field(out, UPPER, upper.as_bytes());
            }
            wire::put_len_field(out, BOUNDS, &brackets);
        }
    }
    wire::end_len_field(out, open);
    Some(())
}

impl<'a> Range<'a> {
    /// Reads PostgreSQL's text.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        if text == "empty" {
            return Some(Range::Empty);
        }
        let opening = *text.as_bytes().first().filter(|byte| matches!(byte, b'[' | b'('))?;
        let (lower, rest) = read_bound(&text[1..])?;
        let (upper, rest) = read_bound(rest.strip_prefix(',')?)?;
        let closing = match rest {
            "]" => b']',
            ")" => b')',
            _ => return None,
        };
        Some(Range::Bounded { lower, upper, brackets: [opening, closing] })
    }

    /// Reads an encoded `tidegate.v1.Range`; None where the bytes are none.
    #[must_use]
    pub fn read(message: &'a [u8]) -> Option<Self> {
        let (mut lower, mut upper, mut brackets, mut empty) = (None, None, None, None);
        for field in Fields::new(message) {
            let field = field.ok()?;
            let part = match (field.number, field.wire_type) {
                (LOWER, WireType::Len) => &mut lower,
                (UPPER, WireType::Len) => &mut upper,
                (BOUNDS, WireType::Len) => &mut brackets,
                (EMPTY, WireType::Varint) if field.value == [1] => &mut empty,
                _ => return None,
            };
            if part.replace(str::from_utf8(field.value).ok()?).is_some() {
                return None;
            }
        }
        let [lower, upper] = [lower, upper].map(|bound| bound.map(Cow::Borrowed));
        match (empty, lower, upper, brackets.map(str::as_bytes)) {
            (Some(_), None, None, None) => Some(Range::Empty),
            (None, lower, upper, Some(&[opening @ (b'[' | b'('), closing @ (b']' | b')')])) => {
                Some(Range::Bounded { lower, upper, brackets: [opening, closing] })
            }
            _ => None,
        }
    }
}

/// A bound and what follows it.
fn read_bound(text: &str) -> Option<(Option<Cow<'_, str>>, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ')', ']', '(', '[', '"', '\\'])?;
        let (bound, rest) = text.split_at(end);
        return Some(((!bound.is_empty()).then_some(Cow::Borrowed(bound)), rest));
    };
    let mut bound = Cow::Borrowed("");
    let mut rest = quoted;
    loop {
        let end = rest.find(['"', '\\'])?;
        bound += &rest[..end];
        let special = &rest[end..];
        if let Some(after) = special.strip_prefix("\"\"") {
            bound += "\"";
            rest = after;
        } else if let Some(after) = special.strip_prefix('"') {
            return Some((Some(bound), after));
        } else {
            let escaped = special[1..].chars().next()?;
            bound.to_mut().push(escaped);
            rest = &special[1 + escaped.len_utf8()..];
        }
    }
}

/// Appends the text of an encoded `Range`; None where it is none.
pub(crate) fn print_range(out: &mut String, message: &[u8]) -> Option<()> {
    match Range::read(message)? {
        Range::Empty => out.push_str("empty"),
        Range::Bounded { lower, upper, brackets: [opening, closing] } => {
            out.push(char::from(opening));
            print_bound(out, lower.as_deref());
            out.push(',');
            print_bound(out, upper.as_deref());
            out.push(char::from(closing));
        }
    }
    Some(())
}

fn print_bound(out: &mut String, bound: Option<&str>) {
    let Some(bound) = bound else { return };
    let special = |c| matches!(c, '"' | '\\' | '(' | ')' | '[' | ']' | ',' | ' ' | '\t'..='\r');
    if !bound.is_empty() && !bound.contains(special) {
        out.push_str(bound);
        return;
    }
    out.push('"');
    for c in bound.chars() {
        if matches!(c, '"' | '\\') {
            out.push(c);
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;
    use tidegate_proto::v1;

    fn read(text: &str) -> Option<v1::Range> {
        let mut out = BytesMut::new();
        put_range(&mut out, 1, text.as_bytes())?;
        let field = wire::Fields::new(&out).next().expect("a field").expect("well formed");
        assert_eq!(field.whole.len(), out.len());
        Some(v1::Range::decode(field.value).expect("valid"))
    }

    /// Prints as `range_bound_escape` does.
    fn printed(bound: Option<&String>) -> String {
        let Some(text) = bound else { return String::new() };
        if text.is_empty() || text.contains(|c: char| "\"\\()[],".contains(c) || c.is_ascii_whitespace()) {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
        } else {
            text.clone()
        }
    }

    proptest! {
        #[test]
        fn any_bounds_are_read_back(
            lower in proptest::option::of("(?s).{0,8}|[\"\\\\,()]{0,4}"),
            upper in proptest::option::of("(?s).{0,8}|[\"\\\\,()]{0,4}"),
            opening in "[\\[(]",
            closing in "[\\])]",
        ) {
            let text = format!("{opening}{},{}{closing}", printed(lower.as_ref()), printed(upper.as_ref()));
            let bounds = format!("{opening}{closing}");
            prop_assert_eq!(read(&text), Some(v1::Range { lower, upper, bounds, empty: false }), "{}", text);
        }

        #[test]
        fn arbitrary_text_never_panics(text in prop_oneof!["\\PC{0,30}", "[\\[\\](),\"\\\\aé]{0,12}"]) {
            let _read_or_refused = read(&text);
        }
    }

    #[test]
    fn the_empty_range_has_no_bounds() {
        assert_eq!(read("empty"), Some(v1::Range { empty: true, ..Default::default() }));
    }

    #[test]
    fn an_empty_bound_is_not_an_infinite_one() {
        let read = read("(\"\",)").expect("valid");
        assert_eq!((read.lower.as_deref(), read.upper), (Some(""), None));
    }

    #[test]
    fn malformed_ranges_are_refused() {
        for text in
            ["", "[", "[1", "[1,2", "1,2", "[1;2]", "[1,2]x", "[1,2,3]", "[\"1,2]", "[\"1\"x,2]", "[a\"b,2]", "[\\"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
