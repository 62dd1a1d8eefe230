//! Constants of a condition become `$n`, typed or not, the same one perhaps in several places.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_views::Parameter;

use crate::quoted;

/// A condition with its parameters.
#[derive(Default)]
pub(crate) struct Parametrised {
    pub(crate) text: String,
    pub(crate) parameters: Vec<Parameter>,
}

impl Parametrised {
    pub(crate) fn without(text: &str) -> Self {
        Parametrised { text: text.to_owned(), parameters: Vec::new() }
    }

    /// The types and the values, as PREPARE and EXECUTE take them.
    pub(crate) fn prepared(&self) -> (String, String) {
        let kind = |parameter: &Parameter| parameter.type_name.clone().unwrap_or_else(|| "unknown".to_owned());
        let value = |parameter: &Parameter| parameter.value.as_deref().map_or_else(|| "null".to_owned(), quoted);
        let joined = |texts: Vec<String>| texts.join(", ");
        (joined(self.parameters.iter().map(kind).collect()), joined(self.parameters.iter().map(value).collect()))
    }

    /// Some of the constants become parameters.
    pub(crate) fn of(condition: &str, random: &mut StdRng) -> Self {
        let mut parametrised = Parametrised::default();
        let mut rest = condition;
        // Other quotes are not looked into.
        if condition.contains(['$', '"']) || condition.contains("E'") {
            return Parametrised::without(condition);
        }
        let share = [1, 2, 4].choose(random).copied().unwrap_or(2);
        while let Some(constant) = Constant::next(rest, &parametrised.text) {
            parametrised.text.push_str(&rest[..constant.start]);
            let (written, behind) = (&rest[constant.start..constant.end], &rest[constant.end..]);
            if constant.is_free && random.random_ratio(1, share) {
                let number = parametrised.number(constant, random);
                parametrised.text.push_str(&format!("${number}"));
            } else {
                parametrised.text.push_str(written);
            }
            rest = behind;
        }
        parametrised.text.push_str(rest);
        parametrised
    }

    fn number(&mut self, constant: Constant, random: &mut StdRng) -> usize {
        let same = self.parameters.iter().position(|parameter| parameter.value == constant.value);
        if let Some(same) = same.filter(|_| random.random_ratio(1, 2)) {
            return same + 1;
        }
        let types: &[&str] = match constant.is_number {
            true => &["int", "int8", "numeric", "float8", "int2", "text", "real", "oid"],
            false => &["text", "varchar", "text", "bpchar"],
        };
        let type_name = random.random_ratio(1, 3).then(|| types.choose(random).map(|&name| name.to_owned())).flatten();
        self.parameters.push(Parameter { type_name, value: constant.value });
        self.parameters.len()
    }
}

/// A constant in a text.
struct Constant {
    start: usize,
    end: usize,
    value: Option<String>,
    is_number: bool,
    /// May anything else stand in its place?
    is_free: bool,
}

/// A string behind one of these belongs to it.
const TYPED: [&str; 6] = ["date", "time", "timestamp", "timestamptz", "interval", "tsrange"];

impl Constant {
    /// The first of the text, which stands behind another.
    fn next(text: &str, before: &str) -> Option<Constant> {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let behind = || format!("{before}{}", &text[..at]);
            match bytes[at] {
                b'\'' => return Some(Constant::string(text, at, &behind())),
                b'0'..=b'9' => return Some(Constant::number(text, at, &behind())),
                byte if byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80 => {
                    let end = at + word_length(&text[at..]);
                    if text[at..end].eq_ignore_ascii_case("null") {
                        let is_free = !matches!(last_word(&behind()), "is" | "not");
                        return Some(Constant { start: at, end, value: None, is_number: false, is_free });
                    }
                    at = end;
                }
                _ => at += 1,
            }
        }
        None
    }

    fn string(text: &str, start: usize, before: &str) -> Constant {
        let (mut value, mut end) = (String::new(), start + 1);
        while let Some(length) = text[end..].find('\'') {
            value.push_str(&text[end..end + length]);
            end += length + 1;
            if !text[end..].starts_with('\'') {
                break;
            }
            value.push('\'');
            end += 1;
        }
        let is_free = !TYPED.contains(&last_word(before));
        Constant { start, end, value: Some(value), is_number: false, is_free }
    }

    fn number(text: &str, start: usize, before: &str) -> Constant {
        let digits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
        let mut end = start;
        while text
            .as_bytes()
            .get(end)
            .is_some_and(|&byte| digits(byte) || byte == b'-' && text[start..end].ends_with('e'))
        {
            end += 1;
        }
        // A sign, or the length of a type.
        let opened = before.trim_end_matches(|char: char| char.is_ascii_digit() || char == ',');
        let is_length = ["char(", "numeric("].iter().any(|name| opened.ends_with(name));
        let is_free = !before.ends_with('-') && !is_length;
        Constant { start, end, value: Some(text[start..end].to_owned()), is_number: true, is_free }
    }
}

fn word_length(text: &str) -> usize {
    text.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(text.len())
}

fn last_word(text: &str) -> &str {
    let text = text.trim_end();
    let start = text.rfind(|char: char| !char.is_alphanumeric() && char != '_').map_or(0, |at| at + 1);
    text.get(start..).unwrap_or_default()
}
