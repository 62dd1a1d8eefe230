//! What a definition of a shape, a selection of one and a query are refused with: `tests/refusals.txt` has each error with its reason, the
//! request's field and its words, those of conditions apart (`server/views/tests/refusals.txt`). With `TIDEGATE_GOLDEN=write` they
//! are written anew.

use std::time::Duration;

use tidegate_model::{NameError, TableName};
use tidegate_views::{Place, Reason, Refusal, ShapeError};

use crate::{
    named_shapes::{NamedShapeError, NamingError},
    query::QueryError,
    shape::ShapeRefusal,
    status::GatewayError,
};

fn table() -> TableName {
    TableName::new("public", "orders")
}

fn refusal() -> Refusal {
    let reason = Reason::UnknownColumn { name: "totl".to_owned(), columns: vec!["id".to_owned(), "total".to_owned()] };
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
        GatewayError::SubqueriesTooOld { at: "0/1500028:0".to_owned() },
    ];
    all.extend(queries.map(GatewayError::Query));
    all
}

#[test]
fn refusals_say_what_is_wrong_where_and_what_to_do() {
    let of_shape = |error| GatewayError::Shape { table: table(), error: Box::new(error) };
    let errors = of_shapes().into_iter().map(of_shape).chain(of_names()).chain(others());
    let shown = |error: GatewayError| {
        let words = error.to_string();
        // What is wrong, and what to do.
        assert!(words.contains("; "), "{words}");
        format!("{} {}\n    {words}\n", error.reason().as_str(), error.field().unwrap_or("-"))
    };
    let found: String = errors.map(shown).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refusals.txt");
    if std::env::var("TIDEGATE_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(path, &found).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(path).expect("the golden file is there");
    assert_eq!(found, expected);
}
