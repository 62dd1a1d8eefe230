//! A row that is read has, byte for byte, the values that the stream would have.

use tidegate_model::{Lsn, Part, ReplicaIdentity, TableName};
use tidegate_postgres::{
    Frame, ReplicationConnection, StreamOptions,
    pgoutput::{Decoder, Message, TupleValue},
    protocol_version,
    snapshot::{
        ChunkReader, MalformedKey, PlanKind, Range, ReadLimits, SharedSnapshot, SnapshotReadError, TablePlan,
        check_part, malformed_key, part_columns, table_plan,
    },
};

use super::{Row, after, name, numbers, plan, read, read_all, read_shared, reader};
use crate::launcher::Server;

/// What the stream says of the tables and rows that one statement inserts.
async fn streamed(server: &Server, insert: &str) -> Vec<(tidegate_model::Relation, Vec<Row>)> {
    let mut connection = ReplicationConnection::connect(&server.config()).await.expect("a replication connection");
    let version = connection.server_version();
    let start_lsn = connection.create_slot("s", false).await.expect("a slot");
    let options = StreamOptions { slot: "s".to_owned(), publication: "pub".to_owned(), start_lsn, in_progress: true };
    let (mut reader, _writer) = connection.start(&options).await.expect("a stream");
    server.sql(insert).await;
    let (mut decoder, mut tables) = (Decoder::new(protocol_version(version)), Vec::new());
    loop {
        for frame in reader.read().await.expect("a stream that lives") {
            let Frame::XLogData { data, .. } = frame else { continue };
            match decoder.decode(data).expect("a message") {
                Message::Relation { relation, .. } => tables.push((relation, Vec::new())),
                Message::Insert { new, relation_oid, .. } => {
                    let value = |value| match value {
                        TupleValue::Text(text) => Some(String::from_utf8(text.to_vec()).expect("UTF-8")),
                        TupleValue::Null | TupleValue::Unchanged | TupleValue::Binary(_) => None,
                    };
                    let table = tables.iter_mut().find(|(relation, _)| relation.oid == relation_oid);
                    table.expect("announced before").1.push(new.iter().map(value).collect());
                }
                Message::Commit { .. } => return tables,
                _ => {}
            }
        }
    }
}

/// One column of nearly every type, with values that have more than one way to be written.
const TYPES: &str = "
    CREATE SCHEMA ext; CREATE TYPE public.mood AS ENUM ('ok', 'so so'); CREATE TYPE public.pair AS (a int, b text);
    CREATE DOMAIN public.label AS varchar(20); CREATE TYPE public.span AS RANGE (subtype = float8);
    CREATE TABLE public.t (
        id int PRIMARY KEY, a bool, b smallint, c bigint, d numeric, e numeric(10,3), f real, g float8, h money, i text, j varchar(9),
        k char(5), l \"char\", m name, n bytea, o date, p time, q timetz, r timestamp, s timestamptz(3), t interval, u uuid, v json,
        w jsonb, x xml, y inet, z cidr, aa macaddr, ab point, ac box[], ad int[], ae text[], af public.mood, ag public.pair,
        ah public.label, ai int4range, aj tstzrange, ak public.span, al bit(5), am varbit, an tsvector, ao oid, ap regclass,
        aq pg_lsn, ar xid, as_ public.mood[], at int4multirange, au path, av jsonpath, gone int, g1 int GENERATED ALWAYS AS (id * 2) STORED);
    ALTER TABLE public.t DROP COLUMN gone; ALTER TABLE public.t ADD COLUMN added text DEFAULT 'größe';
    CREATE PUBLICATION pub FOR TABLE public.t;";

