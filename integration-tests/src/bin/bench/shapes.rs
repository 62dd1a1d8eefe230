//! `shapes`: how fast the changes of ten shapes come, with nothing else, and with 100,000 more that have none of the rows
//! (`BENCH_SHAPES`, `BENCH_ROWS` for other numbers: of shapes, and of changes in a round).
//!
//! Each round's backlog is written while the server is held (SIGSTOP), with all shapes open; its time is from letting it go to
//! the ten's last change. A round without the others comes before and after, and the mean of the two counts. A round's changes are alike in
//! all of them, so that a ratio says what the others cost for a change, and nothing of what a change costs.
//!
//! Half of the changes are INSERTs, half UPDATEs, each of a row that was inserted before. Every other update changes the value that the
//! conditions are on, so that the row moves from one shape to the next, or from none to none, as most do. Old rows come by `REPLICA IDENTITY FULL`;
//! in the kind `mirrored_…`, as with most users, out of the mirror.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use tidegate_integration_tests::{Cluster, Database, Server, ServerConfig, Signal};
use tidegate_proto::v1::{selection::What, start};
use tokio::task::JoinSet;
use tonic::Streaming;

use crate::{
    bytes_codec::change_count,
    defining, load,
    outcome::{Outcome, Target},
    raw_session::{self, shape},
};

/// Different values of the columns that conditions are on.
const VALUES: u64 = 1_000;
/// Shapes that have rows.
const CONCERNED: u64 = 10;
/// A row of `items`, by its number.
const ROW: &str = "n, n % 1000, 'open', 10 * (n % 1000), 'p' || n % 1000 || '-' || n, 0";
/// What a row's value is after its update: the next one where it was odd, else what it was.
const UPDATED: &str = "(id + id % 2) % 1000";
/// What the ten are told of a thousand rows, one of each value. Ten are inserted; five stay where they are; of those with an odd value, five
/// leave a shape, and five enter one, four of them out of another of the ten.
const TOLD: u64 = 25;
const PER_SESSION: usize = 1_000;
const CONNECTIONS: usize = 10;

/// Conditions of one kind.
struct Kind {
    ratio: &'static str,
    is_mirrored: bool,
    at_least: f64,
    /// In thousandths of all.
    share: u64,
    /// Which rows have the value of this number; from [`VALUES`] on, none.
    condition: fn(u64) -> String,
}

const KINDS: [Kind; 4] = [
    Kind {
        ratio: "equality_100k",
        is_mirrored: false,
        at_least: 0.9,
        share: 1_000,
        condition: |n| format!("tenant = {n} and status = 'open'"),
    },
    Kind {
        ratio: "range_10k",
        is_mirrored: false,
        at_least: 0.7,
        share: 100,
        condition: |n| format!("price between {} and {}", 10 * n, 10 * n + 9),
    },
    Kind {
        ratio: "like_prefix_10k",
        is_mirrored: false,
        at_least: 0.7,
        share: 100,
        condition: |n| format!("sku like 'p{n}-%'"),
    },
    Kind {
        ratio: "mirrored_equality_10k",
        is_mirrored: true,
        at_least: 0.9,
        share: 100,
        condition: |n| format!("tenant = {n} and status = 'open'"),
    },
];

/// Measures the case.
pub(crate) async fn run() -> Result<Outcome> {
    let shape_count = load::number("BENCH_SHAPES", 100_000)?;
    let change_count = load::row_count(300_000)?;
    let mut outcome = Outcome::new("shapes");
    for kind in KINDS {
        let rounds = Rounds::begin(&kind, change_count).await?;
        measure(kind, rounds, shape_count, &mut outcome).await?;
    }
    outcome.note(
        "Transactions of 100 inserts and of 100 updates, by turns; every other update changes the value that the conditions are on. One row in a \
         hundred is in one of the ten shapes.",
    );
    Ok(outcome)
}

async fn measure(kind: Kind, mut rounds: Rounds, shape_count: u64, outcome: &mut Outcome) -> Result<()> {
    let count = shape_count * kind.share / 1_000;
    eprintln!("warm-up {:?}", rounds.round().await?);
    let before = rounds.round().await?;
    let resident = rounds.server.process()?.memory("VmRSS")?;
    let start = Instant::now();
    let conditions = (0..count).map(|number| shape("items", (kind.condition)(VALUES + number)));
    let others = Sessions::open(&rounds.server.endpoint(), conditions).await?;
    eprintln!("{count} shapes opened in {:?}", start.elapsed());
    let grown = rounds.server.process()?.memory("VmRSS")?.saturating_sub(resident);
    let with = rounds.round().await?;
    drop(others);
    let after = rounds.round().await?;
    eprintln!("{}: with ten {before:?} and {after:?}, with all {with:?}", kind.ratio);
    let without = (before + after) / 2;
    outcome.ratio(kind.ratio, without.as_secs_f64() / with.as_secs_f64(), Target::AtLeast(kind.at_least));
    if kind.share == 1_000 {
        let places = (&*rounds.server.endpoint(), rounds.database.url());
        let defined =
            defining::measure(places, (rounds.written + 1, ROW), |n| (KINDS[0].condition)(VALUES + n)).await?;
        outcome.figure("definitions_per_s", defined.per_s, Some(Target::AtLeast(2_000.0)));
        outcome.note(format!(
            "Shapes came and went, each with a condition of its own, while {:.0} rows a second were written.",
            defined.rows_per_s
        ));
        outcome.figure("bytes_per_shape", grown as f64 / count as f64, Some(Target::AtMost(2_048.0)));
        outcome.figure("rows_per_s", rounds.change_count as f64 / with.as_secs_f64(), None);
    }
    Ok(())
}

