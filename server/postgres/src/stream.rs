//! The replication stream: frames in, standby status out (PostgreSQL manual, section 55.4).
//!
//! ```text
//! socket ──read──▶ | consumed | frame | frame | part of a frame | free |     one buffer; frames are handed out in place
//! ```
//!
//! The walsender writes one small packet per row. Reading each as it comes costs both sides a system call and a wake-up per
//! row; so while data pours in, and only then, a reader that finds nothing pauses for a fraction of a millisecond, without
//! having the socket watched, and takes what has gathered. At low rates it never does.
//!
//! Invariant: a frame is handed out exactly once, in order, whole; bytes are never moved except when the buffer is
//! compacted. A frame that is not consumed comes again. It deliberately answers no keepalive by itself.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, BytesMut};
use postgres_protocol::message::backend::Message;
use tidegate_model::Lsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::{
    ReplicationError,
    pause::Pause,
    pgoutput::POSTGRES_EPOCH_US,
    socket::Socket,
    wire::{fatal_notice, server_error},
};

/// Free space that a read is offered.
const READ_BYTES: usize = 128 << 10;
/// A buffer that a large frame has grown beyond this is given back.
const KEEP_BYTES: usize = 1 << 20;
/// PostgreSQL's own limit of a message, and some for the header.
const MAX_FRAME_BYTES: usize = (1 << 30) + 1024;
/// How long to let packets gather in a backlog: much longer, and small packets fill the receive buffer.
const GATHER: Duration = Duration::from_micros(500);
/// Bytes per millisecond that make a backlog: some 20 single-row transactions.
const BACKLOG_BYTES_PER_MS: u128 = 4 << 10;
/// Reads per millisecond that make a backlog, whatever they bring: waking up for each packet is what slows the server and
/// us down until there are few bytes.
const BACKLOG_READS_PER_MS: u128 = 8;
/// A backlog lasts until there are fewer bytes per millisecond than this, since gathering makes reads few.
const BACKLOG_END_BYTES_PER_MS: u128 = 1 << 10;

/// What the server sends in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One message of the output plugin.
    XLogData {
        /// Where in the WAL the message comes from.
        start_lsn: Lsn,
        /// The server's notion of its position; equals `start_lsn` with logical decoding.
        server_lsn: Lsn,
        /// The message.
        data: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has decoded: everything before has been sent.
        server_lsn: Lsn,
        /// The server wants a status now, or it will soon hang up.
        reply_requested: bool,
    },
}

/// How far we are; the server keeps WAL from `flushed_lsn` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Received up to here.
    pub received_lsn: Lsn,
    /// Durable up to here: becomes the slot's confirmed_flush_lsn.
    pub flushed_lsn: Lsn,
    /// Applied up to here; for the server's statistics.
    pub applied_lsn: Lsn,
    /// Our clock, microseconds since 1970-01-01 UTC.
    pub clock_us: i64,
    /// Ask the server for a keepalive.
    pub reply_requested: bool,
}

/// Splits a socket on which CopyBoth has begun; `received` is what has been read beyond.
pub(crate) fn split(socket: Socket, received: BytesMut) -> (WalReader, WalWriter) {
    let polls = socket.polls();
    let (read_half, write_half) = tokio::io::split(socket);
    let reader = WalReader {
        socket: read_half,
        buffer: received,
        consumed: 0,
        rate: Rate::new(),
        polls,
        pause: Pause::default(),
    };
    (reader, WalWriter { socket: write_half, pending: BytesMut::with_capacity(64) })
}

/// The receiving half.
#[derive(Debug)]
pub struct WalReader {
    socket: ReadHalf<Socket>,
    buffer: BytesMut,
    /// Bytes at the front of the buffer whose frames have been handed out.
    consumed: usize,
    rate: Rate,
    /// Tells the socket that the reader comes back by itself.
    polls: Arc<AtomicBool>,
    pause: Pause,
}

/// Tells a backlog from a trickle.
#[derive(Debug)]
struct Rate {
    since: Instant,
    byte_count: u128,
    read_count: u128,
    backlog: bool,
}

impl Rate {
    fn new() -> Self {
        Rate { since: Instant::now(), byte_count: 0, read_count: 0, backlog: false }
    }

