//! What is committed arrives, in order and in the pinned settings.

use tidegate_model::{Lsn, Retry};
use tidegate_postgres::{
    ConnectConfig, Frame, ReplicationConnection, ReplicationError, StandbyStatus, StreamOptions, WalReader, WalStatus,
    WalWriter, drop_slot,
    pgoutput::{Decoder, Message, OldTupleKind, TupleValue},
    protocol_version, server_facts, slot_status, terminate_backend,
};

use crate::launcher::Server;

const SHOP: &str = "
    CREATE TABLE public.orders (id int PRIMARY KEY, note text, price numeric(10,2), at timestamptz, raw bytea);
    CREATE TABLE public.audit (line text);
    ALTER TABLE public.audit REPLICA IDENTITY FULL;
    CREATE PUBLICATION shop FOR TABLE public.orders, public.audit;";

async fn streaming(server: &Server) -> (WalReader, WalWriter, Decoder) {
    streaming_as(&server.config()).await
}

async fn streaming_as(config: &ConnectConfig) -> (WalReader, WalWriter, Decoder) {
    let mut connection = ReplicationConnection::connect(config).await.expect("a replication connection");
    let start_lsn = connection.create_slot("shop", false).await.expect("a slot");
    start(connection, start_lsn).await
}

/// A megabyte arrives over this kind of connection while statuses go the other way.
pub(crate) async fn check_stream(server: &Server, config: &ConnectConfig) {
    server.sql(SHOP).await;
    let (mut reader, mut writer, mut decoder) = streaming_as(config).await;
    server.sql("INSERT INTO public.orders SELECT n, repeat('x', 1000) FROM generate_series(1, 1000) n").await;
    server.sql("SELECT pg_logical_emit_message(false, 'end', '')").await;
    let reading = read_until(&mut reader, &mut decoder, |line| line == "message false end ");
    let writing = async {
        for _ in 0..100 {
            let nothing = StandbyStatus {
                received_lsn: Lsn::ZERO,
                flushed_lsn: Lsn::ZERO,
                applied_lsn: Lsn::ZERO,
                clock_us: 0,
                reply_requested: true,
            };
            writer.status(nothing).await.expect("a status");
        }
    };
    let (lines, ()) = tokio::join!(reading, writing);
    assert_eq!(lines.iter().filter(|line| line.starts_with("insert")).count(), 1000);
    writer.close().await.expect("an orderly end");
}

async fn start(connection: ReplicationConnection, start_lsn: Lsn) -> (WalReader, WalWriter, Decoder) {
    let decoder = Decoder::new(protocol_version(connection.server_version()));
    let options =
        StreamOptions { slot: "shop".to_owned(), publication: "shop".to_owned(), start_lsn, in_progress: true };
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
    // A keepalive may answer an earlier question, so ask until the status has been taken in.
    let slot = loop {
        writer.status(status).await.expect("a status");
        let is_keepalive = |frame: Frame<'_>| matches!(frame, Frame::Keepalive { .. });
        while !reader.read().await.expect("a stream that lives").any(is_keepalive) {}
        let slot = slot_status(&session, "shop").await.expect("a status").expect("a slot");
        if slot.confirmed_flush_lsn >= Some(end_lsn) {
            break slot;
        }
    };
    assert_eq!((slot.plugin.as_deref(), slot.database.as_deref()), (Some("pgoutput"), Some("postgres")));
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
    let options = StreamOptions {
        slot: "shop".to_owned(),
        publication: "shop".to_owned(),
        start_lsn: Lsn::ZERO,
        in_progress: true,
    };
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
    let options = StreamOptions {
        slot: "shop".to_owned(),
        publication: "shop".to_owned(),
        start_lsn: Lsn::ZERO,
        in_progress: true,
    };
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
