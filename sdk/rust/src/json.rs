//! A row's values as JSON.
//!
//! Numbers for bool's and the integer types' values (exact, 64 bits) and for finite floats; PostgreSQL's own text for
//! everything else, `\x…` for bytea, RFC 3339 for timestamptz. An array is a JSON array, nested by its dimensions; only
//! one whose subscripts do not start at 1 is an object of `values` and `lower_bounds`. A range is an object of `lower`,
//! `upper` (null: unbounded) and `bounds`, or `{"empty": true}`. Nothing is approximated.

use std::fmt::Write;

use prost_reflect::{DynamicMessage, ReflectMessage, Value as Field};
use prost_types::Timestamp;
use serde_json::{Map, Number, Value, json};

/// The value, or None if it is not of the types that `tidegate/v1/value.proto` and the scalars offer.
pub(crate) fn value(field: &Field) -> Option<Value> {
    match field {
        Field::Message(message) => match message.descriptor().full_name() {
            "tidegate.v1.Timestamptz" => timestamptz(message),
            "tidegate.v1.Range" => range(message),
            name if name.starts_with("tidegate.v1.") && name.ends_with("Array") => array(message),
            _ => None,
        },
        scalar => self::scalar(scalar),
    }
}

fn scalar(field: &Field) -> Option<Value> {
    match field {
        Field::Bool(value) => Some(Value::Bool(*value)),
        Field::I32(value) => Some((*value).into()),
        Field::I64(value) => Some((*value).into()),
        Field::U32(value) => Some((*value).into()),
        Field::U64(value) => Some((*value).into()),
        Field::F32(value) => Some(float(f64::from(*value), || value.to_string())),
        Field::F64(value) => Some(float(*value, || value.to_string())),
        Field::String(value) => Some(Value::String(value.clone())),
        Field::Bytes(value) => Some(Value::String(hex(value))),
        Field::Message(message) => timestamptz(message),
        Field::EnumNumber(_) | Field::List(_) | Field::Map(_) => None,
    }
}

