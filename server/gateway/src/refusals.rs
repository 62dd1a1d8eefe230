//! What a definition of a shape, a selection of one and a query are refused with: `tests/refusals.txt` has each error with its reason, the
//! request's field and its words, those of conditions apart (`server/views/tests/refusals.txt`). With `TIDEGATE_GOLDEN=write` they
//! are written anew. An error without a line does not pass, and a new variant does not compile before it is named here.

use std::{collections::BTreeSet, time::Duration};

use tidegate_model::{NameError, PatternError, Position, PositionError, TableName, TokenError};
use tidegate_store::{MirrorError, ReadError};
use tidegate_views::{EvaluationError, Failure, Place, Reason as Refused, Refusal, RowError, ShapeError};
use tonic::Status;

use crate::{
    held::HoldsError,
    named_shapes::{NamedShapeError, NamingError},
    query::QueryError,
    shape::{Cause, Lost, ShapeFailure, ShapeRefusal},
    snapshot_parts::PartError,
    snapshots::SnapshotError,
    status::{GatewayError, Reason},
};

/// The variants of an error, and which of them one is.
struct Variants<E> {
    names: &'static [&'static str],
    name: fn(&E) -> &'static str,
}

/// What is left out does not compile.
macro_rules! variants {
    ($($variant:pat),+ $(,)?) => {
        Variants { names: &[$(stringify!($variant)),+], name: |error| match error { $($variant => stringify!($variant)),+ } }
    };
}

impl<E> Variants<E> {
    fn must_all_be_among<'a>(&self, examples: impl IntoIterator<Item = &'a E>)
    where
        E: 'a,
    {
        let found: BTreeSet<&str> = examples.into_iter().map(self.name).collect();
        let missing: Vec<_> = self.names.iter().filter(|name| !found.contains(**name)).collect();
        assert!(missing.is_empty(), "there is no example of {missing:?}");
    }
}

fn table() -> TableName {
    TableName::new("public", "orders")
}

fn refusal() -> Refusal {
    let reason = Refused::UnknownColumn { name: "totl".to_owned(), columns: vec!["id".to_owned(), "total".to_owned()] };
    Refusal { place: Place { offset: 13, line: 1, column: 14 }, reason }
}

fn of_shapes() -> Vec<ShapeRefusal> {
    let unknown = |near: &[&str]| ShapeError::UnknownColumn {
        column: "statu".to_owned(),
        near: near.iter().map(|name| (*name).to_owned()).collect(),
    };
    vec![
        ShapeRefusal::Definition(unknown(&["status"])),
        ShapeRefusal::Definition(unknown(&[])),
        ShapeRefusal::Definition(ShapeError::Keyless),
        ShapeRefusal::Definition(ShapeError::Condition(refusal())),
        ShapeRefusal::Updates { value: 7 },
        ShapeRefusal::OldRows,
        ShapeRefusal::NotMirrored,
        ShapeRefusal::SetTooLarge { bytes_max: 256 << 20 },
        ShapeRefusal::Unmirrored,
        ShapeRefusal::Order { term: 2, refusal: refusal() },
        ShapeRefusal::Building,
        ShapeRefusal::MirrorFailed { detail: "the stream does not hold it; give it a primary key".to_owned() },
    ]
}

fn of_names() -> Vec<GatewayError> {
    let name = || "open_orders".parse().expect("a name");
    let unknown = |near: &[&str]| NamedShapeError::Unknown {
        name: name(),
        near: near.iter().map(|name| (*name).to_owned()).collect(),
    };
    let later = "the change is stored, and is not known here yet; see Shapes.List".to_owned();
    let naming = [
        NamingError::DefinedTwice(name()),
        NamingError::ParameterCount {
            name: name(),
            types: vec!["int8".to_owned(), String::new()],
            expected: 2,
            given: 0,
        },
        NamingError::ParameterCount { name: name(), types: Vec::new(), expected: 0, given: 1 },
        NamingError::Nameless,
        NamingError::Value { number: 1 },
        NamingError::NoValue { number: 2 },
    ];
    let named = [
        NamedShapeError::Declared(name()),
        unknown(&["open_order"]),
        unknown(&[]),
        NamedShapeError::Later { detail: later, retry_in: Duration::from_secs(2) },
        NamedShapeError::Refused { detail: "the source has 10,000 shapes, the most allowed; delete some".to_owned() },
    ];
    let named = named.into_iter().map(GatewayError::NamedShape);
    named.chain(naming.into_iter().map(GatewayError::Naming)).collect()
}

