//! Rows decoded back to PostgreSQL's text: the way there and back changes nothing, and damaged rows are refused.

use bytes::BytesMut;
use proptest::prelude::*;
use tidegate_model::TableName;
use tidegate_proto::v1;
use tidegate_schema::{
    ColumnSpec, DecodeError, RowDecoder, RowEncoder, RowText, RowType, RowTypeSpec, ScalarKind, TypeShape, Value,
    ValueKind,
};

/// Field numbers from 1, the first column is the key.
fn columns(codecs: &[ValueKind]) -> Vec<ColumnSpec> {
    let column = |(number, &codec): (u32, &ValueKind)| ColumnSpec {
        name: format!("c{number}"),
        attnum: number.cast_signed(),
        type_oid: 50_000 + number,
        type_name: "anything".to_owned(),
        codec,
        key: number == 1,
        field: number,
    };
    (1..).zip(codecs).map(column).collect()
}

fn row_type(columns: Vec<ColumnSpec>) -> RowType {
    let spec = RowTypeSpec {
        row_type: 1,
        source: "shop".parse().expect("valid"),
        name: TableName::new("public", "orders"),
        table_oid: 16_400,
        identity: v1::ReplicaIdentity::Key,
        columns,
    };
    RowType::new(spec.to_proto()).expect("valid")
}

fn encode(columns: &[ColumnSpec], values: &[Option<&str>]) -> Option<BytesMut> {
    let values = values.iter().map(|value| value.map_or(Value::Null, |text| Value::Text(text.as_bytes())));
    let mut out = BytesMut::new();
    RowEncoder::new(columns).encode(values, &mut out).ok().map(|()| out)
}

fn decode(decoder: &RowDecoder, row: &[u8]) -> Result<Vec<Option<String>>, DecodeError> {
    let mut out = RowText::default();
    decoder.text(row, &mut out)?;
    Ok(out.values().map(|value| value.map(str::to_owned)).collect())
}

/// Every encoding that a column can have.
fn every_codec() -> Vec<ValueKind> {
    let scalars = ScalarKind::ALL.into_iter();
    let arrays =
        scalars.clone().flat_map(|element| [b',', b';'].map(|delimiter| ValueKind::Array { element, delimiter }));
    scalars.clone().map(ValueKind::Scalar).chain(arrays).chain([ValueKind::Range]).collect()
}

/// Text that PostgreSQL writes for the kind, but for floats, which Rust prints with other exponents.
fn scalar_text(kind: ScalarKind) -> BoxedStrategy<String> {
    match kind {
        ScalarKind::Bool => "[tf]".boxed(),
        ScalarKind::Int32 => any::<i32>().prop_map(|value| value.to_string()).boxed(),
        ScalarKind::Int64 => (any::<i64>(), 0..64_u32).prop_map(|(value, shift): (i64, u32)| (value >> shift).to_string()).boxed(),
        ScalarKind::Uint32 => any::<u32>().prop_map(|value| value.to_string()).boxed(),
        ScalarKind::Float => any::<u32>().prop_map(|bits| f32::from_bits(bits).to_string()).boxed(),
        ScalarKind::Double => any::<u64>().prop_map(|bits| f64::from_bits(bits).to_string()).boxed(),
        ScalarKind::Bytes => "\\\\x([0-9a-f]{2}){0,9}".boxed(),
        ScalarKind::Text => "(?s).{0,9}|(?i)null|[\\[\\](){},;:\"\\\\ \t\r\n\u{b}\u{c}a]{0,6}".boxed(),
        ScalarKind::Timestamptz => prop_oneof![
            (-62_135_596_800_i64..=253_402_300_799, 0..1_000_000).prop_map(|(seconds, micros)| {
                let text = prost_types::Timestamp { seconds, nanos: micros * 1_000 }.to_string();
                let text = text.replace('T', " ").replace('Z', "");
                match text.split_once('.') {
                    Some((second, fraction)) => format!("{second}.{}+00", fraction.trim_end_matches('0')),
                    None => format!("{text}+00"),
                }
            }),
            "-?infinity|(1[0-9]|2[0-8])[0-9]{4}-0[1-9]-[01][1-9] 2[0-3]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{0,5}[1-9])?\\+00",
            "[0-4][0-9]{2}[1-9]-1[0-2]-[01][1-9] 12:34:56\\+00 BC",
        ]
        .boxed(),
    }
}

