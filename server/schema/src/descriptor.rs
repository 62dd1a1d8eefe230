//! The protobuf message of a table, as the descriptor that reflection and SDK generators read.
//!
//! `prost_types` has no place for extensions, so that options would be lost; the few descriptor messages needed here
//! are declared below with just the fields that are used, wire-compatible with `google/protobuf/descriptor.proto`.
//!
//! Invariant: the result depends on the columns and their field numbers alone, so that it is the same after every
//! restart.

use prost::Message;
use tidegate_model::{SourceName, TableName};
use tidegate_proto::v1;

use crate::name::{self, FieldNames, LanguagePackages};
use crate::wire::MAX_FIELD;
use crate::{ScalarKind, ValueKind};

/// A column of a row type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    /// Exact name.
    pub name: String,
    /// `pg_attribute.attnum`.
    pub attnum: i32,
    /// `pg_attribute.atttypid`.
    pub type_oid: u32,
    /// As `format_type` prints it.
    pub type_name: String,
    /// How its values are encoded.
    pub codec: ValueKind,
    /// Part of the key.
    pub key: bool,
    /// Field number, one that [`is_field_number`] allows; unique within the message, for ever.
    pub field: u32,
}

/// What a row type is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowTypeSpec {
    /// Unique within the source, for ever.
    pub row_type: u32,
    /// The source.
    pub source: SourceName,
    /// The table's exact name.
    pub name: TableName,
    /// `pg_class.oid`.
    pub table_oid: u32,
    /// How old rows are sent.
    pub identity: v1::ReplicaIdentity,
    /// In the order of the tuples.
    pub columns: Vec<ColumnSpec>,
}

/// May a column have this field number? Protobuf keeps 19000 to 19999 for itself.
#[must_use]
pub fn is_field_number(number: u32) -> bool {
    (1..=MAX_FIELD).contains(&number) && !(19_000..=19_999).contains(&number)
}

impl RowTypeSpec {
    /// The row type as it is stored and sent, with its message's descriptor.
    #[must_use]
    pub fn to_proto(&self) -> v1::RowType {
        let columns = self.columns.iter().map(|column| v1::Column {
            name: column.name.clone(),
            field: column.field,
            r#type: column.type_name.clone(),
            type_oid: column.type_oid,
            key: column.key,
            attnum: column.attnum,
        });
        v1::RowType {
            row_type: self.row_type,
            schema: self.name.schema.clone(),
            table: self.name.table.clone(),
            message: name::message_name(&self.source, &self.name),
            columns: columns.collect(),
            file: self.file().encode_to_vec().into(),
            replica_identity: self.identity.into(),
            table_oid: self.table_oid,
        }
    }

    fn file(&self) -> FileProto {
        let packages = LanguagePackages::of(&self.source, &self.name);
        FileProto {
            name: Some(name::file(&self.source, &self.name)),
            package: Some(name::package(&self.source, &self.name.schema)),
            dependency: vec!["tidegate/v1/value.proto".to_owned()],
            message_type: vec![self.message()],
            options: Some(prost_types::FileOptions {
                go_package: Some(packages.go),
                java_package: Some(packages.java),
                java_outer_classname: Some(packages.java_outer_class),
                java_multiple_files: Some(true),
                csharp_namespace: Some(packages.csharp),
                ..Default::default()
            }),
            syntax: Some("proto3".to_owned()),
        }
    }

    fn message(&self) -> MessageProto {
        let mut by_age: Vec<&ColumnSpec> = self.columns.iter().collect();
        by_age.sort_by_key(|column| column.field);
        let mut names = FieldNames::default();
        let mut message = MessageProto {
            name: Some(name::message(&self.name.table)),
            options: Some(MessageOptionsProto {
                table: Some(v1::TableOptions {
                    source: self.source.to_string(),
                    schema: self.name.schema.clone(),
                    table: self.name.table.clone(),
                }),
            }),
            ..Default::default()
        };
        for column in by_age {
            let field = names.field(&column.name, column.field);
            let json_name = names.json(&column.name, column.field);
            message.push(FieldProto::of(column, field, json_name));
        }
        message
    }
}

/// `google.protobuf.FileDescriptorProto`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FileProto {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(crate) package: Option<String>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) dependency: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    pub(crate) message_type: Vec<MessageProto>,
    #[prost(message, optional, tag = "8")]
    pub(crate) options: Option<prost_types::FileOptions>,
    #[prost(string, optional, tag = "12")]
    pub(crate) syntax: Option<String>,
}

/// `google.protobuf.DescriptorProto`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MessageProto {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) field: Vec<FieldProto>,
    #[prost(message, optional, tag = "7")]
    pub(crate) options: Option<MessageOptionsProto>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) oneof_decl: Vec<OneofProto>,
}

