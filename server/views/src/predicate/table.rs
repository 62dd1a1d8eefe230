//! What typing has to know of a table. The catalog fills it in; nothing here asks for it.

use tidegate_model::TableName;

use super::kind::Kind;

/// A table that conditions are about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Its schema's exact name.
    pub schema: String,
    /// Its exact name.
    pub name: String,
    /// Its columns.
    pub columns: Vec<ColumnFacts>,
    /// The database's default collation, which constants have.
    pub default_collation: CollationFacts,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFacts {
    /// Its exact name.
    pub name: String,
    /// Its field number in the row type.
    pub field: u32,
    /// `pg_attribute.atttypid`; of a domain, the type at the end of its chain.
    pub type_oid: u32,
    /// `pg_attribute.attcollation`; None where the type has none.
    pub collation: Option<CollationFacts>,
    /// Of an enum.
    pub enum_type: Option<EnumFacts>,
}

/// A collation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollationFacts {
    /// Its name, with its schema where that is not `pg_catalog`.
    pub name: String,
    /// Is it the database's default?
    pub is_default: bool,
    /// Are only equal bytes equal (`pg_collation.collisdeterministic`)?
    pub deterministic: bool,
    /// Does it order by bytes and know the case of ASCII letters only? C and POSIX do, and a default collation that is
    /// one of them.
    pub is_c: bool,
}

/// An enum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnumFacts {
    /// Its schema's exact name.
    pub schema: String,
    /// Its exact name.
    pub name: String,
    /// In their order (`pg_enum.enumsortorder`).
    pub labels: Vec<String>,
}

impl TableFacts {
    /// The column's type, if conditions know it. An enum is told by its first column.
    pub(super) fn kind(&self, column: &ColumnFacts) -> Option<Kind> {
        let Some(enum_type) = &column.enum_type else { return Kind::of_oid(column.type_oid) };
        self.columns.iter().position(|other| other.enum_type.as_ref() == Some(enum_type)).map(Kind::Enum)
    }

    pub(super) fn is_named(&self, name: &TableName) -> bool {
        self.schema == name.schema && self.name == name.table
    }

    /// What a type of this table is in another one; None of an enum that no column there has.
    pub(super) fn kind_within(&self, kind: Kind, other: &TableFacts) -> Option<Kind> {
        let Kind::Enum(column) = kind else { return Some(kind) };
        let ours = self.enum_facts(column)?;
        let is_ours = |facts: &EnumFacts| facts.schema == ours.schema && facts.name == ours.name;
        let place = other.columns.iter().position(|column| column.enum_type.as_ref().is_some_and(is_ours));
        place.map(Kind::Enum)
    }

    pub(super) fn enum_facts(&self, column: usize) -> Option<&EnumFacts> {
        self.columns.get(column)?.enum_type.as_ref()
    }

    /// The type's name, for people.
    pub(super) fn kind_name(&self, kind: Kind) -> String {
        match kind {
            Kind::Enum(column) => self.enum_facts(column).map_or_else(String::new, |facts| facts.name.clone()),
            shipped => shipped.name().to_owned(),
        }
    }
}
