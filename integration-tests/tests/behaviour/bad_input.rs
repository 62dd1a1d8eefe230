//! Bad input is answered with a typed error that names the mend, and harms nobody else.
//!
//! It speaks the generated API, since the client library would not send most of this.

use anyhow::{Context, Result, bail, ensure};
use tidegate_integration_tests::{Cluster, DEADLINE, Database, Ended, Recorder, Server, ServerConfig};
use tidegate_proto::v1::{
    Cancel, Grant, Holds, Selection, SessionRequest, Start, Subscribe, TableSelection, WatchRequest,
    changes_client::ChangesClient, selection::What, session_request::Request, session_response::Event, start,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_stream::StreamExt;
use tonic::Code;

async fn served(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.create_marker().await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    Ok((database, server))
}

/// The server is unharmed: a row still arrives.
async fn still_serves(database: &Database, server: &Server) -> Result<()> {
    let mut recorder = Recorder::new(server.endpoint());
    database.mark("still").await?;
    ensure!(recorder.until_marker("still").await? == Ended::Arrived);
    Ok(())
}

fn subscribe() -> Subscribe {
    let marker = TableSelection { names: vec!["marker".to_owned()], ..TableSelection::default() };
    let from = Some(start::From::At(start::Point::Earliest.into()));
    Subscribe {
        subscription: 1,
        selections: vec![Selection { what: Some(What::Tables(marker)) }],
        start: Some(Start { from }),
        ..Subscribe::default()
    }
}

fn tables(selection: TableSelection) -> Subscribe {
    Subscribe { selections: vec![Selection { what: Some(What::Tables(selection)) }], ..subscribe() }
}

fn named(name: &str) -> Subscribe {
    tables(TableSelection { names: vec![name.to_owned()], ..TableSelection::default() })
}

fn token(text: &str) -> Subscribe {
    Subscribe { start: Some(Start { from: Some(start::From::Token(text.to_owned())) }), ..subscribe() }
}

/// The error that the requests lead to, of a subscription or of the whole stream: code and message.
async fn refusal(server: &Server, requests: Vec<Request>) -> Result<(Code, String)> {
    let mut client = ChangesClient::connect(server.endpoint()).await?;
    let requests = requests.into_iter().map(|request| SessionRequest { request: Some(request) });
    let open = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let asking = async {
        let mut responses = match client.session(open).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => return Ok((status.code(), status.message().to_owned())),
        };
        loop {
            match responses.message().await {
                Ok(Some(response)) => {
                    if let Some(Event::Error(status)) = response.event {
                        return Ok((Code::from_i32(status.code), status.message));
                    }
                }
                Ok(None) => bail!("the stream ended without an error"),
                Err(status) => return Ok((status.code(), status.message().to_owned())),
            }
        }
    };
    tokio::time::timeout(DEADLINE, asking).await.context("no error came")?
}

