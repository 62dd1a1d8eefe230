//! Parts of tables that a snapshot is asked for: conditions, given types and printed again, and lists of keys.
//!
//! Invariant: of a condition, only what is printed from its typed tree leaves the gateway, and of keys, only such as PostgreSQL
//! reads as values of the key's columns. What is refused says where, and what to do.

mod error;

use std::collections::BTreeMap;

use tidegate_model::{Part, Parts, TableName};
use tidegate_proto::v1::{SnapshotKey, SnapshotKeys, SnapshotPart, snapshot_part::Rows};
use tidegate_views::Predicate;

use crate::{
    snapshots::{Described, MalformedKey},
    source::Source,
    status::GatewayError,
};
pub(crate) use error::PartError;

/// Keys of one request.
const KEYS_MAX: usize = 10_000;
/// Bytes of the values of the keys of one request.
pub(crate) const KEY_BYTES_MAX: usize = 1 << 20;

/// The names of the tables that parts are asked of, each once.
pub(crate) fn part_tables(requested: &[SnapshotPart]) -> Result<Vec<TableName>, GatewayError> {
    let mut tables: Vec<TableName> = Vec::with_capacity(requested.len());
    for part in requested {
        let table: TableName = part.table.parse()?;
        if tables.contains(&table) {
            return Err(refused(table, PartError::Twice));
        }
        tables.push(table);
    }
    Ok(tables)
}

/// The parts, checked against the tables as they are.
pub(crate) async fn parts(source: &Source, requested: Vec<SnapshotPart>) -> Result<Parts, GatewayError> {
    check_size(&requested)?;
    let mut parts = BTreeMap::new();
    for SnapshotPart { table, rows } in requested {
        let table: TableName = table.parse()?;
        let refuse = |error| refused(table.clone(), error);
        let rows = rows.ok_or_else(|| refuse(PartError::Empty))?;
        let Described { facts, key, .. } = source.handle.snapshots.describe(table.clone()).await?;
        if key.is_empty() {
            return Err(refuse(PartError::Keyless));
        }
        let part = match rows {
            Rows::Where(text) => {
                let predicate =
                    Predicate::new(&text, &[], &facts).map_err(|error| refuse(PartError::Condition(error)))?;
                Part::Where(predicate.sql().to_owned())
            }
            Rows::Keys(keys) => {
                let keys = ordered(keys, &key).map_err(refuse)?;
                if let Some(at) = source.handle.snapshots.malformed_key(table.clone(), keys.clone()).await? {
                    return Err(refuse(malformed(at, &keys, &key)));
                }
                Part::Keys(keys)
            }
        };
        parts.insert(table, part);
    }
    Ok(parts)
}

fn check_size(requested: &[SnapshotPart]) -> Result<(), GatewayError> {
    let keys =
        || requested.iter().filter_map(|part| part.rows.as_ref()).filter_map(keys_of).flat_map(|keys| &keys.keys);
    let bytes = keys().flat_map(|key| &key.values).map(String::len).sum::<usize>();
    let too_many = |what, count, limit| Err(GatewayError::TooMany { what, count, limit, field: "parts" });
    match keys().count() {
        count if count > KEYS_MAX => too_many("keys", count, KEYS_MAX),
        _few if bytes > KEY_BYTES_MAX => too_many("bytes of keys", bytes, KEY_BYTES_MAX),
        _few => Ok(()),
    }
}

fn keys_of(rows: &Rows) -> Option<&SnapshotKeys> {
    match rows {
        Rows::Keys(keys) => Some(keys),
        Rows::Where(_) => None,
    }
}

/// The values of each key in the order of the table's key.
fn ordered(keys: SnapshotKeys, key: &[String]) -> Result<Vec<Vec<String>>, PartError> {
    let SnapshotKeys { columns, keys } = keys;
    let columns = if columns.is_empty() { key.to_vec() } else { columns };
    let place = |column: &String| columns.iter().position(|given| given == column);
    let places = key.iter().map(place).collect::<Option<Vec<_>>>().filter(|_| columns.len() == key.len());
    let Some(places) = places else { return Err(PartError::Columns { key: key.to_vec(), given: columns }) };
    if keys.is_empty() {
        return Err(PartError::NoKeys);
    }
    let order = |(at, SnapshotKey { mut values }): (usize, SnapshotKey)| {
        if values.len() != key.len() {
            return Err(PartError::Width { number: at + 1, count: values.len(), key: key.to_vec() });
        }
        Ok(places.iter().map(|&place| std::mem::take(&mut values[place])).collect())
    };
    keys.into_iter().enumerate().map(order).collect()
}

fn malformed(at: MalformedKey, keys: &[Vec<String>], key: &[String]) -> PartError {
    let value = keys.get(at.key).and_then(|values| values.get(at.column));
    let value: String = value.into_iter().flat_map(|value| value.chars()).take(100).collect();
    PartError::Value { number: at.key + 1, column: key.get(at.column).cloned().unwrap_or_default(), value }
}

fn refused(table: TableName, error: PartError) -> GatewayError {
    GatewayError::Part { table, error: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(columns: &[&str], keys: &[&[&str]]) -> SnapshotKeys {
        let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let keys = keys.iter().map(|values| SnapshotKey { values: text(values) }).collect();
        SnapshotKeys { columns: text(columns), keys }
    }

    fn in_order(given: SnapshotKeys) -> Result<Vec<Vec<String>>, String> {
        ordered(given, &["a".to_owned(), "b".to_owned()]).map_err(|error| error.to_string())
    }

    #[test]
    fn values_come_in_the_order_of_the_key() {
        let expected = Ok(vec![vec!["1".to_owned(), "x".to_owned()]]);
        assert_eq!(in_order(keys(&[], &[&["1", "x"]])), expected);
        assert_eq!(in_order(keys(&["b", "a"], &[&["x", "1"]])), expected);
    }

    #[test]
    fn what_does_not_fit_the_key_is_refused() {
        for columns in [&["a"][..], &["a", "a"], &["a", "b", "c"]] {
            let named = columns.join(", ");
            let expected = format!("the key's columns are a, b, and not {named}; name all of them, in any order");
            assert_eq!(in_order(keys(columns, &[&["1", "2", "3"][..columns.len()]])), Err(expected));
        }
        for (given, expected) in [
            (keys(&[], &[&["1", "2"], &["3"]]), "key 2 is to have a value for each of a, b; it has 1"),
            (keys(&[], &[]), "the list of keys is empty; give at least one key, or read the whole table"),
        ] {
            assert_eq!(in_order(given), Err(expected.to_owned()));
        }
    }

    #[test]
    fn a_request_is_bounded() {
        let part = |keys: SnapshotKeys| SnapshotPart { table: "t".to_owned(), rows: Some(Rows::Keys(keys)) };
        let many: Vec<&[&str]> = vec![&["1"]; KEYS_MAX + 1];
        assert!(matches!(check_size(&[part(keys(&[], &many))]), Err(GatewayError::TooMany { what: "keys", .. })));
        let long = "x".repeat(KEY_BYTES_MAX / 2 + 1);
        let long = part(keys(&[], &[&[long.as_str()]]));
        assert!(check_size(std::slice::from_ref(&long)).is_ok());
        let refused = check_size(&[long.clone(), long]);
        assert!(matches!(refused, Err(GatewayError::TooMany { what: "bytes of keys", .. })));
    }
}
