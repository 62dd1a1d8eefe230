//! A handle on a shape that was away for longer than the server keeps changes receives what differs from the rows it holds, and has then what
//! PostgreSQL's SELECT has.
//!
//! Its connections go through a line that can be cut, and that counts the rows that come by.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use tidegate_client::{Client, MirrorState, Position, Shape, ShapeHandle, ShapeUpdate, SourceStatus};
use tidegate_integration_tests::{
    Cluster, DEADLINE, Database, Seed, Server, ServerConfig, Writers, asked_for, keyed_tables, keyed_transaction,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::shape_handle::must_equal_select;

/// In each row of the table that is counted, once.
const MARK: &[u8] = b"<row>";
const ROWS: usize = 20_000;

/// Between clients and a server.
struct Line {
    endpoint: String,
    is_cut: watch::Sender<bool>,
    row_count: Arc<AtomicUsize>,
    byte_count: watch::Receiver<usize>,
    _task: JoinSet<()>,
}

impl Line {
    async fn to(server: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let (is_cut, cut) = watch::channel(false);
        let (bytes, byte_count) = watch::channel(0);
        let row_count = Arc::<AtomicUsize>::default();
        let (counted, mut task) = (Arc::clone(&row_count), JoinSet::new());
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (server, mut cut, counted, bytes) =
                    (server.clone(), cut.clone(), Arc::clone(&counted), bytes.clone());
                connections.spawn(async move {
                    tokio::select! {
                        biased;
                        // Ends with whoever could mend it.
                        _cut = cut.wait_for(|cut| *cut) => {}
                        _gone = carry(client, &server, &counted, &bytes) => {}
                    }
                });
            }
        });
        Ok(Line { endpoint, is_cut, row_count, byte_count, _task: task })
    }

    fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// It is whole again, and has carried nothing.
    fn mend(&self) {
        self.row_count.store(0, Ordering::Relaxed);
        self.is_cut.send_replace(false);
    }

    fn row_count(&self) -> usize {
        self.row_count.load(Ordering::Relaxed)
    }
}

async fn carry(
    mut client: TcpStream,
    server: &str,
    row_count: &AtomicUsize,
    byte_count: &watch::Sender<usize>,
) -> Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        // The end of what came before, in which a mark may have begun.
        let mut held = 0;
        loop {
            let read = from_server.read(&mut buffer[held..]).await?;
            if read == 0 {
                return anyhow::Ok(());
            }
            to_client.write_all(&buffer[held..held + read]).await?;
            let end = held + read;
            let marks = buffer[..end].windows(MARK.len()).filter(|window| *window == MARK).count();
            row_count.fetch_add(marks, Ordering::Relaxed);
            byte_count.send_modify(|count| *count += read);
            held = end.min(MARK.len() - 1);
            buffer.copy_within(end - held..end, 0);
        }
    };
    tokio::select! {
        ended = down => ended,
        ended = tokio::io::copy(&mut from_client, &mut to_server) => ended.map(|_| ()).map_err(Into::into),
    }
}

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.iter().all(|table| table.state() == MirrorState::Complete)
}

/// A server that keeps little of its changes, mirrors these tables, and has a table that only fills its changelog.
async fn served(name: &str, mirror: &str, statements: &[&str]) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    for statement in statements {
        database.execute(statement).await?;
    }
    database.execute("create table filler (id bigserial primary key, body text)").await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push(format!("mirror: [{mirror}]"));
    // What is in memory is read there, also where the file is gone.
    config.source_lines.push("memory: {tail: 1MiB}".to_owned());
    config.lines.push("retention: {size: 2MiB, age: 7d}".to_owned());
    let server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok((database, server))
}

