//! Subscriptions to shapes that are opened, and receive their first rows, while a snapshot in the log reads their table anew, since rows have
//! changed without a word in the stream: in the end each has what PostgreSQL selects.
//!
//! Of some the connection is lost as soon as they are open, and they come back later: what has happened between is passed over, or told.

use anyhow::{Result, ensure};
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom as _};
use tidegate_client::{MirrorState, SourceStatus};
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Seed, Server, ServerConfig, within};
use tidegate_proto::v1::{Start, Subscribe, start};
use tokio::time::Instant;

use crate::{
    mirror::must_be_verified,
    raw_session::{RawCopy, RawSession, from_snapshot, must_equal_select, shape},
    snapshot_crowd::OF_MIRROR,
};

/// A second or so for each 500.
const ROWS: usize = 3_000;
const SHELVES: u32 = 20;
/// Subscriptions that are there before anything happens; the others join while it does.
const BEFORE: u32 = 10;
/// Is there from the beginning, and says what is going on.
const RESIDENT: u32 = 1;

/// A table whose mirror is complete, and those who have subscribed to shapes of it.
struct Scene {
    database: Database,
    server: Server,
    random: StdRng,
    session: RawSession,
    /// By subscription, less one.
    conditions: Vec<String>,
    /// Are to come back, with the tokens of their openings.
    away: Vec<(u32, String)>,
    /// Keys of rows that have been inserted.
    next_id: usize,
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.iter().any(|table| table.state() == MirrorState::Complete)
}

impl Scene {
    async fn new(name: &str, seed: Seed) -> Result<Self> {
        let database = Cluster::shared().await?.database(name).await?;
        database.execute("create table item (id bigint primary key, shelf int, body text)").await?;
        let row = format!("n, n % {SHELVES}, rpad(n::text || ' ', 300, md5(n::text))");
        database.execute(&format!("insert into item select {row} from generate_series(1, {ROWS}) n")).await?;
        let mut config = ServerConfig::of(database.url());
        database.execute(&format!("create publication {} for table item", config.slot)).await?;
        config.source_lines.push("mirror: [item]".to_owned());
        config.source_lines.push("snapshots: {readers: 1, rows_per_second: 500}".to_owned());
        let server = Server::start(config).await?;
        server.until("shop", "a complete mirror", is_complete).await?;
        let session = RawSession::open(&server.endpoint()).await?;
        let (random, conditions, away) = (seed.generator(0), Vec::new(), Vec::new());
        Ok(Scene { database, server, random, session, conditions, away, next_id: ROWS + 1 })
    }

    async fn join(&mut self, stays: bool) -> Result<()> {
        let condition = match self.random.random_range(0..3) {
            0 => format!("shelf < {}", self.random.random_range(1..SHELVES)),
            1 => format!("shelf = {}", self.random.random_range(0..SHELVES)),
            _ => format!("shelf >= {} and id > {}", self.random.random_range(1..SHELVES), ROWS / 3),
        };
        self.conditions.push(condition.clone());
        let subscription = u32::try_from(self.conditions.len())?;
        let subscribe = from_snapshot(subscription, vec![shape("item", &condition)]);
        if stays {
            return self.session.subscribe(subscribe).await;
        }
        let mut session = RawSession::open(&self.server.endpoint()).await?;
        session.subscribe(subscribe).await?;
        let opened = session.until(subscription, ("its opening", RawCopy::is_open)).await?;
        ensure!(opened.error.is_none() && opened.begun.is_empty(), "{:?}", opened.error);
        self.away.push((subscription, opened.token()));
        Ok(())
    }

    /// One of those who are to.
    async fn come_back(&mut self) -> Result<()> {
        if self.away.is_empty() {
            return Ok(());
        }
        let (subscription, token) = self.away.swap_remove(self.random.random_range(0..self.away.len()));
        let condition = &self.conditions[subscription as usize - 1];
        let start = Some(Start { from: Some(start::From::Token(token)) });
        let subscribe = from_snapshot(subscription, vec![shape("item", condition)]);
        self.session.subscribe(Subscribe { start, ..subscribe }).await
    }

    /// What is streamed.
    async fn write(&mut self) -> Result<()> {
        let (id, new) = (self.random.random_range(1..ROWS), self.next_id);
        self.next_id += 5;
        let by = self.random.random_range(1..SHELVES);
        let inserted = format!("select n, n % {SHELVES}, 'new' from generate_series({new}, {new} + 4) n");
        let sql = [
            format!("update item set shelf = (shelf + {by}) % {SHELVES} where id between {id} and {id} + 30"),
            format!("delete from item where id between {id} and {id} + 5"),
            format!("insert into item {inserted}"),
        ];
        let sql = sql.choose(&mut self.random).map_or("", String::as_str);
        self.database.execute(sql).await
    }

    /// What is not: some rows are on other shelves.
    async fn change_in_silence(&mut self) -> Result<()> {
        let (of, by) = (self.random.random_range(2..4), self.random.random_range(1..SHELVES));
        let shelf = format!("case when id % {of} = 0 then (shelf + {by}) % {SHELVES} else shelf end");
        self.database.execute(&format!("alter table item alter shelf type int using {shelf}")).await
    }

