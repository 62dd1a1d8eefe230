//! A subscriber that keeps account of what it receives, and can be dropped and taken up again by its token.
//!
//! Only transactions whose commit was received are in the account, as a program that processes transactions would have it;
//! the token is the last commit's. Ordinals and the position of the commit are checked on the way.

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use serde_json::{Map, Value as Json};
use tidegate_client::{Change as Received, Client, Event, OldKind, Op, ResetReason, Start, Subscription, Token};
use tokio::sync::watch;

use crate::{
    History,
    history::{self, Change, Row, Transaction, Value, shorten},
};

/// Why a recording ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// What was waited for has arrived.
    Arrived,
    /// The server says that continuity is lost.
    Reset(ResetReason, String),
}

/// A subscriber and its account.
#[derive(Debug)]
pub struct Recorder {
    endpoint: String,
    source: String,
    client: Option<Client>,
    tables: Vec<String>,
    token: Option<Token>,
    open: Option<Transaction>,
    history: History,
    committed: watch::Sender<usize>,
}

impl Recorder {
    /// Of every table, from the oldest change on.
    #[must_use]
    pub fn new(endpoint: String) -> Self {
        Recorder {
            endpoint,
            source: String::new(),
            client: None,
            tables: Vec::new(),
            token: None,
            open: None,
            history: History::default(),
            committed: watch::Sender::new(0),
        }
    }

    /// Of this source; needed where the server has several.
    #[must_use]
    pub fn of_source(mut self, source: &str) -> Self {
        source.clone_into(&mut self.source);
        self
    }

    /// Through this client, such as one with TLS.
    #[must_use]
    pub fn through(mut self, client: Client) -> Self {
        self.client = Some(client);
        self
    }

    /// Of these tables only.
    #[must_use]
    pub fn of_tables(mut self, tables: &[&str]) -> Self {
        self.tables = tables.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// What was received.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Where it would go on.
    #[must_use]
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Counts the transactions as they are received.
    #[must_use]
    pub fn committed(&self) -> watch::Receiver<usize> {
        self.committed.subscribe()
    }

    /// Receives until a row with this text in its column `name` has been inserted into `marker`; other than that, only
    /// a reset ends it.
    ///
    /// # Errors
    /// The subscription fails for good, or breaks a promise of the stream.
    pub async fn until_marker(&mut self, name: &str) -> Result<Ended> {
        self.until(|transaction| transaction.changes.iter().any(|change| is_marker(change, name))).await
    }

    /// Receives until a transaction for which `arrived` holds; resumes where the last call ended.
    ///
    /// # Errors
    /// As above.
    pub async fn until(&mut self, mut arrived: impl FnMut(&Transaction) -> bool) -> Result<Ended> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => connected(&self.endpoint).await?,
        };
        let start = self.token.clone().map_or(Start::Earliest, Start::Token);
        let subscription = Subscription::tables(self.tables.clone()).source(self.source.clone()).from(start);
        let mut events = client.subscribe(subscription);
        // What a dropped subscription had received of a transaction comes again.
        self.open = None;
        while let Some(event) = events.next().await {
            match event? {
                Event::Begin { position, commit_time, xid, .. } => {
                    ensure!(self.open.is_none(), "a transaction begins within another");
                    let commit_time_us = commit_time.seconds * 1_000_000 + i64::from(commit_time.nanos) / 1_000;
                    let commit_time_us = if xid == 0 { 0 } else { commit_time_us };
                    self.open = Some(Transaction { lsn: position.lsn, commit_time_us, xid, changes: Vec::new() });
                }
                Event::Change(change) => {
                    let open = self.open.as_mut().context("a change outside of transactions")?;
                    ensure!(change.position.lsn == open.lsn, "a change with another position than its transaction");
                    open.changes.push(account(&change)?);
                }
                Event::Commit { token } => {
                    let transaction = self.open.take().context("a commit without a begin")?;
                    self.token = Some(token);
                    let done = arrived(&transaction);
                    self.history.push(transaction);
                    self.committed.send_modify(|count| *count += 1);
                    if done {
                        return Ok(Ended::Arrived);
                    }
                }
                Event::Abort => self.open = None,
                Event::Progress { token, .. } => {
                    // Within a large transaction it tells that the connection is alive, and of what came before.
                    let before = |open: &Transaction| token.position().lsn < open.lsn;
                    ensure!(self.open.as_ref().is_none_or(before), "progress past a transaction that is not complete");
                    self.token = Some(token);
                }
                Event::Reset { reason, detail } => return Ok(Ended::Reset(reason, detail)),
                Event::SnapshotBegin { .. } | Event::SnapshotEnd { .. } | Event::SnapshotAbandoned { .. } => {}
                Event::Opened { .. }
                | Event::Preparing { .. }
                | Event::RowType(_)
                | Event::Drain { .. }
                | Event::Interrupted { .. } => {}
            }
        }
        bail!("the subscription ended without a reason")
    }
}

