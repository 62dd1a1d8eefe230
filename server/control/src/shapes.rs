//! Named shapes, as they were defined. Whether a definition makes sense is for the gateway to say.
//!
//! Invariant: a source's version is another one after each change of its shapes, so that who has seen it has them all.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use tidegate_model::{ShapeName, SourceName, TableName};
use tokio_postgres::{Client, Row, Transaction, types::ToSql};

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

/// How much a source's named shapes may be.
#[derive(Debug, Clone, Copy)]
pub struct ShapeLimits {
    /// Names.
    pub count_max: usize,
    /// Of all definitions; and as many of what they were before, of which the oldest are forgotten.
    pub bytes_max: usize,
}

/// The named shapes of all sources, as they were when they were last asked for.
#[derive(Debug, Clone, Default)]
pub struct ShapeCopy {
    /// Of each source; None where it has never been asked.
    versions: Option<BTreeMap<String, i64>>,
    shapes: BTreeMap<(String, String), StoredShape>,
}

impl ShapeCopy {
    /// By source and name.
    pub fn shapes(&self) -> impl Iterator<Item = &StoredShape> {
        self.shapes.values()
    }
}

/// Defines a shape, or defines it anew. One that is defined as it is stays as it is.
pub(crate) async fn define(
    client: &mut Client,
    source: &SourceName,
    (name, shape): (&ShapeName, &ShapeRecord),
    limits: ShapeLimits,
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
    check_room(&transaction, source, (name, shape), limits).await?;
    let remember = format!(
        "INSERT INTO tidegate.former_shape ({COLUMNS}) SELECT {COLUMNS} FROM tidegate.shape WHERE source = $1 AND name = $2 \
         ON CONFLICT DO NOTHING"
    );
    transaction.execute(remember.as_str(), &[&source.as_str(), &name.as_str()]).await?;
    const FORGET: &str = "DELETE FROM tidegate.former_shape WHERE source = $1 AND name = $2 AND version <= (
           SELECT version FROM tidegate.former_shape WHERE source = $1 AND name = $2 ORDER BY version DESC OFFSET $3 LIMIT 1)";
    transaction.execute(FORGET, &[&source.as_str(), &name.as_str(), &FORMER_MAX]).await?;
    forget(&transaction, source, limits.bytes_max).await?;
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

/// Refuses a definition that is too much besides the others, unless it is no larger than it was: there may be more than that already.
async fn check_room(
    transaction: &Transaction<'_>,
    source: &SourceName,
    (name, shape): (&ShapeName, &ShapeRecord),
    ShapeLimits { count_max, bytes_max }: ShapeLimits,
) -> Result<(), ControlError> {
    let sizes = format!(
        "SELECT count(*) FILTER (WHERE name <> $2), coalesce(sum({BYTES}) FILTER (WHERE name <> $2), 0)::int8,
           coalesce(sum({BYTES}) FILTER (WHERE name = $2), 0)::int8 FROM tidegate.shape WHERE source = $1"
    );
    let sizes = transaction.query_one(sizes.as_str(), &[&source.as_str(), &name.as_str()]).await?;
    let size = |of| usize::try_from(sizes.get::<_, i64>(of)).unwrap_or(usize::MAX);
    let (count, others, before) = (size(0), size(1), size(2));
    let source_name = source.to_string();
    // A definition counts as one byte at least.
    if before == 0 && count >= count_max {
        return Err(ControlError::TooManyShapes { source_name, limit: count_max });
    }
    let bytes = shape.byte_count();
    if bytes > before && others.saturating_add(bytes) > bytes_max {
        return Err(ControlError::TooLargeShapes { source_name, limit: bytes_max });
    }
    Ok(())
}

/// Forgets the oldest of what a source's shapes were, beyond so many bytes.
async fn forget(transaction: &Transaction<'_>, source: &SourceName, bytes_max: usize) -> Result<(), ControlError> {
    let forget = format!(
        "DELETE FROM tidegate.former_shape WHERE source = $1 AND version IN (
           SELECT version FROM (
             SELECT version, sum({BYTES}) OVER (ORDER BY version DESC) AS newer FROM tidegate.former_shape WHERE source = $1) summed
           WHERE newer > $2)"
    );
    let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    transaction.execute(forget.as_str(), &[&source.as_str(), &bytes_max]).await?;
    Ok(())
}

