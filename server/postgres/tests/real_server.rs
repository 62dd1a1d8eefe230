//! The crate against a real server: streams, slots, log-in, catalog and preflight.
//!
//! Each test has a server of its own, so that settings and slots do not meet.

mod launcher;

use launcher::Server;
use secrecy::SecretString;
use tidegate_model::{Lsn, Retry, TableName, TablePatterns};
use tidegate_postgres::{
    ConnectConfig, ConnectError, Frame, NewPublication, ReplicationConnection, ReplicationError, Session,
    StandbyStatus, StreamOptions, TlsMode, TypeShape, WalReader, WalStatus, WalWriter, create_publication, drop_slot,
    pgoutput::{Decoder, Message, OldTupleKind, TupleValue},
    preflight::{self, CheckRequest, Severity},
    protocol_version, publication, relation_columns, server_facts, slot_status, tables, terminate_backend, type_info,
};

const SHOP: &str = "
    CREATE TABLE public.orders (id int PRIMARY KEY, note text, price numeric(10,2), at timestamptz, raw bytea);
    CREATE TABLE public.audit (line text);
    ALTER TABLE public.audit REPLICA IDENTITY FULL;
    CREATE PUBLICATION shop FOR TABLE public.orders, public.audit;";

async fn streaming(server: &Server) -> (WalReader, WalWriter, Decoder) {
    let mut connection = ReplicationConnection::connect(&server.config()).await.expect("a replication connection");
    let start_lsn = connection.create_slot("shop", false).await.expect("a slot");
    start(connection, start_lsn).await
}

async fn start(connection: ReplicationConnection, start_lsn: Lsn) -> (WalReader, WalWriter, Decoder) {
    let decoder = Decoder::new(protocol_version(connection.server_version()));
    let options = StreamOptions { slot: "shop".to_owned(), publication: "shop".to_owned(), start_lsn };
    let (reader, writer) = connection.start(&options).await.expect("a stream");
    (reader, writer, decoder)
}

/// A message as a line of text, so that a test reads as what the server sent.
fn line(message: &Message<'_>) -> String {
    let value = |value: TupleValue<'_>| match value {
        TupleValue::Null => "null".to_owned(),
        TupleValue::Unchanged => "unchanged".to_owned(),
        TupleValue::Text(text) => String::from_utf8_lossy(text).into_owned(),
        TupleValue::Binary(bytes) => format!("{bytes:?}"),
    };
    let row = |tuple: &tidegate_postgres::pgoutput::Tuple<'_>| tuple.iter().map(value).collect::<Vec<_>>().join("|");
    match message {
        Message::Begin { .. } => "begin".to_owned(),
        Message::Commit { commit_lsn, commit_end_lsn, .. } => {
            assert!(commit_end_lsn > commit_lsn);
            "commit".to_owned()
        }
        Message::Relation { relation, .. } => format!("relation {}", relation.table),
        Message::Insert { new, .. } => format!("insert {}", row(new)),
        Message::Update { old, new, .. } => match old {
            Some((OldTupleKind::Key, old)) => format!("update key {} to {}", row(old), row(new)),
            Some((OldTupleKind::Full, old)) => format!("update full {} to {}", row(old), row(new)),
            None => format!("update {}", row(new)),
        },
        Message::Delete { old, .. } => format!("delete {}", row(old)),
        Message::Truncate { relation_oids, cascade, restart_identity, .. } => {
            format!("truncate {} {cascade} {restart_identity}", relation_oids.len())
        }
        Message::LogicalMessage { transactional, prefix, content, .. } => {
            format!("message {transactional} {prefix} {}", String::from_utf8_lossy(content))
        }
        Message::Origin { .. } => "origin".to_owned(),
        Message::Type { name, .. } => format!("type {name}"),
        Message::StreamStart { first_segment, .. } => format!("stream start {first_segment}"),
        Message::StreamStop => "stream stop".to_owned(),
        Message::StreamCommit { .. } => "stream commit".to_owned(),
        Message::StreamAbort { xid, subxid } => format!("stream abort {}", if xid == subxid { "top" } else { "sub" }),
    }
}

