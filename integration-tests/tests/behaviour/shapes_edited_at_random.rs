//! Named shapes that are edited again and again while writers write, connections are lost, subscribers stay away and servers crash:
//! whenever a subscriber has caught up, it holds what PostgreSQL selects by the definitions of then, and none is ever reset.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, Result, bail};
use rand::{RngExt, rngs::StdRng};
use tidegate_client::{Client, Parameter, Shape, Start, Subscription, Updates};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, KEYED_TABLES, Seed, Writers, asked_for, disturb, held_by_postgres,
    keyed_transaction, must_equal, selected, within,
};
use tokio::task::JoinSet;

use crate::shapes_at_random::{COLUMNS, condition, mirroring};

const WRITERS: u64 = 3;
const SUBSCRIBERS: u64 = 5;
const ROUNDS: u32 = 10;
/// Commits that a subscriber takes between two comparisons.
const COMMITS: u32 = 40;
/// Two of each table.
const NAMES: usize = 6;

/// What a name means.
#[derive(Clone, Debug)]
struct Definition {
    table: usize,
    condition: String,
    columns: Vec<&'static str>,
    updates: Updates,
}

impl Definition {
    fn random(random: &mut StdRng, name: usize) -> Self {
        let table = name % KEYED_TABLES.len();
        let columns = COLUMNS[table].iter().copied().filter(|_| random.random_ratio(1, 2)).collect();
        let updates = [Updates::FullRow, Updates::ChangedColumns][random.random_range(0..2)];
        Definition { table, condition: condition(random, table, 2), columns, updates }
    }

    /// The subscriber's value is one of those that a digest of the key may have.
    fn shape(&self) -> Shape {
        let (name, _) = KEYED_TABLES[self.table];
        let shape = Shape::of(name).matching(self.where_clause("$1")).parameter(Parameter::of_type("int8"));
        shape.columns(self.columns.clone()).updates(self.updates)
    }

    fn where_clause(&self, value: &str) -> String {
        let column = ["length(name)", "v", "v"][self.table];
        format!("({}) and ({column} % 4 is distinct from {value})", self.condition)
    }

    fn query(&self, value: i64) -> String {
        let (name, key) = KEYED_TABLES[self.table];
        let shown = match &self.columns[..] {
            [] => "*".to_owned(),
            columns => [key, columns].concat().join(", "),
        };
        format!("(select {shown} from {name} where {}) shape", self.where_clause(&value.to_string()))
    }
}

type Definitions = Arc<std::sync::Mutex<BTreeMap<usize, Definition>>>;

fn name_of(name: usize) -> String {
    format!("edited_{name}")
}

/// Defines some names anew, each until it is known, whatever happens to the server.
async fn edit(endpoint: String, mut random: StdRng, definitions: Definitions) -> Result<()> {
    for _ in 0..random.random_range(1..6) {
        let name = random.random_range(0..NAMES);
        let definition = Definition::random(&mut random, name);
        within("a shape to be defined", || async {
            let Ok(client) = Client::connect(endpoint.clone()).await else { return Ok(None) };
            Ok(client.define_shape("shop", &name_of(name), definition.shape()).await.ok())
        })
        .await?;
        definitions.lock().expect("nobody panics with it").insert(name, definition);
    }
    Ok(())
}

struct Subscriber {
    random: StdRng,
    /// Names with values.
    selected: Vec<(usize, i64)>,
    copier: Copier,
    has_read: bool,
    differences: u64,
}

impl Subscriber {
    fn new(endpoint: &str, mut random: StdRng) -> Self {
        let selected: Vec<(usize, i64)> = (0..random.random_range(1..4))
            .map(|_| (random.random_range(0..NAMES), random.random_range(0..4)))
            .collect();
        let shape = |(name, value): &(usize, i64)| Shape::named(name_of(*name)).parameter(*value);
        let mut shapes = selected.iter().map(shape);
        let first = Subscription::shape(shapes.next().expect("there is one at least"));
        let mut subscription = shapes.fold(first, Subscription::and_shape);
        if random.random_ratio(1, 3) {
            subscription = subscription.and_shape(Shape::of("account").matching("id % 2 = 0"));
        }
        if random.random_ratio(1, 4) {
            // By the log, and not by notes.
            subscription = subscription.and_tables(["pair"]);
        }
        if random.random_ratio(1, 3) {
            subscription = subscription.credit_bytes(32 << 10);
        }
        let copier = Copier::of(endpoint, subscription, Start::Snapshot);
        Subscriber { random, selected, copier, has_read: false, differences: 0 }
    }

