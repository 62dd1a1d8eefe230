//! The stream of events over real connections, against a peer that follows a script.
//!
//! Each script is one connection's answers; what the client asked for is handed to the test.

use std::{collections::VecDeque, net::SocketAddr, pin::Pin, sync::Mutex, time::Duration};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use prost::Message as _;
use tidegate_client::{Changes, Client, ClientError, Event, Position, Retry, Start, Subscription};
use tidegate_proto::{
    rpc,
    v1::{
        self, SessionRequest, SessionResponse, changes_server, event::What, session_request::Request as Asked,
        session_response::Event as Mark,
    },
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};

/// What a scripted connection does next.
enum Act {
    Say(Mark),
    /// Ends the call with this status.
    Fail(Status),
    /// Says nothing more, and keeps the call open.
    Hang,
}

struct Peer {
    scripts: Mutex<VecDeque<Vec<Act>>>,
    asked: mpsc::Sender<(SocketAddr, SessionRequest)>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl changes_server::Changes for Peer {
    type SessionStream = Answers<SessionResponse>;
    type WatchStream = Answers<v1::WatchResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let address = request.remote_addr().expect("TCP");
        let script = self.scripts.lock().expect("no panic").pop_front();
        let acts = script.ok_or_else(|| Status::failed_precondition("the script is at its end"))?;
        let asked = self.asked.clone();
        let requests = request.into_inner().filter_map(move |request| {
            let asked = asked.clone();
            async move {
                if let Ok(request) = request {
                    asked.send((address, request)).await.expect("the test listens");
                }
                None
            }
        });
        let says = |act| match act {
            Act::Say(event) => stream::once(async { Ok(response(event)) }).boxed(),
            Act::Fail(status) => stream::once(async { Err(status) }).boxed(),
            Act::Hang => stream::pending().boxed(),
        };
        // A call ends with the script, not with the client's half.
        let answers = stream::iter(acts).flat_map(says).map(Some).chain(stream::once(async { None }));
        let requests = requests.map(|never: SessionResponse| Some(Ok(never))).chain(stream::pending());
        let ended = |item: &Option<_>| std::future::ready(item.is_some());
        let both = stream::select(answers, requests).take_while(ended).filter_map(std::future::ready);
        Ok(Response::new(both.boxed()))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }
}

fn response(event: Mark) -> SessionResponse {
    let subscription = if matches!(event, Mark::Drain(_)) { 0 } else { 1 };
    SessionResponse { subscription, selection: 0, event: Some(event) }
}

/// A client, what the peer is asked, and the tasks of both.
struct Stage {
    client: Client,
    asked: mpsc::Receiver<(SocketAddr, SessionRequest)>,
    _tasks: JoinSet<()>,
}

impl Stage {
    async fn new(scripts: Vec<Vec<Act>>) -> Self {
        let (sender, asked) = mpsc::channel(1_000);
        let peer = Peer { scripts: Mutex::new(scripts.into()), asked: sender };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let server = Server::builder().add_service(changes_server::ChangesServer::new(peer));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves");
        });
        let builder = Client::builder(format!("http://{address}")).silence_timeout(Duration::from_millis(300));
        Stage { client: builder.connect().await.expect("listens"), asked, _tasks: tasks }
    }

    fn subscribe(&self) -> Changes {
        self.client.subscribe(Subscription::tables(["public.orders"]).from(Start::Earliest))
    }

    /// The next Subscribe's start, and the connection that it came by.
    async fn start(&mut self) -> (SocketAddr, v1::start::From) {
        loop {
            let (address, request) = self.asked.recv().await.expect("the peer runs");
            if let Some(Asked::Subscribe(subscribe)) = request.request {
                return (address, subscribe.start.and_then(|start| start.from).expect("always set"));
            }
        }
    }
}

fn opened(position: &str) -> Act {
    let (token_prefix, source) = ("1-ab-0-cd".to_owned(), "shop".to_owned());
    Act::Say(Mark::Opened(v1::Opened { token_prefix, position: position.into(), head: "0/9:1".into(), source }))
}

fn row_type() -> Act {
    let table = |name: &str| name.to_owned();
    Act::Say(Mark::RowType(v1::RowType {
        row_type: 5,
        schema: table("public"),
        table: table("orders"),
        ..Default::default()
    }))
}

fn event(what: What) -> Act {
    Act::Say(Mark::Changes(v1::ChangeBatch { events: vec![v1::Event { what: Some(what) }] }))
}

fn begin(position: &str) -> Act {
    event(What::Begin(v1::Begin { position: position.into(), ..Default::default() }))
}

