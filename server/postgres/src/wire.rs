//! PostgreSQL's wire protocol as far as a replication connection needs it: startup, log-in, simple queries
//! (PostgreSQL manual, section 55.2). Client libraries refuse `replication=database` and have no CopyBoth.
//!
//! Invariant: between calls the server is ready for a query and nothing unread is in the buffer, until CopyBoth begins:
//! from then on the socket and what has been read beyond belong to the stream.

use std::io;

use bytes::BytesMut;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding as Binding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{DataRowBody, ErrorResponseBody, Message},
        frontend,
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::fallible_iterator::FallibleIterator;

use crate::{ChannelBinding, ConnectConfig, ConnectError, ReplicationError, ServerError, pins, socket::Socket};

/// A row of a simple query: texts, or NULL.
pub(crate) type Row = Vec<Option<String>>;

/// No answer outside of CopyBoth is larger; a peer that claims more does not speak the protocol.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A connection outside of CopyBoth.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) socket: Socket,
    /// Received, not yet read.
    pub(crate) received: BytesMut,
    /// `server_version` as the server states it at startup.
    server_version: String,
    /// The process that serves us, as it is stated at startup.
    stated_pid: i32,
}

/// What comes next from the server.
enum Answer {
    Message(Message),
    CopyBoth,
}

impl Wire {
    /// Logs in over an open socket.
    ///
    /// # Errors
    /// Everything that [`ConnectError`] tells apart.
    pub(crate) async fn log_in(config: &ConnectConfig, socket: Socket) -> Result<Self, ConnectError> {
        let mut wire =
            Wire { socket, received: BytesMut::with_capacity(8 << 10), server_version: String::new(), stated_pid: 0 };
        let options = pins::options();
        let parameters = [
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
            ("application_name", config.application_name.as_str()),
            ("replication", "database"),
            ("options", options.as_str()),
        ];
        wire.send(|out| frontend::startup_message(parameters, out)).await.map_err(failed(config))?;
        wire.authenticate(config).await?;
        loop {
            match wire.message().await.map_err(failed(config))? {
                Message::ParameterStatus(status) => {
                    if matches!(status.name(), Ok("server_version")) {
                        wire.server_version = status.value().map_err(broken(config))?.to_owned();
                    }
                }
                Message::ErrorResponse(body) => {
                    return Err(ConnectError::from_server(&config.user, server_error(&body)));
                }
                Message::ReadyForQuery(_) => return Ok(wire),
                Message::BackendKeyData(body) => wire.stated_pid = body.process_id(),
                Message::NoticeResponse(_) => {}
                _ => return Err(unexpected(config, "sends an unexpected message during startup")),
            }
        }
    }

    /// The version that the server stated, as one number such as 150020.
    pub(crate) fn server_version(&self) -> Option<u32> {
        parse_version(&self.server_version)
    }

    /// The process that serves us, as it is stated at startup. A pooler states one of its own.
    pub(crate) fn stated_pid(&self) -> i32 {
        self.stated_pid
    }

    /// Answers the server's questions until it is content.
    async fn authenticate(&mut self, config: &ConnectConfig) -> Result<(), ConnectError> {
        let mut bound = config.channel_binding != ChannelBinding::Require;
        let unbound = |problem| Err(ConnectError::ChannelBinding { address: config.address(), problem });
        loop {
            match self.message().await.map_err(failed(config))? {
                Message::AuthenticationOk if bound => return Ok(()),
                Message::AuthenticationOk
                | Message::AuthenticationCleartextPassword
                | Message::AuthenticationMd5Password(_)
                    if !bound =>
                {
                    return unbound("the server did not ask for it");
                }
                Message::AuthenticationCleartextPassword => {
                    let answer = password(config)?.expose_secret().as_bytes().to_vec();
                    self.send(|out| frontend::password_message(&answer, out)).await.map_err(failed(config))?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let secret = password(config)?.expose_secret().as_bytes();
                    let answer = md5_hash(config.user.as_bytes(), secret, body.salt());
                    self.send(|out| frontend::password_message(answer.as_bytes(), out))
                        .await
                        .map_err(failed(config))?;
                }
                Message::AuthenticationSasl(body) => {
                    let offered: Vec<&str> = body.mechanisms().collect().map_err(broken(config))?;
                    if !offered.contains(&SCRAM_SHA_256) {
                        return Err(unexpected(config, "asks for a log-in other than SCRAM-SHA-256"));
                    }
                    let end_point =
                        self.socket.end_point().filter(|_| config.channel_binding != ChannelBinding::Disable);
                    let (mechanism, binding) = match (end_point, offered.contains(&SCRAM_SHA_256_PLUS)) {
                        (Some(hash), true) => (SCRAM_SHA_256_PLUS, Binding::tls_server_end_point(hash)),
                        _ if !bound => return unbound("the connection or the server cannot"),
                        (Some(_), false) => (SCRAM_SHA_256, Binding::unrequested()),
                        (None, _) => (SCRAM_SHA_256, Binding::unsupported()),
                    };
                    self.scram(config, mechanism, binding).await?;
                    bound = true;
                }
                Message::ErrorResponse(body) => {
                    return Err(ConnectError::from_server(&config.user, server_error(&body)));
                }
                Message::NoticeResponse(_) => {}
                _ => return Err(unexpected(config, "asks for a log-in other than password, md5 or SCRAM")),
            }
        }
    }