/// The number that `shortest` prints, which for a float4 is not the one that its float8 prints; PostgreSQL's word for
/// what JSON has no number for.
fn float(value: f64, shortest: impl FnOnce() -> String) -> Value {
    if value.is_nan() {
        return Value::from("NaN");
    }
    match shortest().parse().ok().and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None if value > 0.0 => Value::from("Infinity"),
        None => Value::from("-Infinity"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("\\x"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

fn timestamptz(message: &DynamicMessage) -> Option<Value> {
    if message.has_field_by_name("text") {
        return text(message, "text").map(Value::String);
    }
    let time = message.get_field_by_name("time")?;
    let time = time.as_message()?;
    let (seconds, nanos) = (time.get_field_by_name("seconds")?, time.get_field_by_name("nanos")?);
    let timestamp = Timestamp { seconds: seconds.as_i64()?, nanos: nanos.as_i32()? };
    Some(Value::String(timestamp.to_string()))
}

fn range(message: &DynamicMessage) -> Option<Value> {
    if message.get_field_by_name("empty")?.as_bool()? {
        return Some(json!({ "empty": true }));
    }
    let bound =
        |name| if message.has_field_by_name(name) { text(message, name).map(Value::String) } else { Some(Value::Null) };
    Some(json!({ "lower": bound("lower")?, "upper": bound("upper")?, "bounds": text(message, "bounds")? }))
}

fn text(message: &DynamicMessage, name: &str) -> Option<String> {
    Some(message.get_field_by_name(name)?.as_str()?.to_owned())
}

fn numbers<T>(message: &DynamicMessage, name: &str, number: impl Fn(&Field) -> Option<T>) -> Option<Vec<T>> {
    message.get_field_by_name(name)?.as_list()?.iter().map(number).collect()
}

fn array(message: &DynamicMessage) -> Option<Value> {
    let values = message.get_field_by_name("values")?;
    let mut values: Vec<Value> = values.as_list()?.iter().map(scalar).collect::<Option<_>>()?;
    for index in numbers(message, "nulls", Field::as_u32)? {
        *values.get_mut(index as usize)? = Value::Null;
    }
    if !message.has_field_by_name("layout") {
        return Some(Value::Array(values));
    }
    let layout = message.get_field_by_name("layout")?;
    let layout = layout.as_message()?;
    let dimensions = numbers(layout, "dimensions", Field::as_u32)?;
    let lower_bounds = numbers(layout, "lower_bounds", Field::as_i32)?;
    let nested = nest(values, &dimensions)?;
    if lower_bounds.iter().all(|bound| *bound == 1) {
        return Some(nested);
    }
    let mut object = Map::new();
    object.insert("values".to_owned(), nested);
    object.insert("lower_bounds".to_owned(), lower_bounds.into());
    Some(Value::Object(object))
}

/// Row-major values as arrays within arrays. None if the dimensions do not multiply to their number.
fn nest(mut values: Vec<Value>, dimensions: &[u32]) -> Option<Value> {
    let product = dimensions.iter().try_fold(1_usize, |product, length| product.checked_mul(*length as usize))?;
    if dimensions.is_empty() {
        return Some(Value::Array(values));
    }
    if product != values.len() || product == 0 {
        return None;
    }
    for length in dimensions.iter().skip(1).rev() {
        let mut flat = values.into_iter();
        let mut rows = Vec::with_capacity(flat.len() / *length as usize);
        while flat.len() > 0 {
            rows.push(Value::Array(flat.by_ref().take(*length as usize).collect()));
        }
        values = rows;
    }
    Some(Value::Array(values))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message;
    use prost_reflect::DescriptorPool;
    use prost_types::{
        DescriptorProto, FieldDescriptorProto, FileDescriptorProto, OneofDescriptorProto,
        field_descriptor_proto as field,
    };
    use tidegate_proto::v1;

    /// A table of `id int8` (key, field 1) and `"Total Price" numeric` (field 2).
    pub(crate) fn orders() -> v1::RowType {
        let optional = |number: i32, name: &str, kind: field::Type| FieldDescriptorProto {
            name: Some(name.to_owned()),
            number: Some(number),
            r#type: Some(kind as i32),
            label: Some(field::Label::Optional as i32),
            proto3_optional: Some(true),
            oneof_index: Some(number - 1),
            ..Default::default()
        };
        let oneof = |name: &str| OneofDescriptorProto { name: Some(name.to_owned()), options: None };
        let message = DescriptorProto {
            name: Some("orders".to_owned()),
            field: vec![optional(1, "id", field::Type::Int64), optional(2, "total_price", field::Type::String)],
            oneof_decl: vec![oneof("_id"), oneof("_total_price")],
            ..Default::default()
        };
        let file = FileDescriptorProto {
            name: Some("orders.proto".to_owned()),
            package: Some("tidegate.rows.shop.public".to_owned()),
            syntax: Some("proto3".to_owned()),
            dependency: vec!["tidegate/v1/value.proto".to_owned()],
            message_type: vec![message],
            ..Default::default()
        };
        let column = |name: &str, field, key| v1::Column { name: name.into(), field, key, ..Default::default() };
        v1::RowType {
            row_type: 5,
            schema: "public".into(),
            table: "orders".into(),
            message: "tidegate.rows.shop.public.orders".into(),
            columns: vec![column("id", 1, true), column("Total Price", 2, false)],
            file: file.encode_to_vec().into(),
            replica_identity: v1::ReplicaIdentity::Key as i32,
            table_oid: 16_400,
        }
    }

    /// A row of [`orders`].
    pub(crate) fn row(id: i64, total: Option<&str>) -> Bytes {
        #[derive(prost::Message)]
        struct Row {
            #[prost(int64, optional, tag = "1")]
            id: Option<i64>,
            #[prost(string, optional, tag = "2")]
            total: Option<String>,
        }
        Row { id: Some(id), total: total.map(str::to_owned) }.encode_to_vec().into()
    }

    fn shown<M: Message>(name: &str, message: &M) -> Option<String> {
        let pool = DescriptorPool::decode(tidegate_proto::DESCRIPTOR_SET).expect("our own");
        let descriptor = pool.get_message_by_name(&format!("tidegate.v1.{name}")).expect("in value.proto");
        let mut dynamic = DynamicMessage::new(descriptor);
        dynamic.transcode_from(message).ok()?;
        value(&Field::Message(dynamic)).map(|value| value.to_string())
    }

    fn layout(dimensions: &[u32], lower_bounds: &[i32]) -> Option<v1::ArrayLayout> {
        Some(v1::ArrayLayout { dimensions: dimensions.to_vec(), lower_bounds: lower_bounds.to_vec() })
    }

    #[test]
    fn arrays_nest_by_their_dimensions() {
        let array = |values: &[i32], nulls: &[u32], layout| {
            shown("Int32Array", &v1::Int32Array { values: values.to_vec(), nulls: nulls.to_vec(), layout })
        };
        let shows = |text: &str| Some(text.to_owned());
        assert_eq!(array(&[], &[], None), shows("[]"));
        assert_eq!(array(&[1, 0, 3], &[1], None), shows("[1,null,3]"));
        assert_eq!(array(&[1, 2, 3, 4, 5, 6], &[], layout(&[3, 2], &[])), shows("[[1,2],[3,4],[5,6]]"));
        assert_eq!(array(&[1, 2], &[], layout(&[1, 1, 2], &[1, 1, 1])), shows("[[[1,2]]]"));
        assert_eq!(array(&[1, 2], &[], layout(&[2], &[-1])), shows(r#"{"values":[1,2],"lower_bounds":[-1]}"#));
    }

    #[test]
    fn layouts_that_do_not_fit_are_refused() {
        let array = |values: &[i32], nulls: &[u32], layout| {
            shown("Int32Array", &v1::Int32Array { values: values.to_vec(), nulls: nulls.to_vec(), layout })
        };
        assert_eq!(array(&[1, 2, 3], &[], layout(&[2, 2], &[])), None);
        assert_eq!(array(&[1], &[7], None), None);
        assert_eq!(array(&[], &[], layout(&[0], &[])), None);
        assert_eq!(array(&[1], &[], layout(&[u32::MAX, u32::MAX, u32::MAX], &[])), None);
    }

    #[test]
    fn times_are_rfc_3339_or_postgresqls_text() {
        let time = |value| shown("Timestamptz", &v1::Timestamptz { value: Some(value) });
        let at = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000 };
        assert_eq!(time(v1::timestamptz::Value::Time(at)), Some("\"2023-11-14T22:13:20.000005Z\"".to_owned()));
        assert_eq!(time(v1::timestamptz::Value::Text("infinity".into())), Some("\"infinity\"".to_owned()));
    }

    #[test]
    fn ranges_tell_unbounded_from_empty() {
        let range = |range: v1::Range| shown("Range", &range).expect("a range");
        let half = v1::Range { lower: Some("1".into()), upper: None, bounds: "[)".into(), empty: false };
        assert_eq!(range(half), r#"{"lower":"1","upper":null,"bounds":"[)"}"#);
        assert_eq!(range(v1::Range { empty: true, ..Default::default() }), r#"{"empty":true}"#);
    }

    #[test]
    fn numbers_are_exact() {
        let shows = |field| scalar(&field).expect("a scalar").to_string();
        assert_eq!(shows(Field::I64(i64::MIN)), "-9223372036854775808");
        assert_eq!(shows(Field::F32(0.1)), "0.1");
        assert_eq!(shows(Field::F64(0.1)), "0.1");
        assert_eq!(shows(Field::F64(f64::NAN)), "\"NaN\"");
        assert_eq!(shows(Field::F32(f32::NEG_INFINITY)), "\"-Infinity\"");
        assert_eq!(shows(Field::Bytes(Bytes::from_static(b"\x00\xff"))), "\"\\\\x00ff\"");
    }
}
