//! Puts a difference into a subscription's way through the log: behind all that the mirror had seen when its rows were read, and before the
//! rest.
//!
//! The subscription waits while the rows are read. It goes on with the log as far as they have seen, and then the difference comes.
//!
//! Invariants: a difference that was read is put in; nothing is put into the middle of a transaction; what has been given out was
//! seen by it. Where another epoch begins, nothing is put in, and the log says so.
//!
//! What cannot be put in now is no Reset: where there is no place for it, the log goes on until there is one, and nothing is held meanwhile. Who receives
//! it slowly has the rest of it put into a file. Where there is no room, the subscription ends, and goes on by its token, which is of before, to the
//! same difference.

mod held;
mod spool;

use std::{sync::Arc, time::Duration};

use tidegate_model::{Block, BlockBuilder, Kind, Lsn, Position};
use tidegate_store::{MirrorError, MirrorReader, Reader};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    task::JoinSet,
    time::sleep,
};

use held::{Difference, HELD_FOR, Held, Part};
pub(crate) use spool::Spool;

use super::{
    Redefinition,
    difference::{Judging, Unjudged},
};
use crate::{
    incoming::{Given, Interrupted},
    mirror_snapshot::{log_position, turn},
    opening::renewed,
    reset::Refusal,
    router::Note,
    source::Source,
    status::GatewayError,
};

/// A difference may have so many bytes.
const BYTES_MAX: usize = 64 << 20;
/// They are taken from what all differences of a source may have in such steps.
const STEP_BYTES: usize = 1 << 20;
/// While the mirror is not as far as the subscription, the log goes on after so long.
const PAUSE: Duration = Duration::from_millis(250);
/// How often there may be no room for it, a pause each.
const NO_ROOM_MAX: u32 = 40;
/// Who is further behind than so many bytes of WAL comes nearer first: what is read now would be held until then.
const NEAR_BYTES: u64 = 64 << 20;
/// Rows between two looks at whether they are still wanted.
const ROWS_PER_LOOK: usize = 256;

/// A part of a difference, to be filtered by the plan behind it.
pub(crate) struct Turned {
    pub(crate) note: Arc<Note>,
    pub(crate) to: Arc<Redefinition>,
}

/// A subscription on its way to other definitions.
pub(crate) struct Turning {
    to: Arc<Redefinition>,
    source: Arc<Source>,
    mirror: MirrorReader,
    positions: watch::Receiver<Position>,
    /// What was stated last, when it began.
    start: Position,
    /// All that the log has up to here has been given out.
    at: Position,
    /// And a part of the transaction behind.
    is_within: bool,
    /// The mirror has to have come so far.
    needs: Position,
    /// How often in a row there was no room.
    no_room: u32,
    /// At most one. It outlives a `next` that is dropped.
    reading: JoinSet<Read>,
    difference: Option<Held>,
    /// It is being given out, or has been.
    has_turned: bool,
    /// What the log has right behind it.
    rest: Option<Block>,
}

/// What reading has brought.
enum Read {
    Difference(Difference),
    /// It may be otherwise now.
    Again,
    /// What the catalog says may have changed, or the condition fails.
    Failed(Unjudged),
    /// Nothing can be stated where the mirror was.
    NoPlace(Position),
    /// Others have what all may have.
    NoRoom,
    Refused(Refusal),
}

/// What the thread needs that reads.
struct Reading {
    to: Arc<Redefinition>,
    source: Arc<Source>,
    mirror: MirrorReader,
    start: Position,
}

impl Turning {
    /// Of a subscription that has all up to a position, and has stated it, or is within the transaction behind it. None where the source
    /// has no mirror.
    pub(crate) fn new(
        to: Arc<Redefinition>,
        source: &Arc<Source>,
        (start, is_within): (Position, bool),
    ) -> Option<Self> {
        let mirror = source.handle.mirror.clone()?;
        let head = source.handle.store.head().borrow().complete;
        let at = log_position(start);
        Some(Turning {
            to,
            source: Arc::clone(source),
            positions: mirror.positions(),
            mirror,
            start,
            at,
            is_within,
            // The subscription may be within a transaction, which the log shows only as a whole.
            needs: at.max(log_position(head)),
            no_room: 0,
            reading: JoinSet::new(),
            difference: None,
            has_turned: false,
            rest: None,
        })
    }

