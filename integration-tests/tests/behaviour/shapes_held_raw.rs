//! What a client says that it holds, on the wire: right digests bring exactly the difference, wrong ones everything that they are wrong about,
//! and malformed ones are refused, while the session goes on.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use rand::RngExt as _;
use tidegate_client::{Client, MirrorState, Query, Shape, SourceStatus};
use tidegate_integration_tests::{Cluster, Database, Seed, Server, ServerConfig};
use tidegate_proto::v1::{Holds, Start, Subscribe, start};

use crate::raw_session::{
    RawCopy, RawRows, RawSession, bucket, digests, from_snapshot, holds, is_set, must_equal_select, shape,
};

const TABLE: &str = "create table item (id bigint primary key, shelf int not null, body text not null)";
const ROWS: usize = 3_000;
const CONDITION: &str = "shelf < 10";
const SELECT: &str = "select * from item where shelf < 10";
const BUCKETS: usize = 256;
/// Of `google.rpc.Code`.
const INVALID_ARGUMENT: i32 = 3;
const RESOURCE_EXHAUSTED: i32 = 8;

async fn served(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.execute(TABLE).await?;
    let row = "n, n % 20, 'row number ' || n";
    database.execute(&format!("insert into item select {row} from generate_series(1, {ROWS}) n")).await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("mirror: [item]".to_owned());
    let server = Server::start(config).await?;
    let is_complete = |status: &SourceStatus| status.mirror.iter().any(|table| table.state() == MirrorState::Complete);
    server.until("shop", "a complete mirror", is_complete).await?;
    Ok((database, server))
}

/// Subscribes anew with rows of before, of selections, and what is said of them; up to the snapshot's end.
async fn rejoin<'a>(
    session: &'a mut RawSession,
    subscribe: Subscribe,
    rows: &[(u32, &RawRows)],
) -> Result<&'a RawCopy> {
    let (subscription, copy) = (subscribe.subscription, RawCopy::holding(rows, &subscribe.holds));
    session.subscribe(subscribe).await?;
    session.copies.insert(subscription, copy);
    session.until_exact(subscription).await
}

fn of_shape(subscription: u32, holds: Vec<Holds>) -> Subscribe {
    Subscribe { holds, ..from_snapshot(subscription, vec![shape("item", CONDITION)]) }
}

/// All rows of the shape, as the server sends them to who has none.
async fn all_rows(session: &mut RawSession, subscription: u32) -> Result<RawRows> {
    session.subscribe(of_shape(subscription, Vec::new())).await?;
    Ok(session.until_exact(subscription).await?.rows(0))
}

/// The buckets that are replaced of a selection, if it was compared.
fn replaced(copy: &RawCopy, selection: u32) -> Option<BTreeSet<usize>> {
    let differences = &copy.snapshot.as_ref()?.differences;
    let difference = differences.iter().find(|difference| difference.selection == selection)?;
    let buckets = 0..difference.replaced.len() * 8;
    Some(buckets.filter(|bucket| is_set(&difference.replaced, *bucket)).collect())
}

/// The rows of these buckets, and no others, were read of the selection.
fn must_have_read(copy: &RawCopy, selection: u32, now: &RawRows, salt: [u8; 16], count: usize) -> Result<()> {
    let replaced = replaced(copy, selection).context("it was compared")?;
    let expected = now.keys().copied().filter(|id| replaced.contains(&bucket(&salt, *id, count)));
    let (expected, read) = (expected.collect::<BTreeSet<_>>(), copy.read.get(&selection).cloned().unwrap_or_default());
    ensure!(read == expected, "{} rows were read of {}", read.len(), expected.len());
    Ok(())
}

