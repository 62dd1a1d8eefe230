//! Functions of text, in characters unless it is said otherwise (`varlena.c`, `oracle_compat.c`, `text.c` of
//! `src/backend/utils/adt`).

use std::borrow::Cow;
use std::sync::Arc;

use md5::{Digest, Md5};

use super::array::Array;
use super::evaluate::{EvaluationError, GROWTH_MAX, fits, grows_by};
use super::kind::Kind;
use super::signature::{Evaluated, Needs, Signature, Slot, function, operator};
use super::value::Value;

const TEXT: Slot = Slot::Of(Kind::Text);
const TEXTS: Slot = Slot::Of(Kind::Array(&Kind::Text));
const BPCHAR: Slot = Slot::Of(Kind::Bpchar);
const BYTEA: Slot = Slot::Of(Kind::Bytea);
const INT: Slot = Slot::Of(Kind::Int4);
const BOOL: Slot = Slot::Of(Kind::Bool);
const SETTINGS: &str = "its result depends on settings of the session; use ||";
const PATTERN: &str = "its pattern is a regular expression; give places as numbers";

pub(super) static SIGNATURES: &[Signature] = &[
    function("length", &[TEXT], INT, length),
    function("length", &[BPCHAR], INT, |_, of| count(of[0].as_str().trim_end_matches(' ').chars().count())),
    function("length", &[BYTEA], INT, |_, of| count(of[0].as_bytes().len())),
    function("char_length", &[TEXT], INT, length),
    function("char_length", &[BPCHAR], INT, |_, of| count(of[0].as_str().trim_end_matches(' ').chars().count())),
    function("character_length", &[TEXT], INT, length),
    function("character_length", &[BPCHAR], INT, |_, of| count(of[0].as_str().trim_end_matches(' ').chars().count())),
    function("octet_length", &[TEXT], INT, |_, of| count(of[0].as_str().len())),
    function("octet_length", &[BPCHAR], INT, |_, of| count(of[0].as_str().len())),
    function("octet_length", &[BYTEA], INT, |_, of| count(of[0].as_bytes().len())),
    function("lower", &[TEXT], TEXT, |_, of| text(of[0].as_str().to_ascii_lowercase())).needing(Needs::Bytes),
    function("upper", &[TEXT], TEXT, |_, of| text(of[0].as_str().to_ascii_uppercase())).needing(Needs::Bytes),
    function("btrim", &[TEXT], TEXT, |_, of| trim(of[0].as_str(), " ", true, true)),
    function("btrim", &[TEXT, TEXT], TEXT, |_, of| trim(of[0].as_str(), of[1].as_str(), true, true)),
    function("ltrim", &[TEXT], TEXT, |_, of| trim(of[0].as_str(), " ", true, false)),
    function("ltrim", &[TEXT, TEXT], TEXT, |_, of| trim(of[0].as_str(), of[1].as_str(), true, false)),
    function("rtrim", &[TEXT], TEXT, |_, of| trim(of[0].as_str(), " ", false, true)),
    function("rtrim", &[TEXT, TEXT], TEXT, |_, of| trim(of[0].as_str(), of[1].as_str(), false, true)),
    function("substr", &[TEXT, INT], TEXT, |_, of| substring(of, None)),
    function("substr", &[TEXT, INT, INT], TEXT, |_, of| substring(of, Some(of[2].as_int()))),
    function("substring", &[TEXT, INT], TEXT, |_, of| substring(of, None)),
    function("substring", &[TEXT, INT, INT], TEXT, |_, of| substring(of, Some(of[2].as_int()))),
    function("substring", &[TEXT, TEXT], TEXT, |_, _| Ok(Value::Null)).refused(PATTERN),
    function("substring", &[TEXT, TEXT, TEXT], TEXT, |_, _| Ok(Value::Null)).refused(PATTERN),
    function("left", &[TEXT, INT], TEXT, |_, of| left(of[0].as_str(), of[1].as_int())),
    function("right", &[TEXT, INT], TEXT, |_, of| right(of[0].as_str(), of[1].as_int())),
    function("lpad", &[TEXT, INT], TEXT, |_, of| padded(of, " ", true)),
    function("lpad", &[TEXT, INT, TEXT], TEXT, |_, of| padded(of, of[2].as_str(), true)),
    function("rpad", &[TEXT, INT], TEXT, |_, of| padded(of, " ", false)),
    function("rpad", &[TEXT, INT, TEXT], TEXT, |_, of| padded(of, of[2].as_str(), false)),
    function("repeat", &[TEXT, INT], TEXT, |_, of| repeated(of[0].as_str(), of[1].as_int())),
    function("initcap", &[TEXT], TEXT, |_, of| text(capitalised(of[0].as_str()))).needing(Needs::Bytes),
    function("reverse", &[TEXT], TEXT, |_, of| text(of[0].as_str().chars().rev().collect())),
    function("replace", &[TEXT, TEXT, TEXT], TEXT, |_, of| replace(of[0].as_str(), of[1].as_str(), of[2].as_str()))
        .needing(Needs::Deterministic),
    function("translate", &[TEXT, TEXT, TEXT], TEXT, |_, of| translate(of[0].as_str(), of[1].as_str(), of[2].as_str())),
    function("strpos", &[TEXT, TEXT], INT, position).needing(Needs::Deterministic),
    function("position", &[TEXT, TEXT], INT, position).needing(Needs::Deterministic),
    function("starts_with", &[TEXT, TEXT], BOOL, starts_with).needing(Needs::Deterministic),
    operator("||", &[TEXT, TEXT], TEXT, concat),
    operator("||", &[TEXT, Slot::NonArrayAsText], TEXT, concat),
    operator("||", &[Slot::NonArrayAsText, TEXT], TEXT, concat),
    operator("||", &[BYTEA, BYTEA], BYTEA, concat_bytes),
    function("string_to_array", &[TEXT, TEXT], TEXTS, |_, of| split(of, None))
        .called_on_null()
        .needing(Needs::Deterministic),
    function("string_to_array", &[TEXT, TEXT, TEXT], TEXTS, |_, of| split(of, Some(&of[2])))
        .called_on_null()
        .needing(Needs::Deterministic),
    operator("^@", &[TEXT, TEXT], BOOL, starts_with).needing(Needs::Deterministic),
    function("split_part", &[TEXT, TEXT, INT], TEXT, |_, of| {
        split_part(of[0].as_str(), of[1].as_str(), of[2].as_int())
    })
    .needing(Needs::Deterministic),
    function("ascii", &[TEXT], INT, |_, of| {
        Ok(Value::Int(of[0].as_str().chars().next().map_or(0, |char| u32::from(char).into())))
    }),
    function("md5", &[TEXT], TEXT, |_, of| text(md5(of[0].as_str().as_bytes()))),
    function("md5", &[BYTEA], TEXT, |_, of| text(md5(of[0].as_bytes()))),
    function("concat", &[TEXT], TEXT, |_, _| Ok(Value::Null)).refused(SETTINGS),
    function("concat", &[TEXT, TEXT], TEXT, |_, _| Ok(Value::Null)).refused(SETTINGS),
    function("concat", &[TEXT, TEXT, TEXT], TEXT, |_, _| Ok(Value::Null)).refused(SETTINGS),
];

