//! How a table's rows are encoded, as the server describes it.
//!
//! Invariant: the description is compiled only when a row is read by reflection, and then once; programs with generated
//! messages never pay for it. Each row type has a descriptor pool of its own, so that two versions of a table never meet.

use std::sync::{LazyLock, OnceLock};

use bytes::Bytes;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage};
use serde_json::{Map, Value};
use tidegate_proto::v1;

use crate::{RowError, json};

pub use tidegate_proto::v1::{Column, ReplicaIdentity};

/// What a row's file may import.
const IMPORTS: [&str; 3] =
    ["google/protobuf/timestamp.proto", "google/protobuf/descriptor.proto", "tidegate/v1/value.proto"];

static BASE: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let set = prost_types::FileDescriptorSet::decode(tidegate_proto::DESCRIPTOR_SET).expect("made by our own build");
    let mut pool = DescriptorPool::new();
    let files = set.file.into_iter().filter(|file| IMPORTS.contains(&file.name()));
    let files = files.map(|file| prost_types::FileDescriptorProto { source_code_info: None, ..file });
    pool.add_file_descriptor_protos(files).expect("the files import only each other");
    pool
});

/// A table at one version of its columns.
#[derive(Debug)]
pub struct RowType {
    proto: v1::RowType,
    table_name: String,
    descriptor: OnceLock<Result<MessageDescriptor, RowError>>,
}

impl From<v1::RowType> for RowType {
    fn from(proto: v1::RowType) -> Self {
        let table_name = format!("{}.{}", quote_identifier(&proto.schema), quote_identifier(&proto.table));
        RowType { proto, table_name, descriptor: OnceLock::new() }
    }
}

impl RowType {
    /// The server's id for it, unique within the source, for ever.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.proto.row_type
    }

    /// Exact schema name.
    #[must_use]
    pub fn schema(&self) -> &str {
        &self.proto.schema
    }

    /// Exact table name.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.proto.table
    }

    /// `schema.table`, quoted where PostgreSQL would.
    #[must_use]
    pub fn table_name(&self) -> &str {
        &self.table_name
    }

    /// The row message's full name, such as `tidegate.rows.shop.public.orders`.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.proto.message
    }

    /// The columns that are sent, in the table's order.
    #[must_use]
    pub fn columns(&self) -> &[Column] {
        &self.proto.columns
    }

    /// Are its rows told apart by nothing, so that a program can only count them?
    #[must_use]
    pub fn is_keyless(&self) -> bool {
        self.columns().iter().all(|column| !column.key)
    }

    /// The column of that exact name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns().iter().find(|column| column.name == name)
    }

    /// How old rows are sent.
    #[must_use]
    pub fn replica_identity(&self) -> ReplicaIdentity {
        self.proto.replica_identity()
    }

    /// The description as it was received, with the file that defines the message.
    #[must_use]
    pub fn proto(&self) -> &v1::RowType {
        &self.proto
    }

    /// The row message's descriptor.
    ///
    /// # Errors
    /// The description is not usable.
    pub fn descriptor(&self) -> Result<&MessageDescriptor, RowError> {
        self.descriptor.get_or_init(|| self.compile()).as_ref().map_err(Clone::clone)
    }

    /// A row by reflection.
    ///
    /// # Errors
    /// The description is not usable, or the bytes are not such a row.
    pub fn dynamic(&self, row: &Bytes) -> Result<DynamicMessage, RowError> {
        let descriptor = self.descriptor()?.clone();
        DynamicMessage::decode(descriptor, row.clone())
            .map_err(|cause| RowError::Decode { message: self.proto.message.clone(), cause })
    }

    /// The columns for which `sent` holds, by exact name: NULL is null, one that was not sent is absent.
    ///
    /// # Errors
    /// A value that is not of its column's type.
    pub fn json(&self, row: &DynamicMessage, sent: impl Fn(&Column) -> bool) -> Result<Map<String, Value>, RowError> {
        let descriptor = row.descriptor();
        let value = |column: &Column| {
            let field = descriptor.get_field(column.field);
            let value = match field {
                Some(field) if row.has_field(&field) => json::value(&row.get_field(&field)),
                Some(_) => Some(Value::Null),
                None => None,
            };
            let malformed = || RowError::Value { message: self.proto.message.clone(), column: column.name.clone() };
            Ok((column.name.clone(), value.ok_or_else(malformed)?))
        };
        self.columns().iter().filter(|column| sent(column)).map(value).collect()
    }

    fn compile(&self) -> Result<MessageDescriptor, RowError> {
        let error = |detail: String| RowError::Descriptor { message: self.proto.message.clone(), detail };
        let mut pool = BASE.clone();
        pool.decode_file_descriptor_proto(self.proto.file.clone()).map_err(|cause| error(cause.to_string()))?;
        let missing = || error("the file does not define it".to_owned());
        pool.get_message_by_name(&self.proto.message).ok_or_else(missing)
    }
}

/// The identifier with double quotes where PostgreSQL needs them (PostgreSQL manual, section 4.1.1).
fn quote_identifier(name: &str) -> String {
    let plain = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::{orders, row};

    #[test]
    fn a_row_reads_by_exact_column_names() {
        let orders = RowType::from(orders());
        let json = orders.json(&orders.dynamic(&row(7, Some("9.50"))).expect("a row"), |_| true).expect("JSON");
        assert_eq!(Value::Object(json).to_string(), r#"{"id":7,"Total Price":"9.50"}"#);
    }

    #[test]
    fn null_is_null_and_what_was_not_sent_is_absent() {
        let orders = RowType::from(orders());
        let dynamic = orders.dynamic(&row(7, None)).expect("a row");
        let json = |sent: &dyn Fn(&Column) -> bool| orders.json(&dynamic, sent).expect("JSON");
        assert_eq!(json(&|_| true).get("Total Price"), Some(&Value::Null));
        assert_eq!(json(&|column| column.key).get("Total Price"), None);
    }

    #[test]
    fn names_are_quoted_where_postgresql_would() {
        let proto = v1::RowType { schema: "public".into(), table: "Order \"Items\"".into(), ..Default::default() };
        assert_eq!(RowType::from(proto).table_name(), "public.\"Order \"\"Items\"\"\"");
    }

    #[test]
    fn an_unusable_description_is_an_error() {
        let broken = RowType::from(v1::RowType { file: Bytes::from_static(b"\xff\xff"), ..orders() });
        assert!(matches!(broken.descriptor(), Err(RowError::Descriptor { .. })));
        let missing = RowType::from(v1::RowType { message: "other".into(), ..orders() });
        assert!(matches!(missing.descriptor(), Err(RowError::Descriptor { .. })));
    }

    #[test]
    fn bytes_that_are_no_row_are_an_error() {
        let result = RowType::from(orders()).dynamic(&Bytes::from_static(b"\x0a\xff"));
        assert!(matches!(result, Err(RowError::Decode { .. })));
    }
}
