//! An epoch's log as writer and readers share it: its segments, its tail in memory, and how far it may be seen.
//!
//! Invariant: a frame is in its segment's file before it is in the tail, and in the tail before it may be seen. What may be
//! seen ends with a commit or progress. Locks are held for look-ups only, never over I/O.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock},
};

use tidegate_model::{Block, Entry, Epoch, Position};
use tokio::sync::watch;

use crate::{
    ReadError,
    retention::SegmentFacts,
    segment::{Placed, Segment},
    tail::Tail,
};

/// How far the log may be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Visible {
    /// Offset behind the last frame that may be seen.
    pub(crate) end: u64,
    /// The epoch that has taken this one's place.
    pub(crate) superseded: Option<Epoch>,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) epoch: Epoch,
    /// Position at which the epoch starts.
    origin: Position,
    segments: RwLock<VecDeque<Arc<Segment>>>,
    tail: RwLock<Tail>,
    visible: watch::Sender<Visible>,
}

impl Log {
    /// A log that is complete up to `complete` and to its end.
    pub(crate) fn new(epoch: Epoch, origin: Position, segments: VecDeque<Arc<Segment>>, tail: Tail) -> Self {
        let end = segments.back().map_or(0, |segment| segment.end());
        let visible = watch::Sender::new(Visible { end, superseded: None });
        Log { epoch, origin, segments: RwLock::new(segments), tail: RwLock::new(tail), visible }
    }

    pub(crate) fn visible(&self) -> watch::Receiver<Visible> {
        self.visible.subscribe()
    }

    /// Offset behind the last byte of the newest segment.
    pub(crate) fn end(&self) -> u64 {
        self.with_segments(|segments| segments.back().map_or(0, |segment| segment.end()))
    }

    /// Reading after this position works.
    pub(crate) fn earliest(&self) -> Position {
        self.with_segments(|segments| segments.front().map_or(self.origin, |segment| segment.after))
    }

    /// Bytes of all segments.
    pub(crate) fn byte_count(&self) -> u64 {
        self.with_segments(|segments| segments.iter().map(|segment| segment.byte_count()).sum())
    }

    pub(crate) fn newest_segment(&self) -> Option<Arc<Segment>> {
        self.with_segments(|segments| segments.back().cloned())
    }

    pub(crate) fn add_segment(&self, segment: Arc<Segment>) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).push_back(segment);
    }

    /// What the retention decides by, oldest first.
    pub(crate) fn facts(&self) -> Vec<SegmentFacts> {
        let facts = |segment: &Arc<Segment>| SegmentFacts {
            byte_count: segment.byte_count(),
            written_us: segment.written_us(),
            after: segment.after,
        };
        self.with_segments(|segments| segments.iter().map(facts).collect())
    }

    /// Takes the oldest segments out of the log; the caller removes their files.
    pub(crate) fn take_oldest(&self, count: usize) -> Vec<Arc<Segment>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).drain(..count).collect()
    }

    /// Shows blocks that have been written to the newest segment.
    pub(crate) fn publish(&self, placed: Vec<Placed>) {
        let completes = |placed: &&Placed| placed.block.entries().last().is_some_and(Entry::completes);
        let end = placed.iter().rev().find(completes).map(|placed| placed.end);
        {
            let mut tail = self.tail.write().unwrap_or_else(PoisonError::into_inner);
            for placed in placed {
                tail.push(placed);
            }
        }
        if let Some(end) = end {
            self.visible.send_modify(|visible| visible.end = end);
        }
    }

    /// Ends its readers: another epoch has begun.
    pub(crate) fn supersede(&self, by: Epoch) {
        self.visible.send_modify(|visible| visible.superseded = Some(by));
    }

    /// An offset from which on there is everything that follows `after`.
    pub(crate) fn locate(&self, after: Position) -> Result<u64, ReadError> {
        if let Some(offset) = self.tail.read().unwrap_or_else(PoisonError::into_inner).locate(after) {
            return Ok(offset);
        }
        self.with_segments(|segments| match segments.partition_point(|segment| segment.after <= after).checked_sub(1) {
            Some(at) => Ok(segments[at].locate(after)),
            None => Err(ReadError::TooOld { earliest: segments.front().map_or(self.origin, |segment| segment.after) }),
        })
    }

    /// The segment that holds an offset.
    pub(crate) fn segment_at(&self, offset: u64) -> Result<Arc<Segment>, ReadError> {
        self.with_segments(|segments| match segments.partition_point(|segment| segment.base <= offset).checked_sub(1) {
            Some(at) => Ok(Arc::clone(&segments[at])),
            None => Err(ReadError::TooOld { earliest: segments.front().map_or(self.origin, |segment| segment.after) }),
        })
    }

    /// The block at an offset that may be seen, if it is in the tail.
    pub(crate) fn in_memory(&self, offset: u64) -> Option<Placed> {
        let tail = self.tail.read().unwrap_or_else(PoisonError::into_inner);
        tail.covers(offset).then(|| tail.at(offset).cloned()).flatten()
    }

    fn with_segments<T>(&self, look: impl FnOnce(&VecDeque<Arc<Segment>>) -> T) -> T {
        look(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The last position of a block that ends what it holds.
pub(crate) fn completed(block: &Block) -> Option<Position> {
    block.entries().last().filter(|entry| entry.completes()).map(Entry::position)
}