    /// What comes next; None when the log goes on as it is. Cancel safe.
    pub(crate) async fn next(&mut self, reader: &mut Reader) -> Result<Option<Given>, Interrupted> {
        loop {
            if self.has_turned {
                let part = match &mut self.difference {
                    Some(held) => held.part().await,
                    None => Part::None,
                };
                return match part {
                    Part::Note(note) => Ok(Some(Given::Turned(Turned { note, to: Arc::clone(&self.to) }))),
                    Part::None => Ok(self.rest.take().map(Given::Block)),
                    Part::LetGo => {
                        Err(self
                            .given_up("it was not received in time, and what waits for others leaves no room for it"))
                    }
                };
            }
            self.difference.take_if(|held| held.is_let_go());
            let block = match &self.difference {
                Some(held) if held.at() <= self.at => {
                    self.has_turned = true;
                    None
                }
                Some(_) => Some(reader.next().await?),
                None => self.read(reader).await?,
            };
            if let Some(before) = block.and_then(|block| self.log(block)) {
                return Ok(Some(Given::Block(before)));
            }
        }
    }

    /// Has all been given out?
    pub(crate) fn has_ended(&self) -> bool {
        self.has_turned && self.rest.is_none() && self.difference.as_ref().is_none_or(Held::is_given_out)
    }

    /// The next block of the log, as far as it belongs before the difference.
    fn log(&mut self, block: Block) -> Option<Block> {
        let difference = self.difference.as_ref().map(Held::at);
        let is_behind = |kind: Kind, position: Position| match kind {
            Kind::Begin | Kind::Progress | Kind::SnapshotBegin | Kind::SnapshotEnd => {
                difference.is_some_and(|at| log_position(position) > at)
            }
            Kind::RowType | Kind::Change | Kind::Commit | Kind::SnapshotCursor => false,
        };
        let entries = block.entries();
        if let Some(cut) = entries.iter().position(|entry| is_behind(entry.kind, entry.position())) {
            self.at = self.at.max(difference.unwrap_or(self.at));
            self.has_turned = true;
            let rest = part(&block, cut..entries.len());
            self.rest = Some(rest);
            return (cut > 0).then(|| part(&block, 0..cut));
        }
        if let Some(complete) = block.complete_through() {
            self.at = self.at.max(log_position(complete));
            self.is_within = false;
        }
        // The transaction that it may end within has to have been seen.
        self.needs = self.needs.max(log_position(block.last()));
        Some(block)
    }

    /// Another epoch's mirror is another's.
    fn is_current(&self) -> bool {
        self.source.handle.store.head().borrow().epoch == Some(self.to.prefix.epoch)
    }

    /// Is the log's end far, or a transaction to be completed? Then the log goes on first.
    fn is_early(&self) -> bool {
        let head = self.source.handle.store.head().borrow().complete;
        self.is_within || head.lsn.0.saturating_sub(self.at.lsn.0) > NEAR_BYTES
    }

    /// Reads the difference, and lets the log go on meanwhile where the mirror is not there.
    async fn read(&mut self, reader: &mut Reader) -> Result<Option<Block>, Interrupted> {
        if !self.is_current() || self.reading.is_empty() && self.is_early() {
            return Ok(Some(reader.next().await?));
        }
        if self.reading.is_empty() {
            let needs = self.needs;
            let is_there = |position: &Position| *position != Position::ZERO && log_position(*position) >= needs;
            let block = tokio::select! {
                biased;
                // The sender lives as long as the handle.
                _there = self.positions.wait_for(is_there) => None,
                block = async { sleep(PAUSE).await; reader.next().await } => Some(block?),
            };
            if block.is_some() {
                return Ok(block);
            }
            self.start_reading();
        }
        let Some(read) = self.reading.join_next().await else { return Ok(None) };
        self.has_read(read.expect("reading neither panics nor is aborted")).await?;
        Ok(None)
    }

    fn start_reading(&mut self) {
        let reading = Reading {
            to: Arc::clone(&self.to),
            source: Arc::clone(&self.source),
            mirror: self.mirror.clone(),
            start: self.start,
        };
        let reads = Arc::clone(&self.source.difference_reads);
        self.reading.spawn(async move {
            let permit = reads.acquire_owned().await;
            let read = move || {
                // A thread goes on when nobody waits for it any more.
                let _until_read = permit;
                reading.read()
            };
            tokio::task::spawn_blocking(read)
                .await
                .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        });
    }

