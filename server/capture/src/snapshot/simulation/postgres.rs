//! A model of PostgreSQL: transactions that write under row locks, commit at a place in the WAL, and become visible arbitrarily
//! later; a lock is released only then.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_model::Visibility;

/// Keys are 0 up to this.
pub(super) const KEYS: i32 = 8;

/// A row but for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) small: u32,
    pub(super) toasted: u32,
}

/// All rows by key.
pub(super) type Rows = BTreeMap<i32, Row>;

/// A change, as it is in the WAL.
#[derive(Clone, Debug)]
pub(super) enum Write {
    /// `sent`: with the TOASTed value; without it, the row has entered a row filter.
    Insert {
        key: i32,
        row: Row,
        sent: bool,
    },
    /// `sent`: the TOASTed value was changed.
    Update {
        old: i32,
        before: Row,
        key: i32,
        row: Row,
        sent: bool,
    },
    Delete {
        key: i32,
        before: Row,
    },
    Truncate,
}

impl Write {
    fn apply(&self, rows: &mut Rows) {
        match *self {
            Write::Insert { key, row, .. } => {
                assert!(rows.insert(key, row).is_none(), "a key is unique");
            }
            Write::Update { old, key, row, .. } => {
                rows.remove(&old).expect("what is updated exists");
                assert!(rows.insert(key, row).is_none(), "a key is unique");
            }
            Write::Delete { key, .. } => {
                rows.remove(&key).expect("what is deleted exists");
            }
            Write::Truncate => rows.clear(),
        }
    }
}

#[derive(Debug)]
struct Transaction {
    xid: u64,
    writes: Vec<Write>,
    locks: BTreeSet<i32>,
    exclusive: bool,
    committed: bool,
}

/// What the stream is made of.
#[derive(Clone, Debug)]
pub(super) enum Record {
    Commit { commit_lsn: u64, end_lsn: u64, xid: u32, writes: Vec<Write> },
    Message { lsn: u64 },
}

impl Record {
    pub(super) fn start_lsn(&self) -> u64 {
        match self {
            Record::Commit { commit_lsn, .. } => *commit_lsn,
            Record::Message { lsn } => *lsn,
        }
    }
}

#[derive(Debug)]
pub(super) struct Postgres {
    next_xid: u64,
    latest_completed: u64,
    pub(super) insert_lsn: u64,
    open: Vec<Transaction>,
    initial: Rows,
    visible: Rows,
    pub(super) wal: Vec<Record>,
    /// `relfilenode`.
    pub(super) storage: u32,
    value: u32,
}

impl Postgres {
    pub(super) fn new(random: &mut StdRng) -> Self {
        // Around the place where transaction ids without epoch wrap around.
        let next_xid = (1 << 32) - random.random_range(0..40_u64);
        let keys = (0..KEYS).filter(|_| random.random_bool(0.6));
        let initial: Rows = keys.map(|key| (key, Row { small: 1, toasted: 1_000 + key as u32 })).collect();
        Postgres {
            next_xid,
            latest_completed: next_xid - 1,
            insert_lsn: 800,
            open: Vec::new(),
            visible: initial.clone(),
            initial,
            wal: Vec::new(),
            storage: 0,
            value: 10_000,
        }
    }

