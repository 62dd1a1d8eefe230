//! Named shapes: over the command line and from the configuration, on every server, and while the control database is away.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_client::{Client, Event, MirrorState, Shape, Start, Subscription};
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig, tidegate, within};
use tokio_stream::StreamExt as _;

const DECLARED: &str =
    "shapes: {declared: {table: orders, where: 'total > $1', parameters: [numeric], columns: [total]}}";

fn config_of(database: &Database, control: &Database) -> ServerConfig {
    let mut config = ServerConfig::of(database.url());
    config.lines.push(format!("control: {{url: '{}'}}", control.url()));
    config.source_lines.push("mirror: [orders]".to_owned());
    config.source_lines.push(DECLARED.to_owned());
    config
}

async fn served(name: &str) -> Result<(Database, Database, Server)> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database(name).await?;
    database.execute("create table orders (id bigint primary key, tenant int, total numeric, note text)").await?;
    database.execute("insert into orders select n, n % 3, n, 'note ' || n from generate_series(1, 30) n").await?;
    let control = cluster.database(&format!("{name}_control")).await?;
    let server = Server::start(config_of(&database, &control)).await?;
    let is_complete = |state| state == MirrorState::Complete;
    server.until("shop", "a mirror", |status| status.mirror.iter().any(|table| is_complete(table.state()))).await?;
    Ok((database, control, server))
}

