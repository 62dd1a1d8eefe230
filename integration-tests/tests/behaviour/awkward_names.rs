//! Tables and schemas whose names need quotes, have spaces, dots, quotes and stars in them, or are no ASCII: read by snapshots, from
//! PostgreSQL and out of a mirror, and streamed, selected one by one and all together.

use anyhow::{Context, Result, ensure};
use tidegate_client::{MirrorState, SourceStatus, Start};
use tidegate_integration_tests::{Cluster, Copier, Database, Server, ServerConfig, held_by_postgres, must_equal};

use crate::mirror::must_be_verified;

/// As SQL writes them.
const TABLES: [&str; 9] = [
    r#""Größe ""s"", x"."T.1 'x'""#,
    r#""Größe ""s"", x"."select""#,
    r#""схема"."таблица""#,
    r#""схема".plain"#,
    r#"public."UPPER""#,
    r#"public." ""#,
    r#"public."a*b""#,
    r#"public."tide$gate\""#,
    r#"public."漢字 with a name of sixty-three bytes, which is the most of""#,
];

/// What the server calls a table: schema and name are quoted only where characters need it.
fn shown(copier: &Copier, table: &str) -> Result<String> {
    let is_outside = |dot: &usize| table[..*dot].matches('"').count().is_multiple_of(2);
    let dot = table.match_indices('.').map(|(at, _)| at).find(is_outside).context("schema and name")?;
    let bare = |part: &str| part.trim_matches('"').to_owned();
    let (schema, name) = (&table[..dot], &table[dot + 1..]);
    let schemas = [schema.to_owned(), bare(schema)];
    let names = [name.to_owned(), bare(name)];
    let mut all = schemas.iter().flat_map(|schema| names.iter().map(move |name| format!("{schema}.{name}")));
    let known = all.find(|name| !copier.replica.table(name).is_empty());
    known.with_context(|| format!("nothing came of {table}"))
}

async fn create(database: &Database) -> Result<()> {
    database.execute(r#"create schema "Größe ""s"", x"; create schema "схема""#).await?;
    for table in TABLES {
        let columns = r#"ключ int primary key, "v.""v""" text"#;
        database
            .execute(&format!(
                "create table {table} ({columns}); insert into {table} select n, 'до' from generate_series(1, 9) n"
            ))
            .await?;
    }
    // Both name the same but for what must not be lost.
    database.execute(r#"create table public.upper (ключ int primary key, "v.""v""" text)"#).await
}

async fn must_hold_all(copier: &Copier, database: &Database, tables: &[&str]) -> Result<()> {
    for table in tables {
        let theirs = held_by_postgres(database, table, &["ключ"]).await;
        let theirs = match theirs {
            Ok(theirs) => theirs,
            Err(error) => return Err(error.context((*table).to_owned())),
        };
        must_equal(table, &copier.replica.table(&shown(copier, table)?), &theirs)?;
    }
    Ok(())
}

async fn read_and_streamed(name: &str, mirror: bool) -> Result<()> {
    let database = Cluster::shared().await?.database(name).await?;
    create(&database).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("tables: ['*.*', '!tidegate.*']".to_owned());
    if mirror {
        config.source_lines.push("mirror: ['*.*', '!tidegate.*']".to_owned());
    }
    let server = Server::start(config).await?;
    let is_complete = |status: &SourceStatus| {
        status.mirror.len() > TABLES.len() && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
    };
    if mirror {
        server.until("shop", "a complete mirror", is_complete).await?;
    }
    let mut all = Copier::new(&server.endpoint(), &[], Start::Snapshot);
    all.until_snapshot_end().await?;
    must_hold_all(&all, &database, &TABLES).await?;
    let mut each = Vec::new();
    for table in TABLES {
        let mut copier = Copier::new(&server.endpoint(), &[table], Start::Snapshot);
        copier.until_snapshot_end().await.context(table)?;
        ensure!(copier.replica.read_count == 9, "{table}: {} rows", copier.replica.read_count);
        each.push((table, copier));
    }
    for table in TABLES {
        database
            .execute(&format!(
                r#"insert into {table} values (10, 'после'); update {table} set "v.""v""" = 'и' where ключ = 2;
                   update {table} set ключ = 30 where ключ = 3; delete from {table} where ключ = 4"#
            ))
            .await?;
    }
    all.until_caught_up(&database).await?;
    must_hold_all(&all, &database, &TABLES).await?;
    for (table, copier) in &mut each {
        copier.until_caught_up(&database).await?;
        must_hold_all(copier, &database, &[*table]).await?;
    }
    for table in TABLES.iter().filter(|_| mirror) {
        must_be_verified(&server, table).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_names_are_read_and_streamed() -> Result<()> {
    read_and_streamed("awkward_names", false).await
}

#[tokio::test(flavor = "multi_thread")]
async fn awkward_names_are_mirrored() -> Result<()> {
    read_and_streamed("awkward_names_mirrored", true).await
}
