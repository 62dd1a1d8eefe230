//! Schema changes under the stream: it goes on, every row is decoded under the schema that it was written with, and a column
//! that keeps its values keeps its field number.
//!
//! Each case writes before and behind the change, in other transactions and in the change's own. A subscriber that was there all
//! the time and one that reads the log from its beginning must receive what the oracle has, and each row type before its
//! first use. What a change does to rows that are stored already is not in the stream, and not tested here.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use tidegate_client::{Change, Changes, Event, Start, Subscription};
use tidegate_integration_tests::{
    Cluster, Database, Ended, History, Oracle, Recorder, Seed, Server, ServerConfig, Value,
};
use tidegate_schema::{RowDecoder, RowText, RowType};

/// A database that is captured and its accounts.
struct Stage {
    database: Database,
    server: Server,
    live: Changes,
    oracle: Oracle,
    received: Vec<Change>,
    marks: u32,
}

/// A row's texts by column.
pub(super) type Texts = BTreeMap<String, Option<String>>;

impl Stage {
    /// Starts with this schema; `tables` are published, as roots where `via_root`.
    async fn new(name: &str, schema: &str, via_root: bool) -> Result<Self> {
        let database = Cluster::shared().await?.database(&format!("ddl_{name}")).await?;
        database.create_marker().await?;
        database.execute(schema).await?;
        let mut config = ServerConfig::of(database.url());
        config.source_lines.push("tables: ['public.*', 'other.*']".to_owned());
        let publication = config.slot.clone();
        database
            .execute(&format!(
                "create publication {publication} for all tables with (publish_via_partition_root = {via_root})"
            ))
            .await?;
        let server = Server::start(config).await?;
        let oracle = Oracle::create(&database, &publication).await?;
        let live = server.client().await?.subscribe(every());
        let mut stage = Stage { database, server, live, oracle, received: Vec::new(), marks: 0 };
        stage.arrived().await?;
        Ok(stage)
    }

    /// Runs the statements, each in a transaction of its own, unless one says `begin`.
    async fn run(&self, statements: &[&str]) -> Result<()> {
        for statement in statements {
            self.database.execute(statement).await?;
        }
        Ok(())
    }

    /// Receives all that was written; returns what was new of tables other than the marker.
    async fn arrived(&mut self) -> Result<Vec<Change>> {
        self.marks += 1;
        let marker = format!("mark {}", self.marks);
        self.database.mark(&marker).await?;
        let new = until_marker(&mut self.live, &marker).await?;
        self.received.extend(new.iter().cloned());
        Ok(new)
    }

    /// A subscriber that comes late receives the same, and the oracle agrees on the order, the tables and the values.
    async fn must_agree(&mut self) -> Result<()> {
        self.arrived().await?;
        let mut late = self.server.client().await?.subscribe(every());
        let late = until_marker(&mut late, &format!("mark {}", self.marks)).await?;
        ensure!(late.len() == self.received.len(), "{} changes late, {} live", late.len(), self.received.len());
        for (late, live) in late.iter().zip(&self.received) {
            ensure!(late.position == live.position && late.row == live.row && late.old == live.old, "{live:?}");
            ensure!(proto(late)? == proto(live)?, "another row type for who comes late");
        }
        self.numbers_have_one_meaning()?;
        let expected = self.oracle.read(&self.database).await?;
        let mut expected: Vec<_> = expected.transactions().iter().flat_map(|t| &t.changes).collect();
        expected.retain(|change| !change.what.ends_with("public.marker") && !is_left_out(change));
        must_be_as_told(&self.received, expected.into_iter())
    }

    /// Within a table's messages, a field number has one type.
    fn numbers_have_one_meaning(&self) -> Result<()> {
        let mut types = HashMap::new();
        for change in &self.received {
            let proto = proto(change)?;
            for column in &proto.columns {
                let of = column.r#type.split('(').next().unwrap_or_default().to_owned();
                let known = types.entry((proto.message.clone(), column.field)).or_insert(of.clone());
                ensure!(*known == of, "field {} of {} was {known} and is {of}", column.field, proto.message);
            }
        }
        Ok(())
    }
}

