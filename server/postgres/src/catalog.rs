//! Tables, columns and types as the catalog has them now, which may be ahead of the stream.
//!
//! It deliberately does not choose tables or keys, and knows no encoding: it answers what PostgreSQL says.

use std::collections::HashMap;

use tidegate_model::{ReplicaIdentity, TableName};
use tokio_postgres::Row;

use crate::{CatalogError, Session};

/// What kind of relation a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// An ordinary table, or a leaf of a partitioned one.
    Ordinary,
    /// A partitioned table, which holds no rows itself.
    Partitioned,
    /// Its rows are elsewhere: nothing of it is in the WAL.
    Foreign,
}

/// What becomes of its rows after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Persistence {
    /// In the WAL.
    Permanent,
    /// Not in the WAL.
    Unlogged,
    /// Gone with its session; not in the WAL.
    Temporary,
}

/// A user's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Exact name.
    pub name: TableName,
    /// What it is.
    pub kind: TableKind,
    /// Whether its changes are in the WAL.
    pub persistence: Persistence,
    /// The topmost table that it is a partition of; None for a table that is no partition.
    pub root_oid: Option<u32>,
    /// REPLICA IDENTITY.
    pub replica_identity: ReplicaIdentity,
    /// Column numbers of the primary key in its order; empty without one.
    pub primary_key: Vec<i16>,
    /// A deferrable key identifies no rows in the stream.
    pub primary_key_deferrable: bool,
    /// Column numbers of the index that REPLICA IDENTITY USING INDEX names; empty without one.
    pub identity_index: Vec<i16>,
    /// The session's role owns it, itself or by membership.
    pub owned: bool,
    /// The session's role may read it.
    pub readable: bool,
    /// It inherits from another table, and is no partition.
    pub inherits: bool,
}

impl TableInfo {
    /// A leaf of a partitioned table.
    #[must_use]
    pub fn is_leaf(&self) -> bool {
        self.root_oid.is_some() && self.kind == TableKind::Ordinary
    }

    /// Its rows can be told apart in the stream.
    #[must_use]
    pub fn has_key(&self) -> bool {
        match self.replica_identity {
            ReplicaIdentity::Full => !self.primary_key.is_empty(),
            ReplicaIdentity::Nothing | ReplicaIdentity::Default | ReplicaIdentity::Index => self.has_replica_identity(),
        }
    }

    /// UPDATE and DELETE can be published: without this, the application's own statements fail once they are.
    #[must_use]
    pub fn has_replica_identity(&self) -> bool {
        match self.replica_identity {
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Nothing => false,
            ReplicaIdentity::Default => !self.primary_key.is_empty() && !self.primary_key_deferrable,
            ReplicaIdentity::Index => !self.identity_index.is_empty(),
        }
    }
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogColumn {
    /// `pg_attribute.attnum`.
    pub attnum: i32,
    /// Exact name.
    pub name: String,
    /// Its type.
    pub type_oid: u32,
    /// The type as `format_type` prints it, with schema and modifier.
    pub type_name: String,
    /// `atttypmod`, or -1.
    pub type_modifier: i32,
    /// The type with domains resolved; equals `type_oid` for all others. `shape` describes this one.
    pub base_type_oid: u32,
    /// What values of the base type look like; never a domain. An array's element is resolved likewise.
    pub shape: TypeShape,
    /// NOT NULL.
    pub not_null: bool,
    /// Computed from other columns; not streamed unless the publication says so (18 and newer).
    pub generated: bool,
    /// Part of the primary key.
    pub in_primary_key: bool,
    /// Part of what identifies a row in the stream. With REPLICA IDENTITY FULL every column is.
    pub in_identity: bool,
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    /// `pg_type.oid`.
    pub oid: u32,
    /// As `format_type` prints it.
    pub name: String,
    /// What its values look like.
    pub shape: TypeShape,
}

/// What values of a type look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TypeShape {
    /// A text of its own.
    Base,
    /// Another type with constraints.
    Domain {
        /// The type below all domains.
        base_oid: u32,
    },
    /// One of its labels.
    Enum,
    /// A row.
    Composite,
    /// An array in braces.
    Array {
        /// Type of the elements, domains resolved.
        element_oid: u32,
        /// Between elements; a comma but for `box`.
        delimiter: u8,
    },
    /// A range.
    Range {
        /// Type of the bounds.
        subtype_oid: u32,
    },
    /// Several ranges.
    Multirange,
    /// Not a type of columns.
    Pseudo,
}

