//! A byte stream to a server: TCP, TCP under TLS, or a unix socket.
//!
//! Invariant: nothing but the eight bytes of SSLRequest and the answer's single byte pass in the clear before TLS, read
//! without a buffer, so that nobody can slip plain bytes in front of the encrypted ones.

use std::{
    future::Ready,
    io,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_postgres::tls::{ChannelBinding, TlsConnect};
use tokio_rustls::client::TlsStream;

use crate::{ConnectConfig, ConnectError, TlsMode, channel_binding::server_end_point, tls, transport::Transport};

/// A silent peer is probed after this time, and given up after three probes.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A server that acknowledges nothing for so long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// The stream.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(Transport),
    Tls(Box<TlsStream<Transport>>),
    Unix(UnixStream),
}

impl Socket {
    /// Is there TLS around it?
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Socket::Tls(_))
    }

    /// What a reader sets while it comes back by itself; see [`Transport`].
    pub(crate) fn polls(&self) -> Arc<AtomicBool> {
        match self {
            Socket::Tcp(stream) => stream.polls(),
            Socket::Tls(stream) => stream.get_ref().0.polls(),
            Socket::Unix(_) => Arc::default(),
        }
    }

    /// What a log-in can be bound to; None without TLS, or where the certificate's signature has no hash to go by.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let Socket::Tls(stream) = self else { return None };
        let certificates = stream.get_ref().1.peer_certificates()?;
        server_end_point(certificates.first()?)
    }

    /// Connects and, as `sslmode` says, encrypts. Not bounded in time: the caller is.
    ///
    /// # Errors
    /// Unreachable, or TLS.
    pub(crate) async fn open(config: &ConnectConfig) -> Result<Self, ConnectError> {
        if config.is_unix_socket() {
            let path = format!("{}/.s.PGSQL.{}", config.host, config.port);
            return UnixStream::connect(path).await.map(Socket::Unix).map_err(unreachable(config));
        }
        match config.tls {
            TlsMode::Disable => connect(config).await.map(Socket::Tcp),
            TlsMode::Prefer => match encrypt(config, connect(config).await?).await {
                // As libpq does: a handshake that fails is not a reason to go without a connection.
                Err(ConnectError::Tls { .. }) => connect(config).await.map(Socket::Tcp),
                result => result,
            },
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => {
                match encrypt(config, connect(config).await?).await? {
                    Socket::Tcp(_) => Err(ConnectError::TlsNotOffered { address: config.address() }),
                    encrypted => Ok(encrypted),
                }
            }
        }
    }
}

/// Lets the client library have an encrypted socket as it is.
pub(crate) struct AsItIs;

impl TlsConnect<Socket> for AsItIs {
    type Stream = Socket;
    type Error = io::Error;
    type Future = Ready<io::Result<Socket>>;

    fn connect(self, socket: Socket) -> Self::Future {
        std::future::ready(Ok(socket))
    }
}

impl tokio_postgres::tls::TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

fn unreachable(config: &ConnectConfig) -> impl Fn(io::Error) -> ConnectError {
    let address = config.address();
    move |source| ConnectError::Unreachable { address: address.clone(), source }
}

async fn connect(config: &ConnectConfig) -> Result<Transport, ConnectError> {
    let open = async {
        let stream = TcpStream::connect((config.host.as_str(), config.port)).await?;
        stream.set_nodelay(true)?;
        let keepalive =
            socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
        let socket = socket2::SockRef::from(&stream);
        socket.set_tcp_keepalive(&keepalive)?;
        // Keepalives are not sent while something of ours is unacknowledged.
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        Ok(Transport::new(stream))
    };
    open.await.map_err(unreachable(config))
}

/// Asks for TLS; the plain stream comes back where the server has none.
async fn encrypt(config: &ConnectConfig, mut stream: Transport) -> Result<Socket, ConnectError> {
    let connector = tls::connector(config)?;
    let name = tls::server_name(config)?;
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(unreachable(config))?;
    match stream.read_u8().await.map_err(unreachable(config))? {
        b'S' => {
            let encrypted = connector.connect(name, stream).await.map_err(|error| tls::refused(config, &error))?;
            Ok(Socket::Tls(Box::new(encrypted)))
        }
        b'N' => Ok(Socket::Tcp(stream)),
        answer => {
            let problem = format!("answers 0x{answer:02x} to a request for TLS");
            Err(ConnectError::Protocol { address: config.address(), problem })
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
