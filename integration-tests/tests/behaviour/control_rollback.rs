//! A control database that was restored from a backup does not know the numbers that were given since. None of them may be
//! given again with another meaning.

use anyhow::{Context, Result, ensure};
use tidegate_client::SourceState;
use tidegate_integration_tests::{Cluster, Database, Ended, History, Recorder, Row, Server, ServerConfig, Value};

/// A server that has captured tables `marker` and `noted`, but not yet `priced`.
async fn captured(name: &str) -> Result<(Database, Server)> {
    let database = Cluster::shared().await?.database(name).await?;
    database.create_marker().await?;
    database.execute("create table noted (id int primary key, note text)").await?;
    database.execute("create table priced (price numeric, id int primary key, sold bool)").await?;
    let server = Server::start(ServerConfig::of(database.url())).await?;
    database.mark("before").await?;
    database.execute("insert into noted values (1, 'first')").await?;
    database.mark("noted").await?;
    ensure!(Recorder::new(server.endpoint()).until_marker("noted").await? == Ended::Arrived);
    Ok((database, server))
}

/// The control database as it was when only `marker` had been captured.
async fn roll_back(database: &Database) -> Result<()> {
    database
        .execute(
            "delete from tidegate.row_type where table_name <> 'marker';
             delete from tidegate.field where table_name <> 'marker';
             update tidegate.source set last_row_type = (select max(row_type) from tidegate.row_type)",
        )
        .await
}

/// Writes to both tables, and reads everything from the start.
async fn whole_history(database: &Database, server: &Server) -> Result<History> {
    database.execute("insert into priced values (9.50, 2, true)").await?;
    database.execute("alter table noted rename note to remark").await?;
    database.execute("insert into noted values (3, 'second')").await?;
    database.mark("after").await?;
    let mut recorder = Recorder::new(server.endpoint());
    ensure!(recorder.until_marker("after").await? == Ended::Arrived);
    Ok(recorder.history().clone())
}

fn must_hold(history: &History, what: &str, columns: &[(&str, &str)]) -> Result<()> {
    let columns = columns.iter().map(|(name, value)| ((*name).to_owned(), Value::Text((*value).to_owned()))).collect();
    let row = Row::Full(columns);
    let mut changes = history.transactions().iter().flat_map(|transaction| &transaction.changes);
    ensure!(changes.any(|change| change.what == what && change.row == row), "no {what} with {row:?} in {history:?}");
    Ok(())
}

/// Every row has its own columns, and no number of a field of `noted` has two meanings.
async fn must_be_right(database: &Database, history: &History) -> Result<()> {
    must_hold(history, "insert public.noted", &[("id", "1"), ("note", "first")])?;
    must_hold(history, "insert public.noted", &[("id", "3"), ("remark", "second")])?;
    must_hold(history, "insert public.priced", &[("price", "9.50"), ("id", "2"), ("sold", "t")])?;
    // 1 and 2 were given before; the changelog proves whose they are, so that they may come back to these, and to no others.
    let others = "select string_agg(field || ' ' || column_name, ', ') from tidegate.field where table_name = 'noted'
        and (field = 1 and column_name <> 'id' or field = 2 and column_name not in ('note', 'remark'))";
    let others = database.text(others).await?;
    ensure!(others.is_none(), "given again: {others:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_not_given_again_after_a_rollback_while_down() -> Result<()> {
    let (database, mut server) = captured("control_rolled_back").await?;
    server.kill().await?;
    roll_back(&database).await?;
    server.launch().await?;
    let history = whole_history(&database, &server).await?;
    must_be_right(&database, &history).await
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_not_given_again_after_a_rollback_while_running() -> Result<()> {
    let (database, server) = captured("control_rolled_back_up").await?;
    roll_back(&database).await?;
    let history = whole_history(&database, &server).await?;
    must_be_right(&database, &history).await
}

/// The damage is done: the control database has given a number away that the changelog holds otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_with_two_meanings_stops_the_source_and_is_named() -> Result<()> {
    let (database, mut server) = captured("control_swapped").await?;
    server.kill().await?;
    database.execute("update tidegate.row_type set row_type = 3 - row_type + 100; update tidegate.row_type set row_type = row_type - 100").await?;
    database.mark("swapped").await?;
    server.launch().await?;
    let status = server.until_state(SourceState::Stopped).await?;
    for word in ["row type", "control database", "marker"] {
        ensure!(status.detail.contains(word), "'{}' does not mention {word}", status.detail);
    }
    // What is stored is served as it was.
    let mut recorder = Recorder::new(server.endpoint());
    ensure!(recorder.until_marker("noted").await? == Ended::Arrived);
    must_hold(recorder.history(), "insert public.noted", &[("id", "1"), ("note", "first")]).context("what was stored")
}
