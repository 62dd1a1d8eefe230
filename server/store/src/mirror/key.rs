//! What the engine's keys and row values look like.
//!
//! ```text
//! 00                                   About: version, position, undo number
//! 01 oid                               Table
//! 02 snapshot                          Pass: a snapshot that runs
//! 03 index                             Index
//! 04 prefix                            what starts so is to be removed
//! 05 number key                        undo: what the key held at the position
//! 06 oid                               the table has rows of older generations to be removed
//! 07 oid                               the last life of a table that is no longer known, and whether subscribers have its rows
//! 08                                   the next index's number
//! 09                                   the tables that are to be mirrored, as the configuration says
//! 10 oid life rowkey                   row: generation, row type, missing fields, row bytes
//! 11 index life value rowkey           index entry, empty
//! ```
//!
//! Rows and entries lie in a keyspace of their own. Integers are big endian. A TRUNCATE begins another *life* of the table, under
//! another prefix, so that it costs nothing. A rowkey is the key's fields of the encoded row, in column order, with numbers written
//! so that they ascend as PostgreSQL reads them; the engine's keys are limited to 64 KiB, so one that is too long (a compressible
//! text may be) is held as its beginning and SHA-256. An index's value is held likewise.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tidegate_schema::wire::{Fields, WireType, read_varint};

use super::error::{MirrorError, Result};

pub(crate) const ABOUT: &[u8] = &[0x00];
pub(crate) const TABLE: u8 = 0x01;
pub(crate) const PASS: u8 = 0x02;
pub(crate) const INDEX: u8 = 0x03;
pub(crate) const DEAD: u8 = 0x04;
pub(crate) const UNDO: u8 = 0x05;
pub(crate) const STALE: u8 = 0x06;
pub(crate) const LIFE: u8 = 0x07;
pub(crate) const INDEX_NEXT: &[u8] = &[0x08];
pub(crate) const PATTERNS: &[u8] = &[0x09];
const ROW: u8 = 0x10;
const ENTRY: u8 = 0x11;

/// Is it the key of a row or an entry, or the beginning of one?
pub(crate) fn is_of_rows(key: &[u8]) -> bool {
    key.first().is_some_and(|tag| *tag >= ROW)
}

/// Longer keys and values are hashed.
const INLINE_MAX: usize = 2048;
/// Marks a hashed value where others have their length.
const HASHED: u16 = u16::MAX;

/// A number as a value.
pub(crate) fn value(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// Reads it.
pub(crate) fn read_value(bytes: &[u8]) -> Result<u32> {
    <[u8; 4]>::try_from(bytes).map(u32::from_be_bytes).map_err(|_| MirrorError::Damaged("a short value"))
}

/// The last life of a table that is forgotten, and whether subscribers have its rows, as a value.
pub(crate) fn last_life(life: u32, is_told: bool) -> Bytes {
    if is_told { joined(&life.to_be_bytes(), &[1]) } else { value(life) }
}

/// Reads it.
pub(crate) fn read_last_life(bytes: &[u8]) -> Result<(u32, bool)> {
    let (life, is_told) = bytes.split_at(bytes.len().min(4));
    Ok((read_value(life)?, !is_told.is_empty()))
}

/// A key of one number.
pub(crate) fn numbered(tag: u8, number: u32) -> Bytes {
    let mut key = BytesMut::with_capacity(5);
    key.put_u8(tag);
    key.put_u32(number);
    key.freeze()
}

/// The number of such a key.
pub(crate) fn number(key: &[u8]) -> Result<u32> {
    let bytes = key.get(1..5).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    bytes.map(u32::from_be_bytes).ok_or(MirrorError::Damaged("a short key"))
}

pub(crate) fn undo_prefix(undo: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(UNDO);
    key.put_u64(undo);
    key.freeze()
}

pub(crate) fn joined(prefix: &[u8], rest: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(prefix.len() + rest.len());
    key.extend_from_slice(prefix);
    key.extend_from_slice(rest);
    key.freeze()
}

/// What removes everything that starts with the prefix.
pub(crate) fn dead(prefix: &[u8]) -> Bytes {
    joined(&[DEAD], prefix)
}

fn lived(tag: u8, number: u32, life: u32) -> BytesMut {
    let mut key = BytesMut::with_capacity(64);
    key.put_u8(tag);
    key.put_u32(number);
    key.put_u32(life);
    key
}

/// All rows of a life of a table.
pub(crate) fn rows(oid: u32, life: u32) -> Bytes {
    lived(ROW, oid, life).freeze()
}

/// A row, by its key's fields.
pub(crate) fn row(oid: u32, life: u32, row_key: &[u8]) -> Bytes {
    let mut key = lived(ROW, oid, life);
    if row_key.len() <= INLINE_MAX {
        key.put_u8(0);
        put_ascending(&mut key, row_key);
    } else {
        key.put_u8(1);
        key.extend_from_slice(&row_key[..64]);
        key.extend_from_slice(&Sha256::digest(row_key));
    }
    key.freeze()
}

/// The fields of a key, with numbers so that larger ones stand behind smaller ones, as negative ones do: how many bytes, and these,
/// big endian. What is no field stays as it is.
fn put_ascending(key: &mut BytesMut, row_key: &[u8]) {
    let mut rest = row_key;
    for field in Fields::new(row_key).map_while(std::result::Result::ok) {
        rest = &rest[field.whole.len()..];
        let number = read_varint(field.value).ok().filter(|_| field.wire_type == WireType::Varint);
        let Some((number, len)) = number else {
            key.extend_from_slice(field.whole);
            continue;
        };
        key.extend_from_slice(&field.whole[..field.whole.len() - len]);
        let bytes = number.to_be_bytes();
        let digits = &bytes[number.leading_zeros() as usize / 8..];
        key.put_u8(digits.len() as u8);
        key.extend_from_slice(digits);
    }
    key.extend_from_slice(rest);
}

/// All entries of an index.
pub(crate) fn entries(index: u32, life: u32) -> Bytes {
    lived(ENTRY, index, life).freeze()
}

/// The entries of an index for a value.
pub(crate) fn entries_of(index: u32, life: u32, value: &[u8]) -> Bytes {
    let mut key = lived(ENTRY, index, life);
    if value.len() <= INLINE_MAX {
        key.put_u16(value.len() as u16);
        key.extend_from_slice(value);
    } else {
        key.put_u16(HASHED);
        key.extend_from_slice(&Sha256::digest(value));
    }
    key.freeze()
}

/// The entry of an index for a row; `row` is the row's key in the engine.
pub(crate) fn entry((index, life): (u32, u32), value: &[u8], row: &[u8]) -> Bytes {
    joined(&entries_of(index, life, value), &row[9..])
}

/// The key in the engine of the row that an entry of `prefix` is for.
pub(crate) fn row_of_entry(entry: &[u8], prefix: &[u8], (oid, life): (u32, u32)) -> Bytes {
    joined(&rows(oid, life), &entry[prefix.len()..])
}

/// A row as the engine holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredRow {
    /// The pass that has confirmed it last.
    pub(crate) generation: u32,
    pub(crate) row_type: u32,
    /// Fields whose values never came: unchanged in an update of a row that was not known. Ascending.
    pub(crate) missing: Vec<u32>,
    pub(crate) row: Bytes,
}

