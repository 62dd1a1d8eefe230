//! The feed within one process keeps order, keeps its budget, and ends cleanly on either side.

use tidegate_feed::{Durable, FeedClosed, FeedItem, Publish, Receive, local};
use tidegate_model::{Block, BlockBuilder, Entry, Epoch, EpochInfo, Kind, Lsn, Op, Position};
use tokio::{join, task::JoinSet};

const START: Durable = Durable { position: Position::ZERO, epoch: None, disk_full: false };

fn block(lsn: u64, payload_bytes: usize) -> Block {
    let mut builder = BlockBuilder::default();
    let entry = Entry {
        lsn: Lsn(lsn),
        ordinal: 0,
        row_type: 0,
        start: 0,
        end: 0,
        kind: Kind::Commit,
        op: Op::None,
        continues: false,
    };
    builder.push(entry, &vec![7; payload_bytes]);
    builder.finish()
}

/// Polls once: ready or not, without waiting.
async fn ready<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = std::future::ready(()) => None,
    }
}

#[tokio::test]
async fn items_arrive_in_order_and_end_with_the_publisher() {
    let (mut publisher, mut subscriber) = local::channel(10_000, START);
    let info = EpochInfo { epoch: Epoch(5), system_identifier: 1, timeline: 1, start_lsn: Lsn(1) };
    let sent: Vec<FeedItem> =
        [FeedItem::Epoch(info, Some("why".into())), FeedItem::Timeline(EpochInfo { timeline: 2, ..info })]
            .into_iter()
            .chain((2..500).map(|lsn| FeedItem::Block(block(lsn, 100))))
            .collect();
    let mut tasks = JoinSet::new();
    let items = sent.clone();
    tasks.spawn(async move {
        for item in items {
            publisher.publish(item).await.unwrap();
        }
    });
    let mut received = Vec::new();
    while let Some(item) = subscriber.next().await {
        received.push(item);
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn publish_waits_while_the_budget_is_in_flight() {
    let (mut publisher, mut subscriber) = local::channel(1_000, START);
    publisher.publish(FeedItem::Block(block(1, 600))).await.unwrap();
    assert!(ready(publisher.publish(FeedItem::Block(block(2, 600)))).await.is_none());
    assert!(matches!(subscriber.next().await, Some(FeedItem::Block(first)) if first.first().lsn == Lsn(1)));
    // In hand still counts.
    assert!(ready(publisher.publish(FeedItem::Block(block(2, 600)))).await.is_none());
    let (published, received) = join!(publisher.publish(FeedItem::Block(block(2, 600))), subscriber.next());
    published.unwrap();
    assert!(matches!(received, Some(FeedItem::Block(second)) if second.first().lsn == Lsn(2)));
}

#[tokio::test]
async fn a_block_larger_than_the_budget_travels_alone() {
    let (mut publisher, mut subscriber) = local::channel(100, START);
    publisher.publish(FeedItem::Block(block(1, 5_000))).await.unwrap();
    assert!(ready(publisher.publish(FeedItem::Block(block(2, 1)))).await.is_none());
    assert!(subscriber.next().await.is_some());
}

#[tokio::test]
async fn a_publisher_that_waits_is_woken_when_the_subscriber_goes() {
    let (mut publisher, subscriber) = local::channel(100, START);
    publisher.publish(FeedItem::Block(block(1, 5_000))).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { publisher.publish(FeedItem::Block(block(2, 1))).await });
    drop(subscriber);
    assert_eq!(tasks.join_next().await.unwrap().unwrap(), Err(FeedClosed));
}

#[tokio::test]
async fn reports_reach_the_publisher() {
    let (publisher, subscriber) = local::channel(100, START);
    let mut durable = publisher.durable();
    assert_eq!(*durable.borrow_and_update(), START);
    let report = Durable { position: Position::new(Lsn(9), 3), epoch: Some(Epoch(1)), disk_full: true };
    subscriber.report(report);
    assert!(durable.has_changed().unwrap());
    assert_eq!(*durable.borrow_and_update(), report);
    subscriber.report(report);
    assert!(!durable.has_changed().unwrap(), "the same again is no news");
}
