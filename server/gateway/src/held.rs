//! What a client says that it holds of a selection, so that a snapshot out of the mirror brings the difference to it.
//!
//! ```text
//! Holds: salt, digests of buckets ──▶ Held ──┐
//! mirror, chunk by chunk: rows of the selection, hashed ──▶ Comparing ──▶ Differing: the buckets that are replaced
//!                                                                            │
//! mirror, chunk by chunk, once more ───────── rows of these buckets ◀────────┘──▶ the snapshot
//! ```
//!
//! **Exact.** Where a bucket's digest is the same, the client has each key of the bucket as the mirror had it when its chunk was read, which was
//! not before the subscription's start. All that the log has behind the start follows, up to there and beyond: what was there
//! already happens again, and leaves what it had left. So these chunks need not be of one position, and nothing is held between two. The
//! snapshot does not end before the last of them. Of the other buckets all rows are read, as in a snapshot of everything.
//!
//! **Of any age.** Nothing is asked of tokens, epochs or the log: what is compared is what there is. A row counts with the row type that
//! it came with, and a digest has a salt, which nobody who writes rows knows: so two states are taken for the same once in 2^64 times.
//!
//! **Bounded.** So many digests for a subscription, and so many bytes of them in the server at a time; from the comparison on, a bit for each bucket.
//!
//! It deliberately does not tell which rows differ: a key that is only in the client's hands is not told to it either.

mod comparing;
mod digest;

use std::sync::Arc;

use tidegate_model::Retry;
use tidegate_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use comparing::{Comparing, Differing, Incomparable};
use digest::{SALT_BYTES, Salt};

/// Of one subscription.
const BUCKETS_MAX: usize = 1 << 16;
/// Digests that are held at a time, and the sums that are compared with them, in KiB.
pub(crate) const ROOM_KIB: usize = 64 << 10;

/// Why what a client holds is not looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HoldsError {
    #[error(
        "holds belongs to a start at SNAPSHOT; a token goes on without it, and where it is answered with a Reset, subscribe at SNAPSHOT with \
         holds to receive the difference"
    )]
    Start,
    #[error(
        "holds is of selection {selection}, and there are {count}; count the selections of the subscription from 0"
    )]
    Selection { selection: u32, count: usize },
    #[error("holds is of selection {selection} twice; say once what is held of it")]
    Twice { selection: u32 },
    #[error("holds.salt has {byte_count} bytes; draw {SALT_BYTES} at random")]
    Salt { byte_count: usize },
    #[error("holds.digests has {byte_count} bytes; send 8 for each bucket, of which there is a power of two")]
    Digests { byte_count: usize },
    #[error(
        "{count} buckets are too many; the limit is {BUCKETS_MAX} for all selections of a subscription: put more rows into each"
    )]
    TooMany { count: usize },
}

impl HoldsError {
    /// What to do after it.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            HoldsError::Start
            | HoldsError::Selection { .. }
            | HoldsError::Twice { .. }
            | HoldsError::Salt { .. }
            | HoldsError::Digests { .. }
            | HoldsError::TooMany { .. } => Retry::Never,
        }
    }
}

/// What a client holds. It takes its room until it has been compared.
#[derive(Debug)]
pub(crate) struct Held {
    of: Vec<HeldSelection>,
    _room: OwnedSemaphorePermit,
}

/// Of one selection.
#[derive(Debug)]
struct HeldSelection {
    selection: usize,
    salt: Salt,
    /// Of each bucket.
    digests: Vec<u64>,
}

impl Held {
    /// Reads what a Subscribe says; None where it says nothing.
    pub(crate) fn parse(
        holds: &[v1::Holds],
        selection_count: usize,
        start: Option<&v1::Start>,
        room: &Arc<Semaphore>,
    ) -> Result<Option<Arc<Self>>, HoldsError> {
        if holds.is_empty() {
            return Ok(None);
        }
        let snapshot = v1::start::From::At(v1::start::Point::Snapshot as i32);
        if start.and_then(|start| start.from.as_ref()) != Some(&snapshot) {
            return Err(HoldsError::Start);
        }
        let count = holds.iter().map(|holds| holds.digests.len() / 8).sum();
        if count > BUCKETS_MAX {
            return Err(HoldsError::TooMany { count });
        }
        let mut of: Vec<HeldSelection> = Vec::with_capacity(holds.len().min(selection_count));
        for holds in holds {
            let read = HeldSelection::parse(holds, selection_count)?;
            if of.iter().any(|known| known.selection == read.selection) {
                return Err(HoldsError::Twice { selection: holds.selection });
            }
            of.push(read);
        }
        let kib = u32::try_from((count * 16).div_ceil(1024)).expect("their number is limited");
        // Who holds the room may have to wait for long; a whole snapshot is better than none.
        let Ok(room) = Arc::clone(room).try_acquire_many_owned(kib) else { return Ok(None) };
        Ok(Some(Arc::new(Held { of, _room: room })))
    }
}