const TYPED_ROWS: &str = "
    INSERT INTO public.t VALUES (1, true, -5, 9e15, 'NaN', 1.5, 0.1, 0.1, 12.34, E'tab\\tline\\nback\\\\ \\\\N \\r\\b\\f\\v', '', 'ab',
        'x', 'größe', '\\x00ff5c', 'infinity', '24:00:00', '12:00:00.5+05:30', '0044-03-15 00:00:00 BC', '2026-01-01 12:00:00.1234+02',
        '1 year -2 days 03:04:05.6', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{\"a\":  1}', '{\"b\": [1.50, \"\\\\\"]}', '<a/>',
        '10.1.2.3/8', '10.0.0.0/8', '08:00:2b:01:02:03', '(1.5,-0)', '{(1,1),(0,0);(2,2),(1,1)}', '[2:3]={1,NULL}',
        E'{\"a,b\",\"NULL\",NULL,\"\\\\\\\\\",\"\"}', 'so so', '(1,\"x,\\\\\"\"y\")', 'label', '[1,5)', '[\"2026-01-01 00:00+02\",)',
        '(0.1,1e300)', '10101', '1', 'the:1 ''cat''', 4294967295, 'pg_class', '16/B374D848', '42', '{ok,\"so so\"}', '{[1,3),[5,9)}',
        '((1,2),(3,4))', '$.a[*] ? (@ > 1)', DEFAULT, DEFAULT),
      (2, false, 0, 0, -0.000, 0, '-0', '-infinity', -1, '', E'\\\\N', '', '', '', '', '-infinity', '00:00', '00:00+00', 'infinity',
        '-infinity', '0', '00000000-0000-0000-0000-000000000000', 'null', 'null', '', '::1', '::/0', '00:00:00:00:00:00', '(NaN,1e-300)',
        '{}', '{}', '{}', 'ok', '(,)', '', 'empty', 'empty', 'empty', '00000', '', '', 0, NULL, '0/0', '0', '{}', '{}', '[(0,0)]', '$', DEFAULT, NULL);
    INSERT INTO public.t (id) VALUES (3);";

#[tokio::test]
async fn values_are_byte_for_byte_those_of_the_stream() {
    let server = Server::start(&[
        "DateStyle = 'German'",
        "TimeZone = 'Asia/Tokyo'",
        "bytea_output = 'escape'",
        "extra_float_digits = 0",
    ]);
    server.sql(TYPES).await;
    let mut tables = streamed(&server, &format!("BEGIN; {TYPED_ROWS} COMMIT")).await;
    let (relation, expected) = tables.remove(0);
    let plan = plan(&server.session().await, "t").await;
    assert_eq!(plan.relation, relation);
    let rows = read_all(&mut reader(&server), &plan, 2).await;
    assert_eq!(rows, expected);
    assert_eq!(rows[0].len(), plan.relation.columns.len());
}

#[tokio::test]
async fn a_plan_announces_what_the_stream_announces() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TABLE public.full_ (n int, k text, PRIMARY KEY (k, n)); ALTER TABLE public.full_ REPLICA IDENTITY FULL;
             CREATE TABLE public.by_index (a varchar(7) NOT NULL, n int NOT NULL, UNIQUE (n, a));
             ALTER TABLE public.by_index REPLICA IDENTITY USING INDEX by_index_n_a_key;
             CREATE TABLE public.keyless (v text, n int);
             CREATE TABLE public.nothing (n int PRIMARY KEY); ALTER TABLE public.nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE public.deferrable (n int PRIMARY KEY DEFERRABLE);
             CREATE TABLE public.parent (n int PRIMARY KEY); CREATE TABLE public.child () INHERITS (public.parent);
             CREATE TABLE public.none ();
             CREATE PUBLICATION pub FOR ALL TABLES;",
        )
        .await;
    let inserts = "
        BEGIN; INSERT INTO public.full_ VALUES (1, 'a'); INSERT INTO public.by_index VALUES ('a', 1); INSERT INTO public.keyless VALUES ('a', 1);
        INSERT INTO public.nothing VALUES (1); INSERT INTO public.deferrable VALUES (1); INSERT INTO public.parent VALUES (1);
        INSERT INTO public.child VALUES (2); INSERT INTO public.none DEFAULT VALUES; COMMIT";
    let session = server.session().await;
    let mut reader = reader(&server);
    let streamed = streamed(&server, inserts).await;
    assert_eq!(streamed.len(), 8);
    for (relation, expected) in streamed {
        let plan = plan(&session, &relation.table).await;
        assert_eq!(plan.relation, relation);
        let keys: Vec<&str> = plan.key.iter().map(|column| column.name.as_str()).collect();
        let expected_key = match relation.table.as_str() {
            "full_" => vec!["k", "n"],
            "by_index" => vec!["n", "a"],
            "parent" => vec!["n"],
            _ => vec![],
        };
        assert_eq!(keys, expected_key, "{}", relation.table);
        let range = match plan.key.is_empty() {
            true => Range::Blocks { table_oid: relation.oid, from: 0, to: 9 },
            false => after(None, 10),
        };
        let (rows, _) = read(&mut reader, &plan, &range).await.expect("a chunk");
        assert_eq!(rows, expected, "{}: rows of children are not the parent's", relation.table);
    }
    let keyless = plan(&session, "keyless").await;
    let refused = read(&mut reader, &keyless, &after(None, 1)).await.expect_err("no key");
    assert!(matches!(refused, SnapshotReadError::Keyless { .. }), "{refused:?}");
    assert_eq!(keyless.relation.replica_identity, ReplicaIdentity::Default);
}

