//! Whoever joins a shape late, from a snapshot, slows nobody who is there and holds no memory, whether it reads, reads slowly, or never
//! grants any credit.
//!
//! Each transaction is written when those who are there have received the one before: so what they wait for is never longer than a
//! transaction, however many are joining, and no clock is asked.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use tidegate_client::{MirrorState, Shape, SourceStatus, Start, Subscription};
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, Database, HeldTable, Server, ServerConfig, held_by_postgres, must_equal,
};
use tidegate_proto::v1::Subscribe;

use crate::raw_session::{RawSession, from_snapshot, must_equal_select, shape};

const TABLE: &str = "create table item (id bigint primary key, shelf int not null, body text not null)";
/// Some 12 MB.
const ROWS: usize = 6_000;
const CONDITION: &str = "shelf < 18";
const TRANSACTIONS: usize = 80;
/// A row that each transaction numbers.
const COUNTER: i64 = 0;

/// In the session of one who is there: 360 MB, if they were to be held for them.
const SILENT: u32 = 30;
const SLOW: usize = 10;
const READING: usize = 10;
/// Above what the server had in use before.
const GROWTH_BYTES_MAX: u64 = 192 << 20;
/// A message more than was granted.
const OVERDRAWN_BYTES_MAX: u64 = 1 << 20;

fn is_complete(status: &SourceStatus) -> bool {
    status.mirror.iter().any(|table| table.state() == MirrorState::Complete)
}

async fn served() -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database("joined_late").await?;
    database.execute(TABLE).await?;
    let row = "n, n % 20, rpad(n::text || ' ', 2000, md5(n::text))";
    database.execute(&format!("insert into item select {row} from generate_series(1, {ROWS}) n")).await?;
    database.execute(&format!("insert into item values ({COUNTER}, 0, '0')")).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [item]".to_owned());
    config.source_lines.push("memory: {tail: 8MiB}".to_owned());
    let server = Server::start(config).await?;
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok((database, server))
}

/// Rows change, enter and leave, come and go.
fn transaction(number: usize) -> String {
    let (id, new) = (1 + number * 37 % ROWS, ROWS + number);
    format!(
        "begin; update item set body = '{number}' where id = {COUNTER}; update item set shelf = (shelf + 7) % 20 where id between {id} and \
         {id} + 4; delete from item where id = {id} + 9; insert into item values ({new}, {new} % 20, rpad('new', 2000, 'x')); commit"
    )
}

/// A subscriber through the library, and the transactions that it has received.
struct Resident {
    copier: Copier,
    transaction_count: Cell<usize>,
}

impl Resident {
    async fn of(server: &Server, subscription: Subscription) -> Result<Self> {
        let mut copier = Copier::of(&server.endpoint(), subscription, Start::Snapshot);
        copier.until_snapshot_end().await?;
        Ok(Resident { copier, transaction_count: Cell::new(0) })
    }

    /// Up to a transaction, each of those before once.
    async fn receive(&mut self, number: usize) -> Result<()> {
        let counted = |arrival: &Arrival| {
            let count = self.transaction_count.get() + usize::from(*arrival == Arrival::Committed(0));
            self.transaction_count.set(count);
            count
        };
        let (what, number) = (format!("transaction {number}"), number.to_string());
        let is_it = |arrival: &Arrival, replica: &tidegate_integration_tests::Replica| {
            counted(arrival);
            let row = replica.table_row("public.item", &[COUNTER.to_string()]);
            row.is_some_and(|row| row["body"].as_ref() == Some(&number))
        };
        self.copier.until(&what, is_it).await.map(drop)
    }
}

/// All who join, each from a snapshot of its own.
struct Joiners {
    /// They take one thing of what comes between two transactions.
    slow: Vec<Copier>,
    reading: Vec<Copier>,
}

impl Joiners {
    fn new(server: &Server) -> Self {
        let of = |subscription| Copier::of(&server.endpoint(), subscription, Start::Snapshot);
        let slow = (0..SLOW).map(|_| of(subscription().credit_bytes(64 << 10))).collect();
        Joiners { slow, reading: (0..READING).map(|_| of(subscription())).collect() }
    }

    async fn receive(&mut self, number: usize) -> Result<()> {
        for slow in &mut self.slow {
            slow.next().await?;
        }
        // One after the other, throughout.
        if let Some(reading) = self.reading.get_mut(number * READING / TRANSACTIONS)
            && reading.replica.table("public.item").is_empty()
        {
            reading.until_snapshot_end().await?;
        }
        Ok(())
    }
}

fn subscription() -> Subscription {
    Subscription::shape(Shape::of("item").matching(CONDITION))
}

async fn theirs(database: &Database, condition: &str) -> Result<HeldTable> {
    held_by_postgres(database, &format!("(select * from item where {condition}) t"), &["id"]).await
}

