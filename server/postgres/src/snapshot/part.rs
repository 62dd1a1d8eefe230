//! What has to be known of a table before a part of it is asked for, and whether PostgreSQL takes what is asked for.
//!
//! Invariant: a condition is only ever given to PostgreSQL as it was printed from a typed tree, and keys only as parameters or
//! escaped literals. It deliberately knows only the columns that the publication sends: what is not to leave the database must
//! not be found out by asking for rows.

use tidegate_model::Part;
use tokio_postgres::{Row, error::SqlState};

use crate::{
    Session,
    publication::qualified,
    snapshot::{KeyColumn, SnapshotReadError, TablePlan},
};

/// A column that a condition may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartColumn {
    /// Exact name.
    pub name: String,
    /// Its type, as `format_type` prints it.
    pub type_name: String,
    /// The type below all domains.
    pub base_type_oid: u32,
    /// `pg_attribute.attcollation`; None where the type has none.
    pub collation: Option<Collation>,
    /// Of an enum: schema, name, and labels in their order. None of a domain over one: PostgreSQL has no operators for that.
    pub enum_type: Option<(String, String, Vec<String>)>,
}

/// A collation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collation {
    /// Its name, with its schema where that is not `pg_catalog`.
    pub name: String,
    /// Is it the database's default?
    pub is_default: bool,
    /// Are only equal bytes equal?
    pub deterministic: bool,
    /// C or POSIX, or a default that is one of them.
    pub is_c: bool,
}

/// A value that PostgreSQL does not read as the key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedKey {
    /// Which of the keys, from 0.
    pub key: usize,
    /// Which of the key's columns, from 0.
    pub column: usize,
}

/// The columns that the plan sends, and the database's default collation.
///
/// # Errors
/// The connection or the server.
pub async fn part_columns(
    session: &Session,
    plan: &TablePlan,
) -> Result<(Vec<PartColumn>, Collation), SnapshotReadError> {
    // What a catalog of one version lacks is null in its JSON.
    const DEFAULT: &str = "
        SELECT CASE coalesce(to_jsonb(d) ->> 'datlocprovider', 'c')
                   WHEN 'c' THEN d.datcollate IN ('C', 'POSIX') AND d.datctype IN ('C', 'POSIX')
                   WHEN 'b' THEN coalesce(to_jsonb(d) ->> 'datlocale' = 'C', false)
                   ELSE false END
        FROM pg_database d WHERE d.datname = current_database()";
    const COLUMNS: &str = "
        WITH RECURSIVE base AS (
            SELECT a.attnum, a.attname, a.attcollation, a.atttypid AS oid, format_type(a.atttypid, a.atttypmod) AS type_name,
                   false AS is_domain
            FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT b.attnum, b.attname, b.attcollation, t.typbasetype, b.type_name, true FROM base b JOIN pg_type t ON t.oid = b.oid
            WHERE t.typtype = 'd')
        SELECT b.attname::text, b.oid,
               CASE WHEN cn.nspname = 'pg_catalog' THEN c.collname::text
                    ELSE quote_ident(cn.nspname) || '.' || quote_ident(c.collname) END,
               c.collprovider = 'd', c.collisdeterministic,
               CASE c.collprovider
                   WHEN 'c' THEN c.collcollate IN ('C', 'POSIX') AND c.collctype IN ('C', 'POSIX')
                   WHEN 'b' THEN coalesce(to_jsonb(c) ->> 'colllocale' = 'C', false)
                   ELSE false END,
               tn.nspname::text, t.typname::text,
               CASE WHEN t.typtype = 'e' AND NOT b.is_domain THEN
                   ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) END,
               b.type_name
        FROM base b JOIN pg_type t ON t.oid = b.oid AND t.typtype <> 'd' JOIN pg_namespace tn ON tn.oid = t.typnamespace
        LEFT JOIN pg_collation c ON c.oid = b.attcollation LEFT JOIN pg_namespace cn ON cn.oid = c.collnamespace
        ORDER BY b.attnum";
    let table = plan.name();
    let doing = SnapshotReadError::of(&table, "read a table's collations and enums");
    let row = session.client().query_one(DEFAULT, &[]).await.map_err(&doing)?;
    let is_c = row.try_get(0).map_err(&doing)?;
    let default = Collation { name: "default".to_owned(), is_default: true, deterministic: true, is_c };
    let rows = session.client().query(COLUMNS, &[&plan.relation.oid]).await.map_err(&doing)?;
    let columns: Vec<PartColumn> =
        rows.iter().map(|row| column(row, &default)).collect::<Result<_, _>>().map_err(doing)?;
    let is_sent = |column: &PartColumn| plan.relation.columns.iter().any(|sent| sent.name == column.name);
    Ok((columns.into_iter().filter(is_sent).collect(), default))
}

