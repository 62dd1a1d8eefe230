//! Every error that a client can see, and the one place that turns errors into gRPC.
//!
//! A client gets a `google.rpc.Status` with an `ErrorInfo` (domain `tidegate.dev`, a stable reason), a `RetryInfo` where the
//! same may succeed later, and a `BadRequest` where a field of the request is wrong: in the subscription's `error`, or in
//! `grpc-status-details-bin` where it ends a call. Nothing else in the server knows about `Status`.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tidegate_model::{NameError, PatternError, PositionError, Retry, TableName, TokenError};
use tidegate_proto::rpc;
use tidegate_store::{MirrorError, ReadError};
use tidegate_views::{Place, Refusal, ShapeError};
use tonic::{Code, Status};

use crate::{
    held::HoldsError,
    named_shapes::{NamedShapeError, NamingError},
    query::QueryError,
    shape::{ShapeFailure, ShapeRefusal},
    snapshot_parts::PartError,
    snapshots::SnapshotError,
};

/// `ErrorInfo.domain` of all errors.
const DOMAIN: &str = "tidegate.dev";
/// Of a message that is longer than both together, what is left of it.
const HEAD_BYTES: usize = 1_200;
const TAIL_BYTES: usize = 400;

/// Why a request, subscription or stream failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayError {
    #[error("the source must be named; this server has {}", list(names))]
    SourceRequired { names: Vec<String> },
    #[error("there is no source '{name}'{}", meant_source(near))]
    UnknownSource { name: String, near: Vec<String> },
    #[error("a subscription needs at least one selection; give it tables, or a shape")]
    NoSelection,
    #[error("selection {index} is empty; set its tables (an empty TableSelection means every table), or its shape")]
    EmptySelection { index: usize },
    #[error("both tables and shape are set; set one of them, or use Session, which takes several selections")]
    TwoSelections,
    #[error("{count} {what} are too many; the limit is {limit}: give fewer")]
    TooMany { what: &'static str, count: usize, limit: usize, field: &'static str },
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(
        "there is no table {table} among those that the source follows{}; correct the name, or have the source follow it (`tables`)",
        meant(near)
    )]
    UnknownTable { table: TableName, near: Vec<String> },
    #[error("table {table} has no column '{column}'{}; leave it out, or correct its name", meant(near))]
    UnknownColumn { table: TableName, column: String, near: Vec<String> },
    #[error("{value} is not an operation that tables have; use READ, INSERT, UPDATE, DELETE, TRUNCATE or MESSAGE")]
    Operation { value: i32 },
    #[error("start.at is {value}, which this server does not know; use NOW, EARLIEST, SNAPSHOT or a token")]
    Start { value: i32 },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "a snapshot needs tables, and {} of those that the source follows; a selection whose operations lack READ has none",
        selected_none(names)
    )]
    NoTable { names: Vec<String> },
    #[error("table {table}: {error}")]
    Part { table: TableName, error: Box<PartError> },
    #[error("table {table}: {error}")]
    Shape { table: TableName, error: Box<ShapeRefusal> },
    #[error(transparent)]
    NamedShape(#[from] NamedShapeError),
    #[error(transparent)]
    Naming(NamingError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Holds(#[from] HoldsError),
    #[error(transparent)]
    ShapeFailed(Arc<ShapeFailure>),
    #[error("{detail}")]
    Subqueries { detail: String },
    #[error(
        "shape {names} has been defined anew, and what that changes could not be told ({why}); nothing is lost: subscribe again with the last \
         token, and it is told from its beginning"
    )]
    Difference { names: String, why: &'static str },
    #[error("what the subqueries of a shape selected at {at} is not known any more; subscribe from SNAPSHOT")]
    SubqueriesTooOld { at: String },
    #[error(
        "what the subqueries of this source's shapes select needs more than {limit} {what} together; subscribe again when other shapes have \
         ended, or narrow the subqueries by conditions of their own"
    )]
    TooManySets { what: &'static str, limit: usize },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("group is reserved and must be empty; leave it out")]
    Group,
    #[error("credit_bytes is {credit_bytes}; the limit is {limit}: give less, and grant what is used")]
    Credit { credit_bytes: u64, limit: u64 },
    #[error("source '{source_name}' has not been connected yet: {detail}")]
    SourceNotReady { source_name: String, detail: String },
    #[error("this session has {limit} open subscriptions, the most allowed; cancel one, or open another session")]
    TooManySubscriptions { limit: usize },
    #[error("the subscription was cancelled by the client")]
    Cancelled,
    #[error("the server is going to stop; connect again, or to another server")]
    Draining,
    #[error("the subscription was reset: {detail}; subscribe again without the token")]
    Reset { detail: String },
    #[error("subscription 0 stands for the session; choose another number")]
    SubscriptionZero,
    #[error("subscription {subscription} is in use on this stream; choose another number, or cancel it first")]
    DuplicateSubscription { subscription: u32 },
    #[error("subscription {subscription} was never opened on this stream; send subscribe first")]
    UnknownSubscription { subscription: u32 },
    #[error("a SessionRequest must hold subscribe, grant, ack or cancel; this client may be newer than the server")]
    EmptyRequest,
    #[error(
        "subscription {subscription} would have {credit_bytes} bytes of credit; the limit is {limit}: grant what was used"
    )]
    CreditOverflow { subscription: u32, credit_bytes: u64, limit: u64 },
    #[error("ack.position: {0}")]
    AckPosition(PositionError),
    #[error("the request stream failed: {}", .0.message())]
    Request(Status),
    #[error("the changelog cannot be read: {0}")]
    Read(ReadError),
    #[error(transparent)]
    Mirror(MirrorError),
    #[error("the changelog has a change of row type {row_type}, which it does not describe; this is a defect")]
    MissingRowType { row_type: u32 },
    #[error("the changelog has a record that cannot be read, at {at}; this is a defect, or the disk is damaged")]
    Damaged { at: String },
    #[error("the table descriptors cannot be built: {0}")]
    Descriptors(String),
}

