//! A session without the client library: what it sends is what a test says, and what it receives is applied as the protocol's guide tells
//! programs to.
//!
//! Its copies are of tables `(id bigint primary key, shelf int, body text)`, with rows as the bytes that came. It deliberately shares nothing with
//! the library, digests of rows included.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, bail, ensure};
use prost::Message as _;
use sha2::{Digest, Sha256};
use tidegate_client::Position;
use tidegate_integration_tests::{DEADLINE, Database};
use tidegate_proto::v1::{
    Begin, Change, Difference, Grant, Holds, RowType, Selection, SessionRequest, SessionResponse, ShapeSelection,
    SnapshotBegin, Start, Subscribe, change::Op, changes_client::ChangesClient, event::What, selection,
    session_request::Request, session_response::Event, start,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Requests that wait to be sent.
const REQUESTS_MAX: usize = 1_000;
/// What a server may send without being granted more, where credit is not what is tested.
pub(crate) const AMPLE_CREDIT_BYTES: u64 = 256 << 20;

/// A stream, and what each of its subscriptions has received.
pub(crate) struct RawSession {
    requests: mpsc::Sender<SessionRequest>,
    responses: tonic::Streaming<SessionResponse>,
    pub(crate) copies: BTreeMap<u32, RawCopy>,
}

/// What one subscription holds, by selection.
#[derive(Default)]
pub(crate) struct RawCopy {
    row_types: HashMap<u32, RowType>,
    open: Vec<(u32, Change)>,
    rows: BTreeMap<u32, RawRows>,
    /// What the server was told.
    holds: Vec<Holds>,
    pub(crate) snapshot: Option<SnapshotBegin>,
    /// Its snapshot's end has come.
    pub(crate) is_exact: bool,
    /// Keys that were read, by selection.
    pub(crate) read: BTreeMap<u32, BTreeSet<i64>>,
    /// Of messages that use credit.
    pub(crate) credited_bytes: u64,
    /// Credit that the server was given.
    pub(crate) granted_bytes: u64,
    /// Where differences between definitions of its shapes have begun.
    pub(crate) differences: Vec<Position>,
    /// Transactions that were received whole.
    pub(crate) transaction_count: usize,
    token_prefix: String,
    position: String,
    /// Snapshots that have begun, its own and others.
    pub(crate) begun: BTreeSet<u32>,
    /// And those that have ended.
    pub(crate) ended: BTreeSet<u32>,
    /// How it has ended.
    pub(crate) error: Option<(i32, String)>,
}

/// Rows by their keys.
pub(crate) type RawRows = BTreeMap<i64, RawRow>;

/// A row as it came.
#[derive(Clone)]
pub(crate) struct RawRow {
    /// What stands before it in a digest.
    head: Vec<u8>,
    bytes: Vec<u8>,
}

/// What is in it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Item {
    #[prost(int64, tag = "1")]
    pub(crate) id: i64,
    #[prost(int32, tag = "2")]
    pub(crate) shelf: i32,
    #[prost(string, tag = "3")]
    pub(crate) body: String,
}