/// Every table of the users: not PostgreSQL's own, views or materialised views. Temporary tables of all sessions are among them.
///
/// # Errors
/// The connection or the server.
pub async fn tables(session: &Session) -> Result<Vec<TableInfo>, CatalogError> {
    const SQL: &str = "
        SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
               CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid END, c.relreplident::text,
               coalesce((pk.indkey::int2[])[0:pk.indnkeyatts - 1], '{}'), coalesce(NOT pk.indimmediate, false),
               coalesce((ri.indkey::int2[])[0:ri.indnkeyatts - 1], '{}'),
               pg_has_role(c.relowner, 'USAGE'),
               has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
               NOT c.relispartition AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_index pk ON pk.indrelid = c.oid AND pk.indisprimary AND pk.indisvalid
        LEFT JOIN pg_index ri ON ri.indrelid = c.oid AND ri.indisreplident AND ri.indisvalid
        WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
        ORDER BY 2, 3";
    let doing = CatalogError::while_we("list the tables");
    let rows = session.client().query(SQL, &[]).await.map_err(&doing)?;
    rows.iter().map(table).collect::<Result<_, _>>().map_err(doing)
}

fn table(row: &Row) -> Result<TableInfo, tokio_postgres::Error> {
    Ok(TableInfo {
        oid: row.try_get(0)?,
        name: TableName::new(row.try_get::<_, &str>(1)?, row.try_get::<_, &str>(2)?),
        kind: match row.try_get(3)? {
            "p" => TableKind::Partitioned,
            "f" => TableKind::Foreign,
            _ => TableKind::Ordinary,
        },
        persistence: match row.try_get(4)? {
            "u" => Persistence::Unlogged,
            "t" => Persistence::Temporary,
            _ => Persistence::Permanent,
        },
        root_oid: row.try_get(5)?,
        replica_identity: match row.try_get(6)? {
            "f" => ReplicaIdentity::Full,
            "n" => ReplicaIdentity::Nothing,
            "i" => ReplicaIdentity::Index,
            _ => ReplicaIdentity::Default,
        },
        primary_key: row.try_get(7)?,
        primary_key_deferrable: row.try_get(8)?,
        identity_index: row.try_get(9)?,
        owned: row.try_get(10)?,
        readable: row.try_get(11)?,
        inherits: row.try_get(12)?,
    })
}

/// The columns of a table in order, generated ones included; empty if there is no such table.
///
/// # Errors
/// The connection or the server.
pub async fn relation_columns(session: &Session, oid: u32) -> Result<Vec<CatalogColumn>, CatalogError> {
    const SQL: &str = "
        SELECT a.attnum::int4, a.attname::text, a.atttypid, format_type(a.atttypid, a.atttypmod), a.atttypmod, a.attnotnull,
               a.attgenerated <> '', coalesce(a.attnum = ANY ((pk.indkey::int2[])[0:pk.indnkeyatts - 1]), false),
               CASE c.relreplident
                   WHEN 'f' THEN true
                   WHEN 'n' THEN false
                   WHEN 'i' THEN coalesce(a.attnum = ANY ((ri.indkey::int2[])[0:ri.indnkeyatts - 1]), false)
                   ELSE coalesce(pk.indimmediate AND a.attnum = ANY ((pk.indkey::int2[])[0:pk.indnkeyatts - 1]), false)
               END
        FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_index pk ON pk.indrelid = c.oid AND pk.indisprimary AND pk.indisvalid
        LEFT JOIN pg_index ri ON ri.indrelid = c.oid AND ri.indisreplident AND ri.indisvalid
        WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
        ORDER BY a.attnum";
    let doing = CatalogError::while_we("read a table's columns");
    let rows = session.client().query(SQL, &[&oid]).await.map_err(&doing)?;
    let column = |row: &Row| {
        Ok(CatalogColumn {
            attnum: row.try_get(0)?,
            name: row.try_get(1)?,
            type_oid: row.try_get(2)?,
            type_name: row.try_get(3)?,
            type_modifier: row.try_get(4)?,
            base_type_oid: row.try_get(2)?,
            shape: TypeShape::Base,
            not_null: row.try_get(5)?,
            generated: row.try_get(6)?,
            in_primary_key: row.try_get(7)?,
            in_identity: row.try_get(8)?,
        })
    };
    let mut columns: Vec<CatalogColumn> = rows.iter().map(column).collect::<Result<_, _>>().map_err(&doing)?;
    let types = Types::read(session, columns.iter().map(|column| column.type_oid)).await?;
    for column in &mut columns {
        column.base_type_oid = types.base(column.type_oid);
        column.shape = types.shape(column.base_type_oid);
    }
    Ok(columns)
}

