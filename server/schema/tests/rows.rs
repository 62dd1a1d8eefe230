//! Rows as a reader sees them: encoded by the codec, decoded by descriptor through an implementation that is not ours.

use bytes::BytesMut;
use proptest::prelude::*;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor};
use serde_json::json;
use tidegate_model::TableName;
use tidegate_proto::v1;
use tidegate_schema::{
    ColumnSpec, Descriptors, EncodeError, FieldSet, RowEncoder, RowType, RowTypeSpec, ScalarKind, SchemaError,
    TypeShape, Value, ValueKind, is_field_number, message_name,
};

/// Name, type, OID; fields are numbered from 1, the first column is the key.
fn spec(row_type: u32, columns: &[(&str, &str, u32)]) -> RowTypeSpec {
    let columns = (1..).zip(columns).map(|(number, &(name, type_name, type_oid))| ColumnSpec {
        name: name.to_owned(),
        attnum: number,
        type_oid,
        type_name: type_name.to_owned(),
        codec: ValueKind::of(type_oid, TypeShape::Base),
        key: number == 1,
        field: number.cast_unsigned(),
    });
    RowTypeSpec {
        row_type,
        source: "shop".parse().expect("valid"),
        name: TableName::new("public", "orders"),
        table_oid: 16_400,
        identity: v1::ReplicaIdentity::Key,
        columns: columns.collect(),
    }
}

fn descriptor(protos: &[v1::RowType]) -> MessageDescriptor {
    let descriptors = Descriptors::build(protos.iter()).expect("valid");
    descriptors.pool().get_message_by_name(&protos[0].message).expect("defined")
}

fn encode(spec: &RowTypeSpec, values: &[Option<&str>]) -> Result<BytesMut, EncodeError> {
    let values = values.iter().map(|value| value.map_or(Value::Null, |text| Value::Text(text.as_bytes())));
    let mut out = BytesMut::new();
    RowEncoder::new(&spec.columns).encode(values, &mut out)?;
    Ok(out)
}

fn json(spec: &RowTypeSpec, values: &[Option<&str>]) -> serde_json::Value {
    let row = encode(spec, values).expect("valid values");
    let message = DynamicMessage::decode(descriptor(&[spec.to_proto()]), row).expect("a valid message");
    assert_eq!(message.unknown_fields().count(), 0);
    serde_json::to_value(message).expect("JSON")
}

/// One column of every kind.
const EVERY_KIND: &[(&str, &str, u32)] = &[
    ("id", "bigint", 20),
    ("Paid?", "boolean", 16),
    ("qty", "smallint", 21),
    ("ref", "oid", 26),
    ("ratio", "real", 700),
    ("weight", "double precision", 701),
    ("blob", "bytea", 17),
    ("total", "numeric(10,2)", 1700),
    ("at", "timestamp with time zone", 1184),
    ("tags", "text[]", 1009),
    ("times", "timestamp with time zone[]", 1185),
    ("span", "int4range", 3904),
];

/// The message in a form close to a .proto file.
fn printed(message: &MessageDescriptor) -> String {
    let options = |options: DynamicMessage, extension: &str| {
        let extension = message.parent_pool().get_extension_by_name(extension).expect("declared");
        options.get_extension(&extension).to_string()
    };
    let mut out = format!(
        "{}\nmessage {} {}\n",
        message.parent_file().name(),
        message.name(),
        options(message.options(), "tidegate.v1.table")
    );
    for field in message.fields() {
        let kind = match field.kind() {
            Kind::Message(message) => message.full_name().to_owned(),
            kind => format!("optional {kind:?}"),
        };
        assert!(field.supports_presence());
        let column = options(field.options(), "tidegate.v1.column");
        out.push_str(&format!("{kind} {} = {} [{}] {column}\n", field.name(), field.number(), field.json_name()));
    }
    out
}