/// Those who are there: the first is of a session of its own, in which others join later.
struct Residents {
    session: RawSession,
    others: Vec<Resident>,
}

const FIRST: u32 = 1;

impl Residents {
    async fn join(server: &Server) -> Result<Self> {
        let mut session = RawSession::open(&server.endpoint()).await?;
        session.subscribe(from_snapshot(FIRST, vec![shape("item", CONDITION)])).await?;
        session.until_exact(FIRST).await?;
        let of_table = Subscription::tables(["item"]);
        let others = vec![Resident::of(server, subscription()).await?, Resident::of(server, of_table).await?];
        Ok(Residents { session, others })
    }

    /// Others join, in the session of the first, whom nothing is granted but a byte.
    async fn are_joined_by_silent_ones(&mut self) -> Result<()> {
        for subscription in FIRST + 1..=FIRST + SILENT {
            let silent = from_snapshot(subscription, vec![shape("item", CONDITION)]);
            self.session.subscribe(Subscribe { credit_bytes: 1, ..silent }).await?;
        }
        Ok(())
    }

    async fn receive(&mut self, number: usize) -> Result<()> {
        let body = number.to_string();
        let has_it = |copy: &crate::raw_session::RawCopy| copy.row(0, COUNTER).is_some_and(|row| row.body == body);
        self.session.until(FIRST, (&format!("transaction {number}"), has_it)).await?;
        for resident in &mut self.others {
            resident.receive(number).await?;
        }
        Ok(())
    }

    /// Each transaction has come once, and the rows are those that PostgreSQL has.
    async fn are_exact(&self, database: &Database) -> Result<()> {
        let first = self.session.copy(FIRST)?;
        ensure!(first.transaction_count == TRANSACTIONS, "{} transactions came", first.transaction_count);
        let select = format!("select * from item where {CONDITION}");
        must_equal_select(&first.rows(0), database, &select).await?;
        for (resident, condition) in self.others.iter().zip([CONDITION, "true"]) {
            let count = resident.transaction_count.get();
            ensure!(count == TRANSACTIONS, "{condition}: {count} transactions came");
            must_equal(condition, &resident.copier.replica.table("public.item"), &theirs(database, condition).await?)?;
        }
        Ok(())
    }

    /// What was sent to those who grant nothing, at most.
    async fn sent_to_silent_ones(&mut self) -> Result<u64> {
        let mut most = 0;
        for subscription in FIRST + 1..=FIRST + SILENT {
            let has_begun = |copy: &crate::raw_session::RawCopy| copy.snapshot.is_some();
            let copy = self.session.until(subscription, ("its begin", has_begun)).await?;
            ensure!(!copy.is_exact && copy.error.is_none(), "{:?}", copy.error);
            most = most.max(copy.credited_bytes);
        }
        Ok(most)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_joiners_slow_nobody_who_is_there_and_hold_no_memory() -> Result<()> {
    let (database, server) = served().await?;
    let mut residents = Residents::join(&server).await?;
    let before = server.process()?.memory("VmRSS")?;
    let mut joiners = Joiners::new(&server);
    residents.are_joined_by_silent_ones().await?;
    for number in 1..=TRANSACTIONS {
        database.execute(&transaction(number)).await?;
        residents.receive(number).await?;
        joiners.receive(number).await?;
    }
    residents.are_exact(&database).await?;
    let sent = residents.sent_to_silent_ones().await?;
    ensure!(sent <= OVERDRAWN_BYTES_MAX, "{sent} bytes were sent for a byte of credit");
    let grown = server.process()?.memory("VmHWM")?.saturating_sub(before);
    println!("the server has grown by {} KiB, and sent {sent} bytes at most for a byte of credit", grown >> 10);
    ensure!(grown < GROWTH_BYTES_MAX, "the server has grown by {} MiB", grown >> 20);

    // Whoever reads then has it all.
    let all = theirs(&database, CONDITION).await?;
    for copier in joiners.reading.iter_mut().chain(joiners.slow.iter_mut().take(2)) {
        if copier.replica.table("public.item") != all {
            copier.until("all", |_, replica| replica.table("public.item") == all).await?;
        }
    }
    let last = FIRST + SILENT;
    residents.session.grant(last, crate::raw_session::AMPLE_CREDIT_BYTES).await?;
    let number = TRANSACTIONS.to_string();
    let session = &mut residents.session;
    let has_all = |copy: &crate::raw_session::RawCopy| {
        copy.is_exact && copy.row(0, COUNTER).is_some_and(|row| row.body == number)
    };
    let copy = session.until(last, ("all", has_all)).await?;
    must_equal_select(&copy.rows(0), &database, &format!("select * from item where {CONDITION}")).await.context("late")
}
