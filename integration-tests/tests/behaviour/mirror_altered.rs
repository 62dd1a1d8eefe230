//! Schema changes that change the rows of a mirrored table without a word in the stream: the mirror is PostgreSQL's again, and so is
//! the copy of a subscriber who was there all the time, by itself. What is streamed of schema changes is tested in
//! `schema_change`.

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{MirrorState, SourceStatus, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, Seed, Server, ServerConfig, Writers, held_by_postgres, must_equal,
    tidegate, within as until,
};

use crate::snapshot_crowd::OF_MIRROR;

/// A mirrored table `t`, captured, and a subscriber that keeps a copy.
pub(crate) struct Stage {
    pub(crate) database: Database,
    pub(crate) server: Server,
    pub(crate) copier: Copier,
    /// What is published of it.
    rows: String,
    /// Its key.
    key: &'static str,
}

const ROWS: &str = "insert into t (id, c) select n, n from generate_series(1, 2500) n";

impl Stage {
    /// `publication` follows its name; `rows` is what is read of the table.
    async fn new(name: &str, schema: &str, publication: &str, rows: &str) -> Result<Self> {
        Stage::configured(name, schema, (publication, rows), &[]).await
    }

    /// With more lines of the source's configuration.
    async fn configured(name: &str, schema: &str, (publication, rows): (&str, &str), lines: &[&str]) -> Result<Self> {
        Stage::on(Cluster::shared().await?, name, schema, (publication, rows), lines).await
    }

    /// With a server of PostgreSQL's of one's own.
    pub(crate) async fn on(
        cluster: &Cluster,
        name: &str,
        schema: &str,
        (publication, rows): (&str, &str),
        lines: &[&str],
    ) -> Result<Self> {
        let database = cluster.database(&format!("altered_{name}")).await?;
        database.execute(schema).await?;
        database.execute(ROWS).await?;
        let mut config = ServerConfig::of(database.url());
        config.source_lines.extend(["mirror: [t, 'public.s*']"].iter().chain(lines).map(|line| (*line).to_owned()));
        database.execute(&format!("create publication {} {publication}", config.slot)).await?;
        let server = Server::start(config).await?;
        server.until("shop", "a complete mirror", is_complete).await?;
        let mut copier = Copier::new(&server.endpoint(), &["public.t"], Start::Snapshot);
        copier.until_snapshot_end().await?;
        Ok(Stage { database, server, copier, rows: rows.to_owned(), key: "id" })
    }

    /// Receives until the copy is what PostgreSQL has; then so is the mirror.
    pub(crate) async fn converges(&mut self) -> Result<()> {
        let mut last = None;
        let receiving = async {
            loop {
                let rows = held_by_postgres(&self.database, &self.rows, &[self.key]).await?;
                match must_equal("t", &self.copier.replica.table("public.t"), &rows) {
                    Ok(()) => return anyhow::Ok(()),
                    Err(error) => last = Some(error),
                }
                if let Arrival::Reset(reason, detail) = self.copier.next().await? {
                    bail!("{reason:?}: {detail}");
                }
            }
        };
        if let Ok(received) = tokio::time::timeout(DEADLINE, receiving).await {
            received?;
        } else {
            let (_, compared) = self.compared().await?;
            return Err(last.context("nothing was compared")?.context(format!("the mirror: {compared}")));
        }
        self.server.until("shop", "a verified mirror", is_complete).await?;
        let (code, printed) = self.compared().await?;
        ensure!(code == Some(0), "{printed}");
        Ok(())
    }

    /// The mirror with PostgreSQL: the command's exit code, and what it prints.
    async fn compared(&self) -> Result<(Option<i32>, String)> {
        let endpoint = self.server.endpoint();
        until("the mirror can be compared", || async {
            let output = tidegate(&["mirror", "verify", "t", "--server", &endpoint]).await?;
            let printed = String::from_utf8([output.stdout, output.stderr].concat())?;
            // What the status shows may be of before the last change was seen.
            Ok((!printed.contains("Unavailable")).then_some((output.status.code(), printed)))
        })
        .await
    }
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.iter().any(|table| table.table == "public.t" && table.state() == MirrorState::Complete)
}

