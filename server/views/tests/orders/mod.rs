//! A table of orders for tests of the index: its facts, and its rows as they are encoded.

use bytes::BytesMut;
use tidegate_schema::{ColumnSpec, RowEncoder, TypeShape, Value, ValueKind};
use tidegate_views::{CollationFacts, ColumnFacts, Index, Predicate, Room, Routed, TableFacts};

const COLUMNS: [(&str, &str, u32); 7] = [
    ("tenant", "int8", 20),
    ("status", "text", 25),
    ("price", "numeric", 1700),
    ("sku", "text", 25),
    ("paid", "bool", 16),
    ("gone_at", "timestamptz", 1184),
    ("tags", "text[]", 1009),
];

pub(crate) fn table() -> TableFacts {
    let collation = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: true };
    let column = |(field, (name, _, type_oid)): (u32, (&str, &str, u32))| ColumnFacts {
        name: name.to_owned(),
        field,
        type_oid,
        collation: matches!(type_oid, 25 | 1009).then(|| collation.clone()),
        enum_type: None,
    };
    TableFacts {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        columns: (1..).zip(COLUMNS).map(column).collect(),
        default_collation: collation.clone(),
    }
}

pub(crate) fn predicate(condition: &str) -> Predicate {
    Predicate::new(condition, &[], &table()).expect(condition)
}

/// Values as PostgreSQL writes them, between bars; an empty one is NULL, and so are those at the end that are left out.
pub(crate) fn row(values: &str) -> BytesMut {
    let column = |(field, (name, type_name, type_oid)): (u32, (&str, &str, u32))| ColumnSpec {
        name: name.to_owned(),
        attnum: 0,
        type_oid,
        type_name: type_name.to_owned(),
        codec: ValueKind::of(type_oid, TypeShape::Base),
        key: false,
        field,
    };
    let mut encoded = BytesMut::new();
    let values = values.split('|').chain(std::iter::repeat("")).take(COLUMNS.len()).map(|text| match text {
        "" => Value::Null,
        text => Value::Text(text.as_bytes()),
    });
    let encoder = RowEncoder::new(&(1..).zip(COLUMNS).map(column).collect::<Vec<_>>());
    encoder.encode(values, &mut encoded).expect("values of the types");
    encoded
}

/// By id.
pub(crate) fn route(index: &Index<u32>, old: Option<&str>, new: Option<&str>, room: &mut Room) -> Vec<Routed<u32>> {
    let (old, new) = (old.map(row), new.map(row));
    let mut routed = Vec::new();
    index.route(old.as_deref(), new.as_deref(), room, &mut routed).expect("whole rows");
    routed.sort_by_key(|routed| routed.id);
    routed
}
