//! An edit of a named shape whose difference is large, for subscribers that receive it slowly: they come to its end, however long they take,
//! and what waits for them waits on the disk.

use std::fs;

use anyhow::{Context, Result, ensure};
use tidegate_client::{Client, Parameter, Query, Shape, Start, Subscription};
use tidegate_integration_tests::{Copier, Database, Server, within};
use tidegate_proto::v1::{self, Selection, ShapeSelection, Subscribe, selection};

use crate::{
    raw_session::{AMPLE_CREDIT_BYTES, RawCopy, RawSession, from_snapshot, must_equal_select},
    shape_query::served,
};

/// Of each session.
const ONLY: u32 = 1;
/// Of what the definition behind the edit selects: 1.8 MB.
const SELECTED: &str = "select * from item where shelf = 5";
/// Less than a part of it has.
const SOME_CREDIT_BYTES: u64 = 16 << 10;

const SCHEMA: &str = "create table item (id bigint primary key, shelf int, body text); create table plain (id bigint primary key); \
    insert into item select n, 1 + n % 2, 'small' from generate_series(1, 20) n";

async fn define(client: &Client, condition: &str) -> Result<()> {
    let shape = Shape::of("item").matching(condition).parameter(Parameter::of_type("int4"));
    client.define_shape("shop", "mine", shape).await?;
    Ok(())
}

/// With the rows of before the edit, of one shelf, which come with the snapshot's end, and without credit: it is not told of an edit until
/// it has some.
async fn without_credit(server: &Server, shelf: u32) -> Result<RawSession> {
    let parameter = v1::Parameter { r#type: String::new(), value: Some(shelf.to_string()) };
    let shape = ShapeSelection { name: "mine".to_owned(), parameters: vec![parameter], ..ShapeSelection::default() };
    let selections = vec![Selection { what: Some(selection::What::Shape(shape)) }];
    let mut session = RawSession::open(&server.endpoint()).await?;
    let subscribe = Subscribe { credit_bytes: 1, differences: true, ..from_snapshot(ONLY, selections) };
    session.subscribe(subscribe).await?;
    let copy = session.until_exact(ONLY).await?;
    ensure!(copy.rows(0).len() == 10 && copy.credited_bytes > 1, "{} bytes", copy.credited_bytes);
    Ok(session)
}

/// Up to so many bytes, and a message more.
async fn is_granted(session: &mut RawSession, credit_bytes: u64) -> Result<()> {
    let copy = session.copy(ONLY)?;
    session.grant(ONLY, copy.credited_bytes + credit_bytes - copy.granted_bytes).await
}

/// Have all that was committed by now come into the log, and into the mirror?
async fn are_all_mirrored(database: &Database, clock: &mut Copier, client: &Client) -> Result<()> {
    clock.until_caught_up(database).await?;
    let mut rows = client.query("shop", Query::of(Shape::of("item").matching("id = 1"))).await?;
    while rows.next().await?.is_some() {}
    Ok(())
}

/// Files without names that the server has in the source's folder for such.
fn files_without_names(server: &Server) -> Result<usize> {
    let open = fs::read_dir(format!("/proc/{}/fd", server.process()?.id()))?;
    let links = open.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let is_one = |link: &std::path::PathBuf| {
        let link = link.to_string_lossy();
        link.contains("/shop.spool/") && link.ends_with("(deleted)")
    };
    Ok(links.filter(is_one).count())
}

fn has_failed_or(holds: impl Fn(&RawCopy) -> bool) -> impl Fn(&RawCopy) -> bool {
    move |copy| copy.error.is_some() || holds(copy)
}

fn has_all(copy: &RawCopy) -> bool {
    !copy.differences.is_empty() && copy.is_between_transactions()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_pauses_before_a_difference_or_amid_it_receives_it_however_slowly() -> Result<()> {
    let (database, server) = served("edited_slowly", SCHEMA).await?;
    let client = Client::connect(server.endpoint()).await?;
    define(&client, "shelf = $1").await?;
    let mut clock = Copier::of(&server.endpoint(), Subscription::tables(["plain"]), Start::Now);
    clock.until_open().await?;
    let (mut amid, mut before) = (without_credit(&server, 1).await?, without_credit(&server, 2).await?);
    let large = "insert into item select n, 5, rpad(n::text, 3000, 'x') from generate_series(100, 699) n";
    database.execute(large).await?;
    for number in 1..=20 {
        let rows = "select 1000 * $ + n, 2, rpad(n::text, 3000, 'x') from generate_series(1, 10) n";
        database.execute(&format!("insert into item {}", rows.replace('$', &number.to_string()))).await?;
    }
    are_all_mirrored(&database, &mut clock, &client).await?;
    define(&client, "shelf = 5 and $1 > 0").await?;

    // One has the difference read, and does not come to its place in the log: so much comes before.
    is_granted(&mut before, SOME_CREDIT_BYTES).await?;
    before.until(ONLY, ("a transaction", has_failed_or(|copy| copy.transaction_count > 0))).await?;
    // The other has its first part.
    is_granted(&mut amid, SOME_CREDIT_BYTES).await?;
    amid.until(ONLY, ("its begin", has_failed_or(|copy| !copy.differences.is_empty()))).await?;
    ensure!(!has_all(amid.copy(ONLY)?), "it comes in parts");
    // Both pause. What the one waits for is in memory for a minute, and what the other does as well.
    let in_file = || async { Ok((files_without_names(&server)? == 1).then_some(())) };
    within("the rest to be put into a file", in_file).await?;

    let paused: tidegate_model::Lsn =
        database.text("select pg_current_wal_insert_lsn()::text").await?.context("an LSN")?.parse()?;
    database.execute("insert into plain values (1)").await?;
    are_all_mirrored(&database, &mut clock, &client).await?;
    is_granted(&mut before, AMPLE_CREDIT_BYTES / 2).await?;
    let copy = before.until(ONLY, ("the difference", has_failed_or(has_all))).await?;
    ensure!(copy.error.is_none(), "{:?}", copy.error);
    ensure!(copy.differences[0].lsn > paused.0, "{:?}: it was held", copy.differences);
    must_equal_select(&copy.rows(0), &database, SELECTED).await.context("who paused before it")?;

    let mut message_count = 1;
    while !has_all(amid.copy(ONLY)?) {
        is_granted(&mut amid, 1).await?;
        let so_far = amid.copy(ONLY)?.credited_bytes;
        let copy = amid.until(ONLY, ("a part", has_failed_or(|copy| copy.credited_bytes > so_far))).await?;
        ensure!(copy.error.is_none(), "{:?}", copy.error);
        message_count += 1;
    }
    let copy = amid.copy(ONLY)?;
    ensure!(message_count > 10 && copy.differences.len() == 1, "{message_count}, {:?}", copy.differences);
    must_equal_select(&copy.rows(0), &database, SELECTED).await.context("who paused amid it")?;
    let no_file = || async { Ok((files_without_names(&server)? == 0).then_some(())) };
    within("the file to be gone", no_file).await?;

    // It goes on.
    let changes = "update item set body = 'new' where id between 150 and 160; delete from item where id = 170";
    database.execute(changes).await?;
    is_granted(&mut amid, AMPLE_CREDIT_BYTES / 2).await?;
    amid.until_caught_up(ONLY, &database).await?;
    must_equal_select(&amid.copy(ONLY)?.rows(0), &database, SELECTED).await.context("behind it")
}