/// As `array_out` writes an element.
fn array_element(text: Option<String>, delimiter: char) -> String {
    let Some(text) = text else { return "NULL".to_owned() };
    let special = |c: char| c == delimiter || "{}\"\\ \t\n\r\u{b}\u{c}".contains(c);
    if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
        return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    }
    text
}

/// Nested braces around the elements.
fn array_braces(elements: &[String], lengths: &[usize], delimiter: &str) -> String {
    let size = elements.len() / lengths[0];
    let part = |part: &[String]| match lengths.len() {
        1 => part[0].clone(),
        _ => array_braces(part, &lengths[1..], delimiter),
    };
    format!("{{{}}}", elements.chunks(size).map(part).collect::<Vec<_>>().join(delimiter))
}

fn array_text(kind: ScalarKind, delimiter: u8) -> BoxedStrategy<String> {
    let delimiter = char::from(delimiter);
    let shape = proptest::collection::vec((1_usize..4, prop_oneof![Just(1), any::<i16>()]), 1..5);
    let filled = shape.prop_flat_map(move |shape| {
        let count = shape.iter().map(|(length, _)| length).product::<usize>();
        (Just(shape), proptest::collection::vec(proptest::option::weighted(0.8, scalar_text(kind)), count))
    });
    let text = filled.prop_map(move |(shape, elements)| {
        let elements: Vec<_> = elements.into_iter().map(|element| array_element(element, delimiter)).collect();
        let lengths: Vec<_> = shape.iter().map(|(length, _)| *length).collect();
        let subscripts = |&(length, lower): &(usize, i16)| {
            let lower = i64::from(lower);
            format!("[{lower}:{}]", lower + length as i64 - 1)
        };
        let shifted = shape.iter().any(|(_, lower)| *lower != 1);
        let subscripts = if shifted { shape.iter().map(subscripts).collect::<String>() + "=" } else { String::new() };
        subscripts + &array_braces(&elements, &lengths, &delimiter.to_string())
    });
    prop_oneof![1 => Just("{}".to_owned()), 9 => text].boxed()
}

/// As `range_out` writes a range of a type whose values can be any text.
fn range_text() -> BoxedStrategy<String> {
    let bound = proptest::option::of(scalar_text(ScalarKind::Text)).prop_map(|bound| {
        let Some(text) = bound else { return String::new() };
        if text.is_empty() || text.contains(|c: char| "\"\\()[], \t\n\r\u{b}\u{c}".contains(c)) {
            return format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""));
        }
        text
    });
    let bounded = ("[\\[(]", bound.clone(), bound, "[\\])]");
    prop_oneof![
        1 => Just("empty".to_owned()),
        9 => bounded.prop_map(|(opening, lower, upper, closing)| format!("{opening}{lower},{upper}{closing}")),
    ]
    .boxed()
}

fn text_of(codec: ValueKind) -> BoxedStrategy<String> {
    match codec {
        ValueKind::Scalar(kind) => scalar_text(kind),
        ValueKind::Array { element, delimiter } => array_text(element, delimiter),
        ValueKind::Range => range_text(),
    }
}

fn is_float(codec: ValueKind) -> bool {
    match codec {
        ValueKind::Scalar(kind) | ValueKind::Array { element: kind, .. } => {
            matches!(kind, ScalarKind::Float | ScalarKind::Double)
        }
        ValueKind::Range => false,
    }
}