/// Reads messages until one that `is_last` is among them.
async fn read_until(reader: &mut WalReader, decoder: &mut Decoder, is_last: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        for frame in reader.read().await.expect("a stream that lives") {
            let Frame::XLogData { data, .. } = frame else { continue };
            lines.push(line(&decoder.decode(data).expect("a valid message")));
        }
        if lines.iter().any(|line| is_last(line)) {
            return lines;
        }
    }
}

#[tokio::test]
async fn transactions_are_streamed_in_pinned_settings() {
    let server = Server::start(&["DateStyle = 'German'", "TimeZone = 'Asia/Tokyo'", "bytea_output = 'escape'"]);
    server.sql(SHOP).await;
    server.sql("ALTER ROLE postgres SET DateStyle = 'SQL'; ALTER DATABASE postgres SET search_path = public").await;
    let (mut reader, mut writer, mut decoder) = streaming(&server).await;
    server.sql("INSERT INTO public.orders VALUES (1, 'größe', 9.90, '2026-11-21 06:00:00.5+00', '\\x00ff')").await;
    server.sql("BEGIN; UPDATE public.orders SET id = 2; DELETE FROM public.orders; COMMIT").await;
    server.sql("BEGIN; INSERT INTO public.audit VALUES ('a'); UPDATE public.audit SET line = 'b'; COMMIT").await;
    server.sql("SELECT pg_logical_emit_message(false, 'outbox', 'alone')").await;
    server.sql("SELECT pg_logical_emit_message(true, 'outbox', 'within')").await;
    server.sql("TRUNCATE public.orders, public.audit RESTART IDENTITY").await;
    server.sql("SELECT pg_logical_emit_message(false, 'end', '')").await;
    let lines = read_until(&mut reader, &mut decoder, |line| line == "message false end ").await;
    let row = r"größe|9.90|2026-11-21 06:00:00.5+00|\x00ff";
    let expected = [
        "begin".to_owned(),
        "relation orders".to_owned(),
        format!("insert 1|{row}"),
        "commit".to_owned(),
        "begin".to_owned(),
        format!("update key 1|null|null|null|null to 2|{row}"),
        "delete 2|null|null|null|null".to_owned(),
        "commit".to_owned(),
        "begin".to_owned(),
        "relation audit".to_owned(),
        "insert a".to_owned(),
        "update full a to b".to_owned(),
        "commit".to_owned(),
        "message false outbox alone".to_owned(),
        "begin".to_owned(),
        "message true outbox within".to_owned(),
        "commit".to_owned(),
    ];
    assert_eq!(lines[..expected.len()], expected);
    assert!(lines.iter().any(|line| line == "truncate 2 false true"), "{lines:?}");
    confirm_all(&server, &mut reader, &mut writer).await;
}

/// Confirms what the server has, and sees the slot advance.
async fn confirm_all(server: &Server, reader: &mut WalReader, writer: &mut WalWriter) {
    let session = server.session().await;
    let end_lsn = server_facts(&session).await.expect("facts").current_wal_flush_lsn;
    let status = StandbyStatus {
        received_lsn: end_lsn,
        flushed_lsn: end_lsn,
        applied_lsn: end_lsn,
        clock_us: 1_790_000_000_000_000,
        reply_requested: true,
    };
    writer.status(status).await.expect("a status");
    // The answer to our request is sent after the status has been taken in.
    let answered = |frame: Frame<'_>| matches!(frame, Frame::Keepalive { .. });
    while !reader.read().await.expect("a stream that lives").any(answered) {}
    let slot = slot_status(&session, "shop").await.expect("a status").expect("a slot");
    assert_eq!((slot.plugin.as_deref(), slot.database.as_deref()), (Some("pgoutput"), Some("postgres")));
    assert!(slot.confirmed_flush_lsn >= Some(end_lsn), "{slot:?} {end_lsn}");
    assert!(slot.active_pid.is_some() && !slot.is_lost() && slot.wal_status == Some(WalStatus::Reserved), "{slot:?}");
}