fn text<'v>(text: String) -> Evaluated<'v> {
    Ok(Value::text(text))
}

/// PostgreSQL's values have less than 1 GiB.
fn count<'v>(count: usize) -> Evaluated<'v> {
    Ok(Value::Int(count as i64))
}

fn length<'v>(_: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    count(of[0].as_str().chars().count())
}

fn concat<'v>(_: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    let (first, second) = (of[0].as_str(), of[1].as_str());
    fits(first.len() + second.len())?;
    text([first, second].concat())
}

fn concat_bytes<'v>(_: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    let (first, second) = (of[0].as_bytes(), of[1].as_bytes());
    fits(first.len() + second.len())?;
    Ok(Value::Bytes(Cow::Owned([first, second].concat())))
}

/// More than may arise.
const PARTS_MAX: usize = GROWTH_MAX / size_of::<Value<'_>>() + 1;

/// What stands between separators; every character where there is none, and all of it where that is empty. What is equal to `null`
/// becomes NULL (`string_to_array`).
fn split<'v>(of: &[Value<'_>], null: Option<&Value<'_>>) -> Evaluated<'v> {
    let Value::Text(value) = &of[0] else { return Ok(Value::Null) };
    let null = if let Some(Value::Text(null)) = null { Some(&**null) } else { None };
    let parts: Vec<&str> = match &of[1] {
        _ if value.is_empty() => Vec::new(),
        Value::Text(separator) if separator.is_empty() => vec![value],
        Value::Text(separator) => value.split(&**separator).take(PARTS_MAX).collect(),
        _null => value.split_inclusive(|_: char| true).take(PARTS_MAX).collect(),
    };
    grows_by(parts.len().saturating_mul(size_of::<Value<'_>>()))?;
    let element = |part: &str| if Some(part) == null { Value::Null } else { Value::text(part.to_owned()) };
    Ok(Value::Array(Arc::new(Array::of(parts.into_iter().map(element).collect()))))
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn trim<'v>(value: &str, set: &str, start: bool, end: bool) -> Evaluated<'v> {
    let within = |char: char| set.contains(char);
    let value = if start { value.trim_start_matches(within) } else { value };
    text(if end { value.trim_end_matches(within) } else { value }.to_owned())
}

/// From a place that may lie before the first character (`text_substring`).
fn substring<'v>(of: &[Value<'_>], length: Option<i64>) -> Evaluated<'v> {
    let start = of[1].as_int();
    let end = match length {
        Some(length) if length < 0 => {
            return Err(EvaluationError::Argument { what: "a length below zero in substring" });
        }
        Some(length) => start.saturating_add(length),
        None => i64::MAX,
    };
    let skipped = usize::try_from(start - 1).unwrap_or(0);
    let taken = usize::try_from(end.saturating_sub(start.max(1))).unwrap_or(0);
    text(of[0].as_str().chars().skip(skipped).take(taken).collect())
}