async fn refused(server: &Server, what: &str, requests: Vec<Request>, words: &[&str]) -> Result<()> {
    let (code, message) = refusal(server, requests).await.with_context(|| what.to_owned())?;
    let expected = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::FailedPrecondition,
        Code::OutOfRange,
        Code::AlreadyExists,
        Code::Unimplemented,
        Code::ResourceExhausted,
    ];
    ensure!(expected.contains(&code), "{what}: {code:?} {message}");
    for word in words {
        ensure!(message.contains(word), "{what}: '{message}' does not mention '{word}'");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_subscriptions_are_refused_with_what_to_do() -> Result<()> {
    let (database, server) = served("bad_subscriptions").await?;
    let column = TableSelection {
        names: vec!["marker".to_owned()],
        columns: vec!["nmae".to_owned()],
        ..TableSelection::default()
    };
    let damaged = "1-00000000000000000000000000000001-0-00000000.0/1:1";
    let holds = |salt, byte_count, start| Subscribe {
        start: Some(Start { from: Some(start::From::At(i32::from(start))) }),
        holds: vec![Holds { selection: 0, salt: vec![7; salt].into(), digests: vec![0; byte_count].into() }],
        ..subscribe()
    };
    let snapshot = start::Point::Snapshot;
    let twice = holds(16, 8, snapshot);
    let twice = Subscribe { holds: [&twice.holds[..], &twice.holds[..]].concat(), ..twice };
    let cases: Vec<(&str, Subscribe, &[&str])> = vec![
        ("holds with a short salt", holds(15, 8, snapshot), &["salt", "16"]),
        ("holds of three buckets", holds(16, 24, snapshot), &["digests", "power of two"]),
        ("holds with half a digest", holds(16, 12, snapshot), &["digests", "8 for each"]),
        ("holds of no buckets", holds(16, 0, snapshot), &["digests"]),
        ("holds with another start", holds(16, 8, start::Point::Earliest), &["SNAPSHOT"]),
        ("holds twice", twice, &["twice"]),
        ("a malformed token", token("nonsense"), &["token"]),
        ("a damaged token", token(damaged), &["token"]),
        ("a token of another version", token("9-0-0-0.0/1:1"), &["version"]),
        ("an empty token", token(""), &["token"]),
        ("an unknown table", named("markre"), &["markre"]),
        ("a malformed name", named("a b c"), &["a b c"]),
        ("an unknown column", tables(column), &["nmae"]),
        ("an unknown source", Subscribe { source: "nowhere".to_owned(), ..subscribe() }, &["nowhere"]),
        ("a group", Subscribe { group: "g".to_owned(), ..subscribe() }, &["group"]),
        ("no selections", Subscribe { selections: Vec::new(), ..subscribe() }, &["selection"]),
        ("an empty selection", Subscribe { selections: vec![Selection::default()], ..subscribe() }, &["selection"]),
        ("subscription 0", Subscribe { subscription: 0, ..subscribe() }, &["0"]),
    ];
    for (what, subscribe, words) in cases {
        refused(&server, what, vec![Request::Subscribe(subscribe)], words).await?;
    }
    still_serves(&database, &server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_start_is_refused() -> Result<()> {
    let (database, server) = served("bad_start").await?;
    let start = Start { from: Some(start::From::At(99)) };
    let subscribe = Subscribe { start: Some(start), ..subscribe() };
    refused(&server, "an unknown start", vec![Request::Subscribe(subscribe)], &["start"]).await?;
    still_serves(&database, &server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn misused_numbers_and_credit_are_refused() -> Result<()> {
    let (database, server) = served("bad_credit").await?;
    let grant = |subscription, credit_bytes| Request::Grant(Grant { subscription, credit_bytes });
    let twice = vec![Request::Subscribe(subscribe()), Request::Subscribe(subscribe())];
    refused(&server, "a number that is in use", twice, &["1"]).await?;
    refused(&server, "credit for nobody", vec![grant(7, 1)], &["7"]).await?;
    refused(&server, "cancelling nobody", vec![Request::Cancel(Cancel { subscription: 7 })], &["7"]).await?;
    let endless = vec![Request::Subscribe(subscribe()), grant(1, u64::MAX), grant(1, u64::MAX)];
    refused(&server, "more credit than there can be", endless, &["credit"]).await?;
    still_serves(&database, &server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_request_is_refused() -> Result<()> {
    let (database, server) = served("bad_size").await?;
    let request = vec![Request::Subscribe(named(&"x".repeat(20 << 20)))];
    refused(&server, "20 MiB of name", request, &[]).await?;
    still_serves(&database, &server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_answers_bad_input_with_its_status() -> Result<()> {
    let (database, server) = served("bad_watch").await?;
    let mut client = ChangesClient::connect(server.endpoint()).await?;
    let names = |name: &str| Some(TableSelection { names: vec![name.to_owned()], ..TableSelection::default() });
    for (request, word) in [
        (WatchRequest { tables: names("markre"), ..WatchRequest::default() }, "markre"),
        (WatchRequest { source: "nowhere".to_owned(), ..WatchRequest::default() }, "nowhere"),
        (WatchRequest { start: token("nonsense").start, ..WatchRequest::default() }, "token"),
    ] {
        let status = match client.watch(request).await {
            Err(status) => status,
            Ok(reply) => reply.into_inner().message().await.err().context("no error came")?,
        };
        ensure!(matches!(status.code(), Code::InvalidArgument | Code::NotFound), "{status:?}");
        ensure!(status.message().contains(word), "{status:?} does not mention {word}");
    }
    still_serves(&database, &server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_harms_nobody() -> Result<()> {
    let (database, server) = served("bad_bytes").await?;
    let http1: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    let noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [http1, preface, noise.as_slice(), b""] {
        let mut stream = TcpStream::connect(server.address()).await?;
        // The server may close before all is written.
        stream.write_all(bytes).await.ok();
    }
    still_serves(&database, &server).await
}