/// The rows of a table that meet a condition.
pub(crate) fn shape(table: &str, condition: &str) -> Selection {
    let shape = ShapeSelection { table: table.to_owned(), r#where: condition.to_owned(), ..ShapeSelection::default() };
    Selection { what: Some(selection::What::Shape(shape)) }
}

/// From the rows of now.
pub(crate) fn from_snapshot(subscription: u32, selections: Vec<Selection>) -> Subscribe {
    let start = Some(Start { from: Some(start::From::At(start::Point::Snapshot.into())) });
    Subscribe { subscription, selections, start, credit_bytes: AMPLE_CREDIT_BYTES, ..Subscribe::default() }
}

impl RawSession {
    pub(crate) async fn open(endpoint: &str) -> Result<Self> {
        let mut client = ChangesClient::connect(endpoint.to_owned()).await?;
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let responses = client.session(ReceiverStream::new(queue)).await?.into_inner();
        Ok(RawSession { requests, responses, copies: BTreeMap::new() })
    }

    pub(crate) async fn subscribe(&mut self, subscribe: Subscribe) -> Result<()> {
        let (holds, granted_bytes) = (subscribe.holds.clone(), subscribe.credit_bytes);
        let copy = RawCopy { holds, granted_bytes, ..RawCopy::default() };
        self.copies.insert(subscribe.subscription, copy);
        self.send(Request::Subscribe(subscribe)).await
    }

    pub(crate) async fn grant(&mut self, subscription: u32, credit_bytes: u64) -> Result<()> {
        self.copies.entry(subscription).or_default().granted_bytes += credit_bytes;
        self.send(Request::Grant(Grant { subscription, credit_bytes })).await
    }

    async fn send(&self, request: Request) -> Result<()> {
        Ok(self.requests.send(SessionRequest { request: Some(request) }).await?)
    }

    pub(crate) fn copy(&self, subscription: u32) -> Result<&RawCopy> {
        self.copies.get(&subscription).with_context(|| format!("subscription {subscription}"))
    }

    /// Receives until something holds of a subscription.
    pub(crate) async fn until(
        &mut self,
        subscription: u32,
        (what, holds): (&str, impl Fn(&RawCopy) -> bool),
    ) -> Result<&RawCopy> {
        let receiving = async {
            while !holds(self.copy(subscription)?) {
                let response = self.responses.message().await?.context("the session ended")?;
                let credited = match &response.event {
                    Some(Event::Changes(_)) => response.encoded_len() as u64,
                    Some(_) | None => 0,
                };
                // Of the session as a whole, or of a subscription of before.
                let Some(copy) = self.copies.get_mut(&response.subscription) else { continue };
                copy.credited_bytes += credited;
                copy.take(response)?;
            }
            anyhow::Ok(())
        };
        let received = tokio::time::timeout(DEADLINE, receiving).await;
        received.with_context(|| format!("subscription {subscription}: {what} does not come"))??;
        self.copy(subscription)
    }

    /// Up to all that has been committed by now.
    pub(crate) async fn until_caught_up(&mut self, subscription: u32, database: &Database) -> Result<()> {
        let end = database.text("select pg_current_wal_insert_lsn()::text").await?.context("an LSN")?;
        let end: tidegate_model::Lsn = end.parse().ok().context("an LSN")?;
        // Brings the WAL beyond its end.
        database.execute("select pg_logical_emit_message(true, 'caught up', '')").await?;
        let has_all = |copy: &RawCopy| copy.position.parse().is_ok_and(|position: Position| position.lsn >= end.0);
        self.until(subscription, ("all that was committed", has_all)).await.map(drop)
    }

    pub(crate) async fn until_exact(&mut self, subscription: u32) -> Result<&RawCopy> {
        let copy =
            self.until(subscription, ("its snapshot's end", |copy| copy.is_exact || copy.error.is_some())).await?;
        ensure!(copy.is_exact, "{:?}", copy.error);
        Ok(copy)
    }
}

impl RawCopy {
    /// A selection's rows.
    pub(crate) fn rows(&self, selection: u32) -> RawRows {
        self.rows.get(&selection).cloned().unwrap_or_default()
    }

    /// One row.
    pub(crate) fn row(&self, selection: u32, id: i64) -> Option<Item> {
        self.rows.get(&selection)?.get(&id)?.item().ok()
    }

    /// Of the last commit, or progress.
    pub(crate) fn token(&self) -> String {
        format!("{}.{}", self.token_prefix, self.position)
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.token_prefix.is_empty() || self.error.is_some()
    }

    /// Nothing has begun that has not ended.
    pub(crate) fn is_between_transactions(&self) -> bool {
        self.open.is_empty()
    }

    fn begun(&mut self, begin: &Begin) -> Result<()> {
        let own = self.snapshot.as_ref().map(|own| own.snapshot);
        if begin.snapshot >= 1 << 31 && Some(begin.snapshot) != own {
            self.differences.push(begin.position.parse().ok().context("a position")?);
        }
        Ok(())
    }

    fn take(&mut self, response: SessionResponse) -> Result<()> {
        let selection = response.selection;
        match response.event.context("an event")? {
            Event::Opened(opened) => (self.token_prefix, self.position) = (opened.token_prefix, opened.position),
            Event::RowType(row_type) => drop(self.row_types.insert(row_type.row_type, row_type)),
            Event::SnapshotBegin(begin) => {
                self.begun.insert(begin.snapshot);
                self.begin(&begin.differences)?;
                self.snapshot = Some(begin);
            }
            Event::SnapshotEnd(end) => {
                self.ended.insert(end.snapshot);
                (self.is_exact, self.position) = (true, end.position);
            }
            Event::Changes(changes) => {
                for event in changes.events {
                    match event.what.context("an event")? {
                        What::Begin(begin) => {
                            ensure!(self.open.is_empty(), "a transaction within another");
                            self.begun(&begin)?;
                        }
                        What::Change(change) => self.open.push((selection, change)),
                        What::Commit(commit) => {
                            let open = std::mem::take(&mut self.open);
                            self.transaction_count += usize::from(open.iter().any(|(_, of)| of.op() != Op::Read));
                            open.into_iter().try_for_each(|(selection, change)| self.apply(selection, &change))?;
                            self.position = commit.position;
                            if !commit.token_prefix.is_empty() {
                                self.token_prefix = commit.token_prefix;
                            }
                        }
                    }
                }
            }
            Event::Progress(progress) => self.position = progress.position,
            Event::Error(status) => self.error = Some((status.code, status.message)),
            Event::Reset(reset) => bail!("a reset: {}", reset.detail),
            Event::Preparing(_) | Event::Drain(_) => {}
        }
        Ok(())
    }

    /// Rows are void that the snapshot replaces: all but those of the buckets that it keeps.
    fn begin(&mut self, differences: &[Difference]) -> Result<()> {
        let mut kept = BTreeMap::new();
        for Difference { selection, replaced } in differences {
            let holds = self.holds.iter().find(|holds| holds.selection == *selection);
            let holds = holds.with_context(|| format!("nothing was said of selection {selection}"))?;
            let count = holds.digests.len() / 8;
            ensure!(replaced.len() == count.div_ceil(8), "{} bytes for {count} buckets", replaced.len());
            let mut rows = self.rows(*selection);
            rows.retain(|id, _| !is_set(replaced, bucket(&holds.salt, *id, count)));
            kept.insert(*selection, rows);
        }
        self.rows = kept;
        Ok(())
    }

    fn apply(&mut self, selection: u32, change: &Change) -> Result<()> {
        ensure!(!change.continues && change.unchanged.is_empty(), "these rows are small and whole");
        let rows = self.rows.entry(selection).or_default();
        if !change.old.is_empty() {
            rows.remove(&Item::decode(&change.old[..])?.id);
        }
        if change.op() == Op::Delete {
            return Ok(());
        }
        let row_type = self.row_types.get(&change.row_type).context("a row type")?;
        let row = RawRow { head: head(row_type), bytes: change.row.to_vec() };
        let id = row.item()?.id;
        if change.op() == Op::Read {
            self.read.entry(selection).or_default().insert(id);
        }
        rows.insert(id, row);
        Ok(())
    }

    /// The same rows, told to a server by another copy.
    pub(crate) fn holding(rows: &[(u32, &RawRows)], holds: &[Holds]) -> Self {
        let rows = rows.iter().map(|(selection, rows)| (*selection, (*rows).clone())).collect();
        RawCopy { rows, holds: holds.to_vec(), ..RawCopy::default() }
    }
}

impl RawRow {
    pub(crate) fn item(&self) -> Result<Item> {
        Ok(Item::decode(&self.bytes[..])?)
    }
}

/// Are these the rows of the query?
pub(crate) async fn must_equal_select(rows: &RawRows, database: &Database, select: &str) -> Result<()> {
    let mut theirs = BTreeMap::new();
    for row in database.client().query(select, &[]).await? {
        let item = Item { id: row.get(0), shelf: row.get(1), body: row.get(2) };
        theirs.insert(item.id, item);
    }
    let ours = rows.iter().map(|(id, row)| Ok((*id, row.item()?))).collect::<Result<BTreeMap<_, _>>>()?;
    let ids: BTreeSet<&i64> = ours.keys().chain(theirs.keys()).collect();
    let differs: Vec<_> = ids.into_iter().filter(|id| ours.get(id) != theirs.get(id)).collect();
    ensure!(
        differs.is_empty(),
        "{select}: {} of {} rows differ, such as {:?}",
        differs.len(),
        theirs.len(),
        differs[0]
    );
    Ok(())
}

/// The digests of rows, as `tidegate.v1.Holds` defines them. The field of the key is the first.
pub(crate) fn digests(rows: &RawRows, salt: [u8; 16], bucket_count: usize) -> Vec<u64> {
    let mut digests = vec![0_u64; bucket_count];
    for (id, row) in rows {
        let digest = &mut digests[bucket(&salt, *id, bucket_count)];
        *digest = digest.wrapping_add(number(&[&salt, &row.head, &row.bytes]));
    }
    digests
}

/// What is told to a server.
pub(crate) fn holds(selection: u32, salt: [u8; 16], digests: &[u64]) -> Holds {
    let digests: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
    Holds { selection, salt: salt.to_vec().into(), digests: digests.into() }
}

/// Of a row with this key.
pub(crate) fn bucket(salt: &[u8], id: i64, bucket_count: usize) -> usize {
    let key = Item { id, ..Item::default() }.encode_to_vec();
    (number(&[salt, &key]) % bucket_count as u64) as usize
}

/// Is a bucket among those that are replaced?
pub(crate) fn is_set(replaced: &[u8], bucket: usize) -> bool {
    replaced[bucket / 8] & (1 << (bucket % 8)) != 0
}

fn number(parts: &[&[u8]]) -> u64 {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    let hash: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes(std::array::from_fn(|at| hash[at]))
}

fn head(row_type: &RowType) -> Vec<u8> {
    let numbers = [row_type.row_type.to_le_bytes(), row_type.table_oid.to_le_bytes()];
    [&numbers.concat(), &Sha256::digest(&row_type.file)[..]].concat()
}