fn others() -> Vec<GatewayError> {
    let queries = [
        QueryError::Limit { max: 10_000 },
        QueryError::Nulls { value: 7 },
        QueryError::TooLarge { max: 32 << 20 },
        QueryError::Busy { max: 16 },
        QueryError::TooSlow { after: Duration::from_secs(60) },
        QueryError::Changed,
    ];
    let too_many = |what, field| GatewayError::TooMany { what, count: 20_000, limit: 10_000, field };
    let mut all = vec![
        GatewayError::Name(NameError::Shape("Open Orders".to_owned())),
        GatewayError::Name(NameError::Table("a.b.c".to_owned())),
        GatewayError::UnknownTable { table: table(), near: vec!["public.order".to_owned()] },
        GatewayError::UnknownTable { table: table(), near: Vec::new() },
        GatewayError::NoSelection,
        GatewayError::EmptySelection { index: 1 },
        GatewayError::TwoSelections,
        too_many("selections", "selections"),
        too_many("parameters", "parameters"),
        GatewayError::TooManySets { what: "bytes", limit: 1 << 30 },
        GatewayError::Subqueries { detail: "the sets of its subqueries are being built; subscribe again".to_owned() },
        GatewayError::Difference { names: "open_orders".to_owned(), why: "it was not received in time" },
        GatewayError::SubqueriesTooOld { at: "0/1500028:0".to_owned() },
    ];
    all.extend(queries.map(GatewayError::Query));
    all
}

/// Of what else a subscription, a session or a snapshot is asked for.
fn of_requests() -> Vec<GatewayError> {
    let near = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let mut all = vec![
        GatewayError::SourceRequired { names: near(&["shop", "stock"]) },
        GatewayError::UnknownSource { name: "shp".to_owned(), near: near(&["shop"]) },
        GatewayError::UnknownSource { name: "elsewhere".to_owned(), near: Vec::new() },
        GatewayError::Name(NameError::Source("My Shop".to_owned())),
        GatewayError::Pattern(PatternError("a.b.c".to_owned())),
        GatewayError::UnknownColumn { table: table(), column: "statu".to_owned(), near: near(&["status"]) },
        GatewayError::Operation { value: 9 },
        GatewayError::Start { value: 9 },
        GatewayError::NoTable { names: near(&["shop.*"]) },
        GatewayError::NoTable { names: Vec::new() },
        GatewayError::Group,
        GatewayError::Credit { credit_bytes: 1 << 40, limit: 1 << 30 },
        GatewayError::TooManySubscriptions { limit: 10_000 },
        GatewayError::Reset { detail: "a shape has been defined anew".to_owned() },
        GatewayError::SubscriptionZero,
        GatewayError::DuplicateSubscription { subscription: 7 },
        GatewayError::UnknownSubscription { subscription: 7 },
        GatewayError::EmptyRequest,
        GatewayError::CreditOverflow { subscription: 7, credit_bytes: 1 << 40, limit: 1 << 30 },
        GatewayError::AckPosition(PositionError),
    ];
    all.extend([TokenError::Malformed, TokenError::Version(9), TokenError::Checksum].map(GatewayError::Token));
    let parts = [
        PartError::Empty,
        PartError::Twice,
        PartError::Condition(refusal()),
        PartError::Keyless,
        PartError::NoKeys,
        PartError::Columns { key: near(&["id"]), given: near(&["di"]) },
        PartError::Width { number: 2, count: 1, key: near(&["a", "b"]) },
        PartError::Value { number: 2, column: "id".to_owned(), value: "x".to_owned() },
    ];
    all.extend(parts.map(|error| GatewayError::Part { table: table(), error: Box::new(error) }));
    let holds = [
        HoldsError::Start,
        HoldsError::Selection { selection: 3, count: 1 },
        HoldsError::Twice { selection: 0 },
        HoldsError::Salt { byte_count: 15 },
        HoldsError::Digests { byte_count: 12 },
        HoldsError::TooMany { count: 100_000 },
    ];
    all.extend(holds.map(GatewayError::Holds));
    let snapshots = [
        SnapshotError::Unavailable,
        SnapshotError::Unknown(7),
        SnapshotError::Later { detail: "16 snapshots run; ask again".to_owned(), retry_in: Duration::from_secs(5) },
        SnapshotError::Refused { detail: "public.v is a view; take a table".to_owned() },
    ];
    all.extend(snapshots.map(GatewayError::Snapshot));
    all
}

