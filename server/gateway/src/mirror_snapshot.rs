//! A snapshot of mirrored tables: made of the mirror for one subscription, without PostgreSQL and without a record in the log.
//!
//! ```text
//! log     ──blocks──▶ Weaving ──▶ SnapshotBegin · chunk · transactions · chunk · transactions · chunk · SnapshotEnd · log …
//! mirror  ──chunks──▶    │
//!    ▲                   └─ where the log has come to
//!    └── a key, to go on behind
//! ```
//!
//! **Exact.** A chunk is a range of keys as the mirror has it at the end of some transaction, and it is put into the log exactly there.
//! Before, the subscription has received every change up to that place; behind it, it receives every later one. So once a
//! range has been read it is what the table holds, whatever happens to it, and at the last chunk all of it is.
//!
//! Who selects shapes without subqueries, and says nothing of what it holds, has no row before the first chunk: what has happened up to there
//! is passed over, unless a snapshot in the log reads one of its tables, of which it may have to be told both marks.
//!
//! **Bounded.** A chunk is read when the subscription asks for more, and nothing is held between two but a key: no rows, no
//! snapshot of the mirror's engine, no place in the log other than the subscription's. The price is that positions differ from chunk to
//! chunk, so that reads and changes mix, as in every other snapshot. A row that is larger than a chunk is held whole.
//!
//! **Resumable.** What a token states within such a snapshot ([`marks`]) says that it had not ended. The log is read on from there, and
//! the rows are read once more from the first: what the client has of them is current, so a row that comes again is the same.
//! The place is not kept, since a token is a prefix and a position, and a server keeps nothing of those who are gone.
//!
//! **Corrected.** What another snapshot finds to be otherwise than the mirror has it concerns rows that have been given out, and is passed on. Several
//! such records may share an LSN, so places in the log are compared as whole positions.
//!
//! **Of a client that holds rows.** What it holds is compared first, chunk by chunk and of all tables, and then no rows are put in but those
//! that it has to be sent ([`crate::held`]).
//!
//! It deliberately does not look at rows itself.

mod marks;
mod restated;
mod wanted;
mod weaving;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tidegate_model::{Block, Epoch, Position, TableName};
use tidegate_store::{MirrorError, MirrorReader, Reader, RowChunk, RowForm};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    config::GatewayConfig,
    held::{Comparing, Differing, Incomparable},
    incoming::Interrupted,
    selection::Plan,
    source::Source,
    status::GatewayError,
};

pub(crate) use marks::{first_chunk, has_room, is_of_mirror, is_within, log_position, number, opened, read_from, turn};
pub(crate) use restated::{LogPlace, Restated};
use wanted::{Reading, Sieve};
pub(crate) use wanted::{Wanted, narrowed};
use weaving::{Chunk, Weaving};