/// Are these the changes that the oracle was told, each with the columns and values that it has there? What an update has left
/// unchanged may be filled in.
pub(super) fn must_be_as_told<'a>(
    received: &[Change],
    told: impl Iterator<Item = &'a tidegate_integration_tests::Change>,
) -> Result<()> {
    let told: Vec<_> = told.collect();
    for (change, told) in received.iter().zip(&told) {
        let found = format!("{} {}", change.op, change.table().unwrap_or_default());
        ensure!(change.position.to_string() == told.position, "{found} at {} for {told:?}", change.position);
        ensure!(told.what.starts_with(&found), "{found} for {}", told.what);
        let (mut found, sent) = (texts(change)?, sent(&told.row));
        found.retain(|column, _| sent.get(column) != Some(&Value::Unchanged));
        let (found, told) = (print(&found), print_told(sent));
        ensure!(found == told, "at {}: {found} for {told}", change.position);
    }
    ensure!(told.len() == received.len(), "{} changes of {}", received.len(), told.len());
    Ok(())
}

fn every() -> Subscription {
    Subscription::tables(["public.*", "other.*"]).from(Start::Earliest)
}

/// Published, but not among the source's tables.
fn is_left_out(change: &tidegate_integration_tests::Change) -> bool {
    change.what.contains(" tidegate.") || change.what.contains(" hidden.")
}

/// All changes of transactions that the log has of these tables, up to the marker.
pub(super) async fn transactions_until_marker(server: &Server, tables: &[&str], marker: &str) -> Result<Vec<Change>> {
    let every = Subscription::tables(tables.iter().copied()).from(Start::Earliest);
    until_marker(&mut server.client().await?.subscribe(every), marker).await
}

/// Receives until the marker what transactions have changed. The client library refuses a change whose row type has not been
/// announced before.
async fn until_marker(changes: &mut Changes, marker: &str) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    let mut is_of_snapshot = false;
    while let Some(event) = changes.next().await {
        match event? {
            Event::Begin { snapshot, .. } => is_of_snapshot = snapshot != 0,
            Event::Change(change) if change.table() == Some("public.marker") => {
                let row = change.row_json()?.unwrap_or_default();
                if row.get("name").and_then(|name| name.as_str()) == Some(marker) {
                    return Ok(found);
                }
            }
            Event::Change(change) if !is_of_snapshot => found.push(change),
            Event::Reset { reason, detail } => bail!("{reason:?}: {detail}"),
            _ => {}
        }
    }
    bail!("the subscription ended")
}

fn proto(change: &Change) -> Result<&tidegate_proto::v1::RowType> {
    Ok(change.row_type.as_ref().context("a row type")?.proto())
}

/// The texts of the new row, without what is unchanged.
fn texts(change: &Change) -> Result<Texts> {
    if !change.has_row() {
        return Ok(Texts::new());
    }
    let mut texts = texts_of(change, &change.row)?;
    let unchanged = proto(change)?.columns.iter().filter(|column| change.unchanged.contains(&column.field));
    unchanged.for_each(|column| drop(texts.remove(&column.name)));
    Ok(texts)
}

/// The texts of all that the bytes of a row hold.
pub(super) fn texts_of(change: &Change, row: &[u8]) -> Result<Texts> {
    let row_type = RowType::new(proto(change)?.clone())?;
    let mut text = RowText::default();
    RowDecoder::of_row_type(&row_type, |_| b',')?.text(row, &mut text)?;
    let columns = row_type.proto().columns.iter();
    Ok(columns.zip(text.values()).map(|(column, value)| (column.name.clone(), value.map(str::to_owned))).collect())
}

fn print(texts: &Texts) -> String {
    texts.iter().fold(String::new(), |mut line, (name, value)| {
        let short = value.as_deref().map(|value| value.chars().take(40).collect::<String>());
        write!(line, "{name}={short:?} ").expect("a string takes it");
        line
    })
}

/// The columns of the new row.
fn sent(row: &tidegate_integration_tests::Row) -> BTreeMap<String, Value> {
    use tidegate_integration_tests::Row;
    match row {
        Row::None => BTreeMap::new(),
        Row::Key(columns) | Row::Full(columns) => columns.iter().cloned().collect(),
    }
}

fn print_told(sent: BTreeMap<String, Value>) -> String {
    let text = |(name, value)| match value {
        Value::Null => Some((name, None)),
        Value::Text(text) => Some((name, Some(text))),
        Value::Unchanged => None,
    };
    print(&sent.into_iter().filter_map(text).collect())
}