impl ShapeRecord {
    /// As [`BYTES`] counts them.
    fn byte_count(&self) -> usize {
        let all = self.parameter_types.iter().chain(&self.columns);
        self.condition.len() + all.map(|text| text.len() + 1).sum::<usize>().max(1)
    }
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

/// Brings a copy up to date; false where it is. Definitions are read of those shapes only that are not what they were.
pub(crate) async fn refresh(client: &mut Client, copy: &mut ShapeCopy) -> Result<bool, ControlError> {
    let transaction = client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
    let transaction = transaction.read_only(true).start().await?;
    let versions = transaction.query("SELECT name, shapes_version FROM tidegate.source", &[]).await?;
    let versions: BTreeMap<String, i64> = versions.iter().map(|row| (row.get(0), row.get(1))).collect();
    if copy.versions.as_ref() == Some(&versions) {
        return Ok(false);
    }
    let known = |source: &str| copy.versions.as_ref().and_then(|versions| versions.get(source));
    let changed: Vec<&str> = versions
        .iter()
        .filter(|(source, version)| known(source) != Some(version))
        .map(|(source, _)| source.as_str())
        .collect();
    // With the time, since a control database that is restored from a backup gives its versions again.
    const HEADS: &str = "SELECT source, name, version, defined_at FROM tidegate.shape WHERE source = ANY ($1)";
    let mut heads: BTreeMap<(String, String), (u64, i64)> = BTreeMap::new();
    for row in transaction.query(HEADS, &[&changed]).await? {
        let head = (row.get::<_, i64>(2).unsigned_abs(), microseconds(row.get(3)));
        heads.insert((row.get(0), row.get(1)), head);
    }
    let is_known = |key: &(String, String), head: &(u64, i64)| {
        copy.shapes.get(key).is_some_and(|shape| (shape.version, shape.defined_us) == *head)
    };
    let wanted: Vec<&(String, String)> =
        heads.iter().filter(|(key, head)| !is_known(key, head)).map(|(key, _)| key).collect();
    let read = if wanted.is_empty() { Vec::new() } else { definitions(&transaction, &wanted).await? };
    transaction.commit().await?;
    let stays = |(source, name): &(String, String)| match changed.contains(&source.as_str()) {
        true => heads.contains_key(&(source.clone(), name.clone())),
        false => versions.contains_key(source),
    };
    copy.shapes.retain(|key, _| stays(key));
    let read = read.into_iter().map(|shape| ((shape.source.to_string(), shape.name.to_string()), shape));
    copy.shapes.extend(read);
    copy.versions = Some(versions);
    Ok(true)
}

/// The shapes of these sources and names, with what they were before.
async fn definitions(
    transaction: &Transaction<'_>,
    wanted: &[&(String, String)],
) -> Result<Vec<StoredShape>, ControlError> {
    let (sources, names): (Vec<&str>, Vec<&str>) =
        wanted.iter().map(|(source, name)| (source.as_str(), name.as_str())).unzip();
    let of = |table: &str| {
        format!(
            "SELECT {COLUMNS} FROM tidegate.{table} WHERE (source, name) IN (SELECT * FROM unnest($1::text[], $2::text[])) \
             ORDER BY version DESC"
        )
    };
    let shapes = transaction.query(of("shape").as_str(), &[&sources, &names]).await?;
    let mut shapes: Vec<StoredShape> = shapes.iter().filter_map(stored).collect();
    let former = transaction.query(of("former_shape").as_str(), &[&sources, &names]).await?;
    let places: HashMap<_, _> =
        shapes.iter().enumerate().map(|(at, shape)| ((shape.source.clone(), shape.name.clone()), at)).collect();
    for StoredShape { source, name, version, definition, .. } in former.iter().filter_map(stored) {
        if let Some(&at) = places.get(&(source, name)) {
            shapes[at].former.push(FormerShape { version, definition });
        }
    }
    Ok(shapes)
}

const FULL_ROW: &str = "full_row";
const CHANGED_COLUMNS: &str = "changed_columns";

/// What a definition counts as: what may be long of it.
const BYTES: &str = "octet_length(condition) + octet_length(array_to_string(parameter_types || columns, ' ')) + 1";

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
