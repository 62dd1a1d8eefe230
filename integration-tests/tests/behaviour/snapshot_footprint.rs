//! What a long snapshot costs: a server killed in its midst reads on where it was, the rate is kept, and PostgreSQL sees short
//! transactions, no lock but ACCESS SHARE, and no write.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tidegate_client::Start;
use tidegate_integration_tests::{
    Arrival, Cluster, Copier, DEADLINE, Server, ServerConfig, held_by_postgres, must_equal, within,
};

const ROWS: u64 = 300_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_large_table_is_light_and_is_read_on_after_a_crash() -> Result<()> {
    let cluster = Cluster::start(&[]).await?;
    let database = cluster.database("large").await?;
    database
        .execute(&format!(
            "create table large (id bigint primary key, filler text); insert into large select n, md5(n::text) from \
             generate_series(1, {ROWS}) n; analyze large"
        ))
        .await?;
    let mut config = ServerConfig::of(database.url());
    config.source_lines.push("snapshots: {readers: 1, rows_per_second: 40000}".to_owned());
    let mut server = Server::start(config).await?;
    let written = "select (n_tup_ins + n_tup_upd + n_tup_del)::text from pg_stat_user_tables where relname = 'large'";
    // Statistics come some time after what they count.
    let before = Some(ROWS.to_string());
    within("the statistics to count the rows", || async {
        Ok((database.another().await?.text(written).await? == before).then_some(()))
    })
    .await?;
    // An xmin is held back by a transaction alone, and none is older than a chunk takes.
    let ours = "from pg_stat_activity a left join pg_locks l on l.pid = a.pid and l.locktype = 'relation' and \
                l.relation = 'large'::regclass where a.application_name = 'tidegate' and backend_type = 'client backend'";
    let heavy = format!(
        "select string_agg(concat_ws(' ', l.mode, a.backend_xmin, now() - xact_start), ', ') {ours} and \
         (l.mode <> 'AccessShareLock' or clock_timestamp() - xact_start > interval '5 s' or \
         (a.backend_xmin is not null and a.xact_start is null))"
    );
    let mut copier = Copier::new(&server.endpoint(), &["large"], Start::Snapshot);
    let (start, mut killed) = (Instant::now(), false);
    let receiving = async {
        loop {
            match copier.next().await? {
                Arrival::Ended(_) => return anyhow::Ok(()),
                Arrival::Reset(reason, detail) => anyhow::bail!("{reason:?}: {detail}"),
                Arrival::Begun(_) | Arrival::Committed(_) | Arrival::Abandoned(..) | Arrival::Progress => {}
            }
            if let Some(heavy) = database.text(&heavy).await? {
                anyhow::bail!("a reader weighs on PostgreSQL: {heavy}");
            }
            if !killed && copier.replica.read_count > ROWS / 5 {
                ensure!(copier.replica.read_count < ROWS, "it was over too soon");
                server.kill().await?;
                server.launch().await?;
                killed = true;
            }
        }
    };
    tokio::time::timeout(DEADLINE, receiving).await.context("the snapshot does not end")??;
    ensure!(killed, "it was over too soon");
    ensure!(start.elapsed().as_secs() >= 3, "{ROWS} rows at 40,000 a second took {:?}", start.elapsed());
    // A chunk is durable before a subscriber receives it.
    ensure!(copier.replica.read_count == ROWS, "{} rows were received of {ROWS}", copier.replica.read_count);
    ensure!(database.another().await?.text(written).await? == before, "a snapshot has written");
    let theirs = held_by_postgres(&database, "large", &["id"]).await?;
    must_equal("large", &copier.replica.table("public.large"), &theirs)
}