#[tokio::test]
async fn a_large_transaction_is_streamed_while_it_runs() {
    let server = Server::start(&[]);
    server.sql(SHOP).await;
    let (mut reader, _writer, mut decoder) = streaming(&server).await;
    let insert = |from: u32| {
        format!("INSERT INTO public.orders SELECT n, repeat('x', 200) FROM generate_series({from}, {from} + 1999) n;")
    };
    server
        .sql(&format!("BEGIN; {} SAVEPOINT s; {} ROLLBACK TO s; {} COMMIT", insert(1), insert(10_001), insert(20_001)))
        .await;
    server.sql(&format!("BEGIN; {} ROLLBACK", insert(30_001))).await;
    server.sql("SELECT pg_logical_emit_message(false, 'end', '')").await;
    let lines = read_until(&mut reader, &mut decoder, |line| line == "message false end ").await;
    let count = |wanted: &str| lines.iter().filter(|line| line.starts_with(wanted)).count();
    assert!(count("stream start true") >= 1 && count("stream start") == count("stream stop"));
    assert_eq!(count("stream commit"), 1);
    assert!(count("insert") >= 4_000, "{}", count("insert"));
    assert_eq!(count("stream start true"), 1 + count("stream abort top"), "the rolled back one, if it was streamed");
}

#[tokio::test]
async fn a_large_value_is_one_frame_and_unchanged_afterwards() {
    let server = Server::start(&[]);
    server.sql(SHOP).await;
    let (mut reader, _writer, mut decoder) = streaming(&server).await;
    server.sql("ALTER TABLE public.orders ALTER note SET STORAGE EXTERNAL").await;
    server.sql("INSERT INTO public.orders (id, note) VALUES (1, repeat('x', 20000000))").await;
    server.sql("UPDATE public.orders SET price = 1").await;
    let lines = read_until(&mut reader, &mut decoder, |line| line.starts_with("update")).await;
    assert!(lines.iter().any(|line| line.len() > 20_000_000));
    assert!(lines.iter().any(|line| line == "update 1|unchanged|1.00|null|null"));
}

#[tokio::test]
async fn the_state_of_slots_is_told_apart() {
    let server = Server::start(&[]);
    server.sql(SHOP).await;
    let session = server.session().await;
    let options = StreamOptions { slot: "shop".to_owned(), publication: "shop".to_owned(), start_lsn: Lsn::ZERO };
    let connect = async || ReplicationConnection::connect(&server.config()).await.expect("a replication connection");

    let missing = connect().await.start(&options).await.expect_err("no slot yet");
    assert!(matches!(missing, ReplicationError::SlotMissing { .. }), "{missing:?}");
    assert_eq!(slot_status(&session, "shop").await.expect("a status"), None);

    let (_reader, writer, _) = streaming(&server).await;
    let in_use = connect().await.start(&options).await.expect_err("in use");
    let active_pid = slot_status(&session, "shop").await.expect("a status").expect("a slot").active_pid;
    let ReplicationError::SlotInUse { active_pid: told, .. } = &in_use else { panic!("{in_use:?}") };
    assert!(told.is_some() && *told == active_pid, "{in_use:?}");
    let exists = connect().await.create_slot("shop", false).await.expect_err("it exists");
    assert!(matches!(exists, ReplicationError::SlotExists { .. }), "{exists:?}");

    assert!(terminate_backend(&session, active_pid.expect("a pid"), 5_000).await.expect("no error"));
    assert!(drop_slot(&session, "shop").await.expect("no error"));
    assert!(!drop_slot(&session, "shop").await.expect("no error"));
    drop(writer);
}