/// Columns with their field numbers in the row type of the last change.
fn fields(changes: &[Change]) -> Result<BTreeMap<String, u32>> {
    let last = proto(changes.last().context("a change")?)?;
    Ok(last.columns.iter().map(|column| (column.name.clone(), column.field)).collect())
}

/// What becomes of a column's field number.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// The column had another name, whose number it keeps.
    From(&'static str, &'static str),
    /// No column had its number before.
    New(&'static str),
}

const TABLE: &str = "create table t (id int primary key, a int, b text, c int default 5);
    alter table t replica identity full";

/// A change of a table `t`: writes before it, in its transaction, and behind it. Every column that has kept its name has also
/// kept its number, unless `new` names it.
async fn change(name: &str, schema: &str, ddl: &str, expected: &[Field]) -> Result<()> {
    let mut stage = Stage::new(name, schema, true).await?;
    let insert = |id: u32| format!("insert into t (id) values ({id})");
    stage.run(&[&insert(1), "update t set id = 2", "insert into t (id) values (3)"]).await?;
    let before = fields(&stage.arrived().await?)?;
    let within = format!("begin; {}; {ddl}; {}; update t set id = 12 where id = 2; commit", insert(10), insert(11));
    stage.run(&[&within]).await?;
    stage.run(&[&insert(20), "update t set id = 21 where id = 20", "delete from t where id = 3"]).await?;
    let after = fields(&stage.arrived().await?)?;
    let mut highest = before.values().copied().max().unwrap_or(0);
    for field in expected {
        match field {
            Field::From(was, is) => ensure!(before.get(*was) == after.get(*is), "{was} {before:?}, {is} {after:?}"),
            Field::New(is) => {
                let number = *after.get(*is).with_context(|| format!("no {is}"))?;
                ensure!(number > highest, "{is} has the used number {number}");
                highest = highest.max(number);
            }
        }
    }
    let named =
        |name: &str| expected.iter().any(|field| matches!(field, Field::From(_, is) | Field::New(is) if *is == name));
    for (name, number) in &after {
        ensure!(named(name) || before.get(name) == Some(number), "{name}: {before:?} became {after:?}");
    }
    stage.must_agree().await
}