/// An encoding, and two texts of it or NULLs.
fn columns_and_texts() -> impl Strategy<Value = (ValueKind, [Option<String>; 2])> {
    prop::sample::select(every_codec()).prop_flat_map(|codec| {
        let text = proptest::option::weighted(0.9, text_of(codec));
        (Just(codec), [text.clone(), text])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn there_and_back_is_the_same_text_and_the_same_bytes((codec, texts) in columns_and_texts()) {
        let columns = columns(&[codec, codec]);
        let texts = texts.each_ref().map(Option::as_deref);
        let row = encode(&columns, &texts).expect("PostgreSQL's text");
        let decoded = decode(&RowDecoder::new(&columns), &row).expect("a valid row");
        let decoded: Vec<_> = decoded.iter().map(Option::as_deref).collect();
        if !is_float(codec) {
            prop_assert_eq!(&decoded[..], &texts[..]);
        }
        prop_assert_eq!(encode(&columns, &decoded), Some(row));
    }

    #[test]
    fn whatever_the_encoder_takes_comes_back_as_the_same_bytes(
        codec in prop::sample::select(every_codec()),
        text in prop_oneof![
            "\\PC{0,30}",
            "[\\[\\](){},;:=\"\\\\tf0-9 .x+-]{0,24}",
            "\\{[tf0-9,;]{0,12}\\}|-?[0-9]{1,20}(\\.[0-9]{1,20})?(e-?[0-9]{1,3})?",
            "[0-9]{4,6}-[01][0-9]-[0-2][0-9] [0-2][0-9]:00:00(\\.[0-9]{1,6})?[+-][0-9]{2}(:[0-9]{2})?( BC)?",
        ],
    ) {
        let columns = columns(&[codec]);
        if let Some(row) = encode(&columns, &[Some(&text)]) {
            let decoded = decode(&RowDecoder::new(&columns), &row).expect("a valid row");
            prop_assert_eq!(encode(&columns, &[decoded[0].as_deref()]), Some(row), "{:?}", decoded);
        }
    }

    #[test]
    fn damaged_rows_are_refused_or_hold_values_that_can_be_encoded(
        (codec, texts) in columns_and_texts(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let columns = columns(&[codec, codec]);
        let mut row = encode(&columns, &texts.each_ref().map(Option::as_deref)).expect("PostgreSQL's text");
        for (at, byte) in damage.iter().filter(|_| !texts.iter().all(Option::is_none)) {
            let at = at.index(row.len());
            row[at] = *byte;
        }
        let decoder = RowDecoder::new(&columns);
        if let Ok(decoded) = decode(&decoder, &row) {
            let texts: Vec<_> = decoded.iter().map(Option::as_deref).collect();
            let row = encode(&columns, &texts).expect("PostgreSQL's text");
            prop_assert_eq!(decode(&decoder, &row), Ok(decoded));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        codec in prop::sample::select(every_codec()),
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..60),
            proptest::collection::vec(prop::sample::select(vec![0, 1, 2, 3, 4, 6, 8, 10, 18, 26, 255]), 0..20),
        ],
    ) {
        let decoder = RowDecoder::new(&columns(&[codec]));
        let _read_or_refused = decode(&decoder, &bytes);
        let mut field = BytesMut::new();
        tidegate_schema::wire::put_len_field(&mut field, 1, &bytes);
        let _read_or_refused = decode(&decoder, &field);
    }

    #[test]
    fn a_row_type_from_the_changelog_decodes_alike((codec, texts) in columns_and_texts()) {
        let columns = columns(&[codec, codec]);
        let row = encode(&columns, &texts.each_ref().map(Option::as_deref)).expect("PostgreSQL's text");
        let delimiter = match codec {
            ValueKind::Array { delimiter, element: ScalarKind::Text } => delimiter,
            // All others are PostgreSQL's own, with a comma.
            ValueKind::Array { delimiter, .. } if delimiter != b',' => return Ok(()),
            ValueKind::Array { .. } | ValueKind::Scalar(_) | ValueKind::Range => b'!',
        };
        let known = RowDecoder::new(&columns);
        let found = RowDecoder::of_row_type(&row_type(columns), |_| delimiter).expect("valid");
        prop_assert_eq!(decode(&found, &row), decode(&known, &row));
    }
}

#[test]
fn floats_are_printed_as_postgresql_does() {
    let columns = columns(&[ValueKind::Scalar(ScalarKind::Double), ValueKind::Scalar(ScalarKind::Float)]);
    let decoder = RowDecoder::new(&columns);
    for [double, single] in [
        ["0", "-0"],
        ["NaN", "NaN"],
        ["Infinity", "-Infinity"],
        ["123456789012345", "123456"],
        ["1e+15", "1e+06"],
        ["-1.234567890123456e+15", "1.234567e+06"],
        ["999999999999999.9", "999999.94"],
        ["0.0001", "0.0001"],
        ["9.999999999999999e-05", "9.9999e-05"],
        ["5e-324", "1e-45"],
        ["1.7976931348623157e+308", "3.4028235e+38"],
        // The shortest decimal lies between two floats; two decimals are as near.
        ["9.999999999999999e+22", "-440070.12"],
        ["2.1758409095947462e+15", "7.2408096e+07"],
    ] {
        let row = encode(&columns, &[Some(double), Some(single)]).expect("valid");
        assert_eq!(decode(&decoder, &row), Ok(vec![Some(double.to_owned()), Some(single.to_owned())]));
    }
}

#[test]
fn a_projection_has_the_columns_that_it_has() {
    let codecs = [ValueKind::Scalar(ScalarKind::Int64), ValueKind::TEXT, ValueKind::Scalar(ScalarKind::Bool)];
    let columns = columns(&codecs);
    let row_type = row_type(columns.clone());
    let row = encode(&columns, &[Some("7"), Some(""), None]).expect("valid");
    let mut key = BytesMut::new();
    row_type.project(&row, row_type.key(), &mut key).expect("valid");

    let all = RowDecoder::new(&columns);
    assert_eq!(decode(&all, &row), Ok(vec![Some("7".to_owned()), Some(String::new()), None]));
    assert_eq!(decode(&all, &key), Ok(vec![Some("7".to_owned()), None, None]));
    let of_key = all.only(row_type.key());
    assert_eq!(of_key.fields().collect::<Vec<_>>(), [1]);
    assert_eq!(decode(&of_key, &row), Ok(vec![Some("7".to_owned())]));
    assert_eq!(decode(&of_key, &row), decode(&RowDecoder::new(columns.iter().filter(|column| column.key)), &key));
}

#[test]
fn an_error_names_the_column_and_leaves_no_values() {
    let decoder = RowDecoder::new(&columns(&[ValueKind::TEXT, ValueKind::Scalar(ScalarKind::Bool)]));
    let mut out = RowText::default();
    for row in [&[0x0a, 1, b'x', 0x10, 2][..], &[0x10, 1, 0x10, 1], &[0x12, 0]] {
        let error = decoder.text(row, &mut out).expect_err("damaged");
        assert!(matches!(&error, DecodeError::Column { column, .. } if column == "c2"), "{row:?}: {error}");
        assert_eq!(out.values().len(), 0);
    }
    assert!(matches!(decoder.text(&[0x0a, 9], &mut out), Err(DecodeError::Row(_))));
}

#[test]
fn only_arrays_of_types_that_postgresql_does_not_ship_need_a_delimiter() {
    let mut columns = columns(&[ValueKind::TEXT; 3]);
    let texts = ["{(1,1),(0,0);(2,2),(1,1)}", "{a,b}", "{01:02}"];
    let user = TypeShape::Array { element_oid: 50_001, delimiter: b':' };
    for (column, type_oid) in columns.iter_mut().zip([1020, 1009, 50_002]) {
        column.type_oid = type_oid;
        column.codec = ValueKind::of(type_oid, user);
    }
    let row = encode(&columns, &texts.map(Some)).expect("valid");
    let mut asked = Vec::new();
    let decoder = RowDecoder::of_row_type(&row_type(columns), |type_oid| {
        asked.push(type_oid);
        b':'
    });
    assert_eq!(decode(&decoder.expect("valid"), &row), Ok(texts.map(|text| Some(text.to_owned())).to_vec()));
    assert_eq!(asked, [50_002]);
}
