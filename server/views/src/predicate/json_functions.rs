//! Operators and functions of `json` and `jsonb` (`src/backend/utils/adt/jsonfuncs.c`, `jsonb_op.c`). Comparisons stand with the
//! others.

use std::borrow::Cow;
use std::sync::Arc;

use super::evaluate::EvaluationError;
use super::json::Json;
use super::json_text::{self, Step};
use super::kind::Kind;
use super::signature::{Evaluated, Signature, Slot, function, operator};
use super::value::Value;

const JSON: Slot = Slot::Of(Kind::Json);
const JSONB: Slot = Slot::Of(Kind::Jsonb);
const TEXT: Slot = Slot::Of(Kind::Text);
const TEXTS: Slot = Slot::Of(Kind::Array(&Kind::Text));
const INT: Slot = Slot::Of(Kind::Int4);
const BOOL: Slot = Slot::Of(Kind::Bool);

pub(super) static SIGNATURES: &[Signature] = &[
    operator("->", &[JSONB, TEXT], JSONB, |_, of| json(of[0].as_json().member(of[1].as_str()))),
    operator("->", &[JSONB, INT], JSONB, |_, of| json(item(&of[0], &of[1]))),
    operator("->>", &[JSONB, TEXT], TEXT, |_, of| text(of[0].as_json().member(of[1].as_str()))),
    operator("->>", &[JSONB, INT], TEXT, |_, of| text(item(&of[0], &of[1]))),
    operator("#>", &[JSONB, TEXTS], JSONB, |_, of| json(at_path(&of[0], &of[1]))),
    operator("#>>", &[JSONB, TEXTS], TEXT, |_, of| text(at_path(&of[0], &of[1]))),
    operator("@>", &[JSONB, JSONB], BOOL, |_, of| bool(of[0].as_json().contains(of[1].as_json()))),
    operator("<@", &[JSONB, JSONB], BOOL, |_, of| bool(of[1].as_json().contains(of[0].as_json()))),
    operator("?", &[JSONB, TEXT], BOOL, |_, of| bool(of[0].as_json().has(of[1].as_str()))),
    operator("?|", &[JSONB, TEXTS], BOOL, |_, of| bool(names(&of[1]).any(|name| of[0].as_json().has(name)))),
    operator("?&", &[JSONB, TEXTS], BOOL, |_, of| bool(names(&of[1]).all(|name| of[0].as_json().has(name)))),
    operator("||", &[JSONB, JSONB], JSONB, |_, of| Ok(Value::Json(Arc::new(of[0].as_json().concat(of[1].as_json())?)))),
    operator("-", &[JSONB, TEXT], JSONB, |_, of| without(&of[0], &[of[1].as_str()])),
    operator("-", &[JSONB, TEXTS], JSONB, |_, of| {
        if of[1].as_array().dimensions.len() > 1 {
            return Err(EvaluationError::Argument { what: "names in an array of several dimensions" });
        }
        without(&of[0], &names(&of[1]).collect::<Vec<_>>())
    }),
    operator("-", &[JSONB, INT], JSONB, |_, of| without_item(of[0].as_json(), of[1].as_int())),
    operator("->", &[JSON, TEXT], JSON, |_, of| part(&of[0], Step::Member(of[1].as_str()))),
    operator("->", &[JSON, INT], JSON, |_, of| part(&of[0], Step::Item(of[1].as_int()))),
    operator("->>", &[JSON, TEXT], TEXT, |_, of| part_text(&of[0], Step::Member(of[1].as_str()))),
    operator("->>", &[JSON, INT], TEXT, |_, of| part_text(&of[0], Step::Item(of[1].as_int()))),
    operator("#>", &[JSON, TEXTS], JSON, |_, of| part_at(of[0].as_str(), path(&of[1]))),
    operator("#>>", &[JSON, TEXTS], TEXT, |_, of| part_text_at(of[0].as_str(), path(&of[1]))),
    function("jsonb_extract_path", &[JSONB, TEXT], JSONB, |_, of| extracted(of)),
    function("jsonb_extract_path", &[JSONB, TEXT, TEXT], JSONB, |_, of| extracted(of)),
    function("jsonb_extract_path", &[JSONB, TEXT, TEXT, TEXT], JSONB, |_, of| extracted(of)),
    function("jsonb_extract_path", &[JSONB, TEXT, TEXT, TEXT, TEXT], JSONB, |_, of| extracted(of)),
    function("jsonb_extract_path_text", &[JSONB, TEXT], TEXT, |_, of| extracted_text(of)),
    function("jsonb_extract_path_text", &[JSONB, TEXT, TEXT], TEXT, |_, of| extracted_text(of)),
    function("jsonb_extract_path_text", &[JSONB, TEXT, TEXT, TEXT], TEXT, |_, of| extracted_text(of)),
    function("jsonb_extract_path_text", &[JSONB, TEXT, TEXT, TEXT, TEXT], TEXT, |_, of| extracted_text(of)),
    function("json_extract_path", &[JSON, TEXT], JSON, |_, of| part_at(of[0].as_str(), steps(of))),
    function("json_extract_path", &[JSON, TEXT, TEXT], JSON, |_, of| part_at(of[0].as_str(), steps(of))),
    function("json_extract_path", &[JSON, TEXT, TEXT, TEXT], JSON, |_, of| part_at(of[0].as_str(), steps(of))),
    function("json_extract_path_text", &[JSON, TEXT], TEXT, |_, of| part_text_at(of[0].as_str(), steps(of))),
    function("json_extract_path_text", &[JSON, TEXT, TEXT], TEXT, |_, of| part_text_at(of[0].as_str(), steps(of))),
    function("json_extract_path_text", &[JSON, TEXT, TEXT, TEXT], TEXT, |_, of| {
        part_text_at(of[0].as_str(), steps(of))
    }),
    function("json_typeof", &[JSON], TEXT, |_, of| Ok(Value::text(type_of_text(of[0].as_str())))),
    function("jsonb_typeof", &[JSONB], TEXT, |_, of| Ok(Value::text(type_of(of[0].as_json())))),
    function("jsonb_array_length", &[JSONB], INT, |_, of| match &**of[0].as_json() {
        Json::Array(items) => Ok(Value::Int(items.len() as i64)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) | Json::Object(_) => {
            Err(EvaluationError::Argument { what: "jsonb_array_length of what is no array" })
        }
    }),
];

