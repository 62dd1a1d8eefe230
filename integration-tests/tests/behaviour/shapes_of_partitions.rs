//! Shapes of a partitioned table that is published as one: rows that an update moves to another partition, partitions that come and go with
//! their rows, and what such a table needs.

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_client::{MirrorState, Shape, SourceStatus, Start, Subscription, Updates};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, Seed, Server, ServerConfig, Writers, asked_for, disturb,
    held_by_postgres, must_equal, selected,
};

use crate::shapes::{Watcher, must_hear, refusal, served};

/// The one partition has the columns in another order than the root, and `spare` is none yet.
const SCHEMA: &str = "
create table place (id int, at int, tenant int, note text, primary key (id, at)) partition by range (at);
create table place_low partition of place for values from (0) to (1000);
create table place_high (note text, tenant int, at int, id int, primary key (id, at));
alter table place attach partition place_high for values from (1000) to (2000);
create table spare (id int, at int, tenant int, note text, primary key (id, at));
insert into place select n, n * 40, n % 3, 'n' || n from generate_series(1, 40) n;
insert into spare select 100 + n, 5000 + n, n % 3, 's' || n from generate_series(1, 9) n";
const ATTACH: &str = "alter table place attach partition spare for values from (5000) to (6000)";
const DETACH: &str = "alter table place detach partition spare";
const TABLE: &str = "public.place";

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.iter().any(|table| table.table == TABLE && table.state() == MirrorState::Complete)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_across_partitions_and_in_and_out_of_a_shape_of_their_root() -> Result<()> {
    let (database, server) = served("partitions_moves", SCHEMA, &["place"]).await?;
    let shape = Shape::of("place").matching("tenant = 1");
    let mut watcher = Watcher::open(&server, Subscription::shape(shape).from(Start::Snapshot)).await?;
    let read = watcher.read().await?;
    ensure!(read.len() == 14 && read.contains(&"read: at=1600 id=40 note=n40 tenant=1".to_owned()), "{read:?}");
    database
        .execute(
            "update place set at = 1040 where id = 1;
             update place set at = 1080, tenant = 1 where id = 2;
             update place set at = 1160, tenant = 0 where id = 4;
             update place set at = 1200, tenant = 0 where id = 5;
             update place set tenant = 1 where id in (3, 30);
             update place set tenant = 2 where id in (7, 40);
             update place set note = 'x' where id in (10, 31)",
        )
        .await?;
    // PostgreSQL makes a DELETE and an INSERT of an update that takes a row to another partition.
    let expected = [
        "delete:  | at=40 id=1 note=n1 tenant=1",
        "insert: at=1040 id=1 note=n1 tenant=1",
        "insert: at=1080 id=2 note=n2 tenant=1",
        "delete:  | at=160 id=4 note=n4 tenant=1",
        "insert in: at=120 id=3 note=n3 tenant=1",
        "insert in: at=1200 id=30 note=n30 tenant=1",
        "delete out:  | at=280 id=7 note=n7 tenant=1",
        "delete out:  | at=1600 id=40 note=n40 tenant=1",
        "update: at=400 id=10 note=x tenant=1 | at=400 id=10 note=n10 tenant=1",
        "update: at=1240 id=31 note=x tenant=1 | at=1240 id=31 note=n31 tenant=1",
    ];
    must_hear(watcher.until(&database, "moved").await?, &expected)?;
    database.execute("truncate place").await?;
    must_hear(watcher.until(&database, "truncated").await?, &["truncate: "])
}

/// A subscriber to shapes of the root, and how PostgreSQL is asked for their rows.
struct Subscriber {
    endpoint: String,
    subscription: Subscription,
    copier: Copier,
    queries: Vec<String>,
}

impl Subscriber {
    fn of(server: &Server, conditions: &[&str], with_table: bool) -> Self {
        let shape = |condition: &&str| Shape::of("place").matching(*condition).updates(Updates::ChangedColumns);
        let mut shapes = conditions.iter().map(shape);
        let first = Subscription::shape(shapes.next().expect("one condition at least"));
        let subscription = shapes.fold(first, Subscription::and_shape);
        let mut queries: Vec<String> =
            conditions.iter().map(|condition| format!("(select * from place where {condition}) shape")).collect();
        let subscription = if with_table {
            queries.push("place".to_owned());
            subscription.and_tables(["place"])
        } else {
            subscription
        };
        let copier = Copier::of(&server.endpoint(), subscription.clone(), Start::Snapshot);
        Subscriber { endpoint: server.endpoint(), subscription, copier, queries }
    }

