//! A digest of the rows that are held, which a server compares with its own to send what differs, as `tidegate.v1.Holds` defines it. Pure.
//!
//! Rows are divided into buckets by a salted hash of their keys. Which of them the server's answer leaves in place is known by the same
//! hash, so nothing is kept meanwhile but the salt.

use std::{collections::HashMap, sync::Arc};

use sha2::{Digest, Sha256};
use tidegate_proto::v1;

use crate::{RowError, RowType, ShapeRow, ShapeRows, shape_rows::fields};

const SALT_BYTES: usize = 16;
/// Rows of a bucket, about: so many come again where one of them has changed.
const BUCKET_ROWS: usize = 8;
/// As many as a server takes.
const BUCKETS_MAX: usize = 1 << 16;

/// How rows are divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buckets {
    salt: [u8; SALT_BYTES],
    count: usize,
}

impl Buckets {
    /// For these rows. The salt is random, another each time. None where there is nothing to compare: no rows, or rows without a key.
    pub(crate) fn new(rows: &ShapeRows, salt: [u8; SALT_BYTES]) -> Option<Self> {
        let first = rows.iter().next()?;
        let count = (rows.len() / BUCKET_ROWS).next_power_of_two().min(BUCKETS_MAX);
        (!first.row_type().is_keyless()).then_some(Buckets { salt, count })
    }

    /// What the server is told of the rows.
    ///
    /// # Errors
    /// A row is malformed.
    pub(crate) fn holds(&self, rows: &ShapeRows) -> Result<v1::Holds, RowError> {
        let mut heads: HashMap<*const RowType, [u8; 40]> = HashMap::new();
        let mut digests = vec![0_u64; self.count];
        for (key, row) in rows.by_key() {
            let head = heads.entry(Arc::as_ptr(row.row_type())).or_insert_with(|| head(row.row_type().proto()));
            let digest = &mut digests[self.of(key)];
            *digest = digest.wrapping_add(self.row(head, &ascending(row)?));
        }
        let digests: Vec<u8> = digests.into_iter().flat_map(u64::to_le_bytes).collect();
        Ok(v1::Holds { selection: 0, salt: self.salt.to_vec().into(), digests: digests.into() })
    }

    /// The rows that a snapshot does not replace.
    pub(crate) fn kept(&self, rows: &ShapeRows, difference: &v1::Difference) -> ShapeRows {
        let is_kept = |bucket: usize| {
            let bits = difference.replaced.get(bucket / 8);
            bits.is_some_and(|bits| bits & (1 << (bucket % 8)) == 0)
        };
        rows.with(|key| is_kept(self.of(key)))
    }

    fn of(&self, key: &[u8]) -> usize {
        let bucket = number(Sha256::new().chain_update(self.salt).chain_update(key)) % self.count as u64;
        usize::try_from(bucket).expect("below the number of buckets")
    }

    fn row(&self, head: &[u8; 40], row: &[u8]) -> u64 {
        number(Sha256::new().chain_update(self.salt).chain_update(head).chain_update(row))
    }
}

fn number(hasher: Sha256) -> u64 {
    let hash: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// What stands before the rows of a row type.
fn head(row_type: &v1::RowType) -> [u8; 40] {
    let mut head = [0; 40];
    head[..4].copy_from_slice(&row_type.row_type.to_le_bytes());
    head[4..8].copy_from_slice(&row_type.table_oid.to_le_bytes());
    head[8..].copy_from_slice(&Sha256::digest(&row_type.file));
    head
}

/// The row with its fields in ascending order; those that belong to one stay in theirs.
fn ascending(row: &ShapeRow) -> Result<Vec<u8>, RowError> {
    let mut fields = fields(row.row_type(), row.bytes())?;
    fields.sort_by_key(|(field, _)| *field);
    Ok(fields.into_iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;

    const GOLDEN: &str = include_str!("../../../proto/golden/holds.json");

    fn bytes(hex: &Value) -> Bytes {
        let hex = hex.as_str().expect("a text");
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    fn small(value: &Value) -> u32 {
        u32::try_from(value.as_u64().expect("a number")).expect("a small one")
    }

    fn row_types(golden: &Value) -> HashMap<u32, Arc<RowType>> {
        let row_type = |of: &Value| {
            let key = |field: &Value| v1::Column { field: small(field), key: true, ..v1::Column::default() };
            let proto = v1::RowType {
                row_type: small(&of["row_type"]),
                table_oid: small(&of["table_oid"]),
                file: bytes(&of["file"]),
                columns: of["key_fields"].as_array().expect("a list").iter().map(key).collect(),
                ..v1::RowType::default()
            };
            (proto.row_type, Arc::new(RowType::from(proto)))
        };
        golden["row_types"].as_array().expect("a list").iter().map(row_type).collect()
    }

    fn golden() -> (Value, Buckets, ShapeRows) {
        let golden: Value = serde_json::from_str(GOLDEN).expect("JSON");
        let salt = bytes(&golden["salt"])[..].try_into().expect("16 bytes");
        let buckets = Buckets { salt, count: small(&golden["bucket_count"]) as usize };
        let row_types = row_types(&golden);
        let rows = golden["rows"].as_array().expect("a list").iter();
        let rows = rows.map(|row| ShapeRow::new(row_types[&small(&row["row_type"])].clone(), bytes(&row["row"])));
        let rows = ShapeRows::of(rows).expect("rows");
        (golden, buckets, rows)
    }

    #[test]
    fn digests_are_those_that_the_server_computes() {
        let (golden, buckets, rows) = golden();
        for row in golden["rows"].as_array().expect("a list") {
            let key = bytes(&row["key"]);
            let (_, held) = rows.by_key().find(|(of, _)| **of == key).expect("a row by its key");
            assert_eq!(buckets.of(&key), small(&row["bucket"]) as usize);
            let digest = buckets.row(&head(held.row_type().proto()), &ascending(held).expect("a row"));
            assert_eq!(digest.to_le_bytes()[..], bytes(&row["digest"]));
        }
        let holds = buckets.holds(&rows).expect("rows");
        assert_eq!((holds.salt, holds.digests), (bytes(&golden["salt"]), bytes(&golden["digests"])));
    }

    #[test]
    fn rows_of_buckets_that_are_replaced_are_not_kept() {
        let (golden, buckets, rows) = golden();
        let kept = |replaced: &'static [u8]| {
            let difference = v1::Difference { selection: 0, replaced: Bytes::from_static(replaced) };
            buckets.kept(&rows, &difference).by_key().map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[0]).len(), rows.len());
        assert!(kept(&[0b1111]).is_empty() && kept(&[]).is_empty());
        let mut others: Vec<Bytes> = Vec::new();
        for row in golden["rows"].as_array().expect("a list") {
            if !matches!(small(&row["bucket"]), 1 | 3) {
                others.push(bytes(&row["key"]));
            }
        }
        others.sort_unstable();
        assert_eq!(kept(&[0b1010]), others);
    }

    #[test]
    fn there_is_a_bucket_for_a_few_rows_and_a_limit() {
        let (_, _, rows) = golden();
        let buckets = Buckets::new(&rows, [0; SALT_BYTES]).expect("there are rows");
        assert_eq!(buckets.count, 1);
        assert!(Buckets::new(&ShapeRows::default(), [0; SALT_BYTES]).is_none());
    }
}
