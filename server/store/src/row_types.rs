//! The row types of the current epoch, in memory and in the file `row_types`.
//!
//! ```text
//! file    "TGRT" | version u32 | groups
//! group   length u32 | CRC-32 u32 | length-delimited tidegate.v1.RowType with the fields of `Announced`, one or more
//! ```
//!
//! Invariant: a row type is in the file, fsynced, before a block that uses it is in the log. A group is fsynced before the
//! next is written, so that a crash can tear only the last one. It deliberately outlives the retention: row types of
//! trimmed segments stay, since newer rows may use them.
//!
//! So the file may be ahead of the log. Where recovery has cut an announcement off, the table has not come to that row type: it is not
//! among the table's, and the file says so, until it is announced again. Its number stays taken: rows of it may have been delivered.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Buf;
use prost::Message;
use tidegate_model::{Block, Kind, Lsn, Position, TableName};
use tidegate_proto::v1;
use tidegate_schema::{RowType, same_rows};

use crate::{
    StoreError,
    layout::{self, cannot, unsynced},
};

const MAGIC: &[u8; 4] = b"TGRT";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8;
const GROUP_HEAD_BYTES: usize = 8;

/// Where a row type is announced: fields that a RowType does not have. A file without them says only that it was announced.
#[derive(Clone, Copy, PartialEq, Message)]
struct Announced {
    #[prost(uint64, tag = "1000")]
    lsn: u64,
    #[prost(uint32, tag = "1001")]
    ordinal: u32,
}

impl Announced {
    /// By no record that is left.
    const NOWHERE: Announced = Announced { lsn: u64::MAX, ordinal: u32::MAX };

    fn at(Position { lsn, ordinal }: Position) -> Self {
        Announced { lsn: lsn.0, ordinal }
    }

    fn is_behind(self, complete: Position) -> bool {
        Position::new(Lsn(self.lsn), self.ordinal) > complete
    }
}

/// Every row type that the current epoch has announced.
#[derive(Clone, Debug, Default)]
pub struct RowTypes {
    by_id: HashMap<u32, Arc<RowType>>,
    newest: HashMap<TableName, Arc<RowType>>,
    /// Their announcements were cut off, and have not come again.
    unannounced: HashMap<u32, Arc<RowType>>,
}

impl RowTypes {
    /// The row type of that number.
    #[must_use]
    pub fn get(&self, row_type: u32) -> Option<&Arc<RowType>> {
        self.by_id.get(&row_type)
    }

    /// The row type that was announced last for the table.
    #[must_use]
    pub fn newest(&self, table: &TableName) -> Option<&Arc<RowType>> {
        self.newest.get(table)
    }

    /// The newest row type of each table, in no order.
    pub fn tables(&self) -> impl Iterator<Item = (&TableName, &Arc<RowType>)> {
        self.newest.iter()
    }

    /// Every row type, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<RowType>> {
        self.by_id.values()
    }

    /// Those whose announcement a crash has cut off: their numbers are taken, but as far as the log tells, no table has had them.
    pub fn unannounced(&self) -> impl Iterator<Item = &Arc<RowType>> {
        self.unannounced.values()
    }

    /// Whose number it is, announced or not.
    fn numbered(&self, row_type: u32) -> Option<&Arc<RowType>> {
        self.get(row_type).or_else(|| self.unannounced.get(&row_type))
    }

    fn is_newest(&self, row_type: &RowType) -> bool {
        self.newest(row_type.name()).is_some_and(|newest| newest.proto().row_type == row_type.proto().row_type)
    }

    pub(crate) fn insert(&mut self, row_type: RowType) {
        let row_type = Arc::new(row_type);
        self.unannounced.remove(&row_type.proto().row_type);
        self.newest.insert(row_type.name().clone(), Arc::clone(&row_type));
        self.by_id.insert(row_type.proto().row_type, row_type);
    }
}

/// The file and what it holds.
#[derive(Debug)]
pub(crate) struct RowTypesFile {
    path: PathBuf,
    file: File,
    byte_count: u64,
    known: Arc<RowTypes>,
}

impl RowTypesFile {
    /// Makes an empty file in the directory of a new epoch.
    pub(crate) fn create(epoch_dir: &Path) -> Result<Self, StoreError> {
        let path = epoch_dir.join("row_types");
        let header = [*MAGIC, VERSION.to_le_bytes()].concat();
        let write = || {
            let file = File::create_new(&path)?;
            file.write_all_at(&header, 0)?;
            file.sync_all().map(|()| file)
        };
        let file = write().map_err(cannot("create", &path))?;
        Ok(RowTypesFile { path, file, byte_count: HEADER_BYTES as u64, known: Arc::default() })
    }

