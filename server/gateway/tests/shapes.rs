//! `Shapes` over gRPC: what is right, what serves it, what is refused and where, and names. Hostile definitions are refused in time.

mod fixture;

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use fixture::{Fixture, now, subscribe};
use prost::Message as _;
use tidegate_gateway::Described;
use tidegate_proto::{
    rpc,
    v1::{self, session_response::Event, shapes_client::ShapesClient},
};
use tidegate_views::{CollationFacts, ColumnFacts, TableFacts};
use tonic::{Code, Status, transport::Channel};

fn described() -> Described {
    let default = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: false };
    let columns = [("id", 20, "bigint"), ("note", 25, "text"), ("tenant", 23, "integer"), ("tags", 1009, "text[]")];
    let column = |(field, (name, type_oid, _)): (u32, (&str, u32, &str))| ColumnFacts {
        name: name.to_owned(),
        field,
        type_oid,
        collation: matches!(type_oid, 25 | 1009).then(|| default.clone()),
        enum_type: None,
    };
    let facts = TableFacts {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        columns: (1..).zip(columns).map(column).collect(),
        default_collation: default.clone(),
    };
    let type_names = columns.map(|(_, _, name)| name.to_owned()).to_vec();
    let type_oids = columns.map(|(_, type_oid, _)| type_oid).to_vec();
    Described { facts, key: vec!["id".to_owned()], type_oids, type_names, whole_old_rows: true }
}

async fn served() -> (Fixture, ShapesClient<Channel>) {
    let fixture = Fixture::start().await;
    *fixture.snapshots.described.lock().expect("no panic") = Some(described());
    let client = ShapesClient::new(fixture.channel().await);
    (fixture, client)
}