fn column(row: &Row, default: &Collation) -> Result<PartColumn, tokio_postgres::Error> {
    let collation = match (row.try_get::<_, Option<String>>(2)?, row.try_get::<_, Option<bool>>(3)?) {
        (Some(_), Some(true)) => Some(default.clone()),
        (Some(name), _) => Some(Collation {
            name,
            is_default: false,
            deterministic: row.try_get::<_, Option<bool>>(4)?.unwrap_or(false),
            is_c: row.try_get::<_, Option<bool>>(5)?.unwrap_or(false),
        }),
        (None, _) => None,
    };
    let labels: Option<Vec<String>> = row.try_get(8)?;
    let (schema, name) = (row.try_get(6)?, row.try_get(7)?);
    Ok(PartColumn {
        name: row.try_get(0)?,
        type_name: row.try_get(9)?,
        base_type_oid: row.try_get(1)?,
        collation,
        enum_type: labels.map(|labels| (schema, name, labels)),
    })
}

/// Does PostgreSQL take the part, of the table as it is planned? Nothing of the table is read.
///
/// # Errors
/// [`SnapshotReadError::Part`] where it does not; the connection or the server.
pub async fn check_part(session: &Session, plan: &TablePlan, part: &Part) -> Result<(), SnapshotReadError> {
    let table = plan.name();
    match part {
        Part::Where(condition) => {
            let sql = format!("SELECT FROM {} t WHERE {condition}", qualified(&table));
            let doing = SnapshotReadError::of(&table, "look at a condition");
            match session.client().prepare(&sql).await {
                Ok(_prepared) => Ok(()),
                Err(error) if error.code().is_some_and(|code| does_not_fit(code.code())) => {
                    let problem = "a column of its condition is gone or has another type";
                    Err(SnapshotReadError::Part { table: table.clone(), problem })
                }
                Err(error) => Err(doing(error)),
            }
        }
        Part::Keys(keys) => match malformed_key(session, plan, keys).await? {
            None => Ok(()),
            Some(_) => Err(SnapshotReadError::Part { table, problem: "its key has other columns or types" }),
        },
    }
}

/// The first value that PostgreSQL does not read as the key's, column by column; None where it reads them all.
///
/// # Errors
/// The connection or the server.
pub async fn malformed_key(
    session: &Session,
    plan: &TablePlan,
    keys: &[Vec<String>],
) -> Result<Option<MalformedKey>, SnapshotReadError> {
    if let Some(key) = keys.iter().position(|key| key.len() != plan.key.len()) {
        return Ok(Some(MalformedKey { key, column: 0 }));
    }
    for (at, column) in plan.key.iter().enumerate() {
        let values: Vec<&str> = keys.iter().map(|key| key[at].as_str()).collect();
        if reads(session, plan, column, &values).await? {
            continue;
        }
        // All before `from` are read, and one of those before `to` is not.
        let (mut from, mut to) = (0, values.len());
        while to - from > 1 {
            let middle = from + (to - from) / 2;
            match reads(session, plan, column, &values[from..middle]).await? {
                true => from = middle,
                false => to = middle,
            }
        }
        return Ok(Some(MalformedKey { key: from, column: at }));
    }
    Ok(None)
}

/// Does PostgreSQL read all of these texts as values of the column?
async fn reads(
    session: &Session,
    plan: &TablePlan,
    column: &KeyColumn,
    values: &[&str],
) -> Result<bool, SnapshotReadError> {
    let sql = format!("SELECT count(v::{}) FROM unnest($1::text[]) v", column.base_type);
    match session.client().query_one(&sql, &[&values]).await {
        Ok(_count) => Ok(true),
        Err(error) if error.code().is_some_and(is_about_a_value) => Ok(false),
        Err(error) => Err(SnapshotReadError::of(&plan.name(), "look at keys")(error)),
    }
}

/// Of columns, operators and types; and a constant, such as an enum's label, that is not read any more.
fn does_not_fit(code: &str) -> bool {
    matches!(code, "42703" | "42704" | "42725" | "42804" | "42846" | "42883") || code.starts_with("22")
}

/// Data exceptions; and what some types' input functions say of names that do not exist (`regclass`).
fn is_about_a_value(code: &SqlState) -> bool {
    code.code().starts_with("22") || code.code().starts_with("42")
}
