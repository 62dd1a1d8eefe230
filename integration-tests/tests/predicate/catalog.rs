//! Tables of the test as the product reads them: what the catalog says of their columns, and rows through the real codec.

use anyhow::{Context, Result};
use bytes::BytesMut;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_integration_tests::Database;
use tidegate_model::TableName;
use tidegate_postgres::{
    ConnectConfig, Session,
    snapshot::{Collation, PartColumn, part_columns, table_plan},
};
use tidegate_schema::{ColumnSpec, RowEncoder, TypeShape, Value, ValueKind};
use tidegate_views::{CollationFacts, ColumnFacts, EnumFacts, TableFacts};
use tokio_postgres::SimpleQueryMessage;

use crate::columns::{COLUMNS, definitions, words};
use crate::quoted;

/// A table with its rows.
pub(crate) struct Table {
    pub(crate) name: TableName,
    pub(crate) facts: TableFacts,
    pub(crate) rows: Vec<BytesMut>,
}

impl Table {
    /// A new one with random rows, which are read as they come out of it.
    pub(crate) async fn new(
        database: &Database,
        table: &str,
        (random, row_count): (&mut StdRng, usize),
    ) -> Result<Table> {
        database.execute(&format!("create table public.\"{table}\" (id int primary key, {})", definitions())).await?;
        for id in 0..row_count {
            let mut values = vec![id.to_string()];
            for (.., pool) in COLUMNS {
                let value = words(pool).choose(random).context("a value")?.clone();
                values.push(if random.random_ratio(1, 6) { "null".to_owned() } else { quoted(&value) });
            }
            database.execute(&format!("insert into public.\"{table}\" values ({})", values.join(", "))).await?;
        }
        let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
        let name = TableName::new("public", table);
        let plan = table_plan(&session, "oracle", &name).await?;
        let (mut columns, default) = part_columns(&session, &plan).await?;
        columns.retain(|column| column.name != "id");
        let rows = rows(&session, table, &columns).await?;
        Ok(Table { facts: facts(&name, columns, default), name, rows })
    }

    /// Its columns come in another order, so that an enum is not told by the same place.
    pub(crate) fn turned(&self) -> TableFacts {
        let mut facts = self.facts.clone();
        facts.columns.reverse();
        facts
    }
}

async fn rows(session: &Session, table: &str, columns: &[PartColumn]) -> Result<Vec<BytesMut>> {
    let (mut rows, encoder) = (Vec::new(), RowEncoder::new(&specs(columns)));
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let select = format!("select {} from public.\"{table}\" order by id", names.join(", "));
    for message in session.client().simple_query(&select).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let mut encoded = BytesMut::new();
        let text = |at| row.get(at).map_or(Value::Null, |text: &str| Value::Text(text.as_bytes()));
        encoder.encode((0..columns.len()).map(text), &mut encoded)?;
        rows.push(encoded);
    }
    Ok(rows)
}

fn specs(columns: &[PartColumn]) -> Vec<ColumnSpec> {
    let spec = |(field, column): (u32, &PartColumn)| {
        let shape = if column.enum_type.is_some() { TypeShape::Enum } else { TypeShape::Base };
        ColumnSpec {
            name: column.name.clone(),
            attnum: 0,
            type_oid: column.base_type_oid,
            type_name: column.type_name.clone(),
            codec: ValueKind::of(column.base_type_oid, shape),
            key: false,
            field,
        }
    };
    (1..).zip(columns).map(spec).collect()
}

fn facts(name: &TableName, columns: Vec<PartColumn>, default: Collation) -> TableFacts {
    let collation = |collation: Collation| {
        let Collation { name, is_default, deterministic, is_c } = collation;
        CollationFacts { name, is_default, deterministic, is_c }
    };
    let column = |(field, column): (u32, PartColumn)| ColumnFacts {
        name: column.name,
        field,
        type_oid: column.base_type_oid,
        collation: column.collation.map(collation),
        enum_type: column.enum_type.map(|(schema, name, labels)| EnumFacts { schema, name, labels }),
    };
    TableFacts {
        schema: name.schema.clone(),
        name: name.table.clone(),
        columns: (1..).zip(columns).map(column).collect(),
        default_collation: collation(default),
    }
}
