//! Reads the changelog from a position on: out of the shared tail when it is caught up, else out of the segments.
//!
//! Invariant: it yields exactly the blocks that were appended, in order, each once, and none before the transaction that it
//! belongs to is complete. It holds a place in the log and at most one chunk of a file, however slow it is read; when the
//! retention overtakes it, it ends with [`ReadError::TooOld`].

use std::{collections::VecDeque, sync::Arc};

use tidegate_model::{Block, Position};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    ReadError,
    log::{Log, Visible},
    segment::{Placed, Segment},
};

/// Between two blocks of an epoch's changelog: an offset. Places of one epoch are ordered as its blocks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// A place in the changelog.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    visible: watch::Receiver<Visible>,
    /// Blocks that hold nothing after this position are skipped.
    after: Position,
    /// Offset of the next frame that is neither read nor in `read`.
    at: u64,
    /// Offset behind the last block that was handed out or skipped.
    passed: u64,
    /// Read from a file and not yet handed out.
    read: VecDeque<Placed>,
    /// The read that is under way, at most one. It outlives a `next` that is dropped.
    reading: JoinSet<Result<Chunk, ReadError>>,
}

/// What one read has brought.
#[derive(Debug)]
struct Chunk {
    frames: VecDeque<Placed>,
    /// Where the next read goes on.
    at: u64,
}

impl Reader {
    pub(crate) fn new(log: Arc<Log>, after: Position) -> Result<Self, ReadError> {
        let after = after.as_resume_point();
        let at = log.locate(after)?;
        Ok(Self::new_at(log, after, at))
    }

    /// At a place that a reader of this log has told.
    pub(crate) fn behind(log: Arc<Log>, place: Place) -> Self {
        Self::new_at(log, Position::ZERO, place.0)
    }

    fn new_at(log: Arc<Log>, after: Position, at: u64) -> Self {
        let visible = log.visible();
        Reader { log, visible, after, at, passed: at, read: VecDeque::new(), reading: JoinSet::new() }
    }

    /// Behind the last block that was handed out, and before the next.
    #[must_use]
    pub fn place(&self) -> Place {
        Place(self.passed)
    }

    /// Behind all that can be seen now: between transactions.
    #[must_use]
    pub fn end(&self) -> Place {
        Place(self.visible.borrow().end)
    }

    /// Passes over all up to this position; a transaction counts as a whole ([`Position::as_resume_point`]).
    ///
    /// # Errors
    /// [`ReadError::TooOld`].
    pub fn pass_over(&mut self, position: Position) -> Result<(), ReadError> {
        let after = position.as_resume_point();
        if after > self.after {
            let at = self.log.locate(after)?;
            self.after = after;
            if at > self.at {
                (self.at, self.passed) = (at, at);
                (self.read, self.reading) = (VecDeque::new(), JoinSet::new());
            }
        }
        Ok(())
    }

    /// The next block; waits at the end of the changelog. A block ends with a commit or progress, or lies within a
    /// transaction whose commit is to be had from the blocks that follow without waiting for the source. Records at and
    /// before the position that the reader was made with may still be in the first block. Cancel safe.
    ///
    /// # Errors
    /// See [`ReadError`]. After an error, make another reader.
    pub async fn next(&mut self) -> Result<Block, ReadError> {
        loop {
            if let Some(block) = self.try_next()? {
                return Ok(block);
            }
            let end = self.visible.borrow().end;
            if self.at < end {
                self.read_file(end).await?;
            } else if self.visible.changed().await.is_err() {
                unreachable!("the log, and with it the sender, lives as long as its reader");
            }
        }
    }

    /// The next block, if there is one in memory now. None says nothing about the files: `next` looks there. The end of the
    /// epoch is told when all that it had was handed out.
    ///
    /// # Errors
    /// See [`ReadError`]. After an error, make another reader.
    pub fn try_next(&mut self) -> Result<Option<Block>, ReadError> {
        let visible = *self.visible.borrow_and_update();
        loop {
            let placed = match self.read.pop_front() {
                Some(placed) => placed,
                None if self.at >= visible.end => {
                    let ended = |current| Err(ReadError::OtherEpoch { current: Some(current) });
                    return visible.superseded.map_or(Ok(None), ended);
                }
                None if !self.reading.is_empty() => return Ok(None),
                None => match self.log.in_memory(self.at) {
                    Some(placed) => {
                        self.at = placed.end;
                        placed
                    }
                    None => return Ok(None),
                },
            };
            self.passed = placed.end;
            if placed.block.last() > self.after {
                return Ok(Some(placed.block));
            }
        }
    }

    /// Reads on in the file that holds `at`, unless the block has come to be in memory.
    async fn read_file(&mut self, end: u64) -> Result<(), ReadError> {
        if self.reading.is_empty() {
            if self.log.in_memory(self.at).is_some() {
                return Ok(());
            }
            let segment = self.log.segment_at(self.at)?;
            let (from, to, after) = (self.at, segment.end().min(end), self.after);
            self.reading.spawn_blocking(move || read_chunk(&segment, (from, to), after));
        }
        let Some(done) = self.reading.join_next().await else { return Ok(()) };
        let chunk = done.expect("reading neither panics nor is aborted")?;
        self.at = chunk.at;
        self.read = chunk.frames;
        Ok(())
    }
}

/// Reads until there is something after `after`, and then what is left of the chunk. Blocks the thread.
fn read_chunk(segment: &Segment, (from, to): (u64, u64), after: Position) -> Result<Chunk, ReadError> {
    let mut frames = segment.frames(from, to);
    let mut wanted = VecDeque::new();
    while wanted.is_empty() || frames.next_is_buffered() {
        match frames.next() {
            Some(Ok(placed)) if placed.block.last() <= after => {}
            Some(Ok(placed)) => wanted.push_back(placed),
            // What is in order so far is delivered first; the next read meets the error again.
            Some(Err(_)) if !wanted.is_empty() => break,
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    Ok(Chunk { frames: wanted, at: frames.at() })
}