    fn add(&mut self, byte_count: usize) {
        self.byte_count += byte_count as u128;
        self.read_count += 1;
        let elapsed_us = self.since.elapsed().as_micros();
        if elapsed_us < 1_000 {
            return;
        }
        let bytes_per_ms = self.byte_count * 1_000 / elapsed_us;
        let reads_per_ms = self.read_count * 1_000 / elapsed_us;
        self.backlog = bytes_per_ms >= BACKLOG_BYTES_PER_MS
            || reads_per_ms >= BACKLOG_READS_PER_MS
            || (self.backlog && bytes_per_ms >= BACKLOG_END_BYTES_PER_MS);
        *self = Rate { backlog: self.backlog, ..Rate::new() };
    }
}

/// What stands at the front of the buffer.
enum Front {
    /// A whole frame of the stream.
    Frame,
    /// A whole message of another kind, of this length.
    Other(usize),
    /// The beginning of something that lacks this many bytes.
    Partial(usize),
}

impl WalReader {
    /// Waits for at least one frame and hands out every whole one that is there.
    ///
    /// Cancel safe: what was received stays for the next call.
    ///
    /// # Errors
    /// The connection, or an error that the server sends; frames before it are handed out first.
    pub async fn read(&mut self) -> Result<Frames<'_>, ReplicationError> {
        self.release();
        loop {
            match front(&self.buffer)? {
                Front::Frame => break,
                Front::Other(length) => {
                    let message = self.buffer.split_to(length);
                    other_message(message)?;
                }
                Front::Partial(missing) => {
                    self.reserve(missing);
                    let byte_count = self.fill().await?;
                    if byte_count == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    self.rate.add(byte_count);
                }
            }
        }
        Ok(Frames { buffer: &self.buffer, consumed: &mut self.consumed })
    }

    /// Does data pour in, so that gathering some before passing it on costs no one time?
    #[must_use]
    pub fn in_backlog(&self) -> bool {
        self.rate.backlog
    }

    /// Drops what was handed out, and memory that only a large frame needed.
    fn release(&mut self) {
        let grown = self.buffer.capacity() > KEEP_BYTES;
        self.buffer.advance(self.consumed);
        self.consumed = 0;
        if grown && self.buffer.len() < READ_BYTES {
            let mut smaller = BytesMut::with_capacity(2 * READ_BYTES);
            smaller.extend_from_slice(&self.buffer);
            self.buffer = smaller;
        }
    }

    /// Room for the next read. Grows with what has arrived, not with what a length field claims.
    fn reserve(&mut self, missing: usize) {
        let room = missing.min(self.buffer.len()).max(READ_BYTES);
        self.buffer.reserve(room);
    }

    /// One read; in a backlog at most one pause first.
    async fn fill(&mut self) -> io::Result<usize> {
        self.polls.store(self.rate.backlog, Relaxed);
        if self.rate.backlog {
            if let Some(byte_count) = self.read_now().await? {
                return Ok(byte_count);
            }
            self.pause.wait(GATHER).await;
            self.polls.store(false, Relaxed);
        }
        self.socket.read_buf(&mut self.buffer).await
    }

    /// A read that does not wait; None where nothing is there.
    async fn read_now(&mut self) -> io::Result<Option<usize>> {
        let mut reading = pin!(self.socket.read_buf(&mut self.buffer));
        poll_fn(|cx| match reading.as_mut().poll(cx) {
            Poll::Ready(read) => Poll::Ready(read.map(Some)),
            Poll::Pending => Poll::Ready(Ok(None)),
        })
        .await
    }
}

/// The whole frames that a [`WalReader`] has at hand. Those that are not taken come again with the next read.
#[derive(Debug)]
pub struct Frames<'a> {
    buffer: &'a [u8],
    consumed: &'a mut usize,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    #[inline]
    fn next(&mut self) -> Option<Frame<'a>> {
        let (frame, length) = frame(&self.buffer[*self.consumed..])?;
        *self.consumed += length;
        Some(frame)
    }
}

