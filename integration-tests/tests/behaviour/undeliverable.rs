//! A transaction that cannot be delivered is named. It stops the source, or is left out with a reset; all that was committed
//! before and after it is delivered once.

use anyhow::{Context, Result, bail, ensure};
use tidegate_client::{ResetReason, SourceState};
use tidegate_integration_tests::{
    Cluster, Database, Ended, OnDiscontinuity, Recorder, Row, Server, ServerConfig, Value, within,
};

/// A database with a captured row in `marker`, and with a table `note`.
struct Case {
    database: Database,
    server: Server,
    recorder: Recorder,
}

impl Case {
    async fn start(database: Database, policy: OnDiscontinuity) -> Result<Self> {
        database.create_marker().await?;
        database.execute("create table note (id int primary key, body text)").await?;
        database.execute("create table image (id int primary key, body bytea)").await?;
        database.execute("alter table image alter body set storage external").await?;
        let config = ServerConfig { on_discontinuity: policy, ..ServerConfig::of(database.url()) };
        let server = Server::start(config).await?;
        let mut recorder = Recorder::new(server.endpoint());
        database.mark("first").await?;
        ensure!(recorder.until_marker("first").await? == Ended::Arrived);
        Ok(Case { database, server, recorder })
    }

    /// Commits a row, the bad transaction, and another row.
    async fn write(&self, bad: &str) -> Result<()> {
        self.database.mark("before").await?;
        self.database.execute(bad).await?;
        self.database.mark("after").await
    }

    /// The subscriber has all that was before, and is told why there is no more of this history.
    async fn must_reset(&mut self, words: &[&str]) -> Result<()> {
        let Ended::Reset(reason, detail) = self.recorder.until_marker("never written").await? else {
            bail!("no reset");
        };
        ensure!(matches!(reason, ResetReason::SourceDiscontinued | ResetReason::EpochChanged), "{reason:?}");
        for word in words {
            ensure!(detail.contains(word), "'{detail}' does not mention {word}");
        }
        ensure!(markers(&self.recorder) == ["first", "before"], "{:?}", markers(&self.recorder));
        Ok(())
    }

    /// The new history has all that came after, once, and lasts.
    async fn must_go_on(&mut self) -> Result<()> {
        let mut fresh = Recorder::new(self.server.endpoint());
        within("the new history", || async {
            let status = self.server.status().await?;
            Ok((status.state() == SourceState::Streaming).then_some(()))
        })
        .await?;
        ensure!(fresh.until_marker("after").await? == Ended::Arrived);
        let epoch = self.server.status().await?.epoch;
        self.server.kill().await?;
        self.database.mark("last").await?;
        self.server.launch().await?;
        ensure!(fresh.until_marker("last").await? == Ended::Arrived);
        ensure!(markers(&fresh) == ["after", "last"], "{:?}", markers(&fresh));
        ensure!(fresh.history().change_count() == 2, "a part of what was left out");
        ensure!(self.server.status().await?.epoch == epoch, "another epoch");
        Ok(())
    }

    /// The source waits for a person, who is told where and what to do; what was before is there.
    async fn must_stop(&mut self, words: &[&str]) -> Result<()> {
        let status = self.server.until_state(SourceState::Stopped).await?;
        for word in words.iter().chain(&["transaction ", "on_discontinuity", "(attempt 1)"]) {
            ensure!(status.detail.contains(word), "'{}' does not mention {word}", status.detail);
        }
        ensure!(self.recorder.until_marker("before").await? == Ended::Arrived);
        Ok(())
    }

    /// The person decides to go on without it.
    async fn go_on_without(&mut self) -> Result<()> {
        self.server.terminate().await?;
        self.server.config_mut().on_discontinuity = OnDiscontinuity::Reset;
        self.server.launch().await
    }
}

/// The names of the marker rows received, in order.
fn markers(recorder: &Recorder) -> Vec<String> {
    let transactions = recorder.history().transactions().iter();
    let inserted = transactions.flat_map(|transaction| &transaction.changes).filter_map(|change| match &change.row {
        Row::Full(columns) if change.what == "insert public.marker" => Some(columns),
        Row::Full(_) | Row::Key(_) | Row::None => None,
    });
    inserted
        .filter_map(|columns| match &columns[0].1 {
            Value::Text(name) => Some(name.clone()),
            Value::Null | Value::Unchanged => None,
        })
        .collect()
}

/// A transaction with a row that is fine before the one that is not UTF-8.
const NOT_UTF8: &str = "begin; insert into note values (1, 'fine'); insert into note values (2, E'caf\\xe9'); commit";
const ENCODING: &[&str] = &["follows one of public.note", "database's encoding", "22021"];