    /// SCRAM-SHA-256 (RFC 7677), which proves that the server knows the password too.
    async fn scram(&mut self, config: &ConnectConfig, mechanism: &str, binding: Binding) -> Result<(), ConnectError> {
        let secret = password(config)?.expose_secret().as_bytes();
        let mut scram = ScramSha256::new(secret, binding);
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out))
            .await
            .map_err(failed(config))?;
        match self.message().await.map_err(failed(config))? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data()).map_err(broken(config))?,
            Message::ErrorResponse(body) => {
                return Err(ConnectError::from_server(&config.user, server_error(&body)));
            }
            _ => return Err(unexpected(config, "breaks off SCRAM")),
        }
        self.send(|out| frontend::sasl_response(scram.message(), out)).await.map_err(failed(config))?;
        match self.message().await.map_err(failed(config))? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(broken(config)),
            Message::ErrorResponse(body) => Err(ConnectError::from_server(&config.user, server_error(&body))),
            _ => Err(unexpected(config, "breaks off SCRAM")),
        }
    }

    /// Runs one statement and collects its rows.
    ///
    /// # Errors
    /// The server's error; the connection is ready for the next statement then.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, ReplicationError> {
        self.send(|out| frontend::query(sql, out)).await?;
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            match self.message().await? {
                Message::DataRow(body) => rows.push(row(&body)?),
                Message::ErrorResponse(body) => error = Some(server_error(&body)),
                Message::ReadyForQuery(_) => return error.map_or(Ok(rows), |error| Err(error.into())),
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse
                | Message::NoticeResponse(_)
                | Message::ParameterStatus(_) => {}
                _ => return Err(ReplicationError::Protocol { problem: "unexpected answer to a query".to_owned() }),
            }
        }
    }

    /// Runs a statement that begins CopyBoth, and returns when it has begun.
    ///
    /// # Errors
    /// The server's error.
    pub(crate) async fn begin_copy_both(&mut self, sql: &str) -> Result<(), ReplicationError> {
        self.send(|out| frontend::query(sql, out)).await?;
        let mut error = None;
        loop {
            match self.answer().await? {
                Answer::CopyBoth => return Ok(()),
                Answer::Message(Message::ErrorResponse(body)) => error = Some(server_error(&body)),
                Answer::Message(Message::ReadyForQuery(_)) => {
                    return Err(error.map_or(ReplicationError::StreamEnded, ReplicationError::from));
                }
                Answer::Message(Message::NoticeResponse(body)) => {
                    if let Some(error) = fatal_notice(ServerError::from_fields(body.fields())) {
                        return Err(error);
                    }
                }
                Answer::Message(_) => {}
            }
        }
    }

    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> io::Result<()> {
        let mut out = BytesMut::new();
        write(&mut out)?;
        self.socket.write_all(&out).await?;
        self.socket.flush().await
    }

    async fn message(&mut self) -> io::Result<Message> {
        match self.answer().await? {
            Answer::Message(message) => Ok(message),
            Answer::CopyBoth => Err(io::Error::new(io::ErrorKind::InvalidData, "CopyBoth begins unasked")),
        }
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some(header) = self.received.first_chunk::<5>() {
                let [tag, length @ ..] = *header;
                let length = u32::from_be_bytes(length) as usize;
                if !(4..=MAX_ANSWER_BYTES).contains(&length) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "message length out of range"));
                }
                if self.received.len() > length {
                    let mut frame = self.received.split_to(length + 1);
                    if tag == b'W' {
                        return Ok(Answer::CopyBoth);
                    }
                    let parsed = Message::parse(&mut frame)?;
                    let message = parsed.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
                    return Ok(Answer::Message(message));
                }
            }
            if self.socket.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// A notice that means: the stream goes on without what we asked for.
pub(crate) fn fatal_notice(notice: ServerError) -> Option<ReplicationError> {
    match ReplicationError::from(notice) {
        error @ ReplicationError::PublicationMissing { .. } => Some(error),
        _ => None,
    }
}

/// The server's error in our form.
pub(crate) fn server_error(body: &ErrorResponseBody) -> ServerError {
    ServerError::from_fields(body.fields())
}

fn row(body: &DataRowBody) -> io::Result<Row> {
    let text = |range: Option<std::ops::Range<usize>>| {
        Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned()))
    };
    body.ranges().map(text).collect()
}

fn password(config: &ConnectConfig) -> Result<&SecretString, ConnectError> {
    config.password.as_ref().ok_or_else(|| ConnectError::PasswordMissing { user: config.user.clone() })
}

fn failed(config: &ConnectConfig) -> impl Fn(io::Error) -> ConnectError {
    let address = config.address();
    move |source| match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            ConnectError::Protocol { address: address.clone(), problem: source.to_string() }
        }
        _ => ConnectError::Unreachable { address: address.clone(), source },
    }
}

fn broken(config: &ConnectConfig) -> impl Fn(io::Error) -> ConnectError {
    let address = config.address();
    move |source| ConnectError::Protocol { address: address.clone(), problem: source.to_string() }
}

fn unexpected(config: &ConnectConfig, problem: &str) -> ConnectError {
    ConnectError::Protocol { address: config.address(), problem: problem.to_owned() }
}

/// `15.20 (Debian 15.20-1)` is 150020; `18beta1` is 180000.
pub(crate) fn parse_version(text: &str) -> Option<u32> {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    let major: u32 = numbers.next()?.parse().ok()?;
    let minor = match text.as_bytes().get(major.to_string().len()) {
        Some(b'.') => numbers.next().and_then(|minor| minor.parse().ok()).unwrap_or(0),
        Some(_) | None => 0,
    };
    major.checked_mul(10_000)?.checked_add(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("15.20 (Debian 15.20-1)"), Some(150_020));
        assert_eq!(parse_version("18beta1"), Some(180_000));
        assert_eq!(parse_version("17"), Some(170_000));
        assert_eq!(parse_version("x"), None);
    }
}
