//! Resume tokens: `prefix.position`, such as `1-0af3…-0-5f2c11aa.16/B374D848:3`, or `1-0af3…-0-7-81d0c6e2.16/B374D848:3`
//! for a subscription that started from snapshot 7. One that asks for the snapshots that someone starts, or has asked, has where that
//! has changed before the checksum: `-s16/B374D000:3,16/B374D848:3`.
//!
//! The prefix is issued once per subscription, so that the many positions sent later are shared bytes. A token grants
//! nothing; it is checked for typing errors, not signed. It deliberately knows neither table names nor rows.

use std::{fmt, str::FromStr};

use crate::{AdHoc, Epoch, Position};

/// What a token states besides the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPrefix {
    /// The history that the position belongs to.
    pub epoch: Epoch,
    /// Version of the definitions (shapes, aggregates) that the subscription selects; 0 for tables.
    pub definitions: u32,
    /// Number of the snapshot that the subscription started from; 0 for none.
    pub snapshot: u32,
    /// Which of the snapshots that someone starts it receives.
    pub ad_hoc: AdHoc,
}

/// Where a subscription can be taken up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The part that does not change within a subscription.
    pub prefix: TokenPrefix,
    /// Everything up to here has been received.
    pub position: Position,
}

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not the form of a token.
    #[error("malformed token; use the text of a Progress, or token_prefix + '.' + position, unchanged")]
    Malformed,
    /// A newer or foreign version.
    #[error("token of version {0}, which this server does not read; it reads version 1")]
    Version(u32),
    /// The checksum does not match.
    #[error("damaged token (checksum); use it unchanged")]
    Checksum,
}

const VERSION: u32 = 1;
/// Before the places where it has changed which snapshots are received; no hexadecimal digit.
const TURNS: char = 's';

impl fmt::Display for TokenPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}-{}-{:x}-", self.epoch, self.definitions)?;
        if self.snapshot != 0 {
            write!(f, "{:x}-", self.snapshot)?;
        }
        for (at, turn) in self.ad_hoc.turns().iter().enumerate() {
            write!(f, "{}{turn}", if at == 0 { TURNS } else { ',' })?;
        }
        if !self.ad_hoc.turns().is_empty() {
            f.write_str("-")?;
        }
        write!(f, "{:08x}", self.checksum())
    }
}

impl TokenPrefix {
    /// FNV-1a over the fields; catches typing errors and truncation, no attacker.
    fn checksum(&self) -> u32 {
        let bytes = self.epoch.0.to_be_bytes().into_iter().chain(self.definitions.to_be_bytes());
        let snapshot = Some(self.snapshot).filter(|snapshot| *snapshot != 0);
        let turns = self.ad_hoc.turns().iter();
        let turns = turns.flat_map(|turn| turn.lsn.0.to_be_bytes().into_iter().chain(turn.ordinal.to_be_bytes()));
        bytes
            .chain(snapshot.into_iter().flat_map(u32::to_be_bytes))
            .chain(turns)
            .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }
}

impl FromStr for TokenPrefix {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(TokenError::Malformed);
        let version = next()?.parse::<u32>().map_err(|_| TokenError::Malformed)?;
        if version != VERSION {
            return Err(TokenError::Version(version));
        }
        let epoch = next()?.parse().map_err(|()| TokenError::Malformed)?;
        let number = |text: &str| u32::from_str_radix(text, 16).map_err(|_| TokenError::Malformed);
        let definitions = number(next()?)?;
        let mut part = next()?;
        let mut snapshot = 0;
        let mut ad_hoc = AdHoc::default();
        let mut rest = parts.next();
        if let (Some(after), false) = (rest, part.starts_with(TURNS)) {
            snapshot = Some(number(part)?).filter(|snapshot| *snapshot != 0).ok_or(TokenError::Malformed)?;
            (part, rest) = (after, parts.next());
        }
        if let (Some(after), Some(turns)) = (rest, part.strip_prefix(TURNS)) {
            ad_hoc = turned(turns).ok_or(TokenError::Malformed)?;
            (part, rest) = (after, parts.next());
        }
        let checksum = number(part)?;
        if rest.is_some() {
            return Err(TokenError::Malformed);
        }
        let prefix = TokenPrefix { epoch, definitions, snapshot, ad_hoc };
        if prefix.checksum() != checksum {
            return Err(TokenError::Checksum);
        }
        Ok(prefix)
    }
}

fn turned(turns: &str) -> Option<AdHoc> {
    let turns = turns.split(',').map(|turn| turn.parse().ok()).collect::<Option<Vec<Position>>>()?;
    AdHoc::of_turns(&turns)
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.prefix, self.position)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (prefix, position) = text.split_once('.').ok_or(TokenError::Malformed)?;
        Ok(Token { prefix: prefix.parse()?, position: position.parse().map_err(|_| TokenError::Malformed)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lsn;
    use proptest::prelude::*;

    fn token(epoch: u128, definitions: u32, snapshot: u32, (lsn, ordinal): (u64, u32)) -> Token {
        let prefix = TokenPrefix { epoch: Epoch(epoch), definitions, snapshot, ad_hoc: AdHoc::default() };
        Token { prefix, position: Position::new(Lsn(lsn), ordinal) }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            e in any::<u128>(), d in any::<u32>(), s in prop_oneof![Just(0), any::<u32>()], at in any::<(u64, u32)>(),
        ) {
            prop_assert_eq!(token(e, d, s, at).to_string().parse(), Ok(token(e, d, s, at)));
        }

        #[test]
        fn where_snapshots_are_received_is_read_back(
            s in prop_oneof![Just(0), any::<u32>()], turns in proptest::collection::btree_set(any::<(u64, u32)>(), 0..9),
        ) {
            let mut token = token(5, 0, s, (5, 1));
            let turns: Vec<Position> = turns.into_iter().map(|(lsn, ordinal)| Position::new(Lsn(lsn), ordinal)).collect();
            token.prefix.ad_hoc = AdHoc::of_turns(&turns).expect("in order");
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,100}") {
            prop_assert!(text.parse::<Token>().is_err());
        }

        #[test]
        fn a_changed_prefix_is_refused(e in any::<u128>(), at in 2_usize..30, digit in "[0-9a-f]", s in 0_u32..9) {
            let text = token(e, 0, s, (5, 1)).to_string();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &digit);
            prop_assume!(changed != text);
            prop_assert_eq!(changed.parse::<Token>(), Err(TokenError::Checksum));
        }
    }

    #[test]
    fn a_token_without_a_snapshot_has_the_text_that_it_always_had() {
        let text = "1-00000000000000000000000000000005-0-58ba7d86.0/5:1";
        assert_eq!(token(5, 0, 0, (5, 1)).to_string(), text);
        assert_eq!(text.parse(), Ok(token(5, 0, 0, (5, 1))));
        let zero = text.replacen("-0-", "-0-0-", 1);
        assert_eq!(zero.parse::<Token>(), Err(TokenError::Malformed));
    }
}