    /// Reads the file, and cuts a group that a crash has torn. The log holds all up to `complete`, and nothing behind it.
    pub(crate) fn open(epoch_dir: &Path, complete: Position) -> Result<Self, StoreError> {
        let path = epoch_dir.join("row_types");
        let bytes = fs::read(&path).map_err(cannot("read", &path))?;
        let damaged = |at: usize, reason| StoreError::Damaged { path: path.clone(), offset: at as u64, reason };
        match bytes.strip_prefix(MAGIC) {
            Some(mut rest) if rest.len() >= 4 => match rest.get_u32_le() {
                VERSION => {}
                found => return Err(StoreError::Version { path, found, known: VERSION }),
            },
            Some(_) | None => return Err(damaged(0, "it does not start as a file of row types does")),
        }
        let (mut at, mut records, mut known) = (HEADER_BYTES, Vec::new(), RowTypes::default());
        while at < bytes.len() {
            match read_group(&bytes[at..]) {
                Group::Good { row_types, byte_count } => {
                    for (proto, announced) in row_types {
                        let unusable = |_| damaged(at, "a row type that cannot be used");
                        let row_type = RowType::new(proto.clone()).map_err(unusable)?;
                        if announced.is_behind(complete) {
                            known.unannounced.insert(proto.row_type, Arc::new(row_type));
                        } else {
                            known.insert(row_type);
                        }
                        records.push((proto, announced));
                    }
                    at += byte_count;
                }
                Group::Torn => break,
                Group::Bad => return Err(damaged(at, "checksum")),
            }
        }
        known.unannounced.retain(|number, _| !known.by_id.contains_key(number));
        let was_cut =
            |(_, announced): &(_, Announced)| *announced != Announced::NOWHERE && announced.is_behind(complete);
        if records.iter().any(was_cut) {
            at = rewrite(epoch_dir, &records, complete)?;
        }
        let file = File::options().write(true).open(&path).map_err(cannot("open", &path))?;
        if at < bytes.len() {
            file.set_len(at as u64).and_then(|()| file.sync_all()).map_err(cannot("cut", &path))?;
        }
        Ok(RowTypesFile { path, file, byte_count: at as u64, known: Arc::new(known) })
    }

    /// What it holds.
    pub(crate) fn known(&self) -> &Arc<RowTypes> {
        &self.known
    }

    /// Adds the row types that the blocks announce, durably. After an error the file is as it was.
    ///
    /// A number that is announced again is news only where the table has had another since. For rows of another kind it is an error:
    /// those that are stored would be read as what they are not.
    pub(crate) fn add(&mut self, blocks: &[Block]) -> Result<(), StoreError> {
        let (mut group, mut known) = (new_group(), None);
        for (position, proto) in announced(blocks) {
            let proto = proto?;
            let table = known.get_or_insert_with(|| RowTypes::clone(&self.known));
            match table.numbered(proto.row_type) {
                Some(same) if *same.proto() == proto && table.is_newest(same) => continue,
                Some(stored) if !same_rows(stored.proto(), &proto) => {
                    let (row_type, stored) = (proto.row_type, stored.name().clone());
                    let found = TableName::new(proto.schema, proto.table);
                    return Err(StoreError::RowTypeReused { row_type, stored, found, position });
                }
                Some(_) | None => {}
            }
            put(&proto, Announced::at(position), &mut group);
            let unusable = |error| StoreError::Record { position, message: "RowType", reason: format!("{error}") };
            table.insert(RowType::new(proto).map_err(unusable)?);
        }
        let Some(known) = known.filter(|_| group.len() > GROUP_HEAD_BYTES) else { return Ok(()) };
        close(&mut group);
        if let Err(source) = self.file.write_all_at(&group, self.byte_count) {
            self.file.set_len(self.byte_count).map_err(cannot("cut", &self.path))?;
            return Err(cannot("append to", &self.path)(source));
        }
        self.file.sync_data().map_err(unsynced).map_err(cannot("sync", &self.path))?;
        self.byte_count += group.len() as u64;
        self.known = Arc::new(known);
        Ok(())
    }
}

/// Says in the file what the cut has taken; its length then. What was announced nowhere is not announced where the log comes to stand.
fn rewrite(epoch_dir: &Path, records: &[(v1::RowType, Announced)], complete: Position) -> Result<usize, StoreError> {
    let mut group = new_group();
    for (proto, announced) in records {
        let announced = if announced.is_behind(complete) { Announced::NOWHERE } else { *announced };
        put(proto, announced, &mut group);
    }
    close(&mut group);
    let bytes = [&MAGIC[..], &VERSION.to_le_bytes(), &group].concat();
    layout::replace(epoch_dir, "row_types", &bytes)?;
    Ok(bytes.len())
}

