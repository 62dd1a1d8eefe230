//! Session responses as framed gRPC messages, so that the bytes of changes are shared and not encoded per subscriber.
//!
//! ```text
//! | 0 | length (u32, big endian) | subscription | selection | event: tag, length |  body            |
//!   gRPC's prefix                |  this subscriber's few bytes                  |  shared, or copied if small |
//! ```
//!
//! (gRPC over HTTP/2, "Length-Prefixed-Message"; the fields of `tidegate.v1.SessionResponse`.) It deliberately does not
//! compress: the bodies are shared.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message as _;
use tidegate_proto::v1;
use tidegate_schema::wire::{self, WireType};

/// A body of at least this length is a frame of its own; a shorter one is cheaper to copy than to send apart.
const SHARED_BODY_BYTES: usize = 4096;
/// gRPC's prefix: no compression, and the length.
const PREFIX_BYTES: usize = 5;

/// Field numbers of SessionResponse's events that have shared bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Event {
    RowType = 4,
    Changes = 6,
    SnapshotBegin = 8,
    SnapshotEnd = 9,
    Progress = 10,
}

/// What goes before the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addressee {
    pub(crate) subscription: u32,
    pub(crate) selection: u32,
}

/// Messages on their way out. Its owner keeps it short: it fills it only when the connection asks for more.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: VecDeque<Bytes>,
    open: BytesMut,
    byte_count: usize,
}

impl Outbox {
    /// Bytes that wait.
    pub(crate) fn byte_count(&self) -> usize {
        self.byte_count
    }

    /// Appends a message whose body is a slice of `memory`. Returns the message's length, prefix not counted.
    pub(crate) fn event(
        &mut self,
        to: Addressee,
        event: Event,
        memory: &Bytes,
        range: std::ops::Range<usize>,
    ) -> usize {
        let mut head = wire::Piece::<48>::new();
        if to.subscription != 0 {
            head.put_tag(1, WireType::Varint);
            head.put_varint(u64::from(to.subscription));
        }
        if to.selection != 0 {
            head.put_tag(2, WireType::Varint);
            head.put_varint(u64::from(to.selection));
        }
        head.put_tag(event as u32, WireType::Len);
        head.put_varint(range.len() as u64);
        let message_len = head.as_slice().len() + range.len();
        self.prefix(message_len);
        self.open.extend_from_slice(head.as_slice());
        if range.len() < SHARED_BODY_BYTES {
            self.open.extend_from_slice(&memory[range]);
        } else {
            self.seal();
            self.frames.push_back(memory.slice(range));
        }
        message_len
    }

    /// Appends a message that is nobody else's.
    pub(crate) fn message(&mut self, message: &v1::SessionResponse) {
        self.prefix(message.encoded_len());
        message.encode(&mut self.open).expect("a BytesMut grows");
    }

    /// The next bytes for the connection.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        if self.frames.is_empty() {
            self.seal();
        }
        let frame = self.frames.pop_front()?;
        self.byte_count -= frame.len();
        Some(frame)
    }

    fn prefix(&mut self, message_len: usize) {
        self.byte_count += PREFIX_BYTES + message_len;
        self.open.put_u8(0);
        self.open.put_u32(u32::try_from(message_len).expect("messages are under 1 MiB"));
    }

    /// Makes a frame of what was copied so far. The buffer is given away whole, so that an idle session holds none.
    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.frames.push_back(std::mem::take(&mut self.open).freeze());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What has been written, taken apart.
    pub(crate) fn messages(outbox: &mut Outbox) -> Vec<v1::SessionResponse> {
        let mut bytes = BytesMut::new();
        while let Some(frame) = outbox.pop() {
            bytes.extend_from_slice(&frame);
        }
        let (mut bytes, mut messages) = (bytes.freeze(), Vec::new());
        while !bytes.is_empty() {
            let prefix = bytes.split_to(PREFIX_BYTES);
            let len = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            messages.push(v1::SessionResponse::decode(bytes.split_to(len)).expect("a SessionResponse"));
        }
        messages
    }

    #[test]
    fn framed_messages_are_session_responses() {
        let change = v1::Change { row: vec![1; 6000].into(), ..v1::Change::default() };
        let event = v1::Event { what: Some(v1::event::What::Change(change)) };
        let batch = v1::ChangeBatch { events: vec![event] };
        let memory = Bytes::from(batch.encode_to_vec());
        let mut outbox = Outbox::default();
        let len = outbox.event(Addressee { subscription: 300, selection: 2 }, Event::Changes, &memory, 0..memory.len());
        let progress = v1::SessionResponse { subscription: 7, ..v1::SessionResponse::default() };
        outbox.message(&progress);
        assert_eq!(outbox.byte_count(), len + progress.encoded_len() + 2 * PREFIX_BYTES);
        let sent = messages(&mut outbox);
        assert_eq!(outbox.byte_count(), 0);
        assert_eq!(sent[0].encoded_len(), len);
        assert_eq!((sent[0].subscription, sent[0].selection), (300, 2));
        assert_eq!(sent[0].event, Some(v1::session_response::Event::Changes(batch)));
        assert_eq!(sent[1], progress);
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let memory = Bytes::from(vec![0; 3 * SHARED_BODY_BYTES]);
        let mut outbox = Outbox::default();
        outbox.event(Addressee { subscription: 1, selection: 0 }, Event::Changes, &memory, 0..memory.len());
        let _head = outbox.pop();
        let body = outbox.pop().expect("the body");
        assert_eq!(body.as_ptr(), memory.as_ptr());
    }
}
