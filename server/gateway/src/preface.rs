//! The first bytes of a connection, by which a client shows that it speaks HTTP/2; hyper would wait for them for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 sends first: RFC 9113, section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection of which something has been read.
pub(crate) struct Begun<S> {
    /// What was read, until it is read from here.
    first: Bytes,
    socket: S,
}

impl<S: AsyncRead + Unpin> Begun<S> {
    /// Reads until the client has shown that it speaks HTTP/2, or that it does not.
    pub(crate) async fn read(mut socket: S) -> io::Result<Self> {
        let mut first = BytesMut::with_capacity(PREFACE.len());
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            let mut room = [0; PREFACE.len()];
            let count = socket.read(&mut room[first.len()..]).await?;
            if count == 0 {
                break;
            }
            let begin = first.len();
            first.extend_from_slice(&room[begin..begin + count]);
        }
        Ok(Begun { first: first.freeze(), socket })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, into);
        }
        let count = self.first.len().min(into.remaining());
        into.put_slice(&self.first[..count]);
        self.first.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What is read of a connection on which this was sent in pieces of so many bytes.
    async fn read_back(sent: &[u8], piece: usize) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(8);
        let sending = async {
            for bytes in sent.chunks(piece) {
                client.write_all(bytes).await.expect("the server reads");
            }
            drop(client);
        };
        let receiving = async {
            let mut begun = Begun::read(server).await.expect("nothing breaks");
            let mut all = Vec::new();
            begun.read_to_end(&mut all).await.expect("nothing breaks");
            all
        };
        tokio::join!(sending, receiving).1
    }

    #[tokio::test]
    async fn nothing_of_it_is_lost() {
        let spoken = [PREFACE, b"and what follows"].concat();
        for piece in [1, 5, 8, 100] {
            assert_eq!(read_back(&spoken, piece).await, spoken);
            assert_eq!(read_back(&PREFACE[..7], piece).await, &PREFACE[..7]);
            assert_eq!(read_back(b"GET / HTTP/1.1\r\n\r\n", piece).await, b"GET / HTTP/1.1\r\n\r\n");
        }
    }

    #[tokio::test]
    async fn who_speaks_something_else_is_not_waited_for() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET").await.expect("there is room");
        assert_eq!(&Begun::read(server).await.expect("nothing breaks").first[..], b"GET");
    }
}