#[tokio::test]
async fn a_walsender_that_is_ended_and_a_missing_publication_are_named() {
    let server = Server::start(&[]);
    server.sql(SHOP).await;
    let session = server.session().await;
    let (mut reader, _writer, _) = streaming(&server).await;
    let pid = slot_status(&session, "shop").await.expect("a status").expect("a slot").active_pid.expect("active");
    assert!(terminate_backend(&session, pid, 5_000).await.expect("no error"));
    let error = loop {
        match reader.read().await {
            Ok(frames) => assert!(frames.count() > 0),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReplicationError::ServerStopped { .. }), "{error:?}");

    server.sql("DROP PUBLICATION shop; INSERT INTO public.orders VALUES (1)").await;
    let connection = ReplicationConnection::connect(&server.config()).await.expect("a replication connection");
    let (mut reader, _writer, _) = start(connection, Lsn::ZERO).await;
    let error = loop {
        match reader.read().await {
            Ok(frames) => assert!(frames.count() > 0),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReplicationError::PublicationMissing { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Reset);
}

#[tokio::test]
async fn lost_wal_is_named() {
    let server = Server::start(&["max_slot_wal_keep_size = 1MB", "min_wal_size = 32MB", "max_wal_size = 32MB"]);
    server.sql(SHOP).await;
    let mut connection = ReplicationConnection::connect(&server.config()).await.expect("a replication connection");
    connection.create_slot("shop", false).await.expect("a slot");
    for _ in 0..4 {
        server.sql("SELECT pg_switch_wal(); INSERT INTO public.audit VALUES ('x'); CHECKPOINT").await;
    }
    let slot = slot_status(&server.session().await, "shop").await.expect("a status").expect("a slot");
    assert!(slot.is_lost() && slot.wal_status == Some(WalStatus::Lost), "{slot:?}");
    assert_eq!(slot.invalidation_reason.as_deref(), Some("wal_removed"));
    let options = StreamOptions { slot: "shop".to_owned(), publication: "shop".to_owned(), start_lsn: Lsn::ZERO };
    let error = connection.start(&options).await.expect_err("lost");
    assert!(matches!(error, ReplicationError::SlotInvalidated { .. }), "{error:?}");
}

#[tokio::test]
async fn the_system_and_its_timelines_are_identified() {
    let server = Server::start(&[]);
    let facts = server_facts(&server.session().await).await.expect("facts");
    let mut connection = ReplicationConnection::connect(&server.config()).await.expect("a replication connection");
    let identity = connection.identify_system().await.expect("an identity");
    assert_eq!(Some(identity.system_identifier), facts.system_identifier);
    assert_eq!((Some(identity.timeline), identity.database.as_str()), (facts.timeline, "postgres"));
    assert!(identity.flush_lsn >= facts.current_wal_flush_lsn);
    assert_eq!(connection.timeline_history(1).await.expect("a history"), []);
    assert!(connection.timeline_history(9).await.is_err());
    // The connection goes on after a refused command.
    assert!(connection.identify_system().await.is_ok());
}

#[tokio::test]
async fn passwords_are_proved_by_scram_and_md5() {
    let server = Server::start(&[]);
    server.sql("CREATE ROLE s LOGIN REPLICATION PASSWORD 'sëcret'").await;
    server.sql("SET password_encryption = 'md5'; CREATE ROLE m LOGIN REPLICATION PASSWORD 'secret'").await;
    server.sql("CREATE ROLE p LOGIN REPLICATION PASSWORD 'secret'; CREATE ROLE n LOGIN PASSWORD 'secret'").await;
    server.allow(
        "local all postgres trust\nhost all s,n all scram-sha-256\nhost all m all md5\nhost all p all password\n",
    );
    let config = |user: &str, password: &str| ConnectConfig {
        host: "127.0.0.1".to_owned(),
        user: user.to_owned(),
        password: Some(SecretString::from(password)),
        ..server.config()
    };
    for (user, password) in [("s", "sëcret"), ("m", "secret"), ("p", "secret")] {
        ReplicationConnection::connect(&config(user, password)).await.expect(user);
        Session::connect(&config(user, password)).await.expect(user);
        let wrong = ReplicationConnection::connect(&config(user, "wrong")).await.expect_err(user);
        assert!(matches!(wrong, ConnectError::Authentication { .. }), "{wrong:?}");
        let wrong = Session::connect(&config(user, "wrong")).await.expect_err(user);
        assert!(matches!(wrong, ConnectError::Authentication { .. }), "{wrong:?}");
        let none = ConnectConfig { password: None, ..config(user, "") };
        let missing = ReplicationConnection::connect(&none).await.expect_err(user);
        assert!(matches!(missing, ConnectError::PasswordMissing { .. }), "{missing:?}");
        let missing = Session::connect(&none).await.expect_err(user);
        assert!(matches!(missing, ConnectError::PasswordMissing { .. }), "{missing:?}");
    }
    let nobody = ReplicationConnection::connect(&config("n", "secret")).await;
    let forbidden = nobody.expect_err("n may not replicate");
    assert!(matches!(forbidden, ConnectError::ReplicationForbidden { .. }), "{forbidden:?}");
    let required = ConnectConfig { tls: TlsMode::Require, ..config("s", "sëcret") };
    let no_tls = Session::connect(&required).await.expect_err("the server has no TLS");
    assert!(matches!(no_tls, ConnectError::TlsNotOffered { .. }), "{no_tls:?}");
}

#[tokio::test]
async fn the_catalog_is_read() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN public.small AS int; CREATE DOMAIN public.tiny AS public.small;
             CREATE TYPE public.span AS RANGE (subtype = float8); CREATE TYPE public.pair AS (a int, b text);
             CREATE TABLE public.t (a int, b public.tiny[], c public.mood, d public.span NOT NULL, e public.pair, f int2vector, g box[],
                 h varchar(7), i public.tiny, j int GENERATED ALWAYS AS (1) STORED, PRIMARY KEY (d, a) INCLUDE (h));
             ALTER TABLE public.t DROP COLUMN e;
             CREATE TABLE public.p (k int PRIMARY KEY DEFERRABLE) PARTITION BY RANGE (k);
             CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (9);
             CREATE UNLOGGED TABLE public.u (k int NOT NULL UNIQUE); ALTER TABLE public.u REPLICA IDENTITY USING INDEX u_k_key;",
        )
        .await;
    let session = server.session().await;
    let all = tables(&session).await.expect("tables");
    let find = |name: &str| all.iter().find(|table| table.name == TableName::new("public", name)).expect("the table");
    assert_eq!(find("t").primary_key, [4, 1]);
    assert!(find("p").primary_key_deferrable && !find("p1").has_replica_identity());
    assert_eq!((find("p1").root_oid, find("p1").is_leaf()), (Some(find("p").oid), true));
    assert!(find("u").has_replica_identity() && find("u").identity_index == [1]);

    let columns = relation_columns(&session, find("t").oid).await.expect("columns");
    let shapes: Vec<_> =
        columns.iter().map(|column| (column.name.as_str(), column.base_type_oid, column.shape)).collect();
    let mood = columns[2].type_oid;
    let expected = [
        ("a", 23, TypeShape::Base),
        ("b", columns[1].type_oid, TypeShape::Array { element_oid: 23, delimiter: b',' }),
        ("c", mood, TypeShape::Enum),
        ("d", columns[3].type_oid, TypeShape::Range { subtype_oid: 701 }),
        ("f", 22, TypeShape::Base),
        ("g", 1020, TypeShape::Array { element_oid: 603, delimiter: b';' }),
        ("h", 1043, TypeShape::Base),
        ("i", 23, TypeShape::Base),
        ("j", 23, TypeShape::Base),
    ];
    assert_eq!(shapes, expected);
    assert_eq!((columns[2].type_name.as_str(), columns[6].type_name.as_str()), ("public.mood", "character varying(7)"));
    let keys: Vec<_> = columns.iter().filter(|column| column.in_identity).map(|column| column.name.as_str()).collect();
    assert_eq!((keys, columns[8].generated, columns[3].not_null), (vec!["a", "d"], true, true));
    let info = type_info(&session, &[columns[7].type_oid, 0, mood]).await.expect("types");
    assert_eq!(
        info.iter().map(|info| info.shape).collect::<Vec<_>>(),
        [TypeShape::Domain { base_oid: 23 }, TypeShape::Enum]
    );
}

