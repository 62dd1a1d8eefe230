//! Tables that cannot be read, and tables that change while they are.

use std::time::Duration;

use tidegate_model::{Retry, TableName};
use tidegate_postgres::snapshot::{
    Chunk, ChunkReader, Cursor, FingerprintQuery, ReadLimits, SnapshotReadError, Unsupported, held_table_plan,
    table_fingerprint, table_plan,
};

use super::{after, name, numbers, plan, read, read_all, reader};
use crate::launcher::Server;

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_the_reason() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TABLE public.t (n int PRIMARY KEY); CREATE VIEW public.v AS SELECT 1; CREATE UNLOGGED TABLE public.u (n int PRIMARY KEY);
             CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE public.f (n int) SERVER s;
             CREATE TABLE public.r (n int) PARTITION BY RANGE (n); CREATE PUBLICATION pub FOR TABLE public.r WITH (publish_via_partition_root);
             CREATE FOREIGN TABLE public.far PARTITION OF public.r FOR VALUES FROM (0) TO (9) SERVER s",
        )
        .await;
    let session = server.session().await;
    let reason = async |table: &str| match table_plan(&session, "pub", &name(table)).await {
        Err(SnapshotReadError::Unsupported { reason, .. }) => reason,
        other => panic!("{table}: {other:?}"),
    };
    assert_eq!(reason("v").await, Unsupported::NotATable);
    assert_eq!(reason("u").await, Unsupported::Unlogged);
    assert_eq!(reason("f").await, Unsupported::Foreign);
    assert_eq!(reason("t").await, Unsupported::NotPublished { publication: "pub".to_owned() });
    assert_eq!(reason("r").await, Unsupported::Partition { partition: TableName::new("public", "far") });
    let missing = table_plan(&session, "pub", &name("nowhere")).await.expect_err("no table");
    assert!(matches!(missing, SnapshotReadError::TableMissing { .. }), "{missing:?}");
    let missing = table_plan(&session, "nothing", &name("t")).await.expect_err("no publication");
    assert!(matches!(missing, SnapshotReadError::PublicationMissing { .. }), "{missing:?}");
}

#[tokio::test]
async fn rows_that_the_role_may_not_see_are_an_error() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TABLE public.t (n int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE public.t; INSERT INTO public.t VALUES (1);
             ALTER TABLE public.t ENABLE ROW LEVEL SECURITY; CREATE ROLE limited LOGIN",
        )
        .await;
    let plan = plan(&server.session().await, "t").await;
    let mut config = server.config();
    config.user = "limited".to_owned();
    let mut reader = ChunkReader::new(config, ReadLimits::default());
    let forbidden = read(&mut reader, &plan, &after(None, 1)).await.expect_err("no privilege");
    assert!(matches!(forbidden, SnapshotReadError::Forbidden { .. }), "{forbidden:?}");
    server.sql("GRANT SELECT ON public.t TO limited").await;
    let hidden = read(&mut reader, &plan, &after(None, 1)).await.expect_err("hidden rows");
    assert!(matches!(hidden, SnapshotReadError::RowSecurity { .. }), "{hidden:?}");
    assert!(hidden.to_string().contains("BYPASSRLS"));
    server.sql("ALTER ROLE limited BYPASSRLS").await;
    assert_eq!(read(&mut reader, &plan, &after(None, 5)).await.expect("a chunk").1.row_count, 1);
}

#[tokio::test]
async fn a_table_that_vanishes_or_is_locked_is_named() {
    let server = Server::start(&[]);
    server.sql("CREATE TABLE public.t (n int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE public.t; INSERT INTO public.t VALUES (1)").await;
    let plan = plan(&server.session().await, "t").await;
    let limits = ReadLimits { lock_timeout: Duration::from_millis(50), ..ReadLimits::default() };
    let mut reader = ChunkReader::new(server.config(), limits);
    let altering = server.session().await;
    altering.client().batch_execute("BEGIN; ALTER TABLE public.t ADD COLUMN v int").await.expect("a lock");
    let locked = read(&mut reader, &plan, &after(None, 1)).await.expect_err("locked");
    assert!(matches!(locked, SnapshotReadError::LockTimeout { .. }), "{locked:?}");
    assert!(matches!(locked.retry(), Retry::After(_)));
    altering.client().batch_execute("ROLLBACK").await.expect("no lock");
    assert_eq!(numbers(&read_all(&mut reader, &plan, 1).await), [1]);
    // No transaction of the reader's is left that would keep the table.
    server.sql("SET lock_timeout = 5000; DROP TABLE public.t").await;
    let vanished = read(&mut reader, &plan, &after(None, 1)).await.expect_err("dropped");
    assert!(matches!(vanished, SnapshotReadError::TableMissing { .. }), "{vanished:?}");
    server.sql("CREATE TABLE public.t (n int PRIMARY KEY)").await;
    let another = read(&mut reader, &plan, &after(None, 1)).await.expect_err("another incarnation");
    assert!(matches!(another, SnapshotReadError::TableMissing { .. }), "{another:?}");
}

