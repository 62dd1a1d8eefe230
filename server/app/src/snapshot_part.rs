//! The part of a table that `tidegate snapshot start` is to read, from its arguments.
//!
//! A key is the value itself, where it has one column; or JSON, in brackets or braces: `[7, "a"]` in the key's own order, or
//! `{"id": 7, "code": "a"}` by the columns' names. It deliberately checks no value: the server does.

use std::{fs, io::Read as _, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tidegate_client::{SnapshotKey, SnapshotKeys, SnapshotPart, SnapshotRows};

/// Which rows.
#[derive(clap::Args)]
pub(crate) struct PartArgs {
    /// Only rows for which this is true, a condition on the columns of one table, such as \"status = 'open' and total > 100\".
    #[arg(long = "where", value_name = "CONDITION", conflicts_with_all = ["keys", "keys_file"])]
    condition: Option<String>,
    /// Only the row with this key, of one table: the value, or JSON, such as '[7, 1]' or '{\"order_id\": 7, \"line\": 1}'.
    /// Repeatable.
    #[arg(long = "key", value_name = "KEY", allow_hyphen_values = true)]
    keys: Vec<String>,
    /// The same from a file, a JSON value a line; - for the standard input.
    #[arg(long, value_name = "FILE")]
    keys_file: Option<PathBuf>,
}

/// A key's values, with their columns where they were named.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    columns: Vec<String>,
    values: Vec<String>,
}

impl PartArgs {
    /// The part that is asked for; none where it is all of the tables.
    pub(crate) fn parts(self, tables: &[String]) -> anyhow::Result<Vec<SnapshotPart>> {
        let mut keys = self.keys.iter().map(|text| argument(text)).collect::<anyhow::Result<Vec<_>>>()?;
        let file = self.keys_file.is_some();
        if let Some(path) = self.keys_file {
            keys.extend(lines(&read(&path)?).with_context(|| path.display().to_string())?);
        }
        let rows = match (self.condition, keys.is_empty() && !file) {
            (Some(condition), _) => SnapshotRows::Where(condition),
            (None, true) => return Ok(Vec::new()),
            (None, false) => SnapshotRows::Keys(together(keys)?),
        };
        let [table] = tables else { bail!("a condition or keys are about one table; name it, and no other") };
        Ok(vec![SnapshotPart { table: table.clone(), rows: Some(rows) }])
    }
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text).map(|_| text),
        false => fs::read_to_string(path),
    };
    read.with_context(|| format!("cannot read {}", path.display()))
}

/// Of the command line.
fn argument(text: &str) -> anyhow::Result<Key> {
    if !text.starts_with(['[', '{']) {
        return Ok(Key { columns: Vec::new(), values: vec![text.to_owned()] });
    }
    let value = serde_json::from_str(text).with_context(|| {
        format!("the key {text} is no JSON; a value that begins with a bracket is written as in '[\"[1,5)\"]'")
    })?;
    key(value)
}

/// Of a file.
fn lines(text: &str) -> anyhow::Result<Vec<Key>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(at, line): (usize, &str)| {
        let value = serde_json::from_str(line).context("no JSON value; strings are written in double quotes");
        value.and_then(key).with_context(|| format!("line {}", at + 1))
    };
    lines.map(read).collect()
}

fn key(value: Value) -> anyhow::Result<Key> {
    Ok(match value {
        Value::Array(values) => {
            Key { columns: Vec::new(), values: values.into_iter().map(text).collect::<anyhow::Result<_>>()? }
        }
        Value::Object(columns) => {
            let (columns, values): (Vec<String>, Vec<Value>) = columns.into_iter().unzip();
            Key { columns, values: values.into_iter().map(text).collect::<anyhow::Result<_>>()? }
        }
        single @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => {
            Key { columns: Vec::new(), values: vec![text(single)?] }
        }
    })
}

/// As PostgreSQL reads it.
fn text(value: Value) -> anyhow::Result<String> {
    Ok(match value {
        Value::String(text) => text,
        Value::Bool(value) => value.to_string(),
        // What is no whole number may have been rounded already.
        Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
        Value::Number(number) => bail!("write the number {number} as a string, so that every digit counts"),
        Value::Null => bail!("a key has no NULL"),
        Value::Array(_) | Value::Object(_) => bail!("a key's value is a string, a number or a boolean"),
    })
}

