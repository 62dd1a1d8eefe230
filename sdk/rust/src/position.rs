//! Positions and resume tokens, as far as a client needs them: to print, to keep, to compare.
//!
//! Invariant: what is printed is read back. A token's prefix stays the server's own text; the client neither reads it
//! nor checks it.

use std::{fmt, str::FromStr, sync::Arc};

/// From this ordinal on, a position is a message outside of transactions, not a transaction's change.
const MESSAGE_ORDINAL: u32 = 1 << 30;
/// From this ordinal on, a position is a chunk or a mark of a snapshot.
const SNAPSHOT_ORDINAL: u32 = 1 << 31;

/// A place in the order of a source's changes, printed `16/B374D848:3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// PostgreSQL's LSN at which the transaction's commit ends, or of the message.
    pub lsn: u64,
    /// Counts the changes within the transaction from 1; its Begin has 0.
    pub ordinal: u32,
}

impl Position {
    /// Before everything.
    pub const ZERO: Position = Position { lsn: 0, ordinal: 0 };

    /// This position as a place to resume after: a transaction is received whole or not at all, so any ordinal within
    /// it means its end.
    pub(crate) fn as_resume_point(self) -> Self {
        if self.ordinal < MESSAGE_ORDINAL { Position { lsn: self.lsn, ordinal: MESSAGE_ORDINAL - 1 } } else { self }
    }

    /// Is it a snapshot's, not a transaction's or message's?
    pub(crate) fn is_of_snapshot(self) -> bool {
        self.ordinal >= SNAPSHOT_ORDINAL
    }

    /// May a transaction, or message, that began here end there?
    pub(crate) fn may_end_at(self, end: Position) -> bool {
        self.lsn == end.lsn && self.ordinal <= end.ordinal && self.as_resume_point() == end.as_resume_point()
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}:{}", self.lsn >> 32, self.lsn & 0xFFFF_FFFF, self.ordinal)
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
        let (high, low) = lsn.split_once('/').ok_or(PositionError)?;
        let decimal = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
        Ok(Position {
            lsn: (u64::from(half(high)?) << 32) | u64::from(half(low)?),
            ordinal: if decimal { ordinal.parse().map_err(|_| PositionError)? } else { return Err(PositionError) },
        })
    }
}

/// One half of an LSN: 1 to 8 hexadecimal digits.
fn half(text: &str) -> Result<u32, PositionError> {
    let hexadecimal = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hexadecimal { u32::from_str_radix(text, 16).map_err(|_| PositionError) } else { Err(PositionError) }
}

/// Where a subscription can be taken up again: store its text with what was processed, and pass it to
/// [`Start::Token`](crate::Start::Token).
///
/// ```
/// let token: tidegate_client::Token = "1-0af3-0-5f2c11aa.16/B374D848:3".parse().expect("a token's form");
/// assert_eq!(token.to_string(), "1-0af3-0-5f2c11aa.16/B374D848:3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    prefix: Arc<str>,
    position: Position,
}

impl Token {
    pub(crate) fn new(prefix: Arc<str>, position: Position) -> Self {
        Token { prefix, position }
    }

    /// Moves to another position of the same subscription.
    pub(crate) fn advance(&mut self, position: Position) {
        self.position = position;
    }

    /// Everything up to here has been received.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.prefix, self.position)
    }
}

/// The text does not have the form of a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed token; use the text of a token that a subscription handed out, unchanged")]
pub struct TokenError;

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (prefix, position) = text.split_once('.').ok_or(TokenError)?;
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(TokenError);
        }
        Ok(Token { prefix: prefix.into(), position: position.parse().map_err(|_| TokenError)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(lsn in any::<u64>(), ordinal in any::<u32>(), prefix in "[0-9a-z-]{1,60}") {
            let token = Token::new(prefix.into(), Position { lsn, ordinal });
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,60}") {
            prop_assert!(text.parse::<Position>().is_err());
        }
    }

    #[test]
    fn malformed_tokens_are_refused() {
        for text in ["", ".", "a", "a.", ".0/1:1", "a.0/1", "a.0/1:", "a.0/1:+1", "a.0/123456789:1", "a b.0/1:1"] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_message_at_a_transactions_end_follows_it() {
        let end = Position { lsn: 7, ordinal: 12 }.as_resume_point();
        assert!(Position { lsn: 7, ordinal: 12 } < end && end < Position { lsn: 7, ordinal: MESSAGE_ORDINAL });
    }
}
