//! With a mirror, updates and deletes are complete whatever the replica identity is: whole old rows, and large values that PostgreSQL
//! does not send, also where a row comes to another key, and in partitions.

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use tidegate_client::{Change, Changes, Event, MirrorState, OldKind, Op, SourceStatus, Start, Subscription};
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Server, ServerConfig, within};

use super::schema_change::texts_of;

/// Bytes of a large value.
const LARGE: usize = 64_000;
/// An update that leaves the large value, one that changes the key, one that changes the large value, and a delete: of rows that a
/// snapshot has read, and of one that the stream has brought.
const WRITES: &str = "
insert into t select 3, 3, string_agg(md5(n::text), ''), 0 from generate_series(1, 2000) n;
update t set n = n + 1;
update t set id = id + 1000, at = at + 1000;
update t set large = reverse(large);
delete from t";

/// Table `t`, of which each partition has that identity, and two large rows.
async fn prepare(database: &Database, (identity, clause): (&str, &str), partitioned: bool) -> Result<()> {
    let columns = "t (id bigint not null, at int not null, large text, n int, primary key (id)";
    let (table, tables) = if partitioned {
        let partitions = "create table t_low partition of t for values from (0) to (1000); \
                          create table t_high partition of t for values from (1000) to (9000)";
        (format!("create table {columns}) partition by range (id); {partitions}"), vec!["t", "t_low", "t_high"])
    } else {
        (format!("create table {columns})"), vec!["t"])
    };
    // The partition key is part of every unique index.
    database.execute(&format!("{table}; create unique index t_at on t (at, id)")).await?;
    for table in tables {
        let index = if table == "t" { "t_at".to_owned() } else { format!("{table}_at_id_idx") };
        let clause = clause.replace("INDEX", &index);
        let storage = format!("alter table {table} alter large set storage external");
        database
            .execute(&format!("{storage}; alter table {table} replica identity {clause}"))
            .await
            .with_context(|| identity.to_owned())?;
    }
    let rows = "insert into t select k, k, string_agg(md5((n * k)::text), ''), 0 from generate_series(1, 2000) n, generate_series(1, 2) k \
                group by k";
    database.execute(rows).await
}

fn state_of(status: &SourceStatus) -> Option<(MirrorState, String)> {
    let table = status.mirror.iter().find(|table| table.table == "public.t")?;
    Some((table.state(), table.detail.clone()))
}

/// The next so many updates and deletes.
async fn next(changes: &mut Changes, count: usize) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    let receiving = async {
        while found.len() < count {
            match changes.next().await.context("the subscription ended")?? {
                Event::Change(change) if matches!(change.op, Op::Update | Op::Delete) => found.push(change),
                Event::Reset { reason, detail } => bail!("{reason:?}: {detail}"),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("not all changes come")??;
    Ok(found)
}

fn large(change: &Change, row: &[u8]) -> Result<Option<String>> {
    Ok(texts_of(change, row)?.get("large").cloned().flatten())
}

/// Everything is whole.
async fn is_complete(identity: (&str, &str), partitioned: bool) -> Result<()> {
    let name = format!("large_old_{}_{partitioned}", identity.0);
    let database = Cluster::shared().await?.database(&name).await?;
    prepare(&database, identity, partitioned).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [t]".to_owned());
    let with = "with (publish_via_partition_root)";
    database.execute(&format!("create publication {} for table t {with}", config.slot)).await?;
    let server = Server::start(config).await?;
    let is_mirrored = |status: &SourceStatus| state_of(status).is_some_and(|(state, _)| state == MirrorState::Complete);
    server.until("shop", "a complete mirror", is_mirrored).await?;
    let mut changes = server.client().await?.subscribe(Subscription::tables(["public.t"]).from(Start::Now));
    ensure!(matches!(changes.next().await.context("a subscription")??, Event::Opened { .. }));
    database.execute(WRITES).await?;
    // PostgreSQL makes a deletion and an insertion of an update that takes a row to another partition.
    let found = next(&mut changes, 12).await?;
    for change in &found {
        let what = format!("{} at {}", change.op, change.position);
        ensure!(change.old_kind == OldKind::Full && change.unchanged.is_empty(), "{what}: {:?}", change.old_kind);
        let old = large(change, &change.old)?.with_context(|| format!("{what}: no old value"))?;
        ensure!(old.len() == LARGE, "{what}: {} bytes", old.len());
        if change.op == Op::Update {
            let new = large(change, &change.row)?.with_context(|| format!("{what}: no value"))?;
            let turned: String = old.chars().rev().collect();
            ensure!(new == old || new == turned, "{what}: another value");
        }
    }
    let deletes = found.iter().filter(|change| change.op == Op::Delete).count();
    ensure!(deletes == if partitioned { 6 } else { 3 }, "{deletes} deletes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_mirror_large_values_are_complete_whatever_the_replica_identity() -> Result<()> {
    for partitioned in [false, true] {
        for identity in [("default", "default"), ("index", "using index INDEX"), ("full", "full")] {
            let checked = is_complete(identity, partitioned).await;
            checked.with_context(|| format!("replica identity {}, partitioned: {partitioned}", identity.0))?;
        }
    }
    Ok(())
}

/// PostgreSQL refuses updates and deletes of it: there is nothing that a mirror could complete, and `status` says why it has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_replica_identity_has_no_mirror_and_no_updates() -> Result<()> {
    for partitioned in [false, true] {
        let database = Cluster::shared().await?.database(&format!("large_old_nothing_{partitioned}")).await?;
        prepare(&database, ("nothing", "nothing"), partitioned).await?;
        let mut config = ServerConfig::of(database.url());
        config.source_lines.push("mirror: [t]".to_owned());
        let with = "with (publish_via_partition_root)";
        database.execute(&format!("create publication {} for table t {with}", config.slot)).await?;
        for refused in ["update t set n = 1", "delete from t"] {
            let error = database.execute(refused).await.err().context("PostgreSQL lets it pass")?;
            ensure!(format!("{error:?}").contains("replica identity"), "{error:?}");
        }
        let server = Server::start(config).await;
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                ensure!(format!("{error:#}").contains("no_replica_identity"), "{error:#}");
                continue;
            }
        };
        let said = within("the mirror to be refused", || async {
            let state = state_of(&server.status().await?);
            Ok(state.filter(|(state, _)| *state == MirrorState::Unsupported).map(|(_, detail)| detail))
        });
        let said = said.await?;
        println!("{said}");
        ensure!(said.contains("key"), "{said}");
    }
    Ok(())
}