async fn sql_ascii(name: &str) -> Result<Database> {
    Cluster::shared().await?.database_in(name, "SQL_ASCII").await
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_resets_and_is_left_out() -> Result<()> {
    let mut case = Case::start(sql_ascii("ascii_reset").await?, OnDiscontinuity::Reset).await?;
    case.write(NOT_UTF8).await?;
    case.must_reset(ENCODING).await?;
    // The slot may not have been told yet where the new history starts.
    case.server.kill().await?;
    case.server.launch().await?;
    case.must_go_on().await
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf8_stops_where_told_to_and_is_said_to_be_the_same() -> Result<()> {
    let mut case = Case::start(sql_ascii("ascii_stop").await?, OnDiscontinuity::Stop).await?;
    case.write(NOT_UTF8).await?;
    case.must_stop(ENCODING).await?;
    let again = within("another attempt", || async {
        let status = case.server.status().await?;
        ensure!(status.state() == SourceState::Stopped, "it is said to be {:?}", status.state());
        Ok(status.detail.contains("(attempt 2)").then_some(()))
    });
    again.await?;
    case.go_on_without().await?;
    let Ended::Reset(ResetReason::EpochChanged | ResetReason::SourceDiscontinued, detail) =
        case.recorder.until_marker("never written").await?
    else {
        bail!("no reset");
    };
    ensure!(ENCODING.iter().all(|word| detail.contains(word)), "{detail}");
    case.must_go_on().await
}

/// Rows enough for PostgreSQL to send them before the commit.
const MANY: &str = "insert into note select n, repeat('x', 1000) from generate_series(10, 400) n";

#[tokio::test(flavor = "multi_thread")]
async fn in_a_transaction_that_is_sent_in_progress_it_is_found_too() -> Result<()> {
    let database = sql_ascii("ascii_streamed").await?;
    database.execute("alter database ascii_streamed set logical_decoding_work_mem = '64kB'").await?;
    let mut case = Case::start(database, OnDiscontinuity::Reset).await?;
    let bad = format!("begin; {MANY}; insert into note values (2, E'caf\\xe9'); update note set id = -id; commit");
    case.write(&bad).await?;
    case.must_reset(ENCODING).await?;
    case.must_go_on().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rolled_back_it_harms_nobody() -> Result<()> {
    let database = sql_ascii("ascii_rolled_back").await?;
    database.execute("alter database ascii_rolled_back set logical_decoding_work_mem = '64kB'").await?;
    let mut case = Case::start(database, OnDiscontinuity::Stop).await?;
    let cluster = Cluster::shared().await?;
    let walsender = cluster.walsender(case.server.slot(), None).await?;
    let other = case.database.another().await?;
    other.execute(&format!("begin; insert into note values (2, E'caf\\xe9'); {MANY}")).await?;
    // It has been sent, and refused.
    cluster.walsender(case.server.slot(), Some(walsender)).await?;
    other.execute("rollback").await?;
    case.database.mark("after").await?;
    ensure!(case.recorder.until_marker("after").await? == Ended::Arrived);
    ensure!(markers(&case.recorder) == ["first", "after"]);
    case.server.streaming().await?;
    Ok(())
}

/// What PostgreSQL sends as it is, and cannot be encoded: text that has been smuggled past its checks.
#[tokio::test(flavor = "multi_thread")]
async fn invalid_text_in_a_utf8_database_resets_and_is_left_out() -> Result<()> {
    let database = Cluster::shared().await?.database("smuggled").await?;
    database.execute("create cast (bytea as text) without function").await?;
    let mut case = Case::start(database, OnDiscontinuity::Reset).await?;
    case.write("insert into note values (1, 'fine'), (2, '\\xff'::bytea::text)").await?;
    case.must_reset(&["in a row of public.note", "body", "not UTF-8"]).await?;
    case.must_go_on().await
}

/// Nor can PostgreSQL convert this: byte 0x81 means nothing in WIN1252.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_postgresql_cannot_convert_resets_and_is_left_out() -> Result<()> {
    let database = Cluster::shared().await?.database_in("win1252", "WIN1252").await?;
    let mut case = Case::start(database, OnDiscontinuity::Reset).await?;
    case.write("insert into note values (1, chr(129))").await?;
    case.must_reset(&["public.note", "22P05"]).await?;
    case.must_go_on().await
}

/// 600 MiB, which are 1.2 GiB of text. Its own server, since this is much work for one that is shared.
async fn with_a_huge_row(policy: OnDiscontinuity) -> Result<(Cluster, Case)> {
    let cluster =
        Cluster::start(&[("max_wal_size", "4GB"), ("synchronous_commit", "off"), ("autovacuum", "off")]).await?;
    let case = Case::start(cluster.database("huge").await?, policy).await?;
    case.write("insert into image select 1, convert_to(repeat('x', 600 << 20), 'UTF8')").await?;
    Ok((cluster, case))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_postgresqls_limit_resets_and_is_left_out() -> Result<()> {
    let (_cluster, mut case) = with_a_huge_row(OnDiscontinuity::Reset).await?;
    case.must_reset(&["public.image", "1 GiB"]).await?;
    case.must_go_on().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_postgresqls_limit_stops_where_told_to() -> Result<()> {
    let (cluster, mut case) = with_a_huge_row(OnDiscontinuity::Stop).await?;
    let xid = "select xmin::text from image";
    let postgres = Database::connect(&cluster.url("huge")).await?;
    let xid = format!("transaction {},", postgres.text(xid).await?.context("the row is there")?);
    case.must_stop(&["public.image", "1 GiB", &xid]).await
}
