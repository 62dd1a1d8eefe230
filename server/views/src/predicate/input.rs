//! The values of the columns that a condition reads, straight from the encoded row, each decoded once.

use std::borrow::Cow;
use std::sync::Arc;

use tidegate_schema::wire::{Field, Fields, WireError, WireType, read_varint};
use tidegate_schema::{EncodedArray, Range, ScalarKind, TypeShape, ValueKind};

use super::array::Array;
use super::interval::Interval;
use super::json::Json;
use super::kind::Kind;
use super::literal;
use super::moment;
use super::numeric::Numeric;
use super::refusal::{Reason, Refusal};
use super::table::TableFacts;
use super::value::Value;
use tidegate_model::Retry;

/// Why a row cannot be read. Never tells a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The bytes are not a message.
    #[error("damaged row: {0}")]
    Row(#[from] WireError),
    /// The column has no value of its type, or more than one; or it is an enum's label that came later than the table's
    /// description.
    #[error(
        "column \"{column}\" holds no value that its type had when the condition was defined, or JSON that is nested deeper than 1000 levels; define it again"
    )]
    Column {
        /// The column's exact name.
        column: String,
    },
}

impl RowError {
    /// What to do: the same row fails again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            RowError::Row(_) | RowError::Column { .. } => Retry::Never,
        }
    }
}

/// A column that a condition reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) field: u32,
    pub(super) kind: Kind,
    codec: ValueKind,
    name: String,
    labels: Vec<String>,
}

impl Input {
    /// Of a column whose type conditions know.
    pub(super) fn of(table: &TableFacts, column: usize) -> Option<Self> {
        let facts = &table.columns[column];
        let kind = table.kind(facts)?;
        let labels = facts.enum_type.as_ref().map(|facts| facts.labels.clone()).unwrap_or_default();
        let shape = if matches!(kind, Kind::Enum(_)) { TypeShape::Enum } else { TypeShape::Base };
        let codec = ValueKind::of(facts.type_oid, shape);
        Some(Input { field: facts.field, kind, codec, name: facts.name.clone(), labels })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The same where the table's columns have other field numbers. Labels stay, since the condition's constants are places among them.
    pub(super) fn bound(&self, facts: &TableFacts) -> Result<Self, Refusal> {
        let Some(column) = facts.columns.iter().find(|column| column.name == self.name) else {
            let columns = facts.columns.iter().map(|column| column.name.clone()).collect();
            return Err(Refusal::at(0, Reason::UnknownColumn { name: self.name.clone(), columns }));
        };
        let found = facts.kind(column);
        if found != Some(self.kind) {
            let name = |kind| facts.kind_name(kind);
            let (found, expected) = (found.map_or_else(String::new, name), name(self.kind));
            return Err(Refusal::at(0, Reason::WrongType { what: "the subquery", found, expected }));
        }
        Ok(Input { field: column.field, ..self.clone() })
    }

    /// Its name and type.
    pub(super) fn described(&self, facts: &TableFacts) -> String {
        format!("{} {}", self.name, facts.kind_name(self.kind))
    }

    pub(super) fn value<'a>(&self, field: &Field<'a>) -> Option<Value<'a>> {
        match self.codec {
            ValueKind::Scalar(scalar) => self.scalar(self.kind, scalar, field),
            ValueKind::Array { element, .. } if field.wire_type == WireType::Len => {
                let array = EncodedArray::read(element, field.value)?;
                let value = |field: &Option<Field<'a>>| match field {
                    Some(field) => self.scalar(self.kind.innermost(), element, field).map(Value::into_owned),
                    None => Some(Value::Null),
                };
                let elements = array.elements.iter().map(value).collect::<Option<_>>()?;
                Some(Value::Array(Arc::new(Array { elements, dimensions: array.dimensions })))
            }
            ValueKind::Range if field.wire_type == WireType::Len => {
                literal::range_of(self.kind.subtype()?, Range::read(field.value)?)
            }
            ValueKind::Array { .. } | ValueKind::Range => None,
        }
    }

    fn scalar<'a>(&self, kind: Kind, scalar: ScalarKind, field: &Field<'a>) -> Option<Value<'a>> {
        let bytes = field.value;
        let wire_type = match scalar {
            ScalarKind::Bool | ScalarKind::Int32 | ScalarKind::Int64 | ScalarKind::Uint32 => WireType::Varint,
            ScalarKind::Float => WireType::Fixed32,
            ScalarKind::Double => WireType::Fixed64,
            ScalarKind::Bytes | ScalarKind::Text | ScalarKind::Timestamptz => WireType::Len,
        };
        if field.wire_type != wire_type {
            return None;
        }
        let varint = || read_varint(bytes).ok().map(|(value, _)| value);
        Some(match scalar {
            ScalarKind::Bool => Value::Bool(varint()? != 0),
            ScalarKind::Int32 | ScalarKind::Int64 | ScalarKind::Uint32 => Value::Int(varint()?.cast_signed()),
            ScalarKind::Float => Value::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
            ScalarKind::Double => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
            ScalarKind::Bytes => Value::Bytes(Cow::Borrowed(bytes)),
            ScalarKind::Text => self.text(kind, str::from_utf8(bytes).ok()?)?,
            ScalarKind::Timestamptz => Value::Int(timestamptz(bytes)?),
        })
    }

    fn text<'a>(&self, kind: Kind, text: &'a str) -> Option<Value<'a>> {
        match kind {
            Kind::Numeric => Numeric::parse(text).map(Value::numeric),
            Kind::Date => moment::parse_date(text).map(Value::Int),
            Kind::Time => moment::parse_time(text).map(Value::Int),
            Kind::Timestamp => moment::parse_timestamp(text, false).map(Value::Int),
            Kind::Interval => Interval::parse(text).map(Value::Interval),
            Kind::Jsonb => Json::parse(text).map(|json| Value::Json(Arc::new(json))),
            Kind::Enum(_) => {
                let place = self.labels.iter().position(|label| label == text)?;
                i64::try_from(place).ok().map(Value::Int)
            }
            Kind::Text | Kind::Varchar | Kind::Bpchar | Kind::Uuid | Kind::Json => {
                Some(Value::Text(Cow::Borrowed(text)))
            }
            Kind::Bool
            | Kind::Int2
            | Kind::Int4
            | Kind::Int8
            | Kind::Oid
            | Kind::Float4
            | Kind::Float8
            | Kind::Timestamptz
            | Kind::Bytea
            | Kind::Array(_)
            | Kind::Range(_) => None,
        }
    }
}

