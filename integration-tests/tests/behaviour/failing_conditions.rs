//! A row for which a shape's condition fails ends that subscription, or that Watch, and says where: whether the row is read, written, or
//! was there before, in the shape's table or in a subquery's. The other subscriptions of the same session go on.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use prost::Message as _;
use tidegate_integration_tests::{DEADLINE, Database, Server};
use tidegate_proto::{
    rpc,
    v1::{
        Selection, SessionRequest, SessionResponse, ShapeSelection, Start, Subscribe, TableSelection, WatchRequest,
        changes_client::ChangesClient,
        event,
        selection::What,
        session_request::Request,
        session_response::Event,
        start::{From, Point},
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::shapes::served;

const SCHEMA: &str =
    "create table part (id int primary key, n int, v int); create table divisor (id int primary key, n int)";
const ROWS: &str = "delete from part; delete from divisor; insert into part values (1, 5, 1), (2, 10, 1), (4, null, 1);
    insert into divisor values (1, 5), (2, 10)";

/// A condition, what is there before the subscription, where it starts, what is written then, and the row that is named.
struct Case {
    condition: &'static str,
    before: &'static str,
    start: Point,
    after: &'static str,
    row: &'static str,
}

const OF_ITSELF: &str = "100 / n > 5";
const OF_A_SUBQUERY: &str = "id in (select id from divisor where 100 / n > 5)";
const OF_AN_OPERAND: &str = "100 / n in (select n from divisor)";
const ZERO: &str = "insert into part values (3, 0, 1)";
const ZERO_DIVISOR: &str = "insert into divisor values (3, 0)";

const CASES: [Case; 12] = [
    Case { condition: OF_ITSELF, before: ZERO, start: Point::Snapshot, after: "", row: "part, row (id = 3)" },
    Case {
        condition: OF_ITSELF,
        before: "",
        start: Point::Now,
        after: "insert into part values (10, 5, 1), (11, 0, 1)",
        row: "part, row (id = 11)",
    },
    Case {
        condition: OF_ITSELF,
        before: "",
        start: Point::Snapshot,
        after: "update part set n = 0 where id = 1",
        row: "part, row (id = 1)",
    },
    Case {
        condition: OF_ITSELF,
        before: ZERO,
        start: Point::Now,
        after: "update part set n = 4 where id = 3",
        row: "part, row (id = 3)",
    },
    Case {
        condition: OF_ITSELF,
        before: ZERO,
        start: Point::Now,
        after: "delete from part where id = 3",
        row: "part, row (id = 3)",
    },
    Case {
        condition: OF_A_SUBQUERY,
        before: ZERO_DIVISOR,
        start: Point::Snapshot,
        after: "",
        row: "divisor, row (id = 3)",
    },
    Case { condition: OF_A_SUBQUERY, before: ZERO_DIVISOR, start: Point::Now, after: "", row: "divisor, row (id = 3)" },
    Case {
        condition: OF_A_SUBQUERY,
        before: "",
        start: Point::Snapshot,
        after: ZERO_DIVISOR,
        row: "divisor, row (id = 3)",
    },
    Case {
        condition: OF_A_SUBQUERY,
        before: "",
        start: Point::Now,
        after: "update part set v = 2 where id = 1; update divisor set n = 0 where id = 2",
        row: "divisor, row (id = 2)",
    },
    Case { condition: OF_AN_OPERAND, before: ZERO, start: Point::Snapshot, after: "", row: "part, row (id = 3)" },
    Case { condition: OF_AN_OPERAND, before: "", start: Point::Now, after: ZERO, row: "part, row (id = 3)" },
    Case {
        condition: OF_AN_OPERAND,
        before: ZERO,
        start: Point::Now,
        after: "update part set n = 4 where id = 3",
        row: "part, row (id = 3)",
    },
];

fn shape(table: &str, condition: &str) -> What {
    What::Shape(ShapeSelection { table: table.to_owned(), r#where: condition.to_owned(), ..ShapeSelection::default() })
}

/// One stream of several subscriptions, and what is known of each.
struct Session {
    requests: mpsc::Sender<SessionRequest>,
    responses: Streaming<SessionResponse>,
    tokens: BTreeMap<u32, String>,
    ends: BTreeMap<u32, rpc::Status>,
    commits: BTreeMap<u32, u32>,
    /// The last marker that each has received.
    markers: BTreeMap<u32, String>,
}

impl Session {
    async fn open(server: &Server) -> Result<Self> {
        let (requests, receiver) = mpsc::channel(8);
        let mut client = ChangesClient::connect(server.endpoint()).await?;
        let responses = client.session(ReceiverStream::new(receiver)).await?.into_inner();
        let (tokens, ends) = (BTreeMap::new(), BTreeMap::new());
        Ok(Session { requests, responses, tokens, ends, commits: BTreeMap::new(), markers: BTreeMap::new() })
    }

    async fn subscribe(&self, subscription: u32, selections: Vec<What>, from: From) -> Result<()> {
        let subscribe = Subscribe {
            subscription,
            selections: selections.into_iter().map(|what| Selection { what: Some(what) }).collect(),
            start: Some(Start { from: Some(from) }),
            credit_bytes: 64 << 20,
            ..Subscribe::default()
        };
        Ok(self.requests.send(SessionRequest { request: Some(Request::Subscribe(subscribe)) }).await?)
    }

    /// Receives until it is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Session) -> bool) -> Result<()> {
        let receiving = async {
            while !is_so(self) {
                let response = self.responses.message().await?.context("the session ended")?;
                self.take(response);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(DEADLINE, receiving).await.with_context(|| format!("{what}: it does not come"))?
    }

    fn take(&mut self, SessionResponse { subscription, event, .. }: SessionResponse) {
        match event {
            Some(Event::Opened(opened)) => {
                self.tokens.insert(subscription, format!("{}.{}", opened.token_prefix, opened.position));
            }
            Some(Event::Error(status)) => {
                self.ends.insert(subscription, status);
            }
            Some(Event::Changes(batch)) => {
                for event in batch.events {
                    match event.what {
                        Some(event::What::Change(change)) => {
                            let text = String::from_utf8_lossy(&change.row);
                            if let Some(at) = text.find("marker ") {
                                self.markers.insert(subscription, text[at..].to_owned());
                            }
                        }
                        Some(event::What::Commit(_)) => *self.commits.entry(subscription).or_default() += 1,
                        Some(event::What::Begin(_)) | None => {}
                    }
                }
            }
            _mark => {}
        }
    }

    /// What the others of the session receive is whole: they have ended neither.
    async fn must_go_on(&mut self, others: &[u32], database: &Database, number: usize) -> Result<()> {
        let marker = format!("marker {number}.");
        database.mark(&marker).await?;
        let have = |session: &Session| {
            let is_told = |one: &u32| session.markers.get(one) == Some(&marker) || session.ends.contains_key(one);
            others.iter().all(is_told)
        };
        self.until("the neighbours' marker", have).await?;
        let ended: Vec<_> = others.iter().filter_map(|one| self.ends.get(one)).collect();
        ensure!(ended.is_empty(), "a neighbour has ended: {ended:?}");
        Ok(())
    }

    async fn must_fail(&mut self, subscription: u32, row: &str) -> Result<()> {
        self.until(row, |session| session.ends.contains_key(&subscription)).await?;
        let end = &self.ends[&subscription];
        ensure!(end.code == Code::FailedPrecondition as i32, "{end:?}");
        let info = end.details.iter().find(|detail| detail.type_url.ends_with("ErrorInfo")).context("an ErrorInfo")?;
        let info = rpc::ErrorInfo::decode(info.value.as_slice())?;
        ensure!(info.reason == "SHAPE_FAILED", "{info:?}");
        says(&end.message, row)
    }
}

fn says(message: &str, row: &str) -> Result<()> {
    for words in [row, "division by zero", "change it so that it does not"] {
        // The position stands between the table and the row.
        let is_there = words.split(", row").all(|part| message.contains(part));
        ensure!(is_there, "'{message}' does not say '{words}'");
    }
    Ok(())
}

/// How a Watch of the same ends.
async fn watched(responses: &mut Streaming<tidegate_proto::v1::WatchResponse>) -> Result<tonic::Status> {
    let receiving = async {
        loop {
            match responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => bail!("it ended without an error"),
                Err(status) => return Ok(status),
            }
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("the Watch goes on")?
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_its_row_wherever_that_is_and_the_session_goes_on() -> Result<()> {
    let (database, server) = served("failing_conditions", SCHEMA, &["part", "divisor"]).await?;
    let mut session = Session::open(&server).await?;
    // By the router's notes, by the log, and with sets of subqueries.
    let marker = || shape("marker", "");
    let tables = TableSelection { names: vec!["part".to_owned(), "marker".to_owned()], ..TableSelection::default() };
    let now = || From::At(Point::Now.into());
    let safe = shape("part", "case when n <> 0 then 100 / n end > 5");
    session.subscribe(1, vec![safe, marker()], now()).await?;
    session.subscribe(2, vec![What::Tables(tables)], now()).await?;
    let of_others = shape("part", "id in (select id from divisor where n <> 0)");
    session.subscribe(3, vec![of_others, marker()], now()).await?;
    let neighbours = [1, 2, 3];
    session.until("three subscriptions", |session| session.tokens.len() == 3).await?;

    for (number, case) in CASES.iter().enumerate() {
        let Case { condition, before, start, after, row } = case;
        let context = || format!("{condition}: {before}; {after}");
        database.execute(&format!("{ROWS}; {before}")).await?;
        session.must_go_on(&neighbours, &database, 3 * number).await.with_context(context)?;
        let subscription = 100 + 10 * u32::try_from(number)?;
        session.subscribe(subscription, vec![shape("part", condition)], From::At((*start).into())).await?;
        let request = WatchRequest {
            shape: Some(ShapeSelection {
                table: "part".to_owned(),
                r#where: (*condition).to_owned(),
                ..ShapeSelection::default()
            }),
            start: Some(Start { from: Some(From::At((*start).into())) }),
            ..WatchRequest::default()
        };
        let mut watching = ChangesClient::connect(server.endpoint()).await?;
        let watch = watching.watch(request).await;
        let has_begun =
            |session: &Session| session.tokens.contains_key(&subscription) || session.ends.contains_key(&subscription);
        session.until("an answer", has_begun).await.with_context(context)?;
        let begun = session.commits.get(&subscription).copied().unwrap_or_default();
        if !after.is_empty() {
            ensure!(!session.ends.contains_key(&subscription), "{}: {:?}", context(), session.ends);
            database.execute(after).await?;
        }
        session.must_fail(subscription, row).await.with_context(context)?;
        if *start == Point::Now && !condition.contains("select") {
            let commits = session.commits.get(&subscription).copied().unwrap_or_default();
            ensure!(commits == begun, "{}: a transaction that fails is committed", context());
        }
        let status = match watch {
            Ok(responses) => watched(&mut responses.into_inner()).await.with_context(context)?,
            Err(status) => status,
        };
        ensure!(status.code() == Code::FailedPrecondition, "{}: {status:?}", context());
        says(status.message(), row).with_context(context)?;

        // What was received before does not bring it further: the same row comes again.
        if let Some(token) = session.tokens.get(&subscription).cloned().filter(|_| !after.is_empty()) {
            session.subscribe(subscription + 1, vec![shape("part", condition)], From::Token(token)).await?;
            session.must_fail(subscription + 1, row).await.with_context(context)?;
        }
        session.must_go_on(&neighbours, &database, 3 * number + 1).await.with_context(context)?;
    }
    Ok(())
}
