//! PostgreSQL's log sequence number: a byte position in the WAL.

use std::{fmt, str::FromStr};

/// A byte position in the WAL of one timeline, printed as PostgreSQL prints it: `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before everything; PostgreSQL's "invalid".
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes of WAL from `earlier` to here; 0 when `earlier` is later.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN; expected two hexadecimal numbers such as 16/B374D848")]
pub struct LsnError;

impl FromStr for Lsn {
    type Err = LsnError;

    fn from_str(text: &str) -> Result<Self, LsnError> {
        let (high, low) = text.split_once('/').ok_or(LsnError)?;
        Ok(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

/// 1 to 8 hexadecimal digits, no sign.
fn half(text: &str) -> Result<u32, LsnError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(LsnError);
    }
    u32::from_str_radix(text, 16).map_err(|_| LsnError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(value in any::<u64>()) {
            prop_assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "+1/2", "g/1", "123456789/1", "1/2/3"] {
            assert_eq!(text.parse::<Lsn>(), Err(LsnError), "{text}");
        }
    }
}
