//! The types that conditions know, and PostgreSQL's rules between them (`pg_type`, `pg_cast`).

/// A type. An enum is told by its place among the table's enums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Numeric,
    Float4,
    Float8,
    Text,
    Varchar,
    Bpchar,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Interval,
    Bytea,
    Json,
    Jsonb,
    Enum(usize),
    /// Of one of the others but an enum; the element stands in [`SHIPPED`].
    Array(&'static Kind),
    /// Of what stands in [`RANGES`].
    Range(&'static Kind),
}

/// `pg_type.typcategory`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Category {
    Boolean,
    Number,
    Text,
    DateTime,
    Timespan,
    Array,
    Range,
    /// Of what functions take that take several types.
    Pseudo,
    Other,
}

/// A type that PostgreSQL ships.
struct Shipped {
    kind: Kind,
    oid: u32,
    array_oid: u32,
    /// In `pg_catalog`.
    name: &'static str,
    /// Of its array.
    array_name: &'static str,
    /// What else SQL calls it.
    names: &'static [&'static str],
    category: Category,
    /// `pg_type.typispreferred`
    preferred: bool,
}

macro_rules! shipped {
    ($($kind:ident $oid:literal $array_oid:literal $name:literal $names:expr, $category:ident $preferred:literal;)*) => {
        &[$(Shipped {
            kind: Kind::$kind,
            oid: $oid,
            array_oid: $array_oid,
            name: $name,
            array_name: concat!($name, "[]"),
            names: &$names,
            category: Category::$category,
            preferred: $preferred,
        }),*]
    };
}

static SHIPPED: &[Shipped] = shipped! {
    Bool 16 1000 "bool" ["boolean"], Boolean true;
    Int2 21 1005 "int2" ["smallint"], Number false;
    Int4 23 1007 "int4" ["int", "integer"], Number false;
    Int8 20 1016 "int8" ["bigint"], Number false;
    Oid 26 1028 "oid" [], Number true;
    Numeric 1700 1231 "numeric" ["decimal", "dec"], Number false;
    Float4 700 1021 "float4" ["real"], Number false;
    Float8 701 1022 "float8" ["float", "double precision"], Number true;
    Text 25 1009 "text" [], Text true;
    Varchar 1043 1015 "varchar" ["character varying", "char varying"], Text false;
    Bpchar 1042 1014 "bpchar" ["character", "char"], Text false;
    Uuid 2950 2951 "uuid" [], Other false;
    Date 1082 1182 "date" [], DateTime false;
    Time 1083 1183 "time" ["time without time zone"], DateTime false;
    Timestamp 1114 1115 "timestamp" ["timestamp without time zone"], DateTime false;
    Timestamptz 1184 1185 "timestamptz" ["timestamp with time zone"], DateTime true;
    Interval 1186 1187 "interval" [], Timespan true;
    Bytea 17 1001 "bytea" [], Other false;
    Json 114 199 "json" [], Other false;
    Jsonb 3802 3807 "jsonb" [], Other false;
};

/// What ranges are of, with the range's OID and name.
static RANGES: [(Kind, u32, &str); 6] = [
    (Kind::Int4, 3904, "int4range"),
    (Kind::Int8, 3926, "int8range"),
    (Kind::Numeric, 3906, "numrange"),
    (Kind::Date, 3912, "daterange"),
    (Kind::Timestamp, 3908, "tsrange"),
    (Kind::Timestamptz, 3910, "tstzrange"),
];

