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
    Cluster, Database, Server, ServerConfig, define_types, has_equality, lacks_equality, literal, type_table, written,
};
use tidegate_postgres::{ConnectConfig, Session};
use tidegate_schema::{RowDecoder, RowText, RowType};
use tokio_postgres::SimpleQueryMessage;

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

    /// Stops the server; a subscriber would hold it up.
    async fn stop(self) -> Result<()> {
        let Both { mut server, changes, .. } = self;
        drop(changes);
        server.terminate().await
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
        let delimiter = format!("(select typdelim::text from pg_type where oid = pg_typeof(null::{type_name}))");
        // Those of PostGIS are compared element by element, in a test of their own.
        if type_name.ends_with("[]") || written(session.client(), &delimiter).await? == ":" {
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

/// The decoded texts, read by PostgreSQL again, are the values that they were written from, as far as there is equality.
async fn must_be_the_same_values(database: &Database, table: &[Typed], read: &Change) -> Result<()> {
    let (id, texts) = (id(read)?, texts(read)?);
    for (n, (type_name, _)) in (1..).zip(table) {
        let Some(text) = texts.get(&format!("c{n}")).context("a column")? else { continue };
        let value = literal(text, type_name);
        let same = format!("select (c{n} is not distinct from {value})::text from public.every where id = {id}");
        match database.client().query_one(&same, &[]).await {
            Ok(row) => ensure!(row.try_get::<_, &str>(0)? == "true", "{text} of {type_name} is another value"),
            Err(error) if lacks_equality(&error) => {
                // An array has equality where its elements have an index method for it; equal text was found already.
                ensure!(type_name.ends_with("[]") || !has_equality(type_name), "{type_name} has no equality");
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

/// Columns of every kind and awkward name.
const COLUMNS: &str = r#"create table public.columns (
    id bigint primary key,
    "Größe ""x"", 'y'\ $1" text,
    "select" int, "UPPER" int, " " int, "a.b" int, "ключ" text, "_U41_" int, "1" int,
    n int generated always as identity, m int generated by default as identity,
    twice bigint generated always as (id * 2) stored)"#;

const ROW: &str = r#"insert into public.columns
    (id, "Größe ""x"", 'y'\ $1", "select", "UPPER", " ", "a.b", "ключ", "_U41_", "1", n, m) overriding system value
    values (7, 'ß', 1, 2, 3, 4, 'д', 5, 6, 7, 8)"#;

/// The columns arrive alike over both paths; the generated one is among them if the publication says so.
async fn columns_are_alike(name: &str, generated: bool) -> Result<()> {
    let database = Cluster::shared().await?.database(name).await?;
    let version = database.server_version().await?;
    if generated && version < 18 {
        println!("LEFT OUT: PostgreSQL {version} publishes no generated columns");
        return Ok(());
    }
    database.create_marker().await?;
    database.execute(COLUMNS).await?;
    let config = ServerConfig::of(database.url());
    if generated {
        let (slot, with) = (&config.slot, "with (publish_generated_columns = stored)");
        database.execute(&format!("create publication {slot} for table public.columns, marker {with}")).await?;
    }
    let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
    database.execute(ROW).await?;
    let mut both = Both::read(&database, config, "public.columns").await?;
    let read = both.reads.remove(&7).context("the row")?;
    // Deleted, so that the same values can be written again, the generated one included.
    database.execute("delete from public.columns").await?;
    database.execute(ROW).await?;
    let mut streamed = both.streamed(&database, "public.columns", "after").await?;
    let inserted = streamed.pop().context("the insert")?;
    let has_generated = row_type(&read)?.column("twice").is_some();
    ensure!(has_generated == generated, "the generated column: {has_generated}");
    ensure!(read.row == inserted.row, "other bytes on the snapshot's path than on the stream's");
    ensure!(texts(&read)?.len() == if generated { 12 } else { 11 }, "{:?}", texts(&read)?);
    must_be_alike(&session, "public.columns", &read, &inserted).await?;
    both.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_awkward_names_and_identity_are_alike_over_both_paths() -> Result<()> {
    columns_are_alike("types_columns", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_generated_column_is_alike_over_both_paths() -> Result<()> {
    columns_are_alike("types_generated", true).await
}

/// What is published of a table with generated columns comes over both paths, and nothing else of it.
async fn computed(name: &str, generated: &str, with: &str, published: &[&str]) -> Result<()> {
    let database = Cluster::shared().await?.database(name).await?;
    database.create_marker().await?;
    let config = ServerConfig::of(database.url());
    database
        .execute(&format!(
            "create table computed (id bigint primary key, v int, {generated}); insert into computed (id, v) values (7, 1); \
             create publication {} for table computed, marker {with}",
            config.slot
        ))
        .await?;
    let mut both = Both::read(&database, config, "public.computed").await?;
    let read = both.reads.remove(&7).context("the row")?;
    database.execute("insert into computed (id, v) values (8, 1); update computed set v = 5 where id = 8").await?;
    let streamed = both.streamed(&database, "public.computed", "after").await?;
    let [inserted, updated] = streamed.as_slice() else { bail!("{} changes", streamed.len()) };
    for change in [&read, inserted, updated] {
        let mut names: Vec<String> = texts(change)?.into_keys().collect();
        names.sort_unstable();
        ensure!(names == published, "{}: {names:?}", change.op);
    }
    ensure!(values_of(&read)? == values_of(inserted)?, "other bytes on the snapshot's path than on the stream's");
    let thrice = texts(updated)?.get("thrice").cloned().flatten();
    ensure!(thrice.as_deref() == published.contains(&"thrice").then_some("15"), "{thrice:?}");
    both.stop().await
}

const STORED: &str = "thrice int generated always as (v * 3) stored";
/// From 18 on. PostgreSQL publishes none, whatever the publication says.
const VIRTUAL: &str = "twice int generated always as (v * 2) virtual";

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_generated_column_that_is_not_published_is_absent_on_both_paths() -> Result<()> {
    computed("types_stored", STORED, "", &["id", "v"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_generated_column_is_absent_on_both_paths() -> Result<()> {
    let version = Cluster::shared().await?.database("types_version").await?.server_version().await?;
    if version < 18 {
        println!("LEFT OUT: PostgreSQL {version} has no virtual generated columns");
        return Ok(());
    }
    let (both, stored) = (format!("{VIRTUAL}, {STORED}"), "with (publish_generated_columns = stored)");
    computed("types_virtual", &both, stored, &["id", "thrice", "v"]).await?;
    computed("types_virtual_none", &both, "", &["id", "v"]).await
}

/// Types whose arrays are not divided by commas, as those of PostGIS are not. The row type of a client does not say so, but what it
/// needs of the array are its elements.
#[tokio::test(flavor = "multi_thread")]
async fn arrays_of_types_with_another_delimiter_are_alike_over_both_paths() -> Result<()> {
    let database = Cluster::shared().await?.database("types_delimiter").await?;
    database.create_marker().await?;
    let functions: Vec<String> = [("in", "cstring", "shape"), ("out", "shape", "cstring")]
        .map(|(way, from, into)| {
            format!(
                "create function shape_{way}({from}) returns {into} language internal immutable strict parallel safe as 'text{way}'"
            )
        })
        .to_vec();
    database
        .execute(&format!(
            "create type shape; {}; create type shape (input = shape_in, output = shape_out, like = text, delimiter = ':'); \
             create table shaped (id bigint primary key, s shape, a shape[], d shape[]); \
             insert into shaped values (1, 'a:b,c', array['a', 'b', null, 'c:d', 'e,f', '']::shape[], \
             array[array['x', 'y'], array['1,2', ':']]::shape[])",
            functions.join("; ")
        ))
        .await?;
    let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
    let mut both = Both::read(&database, ServerConfig::of(database.url()), "public.shaped").await?;
    let read = both.reads.remove(&1).context("the row")?;
    database.execute("insert into shaped select 2, s, a, d from shaped").await?;
    let mut streamed = both.streamed(&database, "public.shaped", "after").await?;
    let inserted = streamed.pop().context("the insert")?;
    ensure!(values_of(&read)? == values_of(&inserted)?, "other bytes on the snapshot's path than on the stream's");
    for change in [&read, &inserted] {
        let row = change.row_json()?.context("a row")?;
        ensure!(row["s"] == "a:b,c", "{row:?}");
        println!("{row:?}");
        ensure!(
            row["a"].to_string().contains(r#""a","b""#) && row["a"].to_string().contains(r#""c:d","e,f","""#),
            "{row:?}"
        );
    }
    // With the delimiter it is PostgreSQL's own text.
    let (stored, row_type) = (stored(&session, "public.shaped", 1).await?, row_type(&read)?);
    let mut text = RowText::default();
    RowDecoder::of_row_type(&row_type, |_| b':')?.text(&read.row, &mut text)?;
    let texts: Vec<Option<&str>> = text.values().collect();
    ensure!(texts[2] == stored["a"].as_deref() && texts[3] == stored["d"].as_deref(), "{texts:?} for {stored:?}");
    both.stop().await
}

/// The snapshot has the large value whole; an update that leaves it says so.
async fn large_values(identity: &str, clause: &str) -> Result<()> {
    let database = Cluster::shared().await?.database(&format!("types_toast_{identity}")).await?;
    database.create_marker().await?;
    database
        .execute(&format!(
            "create table big (id bigint primary key, at int not null, large text, n int);
             create unique index big_at on big (at);
             alter table big alter large set storage external, replica identity {clause};
             insert into big select 1, 1, string_agg(md5(n::text), ''), 0 from generate_series(1, 2000) n"
        ))
        .await?;
    let config = ServerConfig::of(database.url());
    database.execute(&format!("create publication {} for table big, marker", config.slot)).await?;
    let mut both = Both::read(&database, config, "public.big").await?;
    let read = both.reads.remove(&1).context("the row")?;
    ensure!(read.unchanged.is_empty() && texts(&read)?["large"].as_ref().is_some_and(|text| text.len() == 64_000));
    database.execute("update big set n = 1").await?;
    let streamed = both.streamed(&database, "public.big", "after").await?;
    let update = streamed.first().context("the update")?;
    let unchanged: Vec<&str> = update.unchanged_columns().collect();
    let old = update.old_json()?.unwrap_or_default();
    let whole = old.get("large").and_then(|value| value.as_str()).map(str::len);
    ensure!((whole == Some(64_000)) == (identity == "full"), "the old value has {whole:?} bytes");
    // With FULL, PostgreSQL may send the new value as well: what is not sent is unchanged, and never null.
    let row = update.row_json()?.context("a row")?;
    let sent = row.get("large").and_then(|value| value.as_str()).map(str::len);
    ensure!(if sent.is_none() { unchanged == ["large"] } else { sent == Some(64_000) && unchanged.is_empty() });
    database.execute("insert into big select 2, 2, large, n from big where id = 1").await?;
    let streamed = both.streamed(&database, "public.big", "inserted").await?;
    let inserted = streamed.last().context("the insert")?;
    ensure!(inserted.unchanged.is_empty() && texts(inserted)?["large"] == texts(&read)?["large"]);
    // To another key, without the large value; and away.
    database.execute("update big set id = 3, at = 3 where id = 2; delete from big where id = 3").await?;
    let streamed = both.streamed(&database, "public.big", "last").await?;
    let [moved, deleted] = streamed.as_slice() else { bail!("{} changes", streamed.len()) };
    ensure!((moved.op, deleted.op) == (Op::Update, Op::Delete), "{} and {}", moved.op, deleted.op);
    let has_large = moved.row_json()?.context("a row")?.get("large").is_some_and(|large| !large.is_null());
    ensure!(has_large == moved.unchanged.is_empty(), "a large value that is neither sent nor unchanged");
    let key = if identity == "index" { "at" } else { "id" };
    for (change, was) in [(moved, 2), (deleted, 3)] {
        let old = change.old_json()?.context("an old row")?;
        ensure!(old.get(key).and_then(|value| value.as_i64()) == Some(was), "{}: {old:?}", change.op);
        let whole = old.get("large").and_then(|value| value.as_str()).map(str::len);
        ensure!(whole == (identity == "full").then_some(64_000), "{}: the old value has {whole:?} bytes", change.op);
    }
    both.stop().await
}

/// Without a replica identity PostgreSQL itself refuses updates and deletes, unless the publication leaves them out: then inserts are sent.
async fn large_values_without_identity() -> Result<()> {
    let database = Cluster::shared().await?.database("types_toast_nothing").await?;
    database.create_marker().await?;
    database
        .execute(
            "create table big (id bigint primary key, large text);
             alter table big alter large set storage external, replica identity nothing;
             create publication refused for table big;
             insert into big select 1, string_agg(md5(n::text), '') from generate_series(1, 2000) n",
        )
        .await?;
    for refused in ["update big set id = 2", "delete from big"] {
        let error = database.execute(refused).await.err().context("PostgreSQL lets it pass")?;
        ensure!(format!("{error:?}").contains("replica identity"), "{error:?}");
    }
    database.execute("drop publication refused").await?;
    let config = ServerConfig::of(database.url());
    let with = "with (publish = 'insert')";
    database.execute(&format!("create publication {} for table big, marker {with}", config.slot)).await?;
    let mut both = Both::read(&database, config, "public.big").await?;
    let read = both.reads.remove(&1).context("the row")?;
    ensure!(texts(&read)?["large"].as_ref().is_some_and(|text| text.len() == 64_000));
    database.execute("update big set id = 2; insert into big select 3, large from big; delete from big").await?;
    let streamed = both.streamed(&database, "public.big", "last").await?;
    let [inserted] = streamed.as_slice() else { bail!("{} changes", streamed.len()) };
    ensure!(inserted.op == Op::Insert && inserted.unchanged.is_empty(), "{}", inserted.op);
    ensure!(texts(inserted)?["large"] == texts(&read)?["large"]);
    both.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_are_whole_in_a_snapshot_and_never_null_in_the_stream() -> Result<()> {
    for (identity, clause) in [("default", "default"), ("index", "using index big_at"), ("full", "full")] {
        large_values(identity, clause).await.with_context(|| format!("replica identity {identity}"))?;
    }
    large_values_without_identity().await.context("replica identity nothing")
}

/// Fields by the types that the document lists with them. Arrays and domains follow from these.
fn documented() -> Result<BTreeMap<String, String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/docs/type-mapping.md");
    let mut documented = BTreeMap::new();
    let text = std::fs::read_to_string(path)?;
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| PostgreSQL")) {
        let cells: Vec<&str> = line.split('|').collect();
        let (types, field) = (cells[1], cells[2].trim().trim_matches('`'));
        for type_name in types.split(',').map(|name| name.trim().trim_matches('`')) {
            let twice = documented.insert(type_name.to_owned(), field.to_owned());
            ensure!(twice.is_none(), "{type_name} is there twice");
        }
    }
    Ok(documented)
}

/// What the document says that a type becomes.
fn documented_field(documented: &BTreeMap<String, String>, type_name: &str) -> Option<String> {
    if let Some(element) = type_name.strip_suffix("[]") {
        let element = documented_field(documented, element)?;
        return Some(match element.as_str() {
            "tidegate.v1.Timestamptz" => "tidegate.v1.TimestamptzArray".to_owned(),
            message if message.starts_with("tidegate.v1.") => "tidegate.v1.StringArray".to_owned(),
            scalar => format!("tidegate.v1.{}{}Array", scalar[..1].to_uppercase(), &scalar[1..]),
        });
    }
    let name = without_modifier(type_name.trim_start_matches("public."));
    match name.as_str() {
        "price" => documented_field(documented, "numeric"),
        "instant" => documented_field(documented, "timestamp with time zone"),
        "ints" => documented_field(documented, "integer[]"),
        "prices" => documented_field(documented, "numeric[]"),
        kind => documented.get(kind_of(kind)).cloned(),
    }
}

/// User-defined types are documented by their kind, PostgreSQL's ranges too.
fn kind_of(name: &str) -> &str {
    match name {
        "mood" | "\"od\"\"d, [ty'pe]\"" => "enums",
        "pair" | "nested" => "composites",
        multirange if multirange.ends_with("multirange") => "multiranges",
        range if range.ends_with("range") => "ranges",
        other => other,
    }
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
    for (n, (type_name, _)) in (1..).zip(&table) {
        let column = row_type.column(&format!("c{n}")).context("a column")?;
        let (found, said) = (field_type(row_type, column.field)?, documented_field(&documented, type_name));
        if said.as_ref() != Some(&found) {
            complaints.push(format!("{type_name} is {found}, not {said:?}"));
        }
    }
    let names = table.iter().map(|(type_name, _)| without_modifier(type_name.trim_start_matches("public.")));
    let seen: BTreeSet<String> = names.map(|name| kind_of(&name).to_owned()).collect();
    let unseen =
        documented.keys().filter(|name| !seen.contains(*name) && !EXTENSION_TYPES.split(' ').any(|of| of == *name));
    complaints.extend(unseen.map(|name| format!("{name} is in the document, but not in the table of types")));
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    Ok(())
}

/// Documented types that not every server has.
const EXTENSION_TYPES: &str =
    "citext hstore ltree lquery cube isbn13 xml geometry geography box2d box3d vector halfvec sparsevec";

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