fn new_group() -> Vec<u8> {
    vec![0; GROUP_HEAD_BYTES]
}

fn put(proto: &v1::RowType, announced: Announced, group: &mut Vec<u8>) {
    let length = proto.encoded_len() + announced.encoded_len();
    let written = prost::encode_length_delimiter(length, group)
        .and_then(|()| proto.encode(group))
        .and_then(|()| announced.encode(group));
    written.expect("a vector grows");
}

fn close(group: &mut [u8]) {
    let length = u32::try_from(group.len() - GROUP_HEAD_BYTES).expect("row types are far below 4 GiB");
    let checksum = crc32fast::hash(&group[GROUP_HEAD_BYTES..]);
    group[..4].copy_from_slice(&length.to_le_bytes());
    group[4..GROUP_HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// The row types that the blocks announce, in order.
fn announced(blocks: &[Block]) -> impl Iterator<Item = (Position, Result<v1::RowType, StoreError>)> {
    blocks.iter().flat_map(|block| {
        block.entries().iter().filter(|entry| entry.kind == Kind::RowType).map(|entry| {
            let position = entry.position();
            let malformed = |error: prost::DecodeError| {
                let reason = error.to_string();
                StoreError::Record { position, message: "RowType", reason }
            };
            (position, v1::RowType::decode(block.slice(entry)).map_err(malformed))
        })
    })
}

enum Group {
    Good { row_types: Vec<(v1::RowType, Announced)>, byte_count: usize },
    Torn,
    Bad,
}

/// A torn group ends where the file ends, or its head has not reached the disk and reads as zeros.
fn read_group(mut bytes: &[u8]) -> Group {
    if bytes.len() < GROUP_HEAD_BYTES {
        return Group::Torn;
    }
    let (length, checksum) = (bytes.get_u32_le() as usize, bytes.get_u32_le());
    if length == 0 || length > bytes.len() {
        return Group::Torn;
    }
    let mut body = &bytes[..length];
    if crc32fast::hash(body) != checksum {
        return if length == bytes.len() { Group::Torn } else { Group::Bad };
    }
    let mut row_types = Vec::new();
    while body.has_remaining() {
        let Some(record) = record(&mut body) else { return Group::Bad };
        match (v1::RowType::decode(record), Announced::decode(record)) {
            (Ok(row_type), Ok(announced)) => row_types.push((row_type, announced)),
            (Err(_), _) | (_, Err(_)) => return Group::Bad,
        }
    }
    Group::Good { row_types, byte_count: GROUP_HEAD_BYTES + length }
}

fn record<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = prost::decode_length_delimiter(&mut *body).ok()?;
    body.split_off(..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(groups: &[&[u8]]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = [*MAGIC, VERSION.to_le_bytes()].concat();
        for group in groups {
            bytes.extend_from_slice(group);
        }
        fs::write(dir.path().join("row_types"), bytes).unwrap();
        dir
    }

    #[test]
    fn a_torn_group_is_cut_and_a_damaged_one_is_an_error() {
        let torn: [&[u8]; 4] = [&[5], &[0; 20], &[3, 0, 0, 0, 9, 9, 9, 9, 1, 2, 3], &[200, 0, 0, 0, 9, 9, 9, 9, 1]];
        for group in torn {
            let dir = file(&[group]);
            assert_eq!(
                RowTypesFile::open(dir.path(), Position::ZERO).unwrap().byte_count,
                HEADER_BYTES as u64,
                "{group:?}"
            );
            assert_eq!(fs::metadata(dir.path().join("row_types")).unwrap().len(), HEADER_BYTES as u64);
        }
        let followed = file(&[&[3, 0, 0, 0, 9, 9, 9, 9, 1, 2, 3], &[1, 0, 0, 0]]);
        assert!(matches!(
            RowTypesFile::open(followed.path(), Position::ZERO),
            Err(StoreError::Damaged { offset: 8, .. })
        ));
    }

    #[test]
    fn another_format_is_refused() {
        let dir = file(&[]);
        let path = dir.path().join("row_types");
        fs::write(&path, [*MAGIC, 2_u32.to_le_bytes()].concat()).unwrap();
        assert!(matches!(
            RowTypesFile::open(dir.path(), Position::ZERO),
            Err(StoreError::Version { found: 2, known: 1, .. })
        ));
        fs::write(&path, b"else").unwrap();
        assert!(matches!(RowTypesFile::open(dir.path(), Position::ZERO), Err(StoreError::Damaged { offset: 0, .. })));
    }
}
