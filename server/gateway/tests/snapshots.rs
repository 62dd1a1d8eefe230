//! Snapshots over the wire: a subscription from one, beside others, resumed, given up; the service that runs them.

mod fixture;

use fixture::{
    Fixture, Session, now,
    snapshots::{shared, status},
    subscribe, tables,
};
use tidegate_gateway::{Described, MalformedKey, SnapshotError};
use tidegate_model::{Op, Part, SnapshotSpec, TableName};
use tidegate_proto::v1::{
    self, event::What, session_response::Event, snapshot_part::Rows, snapshot_status::State,
    snapshots_client::SnapshotsClient, watch_response::Mark,
};
use tidegate_views::{CollationFacts, ColumnFacts, TableFacts};
use tonic::Code;

fn at_snapshot() -> v1::start::From {
    v1::start::From::At(v1::start::Point::Snapshot as i32)
}

async fn opened(session: &mut Session) -> v1::Opened {
    match session.event().await.1 {
        Event::Opened(opened) => opened,
        other => panic!("not opened: {other:?}"),
    }
}

/// What comes, in short, up to and with the event that is named.
async fn until(session: &mut Session, last: &str) -> Vec<String> {
    let mut events: Vec<String> = Vec::new();
    while events.last().is_none_or(|event| event != last) {
        match session.heard().await {
            Err(Event::RowType(_)) => {}
            Ok(What::Begin(begin)) => events.push(format!("begin {}", begin.snapshot)),
            Ok(What::Change(change)) => events.push(format!("{:?}", change.op()).to_lowercase()),
            Ok(What::Commit(_)) => events.push("commit".to_owned()),
            Err(Event::SnapshotBegin(begin)) => events.push(format!("snapshot begin {}", begin.snapshot)),
            Err(Event::SnapshotEnd(end)) => events.push(format!("snapshot end {}", end.snapshot)),
            Err(Event::Reset(reset)) => events.push(format!("reset {:?}", reset.reason())),
            Err(Event::Error(error)) => events.push(format!("error {}", error.message)),
            Err(other) => panic!("unexpected {other:?}"),
        }
    }
    events
}

#[tokio::test]
async fn a_subscription_from_a_snapshot_receives_its_chunks_amid_changes_and_no_others() {
    let mut fixture = Fixture::start().await;
    fixture.transaction(&[(1, Op::Insert, 1, "before")]).await;
    fixture.snapshots_start(7);
    let (mut first, mut beside) = (fixture.session().await, fixture.session().await);
    first.subscribe(subscribe(&["orders"], at_snapshot())).await;
    beside.subscribe(subscribe(&["orders"], now())).await;
    let token_prefix = opened(&mut first).await.token_prefix;
    opened(&mut beside).await;
    fixture.snapshot_begin(7).await;
    let middle = fixture.chunk(7, &[1, 2]).await;
    fixture.snapshot_begin(8).await;
    fixture.chunk(8, &[1]).await;
    fixture.transaction(&[(1, Op::Update, 2, "amid")]).await;
    fixture.chunk(7, &[3]).await;
    fixture.snapshot_end(8, "").await;
    fixture.snapshot_end(7, "").await;
    fixture.transaction(&[(1, Op::Delete, 3, "after")]).await;

    let rest = ["begin 0", "update", "commit", "begin 7", "read", "commit", "snapshot end 7"];
    let begun = ["snapshot begin 7", "begin 7", "read", "read", "commit"];
    assert_eq!(until(&mut first, "snapshot end 7").await, [&begun[..], &rest].concat());
    assert_eq!(until(&mut first, "delete").await, ["begin 0", "delete"]);
    assert_eq!(until(&mut beside, "delete").await, ["begin 0", "update", "commit", "begin 0", "delete"]);
    let asked = SnapshotSpec::of_tables(vec![TableName::new("public", "orders")]);
    assert_eq!(*fixture.snapshots.asked.lock().expect("no panic"), [asked]);

    // Going on in the middle is reading the log; nothing is asked of the source.
    let mut resumed = fixture.session().await;
    let token = v1::start::From::Token(format!("{token_prefix}.{middle}"));
    resumed.subscribe(subscribe(&["orders"], token)).await;
    opened(&mut resumed).await;
    assert_eq!(until(&mut resumed, "snapshot end 7").await, rest);
    assert_eq!(fixture.snapshots.asked.lock().expect("no panic").len(), 1);
}

#[tokio::test]
async fn columns_and_operations_apply_to_reads() {
    let mut fixture = Fixture::start().await;
    fixture.snapshots_start(7);
    let mut session = fixture.session().await;
    let id = v1::TableSelection { columns: vec!["id".to_owned()], ..tables(&["orders"]) };
    let inserts = v1::TableSelection { operations: vec![v1::change::Op::Insert as i32], ..tables(&["items"]) };
    let what = |tables| v1::Selection { what: Some(v1::selection::What::Tables(tables)) };
    let selections = vec![what(id), what(inserts)];
    session.subscribe(v1::Subscribe { selections, ..subscribe(&[], at_snapshot()) }).await;
    opened(&mut session).await;
    let asked = SnapshotSpec::of_tables(vec![TableName::new("public", "orders")]);
    assert_eq!(*fixture.snapshots.asked.lock().expect("no panic"), [asked]);
    fixture.snapshot_begin(7).await;
    fixture.chunk(7, &[300]).await;
    let read = loop {
        if let Ok(What::Change(change)) = session.heard().await {
            break change.row;
        }
    };
    assert_eq!(read[..], [8, 172, 2]);
}

