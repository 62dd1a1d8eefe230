//! A subscriber's copy of tables, kept as the guide tells programs to: reads, inserts and updates are upserts by key, a field that
//! an update does not send keeps the value that it has, deletes and truncates take away, and a snapshot's begin starts afresh.
//!
//! A transaction counts when its commit has been received. A field without a value is tolerated until the snapshot's end. Of a table
//! without a key it counts how often each row is there, which until then may be below zero.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value as Json};
use tidegate_client::{
    Change, Changes, Client, ClientError, Event, Op, Position, ResetReason, ShapeRow, ShapeRows, Start, Subscription,
    Token,
};
use tidegate_proto::v1::{Column, RowType};
use tokio_stream::StreamExt as _;

use crate::{Database, history::shorten, within};

/// Column and value, as text; NULL is no value.
pub type HeldRow = BTreeMap<String, Option<String>>;
/// By key, its values in the order of the columns' names.
pub type HeldTable = BTreeMap<Vec<String>, HeldRow>;

/// How often each row of a table without a key is there.
pub type RowCounts = BTreeMap<HeldRow, i64>;

/// What a program holds of tables, by `schema.table`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replica {
    /// By `pg_class.oid` and selection, with the newest row type.
    tables: BTreeMap<(u32, u32), (RowType, HeldTable)>,
    /// The table that each name meant last.
    names: BTreeMap<String, (u32, u32)>,
    /// Of tables without a key.
    counts: BTreeMap<String, RowCounts>,
    /// Reads that were received, of any snapshot.
    pub read_count: u64,
    /// How often the snapshot has voided what was received of a table without a key.
    pub void_count: u64,
}

/// What a commit did to the copy: table and key.
#[derive(Debug)]
pub enum Touched {
    /// This row.
    Row(String, Vec<String>),
    /// Every row.
    Table(String),
    /// So many more of this row, of a table without a key.
    Counted(String, HeldRow, i64),
}

/// What ends a stretch of receiving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A snapshot's begin.
    Begun(u32),
    /// A transaction, or a chunk of the snapshot with this number.
    Committed(u32),
    /// A snapshot's end: the copy is exact.
    Ended(u32),
    /// A snapshot of new tables was given up, for this reason.
    Abandoned(u32, String),
    /// Nothing is missing up to the token's position.
    Progress,
    /// Continuity is lost.
    Reset(ResetReason, String),
}

impl Replica {
    /// A table's rows; none where nothing was received of it.
    #[must_use]
    pub fn table(&self, name: &str) -> HeldTable {
        self.held(name).cloned().unwrap_or_default()
    }

    /// One row.
    #[must_use]
    pub fn table_row(&self, name: &str, key: &[String]) -> Option<HeldRow> {
        self.held(name)?.get(key).cloned()
    }

    fn held(&self, name: &str) -> Option<&HeldTable> {
        self.tables.get(self.names.get(name)?).map(|(_, table)| table)
    }

    /// These tables are read anew. One that is called otherwise by now keeps its rows, under a name that is told later.
    fn starts_afresh(&mut self, tables: &[(String, u32)]) {
        let is_meant = |name: &str| tables.iter().any(|(table, _)| of_selection(name) == table);
        self.counts.retain(|name, _| !is_meant(name));
        self.names.retain(|name, _| !is_meant(name));
        self.tables.retain(|(table_oid, _), _| tables.iter().all(|(_, oid)| oid != table_oid));
        if self.tables.is_empty() && self.counts.is_empty() {
            *self = Replica::default();
        }
    }

    /// How often each row of a table without a key is there; none where nothing was received of it.
    #[must_use]
    pub fn counts(&self, name: &str) -> RowCounts {
        self.counts.get(name).cloned().unwrap_or_default()
    }