#[tokio::test]
async fn only_published_rows_and_columns_are_read() {
    let server = Server::start(&[]);
    if server.session().await.server_version() < 150_000 {
        return eprintln!("14 publishes whole tables only");
    }
    server
        .sql(
            "CREATE TABLE public.f (secret text, \"K\" int PRIMARY KEY, t text, n int);
             CREATE PUBLICATION pub FOR TABLE public.f (t, \"K\", n) WHERE (\"K\" % 3 = 1 AND t IS NOT NULL);
             CREATE PUBLICATION other FOR TABLE public.f;
             INSERT INTO public.f SELECT 's', k, CASE WHEN k % 2 = 0 THEN 'x' END, k FROM generate_series(0, 99) k",
        )
        .await;
    let plan = plan(&server.session().await, "f").await;
    let names: Vec<&str> = plan.relation.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!((names, plan.row_filter.is_some()), (vec!["K", "t", "n"], true));
    let expected: Vec<u32> = (0..100).filter(|k| k % 3 == 1 && k % 2 == 0).collect();
    let mut reader = reader(&server);
    for row_limit in [1, 3, 7] {
        let rows = read_all(&mut reader, &plan, row_limit).await;
        assert_eq!(numbers(&rows), expected);
        assert!(rows.iter().all(|row| row.len() == 3));
    }
    let (rows, facts) = read(&mut reader, &plan, &after(None, 4)).await.expect("a chunk");
    assert!(rows.is_empty() || rows.len() < 4, "four rows were looked at, not four found");
    assert!(facts.next.is_some());
    let keys = Range::Keys(vec![vec![b"4"[..].into()], vec![b"5"[..].into()]]);
    assert_eq!(numbers(&read(&mut reader, &plan, &keys).await.expect("rows").0), [4]);
    let blocks = Range::Blocks { table_oid: plan.relation.oid, from: 0, to: 99 };
    assert_eq!(numbers(&read(&mut reader, &plan, &blocks).await.expect("rows").0), expected);
}

#[tokio::test]
async fn a_condition_chooses_rows_among_those_that_a_chunk_looks_at() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TABLE public.c (passes text NOT NULL, id int PRIMARY KEY, n int);
             CREATE PUBLICATION pub FOR TABLE public.c;
             INSERT INTO public.c SELECT 'x', k, nullif(k % 10, 3) FROM generate_series(0, 99) k",
        )
        .await;
    let whole = plan(&server.session().await, "c").await;
    let part = |condition: &str| TablePlan { condition: Some(condition.to_owned()), ..whole.clone() };
    let mut reader = reader(&server);
    let chosen = part("(\"n\" OPERATOR(pg_catalog.<) '5'::pg_catalog.int4)");
    let rows = read_all(&mut reader, &chosen, 7).await;
    let expected: Vec<u32> = (0..100).filter(|k| k % 10 < 5 && k % 10 != 3).collect();
    let ids: Vec<u32> = rows.iter().map(|row| row[1].as_deref().expect("a key").parse().expect("a number")).collect();
    assert_eq!(ids, expected);
    assert!(rows.iter().all(|row| row.len() == 3 && row[0].as_deref() == Some("x") && row[2].is_some()), "whole rows");
    let keys = Range::Keys(vec![vec![b"4"[..].into()], vec![b"5"[..].into()]]);
    assert_eq!(read(&mut reader, &chosen, &keys).await.expect("rows").0.len(), 1);
    let failing =
        part("((('1'::pg_catalog.int4) OPERATOR(pg_catalog./) \"n\") OPERATOR(pg_catalog.>) '2'::pg_catalog.int4)");
    let failed = read(&mut reader, &failing, &after(None, 50)).await.expect_err("a division by zero");
    assert!(matches!(failed, SnapshotReadError::Condition { .. }), "{failed:?}");
    assert_eq!(failed.retry(), tidegate_model::Retry::Never);
}