/// Why it is not known what a change is to a shape.
fn causes() -> Vec<Cause> {
    let retyped = |retyped| Lost::Column { column: "total".to_owned(), retyped, for_reads: true };
    let failed = || Failure::Evaluation(EvaluationError::DivisionByZero);
    vec![
        Cause::Condition(failed()),
        Cause::Condition(Failure::Row(RowError::Column { column: "mood".to_owned() })),
        Cause::Order(failed()),
        Cause::Unknown { column: "note".to_owned() },
        Cause::Lost(Lost::Key),
        Cause::Lost(retyped(false)),
        Cause::Lost(retyped(true)),
        Cause::Damaged,
    ]
}

/// What is no request's fault.
fn of_the_server() -> Vec<GatewayError> {
    vec![
        GatewayError::SourceNotReady { source_name: "shop".to_owned(), detail: "connection refused".to_owned() },
        GatewayError::Cancelled,
        GatewayError::Draining,
        GatewayError::Request(Status::cancelled("the client has gone")),
        GatewayError::Read(ReadError::OtherEpoch { current: None }),
        GatewayError::Mirror(MirrorError::IndexNotComplete),
        GatewayError::MissingRowType { row_type: 7 },
        GatewayError::Damaged { at: "0/1500028:0".to_owned() },
        GatewayError::Descriptors("two messages of one name".to_owned()),
    ]
}

fn all() -> Vec<GatewayError> {
    let of_shape = |error| GatewayError::Shape { table: table(), error: Box::new(error) };
    let failed = |cause| GatewayError::ShapeFailed(ShapeFailure::of_subquery(&table(), Position::ZERO, cause));
    let failed: Vec<GatewayError> = causes().into_iter().map(failed).collect();
    let of_shapes = of_shapes().into_iter().map(of_shape);
    of_shapes.chain(of_names()).chain(others()).chain(of_requests()).chain(failed).chain(of_the_server()).collect()
}

/// Is there something that the client can do, besides trying again?
fn has_next_step(error: &GatewayError) -> bool {
    match error.reason() {
        Reason::Cancelled | Reason::Internal | Reason::Storage | Reason::SourceNotReady => false,
        Reason::SnapshotsUnavailable | Reason::InvalidRequest => false,
        _other => true,
    }
}

