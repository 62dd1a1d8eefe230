//! Protobuf's wire format, written and walked without descriptors (protobuf.dev, "Encoding").
//!
//! Writing appends to a `BytesMut` and allocates only when that grows. Reading borrows and checks every length, so that
//! bytes from outside cannot make it panic. Deprecated groups are refused.

use bytes::BytesMut;

/// The low three bits of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WireType {
    /// A varint.
    Varint = 0,
    /// Eight bytes, little endian.
    Fixed64 = 1,
    /// A length and as many bytes.
    Len = 2,
    /// Four bytes, little endian.
    Fixed32 = 5,
}

/// Bytes of the longest varint.
pub const MAX_VARINT_BYTES: usize = 10;

/// The bytes are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf: {0}")]
pub struct WireError(pub(crate) &'static str);

/// A small piece of a message, built before it is appended in one go.
#[derive(Clone, Copy, Debug)]
pub struct Piece<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Piece<N> {
    fn default() -> Self {
        Piece { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Piece<N> {
    /// An empty piece.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What has been written.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Appends bytes; panics if the piece was chosen too small.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends a varint; panics if the piece was chosen too small.
    #[inline]
    pub fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes[self.len] = (value as u8) | 0x80;
            self.len += 1;
            value >>= 7;
        }
        self.bytes[self.len] = value as u8;
        self.len += 1;
    }

    /// Appends a field's tag; panics if the piece was chosen too small.
    #[inline]
    pub fn put_tag(&mut self, field: u32, wire_type: WireType) {
        self.put_varint(tag(field, wire_type));
    }

    /// Appends a string, bytes or message field; panics if the piece was chosen too small.
    #[inline]
    pub fn put_len_field(&mut self, field: u32, bytes: &[u8]) {
        self.put_tag(field, WireType::Len);
        self.put_varint(bytes.len() as u64);
        self.put(bytes);
    }
}

/// A field's tag.
#[inline]
#[must_use]
pub fn tag(field: u32, wire_type: WireType) -> u64 {
    (u64::from(field) << 3) | wire_type as u64
}

/// Bytes of a varint.
#[inline]
#[must_use]
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a varint.
#[inline]
pub fn put_varint(out: &mut BytesMut, value: u64) {
    let mut piece = Piece::<MAX_VARINT_BYTES>::new();
    piece.put_varint(value);
    out.extend_from_slice(piece.as_slice());
}

/// Appends a field's tag.
#[inline]
pub fn put_tag(out: &mut BytesMut, field: u32, wire_type: WireType) {
    put_varint(out, tag(field, wire_type));
}

/// Appends a varint field, zero included.
#[inline]
pub fn put_varint_field(out: &mut BytesMut, field: u32, value: u64) {
    let mut piece = Piece::<{ 2 * MAX_VARINT_BYTES }>::new();
    piece.put_tag(field, WireType::Varint);
    piece.put_varint(value);
    out.extend_from_slice(piece.as_slice());
}

/// Appends a string, bytes or message field, empty ones included.
#[inline]
pub fn put_len_field(out: &mut BytesMut, field: u32, bytes: &[u8]) {
    put_len_head(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// Appends the tag and length of a field whose `len` bytes the caller appends next.
#[inline]
pub fn put_len_head(out: &mut BytesMut, field: u32, len: usize) {
    let mut piece = Piece::<{ 2 * MAX_VARINT_BYTES }>::new();
    piece.put_tag(field, WireType::Len);
    piece.put_varint(len as u64);
    out.extend_from_slice(piece.as_slice());
}

/// Appends the tag of a field whose length is not known yet. What the caller appends until [`end_len_field`] is its
/// content.
#[inline]
pub fn begin_len_field(out: &mut BytesMut, field: u32) -> OpenField {
    let mut piece = Piece::<{ 2 * MAX_VARINT_BYTES }>::new();
    piece.put_tag(field, WireType::Len);
    // Room for the length of a short field; longer ones are moved.
    piece.put_varint(0);
    out.extend_from_slice(piece.as_slice());
    OpenField { start: out.len() }
}

/// Writes the length of a field begun with [`begin_len_field`].
#[inline]
pub fn end_len_field(out: &mut BytesMut, field: OpenField) {
    let len = out.len() - field.start;
    let mut piece = Piece::<MAX_VARINT_BYTES>::new();
    piece.put_varint(len as u64);
    let length = piece.as_slice();
    let more = length.len() - 1;
    if more > 0 {
        out.extend_from_slice(&[0; MAX_VARINT_BYTES][..more]);
        out.copy_within(field.start..field.start + len, field.start + more);
    }
    out[field.start - 1..field.start + more].copy_from_slice(length);
}

/// A field whose length is still to be written.
#[derive(Debug)]
#[must_use = "end it with end_len_field"]
pub struct OpenField {
    start: usize,
}

/// The fields of an encoded message, in the order in which they stand.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    bytes: &'a [u8],
}

/// One field of an encoded message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its number.
    pub number: u32,
    /// Its wire type.
    pub wire_type: WireType,
    /// The whole field, its tag included.
    pub whole: &'a [u8],
    /// The value: a varint's bytes, the fixed bytes, or what stands behind the length.
    pub value: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of `message`.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Fields { bytes: message }
    }

    fn read(&mut self) -> Result<Field<'a>, WireError> {
        let whole = self.bytes;
        let (tag, tag_len) = read_varint(whole)?;
        let number = u32::try_from(tag >> 3).map_err(|_| WireError("field number out of range"))?;
        if number == 0 || number > MAX_FIELD {
            return Err(WireError("field number out of range"));
        }
        let rest = &whole[tag_len..];
        let (wire_type, skip, value_len) = match tag & 7 {
            0 => (WireType::Varint, 0, read_varint(rest)?.1),
            1 => (WireType::Fixed64, 0, 8),
            2 => {
                let (len, skip) = read_varint(rest)?;
                let len = usize::try_from(len).map_err(|_| WireError("length out of range"))?;
                (WireType::Len, skip, len)
            }
            5 => (WireType::Fixed32, 0, 4),
            _ => return Err(WireError("group or unknown wire type")),
        };
        let value = rest.get(skip..).and_then(|rest| rest.get(..value_len)).ok_or(WireError("truncated"))?;
        let end = tag_len + skip + value_len;
        self.bytes = &whole[end..];
        Ok(Field { number, wire_type, whole: &whole[..end], value })
    }
}