#[tokio::test]
async fn publications_live() {
    let server = Server::start(&[]);
    server
        .sql("CREATE TABLE public.\"A b\" (k int PRIMARY KEY, v text); CREATE TABLE public.c (k int PRIMARY KEY)")
        .await;
    let session = server.session().await;
    let (first, second) = (TableName::new("public", "A b"), TableName::new("public", "c"));
    assert_eq!(publication(&session, "p q").await.expect("no error"), None);
    let new = NewPublication { name: "p q", tables: std::slice::from_ref(&first), via_root: true };
    create_publication(&session, &new).await.expect("a publication");
    let read = async || publication(&session, "p q").await.expect("no error").expect("a publication");
    let made = read().await;
    assert!(made.via_root && !made.all_tables && made.operations.missing().count() == 0);
    assert_eq!((&made.tables[0].name, made.tables[0].columns.join(",").as_str()), (&first, "k,v"));
    let set = async |tables: &[TableName]| {
        tidegate_postgres::alter_publication_set_tables(&session, "p q", tables).await.expect("an altered publication");
    };
    set(std::slice::from_ref(&second)).await;
    assert_eq!(read().await.tables.iter().map(|table| &table.name).collect::<Vec<_>>(), [&second]);
    set(&[]).await;
    assert!(read().await.tables.is_empty());
    tidegate_postgres::drop_publication(&session, "p q").await.expect("no error");
    assert_eq!(publication(&session, "p q").await.expect("no error"), None);
}