#[tokio::test]
async fn what_a_part_is_asked_for_with_is_looked_at_first() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN public.code AS text CHECK (VALUE <> '');
             CREATE COLLATION public.plain (locale = 'C');
             CREATE TABLE public.p (a int, b public.mood, c public.code COLLATE public.plain, secret int, PRIMARY KEY (b, a));
             CREATE PUBLICATION pub FOR TABLE public.p",
        )
        .await;
    let session = server.session().await;
    let plan = plan(&session, "p").await;
    let (columns, default) = part_columns(&session, &plan).await.expect("columns");
    assert!(default.is_default && default.deterministic);
    let of = |name: &str| columns.iter().find(|column| column.name == name).expect("there").clone();
    assert_eq!(of("a").collation, None);
    let labels = vec!["sad".to_owned(), "ok".to_owned()];
    assert_eq!(of("b").enum_type, Some(("public".to_owned(), "mood".to_owned(), labels)));
    let plain = of("c").collation.expect("a collation");
    assert_eq!((of("c").base_type_oid, plain.name.as_str(), plain.is_c), (25, "public.plain", true));
    let key = |b: &str, a: &str| vec![b.to_owned(), a.to_owned()];
    let good = vec![key("ok", "1"), key("sad", " 2")];
    assert_eq!(malformed_key(&session, &plan, &good).await.expect("an answer"), None);
    let mut bad: Vec<Vec<String>> = (0..1000).map(|a| key("ok", &a.to_string())).collect();
    bad[777][1] = "7'; DROP TABLE public.p; --".to_owned();
    let found = malformed_key(&session, &plan, &bad).await.expect("an answer");
    assert_eq!(found, Some(MalformedKey { key: 777, column: 1 }));
    let narrow = vec![vec!["ok".to_owned()]];
    assert_eq!(
        malformed_key(&session, &plan, &narrow).await.expect("an answer"),
        Some(MalformedKey { key: 0, column: 0 })
    );
    let gone = Part::Where("(\"gone\" OPERATOR(pg_catalog.=) '1'::pg_catalog.int4)".to_owned());
    let refused = check_part(&session, &plan, &gone).await.expect_err("no such column");
    assert!(matches!(refused, SnapshotReadError::Part { .. }), "{refused:?}");
    let there = Part::Where("(\"a\" OPERATOR(pg_catalog.=) '1'::pg_catalog.int4)".to_owned());
    check_part(&session, &plan, &there).await.expect("it fits");
}

#[tokio::test]
async fn generated_columns_are_read_where_they_are_published() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TABLE public.g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, n int);
             CREATE PUBLICATION pub FOR TABLE public.g",
        )
        .await;
    let session = server.session().await;
    let before = plan(&session, "g").await;
    assert_eq!(before.relation.columns.len(), 2);
    if session.server_version() < 180_000 {
        return eprintln!("LEFT OUT: no generated columns can be published before 18");
    }
    server.sql("ALTER PUBLICATION pub SET (publish_generated_columns = stored)").await;
    let (relation, expected) = streamed(&server, "INSERT INTO public.g VALUES (4, DEFAULT, 1)").await.remove(0);
    let now = plan(&session, "g").await;
    assert_eq!(now.relation, relation);
    assert_ne!(now.fingerprint, before.fingerprint);
    assert_eq!(read_all(&mut reader(&server), &now, 5).await, expected);
}

const PARTITIONED: &str = "
    CREATE TABLE public.root (k int, n int, PRIMARY KEY (k, n)) PARTITION BY RANGE (k);
    CREATE TABLE public.low PARTITION OF public.root FOR VALUES FROM (0) TO (3);
    CREATE TABLE public.high PARTITION OF public.root FOR VALUES FROM (3) TO (10) PARTITION BY LIST (n);
    CREATE TABLE public.rest (n int NOT NULL, k int NOT NULL); ALTER TABLE public.high ATTACH PARTITION public.rest DEFAULT;
    INSERT INTO public.root SELECT n % 10, n FROM generate_series(0, 199) n;
    CREATE TABLE public.heap (v text, n int) PARTITION BY HASH (n);
    CREATE TABLE public.heap_0 PARTITION OF public.heap FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE public.heap_1 PARTITION OF public.heap FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    ALTER TABLE public.heap REPLICA IDENTITY FULL; ALTER TABLE public.heap_0 REPLICA IDENTITY FULL;
    ALTER TABLE public.heap_1 REPLICA IDENTITY FULL;
    INSERT INTO public.heap SELECT repeat('x', 500), n FROM generate_series(0, 199) n;";

