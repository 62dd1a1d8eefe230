//! A table that appears is published, and everyone who selects it has all of its rows, whoever wrote them when.

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use tidegate_client::{Client, Start};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, Seed, Server, ServerConfig, counted_by_postgres, held_by_postgres,
    must_count_equal, must_equal, within,
};

/// Waits until the tables have been read by snapshots of their own, which have ended.
async fn are_read(server: &Server, tables: &[&str]) -> Result<()> {
    within(&format!("{tables:?} to be read"), || async {
        let Ok(client) = Client::connect(server.endpoint()).await else { return Ok(None) };
        let Ok(jobs) = client.snapshots("").await else { return Ok(None) };
        let is_read = |name: &&str| {
            let mut of_table =
                jobs.iter().filter(|job| job.tables.iter().any(|table| table.table == format!("public.{name}")));
            of_table.any(|job| job.new_tables && job.state() == tidegate_client::SnapshotState::Done)
        };
        Ok(tables.iter().all(is_read).then_some(()))
    })
    .await
}

/// What the status says of a table.
async fn said(server: &Server, table: &str, what: &str) -> Result<String> {
    let name = format!("public.{table}");
    let waited = format!("{table}: {what}");
    let status = server.until("shop", &waited, |status| {
        status.new_tables.iter().any(|new| new.table == name && new.detail.contains(what))
    });
    let mut said: Vec<_> = status.await?.new_tables.into_iter().filter(|new| new.table == name).collect();
    ensure!(said.len() == 1, "the status says {said:?}");
    Ok(said.pop().context("it was there")?.detail)
}