const TABLE: &str = "create table t (id int primary key, c int, d text default 'd')";
pub(crate) const ALL: &str = "for all tables with (publish_via_partition_root = true)";

/// Writes before, in and behind the change.
fn within(ddl: &str) -> String {
    format!(
        "begin; update t set c = -c where id % 100 = 0; {ddl}; insert into t (id) values (3001); delete from t where id = 7; commit;
         insert into t (id) values (3002)"
    )
}

/// The change under the server's eyes, and another time while it is down.
async fn altered(name: &str, schema: &str, ddl: [&str; 2]) -> Result<()> {
    let mut stage = Stage::new(name, schema, ALL, "t").await?;
    stage.database.execute(&within(ddl[0])).await?;
    stage.converges().await?;
    if ddl[1].is_empty() {
        return Ok(());
    }
    stage.server.kill().await?;
    stage.copier.drop_connection();
    stage.database.execute(ddl[1]).await?;
    stage.database.execute("insert into t (id) values (3003)").await?;
    stage.server.launch().await?;
    stage.copier.moved_to(&stage.server.endpoint());
    stage.converges().await
}

#[tokio::test(flavor = "multi_thread")]
async fn type_change_with_a_rewrite() -> Result<()> {
    altered(
        "type",
        TABLE,
        ["alter table t alter c type bigint using c * 2", "alter table t alter c type text using 'c' || c"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn type_change_without_a_rewrite() -> Result<()> {
    let schema = "create table t (id int primary key, c int, d varchar(10) default 'd')";
    altered("same_type", schema, ["alter table t alter d type varchar(20)", "alter table t alter d type text"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_renamed_and_dropped() -> Result<()> {
    let ddl = "alter table t rename c to e; alter table t drop d";
    altered("renamed", TABLE, [ddl, "alter table t rename e to c; alter table t add d text"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_columns_with_defaults() -> Result<()> {
    altered("constant", TABLE, ["alter table t add x int not null default 7", "alter table t add y text default 'y'"])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_columns_with_volatile_defaults_and_identity() -> Result<()> {
    let volatile = "alter table t add x text default md5(random()::text)";
    altered("volatile", TABLE, [volatile, "alter table t add y int generated always as identity"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_is_dropped_and_added_again() -> Result<()> {
    altered(
        "readd",
        TABLE,
        ["alter table t drop c; alter table t add c int default 9", "alter table t drop d; alter table t add d text"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_enum_values() -> Result<()> {
    let schema =
        "create type mood as enum ('ok', 'bad'); create table t (id int primary key, c int, m mood default 'ok')";
    altered(
        "enum",
        schema,
        ["alter type mood rename value 'ok' to 'fine'", "alter type mood rename value 'fine' to 'ok'"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_enum_values() -> Result<()> {
    let schema = "create type mood as enum ('ok'); create table t (id int primary key, c int, m mood default 'ok')";
    altered("enum_add", schema, ["alter type mood add value 'bad'", "alter type mood add value 'worse' before 'ok'"])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_values_of_an_enum_in_other_types() -> Result<()> {
    let schema = "create type mood as enum ('ok', 'bad'); create domain good as mood check (value = 'ok'); create type pair as (m good);
        create table t (id int primary key, c int, m good default 'ok', p pair default '(ok)')";
    let second = "alter type mood rename value 'fine' to 'ok'";
    altered("enum_within", schema, ["alter type mood rename value 'ok' to 'fine'", second]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn domains() -> Result<()> {
    let schema =
        "create domain price as numeric(10, 2) default 1.5; create table t (id int primary key, c int, p price)";
    let ddl = "alter domain price add constraint positive check (value > 0); alter domain price set default 2.25";
    altered("domain", schema, [ddl, "alter table t alter p type numeric(12, 3) using p + 1"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn composite_types_with_another_attribute() -> Result<()> {
    let schema =
        "create type pair as (a int, b text); create table t (id int primary key, c int, p pair default '(1,b)')";
    let second = "alter type pair add attribute e int cascade";
    altered(
        "composite",
        schema,
        ["alter type pair add attribute d int cascade; alter table t alter p drop default", second],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_expression() -> Result<()> {
    let version = Cluster::shared().await?.database("altered_version").await?.server_version().await?;
    if version < 17 {
        println!("LEFT OUT: PostgreSQL {version} has no SET EXPRESSION");
        return Ok(());
    }
    let schema = "create table t (id int primary key, c int, g int generated always as (id * 2) stored)";
    let (publication, rows) = match version {
        17 => (ALL, "(select id, c from t) t"),
        _ => ("for all tables with (publish_generated_columns = stored)", "t"),
    };
    let mut stage = Stage::new("expression", schema, publication, rows).await?;
    stage.database.execute(&within("alter table t alter g set expression as (id * 3)")).await?;
    stage.converges().await
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_while_unlogged() -> Result<()> {
    let ddl = "alter table t set unlogged; delete from t where id < 100; update t set c = 5 where id < 200;
        insert into t select n from generate_series(4000, 4100) n; alter table t set logged";
    altered("unlogged", TABLE, [ddl, "alter table t set unlogged; truncate t; alter table t set logged"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_and_created_again() -> Result<()> {
    let ddl =
        "drop table t; create table t (id int primary key, d text default 'new', c bigint); insert into t select n from
        generate_series(1, 40) n";
    altered("recreated", TABLE, [ddl, ddl]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_the_place_of_another() -> Result<()> {
    let ddl = |other: &str| {
        format!(
            "create table n (like t including all); insert into n select n, n from generate_series(1, 40) n;
             alter table t rename to {other}; alter table n rename to t"
        )
    };
    altered("replaced", TABLE, [&ddl("old"), &ddl("older")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_table_that_takes_the_place_of_another_is_verified_once() -> Result<()> {
    let stage = Stage::new("empty", &format!("{TABLE}; create table s (like t including all)"), ALL, "t").await?;
    let swap = "begin; alter table t rename to x; alter table s rename to t; alter table x rename to s; commit";
    stage.database.execute(swap).await?;
    let is = |status: &SourceStatus, name: &str, state| {
        status.mirror.iter().any(|table| table.table == name && table.state() == state)
    };
    let is_seen = |status: &SourceStatus| is(status, "public.t", MirrorState::Verifying);
    stage.server.until("shop", "altered tables", is_seen).await?;
    let are_verified = |status: &SourceStatus| {
        is(status, "public.t", MirrorState::Complete) && is(status, "public.s", MirrorState::Complete)
    };
    stage.server.until("shop", "verified mirrors", are_verified).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_and_returns() -> Result<()> {
    let ddl = |id: u32| {
        format!(
            "alter table t rename to u; insert into u (id) values ({id}); update u set c = 0 where id < 20; delete from u where id = {};
             alter table u rename to t",
            id % 1000
        )
    };
    altered("returned", TABLE, [&ddl(4030), &ddl(4040)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_primary_key_and_replica_identity() -> Result<()> {
    let schema = "create table t (id int primary key, c int, k int not null generated by default as identity unique)";
    let mut stage = Stage::new("key", schema, ALL, "t").await?;
    let changes = [
        ("alter table t replica identity full", "id"),
        ("alter table t drop constraint t_pkey, add primary key (k)", "k"),
        ("alter table t replica identity default", "k"),
        ("alter table t add unique (id); alter table t replica identity using index t_id_key", "id"),
    ];
    for (n, (ddl, key)) in (100..).step_by(10).zip(changes) {
        let write =
            |id: u32| format!("update t set c = -c where id = {}; insert into t (id) values ({})", id, 3000 + id);
        stage
            .database
            .execute(&format!("begin; {}; {ddl}; {}; commit; {}", write(n), write(n + 1), write(n + 2)))
            .await?;
        stage.key = key;
        stage.converges().await.with_context(|| ddl.to_owned())?;
    }
    Ok(())
}

/// The table is described as it was before the last change, which has been announced long ago.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_identity_that_is_set_back() -> Result<()> {
    let schema = "create table t (id int primary key, c int, k int not null generated by default as identity unique)";
    let mut stage = Stage::new("set_back", schema, ALL, "t").await?;
    for (n, (identity, key)) in (100..).zip([("using index t_k_key", "k"), ("default", "id")].repeat(2)) {
        let ddl = format!("alter table t replica identity {identity}");
        stage.database.execute(&format!("{ddl}; insert into t (id) values ({})", 3000 + n)).await?;
        stage.key = key;
        stage.converges().await.with_context(|| format!("{n}: {ddl}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_vanish_while_the_key_changes() -> Result<()> {
    let schema = "create table t (id int primary key, c int, k int not null generated by default as identity unique)";
    let mut stage = Stage::new("vanish", schema, ALL, "t").await?;
    let ddl = "alter table t set unlogged; delete from t where id between 100 and 400; alter table t set logged;
         alter table t drop constraint t_pkey, add primary key (k)";
    stage.database.execute(&within(ddl)).await?;
    stage.key = "k";
    stage.converges().await
}

pub(crate) const PARTITIONED: &str = "create table t (id int primary key, c int) partition by range (id);
    create table t1 partition of t for values from (0) to (1000);
    create table t2 partition of t for values from (1000) to (4000);
    create table t3 (id int primary key, c int); insert into t3 select n, n from generate_series(5000, 5400) n";

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_attached_and_detached() -> Result<()> {
    let attach = "alter table t attach partition t3 for values from (5000) to (6000)";
    altered("attach", PARTITIONED, [attach, "alter table t detach partition t1"]).await
}

/// PostgreSQL 14 goes on to send a table's rows as what it was when the first of them was decoded over the connection.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_were_written_to_before_they_are_attached_and_detached() -> Result<()> {
    let attach = "alter table t attach partition t3 for values from (5000) to (6000)";
    let mut stage = Stage::new("written", PARTITIONED, ALL, "t").await?;
    let mut own = Copier::new(&stage.server.endpoint(), &["public.t3"], Start::Now);
    own.until_open().await?;
    stage.database.execute("update t3 set c = 0 where id < 5010").await?;
    own.until("its own rows", |_, held| !held.table("public.t3").is_empty()).await?;
    drop(own);
    let detach = "alter table t detach partition t3";
    for (n, (ddl, is_down)) in (0..).zip([(attach, false), (detach, false), (attach, true), (detach, true)]) {
        if is_down {
            stage.server.kill().await?;
            stage.copier.drop_connection();
        }
        let write = |part: u32| {
            let id = 5500 + 10 * n + part;
            format!(
                "update t3 set c = c + 1 where id % 7 = {part}; delete from t3 where id = {}; insert into t3 values ({id}, 1)",
                id - 400
            )
        };
        stage.database.execute(&write(0)).await?;
        stage.database.execute(ddl).await?;
        stage.database.execute(&write(1)).await?;
        if is_down {
            stage.server.launch().await?;
            stage.copier.moved_to(&stage.server.endpoint());
        }
        stage.converges().await.with_context(|| format!("{n}: {ddl}"))?;
        // The snapshot that the change has caused is over.
        stage.database.execute(&write(2)).await?;
        stage.database.execute("insert into t values (2600, 1) on conflict (id) do update set c = t.c + 1").await?;
        stage.converges().await.with_context(|| format!("{n}: after {ddl}"))?;
        stage.copier.until_caught_up(&stage.database).await?;
        stage.converges().await.with_context(|| format!("{n}: all after {ddl}"))?;
    }
    Ok(())
}

/// The same of a table that was not sent at all: it is published as itself once it is a partition.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_written_to_before_it_was_published_is_sent() -> Result<()> {
    let database = Cluster::shared().await?.database("altered_left_out").await?;
    database.create_marker().await?;
    database.execute(PARTITIONED).await?;
    let config = ServerConfig::of(database.url());
    database.execute(&format!("create publication {} for table t, marker", config.slot)).await?;
    let server = Server::start(config).await?;
    server.streaming().await?;
    let mut markers = Copier::new(&server.endpoint(), &["marker"], Start::Now);
    markers.until_open().await?;
    database.execute("update t3 set c = 0").await?;
    database.mark("decoded").await?;
    markers.until("the marker", |_, held| !held.table("public.marker").is_empty()).await?;
    database.execute("alter table t attach partition t3 for values from (5000) to (6000)").await?;
    // It is not known at once.
    let mut copier = until("a snapshot of the partition", || async {
        let mut copier = Copier::new(&server.endpoint(), &["public.t3"], Start::Snapshot);
        Ok(copier.until_snapshot_end().await.is_ok().then_some(copier))
    })
    .await?;
    database.execute("update t3 set c = c + 1; insert into t3 values (5999, 7)").await?;
    let receiving = async {
        loop {
            let rows = held_by_postgres(&database, "t3", &["id"]).await?;
            if copier.replica.table("public.t3") == rows {
                return anyhow::Ok(());
            }
            copier.next().await?;
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("what is written to the partition does not come")?
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_truncated_and_dropped() -> Result<()> {
    let mut stage = Stage::new("leaves", PARTITIONED, ALL, "t").await?;
    stage.database.execute("truncate t1; insert into t values (2, 2), (3002, 3)").await?;
    stage.converges().await?;
    stage.database.execute("drop table t1").await?;
    stage.converges().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_row_filter_and_column_list() -> Result<()> {
    let mut stage = Stage::new("filter", TABLE, "for table t", "t").await?;
    let version = stage.database.server_version().await?;
    if version < 15 {
        println!("LEFT OUT: PostgreSQL {version} has neither row filters nor column lists");
        return Ok(());
    }
    let publication = stage.server.slot().to_owned();
    stage.database.execute(&format!("alter publication {publication} set table t where (id % 2 = 0)")).await?;
    stage.rows = "(select * from t where id % 2 = 0) t".to_owned();
    stage.converges().await?;
    stage.server.kill().await?;
    stage.copier.drop_connection();
    stage.database.execute(&format!("alter publication {publication} set table t (id, d)")).await?;
    stage.database.execute("insert into t (id) values (3003)").await?;
    stage.server.launch().await?;
    stage.copier.moved_to(&stage.server.endpoint());
    stage.rows = "(select id, d from t) t".to_owned();
    stage.converges().await
}

/// Rows move into the row filter and out of it, before and behind the change in its transaction, and meanwhile.
fn filtered_transaction(random: &mut StdRng) -> String {
    let change = |random: &mut StdRng| {
        let (id, other) = (random.random_range(0..3_000_u32), random.random_range(0..3_000_u32));
        match random.random_range(0..5_u32) {
            0 => format!("insert into t values ({id}, {other}, repeat('n{id} ', {other})) on conflict do nothing"),
            1 => format!("update t set c = {other} where id = {id}"),
            2 => format!("update t set d = repeat('u{other} ', {id}) where id = {id}"),
            3 => format!("delete from t where id = {id}"),
            _ => format!("update t set id = {other} where id = {id} and not exists (select from t where id = {other})"),
        }
    };
    format!("begin; {}; {}; commit", change(random), change(random))
}

#[tokio::test(flavor = "multi_thread")]
async fn row_filters_and_column_lists_that_change_amid_writes() -> Result<()> {
    /// What arrives before the next change.
    const ARRIVALS: usize = 60;
    let seed = Seed::from_environment();
    let schema = format!("{TABLE}; alter table t alter d set storage external");
    let mut stage = Stage::new("filter_writes", &schema, "for table t", "t").await?;
    let version = stage.database.server_version().await?;
    if version < 15 {
        println!("LEFT OUT: PostgreSQL {version} has neither row filters nor column lists");
        return Ok(());
    }
    let publication = stage.server.slot().to_owned();
    let writers = Writers::start(2, (stage.database.url(), seed), filtered_transaction);
    let published = [
        ("id, c, d", "id % 2 = 0"),
        ("id, d", "id % 2 = 0"),
        ("id, d", "id > 700"),
        ("id, c", "id % 3 <> 0 and id < 2000"),
        ("id, c, d", "true"),
    ];
    for (columns, filter) in published {
        let alter = format!("alter publication {publication} set table t ({columns}) where ({filter})");
        let altering = "update t set c = -c where id % 100 < 2; update t set id = 3000 + id where id between 50 and 60 or id between 750 and 760";
        let behind =
            "update t set d = d || '.' where id % 50 = 0; update t set id = id - 3000 where id between 3050 and 3060";
        let delete = "delete from t where id between 3000 and 4000 or id between 50 and 60 or id between 750 and 760";
        let sql = format!("begin; {altering}; {alter}; {behind}; commit; {delete}");
        // Of transactions that overlap with the change, rows come with the row type of before and of behind it, by turns. Writers may take
        // the same rows the other way round.
        until("the change", || async {
            let altered = stage.database.execute(&sql).await;
            if altered.is_err() {
                stage.database.execute("rollback").await?;
            }
            Ok(altered.ok())
        })
        .await?;
        for _ in 0..ARRIVALS {
            if let Arrival::Reset(reason, detail) = stage.copier.next().await? {
                bail!("{filter}: {reason:?}: {detail}");
            }
        }
        let _nobody_writes = writers.pause().await?;
        stage.rows = format!("(select {columns} from t where {filter}) t");
        stage.copier.until_caught_up(&stage.database).await?;
        stage.converges().await.with_context(|| alter)?;
    }
    writers.stop().await;
    Ok(())
}

/// Nobody has read the table again since its columns changed: what the mirror holds is of several row types.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_the_mirror_comes_under_the_newest_row_type() -> Result<()> {
    let mut stage = Stage::configured("described", TABLE, ("for table t", "t"), &["mirror_check: 1h"]).await?;
    let version = stage.database.server_version().await?;
    let publication = stage.server.slot().to_owned();
    let changes = [
        ("alter table t add x int; update t set x = c where id % 3 = 1".to_owned(), "t"),
        ("alter table t drop c; update t set d = 'e' where id % 7 = 1".to_owned(), "t"),
        (
            format!("alter publication {publication} set table t (id, x); update t set x = -1 where id = 1"),
            "(select id, x from t) t",
        ),
    ];
    for (sql, rows) in changes.iter().take(if version < 15 { 2 } else { 3 }) {
        stage.database.execute(sql).await?;
        stage.copier.until_caught_up(&stage.database).await?;
        let mut joiner = Copier::new(&stage.server.endpoint(), &["public.t"], Start::Snapshot);
        ensure!(joiner.until_snapshot_end().await? >= OF_MIRROR);
        let expected = held_by_postgres(&stage.database, rows, &[stage.key]).await?;
        must_equal("t", &joiner.replica.table("public.t"), &expected).with_context(|| sql.clone())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_from_before_is_waited_for() -> Result<()> {
    let schema =
        "create type mood as enum ('ok', 'bad'); create table t (id int primary key, c int, m mood default 'ok')";
    let mut stage = Stage::new("writer", schema, ALL, "t").await?;
    let writer = stage.database.another().await?;
    writer.execute("begin; insert into t (id, m) values (3001, 'ok')").await?;
    stage.database.execute("alter type mood rename value 'ok' to 'fine'").await?;
    let waits = |status: &SourceStatus| status.mirror.iter().any(|table| table.state() == MirrorState::Verifying);
    stage.server.until("shop", "an altered table", waits).await?;
    writer.execute("commit").await?;
    stage.converges().await
}

/// Nothing but the announcement tells of these: no row is written behind them, and nobody looks for an hour.
#[tokio::test(flavor = "multi_thread")]
async fn announced_changes_are_found_when_they_come() -> Result<()> {
    let schema = "create type mood as enum ('ok', 'bad');
        create table t (id int primary key, c int, m mood default 'ok') partition by range (id);
        create table t1 partition of t for values from (0) to (1000);
        create table t2 partition of t for values from (1000) to (4000);
        create table t3 (id int primary key, c int, m mood); insert into t3 select n, n from generate_series(5000, 5400) n";
    let mut stage = Stage::configured("announced", schema, (ALL, "t"), &["mirror_check: 1h"]).await?;
    let installed = tidegate(&["ddl", "install", "--url", stage.database.url()]).await?;
    ensure!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    for ddl in [
        "alter type mood rename value 'ok' to 'fine'",
        "alter table t add x int not null default 7",
        "alter table t3 add x int not null default 8",
        "alter table t attach partition t3 for values from (5000) to (6000)",
        "drop table t1",
        "begin; savepoint s; alter table t detach partition t2; rollback to s; alter table t detach partition t3; commit",
    ] {
        stage.database.execute(ddl).await?;
        stage.converges().await.with_context(|| ddl.to_owned())?;
    }
    Ok(())
}
