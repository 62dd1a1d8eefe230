//! Every type over both paths: a row that a snapshot reads and a row that the stream brings hold the same bytes, under the same
//! row type, and these are the value that PostgreSQL holds.
//!
//! Rows written before the subscription arrive as READ, the same values written behind them as INSERT.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use futures_util::StreamExt;
use tidegate_client::{Change, Changes, Event, Op, RowType as Received, Start, Subscription};
use tidegate_integration_tests::{
    Cluster, Database, Server, ServerConfig, define_types, has_equality, literal, type_table, written,
};
use tidegate_postgres::{ConnectConfig, Session};
use tidegate_schema::{RowDecoder, RowText, RowType};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

/// A type and its values in PostgreSQL's text.
type Typed = (String, Vec<String>);

/// Rows by their column `id`.
type Rows = BTreeMap<i64, Change>;

/// Rows that the stream brings have the id of their twin that the snapshot reads, and this.
const STREAMED: i64 = 1_000_000;

/// What a subscription from a snapshot brings of a table: first the rows that are there, then those that `write` writes.
struct Both {
    server: Server,
    changes: Changes,
    reads: Rows,
}

impl Both {
    /// Receives the snapshot of a table.
    async fn read(database: &Database, config: ServerConfig, table: &str) -> Result<Self> {
        let server = Server::start(config).await?;
        let subscription = Subscription::tables([table, "public.marker"]).from(Start::Snapshot);
        let mut both = Both { changes: server.client().await?.subscribe(subscription), server, reads: Rows::new() };
        database.mark("before").await?;
        while let Some(event) = both.changes.next().await {
            match event? {
                Event::Change(change) if change.op == Op::Read && is_of(&change, table) => {
                    both.reads.insert(id(&change)?, change);
                }
                Event::SnapshotEnd { .. } => return Ok(both),
                Event::Reset { reason, detail } => bail!("{reason:?}: {detail}"),
                _ => {}
            }
        }
        bail!("the subscription ended before the snapshot")
    }

    /// Receives what was written since, up to a marker.
    async fn streamed(&mut self, database: &Database, table: &str, marker: &str) -> Result<Vec<Change>> {
        database.mark(marker).await?;
        let mut found = Vec::new();
        while let Some(event) = self.changes.next().await {
            match event? {
                Event::Change(change) if is_of(&change, table) => found.push(change),
                Event::Change(change) if is_of(&change, "public.marker") => {
                    let row = change.row_json()?.unwrap_or_default();
                    if row.get("name").and_then(|name| name.as_str()) == Some(marker) {
                        return Ok(found);
                    }
                }
                Event::Reset { reason, detail } => bail!("{reason:?}: {detail}"),
                _ => {}
            }
        }
        bail!("the subscription ended at {}", self.server.address())
    }
}

fn is_of(change: &Change, table: &str) -> bool {
    change.table() == Some(table)
}

fn id(change: &Change) -> Result<i64> {
    let row = change.row_json()?.context("a row")?;
    row.get("id").and_then(serde_json::Value::as_i64).context("an id")
}

/// The row without its id.
fn values_of(change: &Change) -> Result<BytesMut> {
    let row_type = row_type(change)?;
    let fields =
        row_type.proto().columns.iter().filter(|column| column.name != "id").map(|column| column.field).collect();
    let mut values = BytesMut::new();
    row_type.project(&change.row, &fields, &mut values)?;
    Ok(values)
}

fn row_type(change: &Change) -> Result<RowType> {
    Ok(RowType::new(change.row_type.as_ref().context("a row type")?.proto().clone())?)
}

/// The row's texts by column name.
fn texts(change: &Change) -> Result<HashMap<String, Option<String>>> {
    let row_type = row_type(change)?;
    let mut text = RowText::default();
    RowDecoder::of_row_type(&row_type, |_| b',')?.text(&change.row, &mut text)?;
    let names = row_type.proto().columns.iter().map(|column| column.name.clone());
    Ok(names.zip(text.values().map(|value| value.map(str::to_owned))).collect())
}