fn batch(ordinals: &[u32]) -> v1::ChangeBatch {
    let insert = |ordinal: &u32| v1::Change {
        op: v1::change::Op::Insert as i32,
        row_type: 5,
        ordinal: *ordinal,
        row: vec![0; 100].into(),
        ..Default::default()
    };
    let event = |change| v1::Event { what: Some(What::Change(change)) };
    v1::ChangeBatch { events: ordinals.iter().map(insert).map(event).collect() }
}

fn changes(ordinals: &[u32]) -> Act {
    Act::Say(Mark::Changes(batch(ordinals)))
}

fn commit(position: &str) -> Act {
    event(What::Commit(v1::Commit { position: position.into(), token_prefix: String::new() }))
}

fn progress(position: &str) -> Act {
    Act::Say(Mark::Progress(v1::Progress { position: position.into(), ..Default::default() }))
}

fn snapshot_begin(position: &str) -> Act {
    let tables = vec!["public.orders".to_owned()];
    Act::Say(Mark::SnapshotBegin(v1::SnapshotBegin {
        snapshot: 7,
        position: position.into(),
        tables,
        ..Default::default()
    }))
}

fn snapshot_end(position: &str) -> Act {
    let (position, abandoned) = (position.to_owned(), String::new());
    Act::Say(Mark::SnapshotEnd(v1::SnapshotEnd { snapshot: 7, position, abandoned, ..Default::default() }))
}

/// A chunk of reads, without its commit.
fn chunk(position: &str, count: usize) -> [Act; 2] {
    let ordinal = position.parse::<Position>().expect("a position").ordinal;
    let mut reads = batch(&vec![ordinal; count]);
    for read in &mut reads.events {
        if let Some(What::Change(change)) = &mut read.what {
            change.set_op(v1::change::Op::Read);
        }
    }
    let begin = v1::Begin { position: position.into(), snapshot: 7, ..Default::default() };
    [event(What::Begin(begin)), Act::Say(Mark::Changes(reads))]
}

fn broken() -> Act {
    Act::Fail(Status::unavailable("broken"))
}

fn refusal(code: Code, retry_delay: Option<prost_types::Duration>) -> Act {
    let any = |delay| prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
        value: rpc::RetryInfo { retry_delay: Some(delay) }.encode_to_vec(),
    };
    let details = retry_delay.into_iter().map(any).collect();
    Act::Say(Mark::Error(rpc::Status { code: code as i32, message: "refused".into(), details }))
}

fn short(event: &Event) -> String {
    match event {
        Event::Opened { token, .. } => format!("opened {}", token.position()),
        Event::RowType(row_type) => format!("row type {}", row_type.table_name()),
        Event::Begin { position, .. } => format!("begin {position}"),
        Event::Change(change) => format!("{} {}", change.op, change.position),
        Event::Commit { token } => format!("commit {}", token.position()),
        Event::SnapshotBegin { token, .. } => format!("snapshot begin {}", token.position()),
        Event::SnapshotEnd { token, .. } => format!("snapshot end {}", token.position()),
        Event::SnapshotAbandoned { token, .. } => format!("snapshot abandoned {}", token.position()),
        Event::Abort => "abort".into(),
        Event::Progress { token, .. } => format!("progress {}", token.position()),
        Event::Reset { reason, .. } => format!("reset {reason:?}"),
        Event::Drain { .. } => "drain".into(),
        Event::Preparing { table, .. } => format!("preparing {table}"),
        Event::Interrupted { .. } => "interrupted".into(),
    }
}

/// The events up to and including the one that is named.
async fn until(changes: &mut Changes, last: &str) -> Vec<String> {
    let mut events = Vec::new();
    while events.last().is_none_or(|event| event != last) {
        events.push(short(&changes.next().await.expect("more").expect("no error")));
    }
    events
}

fn from_token(position: &str) -> v1::start::From {
    v1::start::From::Token(format!("1-ab-0-cd.{position}"))
}

#[tokio::test]
async fn a_connection_lost_within_a_transaction_is_resumed_before_it() {
    let first = vec![opened("0/1:0"), row_type(), begin("0/5:0"), changes(&[1]), commit("0/5:1")];
    let half = vec![begin("0/6:0"), changes(&[1, 2]), broken()];
    let again = vec![opened("0/5:1"), row_type(), begin("0/6:0"), changes(&[1, 2]), commit("0/6:2"), Act::Hang];
    let mut stage = Stage::new(vec![first.into_iter().chain(half).collect(), again]).await;
    let mut changes = stage.subscribe();
    let events = until(&mut changes, "commit 0/6:2").await;
    let before = ["opened 0/1:0", "row type public.orders", "begin 0/5:0", "insert 0/5:1", "commit 0/5:1"];
    let lost = ["begin 0/6:0", "insert 0/6:1", "insert 0/6:2", "abort", "interrupted"];
    let resumed = ["opened 0/5:1", "begin 0/6:0", "insert 0/6:1", "insert 0/6:2", "commit 0/6:2"];
    assert_eq!(events, [&before[..], &lost, &resumed].concat());
    let earliest = v1::start::From::At(v1::start::Point::Earliest as i32);
    assert_eq!(stage.start().await.1, earliest);
    assert_eq!(stage.start().await.1, from_token("0/5:1"));
}