fn request(patterns: &[&str]) -> CheckRequest {
    let patterns = TablePatterns::parse(patterns).expect("valid patterns");
    CheckRequest { slot: "shop".to_owned(), publication: "shop".to_owned(), patterns }
}

#[tokio::test]
async fn a_server_that_is_ready_passes() {
    let server = Server::start(&["max_slot_wal_keep_size = 10GB"]);
    server.sql(SHOP).await;
    let findings = preflight::check(&server.session().await, &request(&["public.*"])).await.expect("a check");
    assert_eq!(findings, []);
}

#[tokio::test]
async fn what_is_wrong_is_found() {
    let server = Server::start(&["wal_level = replica", "wal_sender_timeout = 0"]);
    server
        .sql(
            "CREATE ROLE cdc LOGIN; CREATE TABLE public.keyless (a int); CREATE TABLE public.late (a int PRIMARY KEY DEFERRABLE);
             CREATE UNLOGGED TABLE public.volatile (a int PRIMARY KEY)",
        )
        .await;
    let config = ConnectConfig { user: "cdc".to_owned(), ..server.config() };
    let session = Session::connect(&config).await.expect("a session");
    let findings = preflight::check(&session, &request(&["public.*", "shop.orders"])).await.expect("a check");
    let codes: Vec<&str> = findings.iter().map(|finding| finding.code).collect();
    for code in [
        "wal_level",
        "replication_privilege",
        "table_missing",
        "no_replica_identity",
        "deferrable_primary_key",
        "publication_privilege",
        "table_ownership",
        "table_unsupported",
        "select_privilege",
        "wal_sender_timeout",
        "wal_keep_unlimited",
    ] {
        assert!(codes.contains(&code), "{code} in {codes:?}");
    }
    assert!(findings.is_sorted_by_key(|finding| finding.severity) && findings[0].severity == Severity::Error);
}

#[tokio::test]
async fn the_setup_that_is_printed_runs() {
    let server = Server::start(&[]);
    server
        .sql("CREATE TABLE public.orders (id int PRIMARY KEY); CREATE TABLE public.\"Odd one\" (id int PRIMARY KEY)")
        .await;
    let mut setup = preflight::setup(&server.session().await, &request(&["public.*"])).await.expect("a setup");
    setup.role = "c d c".to_owned();
    for statement in preflight::setup_sql(&setup).split(";\n") {
        server.sql(statement).await;
    }
    let config = ConnectConfig { user: "c d c".to_owned(), ..server.config() };
    let session = Session::connect(&config).await.expect("a session");
    let findings = preflight::check(&session, &request(&["public.*"])).await.expect("a check");
    let codes: Vec<&str> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["wal_keep_unlimited"]);
}
