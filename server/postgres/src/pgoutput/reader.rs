//! Reads the fields of one pgoutput message from a slice.
//!
//! Invariant: every read is bounds-checked and answers `Truncated` beyond the end. It knows fields, not messages.

use tidegate_model::Lsn;

use super::{DecodeError, POSTGRES_EPOCH_US};

/// The part of a message that has not been read yet.
pub(super) struct Reader<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Takes the message's first byte as its tag.
    pub(super) fn new(data: &'a [u8]) -> Result<Self, DecodeError> {
        let (&tag, rest) = data.split_first().ok_or(DecodeError::Truncated { tag: 0 })?;
        Ok(Reader { tag, rest })
    }

    /// The message's first byte.
    pub(super) fn tag(&self) -> u8 {
        self.tag
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Succeeds if everything has been read.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            byte_count => Err(DecodeError::Trailing { tag: self.tag, byte_count }),
        }
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array().map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    /// Microseconds since 2000-01-01, turned into microseconds since 1970-01-01.
    pub(super) fn time_us(&mut self) -> Result<i64, DecodeError> {
        self.array().map(|bytes| i64::from_be_bytes(bytes).saturating_add(POSTGRES_EPOCH_US))
    }

    /// A text that ends with a zero byte.
    pub(super) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let tag = self.tag;
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or(DecodeError::Truncated { tag })?;
        let text = std::str::from_utf8(&self.rest[..end]).map_err(|_| DecodeError::NotUtf8 { tag })?;
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    /// Bytes behind their length.
    pub(super) fn sized_bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let truncated = DecodeError::Truncated { tag: self.tag };
        let length = usize::try_from(self.u32()?).map_err(|_| truncated.clone())?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { tag: self.tag })?;
        self.rest = rest;
        Ok(*bytes)
    }
}
