//! What can go wrong, and what to do then.
//!
//! Invariants: every error answers [`ClientError::retry`]; its text names the cause, which is therefore not a
//! [`source`](std::error::Error::source) that would be printed again. A lost connection is no error of the stream: it is mended
//! there, and reported as [`Event::Interrupted`](crate::Event::Interrupted).

use std::time::Duration;

use prost::Message;
use tidegate_proto::rpc;
use tonic::Code;

use crate::{Position, PositionError, ResetReason};

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same may succeed after this time. Zero: whenever you like; [`Changes`](crate::Changes) backs off by itself.
    After(Duration),
    /// The same fails again until someone changes something.
    Never,
    /// Start over without the token: what was received before cannot be continued.
    Reset,
}

/// Why a call or a subscription failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address or the TLS settings cannot be used at all.
    #[error("cannot use the server address '{endpoint}' ({}); write http://HOST:PORT, or https:// with the TLS settings", innermost(.cause))]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        cause: tonic::transport::Error,
    },
    /// Nobody answers there, or not in our protocol.
    #[error("cannot connect to {endpoint} ({}); {}", innermost(.cause), advice(.cause))]
    Connect {
        /// As it was given.
        endpoint: String,
        /// What the network said.
        cause: tonic::transport::Error,
    },
    /// Something answers there, but not in our protocol.
    #[error(
        "{endpoint} does not answer as a Tidegate server does ({cause}); check the port, and where the server has TLS, write https://"
    )]
    NotUnderstood {
        /// As it was given.
        endpoint: String,
        /// How the connection ended.
        cause: String,
    },
    /// The connection did not open in time.
    #[error("{endpoint} did not answer within {} s; is it reachable, and a Tidegate server?", .after.as_secs())]
    ConnectTimeout {
        /// As it was given.
        endpoint: String,
        /// The limit.
        after: Duration,
    },
    /// Nothing was heard although Progress is due every second.
    #[error("the server has been silent for {} s; the connection is taken for dead", .after.as_secs())]
    Silent {
        /// The limit.
        after: Duration,
    },
    /// The server closed the stream without saying why.
    #[error("the server closed the stream")]
    Closed,
    /// The server announced that it stops, and the connection was left for another.
    #[error("the server is stopping; connecting again")]
    Draining,
    /// The server refused the call, or ended the stream.
    #[error("{message} ({code:?})")]
    Refused {
        /// gRPC's code.
        code: Code,
        /// What the server says, with the next step.
        message: String,
        /// UPPER_SNAKE_CASE, for programs; empty where the server gave none.
        reason: String,
        /// What the server, or else its code, says about trying again.
        retry: Retry,
    },
    /// Continuity is lost. Streams say this as [`Event::Reset`](crate::Event::Reset), transactions as this error.
    #[error("continuity is lost ({reason:?}): {detail}")]
    Reset {
        /// Why.
        reason: ResetReason,
        /// What happened, and what to do.
        detail: String,
    },
    /// The server broke the protocol; going on could lose changes in silence.
    #[error("the server broke the protocol: {0}; please report this")]
    Violation(#[from] Violation),
    /// A row is not in the encoding of its row type.
    #[error(transparent)]
    Row(#[from] RowError),
    /// A transaction exceeds the limit given to [`Changes::transactions`](crate::Changes::transactions).
    #[error(
        "the transaction at {position} is larger than {limit_bytes} bytes; raise the limit given to \
         Changes::transactions, or take its events one by one from Changes"
    )]
    TransactionTooLarge {
        /// Its Begin.
        position: Position,
        /// The limit.
        limit_bytes: usize,
    },
    /// One row exceeds the limit of the subscription.
    #[error(
        "the row at {position} is larger than {limit_bytes} bytes; raise Subscription::row_bytes_max, or leave its large \
         columns out with Subscription::columns"
    )]
    RowTooLarge {
        /// Its change.
        position: Position,
        /// The limit.
        limit_bytes: usize,
    },
}

/// How the server broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A message where the protocol has none of its kind.
    #[error("{message} came {state}")]
    Unexpected {
        /// The message.
        message: &'static str,
        /// What the subscription was doing.
        state: &'static str,
    },
    /// A message without content, or with content that this version does not know.
    #[error("an empty or unknown {0}; is the server newer than this client?")]
    Unknown(&'static str),
    /// A change refers to a row type that was not announced.
    #[error("row type {0} was not announced")]
    RowType(u32),
    /// Not a position.
    #[error("'{text}': {cause}")]
    Position {
        /// What stands in its place.
        text: String,
        /// Why it is none.
        cause: PositionError,
    },
    /// Positions went backwards within a connection.
    #[error("position {position} came after {after}")]
    Order {
        /// What came.
        position: Position,
        /// What had come before.
        after: Position,
    },
    /// A position of a snapshot where a transaction's belongs, or the other way round.
    #[error("position {0} does not fit to what it stands for")]
    Ordinal(Position),
    /// Something of a snapshot that the subscription did not start from.
    #[error("snapshot {0} is not the one that the subscription follows")]
    Snapshot(u32),
    /// Delivery starts later than asked, which would leave a gap.
    #[error("delivery starts after {position} where {asked} was asked for")]
    Gap {
        /// Where it starts.
        position: Position,
        /// Where it should.
        asked: Position,
    },
    /// A message of a subscription that was never opened.
    #[error("subscription {0} is unknown")]
    Subscription(u32),
}

