//! Random shapes that come and go while writers write, connections are lost and servers crash: whenever a subscriber has caught up, it
//! holds what PostgreSQL selects; and at every commit, its shapes of one table tell the same of each row.

use anyhow::{Context, Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_client::{MirrorState, Shape, SourceStatus, Start, Subscription, Updates};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Database, KEYED_TABLES, Seed, Server, ServerConfig, Touched, Writers,
    asked_for, disturb, held_by_postgres, keyed_tables, keyed_transaction, must_equal, selected,
};
use tokio::task::JoinSet;

const WRITERS: u64 = 3;
/// Shapes that are open at once, about; `TIDEGATE_TEST_SHAPES` asks for more.
const SHAPES: usize = 120;
/// Rounds of one run, `TIDEGATE_TEST_ROUNDS` asks for more; at the end of each, all is compared.
const ROUNDS: u32 = 12;
/// Of one subscriber, besides the first three.
const MORE_SHAPES: usize = 40;
/// Commits that a subscriber takes between two comparisons.
const COMMITS: u32 = 40;

/// The columns besides the key.
pub(crate) const COLUMNS: [&[&str]; 3] = [&["name", "note"], &["v"], &["v", "body"]];

/// A condition on one of the tables.
pub(crate) fn condition(random: &mut StdRng, table: usize, depth: u32) -> String {
    if depth > 0 && random.random_ratio(1, 2) {
        let (one, other) = (condition(random, table, depth - 1), condition(random, table, depth - 1));
        return match random.random_range(0..5) {
            0 | 1 => format!("({one} and {other})"),
            2 | 3 => format!("({one} or {other})"),
            _ => format!("not ({one})"),
        };
    }
    let (n, m) = (random.random_range(0..4_500), random.random_range(1..60));
    let conditions = match table {
        0 => vec![
            format!("id % {m} = {}", n % m),
            format!("id between {n} and {}", n + 40 * m),
            format!("name like 'u{}%'", m % 10),
            format!("name = 'n{n}'"),
            "note is null".to_owned(),
            format!("length(note) > {}", 100 * m),
            "name is distinct from 'moved'".to_owned(),
            format!("id in ({n}, {}, {})", n / 2, n / 3),
            format!("coalesce(note, name) not like '%{}'", m % 10),
        ],
        1 => vec![
            format!("b = {}", m % 25),
            format!("a = 'k{}'", n % 160),
            format!("v > {}", n / 2),
            format!("v % {m} < 3"),
            format!("b between {} and {}", m % 20, m % 20 + 6),
            format!("(b, a) <> ({}, 'k{}')", m % 25, n % 160),
            format!("a like 'k{}%'", m % 10),
        ],
        _ => vec![
            format!("v < {n}"),
            "body is not null".to_owned(),
            format!("length(body) % {m} = 0"),
            format!("v % {m} = {}", n % m),
            "id < '80000000-0000-0000-0000-000000000000'".to_owned(),
            format!("v = any ('{{{n}, {}, {}}}')", n / 2, m),
        ],
    };
    conditions.choose(random).cloned().unwrap_or_default()
}

/// A shape, and how PostgreSQL is asked for its rows.
struct Watched {
    shape: Shape,
    query: String,
}

impl Watched {
    fn of(table: usize, condition: &str, columns: &[&str], updates: Updates) -> Self {
        let (name, key) = KEYED_TABLES[table];
        let shape = Shape::of(name).matching(condition).columns(columns.iter().copied()).updates(updates);
        let shown = match columns {
            [] => "*".to_owned(),
            columns => [key, columns].concat().join(", "),
        };
        let filter = if condition.is_empty() { String::new() } else { format!(" where {condition}") };
        Watched { shape, query: format!("(select {shown} from {name}{filter}) shape") }
    }
}

/// A subscriber with all rows of a table, those that meet a condition, those that do not, and a few more shapes.
struct Subscriber {
    random: StdRng,
    table: usize,
    watched: Vec<Watched>,
    copier: Copier,
    /// The copy is exact.
    has_read: bool,
}

impl Subscriber {
    fn new(endpoint: &str, mut random: StdRng) -> Self {
        let table = random.random_range(0..KEYED_TABLES.len());
        let tested = condition(&mut random, table, 2);
        let updates = |random: &mut StdRng| [Updates::FullRow, Updates::ChangedColumns][random.random_range(0..2)];
        let mut watched = vec![Watched::of(table, "", &[], updates(&mut random))];
        for test in ["is true", "is not true"] {
            watched.push(Watched::of(table, &format!("({tested}) {test}"), &[], updates(&mut random)));
        }
        for _ in 0..random.random_range(1..MORE_SHAPES) {
            let table = random.random_range(0..KEYED_TABLES.len());
            let columns: Vec<&str> = COLUMNS[table].iter().copied().filter(|_| random.random_ratio(1, 2)).collect();
            let condition = condition(&mut random, table, 2);
            watched.push(Watched::of(table, &condition, &columns, updates(&mut random)));
        }
        let mut shapes = watched.iter().map(|watched| watched.shape.clone());
        let first = Subscription::shape(shapes.next().expect("there are three at least"));
        let subscription = shapes.fold(first, Subscription::and_shape);
        let copier = Copier::of(endpoint, subscription, Start::Snapshot);
        Subscriber { random, table, watched, copier, has_read: false }
    }

