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
    /// Whatever stands there has it: a step of a path.
    Either(&'a str, Option<i64>),
}

impl<'a> Step<'a> {
    fn name(self) -> Option<&'a str> {
        match self {
            Step::Member(name) | Step::Either(name, _) => Some(name),
            Step::Item(_) => None,
        }
    }

    fn index(self) -> Option<i64> {
        match self {
            Step::Member(_) => None,
            Step::Item(index) => Some(index),
            Step::Either(_, index) => index,
        }
    }
}

const UNREADABLE: EvaluationError = EvaluationError::Malformed { type_name: "json" };
/// Steps of a path. Arrays are counted ahead for each that is negative.
const STEPS_MAX: usize = 100;

/// The text of the part, as it stands; of members with the same name, the last.
pub(super) fn part<'a>(text: &'a str, step: Step<'_>) -> Result<Option<&'a str>, EvaluationError> {
    Walk::new(text, &[step]).end().ok_or(UNREADABLE)
}

/// `#>` and `#>>`. Among members of the same name it is the last in which the rest of the path leads somewhere.
pub(super) fn at_path<'a>(text: &'a str, path: &[&str]) -> Result<Option<&'a str>, EvaluationError> {
    if path.len() > STEPS_MAX {
        return Err(EvaluationError::Undecided { what: "a path of more than 100 steps into json" });
    }
    let steps: Vec<Step<'_>> = path.iter().map(|step| Step::Either(step, path_index(step))).collect();
    Walk::new(text, &steps).end().ok_or(UNREADABLE)
}

/// Goes once through a text, whatever its depth, as PostgreSQL does.
struct Walk<'a, 'p> {
    text: &'a str,
    reader: JsonReader<'a>,
    steps: &'p [Step<'p>],
    /// Of the steps. PostgreSQL counts one below zero from the end of the first array of its level that is long enough,
    /// on the path or not, and takes the place so found for all others of the level.
    indexes: Vec<Option<i64>>,
    open: Vec<Container>,
    /// Where the value begins that the path leads to, while it is read.
    start: Option<usize>,
    found: Option<&'a str>,
}

struct Container {
    is_object: bool,
    /// The steps so far lead here, and there are more.
    is_on_path: bool,
    /// Of the item that is read.
    index: i64,
}

impl<'a, 'p> Walk<'a, 'p> {
    fn new(text: &'a str, steps: &'p [Step<'p>]) -> Self {
        Walk {
            text,
            reader: JsonReader::new(text),
            steps,
            indexes: steps.iter().map(|step| step.index()).collect(),
            open: Vec::new(),
            start: None,
            found: None,
        }
    }

    fn end(mut self) -> Option<Option<&'a str>> {
        let mut is_wanted = true;
        loop {
            if !self.begin(is_wanted)? {
                self.value_ends();
                // It ends as many containers as end behind it.
                while let Some(container) = self.open.last()
                    && !self.reader.take(",")
                {
                    let close = if container.is_object { "}" } else { "]" };
                    self.reader.take(close).then_some(())?;
                    self.open.pop();
                    self.value_ends();
                }
            }
            if self.open.is_empty() {
                return Some(self.found);
            }
            is_wanted = self.next()?;
        }
    }

    /// Begins a value; true if it is a container that has something.
    fn begin(&mut self, is_wanted: bool) -> Option<bool> {
        self.reader.space();
        let (depth, at) = (self.open.len(), self.reader.at);
        let is_object = self.reader.take("{");
        let is_array = !is_object && self.reader.take("[");
        if is_wanted && depth == self.steps.len() {
            // The white space before the root stays where it is a scalar, as in PostgreSQL.
            self.start = Some(if depth == 0 && !is_object && !is_array { 0 } else { at });
            self.found = None;
        }
        if !is_object && !is_array {
            skip(&mut self.reader)?;
            return Some(false);
        }
        if is_array
            && let Some(Some(index)) = self.indexes.get_mut(depth)
            && *index < 0
        {
            let count = count(JsonReader::new(self.reader.rest()))?;
            *index += if *index >= -count { count } else { 0 };
        }
        if self.reader.take(if is_object { "}" } else { "]" }) {
            return Some(false);
        }
        self.open.push(Container { is_object, is_on_path: is_wanted && depth < self.steps.len(), index: -1 });
        Some(true)
    }