fn parameter(type_name: &str, value: Option<&str>) -> v1::Parameter {
    v1::Parameter { r#type: type_name.to_owned(), value: value.map(str::to_owned) }
}

fn shape(name: &str, condition: &str, parameters: Vec<v1::Parameter>) -> v1::ShapeSelection {
    v1::ShapeSelection {
        name: name.to_owned(),
        table: "orders".to_owned(),
        r#where: condition.to_owned(),
        parameters,
        ..v1::ShapeSelection::default()
    }
}

fn validate(shape: v1::ShapeSelection) -> v1::ValidateShapeRequest {
    v1::ValidateShapeRequest { source: String::new(), shape: Some(shape) }
}

fn explain(shape: v1::ShapeSelection) -> v1::ExplainShapeRequest {
    v1::ExplainShapeRequest { source: String::new(), shape: Some(shape) }
}

fn define(shape: v1::ShapeSelection) -> v1::DefineShapeRequest {
    v1::DefineShapeRequest { source: String::new(), shape: Some(shape) }
}

fn named(name: &str) -> v1::DescribeShapeRequest {
    v1::DescribeShapeRequest { source: String::new(), name: name.to_owned() }
}

/// Code, reason, and field, of an error with a stable form.
fn refused(status: &Status) -> (Code, String, Option<String>, rpc::ErrorInfo) {
    let details = rpc::Status::decode(status.details()).expect("a google.rpc.Status").details;
    let of = |name: &str| details.iter().find(|any| any.type_url.ends_with(name)).map(|any| any.value.as_slice());
    let info = rpc::ErrorInfo::decode(of("ErrorInfo").expect("an ErrorInfo")).expect("valid");
    let field = of("BadRequest").map(|bytes| rpc::BadRequest::decode(bytes).expect("valid"));
    let field = field.and_then(|request| request.field_violations.into_iter().next()).map(|violation| violation.field);
    (status.code(), info.reason.clone(), field, info)
}

#[tokio::test]
async fn a_definition_that_is_right_has_a_normal_form_and_typed_columns() {
    let (_fixture, mut client) = served().await;
    let columns = vec!["tags".to_owned()];
    let one =
        v1::ShapeSelection { columns, ..shape("", "tenant = $1 and note is not null", vec![parameter("", Some("7"))]) };
    let valid = client.validate(validate(one)).await.expect("valid").into_inner();
    let found: Vec<_> =
        valid.columns.iter().map(|column| (column.name.as_str(), column.r#type.as_str(), column.key)).collect();
    assert_eq!(found, [("id", "bigint", true), ("tags", "text[]", false)]);
    let other = shape("", "(note IS NOT NULL) AND 7 = tenant", vec![]);
    let other = client.validate(validate(other)).await.expect("valid").into_inner();
    assert_eq!(valid.condition, other.condition);
    assert_eq!(other.columns.len(), 4);
    let open = shape("mine", "tenant = $1", vec![parameter("int4", None)]);
    assert_eq!(client.validate(validate(open)).await.expect("valid").into_inner().condition, "");
}

#[tokio::test]
async fn a_refusal_says_where_and_what_to_do() {
    let (_fixture, mut client) = served().await;
    let status = client.validate(validate(shape("", "tenant = 1\n and nope = 2", vec![]))).await.expect_err("refused");
    let (code, reason, field, info) = refused(&status);
    assert_eq!(
        (code, reason.as_str(), field.as_deref()),
        (Code::InvalidArgument, "INVALID_SHAPE", Some("shape.where"))
    );
    assert!(status.message().starts_with("table public.orders: where, line 2, column 6: "), "{}", status.message());
    let place = ["line", "column", "offset"].map(|name| info.metadata.get(name).map(String::as_str));
    assert_eq!(place, [Some("2"), Some("6"), Some("16")]);

    let columns = vec!["noet".to_owned()];
    let unknown = v1::ShapeSelection { columns, ..shape("", "", vec![]) };
    let status = client.validate(validate(unknown)).await.expect_err("refused");
    let (_, reason, field, _) = refused(&status);
    assert_eq!((reason.as_str(), field.as_deref()), ("INVALID_SHAPE", Some("shape.columns")));
    assert!(status.message().contains("did you mean note?"), "{}", status.message());
}

#[tokio::test]
async fn it_is_explained_what_is_looked_up_and_what_is_evaluated() {
    let (_fixture, mut client) = served().await;
    let one = shape("", "tenant = $1 and length(note) > 3", vec![parameter("int4", Some("7"))]);
    let explained = client.explain(explain(one)).await.expect("valid").into_inner();
    assert_eq!(explained.lookups.len(), 1);
    assert_eq!((explained.lookups[0].column.as_str(), explained.lookups[0].count), ("tenant", 1));
    assert_eq!(explained.lookups[0].kind(), v1::shape_lookup::Kind::Value);
    assert_eq!(explained.residuals, [v1::ShapeResidual { columns: vec!["note".to_owned()] }]);
    assert!(explained.summary.starts_with("Rows are found by tenant"), "{}", explained.summary);
    let residual = client.explain(explain(shape("", "length(note) > 3", vec![]))).await.expect("valid").into_inner();
    assert!(residual.each_row && residual.lookups.is_empty());
    let open = shape("", "tenant = $1", vec![parameter("int4", None)]);
    let status = client.explain(explain(open)).await.expect_err("refused");
    assert_eq!(refused(&status).2.as_deref(), Some("shape.parameters"));
}

#[tokio::test]
async fn a_name_is_defined_described_listed_and_deleted() {
    let (_fixture, mut client) = served().await;
    let open = || shape("open_orders", "tenant = $1", vec![parameter("int4", None)]);
    let defined = client.define(define(open())).await.expect("defined").into_inner().shape.expect("a shape");
    assert_eq!((defined.source.as_str(), defined.version, defined.declared), ("shop", 1, false));
    assert_eq!(defined.definition.as_ref().map(|shape| shape.table.as_str()), Some("public.orders"));
    client.define(define(shape("others", "", vec![]))).await.expect("defined");

    let described = client.describe(named("open_orders")).await.expect("known").into_inner();
    assert_eq!((described.shape, described.columns.len(), described.problem.as_str()), (Some(defined), 4, ""));
    let by_name = v1::ShapeSelection {
        name: "open_orders".to_owned(),
        parameters: vec![parameter("", Some("7"))],
        ..v1::ShapeSelection::default()
    };
    let explained = client.explain(explain(by_name)).await.expect("known").into_inner();
    assert!(explained.condition.contains("7"), "{}", explained.condition);

    let all = client.list(v1::ListShapesRequest::default()).await.expect("listed").into_inner();
    let names = |list: &v1::ListShapesResponse| {
        list.shapes.iter().filter_map(|shape| Some(shape.definition.as_ref()?.name.clone())).collect::<Vec<_>>()
    };
    assert_eq!((names(&all), all.more), (vec!["open_orders".to_owned(), "others".to_owned()], false));
    let after = Some(v1::ShapeKey { source: "shop".to_owned(), name: "open_orders".to_owned() });
    let rest = client.list(v1::ListShapesRequest { after, ..Default::default() }).await.expect("listed").into_inner();
    assert_eq!(names(&rest), ["others"]);

    let gone = || v1::DeleteShapeRequest { source: String::new(), name: "open_orders".to_owned() };
    client.delete(gone()).await.expect("deleted");
    let status = client.delete(gone()).await.expect_err("gone");
    let (code, reason, field, _) = refused(&status);
    assert_eq!((code, reason.as_str(), field.as_deref()), (Code::NotFound, "UNKNOWN_SHAPE", Some("shape.name")));
}

#[tokio::test]
async fn who_does_not_ask_for_differences_is_reset_by_an_edit() {
    let (fixture, mut client) = served().await;
    client.define(define(shape("mine", "tenant = 1", vec![]))).await.expect("defined");
    let by_name = v1::ShapeSelection { name: "mine".to_owned(), ..v1::ShapeSelection::default() };
    let selections = vec![v1::Selection { what: Some(v1::selection::What::Shape(by_name)) }];
    let mut session = fixture.session().await;
    session.subscribe(v1::Subscribe { selections, ..subscribe(&[], now()) }).await;
    let (1, Event::Opened(_)) = session.event().await else { panic!("not opened") };
    client.define(define(shape("mine", "tenant = 2", vec![]))).await.expect("defined anew");
    loop {
        match session.event().await {
            (1, Event::Progress(_)) => {}
            (1, Event::Reset(reset)) => {
                assert_eq!(reset.reason(), v1::reset::Reason::DefinitionChanged);
                assert!(reset.detail.contains("does not ask for differences"), "{}", reset.detail);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A shape by its name, from now on or from a token.
fn by_name(name: &str, start: v1::start::From) -> v1::Subscribe {
    let shape = v1::ShapeSelection { name: name.to_owned(), ..v1::ShapeSelection::default() };
    let selections = vec![v1::Selection { what: Some(v1::selection::What::Shape(shape)) }];
    v1::Subscribe { selections, differences: true, ..subscribe(&[], start) }
}

#[tokio::test]
async fn a_token_of_a_definition_that_only_another_server_knows_is_asked_about_before_it_is_refused() {
    let (fixture, mut client) = served().await;
    client.define(define(shape("mine", "tenant = 1", vec![]))).await.expect("defined");
    let before = fixture.named_shapes.all();
    client.define(define(shape("mine", "tenant = 2", vec![]))).await.expect("defined anew");
    let mut session = fixture.session().await;
    session.subscribe(by_name("mine", now())).await;
    let (1, Event::Opened(opened)) = session.event().await else { panic!("not opened") };
    let token = format!("{}.{}", opened.token_prefix, opened.position);
    drop(session);

    fixture.named_shapes.forget(before);
    fixture.named_shapes.is_silent.store(true, Relaxed);
    let mut session = fixture.session().await;
    session.subscribe(by_name("mine", v1::start::From::Token(token.clone()))).await;
    let (1, Event::Error(later)) = session.event().await else { panic!("it is told what nobody knows") };
    assert_eq!((later.code, later.message.as_str()), (Code::Unavailable as i32, "nobody answers"));
    fixture.named_shapes.is_silent.store(false, Relaxed);
    let mut session = fixture.session().await;
    session.subscribe(by_name("mine", v1::start::From::Token(token.clone()))).await;
    let (1, Event::Opened(again)) = session.event().await else { panic!("not opened") };
    assert_eq!(again.token_prefix, opened.token_prefix);
    // One that nobody knows is none.
    client.define(define(shape("mine", "tenant = 3", vec![]))).await.expect("defined anew");
    let mut session = fixture.session().await;
    session.subscribe(by_name("mine", v1::start::From::Token(token))).await;
    let (1, Event::Reset(reset)) = session.event().await else { panic!("it is opened") };
    assert_eq!(reset.reason(), v1::reset::Reason::DefinitionChanged);
}

#[tokio::test]
async fn a_name_or_parameters_that_only_another_server_knows_are_asked_about_before_they_are_refused() {
    let (fixture, mut client) = served().await;
    let without = fixture.named_shapes.all();
    client.define(define(shape("mine", "tenant = 1", vec![]))).await.expect("defined");
    let opened = async |subscribe: v1::Subscribe| {
        let mut session = fixture.session().await;
        session.subscribe(subscribe).await;
        match session.event().await {
            (1, Event::Opened(_)) => Ok(()),
            (1, Event::Error(error)) => Err(error.message),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(opened(by_name("mine", now())).await, Ok(()));
    assert_eq!(fixture.named_shapes.question_count.load(Relaxed), 0, "what is known is not asked");
    fixture.named_shapes.forget(without);
    assert_eq!(opened(by_name("mine", now())).await, Ok(()), "another name");

    let parameter_less = fixture.named_shapes.all();
    let typed = vec![parameter("int4", None)];
    client.define(define(shape("mine", "tenant = $1", typed))).await.expect("defined anew");
    fixture.named_shapes.forget(parameter_less);
    let mut with_value = by_name("mine", now());
    let Some(v1::selection::What::Shape(shape)) = &mut with_value.selections[0].what else { panic!("a shape") };
    shape.parameters.push(parameter("", Some("7")));
    assert_eq!(opened(with_value).await, Ok(()), "other parameters");

    let asked = fixture.named_shapes.question_count.load(Relaxed);
    let unknown = opened(by_name("other", now())).await.expect_err("nobody knows it");
    assert!(unknown.contains("there is no shape other"), "{unknown}");
    assert_eq!(fixture.named_shapes.question_count.load(Relaxed), asked + 1, "once");
    fixture.named_shapes.is_silent.store(true, Relaxed);
    assert_eq!(opened(by_name("other", now())).await, Err("nobody answers".to_owned()));
}

#[tokio::test]
async fn what_the_configuration_declares_is_not_asked_about() {
    let (fixture, _client) = served().await;
    fixture.named_shapes.declare(shape("mine", "tenant = 1", vec![]));
    let mut session = fixture.session().await;
    session.subscribe(by_name("mine", now())).await;
    let (1, Event::Opened(opened)) = session.event().await else { panic!("not opened") };
    fixture.named_shapes.declare(shape("mine", "tenant = 2", vec![]));
    let mut session = fixture.session().await;
    let token = format!("{}.{}", opened.token_prefix, opened.position);
    session.subscribe(by_name("mine", v1::start::From::Token(token))).await;
    let (1, Event::Reset(reset)) = session.event().await else { panic!("it is opened") };
    assert_eq!(reset.reason(), v1::reset::Reason::DefinitionChanged);
    let mut with_value = by_name("mine", now());
    let Some(v1::selection::What::Shape(shape)) = &mut with_value.selections[0].what else { panic!("a shape") };
    shape.parameters.push(parameter("", Some("7")));
    let mut session = fixture.session().await;
    session.subscribe(with_value).await;
    let (1, Event::Error(error)) = session.event().await else { panic!("it is opened") };
    assert!(error.message.contains("has 0 parameters"), "{}", error.message);
    assert_eq!(fixture.named_shapes.question_count.load(Relaxed), 0);
}

#[tokio::test]
async fn what_is_no_named_shape_is_refused() {
    let (fixture, mut client) = served().await;
    let mut error = async |shape: v1::ShapeSelection| {
        let status = client.define(define(shape)).await.expect_err("refused");
        let (code, reason, field, _) = refused(&status);
        (code, reason, field.unwrap_or_default(), status.message().to_owned())
    };
    let (code, reason, field, message) = error(shape("", "", vec![])).await;
    assert_eq!((code, reason.as_str(), field.as_str()), (Code::InvalidArgument, "INVALID_SHAPE", "shape.name"));
    assert!(message.contains("needs a name"), "{message}");
    assert!(error(shape("Open", "", vec![])).await.3.contains("use a-z, 0-9 and _"));
    let valued = shape("mine", "tenant = $1", vec![parameter("int4", Some("7"))]);
    assert_eq!(error(valued).await.2, "shape.parameters");
    assert_eq!(error(shape("mine", "tenant = note", vec![])).await.2, "shape.where");

    fixture.named_shapes.declare(shape("declared", "", vec![]));
    let (code, reason, _, message) = error(shape("declared", "tenant = 1", vec![])).await;
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "SHAPE_REFUSED"));
    assert!(message.contains("declared in the server's configuration"), "{message}");
}

#[tokio::test]
async fn a_shape_that_fits_its_table_no_more_is_described_with_the_problem() {
    let (fixture, mut client) = served().await;
    fixture.named_shapes.declare(shape("mine", "tenant = 1", vec![]));
    let mut changed = described();
    changed.facts.columns.retain(|column| column.name != "tenant");
    *fixture.snapshots.described.lock().expect("no panic") = Some(changed);
    let described = client.describe(named("mine")).await.expect("known").into_inner();
    assert!(described.columns.is_empty());
    assert!(described.problem.contains("has no column tenant"), "{}", described.problem);
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let (_fixture, mut client) = served().await;
    let condition = format!("note = '{}'", "x".repeat(60_000));
    for number in 0..10 {
        client.define(define(shape(&format!("shape_{number}"), &condition, vec![]))).await.expect("defined");
    }
    let (mut after, mut count, mut pages) = (None, 0, 0);
    loop {
        let page =
            client.list(v1::ListShapesRequest { after, ..Default::default() }).await.expect("listed").into_inner();
        let last = page.shapes.last().expect("not empty");
        let name = last.definition.as_ref().expect("defined").name.clone();
        after = Some(v1::ShapeKey { source: last.source.clone(), name });
        (count, pages) = (count + page.shapes.len(), pages + 1);
        if !page.more {
            break;
        }
    }
    assert_eq!((count, pages), (10, 2));
}

#[tokio::test]
async fn hostile_definitions_are_refused_in_time() {
    let (fixture, mut client) = served().await;
    let terms = |count: usize| (0..count).map(|n| format!("tenant = {n}")).collect::<Vec<_>>().join(" or ");
    let values = |count: usize| format!("tenant in ({})", vec!["1"; count].join(","));
    let hostile = [
        ("not", "not ".repeat(16_000) + "true"),
        ("terms", terms(10_000)),
        ("terms that fit", terms(2_000)),
        ("regex", format!("note ~ '{}a{}'", "(".repeat(40), "{200})".repeat(40))),
        ("regexes", vec!["note ~ '.{250}.{250}'"; 900].join(" or ")),
        ("backtracking", "note ~ '(a+)+$(a+)+$\\1'".to_owned()),
        ("values", values(30_000)),
        ("a million values", values(1_000_000)),
        (
            "nested between",
            (0..40).fold("tenant between 1 and 2".to_owned(), |inner, _| format!("({inner}) between false and true")),
        ),
        ("columns", String::new()),
    ];
    let within = |condition: &str| format!("id in (select id from orders where {condition})");
    let both = |(what, condition): (&'static str, String)| [(what, within(&condition)), (what, condition)];
    for (what, condition) in hostile.into_iter().flat_map(both) {
        let mut definition = shape("hostile", &condition, vec![]);
        if what == "columns" {
            (definition.columns, definition.r#where) = (vec!["note".to_owned(); 10_000], String::new());
        }
        let start = Instant::now();
        let unnamed = || v1::ShapeSelection { name: String::new(), ..definition.clone() };
        let query = v1::QueryShapeRequest { shape: Some(unnamed()), ..v1::QueryShapeRequest::default() };
        let answers = [
            client.validate(validate(unnamed())).await.err(),
            client.explain(explain(unnamed())).await.err(),
            client.define(define(definition.clone())).await.err(),
            client.query(query).await.err(),
        ];
        for status in answers {
            let status = status.expect(what);
            assert!(
                matches!(status.code(), Code::InvalidArgument | Code::ResourceExhausted | Code::OutOfRange),
                "{what}: {status}"
            );
            assert!(status.message().len() < 2_000, "{what}: a message of {} bytes", status.message().len());
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", start.elapsed());
        is_refused_to_subscribers(&fixture, (what, definition)).await;
    }
    let names = client.list(v1::ListShapesRequest::default()).await.expect("still serves").into_inner();
    assert!(names.shapes.iter().all(|shape| shape.declared), "something is defined");
}

/// In a session, inline and under a name that the configuration declares.
async fn is_refused_to_subscribers(fixture: &Fixture, (what, definition): (&str, v1::ShapeSelection)) {
    let is_short = definition.r#where.len() < 1 << 18;
    fixture.named_shapes.declare(definition.clone());
    let inline = v1::ShapeSelection { name: String::new(), ..definition };
    let selections = vec![v1::Selection { what: Some(v1::selection::What::Shape(inline)) }];
    let subscribes = [by_name("hostile", now()), v1::Subscribe { selections, ..subscribe(&[], now()) }];
    let start = Instant::now();
    for (number, subscribe) in (1..).zip(subscribes) {
        // What is no message that the server takes ends the session.
        if number == 2 && !is_short {
            continue;
        }
        let mut session = fixture.session().await;
        session.subscribe(subscribe).await;
        match session.event().await {
            (1, Event::Error(error)) => assert!(error.message.len() < 2_000, "{what}: {}", error.message.len()),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert!(start.elapsed() < Duration::from_secs(20), "{what}: {:?}", start.elapsed());
}
