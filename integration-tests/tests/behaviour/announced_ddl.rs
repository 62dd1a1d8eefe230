//! `tidegate ddl`: event triggers that announce schema changes. What comes of an announcement is tested in `mirror_altered`.

use anyhow::{Context, Result, ensure};
use tidegate_integration_tests::{Cluster, Database, Ended, History, Oracle, Recorder, Server, ServerConfig, tidegate};

/// Exit code, and what was printed on standard output and standard error.
async fn ddl(arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = tidegate(&[&["ddl"], arguments].concat()).await?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

async fn install(database: &Database) -> Result<()> {
    let (code, printed, error) = ddl(&["install", "--url", database.url()]).await?;
    ensure!(code == Some(0) && printed.contains("schema changes are announced"), "{printed}{error}");
    Ok(())
}

async fn status(database: &Database) -> Result<(Option<i32>, String)> {
    let (code, printed, _) = ddl(&["status", "--url", database.url()]).await?;
    Ok((code, printed))
}

/// All that `install` makes, as far as it is there.
async fn left(database: &Database) -> Result<String> {
    let sql =
        "select coalesce(string_agg(what, ' ' order by what), '') from (select evtname::text from pg_event_trigger
        union all select nspname from pg_namespace where nspname like 'tidegate\\_ddl%'
        union all select proname from pg_proc where proname = 'announce') all_of_it (what)";
    database.text(sql).await?.context("a text")
}

#[tokio::test(flavor = "multi_thread")]
async fn installed_twice_and_removed_it_leaves_nothing() -> Result<()> {
    let database = Cluster::shared().await?.database("announced_twice").await?;
    let (code, printed) = status(&database).await?;
    ensure!(code == Some(0) && printed.contains("not announced"), "{printed}");
    install(&database).await?;
    install(&database).await?;
    let (code, printed) = status(&database).await?;
    ensure!(code == Some(0) && printed.contains("by event triggers of postgres"), "{printed}");
    database.execute("alter event trigger tidegate_sql_drop disable").await?;
    let (code, printed) = status(&database).await?;
    ensure!(code == Some(3) && printed.contains("disabled"), "{printed}");
    for _ in 0..2 {
        let (code, _, error) = ddl(&["remove", "--url", database.url()]).await?;
        ensure!(code == Some(0), "{error}");
    }
    let left = left(&database).await?;
    ensure!(left.is_empty(), "left: {left}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_install_it_is_told_who_may_and_has_sql_for_them() -> Result<()> {
    let database = Cluster::shared().await?.database("announced_forbidden").await?;
    database.execute("create role no_ddl login; grant create on database announced_forbidden to no_ddl").await?;
    let url = database.url().replace("postgres@", "no_ddl@");
    let (code, _, error) = ddl(&["install", "--url", &url]).await?;
    ensure!(code == Some(1), "{error}");
    for word in ["no_ddl", "superuser", "rds_superuser", "tidegate ddl install --sql"] {
        ensure!(error.contains(word), "no {word} in {error}");
    }
    let left_behind = left(&database).await?;
    ensure!(left_behind.is_empty(), "left: {left_behind}");
    let (_, sql, _) = ddl(&["install", "--sql", "--url", &url]).await?;
    database.execute(&sql).await?;
    ensure!(status(&database).await?.1.contains("by event triggers of postgres"));
    let (code, _, error) = ddl(&["remove", "--url", &url]).await?;
    ensure!(code == Some(1) && error.contains("tidegate ddl remove --sql"), "{error}");
    let (_, sql, _) = ddl(&["remove", "--sql", "--url", &url]).await?;
    database.execute(&sql).await?;
    let left = left(&database).await?;
    ensure!(left.is_empty(), "left: {left}");
    Ok(())
}

/// What an application and its administrators do to a schema.
const CHANGES: &[&str] = &[
    "create table p (id int primary key, v text) partition by range (id)",
    "create table p1 partition of p for values from (0) to (10)",
    "create table t as select 1 as id",
    "select 1 as id into u",
    "alter table t add primary key (id)",
    "begin; savepoint s; alter table t add x int; rollback to s; alter table t add y int default 3; commit",
    "create index concurrently on t (y)",
    "drop index concurrently t_y_idx",
    "reindex table concurrently t",
    "alter table p detach partition p1 concurrently",
    "create type mood as enum ('ok')",
    "alter type mood add value 'bad'",
    "create schema own create table v (id int)",
    "create materialized view m as select * from t; refresh materialized view m",
    "do $$ begin execute 'create table w (id int)'; execute 'drop table w'; end $$",
    "begin; create temp table scratch (id int) on commit drop; alter table scratch add x int; commit",
    "vacuum full t",
    "drop schema own cascade",
    "begin; set transaction read only; select 1; commit",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_schema_change_fails_even_where_it_cannot_be_announced() -> Result<()> {
    let database = Cluster::shared().await?.database("announced_changes").await?;
    database.execute("create role app_ddl login; grant create on database announced_changes to app_ddl").await?;
    database.execute("create schema app authorization app_ddl").await?;
    install(&database).await?;
    let application = Database::connect(&database.url().replace("postgres@", "app_ddl@")).await?;
    application.execute("set search_path = app").await?;
    for change in CHANGES {
        application.execute(change).await?;
    }
    // Now it cannot write its message.
    let forbid = "do $$ declare f oid; begin
        for f in select oid from pg_proc where proname = 'pg_logical_emit_message' loop
            execute format('revoke execute on function %s from public', f::regprocedure);
        end loop; end $$;
        alter function tidegate_ddl.announce() owner to app_ddl";
    database.execute(forbid).await?;
    database.execute("drop schema app cascade; create schema app authorization app_ddl").await?;
    for change in CHANGES {
        application.execute(change).await?;
    }
    ensure!(status(&database).await?.1.contains("by event triggers of postgres"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_receive_no_announcement_and_their_positions_are_postgresqls() -> Result<()> {
    let database = Cluster::shared().await?.database("announced_stream").await?;
    database.create_marker().await?;
    database.execute("create table t (id int primary key, a int)").await?;
    install(&database).await?;
    let config = ServerConfig::of(database.url());
    let publication = config.slot.clone();
    let server = Server::start(config).await?;
    let oracle = Oracle::create(&database, &publication).await?;
    database
        .execute(
            "begin; insert into t values (1); alter table t add x int default 2; select pg_logical_emit_message(true, 'outbox', 'o');
             savepoint s; alter table t add y int; insert into t values (2); rollback to s; insert into t values (3);
             create temp table scratch (id int); drop table scratch; commit",
        )
        .await?;
    database.execute("alter table t drop x").await?;
    database.execute("begin; create temp table scratch (id int); insert into t values (4); commit").await?;
    database.mark("end").await?;
    let mut recorder = Recorder::new(server.endpoint());
    ensure!(recorder.until_marker("end").await? == Ended::Arrived);
    let told = oracle.read(&database).await?;
    let is_ours = |what: &str| what.starts_with("message tidegate.ddl ");
    let counts: Vec<usize> =
        told.transactions().iter().map(|told| told.changes.iter().filter(|of| is_ours(&of.what)).count()).collect();
    // ALTER TABLE … DROP is announced as a change and as a drop; temporary tables are not announced.
    ensure!(counts == [1, 2, 0, 0], "announcements by transaction: {counts:?}");
    let mut expected = History::default();
    for mut transaction in told.transactions().iter().cloned() {
        transaction.changes.retain(|change| !is_ours(&change.what));
        expected.push(transaction);
    }
    recorder.history().must_equal(&expected)
}