#[tokio::test]
async fn a_snapshot_goes_on_in_the_middle_after_a_lost_connection() {
    let (begin, first, second) = ("0/5:2147483648", "0/5:2147483649", "0/7:2147483648");
    let mut before = vec![opened("0/1:0"), row_type(), snapshot_begin(begin)];
    before.extend(chunk(first, 2));
    before.push(commit(first));
    before.extend(chunk(second, 2));
    before.push(broken());
    let mut after = vec![opened(first), row_type()];
    after.extend(chunk(second, 2));
    after.extend([commit(second), snapshot_end("0/7:2147483649"), Act::Hang]);
    let mut stage = Stage::new(vec![before, after]).await;
    let mut changes = stage.client.subscribe(Subscription::tables(["public.orders"]).from(Start::Snapshot));
    let events = until(&mut changes, "interrupted").await;
    let read = |position: &str| format!("read {position}");
    assert_eq!(events[2], format!("snapshot begin {begin}"));
    assert_eq!(events[4..7], [read(first), read(first), format!("commit {first}")]);
    assert_eq!(events[8..], [read(second), read(second), "abort".into(), "interrupted".into()]);
    let events = until(&mut changes, "snapshot end 0/7:2147483649").await;
    assert_eq!(events[2..5], [read(second), read(second), format!("commit {second}")]);
    assert_eq!(stage.start().await.1, v1::start::From::At(v1::start::Point::Snapshot as i32));
    assert_eq!(stage.start().await.1, from_token(first));
}

#[tokio::test]
async fn a_silent_connection_is_left_for_a_new_one() {
    let scripts = vec![vec![opened("0/1:0"), progress("0/3:0"), Act::Hang], vec![opened("0/3:0"), Act::Hang]];
    let mut stage = Stage::new(scripts).await;
    let mut changes = stage.subscribe();
    let events = until(&mut changes, "opened 0/3:0").await;
    assert_eq!(events, ["opened 0/1:0", "progress 0/3:0", "interrupted", "opened 0/3:0"]);
    let (first, second) = (stage.start().await, stage.start().await);
    assert_ne!(first.0, second.0);
    assert_eq!(second.1, from_token("0/3:0"));
}

#[tokio::test]
async fn a_draining_server_is_left_after_the_transaction() {
    let drain = || Act::Say(Mark::Drain(v1::Drain::default()));
    let first = vec![opened("0/1:0"), row_type(), begin("0/5:0"), drain(), changes(&[1]), commit("0/5:1"), Act::Hang];
    let mut stage = Stage::new(vec![first, vec![opened("0/5:1"), Act::Hang]]).await;
    let mut changes = stage.subscribe();
    let events = until(&mut changes, "opened 0/5:1").await;
    assert_eq!(events[2..], ["begin 0/5:0", "drain", "insert 0/5:1", "commit 0/5:1", "opened 0/5:1"]);
    let (first, second) = (stage.start().await, stage.start().await);
    assert_ne!(first.0, second.0);
    assert_eq!(second.1, from_token("0/5:1"));
}

#[tokio::test]
async fn a_reset_is_surfaced_and_ends_the_stream() {
    let reset = v1::Reset { reason: v1::reset::Reason::TokenTooOld as i32, detail: "start over".into() };
    let stage = Stage::new(vec![vec![Act::Say(Mark::Reset(reset)), Act::Hang]]).await;
    let mut changes = stage.subscribe();
    assert_eq!(until(&mut changes, "reset TokenTooOld").await.len(), 1);
    assert!(changes.next().await.is_none());
}

#[tokio::test]
async fn an_error_that_trying_again_does_not_mend_ends_the_stream() {
    let stage = Stage::new(vec![vec![refusal(Code::NotFound, None), Act::Hang]]).await;
    let mut changes = stage.subscribe();
    let error = changes.next().await.expect("an item").expect_err("refused");
    assert!(matches!(&error, ClientError::Refused { code: Code::NotFound, .. }), "{error}");
    assert_eq!(error.retry(), Retry::Never);
    assert!(changes.next().await.is_none());
}

#[tokio::test]
async fn the_delay_that_the_server_asks_for_is_kept() {
    let delay = prost_types::Duration { seconds: 0, nanos: 50_000_000 };
    let scripts = vec![vec![refusal(Code::Unavailable, Some(delay))], vec![opened("0/1:0"), Act::Hang]];
    let stage = Stage::new(scripts).await;
    let mut changes = stage.subscribe();
    let Some(Ok(Event::Interrupted { retry_in, .. })) = changes.next().await else { panic!("interrupted") };
    assert!(retry_in >= Duration::from_millis(50), "{retry_in:?}");
    assert_eq!(until(&mut changes, "opened 0/1:0").await.len(), 1);
}