    /// Adds up what happens to a table without a key.
    fn count(&mut self, name: String, change: &Change) -> Result<Vec<Touched>> {
        let counts = self.counts.entry(name.clone()).or_default();
        let old = || values(change.old_json()?).context("the old row");
        let steps = match change.op {
            Op::Truncate => {
                counts.clear();
                return Ok(vec![Touched::Table(name)]);
            }
            Op::Read | Op::Insert => vec![(values(change.row_json()?)?, 1)],
            Op::Delete => vec![(old()?, -1)],
            Op::Update => {
                let old = old()?;
                let mut row = values(change.row_json()?)?;
                for column in change.unchanged_columns() {
                    row.insert(column.to_owned(), old.get(column).cloned().context("an old row that is not whole")?);
                }
                vec![(old, -1), (row, 1)]
            }
            Op::Message => Vec::new(),
        };
        self.read_count += u64::from(change.op == Op::Read);
        for (row, count) in &steps {
            *counts.entry(row.clone()).or_default() += count;
        }
        counts.retain(|_, count| *count != 0);
        Ok(steps.into_iter().map(|(row, count)| Touched::Counted(name.clone(), row, count)).collect())
    }

    fn apply(&mut self, change: &Change) -> Result<Vec<Touched>> {
        let (name, row_type) = match (change.table(), &change.row_type) {
            (Some(name), Some(row_type)) => (selected(name, change.selection), row_type.proto()),
            _ => return Ok(Vec::new()),
        };
        if is_keyless(change) {
            return self.count(name, change);
        }
        let held = (row_type.table_oid, change.selection);
        // A table that has come to be called otherwise is not meant by its old name any more.
        self.names.retain(|of, meant| *meant != held || *of == name);
        self.names.insert(name.clone(), held);
        let (known, table) = self.tables.entry(held).or_insert_with(|| (row_type.clone(), HeldTable::new()));
        if known.row_type != row_type.row_type {
            *table = described(std::mem::take(table), known, row_type);
            known.clone_from(row_type);
        }
        match change.op {
            Op::Truncate => {
                table.clear();
                return Ok(vec![Touched::Table(name)]);
            }
            Op::Delete => {
                let key = key(change.key_json()?)?;
                table.remove(&key);
                return Ok(vec![Touched::Row(name, key)]);
            }
            Op::Read => self.read_count += 1,
            Op::Insert | Op::Update | Op::Message => {}
        }
        let key_now = key(change.key_json()?)?;
        let mut touched = vec![Touched::Row(name.clone(), key_now.clone())];
        let key_before = change.old_key_json()?.map(|old| key(Some(old))).transpose()?.filter(|old| *old != key_now);
        let before = match key_before.filter(|_| change.op == Op::Update) {
            Some(old) => {
                let before = table.remove(&old);
                touched.push(Touched::Row(name, old));
                before
            }
            None => table.get(&key_now).cloned(),
        };
        let mut row: HeldRow = HeldRow::new();
        row.extend(values(change.row_json()?)?);
        for column in change.unchanged_columns() {
            if let Some(value) = before.as_ref().and_then(|before| before.get(column)) {
                row.insert(column.to_owned(), value.clone());
            }
        }
        table.insert(key_now, row);
        Ok(touched)
    }
}

/// What a table's copy is called that is of a further selection: the first one's has the table's name.
#[must_use]
pub fn selected(table: &str, selection: u32) -> String {
    if selection == 0 { table.to_owned() } else { format!("{table} of selection {selection}") }
}

/// The table's name in that of a copy.
fn of_selection(name: &str) -> &str {
    name.split_once(" of selection ").map_or(name, |(table, _)| table)
}

/// Rows under another row type: a column is known by its field, and one that is new is null.
fn described(rows: HeldTable, known: &RowType, row_type: &RowType) -> HeldTable {
    // Numbers are a message's own, and a renamed table has another one.
    let is_renamed = known.message != row_type.message;
    let is_same = |was: &Column, is: &Column| if is_renamed { was.name == is.name } else { was.field == is.field };
    let describe = |before: HeldRow| {
        let was = |is: &Column| known.columns.iter().find(|was| is_same(was, is));
        let value = |is: &Column| before.get(&was(is)?.name).cloned().flatten();
        let row: HeldRow = row_type.columns.iter().map(|column| (column.name.clone(), value(column))).collect();
        let key = row_type.columns.iter().filter(|column| column.key).map(|column| (&column.name, value(column)));
        // A key of columns that are new cannot be known yet.
        let key = key.collect::<BTreeMap<_, _>>().into_values().collect::<Option<Vec<_>>>()?;
        Some((key, row))
    };
    rows.into_values().filter_map(describe).collect()
}

