//! The digests of rows, as `tidegate.v1.Holds` defines them. Pure.
//!
//! SHA-256 is in the standard library of every language that a client may be written in, and quick there; the salt makes its first 64 bits
//! enough, since nobody can look for rows that have the same.

use sha2::{Digest, Sha256};
use tidegate_proto::v1;
use tidegate_schema::wire::Fields;

use crate::projection::MalformedChange;

pub(super) const SALT_BYTES: usize = 16;

/// A client's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Salt([u8; SALT_BYTES]);

/// What stands before the rows of a row type.
pub(super) type Head = [u8; 40];

impl TryFrom<&[u8]> for Salt {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Salt)
    }
}

impl Salt {
    /// Of a key, in one of so many buckets.
    pub(super) fn bucket(&self, key: &[u8], bucket_count: usize) -> usize {
        (number(Sha256::new().chain_update(self.0).chain_update(key)) % bucket_count as u64) as usize
    }

    /// Of a row.
    pub(super) fn row(&self, head: &Head, row: &[u8]) -> u64 {
        number(Sha256::new().chain_update(self.0).chain_update(head).chain_update(row))
    }
}

fn number(hasher: Sha256) -> u64 {
    let hash: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]])
}

/// Of a row type.
pub(super) fn head(row_type: &v1::RowType) -> Head {
    let mut head = [0; 40];
    head[..4].copy_from_slice(&row_type.row_type.to_le_bytes());
    head[4..8].copy_from_slice(&row_type.table_oid.to_le_bytes());
    head[8..].copy_from_slice(&Sha256::digest(&row_type.file));
    head
}

/// The fields of a row that are kept, in ascending order of their numbers.
pub(super) fn ascending(row: &[u8], is_kept: impl Fn(u32) -> bool) -> Result<Vec<u8>, MalformedChange> {
    let mut fields = Fields::new(row).collect::<Result<Vec<_>, _>>()?;
    fields.retain(|field| is_kept(field.number));
    fields.sort_by_key(|field| field.number);
    Ok(fields.iter().flat_map(|field| field.whole).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../../../proto/golden/holds.json");

    fn bytes(hex: &serde_json::Value) -> Vec<u8> {
        let hex = hex.as_str().expect("a text");
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    fn number(value: &serde_json::Value) -> u32 {
        u32::try_from(value.as_u64().expect("a number")).expect("a small one")
    }

    #[test]
    fn digests_are_those_that_every_client_computes() {
        let golden: serde_json::Value = serde_json::from_str(GOLDEN).expect("JSON");
        let salt = Salt::try_from(&bytes(&golden["salt"])[..]).expect("16 bytes");
        let mut digests = vec![0_u64; number(&golden["bucket_count"]) as usize];
        let row_types = golden["row_types"].as_array().expect("a list");
        for row in golden["rows"].as_array().expect("a list") {
            let of = row_types.iter().find(|of| of["row_type"] == row["row_type"]).expect("a row type");
            let row_type = v1::RowType {
                row_type: number(&of["row_type"]),
                table_oid: number(&of["table_oid"]),
                file: bytes(&of["file"]).into(),
                ..v1::RowType::default()
            };
            let key_fields: Vec<u32> = of["key_fields"].as_array().expect("a list").iter().map(number).collect();
            let key = ascending(&bytes(&row["row"]), |field| key_fields.contains(&field)).expect("a row");
            assert_eq!(key, bytes(&row["key"]));
            let bucket = salt.bucket(&key, digests.len());
            assert_eq!(bucket, number(&row["bucket"]) as usize);
            let digest = salt.row(&head(&row_type), &ascending(&bytes(&row["row"]), |_| true).expect("a row"));
            assert_eq!(digest.to_le_bytes()[..], bytes(&row["digest"]));
            digests[bucket] = digests[bucket].wrapping_add(digest);
        }
        let digests: Vec<u8> = digests.into_iter().flat_map(u64::to_le_bytes).collect();
        assert_eq!(digests, bytes(&golden["digests"]));
    }
}