/// The row as PostgreSQL writes it in a session of Tidegate's.
async fn stored(session: &Session, table: &str, id: i64) -> Result<HashMap<String, Option<String>>> {
    let messages = session.client().simple_query(&format!("select * from {table} where id = {id}")).await?;
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let names = row.columns().iter().map(|column| column.name().to_owned());
            return Ok(names.zip((0..row.len()).map(|at| row.get(at).map(str::to_owned))).collect());
        }
    }
    bail!("{table} has no row {id}")
}

/// Both rows are alike in bytes and type, and hold what PostgreSQL holds.
async fn must_be_alike(session: &Session, table: &str, read: &Change, inserted: &Change) -> Result<()> {
    let (read_type, inserted_type) = (row_type(read)?, row_type(inserted)?);
    ensure!(read_type.proto() == inserted_type.proto(), "another row type for the snapshot than for the stream");
    ensure!(read.unchanged.is_empty() && inserted.unchanged.is_empty(), "an unchanged value of a new row");
    let expected = stored(session, table, id(read)?).await?;
    for (change, path) in [(read, "snapshot"), (inserted, "stream")] {
        for (name, value) in texts(change)? {
            if name != "id" {
                ensure!(expected.get(&name) == Some(&value), "{path}, {name}: {value:?} for {:?}", expected.get(&name));
            }
        }
    }
    ensure!(values_of(read)? == values_of(inserted)?, "other bytes on the snapshot's path than on the stream's");
    Ok(())
}

/// One column for each entry, c1 and so on, and its values in rows from 1 on; NULL where there are no more. The table has
/// `public.every` as its name.
async fn create_every(database: &Database, table: &[Typed]) -> Result<usize> {
    let columns: Vec<String> = (1..).zip(table).map(|(n, (type_name, _))| format!("c{n} {type_name}")).collect();
    database.execute(&format!("create table public.every (id bigint primary key, {})", columns.join(", "))).await?;
    let most = table.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    // One more than the most: a row of nothing but NULL.
    for row in 0..=most {
        let value = |(type_name, values): &Typed| match values.get(row) {
            Some(text) => literal(text, type_name),
            None => "NULL".to_owned(),
        };
        let values: Vec<String> = table.iter().map(value).collect();
        database.execute(&format!("insert into public.every values ({}, {})", row + 1, values.join(", "))).await?;
    }
    Ok(most + 1)
}

/// The table of types, and an array of each that PostgreSQL makes one of.
async fn with_arrays(session: &Session) -> Result<Vec<Typed>> {
    let mut table = type_table(session.client()).await?;
    for (type_name, values) in table.clone() {
        if type_name.ends_with("[]") {
            continue;
        }
        let elements: Vec<String> = values.iter().map(|text| literal(text, &type_name)).collect();
        // A domain over an array, or a type such as "numeric(10,2)", makes an array of itself.
        let array = format!("{type_name}[]");
        let list = elements.join(", ");
        let mut texts = vec![written(session.client(), &format!("ARRAY[{list}, NULL]::{array}")).await?];
        texts.push(written(session.client(), &format!("array_fill({}, '{{2,1}}', '{{0,-1}}')", elements[0])).await?);
        table.push((array, texts));
    }
    Ok(table)
}