fn is_keyless(change: &Change) -> bool {
    change.row_type.as_ref().is_some_and(|row_type| row_type.is_keyless())
}

fn values(row: Option<Map<String, Json>>) -> Result<HeldRow> {
    row.context("a change without a row")?.into_iter().map(|(column, value)| Ok((column, text(&value)?))).collect()
}

fn key(key: Option<Map<String, Json>>) -> Result<Vec<String>> {
    let key = key.context("a row without a key")?;
    let sorted: BTreeMap<_, _> = key.into_iter().collect();
    sorted.values().map(|value| text(value)?.context("NULL in a key")).collect()
}

fn text(value: &Json) -> Result<Option<String>> {
    Ok(Some(match value {
        Json::Null => return Ok(None),
        Json::Bool(value) => if *value { "t" } else { "f" }.to_owned(),
        Json::Number(value) => value.to_string(),
        Json::String(value) => shorten(value),
        Json::Array(_) => shorten(&value.to_string()),
        Json::Object(_) => bail!("a value of a type that these tests do not use"),
    }))
}

/// The rows that a handle on a shape holds, by key.
///
/// # Errors
/// A row cannot be read.
pub fn held_by_shape(rows: &ShapeRows) -> Result<HeldTable> {
    let held = |row: &ShapeRow| {
        let is_key = |name: &String| row.row_type().column(name).is_some_and(|column| column.key);
        let values = values(Some(row.json()?))?;
        let key = values.iter().filter(|(name, _)| is_key(name));
        let key = key.map(|(_, value)| value.clone().context("NULL in a key")).collect::<Result<_>>()?;
        Ok((key, values))
    };
    rows.iter().map(held).collect()
}

/// A table's rows as PostgreSQL has them, by key. It may be a subquery with a name.
///
/// # Errors
/// The query fails.
pub async fn held_by_postgres(database: &Database, table: &str, key: &[&str]) -> Result<HeldTable> {
    let query = format!("select * from {table} order by {}", key.join(", "));
    let mut rows = HeldTable::new();
    for message in database.client().simple_query(&query).await? {
        let tokio_postgres::SimpleQueryMessage::Row(row) = message else { continue };
        let names = row.columns().iter().map(|column| column.name().to_owned());
        let held: HeldRow = names.enumerate().map(|(at, name)| (name, row.get(at).map(shorten))).collect();
        let mut key: Vec<&str> = key.to_vec();
        key.sort_unstable();
        let key = key.iter().map(|column| held[*column].clone().context("NULL in a key")).collect::<Result<_>>()?;
        rows.insert(key, held);
    }
    Ok(rows)
}

/// How often PostgreSQL has each row of a table.
///
/// # Errors
/// The query fails.
pub async fn counted_by_postgres(database: &Database, table: &str) -> Result<RowCounts> {
    let mut counts = RowCounts::new();
    for message in database.client().simple_query(&format!("select * from {table}")).await? {
        let tokio_postgres::SimpleQueryMessage::Row(row) = message else { continue };
        let names = row.columns().iter().map(|column| column.name().to_owned());
        let held: HeldRow = names.enumerate().map(|(at, name)| (name, row.get(at).map(shorten))).collect();
        *counts.entry(held).or_default() += 1;
    }
    Ok(counts)
}

/// Is each row there as often?
///
/// # Errors
/// The first rows that differ.
pub fn must_count_equal(what: &str, ours: &RowCounts, theirs: &RowCounts) -> Result<()> {
    let rows: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let count = |counts: &RowCounts, row: &HeldRow| counts.get(row).copied().unwrap_or(0);
    let differs: Vec<_> = rows.into_iter().filter(|row| count(ours, row) != count(theirs, row)).collect();
    let show = |row: &&HeldRow| format!("{row:?}: held {} times, is there {}", count(ours, row), count(theirs, row));
    let first: Vec<String> = differs.iter().take(4).map(show).collect();
    ensure!(differs.is_empty(), "{what}: {} of {} rows differ:\n  {}", differs.len(), theirs.len(), first.join("\n  "));
    Ok(())
}

