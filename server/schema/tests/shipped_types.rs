//! The types that PostgreSQL ships, from the catalog of version 15, against the kinds that the codec knows by OID.
//!
//! `shipped_types.txt` holds `oid typname typtype element delimiter`, one type a line, composites left out, `-` for no
//! element: `SELECT t.oid, t.typname, t.typtype, coalesce(e.typname, '-'), coalesce(e.typdelim, ',') FROM pg_type t
//! LEFT JOIN pg_type e ON e.typarray = t.oid WHERE t.oid < 10000 AND t.typtype IN ('b', 'r', 'm') ORDER BY 1`.

use tidegate_schema::{ScalarKind, TypeShape, ValueKind};

/// DESIGN.md's table, by name.
fn scalar(type_name: &str) -> ScalarKind {
    match type_name {
        "bool" => ScalarKind::Bool,
        "int2" | "int4" => ScalarKind::Int32,
        "int8" => ScalarKind::Int64,
        "oid" => ScalarKind::Uint32,
        "float4" => ScalarKind::Float,
        "float8" => ScalarKind::Double,
        "bytea" => ScalarKind::Bytes,
        "timestamptz" => ScalarKind::Timestamptz,
        _ => ScalarKind::Text,
    }
}

#[test]
fn every_shipped_type_has_the_kind_that_its_name_asks_for() {
    let mut type_count = 0;
    for line in include_str!("shipped_types.txt").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [oid, name, kind, element, delimiter] = fields[..] else { panic!("{line}") };
        let expected = match (kind, element) {
            ("r", _) => ValueKind::Range,
            (_, "-") => ValueKind::Scalar(scalar(name)),
            (_, element) => ValueKind::Array { element: scalar(element), delimiter: delimiter.as_bytes()[0] },
        };
        assert_eq!(ValueKind::of(oid.parse().expect("an OID"), TypeShape::Base), expected, "{line}");
        type_count += 1;
    }
    assert_eq!(type_count, 158);
}

#[test]
fn types_that_only_look_like_arrays_are_text() {
    // pg_type.typelem is set for name, int2vector, oidvector, point, lseg, box and line, whose text is no array's.
    for oid in [19, 22, 30, 600, 601, 603, 628] {
        let shape = TypeShape::Array { element_oid: 21, delimiter: b',' };
        assert_eq!(ValueKind::of(oid, shape), ValueKind::TEXT, "{oid}");
    }
}