/// Stable, machine-readable reasons: `ErrorInfo.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Reason {
    SourceRequired,
    UnknownSource,
    InvalidSelection,
    InvalidPart,
    InvalidShape,
    ShapeRefused,
    ShapeLater,
    ShapeFailed,
    UnknownShape,
    UnknownTable,
    UnknownColumn,
    InvalidStart,
    InvalidToken,
    InvalidHolds,
    LimitExceeded,
    SourceNotReady,
    SnapshotsUnavailable,
    UnknownSnapshot,
    SnapshotRefused,
    SnapshotLater,
    Cancelled,
    Draining,
    Reset,
    ProtocolViolation,
    CreditExceeded,
    InvalidRequest,
    Storage,
    Internal,
}

impl Reason {
    pub(crate) const ALL: [Reason; 28] = [
        Reason::SourceRequired,
        Reason::UnknownSource,
        Reason::InvalidSelection,
        Reason::InvalidPart,
        Reason::InvalidShape,
        Reason::ShapeRefused,
        Reason::ShapeLater,
        Reason::ShapeFailed,
        Reason::UnknownShape,
        Reason::UnknownTable,
        Reason::UnknownColumn,
        Reason::InvalidStart,
        Reason::InvalidToken,
        Reason::InvalidHolds,
        Reason::LimitExceeded,
        Reason::SourceNotReady,
        Reason::SnapshotsUnavailable,
        Reason::UnknownSnapshot,
        Reason::SnapshotRefused,
        Reason::SnapshotLater,
        Reason::Cancelled,
        Reason::Draining,
        Reason::Reset,
        Reason::ProtocolViolation,
        Reason::CreditExceeded,
        Reason::InvalidRequest,
        Reason::Storage,
        Reason::Internal,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reason::SourceRequired => "SOURCE_REQUIRED",
            Reason::UnknownSource => "UNKNOWN_SOURCE",
            Reason::InvalidSelection => "INVALID_SELECTION",
            Reason::InvalidPart => "INVALID_PART",
            Reason::InvalidShape => "INVALID_SHAPE",
            Reason::ShapeRefused => "SHAPE_REFUSED",
            Reason::ShapeLater => "SHAPE_LATER",
            Reason::ShapeFailed => "SHAPE_FAILED",
            Reason::UnknownShape => "UNKNOWN_SHAPE",
            Reason::UnknownTable => "UNKNOWN_TABLE",
            Reason::UnknownColumn => "UNKNOWN_COLUMN",
            Reason::InvalidStart => "INVALID_START",
            Reason::InvalidToken => "INVALID_TOKEN",
            Reason::InvalidHolds => "INVALID_HOLDS",
            Reason::LimitExceeded => "LIMIT_EXCEEDED",
            Reason::SourceNotReady => "SOURCE_NOT_READY",
            Reason::SnapshotsUnavailable => "SNAPSHOTS_UNAVAILABLE",
            Reason::UnknownSnapshot => "UNKNOWN_SNAPSHOT",
            Reason::SnapshotRefused => "SNAPSHOT_REFUSED",
            Reason::SnapshotLater => "SNAPSHOT_LATER",
            Reason::Cancelled => "CANCELLED",
            Reason::Draining => "DRAINING",
            Reason::Reset => "RESET",
            Reason::ProtocolViolation => "PROTOCOL_VIOLATION",
            Reason::CreditExceeded => "CREDIT_EXCEEDED",
            Reason::InvalidRequest => "INVALID_REQUEST",
            Reason::Storage => "STORAGE",
            Reason::Internal => "INTERNAL",
        }
    }
}