    /// Receives for a while, and may lose its connection, or stays away.
    async fn receive(&mut self) -> Result<()> {
        if self.random.random_ratio(1, 4) {
            self.copier.drop_connection();
            return Ok(());
        }
        for _ in 0..self.random.random_range(1..COMMITS) {
            self.take().await?;
            if self.random.random_ratio(1, 30) {
                self.copier.drop_connection();
            }
        }
        Ok(())
    }

    async fn take(&mut self) -> Result<()> {
        match self.copier.next().await? {
            Arrival::Committed(of) => self.differences += u64::from(self.has_read && of >= 1 << 31),
            Arrival::Ended(_) => self.has_read = true,
            Arrival::Begun(_) | Arrival::Progress => {}
            other @ (Arrival::Abandoned(..) | Arrival::Reset(..)) => bail!("{other:?}"),
        }
        Ok(())
    }

    /// Up to now: nobody writes or edits.
    async fn must_equal_postgres(&mut self, database: &Database, definitions: &Definitions) -> Result<()> {
        let definitions = definitions.lock().expect("nobody panics with it").clone();
        let reading = async {
            while !self.has_read {
                self.take().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(DEADLINE, reading).await.context("the snapshot does not end")??;
        self.copier.until_caught_up(database).await?;
        for (at, (name, value)) in (0..).zip(self.selected.clone()) {
            let definition = definitions.get(&name).context("a definition")?;
            let (table, key) = KEYED_TABLES[definition.table];
            let query = definition.query(value);
            let theirs = held_by_postgres(database, &query, key).await?;
            let copy = selected(table, at);
            let receiving = async {
                while self.copier.replica.table(&copy) != theirs {
                    self.take().await?;
                }
                anyhow::Ok(())
            };
            if let Ok(received) = tokio::time::timeout(DEADLINE, receiving).await {
                received?;
            }
            must_equal(&format!("{query} at {}", self.copier.position), &self.copier.replica.table(&copy), &theirs)?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn edited_shapes_hold_what_postgres_selects_and_nobody_is_reset() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("edited").await?;
    let mut server = mirroring(&database).await?;
    let endpoint = server.endpoint();
    let definitions = Definitions::default();
    let client = Client::connect(endpoint.clone()).await?;
    for name in 0..NAMES {
        let definition = Definition::random(&mut random, name);
        client.define_shape("shop", &name_of(name), definition.shape()).await?;
        definitions.lock().expect("nobody panics with it").insert(name, definition);
    }
    let writers = Writers::start(WRITERS, (database.url(), seed), keyed_transaction);
    let mut subscribers: Vec<Subscriber> =
        (0..SUBSCRIBERS).map(|at| Subscriber::new(&endpoint, seed.generator(100 + at))).collect();
    let rounds = asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS);
    let (mut compared, mut differences) = (0, 0);
    for round in 0..rounds {
        let mut receiving = JoinSet::new();
        for mut subscriber in subscribers.drain(..) {
            receiving.spawn(async move { subscriber.receive().await.map(|()| subscriber) });
        }
        let mut editing = JoinSet::new();
        editing.spawn(edit(endpoint.clone(), seed.generator(1_000 + u64::from(round)), Arc::clone(&definitions)));
        disturb(&mut random, &mut cluster, &mut server).await?;
        while let Some(received) = receiving.join_next().await {
            subscribers.push(received??);
        }
        while let Some(edited) = editing.join_next().await {
            edited??;
        }
        let paused = writers.pause().await?;
        let database = Database::connect(&cluster.url("edited")).await?;
        for subscriber in &mut subscribers {
            subscriber.must_equal_postgres(&database, &definitions).await?;
            compared += subscriber.selected.len();
        }
        drop(paused);
        let gone = random.random_range(0..subscribers.len());
        differences += subscribers[gone].differences;
        subscribers[gone] = Subscriber::new(&endpoint, seed.generator(200 + u64::from(round)));
    }
    writers.stop().await;
    differences += subscribers.iter().map(|subscriber| subscriber.differences).sum::<u64>();
    println!("{compared} comparisons, {differences} differences");
    anyhow::ensure!(differences > 0, "no edit was told as a difference");
    Ok(())
}