#[tokio::test]
async fn a_table_that_is_truncated_all_the_time_has_a_plan() {
    let server = Server::start(&[]);
    server.sql("CREATE TABLE public.t (n int PRIMARY KEY); CREATE PUBLICATION pub FOR TABLE public.t").await;
    let session = server.session().await;
    let truncating = server.session().await;
    let truncate = async {
        loop {
            truncating.client().batch_execute("TRUNCATE public.t").await.expect("an empty table");
        }
    };
    let plan = async {
        for _ in 0..20 {
            held_table_plan(&session, "pub", &name("t")).await.expect("a plan");
        }
    };
    tokio::select! {
        () = truncate => unreachable!("it goes on"),
        () = plan => {}
    }
    // Nothing of it is left behind, nor of one that fails.
    server
        .sql(
            "SET lock_timeout = 5000; ALTER TABLE public.t ADD COLUMN v int; ALTER PUBLICATION pub DROP TABLE public.t",
        )
        .await;
    let failed = held_table_plan(&session, "pub", &name("t")).await.expect_err("not published");
    assert!(matches!(failed, SnapshotReadError::Unsupported { .. }), "{failed:?}");
    server.sql("SET lock_timeout = 5000; DROP TABLE public.t").await;
}

#[tokio::test]
async fn a_reading_that_is_given_up_leaves_no_transaction() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TABLE public.t (n int PRIMARY KEY, v text); CREATE PUBLICATION pub FOR TABLE public.t;
              INSERT INTO public.t SELECT n, repeat('x', 10000) FROM generate_series(1, 2000) n",
        )
        .await;
    let plan = plan(&server.session().await, "t").await;
    let mut reader = reader(&server);
    let given_up = reader
        .read(Chunk { plan: &plan, range: &after(None, 2000), shared: None }, |_| {
            Err(SnapshotReadError::Unexpected { table: name("t"), problem: "the test gives up" })
        })
        .await;
    assert!(given_up.is_err());
    // The lock ends with the connection, which PostgreSQL notices when it writes on.
    server.sql("SET lock_timeout = 10000; ALTER TABLE public.t ADD COLUMN w int").await;
}

#[tokio::test]
async fn a_cursor_of_another_key_is_refused() {
    let server = Server::start(&[]);
    server
        .sql("CREATE TABLE public.t (n int PRIMARY KEY, m text UNIQUE NOT NULL); CREATE PUBLICATION pub FOR TABLE public.t;
              INSERT INTO public.t SELECT n, n FROM generate_series(1, 9) n")
        .await;
    let session = server.session().await;
    let (mut reader, before) = (reader(&server), plan(&session, "t").await);
    let cursor = read(&mut reader, &before, &after(None, 3)).await.expect("a chunk").1.next;
    server.sql("ALTER TABLE public.t REPLICA IDENTITY USING INDEX t_m_key").await;
    let now = plan(&session, "t").await;
    let refused = read(&mut reader, &now, &after(cursor, 3)).await.expect_err("another order");
    assert!(matches!(refused, SnapshotReadError::Cursor { .. }) && refused.retry() == Retry::Reset, "{refused:?}");
    assert!(Cursor::from_bytes(b"\x01").is_err());
}

/// Statements after each of which the fingerprint is another one.
const CHANGES: &[&str] = &[
    "ALTER TABLE public.t ADD COLUMN added int DEFAULT 7",
    "ALTER TABLE public.t ALTER b TYPE varchar(99)",
    "ALTER TABLE public.t RENAME b TO c",
    "ALTER TABLE public.t DROP COLUMN added",
    "ALTER TYPE public.mood RENAME VALUE 'ok' TO 'fine'",
    "ALTER TYPE public.pair ADD ATTRIBUTE z int",
    "ALTER TABLE public.t REPLICA IDENTITY FULL",
    "ALTER TABLE public.t DROP CONSTRAINT t_pkey",
    "TRUNCATE public.t",
    "ALTER TABLE public.t SET SCHEMA s",
    "ALTER TABLE s.t RENAME TO u",
    "ALTER PUBLICATION pub SET (publish = 'insert')",
    "ALTER PUBLICATION pub SET (publish_via_partition_root = false)",
    "ALTER PUBLICATION pub DROP TABLE s.u",
    "DROP PUBLICATION pub",
];

/// The same for a partitioned table.
const PARTITION_CHANGES: &[&str] = &[
    "CREATE TABLE public.p2 (n int NOT NULL, v int); ALTER TABLE public.p ATTACH PARTITION public.p2 FOR VALUES FROM (9) TO (99)",
    "TRUNCATE public.p2",
    "BEGIN; ALTER TABLE public.p DETACH PARTITION public.p2; ALTER TABLE public.p ATTACH PARTITION public.p2 FOR VALUES FROM (9) TO (99); COMMIT",
    "ALTER TABLE public.p ADD COLUMN w int DEFAULT 3",
    "ALTER TABLE public.p DETACH PARTITION public.p2",
    "DROP TABLE public.p1",
];

#[tokio::test]
async fn whatever_changes_values_in_silence_changes_the_fingerprint() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE SCHEMA s; CREATE TYPE public.mood AS ENUM ('ok'); CREATE TYPE public.pair AS (m public.mood[]);
             CREATE DOMAIN public.d AS public.pair;
             CREATE TABLE public.t (a int PRIMARY KEY, b varchar(9), p public.d, g int GENERATED ALWAYS AS (a + 1) STORED);
             CREATE TABLE public.p (n int, v int) PARTITION BY RANGE (n);
             CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (9);
             CREATE TABLE public.other (n int); CREATE PUBLICATION pub FOR TABLE public.t, public.p WITH (publish_via_partition_root)",
        )
        .await;
    let session = server.session().await;
    if session.server_version() >= 150_000 {
        server.sql("ALTER PUBLICATION pub SET TABLE public.t WHERE (a > 1), public.p").await;
    }
    for (table, changes) in [("p", PARTITION_CHANGES), ("t", CHANGES)] {
        let plan = plan(&session, table).await;
        let fingerprint =
            async || table_fingerprint(&session, "pub", plan.relation.oid, &name(table)).await.expect("one");
        let mut before = fingerprint().await;
        let other = session.client().query_one("SELECT 'public.other'::regclass::oid", &[]).await.expect("one").get(0);
        server
            .sql(
                "INSERT INTO public.other VALUES (1); ALTER TABLE public.other ADD COLUMN IF NOT EXISTS m int; ANALYZE",
            )
            .await;
        assert_eq!(before, fingerprint().await, "nothing of the table has changed");
        for change in changes {
            session.client().batch_execute(change).await.unwrap_or_else(|error| panic!("{change}: {error:?}"));
            let after = fingerprint().await;
            assert_ne!(before, after, "{change}");
            let all = FingerprintQuery::prepare(&session).await.expect("prepared");
            let all = all.read(&session, "pub", &[1, plan.relation.oid, other]).await.expect("read");
            assert_eq!((all.len(), all.get(&plan.relation.oid)), (2, Some(&after)), "{change}");
            before = after;
        }
    }
}