/// The frame at the front of the bytes, and its length with all headers.
#[inline]
fn frame(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let (header, rest) = bytes.split_first_chunk::<5>()?;
    let [b'd', length @ ..] = *header else { return None };
    let body = rest.get(..(u32::from_be_bytes(length) as usize).checked_sub(4)?)?;
    let length = header.len() + body.len();
    let (&kind, body) = body.split_first()?;
    let (first, body) = body.split_first_chunk::<8>()?;
    let first = Lsn(u64::from_be_bytes(*first));
    match kind {
        b'w' => {
            let (server_lsn, body) = body.split_first_chunk::<8>()?;
            let server_lsn = Lsn(u64::from_be_bytes(*server_lsn));
            // The server's clock.
            let (_, data) = body.split_first_chunk::<8>()?;
            Some((Frame::XLogData { start_lsn: first, server_lsn, data }, length))
        }
        b'k' => {
            let (_, body) = body.split_first_chunk::<8>()?;
            Some((Frame::Keepalive { server_lsn: first, reply_requested: *body.first()? != 0 }, length))
        }
        _ => None,
    }
}

fn front(bytes: &[u8]) -> Result<Front, ReplicationError> {
    let Some(header) = bytes.first_chunk::<5>() else { return Ok(Front::Partial(5 - bytes.len())) };
    let [tag, length @ ..] = *header;
    let length = u32::from_be_bytes(length) as usize;
    if !(4..=MAX_FRAME_BYTES).contains(&length) {
        return Err(ReplicationError::Protocol { problem: format!("a message of {length} bytes") });
    }
    let whole = length + 1;
    if bytes.len() < whole {
        return Ok(Front::Partial(whole - bytes.len()));
    }
    if tag != b'd' {
        return Ok(Front::Other(whole));
    }
    match frame(bytes) {
        Some(_) => Ok(Front::Frame),
        None => Err(ReplicationError::Protocol { problem: "a malformed frame in the stream".to_owned() }),
    }
}

/// What else a server may send in the middle of a stream.
fn other_message(mut bytes: BytesMut) -> Result<(), ReplicationError> {
    let parsed = Message::parse(&mut bytes)?;
    match parsed {
        Some(Message::ErrorResponse(body)) => Err(server_error(&body).into()),
        Some(Message::NoticeResponse(body)) => {
            fatal_notice(crate::ServerError::from_fields(body.fields())).map_or(Ok(()), Err)
        }
        Some(Message::ParameterStatus(_) | Message::NotificationResponse(_)) => Ok(()),
        Some(Message::CopyDone | Message::CommandComplete(_) | Message::ReadyForQuery(_)) => {
            Err(ReplicationError::StreamEnded)
        }
        Some(_) | None => Err(ReplicationError::Protocol { problem: "an unexpected message in the stream".to_owned() }),
    }
}

/// The sending half; may live in another task than the [`WalReader`].
#[derive(Debug)]
pub struct WalWriter {
    socket: WriteHalf<Socket>,
    /// Bytes of a status whose sending was cancelled or is under way.
    pending: BytesMut,
}

impl WalWriter {
    /// Tells the server how far we are.
    ///
    /// Cancel safe: a status of which a part was sent is completed by the next call.
    ///
    /// # Errors
    /// The connection.
    pub async fn status(&mut self, status: StandbyStatus) -> Result<(), ReplicationError> {
        put_status(&mut self.pending, status);
        self.send_pending().await
    }

    /// Ends the stream in good order: the server releases the slot at once.
    ///
    /// # Errors
    /// The connection; the server finds out by itself then.
    pub async fn close(mut self) -> Result<(), ReplicationError> {
        // CopyDone, Terminate.
        self.pending.put_slice(b"c\0\0\0\x04X\0\0\0\x04");
        self.send_pending().await?;
        self.socket.shutdown().await?;
        Ok(())
    }

    async fn send_pending(&mut self) -> Result<(), ReplicationError> {
        while self.pending.has_remaining() {
            if self.socket.write_buf(&mut self.pending).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
        }
        self.socket.flush().await?;
        Ok(())
    }
}

fn put_status(out: &mut BytesMut, status: StandbyStatus) {
    out.put_u8(b'd');
    out.put_u32(4 + 1 + 3 * 8 + 8 + 1);
    out.put_u8(b'r');
    out.put_u64(status.received_lsn.0);
    out.put_u64(status.flushed_lsn.0);
    out.put_u64(status.applied_lsn.0);
    out.put_i64(status.clock_us.saturating_sub(POSTGRES_EPOCH_US));
    out.put_u8(u8::from(status.reply_requested));
}

#[cfg(test)]
mod tests;
