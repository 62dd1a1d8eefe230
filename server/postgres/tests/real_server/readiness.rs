//! Preflight finds what is wrong, and nothing on a server that is ready.

use tidegate_model::TablePatterns;
use tidegate_postgres::{
    ConnectConfig, Session,
    preflight::{self, CheckRequest, Severity, ZoneClocks},
};

use crate::launcher::Server;

fn request(patterns: &[&str]) -> CheckRequest {
    let patterns = TablePatterns::parse(patterns).expect("valid patterns");
    CheckRequest { slot: "shop".to_owned(), publication: "shop".to_owned(), patterns }
}

#[tokio::test]
async fn a_server_that_is_ready_passes() {
    let server = Server::start(&["max_slot_wal_keep_size = 10GB"]);
    server
        .sql("CREATE TABLE public.orders (id int PRIMARY KEY); CREATE PUBLICATION shop FOR TABLE public.orders")
        .await;
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
async fn zones_whose_clocks_differ_are_named() {
    let server = Server::start(&[]);
    let session = server.session().await;
    // In the middle of January and of July 2024.
    let zone = |names: &[&str], winter, summer| ZoneClocks {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        instants: vec![1_705_276_800, 1_721_001_600],
        offsets: vec![winter, summer],
    };
    let right = [zone(&["Europe/Berlin", "Europe/Rome"], 3600, 7200), zone(&["America/New_York"], -18_000, -14_400)];
    assert_eq!(preflight::zone_finding(&session, &right).await, None);
    let wrong =
        [right[0].clone(), zone(&["Asia/Kolkata", "Asia/Tokyo"], 32_400, 32_400), zone(&["Mars/Olympus"], 0, 0)];
    let wrong = [&wrong[..], &[zone(&["Africa/Cairo"], 7200, 7200)]].concat();
    let finding = preflight::zone_finding(&session, &wrong).await.expect("a finding");
    assert_eq!((finding.code, finding.severity), ("time_zones", Severity::Info));
    assert_eq!(
        finding.problem,
        "the server's time zone data differ from Tidegate's: Africa/Cairo (first at 2024-07-15 00:00:00Z: 03:00:00 on the server, \
         02:00:00 here), Asia/Kolkata (first at 2024-01-15 00:00:00Z: 05:30:00 on the server, 09:00:00 here), Mars/Olympus (unknown to \
         the server)"
    );
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