/// The decoded texts, read by PostgreSQL again, are the values that they were written from. Where a type has no equality, equal
/// text has to do.
async fn must_be_the_same_values(database: &Database, table: &[Typed], read: &Change) -> Result<()> {
    let (id, texts) = (id(read)?, texts(read)?);
    for (n, (type_name, _)) in (1..).zip(table) {
        let Some(text) = texts.get(&format!("c{n}")).context("a column")? else { continue };
        let value = literal(text, type_name);
        let same = format!("select (c{n} is not distinct from {value})::text from public.every where id = {id}");
        match database.client().query_one(&same, &[]).await {
            Ok(row) => ensure!(row.try_get::<_, &str>(0)? == "true", "{text} of {type_name} is another value"),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_FUNCTION) => {
                ensure!(!has_equality(type_name.trim_end_matches("[]")), "{type_name} has no equality");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_alike_over_both_paths() -> Result<()> {
    let database = Cluster::shared().await?.database("types_every").await?;
    define_types(&database).await?;
    database.create_marker().await?;
    let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
    let table = with_arrays(&session).await?;
    let row_count = create_every(&database, &table).await?;
    let mut both = Both::read(&database, ServerConfig::of(database.url()), "public.every").await?;
    ensure!(both.reads.len() == row_count, "{} rows of {row_count}", both.reads.len());

    let columns: Vec<String> = (1..=table.len()).map(|n| format!("c{n}")).collect();
    let columns = columns.join(", ");
    let twins = format!("insert into public.every (id, {columns}) select id + {STREAMED}, {columns} from public.every");
    database.execute(&twins).await?;
    let streamed = both.streamed(&database, "public.every", "after").await?;
    ensure!(streamed.len() == row_count, "{} rows of {row_count} in the stream", streamed.len());
    for inserted in &streamed {
        ensure!(inserted.op == Op::Insert, "{}", inserted.op);
        let read = both.reads.get(&(id(inserted)? - STREAMED)).context("a twin")?;
        must_be_alike(&session, "public.every", read, inserted).await?;
        must_be_the_same_values(&database, &table, read).await?;
    }
    Ok(())
}

/// Types that no user's value can be of: they have no input, or the manual keeps them for PostgreSQL itself.
const WITHOUT_VALUES: &[&str] = &[
    "gtsvector",
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_built_in_type_is_in_the_table() -> Result<()> {
    let database = Cluster::shared().await?.database("types_listed").await?;
    define_types(&database).await?;
    let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
    let table = type_table(session.client()).await?;
    let listed: BTreeSet<String> = table.into_iter().map(|(type_name, _)| without_modifier(&type_name)).collect();
    let rows = session.client().query(
        "select format_type(oid, null) from pg_type where typnamespace = 'pg_catalog'::regnamespace
             and typtype in ('b', 'd', 'e', 'r', 'm') and typcategory <> 'A'",
        &[],
    );
    let missing: Vec<String> = rows
        .await?
        .iter()
        .map(|row| row.get::<_, String>(0))
        .filter(|name| !listed.contains(&without_modifier(name)) && !WITHOUT_VALUES.contains(&name.as_str()))
        .collect();
    ensure!(missing.is_empty(), "not in the table of types: {}", missing.join(", "));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_generated_and_identity_columns_are_alike_over_both_paths() -> Result<()> {
    let database = Cluster::shared().await?.database("types_columns").await?;
    database.create_marker().await?;
    let definition = r#"create table public.columns (
        id bigint primary key,
        "Größe ""x"", 'y'\ $1" text,
        "select" int, "UPPER" int, " " int, "a.b" int, "ключ" text, "_U41_" int, "1" int,
        n int generated always as identity, m int generated by default as identity,
        twice bigint generated always as (id * 2) stored)"#;
    database.execute(definition).await?;
    let mut config = ServerConfig::of(database.url());
    let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
    let insert = |id: i64| {
        format!(
            "insert into public.columns (id, \"Größe \"\"x\"\", 'y'\\ $1\", \"select\", \"UPPER\", \" \", \"a.b\", \"ключ\", \"_U41_\",
                \"1\", n, m) overriding system value values ({id}, 'ß', 1, 2, 3, 4, 'д', 5, 6, 7, 8)"
        )
    };
    let published = database.server_version().await? >= 18;
    for generated in [false, true] {
        database.execute("truncate public.columns, marker").await?;
        if generated {
            if !published {
                break;
            }
            config.slot = format!("{}_generated", config.slot);
            let slot = &config.slot;
            let sql = format!(
                "create publication {slot} for table public.columns, marker with (publish_generated_columns = stored)"
            );
            database.execute(&sql).await?;
        }
        database.execute(&insert(7)).await?;
        let mut both = Both::read(&database, config.clone(), "public.columns").await?;
        let read = both.reads.remove(&7).context("the row")?;
        // Deleted, so that the same values can be written again, the generated one included.
        database.execute("delete from public.columns").await?;
        database.execute(&insert(7)).await?;
        let mut streamed = both.streamed(&database, "public.columns", "after").await?;
        let inserted = streamed.pop().context("the insert")?;
        let has_generated = row_type(&read)?.column("twice").is_some();
        ensure!(has_generated == generated, "the generated column: {has_generated}");
        ensure!(row_type(&read)?.proto() == row_type(&inserted)?.proto());
        ensure!(read.row == inserted.row, "other bytes on the snapshot's path than on the stream's");
        let expected = stored(&session, "public.columns", 7).await?;
        let texts = texts(&read)?;
        ensure!(texts.len() == if generated { 12 } else { 11 }, "{} columns", texts.len());
        for (name, value) in texts {
            ensure!(expected.get(&name) == Some(&value), "{name}: {value:?}");
        }
        both.server.terminate().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_are_whole_in_a_snapshot_and_never_null_in_the_stream() -> Result<()> {
    let database = Cluster::shared().await?.database("types_toast").await?;
    database.create_marker().await?;
    let large = "(select string_agg(md5(n::text), '') from generate_series(1, 2000) n)";
    let identities = [
        ("by_default", "default"),
        ("by_index", "using index by_index_at"),
        ("by_full", "full"),
        ("by_nothing", "nothing"),
    ];
    for (table, identity) in identities {
        database
            .execute(&format!(
                "create table {table} (id bigint primary key, at int not null, large text, n int);
                 create unique index {table}_at on {table} (at);
                 alter table {table} alter large set storage external, replica identity {identity};
                 insert into {table} values (1, 1, {large}, 0)"
            ))
            .await?;
    }
    for (table, identity) in identities {
        let mut config = ServerConfig::of(database.url());
        config.slot = format!("{}_{table}", config.slot);
        // A table that refuses updates while they are published is published without them.
        let publish = if identity == "nothing" { "insert" } else { "insert, update, delete, truncate" };
        let slot = &config.slot;
        database
            .execute(&format!("create publication {slot} for table {table}, marker with (publish = '{publish}')"))
            .await?;
        let name = format!("public.{table}");
        database.execute("truncate marker").await?;
        let mut both = Both::read(&database, config, &name).await?;
        let read = both.reads.remove(&1).with_context(|| format!("the row of {table}"))?;
        ensure!(read.unchanged.is_empty() && texts(&read)?["large"].as_ref().is_some_and(|text| text.len() == 64_000));
        if identity != "nothing" {
            database.execute(&format!("update {table} set n = 1")).await?;
            let streamed = both.streamed(&database, &name, "after").await?;
            let update = streamed.first().context("the update")?;
            let unchanged: Vec<&str> = update.unchanged_columns().collect();
            let row = update.row_json()?.context("a row")?;
            ensure!(unchanged == ["large"] && !row.contains_key("large"), "{table}: {unchanged:?} unchanged");
            let whole = update.old_json()?.unwrap_or_default().get("large").and_then(|v| v.as_str().map(str::len));
            ensure!((whole == Some(64_000)) == (identity == "full"), "{table}: the old value has {whole:?} bytes");
        }
        let again = format!("insert into {table} select 2, 2, large, n from {table} where id = 1");
        database.execute(&again).await?;
        let streamed = both.streamed(&database, &name, "last").await?;
        let inserted = streamed.last().context("the insert")?;
        ensure!(inserted.unchanged.is_empty() && texts(inserted)?["large"] == texts(&read)?["large"], "{table}");
        both.server.terminate().await?;
    }
    Ok(())
}

/// Types of PostgreSQL, by the field that the document says that they become.
fn documented() -> Result<BTreeMap<String, String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/docs/type-mapping.md");
    let mut documented = BTreeMap::new();
    for line in std::fs::read_to_string(path)?.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let quoted = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        let (types, fields) = (quoted(cells[1]), quoted(cells[2]));
        for (at, type_name) in types.into_iter().enumerate() {
            let field = fields.get(at).or(fields.first()).with_context(|| line.to_owned())?;
            let twice = documented.insert(type_name.clone(), field.clone());
            ensure!(twice.is_none(), "{type_name} is there twice");
        }
    }
    Ok(documented)
}

/// The field's type as the document names it.
fn field_type(row_type: &Received, field: u32) -> Result<String> {
    let descriptor = row_type.descriptor()?.get_field(field).context("a field")?;
    let proto = descriptor.field_descriptor_proto();
    Ok(match proto.type_name() {
        "" => proto.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        message => message.trim_start_matches('.').to_owned(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_of_types_is_complete_and_true() -> Result<()> {
    let documented = documented()?;
    let database = Cluster::shared().await?.database("types_documented").await?;
    define_types(&database).await?;
    database.create_marker().await?;
    let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
    let table = type_table(session.client()).await?;
    create_every(&database, &table).await?;
    let mut both = Both::read(&database, ServerConfig::of(database.url()), "public.every").await?;
    let (_, row) = both.reads.pop_first().context("a row")?;
    let row_type = row.row_type.as_ref().context("a row type")?;
    let mut complaints = Vec::new();
    let mut seen = BTreeSet::new();
    for (n, (type_name, _)) in (1..).zip(&table) {
        let column = row_type.column(&format!("c{n}")).context("a column")?;
        let found = field_type(row_type, column.field)?;
        let name = documented_name(type_name);
        match documented.get(&name) {
            Some(field) if *field == found => {}
            other => complaints.push(format!("{type_name} ({name}) is {found}, not {other:?}")),
        }
        seen.insert(name);
    }
    let unseen = documented.keys().filter(|name| !seen.contains(*name) && !EXTENSION_TYPES.contains(&name.as_str()));
    complaints.extend(unseen.map(|name| format!("{name} is in the document, but not in the table of types")));
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    Ok(())
}

/// Documented types that not every server has.
const EXTENSION_TYPES: &[&str] =
    &["citext", "hstore", "ltree", "lquery", "cube", "isbn13", "seg", "xml", "xml[]", "query_int"];

/// The name under which the document has a type: user-defined ones by their kind.
fn documented_name(type_name: &str) -> String {
    let bare = type_name.trim_start_matches("public.");
    let kind = match bare.trim_end_matches("[]") {
        "mood" | "\"od\"\"d, [ty'pe]\"" => "enum",
        "price" => "domain over numeric",
        "instant" => "domain over timestamptz",
        "ints" | "prices" => "domain over an array",
        "pair" | "nested" => "composite",
        "textrange" | "floatrange" | "pairrange" => "range",
        "textmultirange" => "multirange",
        other => return without_modifier(&format!("{other}{}", &bare[other.len()..])),
    };
    if bare.ends_with("[]") { format!("{kind}[]") } else { kind.to_owned() }
}

/// One spelling for each type.
fn without_modifier(name: &str) -> String {
    let bare = match (name.find('('), name.find(')')) {
        (Some(open), Some(close)) => format!("{}{}", &name[..open], &name[close + 1..]),
        _ => name.to_owned(),
    };
    match bare.as_str() {
        "time" => "time without time zone".to_owned(),
        "timestamp" => "timestamp without time zone".to_owned(),
        "interval hour to minute" => "interval".to_owned(),
        _ => bare,
    }
}