fn of_holds(error: &HoldsError) -> Reason {
    match error {
        HoldsError::TooMany { .. } => Reason::LimitExceeded,
        HoldsError::Start
        | HoldsError::Selection { .. }
        | HoldsError::Twice { .. }
        | HoldsError::Salt { .. }
        | HoldsError::Digests { .. } => Reason::InvalidHolds,
    }
}

impl GatewayError {
    /// Whether and when the same request may succeed.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            GatewayError::SourceNotReady { .. } | GatewayError::Subqueries { .. } | GatewayError::Difference { .. } => {
                Retry::After(Duration::from_secs(2))
            }
            GatewayError::TooManySets { .. } => Retry::After(Duration::from_secs(10)),
            GatewayError::Draining => Retry::After(Duration::from_millis(500)),
            GatewayError::Read(error) => error.retry(),
            GatewayError::Mirror(error) => error.retry(),
            GatewayError::Snapshot(error) => error.retry(),
            GatewayError::Shape { error, .. } => error.retry(),
            GatewayError::NamedShape(error) => error.retry(),
            GatewayError::Query(error) => error.retry(),
            GatewayError::Holds(error) => error.retry(),
            GatewayError::ShapeFailed(failure) => failure.retry(),
            GatewayError::Reset { .. } | GatewayError::SubqueriesTooOld { .. } => Retry::Reset,
            GatewayError::SourceRequired { .. }
            | GatewayError::UnknownSource { .. }
            | GatewayError::NoSelection
            | GatewayError::EmptySelection { .. }
            | GatewayError::TwoSelections
            | GatewayError::TooMany { .. }
            | GatewayError::Pattern(_)
            | GatewayError::Name(_)
            | GatewayError::UnknownTable { .. }
            | GatewayError::UnknownColumn { .. }
            | GatewayError::Operation { .. }
            | GatewayError::Start { .. }
            | GatewayError::Token(_)
            | GatewayError::NoTable { .. }
            | GatewayError::Naming(_)
            | GatewayError::Part { .. }
            | GatewayError::Group
            | GatewayError::Credit { .. }
            | GatewayError::TooManySubscriptions { .. }
            | GatewayError::Cancelled
            | GatewayError::SubscriptionZero
            | GatewayError::DuplicateSubscription { .. }
            | GatewayError::UnknownSubscription { .. }
            | GatewayError::EmptyRequest
            | GatewayError::CreditOverflow { .. }
            | GatewayError::AckPosition(_)
            | GatewayError::Request(_)
            | GatewayError::MissingRowType { .. }
            | GatewayError::Damaged { .. }
            | GatewayError::Descriptors(_) => Retry::Never,
        }
    }

    pub(crate) fn reason(&self) -> Reason {
        match self {
            GatewayError::SourceRequired { .. } => Reason::SourceRequired,
            GatewayError::UnknownSource { .. } => Reason::UnknownSource,
            GatewayError::NoSelection
            | GatewayError::EmptySelection { .. }
            | GatewayError::TwoSelections
            | GatewayError::Pattern(_)
            | GatewayError::Name(NameError::Source(_) | NameError::Table(_))
            | GatewayError::Operation { .. } => Reason::InvalidSelection,
            GatewayError::Name(NameError::Shape(_)) => Reason::InvalidShape,
            GatewayError::Part { .. } => Reason::InvalidPart,
            GatewayError::Shape { error, .. } => match **error {
                ShapeRefusal::Definition(_) | ShapeRefusal::Updates { .. } | ShapeRefusal::Order { .. } => {
                    Reason::InvalidShape
                }
                ShapeRefusal::OldRows
                | ShapeRefusal::NotMirrored
                | ShapeRefusal::MirrorFailed { .. }
                | ShapeRefusal::Unmirrored
                | ShapeRefusal::SetTooLarge { .. } => Reason::ShapeRefused,
                ShapeRefusal::Building => Reason::ShapeLater,
            },
            GatewayError::Naming(_) => Reason::InvalidShape,
            GatewayError::NamedShape(error) => match error {
                NamedShapeError::Unknown { .. } => Reason::UnknownShape,
                NamedShapeError::Later { .. } => Reason::ShapeLater,
                NamedShapeError::Declared(_) | NamedShapeError::Refused { .. } => Reason::ShapeRefused,
            },
            GatewayError::Query(error) => match error {
                QueryError::Limit { .. } | QueryError::Nulls { .. } => Reason::InvalidShape,
                QueryError::TooLarge { .. } | QueryError::Busy { .. } | QueryError::TooSlow { .. } => {
                    Reason::LimitExceeded
                }
                QueryError::Changed => Reason::ShapeLater,
            },
            GatewayError::Holds(error) => of_holds(error),
            GatewayError::ShapeFailed(_) => Reason::ShapeFailed,
            GatewayError::Subqueries { .. } | GatewayError::Difference { .. } => Reason::ShapeLater,
            GatewayError::TooMany { .. }
            | GatewayError::TooManySets { .. }
            | GatewayError::TooManySubscriptions { .. } => Reason::LimitExceeded,
            GatewayError::UnknownTable { .. } | GatewayError::NoTable { .. } => Reason::UnknownTable,
            GatewayError::UnknownColumn { .. } => Reason::UnknownColumn,
            GatewayError::Start { .. } => Reason::InvalidStart,
            GatewayError::Token(_) => Reason::InvalidToken,
            GatewayError::SourceNotReady { .. } => Reason::SourceNotReady,
            GatewayError::Snapshot(SnapshotError::Unavailable) => Reason::SnapshotsUnavailable,
            GatewayError::Snapshot(SnapshotError::Unknown(_)) => Reason::UnknownSnapshot,
            GatewayError::Snapshot(SnapshotError::Refused { .. }) => Reason::SnapshotRefused,
            GatewayError::Snapshot(SnapshotError::Later { .. }) => Reason::SnapshotLater,
            GatewayError::Cancelled => Reason::Cancelled,
            GatewayError::Draining => Reason::Draining,
            GatewayError::Reset { .. } | GatewayError::SubqueriesTooOld { .. } => Reason::Reset,
            GatewayError::SubscriptionZero
            | GatewayError::DuplicateSubscription { .. }
            | GatewayError::UnknownSubscription { .. }
            | GatewayError::EmptyRequest
            | GatewayError::AckPosition(_) => Reason::ProtocolViolation,
            GatewayError::Credit { .. } | GatewayError::CreditOverflow { .. } => Reason::CreditExceeded,
            GatewayError::Group | GatewayError::Request(_) => Reason::InvalidRequest,
            GatewayError::Read(_) | GatewayError::Mirror(_) => Reason::Storage,
            GatewayError::MissingRowType { .. } | GatewayError::Damaged { .. } | GatewayError::Descriptors(_) => {
                Reason::Internal
            }
        }
    }

    fn code(&self) -> Code {
        match self.reason() {
            Reason::SourceRequired
            | Reason::InvalidSelection
            | Reason::InvalidPart
            | Reason::InvalidShape
            | Reason::UnknownColumn
            | Reason::InvalidStart
            | Reason::InvalidToken
            | Reason::InvalidHolds
            | Reason::ProtocolViolation => Code::InvalidArgument,
            Reason::UnknownSource | Reason::UnknownShape | Reason::UnknownTable | Reason::UnknownSnapshot => {
                Code::NotFound
            }
            Reason::SnapshotsUnavailable => Code::Unimplemented,
            Reason::SnapshotRefused | Reason::ShapeRefused | Reason::ShapeFailed => Code::FailedPrecondition,
            Reason::LimitExceeded | Reason::CreditExceeded => Code::ResourceExhausted,
            Reason::SourceNotReady | Reason::SnapshotLater | Reason::ShapeLater | Reason::Draining => Code::Unavailable,
            Reason::Cancelled => Code::Cancelled,
            Reason::Reset => Code::Aborted,
            Reason::InvalidRequest => match self {
                GatewayError::Request(status) => status.code(),
                _other => Code::InvalidArgument,
            },
            Reason::Storage => match self.retry() {
                Retry::After(_) => Code::Unavailable,
                Retry::Never | Retry::Reset => Code::DataLoss,
            },
            Reason::Internal => Code::Internal,
        }
    }

    /// The request's field that is wrong, where one is.
    pub(crate) fn field(&self) -> Option<&'static str> {
        match self {
            GatewayError::SourceRequired { .. } | GatewayError::UnknownSource { .. } => Some("source"),
            GatewayError::NoSelection | GatewayError::EmptySelection { .. } => Some("selections"),
            GatewayError::TwoSelections => Some("shape"),
            GatewayError::TooMany { field, .. } => Some(field),
            GatewayError::Pattern(_) | GatewayError::UnknownTable { .. } | GatewayError::NoTable { .. } => {
                Some("names")
            }
            GatewayError::Name(NameError::Source(_) | NameError::Table(_)) => Some("table"),
            GatewayError::Name(NameError::Shape(_)) => Some("shape.name"),
            GatewayError::Part { .. } => Some("parts"),
            GatewayError::Naming(error) => Some(error.field()),
            GatewayError::NamedShape(NamedShapeError::Unknown { .. } | NamedShapeError::Declared(_)) => {
                Some("shape.name")
            }
            GatewayError::Shape { error, .. } => match &**error {
                ShapeRefusal::Definition(ShapeError::UnknownColumn { .. }) => Some("shape.columns"),
                ShapeRefusal::Definition(ShapeError::Condition(_)) => Some("shape.where"),
                ShapeRefusal::Definition(ShapeError::Keyless)
                | ShapeRefusal::OldRows
                | ShapeRefusal::Unmirrored
                | ShapeRefusal::MirrorFailed { .. } => Some("shape.table"),
                ShapeRefusal::NotMirrored | ShapeRefusal::SetTooLarge { .. } => Some("shape.where"),
                ShapeRefusal::Order { .. } => Some("order_by"),
                ShapeRefusal::Updates { .. } => Some("shape.updates"),
                ShapeRefusal::Building => None,
            },
            GatewayError::Query(QueryError::Limit { .. }) => Some("limit"),
            GatewayError::Query(QueryError::Nulls { .. }) => Some("order_by"),
            GatewayError::UnknownColumn { .. } => Some("columns"),
            GatewayError::Operation { .. } => Some("operations"),
            GatewayError::Start { .. } => Some("start.at"),
            GatewayError::Token(_) => Some("start.token"),
            GatewayError::Holds(_) => Some("holds"),
            GatewayError::Group => Some("group"),
            GatewayError::Credit { .. } | GatewayError::CreditOverflow { .. } => Some("credit_bytes"),
            GatewayError::SubscriptionZero
            | GatewayError::DuplicateSubscription { .. }
            | GatewayError::UnknownSubscription { .. } => Some("subscription"),
            GatewayError::EmptyRequest => Some("request"),
            GatewayError::AckPosition(_) => Some("ack.position"),
            GatewayError::Snapshot(SnapshotError::Unknown(_)) => Some("snapshot"),
            GatewayError::Snapshot(_)
            | GatewayError::NamedShape(NamedShapeError::Later { .. } | NamedShapeError::Refused { .. })
            | GatewayError::Query(_)
            | GatewayError::ShapeFailed(_)
            | GatewayError::Subqueries { .. }
            | GatewayError::Difference { .. }
            | GatewayError::SubqueriesTooOld { .. }
            | GatewayError::TooManySets { .. }
            | GatewayError::SourceNotReady { .. }
            | GatewayError::TooManySubscriptions { .. }
            | GatewayError::Cancelled
            | GatewayError::Draining
            | GatewayError::Reset { .. }
            | GatewayError::Request(_)
            | GatewayError::Read(_)
            | GatewayError::Mirror(_)
            | GatewayError::MissingRowType { .. }
            | GatewayError::Damaged { .. }
            | GatewayError::Descriptors(_) => None,
        }
    }

    /// Where in a text it is wrong.
    fn place(&self) -> Vec<(String, String)> {
        let GatewayError::Shape { error, .. } = self else { return Vec::new() };
        let (ShapeRefusal::Definition(ShapeError::Condition(Refusal { place, .. }))
        | ShapeRefusal::Order { refusal: Refusal { place, .. }, .. }) = &**error
        else {
            return Vec::new();
        };
        let Place { offset, line, column } = place;
        let named = [("offset", offset), ("line", line), ("column", column)];
        named.map(|(name, at)| (name.to_owned(), at.to_string())).to_vec()
    }

    /// The form in which one subscription ends.
    pub(crate) fn to_rpc(&self) -> rpc::Status {
        let message = shortened(self.to_string());
        let info = rpc::ErrorInfo {
            reason: self.reason().as_str().to_owned(),
            domain: DOMAIN.to_owned(),
            metadata: self.place().into_iter().collect(),
        };
        let mut details = vec![any("google.rpc.ErrorInfo", &info)];
        if let Retry::After(delay) = self.retry() {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(any("google.rpc.RetryInfo", &rpc::RetryInfo { retry_delay }));
        }
        if let Some(field) = self.field() {
            let violation = rpc::bad_request::FieldViolation { field: field.to_owned(), description: message.clone() };
            details.push(any("google.rpc.BadRequest", &rpc::BadRequest { field_violations: vec![violation] }));
        }
        rpc::Status { code: self.code() as i32, message, details }
    }

    /// The form in which a call ends.
    pub(crate) fn to_tonic(&self) -> Status {
        let status = self.to_rpc();
        let details = status.encode_to_vec();
        Status::with_details(self.code(), status.message, details.into())
    }
}