/// As long as it is said, by characters of the fill; cut at the end where it is too long (`lpad`, `rpad`).
fn padded<'v>(of: &[Value<'_>], fill: &str, before: bool) -> Evaluated<'v> {
    let (value, length) = (of[0].as_str(), usize::try_from(of[1].as_int()).unwrap_or(0));
    let missing = length.saturating_sub(value.chars().count());
    if missing == 0 || fill.is_empty() {
        return text(value.chars().take(length).collect());
    }
    grows_by(missing)?;
    let filled: String = fill.chars().cycle().take(missing).collect();
    text(if before { filled + value } else { value.to_owned() + &filled })
}

fn repeated<'v>(value: &str, count: i64) -> Evaluated<'v> {
    let count = usize::try_from(count).unwrap_or(0);
    grows_by(value.len().saturating_mul(count.saturating_sub(1)))?;
    text(value.repeat(count))
}

/// The first letter of each word of ASCII's letters and digits in upper case, the others in lower.
fn capitalised(value: &str) -> String {
    let mut within = false;
    let cased = value.chars().map(|char| {
        let cased = if within { char.to_ascii_lowercase() } else { char.to_ascii_uppercase() };
        within = char.is_ascii_alphanumeric();
        cased
    });
    cased.collect()
}

/// A number below zero leaves out so many at the other end.
fn left<'v>(value: &str, count: i64) -> Evaluated<'v> {
    let taken = if count >= 0 { count } else { (value.chars().count() as i64 + count).max(0) };
    text(value.chars().take(usize::try_from(taken).unwrap_or(0)).collect())
}

fn right<'v>(value: &str, count: i64) -> Evaluated<'v> {
    // PostgreSQL turns the sign in 32 bits.
    if count == i64::from(i32::MIN) {
        return Err(EvaluationError::Undecided { what: "right of the least int4" });
    }
    let skipped = if count >= 0 { (value.chars().count() as i64 - count).max(0) } else { -count };
    text(value.chars().skip(usize::try_from(skipped).unwrap_or(0)).collect())
}

fn replace<'v>(value: &str, from: &str, to: &str) -> Evaluated<'v> {
    if from.is_empty() {
        return text(value.to_owned());
    }
    let growth = to.len().saturating_sub(from.len());
    grows_by(value.matches(from).count().saturating_mul(growth))?;
    text(value.replace(from, to))
}

/// Characters without a counterpart are left out.
fn translate<'v>(value: &str, from: &str, to: &str) -> Evaluated<'v> {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let other = |char: char| match from.iter().position(|&other| other == char) {
        Some(at) => to.get(at).copied(),
        None => Some(char),
    };
    text(value.chars().filter_map(other).collect())
}

/// From 1; 0 where it is not there.
fn position<'v>(_: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    let value = of[0].as_str();
    match value.find(of[1].as_str()) {
        Some(at) => count(value[..at].chars().count() + 1),
        None => Ok(Value::Int(0)),
    }
}

fn starts_with<'v>(_: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    Ok(Value::Bool(of[0].as_str().starts_with(of[1].as_str())))
}

/// From the end where the place is below zero.
fn split_part<'v>(value: &str, separator: &str, place: i64) -> Evaluated<'v> {
    if place == 0 {
        return Err(EvaluationError::Argument { what: "the place 0 in split_part" });
    }
    let parts: Vec<&str> = match (value, separator) {
        ("", _) => Vec::new(),
        (value, "") => vec![value],
        (value, separator) => value.split(separator).collect(),
    };
    let at = if place > 0 { place - 1 } else { parts.len() as i64 + place };
    text(usize::try_from(at).ok().and_then(|at| parts.get(at)).copied().unwrap_or_default().to_owned())
}
