//! Decides which segments have to go. Pure.
//!
//! Invariant: the newest segment stays, and so does every segment that recovery might still need to find the durable
//! position: all before it is complete and durable with or before the segment that follows.

use tidegate_model::Position;

use crate::Retention;

/// What there is to know about a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentFacts {
    pub(crate) byte_count: u64,
    /// When its last record was written.
    pub(crate) written_us: i64,
    /// Where reading may start with it.
    pub(crate) after: Position,
}

/// How many of the segments, oldest first, are to be removed.
pub(crate) fn expired(segments: &[SegmentFacts], retention: Retention, now_us: i64, durable: Position) -> usize {
    let age_us = i64::try_from(retention.age.as_micros()).unwrap_or(i64::MAX);
    let mut byte_count: u64 = segments.iter().map(|segment| segment.byte_count).sum();
    let mut count = 0;
    for pair in segments.windows(2) {
        let [oldest, next] = pair else { break };
        let too_large = byte_count > retention.size_bytes;
        let too_old = oldest.written_us.saturating_add(age_us) < now_us;
        if !(too_large || too_old) || next.after > durable.as_resume_point() {
            break;
        }
        byte_count -= oldest.byte_count;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidegate_model::Lsn;

    use super::*;

    fn segments() -> Vec<SegmentFacts> {
        let facts = |n: u64| SegmentFacts {
            byte_count: 10,
            written_us: 1_000_000 * n as i64,
            after: Position::end_of_transaction(Lsn(100 * n)),
        };
        (0..4).map(facts).collect()
    }

    fn retention(size_bytes: u64, age_s: u64) -> Retention {
        Retention { size_bytes, age: Duration::from_secs(age_s) }
    }

    const DURABLE: Position = Position { lsn: Lsn(1000), ordinal: 1 };

    #[test]
    fn size_and_age_each_suffice() {
        assert_eq!(expired(&segments(), retention(40, 9), 3_000_000, DURABLE), 0);
        assert_eq!(expired(&segments(), retention(39, 9), 3_000_000, DURABLE), 1);
        assert_eq!(expired(&segments(), retention(15, 9), 3_000_000, DURABLE), 3);
        assert_eq!(expired(&segments(), retention(40, 1), 2_500_000, DURABLE), 2);
    }

    #[test]
    fn the_newest_stays_whatever_its_size_and_age() {
        assert_eq!(expired(&segments(), retention(0, 0), i64::MAX, DURABLE), 3);
        assert_eq!(expired(&[], retention(0, 0), i64::MAX, DURABLE), 0);
    }

    #[test]
    fn what_is_not_followed_by_a_durable_boundary_stays() {
        assert_eq!(expired(&segments(), retention(0, 0), i64::MAX, Position::new(Lsn(200), 7)), 2);
        assert_eq!(expired(&segments(), retention(0, 0), i64::MAX, Position::new(Lsn(199), 7)), 1);
    }
}
