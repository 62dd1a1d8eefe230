//! Shapes over the wire: who is told of a block, and what it costs the others.

mod fixture;

use std::{collections::HashMap, sync::Arc};

use fixture::{Fixture, Session, changes, columns, now};
use tidegate_gateway::Described;
use tidegate_model::{Op, Position};
use tidegate_proto::v1::{self, session_request::Request, session_response::Event};
use tidegate_views::{CollationFacts, ColumnFacts, TableFacts};

/// Orders as the catalog has them.
fn described() -> Described {
    let c = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: true };
    let columns = columns();
    let facts = columns.iter().map(|column| ColumnFacts {
        name: column.name.clone(),
        field: column.field,
        type_oid: column.type_oid,
        collation: (column.type_oid == 25).then(|| c.clone()),
        enum_type: None,
    });
    let facts = TableFacts {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        columns: facts.collect(),
        default_collation: c.clone(),
    };
    let type_oids = columns.iter().map(|column| column.type_oid).collect();
    let type_names = columns.iter().map(|column| column.type_name.clone()).collect();
    Described { facts, key: vec!["id".to_owned()], type_oids, type_names, whole_old_rows: true }
}

/// A session with a subscription to each condition on orders, numbered from 1, all of them open. Those of even numbers let their progress
/// be told with that of others.
async fn open(fixture: &Fixture, conditions: impl IntoIterator<Item = String>) -> Session {
    *fixture.snapshots.described.lock().expect("no panic") = Some(described());
    let mut session = fixture.session().await;
    let mut count = 0;
    for condition in conditions {
        count += 1;
        let shape =
            v1::ShapeSelection { table: "orders".to_owned(), r#where: condition, ..v1::ShapeSelection::default() };
        let subscribe = v1::Subscribe {
            subscription: count,
            selections: vec![v1::Selection { what: Some(v1::selection::What::Shape(shape)) }],
            start: Some(v1::Start { from: Some(now()) }),
            credit_bytes: 64 << 20,
            shared_progress: count % 2 == 0,
            ..v1::Subscribe::default()
        };
        session.subscribe(subscribe).await;
    }
    for _ in 0..count {
        let (_, Event::Opened(_)) = session.event().await else { panic!("not opened") };
    }
    session
}

/// The changes that come until each of so many subscriptions has told that it has everything up to a position.
async fn until_all_at(session: &mut Session, count: u32, position: Position) -> HashMap<u32, Vec<v1::Change>> {
    let mut received: HashMap<u32, Vec<v1::Change>> = HashMap::new();
    let mut there = std::collections::HashSet::new();
    while there.len() < count as usize {
        let response = session.next().await.expect("no status").expect("no end");
        match response.event.expect("an event") {
            Event::Progress(progress) if progress.position.parse::<Position>().expect("a position") >= position => {
                let alone = Some(response.subscription).filter(|subscription| *subscription != 0);
                there.extend(progress.subscriptions.into_iter().chain(alone));
            }
            Event::Changes(batch) => received.entry(response.subscription).or_default().extend(changes(batch)),
            Event::Error(error) => panic!("{error:?}"),
            _mark => {}
        }
    }
    received
}

#[tokio::test]
async fn a_block_costs_only_those_whom_it_concerns() {
    const COUNT: u32 = 300;
    const BLOCKS: u64 = 20;
    let mut fixture = Fixture::start().await;
    let mut session = open(&fixture, (1..=COUNT).map(|id| format!("id = {id}"))).await;
    // Whoever is not routed yet reads the log, and filters each block.
    for _ in 0..50 {
        let before = fixture.metrics.blocks();
        let mut end = Position::ZERO;
        for _ in 0..BLOCKS {
            end = fixture
                .transaction(&[(1, Op::Insert, 7, "a"), (1, Op::Insert, 9_999, "b"), (2, Op::Insert, 8, "c")])
                .await;
        }
        let received = until_all_at(&mut session, COUNT, end).await;
        assert_eq!(received.keys().collect::<Vec<_>>(), [&7]);
        assert_eq!(received[&7].len() as u64, BLOCKS);
        let after = fixture.metrics.blocks();
        if after.0 + after.1 - before.0 - before.1 == BLOCKS {
            return;
        }
    }
    panic!("blocks are filtered for those whom they do not concern");
}

#[tokio::test]
async fn progress_of_those_who_allow_it_comes_together() {
    const COUNT: u32 = 20;
    let mut fixture = Fixture::start().await;
    let mut session = open(&fixture, (1..=COUNT).map(|id| format!("id = {id}"))).await;
    for _ in 0..50 {
        let end = fixture.transaction(&[(1, Op::Insert, 9_999, "a")]).await;
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        while alone.len() < COUNT as usize / 2 || together.is_empty() {
            let response = session.next().await.expect("no status").expect("no end");
            let Some(Event::Progress(progress)) = response.event else { continue };
            if progress.position.parse::<Position>().expect("a position") < end {
                continue;
            }
            match response.subscription {
                0 => together.push(progress.subscriptions),
                subscription => alone.push(subscription),
            }
        }
        assert!(together.iter().flatten().all(|subscription| subscription % 2 == 0), "{together:?}");
        if together.iter().any(|subscriptions| subscriptions.len() == COUNT as usize / 2) {
            return;
        }
    }
    panic!("those who allow it are never told all together");
}

#[tokio::test]
async fn equal_shapes_filter_a_block_once() {
    const COUNT: u32 = 50;
    let mut fixture = Fixture::start().await;
    let mut session =
        open(&fixture, (0..COUNT).map(|n| format!("{}id > 0", "(true) and ".repeat(n as usize % 2)))).await;
    for _ in 0..50 {
        let before = fixture.metrics.blocks();
        let end = fixture.transaction(&[(1, Op::Insert, 7, "a"), (1, Op::Delete, 7, "a")]).await;
        let received = until_all_at(&mut session, COUNT, end).await;
        assert!(received.len() == COUNT as usize && received.values().all(|changes| changes.len() == 2));
        let after = fixture.metrics.blocks();
        if (after.0 - before.0, after.1 - before.1) == (1, u64::from(COUNT) - 1) {
            return;
        }
    }
    panic!("each filters for itself");
}

#[tokio::test]
async fn a_row_that_is_cut_by_the_ends_of_blocks_arrives_whole_and_where_it_belongs() {
    let mut fixture = Fixture::start().await;
    let mut session = open(&fixture, ["id = 1", "id = 2", "note like 'xx%'"].map(str::to_owned)).await;
    let long = "x".repeat(3 << 20);
    for _ in 0..3 {
        let changes = [(1, Op::Insert, 1, &*long), (1, Op::Insert, 2, "short"), (2, Op::Insert, 1, &*long)];
        let end = fixture.transaction(&changes).await;
        let received = until_all_at(&mut session, 3, end).await;
        let row_bytes =
            |subscription: u32| received[&subscription].iter().map(|change| change.row.len()).sum::<usize>();
        assert!(row_bytes(1) > long.len() && row_bytes(1) == row_bytes(3) && row_bytes(2) < 100);
        assert_eq!(received[&1].iter().filter(|change| !change.continues).count(), 1);
    }
}

#[tokio::test]
async fn a_routed_subscription_hears_of_another_history() {
    let mut fixture = Fixture::start().await;
    let mut session = open(&fixture, ["id = 1".to_owned()]).await;
    let end = fixture.transaction(&[(1, Op::Insert, 2, "not for it")]).await;
    until_all_at(&mut session, 1, end).await;
    fixture.epoch(2).await;
    let (_, Event::Reset(reset)) = session.event().await else { panic!("no reset") };
    assert_eq!(reset.reason(), v1::reset::Reason::SourceDiscontinued);
    // And a new one is routed in the new one.
    let mut session = open(&fixture, ["id = 1".to_owned()]).await;
    let end = fixture.transaction(&[(1, Op::Insert, 1, "for it")]).await;
    assert_eq!(until_all_at(&mut session, 1, end).await[&1].len(), 1);
}

#[tokio::test]
async fn shapes_that_come_and_go_while_changes_flow_miss_nothing() {
    let mut fixture = Fixture::start().await;
    let mut kept = open(&fixture, ["id = 1".to_owned()]).await;
    let mut count = 0;
    for round in 0..20 {
        let mut passing = open(&fixture, (0..30).map(|n| format!("id = {}", (n + round) % 7))).await;
        let mut end = Position::ZERO;
        for _ in 0..5 {
            end = fixture.transaction(&[(1, Op::Insert, 1, "a"), (1, Op::Insert, 3, "b")]).await;
            count += 1;
        }
        let received = until_all_at(&mut passing, 30, end).await;
        for n in 0..30 {
            let expected = if matches!((n + round) % 7, 1 | 3) { 5 } else { 0 };
            assert_eq!(received.get(&(n + 1)).map_or(0, Vec::len), expected, "{n} in round {round}");
        }
    }
    let end = fixture.transaction(&[(1, Op::Insert, 1, "the last")]).await;
    assert_eq!(until_all_at(&mut kept, 1, end).await[&1].len(), count + 1);
}

#[tokio::test]
async fn any_number_may_be_concerned_at_once() {
    const COUNT: u32 = 1_000;
    let mut fixture = Fixture::start().await;
    let mut session = open(&fixture, (1..=COUNT).map(|n| format!("id > -{n}"))).await;
    for _ in 0..20 {
        let end = fixture.transaction(&[(1, Op::Insert, 7, "a"), (1, Op::Delete, 7, "a")]).await;
        let received = until_all_at(&mut session, COUNT, end).await;
        assert!(received.len() == COUNT as usize && received.values().all(|changes| changes.len() == 2));
    }
}

/// Waits for what another task brings about.
async fn until(what: &str, is_there: impl Fn() -> bool) {
    let waiting = async {
        while !is_there() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await.expect(what);
}

#[tokio::test]
async fn shapes_come_and_go_while_changes_flow_and_leave_nothing() {
    const COUNT: u32 = 400;
    let mut fixture = Fixture::start().await;
    let metrics = Arc::clone(fixture.metrics.sources().next().expect("the source").1);
    let router = metrics.router();
    let has = |count: u32| {
        let count = u64::from(count);
        (router.shapes(), router.conditions(), router.indexes()) == (count, count, 1)
    };
    let condition = |id: u32| match id % 4 {
        0 => format!("id = {id}"),
        1 => format!("id between {id} and 500"),
        2 => format!("note like 'n{id}%'"),
        _ => format!("id + 1 = {id}"),
    };
    let mut staying = open(&fixture, ["note = 'stays'".to_owned()]).await;
    for round in 0..3 {
        let mut end = fixture.transaction(&[(1, Op::Insert, 7, "stays")]).await;
        let session = open(&fixture, (1..=COUNT).map(condition)).await;
        until("shapes to be routed", || has(COUNT + 1)).await;
        for id in 1..=50 {
            end = fixture.transaction(&[(1, Op::Insert, id, "n"), (1, Op::Insert, id, "stays")]).await;
            session.send(Request::Cancel(v1::Cancel { subscription: id as u32 })).await;
        }
        let received = until_all_at(&mut staying, 1, end).await;
        assert_eq!(received[&1].len(), 51, "round {round}");
        drop(session);
        until("shapes to be gone", || has(1)).await;
    }
    assert!(router.changes() >= 300 && router.candidates() >= router.verdicts() && router.verdicts() >= 153);
    assert!(router.evaluations() >= 300, "what no lookup serves is evaluated for each change");
    drop(staying);
    until("nothing to be left", || router.shapes() + router.conditions() + router.indexes() == 0).await;
}