/// Are the copies the same?
///
/// # Errors
/// The first rows that differ.
pub fn must_equal(what: &str, ours: &HeldTable, theirs: &HeldTable) -> Result<()> {
    let keys: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let differs: Vec<_> = keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key)).collect();
    let show = |key: &&Vec<String>| format!("{key:?}\n   held {:?}\n   is   {:?}", ours.get(*key), theirs.get(*key));
    let first: Vec<String> = differs.iter().take(4).map(show).collect();
    ensure!(differs.is_empty(), "{what}: {} of {} rows differ:\n  {}", differs.len(), theirs.len(), first.join("\n  "));
    Ok(())
}

/// A subscriber that keeps a copy.
#[derive(Debug)]
pub struct Copier {
    endpoint: String,
    subscription: Subscription,
    events: Option<Changes>,
    start: Start,
    open: Vec<Change>,
    open_of: u32,
    /// What it holds.
    pub replica: Replica,
    /// Up to where.
    pub position: Position,
    /// What the last commit touched.
    pub touched: Vec<Touched>,
}

impl Copier {
    /// Of these tables; of all where there are none.
    #[must_use]
    pub fn new(endpoint: &str, tables: &[&str], start: Start) -> Self {
        Self::of(endpoint, Subscription::tables(tables.iter().copied()), start)
    }

    /// Of what is subscribed to, from elsewhere than it says.
    #[must_use]
    pub fn of(endpoint: &str, subscription: Subscription, start: Start) -> Self {
        Copier {
            endpoint: endpoint.to_owned(),
            subscription,
            events: None,
            start,
            open: Vec::new(),
            open_of: 0,
            replica: Replica::default(),
            position: Position::ZERO,
            touched: Vec::new(),
        }
    }

    /// Receives also the snapshots that someone starts.
    #[must_use]
    pub fn with_snapshots(self) -> Self {
        Copier { subscription: self.subscription.snapshots(true), ..self }
    }

    /// From the next connection on, receives also the snapshots that someone starts, or does not.
    pub fn asks_for_snapshots(&mut self, asks: bool) {
        self.subscription = self.subscription.clone().snapshots(asks);
    }

    /// Ends the subscription: the next call goes on by token.
    pub fn drop_connection(&mut self) {
        self.events = None;
        self.open.clear();
    }

    /// The server is there now.
    pub fn moved_to(&mut self, endpoint: &str) {
        endpoint.clone_into(&mut self.endpoint);
    }

    /// Up to the next thing that has arrived.
    ///
    /// # Errors
    /// The subscription fails for good.
    pub async fn next(&mut self) -> Result<Arrival> {
        loop {
            let event = self.event().await?;
            match event {
                Event::Begin { snapshot, .. } => self.open_of = snapshot,
                Event::Change(change) => self.open.push(change),
                Event::Abort => self.open.clear(),
                Event::Commit { token } => {
                    self.touched.clear();
                    for change in std::mem::take(&mut self.open) {
                        // A keyed table's chunk holds what it corrects as well.
                        ensure!(change.op != Op::Read || self.open_of != 0, "a read in a transaction");
                        let voids = self.open_of != 0 && change.op == Op::Truncate;
                        ensure!(!voids || is_keyless(&change), "a truncate in a chunk of a table with a key");
                        self.replica.void_count += u64::from(voids);
                        self.touched.extend(self.replica.apply(&change)?);
                    }
                    self.is_at(token);
                    return Ok(Arrival::Committed(self.open_of));
                }
                Event::Progress { token, .. } => {
                    if self.open.is_empty() {
                        self.is_at(token);
                        return Ok(Arrival::Progress);
                    }
                }
                Event::SnapshotBegin { snapshot, tables, table_oids, partial, token, .. } => {
                    ensure!(tables.len() == table_oids.len(), "{} tables have {} OIDs", tables.len(), table_oids.len());
                    let tables = tables.into_iter().zip(table_oids);
                    let whole: Vec<_> = tables.filter(|(table, _)| !partial.contains(table)).collect();
                    self.replica.starts_afresh(&whole);
                    self.is_at(token);
                    return Ok(Arrival::Begun(snapshot));
                }
                Event::SnapshotEnd { snapshot, token } => {
                    self.is_at(token);
                    return Ok(Arrival::Ended(snapshot));
                }
                Event::SnapshotAbandoned { snapshot, detail, token } => {
                    self.is_at(token);
                    return Ok(Arrival::Abandoned(snapshot, detail));
                }
                Event::Reset { reason, detail } => return Ok(Arrival::Reset(reason, detail)),
                Event::Opened { .. }
                | Event::Preparing { .. }
                | Event::RowType(_)
                | Event::Drain { .. }
                | Event::Interrupted { .. } => {}
            }
        }
    }

