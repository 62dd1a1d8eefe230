//! Named shapes, as they were defined. Whether a definition makes sense is for the gateway to say.
//!
//! Invariant: a source's version is another one after each change of its shapes, so that who has seen it has them all.

use std::{collections::HashMap, time::SystemTime};

use tidegate_model::{ShapeName, SourceName, TableName};
use tokio_postgres::{Client, Row, types::ToSql};

use crate::{ControlError, snapshots::microseconds};

/// A shape's definition, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeRecord {
    /// Its table.
    pub table: TableName,
    /// Empty for all rows.
    pub condition: String,
    /// Types of `$1`, `$2` and so on; empty where the place tells the type. Subscribers give the values.
    pub parameter_types: Vec<String>,
    /// Besides the key; empty for all.
    pub columns: Vec<String>,
    /// An update comes with the key and what has changed.
    pub changed_columns: bool,
}

/// A shape with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredShape {
    /// Whose.
    pub source: SourceName,
    /// Unique within the source.
    pub name: ShapeName,
    /// Another one after each change of the definition.
    pub version: u64,
    /// When it became what it is, in microseconds since 1970.
    pub defined_us: i64,
    /// What it is.
    pub definition: ShapeRecord,
    /// What it was before, newest first. Not told where it has just been defined.
    pub former: Vec<FormerShape>,
}

/// A definition that a name had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerShape {
    /// As of a [`StoredShape`].
    pub version: u64,
    /// What it was.
    pub definition: ShapeRecord,
}

/// Definitions of one name that are remembered.
const FORMER_MAX: i64 = 8;

/// The version of each source's shapes, by name.
pub type ShapeVersions = Vec<(String, i64)>;

/// Defines a shape, or defines it anew. One that is defined as it is stays as it is.
pub(crate) async fn define(
    client: &mut Client,
    source: &SourceName,
    (name, shape): (&ShapeName, &ShapeRecord),
    count_max: usize,
) -> Result<StoredShape, ControlError> {
    let transaction = client.transaction().await?;
    const ADD: &str = "INSERT INTO tidegate.source (name) VALUES ($1) ON CONFLICT DO NOTHING";
    transaction.execute(ADD, &[&source.as_str()]).await?;
    transaction.execute("SELECT FROM tidegate.source WHERE name = $1 FOR UPDATE", &[&source.as_str()]).await?;
    let one = format!("SELECT {COLUMNS} FROM tidegate.shape WHERE source = $1 AND name = $2");
    let known = transaction.query(one.as_str(), &[&source.as_str(), &name.as_str()]).await?;
    if let Some(known) = known.first().and_then(stored)
        && known.definition == *shape
    {
        return Ok(known);
    }
    const COUNT: &str = "SELECT count(*) FROM tidegate.shape WHERE source = $1 AND name <> $2";
    let count: i64 = transaction.query_one(COUNT, &[&source.as_str(), &name.as_str()]).await?.get(0);
    if usize::try_from(count).is_ok_and(|count| count >= count_max) {
        return Err(ControlError::TooManyShapes { source_name: source.to_string(), limit: count_max });
    }
    let remember = format!(
        "INSERT INTO tidegate.former_shape ({COLUMNS}) SELECT {COLUMNS} FROM tidegate.shape WHERE source = $1 AND name = $2 \
         ON CONFLICT DO NOTHING"
    );
    transaction.execute(remember.as_str(), &[&source.as_str(), &name.as_str()]).await?;
    const FORGET: &str = "DELETE FROM tidegate.former_shape WHERE source = $1 AND name = $2 AND version <= (
           SELECT version FROM tidegate.former_shape WHERE source = $1 AND name = $2 ORDER BY version DESC OFFSET $3 LIMIT 1)";
    transaction.execute(FORGET, &[&source.as_str(), &name.as_str(), &FORMER_MAX]).await?;
    const DEFINE: &str = "WITH next AS (
           UPDATE tidegate.source SET shapes_version = shapes_version + 1 WHERE name = $1 RETURNING shapes_version)
         INSERT INTO tidegate.shape (source, name, version, schema_name, table_name, condition, parameter_types, columns, updates)
         SELECT $1, $2, shapes_version, $3, $4, $5, $6, $7, $8 FROM next
         ON CONFLICT (source, name) DO UPDATE
         SET (version, schema_name, table_name, condition, parameter_types, columns, updates, defined_at)
             = (excluded.version, excluded.schema_name, excluded.table_name, excluded.condition, excluded.parameter_types,
                excluded.columns, excluded.updates, now())
         RETURNING version, defined_at";
    let updates = if shape.changed_columns { CHANGED_COLUMNS } else { FULL_ROW };
    let ShapeRecord { table, condition, parameter_types, columns, .. } = shape;
    let (source_name, shape_name) = (source.as_str(), name.as_str());
    let values: [&(dyn ToSql + Sync); 8] =
        [&source_name, &shape_name, &table.schema, &table.table, condition, parameter_types, columns, &updates];
    let row = transaction.query_one(DEFINE, &values).await?;
    transaction.commit().await?;
    Ok(StoredShape {
        source: source.clone(),
        name: name.clone(),
        version: row.get::<_, i64>(0).unsigned_abs(),
        defined_us: microseconds(row.get::<_, SystemTime>(1)),
        definition: shape.clone(),
        former: Vec::new(),
    })
}

