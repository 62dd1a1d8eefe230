//! JSON values as `jsonb` has them (`src/backend/utils/adt/jsonb.c`, `jsonb_util.c`): the members of an object in order of the
//! length of their names and then by bytes, each once; numbers exact.
//!
//! Invariant: no deeper than [`DEPTH_MAX`], so that walking a value needs little stack.

use std::fmt::Write;
use std::sync::Arc;

use super::evaluate::{EvaluationError, GROWTH_MAX, fits, grows_by};
use super::numeric::Numeric;

/// PostgreSQL's own limit is its stack's, some thousands.
const DEPTH_MAX: usize = 1_000;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(Numeric),
    Text(String),
    Array(Vec<Arc<Json>>),
    Object(Vec<(String, Arc<Json>)>),
}

impl Json {
    /// Reads a whole text; None where `jsonb` does not take it, or it is nested too deep.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut reader = JsonReader::new(text);
        let value = reader.value()?;
        reader.space();
        reader.rest().is_empty().then_some(value)
    }

    pub(super) fn is_container(&self) -> bool {
        matches!(self, Json::Array(_) | Json::Object(_))
    }

    /// The member of an object.
    pub(super) fn member(&self, name: &str) -> Option<&Arc<Json>> {
        let Json::Object(members) = self else { return None };
        let order =
            |(other, _): &(String, Arc<Json>)| other.len().cmp(&name.len()).then_with(|| other.as_str().cmp(name));
        members.binary_search_by(order).ok().map(|at| &members[at].1)
    }

    /// The element of an array, from its end where the index is negative.
    pub(super) fn item(&self, index: i64) -> Option<&Arc<Json>> {
        let Json::Array(items) = self else { return None };
        let index = if index < 0 { index + items.len() as i64 } else { index };
        items.get(usize::try_from(index).ok()?)
    }

    /// `=`: numbers by their value.
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Json::Number(a), Json::Number(b)) => a.compare(b).is_eq(),
            (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b)),
            (Json::Object(a), Json::Object(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|((m, a), (n, b))| m == n && a.equals(b))
            }
            (a, b) => a == b,
        }
    }

    /// `@>` (`JsonbDeepContains`)
    pub(super) fn contains(&self, part: &Self) -> bool {
        match (self, part) {
            // An array, but nothing else, contains a value that stands alone.
            (Json::Array(items), part) if !part.is_container() => items.iter().any(|item| item.equals(part)),
            (whole, part) => whole.contains_within(part),
        }
    }

    fn contains_within(&self, part: &Self) -> bool {
        match (self, part) {
            (Json::Object(_), Json::Object(members)) => {
                members.iter().all(|(name, part)| self.member(name).is_some_and(|whole| whole.contains_within(part)))
            }
            (Json::Array(items), Json::Array(parts)) => parts.iter().all(|part| match part.is_container() {
                true => items.iter().any(|item| item.contains_within(part)),
                false => items.iter().any(|item| item.equals(part)),
            }),
            (whole, part) => !whole.is_container() && whole.equals(part),
        }
    }

    /// `?`: a member's name, an element, or the value itself.
    pub(super) fn has(&self, name: &str) -> bool {
        let is_name = |json: &Json| matches!(json, Json::Text(text) if text == name);
        match self {
            Json::Object(_) => self.member(name).is_some(),
            Json::Array(items) => items.iter().any(|item| is_name(item)),
            scalar => is_name(scalar),
        }
    }

    /// `#>`: each step is the name of a member or the index of an element.
    pub(super) fn at_path<'j>(self: &'j Arc<Self>, path: &[&str]) -> Option<&'j Arc<Json>> {
        path.iter().try_fold(self, |json, step| match &**json {
            Json::Object(_) => json.member(step),
            Json::Array(_) => json.item(path_index(step)?),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) => None,
        })
    }

    /// `||`: the members of both objects, the other's where both have one; or the elements of both, what is no array being its own
    /// element.
    pub(super) fn concat(self: &Arc<Self>, other: &Arc<Self>) -> Result<Self, EvaluationError> {
        fits(self.byte_count() + other.byte_count())?;
        if let (Json::Object(mine), Json::Object(theirs)) = (&**self, &**other) {
            return Ok(Json::Object(in_order([&mine[..], theirs].concat())));
        }
        let items = |json: &Arc<Self>| match &**json {
            Json::Array(items) => items.clone(),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::Object(_) => vec![json.clone()],
        };
        Ok(Json::Array([items(self), items(other)].concat()))
    }

    /// Of what is copied with it: of its parts, the names, and where the rest is.
    fn byte_count(&self) -> usize {
        let part = size_of::<Arc<Json>>();
        match self {
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) => part,
            Json::Array(items) => items.len() * part,
            Json::Object(members) => members.iter().map(|(name, _)| size_of::<String>() + name.len() + part).sum(),
        }
    }

    /// `-`: without the members of these names, or the strings that are equal to one; None of a value that stands alone.
    pub(super) fn without(&self, names: &[&str]) -> Option<Self> {
        Some(match self {
            Json::Object(members) => {
                let kept = members.iter().filter(|(name, _)| !names.contains(&name.as_str()));
                Json::Object(kept.cloned().collect())
            }
            Json::Array(items) => {
                let is_named = |item: &Json| matches!(item, Json::Text(text) if names.contains(&text.as_str()));
                Json::Array(items.iter().filter(|item| !is_named(item)).cloned().collect())
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) => return None,
        })
    }

    /// Refuses one whose text is too long, before there is any: what `||` has put together shares its parts.
    pub(super) fn check_text(&self) -> Result<(), EvaluationError> {
        if self.takes_from(&mut GROWTH_MAX.clone()) { Ok(()) } else { grows_by(usize::MAX) }
    }

    /// Is there room for its text, which has at least so many bytes?
    fn takes_from(&self, room: &mut usize) -> bool {
        let own = match self {
            Json::Null | Json::Bool(_) => 4,
            // A digit has more than three bits.
            Json::Number(number) => 2 * number.byte_count(),
            Json::Text(text) => text.len(),
            Json::Array(items) => items.len(),
            Json::Object(members) => members.iter().map(|(name, _)| name.len()).sum(),
        };
        let Some(left) = room.checked_sub(own) else { return false };
        *room = left;
        match self {
            Json::Array(items) => items.iter().all(|item| item.takes_from(room)),
            Json::Object(members) => members.iter().all(|(_, value)| value.takes_from(room)),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) => true,
        }
    }

    /// As `->>` and `#>>` give it: None for null, a string without its quotes.
    pub(super) fn as_text(&self) -> Option<String> {
        match self {
            Json::Null => None,
            Json::Text(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// How much it is: its parts, long text counting as several.
    pub(super) fn weight(&self) -> usize {
        match self {
            Json::Null | Json::Bool(_) => 1,
            Json::Number(_) => 8,
            Json::Text(text) => 1 + text.len() / 8,
            Json::Array(items) => 1 + items.iter().map(|item| item.weight()).sum::<usize>(),
            Json::Object(members) => {
                1 + members.iter().map(|(name, value)| 1 + name.len() / 8 + value.weight()).sum::<usize>()
            }
        }
    }

    fn print(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Json::Number(number) => out.push_str(&number.to_string()),
            Json::Text(text) => print_string(out, text),
            Json::Array(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    out.push_str(if at > 0 { ", " } else { "" });
                    item.print(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (at, (name, value)) in members.iter().enumerate() {
                    out.push_str(if at > 0 { ", " } else { "" });
                    print_string(out, name);
                    out.push_str(": ");
                    value.print(out);
                }
                out.push('}');
            }
        }
    }
}

/// As `jsonb_out` prints it.
impl std::fmt::Display for Json {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = String::new();
        self.print(&mut out);
        f.write_str(&out)
    }
}

/// As C's `strtol` reads an int.
pub(super) fn path_index(step: &str) -> Option<i64> {
    step.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']).parse::<i32>().ok().map(i64::from)
}

fn print_string(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                // A String takes whatever is written to it.
                write!(out, "\\u{:04x}", u32::from(control)).unwrap_or_default();
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

/// A container that is not complete yet.
enum Open {
    Array(Vec<Arc<Json>>),
    /// With the name of the member that is being read.
    Object(Vec<(String, Arc<Json>)>, String),
}

/// Reads JSON text from its beginning (`src/common/jsonapi.c`).
pub(super) struct JsonReader<'a> {
    text: &'a str,
    pub(super) at: usize,
}

impl<'a> JsonReader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        JsonReader { text, at: 0 }
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(super) fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    /// Behind white space.
    pub(super) fn take(&mut self, mark: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(mark);
        self.at += if found { mark.len() } else { 0 };
        found
    }

    fn value(&mut self) -> Option<Json> {
        let mut open: Vec<Open> = Vec::new();
        loop {
            if open.len() > DEPTH_MAX {
                return None;
            }
            let mut value = if self.take("[") {
                if !self.take("]") {
                    open.push(Open::Array(Vec::new()));
                    continue;
                }
                Json::Array(Vec::new())
            } else if self.take("{") {
                if !self.take("}") {
                    open.push(Open::Object(Vec::new(), self.name()?));
                    continue;
                }
                Json::Object(Vec::new())
            } else {
                self.scalar()?
            };
            // The value ends as many containers as end behind it.
            loop {
                let more = match open.last_mut() {
                    None => return Some(value),
                    Some(Open::Array(items)) => {
                        items.push(Arc::new(value));
                        self.take(",")
                    }
                    Some(Open::Object(members, name)) => {
                        members.push((std::mem::take(name), Arc::new(value)));
                        let more = self.take(",");
                        if more {
                            *name = self.name()?;
                        }
                        more
                    }
                };
                if more {
                    break;
                }
                value = self.closed(open.pop()?)?;
            }
        }
    }

    fn closed(&mut self, open: Open) -> Option<Json> {
        match open {
            Open::Array(items) => self.take("]").then_some(Json::Array(items)),
            Open::Object(members, _) => self.take("}").then(|| Json::Object(in_order(members))),
        }
    }

    fn name(&mut self) -> Option<String> {
        self.space();
        let name = self.string()?;
        self.take(":").then_some(name)
    }

    fn scalar(&mut self) -> Option<Json> {
        self.space();
        if self.rest().starts_with('"') {
            return self.string().map(Json::Text);
        }
        let word = self.word();
        match word {
            "null" => Some(Json::Null),
            "true" => Some(Json::Bool(true)),
            "false" => Some(Json::Bool(false)),
            number => is_number(number).then(|| Numeric::parse(number))?.map(Json::Number),
        }
    }

    /// Up to what cannot be part of a number or a word.
    pub(super) fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.') || byte >= 0x80;
        let len = rest.bytes().position(|byte| !part(byte)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    pub(super) fn string(&mut self) -> Option<String> {
        let mut value = String::new();
        self.at += if self.rest().starts_with('"') { 1 } else { return None };
        loop {
            let rest = self.rest();
            let end = rest.find(|char| matches!(char, '"' | '\\') || char < ' ')?;
            value.push_str(&rest[..end]);
            self.at += end + 1;
            match rest.as_bytes()[end] {
                b'"' => return Some(value),
                b'\\' => value.push(self.escape()?),
                _ => return None,
            }
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> Option<char> {
        let byte = *self.rest().as_bytes().first()?;
        self.at += if byte.is_ascii() { 1 } else { return None };
        Some(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                if !(0xd800..0xdc00).contains(&first) {
                    return char::from_u32(first).filter(|&char| char != '\0');
                }
                let second = self.rest().strip_prefix("\\u").map(|_| self.at += 2).and_then(|()| self.hex())?;
                let second = second.checked_sub(0xdc00).filter(|&low| low < 0x400)?;
                return char::from_u32(0x10000 + ((first - 0xd800) << 10) + second);
            }
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }
}

/// By length and bytes; of members with the same name, the last.
fn in_order(mut members: Vec<(String, Arc<Json>)>) -> Vec<(String, Arc<Json>)> {
    members.sort_by(|(a, _), (b, _)| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
    members.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            std::mem::swap(&mut kept.1, &mut later.1);
        }
        same
    });
    members
}

/// `-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?`
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    digits(whole) && (whole == "0" || !whole.starts_with('0')) && digits(fraction) && digits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(text: &str) -> Option<String> {
        Json::parse(text).map(|json| json.to_string())
    }

    #[test]
    fn values_take_jsonb_s_form() {
        for (text, form) in [
            ("{\"bb\": 1, \"a\" :2,\"c\":[ ]}", "{\"a\": 2, \"c\": [], \"bb\": 1}"),
            ("{\"a\": 1, \"a\": {\"b\": null}}", "{\"a\": {\"b\": null}}"),
            ("[1.50, -0.0, 1e2, \"\\u00e9\\n\"]", "[1.50, 0.0, 100, \"é\\n\"]"),
            (" true ", "true"),
            ("\"\\ud83d\\ude00\\u0001\"", "\"😀\\u0001\""),
        ] {
            assert_eq!(printed(text).as_deref(), Some(form));
        }
        for text in
            ["", "{", "[1,]", "01", "1.", "+1", "nul", "\"\\u0000\"", "\"\\ud83d\"", "[1] 2", "{\"a\" 1}", "\"\n\""]
        {
            assert_eq!(printed(text), None, "{text}");
        }
        assert_eq!(printed(&format!("{}{}", "[".repeat(60_000), "]".repeat(60_000))), None);
    }

    #[test]
    fn parts_are_contained_as_in_postgresql() {
        let contains =
            |whole: &str, part: &str| Json::parse(whole).expect("valid").contains(&Json::parse(part).expect("valid"));
        assert!(contains("[1, 2, [1, 3]]", "[[3]]"));
        assert!(contains("[1, 2]", "1.0"));
        assert!(!contains("1", "[1]"));
        assert!(contains("{\"a\": {\"b\": [1, 2]}}", "{\"a\": {\"b\": [2]}}"));
        assert!(!contains("{\"a\": [1]}", "{\"a\": 1}"));
        assert!(contains("{\"a\": 1}", "{}"));
        assert!(!contains("{\"a\": 1}", "[]"));
    }
}