#[test]
fn refusals_say_what_is_wrong_where_and_what_to_do() {
    let shown = |error: GatewayError| {
        let words = error.to_string();
        assert!(words.contains("; ") || !has_next_step(&error), "{words}");
        format!("{} {}\n    {words}\n", error.reason().as_str(), error.field().unwrap_or("-"))
    };
    let found: String = all().into_iter().map(shown).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refusals.txt");
    if std::env::var("TIDEGATE_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(path, &found).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(path).expect("the golden file is there");
    assert_eq!(found, expected);
}

#[test]
fn every_error_has_a_line() {
    use GatewayError as E;
    let variants: Variants<E> = variants![
        E::SourceRequired { .. },
        E::UnknownSource { .. },
        E::NoSelection,
        E::EmptySelection { .. },
        E::TwoSelections,
        E::TooMany { .. },
        E::Pattern(_),
        E::Name(_),
        E::UnknownTable { .. },
        E::UnknownColumn { .. },
        E::Operation { .. },
        E::Start { .. },
        E::Token(_),
        E::NoTable { .. },
        E::Part { .. },
        E::Shape { .. },
        E::NamedShape(_),
        E::Naming(_),
        E::Query(_),
        E::Holds(_),
        E::ShapeFailed(_),
        E::Subqueries { .. },
        E::Difference { .. },
        E::SubqueriesTooOld { .. },
        E::TooManySets { .. },
        E::Snapshot(_),
        E::Group,
        E::Credit { .. },
        E::SourceNotReady { .. },
        E::TooManySubscriptions { .. },
        E::Cancelled,
        E::Draining,
        E::Reset { .. },
        E::SubscriptionZero,
        E::DuplicateSubscription { .. },
        E::UnknownSubscription { .. },
        E::EmptyRequest,
        E::CreditOverflow { .. },
        E::AckPosition(_),
        E::Request(_),
        E::Read(_),
        E::Mirror(_),
        E::MissingRowType { .. },
        E::Damaged { .. },
        E::Descriptors(_),
    ];
    variants.must_all_be_among(&all());
}

#[test]
fn every_error_within_another_has_a_line() {
    use GatewayError as E;
    let all = all();
    macro_rules! within {
        ($outer:pat => $inner:expr; $($variant:pat),+ $(,)?) => {
            variants![$($variant),+].must_all_be_among(all.iter().filter_map(|error| match error {
                $outer => Some($inner),
                _other => None,
            }))
        };
    }
    within!(E::Name(error) => error; NameError::Source(_), NameError::Shape(_), NameError::Table(_));
    within!(E::Token(error) => error; TokenError::Malformed, TokenError::Version(_), TokenError::Checksum);
    within!(E::Part { error, .. } => &**error;
        PartError::Empty, PartError::Twice, PartError::Condition(_), PartError::Keyless, PartError::NoKeys,
        PartError::Columns { .. }, PartError::Width { .. }, PartError::Value { .. });
    within!(E::Shape { error, .. } => &**error;
        ShapeRefusal::Definition(_), ShapeRefusal::Updates { .. }, ShapeRefusal::OldRows, ShapeRefusal::NotMirrored,
        ShapeRefusal::SetTooLarge { .. }, ShapeRefusal::Unmirrored, ShapeRefusal::Order { .. }, ShapeRefusal::Building,
        ShapeRefusal::MirrorFailed { .. });
    within!(E::NamedShape(error) => error;
        NamedShapeError::Declared(_), NamedShapeError::Unknown { .. }, NamedShapeError::Later { .. },
        NamedShapeError::Refused { .. });
    within!(E::Naming(error) => error;
        NamingError::DefinedTwice(_), NamingError::ParameterCount { .. }, NamingError::Nameless, NamingError::Value { .. },
        NamingError::NoValue { .. });
    within!(E::Query(error) => error;
        QueryError::Limit { .. }, QueryError::Nulls { .. }, QueryError::TooLarge { .. }, QueryError::Busy { .. },
        QueryError::TooSlow { .. }, QueryError::Changed);
    within!(E::Holds(error) => error;
        HoldsError::Start, HoldsError::Selection { .. }, HoldsError::Twice { .. }, HoldsError::Salt { .. },
        HoldsError::Digests { .. }, HoldsError::TooMany { .. });
    within!(E::Snapshot(error) => error;
        SnapshotError::Unavailable, SnapshotError::Unknown(_), SnapshotError::Later { .. }, SnapshotError::Refused { .. });
    let definitions = of_shapes().into_iter().filter_map(|error| match error {
        ShapeRefusal::Definition(error) => Some(error),
        _other => None,
    });
    let of_definitions = variants![ShapeError::UnknownColumn { .. }, ShapeError::Condition(_), ShapeError::Keyless];
    of_definitions.must_all_be_among(&definitions.collect::<Vec<ShapeError>>());
    let of_causes =
        variants![Cause::Condition(_), Cause::Order(_), Cause::Unknown { .. }, Cause::Lost(_), Cause::Damaged,];
    of_causes.must_all_be_among(&causes());
}
