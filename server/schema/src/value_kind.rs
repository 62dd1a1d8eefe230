//! How the values of a PostgreSQL type are held in a row message.
//!
//! The kind follows from the type alone, never from a value, so that a field keeps its protobuf type for ever. What has
//! no kind of its own is text: nothing is approximated. Deliberately unaware of the catalog: the caller says what a
//! type that PostgreSQL does not ship looks like ([`TypeShape`]).

/// The encoding of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScalarKind {
    /// `bool`.
    Bool,
    /// `int2`, `int4`.
    Int32,
    /// `int8`.
    Int64,
    /// `oid`.
    Uint32,
    /// `float4`.
    Float,
    /// `float8`.
    Double,
    /// `bytea`.
    Bytes,
    /// PostgreSQL's text of every other type.
    Text,
    /// `timestamptz`, as `tidegate.v1.Timestamptz`.
    Timestamptz,
}

/// The encoding of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueKind {
    /// One element.
    Scalar(ScalarKind),
    /// A `tidegate.v1.*Array`.
    Array {
        /// Of what.
        element: ScalarKind,
        /// What stands between elements in PostgreSQL's text: a comma for all but `box`.
        delimiter: u8,
    },
    /// A `tidegate.v1.Range`.
    Range,
}

/// What the catalog says of a type (`pg_type.typtype`, `typelem`, `typdelim`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TypeShape {
    /// A base type, an extension's included.
    Base,
    /// A domain over a type that PostgreSQL ships. A domain over any other type is passed as that type's OID and shape.
    Domain {
        /// The type at the end of the chain of domains.
        base_oid: u32,
    },
    /// An enum.
    Enum,
    /// A composite type.
    Composite,
    /// An array.
    Array {
        /// The element's type; where that is a domain, the type at the end of its chain.
        element_oid: u32,
        /// The element type's `typdelim`.
        delimiter: u8,
    },
    /// A range.
    Range,
    /// A multirange.
    Multirange,
}

/// OIDs below this are PostgreSQL's own (`FirstNormalObjectId`).
const FIRST_USER_OID: u32 = 16_384;

impl ValueKind {
    /// Text, as it stands.
    pub const TEXT: ValueKind = ValueKind::Scalar(ScalarKind::Text);

    /// The kind for a type. `shape` decides for types that PostgreSQL does not ship; its own are known by OID.
    #[must_use]
    pub fn of(type_oid: u32, shape: TypeShape) -> Self {
        if type_oid < FIRST_USER_OID
            && let Some(kind) = shipped_kind(type_oid)
        {
            return kind;
        }
        match shape {
            TypeShape::Base | TypeShape::Enum | TypeShape::Composite | TypeShape::Multirange => Self::TEXT,
            TypeShape::Domain { base_oid } => shipped_kind(base_oid).unwrap_or(Self::TEXT),
            TypeShape::Array { element_oid, delimiter } => {
                ValueKind::Array { element: ScalarKind::of(element_oid), delimiter }
            }
            TypeShape::Range => ValueKind::Range,
        }
    }
}

impl ScalarKind {
    /// Every kind.
    pub const ALL: [ScalarKind; 9] = [
        ScalarKind::Bool,
        ScalarKind::Int32,
        ScalarKind::Int64,
        ScalarKind::Uint32,
        ScalarKind::Float,
        ScalarKind::Double,
        ScalarKind::Bytes,
        ScalarKind::Text,
        ScalarKind::Timestamptz,
    ];

    /// The kind of an element; [`ScalarKind::Text`] for all that are not listed.
    fn of(type_oid: u32) -> Self {
        match type_oid {
            16 => ScalarKind::Bool,
            17 => ScalarKind::Bytes,
            20 => ScalarKind::Int64,
            21 | 23 => ScalarKind::Int32,
            26 => ScalarKind::Uint32,
            700 => ScalarKind::Float,
            701 => ScalarKind::Double,
            1184 => ScalarKind::Timestamptz,
            _ => ScalarKind::Text,
        }
    }
}

