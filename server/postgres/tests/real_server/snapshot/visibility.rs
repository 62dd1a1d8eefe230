//! What a chunk sees, where the WAL stands then, and who may have written before.

use std::time::Duration;

use tidegate_model::{FullXid, Lsn};
use tidegate_postgres::{
    Session,
    snapshot::{ReadLimits, SharedSnapshot, current_visibility, still_running, wait_for_writers, waits_for_writers},
};

use super::{after, numbers, plan, read, reader};
use crate::launcher::Server;

const TABLE: &str = "CREATE TABLE public.t (n int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE public.t;";

async fn value<T: std::str::FromStr<Err: std::fmt::Debug>>(session: &Session, expression: &str) -> T {
    let row = session.client().query_one(&format!("SELECT ({expression})::text"), &[]).await.expect("a value");
    row.get::<_, String>(0).parse().expect("of its type")
}

#[tokio::test]
async fn an_open_transaction_is_hidden() {
    let server = Server::start(&[]);
    server.sql(&format!("{TABLE} INSERT INTO public.t VALUES (1)")).await;
    let open = server.session().await;
    open.client().batch_execute("BEGIN; INSERT INTO public.t VALUES (2)").await.expect("an insert");
    let open_xid = FullXid(value(&open, "pg_current_xact_id()").await);
    server.sql("INSERT INTO public.t VALUES (3)").await;
    let observer = server.session().await;
    let seen_xid: u64 = value(&observer, "SELECT xmin FROM public.t WHERE n = 3").await;

    let plan = plan(&observer, "t").await;
    let mut reader = reader(&server);
    let (rows, facts) = read(&mut reader, &plan, &after(None, 10)).await.expect("a chunk");
    assert_eq!(numbers(&rows), [1, 3]);
    assert!(!facts.visibility.sees(open_xid) && facts.visibility.sees(FullXid(seen_xid)));
    let now = current_visibility(&observer).await.expect("a visibility");
    assert!(!now.sees(open_xid) && now.sees(FullXid(seen_xid)));

    open.client().batch_execute("COMMIT").await.expect("a commit");
    let (rows, facts) = read(&mut reader, &plan, &after(None, 10)).await.expect("a chunk");
    assert_eq!(numbers(&rows), [1, 2, 3]);
    assert!(facts.visibility.sees(open_xid));
}

#[tokio::test]
async fn a_watermark_is_an_end_of_a_record() {
    let server = Server::start(&["checkpoint_timeout = 1h", "autovacuum = off", "bgwriter_lru_maxpages = 0"]);
    server.sql(TABLE).await;
    let session = server.session().await;
    let plan = plan(&session, "t").await;
    let mut reader = reader(&server);
    read(&mut reader, &plan, &after(None, 1)).await.expect("a chunk");
    // Nothing else is inserted into the new segment before the chunk is read, or the test is repeated.
    let mut checked = false;
    for _ in 0..20 {
        session.client().batch_execute("SELECT pg_switch_wal()").await.expect("a new segment");
        let before: Lsn = value(&session, "pg_current_wal_insert_lsn()").await;
        let (_, facts) = read(&mut reader, &plan, &after(None, 1)).await.expect("a chunk");
        let behind: Lsn = value(&session, "pg_current_wal_insert_lsn()").await;
        if before == behind && before.0 % (16 << 20) == 40 {
            assert_eq!(facts.high_watermark, Lsn(before.0 - 40));
            checked = true;
            break;
        }
        session
            .client()
            .batch_execute("INSERT INTO public.t SELECT coalesce(max(n), 0) + 1 FROM public.t")
            .await
            .expect("a row");
    }
    assert!(checked, "the server never was quiet");
    server.sql("INSERT INTO public.t VALUES (-1)").await;
    let committed: Lsn = value(&session, "pg_current_wal_flush_lsn()").await;
    let (_, facts) = read(&mut reader, &plan, &after(None, 1)).await.expect("a chunk");
    assert!(facts.high_watermark >= committed);
}

#[tokio::test]
async fn writers_are_waited_for_also_when_they_are_prepared_meanwhile() {
    let server = Server::start(&["max_prepared_transactions = 4"]);
    server
        .sql(
            "CREATE TABLE public.r (n int) PARTITION BY RANGE (n); CREATE TABLE public.leaf PARTITION OF public.r FOR VALUES FROM (0) TO (9);
             CREATE TABLE public.leaf_2 PARTITION OF public.r FOR VALUES FROM (9) TO (99); CREATE TABLE public.other (n int)",
        )
        .await;
    let session = server.session().await;
    let writers = async || {
        let oid: u32 = value(&session, "SELECT oid FROM pg_class WHERE relname = 'leaf'").await;
        waits_for_writers(&session, &[oid]).await.expect("writers")
    };
    let sessions = [server.session().await, server.session().await, server.session().await, server.session().await];
    let run = async |at: usize, sql: &str| sessions[at].client().batch_execute(sql).await.expect("statements");
    run(0, "BEGIN; SELECT FROM public.r; INSERT INTO public.other VALUES (1)").await;
    assert_eq!(writers().await, [], "readers, and writers elsewhere");
    run(1, "BEGIN; INSERT INTO public.r VALUES (1)").await;
    run(2, "BEGIN; INSERT INTO public.r VALUES (2); PREPARE TRANSACTION 'two'").await;
    run(3, "BEGIN; INSERT INTO public.leaf_2 VALUES (20)").await;
    let found = writers().await;
    assert_eq!(found.iter().filter(|writer| writer.pid.is_none()).count(), 1, "{found:?}");
    assert_eq!(found.len(), 3, "the root, its leaves, and the prepared one: {found:?}");
    assert!(found.iter().all(|writer| !writer.xids.is_empty()), "{found:?}");

    run(3, "ROLLBACK").await;
    run(1, "PREPARE TRANSACTION 'one'").await;
    assert_eq!(still_running(&session, &found).await.expect("writers").len(), 2, "{found:?}");
    run(2, "COMMIT PREPARED 'two'").await;
    run(2, "BEGIN; INSERT INTO public.r VALUES (3)").await;
    let left = still_running(&session, &found).await.expect("writers");
    assert_eq!(left.len(), 1, "a later one is not waited for: {left:?}");
    let waiting = wait_for_writers(&session, left, Duration::from_millis(5));
    let (waited, ()) = tokio::join!(waiting, run(1, "ROLLBACK PREPARED 'one'"));
    waited.expect("no error");
}

#[tokio::test]
async fn the_holder_of_a_shared_snapshot_delays_no_schema_change() {
    let server = Server::start(&[]);
    server.sql(TABLE).await;
    let session = server.session().await;
    let plan = plan(&session, "t").await;
    let shared = SharedSnapshot::open(&server.config(), &ReadLimits::default(), &plan).await.expect("a snapshot");
    session
        .client()
        .batch_execute("SET lock_timeout = 1000; ALTER TABLE public.t ADD COLUMN v int")
        .await
        .expect("no wait");
    shared.close().await.expect("an end in good order");
}
