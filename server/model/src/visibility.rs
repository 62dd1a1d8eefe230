//! Which transactions a snapshot of PostgreSQL sees, as `pg_current_snapshot()` prints it (manual, "System Information
//! Functions": `xmin:xmax:xip_list`).
//!
//! A commit becomes visible only after its record is in the WAL, with a synchronous standby much later. What a query has seen
//! is therefore told from what it has not by transaction ids, never by LSNs.

use std::str::FromStr;

/// A transaction id with its epoch, as `pg_current_xact_id()` counts: it never wraps around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FullXid(pub u64);

/// A snapshot of PostgreSQL: all transactions below `xmax` are visible or rolled back, but for those in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visibility {
    xmin: FullXid,
    xmax: FullXid,
    /// Sorted.
    in_progress: Box<[FullXid]>,
}

/// The text is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot; expected xmin:xmax:xip_list as pg_current_snapshot() prints it")]
pub struct VisibilityError;

impl Visibility {
    /// Has the top-level transaction, which has committed, been visible to the snapshot?
    #[must_use]
    pub fn sees(&self, xid: FullXid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    /// The transaction id with its epoch. `xid` must lie within 2³¹ of the snapshot, as all that PostgreSQL still knows do.
    #[must_use]
    pub fn widen(&self, xid: u32) -> FullXid {
        let distance = xid.wrapping_sub(self.xmax.0 as u32).cast_signed();
        FullXid(self.xmax.0.saturating_add_signed(i64::from(distance)))
    }

    /// [`Visibility::sees`] for a transaction id without epoch.
    #[must_use]
    pub fn sees_xid(&self, xid: u32) -> bool {
        self.sees(self.widen(xid))
    }
}

impl FromStr for Visibility {
    type Err = VisibilityError;

    fn from_str(text: &str) -> Result<Self, VisibilityError> {
        let xid = |text: &str| text.parse().map(FullXid).map_err(|_| VisibilityError);
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(VisibilityError);
        let (xmin, xmax, list) = (xid(next()?)?, xid(next()?)?, next()?);
        let mut in_progress = match list {
            "" => Vec::new(),
            list => list.split(',').map(xid).collect::<Result<_, _>>()?,
        };
        in_progress.sort_unstable();
        Ok(Visibility { xmin, xmax, in_progress: in_progress.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn in_progress_and_later_transactions_are_not_seen() {
        let visibility: Visibility = "10:20:10,14,15".parse().expect("a snapshot");
        let seen: Vec<u64> = (8..22).filter(|xid| visibility.sees(FullXid(*xid))).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 16, 17, 18, 19]);
    }

    #[test]
    fn a_transaction_id_is_widened_across_a_wraparound() {
        let after = 7 << 32;
        let visibility: Visibility = format!("{}:{}:", after - 5, after + 3).parse().expect("a snapshot");
        assert_eq!(visibility.widen(u32::MAX), FullXid(after - 1));
        assert_eq!(visibility.widen(2), FullXid(after + 2));
        assert!(visibility.sees_xid(u32::MAX - 10) && visibility.sees_xid(2) && !visibility.sees_xid(3));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[0-9:,x-]{0,30}") {
            let _parsed_or_refused = text.parse::<Visibility>().is_ok();
        }
    }
}
