//! The services over the wire: subscriptions, bad input, credit, resets, drain, watch, catalog, health, reflection.

mod fixture;

use std::{io::ErrorKind, path::PathBuf, process::Stdio, time::Duration};

use fixture::{Fixture, changes, earliest, now, subscribe, tables, whats};
use prost::Message as _;
use tidegate_gateway::{GatewayConfig, SourceState};
use tidegate_model::Op;
use tidegate_proto::{
    rpc,
    v1::{
        self, catalog_client::CatalogClient, event::What, session_request::Request, session_response::Event,
        watch_response::Mark,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

/// The reason in an error's ErrorInfo.
fn reason(details: &[prost_types::Any]) -> String {
    let info = details.iter().find(|any| any.type_url.ends_with("google.rpc.ErrorInfo")).expect("an ErrorInfo");
    let info = rpc::ErrorInfo::decode(info.value.as_slice()).expect("valid");
    assert_eq!(info.domain, "tidegate.dev");
    info.reason
}

fn reason_of(status: &tonic::Status) -> String {
    reason(&rpc::Status::decode(status.details()).expect("a google.rpc.Status").details)
}

#[tokio::test]
async fn a_transaction_arrives_with_its_marks_and_its_token_resumes_after_it() {
    let mut fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    session.subscribe(subscribe(&["orders"], now())).await;
    let (_, Event::Opened(opened)) = session.event().await else { panic!("not opened") };
    assert_eq!(opened.source, "shop");
    fixture.transaction(&[(2, Op::Insert, 5, "another table")]).await;
    let end = fixture.transaction(&[(1, Op::Insert, 1, "a"), (2, Op::Insert, 9, "b"), (1, Op::Delete, 1, "a")]).await;
    let (_, Event::RowType(row_type)) = session.event().await else { panic!("no row type") };
    assert_eq!((row_type.row_type, row_type.table.as_str()), (1, "orders"));
    let Ok(What::Begin(begin)) = session.heard().await else { panic!("no begin") };
    assert_eq!(begin.xid, 77);
    let mut ordinals = Vec::new();
    let commit = loop {
        match session.heard().await {
            Ok(What::Change(change)) => ordinals.push(change.ordinal),
            Ok(What::Commit(commit)) => break commit,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(ordinals, [1, 3]);
    assert_eq!(commit.position, end.to_string());

    fixture.transaction(&[(1, Op::Update, 2, "after")]).await;
    let mut resumed = fixture.session().await;
    let token = format!("{}.{}", opened.token_prefix, commit.position);
    resumed.subscribe(subscribe(&["orders"], v1::start::From::Token(token))).await;
    let mut received = Vec::new();
    loop {
        match resumed.heard().await {
            Ok(What::Change(change)) => received.push(change.op),
            Ok(What::Commit(_)) => break,
            Ok(What::Begin(_)) | Err(Event::Opened(_) | Event::RowType(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(received, [v1::change::Op::Update as i32]);
}

#[tokio::test]
async fn progress_tells_a_caught_up_silence_from_a_lost_source() {
    let fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    session.subscribe(subscribe(&[], now())).await;
    for connected in [true, false] {
        fixture.status.send_modify(|status| {
            status.state = if connected { SourceState::Streaming } else { SourceState::Connecting };
            status.last_heard_us -= 10_000_000;
        });
        loop {
            let response = session.next().await.expect("no status").expect("no end");
            if let Some(Event::Progress(progress)) = response.event
                && progress.caught_up == connected
            {
                assert_eq!(progress.source_silent_s >= 10, !connected);
                break;
            }
        }
    }
}

#[tokio::test]
async fn bad_selections_and_starts_end_only_their_subscription() {
    let fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    let token = |text: &str| v1::start::From::Token(text.to_owned());
    let column = v1::TableSelection { columns: vec!["nte".to_owned()], ..tables(&["orders"]) };
    let selected = |tables| vec![v1::Selection { what: Some(v1::selection::What::Tables(tables)) }];
    let cases = [
        (subscribe(&["oders"], now()), "UNKNOWN_TABLE", "did you mean public.orders?"),
        (
            v1::Subscribe { selections: selected(column), ..subscribe(&[], now()) },
            "UNKNOWN_COLUMN",
            "did you mean note?",
        ),
        (subscribe(&["a.b.c"], now()), "INVALID_SELECTION", "schema.table"),
        (v1::Subscribe { selections: vec![], ..subscribe(&[], now()) }, "INVALID_SELECTION", "at least one"),
        (subscribe(&[], token("garbage")), "INVALID_TOKEN", "unchanged"),
        (subscribe(&[], token("9-1-0-0.0/1:1")), "INVALID_TOKEN", "version 9"),
        (subscribe(&[], v1::start::From::At(7)), "INVALID_START", "NOW, EARLIEST, SNAPSHOT or a token"),
        (v1::Subscribe { source: "shp".to_owned(), ..subscribe(&[], now()) }, "UNKNOWN_SOURCE", "did you mean shop?"),
        (v1::Subscribe { group: "g".to_owned(), ..subscribe(&[], now()) }, "INVALID_REQUEST", "must be empty"),
        (v1::Subscribe { credit_bytes: u64::MAX, ..subscribe(&[], now()) }, "CREDIT_EXCEEDED", "the limit is"),
    ];
    for (subscribe, expected, mend) in cases {
        session.subscribe(subscribe).await;
        let (1, Event::Error(error)) = session.event().await else { panic!("{expected}: no error") };
        assert_eq!(reason(&error.details), expected);
        assert!(error.message.contains(mend), "{}", error.message);
    }
    session.subscribe(subscribe(&["orders"], now())).await;
    assert!(matches!(session.event().await, (1, Event::Opened(_))));
    let counted = fixture.metrics.errors().find(|(reason, _)| *reason == "INVALID_TOKEN");
    assert_eq!(counted, Some(("INVALID_TOKEN", 2)));
}

#[tokio::test]
async fn violations_of_the_protocol_end_the_stream() {
    let fixture = Fixture::start().await;
    let grant = |credit_bytes| Some(Request::Grant(v1::Grant { subscription: 1, credit_bytes }));
    let zero = v1::Subscribe { subscription: 0, ..subscribe(&[], now()) };
    let long = "x".repeat(1 << 21);
    let ack = v1::Ack { subscription: 1, position: "nowhere".to_owned() };
    let cases = [
        (Some(Request::Subscribe(subscribe(&[], now()))), Code::InvalidArgument, "is in use"),
        (Some(Request::Subscribe(zero)), Code::InvalidArgument, "choose another number"),
        (grant(u64::MAX), Code::ResourceExhausted, "grant what was used"),
        (Some(Request::Ack(ack)), Code::InvalidArgument, "16/B374D848:3"),
        (None, Code::InvalidArgument, "must hold"),
        (Some(Request::Subscribe(subscribe(&[&long], now()))), Code::OutOfRange, "too large"),
    ];
    for (request, code, mend) in cases {
        let mut session = fixture.session().await;
        session.subscribe(subscribe(&["orders"], now())).await;
        assert!(matches!(session.event().await, (1, Event::Opened(_))));
        session.requests.as_ref().expect("open").send(v1::SessionRequest { request }).await.expect("sent");
        let status = session.end().await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(mend), "{status}");
        assert!(!reason_of(&status).is_empty());
    }
}

#[tokio::test]
async fn a_subscription_without_credit_waits_and_others_go_on() {
    let mut fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    session.subscribe(v1::Subscribe { credit_bytes: 1, ..subscribe(&["orders"], earliest()) }).await;
    let is_changes = |event: &Event| matches!(event, Event::Changes(_));
    while !is_changes(&session.event().await.1) {}
    fixture.transaction(&[(1, Op::Insert, 1, "withheld")]).await;
    session.subscribe(v1::Subscribe { subscription: 2, ..subscribe(&["orders"], earliest()) }).await;
    let (mut of_first, mut of_second) = (0, 0);
    while of_second < 2 {
        let (subscription, event) = session.event().await;
        match subscription {
            1 => of_first += usize::from(is_changes(&event)),
            _ => of_second += usize::from(is_changes(&event)),
        }
    }
    assert_eq!(of_first, 0);
    // One byte was overdrawn by the first message; the second comes when that is paid back.
    session.send(Request::Grant(v1::Grant { subscription: 1, credit_bytes: 4096 })).await;
    session.send(Request::Grant(v1::Grant { subscription: 99, credit_bytes: u64::MAX })).await;
    loop {
        if let (1, Event::Changes(batch)) = session.event().await {
            assert_eq!(changes(batch).len(), 1);
            break;
        }
    }
}

#[tokio::test]
async fn closing_the_requests_does_not_cancel_delivery() {
    let mut fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    session.subscribe(subscribe(&["orders"], now())).await;
    session.requests = None;
    assert!(matches!(session.event().await, (1, Event::Opened(_))));
    fixture.transaction(&[(1, Op::Insert, 1, "still comes")]).await;
    session.commit().await;
}

#[tokio::test]
async fn a_cancelled_subscription_ends_and_its_number_is_free_again() {
    let fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    for _ in 0..3 {
        session.subscribe(subscribe(&["orders"], now())).await;
        assert!(matches!(session.event().await, (1, Event::Opened(_))));
        session.send(Request::Cancel(v1::Cancel { subscription: 1 })).await;
        let (1, Event::Error(error)) = session.event().await else { panic!("no error") };
        assert_eq!(error.code, Code::Cancelled as i32);
    }
    session.requests = None;
    while let Some(_progress) = session.next().await.expect("ends well") {}
    assert_eq!(fixture.metrics.sources().map(|(_, source)| source.subscribers()).sum::<u64>(), 0);
}

#[tokio::test]
async fn another_history_is_a_reset_and_never_a_silent_gap() {
    let mut fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    session.subscribe(subscribe(&["orders"], now())).await;
    let (_, Event::Opened(opened)) = session.event().await else { panic!("not opened") };
    fixture.epoch(2).await;
    let (1, Event::Reset(reset)) = session.event().await else { panic!("no reset") };
    assert_eq!(reset.reason(), v1::reset::Reason::SourceDiscontinued);
    assert!(reset.detail.contains("a test wants it"), "{}", reset.detail);
    let token = format!("{}.{}", opened.token_prefix, opened.position);
    session.subscribe(subscribe(&["orders"], v1::start::From::Token(token.clone()))).await;
    let (1, Event::Reset(reset)) = session.event().await else { panic!("no reset") };
    assert_eq!(reset.reason(), v1::reset::Reason::EpochChanged);

    let start = Some(v1::Start { from: Some(v1::start::From::Token(token)) });
    let request = v1::WatchRequest { start, ..v1::WatchRequest::default() };
    let mut watch = fixture.changes().await.watch(request).await.expect("a stream").into_inner();
    let first = watch.message().await.expect("no status").expect("a mark");
    assert!(matches!(first.mark, Some(Mark::Reset(_))));
    assert_eq!(watch.message().await.expect_err("the end").code(), Code::Aborted);
}

#[tokio::test]
async fn a_source_that_never_connected_is_unavailable_with_a_delay() {
    let config = GatewayConfig { first_epoch_wait: Duration::from_millis(50), ..GatewayConfig::default() };
    let fixture = Fixture::start_without_epoch(config).await;
    let mut session = fixture.session().await;
    session.subscribe(subscribe(&[], now())).await;
    let (1, Event::Error(error)) = session.event().await else { panic!("no error") };
    assert_eq!((error.code, reason(&error.details).as_str()), (Code::Unavailable as i32, "SOURCE_NOT_READY"));
    assert!(error.details.iter().any(|any| any.type_url.ends_with("google.rpc.RetryInfo")));
}

#[tokio::test]
async fn stopping_drains_and_then_ends_every_stream() {
    let mut fixture = Fixture::start().await;
    let mut session = fixture.session().await;
    session.subscribe(subscribe(&["orders"], now())).await;
    assert!(matches!(session.event().await, (1, Event::Opened(_))));
    fixture.stop.cancel();
    let (0, Event::Drain(drain)) = session.event().await else { panic!("no drain") };
    assert!(drain.deadline.is_some());
    session.subscribe(v1::Subscribe { subscription: 2, ..subscribe(&[], now()) }).await;
    let (2, Event::Error(error)) = session.event().await else { panic!("no error") };
    assert_eq!(reason(&error.details), "DRAINING");
    fixture.transaction(&[(1, Op::Insert, 1, "delivered to the end")]).await;
    session.commit().await;
    assert_eq!(session.end().await.code(), Code::Unavailable);
    fixture.tasks.join_next().await.expect("the server has returned").expect("without a panic");
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_let_go() {
    let config = GatewayConfig { handshake_max: Duration::from_millis(50), ..GatewayConfig::default() };
    let fixture = Fixture::start_without_epoch(config).await;
    let mut silent = TcpStream::connect(fixture.address).await.expect("the port is open");
    let mut begins = TcpStream::connect(fixture.address).await.expect("the port is open");
    begins.write_all(b"PRI * HTTP").await.expect("the server reads");
    for socket in [&mut silent, &mut begins] {
        assert_eq!(socket.read(&mut [0; 1]).await.expect("it is closed in order"), 0);
    }
}

#[tokio::test]
async fn stopping_waits_for_nobody_who_has_said_nothing() {
    let mut fixture = Fixture::start().await;
    let mut silent = TcpStream::connect(fixture.address).await.expect("the port is open");
    fixture.stop.cancel();
    // Where it has not been accepted yet, it is reset.
    let read = silent.read(&mut [0; 1]).await;
    let is_closed = read.as_ref().map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |count| *count == 0);
    assert!(is_closed, "{read:?}");
    fixture.tasks.join_next().await.expect("the server has returned").expect("without a panic");
}

#[tokio::test]
async fn a_large_transaction_and_a_cut_row_arrive_whole() {
    let mut fixture = Fixture::start().await;
    let large = "x".repeat(1_300_000);
    let changes: Vec<_> =
        (0..3000).map(|id| (1, Op::Insert, id, if id == 1500 { large.as_str() } else { "small" })).collect();
    let end = fixture.transaction(&changes).await;
    let mut session = fixture.session().await;
    let columns = v1::TableSelection { columns: vec!["note".to_owned()], ..tables(&["orders"]) };
    let mut both = subscribe(&["orders"], earliest());
    both.selections.push(v1::Selection { what: Some(v1::selection::What::Tables(columns)) });
    both.credit_bytes = 64 << 20;
    session.subscribe(both).await;
    let mut rows = [Vec::new(), Vec::new()];
    let mut bytes = [0, 0];
    loop {
        let response = session.next().await.expect("no status").expect("no end");
        assert!(response.encoded_len() < 1 << 20, "messages stay under 1 MiB");
        match response.event.expect("an event") {
            Event::Changes(batch) => {
                let selection = response.selection as usize;
                let whats = whats(batch);
                let ends = |what: &What| matches!(what, What::Commit(commit) if commit.position == end.to_string());
                let ended = whats.iter().any(ends);
                for what in whats {
                    if let What::Change(change) = what {
                        bytes[selection] += change.row.len();
                        rows[selection].extend((!change.continues).then_some(change.ordinal));
                    }
                }
                if ended {
                    break;
                }
            }
            _mark => {}
        }
    }
    assert_eq!(rows[0][1..], (1..=3000).collect::<Vec<u32>>());
    assert_eq!(rows[0], rows[1]);
    assert_eq!(bytes[0], bytes[1]);
}

#[tokio::test]
async fn watch_shows_rows_by_type_with_a_token_on_the_last_change() {
    let mut fixture = Fixture::start().await;
    let large = "x".repeat(1_200_000);
    fixture.transaction(&[(1, Op::Insert, 1, "a"), (2, Op::Insert, 2, "b"), (1, Op::Update, 3, &large)]).await;
    fixture.transaction(&[(1, Op::Delete, 4, "gone")]).await;
    let start = Some(v1::Start { from: Some(earliest()) });
    let request = v1::WatchRequest { tables: Some(tables(&["orders"])), start, ..v1::WatchRequest::default() };
    let mut watch = fixture.changes().await.watch(request.clone()).await.expect("a stream").into_inner();
    let mut changes: Vec<v1::WatchResponse> = Vec::new();
    while changes.len() < 4 {
        let response = watch.message().await.expect("no status").expect("no end");
        if response.mark.is_none() {
            changes.push(response);
        }
    }
    let tokens: Vec<bool> = changes.iter().map(|change| !change.token.is_empty()).collect();
    assert_eq!(tokens, [true, false, true, true]);
    assert_eq!((changes[1].table.as_str(), changes[1].xid), ("public.orders", 77));
    let row = changes[1].row.as_ref().expect("a row");
    assert_eq!(row.type_url, "type.googleapis.com/tidegate.rows.shop.public.orders");
    assert!(changes[1].key.as_ref().expect("a key").value.len() < row.value.len());
    assert_eq!(changes[2].omitted, ["note"]);
    assert_eq!(changes[2].row, changes[2].key, "all but the key was left out");
    assert!(changes[3].row.is_none() && changes[3].old.is_some() && changes[3].key.is_some());

    let token = v1::start::From::Token(changes[2].token.clone());
    let request = v1::WatchRequest { start: Some(v1::Start { from: Some(token) }), ..request };
    let mut resumed = fixture.changes().await.watch(request).await.expect("a stream").into_inner();
    loop {
        let response = resumed.message().await.expect("no status").expect("no end");
        if response.mark.is_none() {
            assert_eq!(response, changes[3]);
            break;
        }
    }
    let unknown = v1::WatchRequest { tables: Some(tables(&["oders"])), ..v1::WatchRequest::default() };
    let status = fixture.changes().await.watch(unknown).await.expect_err("refused");
    assert_eq!((status.code(), reason_of(&status).as_str()), (Code::NotFound, "UNKNOWN_TABLE"));
}

#[tokio::test]
async fn a_client_that_stops_reading_does_not_hold_others_up() {
    let mut fixture = Fixture::start().await;
    let note = "y".repeat(2000);
    let stuck = fixture.session().await;
    stuck.subscribe(v1::Subscribe { credit_bytes: 1 << 30, ..subscribe(&["orders"], earliest()) }).await;
    let mut reading = fixture.session().await;
    reading.subscribe(v1::Subscribe { credit_bytes: 1 << 30, ..subscribe(&["orders"], earliest()) }).await;
    let mut end = String::new();
    for _ in 0..20 {
        let changes: Vec<_> = (0..200).map(|id| (1, Op::Insert, id, note.as_str())).collect();
        end = fixture.transaction(&changes).await.to_string();
    }
    while reading.commit().await.position != end {}
    drop(stuck);
}

#[tokio::test]
async fn catalog_lists_sources_and_tables() {
    let mut fixture = Fixture::start().await;
    let end = fixture.transaction(&[(1, Op::Insert, 1, "a")]).await;
    let mut catalog = CatalogClient::new(fixture.channel().await);
    let sources = catalog.list_sources(v1::ListSourcesRequest {}).await.expect("listed").into_inner().sources;
    assert_eq!((sources[0].name.as_str(), sources[0].state()), ("shop", v1::source_status::State::Streaming));
    assert_eq!(sources[0].head_position, end.to_string());
    let listed = catalog.list_tables(v1::ListTablesRequest::default()).await.expect("listed").into_inner().tables;
    assert_eq!(listed.iter().map(|table| table.table.as_str()).collect::<Vec<_>>(), ["items", "orders"]);
    let request = v1::GetTableRequest { table: "public.orders".to_owned(), ..v1::GetTableRequest::default() };
    assert_eq!(catalog.get_table(request).await.expect("found").into_inner().table.expect("set").row_type, 1);
    let request = v1::GetTableRequest { table: "ordrs".to_owned(), ..v1::GetTableRequest::default() };
    assert!(catalog.get_table(request).await.expect_err("unknown").message().contains("public.orders"));
}

#[tokio::test]
async fn health_outlives_the_database_and_tells_each_source() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let fixture = Fixture::start().await;
    let mut health = HealthClient::new(fixture.channel().await);
    let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut watch = health.watch(request("tidegate.source.shop")).await.expect("watched").into_inner();
    let first = watch.message().await.expect("no status").expect("a state");
    assert_eq!(first.status(), ServingStatus::Serving);
    fixture.status.send_modify(|status| status.state = SourceState::Connecting);
    let second = watch.message().await.expect("no status").expect("a state");
    assert_eq!(second.status(), ServingStatus::NotServing);
    let whole = health.check(request("")).await.expect("checked").into_inner();
    assert_eq!(whole.status(), ServingStatus::Serving);
    assert_eq!(health.check(request("nothing")).await.expect_err("unknown").code(), Code::NotFound);
}

/// grpcurl, if it is installed.
fn grpcurl() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join("go/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(home).map(|dir| dir.join("grpcurl")).find(|program| program.is_file())
}

#[tokio::test]
async fn grpcurl_lists_describes_and_watches_with_column_names() {
    let Some(grpcurl) = grpcurl() else { return };
    let mut fixture = Fixture::start().await;
    fixture.transaction(&[(1, Op::Insert, 41, "hello")]).await;
    let address = fixture.address.to_string();
    let run = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(&grpcurl);
        command.arg("-plaintext").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.expect("grpcurl runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let services = run(&[&address, "list"]).await;
    for service in ["Changes", "Catalog", "Snapshots", "Mirror"].map(|name| format!("tidegate.v1.{name}")) {
        assert!(services.contains(&service), "{services}");
    }
    assert!(services.contains("grpc.health.v1.Health"), "{services}");
    let described = run(&[&address, "describe", "tidegate.rows.shop.public.orders"]).await;
    assert!(described.contains("note"), "{described}");
    let request = r#"{"tables": {"names": ["orders"]}, "start": {"at": "EARLIEST"}}"#;
    let watched = run(&["-max-time", "2", "-d", request, &address, "tidegate.v1.Changes/Watch"]).await;
    assert!(watched.contains("\"note\": \"hello\""), "{watched}");
    assert!(watched.contains("tidegate.rows.shop.public.orders"), "{watched}");
}
