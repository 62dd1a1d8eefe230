//! A seeded simulation of everything that a snapshot's exactness rests on: a PostgreSQL whose commits become visible late, a
//! stream that lags, reads at any moment, restarts of either side, and a subscriber whose state at SnapshotEnd must be the
//! table's, at that position, with nothing missing; with a key or, read under one snapshot, without.
//!
//! With a [`Flaw`] it must fail: that shows that it would notice.

mod postgres;
mod process;
mod subscriber;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tidegate_model::{Kind, Lsn, Position};

use self::{
    postgres::{Postgres, Record},
    process::{Nature, Process},
    subscriber::{Subscriber, Unit, units},
};

/// What a wrong design would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// As it is.
    None,
    /// A commit in the WAL is taken for visible.
    ByLsn,
    /// The confirmation passes what is not visible yet.
    NoFloor,
    /// Keys with gaps are not read again.
    NoGaps,
    /// Keys with gaps are forgotten in a restart.
    GapsForgotten,
    /// A mark voids what its snapshot does not see, and does not tell it again.
    NotToldAgain,
}

struct World {
    random: StdRng,
    postgres: Postgres,
    /// Of the first record that the connection has not sent.
    sent: usize,
    process: Process,
    /// The changelog.
    log: Vec<Unit>,
    durable_count: usize,
    confirmed_flush_lsn: Lsn,
    subscriber: Subscriber,
    nature: Nature,
}

impl World {
    fn new(seed: u64, (flaw, keyless): (Flaw, bool)) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let nature = Nature { flaw, keyless, small_limits: random.random_bool(0.3) };
        World {
            postgres: Postgres::new(&mut random),
            random,
            sent: 0,
            process: Process::start(&[], Lsn(0), nature),
            log: Vec::new(),
            durable_count: 0,
            confirmed_flush_lsn: Lsn(0),
            subscriber: Subscriber::new(keyless),
            nature,
        }
    }

    /// What happens in one step of the disturbed part.
    fn disturb(&mut self) {
        let random = &mut self.random;
        match random.random_range(0..100_u32) {
            0..30 => self.postgres.write(random),
            30..40 => self.postgres.commit(random),
            40..48 => self.postgres.end(random, true),
            48..50 => self.postgres.end(random, false),
            50..52 => {
                let message = random.random_bool(0.5);
                self.postgres.noise(message);
            }
            52..66 => self.deliver(),
            66..70 => self.keepalive(),
            70..74 => self.process.poll(&self.postgres),
            74..92 => self.process.step(&self.postgres, &mut self.random),
            92..96 => self.make_durable(),
            96 => self.restart(),
            97 => self.reconnect(),
            98 if self.nature.keyless => self.postgres.rewrite(),
            _ => {
                if self.postgres.insert_lsn > 1_000 && self.process.is_past_what_was_received() {
                    self.process.begin_snapshot();
                }
            }
        }
        self.take();
    }

    /// Everything goes well: the snapshot must end.
    fn settle(&mut self) -> bool {
        for _ in 0..2_000 {
            self.postgres.commit(&mut self.random);
            self.postgres.end(&mut self.random, true);
            self.process.poll(&self.postgres);
            self.deliver();
            self.keepalive();
            self.process.step(&self.postgres, &mut self.random);
            if self.process.is_past_what_was_received() {
                self.process.begin_snapshot();
            }
            self.take();
            if self.log.iter().any(|unit| unit.kind == Kind::SnapshotEnd) {
                return true;
            }
        }
        false
    }

    fn deliver(&mut self) {
        if let Some(record) = self.postgres.wal.get(self.sent) {
            self.sent += 1;
            self.process.record(record);
        }
    }

    /// All commits that end up to an LSN have been sent.
    fn keepalive(&mut self) {
        let next = self.postgres.wal.get(self.sent);
        let end = next.map_or(self.postgres.insert_lsn, Record::start_lsn);
        self.process.keepalive(Lsn(end));
    }

    /// What the process has emitted goes to the log; what does not recur is durable at once.
    fn take(&mut self) {
        for block in self.process.take_blocks() {
            for unit in units(&block) {
                assert!(self.log.last().is_none_or(|last| last.position < unit.position), "positions increase");
                let recurs = unit.cursor.is_none() && !matches!(unit.kind, Kind::SnapshotBegin | Kind::SnapshotEnd);
                self.log.push(unit);
                if !recurs {
                    self.durable_count = self.log.len();
                }
            }
        }
    }

    fn make_durable(&mut self) {
        self.durable_count = self.log.len();
        if let Some(last) = self.log.last() {
            self.confirmed_flush_lsn = self.process.confirm(last.position);
        }
    }

    fn restart(&mut self) {
        let kept = self.random.random_range(self.durable_count..=self.log.len());
        self.log.truncate(kept);
        self.durable_count = kept;
        self.process = Process::start(&self.log, self.confirmed_flush_lsn, self.nature);
        self.reconnect();
    }

    fn reconnect(&mut self) {
        self.process.connected(Lsn(self.postgres.insert_lsn));
        self.sent = self.postgres.wal.partition_point(|record| record.start_lsn() < self.confirmed_flush_lsn.0);
    }

    /// No message outside of transactions is lost, wherever chunks stand.
    fn check_messages(&self) -> Result<(), String> {
        for record in &self.postgres.wal[..self.sent] {
            match record {
                Record::Message { lsn }
                    if !self.log.iter().any(|unit| unit.position == Position::of_message(Lsn(*lsn))) =>
                {
                    return Err(format!("the message at {} is lost", Lsn(*lsn)));
                }
                Record::Message { .. } | Record::Commit { .. } => {}
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<bool, String> {
        self.subscriber.receive(&self.log, |lsn| self.postgres.state_at(lsn))
    }
}

fn run(seed: u64, (flaw, keyless): (Flaw, bool)) -> Result<(), String> {
    let mut world = World::new(seed, (flaw, keyless));
    let step_count = world.random.random_range(60..400_u32);
    for _ in 0..step_count {
        world.disturb();
        if world.random.random_bool(0.1) && world.receive()? {
            return Ok(());
        }
    }
    if !world.settle() {
        return Err("the snapshot does not end".to_owned());
    }
    if !world.receive()? {
        return Err("its end is in the log, and the subscriber has passed it".to_owned());
    }
    world.check_messages()
}

fn must_hold(seeds: u64, keyless: bool) {
    for seed in 0..seeds {
        if let Err(problem) = run(seed, (Flaw::None, keyless)) {
            panic!("seed {seed}: {problem}");
        }
    }
}

fn must_be_found(flaws: &[Flaw], keyless: bool) {
    for flaw in flaws {
        let found = (0..8_000).find(|seed| run(*seed, (*flaw, keyless)).is_err());
        println!("{flaw:?}: found by seed {found:?}");
        assert!(found.is_some(), "{flaw:?} is not found");
    }
}

#[test]
fn a_snapshot_is_exact_whatever_happens_when() {
    must_hold(10_000, false);
}

#[test]
fn a_snapshot_of_a_table_without_a_key_is_exact_whatever_happens_when() {
    must_hold(10_000, true);
}

#[test]
fn every_flaw_is_found() {
    must_be_found(&[Flaw::ByLsn, Flaw::NoFloor, Flaw::NoGaps, Flaw::GapsForgotten], false);
    must_be_found(&[Flaw::ByLsn, Flaw::NoFloor, Flaw::NotToldAgain], true);
}