#[tokio::test]
async fn credit_is_granted_back_as_changes_are_taken() {
    let script = vec![opened("0/1:0"), row_type(), begin("0/5:0"), changes(&[1]), changes(&[2, 3]), commit("0/5:3")];
    let size = |act: &Act| match act {
        Act::Say(batch @ Mark::Changes(_)) => response(batch.clone()).encoded_len() as u64,
        Act::Say(_) | Act::Fail(_) | Act::Hang => 0,
    };
    // Begin and the first change are less than half of it, with the others they are more.
    let sizes = [script[..4].iter().map(size).sum::<u64>(), size(&script[4])];
    let mut stage = Stage::new(vec![script.into_iter().chain([Act::Hang]).collect()]).await;
    let subscription = Subscription::tables(["a"]).credit_bytes(2 * sizes[1]);
    let mut changes = stage.client.subscribe(subscription);
    until(&mut changes, "commit 0/5:3").await;
    let (_, subscribe) = stage.asked.recv().await.expect("asked");
    assert!(matches!(subscribe.request, Some(Asked::Subscribe(subscribe)) if subscribe.credit_bytes == 2 * sizes[1]));
    let (_, grant) = stage.asked.recv().await.expect("asked");
    let granted = v1::Grant { subscription: 1, credit_bytes: sizes[0] + sizes[1] };
    assert_eq!(grant.request, Some(Asked::Grant(granted)));
}

#[tokio::test]
async fn an_acknowledgement_reaches_the_server() {
    let script = vec![opened("0/1:0"), progress("0/3:0"), Act::Hang];
    let mut stage = Stage::new(vec![script]).await;
    let mut changes = stage.subscribe();
    until(&mut changes, "opened 0/1:0").await;
    let Some(Ok(Event::Progress { token, .. })) = changes.next().await else { panic!("progress") };
    changes.ack(&token);
    stage.start().await;
    let (_, ack) = stage.asked.recv().await.expect("asked");
    assert_eq!(ack.request, Some(Asked::Ack(v1::Ack { subscription: 1, position: "0/3:0".into() })));
}

#[tokio::test]
async fn a_batch_holds_the_events_of_one_message() {
    let script = vec![opened("0/1:0"), row_type(), begin("0/5:0"), changes(&[1, 2, 3]), commit("0/5:3"), Act::Hang];
    let stage = Stage::new(vec![script]).await;
    let mut changes = stage.subscribe();
    let mut sizes = Vec::new();
    while sizes.len() < 5 {
        sizes.push(changes.next_batch().await.expect("no error").expect("more").len());
    }
    assert_eq!(sizes, [1, 1, 1, 3, 1]);
}

#[tokio::test]
async fn a_next_that_is_dropped_loses_nothing() {
    let script = vec![opened("0/1:0"), row_type(), begin("0/5:0"), changes(&[1, 2]), commit("0/5:2"), Act::Hang];
    let stage = Stage::new(vec![script]).await;
    let mut changes = stage.subscribe();
    let mut events = Vec::new();
    while events.len() < 6 {
        match changes.next().now_or_never() {
            Some(event) => events.push(short(&event.expect("more").expect("no error"))),
            None => tokio::task::yield_now().await,
        }
    }
    assert_eq!(events[2..], ["begin 0/5:0", "insert 0/5:1", "insert 0/5:2", "commit 0/5:2"]);
}

#[tokio::test]
async fn transactions_come_whole_and_once() {
    let first = vec![opened("0/1:0"), row_type(), begin("0/5:0"), changes(&[1, 2]), broken()];
    let second = vec![opened("0/1:0"), row_type(), begin("0/5:0"), changes(&[1, 2]), changes(&[3]), commit("0/5:3")];
    let stage = Stage::new(vec![first, second.into_iter().chain([progress("0/7:0"), Act::Hang]).collect()]).await;
    let mut transactions = stage.subscribe().transactions(1 << 20);
    let transaction = transactions.next().await.expect("one").expect("no error");
    assert_eq!(transaction.changes.iter().map(|change| change.position.ordinal).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(transaction.token.position(), Position { lsn: 5, ordinal: 3 });
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_ends_the_stream() {
    let stage = Stage::new(vec![vec![opened("0/1:0"), changes(&[1]), Act::Hang]]).await;
    let mut changes = stage.subscribe();
    until(&mut changes, "opened 0/1:0").await;
    let error = changes.next().await.expect("an item").expect_err("out of turn");
    assert!(matches!(error, ClientError::Violation(_)), "{error}");
}