/// Changes of every kind, which the server's mirror has, and the keys that they concern. A subscription of the session follows them.
async fn change(
    session: &mut RawSession,
    follower: u32,
    database: &Database,
    server: &Server,
) -> Result<BTreeSet<i64>> {
    database
        .execute(
            "delete from item where id in (1, 1001); update item set shelf = 15 where id in (2, 1002); \
             update item set shelf = 3 where id in (15, 1015); update item set body = 'changed' where id = 4; \
             update item set id = -6 where id = 6; insert into item values (100001, 1, 'new'), (100002, 19, 'none of it')",
        )
        .await?;
    session.until_caught_up(follower, database).await?;
    // An answer is not of before what the server had when it was asked.
    let client = Client::connect(server.endpoint()).await?;
    let mut answer = client.query("shop", Query::of(Shape::of("item")).limit(1)).await?;
    while answer.next().await?.is_some() {}
    Ok([1, 1001, 2, 1002, 15, 1015, 4, 6, -6, 100_001].into())
}

#[tokio::test(flavor = "multi_thread")]
async fn right_digests_bring_exactly_the_difference() -> Result<()> {
    let (database, server) = served("held_raw").await?;
    let mut random = Seed::from_environment().generator(0);
    let mut session = RawSession::open(&server.endpoint()).await?;
    let before = all_rows(&mut session, 1).await?;
    must_equal_select(&before, &database, SELECT).await?;
    let keys = change(&mut session, 1, &database, &server).await?;
    let now = all_rows(&mut session, 2).await?;
    must_equal_select(&now, &database, SELECT).await?;

    for (subscription, count) in (10..).zip([1, 2, BUCKETS, 1 << 14, 1 << 16]) {
        let salt: [u8; 16] = random.random();
        let held = holds(0, salt, &digests(&before, salt, count));
        let copy = rejoin(&mut session, of_shape(subscription, vec![held]), &[(0, &before)]).await?;
        must_equal_select(&copy.rows(0), &database, SELECT).await.with_context(|| format!("{count} buckets"))?;
        let expected = keys.iter().map(|id| bucket(&salt, *id, count)).collect::<BTreeSet<_>>();
        ensure!(replaced(copy, 0) == Some(expected.clone()), "{:?}, and not {expected:?}", replaced(copy, 0));
        must_have_read(copy, 0, &now, salt, count)?;
    }
    // Who has all rows as they are is sent none, and follows.
    let salt: [u8; 16] = random.random();
    let held = holds(0, salt, &digests(&now, salt, BUCKETS));
    let copy = rejoin(&mut session, of_shape(20, vec![held]), &[(0, &now)]).await?;
    ensure!(copy.read.is_empty() && replaced(copy, 0) == Some(BTreeSet::new()), "{:?}", copy.read);
    database.execute("update item set body = 'followed' where id = 7; delete from item where id = 8").await?;
    let follows = |copy: &RawCopy| copy.row(0, 7).is_some_and(|row| row.body == "followed") && copy.row(0, 8).is_none();
    let copy = session.until(20, ("what follows", follows)).await?;
    must_equal_select(&copy.rows(0), &database, SELECT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_digests_bring_what_they_are_wrong_about() -> Result<()> {
    let (database, server) = served("held_wrongly").await?;
    let mut random = Seed::from_environment().generator(0);
    let mut session = RawSession::open(&server.endpoint()).await?;
    let rows = all_rows(&mut session, 1).await?;
    let salt: [u8; 16] = random.random();
    let right = digests(&rows, salt, BUCKETS);

    // One that is wrong, and one that says that nothing is held, though what is held is right.
    for (subscription, wrong) in [(2, right[9] ^ 1), (3, 0)] {
        let mut digests = right.clone();
        digests[9] = wrong;
        let copy = rejoin(&mut session, of_shape(subscription, vec![holds(0, salt, &digests)]), &[(0, &rows)]).await?;
        ensure!(replaced(copy, 0) == Some([9].into()), "{:?}", replaced(copy, 0));
        must_have_read(copy, 0, &rows, salt, BUCKETS)?;
        must_equal_select(&copy.rows(0), &database, SELECT).await?;
    }
    // Made up, of another salt, of other rows, and in another order: everything is read, and what was held counts for nothing.
    let made_up: Vec<u64> = (0..BUCKETS).map(|_| random.random()).collect();
    let mut reversed = right.clone();
    reversed.reverse();
    let none = RawRows::new();
    let others: RawRows = rows.iter().map(|(id, row)| (id + 1_000_000, row.clone())).collect();
    for (subscription, (digests, held)) in (4..).zip([
        (made_up, &others),
        (digests(&rows, [1; 16], BUCKETS), &rows),
        (digests(&others, salt, BUCKETS), &others),
        (reversed, &rows),
        (digests(&none, salt, BUCKETS), &none),
    ]) {
        let copy = rejoin(&mut session, of_shape(subscription, vec![holds(0, salt, &digests)]), &[(0, held)]).await?;
        // A bucket in which there is nothing here and there is the same.
        let wrong: BTreeSet<usize> = (0..BUCKETS).filter(|bucket| digests[*bucket] != right[*bucket]).collect();
        ensure!(
            wrong.len() > BUCKETS - 10 && replaced(copy, 0) == Some(wrong),
            "{subscription}: {:?}",
            replaced(copy, 0)
        );
        must_have_read(copy, 0, &rows, salt, BUCKETS)?;
        must_equal_select(&copy.rows(0), &database, SELECT).await?;
    }
    // Something is held in buckets in which the table has nothing.
    let few = shape("item", "id <= 3");
    let held: RawRows = (1..=3).filter_map(|id| Some((id, rows.get(&id)?.clone()))).collect();
    let mut digests = digests(&held, salt, 1 << 12);
    let empty: Vec<usize> = (0..1 << 12).filter(|bucket| digests[*bucket] == 0).take(2).collect();
    empty.iter().for_each(|bucket| digests[*bucket] = random.random());
    let subscribe = Subscribe { holds: vec![holds(0, salt, &digests)], ..from_snapshot(9, vec![few]) };
    let copy = rejoin(&mut session, subscribe, &[(0, &held)]).await?;
    ensure!(replaced(copy, 0) == Some(empty.into_iter().collect()) && copy.read.is_empty(), "{:?}", copy.read);
    must_equal_select(&copy.rows(0), &database, "select * from item where id <= 3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_selection_is_compared_by_itself() -> Result<()> {
    let (database, server) = served("held_of_several").await?;
    let mut random = Seed::from_environment().generator(0);
    let mut session = RawSession::open(&server.endpoint()).await?;
    let selects = [CONDITION, "shelf between 5 and 14", "id in (select shelf from item)"];
    let selections = || selects.map(|condition| shape("item", condition)).to_vec();
    session.subscribe(from_snapshot(1, selections())).await?;
    let copy = session.until_exact(1).await?;
    let rows = [0, 1, 2].map(|selection| copy.rows(selection));
    change(&mut session, 1, &database, &server).await?;
    let salts: [[u8; 16]; 3] = random.random();
    let told = |of: &[u32]| -> Vec<Holds> {
        let told = |at: &u32| {
            let (rows, salt) = (&rows[*at as usize], salts[*at as usize]);
            holds(*at, salt, &digests(rows, salt, BUCKETS))
        };
        of.iter().map(told).collect()
    };
    // In any order; what is not told is read whole, and so is what has subqueries.
    for (subscription, of) in (2..).zip([vec![1, 0, 2], vec![1], vec![2]]) {
        let subscribe = Subscribe { holds: told(&of), ..from_snapshot(subscription, selections()) };
        let held: Vec<(u32, &RawRows)> = of.iter().map(|at| (*at, &rows[*at as usize])).collect();
        let copy = rejoin(&mut session, subscribe, &held).await?;
        for (at, condition) in (0..).zip(selects) {
            let select = format!("select * from item where {condition}");
            let now = copy.rows(at);
            must_equal_select(&now, &database, &select).await.with_context(|| format!("{of:?}: {condition}"))?;
            let read = copy.read.get(&at).cloned().unwrap_or_default();
            match replaced(copy, at) {
                Some(replaced) => {
                    ensure!(of.contains(&at) && at < 2 && replaced.len() < 20, "{of:?}: {at}: {replaced:?}");
                    let salt = salts[at as usize];
                    // What is read for another selection comes to this one too.
                    let must_come = now.keys().filter(|id| replaced.contains(&bucket(&salt, **id, BUCKETS)));
                    ensure!(
                        must_come.clone().count() > 0 && must_come.clone().all(|id| read.contains(id)),
                        "{of:?}: {at}"
                    );
                }
                None => {
                    ensure!(!(of.contains(&at) && at < 2) && read.len() == now.len(), "{of:?}: {at}: {}", read.len())
                }
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_refused_and_the_session_goes_on() -> Result<()> {
    let (database, server) = served("held_malformed").await?;
    let mut session = RawSession::open(&server.endpoint()).await?;
    let rows = all_rows(&mut session, 1).await?;
    let token = session.copy(1)?.token();
    let (salt, digests) = ([7; 16], digests(&rows, [7; 16], 2));
    let good = || holds(0, salt, &digests);
    let of_bytes =
        |salt: usize, count: usize| Holds { selection: 0, salt: vec![7; salt].into(), digests: vec![0; count].into() };
    let started = |from| Subscribe { start: Some(Start { from: Some(from) }), ..of_shape(2, vec![good()]) };
    let at = |point: start::Point| started(start::From::At(point.into()));
    let of_two = vec![shape("item", CONDITION), shape("item", "id < 9")];
    let too_many = vec![of_bytes(16, 8 << 16), Holds { selection: 1, ..of_bytes(16, 8) }];
    let of_two = Subscribe { holds: too_many, ..from_snapshot(2, of_two) };
    let cases = [
        ("a token", started(start::From::Token(token)), "a token goes on without it"),
        ("now", at(start::Point::Now), "SNAPSHOT"),
        ("the earliest", at(start::Point::Earliest), "SNAPSHOT"),
        ("no start", Subscribe { start: None, ..of_shape(2, vec![good()]) }, "SNAPSHOT"),
        ("a selection twice", of_shape(2, vec![good(), good()]), "selection 0 twice"),
        ("a selection that is not there", of_shape(2, vec![Holds { selection: 1, ..good() }]), "there are 1"),
        ("the last selection", of_shape(2, vec![Holds { selection: u32::MAX, ..good() }]), "there are 1"),
        ("no salt", of_shape(2, vec![of_bytes(0, 8)]), "holds.salt has 0 bytes"),
        ("a short salt", of_shape(2, vec![of_bytes(15, 8)]), "holds.salt has 15 bytes"),
        ("a long salt", of_shape(2, vec![of_bytes(17, 8)]), "holds.salt has 17 bytes"),
        ("no digests", of_shape(2, vec![of_bytes(16, 0)]), "holds.digests has 0 bytes"),
        ("three digests", of_shape(2, vec![of_bytes(16, 24)]), "holds.digests has 24 bytes"),
        ("a part of a digest", of_shape(2, vec![of_bytes(16, 9)]), "holds.digests has 9 bytes"),
        ("too many digests", of_two, "65537 buckets are too many"),
    ];
    for (what, subscribe, words) in cases {
        session.subscribe(subscribe).await?;
        let copy = session.until(2, (what, |copy: &RawCopy| copy.error.is_some() || copy.is_exact)).await?;
        let (code, message) = copy.error.clone().with_context(|| format!("{what} is not refused"))?;
        let expected = if what == "too many digests" { RESOURCE_EXHAUSTED } else { INVALID_ARGUMENT };
        ensure!(code == expected && message.contains(words), "{what}: {code}, {message}");
    }
    // Nobody else is harmed, and the number is free again.
    let copy = rejoin(&mut session, of_shape(2, vec![good()]), &[(0, &rows)]).await?;
    ensure!(copy.read.is_empty(), "{} rows were read", copy.read.len());
    database.execute("update item set body = 'still' where id = 4").await?;
    for subscription in [1, 2] {
        let follows = |copy: &RawCopy| copy.row(0, 4).is_some_and(|row| row.body == "still");
        let copy = session.until(subscription, ("what follows", follows)).await?;
        must_equal_select(&copy.rows(0), &database, SELECT).await?;
    }
    Ok(())
}
