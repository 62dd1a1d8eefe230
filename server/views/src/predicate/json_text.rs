//! `->`, `->>`, `#>` and `#>>` of `json`, which keeps its text as it was written (`get_worker` in `src/backend/utils/adt/jsonfuncs.c`).
//!
//! The text is JSON, as the type has seen to. PostgreSQL reads all of it, whatever it is asked for, and fails on an escape
//! that no character has, wherever it stands; so does this.

use super::evaluate::EvaluationError;
use super::json::{JsonReader, path_index};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Member(&'a str),
    /// From the end where it is negative.
    Item(i64),
}

const UNREADABLE: EvaluationError = EvaluationError::Malformed { type_name: "json" };

/// What stands in a value.
enum Parts<'a> {
    /// By name, in order.
    Members(Vec<(String, &'a str)>),
    Items(Vec<&'a str>),
    None,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, EvaluationError> {
        let mut reader = JsonReader::new(text);
        let close = if reader.take("{") {
            "}"
        } else if reader.take("[") {
            "]"
        } else {
            skip(&mut reader).ok_or(UNREADABLE)?;
            return Ok(Parts::None);
        };
        let mut parts = Vec::new();
        while !reader.take(close) {
            parts.push(next(&mut reader, close == "}").ok_or(UNREADABLE)?);
            reader.take(",");
        }
        Ok(match close {
            "}" => Parts::Members(parts),
            _ => Parts::Items(parts.into_iter().map(|(_, part)| part).collect()),
        })
    }
}

/// The text of the part, as it stands; of members with the same name, the last.
pub(super) fn part<'a>(text: &'a str, step: Step<'_>) -> Result<Option<&'a str>, EvaluationError> {
    Ok(match (Parts::of(text)?, step) {
        (Parts::Members(members), Step::Member(name)) => {
            members.iter().rev().find(|(other, _)| other == name).map(|&(_, part)| part)
        }
        (Parts::Items(items), Step::Item(index)) => item(&items, index),
        (Parts::Members(_) | Parts::Items(_) | Parts::None, _) => None,
    })
}

fn item<'a>(items: &[&'a str], index: i64) -> Option<&'a str> {
    let index = if index < 0 { index + items.len() as i64 } else { index };
    usize::try_from(index).ok().and_then(|index| items.get(index)).copied()
}

/// `#>` and `#>>`. Among members of the same name it is the last in which the rest of the path leads somewhere.
pub(super) fn at_path<'a>(text: &'a str, path: &[&str]) -> Result<Option<&'a str>, EvaluationError> {
    let parts = Parts::of(text)?;
    let Some((step, rest)) = path.split_first() else {
        return Ok(Some(text.trim_matches([' ', '\t', '\n', '\r'])));
    };
    match parts {
        Parts::Members(members) => {
            let mut found = None;
            for (_, part) in members.iter().filter(|(name, _)| name == step) {
                found = at_path(part, rest)?.or(found);
            }
            Ok(found)
        }
        Parts::Items(items) => match path_index(step).and_then(|index| item(&items, index)) {
            Some(part) => at_path(part, rest),
            None => Ok(None),
        },
        Parts::None => Ok(None),
    }
}

/// As `->>` gives it: None for null, a string without its quotes.
pub(super) fn as_text(part: &str) -> Result<Option<String>, EvaluationError> {
    match part {
        "null" => Ok(None),
        string if string.starts_with('"') => JsonReader::new(string).string().map(Some).ok_or(UNREADABLE),
        other => Ok(Some(other.to_owned())),
    }
}

/// The next part with its name, which is empty in an array.
fn next<'a>(reader: &mut JsonReader<'a>, named: bool) -> Option<(String, &'a str)> {
    reader.space();
    let name = if named { reader.string()? } else { String::new() };
    if named && !reader.take(":") {
        return None;
    }
    reader.space();
    let start = reader.rest();
    skip(reader)?;
    Some((name, &start[..start.len() - reader.rest().len()]))
}

/// Goes behind one value.
fn skip(reader: &mut JsonReader<'_>) -> Option<()> {
    let mut open = 0_usize;
    loop {
        reader.space();
        match reader.rest().as_bytes().first()? {
            b'"' => {
                reader.string()?;
            }
            b'[' | b'{' => {
                reader.at += 1;
                open += 1;
            }
            b']' | b'}' => {
                reader.at += 1;
                open = open.checked_sub(1)?;
            }
            b',' | b':' => reader.at += 1,
            _ => {
                if reader.word().is_empty() {
                    return None;
                }
            }
        }
        if open == 0 {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_as_they_were_written() {
        let text = " {\"a\" : 1.0e1, \"b\": [ 1 , {\"c\": \"]\"}],\"a\":\"\\u00e9\"} ";
        assert_eq!(part(text, Step::Member("a")), Ok(Some("\"\\u00e9\"")));
        assert_eq!(as_text("\"\\u00e9\""), Ok(Some("é".to_owned())));
        assert_eq!(part(text, Step::Member("b")), Ok(Some("[ 1 , {\"c\": \"]\"}]")));
        assert_eq!(part("[ 1 , {\"c\": \"]\"}]", Step::Item(-1)), Ok(Some("{\"c\": \"]\"}")));
        assert_eq!(part(text, Step::Item(0)), Ok(None));
        assert_eq!(part("[\"\\u0000\", 1]", Step::Item(1)), Err(UNREADABLE));
        assert_eq!(part("1", Step::Item(0)), Ok(None));
    }
}
