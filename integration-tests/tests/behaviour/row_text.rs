//! A row that is decoded again holds, to PostgreSQL, the values that were encoded, whatever their type.
//!
//! PostgreSQL writes each value as it does in the stream; the codec turns that into a row and the row into text;
//! PostgreSQL reads that text. It must find the value not distinct from the first, and write it alike, which also tells
//! -0 from 0 and 1.0 from 1.00, and holds for types that have no equality.

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use tidegate_integration_tests::{
    Cluster, Database, define_types, has_equality, lacks_equality, literal, type_table, written,
};
use tidegate_model::TableName;
use tidegate_postgres::{ConnectConfig, Session, relation_columns};
use tidegate_proto::v1;
use tidegate_schema::{ColumnSpec, RowDecoder, RowEncoder, RowText, RowType, RowTypeSpec, TypeShape, Value, ValueKind};
use tokio_postgres::SimpleQueryMessage;

/// A database with the types.
struct Source {
    /// A session as Tidegate's own.
    session: Session,
    /// A user's session: Tidegate's own do not see the operators of extensions.
    user: Database,
}

/// A column, and its values in the text that PostgreSQL writes.
type Column = (ColumnSpec, Vec<String>);

impl Source {
    async fn new(name: &str) -> Result<Self> {
        let user = Cluster::shared().await?.database(name).await?;
        define_types(&user).await?;
        let session = Session::connect(&ConnectConfig::from_url(user.url())?).await?;
        Ok(Source { session, user })
    }

    /// The columns of a table with these types, in order.
    async fn columns(&self, types: &[&str]) -> Result<Vec<ColumnSpec>> {
        let columns: Vec<String> = (1..).zip(types).map(|(n, type_name)| format!("c{n} {type_name}")).collect();
        self.session.client().batch_execute(&format!("create table public.every ({})", columns.join(", "))).await?;
        let oid = written(self.session.client(), "'public.every'::regclass::oid").await?.parse()?;
        let columns = relation_columns(&self.session, oid).await?;
        let spec = |(field, column): (u32, &tidegate_postgres::CatalogColumn)| ColumnSpec {
            name: column.name.clone(),
            attnum: column.attnum,
            type_oid: column.type_oid,
            type_name: column.type_name.clone(),
            codec: ValueKind::of(column.base_type_oid, shape(column.shape)),
            key: false,
            field,
        };
        Ok((1..).zip(&columns).map(spec).collect())
    }

    /// Does PostgreSQL find that the text holds the value of another? None where the type has no equality.
    async fn same(&self, column: &ColumnSpec, one: &str, other: &str) -> Result<Option<bool>> {
        let (one, other) = (literal(one, &column.type_name), literal(other, &column.type_name));
        match self.user.client().query_one(&format!("select {one} is not distinct from {other}"), &[]).await {
            Ok(row) => Ok(Some(row.try_get(0)?)),
            Err(error) if lacks_equality(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All columns and values that the server has.
    async fn every_value(&self) -> Result<Vec<Column>> {
        let table = type_table(self.session.client()).await?;
        let types: Vec<&str> = table.iter().map(|(type_name, _)| type_name.as_str()).collect();
        let columns = self.columns(&types).await?;
        Ok(columns.into_iter().zip(table).map(|(column, (_, texts))| (column, texts)).collect())
    }
}

/// The catalog's answer in the codec's words.
fn shape(shape: tidegate_postgres::TypeShape) -> TypeShape {
    use tidegate_postgres::TypeShape as Catalog;
    match shape {
        Catalog::Base | Catalog::Pseudo => TypeShape::Base,
        Catalog::Domain { base_oid } => TypeShape::Domain { base_oid },
        Catalog::Enum => TypeShape::Enum,
        Catalog::Composite => TypeShape::Composite,
        Catalog::Array { element_oid, delimiter } => TypeShape::Array { element_oid, delimiter },
        Catalog::Range { .. } => TypeShape::Range,
        Catalog::Multirange => TypeShape::Multirange,
    }
}

/// The way there and back of one column's value.
fn there_and_back(column: &ColumnSpec, text: &str) -> Result<String> {
    let columns = std::slice::from_ref(column);
    let encode = |text: &str| -> Result<BytesMut> {
        let mut row = BytesMut::new();
        RowEncoder::new(columns).encode([Value::Text(text.as_bytes())].into_iter(), &mut row)?;
        Ok(row)
    };
    let row = encode(text)?;
    let mut decoded = RowText::default();
    RowDecoder::new(columns).text(&row, &mut decoded)?;
    let back = decoded.value(0).context("a value")?.to_owned();
    ensure!(encode(&back)? == row, "{back:?} is not encoded as {text:?} is");

    let spec = RowTypeSpec {
        row_type: 1,
        source: "shop".parse()?,
        name: TableName::new("public", "every"),
        table_oid: 1,
        identity: v1::ReplicaIdentity::Nothing,
        columns: columns.to_vec(),
    };
    RowDecoder::of_row_type(&RowType::new(spec.to_proto())?, |_| b',')?.text(&row, &mut decoded)?;
    ensure!(decoded.value(0) == Some(&back), "another text by the row type: {:?}", decoded.value(0));
    Ok(back)
}

/// Does the value come back from the row as PostgreSQL knows it?
async fn check(source: &Source, column: &ColumnSpec, text: &str) -> Result<()> {
    let back = there_and_back(column, text)?;
    ensure!(back == text, "it comes back as {back:?}");
    let same = source.same(column, &back, text).await?;
    ensure!(same == has_equality(&column.type_name).then_some(true), "equality says {same:?}");
    let written = written(source.session.client(), &literal(&back, &column.type_name)).await?;
    ensure!(written == text, "it is written as {written:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoded_row_holds_the_values_that_were_encoded() -> Result<()> {
    let source = Source::new("row_text").await?;
    let mut value_count = 0;
    let mut complaints = Vec::new();
    for (column, texts) in source.every_value().await? {
        for text in texts {
            if let Err(error) = check(&source, &column, &text).await {
                complaints.push(format!("{} {text:?}: {error}", column.type_name));
            }
            value_count += 1;
        }
    }
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    ensure!(value_count > 240, "only {value_count} values");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn floats_are_printed_as_postgresql_prints_them() -> Result<()> {
    let source = Source::new("row_text_floats").await?;
    let columns = source.columns(&["double precision", "real"]).await?;
    // Powers of two, powers of ten, and what lies anywhere.
    let query = "select 2.0::float8 ^ n, (2.0::float8 ^ (n / 8.0)::int)::real from generate_series(-1022, 1016) n
        union all
        select 10.0::float8 ^ n, (10.0::float8 ^ (n / 8))::real from generate_series(-307, 307) n
        union all
        select (random() - 0.5) * 10.0::float8 ^ (n % 300), ((random() - 0.5) * 10.0::float8 ^ (n % 30))::real
            from generate_series(-20000, 20000) n";
    for message in source.session.client().simple_query(query).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        for (index, column) in columns.iter().enumerate() {
            let text = row.get(index).context("a value")?;
            let back = there_and_back(column, text)?;
            ensure!(back == text, "{text} becomes {back}");
        }
    }
    Ok(())
}