/// All in the order of the first one's columns.
fn together(keys: Vec<Key>) -> anyhow::Result<SnapshotKeys> {
    let columns = keys.first().map(|key| key.columns.clone()).unwrap_or_default();
    let order = |(at, mut key): (usize, Key)| {
        let different = "all keys name the same columns, or none does";
        ensure!(key.columns.len() == columns.len(), "key {}: {different}", at + 1);
        if columns.is_empty() {
            return Ok(SnapshotKey { values: key.values });
        }
        let place = |column: &String| key.columns.iter().position(|named| named == column);
        let places: Vec<usize> =
            columns.iter().map(place).collect::<Option<_>>().with_context(|| format!("key {}: {different}", at + 1))?;
        Ok(SnapshotKey { values: places.into_iter().map(|place| std::mem::take(&mut key.values[place])).collect() })
    };
    let keys = keys.into_iter().enumerate().map(order).collect::<anyhow::Result<_>>()?;
    Ok(SnapshotKeys { columns, keys })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(condition: Option<&str>, keys: &[&str]) -> PartArgs {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        PartArgs { condition: condition.map(str::to_owned), keys, keys_file: None }
    }

    fn keys(given: &[&str]) -> anyhow::Result<SnapshotKeys> {
        let parts = args(None, given).parts(&["orders".to_owned()])?;
        match parts.into_iter().next().and_then(|part| part.rows) {
            Some(SnapshotRows::Keys(keys)) => Ok(keys),
            Some(SnapshotRows::Where(_)) | None => bail!("no keys"),
        }
    }

    fn values(keys: &SnapshotKeys) -> Vec<Vec<&str>> {
        keys.keys.iter().map(|key| key.values.iter().map(String::as_str).collect()).collect()
    }

    #[test]
    fn a_key_is_a_value_or_json() {
        let single = keys(&["42", "-7", "o'clock", "[\"[1,5)\"]", "[true]"]).expect("keys");
        assert_eq!(values(&single), [["42"], ["-7"], ["o'clock"], ["[1,5)"], ["true"]]);
        assert!(single.columns.is_empty());
        let composite = keys(&["[7, \"a\"]", "[18446744073709551615, \"b\"]"]).expect("keys");
        assert_eq!(values(&composite), [["7", "a"], ["18446744073709551615", "b"]]);
        let named = keys(&["{\"id\": 7, \"at\": \"x\"}", "{\"at\": \"y\", \"id\": 8}"]).expect("keys");
        let of = |column: &str| named.columns.iter().position(|name| name == column).expect("named");
        assert_eq!(named.keys.iter().map(|key| key.values[of("id")].as_str()).collect::<Vec<_>>(), ["7", "8"]);
        assert_eq!(named.keys.iter().map(|key| key.values[of("at")].as_str()).collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for (given, expected) in [
            (&["[1.5]"][..], "as a string"),
            (&["[null]"], "no NULL"),
            (&["[[1]]"], "a string, a number or a boolean"),
            (&["[1"], "is no JSON"),
            (&["{\"a\": 1}", "{\"b\": 1}"], "key 2: all keys name the same columns"),
            (&["{\"a\": 1}", "5"], "key 2: all keys name the same columns"),
        ] {
            let refused = keys(given).expect_err("refused");
            assert!(format!("{refused:#}").contains(expected), "{given:?}: {refused:#}");
        }
    }

    #[test]
    fn a_file_has_a_json_value_a_line() {
        let read = lines("1\n\n\"two\"\n[3]\n").expect("keys");
        assert_eq!(read.iter().map(|key| key.values[0].as_str()).collect::<Vec<_>>(), ["1", "two", "3"]);
        assert!(format!("{:#}", lines("1\ntwo").expect_err("no JSON")).starts_with("line 2: no JSON value"));
    }

    #[test]
    fn a_part_is_of_one_table() {
        assert!(args(None, &[]).parts(&[]).expect("all of it").is_empty());
        for tables in [&[][..], &["a".to_owned(), "b".to_owned()]] {
            assert!(args(Some("x = 1"), &[]).parts(tables).is_err());
        }
        let part = args(Some("x = 1"), &[]).parts(&["a".to_owned()]).expect("a part");
        assert_eq!(part, [SnapshotPart { table: "a".into(), rows: Some(SnapshotRows::Where("x = 1".into())) }]);
    }
}