#[test]
fn a_table_is_described_with_its_names_and_types() {
    let columns = &[EVERY_KIND[0], EVERY_KIND[1], EVERY_KIND[7], EVERY_KIND[8], EVERY_KIND[9], EVERY_KIND[11]];
    let message = descriptor(&[spec(7, columns).to_proto()]);
    let expected = "\
tidegate/rows/shop/public/orders.proto
message orders {source:\"shop\",schema:\"public\",table:\"orders\"}
optional int64 id = 1 [id] {type:\"bigint\",type_oid:20,key:true,name:\"id\",attnum:1}
optional bool Paid_ = 2 [Paid?] {type:\"boolean\",type_oid:16,name:\"Paid?\",attnum:2}
optional string total = 3 [total] {type:\"numeric(10,2)\",type_oid:1700,name:\"total\",attnum:3}
tidegate.v1.Timestamptz at = 4 [at] {type:\"timestamp with time zone\",type_oid:1184,name:\"at\",attnum:4}
tidegate.v1.StringArray tags = 5 [tags] {type:\"text[]\",type_oid:1009,name:\"tags\",attnum:5}
tidegate.v1.Range span = 6 [span] {type:\"int4range\",type_oid:3904,name:\"span\",attnum:6}
";
    assert_eq!(printed(&message), expected);
    let dependencies: Vec<String> = message.parent_file().dependencies().map(|file| file.name().to_owned()).collect();
    assert_eq!(dependencies, ["tidegate/v1/value.proto"]);
    let options = message.parent_file().file_descriptor_proto().options.clone().expect("set");
    assert_eq!(options.java_package(), "tidegate.rows.shop.public_");
    assert_eq!(options.go_package(), "tidegate/rows/shop/public;shop_public");
}

#[test]
fn every_kind_is_read_by_column_name() {
    let values = [
        "-7",
        "t",
        "-3",
        "4294967295",
        "1.5",
        "-Infinity",
        "\\x00ff",
        "12.30",
        "2024-02-29 12:34:56.5+00",
        "{a,NULL}",
        "{\"2024-02-29 12:34:56+00\"}",
        "[1,10)",
    ];
    assert_eq!(
        json(&spec(1, EVERY_KIND), &values.map(Some)),
        json!({
            "id": "-7", "Paid?": true, "qty": -3, "ref": 4_294_967_295_u32, "ratio": 1.5, "weight": "-Infinity",
            "blob": "AP8=", "total": "12.30", "at": {"time": "2024-02-29T12:34:56.500Z"},
            "tags": {"values": ["a", ""], "nulls": [1]}, "times": {"values": [{"time": "2024-02-29T12:34:56Z"}]},
            "span": {"lower": "1", "upper": "10", "bounds": "[)"},
        })
    );
}

#[test]
fn zero_is_present_and_null_is_absent() {
    let zero = ["0", "f", "0", "0", "0", "0", "\\x", "", "1970-01-01 00:00:00+00", "{}", "{}", "empty"];
    let spec = spec(1, EVERY_KIND);
    let read = json(&spec, &zero.map(Some));
    assert_eq!(read.as_object().map(serde_json::Map::len), Some(EVERY_KIND.len()), "{read}");
    assert_eq!(json(&spec, &[None; 12]), json!({}));
}

#[test]
fn columns_whose_names_fold_together_stay_apart() {
    let spec = spec(1, &[("a_b", "integer", 23), ("AB", "integer", 23), ("größe", "text", 25), ("[x]", "text", 25)]);
    let message = descriptor(&[spec.to_proto()]);
    let fields: Vec<String> = message.fields().map(|field| format!("{}={}", field.name(), field.json_name())).collect();
    assert_eq!(fields, ["a_b=a_b", "AB_2=AB", "gr_e=größe", "x_=x_4"]);
}

#[test]
fn an_error_names_the_column_and_leaves_no_bytes() {
    let spec = spec(1, EVERY_KIND);
    let mut out = BytesMut::from(&b"before"[..]);
    let values = [Value::Text(b"1"), Value::Text(b"t"), Value::Text(b"secret")];
    let values = values.into_iter().chain(std::iter::repeat_n(Value::Null, 9));
    let error = RowEncoder::new(&spec.columns).encode(values, &mut out).expect_err("not a number");
    assert!(
        matches!(&error, EncodeError::Malformed { column, type_name } if column == "qty" && type_name == "smallint")
    );
    assert!(!error.to_string().contains("secret"));
    assert_eq!(&out[..], b"before");
}

#[test]
fn text_that_is_not_utf8_is_named_as_such() {
    let spec = spec(1, &[("note", "text", 25)]);
    let encoded = RowEncoder::new(&spec.columns).encode([Value::Text(b"\xff")].into_iter(), &mut BytesMut::new());
    assert!(matches!(encoded, Err(EncodeError::NotUtf8 { column, .. }) if column == "note"));
}

#[test]
fn a_tuple_of_another_length_is_refused() {
    let spec = spec(1, &[("a", "integer", 23), ("b", "integer", 23)]);
    assert_eq!(encode(&spec, &[Some("1")]), Err(EncodeError::ColumnCount { expected: 2, sent: 1 }));
    assert_eq!(encode(&spec, &[None, None, None]), Err(EncodeError::ColumnCount { expected: 2, sent: 3 }));
}

#[test]
fn projection_keeps_the_fields_as_they_stand() {
    let spec = spec(1, &[("id", "bigint", 20), ("note", "text", 25), ("qty", "integer", 23)]);
    let row_type = RowType::new(spec.to_proto()).expect("valid");
    let row = encode(&spec, &[Some("5"), Some("x"), Some("0")]).expect("valid");
    let mut out = BytesMut::new();
    let fields = row_type.select(["qty"]).expect("known");
    row_type.project(&row, &fields, &mut out).expect("well formed");
    assert_eq!(out, encode(&spec, &[Some("5"), None, Some("0")]).expect("valid"));
    assert_eq!(row_type.key().iter().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_damaged_row_is_refused_and_leaves_no_bytes() {
    let row_type = RowType::new(spec(1, &[("id", "bigint", 20)]).to_proto()).expect("valid");
    let mut out = BytesMut::new();
    let projected = row_type.project(&[0x08, 1, 0x12, 9], &FieldSet::from_iter([1]), &mut out);
    assert!(matches!(projected, Err(SchemaError::Row(_))) && out.is_empty());
}

#[test]
fn an_unknown_column_is_named_with_those_there_are() {
    let row_type = RowType::new(spec(1, &[("id", "bigint", 20), ("note", "text", 25)]).to_proto()).expect("valid");
    let error = row_type.select(["nope"]).expect_err("unknown");
    assert_eq!(error.to_string(), "table public.orders has no column \"nope\"; it has id, note");
}

#[test]
fn damaged_row_types_are_refused() {
    let good = spec(1, &[("id", "bigint", 20), ("note", "text", 25)]).to_proto();
    let mut twice = good.clone();
    twice.columns[1].field = 1;
    assert!(matches!(RowType::new(twice), Err(SchemaError::Column { .. })));
    for file in [&b""[..], b"\xff", &good.file[..good.file.len() / 2]] {
        let damaged = v1::RowType { file: bytes::Bytes::copy_from_slice(file), ..good.clone() };
        assert!(matches!(Descriptors::build([&damaged].into_iter()), Err(SchemaError::File { .. })));
        assert!(matches!(RowType::new(damaged), Err(SchemaError::File { .. })));
    }
}

#[test]
fn fields_of_older_row_types_stay_defined() {
    let old = spec(1, &[("id", "bigint", 20), ("total", "integer", 23), ("gone", "text", 25)]);
    let mut new = spec(2, &[("id", "bigint", 20), ("total", "numeric", 1700)]);
    new.columns[1].field = 4;
    let row = encode(&old, &[Some("1"), Some("2"), Some("3")]).expect("valid");
    for protos in [[old.to_proto(), new.to_proto()], [new.to_proto(), old.to_proto()]] {
        let message = descriptor(&protos);
        let read = DynamicMessage::decode(message.clone(), &row[..]).expect("valid");
        let read = serde_json::to_value(read).expect("JSON");
        assert_eq!(read, json!({"id": "1", "total_2": 2, "gone": "3"}));
        let newest = message.get_field_by_json_name("total").expect("defined");
        assert_eq!((newest.number(), newest.kind()), (4, Kind::String));
    }
}

#[test]
fn sources_and_tables_share_one_pool() {
    let one = spec(1, &[("id", "bigint", 20)]);
    let mut other = one.clone();
    other.source = "default".parse().expect("valid");
    let mut third = one.clone();
    third.name = TableName::new("Große", "class");
    let protos = [one.to_proto(), other.to_proto(), third.to_proto()];
    let descriptors = Descriptors::build(protos.iter()).expect("valid");
    for spec in [one, other, third] {
        let name = message_name(&spec.source, &spec.name);
        assert!(descriptors.pool().get_message_by_name(&name).is_some(), "{name}");
    }
    assert!(descriptors.pool().get_service_by_name("tidegate.v1.Changes").is_some());
}

#[test]
fn field_numbers_that_protobuf_keeps_are_refused() {
    for number in [1, 18_999, 20_000, (1 << 29) - 1] {
        assert!(is_field_number(number), "{number}");
    }
    for number in [0, 19_000, 19_999, 1 << 29, u32::MAX] {
        assert!(!is_field_number(number), "{number}");
    }
}

/// Every encoding that a column can have.
fn kinds() -> impl Strategy<Value = ValueKind> {
    let scalar = prop::sample::select(ScalarKind::ALL.to_vec());
    let array = (scalar.clone(), prop::sample::select(vec![b',', b';']));
    prop_oneof![
        scalar.prop_map(ValueKind::Scalar),
        array.prop_map(|(element, delimiter)| ValueKind::Array { element, delimiter }),
        Just(ValueKind::Range),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_or_make_a_valid_message(
        kind in kinds(),
        text in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            "[\\[\\](){},;:=\"\\\\tf0-9 .x+-]{0,24}".prop_map(String::into_bytes),
            "\\{[tf0-9,;]{0,12}\\}|-?[0-9]{1,20}|[tf]|\\\\x([0-9a-f]{2}){0,8}|[\\[(][0-9]{0,3},[0-9]{0,3}[\\])]"
                .prop_map(String::into_bytes),
        ],
    ) {
        let mut spec = spec(1, &[("value", "anything", 20)]);
        spec.columns[0].codec = kind;
        let mut out = BytesMut::new();
        if RowEncoder::new(&spec.columns).encode([Value::Text(&text)].into_iter(), &mut out).is_ok() {
            let read = DynamicMessage::decode(descriptor(&[spec.to_proto()]), &out[..]).expect("valid");
            prop_assert!(read.has_field_by_number(1));
            prop_assert_eq!(read.unknown_fields().count(), 0);
        } else {
            prop_assert!(out.is_empty());
        }
    }

    #[test]
    fn floats_are_read_back_exactly(single in any::<f32>(), double in any::<f64>()) {
        let spec = spec(1, &[("single", "real", 700), ("double", "double precision", 701)]);
        let row = encode(&spec, &[Some(&single.to_string()), Some(&double.to_string())]).expect("valid");
        let read = DynamicMessage::decode(descriptor(&[spec.to_proto()]), &row[..]).expect("valid");
        let field = |number| read.get_field_by_number(number).expect("defined").into_owned();
        prop_assert_eq!(field(1).as_f32().map(f32::to_bits), Some(single.to_bits()));
        prop_assert_eq!(field(2).as_f64().map(f64::to_bits), Some(double.to_bits()));
    }
}