/// The rows of a shape, as `tail` prints them.
async fn tailed(server: &Server, arguments: &[&str], count: usize) -> Result<Vec<Value>> {
    let count = count.to_string();
    let tail = ["tail", "--from", "snapshot", "--json", "--limit", &count];
    let printed = server.command(&[&tail[..], arguments].concat()).await?;
    printed.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

async fn refused(server: &Server, arguments: &[&str]) -> Result<String> {
    let endpoint = server.endpoint();
    let output = tidegate(&[arguments, &["--server", &endpoint]].concat()).await?;
    ensure!(output.status.code() == Some(1), "{arguments:?} ended with {}", output.status);
    Ok(String::from_utf8(output.stderr)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_is_defined_explained_watched_and_deleted_on_the_command_line() -> Result<()> {
    let (database, _control, server) = served("shape_commands").await?;
    let of_tenant = ["--table", "orders", "--where", "tenant = $1"];
    let valid = server.command(&[&["shape", "validate", "--param", "1"][..], &of_tenant].concat()).await?;
    ensure!(
        valid.contains("where ") && valid.contains("total  numeric") && valid.contains("id  bigint, key"),
        "{valid}"
    );
    let explained = server.command(&[&["shape", "explain", "--param", "1"][..], &of_tenant].concat()).await?;
    ensure!(explained.contains("Rows are found by tenant (1 value, hash)"), "{explained}");
    let mistyped = refused(&server, &["shape", "validate", "--table", "orders", "--where", "tenant = note"]).await?;
    ensure!(mistyped.contains("where, line 1, column") && mistyped.contains("cast an operand"), "{mistyped}");

    let define = ["shape", "define", "of_tenant", "--param-type", "int4", "--columns", "total"];
    let defined = server.command(&[&define[..], &of_tenant].concat()).await?;
    ensure!(defined.starts_with("shape of_tenant is defined"), "{defined}");
    let listed = server.command(&["shape", "list"]).await?;
    ensure!(listed.contains("shop  of_tenant  version 1\n    public.orders where tenant = $1, $1: int4"), "{listed}");
    ensure!(listed.contains("declared  declared in the server's configuration"), "{listed}");
    let shown = server.command(&["shape", "show", "of_tenant"]).await?;
    ensure!(shown.ends_with("    id  bigint, key\n    total  numeric\n"), "{shown}");

    let rows = tailed(&server, &["--shape", "of_tenant", "--param", "2"], 10).await?;
    ensure!(rows.iter().all(|row| row["op"] == "read" && row["key"]["id"].as_i64().is_some_and(|id| id % 3 == 2)));
    ensure!(rows[0]["row"].get("note").is_none(), "{}", rows[0]);
    let rows = tailed(&server, &["--shape", "declared", "--param", "25"], 5).await?;
    ensure!(rows.len() == 5, "{rows:?}");
    let nothing = refused(&server, &["tail", "--shape", "of_tenant"]).await?;
    ensure!(nothing.contains("shape of_tenant has 1 parameters ($1: int4), and 0 are given"), "{nothing}");

    for arguments in [&["shape", "delete", "declared"][..], &["shape", "define", "declared", "--table", "orders"]] {
        let message = refused(&server, arguments).await?;
        ensure!(message.contains("declared in the server's configuration"), "{message}");
    }
    server.command(&["shape", "delete", "of_tenant"]).await?;
    let gone = refused(&server, &["shape", "show", "of_tenat"]).await?;
    ensure!(gone.contains("there is no shape of_tenat"), "{gone}");
    drop(database);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_known_to_every_server_and_while_the_control_database_is_away() -> Result<()> {
    let (database, control, mut server) = served("shape_names").await?;
    let mut other = config_of(&database, &control);
    other.slot = "tidegate_shape_names_other".to_owned();
    let other = Server::start(other).await?;
    let client = Client::connect(other.endpoint()).await?;
    client.define_shape("shop", "of_one", Shape::of("orders").matching("tenant = 1")).await?;
    within("the other server to know the shape", || async {
        let known = Client::connect(server.endpoint()).await?.shapes("shop").await?;
        Ok(known.iter().any(|shape| !shape.declared).then_some(()))
    })
    .await?;

    let away = format!(
        "alter database {0} allow_connections false; select pg_terminate_backend(pid) from pg_stat_activity \
         where datname = '{0}'",
        control.name()
    );
    database.execute(&away).await?;
    ensure!(tailed(&server, &["--shape", "of_one"], 10).await?.len() == 10, "an open server serves it");
    server.kill().await?;
    server.launch().await?;
    ensure!(tailed(&server, &["--shape", "of_one"], 10).await?.len() == 10, "so does one that starts");
    let message = refused(&server, &["shape", "define", "of_two", "--table", "orders"]).await?;
    ensure!(message.contains("control database"), "{message}");
    database.execute(&format!("alter database {} allow_connections true", control.name())).await?;
    within("the control database to answer", || async {
        let defined = server.command(&["shape", "define", "of_two", "--table", "orders"]).await;
        Ok(defined.is_ok().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_have_room_together_and_what_is_deleted_makes_room() -> Result<()> {
    const BYTES: usize = 16 << 20;
    let (_database, control, server) = served("shape_bytes").await?;
    // As many as there is room for, written beside the server, which finds them at its next look.
    let condition = format!("note = '{}'", "x".repeat(60_000));
    let count = BYTES / (condition.len() + 1);
    let fill = format!(
        "insert into tidegate.source (name) values ('shop') on conflict do nothing;
         insert into tidegate.shape (source, name, version, schema_name, table_name, condition, parameter_types, columns, updates)
         select 'shop', 'shape_' || n, n, 'public', 'orders', $c${condition}$c$, '{{}}', '{{}}', 'full_row' from generate_series(1, {count}) n;
         update tidegate.source set shapes_version = {count} where name = 'shop'"
    );
    control.execute(&fill).await?;
    let client = Client::connect(server.endpoint()).await?;
    let known = async || anyhow::Ok(client.shapes("shop").await?.iter().filter(|shape| !shape.declared).count());
    within("all to be known", || async { Ok((known().await? == count).then_some(())) }).await?;
    let define = async |name: &str, condition: &str| {
        client.define_shape("shop", name, Shape::of("orders").matching(condition)).await.map(|shape| shape.version)
    };
    let refused = define("one_more", &condition).await.err().context("there is no room")?.to_string();
    ensure!(refused.contains("more than 16777216 bytes together; delete those"), "{refused}");
    let version = define("shape_1", "tenant = 1").await?;
    client.delete_shape("shop", "shape_2").await?;
    ensure!(define("one_more", &condition).await? > version, "there is room");
    ensure!(known().await? == count);
    let described = client.describe_shape("shop", "shape_1").await?.shape.context("a shape")?;
    ensure!(described.former.len() == 1 && described.former[0].version == 1, "what it was is not remembered");
    // Where there is too much already, what shrinks is not refused.
    control.execute("update tidegate.shape set condition = repeat(' ', 1000000) where name = 'shape_4'").await?;
    let smaller = format!("note = '{}'", "x".repeat(50_000));
    define("shape_3", &smaller).await?;
    let refused = define("shape_3", &condition).await.err().context("it is larger again")?.to_string();
    ensure!(refused.contains("more than 16777216 bytes together"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shape_was_is_remembered_and_its_subscribers_end_when_it_is_deleted() -> Result<()> {
    let (_database, _control, server) = served("shape_edited").await?;
    let client = Client::connect(server.endpoint()).await?;
    let define =
        async |condition: &str| client.define_shape("shop", "mine", Shape::of("orders").matching(condition)).await;
    let version = define("tenant = 1").await?.version;
    ensure!(define("tenant = 1").await?.version == version, "the same definition is no change");
    let subscription = Subscription::shape(Shape::named("mine")).source("shop").from(Start::Snapshot);
    let mut changes = client.subscribe(subscription);
    while !matches!(changes.next().await.context("an event")??, Event::SnapshotEnd { .. }) {}
    ensure!(define("tenant = 2").await?.version > version);
    let described = client.describe_shape("shop", "mine").await?.shape.context("a shape")?;
    let former = described.former.first().and_then(|former| former.definition.as_ref()).context("what it was")?;
    ensure!(described.former.len() == 1 && former.r#where == "tenant = 1", "{described:?}");
    client.delete_shape("shop", "mine").await?;
    let error = loop {
        match changes.next().await.context("an event")? {
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    ensure!(error.contains("there is no shape mine"), "{error}");
    Ok(())
}
