//! A TCP connection that is not watched while data pours in.
//!
//! The kernel tells whoever watches a socket of every packet. The walsender writes one per message, so in a backlog it would
//! spend a good part of its time on waking up a reader that means to come back in a moment anyway. A reader that does says so,
//! and the connection leaves the runtime's poller as long as it says so.
//!
//! Invariant: whoever waits is watched for: nothing is unwatched while a write waits, and a read that finds nothing is woken,
//! unless the reader has said that it comes back by itself.

use std::{
    io::{self, Read, Write},
    mem,
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The most that is read at once while unwatched.
const READ_BYTES: usize = 64 << 10;

/// The connection.
#[derive(Debug)]
pub(crate) struct Transport {
    stream: Stream,
    polls: Arc<AtomicBool>,
    /// A write waits until the peer has made room.
    write_waits: bool,
}

#[derive(Debug)]
enum Stream {
    Watched(TcpStream),
    Unwatched(std::net::TcpStream),
    /// The poller has not taken it, or not given it back.
    Lost,
}

impl Transport {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Transport { stream: Stream::Watched(stream), polls: Arc::default(), write_waits: false }
    }

    /// What a reader sets while it comes back by itself, whether it was woken or not.
    pub(crate) fn polls(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.polls)
    }

    fn watched(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if let Stream::Unwatched(_) = &self.stream
            && let Stream::Unwatched(stream) = mem::replace(&mut self.stream, Stream::Lost)
        {
            self.stream = Stream::Watched(TcpStream::from_std(stream)?);
        }
        match &mut self.stream {
            Stream::Watched(stream) => Ok(Pin::new(stream)),
            Stream::Unwatched(_) | Stream::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn unwatch(&mut self) -> io::Result<()> {
        if let Stream::Watched(_) = &self.stream
            && let Stream::Watched(stream) = mem::replace(&mut self.stream, Stream::Lost)
        {
            self.stream = Stream::Unwatched(stream.into_std()?);
        }
        Ok(())
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polls = this.polls.load(Relaxed);
        if polls && !this.write_waits {
            this.unwatch()?;
        }
        if let Stream::Unwatched(stream) = &this.stream {
            let read_bytes = buf.remaining().min(READ_BYTES);
            match (&*stream).read(buf.initialize_unfilled_to(read_bytes)) {
                Ok(byte_count) => {
                    buf.advance(byte_count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && polls => return Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        this.watched()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Stream::Unwatched(stream) = &this.stream {
            match (&*stream).write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
        let written = this.watched()?.poll_write(cx, buf);
        this.write_waits = written.is_pending();
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Watched(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unwatched(stream) => Poll::Ready(stream.shutdown(Shutdown::Write)),
            Stream::Lost => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const BYTES: usize = 8 << 20;

    async fn pair() -> io::Result<(Transport, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let ours = TcpStream::connect(listener.local_addr()?).await?;
        Ok((Transport::new(ours), listener.accept().await?.0))
    }

    /// None where nothing is there.
    async fn read_now(reader: &mut (impl AsyncRead + Unpin), out: &mut Vec<u8>) -> Option<usize> {
        let mut reading = pin!(reader.read_buf(out));
        poll_fn(|cx| match reading.as_mut().poll(cx) {
            Poll::Ready(read) => Poll::Ready(Some(read.expect("the peer is there"))),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn content() -> Vec<u8> {
        (0..BYTES).map(|at| (at * 7 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn what_is_read_watched_and_unwatched_is_whole() {
        let (mut ours, mut theirs) = pair().await.expect("a loopback");
        let polls = ours.polls();
        let writing = async move {
            for (at, part) in content().chunks(70_001).enumerate() {
                theirs.write_all(part).await.expect("the reader is there");
                for _ in 0..at % 20 {
                    tokio::task::yield_now().await;
                }
            }
        };
        let reading = async move {
            let (mut out, mut unwatched_count) = (Vec::new(), 0_u32);
            for turn in 0_u32.. {
                let polling = turn % 5 != 0;
                polls.store(polling, Relaxed);
                let read = match polling {
                    true => read_now(&mut ours, &mut out).await,
                    false => Some(ours.read_buf(&mut out).await.expect("the peer is there")),
                };
                unwatched_count += u32::from(matches!(ours.stream, Stream::Unwatched(_)));
                match read {
                    Some(0) => break,
                    Some(_) => {}
                    None => tokio::task::yield_now().await,
                }
            }
            (out, unwatched_count)
        };
        let ((out, unwatched_count), ()) = tokio::join!(reading, writing);
        assert!(out == content(), "{} bytes differ", out.len());
        assert!(unwatched_count > 10, "{unwatched_count}");
    }

    #[tokio::test]
    async fn a_write_that_waits_is_woken_though_the_reader_polls() {
        let (ours, mut theirs) = pair().await.expect("a loopback");
        let polls = ours.polls();
        let (mut reader, mut writer) = tokio::io::split(ours);
        polls.store(true, Relaxed);
        let writing = async move { writer.write_all(&content()).await.expect("the peer is there") };
        let polling = async {
            for _ in 0..5_000 {
                assert_eq!(read_now(&mut reader, &mut Vec::new()).await, None);
                tokio::task::yield_now().await;
            }
            let mut out = vec![0; BYTES];
            theirs.read_exact(&mut out).await.expect("the writer is there");
            assert!(out == content());
        };
        let both = async { tokio::join!(writing, polling) };
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("the write is woken");
    }
}