#[tokio::test]
async fn a_root_is_read_as_one_table_and_leaves_as_their_own() {
    let server = Server::start(&[]);
    server
        .sql(&format!("{PARTITIONED} CREATE PUBLICATION pub FOR TABLE public.root WITH (publish_via_partition_root)"))
        .await;
    let session = server.session().await;
    let root = plan(&session, "root").await;
    assert_eq!((root.kind, root.storage.len()), (PlanKind::Root, 2));
    let mut reader = reader(&server);
    assert_eq!(numbers(&read_all(&mut reader, &root, 7).await), (0..200).collect::<Vec<_>>());
    let refusal = async |table: &str| {
        let refused = table_plan(&session, "pub", &name(table)).await.expect_err("not published as itself");
        refused.to_string()
    };
    assert!(refusal("low").await.contains("part of its root public.root"));
    let (relation, inserted) = streamed(&server, "INSERT INTO public.root VALUES (9, 200)").await.remove(0);
    assert_eq!((root.relation.clone(), inserted), (relation, vec![vec![Some("9".to_owned()), Some("200".to_owned())]]));
    server.sql("DELETE FROM public.root WHERE n = 200").await;

    server.sql("ALTER PUBLICATION pub SET (publish_via_partition_root = false)").await;
    assert!(refusal("root").await.contains("its partitions, not the root"));
    let (low, rest) = (plan(&session, "low").await, plan(&session, "rest").await);
    assert_eq!((low.kind, low.key.len()), (PlanKind::Leaf, 2));
    let names: Vec<&str> = rest.relation.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["n", "k"]);
    assert_eq!(numbers(&read_all(&mut reader, &low, 7).await), (0..200).filter(|n| n % 10 < 3).collect::<Vec<_>>());
    let changed = read(&mut reader, &root, &after(None, 1)).await.expect_err("published otherwise");
    assert!(matches!(changed, SnapshotReadError::DefinitionChanged { .. }), "{changed:?}");
}

async fn by_blocks(readers: &mut [ChunkReader], plan: &TablePlan, shared: &SharedSnapshot) -> Vec<Row> {
    let mut all = Vec::new();
    for &(table_oid, block_count) in shared.blocks() {
        for from in (0..block_count).step_by(2) {
            let reader = &mut readers[from as usize / 2 % 2];
            let range = Range::Blocks { table_oid, from, to: from + 2 };
            let (rows, facts) = read_shared(reader, plan, &range, Some(shared)).await.expect("a range");
            assert_eq!(&facts.visibility, shared.visibility());
            all.extend(rows);
        }
    }
    all
}

#[tokio::test]
async fn a_keyless_root_is_read_by_blocks_under_one_snapshot() {
    let server = Server::start(&[]);
    server
        .sql(&format!("{PARTITIONED} CREATE PUBLICATION pub FOR TABLE public.heap WITH (publish_via_partition_root)"))
        .await;
    let session = server.session().await;
    let plan = plan(&session, "heap").await;
    let shared = SharedSnapshot::open(&server.config(), &ReadLimits::default(), &plan).await.expect("a snapshot");
    server.sql("INSERT INTO public.heap SELECT 'later', n FROM generate_series(500, 900) n; DELETE FROM public.heap WHERE n < 50").await;
    let mut readers = [reader(&server), reader(&server)];
    assert_eq!(numbers(&by_blocks(&mut readers, &plan, &shared).await), (0..200).collect::<Vec<_>>());

    // The holder locks nothing; what happened is found by the next range.
    server.sql("TRUNCATE public.heap_1").await;
    let (table_oid, _) = shared.blocks()[0];
    let range = Range::Blocks { table_oid, from: 0, to: 1 };
    let changed = read_shared(&mut readers[0], &plan, &range, Some(&shared)).await.expect_err("truncated");
    assert!(matches!(changed, SnapshotReadError::DefinitionChanged { .. }), "{changed:?}");
    let id = shared.id().to_owned();
    shared.close().await.expect("an end in good order");
    let gone = session
        .client()
        .batch_execute(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{id}'"))
        .await;
    assert!(gone.is_err());
}

#[tokio::test]
async fn a_large_chunk_is_refused_and_a_large_row_is_not() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TABLE public.t (id int PRIMARY KEY, v text, n int); CREATE PUBLICATION pub FOR TABLE public.t;
              INSERT INTO public.t SELECT n, repeat('x', 100000), n FROM generate_series(0, 9) n",
        )
        .await;
    let plan = plan(&server.session().await, "t").await;
    let mut reader = ChunkReader::new(server.config(), ReadLimits { byte_budget: 50_000, ..ReadLimits::default() });
    let refused = read(&mut reader, &plan, &after(None, 2)).await.expect_err("too large");
    assert!(matches!(refused, SnapshotReadError::OverBudget { byte_budget: 50_000, .. }), "{refused:?}");
    assert_eq!(numbers(&read_all(&mut reader, &plan, 1).await), (0..10).collect::<Vec<_>>());
    assert!(
        plan.name() == TableName::new("public", "t")
            && Lsn::ZERO < read(&mut reader, &plan, &after(None, 1)).await.expect("a row").1.high_watermark
    );
}