/// The kind of a type from `pg_type.dat`, where it is not text, or is but does not look it.
fn shipped_kind(type_oid: u32) -> Option<ValueKind> {
    let array = |element| Some(ValueKind::Array { element, delimiter: b',' });
    match type_oid {
        1000 => array(ScalarKind::Bool),
        1001 => array(ScalarKind::Bytes),
        1005 | 1007 => array(ScalarKind::Int32),
        1016 => array(ScalarKind::Int64),
        1028 => array(ScalarKind::Uint32),
        1021 => array(ScalarKind::Float),
        1022 => array(ScalarKind::Double),
        1185 => array(ScalarKind::Timestamptz),
        // box[]
        1020 => Some(ValueKind::Array { element: ScalarKind::Text, delimiter: b';' }),
        // json, xml, geometry, network addresses, money
        199 | 143 | 629 | 651 | 719 | 775 | 791 | 1017..=1019 | 1027 | 1040 | 1041 => array(ScalarKind::Text),
        // "char", name, int2vector, regproc, text, tid, xid, cid, oidvector, bpchar, varchar, aclitem, xid8
        1002 | 1003 | 1006 | 1008..=1015 | 1034 | 271 => array(ScalarKind::Text),
        // cstring, timestamp, date, time, interval, numeric, timetz, bit, varbit
        1263 | 1115 | 1182 | 1183 | 1187 | 1231 | 1270 | 1561 | 1563 => array(ScalarKind::Text),
        // refcursor, reg*, snapshots, uuid, pg_lsn
        2201 | 2207..=2211 | 4090 | 4097 | 4192 | 3735 | 3770 | 2949 | 5039 | 2951 | 3221 => array(ScalarKind::Text),
        // tsvector, gtsvector, tsquery, jsonb, jsonpath
        3643..=3645 | 3807 | 4073 => array(ScalarKind::Text),
        // ranges, multiranges
        3905 | 3907 | 3909 | 3911 | 3913 | 3927 | 6150..=6153 | 6155 | 6157 => array(ScalarKind::Text),
        3904 | 3906 | 3908 | 3910 | 3912 | 3926 => Some(ValueKind::Range),
        // name, int2vector, oidvector, point, lseg, box, line: the catalog gives them an element, their text is no
        // array's.
        19 | 22 | 30 | 600 | 601 | 603 | 628 => Some(ValueKind::TEXT),
        _ => match ScalarKind::of(type_oid) {
            ScalarKind::Text => None,
            scalar => Some(ValueKind::Scalar(scalar)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMA: u8 = b',';

    #[test]
    fn shipped_types_are_known_whatever_the_shape_says() {
        for (oid, kind) in [
            (16, ValueKind::Scalar(ScalarKind::Bool)),
            (21, ValueKind::Scalar(ScalarKind::Int32)),
            (26, ValueKind::Scalar(ScalarKind::Uint32)),
            (1184, ValueKind::Scalar(ScalarKind::Timestamptz)),
            (1700, ValueKind::TEXT),
            (18, ValueKind::TEXT),
            (22, ValueKind::TEXT),
            (790, ValueKind::TEXT),
            (2205, ValueKind::TEXT),
            (1007, ValueKind::Array { element: ScalarKind::Int32, delimiter: COMMA }),
            (1009, ValueKind::Array { element: ScalarKind::Text, delimiter: COMMA }),
            (1020, ValueKind::Array { element: ScalarKind::Text, delimiter: b';' }),
            (3910, ValueKind::Range),
            (4451, ValueKind::TEXT),
        ] {
            assert_eq!(ValueKind::of(oid, TypeShape::Base), kind, "{oid}");
        }
    }

    #[test]
    fn other_types_follow_their_shape() {
        let oid = 50_000;
        assert_eq!(ValueKind::of(oid, TypeShape::Enum), ValueKind::TEXT);
        assert_eq!(ValueKind::of(oid, TypeShape::Composite), ValueKind::TEXT);
        assert_eq!(ValueKind::of(oid, TypeShape::Multirange), ValueKind::TEXT);
        assert_eq!(ValueKind::of(oid, TypeShape::Range), ValueKind::Range);
        assert_eq!(
            ValueKind::of(oid, TypeShape::Array { element_oid: 50_001, delimiter: b';' }),
            ValueKind::Array { element: ScalarKind::Text, delimiter: b';' }
        );
    }

    #[test]
    fn a_domain_is_held_as_its_base() {
        let domain = |base_oid| ValueKind::of(50_000, TypeShape::Domain { base_oid });
        assert_eq!(domain(20), ValueKind::Scalar(ScalarKind::Int64));
        assert_eq!(domain(1016), ValueKind::Array { element: ScalarKind::Int64, delimiter: COMMA });
        assert_eq!(domain(25), ValueKind::TEXT);
    }
}
