//! What cannot be read in full is refused, never delivered in part; what changes under a snapshot leaves it exact, or ends it with
//! a reason; and an operator can hold, continue and end it.

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::{ResetReason, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, Server, ServerConfig, held_by_postgres, must_equal,
};

/// How a snapshot ended: complete, or given up with this detail.
async fn outcome(copier: &mut Copier) -> Result<Option<String>> {
    let receiving = async {
        loop {
            match copier.next().await? {
                Arrival::Ended(_) => return Ok(None),
                Arrival::Reset(ResetReason::SnapshotAbandoned, detail) => return Ok(Some(detail)),
                Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
                Arrival::Begun(_) | Arrival::Committed(_) | Arrival::Abandoned(..) | Arrival::Progress => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("the snapshot neither ends nor fails")?
}

async fn begun(copier: &mut Copier) -> Result<u32> {
    match copier.until("a snapshot's begin", |arrival, _| matches!(arrival, Arrival::Begun(_))).await? {
        Arrival::Begun(snapshot) => Ok(snapshot),
        other => bail!("{other:?} is no begin"),
    }
}

async fn until_marker(database: &Database, copier: &mut Copier, name: &str) -> Result<()> {
    database.mark(name).await?;
    let key = [name.to_owned()];
    let receiving = async {
        while copier.replica.table_row("public.marker", &key).is_none() {
            copier.next().await?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("the marker does not come")?
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_in_full_is_refused() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("refused").await?;
    database
        .execute(
            "create role reader login replication; grant create on database refused to reader; create table secret (id int primary key); insert into secret select \
             generate_series(1, 9); alter table secret enable row level security; create policy p on secret using (id < 5); \
             create table outside (id int primary key); insert into outside values (1); create table fine (id int primary key); \
             insert into fine values (1); grant select on all tables in schema public to reader; \
             create publication tidegate_refused for table secret, fine with (publish_via_partition_root)",
        )
        .await?;
    let server = Server::start(ServerConfig::of(&database.url().replace("postgres@", "reader@"))).await?;
    for (table, what) in [("secret", "row-level security"), ("outside", "outside")] {
        let mut copier = Copier::new(&server.endpoint(), &[table], Start::Snapshot);
        let said = match tokio::time::timeout(DEADLINE, outcome(&mut copier)).await.context("no answer")? {
            Err(error) => format!("{error:#}"),
            Ok(ended) => ended.with_context(|| format!("a snapshot of {table} ended"))?,
        };
        println!("{table}: {said}");
        ensure!(said.contains(what), "{table}: {said}");
    }
    let mut copier = Copier::new(&server.endpoint(), &["fine"], Start::Snapshot);
    ensure!(outcome(&mut copier).await?.is_none() && copier.replica.read_count == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_under_a_snapshot_is_exact_or_given_up() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("altered").await?;
    database.create_marker().await?;
    let changes = [
        "alter table t add column more text default 'd'",
        "alter table t alter v type bigint",
        "alter table t drop column v",
        "truncate t",
        "truncate t; insert into t select n, 1 from generate_series(1, 500) n",
        "alter table t drop constraint t_pkey, add primary key (id, v)",
        "drop table t",
    ];
    for at in 0..changes.len() {
        database
            .execute(&format!("create table t{at} (id int constraint t{at}_pkey primary key, v int not null)"))
            .await?;
    }
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 4000}".to_owned());
    let server = Server::start(config).await?;
    for (at, change) in changes.iter().enumerate() {
        let table = format!("t{at}");
        database.execute(&format!("insert into {table} select n, n from generate_series(1, 12000) n")).await?;
        let mut copier = Copier::new(&server.endpoint(), &[&table, "marker"], Start::Snapshot);
        begun(&mut copier).await?;
        while copier.replica.read_count < 1_000 {
            copier.next().await?;
        }
        let sql = change.replace("t_pkey", &format!("{table}_pkey")).replace("table t ", &format!("table {table} "));
        let sql = sql.replace("truncate t", &format!("truncate {table}")).replace("into t ", &format!("into {table} "));
        let sql = if sql.ends_with("drop table t") { format!("drop table {table}") } else { sql };
        database.execute(&sql).await.context(sql.clone())?;
        let ended = outcome(&mut copier).await.with_context(|| sql.clone())?;
        println!("{sql}: {}", ended.as_deref().unwrap_or("exact"));
        if ended.is_some() {
            continue;
        }
        until_marker(&database, &mut copier, &table).await?;
        let theirs = held_by_postgres(&database, &table, &["id"]).await?;
        must_equal(&sql, &copier.replica.table(&format!("public.{table}")), &theirs)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn row_filter_column_list_and_partitions_are_the_publications() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("filtered").await?;
    database.create_marker().await?;
    // 14 has neither column lists nor row filters.
    let (columns, filter) =
        if database.server_version().await? >= 15 { ("(id, v)", "where (id % 2 = 0)") } else { ("", "") };
    database
        .execute(&format!(
            "create table f (id int primary key, v int, hidden text); insert into f select n, n, 'h' from generate_series(1, \
             3000) n; create table root (id int, at int, primary key (id, at)) partition by range (at); create table leaf_a \
             partition of root for values from (0) to (100); create table leaf_b partition of root for values from (100) to \
             (200); insert into root select n, n % 200 from generate_series(1, 3000) n; \
             create publication tidegate_filtered for table f {columns} {filter}, root, marker with \
             (publish_via_partition_root); create view seen as select {} from f {filter}",
            if columns.is_empty() { "*" } else { "id, v" }
        ))
        .await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    // All tables: partitions under their root.
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Snapshot);
    ensure!(outcome(&mut copier).await?.is_none());
    database
        .execute("insert into f values (5001, 1, 'h'), (5002, 1, 'h'); insert into root values (9000, 150)")
        .await?;
    until_marker(&database, &mut copier, "end").await?;
    must_equal("f", &copier.replica.table("public.f"), &held_by_postgres(&database, "seen", &["id"]).await?)?;
    must_equal("root", &copier.replica.table("public.root"), &held_by_postgres(&database, "root", &["id", "at"]).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_pauses_continues_and_cancels() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("operator").await?;
    database.execute("create table t (id int primary key); insert into t select generate_series(1, 20000)").await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 6000}".to_owned());
    let mut server = Server::start(config).await?;
    let mut copier = Copier::new(&server.endpoint(), &["t"], Start::Snapshot);
    let number = begun(&mut copier).await?.to_string();
    let endpoint = server.endpoint();
    server.command(&["snapshot", "pause", &number, "--server", &endpoint]).await?;
    server.kill().await?;
    server.launch().await?;
    server.streaming().await?;
    let list = tidegate_integration_tests::within("the list", || async {
        let list = server.command(&["snapshot", "list", "--server", &endpoint]).await?;
        Ok((!list.trim().is_empty()).then_some(list))
    });
    let list = list.await?.to_lowercase();
    ensure!(list.contains("paused"), "{list}");
    ensure!(copier.replica.read_count < 20_000, "it was over too soon");
    server.command(&["snapshot", "resume", &number, "--server", &endpoint]).await?;
    ensure!(outcome(&mut copier).await?.is_none() && copier.replica.read_count == 20_000);
    let mut copier = Copier::new(&server.endpoint(), &["t"], Start::Snapshot);
    let number = begun(&mut copier).await?.to_string();
    server.command(&["snapshot", "cancel", &number, "--server", &endpoint]).await?;
    let said = outcome(&mut copier).await?.context("a cancelled snapshot ended")?;
    ensure!(said.contains("cancelled"), "{said}");
    Ok(())
}