/// Its beginning and its end, where the next step stands. A call ends with it in headers, which clients take up to 16 KiB of, and it is
/// there three times, partly as base64.
fn shortened(text: String) -> String {
    if text.len() <= HEAD_BYTES + TAIL_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(HEAD_BYTES);
    let tail = text.ceil_char_boundary(text.len() - TAIL_BYTES);
    format!("{} … {}", &text[..head], &text[tail..])
}

fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn selected_none(names: &[String]) -> String {
    if names.is_empty() { "there is none".to_owned() } else { format!("{} selects none", names.join(", ")) }
}

fn meant_source(near: &[String]) -> String {
    if near.is_empty() { "; `tidegate status` lists those that there are".to_owned() } else { meant(near) }
}

fn meant(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_with_the_same_details_as_a_subscription() {
        let error = GatewayError::UnknownSource { name: "shp".to_owned(), near: vec!["shop".to_owned()] };
        let status = error.to_tonic();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "there is no source 'shp'; did you mean shop?");
        let details = rpc::Status::decode(status.details()).expect("a google.rpc.Status");
        assert_eq!(details, error.to_rpc());
        let types: Vec<&str> = details.details.iter().map(|any| any.type_url.as_str()).collect();
        assert_eq!(types, ["type.googleapis.com/google.rpc.ErrorInfo", "type.googleapis.com/google.rpc.BadRequest"]);
    }

    #[test]
    fn what_a_client_has_written_is_not_told_back_at_any_length() {
        let error = GatewayError::Name(NameError::Table("ä".repeat(40_000)));
        let status = error.to_tonic();
        assert!(status.message().len() < 1_700 && status.details().len() < 4_500, "{}", status.details().len());
        assert!(status.message().ends_with("around parts that need them"), "{}", status.message());
    }

    #[test]
    fn what_may_succeed_later_says_when() {
        let error = GatewayError::SourceNotReady { source_name: "shop".to_owned(), detail: "connecting".to_owned() };
        let retry = error.to_rpc().details.into_iter().find(|any| any.type_url.ends_with("RetryInfo"));
        let retry = rpc::RetryInfo::decode(retry.expect("a RetryInfo").value.as_slice()).expect("valid");
        assert_eq!(retry.retry_delay.map(|delay| delay.seconds), Some(2));
    }

    #[test]
    fn every_reason_stands_at_its_own_index() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }
}