#[tokio::test]
async fn what_changes_amid_a_chunk_without_a_lock_voids_it() {
    let server = Server::start(&[]);
    server
        .sql("CREATE TYPE public.mood AS ENUM ('ok', 'bad'); CREATE TABLE public.t (n int PRIMARY KEY, m public.mood);
              CREATE PUBLICATION pub FOR TABLE public.t; INSERT INTO public.t SELECT n, 'ok' FROM generate_series(1, 9) n")
        .await;
    let session = server.session().await;
    let (mut reader, before) = (reader(&server), plan(&session, "t").await);
    let rename = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(server.sql("ALTER TYPE public.mood RENAME VALUE 'ok' TO 'fine'"));
    };
    let mut row_count = 0;
    let range = after(None, 9);
    let voided = reader
        .read(Chunk { plan: &before, range: &range, shared: None }, |_| {
            row_count += 1;
            if row_count == 1 {
                std::thread::scope(|threads| threads.spawn(rename).join().expect("the label is renamed"));
            }
            Ok::<_, SnapshotReadError>(())
        })
        .await
        .expect_err("the rows' texts are of either kind");
    assert!(matches!(voided, SnapshotReadError::DefinitionChanged { .. }), "{voided:?}");
    let now = plan(&session, "t").await;
    assert_eq!(
        numbers_of_first(&read(&mut reader, &now, &range).await.expect("a chunk").0),
        (1..10).collect::<Vec<_>>()
    );
}

fn numbers_of_first(rows: &[super::Row]) -> Vec<u32> {
    rows.iter().map(|row| row[0].as_deref().expect("a value").parse().expect("a number")).collect()
}

#[tokio::test]
async fn a_schema_that_is_published_outdoes_a_row_filter() {
    let server = Server::start(&[]);
    let session = server.session().await;
    if session.server_version() < 150_000 {
        return eprintln!("14 publishes no schemas");
    }
    server
        .sql(
            "CREATE TABLE public.t (n int PRIMARY KEY); INSERT INTO public.t SELECT generate_series(0, 9);
             CREATE PUBLICATION pub FOR TABLE public.t WHERE (n > 4)",
        )
        .await;
    let (mut reader, filtered) = (reader(&server), plan(&session, "t").await);
    assert_eq!(numbers(&read_all(&mut reader, &filtered, 3).await), [5, 6, 7, 8, 9]);
    server.sql("ALTER PUBLICATION pub ADD TABLES IN SCHEMA public").await;
    let changed = read(&mut reader, &filtered, &after(None, 3)).await.expect_err("published otherwise");
    assert!(matches!(changed, SnapshotReadError::DefinitionChanged { .. }), "{changed:?}");
    let whole = plan(&session, "t").await;
    assert_eq!((whole.row_filter.as_deref(), read_all(&mut reader, &whole, 3).await.len()), (None, 10));
}