    async fn step(&mut self) -> Result<()> {
        match self.random.random_range(0..16) {
            0..5 => self.write().await?,
            5..9 => self.come_back().await?,
            9..12 => self.join(false).await?,
            12..14 => self.join(true).await?,
            _ => drop(self.database.text("select pg_sleep(0.3)::text").await?),
        }
        Ok(())
    }

    /// Each has what PostgreSQL selects, as soon as the mirror has been compared with that.
    async fn converge(&mut self) -> Result<()> {
        while !self.away.is_empty() {
            self.come_back().await?;
        }
        let until = Instant::now() + DEADLINE / 2;
        for subscription in 1..=u32::try_from(self.conditions.len())? {
            self.must_agree(subscription, until).await?;
        }
        must_be_verified(&self.server, "item").await
    }

    async fn must_agree(&mut self, subscription: u32, until: Instant) -> Result<()> {
        let select = format!("select * from item where {}", self.conditions[subscription as usize - 1]);
        loop {
            self.session.until_caught_up(subscription, &self.database).await?;
            let copy = self.session.copy(subscription)?;
            ensure!(copy.error.is_none(), "{:?}", copy.error);
            match must_equal_select(&copy.rows(0), &self.database, &select).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => {
                    let before = format!("which has seen {:?} begin and {:?} end", copy.begun, copy.ended);
                    must_be_verified(&self.server, "item").await?;
                    return Err(error.context(format!("subscription {subscription}, {before}")));
                }
                Err(_) => drop(self.database.text("select pg_sleep(0.5)::text").await?),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_joins_a_shape_while_its_table_is_read_anew_has_its_rows() -> Result<()> {
    let mut scene = Scene::new("joined_amid", Seed::from_environment()).await?;
    scene.join(true).await?;
    scene.session.until_exact(RESIDENT).await?;
    for _ in 0..BEFORE {
        scene.join(false).await?;
    }
    scene.change_in_silence().await?;
    for number in 0..60 {
        scene.step().await?;
        if number == 30 {
            scene.change_in_silence().await?;
        }
    }
    scene.converge().await
}

/// A table is read by everybody who selects it where a line of the publication joins that stands for it.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_joins_a_shape_while_everybody_reads_its_table_has_its_rows() -> Result<()> {
    let mut scene = Scene::new("joined_amid_new", Seed::from_environment()).await?;
    if scene.database.server_version().await? < 15 {
        println!("no schema can be published");
        return Ok(());
    }
    scene.join(true).await?;
    scene.session.until_exact(RESIDENT).await?;
    for _ in 0..BEFORE {
        scene.join(false).await?;
    }
    scene.change_in_silence().await?;
    let joins = format!("alter publication {} add tables in schema public", scene.server.slot());
    scene.database.execute(&joins).await?;
    let has_begun = |copy: &RawCopy| copy.begun.iter().any(|snapshot| *snapshot < OF_MIRROR);
    scene.session.until(RESIDENT, ("a snapshot for everybody", has_begun)).await?;
    for number in 0..60 {
        scene.step().await?;
        if number == 10 {
            scene.change_in_silence().await?;
        }
    }
    scene.converge().await?;
    // What has begun behind the place where a subscription was opened is told whole, or passed over.
    let mut told = 0;
    for subscription in RESIDENT + 1..=RESIDENT + BEFORE {
        let has_ended = |copy: &RawCopy| copy.ended == copy.begun;
        scene.session.until(subscription, ("each snapshot that has begun, and no other, to end", has_ended)).await?;
        let RawCopy { ended, .. } = scene.session.copy(subscription)?;
        told += ended.iter().filter(|snapshot| **snapshot < OF_MIRROR).count();
    }
    ensure!(told > 0, "nobody was to be told");
    Ok(())
}

/// Another table has its name by now. Who comes back while its mirror is not complete may be reset, and nobody has a row of the one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_back_to_a_table_that_was_created_anew_has_its_rows_or_is_reset() -> Result<()> {
    let mut scene = Scene::new("joined_anew", Seed::from_environment()).await?;
    for _ in 0..BEFORE {
        scene.join(false).await?;
    }
    let anew = format!(
        "drop table item; create table item (id bigint primary key, shelf int, body text); alter publication {} add table item; \
         insert into item select n, n % 7, 'anew' from generate_series(1000, 2000) n",
        scene.server.slot()
    );
    scene.database.execute(&anew).await?;
    let until = Instant::now() + DEADLINE / 2;
    for (number, (subscription, token)) in (1..).zip(std::mem::take(&mut scene.away)) {
        let is_late = number > BEFORE / 2;
        if is_late {
            // The one that is gone differs.
            let is_anew = || async { Ok(must_be_verified(&scene.server, "item").await.ok()) };
            within("the new table's mirror", is_anew).await?;
        }
        scene.session = RawSession::open(&scene.server.endpoint()).await?;
        scene.away.push((subscription, token));
        scene.come_back().await?;
        match scene.must_agree(subscription, until).await {
            Err(error) if !is_late && error.root_cause().to_string().starts_with("a reset") => {}
            other => other?,
        }
    }
    must_be_verified(&scene.server, "item").await
}