    /// Up to what is wanted.
    ///
    /// # Errors
    /// It does not come within the deadline, which says what was waited for; or continuity is lost.
    pub async fn until(&mut self, what: &str, is_it: impl Fn(&Arrival, &Replica) -> bool) -> Result<Arrival> {
        let receiving = async {
            loop {
                match self.next().await? {
                    arrival if is_it(&arrival, &self.replica) => return Ok(arrival),
                    Arrival::Reset(reason, detail) => bail!("{reason:?}: {detail}"),
                    Arrival::Begun(_) | Arrival::Ended(_) | Arrival::Abandoned(..) => {}
                    Arrival::Committed(_) | Arrival::Progress => {}
                }
            }
        };
        let waited = tokio::time::timeout(crate::DEADLINE, receiving).await;
        waited.with_context(|| format!("{what}: not within {} s", crate::DEADLINE.as_secs()))?
    }

    /// Until the subscription is open: all that happens from now on arrives.
    ///
    /// # Errors
    /// As of `until`.
    pub async fn until_open(&mut self) -> Result<()> {
        self.until("an open subscription", |arrival, _| *arrival == Arrival::Progress).await.map(drop)
    }

    /// Up to the snapshot's end.
    ///
    /// # Errors
    /// As of `until`, or it is given up.
    pub async fn until_snapshot_end(&mut self) -> Result<u32> {
        let is_end = |arrival: &Arrival, _: &Replica| matches!(arrival, Arrival::Ended(_) | Arrival::Abandoned(..));
        match self.until("the snapshot's end", is_end).await? {
            Arrival::Ended(snapshot) => Ok(snapshot),
            other => bail!("abandoned: {other:?}"),
        }
    }

    /// Up to all that has been committed by now, asynchronous commits included.
    ///
    /// # Errors
    /// It does not come within the deadline, or continuity is lost.
    pub async fn until_caught_up(&mut self, database: &Database) -> Result<()> {
        let end = database.text("select pg_current_wal_insert_lsn()::text").await?.context("an LSN")?;
        let end: tidegate_model::Lsn = end.parse().ok().context("an LSN")?;
        // Brings what was committed to the disk, and the WAL beyond its end.
        database.execute("select pg_logical_emit_message(true, 'caught up', '')").await?;
        let receiving = async {
            while self.position.lsn < end.0 {
                if let Arrival::Reset(reason, detail) = self.next().await? {
                    bail!("{reason:?}: {detail}");
                }
            }
            Ok(())
        };
        tokio::time::timeout(crate::DEADLINE, receiving).await.context("the copy does not catch up")?
    }

    fn is_at(&mut self, token: Token) {
        self.position = token.position();
        self.start = Start::Token(token);
    }

    async fn event(&mut self) -> Result<Event, anyhow::Error> {
        loop {
            if let Some(events) = &mut self.events {
                let event: Result<Event, ClientError> = events.next().await.context("the subscription ended")?;
                return Ok(event?);
            }
            let client =
                within("the server to answer", || async { Ok(Client::connect(self.endpoint.as_str()).await.ok()) });
            let subscription = self.subscription.clone().from(self.start.clone());
            self.events = Some(client.await?.subscribe(subscription));
        }
    }
}