impl StoredRow {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(10 + 4 * self.missing.len() + self.row.len());
        out.put_u32(self.generation);
        out.put_u32(self.row_type);
        out.put_u16(u16::try_from(self.missing.len()).expect("a table has at most 1,600 columns"));
        self.missing.iter().for_each(|field| out.put_u32(*field));
        out.extend_from_slice(&self.row);
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self> {
        let short = || MirrorError::Damaged("a short row");
        if bytes.len() < 10 {
            return Err(short());
        }
        let (generation, row_type, count) = (bytes.get_u32(), bytes.get_u32(), usize::from(bytes.get_u16()));
        if bytes.len() < 4 * count {
            return Err(short());
        }
        let missing = (0..count).map(|_| bytes.get_u32()).collect();
        Ok(StoredRow { generation, row_type, missing, row: bytes })
    }
}

#[cfg(test)]
mod tests {
    use tidegate_schema::wire;

    use super::*;

    #[test]
    fn long_keys_and_values_stay_apart_and_within_the_engines_limit() {
        let long = |last: u8| [vec![7; 100_000], vec![last]].concat();
        assert_ne!(row(1, 1, &long(1)), row(1, 1, &long(2)));
        assert!(row(1, 1, &long(1)).len() < 200);
        let at = row(1, 1, &long(1));
        let (one, other) = (entry((3, 1), &long(1), &at), entry((3, 1), &long(2), &at));
        assert_ne!(one, other);
        assert!(one.len() < 300);
        let prefix = entries_of(3, 1, &long(1));
        assert_eq!(row_of_entry(&one, &prefix, (1, 1)), at);
    }

    #[test]
    fn numbers_in_keys_ascend_and_stay_apart() {
        let of = |number: i64| {
            let mut field = BytesMut::new();
            wire::put_varint_field(&mut field, 3, number as u64);
            field.extend_from_slice(b"\x0a\x01a");
            row(1, 1, &field)
        };
        let numbers = [0, 1, 127, 128, 129, 255, 256, 65_535, 65_536, 1 << 40, i64::MAX, i64::MIN, -200, -1];
        let keys: Vec<Bytes> = numbers.into_iter().map(of).collect();
        assert!(keys.is_sorted() && keys.windows(2).all(|pair| pair[0] != pair[1]), "{keys:?}");
        assert_ne!(row(1, 1, &[0xff]), row(1, 1, &[]));
    }

    #[test]
    fn a_row_is_read_back_and_a_short_one_refused() {
        let stored = StoredRow { generation: 3, row_type: 9, missing: vec![2, 5], row: Bytes::from_static(b"row") };
        let bytes = stored.encode();
        assert_eq!(StoredRow::decode(bytes.clone()).unwrap(), stored);
        for len in [0, 9, 12, 17] {
            assert!(StoredRow::decode(bytes.slice(..len)).is_err());
        }
    }
}