    async fn has_read(&mut self, read: Read) -> Result<(), Interrupted> {
        self.no_room = if matches!(read, Read::NoRoom) { self.no_room + 1 } else { 0 };
        match read {
            // What was read of another epoch, or of a mirror that has been opened again and not caught up, does not fit.
            Read::Difference(difference) if self.is_current() && difference.at >= self.needs => {
                self.difference = Some(Held::new(difference, HELD_FOR, Arc::clone(&self.source.difference_spool)));
            }
            Read::Difference(_) | Read::Again => {}
            // Where the log is at another LSN there is room.
            Read::NoPlace(at) => self.needs = self.needs.max(Position::new(Lsn(at.lsn.0.saturating_add(1)), 0)),
            Read::NoRoom => {
                if self.no_room > NO_ROOM_MAX {
                    return Err(self.given_up("too much of other subscriptions is changed at the same time"));
                }
                sleep(PAUSE).await;
            }
            Read::Failed(Unjudged::Failed(failure)) => {
                let plan = match failure.is_of_old_facts() {
                    true => renewed(&self.source, &self.to.plan).await.map_err(refused)?,
                    false => None,
                };
                let plan = plan.ok_or_else(|| Interrupted::Redefined(Box::new(failure.into())))?;
                let prefix = plan.key.prefix(self.to.prefix.epoch);
                self.to = Arc::new(Redefinition { plan, prefix, ..Redefinition::clone(&self.to) });
            }
            Read::Failed(Unjudged::Error(error)) => return Err(refused(error)),
            Read::Refused(refusal) => return Err(Interrupted::Redefined(Box::new(refusal))),
        }
        Ok(())
    }

    fn given_up(&self, why: &'static str) -> Interrupted {
        refused(GatewayError::Difference { names: self.to.named.names(), why })
    }
}

fn refused(error: GatewayError) -> Interrupted {
    Interrupted::Redefined(Box::new(error.into()))
}

/// Some entries of a block.
fn part(block: &Block, range: std::ops::Range<usize>) -> Block {
    let mut part = BlockBuilder::default();
    block.entries()[range].iter().for_each(|entry| part.push(*entry, &block.slice(entry)));
    part.finish()
}

impl Reading {
    /// Blocks the thread.
    fn read(self) -> Read {
        self.try_read().unwrap_or_else(|read| read)
    }

    fn try_read(&self) -> Result<Read, Read> {
        let scan = self.to.rows.scan(&self.mirror).map_err(|error| self.failed(error))?;
        let at = log_position(scan.position());
        let position = turn(at, self.start).ok_or(Read::NoPlace(at))?;
        let store = &self.source.handle.store;
        let mut judging = Judging::new(&self.to, store, position);
        let mut permits: Option<OwnedSemaphorePermit> = None;
        let mut taken_bytes = 0;
        let positions = self.mirror.positions();
        for (count, row) in scan.enumerate() {
            // The subscription holds another one.
            let is_over = || Arc::strong_count(&self.to) == 1 || *positions.borrow() == Position::ZERO;
            if count % ROWS_PER_LOOK == 0 && is_over() {
                return Err(Read::Again);
            }
            judging.row(&row.map_err(|error| self.failed(error))?).map_err(Read::Failed)?;
            let byte_count = judging.byte_count();
            if byte_count > BYTES_MAX {
                return Err(Read::Refused(self.to.reset(&format!("it is more than {BYTES_MAX} bytes"))));
            }
            while byte_count > taken_bytes {
                let taken = Arc::clone(&self.source.difference_bytes).try_acquire_many_owned(STEP_BYTES as u32);
                let taken = taken.map_err(|_| Read::NoRoom)?;
                match &mut permits {
                    Some(permits) => permits.merge(taken),
                    None => permits = Some(taken),
                }
                taken_bytes += STEP_BYTES;
            }
        }
        Ok(Read::Difference(Difference { at, parts: judging.finish().into(), permits }))
    }

    fn failed(&self, error: MirrorError) -> Read {
        match error {
            // It is being opened again; an index is being made anew.
            MirrorError::Closed | MirrorError::IndexNotComplete => Read::Again,
            MirrorError::NotComplete(_) => Read::Refused(self.to.reset("the table's mirror is being made anew")),
            error => Read::Refused(GatewayError::Mirror(error).into()),
        }
    }
}