#[tokio::test]
async fn a_snapshot_that_is_given_up_resets_its_subscribers_alone() {
    let mut fixture = Fixture::start().await;
    fixture.snapshots_start(7);
    let mut session = fixture.session().await;
    session.subscribe(subscribe(&["orders"], at_snapshot())).await;
    opened(&mut session).await;
    session.subscribe(v1::Subscribe { subscription: 2, ..subscribe(&["orders"], now()) }).await;
    opened(&mut session).await;
    let request = v1::WatchRequest {
        tables: Some(tables(&["orders"])),
        start: Some(v1::Start { from: Some(at_snapshot()) }),
        ..v1::WatchRequest::default()
    };
    let mut watch = fixture.changes().await.watch(request).await.expect("a stream").into_inner();
    fixture.snapshot_begin(7).await;
    fixture.snapshot_end(7, "cancelled by an operator").await;
    let (1, Event::SnapshotBegin(_)) = session.event().await else { panic!("no begin") };
    let (1, Event::Reset(reset)) = session.event().await else { panic!("no reset") };
    assert_eq!(reset.reason(), v1::reset::Reason::SnapshotAbandoned);
    assert!(reset.detail.contains("cancelled by an operator"), "{}", reset.detail);
    fixture.transaction(&[(1, Op::Insert, 5, "goes on")]).await;
    let (2, Event::RowType(_)) = session.event().await else { panic!("the other goes on") };
    loop {
        match watch.message().await.expect("no status before the mark").expect("more").mark {
            Some(Mark::Reset(reset)) => break assert_eq!(reset.reason(), v1::reset::Reason::SnapshotAbandoned),
            Some(Mark::SnapshotEnd(_)) => panic!("it did not end well"),
            _other => {}
        }
    }
    assert_eq!(watch.message().await.expect_err("the end").code(), Code::Aborted);
}