    /// Where what subqueries select has changed while rows were truncated; else there is no reason to.
    fn starts_over(&mut self, why: &str) -> Result<()> {
        let has_subqueries = self.queries.iter().any(|query| query.contains("in (select"));
        ensure!(has_subqueries && why.contains("what the subqueries of a shape selected"), "{why}");
        self.copier = Copier::of(&self.endpoint, self.subscription.clone(), Start::Snapshot);
        Ok(())
    }

    /// Receives until it has what PostgreSQL selects, which may be a correction of the mirror: nobody writes.
    async fn must_come_to_equal(&mut self, database: &Database) -> Result<()> {
        self.copier.until_caught_up(database).await?;
        for (at, query) in (0..).zip(&self.queries) {
            let theirs = held_by_postgres(database, query, &["id", "at"]).await?;
            let name = selected(TABLE, at);
            let receiving = async {
                while self.copier.replica.table(&name) != theirs {
                    if let Arrival::Reset(reason, detail) = self.copier.next().await? {
                        anyhow::bail!("{reason:?}: {detail}");
                    }
                }
                Ok(())
            };
            if let Ok(received) = tokio::time::timeout(DEADLINE, receiving).await {
                received.with_context(|| query.clone())?;
            } else {
                must_equal(query, &self.copier.replica.table(&name), &theirs)?;
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_come_and_go_with_the_rows_that_they_have_in_a_shape() -> Result<()> {
    let (database, mut server) = served("partitions_attached", SCHEMA, &["place"]).await?;
    let mut subscribers = vec![
        Subscriber::of(&server, &["tenant = 1", "at > 900 or note = 'n3'"], false),
        Subscriber::of(&server, &["tenant <> 1"], true),
        Subscriber::of(&server, &["tenant in (select tenant from place where note like 's%')"], false),
    ];
    for subscriber in &mut subscribers {
        subscriber.copier.until_snapshot_end().await?;
        subscriber.must_come_to_equal(&database).await?;
    }
    let again = format!("{DETACH}; update spare set tenant = 1 - tenant, note = 'n' where id < 105; {ATTACH}");
    for (ddl, is_down) in [
        (ATTACH, false),
        ("update place set at = at - 4000, tenant = tenant + 1 where at in (5001, 5002)", false),
        (again.as_str(), false),
        (DETACH, false),
        (ATTACH, true),
        ("truncate place_low", false),
        ("drop table place_high", true),
        ("insert into place select n, n, 1, 'n' from generate_series(1, 20) n", false),
    ] {
        if is_down {
            server.kill().await?;
        }
        let altered = database.execute(ddl).await;
        altered.with_context(|| ddl.to_owned())?;
        if is_down {
            server.launch().await?;
        }
        for subscriber in &mut subscribers {
            subscriber.must_come_to_equal(&database).await.with_context(|| format!("after {ddl}"))?;
        }
        // Who comes now reads the same.
        let mut late = Subscriber::of(&server, &["tenant = 1", "at > 900 or note = 'n3'"], false);
        late.copier.until_snapshot_end().await?;
        late.must_come_to_equal(&database).await.with_context(|| format!("late, after {ddl}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_mirrored_on_demand_or_refused_whatever_its_identity() -> Result<()> {
    let full = format!(
        "{SCHEMA}; alter table place replica identity full; alter table place_low replica identity full;
         alter table place_high replica identity full"
    );
    let shape = || Shape::of("place").matching("tenant = 1");
    for (name, schema) in [("partitions_default", SCHEMA), ("partitions_full", &full)] {
        let (database, mut server) = served(name, schema, &[]).await?;
        let refused = refusal(&server, shape()).await?;
        ensure!(refused.contains("unless it is a root of partitions"), "{refused}");
        let leaf = refusal(&server, Shape::of("place_low")).await?;
        ensure!(leaf.contains("there is no table public.place_low") && leaf.contains("public.place?"), "{leaf}");
        ensure!(server.status().await?.mirror.is_empty(), "something is mirrored");

        server.terminate().await?;
        server.config_mut().source_lines.retain(|line| !line.contains("mirror_on_demand"));
        server.launch().await?;
        server.streaming().await?;
        let mut subscriber = Subscriber::of(&server, &["tenant = 1", "note like 'n1%'"], false);
        subscriber.copier.until_snapshot_end().await?;
        server.until("shop", "a mirrored root", is_complete).await?;
        subscriber.must_come_to_equal(&database).await?;
        database
            .execute("update place set at = 2000 - at, tenant = (tenant + 1) % 3; delete from place where id % 7 = 0")
            .await?;
        subscriber.must_come_to_equal(&database).await?;
    }
    Ok(())
}

/// Where partitions are published as themselves, they are tables, and the root is none.
#[tokio::test(flavor = "multi_thread")]
async fn of_partitions_that_are_published_as_themselves_each_has_shapes() -> Result<()> {
    let publication = "create publication tidegate_partitions_leaves for all tables";
    let (database, server) = served("partitions_leaves", &format!("{SCHEMA}; {publication}"), &["place_high"]).await?;
    let root = refusal(&server, Shape::of("place")).await?;
    ensure!(root.contains("there is no table public.place"), "{root}");
    let shape = Shape::of("place_high").matching("tenant = 1");
    let mut watcher = Watcher::open(&server, Subscription::shape(shape)).await?;
    database.execute("update place set at = at + 1000 where id = 1; update place set at = 40 where id = 40").await?;
    let expected = ["insert: at=1040 id=1 note=n1 tenant=1", "delete:  | at=1600 id=40 note=n40 tenant=1"];
    must_hear(watcher.until(&database, "moved").await?, &expected)
}

/// In all partitions, also in the one that is not always there: what is written to it then fails.
fn transaction(random: &mut StdRng) -> String {
    let change = |random: &mut StdRng| {
        let (id, tenant) = (random.random_range(1..200), random.random_range(0..3));
        let at = [random.random_range(0..2_000), random.random_range(5_000..5_100)][usize::from(id % 8 == 0)];
        match random.random_range(0..10) {
            0..3 => format!("update place set at = {at} where id = {id}"),
            3 => format!("update place set at = {at}, tenant = {tenant}, note = 'm{id}' where id = {id}"),
            4 => format!("update place set tenant = {tenant} where id = {id}"),
            5 => format!("update place set note = repeat('{id}', 900) where id = {id}"),
            6 => format!("delete from place where id = {id}"),
            7 => format!("update place set at = (at + 1000) % 2000 where at < 2000 and id % 10 = {tenant}"),
            _ => format!("insert into place values ({id}, {at}, {tenant}, 'i{id}') on conflict do nothing"),
        }
    };
    let changes: Vec<String> = (0..random.random_range(1..6)).map(|_| change(random)).collect();
    format!("begin; {}; commit", changes.join("; "))
}

const CONDITIONS: [&str; 6] = [
    "tenant = 1",
    "tenant <> 1",
    "at < 1000",
    "at % 2 = 0 and note like 'n%'",
    "length(note) > 100 or tenant = 2",
    "tenant in (select tenant from place where at between 900 and 950)",
];

#[tokio::test(flavor = "multi_thread")]
async fn shapes_of_a_root_hold_what_postgres_selects_whatever_happens() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s")]).await?;
    let database = cluster.database("partitions_at_random").await?;
    database.execute(SCHEMA).await?;
    database.execute("alter table place alter note set storage external").await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [place]".to_owned());
    let mut server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    let writers = Writers::start(2, (database.url(), seed), transaction);
    let mut subscribers: Vec<Subscriber> = Vec::new();
    let (mut is_attached, mut done, mut resets) = (false, Vec::new(), 0);
    let rounds = asked_for("TIDEGATE_TEST_ROUNDS", 6_u32);
    for _ in 0..rounds {
        let some: Vec<&str> = CONDITIONS.sample(&mut random, 2).copied().collect();
        subscribers.push(Subscriber::of(&server, &some, random.random_bool(0.3)));
        for subscriber in &mut subscribers {
            for _ in 0..random.random_range(1..40) {
                if let Arrival::Reset(_, detail) = subscriber.copier.next().await? {
                    subscriber.starts_over(&detail)?;
                    resets += 1;
                }
            }
        }
        let database = Database::connect(&cluster.url("partitions_at_random")).await?;
        let ddl = if random.random_bool(0.3) {
            "truncate place_low"
        } else if is_attached {
            DETACH
        } else {
            ATTACH
        };
        if random.random_bool(0.6) && database.execute(ddl).await.is_ok() {
            is_attached = if ddl == ATTACH { true } else { is_attached && ddl != DETACH };
            done.push(ddl);
        }
        if random.random_bool(0.6) {
            done.push(disturb(&mut random, &mut cluster, &mut server).await?);
        }
        let paused = writers.pause().await?;
        let database = Database::connect(&cluster.url("partitions_at_random")).await?;
        for subscriber in &mut subscribers {
            while let Err(error) = subscriber.must_come_to_equal(&database).await {
                subscriber.starts_over(&format!("{error:#}")).with_context(|| format!("after {done:?}"))?;
                resets += 1;
            }
        }
        drop(paused);
        if subscribers.len() > 3 {
            subscribers.remove(random.random_range(0..subscribers.len()));
        }
    }
    writers.stop().await;
    println!("{resets} resets amid {done:?}");
    ensure!(resets <= rounds, "{resets} resets in {rounds} rounds");
    Ok(())
}