    /// Goes to the next value in the innermost container, and says if the path leads there.
    fn next(&mut self) -> Option<bool> {
        let level = self.open.len().checked_sub(1)?;
        let container = self.open.last_mut()?;
        if container.is_object {
            self.reader.space();
            let name = self.reader.string()?;
            self.reader.take(":").then_some(())?;
            return Some(container.is_on_path && self.steps[level].name() == Some(&*name));
        }
        container.index += 1;
        Some(container.is_on_path && self.indexes[level] == Some(container.index))
    }

    fn value_ends(&mut self) {
        if self.open.len() == self.steps.len()
            && let Some(start) = self.start.take()
        {
            self.found = Some(&self.text[start..self.reader.at]);
        }
    }
}

/// The items of an array, behind its bracket.
fn count(mut ahead: JsonReader<'_>) -> Option<i64> {
    let mut count = 0;
    if ahead.take("]") {
        return Some(count);
    }
    loop {
        skip(&mut ahead)?;
        count += 1;
        if !ahead.take(",") {
            return Some(count);
        }
    }
}

/// As `->>` gives it: None for null, a string without its quotes.
pub(super) fn as_text(part: &str) -> Result<Option<String>, EvaluationError> {
    match part.trim_start_matches([' ', '\t', '\n', '\r']) {
        "null" => Ok(None),
        string if string.starts_with('"') => JsonReader::new(string).string().map(Some).ok_or(UNREADABLE),
        _other => Ok(Some(part.to_owned())),
    }
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

    /// What PostgreSQL 15 says.
    #[test]
    fn places_from_the_end_are_those_of_the_first_array_of_the_level() {
        for (text, path, expected) in [
            ("{\"a\":[1,2,3],\"b\":[1]}", &["b", "-1"][..], None),
            ("{\"a\":[1],\"b\":[1,2,3]}", &["b", "-1"], Some("1")),
            ("{\"a\":[],\"b\":[1,2,3]}", &["b", "-1"], Some("3")),
            ("[[1,2,3],[7]]", &["1", "-1"], None),
            ("[[1,2,3],[7]]", &["-2", "-1"], Some("3")),
            ("[[1],{\"-1\":2}]", &["1", "-1"], Some("2")),
            ("{\"a\":{\"b\":1},\"a\":{\"c\":2}}", &["a", "b"], Some("1")),
            ("{\"a\":{\"b\":1},\"a\":{\"b\":[ 2 ]}}", &["a", "b"], Some("[ 2 ]")),
            ("[]", &["0"], None),
            ("{\"a\":{}}", &["a"], Some("{}")),
            ("{\"a\":{}}", &["a", "b"], None),
            ("  1 ", &[], Some("  1")),
            (" [ 1 ] ", &[], Some("[ 1 ]")),
        ] {
            assert_eq!(at_path(text, path), Ok(expected), "{text} at {path:?}");
        }
    }

    #[test]
    fn no_depth_is_too_deep() {
        let (text, path) = ("[".repeat(100_000) + &"]".repeat(100_000), ["0"; 100]);
        let found = at_path(&text, &path).map(|found| found.map(str::len));
        assert_eq!(found, Ok(Some(200_000 - 2 * 100)));
        assert!(at_path(&text, &["0"; 101]).is_err());
    }

    #[test]
    fn what_stands_before_a_root_stays_but_before_what_is_unpacked() {
        let as_text = |text: &str| at_path(text, &[]).and_then(|found| as_text(found.expect("the root")));
        assert_eq!(as_text(" \"a\" "), Ok(Some("a".to_owned())));
        assert_eq!(as_text(" null "), Ok(None));
        assert_eq!(as_text(" true "), Ok(Some(" true".to_owned())));
    }
}