/// Removes a shape; false where there is none of that name.
pub(crate) async fn delete(client: &mut Client, source: &SourceName, name: &ShapeName) -> Result<bool, ControlError> {
    const LOCK: &str = "SELECT FROM tidegate.source WHERE name = $1 FOR UPDATE";
    const DELETE: &str = "WITH gone AS (DELETE FROM tidegate.shape WHERE source = $1 AND name = $2 RETURNING source)
         UPDATE tidegate.source SET shapes_version = shapes_version + 1 WHERE name IN (SELECT source FROM gone)";
    let transaction = client.transaction().await?;
    // Whoever defines one has the source first.
    transaction.execute(LOCK, &[&source.as_str()]).await?;
    let deleted = transaction.execute(DELETE, &[&source.as_str(), &name.as_str()]).await? > 0;
    transaction.commit().await?;
    Ok(deleted)
}

/// The shapes of all sources, with the versions that they are; None where these are the ones that are known.
pub(crate) async fn changed(
    client: &mut Client,
    known: Option<&ShapeVersions>,
) -> Result<Option<(ShapeVersions, Vec<StoredShape>)>, ControlError> {
    let transaction = client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let transaction = transaction.read_only(true).start().await?;
    const VERSIONS: &str = "SELECT name, shapes_version FROM tidegate.source ORDER BY name";
    let versions = transaction.query(VERSIONS, &[]).await?;
    let versions: ShapeVersions = versions.iter().map(|row| (row.get(0), row.get(1))).collect();
    if known == Some(&versions) {
        return Ok(None);
    }
    let select = format!("SELECT {COLUMNS} FROM tidegate.shape ORDER BY source, name");
    let mut shapes: Vec<StoredShape> =
        transaction.query(select.as_str(), &[]).await?.iter().filter_map(stored).collect();
    let former = format!("SELECT {COLUMNS} FROM tidegate.former_shape ORDER BY version DESC");
    let former = transaction.query(former.as_str(), &[]).await?;
    transaction.commit().await?;
    let places: HashMap<_, _> =
        shapes.iter().enumerate().map(|(at, shape)| ((shape.source.clone(), shape.name.clone()), at)).collect();
    for StoredShape { source, name, version, definition, .. } in former.iter().filter_map(stored) {
        if let Some(&at) = places.get(&(source, name)) {
            shapes[at].former.push(FormerShape { version, definition });
        }
    }
    Ok(Some((versions, shapes)))
}

const FULL_ROW: &str = "full_row";
const CHANGED_COLUMNS: &str = "changed_columns";

/// Of a shape, and of what it was.
const COLUMNS: &str =
    "source, name, version, schema_name, table_name, condition, parameter_types, columns, updates, defined_at";

/// None where someone has written a name into the table that is none.
fn stored(row: &Row) -> Option<StoredShape> {
    Some(StoredShape {
        source: row.get::<_, &str>(0).parse().ok()?,
        name: row.get::<_, &str>(1).parse().ok()?,
        version: row.get::<_, i64>(2).unsigned_abs(),
        defined_us: microseconds(row.get(9)),
        definition: ShapeRecord {
            table: TableName::new(row.get::<_, &str>(3), row.get::<_, &str>(4)),
            condition: row.get(5),
            parameter_types: row.get(6),
            columns: row.get(7),
            changed_columns: row.get::<_, &str>(8) == CHANGED_COLUMNS,
        },
        former: Vec::new(),
    })
}
