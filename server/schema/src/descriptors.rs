//! All row types as one descriptor pool, for reflection and for printing rows as JSON.
//!
//! A table has one message however often it has changed: the newest row type decides, and fields that it no longer has
//! stay defined, so that older rows still print. A field that has given its name to a newer one gets its number
//! appended.
//!
//! A pool cannot replace a file, so that a change means building a new pool and swapping it.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use prost::Message;
use prost_reflect::DescriptorPool;
use tidegate_proto::v1;

use crate::SchemaError;
use crate::descriptor::{FieldProto, FileProto};
use crate::name::FieldNames;
use crate::row_type::file_of;

/// The API's own files, which the rows' files import.
static API: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(tidegate_proto::DESCRIPTOR_SET).expect("the descriptor set was compiled with this program")
});

/// The API's and all row types' descriptors.
#[derive(Clone, Debug)]
pub struct Descriptors {
    pool: DescriptorPool,
}

/// `google.protobuf.FileDescriptorSet`
#[derive(Clone, PartialEq, Message)]
struct FileSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<FileProto>,
}

impl Descriptors {
    /// Builds the pool from the row types of any number of sources, in any order. Of a table's row types, the one with
    /// the highest number is the newest.
    ///
    /// # Errors
    /// A row type's descriptor is damaged or contradicts another.
    pub fn build<'a>(row_types: impl Iterator<Item = &'a v1::RowType>) -> Result<Self, SchemaError> {
        let mut by_message: BTreeMap<&str, Vec<&v1::RowType>> = BTreeMap::new();
        for row_type in row_types {
            by_message.entry(&row_type.message).or_default().push(row_type);
        }
        let mut set = FileSet::default();
        for mut versions in by_message.into_values() {
            versions.sort_unstable_by_key(|row_type| std::cmp::Reverse(row_type.row_type));
            set.file.extend(merged(&versions)?);
        }
        let mut pool = API.clone();
        pool.decode_file_descriptor_set(&set.encode_to_vec()[..])?;
        Ok(Descriptors { pool })
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &DescriptorPool {
        &self.pool
    }
}

/// The file of the newest of a message's row types, with the fields of the others. None for no row types.
fn merged(newest_first: &[&v1::RowType]) -> Result<Option<FileProto>, SchemaError> {
    let Some((newest, older)) = newest_first.split_first() else { return Ok(None) };
    let mut file = file_of(newest)?;
    let Some(message) = file.message_type.first_mut() else { return Ok(Some(file)) };
    let mut names = FieldNames::default();
    let mut numbers = HashSet::new();
    for field in &message.field {
        names.take(field.name());
        names.take_json(field.json_name());
        numbers.insert(field.number());
    }
    for row_type in older {
        let fields = file_of(row_type)?.message_type.into_iter().flat_map(|message| message.field);
        for field in fields {
            // A number is never given to another column or type: the newest definition stands for all.
            if numbers.insert(field.number()) {
                message.push(renamed(field, &mut names));
            }
        }
    }
    Ok(Some(file))
}

/// The field with names that are free.
fn renamed(mut field: FieldProto, names: &mut FieldNames) -> FieldProto {
    let number = field.number();
    field.name = Some(names.field(field.name(), number));
    field.json_name = Some(names.json(field.json_name(), number));
    field.oneof_index = None;
    field
}