/// The inputs' values; NULL where the row lacks them. `inputs` are in the order of their fields, `values` as many.
pub(super) fn read<'a>(inputs: &[(u32, usize)], columns: &[Input], row: &'a [u8]) -> Result<Vec<Value<'a>>, RowError> {
    let mut values = vec![Value::Null; columns.len()];
    for field in Fields::new(row) {
        let field = field?;
        let Ok(found) = inputs.binary_search_by_key(&field.number, |&(number, _)| number) else { continue };
        let index = inputs[found].1;
        let value = columns[index].value(&field).filter(|_| values[index] == Value::Null);
        values[index] = value.ok_or_else(|| RowError::Column { column: columns[index].name.clone() })?;
    }
    Ok(values)
}

/// The microseconds of a `tidegate.v1.Timestamptz`: field 1 holds a `google.protobuf.Timestamp`, or field 2 PostgreSQL's text.
fn timestamptz(message: &[u8]) -> Option<i64> {
    let field = Fields::new(message).next()?.ok()?;
    match field.number {
        1 => {
            let (mut seconds, mut nanos) = (0, 0);
            for part in Fields::new(field.value) {
                let part = part.ok()?;
                let value = read_varint(part.value).ok()?.0.cast_signed();
                match part.number {
                    1 => seconds = value,
                    2 => nanos = value,
                    _ => {}
                }
            }
            moment::of_unix(seconds, nanos)
        }
        2 => moment::parse_timestamp(str::from_utf8(field.value).ok()?, true),
        _ => None,
    }
}