/// A server with the ten shapes.
struct Rounds {
    _cluster: Cluster,
    database: Database,
    server: Server,
    session: Streaming<Bytes>,
    /// Of a round.
    change_count: u64,
    /// Rows so far.
    written: u64,
}

impl Rounds {
    async fn begin(kind: &Kind, change_count: u64) -> Result<Self> {
        ensure!(change_count.is_multiple_of(2 * VALUES), "the number of changes is one of two thousands");
        let settings = [("synchronous_commit", "off"), ("max_wal_size", "8GB"), ("wal_sender_timeout", "0")];
        let cluster = Cluster::start(&settings).await?;
        let database = cluster.database("bench").await?;
        database
            .execute(
                "create table items (id bigint primary key, tenant int, status text, price int, sku text, version int)",
            )
            .await?;
        let mut config = ServerConfig::of(database.url());
        if kind.is_mirrored {
            config.source_lines.push("mirror: [items]".to_owned());
        } else {
            database.execute("alter table items replica identity full").await?;
        }
        let server = Server::start(config).await?;
        if kind.is_mirrored {
            load::until_mirrored(&server).await?;
        }
        let subscribes = (0..CONCERNED).map(|number| {
            let subscription = u32::try_from(number).expect("ten") + 1;
            raw_session::subscribe(subscription, shape("items", (kind.condition)(number)), start::Point::Now)
        });
        let mut session = raw_session::open(raw_session::connect(&server.endpoint()).await?, subscribes).await?;
        raw_session::until_open(&mut session, CONCERNED as usize).await?;
        Ok(Rounds { _cluster: cluster, database, server, session, change_count, written: 0 })
    }

    /// Writes a backlog, and drains it.
    async fn round(&mut self) -> Result<Duration> {
        self.server.process()?.signal(Signal::STOP)?;
        let (first, last) = (self.written + 1, self.written + self.change_count / 2);
        self.database
            .execute(&format!(
                "do $$ begin for low in {first}..{last} by 100 loop
                   insert into items select {ROW} from generate_series(low, low + 99) n; commit;
                   update items set tenant = {UPDATED}, price = 10 * ({UPDATED}), sku = 'p' || {UPDATED} || '-' || id, version = version + 1
                   where id between low and low + 99; commit;
                 end loop; end $$"
            ))
            .await?;
        // Brings it to the disk, from where it is sent.
        self.database
            .execute(
                "begin; set local synchronous_commit = on; select pg_logical_emit_message(true, 'written', ''); commit",
            )
            .await?;
        self.written = last;
        let start = Instant::now();
        self.server.process()?.signal(Signal::CONT)?;
        let (mut count, goal) = (0, self.change_count / 2 / VALUES * TOLD);
        while count < goal {
            count += change_count(&raw_session::next(&mut self.session).await?)?;
        }
        ensure!(count == goal, "{count} changes");
        Ok(start.elapsed())
    }
}

/// Sessions that are read and not looked at. They end with this.
pub(crate) struct Sessions(JoinSet<Result<()>>);

impl Sessions {
    /// Opens a subscription from now on for each selection.
    pub(crate) async fn open(endpoint: &str, selections: impl Iterator<Item = What>) -> Result<Self> {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(raw_session::connect(endpoint).await?);
        }
        let selections: Vec<What> = selections.collect();
        let mut sessions = Sessions(JoinSet::new());
        for (number, selections) in selections.chunks(PER_SESSION).enumerate() {
            let subscribes = (1..).zip(selections).map(|(subscription, selection)| {
                raw_session::subscribe(subscription, selection.clone(), start::Point::Now)
            });
            let channel = channels[number % CONNECTIONS].clone();
            let mut session = raw_session::open(channel, subscribes).await?;
            raw_session::until_open(&mut session, selections.len()).await?;
            sessions.0.spawn(async move {
                loop {
                    raw_session::next(&mut session).await?;
                }
            });
        }
        Ok(sessions)
    }
}