impl HeldSelection {
    fn parse(holds: &v1::Holds, selection_count: usize) -> Result<Self, HoldsError> {
        let v1::Holds { selection, salt, digests } = holds;
        let at = *selection as usize;
        if at >= selection_count {
            return Err(HoldsError::Selection { selection: *selection, count: selection_count });
        }
        let salt = Salt::try_from(&salt[..]).map_err(|_| HoldsError::Salt { byte_count: salt.len() })?;
        let (numbers, rest) = digests.as_chunks::<8>();
        if !numbers.len().is_power_of_two() || !rest.is_empty() {
            return Err(HoldsError::Digests { byte_count: digests.len() });
        }
        let digests = numbers.iter().map(|number| u64::from_le_bytes(*number)).collect();
        Ok(HeldSelection { selection: at, salt, digests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(point: v1::start::Point) -> v1::Start {
        v1::Start { from: Some(v1::start::From::At(point as i32)) }
    }

    fn holds(selection: u32, salt: usize, digests: usize) -> v1::Holds {
        v1::Holds { selection, salt: vec![1; salt].into(), digests: vec![2; digests].into() }
    }

    fn refused(holds: &[v1::Holds]) -> HoldsError {
        let room = Arc::new(Semaphore::new(ROOM_KIB));
        let start = at(v1::start::Point::Snapshot);
        Held::parse(holds, 2, Some(&start), &room).expect_err("it is malformed")
    }

    #[test]
    fn what_is_malformed_is_refused_with_what_would_do() {
        assert_eq!(refused(&[holds(2, 16, 8)]), HoldsError::Selection { selection: 2, count: 2 });
        assert_eq!(refused(&[holds(1, 16, 8), holds(1, 16, 8)]), HoldsError::Twice { selection: 1 });
        for byte_count in [0, 15, 17] {
            assert_eq!(refused(&[holds(0, byte_count, 8)]), HoldsError::Salt { byte_count });
        }
        for byte_count in [0, 7, 9, 24, 8 * 48] {
            assert_eq!(refused(&[holds(0, 16, byte_count)]), HoldsError::Digests { byte_count });
        }
        let half = holds(0, 16, 8 << 15);
        assert_eq!(refused(&[half, holds(1, 16, 8 << 16)]), HoldsError::TooMany { count: (1 << 15) + (1 << 16) });
    }

    #[test]
    fn it_belongs_to_a_start_at_a_snapshot() {
        let room = Arc::new(Semaphore::new(ROOM_KIB));
        let token = v1::Start { from: Some(v1::start::From::Token("t.0/1:0".to_owned())) };
        for start in [None, Some(at(v1::start::Point::Now)), Some(at(v1::start::Point::Earliest)), Some(token)] {
            let parsed = Held::parse(&[holds(0, 16, 8)], 1, start.as_ref(), &room);
            assert_eq!(parsed.expect_err("it belongs to no other start"), HoldsError::Start);
            assert!(Held::parse(&[], 1, start.as_ref(), &room).expect("nothing is held").is_none());
        }
    }

    #[test]
    fn digests_take_room_until_they_are_let_go_of() {
        let room = Arc::new(Semaphore::new(1_200));
        let start = at(v1::start::Point::Snapshot);
        let largest = [holds(0, 16, 8 << 16)];
        let first = Held::parse(&largest, 1, Some(&start), &room).expect("there is room");
        let second = Held::parse(&largest, 1, Some(&start), &room).expect("it is read whole");
        assert!(first.is_some() && second.is_none());
        drop(first);
        assert!(Held::parse(&largest, 1, Some(&start), &room).expect("there is room again").is_some());
    }
}
