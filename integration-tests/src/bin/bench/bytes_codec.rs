//! gRPC messages as bare bytes, so that neither side of a measurement encodes or decodes anything.

use std::io;

use bytes::{Buf, BufMut, Bytes};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Encodes and decodes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> BytesCodec {
        BytesCodec
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

/// Number of changes in a `SessionResponse`: events (field 1) with a change (field 2) in its field 6, a `ChangeBatch`. Walks over
/// the lengths only.
pub(crate) fn change_count(response: &[u8]) -> Result<u64, io::Error> {
    let mut count = 0;
    fields(response, |number, content| {
        if number == 6 {
            fields(content, |_, event| {
                fields(event, |number, _| {
                    count += u64::from(number == 2);
                    Ok(())
                })
            })?;
        }
        Ok(())
    })?;
    Ok(count)
}

/// Has a `SessionResponse` the event of that number?
pub(crate) fn has_event(response: &[u8], event: u64) -> Result<bool, io::Error> {
    let mut has = false;
    fields(response, |number, _| {
        has |= number == event;
        Ok(())
    })?;
    Ok(has)
}

/// Calls with number and content of each length-delimited field; others are skipped.
fn fields(mut bytes: &[u8], mut each: impl FnMut(u64, &[u8]) -> Result<(), io::Error>) -> Result<(), io::Error> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let length = match tag & 7 {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).map_err(io::Error::other)?,
            5 => 4,
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData)),
        };
        let (content, rest) = bytes.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        if tag & 7 == 2 {
            each(tag >> 3, content)?;
        }
        bytes = rest;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64, io::Error> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        *bytes = rest;
        value |= u64::from(first & 0x7F) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(io::Error::from(io::ErrorKind::InvalidData))
}
