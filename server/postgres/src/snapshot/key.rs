//! A table's key as an order to read by: the index that carries it, in that index's own operators, collations and directions.
//!
//! Invariant: nothing is looked up by `search_path` or by a type's default: an operator is the one that the index was built with.
//! So the index can be used for each chunk, and two keys that the index tells apart are told apart here (citext, a
//! nondeterministic collation, another operator class).

use tidegate_model::{ReplicaIdentity, TableName};

use crate::{
    CatalogColumn, Session,
    publication::quoted,
    snapshot::{Cursor, CursorError, SnapshotReadError},
};

/// A column of the key, in the index's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyColumn {
    /// Exact name.
    pub name: String,
    /// Index into the relation's columns.
    pub column: usize,
    /// Type OID.
    pub type_oid: u32,
    /// The type below all domains, as SQL, without a modifier: a literal cast to it is neither cut nor checked.
    pub base_type: String,
    /// The index's collation, as SQL; None where the type has none.
    pub collation: Option<String>,
    /// The index is descending here.
    pub descending: bool,
    /// The index has NULLs first. There are none, but an order that says otherwise is not the index's.
    pub nulls_first: bool,
    /// `<`, `<=`, `=`, `>=`, `>` of the index's operator family, as SQL.
    pub operators: [String; 5],
}

impl KeyColumn {
    /// The column as SQL, in the index's collation.
    pub(super) fn sql(&self) -> String {
        let collation = self.collation.as_ref().map(|name| format!(" COLLATE {name}"));
        format!("t.{}{}", quoted(&self.name), collation.unwrap_or_default())
    }

    pub(super) fn less(&self) -> &str {
        &self.operators[0]
    }

    pub(super) fn equal(&self) -> &str {
        &self.operators[2]
    }

    pub(super) fn greater(&self) -> &str {
        &self.operators[4]
    }

    /// "Later in the order", and "at the same place or later".
    pub(super) fn later(&self) -> (&str, &str) {
        if self.descending { (self.less(), &self.operators[1]) } else { (self.greater(), &self.operators[3]) }
    }
}

/// A digest of the order: FNV-1a (64 bits), since it must be the same in every build.
pub(super) fn order_of(key: &[KeyColumn]) -> u64 {
    let text = key.iter().map(|column| {
        let KeyColumn { name, base_type, collation, descending, operators, .. } = column;
        format!("{name:?} {base_type:?} {collation:?} {descending} {operators:?}\n")
    });
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    text.flat_map(String::into_bytes).fold(0xCBF2_9CE4_8422_2325, step)
}

/// Checks that a cursor continues this order.
pub(super) fn check_cursor(key: &[KeyColumn], cursor: &Cursor) -> Result<(), CursorError> {
    let fits = cursor.order == order_of(key) && cursor.key.len() == key.len();
    if fits { Ok(()) } else { Err(CursorError::OtherKey) }
}

/// The key of a table: the primary key where the stream carries it, else the replica identity's index, as capture resolves it.
/// Empty without one, or where the publication leaves a column of it out.
pub(super) async fn read(
    session: &Session,
    table: &TableName,
    oid: u32,
    identity: ReplicaIdentity,
    columns: &[CatalogColumn],
) -> Result<Vec<KeyColumn>, SnapshotReadError> {
    let index = match identity {
        ReplicaIdentity::Default => "i.indisprimary AND i.indimmediate",
        ReplicaIdentity::Full => "i.indisprimary",
        ReplicaIdentity::Index => "i.indisreplident",
        ReplicaIdentity::Nothing => return Ok(Vec::new()),
    };
    // Other access methods than btree (WITHOUT OVERLAPS, 18 and newer) have no order; the type's own will do.
    let sql = format!(
        "WITH RECURSIVE base AS (
             SELECT a.attnum, a.atttypid AS oid FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0
             UNION ALL
             SELECT b.attnum, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
         SELECT a.attnum::int4, quote_ident(tn.nspname) || '.' || quote_ident(t.typname),
                quote_ident(con.nspname) || '.' || quote_ident(co.collname),
                am.amname = 'btree' AND i.indoption[o] & 1 <> 0, am.amname = 'btree' AND i.indoption[o] & 2 <> 0,
                ARRAY(SELECT coalesce((SELECT 'OPERATOR(' || quote_ident(opn.nspname) || '.' || op.oprname || ')'
                                       FROM pg_amop ao JOIN pg_operator op ON op.oid = ao.amopopr
                                       JOIN pg_namespace opn ON opn.oid = op.oprnamespace
                                       WHERE am.amname = 'btree' AND ao.amopfamily = oc.opcfamily AND ao.amopstrategy = s.strategy
                                         AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype),
                                      'OPERATOR(pg_catalog.' || s.symbol || ')')
                      FROM (VALUES (1, '<'), (2, '<='), (3, '='), (4, '>='), (5, '>')) s (strategy, symbol) ORDER BY strategy)
         FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am am ON am.oid = ic.relam
         CROSS JOIN generate_series(0, i.indnkeyatts - 1) o
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[o]
         JOIN pg_opclass oc ON oc.oid = i.indclass[o]
         JOIN base b ON b.attnum = a.attnum
         JOIN pg_type t ON t.oid = b.oid AND t.typtype <> 'd' JOIN pg_namespace tn ON tn.oid = t.typnamespace
         LEFT JOIN pg_collation co ON co.oid = i.indcollation[o] LEFT JOIN pg_namespace con ON con.oid = co.collnamespace
         WHERE i.indrelid = $1 AND i.indisvalid AND {index}
         ORDER BY o"
    );
    let doing = SnapshotReadError::of(table, "read a table's key");
    let rows = session.client().query(&sql, &[&oid]).await.map_err(&doing)?;
    let mut key = Vec::with_capacity(rows.len());
    for row in &rows {
        let attnum: i32 = row.try_get(0).map_err(&doing)?;
        let Some(column) = columns.iter().position(|column| column.attnum == attnum) else { return Ok(Vec::new()) };
        let operators: Vec<String> = row.try_get(5).map_err(&doing)?;
        key.push(KeyColumn {
            name: columns[column].name.clone(),
            column,
            type_oid: columns[column].type_oid,
            base_type: row.try_get(1).map_err(&doing)?,
            collation: row.try_get(2).map_err(&doing)?,
            descending: row.try_get(3).map_err(&doing)?,
            nulls_first: row.try_get(4).map_err(&doing)?,
            operators: operators.try_into().map_err(|_| SnapshotReadError::Unexpected {
                table: table.clone(),
                problem: "an index without the operators of its order",
            })?,
        });
    }
    Ok(key)
}
