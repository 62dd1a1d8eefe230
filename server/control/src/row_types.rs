//! Numbers of row types and of their fields.
//!
//! Invariant: a field number belongs to one column and type of a row message for ever, under all names that the column is proven
//! to have had, and a row type's number to one fingerprint with its fields. Allocation is serialised by locking the source's
//! row.

use std::collections::{HashMap, HashSet};

use tidegate_model::{SourceName, TableName};
use tokio_postgres::{Client, Row, Transaction};

use crate::ControlError;

/// Protobuf reserves the numbers from 19,000 to 19,999; staying below them keeps the rule simple.
const LAST_FIELD: i32 = 18_999;

/// What the number is asked for.
#[derive(Debug, Clone)]
pub struct RowTypeRequest {
    /// The table.
    pub name: TableName,
    /// Everything that tells this row type from the table's others, but for the field numbers.
    pub fingerprint: String,
    /// In column order.
    pub columns: Vec<ColumnRequest>,
    /// Numbers that are known to be in use, whatever the database says: it may have been restored from a backup.
    pub used: UsedNumbers,
}

/// The highest numbers in use; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsedNumbers {
    /// Of the source's row types.
    pub row_type: u32,
    /// Of the table's fields.
    pub field: u32,
}

/// A column that needs a field number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnRequest {
    /// Exact name.
    pub name: String,
    /// The type's name and how its values are encoded: where it differs, the number must.
    pub type_key: String,
    /// The number that this very column is proven to have; None: the number goes by name and type.
    pub field: Option<u32>,
}

impl RowTypeRequest {
    /// Does it ask for the numbers that the other one has been given?
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (&self.name, &self.fingerprint, &self.columns) == (&other.name, &other.fingerprint, &other.columns)
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowTypeNumbers {
    /// Unique within the source.
    pub row_type: u32,
    /// Field numbers in column order.
    pub fields: Vec<u32>,
    /// The names that the table's fields have had so far.
    pub names: Vec<FieldName>,
}

/// A name under which a field's number has been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldName {
    /// The field.
    pub field: u32,
    /// Of the column.
    pub name: String,
    /// As in [`ColumnRequest`].
    pub type_key: String,
}

pub(crate) async fn allocate(
    client: &mut Client,
    source: &SourceName,
    request: &RowTypeRequest,
) -> Result<RowTypeNumbers, ControlError> {
    let transaction = client.transaction().await?;
    transaction
        .execute("INSERT INTO tidegate.source (name) VALUES ($1) ON CONFLICT DO NOTHING", &[&source.as_str()])
        .await?;
    transaction.execute("SELECT FROM tidegate.source WHERE name = $1 FOR UPDATE", &[&source.as_str()]).await?;
    let (fields, names) = allocate_fields(&transaction, source, request).await?;
    // The same columns may have other numbers after two were given each other's names.
    let fingerprint = format!("{} {fields:?}", request.fingerprint);
    let row_type = allocate_row_type(&transaction, source, (request, &fingerprint)).await?;
    transaction.commit().await?;
    Ok(RowTypeNumbers { row_type, fields, names })
}

async fn allocate_fields(
    transaction: &Transaction<'_>,
    source: &SourceName,
    request: &RowTypeRequest,
) -> Result<(Vec<u32>, Vec<FieldName>), ControlError> {
    let (schema, table) = (&request.name.schema, &request.name.table);
    let rows = transaction
        .query(
            "SELECT column_name, type_key, field FROM tidegate.field
             WHERE source = $1 AND schema_name = $2 AND table_name = $3 ORDER BY naming",
            &[&source.as_str(), schema, table],
        )
        .await?;
    let given = rows.iter().map(|row| row.get::<_, i32>(2)).max().unwrap_or(0);
    let mut last = given.max(i32::try_from(request.used.field).unwrap_or(LAST_FIELD));
    // Of several columns that had the same name, it is now the last one's.
    let known: HashMap<(String, String), i32> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let proven = |column: &ColumnRequest| column.field.and_then(|field| i32::try_from(field).ok());
    let mut taken: HashSet<i32> = request.columns.iter().filter_map(proven).collect();
    let mut fields = Vec::with_capacity(request.columns.len());
    for column in &request.columns {
        let named = known.get(&(column.name.clone(), column.type_key.clone())).copied();
        let field = match (proven(column), named.filter(|field| !taken.contains(field))) {
            (Some(field), _) | (None, Some(field)) => field,
            (None, None) => {
                last += 1;
                last
            }
        };
        if field > LAST_FIELD {
            return Err(ControlError::FieldsExhausted { table: request.name.to_string(), limit: LAST_FIELD });
        }
        if named != Some(field) {
            name_field(transaction, source, request, (column, field)).await?;
        }
        taken.insert(field);
        fields.push(field.unsigned_abs());
    }
    let name =
        |row: &Row| FieldName { field: row.get::<_, i32>(2).unsigned_abs(), name: row.get(0), type_key: row.get(1) };
    Ok((fields, rows.iter().map(name).collect()))
}

/// From now on the name means this number.
async fn name_field(
    transaction: &Transaction<'_>,
    source: &SourceName,
    request: &RowTypeRequest,
    (column, field): (&ColumnRequest, i32),
) -> Result<(), ControlError> {
    transaction
        .execute(
            "INSERT INTO tidegate.field (source, schema_name, table_name, column_name, type_key, field)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (source, schema_name, table_name, column_name, type_key, field) DO UPDATE SET naming = DEFAULT",
            &[&source.as_str(), &request.name.schema, &request.name.table, &column.name, &column.type_key, &field],
        )
        .await?;
    Ok(())
}

async fn allocate_row_type(
    transaction: &Transaction<'_>,
    source: &SourceName,
    (request, fingerprint): (&RowTypeRequest, &String),
) -> Result<u32, ControlError> {
    let (schema, table) = (&request.name.schema, &request.name.table);
    let known = transaction
        .query_opt(
            "SELECT row_type FROM tidegate.row_type
             WHERE source = $1 AND schema_name = $2 AND table_name = $3 AND fingerprint = $4",
            &[&source.as_str(), schema, table, fingerprint],
        )
        .await?;
    if let Some(row) = known {
        return Ok(row.get::<_, i32>(0).unsigned_abs());
    }
    let used = i32::try_from(request.used.row_type).unwrap_or(i32::MAX);
    let row = transaction
        .query_one(
            "WITH next AS (
               UPDATE tidegate.source SET last_row_type = greatest(last_row_type, $5) + 1 WHERE name = $1
               RETURNING last_row_type)
             INSERT INTO tidegate.row_type (source, row_type, schema_name, table_name, fingerprint)
             SELECT $1, last_row_type, $2, $3, $4 FROM next RETURNING row_type",
            &[&source.as_str(), schema, table, fingerprint, &used],
        )
        .await?;
    Ok(row.get::<_, i32>(0).unsigned_abs())
}