/// `google.protobuf.FieldDescriptorProto`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldProto {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    #[prost(uint32, optional, tag = "3")]
    pub(crate) number: Option<u32>,
    #[prost(enumeration = "prost_types::field_descriptor_proto::Label", optional, tag = "4")]
    pub(crate) label: Option<i32>,
    #[prost(enumeration = "prost_types::field_descriptor_proto::Type", optional, tag = "5")]
    pub(crate) r#type: Option<i32>,
    #[prost(string, optional, tag = "6")]
    pub(crate) type_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub(crate) options: Option<FieldOptionsProto>,
    #[prost(uint32, optional, tag = "9")]
    pub(crate) oneof_index: Option<u32>,
    #[prost(string, optional, tag = "10")]
    pub(crate) json_name: Option<String>,
    #[prost(bool, optional, tag = "17")]
    pub(crate) proto3_optional: Option<bool>,
}

/// `google.protobuf.OneofDescriptorProto`
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OneofProto {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
}

/// `google.protobuf.MessageOptions` with the extension of `tidegate/v1/value.proto`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MessageOptionsProto {
    #[prost(message, optional, tag = "50171")]
    pub(crate) table: Option<v1::TableOptions>,
}

/// `google.protobuf.FieldOptions` with the extension of `tidegate/v1/value.proto`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldOptionsProto {
    #[prost(message, optional, tag = "50171")]
    pub(crate) column: Option<v1::ColumnOptions>,
}

impl MessageProto {
    /// Appends a field. One of a scalar type gets the oneof of its own that proto3 asks of optional fields.
    pub(crate) fn push(&mut self, mut field: FieldProto) {
        if field.proto3_optional() {
            field.oneof_index = u32::try_from(self.oneof_decl.len()).ok();
            // Fields start with a letter: the underscore makes it unique.
            self.oneof_decl.push(OneofProto { name: Some(format!("_{}", field.name())) });
        }
        self.field.push(field);
    }
}

impl FieldProto {
    fn of(column: &ColumnSpec, name: String, json_name: String) -> Self {
        use prost_types::field_descriptor_proto::{Label, Type};
        let (scalar, message) = match column.codec {
            ValueKind::Scalar(ScalarKind::Timestamptz) => (Type::Message, Some("Timestamptz")),
            ValueKind::Scalar(kind) => (scalar_type(kind), None),
            ValueKind::Array { element, .. } => (Type::Message, Some(array_message(element))),
            ValueKind::Range => (Type::Message, Some("Range")),
        };
        FieldProto {
            name: Some(name),
            number: Some(column.field),
            label: Some(Label::Optional.into()),
            r#type: Some(scalar.into()),
            type_name: message.map(|message| format!(".tidegate.v1.{message}")),
            options: Some(FieldOptionsProto {
                column: Some(v1::ColumnOptions {
                    r#type: column.type_name.clone(),
                    type_oid: column.type_oid,
                    key: column.key,
                    name: column.name.clone(),
                    attnum: column.attnum,
                }),
            }),
            oneof_index: None,
            json_name: Some(json_name),
            proto3_optional: message.is_none().then_some(true),
        }
    }
}

impl FieldProto {
    /// The encoding of the column's values: the way back from [`FieldProto::of`]. `delimiter` stands between the
    /// elements of an array, which the descriptor does not tell. None where the field is no column's.
    pub(crate) fn codec(&self, delimiter: u8) -> Option<ValueKind> {
        let mut kinds = ScalarKind::ALL.into_iter();
        let Some(message) = &self.type_name else {
            return kinds.find(|&kind| self.r#type == Some(scalar_type(kind).into())).map(ValueKind::Scalar);
        };
        match message.strip_prefix(".tidegate.v1.")? {
            "Timestamptz" => Some(ValueKind::Scalar(ScalarKind::Timestamptz)),
            "Range" => Some(ValueKind::Range),
            array => {
                let element = kinds.find(|&kind| array_message(kind) == array)?;
                Some(ValueKind::Array { element, delimiter })
            }
        }
    }
}

fn scalar_type(kind: ScalarKind) -> prost_types::field_descriptor_proto::Type {
    use prost_types::field_descriptor_proto::Type;
    match kind {
        ScalarKind::Bool => Type::Bool,
        ScalarKind::Int32 => Type::Int32,
        ScalarKind::Int64 => Type::Int64,
        ScalarKind::Uint32 => Type::Uint32,
        ScalarKind::Float => Type::Float,
        ScalarKind::Double => Type::Double,
        ScalarKind::Bytes => Type::Bytes,
        ScalarKind::Text => Type::String,
        ScalarKind::Timestamptz => Type::Message,
    }
}

fn array_message(element: ScalarKind) -> &'static str {
    match element {
        ScalarKind::Bool => "BoolArray",
        ScalarKind::Int32 => "Int32Array",
        ScalarKind::Int64 => "Int64Array",
        ScalarKind::Uint32 => "Uint32Array",
        ScalarKind::Float => "FloatArray",
        ScalarKind::Double => "DoubleArray",
        ScalarKind::Bytes => "BytesArray",
        ScalarKind::Text => "StringArray",
        ScalarKind::Timestamptz => "TimestamptzArray",
    }
}