/// A row, or its row type, cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The row type's description is not usable.
    #[error("the description of {message} is not usable: {detail}")]
    Descriptor {
        /// The message's full name.
        message: String,
        /// Why.
        detail: String,
    },
    /// The bytes do not decode.
    #[error("a row of {message} cannot be decoded: {cause}")]
    Decode {
        /// The message's full name.
        message: String,
        /// Why.
        cause: prost::DecodeError,
    },
    /// An array's layout does not fit its values, or a value is not of its column's type.
    #[error("column {column} of {message} holds a malformed value")]
    Value {
        /// The message's full name.
        message: String,
        /// The column's name.
        column: String,
    },
}

impl ClientError {
    /// What to do after it.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ClientError::Connect { .. }
            | ClientError::NotUnderstood { .. }
            | ClientError::ConnectTimeout { .. }
            | ClientError::Silent { .. }
            | ClientError::Closed
            | ClientError::Draining => Retry::After(Duration::ZERO),
            ClientError::Refused { retry, .. } => *retry,
            ClientError::Reset { .. } => Retry::Reset,
            ClientError::Endpoint { .. }
            | ClientError::Violation(_)
            | ClientError::Row(_)
            | ClientError::TransactionTooLarge { .. }
            | ClientError::RowTooLarge { .. } => Retry::Never,
        }
    }

    /// The end of a call or stream. Where the server gives details, RetryInfo alone says whether to try again; what
    /// the transport and proxies say comes without details, and is judged by its code.
    pub(crate) fn from_status(status: &tonic::Status) -> Self {
        match rpc::Status::decode(status.details()) {
            Ok(details) if !details.details.is_empty() => {
                Self::refused(status.code(), status.message().to_owned(), &details)
            }
            Ok(_) | Err(_) => ClientError::Refused {
                code: status.code(),
                message: status.message().to_owned(),
                reason: String::new(),
                retry: retry_by_code(status.code()),
            },
        }
    }

    /// The end of a subscription. RetryInfo alone says whether to try again.
    pub(crate) fn from_rpc(status: &rpc::Status) -> Self {
        Self::refused(Code::from_i32(status.code), status.message.clone(), status)
    }

    fn refused(code: Code, message: String, status: &rpc::Status) -> Self {
        let (mut retry, mut reason) = (Retry::Never, String::new());
        for detail in &status.details {
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.RetryInfo") => {
                    let info = rpc::RetryInfo::decode(detail.value.as_slice()).unwrap_or_default();
                    let delay = info.retry_delay.and_then(|delay| Duration::try_from(delay).ok());
                    retry = Retry::After(delay.unwrap_or_default());
                }
                Some("google.rpc.ErrorInfo") => {
                    reason = rpc::ErrorInfo::decode(detail.value.as_slice()).unwrap_or_default().reason;
                }
                Some(_) | None => {}
            }
        }
        ClientError::Refused { code, message, reason, retry }
    }
}

fn retry_by_code(code: Code) -> Retry {
    match code {
        Code::Unavailable
        | Code::Unknown
        | Code::Internal
        | Code::Cancelled
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::ResourceExhausted => Retry::After(Duration::ZERO),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => Retry::Never,
    }
}

/// The innermost cause, which says more than tonic's "transport error".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The next step. TLS errors reach us as text only.
fn advice(error: &tonic::transport::Error) -> &'static str {
    let cause = innermost(error);
    if cause.contains("UnknownIssuer") {
        "the server's certificate is not from the certificate authority that was given (certificate_authority, --tls-ca)"
    } else if cause.contains("not valid for") || cause.contains("NotValidForName") {
        "the server's certificate bears another name; connect by that, or give it (server_name, --tls-server-name)"
    } else if cause.contains("CertificateRequired") || cause.contains("BadCertificate") {
        "the server asks for a certificate of this client; give one (identity, --tls-cert and --tls-key)"
    } else if cause.contains("InvalidContentType") {
        "the server has no TLS there; write http://"
    } else {
        "is the server running and reachable there?"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Any;

    fn retry_info(seconds: i64) -> Any {
        let retry_delay = Some(prost_types::Duration { seconds, nanos: 0 });
        Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
            value: rpc::RetryInfo { retry_delay }.encode_to_vec(),
        }
    }

    #[test]
    fn a_subscriptions_error_is_retried_only_with_retry_info() {
        let mut status = rpc::Status { code: Code::Unavailable as i32, message: "later".into(), details: Vec::new() };
        assert_eq!(ClientError::from_rpc(&status).retry(), Retry::Never);
        status.details.push(retry_info(3));
        assert_eq!(ClientError::from_rpc(&status).retry(), Retry::After(Duration::from_secs(3)));
    }

    #[test]
    fn a_status_without_details_is_judged_by_its_code() {
        let retry = |code| ClientError::from_status(&tonic::Status::new(code, "x")).retry();
        assert_eq!(retry(Code::Unavailable), Retry::After(Duration::ZERO));
        assert_eq!(retry(Code::Unknown), Retry::After(Duration::ZERO));
        assert_eq!(retry(Code::Unauthenticated), Retry::Never);
        assert_eq!(retry(Code::NotFound), Retry::Never);
    }

    #[test]
    fn details_of_a_status_name_reason_and_delay() {
        let info = rpc::ErrorInfo { reason: "TABLE_UNKNOWN".into(), ..Default::default() };
        let any = Any { type_url: "type.googleapis.com/google.rpc.ErrorInfo".into(), value: info.encode_to_vec() };
        let details = rpc::Status { code: 14, message: "x".into(), details: vec![any, retry_info(2)] };
        let status = tonic::Status::with_details(Code::Unavailable, "x", details.encode_to_vec().into());
        let ClientError::Refused { reason, retry, .. } = ClientError::from_status(&status) else {
            panic!("a status is a refusal")
        };
        assert_eq!((reason.as_str(), retry), ("TABLE_UNKNOWN", Retry::After(Duration::from_secs(2))));
    }
}