/// Writes until the server keeps nothing of before a position.
async fn outlast(position: Position, database: &Database, server: &Server) -> Result<()> {
    let filling = async {
        // Some more than is in memory, besides what is in files.
        for written in 0.. {
            let fill = "insert into filler (body) select repeat(md5(n::text), 8192) from generate_series(1, 4) n";
            database.execute(fill).await?;
            let earliest: Position = server.status().await?.earliest_position.parse().context("a position")?;
            if earliest > position && written > 4 {
                break;
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, filling).await.context("the changelog is not trimmed")?
}

const ITEMS: &str = "create table item (id bigint primary key, shelf int not null, body text not null)";
const SELECT: &str = "select * from item where shelf < 10";

fn items() -> String {
    format!("insert into item select n, n % 20, '<row>' || md5(n::text) from generate_series(1, {ROWS}) n")
}

/// The line is whole again: the rows are replaced at once, as after a Reset, and are those of the query.
async fn must_replace(line: &Line, shape: &ShapeHandle, database: &Database) -> Result<usize> {
    let mut updates = shape.subscribe();
    let first = updates.next().await.context("the rows of before")??;
    ensure!(matches!(first, ShapeUpdate::Rows(_)), "the first are not all rows");
    line.mend();
    let count = must_equal_select(shape, database, SELECT).await?;
    let second = updates.next().await.context("the rows of now")??;
    ensure!(matches!(second, ShapeUpdate::Rows(_)), "the changes came one by one: the token was not too old");
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_longer_than_changes_are_kept_receives_what_differs() -> Result<()> {
    let (database, server) = served("held_items", "item", &[ITEMS, &items()]).await?;
    let line = Line::to(server.address()).await?;
    let client = Client::connect(&line.endpoint).await?;
    let shape: ShapeHandle = client.shape("shop", Shape::of("item").matching("shelf < 10"));
    ensure!(must_equal_select(&shape, &database, SELECT).await? == ROWS / 2);
    ensure!(line.row_count() > ROWS / 2 - 200, "the line has seen {} rows", line.row_count());

    line.cut();
    let position = shape.position().context("it has come to a position")?;
    database
        .execute(
            "delete from item where id in (1, 5001, 9001); update item set shelf = 15 where id in (2, 5002, 9002); \
             update item set shelf = 3 where id in (15, 5015, 9015); update item set body = '<row>' || 'changed' where id in (4, 5004); \
             update item set id = -id where id = 6; insert into item values (100001, 1, '<row>'), (100002, 1, '<row>new')",
        )
        .await?;
    outlast(position, &database, &server).await?;
    ensure!(shape.rows().len() == ROWS / 2 && !shape.is_current(), "rows stay as they were");
    ensure!(must_replace(&line, &shape, &database).await? == ROWS / 2 - 1);
    // The rows of 15 buckets.
    let count = line.row_count();
    ensure!((8..300).contains(&count), "{count} rows came of {ROWS}");

    line.cut();
    let position = shape.position().context("it has come to a position")?;
    outlast(position, &database, &server).await?;
    ensure!(must_replace(&line, &shape, &database).await? == ROWS / 2 - 1);
    ensure!(line.row_count() == 0, "{} rows came, and none had changed", line.row_count());
    println!("{count} of {} rows came after changes, none without", ROWS / 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_exact_whatever_happens_meanwhile() -> Result<()> {
    let seed = Seed::from_environment();
    let mut random = seed.generator(0);
    let (tables, rows) = keyed_tables();
    let (database, mut server) = served("held_at_random", "account, pair, thing", &[tables, &rows]).await?;
    let line = Line::to(server.address()).await?;
    let client = Client::connect(&line.endpoint).await?;
    let accounts = client.shape("shop", Shape::of("account").matching("id % 3 <> 1"));
    let things = client.shape("shop", Shape::of("thing").matching("v < 1500").columns(["v"]));
    let pairs = client.shape("shop", Shape::of("pair"));
    let writers = Writers::start(2, (database.url(), seed), keyed_transaction);
    let rounds = asked_for("TIDEGATE_TEST_ROUNDS", 4_u32);
    for _ in 0..rounds {
        for shape in [&accounts, &things, &pairs] {
            tokio::time::timeout(DEADLINE, shape.current()).await.context("does not get current")??;
        }
        line.cut();
        let positions = [&accounts, &things, &pairs].map(ShapeHandle::position);
        outlast(positions.into_iter().flatten().max().context("a position")?, &database, &server).await?;
        let mut byte_count = line.byte_count.clone();
        let enough = *byte_count.borrow() + random.random_range(1..40_000);
        line.mend();
        if random.random_bool(0.7) {
            byte_count.wait_for(|count| *count >= enough).await?;
            server.kill().await?;
            server.launch().await?;
        }
        let _paused = writers.pause().await?;
        must_equal_select(&accounts, &database, "select * from account where id % 3 <> 1").await?;
        must_equal_select(&things, &database, "select id, v from thing where v < 1500").await?;
        must_equal_select(&pairs, &database, "select * from pair").await?;
    }
    writers.stop().await;
    println!("{rounds} rounds");
    Ok(())
}
