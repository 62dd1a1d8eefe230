//! The total order of all that a subscriber can see.
//!
//! Invariant: WAL changes have the same position on every node and after every restart.

use std::{fmt, str::FromStr};

use crate::Lsn;

/// Ordinal of a non-transactional message; its LSN is one more than its record's start.
pub const MESSAGE_ORDINAL: u32 = 1 << 30;
/// First ordinal of all that is of snapshots.
pub const SNAPSHOT_ORDINAL: u32 = 1 << 31;
/// First ordinal of what snapshots have in the log; a chunk's LSN is its high watermark. Those before it are of what a snapshot out of a
/// mirror tells one subscription: whatever the log has at an LSN can follow that.
pub const LOGGED_SNAPSHOT_ORDINAL: u32 = 3 << 30;

/// A place in the order that subscribers see, printed `16/B374D848:3`.
///
/// A transaction's changes have its commit *end* LSN and the ordinals 1, 2, 3…; what marks its beginning has ordinal 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Commit end LSN, a message's own LSN and one, or a chunk's high watermark.
    pub lsn: Lsn,
    /// Counts changes within the LSN.
    pub ordinal: u32,
}

impl Position {
    /// Before everything.
    pub const ZERO: Position = Position { lsn: Lsn::ZERO, ordinal: 0 };

    /// A position from its parts.
    #[must_use]
    pub fn new(lsn: Lsn, ordinal: u32) -> Self {
        Position { lsn, ordinal }
    }

    /// The end of the transaction whose commit ends at `lsn`, whatever its number of changes; before a message or
    /// chunk at the same LSN.
    #[must_use]
    pub fn end_of_transaction(lsn: Lsn) -> Self {
        Position { lsn, ordinal: MESSAGE_ORDINAL - 1 }
    }

    /// The position of a message outside of transactions, whose record starts at `message_lsn`. Records are aligned to eight
    /// bytes, so that nothing else stands one byte behind the start; and what a chunk that stands where the record before
    /// ended has seen precedes the message, whenever that is received.
    #[must_use]
    pub fn of_message(message_lsn: Lsn) -> Self {
        Position { lsn: Lsn(message_lsn.0.saturating_add(1)), ordinal: MESSAGE_ORDINAL }
    }

    /// This position as a place to resume after: a transaction is received whole or not at all, so any ordinal within it
    /// means its end.
    #[must_use]
    pub fn as_resume_point(self) -> Self {
        if self.ordinal < MESSAGE_ORDINAL { Self::end_of_transaction(self.lsn) } else { self }
    }

    /// As it is printed. Allocates nothing: it is written twice a transaction.
    #[must_use]
    pub fn text(self) -> PositionText {
        let mut text = PositionText { bytes: [0; POSITION_TEXT_BYTES], start: POSITION_TEXT_BYTES };
        text.put_number(self.ordinal, 10);
        text.put(b':');
        text.put_number(self.lsn.0 as u32, 16);
        text.put(b'/');
        text.put_number((self.lsn.0 >> 32) as u32, 16);
        text
    }
}

/// Bytes of the longest position: two numbers of eight digits, one of ten, and what stands between.
const POSITION_TEXT_BYTES: usize = 28;

/// A position as text, written from its end.
#[derive(Clone, Copy, Debug)]
pub struct PositionText {
    bytes: [u8; POSITION_TEXT_BYTES],
    start: usize,
}

impl PositionText {
    /// The text, which is ASCII.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn put(&mut self, byte: u8) {
        self.start -= 1;
        self.bytes[self.start] = byte;
    }

    fn put_number(&mut self, mut number: u32, base: u32) {
        loop {
            self.put(b"0123456789ABCDEF"[(number % base) as usize]);
            number /= base;
            if number == 0 {
                return;
            }
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.lsn, self.ordinal)
    }
}

/// The text is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a position; expected an LSN, a colon and a number such as 16/B374D848:3")]
pub struct PositionError;

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let (lsn, ordinal) = text.split_once(':').ok_or(PositionError)?;
        if ordinal.is_empty() || !ordinal.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(PositionError);
        }
        Ok(Position {
            lsn: lsn.parse().map_err(|_| PositionError)?,
            ordinal: ordinal.parse().map_err(|_| PositionError)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(lsn in any::<u64>(), ordinal in any::<u32>()) {
            let position = Position::new(Lsn(lsn), ordinal);
            prop_assert_eq!(position.to_string().parse(), Ok(position));
            prop_assert_eq!(position.text().as_bytes().to_vec(), position.to_string().into_bytes());
        }
    }

    #[test]
    fn a_message_at_a_transactions_end_follows_it() {
        let end = Position::new(Lsn(7), 12).as_resume_point();
        assert!(Position::new(Lsn(7), 12) < end);
        assert!(end < Position::new(Lsn(7), MESSAGE_ORDINAL));
        assert!(end < Position::new(Lsn(8), 0));
    }

    #[test]
    fn a_message_follows_the_chunks_that_stand_where_it_starts_and_precedes_all_else() {
        let message = Position::of_message(Lsn(16));
        assert!(Position::new(Lsn(16), u32::MAX) < message);
        assert!(message < Position::new(Lsn(17), SNAPSHOT_ORDINAL) && message < Position::new(Lsn(24), 0));
    }
}