#[tokio::test(flavor = "multi_thread")]
async fn add_column() -> Result<()> {
    change("add", TABLE, "alter table t add x text", &[Field::New("x")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn add_column_with_a_constant_default() -> Result<()> {
    change("add_constant", TABLE, "alter table t add x int not null default 7", &[Field::New("x")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn add_column_with_a_volatile_default() -> Result<()> {
    change("add_volatile", TABLE, "alter table t add x uuid default gen_random_uuid()", &[Field::New("x")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn add_identity_column() -> Result<()> {
    change("add_identity", TABLE, "alter table t add x int generated always as identity", &[Field::New("x")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_column() -> Result<()> {
    change("drop_column", TABLE, "alter table t drop b", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rename_column_keeps_its_number() -> Result<()> {
    change("rename", TABLE, "alter table t rename b to x", &[Field::From("b", "x")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_swap_names_swap_numbers() -> Result<()> {
    let ddl = "alter table t rename a to x; alter table t rename c to a; alter table t rename x to c";
    change("swap", TABLE, ddl, &[Field::From("a", "c"), Field::From("c", "a")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_given_up_by_a_rename_gets_a_new_number() -> Result<()> {
    let ddl = "alter table t rename a to x; alter table t add a int default 9";
    change("rename_add", TABLE, ddl, &[Field::From("a", "x"), Field::New("a")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn type_change_without_a_rewrite() -> Result<()> {
    let schema = "create table t (id int primary key, v varchar(10) default 'x', w varchar(10) default 'x')";
    change("type_same", schema, "alter table t alter v type varchar(20), alter w type text", &[Field::New("w")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn type_change_with_a_rewrite() -> Result<()> {
    let ddl = "alter table t alter c type text using 'c' || c";
    change("type_rewrite", TABLE, ddl, &[Field::New("c")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn set_expression() -> Result<()> {
    let version = Cluster::shared().await?.database("ddl_version").await?.server_version().await?;
    if version < 17 {
        println!("LEFT OUT: PostgreSQL {version} has no SET EXPRESSION");
        return Ok(());
    }
    let schema = "create table t (id int primary key, g int generated always as (id * 2) stored)";
    change("expression", schema, "alter table t alter g set expression as (id * 3)", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_and_add_with_another_type() -> Result<()> {
    let ddl = "alter table t drop c; alter table t add c text default 'c'";
    change("readd", TABLE, ddl, &[Field::New("c")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn enum_values() -> Result<()> {
    let schema = "create type mood as enum ('ok', 'bad'); create table t (id int primary key, m mood default 'ok')";
    change(
        "enum_rename",
        schema,
        "alter type mood rename value 'ok' to 'fine'; alter table t alter m set default 'fine'",
        &[],
    )
    .await?;
    // A new value cannot be used in the transaction that adds it.
    change("enum_add", schema, "alter type mood add value 'new'", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_type_keeps_the_number() -> Result<()> {
    let schema = "create type mood as enum ('ok', 'bad'); create table t (id int primary key, m mood default 'ok')";
    let mut stage = Stage::new("type_rename", schema, true).await?;
    stage.run(&["insert into t values (1)"]).await?;
    let before = fields(&stage.arrived().await?)?;
    // It is no change of the table, which is not described again before that has one.
    stage.run(&["alter type mood rename to feeling", "insert into t values (2)"]).await?;
    stage.arrived().await?;
    stage.run(&["begin; alter table t add x int; insert into t values (3); commit"]).await?;
    let after = fields(&stage.arrived().await?)?;
    ensure!(before["m"] == after["m"], "{before:?} became {after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn domains() -> Result<()> {
    let schema = "create domain price as numeric(10, 2) default 1.5; create domain list as int[] default '{1,NULL}';
        create table t (id int primary key, p price, l list)";
    let ddl = "alter domain price add constraint positive check (value > 0); alter domain price set default 2.25";
    change("domain", schema, ddl, &[]).await?;
    change("domain_type", schema, "alter table t alter p type numeric(10, 2)", &[Field::New("p")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn composite_add_attribute() -> Result<()> {
    let schema = "create type pair as (a int, b text); create table t (id int primary key, p pair default '(1,b)')";
    let ddl = "alter type pair add attribute c int cascade; alter table t alter p set default '(1,b,3)'";
    change("composite", schema, ddl, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_the_primary_key() -> Result<()> {
    let schema = "create table t (id int primary key, k int not null generated always as identity)";
    change("primary_key", schema, "alter table t drop constraint t_pkey, add primary key (k)", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_the_replica_identity() -> Result<()> {
    let schema = "create table t (id int primary key, k int not null generated always as identity unique)";
    change("identity_full", schema, "alter table t replica identity full", &[]).await?;
    change("identity_index", schema, "alter table t replica identity using index t_k_key", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_and_create_under_the_same_name() -> Result<()> {
    let ddl = "drop table t; create table t (id int primary key, a text default 'a', b text);
        insert into t values (2), (3)";
    change("recreate", TABLE, ddl, &[Field::New("a")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_table_goes_on_under_its_new_name() -> Result<()> {
    let mut stage = Stage::new("rename_table", &format!("create schema other; {TABLE}"), true).await?;
    stage
        .run(&["insert into t values (1)", "begin; alter table t rename to u; insert into u values (2); commit"])
        .await?;
    stage
        .run(&["insert into u values (3)", "alter table u set schema other", "insert into other.u values (4)"])
        .await?;
    stage
        .run(&["alter table other.u set schema public", "alter table u rename to t", "insert into t values (5)"])
        .await?;
    let tables: Vec<String> = stage.arrived().await?.iter().filter_map(|c| c.table().map(str::to_owned)).collect();
    ensure!(tables == ["public.t", "public.u", "public.u", "other.u", "public.t"], "{tables:?}");
    stage.must_agree().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_renamed_out_of_the_patterns_is_left_out_until_it_returns() -> Result<()> {
    let mut stage = Stage::new("rename_out", &format!("create schema hidden; {TABLE}"), true).await?;
    stage.run(&["insert into t values (1)"]).await?;
    stage
        .run(&[
            "begin; insert into t values (2); alter table t set schema hidden; insert into hidden.t values (3); commit",
        ])
        .await?;
    stage
        .run(&["insert into hidden.t values (4)", "alter table hidden.t set schema public", "insert into t values (5)"])
        .await?;
    let ids: Vec<_> =
        stage.arrived().await?.iter().map(|c| texts(c).map(|row| row["id"].clone())).collect::<Result<_>>()?;
    ensure!(ids == [1, 2, 5].map(|id: u32| Some(id.to_string())), "{ids:?}");
    stage.must_agree().await
}

#[tokio::test(flavor = "multi_thread")]
async fn unlogged_writes_are_missing_and_the_stream_goes_on() -> Result<()> {
    let mut stage = Stage::new("unlogged", TABLE, true).await?;
    stage.run(&["insert into t values (1)"]).await?;
    // While it is unlogged it cannot be published; a publication of all tables leaves it out.
    stage.run(&["alter table t set unlogged", "insert into t values (2)", "alter table t set logged"]).await?;
    stage.run(&["insert into t values (3)"]).await?;
    let ids: Vec<_> = stage
        .arrived()
        .await?
        .iter()
        .map(|change| texts(change).map(|row| row["id"].clone()))
        .collect::<Result<_>>()?;
    ensure!(ids == [Some("1".to_owned()), Some("3".to_owned())], "{ids:?}");
    stage.must_agree().await
}

/// Partitions come, go and are emptied.
async fn partitions(name: &str, via_root: bool) -> Result<()> {
    let schema = "create table t (id int primary key, a int) partition by range (id);
        create table t1 partition of t for values from (0) to (100);
        create table t2 (a int, gone int, id int primary key); alter table t2 drop gone";
    let mut stage = Stage::new(name, schema, via_root).await?;
    stage.run(&["insert into t values (1, 1)", "insert into t2 (id, a) values (101, 1)"]).await?;
    let attach = "alter table t attach partition t2 for values from (100) to (200)";
    stage.run(&[&format!("begin; {attach}; insert into t values (102, 2), (2, 2); commit")]).await?;
    stage.run(&["insert into t values (103, 3)", "update t set id = 104 where id = 2", "truncate t1"]).await?;
    stage.run(&["begin; alter table t add x text default 'x'; insert into t values (105, 5), (5, 5); commit"]).await?;
    stage.run(&["alter table t detach partition t2", "insert into t2 (id, a) values (106, 6)", attach]).await?;
    stage.run(&["insert into t values (107, 7)", "drop table t2", "insert into t values (8, 8)", "truncate t"]).await?;
    stage.run(&["insert into t values (9, 9)"]).await?;
    stage.must_agree().await
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_under_their_root() -> Result<()> {
    partitions("via_root", true).await
}

/// No row has the partition's own row types, so that only the control database remembers them when the transaction comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_partitions_that_is_renamed_before_a_restart() -> Result<()> {
    let schema = "create table t (id int primary key, a int) partition by range (id);
        create table t1 partition of t for values from (0) to (100)";
    let mut stage = Stage::new("leaf_rename", schema, true).await?;
    stage.run(&["insert into t values (0, 0)"]).await?;
    stage.arrived().await?;
    let within = "begin; insert into t values (1, 1); alter table t rename a to x; insert into t values (2, 2); commit";
    stage.run(&[within]).await?;
    for _ in 0..2 {
        while !matches!(stage.live.next().await.context("the subscription ended")??, Event::Change(_)) {}
    }
    stage.server.kill().await?;
    stage.server.launch().await?;
    stage.run(&["insert into t values (3, 3)"]).await?;
    stage.database.mark("after").await?;
    let found = transactions_until_marker(&stage.server, &["public.*"], "after").await?;
    let last: Vec<String> =
        found.iter().rev().take(2).map(|change| Ok(print(&texts(change)?))).collect::<Result<_>>()?;
    ensure!(last == [r#"id=Some("3") x=Some("3") "#, r#"id=Some("2") x=Some("2") "#], "{last:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_as_themselves() -> Result<()> {
    partitions("leaves", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_catalog_has_left_behind_is_still_decoded() -> Result<()> {
    let schema = "create type mood as enum ('ok', 'bad');
        create table t (id int primary key, m mood default 'ok', n int default 1, l int[] default '{1,NULL}')";
    let mut stage = Stage::new("behind", schema, true).await?;
    stage.server.kill().await?;
    stage.run(&["insert into t values (1)", "alter table t rename n to o", "insert into t values (2)"]).await?;
    stage.run(&["alter table t rename o to n2; alter table t add n int default 4", "insert into t values (3)"]).await?;
    stage.run(&["alter table t drop m", "drop type mood", "insert into t values (4)"]).await?;
    stage.run(&["alter table t alter l type text", "insert into t values (5)", "drop table t"]).await?;
    stage.run(&["create table t (n text primary key)", "insert into t values ('six')"]).await?;
    stage.server.launch().await?;
    stage.must_agree().await
}

/// Random schema changes and writes of several sessions at once, from a seed.
#[tokio::test(flavor = "multi_thread")]
async fn random_schema_changes_under_load() -> Result<()> {
    let seed = Seed::from_environment();
    let mut schema = String::from("create type mood as enum ('ok', 'bad');");
    for table in 0..TABLES {
        write!(schema, "create table r{table} (id serial primary key, a int default 1, b text default 'b');")?;
        if table % 2 == 0 {
            write!(schema, "alter table r{table} replica identity full;")?;
        }
    }
    let stage = Stage::new("random", &schema, true).await?;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let (database, random) = (stage.database.another().await?, seed.generator(writer));
        writers.spawn(write(database, random));
    }
    writers.join_all().await.into_iter().collect::<Result<Vec<()>>>()?;
    let mut recorder = Recorder::new(stage.server.endpoint());
    stage.database.mark("end").await?;
    ensure!(recorder.until_marker("end").await? == Ended::Arrived);
    let oracle = stage.oracle.read(&stage.database).await?;
    ensure!(oracle.change_count() > 300, "only {} changes", oracle.change_count());
    let mut expected = History::default();
    for mut transaction in oracle.transactions().iter().cloned() {
        transaction.changes.retain(|change| !is_left_out(change));
        expected.push(transaction);
    }
    recorder.history().must_equal(&expected)
}

const TABLES: u32 = 4;

async fn write(database: Database, mut random: rand::rngs::StdRng) -> Result<()> {
    use rand::RngExt;
    database.execute("set lock_timeout = '1s'").await?;
    for n in 0..250 {
        let table = format!("r{}", random.random_range(0..TABLES));
        let other = random.random_range(0..4_u32);
        let ddl = match random.random_range(0..14_u32) {
            0 => format!("alter table {table} add x{other} int default {n}"),
            1 => format!("alter table {table} add x{other} text default md5(random()::text)"),
            2 => format!("alter table {table} drop x{other}"),
            3 => format!("alter table {table} rename x{other} to x{}", random.random_range(0..4_u32)),
            4 => format!(
                "alter table {table} rename a to y; alter table {table} rename b to a; alter table {table} rename y to b"
            ),
            5 => format!("alter table {table} alter x{other} type text"),
            6 => format!("alter table {table} alter x{other} type varchar({})", 50 + n),
            7 => format!("alter table {table} add x{other} mood default 'ok'"),
            8 => format!("alter table {table} replica identity {}", if other < 2 { "full" } else { "default" }),
            9 => format!("alter table {table} rename to r{}", random.random_range(0..=TABLES)),
            10 => format!(
                "drop table {table}; create table {table} (b int default 2, id serial primary key, a text default 'a')"
            ),
            11 => format!("truncate {table}"),
            12 => format!("alter type mood add value if not exists 'v{n}'"),
            _ => "select 1".to_owned(),
        };
        let dml = |kind: u32| match kind {
            0 => format!(
                "update {table} set id = id + 1000000 where id = (select max(id) from {table} where id < 1000000)"
            ),
            1 => format!("delete from {table} where id = (select min(id) from {table})"),
            2 => format!("savepoint s; {ddl}; insert into {table} default values; rollback to s"),
            _ => format!("insert into {table} default values; insert into {table} default values"),
        };
        let (one, two, end) = (random.random_range(0..6_u32), random.random_range(0..6_u32), random.random_bool(0.9));
        let sql = match random.random_range(0..3_u32) {
            0 => format!("begin; {}; {ddl}; {}; {}", dml(one), dml(two), if end { "commit" } else { "rollback" }),
            _ => format!("begin; {}; {}; commit", dml(one), dml(two)),
        };
        // That a statement fails, since there is no such column now, is part of it.
        if database.execute(&sql).await.is_err() {
            database.execute("rollback").await?;
        }
    }
    Ok(())
}