    /// A transaction writes something, if no lock is in its way.
    pub(super) fn write(&mut self, random: &mut StdRng) {
        let writing: Vec<usize> = (0..self.open.len()).filter(|at| !self.open[*at].committed).collect();
        let at = if writing.len() < 3 && random.random_bool(0.5) {
            let transaction = Transaction {
                xid: self.next_xid,
                writes: Vec::new(),
                locks: BTreeSet::new(),
                exclusive: false,
                committed: false,
            };
            self.next_xid += 1;
            self.open.push(transaction);
            self.open.len() - 1
        } else {
            let Some(at) = writing.choose(random) else { return };
            *at
        };
        let others = || self.open.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, open)| open);
        if others().any(|other| other.exclusive) {
            return;
        }
        let is_free = |key: i32| others().all(|other| !other.locks.contains(&key));
        let mut rows = self.visible.clone();
        self.open[at].writes.iter().for_each(|write| write.apply(&mut rows));
        let key = random.random_range(0..KEYS);
        let to = random.random_range(0..KEYS);
        if !is_free(key) {
            return;
        }
        self.value += 1;
        let (mut row, sent) = (Row { small: self.value, toasted: self.value }, random.random_bool(0.4));
        let write = match rows.get(&key) {
            _ if random.random_bool(0.02) && others().all(|other| other.writes.is_empty()) => Write::Truncate,
            None => Write::Insert { key, row, sent: sent || random.random_bool(0.7) },
            Some(before) => {
                row.toasted = if sent { self.value } else { before.toasted };
                match random.random_range(0..10_u32) {
                    0..2 => Write::Delete { key, before: *before },
                    2..5 if !rows.contains_key(&to) && is_free(to) => {
                        Write::Update { old: key, before: *before, key: to, row, sent }
                    }
                    _ => Write::Update { old: key, before: *before, key, row, sent },
                }
            }
        };
        let transaction = &mut self.open[at];
        transaction.locks.insert(key);
        match &write {
            Write::Update { key, .. } => {
                transaction.locks.insert(*key);
            }
            Write::Truncate => transaction.exclusive = true,
            Write::Insert { .. } | Write::Delete { .. } => {}
        }
        transaction.writes.push(write);
    }

    /// A transaction commits: it is in the WAL, and not visible yet.
    pub(super) fn commit(&mut self, random: &mut StdRng) {
        let length = 8 * random.random_range(1..4_u64);
        let mut writing: Vec<&mut Transaction> = self.open.iter_mut().filter(|open| !open.committed).collect();
        if writing.is_empty() {
            return;
        }
        let at = random.random_range(0..writing.len());
        let transaction = &mut writing[at];
        transaction.committed = true;
        let (commit_lsn, end_lsn) = (self.insert_lsn, self.insert_lsn + length);
        self.insert_lsn = end_lsn;
        let (xid, writes) = (transaction.xid as u32, transaction.writes.clone());
        self.wal.push(Record::Commit { commit_lsn, end_lsn, xid, writes });
    }

    /// A transaction that has committed becomes visible, or one that has not is rolled back.
    pub(super) fn end(&mut self, random: &mut StdRng, committed: bool) {
        let ending: Vec<usize> = (0..self.open.len()).filter(|at| self.open[*at].committed == committed).collect();
        let Some(at) = ending.choose(random) else { return };
        let transaction = self.open.remove(*at);
        self.latest_completed = self.latest_completed.max(transaction.xid);
        if committed {
            self.storage += u32::from(transaction.exclusive);
            transaction.writes.iter().for_each(|write| write.apply(&mut self.visible));
        }
    }

    /// VACUUM FULL, if no lock is in its way.
    pub(super) fn rewrite(&mut self) {
        self.storage += u32::from(self.open.iter().all(|open| open.locks.is_empty()));
    }

    /// Something else is written to the WAL.
    pub(super) fn noise(&mut self, message: bool) {
        if message {
            self.wal.push(Record::Message { lsn: self.insert_lsn });
        }
        self.insert_lsn += 16;
    }

    /// May a query take ACCESS SHARE?
    pub(super) fn is_readable(&self) -> bool {
        self.open.iter().all(|open| !open.exclusive)
    }

    /// `pg_current_snapshot()`.
    pub(super) fn visibility(&self) -> Visibility {
        self.snapshot(|_| true)
    }

    /// What one would believe who takes every commit in the WAL for visible.
    pub(super) fn visibility_by_lsn(&self) -> Visibility {
        self.snapshot(|open| !open.committed)
    }

    fn snapshot(&self, is_hidden: impl Fn(&Transaction) -> bool) -> Visibility {
        let xmax = self.open.iter().filter(|open| !is_hidden(open)).map(|open| open.xid).max();
        let xmax = xmax.unwrap_or(0).max(self.latest_completed) + 1;
        let hidden = self.open.iter().filter(|open| open.xid < xmax && is_hidden(open)).map(|open| open.xid);
        let hidden: Vec<u64> = hidden.collect();
        let xmin = hidden.iter().min().unwrap_or(&xmax);
        let list: Vec<String> = hidden.iter().map(ToString::to_string).collect();
        format!("{xmin}:{xmax}:{}", list.join(",")).parse().expect("a snapshot")
    }

    /// What a query sees.
    pub(super) fn visible(&self) -> &Rows {
        &self.visible
    }

    /// The truth: every commit that ends up to here, and no other.
    pub(super) fn state_at(&self, lsn: u64) -> Rows {
        let mut rows = self.initial.clone();
        for record in &self.wal {
            match record {
                Record::Commit { end_lsn, writes, .. } if *end_lsn <= lsn => {
                    writes.iter().for_each(|write| write.apply(&mut rows));
                }
                Record::Commit { .. } | Record::Message { .. } => {}
            }
        }
        rows
    }
}
