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
    Bytea,
    Enum(usize),
}

/// `pg_type.typcategory`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Category {
    Boolean,
    Number,
    Text,
    DateTime,
    Other,
}

impl Kind {
    /// By `pg_type.oid`; None where it is not among those.
    pub(super) fn of_oid(oid: u32) -> Option<Self> {
        Some(match oid {
            16 => Kind::Bool,
            17 => Kind::Bytea,
            20 => Kind::Int8,
            21 => Kind::Int2,
            23 => Kind::Int4,
            25 => Kind::Text,
            26 => Kind::Oid,
            700 => Kind::Float4,
            701 => Kind::Float8,
            1042 => Kind::Bpchar,
            1043 => Kind::Varchar,
            1082 => Kind::Date,
            1083 => Kind::Time,
            1114 => Kind::Timestamp,
            1184 => Kind::Timestamptz,
            1700 => Kind::Numeric,
            2950 => Kind::Uuid,
            _ => return None,
        })
    }

    /// By a name that SQL has for it.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "bool" | "boolean" => Kind::Bool,
            "int2" | "smallint" => Kind::Int2,
            "int4" | "int" | "integer" => Kind::Int4,
            "int8" | "bigint" => Kind::Int8,
            "oid" => Kind::Oid,
            "numeric" | "decimal" | "dec" => Kind::Numeric,
            "float4" | "real" => Kind::Float4,
            "float8" | "float" | "double precision" => Kind::Float8,
            "text" => Kind::Text,
            "varchar" | "character varying" | "char varying" => Kind::Varchar,
            "bpchar" | "character" | "char" => Kind::Bpchar,
            "uuid" => Kind::Uuid,
            "date" => Kind::Date,
            "time" | "time without time zone" => Kind::Time,
            "timestamp" | "timestamp without time zone" => Kind::Timestamp,
            "timestamptz" | "timestamp with time zone" => Kind::Timestamptz,
            "bytea" => Kind::Bytea,
            _ => return None,
        })
    }

    /// In `pg_catalog`; empty for an enum.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int2 => "int2",
            Kind::Int4 => "int4",
            Kind::Int8 => "int8",
            Kind::Oid => "oid",
            Kind::Numeric => "numeric",
            Kind::Float4 => "float4",
            Kind::Float8 => "float8",
            Kind::Text => "text",
            Kind::Varchar => "varchar",
            Kind::Bpchar => "bpchar",
            Kind::Uuid => "uuid",
            Kind::Date => "date",
            Kind::Time => "time",
            Kind::Timestamp => "timestamp",
            Kind::Timestamptz => "timestamptz",
            Kind::Bytea => "bytea",
            Kind::Enum(_) => "",
        }
    }

    pub(super) fn category(self) -> Category {
        match self {
            Kind::Bool => Category::Boolean,
            Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Oid | Kind::Numeric | Kind::Float4 | Kind::Float8 => {
                Category::Number
            }
            Kind::Text | Kind::Varchar | Kind::Bpchar => Category::Text,
            Kind::Date | Kind::Time | Kind::Timestamp | Kind::Timestamptz => Category::DateTime,
            Kind::Uuid | Kind::Bytea | Kind::Enum(_) => Category::Other,
        }
    }

    /// `pg_type.typispreferred`
    pub(super) fn is_preferred(self) -> bool {
        matches!(self, Kind::Bool | Kind::Oid | Kind::Float8 | Kind::Text | Kind::Timestamptz)
    }

    pub(super) fn is_text(self) -> bool {
        self.category() == Category::Text
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

    /// Is there a cast that PostgreSQL applies by itself (`pg_cast.castcontext` = 'i')?
    pub(super) fn casts_implicitly_to(self, to: Kind) -> bool {
        if self == to || (self.is_text() && to.is_text()) {
            return true;
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
        )
    }

    /// Is there one that is written, and does its result follow from the value alone?
    pub(super) fn casts_exactly_to(self, to: Kind) -> bool {
        let number = |kind: Kind| kind.int_width().is_some() || kind.is_float() || kind == Kind::Numeric;
        match (self, to) {
            // It depends on the session's TimeZone.
            (_, Kind::Timestamptz) | (Kind::Timestamptz, _) => self == to,
            // Through 15 or 6 digits.
            (Kind::Float4 | Kind::Float8, Kind::Numeric) => false,
            (from, to) if from.casts_implicitly_to(to) || (number(from) && number(to)) => true,
            (Kind::Bool, Kind::Int4)
            | (Kind::Int4, Kind::Bool)
            | (Kind::Oid, Kind::Int4 | Kind::Int8)
            | (Kind::Timestamp, Kind::Date) => true,
            (from, to) if to.is_text() => {
                from.int_width().is_some() || matches!(from, Kind::Bool | Kind::Uuid | Kind::Numeric)
            }
            _ => false,
        }
    }
}