fn bool<'v>(value: bool) -> Evaluated<'v> {
    Ok(Value::Bool(value))
}

fn json<'v>(found: Option<&Arc<Json>>) -> Evaluated<'v> {
    Ok(found.map_or(Value::Null, |json| Value::Json(json.clone())))
}

fn text<'v>(found: Option<&Arc<Json>>) -> Evaluated<'v> {
    let Some(json) = found else { return Ok(Value::Null) };
    json.check_text()?;
    Ok(json.as_text().map_or(Value::Null, Value::text))
}

/// A value that stands alone is an array of itself here.
fn item<'j>(json: &'j Value<'_>, index: &Value<'_>) -> Option<&'j Arc<Json>> {
    let json = json.as_json();
    match (json.is_container(), index.as_int()) {
        (true, index) => json.item(index),
        (false, 0 | -1) => Some(json),
        (false, _) => None,
    }
}

/// The names that are not NULL.
fn names<'n>(array: &'n Value<'_>) -> impl Iterator<Item = &'n str> {
    array.as_array().elements.iter().filter(|name| **name != Value::Null).map(Value::as_str)
}

/// Without the members of these names, or the strings that are equal to one.
fn without<'v>(json: &Value<'_>, names: &[&str]) -> Evaluated<'v> {
    let without = json.as_json().without(names);
    let without = without.ok_or(EvaluationError::Argument { what: "- of a json value that stands alone" })?;
    Ok(Value::Json(Arc::new(without)))
}

/// Without the element at this place, which is counted from the end where it is negative.
fn without_item<'v>(json: &Arc<Json>, place: i64) -> Evaluated<'v> {
    let Json::Array(items) = &**json else {
        return Err(EvaluationError::Argument { what: "- with a place of what is no array" });
    };
    // What lies before the first counts from the beginning.
    let place = match items.len() as i64 {
        length if place < -length => length,
        length if place < 0 => length + place,
        _ => place,
    };
    let kept = (0..).zip(items).filter(|(at, _)| *at != place).map(|(_, item)| item.clone());
    Ok(Value::Json(Arc::new(Json::Array(kept.collect()))))
}

fn at_path<'j>(json: &'j Value<'_>, path: &Value<'_>) -> Option<&'j Arc<Json>> {
    let steps = &path.as_array().elements;
    let has_null = steps.contains(&Value::Null);
    let steps: Vec<&str> = names(path).collect();
    if has_null { None } else { json.as_json().at_path(&steps) }
}

/// The steps of a path; None where one is NULL.
fn path<'p>(path: &'p Value<'_>) -> Option<Vec<&'p str>> {
    let has_null = path.as_array().elements.contains(&Value::Null);
    (!has_null).then(|| names(path).collect())
}

/// Those that are operands of their own.
fn steps<'o>(of: &'o [Value<'_>]) -> Option<Vec<&'o str>> {
    Some(of[1..].iter().map(Value::as_str).collect())
}

fn extracted<'v>(of: &[Value<'_>]) -> Evaluated<'v> {
    json(of[0].as_json().at_path(&steps(of).unwrap_or_default()))
}

fn extracted_text<'v>(of: &[Value<'_>]) -> Evaluated<'v> {
    text(of[0].as_json().at_path(&steps(of).unwrap_or_default()))
}

fn part_at<'v>(json: &str, path: Option<Vec<&str>>) -> Evaluated<'v> {
    let Some(path) = path else { return Ok(Value::Null) };
    let found = json_text::at_path(json, &path)?;
    Ok(found.map_or(Value::Null, |part| Value::Text(Cow::Owned(part.to_owned()))))
}

fn part_text_at<'v>(json: &str, path: Option<Vec<&str>>) -> Evaluated<'v> {
    let Some(path) = path else { return Ok(Value::Null) };
    let Some(found) = json_text::at_path(json, &path)? else { return Ok(Value::Null) };
    Ok(json_text::as_text(found)?.map_or(Value::Null, Value::text))
}

/// By the first character.
fn type_of_text(json: &str) -> &'static str {
    match json.trim_start_matches([' ', '\t', '\n', '\r']).bytes().next() {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        Some(_) | None => "number",
    }
}

fn part<'v>(json: &Value<'_>, step: Step<'_>) -> Evaluated<'v> {
    let found = json_text::part(json.as_str(), step)?;
    Ok(found.map_or(Value::Null, |part| Value::Text(Cow::Owned(part.to_owned()))))
}

fn part_text<'v>(json: &Value<'_>, step: Step<'_>) -> Evaluated<'v> {
    let Some(found) = json_text::part(json.as_str(), step)? else { return Ok(Value::Null) };
    Ok(json_text::as_text(found)?.map_or(Value::Null, Value::text))
}

fn type_of(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::Text(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}