/// Rows of a chunk, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// The tables with all their rows, where the mirror has all of them; None where any has to be read from PostgreSQL. Waits some
/// seconds for a mirror that is being opened.
pub(crate) async fn mirrored(
    source: &Source,
    tables: &[TableName],
    config: &GatewayConfig,
) -> Result<Option<Vec<Wanted>>, GatewayError> {
    let Some(mirror) = source.handle.mirror.clone() else { return Ok(None) };
    if !tables.iter().all(|table| mirror.follows(table)) {
        return Ok(None);
    }
    let mut positions = mirror.positions();
    let open = positions.wait_for(|position| *position != Position::ZERO);
    if timeout(config.first_epoch_wait, open).await.is_err() {
        return Ok(None);
    }
    let known = match tokio::task::spawn_blocking(move || mirror.tables()).await {
        Ok(known) => known.map_err(GatewayError::Mirror)?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let complete = |table: &TableName| {
        let of = known.iter().find(|known| known.name == *table && known.complete);
        of.map(|known| Wanted::all(table.clone(), known.table_oid))
    };
    Ok(tables.iter().map(complete).collect())
}

/// Where a snapshot out of the mirror begins, or goes on.
pub(crate) struct MirrorStart {
    pub(crate) epoch: Epoch,
    pub(crate) snapshot: u32,
    /// As the client knows it: within the snapshot.
    pub(crate) after: Position,
    /// Where the log ends.
    pub(crate) head: Position,
    pub(crate) tables: Vec<Wanted>,
    pub(crate) plan: Arc<Plan>,
    /// Nothing that happens before the first row concerns the client.
    pub(crate) passes_over: bool,
    /// Of this connection.
    pub(crate) first_chunk: u32,
    /// Where to say what stands elsewhere in the log.
    pub(crate) restated: Restated,
    /// What the client holds, where it says so.
    pub(crate) comparing: Option<Comparing>,
}

/// One that has not ended.
pub(crate) struct MirrorSnapshot {
    source: Arc<Source>,
    mirror: MirrorReader,
    positions: watch::Receiver<Position>,
    epoch: Epoch,
    snapshot: u32,
    /// Those that are not read to their end.
    tables: VecDeque<Wanted>,
    /// Of the first of them, the last key that was read.
    behind: Option<Bytes>,
    /// The chunk that is being read, at most one. It outlives a `next` that is dropped.
    reading: JoinSet<Result<RowChunk, MirrorError>>,
    /// What is done before the snapshot begins, and the tables that are read then.
    comparing: Option<(Box<Comparing>, VecDeque<Wanted>)>,
    /// What of them is put in; None for all.
    differing: Option<Box<Differing>>,
    plan: Arc<Plan>,
    passes_over: bool,
    weaving: Weaving,
    restated: Restated,
    /// Woven, and not handed out.
    woven: VecDeque<Block>,
}

impl MirrorSnapshot {
    /// None where the source has no mirror.
    pub(crate) fn new(source: &Arc<Source>, start: MirrorStart) -> Option<Self> {
        let mirror = source.handle.mirror.clone()?;
        let MirrorStart { epoch, snapshot, after, head, tables, plan, passes_over, .. } = start;
        let MirrorStart { first_chunk, restated, comparing, .. } = start;
        let tables: VecDeque<Wanted> = tables.into();
        let weaving = Weaving::new(snapshot, (after, head), first_chunk, restated.clone());
        let comparing = comparing.map(|comparing| (Box::new(comparing), tables.clone()));
        let mut starting = MirrorSnapshot {
            source: Arc::clone(source),
            positions: mirror.positions(),
            mirror,
            epoch,
            snapshot,
            tables,
            behind: None,
            reading: JoinSet::new(),
            comparing,
            differing: None,
            woven: VecDeque::new(),
            plan,
            passes_over,
            weaving,
            restated,
        };
        if starting.comparing.is_none() {
            starting.begin();
        }
        Some(starting)
    }

    fn begin(&mut self) {
        let named = self.tables.iter().map(|table| (table.name.to_string(), table.table_oid)).unzip();
        let differences = self.differing.as_ref().map(|differing| differing.to_proto());
        self.woven.extend(self.weaving.begin(named, differences.unwrap_or_default()));
    }

    /// Has all of it been handed out?
    pub(crate) fn has_ended(&self) -> bool {
        self.woven.is_empty() && self.weaving.has_ended()
    }

    /// The next block; None behind the snapshot's end, from where on the log is delivered as it is. Cancel safe.
    pub(crate) async fn next(&mut self, reader: &mut Reader) -> Result<Option<Block>, Interrupted> {
        if self.woven.is_empty() {
            self.restated.forget();
        }
        loop {
            if let Some(block) = self.woven.pop_front() {
                return Ok(Some(block));
            }
            if self.weaving.has_ended() {
                return Ok(None);
            }
            if self.comparing.is_some() {
                self.compare().await?;
            } else if self.weaving.needs_log() || !self.is_current() {
                self.weave(&reader.next().await?);
            } else if !self.reading.is_empty() || self.mirror_has_come(reader).await? {
                self.read_chunk(reader).await?;
            }
        }
    }

    /// Another epoch's mirror is another's.
    fn is_current(&self) -> bool {
        self.source.handle.store.head().borrow().epoch == Some(self.epoch)
    }

    fn weave(&mut self, block: &Block) {
        self.woven.extend(self.weaving.log(block));
    }

    /// Waits until the mirror has come to where the subscription is, which is at once unless it is being opened again; false where
    /// the log has gone on before that.
    async fn mirror_has_come(&mut self, reader: &mut Reader) -> Result<bool, Interrupted> {
        let weaving = &self.weaving;
        let block = tokio::select! {
            biased;
            // The sender lives as long as the handle.
            _there = self.positions.wait_for(|position| !weaving.is_past(*position)) => None,
            block = reader.next() => Some(block?),
        };
        if let Some(block) = &block {
            self.weave(block);
        }
        Ok(block.is_none())
    }

    /// Goes on to compare what the client holds, and begins when it is known what of the tables is to be put in.
    async fn compare(&mut self) -> Result<(), Interrupted> {
        let (weaving, epoch) = (&self.weaving, self.epoch);
        let mut head = self.source.handle.store.head();
        let is_another = tokio::select! {
            biased;
            // Asked first: where the mirror has come to may be of another epoch.
            _another = head.wait_for(|head| head.epoch != Some(epoch)) => true,
            _there = self.positions.wait_for(|position| !weaving.is_past(*position)) => false,
        };
        if is_another {
            // Whoever reads on is told.
            self.begin_behind(false);
            return Ok(());
        }
        let Some(chunk) = self.next_chunk().await? else { return Ok(()) };
        let Some((comparing, _)) = &mut self.comparing else { return Ok(()) };
        match comparing.chunk(&chunk.rows, chunk.position) {
            Ok(()) if !self.tables.is_empty() => {}
            Ok(()) => self.begin_behind(true),
            Err(error) => {
                tracing::debug!(%error, "what a client holds is not compared");
                self.begin_behind(false);
            }
        }
        Ok(())
    }

    /// Begins, with what differs where all has been compared, or else with everything.
    fn begin_behind(&mut self, all_compared: bool) {
        let Some((comparing, tables)) = self.comparing.take() else { return };
        (self.tables, self.behind, self.reading) = (tables, None, JoinSet::new());
        if !all_compared {
            return self.begin();
        }
        let (differing, reached) = comparing.finish();
        self.weaving.has_seen(reached);
        self.differing = Some(Box::new(differing));
        self.begin();
        if let Some(differing) = &self.differing {
            self.tables.retain(|table| differing.concerns(table));
        }
        if self.tables.is_empty() {
            let chunk = Chunk { position: reached, rows: Vec::new(), is_last: true };
            self.woven.extend(self.weaving.chunk(chunk));
        }
    }

    async fn read_chunk(&mut self, reader: &mut Reader) -> Result<(), Interrupted> {
        let Some(RowChunk { position, mut rows, being_read, .. }) = self.next_chunk().await? else {
            return Ok(());
        };
        if let Some(differing) = &mut self.differing {
            let wanted = rows.iter().map(|row| differing.wants(row)).collect::<Result<Vec<bool>, _>>();
            match wanted {
                Ok(wanted) => {
                    let mut wanted = wanted.into_iter();
                    rows.retain(|_| wanted.next().unwrap_or(true));
                }
                Err(Incomparable::Key { table_oid }) => {
                    let (snapshot, error) = (self.snapshot, MirrorError::NotComplete(table_oid));
                    return Err(Interrupted::Mirror { snapshot, error });
                }
                // Whoever filters the rows says what is wrong with them.
                Err(_) => {}
            }
        }
        // Of a snapshot that the client is told of, it is told from its begin on.
        let is_selected = |table: &String| table.parse::<TableName>().is_ok_and(|table| self.plan.reads(&table));
        if self.passes_over && !being_read.iter().any(is_selected) && self.weaving.pass_over(position) {
            reader.pass_over(position)?;
        }
        let chunk = Chunk { position, rows, is_last: self.tables.is_empty() };
        self.woven.extend(self.weaving.chunk(chunk));
        Ok(())
    }

    /// The next chunk of the tables; None where it has to be asked for again.
    async fn next_chunk(&mut self) -> Result<Option<RowChunk>, Interrupted> {
        let Some(table) = self.tables.front() else { return Ok(None) };
        if self.reading.is_empty() {
            let (table, mirror, behind) = (table.clone(), self.mirror.clone(), self.behind.clone());
            let how = match &self.comparing {
                // It is compared with what was delivered, and all of it.
                Some(_) => Reading { size: (CHUNK_BYTES, RowForm::AsStored), sieve: None },
                None => {
                    let sieve = Some(Sieve::new(&self.source, &self.plan));
                    Reading { size: (CHUNK_BYTES, RowForm::OfTable), sieve }
                }
            };
            let source = Arc::clone(&self.source);
            self.reading.spawn(read_in_turn(source, mirror, move |mirror, has_turn| {
                table.chunk(mirror, behind.as_deref(), (&how, has_turn))
            }));
        }
        let Some(read) = self.reading.join_next().await else { return Ok(None) };
        let chunk = match read.expect("reading neither panics nor is aborted") {
            Ok(chunk) => chunk,
            // It is being opened again, and awaited; an index has given way to another.
            Err(MirrorError::Closed | MirrorError::IndexNotComplete) => return Ok(None),
            Err(error) => return Err(Interrupted::Mirror { snapshot: self.snapshot, error }),
        };
        // What was read of another epoch, or of a mirror that has been opened again and not caught up, does not fit.
        if !self.is_current() || self.weaving.is_past(chunk.position) {
            return Ok(None);
        }
        self.behind.clone_from(&chunk.next);
        if self.behind.is_none() {
            self.tables.pop_front();
        }
        Ok(Some(chunk))
    }
}

/// Reads a chunk when it may be read: where it waits for an index, once that may be there, or it is its turn to do without.
async fn read_in_turn(
    source: Arc<Source>,
    mirror: MirrorReader,
    read: impl Fn(&MirrorReader, bool) -> Result<Option<RowChunk>, MirrorError> + Send + Sync + 'static,
) -> Result<RowChunk, MirrorError> {
    let (read, mut changed, mut turn) = (Arc::new(read), mirror.changed(), None);
    loop {
        changed.mark_unchanged();
        let permit = Arc::clone(&source.mirror_reads).acquire_owned().await;
        let (mirror, read) = (mirror.clone(), Arc::clone(&read));
        let read = move || {
            let chunk = read(&mirror, turn.is_some());
            // Held until now: a thread goes on when nobody waits for it any more.
            drop((permit, turn));
            chunk
        };
        let read = tokio::task::spawn_blocking(read).await;
        if let Some(chunk) = read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))? {
            return Ok(chunk);
        }
        tokio::select! {
            biased;
            _changed = changed.changed() => turn = None,
            its = Arc::clone(&source.scan_turn).acquire_owned() => turn = its.ok(),
        }
    }
}