/// The types with these OIDs, in their order; those that do not exist are left out.
///
/// # Errors
/// The connection or the server.
pub async fn type_info(session: &Session, oids: &[u32]) -> Result<Vec<TypeInfo>, CatalogError> {
    let types = Types::read(session, oids.iter().copied()).await?;
    let info = |&oid: &u32| {
        let name = types.0.get(&oid)?.name.clone();
        Some(TypeInfo { oid, name, shape: types.shape(oid) })
    };
    Ok(oids.iter().filter_map(info).collect())
}

/// Types and all that they are made of, as far as values' form depends on it.
struct Types(HashMap<u32, RawType>);

/// A row of `pg_type`.
struct RawType {
    name: String,
    /// `typtype`.
    kind: char,
    /// Of a domain.
    base_oid: u32,
    /// Of an array; 0 otherwise.
    element_oid: u32,
    /// Of an array.
    delimiter: u8,
    /// Of a range; 0 otherwise.
    subtype_oid: u32,
}

impl Types {
    async fn read(session: &Session, oids: impl Iterator<Item = u32>) -> Result<Self, CatalogError> {
        // An array is the type that its element names as such; int2vector and the like have elements, but no braces.
        const SQL: &str = "
            SELECT t.oid, format_type(t.oid, NULL), t.typtype::text, t.typbasetype, coalesce(e.oid, 0),
                   coalesce(e.typdelim, ',')::text, coalesce(r.rngsubtype, 0)
            FROM pg_type t
            LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
            LEFT JOIN pg_range r ON r.rngtypid = t.oid
            WHERE t.oid = ANY ($1)";
        let doing = CatalogError::while_we("read types");
        let mut types = Types(HashMap::new());
        let mut wanted: Vec<u32> = oids.collect();
        while !wanted.is_empty() {
            let rows = session.client().query(SQL, &[&wanted]).await.map_err(&doing)?;
            wanted.clear();
            for row in &rows {
                let (oid, raw) = raw_type(row).map_err(&doing)?;
                wanted.extend([raw.base_oid, raw.element_oid].iter().filter(|oid| **oid != 0));
                types.0.insert(oid, raw);
            }
            wanted.retain(|oid| !types.0.contains_key(oid));
        }
        Ok(types)
    }

    /// The type below all domains.
    fn base(&self, mut oid: u32) -> u32 {
        // PostgreSQL allows no cycles; a catalog read in the middle of a change must not make us loop either.
        for _ in 0..64 {
            match self.0.get(&oid) {
                Some(raw) if raw.kind == 'd' => oid = raw.base_oid,
                Some(_) | None => break,
            }
        }
        oid
    }

    fn shape(&self, oid: u32) -> TypeShape {
        let Some(raw) = self.0.get(&oid) else { return TypeShape::Base };
        match raw.kind {
            'd' => TypeShape::Domain { base_oid: self.base(oid) },
            'e' => TypeShape::Enum,
            'c' => TypeShape::Composite,
            'r' => TypeShape::Range { subtype_oid: raw.subtype_oid },
            'm' => TypeShape::Multirange,
            'p' => TypeShape::Pseudo,
            _ if raw.element_oid != 0 => {
                TypeShape::Array { element_oid: self.base(raw.element_oid), delimiter: raw.delimiter }
            }
            _ => TypeShape::Base,
        }
    }
}

fn raw_type(row: &Row) -> Result<(u32, RawType), tokio_postgres::Error> {
    let raw = RawType {
        name: row.try_get(1)?,
        kind: row.try_get::<_, &str>(2)?.chars().next().unwrap_or('b'),
        base_oid: row.try_get(3)?,
        element_oid: row.try_get(4)?,
        delimiter: row.try_get::<_, &str>(5)?.bytes().next().unwrap_or(b','),
        subtype_oid: row.try_get(6)?,
    };
    Ok((row.try_get(0)?, raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(rows: &[(u32, char, u32, u32)]) -> Types {
        let raw = |&(oid, kind, base_oid, element_oid): &(u32, char, u32, u32)| {
            let name = oid.to_string();
            (oid, RawType { name, kind, base_oid, element_oid, delimiter: b',', subtype_oid: 0 })
        };
        Types(rows.iter().map(raw).collect())
    }

    #[test]
    fn domains_are_resolved_down_to_their_base_also_within_arrays() {
        let types = types(&[(1, 'd', 2, 0), (2, 'd', 3, 0), (3, 'b', 0, 0), (4, 'b', 0, 1)]);
        assert_eq!(types.shape(1), TypeShape::Domain { base_oid: 3 });
        assert_eq!(types.shape(4), TypeShape::Array { element_oid: 3, delimiter: b',' });
        assert_eq!(types.base(4), 4);
    }

    #[test]
    fn a_cycle_of_domains_ends() {
        assert_eq!(types(&[(1, 'd', 1, 0)]).shape(1), TypeShape::Domain { base_oid: 1 });
    }
}