/// The server may be down at this moment, as it is on purpose in some tests.
async fn connected(endpoint: &str) -> Result<Client> {
    crate::within("the server to answer", || async { Ok(Client::connect(endpoint).await.ok()) }).await
}

fn is_marker(change: &Change, name: &str) -> bool {
    let Row::Full(columns) = &change.row else { return false };
    change.what == "insert public.marker" && columns.iter().any(|(_, value)| *value == Value::Text(name.to_owned()))
}

/// The change in the oracle's form.
fn account(change: &Received) -> Result<Change> {
    let what = match (change.op, change.table()) {
        (Op::Message, _) => {
            let message = change.message.as_ref().context("a message without content")?;
            format!("message {} {}", message.prefix, shorten(&crate::hex(&message.content)))
        }
        (Op::Truncate, Some(table)) => {
            let truncate = change.truncate.unwrap_or_default();
            let cascade = if truncate.cascade { " cascade" } else { "" };
            format!("truncate{cascade}{} {table}", if truncate.restart_identity { " restart" } else { "" })
        }
        (op, Some(table)) => format!("{op} {table}"),
        (op, None) => bail!("{op} without a table"),
    };
    let unchanged: Vec<&str> = change.unchanged_columns().collect();
    let row = match change.row_json()? {
        Some(row) => Row::Full(columns(change, &row, &unchanged)?),
        None => Row::None,
    };
    let old = change.old_json()?.unwrap_or_default();
    let old = match change.old_kind {
        OldKind::None => Row::None,
        OldKind::Key => {
            Row::Key(old.iter().map(|(name, value)| Ok((name.clone(), text(value)?))).collect::<Result<_>>()?)
        }
        OldKind::Full => Row::Full(columns(change, &old, &[])?),
    };
    Ok(Change { position: change.position.to_string(), ordinal: change.position.ordinal, what, row, old })
}

/// The columns in the table's order; those that JSON leaves out are unchanged.
fn columns(change: &Received, row: &Map<String, Json>, unchanged: &[&str]) -> Result<Vec<(String, Value)>> {
    let row_type = change.row_type.as_ref().context("a row without a row type")?;
    let value = |name: &str| match row.get(name) {
        Some(value) => text(value),
        None if unchanged.contains(&name) => Ok(Value::Unchanged),
        None => bail!("column {name} is neither there nor unchanged"),
    };
    row_type.columns().iter().map(|column| Ok((column.name.clone(), value(&column.name)?))).collect()
}

/// PostgreSQL's text of the types that these tests use.
fn text(value: &Json) -> Result<Value> {
    Ok(match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Text(if *value { "t" } else { "f" }.to_owned()),
        Json::Number(value) => Value::Text(value.to_string()),
        Json::String(value) => Value::Text(history::shorten(value)),
        Json::Array(_) | Json::Object(_) => bail!("a value of a type that these tests do not use"),
    })
}