#[tokio::test]
async fn watch_shows_reads_and_marks_with_tokens() {
    let mut fixture = Fixture::start().await;
    fixture.snapshots_start(7);
    let start = |from| v1::WatchRequest {
        tables: Some(tables(&["orders"])),
        start: Some(v1::Start { from: Some(from) }),
        ..v1::WatchRequest::default()
    };
    let mut client = fixture.changes().await;
    let mut watch = client.watch(start(at_snapshot())).await.expect("a stream").into_inner();
    fixture.snapshot_begin(7).await;
    fixture.chunk(8, &[9]).await;
    fixture.chunk(7, &[1, 2]).await;
    fixture.snapshot_end(7, "").await;
    let (mut seen, mut middle) = (Vec::new(), String::new());
    loop {
        let response = watch.message().await.expect("no status").expect("more");
        match response.mark {
            None => {
                seen.push((format!("{:?}", response.op()), !response.token.is_empty()));
                middle = response.token;
            }
            Some(Mark::SnapshotBegin(_)) => seen.push(("begin".to_owned(), !response.token.is_empty())),
            Some(Mark::SnapshotEnd(_)) => break,
            Some(_) => {}
        }
    }
    assert_eq!(seen, [("begin".to_owned(), true), ("Read".to_owned(), false), ("Read".to_owned(), true)]);
    let mut resumed = client.watch(start(v1::start::From::Token(middle))).await.expect("a stream").into_inner();
    loop {
        let response = resumed.message().await.expect("no status").expect("more");
        match response.mark {
            None => panic!("the chunk came again"),
            Some(Mark::SnapshotEnd(end)) => break assert_eq!(end.snapshot, 7),
            Some(_) => {}
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_cannot_start_says_why() {
    let fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    let refused = SnapshotError::Refused { detail: "table public.orders has no key".to_owned() };
    let cases = [
        (&["orders"][..], SnapshotError::Unavailable, "snapshots are not available on this source"),
        (&["orders"], refused, "has no key"),
        (&["shop.*"], SnapshotError::Unavailable, "shop.* selects none"),
        (&["oders"], SnapshotError::Unavailable, "did you mean public.orders?"),
    ];
    for (names, answer, expected) in cases {
        *fixture.snapshots.answer.lock().expect("no panic") = Err(answer);
        session.subscribe(subscribe(names, at_snapshot())).await;
        let (1, Event::Error(error)) = session.event().await else { panic!("{expected}: no error") };
        assert!(error.message.contains(expected), "{}", error.message);
    }
}

#[tokio::test]
async fn a_part_is_printed_from_what_was_typed_and_keys_come_in_their_order() {
    let fixture = Fixture::start().await;
    fixture.snapshots_start(3);
    let column = |name: &str, field, type_oid| ColumnFacts {
        name: name.to_owned(),
        field,
        type_oid,
        collation: None,
        enum_type: None,
    };
    let default = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: false };
    let facts = TableFacts {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        columns: vec![column("id", 1, 20), column("line", 2, 23)],
        default_collation: default,
    };
    let key = vec!["id".to_owned(), "line".to_owned()];
    *fixture.snapshots.described.lock().expect("no panic") =
        Some(Described { facts, key, type_oids: vec![20, 23], type_names: vec![], whole_old_rows: false });
    let mut client = SnapshotsClient::new(fixture.channel().await);
    let request = |tables: &[&str], rows| v1::StartSnapshotRequest {
        tables: tables.iter().map(|name| (*name).to_owned()).collect(),
        parts: vec![v1::SnapshotPart { table: "orders".to_owned(), rows: Some(rows) }],
        ..Default::default()
    };
    let keys = |values: &[&str]| {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Rows::Keys(v1::SnapshotKeys {
            columns: vec!["line".into(), "id".into()],
            keys: vec![v1::SnapshotKey { values }],
        })
    };
    let condition = |text: &str| Rows::Where(text.to_owned());
    client.start(request(&[], condition("orders.id > 7"))).await.expect("a condition");
    client.start(request(&["items"], keys(&["1", "20"]))).await.expect("keys, and a whole table");
    let (orders, items) = (TableName::new("public", "orders"), TableName::new("public", "items"));
    let spec = |tables: &[&TableName], part| SnapshotSpec {
        tables: tables.iter().map(|&table| table.clone()).collect(),
        parts: [(orders.clone(), part)].into(),
        ad_hoc: true,
    };
    let printed = "(\"id\" OPERATOR(pg_catalog.>) ('7'::pg_catalog.int4))".to_owned();
    let by_key = Part::Keys(vec![vec!["20".to_owned(), "1".to_owned()]]);
    let expected = [spec(&[&orders], Part::Where(printed)), spec(&[&items, &orders], by_key)];
    assert_eq!(*fixture.snapshots.asked.lock().expect("no panic"), expected);

    *fixture.snapshots.malformed.lock().expect("no panic") = Some(MalformedKey { key: 0, column: 1 });
    for (refused, expected) in [
        (request(&[], condition("id = 1 or total > 3")), "table public.orders: where, line 1, column 11"),
        (request(&[], keys(&["1"])), "key 1 is to have a value for each of id, line; it has 1"),
        (request(&[], keys(&["x'; --", "1"])), "PostgreSQL does not read 'x'; --' as a value of the column line"),
        (request(&["public.*"], keys(&["1", "2"])), "asked for twice"),
    ] {
        let status = client.start(refused).await.expect_err("refused");
        assert_eq!((status.code(), status.message().contains(expected)), (Code::InvalidArgument, true), "{status:?}");
    }
    assert_eq!(fixture.snapshots.asked.lock().expect("no panic").len(), 2);
}

#[tokio::test]
async fn the_service_starts_lists_turns_and_watches_snapshots() {
    let fixture = Fixture::start().await;
    let mut client = SnapshotsClient::new(fixture.channel().await);
    let start = |names: &[&str]| v1::StartSnapshotRequest {
        source: String::new(),
        tables: names.iter().map(|name| (*name).to_owned()).collect(),
        parts: Vec::new(),
    };
    let unavailable = client.start(start(&["orders"])).await.expect_err("not available");
    assert_eq!(unavailable.code(), Code::Unimplemented);
    fixture.snapshots_start(3);
    let started = client.start(start(&["public.*"])).await.expect("started").into_inner();
    assert_eq!(
        (started.snapshot, started.tables.as_slice()),
        (3, &["public.items", "public.orders"].map(String::from)[..])
    );

    shared(&fixture.snapshots, vec![status(3, State::Running)]);
    let of = |snapshot| v1::SnapshotRequest { source: "shop".to_owned(), snapshot };
    let paused = client.pause(of(3)).await.expect("paused").into_inner().status.expect("known");
    assert_eq!((paused.state(), paused.source.as_str()), (State::Paused, "shop"));
    assert_eq!(client.cancel(of(9)).await.expect_err("unknown").code(), Code::NotFound);
    assert_eq!(client.watch(of(9)).await.expect_err("unknown").code(), Code::NotFound);
    let listed = client.list(v1::ListSnapshotsRequest::default()).await.expect("listed").into_inner().snapshots;
    assert_eq!(listed, [paused]);

    let mut watch = client.watch(of(3)).await.expect("watched").into_inner();
    let mut next = async || watch.message().await.expect("no status").map(|status| status.state());
    assert_eq!(next().await, Some(State::Paused));
    client.resume(of(3)).await.expect("resumed");
    assert_eq!(next().await, Some(State::Running));
    shared(&fixture.snapshots, vec![status(3, State::Done)]);
    assert_eq!(next().await, Some(State::Done));
    assert_eq!(next().await, None);
}