impl Kind {
    fn shipped(self) -> Option<&'static Shipped> {
        SHIPPED.iter().find(|shipped| shipped.kind == self)
    }

    /// By `pg_type.oid`; None where it is not among those.
    pub(super) fn of_oid(oid: u32) -> Option<Self> {
        if let Some((subtype, ..)) = RANGES.iter().find(|(_, range_oid, _)| *range_oid == oid) {
            return Some(Kind::Range(subtype));
        }
        let found = SHIPPED.iter().find(|shipped| shipped.oid == oid || shipped.array_oid == oid)?;
        if found.oid == oid { Some(found.kind) } else { Some(Kind::Array(&found.kind)) }
    }

    /// By a name that SQL has for it.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        if let Some((subtype, ..)) = RANGES.iter().find(|(.., range_name)| *range_name == name) {
            return Some(Kind::Range(subtype));
        }
        let found = SHIPPED.iter().find(|shipped| shipped.name == name || shipped.names.contains(&name))?;
        Some(found.kind)
    }

    /// In `pg_catalog`; empty for an enum.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Array(element) => element.shipped().map_or("", |shipped| shipped.array_name),
            Kind::Range(subtype) => RANGES.iter().find(|(of, ..)| of == subtype).map_or("", |(.., name)| name),
            scalar => scalar.shipped().map_or("", |shipped| shipped.name),
        }
    }

    pub(super) fn category(self) -> Category {
        match self {
            Kind::Array(_) => Category::Array,
            Kind::Range(_) => Category::Range,
            scalar => scalar.shipped().map_or(Category::Other, |shipped| shipped.category),
        }
    }

    pub(super) fn is_preferred(self) -> bool {
        self.shipped().is_some_and(|shipped| shipped.preferred)
    }

    /// The array of such elements; None of an enum and of an array.
    pub(super) fn array(self) -> Option<Self> {
        self.shipped().map(|shipped| Kind::Array(&shipped.kind))
    }

    pub(super) fn element(self) -> Option<Self> {
        if let Kind::Array(element) = self { Some(*element) } else { None }
    }

    /// What a range is of.
    pub(super) fn subtype(self) -> Option<Self> {
        if let Kind::Range(subtype) = self { Some(*subtype) } else { None }
    }

    /// Of the element, where it is an array.
    pub(super) fn innermost(self) -> Self {
        self.element().unwrap_or(self)
    }

    pub(super) fn is_text(self) -> bool {
        self.category() == Category::Text
    }

    /// Does its order, and perhaps its equality, follow from a collation?
    pub(super) fn is_collatable(self) -> bool {
        self.innermost().is_text()
    }

    /// int2, int4 or int8, by width.
    pub(super) fn int_width(self) -> Option<u8> {
        match self {
            Kind::Int2 => Some(2),
            Kind::Int4 => Some(4),
            Kind::Int8 => Some(8),
            _ => None,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Kind::Float4 | Kind::Float8)
    }

    /// With arithmetic of its own that needs no other type.
    pub(super) fn is_number(self) -> bool {
        self.int_width().is_some() || self.is_float() || self == Kind::Numeric
    }

    /// Is there a cast that PostgreSQL applies by itself (`pg_cast.castcontext` = 'i')?
    pub(super) fn casts_implicitly_to(self, to: Kind) -> bool {
        if self == to || (self.is_text() && to.is_text()) {
            return true;
        }
        if let (Kind::Array(from), Kind::Array(to)) = (self, to) {
            return from.casts_implicitly_to(*to);
        }
        matches!(
            (self, to),
            (Kind::Int2, Kind::Int4 | Kind::Int8)
                | (Kind::Int4, Kind::Int8)
                | (Kind::Int2 | Kind::Int4 | Kind::Int8, Kind::Numeric | Kind::Float4 | Kind::Float8 | Kind::Oid)
                | (Kind::Numeric, Kind::Float4 | Kind::Float8)
                | (Kind::Float4, Kind::Float8)
                | (Kind::Date, Kind::Timestamp | Kind::Timestamptz)
                | (Kind::Timestamp, Kind::Timestamptz)
                | (Kind::Time, Kind::Interval)
        )
    }

    /// Is there one that is written, and does its result follow from the value alone?
    pub(super) fn casts_exactly_to(self, to: Kind) -> bool {
        match (self, to) {
            (Kind::Array(from), Kind::Array(to)) => from.casts_exactly_to(*to),
            // It depends on the session's TimeZone.
            (_, Kind::Timestamptz) | (Kind::Timestamptz, _) => self == to,
            // Through 15 or 6 digits.
            (Kind::Float4 | Kind::Float8, Kind::Numeric) => false,
            (from, to) if from.casts_implicitly_to(to) || (from.is_number() && to.is_number()) => true,
            (Kind::Bool, Kind::Int4)
            | (Kind::Int4, Kind::Bool)
            | (Kind::Oid, Kind::Int4 | Kind::Int8)
            | (Kind::Timestamp, Kind::Date | Kind::Time)
            | (Kind::Interval, Kind::Time)
            | (Kind::Json, Kind::Jsonb) => true,
            (from, to) if from.is_text() => {
                to.is_number() || matches!(to, Kind::Bool | Kind::Uuid | Kind::Jsonb | Kind::Oid)
            }
            (from, to) if to.is_text() => {
                from.int_width().is_some()
                    || matches!(from, Kind::Bool | Kind::Uuid | Kind::Numeric | Kind::Json | Kind::Jsonb)
            }
            _ => false,
        }
    }
}