    /// Receives for a while, and may lose its connection.
    async fn receive(&mut self) -> Result<()> {
        let mut commits = self.random.random_range(1..COMMITS);
        while commits > 0 {
            self.take().await?;
            commits -= 1;
            if self.random.random_ratio(1, 30) {
                self.copier.drop_connection();
            }
        }
        Ok(())
    }

    async fn take(&mut self) -> Result<()> {
        match self.copier.next().await? {
            Arrival::Committed(_) => self.must_agree()?,
            Arrival::Ended(_) => self.has_read = true,
            Arrival::Begun(_) | Arrival::Progress => {}
            other @ (Arrival::Abandoned(..) | Arrival::Reset(..)) => anyhow::bail!("{other:?}"),
        }
        Ok(())
    }

    /// Each row that the commit has touched is in exactly one of a condition's shape and its opposite's, if it is there at all.
    fn must_agree(&self) -> Result<()> {
        let (table, _) = KEYED_TABLES[self.table];
        let names = [0, 1, 2].map(|selection| selected(table, selection));
        for touched in &self.copier.touched {
            let Touched::Row(name, key) = touched else { continue };
            if !names.contains(name) {
                continue;
            }
            let [all, meets, fails] = [0, 1, 2].map(|at| self.copier.replica.table_row(&names[at], key));
            let condition = &self.watched[1].query;
            ensure!(meets.is_none() || fails.is_none(), "{key:?} is in {condition} and in its opposite");
            let either = meets.or(fails);
            // Before the snapshot's end a row that an update has changed may lack what the update left as it was.
            let agree = if self.has_read { all == either } else { all.is_some() == either.is_some() };
            ensure!(agree, "{key:?} is not the same in all rows and in {condition} or its opposite");
        }
        Ok(())
    }

    /// Up to now: nobody writes.
    async fn must_equal_postgres(&mut self, database: &Database) -> Result<()> {
        let reading = async {
            while !self.has_read {
                self.take().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(DEADLINE, reading).await.context("the snapshot does not end")??;
        self.copier.until_caught_up(database).await?;
        for (at, watched) in (0..).zip(&self.watched) {
            let name = KEYED_TABLES.iter().find(|(name, _)| watched.query.contains(&format!("from {name}")));
            let (name, key) = name.context("a table")?;
            let theirs = held_by_postgres(database, &watched.query, key).await?;
            let ours = self.copier.replica.table(&selected(name, at));
            must_equal(&format!("{} at {}", watched.query, self.copier.position), &ours, &theirs)?;
        }
        Ok(())
    }
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.len() == KEYED_TABLES.len()
        && status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

/// A server that has the keyed tables in its mirror, and little memory.
pub(crate) async fn mirroring(database: &Database) -> Result<Server> {
    let (tables, rows) = keyed_tables();
    database.execute(tables).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [account, pair, thing]".to_owned());
    config.source_lines.push("memory: {transactions: 256KiB, feed: 256KiB, tail: 1MiB, mirror: 1MiB}".to_owned());
    let server = Server::start(config).await?;
    database.execute(&rows).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok(server)
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_hold_what_postgres_selects_whatever_happens() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let mut cluster = Cluster::start(&[("wal_sender_timeout", "5s"), ("logical_decoding_work_mem", "64kB")]).await?;
    let database = cluster.database("shapes").await?;
    let mut server = mirroring(&database).await?;
    let writers = Writers::start(WRITERS, (database.url(), seed), keyed_transaction);
    let endpoint = server.endpoint();
    let mut next = 100;
    let mut another = || {
        next += 1;
        Subscriber::new(&endpoint, seed.generator(next))
    };
    let (shapes, rounds) = (asked_for("TIDEGATE_TEST_SHAPES", SHAPES), asked_for("TIDEGATE_TEST_ROUNDS", ROUNDS));
    let mut subscribers: Vec<Subscriber> = Vec::new();
    let mut compared = 0;
    for _ in 0..rounds {
        while subscribers.iter().map(|subscriber| subscriber.watched.len()).sum::<usize>() < shapes {
            subscribers.push(another());
        }
        let mut receiving = JoinSet::new();
        for mut subscriber in subscribers.drain(..) {
            receiving.spawn(async move { subscriber.receive().await.map(|()| subscriber) });
        }
        disturb(&mut random, &mut cluster, &mut server).await?;
        while let Some(received) = receiving.join_next().await {
            subscribers.push(received??);
        }
        let paused = writers.pause().await?;
        let database = Database::connect(&cluster.url("shapes")).await?;
        for subscriber in &mut subscribers {
            subscriber.must_equal_postgres(&database).await?;
            compared += subscriber.watched.len();
        }
        drop(paused);
        subscribers.remove(0);
        subscribers.retain(|_| random.random_ratio(4, 5));
    }
    writers.stop().await;
    println!("{compared} comparisons of {} subscribers' shapes", next - 100);
    Ok(())
}