/// The highest field number.
pub const MAX_FIELD: u32 = (1 << 29) - 1;

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            // Nothing behind a malformed field can be trusted.
            self.bytes = &[];
        }
        Some(field)
    }
}

/// The varint at the start of `bytes` and its length in bytes.
///
/// # Errors
/// It is cut off, or longer than 64 bits.
pub fn read_varint(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let mut value = 0_u64;
    for (at, &byte) in bytes.iter().take(MAX_VARINT_BYTES).enumerate() {
        if at == MAX_VARINT_BYTES - 1 && byte > 1 {
            return Err(WireError("varint over 64 bits"));
        }
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Ok((value, at + 1));
        }
    }
    Err(WireError("truncated"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_varint_is_read_back(value in any::<u64>(), shift in 0_u32..64) {
            let value = value >> shift;
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(read_varint(&out), Ok((value, out.len())));
        }

        #[test]
        fn fields_of_any_length_are_read_back(contents in proptest::collection::vec(0_usize..40_000, 0..5)) {
            let mut out = BytesMut::new();
            for (n, &len) in contents.iter().enumerate() {
                let open = begin_len_field(&mut out, n as u32 + 1);
                out.extend_from_slice(&vec![n as u8 + 1; len]);
                end_len_field(&mut out, open);
            }
            let read: Vec<Field<'_>> = Fields::new(&out).collect::<Result<_, _>>().expect("valid");
            prop_assert_eq!(read.len(), contents.len());
            for (n, (field, &len)) in read.iter().zip(&contents).enumerate() {
                prop_assert_eq!(field.value, &vec![n as u8 + 1; len][..]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let whole: usize = Fields::new(&bytes).map_while(Result::ok).map(|field| field.whole.len()).sum();
            prop_assert!(whole <= bytes.len());
        }
    }

    #[test]
    fn malformed_messages_are_refused() {
        for bytes in [&[0x0a_u8, 5, 1][..], &[0x08], &[0x00, 0], &[0x0b], &[0x0d, 1, 2], &[0xff; 11]] {
            assert!(Fields::new(bytes).any(|field| field.is_err()), "{bytes:?}");
        }
    }
}