/// Receives up to what is wanted.
async fn receive(copier: &mut Copier, is_there: impl Fn(&Arrival, &Copier) -> bool) -> Result<()> {
    let receiving = async {
        loop {
            let arrival = copier.next().await?;
            match &arrival {
                Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
                arrival if is_there(arrival, copier) => return anyhow::Ok(()),
                _other => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("it does not come")?
}

/// Receives up to a marker, which is written now.
async fn until_marker(database: &Database, copier: &mut Copier, name: &str) -> Result<()> {
    database.mark(name).await?;
    let key = [name.to_owned()];
    let is_there = |copier: &Copier| copier.replica.table_row("public.marker", &key).is_some();
    if is_there(copier) {
        return Ok(());
    }
    receive(copier, |_, copier| is_there(copier)).await.with_context(|| format!("marker {name}"))
}

/// Compares tables, of which the key is given, if they have one.
async fn must_be_equal(database: &Database, copier: &Copier, tables: &[(&str, &[&str])]) -> Result<()> {
    for (table, key) in tables {
        let name = format!("public.{table}");
        if key.is_empty() {
            must_count_equal(table, &copier.replica.counts(&name), &counted_by_postgres(database, table).await?)?;
        } else {
            must_equal(table, &copier.replica.table(&name), &held_by_postgres(database, table, key).await?)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_appears_is_published_and_read_by_everyone() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("appears").await?;
    database.create_marker().await?;
    database.execute("create table old (id int primary key); insert into old select generate_series(1, 100)").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut now = Copier::new(&server.endpoint(), &[], Start::Now);
    let mut from_snapshot = Copier::new(&server.endpoint(), &["public.*"], Start::Snapshot);
    let mut other = Copier::new(&server.endpoint(), &["old", "marker"], Start::Now);
    now.until_open().await?;
    other.until_open().await?;
    from_snapshot.until_snapshot_end().await?;

    database
        .execute(
            "create table fresh (id int primary key, v int, long text); \
             insert into fresh select n, 0, repeat(md5(n::text), 100) from generate_series(1, 20000) n",
        )
        .await?;
    // Written to all the while.
    let writer = database.another().await?;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::task::JoinSet::from_iter([async move {
        for at in 1_i32.. {
            if stopped.try_recv() != Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                break;
            }
            let sql = format!(
                "update fresh set v = v + 1 where id % 97 = {at} % 97; delete from fresh where id = {at}; \
                 insert into fresh values (100000 + {at}, {at}, 'new'); update fresh set id = -id where id = 200 + {at}"
            );
            writer.execute(&sql).await?;
        }
        anyhow::Ok(())
    }]);
    are_read(&server, &["fresh"]).await?;
    stop.send(()).ok();
    for written in writing.join_all().await {
        written?;
    }
    // One that was created empty, and one that says it is partitioned.
    database
        .execute(
            "create table empty (id int primary key); create table root (id int primary key) partition by range (id); \
             create table leaf partition of root for values from (0) to (100); insert into leaf values (1), (2)",
        )
        .await?;
    are_read(&server, &["empty", "root"]).await?;
    for (at, copier) in [&mut now, &mut from_snapshot].into_iter().enumerate() {
        until_marker(&database, copier, &format!("end {at}")).await?;
        let tables: [(&str, &[&str]); 3] = [("fresh", &["id"]), ("empty", &["id"]), ("root", &["id"])];
        must_be_equal(&database, copier, &tables).await?;
    }
    must_be_equal(&database, &from_snapshot, &[("old", &["id"])]).await?;
    // Who does not select them hears nothing.
    until_marker(&database, &mut other, "others").await?;
    ensure!(other.replica.read_count == 0 && other.replica.table("public.fresh").is_empty());
    ensure!(server.status().await?.new_tables.is_empty());
    // Whoever starts later finds them among the others.
    let mut late = Copier::new(&server.endpoint(), &["public.*"], Start::Snapshot);
    late.until_snapshot_end().await?;
    must_be_equal(&database, &late, &[("fresh", &["id"]), ("old", &["id"])]).await
}

/// Who adds the tables to the publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddedBy {
    /// The server, which was away when the tables appeared.
    Server,
    /// Someone else, to the server's own publication, while it streams.
    SomeoneElse,
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_transactions_from_before_the_table_was_published_arrive() -> Result<()> {
    written_to_before(AddedBy::Server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_transactions_from_before_someone_else_added_the_table_arrive() -> Result<()> {
    written_to_before(AddedBy::SomeoneElse).await
}

/// A table for each kind of transaction that may have written to one, and one with partitions.
const WRITTEN_TO: &str = "create table plain (id int primary key, v text); create table prepared (id int primary key, v text); \
                          create table late (id int primary key, v text); \
                          create table root (id int primary key, v text) partition by range (id); \
                          create table leaf_a partition of root for values from (0) to (100); \
                          create table leaf_b partition of root for values from (100) to (200)";

async fn written_to_before(added_by: AddedBy) -> Result<()> {
    let cluster = Cluster::start(&[("max_prepared_transactions", "10")]).await?;
    let database = cluster.database("writers").await?;
    database.create_marker().await?;
    let mut config = ServerConfig::of(database.url());
    if added_by == AddedBy::SomeoneElse {
        config.source_lines.push("new_tables: snapshot".to_owned());
    }
    let mut server = Server::start(config).await?;
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Now);
    copier.until_open().await?;
    if added_by == AddedBy::Server {
        server.terminate().await?;
    }

    // Tables appear, and transactions are left open that have written to them.
    database.execute(WRITTEN_TO).await?;
    let by = async |of: &str| {
        let session = database.another().await?;
        session.execute(&format!("begin; {of}")).await?;
        anyhow::Ok(session)
    };
    let plain = by("insert into plain values (1, 'before'), (2, 'before')").await?;
    let root = by("insert into root values (1, 'root')").await?;
    let leaf = by("insert into leaf_b values (101, 'leaf')").await?;
    let prepared = by("insert into prepared values (1, 'prepared'); prepare transaction 'early'").await?;
    let late = by("savepoint s; insert into late values (1, 'late'); release s").await?;
    match added_by {
        AddedBy::Server => server.launch().await?,
        AddedBy::SomeoneElse => {
            said(&server, "plain", "`new_tables`").await?;
            database.execute("alter publication tidegate_writers add table plain, prepared, late, root").await?;
        }
    }
    for table in ["plain", "root", "prepared", "late"] {
        let said = said(&server, table, "may have written to it before").await?;
        ensure!(said.contains("prepared transaction") == (table == "prepared"), "{table}: {said}");
    }
    // They are published, and everyone goes on.
    for other in ["plain", "root", "prepared", "late"] {
        database.execute(&format!("insert into {other} values (50, 'other'), (51, 'other')")).await?;
        database.execute(&format!("update {other} set v = 'changed' where id = 51")).await?;
    }
    plain.execute("insert into plain values (3, 'after'); update plain set v = 'after' where id = 1").await?;
    leaf.execute("insert into leaf_b values (102, 'after')").await?;
    late.execute("insert into late values (2, 'after'); prepare transaction 'late'").await?;
    until_marker(&database, &mut copier, "waits").await?;
    ensure!(copier.replica.read_count == 0, "it was read before the writers had ended");
    // A subscription that begins now by a pattern does without them; it receives them like the others.
    let mut beside = Copier::new(&server.endpoint(), &["public.*"], Start::Snapshot);
    beside.until_snapshot_end().await?;

    plain.execute("commit").await?;
    root.execute("commit").await?;
    are_read(&server, &["plain"]).await?;
    said(&server, "root", "may have written to it before").await?;
    leaf.execute("delete from leaf_b where id = 102; commit").await?;
    are_read(&server, &["root"]).await?;
    drop(prepared);
    database.execute("commit prepared 'early'").await?;
    database.execute("commit prepared 'late'").await?;
    are_read(&server, &["prepared", "late"]).await?;
    for (at, copier) in [&mut copier, &mut beside].into_iter().enumerate() {
        until_marker(&database, copier, &format!("end {at}")).await?;
        let tables: [(&str, &[&str]); 4] =
            [("plain", &["id"]), ("root", &["id"]), ("prepared", &["id"]), ("late", &["id"])];
        must_be_equal(&database, copier, &tables).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_replica_identity_is_named_and_harms_nobody() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("keyless_new").await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Now);
    copier.until_open().await?;
    database.execute("create table keyless (id int, v int); insert into keyless values (1, 1)").await?;
    let detail = said(&server, "keyless", "replica identity").await?;
    ensure!(detail.contains("primary key"), "{detail}");
    ensure!(server.command(&["status"]).await?.contains("public.keyless: not published"));
    database.execute("update keyless set v = 2; delete from keyless where id = 7").await?;
    // A snapshot by pattern does without it.
    let mut beside = Copier::new(&server.endpoint(), &["public.*"], Start::Snapshot);
    beside.until_snapshot_end().await?;
    database.execute("alter table keyless add primary key (id)").await?;
    are_read(&server, &["keyless"]).await?;
    for (at, copier) in [&mut copier, &mut beside].into_iter().enumerate() {
        until_marker(&database, copier, &format!("end {at}")).await?;
        must_be_equal(&database, copier, &[("keyless", &["id"])]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_key_is_read_once_by_everyone() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("counted_new").await?;
    database.create_marker().await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 12000}".to_owned());
    let server = Server::start(config).await?;
    let mut now = Copier::new(&server.endpoint(), &[], Start::Now);
    now.until_open().await?;
    database
        .execute(
            "create table log (a int, b text); alter table log replica identity full; \
             insert into log select n % 50, repeat('b', 100) from generate_series(1, 24000) n",
        )
        .await?;
    receive(&mut now, |_, copier| copier.replica.read_count > 0).await?;
    // One that begins meanwhile would receive the rows twice: its own, and what is left of those of the new table.
    let mut beside = Copier::new(&server.endpoint(), &["log", "marker"], Start::Snapshot);
    let mut others = Copier::new(&server.endpoint(), &["marker"], Start::Snapshot);
    others.until_snapshot_end().await?;
    for at in 0..20 {
        let sql = format!(
            "insert into log values ({at}, 'new'), ({at}, 'new'); delete from log where a = {at}; \
             update log set b = 'changed' where a = 20 + {at}"
        );
        database.execute(&sql).await?;
    }
    beside.until_snapshot_end().await?;
    ensure!(beside.replica.void_count == 1, "{} passes", beside.replica.void_count);
    for (at, copier) in [&mut now, &mut beside].into_iter().enumerate() {
        until_marker(&database, copier, &format!("end {at}")).await?;
        must_be_equal(&database, copier, &[("log", &[])]).await?;
    }
    ensure!(others.replica.counts("public.log").is_empty());
    Ok(())
}

/// A role that may do what it must, and is held to row-level security.
async fn role(database: &Database, name: &str) -> Result<()> {
    let sql = format!(
        "create role reader login replication; grant create on database {name} to reader; \
         grant all on schema public to reader; grant all on all tables in schema public to reader; \
         alter table marker owner to reader"
    );
    database.execute(&sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_that_cannot_be_read_is_read_as_soon_as_it_can() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("refusing").await?;
    database.create_marker().await?;
    role(&database, "refusing").await?;
    let mut server = Server::start(ServerConfig::of(&database.url().replace("postgres@", "reader@"))).await?;
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Now);
    copier.until_open().await?;
    database
        .execute(
            "set role reader; create table secret (id int primary key); alter table secret enable row level security; \
             alter table secret force row level security; create table plain (id int primary key); reset role; \
             insert into secret values (1), (2); insert into plain values (1)",
        )
        .await?;
    let detail = said(&server, "secret", "another follows").await?;
    ensure!(detail.contains("row-level security"), "{detail}");
    // It is in nobody's way; only who begins while it is tried has to begin again.
    are_read(&server, &["plain"]).await?;
    let beside = || async {
        let mut beside = Copier::new(&server.endpoint(), &["public.*"], Start::Snapshot);
        Ok(beside.until_snapshot_end().await.is_ok().then_some(beside))
    };
    let mut beside = within("a snapshot of the others", beside).await?;
    server.kill().await?;
    server.launch().await?;
    said(&server, "secret", "another follows").await?;
    database.execute("alter table secret no force row level security; insert into secret values (3)").await?;
    are_read(&server, &["secret"]).await?;
    for (at, copier) in [&mut copier, &mut beside].into_iter().enumerate() {
        until_marker(&database, copier, &format!("end {at}")).await?;
        must_be_equal(&database, copier, &[("secret", &["id"]), ("plain", &["id"])]).await?;
    }
    ensure!(server.status().await?.new_tables.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_that_is_altered_while_it_is_read_is_read_again_until_it_is_gone() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("restless").await?;
    database.create_marker().await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 4000}".to_owned());
    let server = Server::start(config).await?;
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Now);
    copier.until_open().await?;
    let changes = [
        ("renamed", "alter table early rename to renamed", &["id"][..]),
        ("early", "alter table early drop constraint early_pkey, replica identity full", &[]),
        ("early", "alter table early drop constraint early_pkey, add primary key (id, v)", &["id", "v"]),
        ("", "drop table early", &[]),
    ];
    for (at, (name, sql, key)) in changes.into_iter().enumerate() {
        let before = copier.replica.read_count;
        database
            .execute(
                "create table early (id int primary key, v int not null); \
                 insert into early select n, n from generate_series(1, 12000) n",
            )
            .await?;
        receive(&mut copier, |_, copier| copier.replica.read_count >= before + 1000).await?;
        database.execute(sql).await.context(sql)?;
        receive(&mut copier, |arrival, _| matches!(arrival, Arrival::Abandoned(..))).await.context(sql)?;
        if !name.is_empty() {
            copier.until_snapshot_end().await.context(sql)?;
            until_marker(&database, &mut copier, &format!("change {at}")).await?;
            must_be_equal(&database, &copier, &[(name, key)]).await.context(sql)?;
            database.execute(&format!("drop table {name}")).await?;
        }
    }
    until_marker(&database, &mut copier, "end").await?;
    server.until("shop", "nothing is to be done", |status| status.new_tables.is_empty()).await?;
    let client = Client::connect(server.endpoint()).await?;
    let ended = |job: &tidegate_proto::v1::SnapshotStatus| job.ended.is_some();
    ensure!(client.snapshots("").await?.iter().all(ended), "a snapshot of what is gone runs");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_someone_else_is_left_alone() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("others").await?;
    database.create_marker().await?;
    database.execute("create publication tidegate_others for table marker").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Now);
    copier.until_open().await?;
    database.execute("create table mine (id int primary key); insert into mine values (1)").await?;
    let advice = said(&server, "mine", "leaves it alone").await?;
    // A snapshot of all tables is one of those that are published.
    let mut all = Copier::new(&server.endpoint(), &[], Start::Snapshot);
    all.until_snapshot_end().await?;
    let (_, sql) = advice.split_once("run ").context("no advice")?;
    ensure!(sql.starts_with("ALTER PUBLICATION"), "{advice}");
    let members = "select count(*)::text from pg_publication_tables where pubname = 'tidegate_others'";
    ensure!(database.text(members).await?.as_deref() == Some("1"));
    // What the advice says is enough.
    database.execute(sql).await?;
    are_read(&server, &["mine"]).await?;
    until_marker(&database, &mut copier, "end").await?;
    must_be_equal(&database, &copier, &[("mine", &["id"])]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_to_be_followed_is_not_read() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("followed").await?;
    database.create_marker().await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("new_tables: follow".to_owned());
    let server = Server::start(config).await?;
    let mut copier = Copier::new(&server.endpoint(), &[], Start::Now);
    copier.until_open().await?;
    database.execute("create table mine (id int primary key); insert into mine values (1)").await?;
    said(&server, "mine", "`new_tables`").await?;
    database.execute("alter publication tidegate_followed add table mine; insert into mine values (2)").await?;
    server.until("shop", "it is settled", |status| status.new_tables.is_empty()).await?;
    until_marker(&database, &mut copier, "end").await?;
    ensure!(copier.replica.read_count == 0 && copier.replica.table("public.mine").len() <= 1);
    Ok(())
}

/// When the server is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    AtOnce,
    Published,
    Waiting,
    Begun,
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_between_the_steps_lose_nothing() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("killed_new").await?;
    database.create_marker().await?;
    let mut server = Server::start(ServerConfig::of(database.url())).await?;
    let mut random = Seed::from_environment().generator(1);
    let mut now = Copier::new(&server.endpoint(), &[], Start::Now);
    now.until_open().await?;
    let mut from_snapshot = Copier::new(&server.endpoint(), &["public.*"], Start::Snapshot);
    from_snapshot.until_snapshot_end().await?;
    let mut names: Vec<String> = Vec::new();
    // Every other table has no key.
    let key_of = |at: usize| if at.is_multiple_of(2) { &["id"][..] } else { &[] };
    for round in 0..4 {
        let name = format!("t{round}");
        let before = database.another().await?;
        let count = random.random_range(0..30_000);
        let identity = match key_of(round) {
            [] => "replica identity full".to_owned(),
            key => format!("add primary key ({})", key.join(", ")),
        };
        database.execute(&format!("create table {name} (id int, v int); alter table {name} {identity}")).await?;
        before.execute(&format!("begin; insert into {name} values (-1, 1), (-2, 2)")).await?;
        database.execute(&format!("insert into {name} select n, n from generate_series(1, {count}) n")).await?;
        let moment = [Moment::AtOnce, Moment::Published, Moment::Waiting, Moment::Begun][random.random_range(0..4)];
        println!("round {round}: {count} rows, {moment:?}");
        match moment {
            Moment::AtOnce => {}
            Moment::Published => {
                let is = format!("select tablename::text from pg_publication_tables where tablename = '{name}'");
                within("the table to be published", || async { database.text(&is).await }).await?;
            }
            Moment::Waiting => {
                said(&server, &name, "may have written").await?;
            }
            Moment::Begun => {
                before.execute("commit").await?;
                while !matches!(now.next().await?, Arrival::Begun(_)) {}
            }
        }
        server.kill().await?;
        if random.random_bool(0.5) {
            now.drop_connection();
        }
        server.launch().await?;
        server.streaming().await?;
        // A second one may do nothing, or all.
        before.execute(&format!("insert into {name} values (-3, 3)")).await.ok();
        before.execute("commit").await?;
        database
            .execute(&format!("update {name} set v = v + 1 where id % 7 = {round}; delete from {name} where id = 3"))
            .await?;
        names.push(name);
    }
    let tables: Vec<&str> = names.iter().map(String::as_str).collect();
    are_read(&server, &tables).await?;
    for (at, copier) in [&mut now, &mut from_snapshot].into_iter().enumerate() {
        until_marker(&database, copier, &format!("end {at}")).await?;
        for (at, table) in tables.iter().enumerate() {
            must_be_equal(&database, copier, &[(table, key_of(at))]).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_under_an_old_name_takes_nothing_from_the_one_that_had_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let database = cluster.database("old_name").await?;
    database.create_marker().await?;
    database
        .execute("create table t (id int primary key, v int); insert into t select n, n from generate_series(1, 100) n")
        .await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    let mut copier = Copier::new(&server.endpoint(), &["public.*"], Start::Snapshot);
    copier.until_snapshot_end().await?;
    database
        .execute(
            "begin; alter table t rename to was_t; create table t (id int primary key, v text); \
             insert into t select n, 'new' from generate_series(1, 50) n; commit",
        )
        .await?;
    until_read(&mut copier).await?;
    // From now on it is known what the old one is called.
    database.execute("update was_t set v = -v where id = 7; delete from was_t where id = 8").await?;
    until_marker(&database, &mut copier, "renamed").await?;
    must_be_equal(&database, &copier, &[("t", &["id"]), ("was_t", &["id"])]).await
}

/// Receives the snapshot of a new table up to its end.
async fn until_read(copier: &mut Copier) -> Result<()> {
    let end = copier.until("the end of the new table's snapshot", |arrival, _| matches!(arrival, Arrival::Ended(_)));
    end.await.map(drop)
}
