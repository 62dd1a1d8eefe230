//! Random transactions, whole and streamed, with savepoints rolled back, against a plain model of what must come out.

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use prost::Message as _;
use tidegate_model::{Block, Kind, Lsn, Position};
use tidegate_postgres::pgoutput::Decoder;
use tidegate_proto::v1;
use tidegate_schema::{ColumnSpec, RowDecoder, RowEncoder, ValueKind, event_body};

use super::*;
use crate::table::TableCodec;

const TABLE: u32 = 16_400;
const OTHER_TABLE: u32 = 16_500;

/// A change that a generated transaction makes.
#[derive(Clone, Debug)]
struct Row {
    /// 0 is the top level.
    subtransaction: u32,
    text: String,
    followed: bool,
}

/// A generated transaction.
#[derive(Clone, Debug)]
struct Generated {
    rows: Vec<Row>,
    rolled_back: HashSet<u32>,
    streamed: bool,
    committed: bool,
}

fn generated() -> impl Strategy<Value = Generated> {
    let row = (0_u32..4, 0_usize..3_000, 0_u8..8).prop_map(|(subtransaction, len, kind)| Row {
        subtransaction,
        text: "x".repeat(if kind == 0 { len * 300 } else { len }),
        followed: kind != 1,
    });
    let rows = proptest::collection::vec(row, 0..30);
    let rolled_back = proptest::collection::hash_set(1_u32..4, 0..3);
    (rows, rolled_back, any::<bool>(), 0_u8..5).prop_map(|(rows, rolled_back, streamed, fate)| Generated {
        rolled_back: if streamed { rolled_back } else { HashSet::new() },
        committed: !streamed || fate > 0,
        rows,
        streamed,
    })
}

/// Speaks pgoutput (PostgreSQL manual, section 55.9).
struct Server<'a> {
    assembler: &'a mut Assembler,
    decoder: Decoder,
    blocks: Vec<Block>,
    /// What came again.
    again: Vec<Decoded>,
    /// The first refusal.
    refused: Option<CaptureError>,
}

impl Server<'_> {
    fn send(&mut self, message: &[u8]) {
        let message = self.decoder.decode(message).expect("well-formed");
        match self.assembler.handle(message) {
            Err(error) => self.refused = self.refused.take().or(Some(error)),
            Ok(Step::Done | Step::Emitted(_)) => {}
            Ok(Step::Again(decoded, _)) => self.again.push(decoded),
            Ok(Step::Resolve(_)) => unreachable!("relations are set beforehand"),
            Ok(Step::Emit(mut ended, _)) => {
                while self.assembler.emit_part(&mut ended, |_| {}).expect("readable") {
                    self.blocks.extend(self.assembler.take_full());
                }
            }
        }
        self.assembler.spill().expect("disk space");
    }

    fn insert(&mut self, xid: Option<u32>, row: &Row) {
        let mut out = BytesMut::from(&b"I"[..]);
        xid.into_iter().for_each(|xid| out.put_u32(xid));
        out.put_u32(if row.followed { TABLE } else { OTHER_TABLE });
        out.put_u8(b'N');
        out.put_u16(1);
        out.put_u8(b't');
        out.put_u32(row.text.len() as u32);
        out.put_slice(row.text.as_bytes());
        self.send(&out);
    }

    fn whole(&mut self, xid: u32, end: u64, transaction: &Generated) {
        let mut begin = BytesMut::from(&b"B"[..]);
        begin.put_u64(end - 1);
        begin.put_i64(0);
        begin.put_u32(xid);
        self.send(&begin);
        transaction.rows.iter().for_each(|row| self.insert(None, row));
        let mut commit = BytesMut::from(&b"C\0"[..]);
        commit.put_u64(end - 1);
        commit.put_u64(end);
        commit.put_i64(0);
        self.send(&commit);
    }

    fn stream_block(&mut self, xid: u32, rows: &[Row], first: bool) {
        let mut start = BytesMut::from(&b"S"[..]);
        start.put_u32(xid);
        start.put_u8(u8::from(first));
        self.send(&start);
        rows.iter().for_each(|row| self.insert(Some(xid + row.subtransaction), row));
        self.send(b"E");
    }

    fn stream_end(&mut self, xid: u32, end: u64, transaction: &Generated) {
        for subtransaction in &transaction.rolled_back {
            self.stream_abort(xid, xid + subtransaction);
        }
        if !transaction.committed {
            return self.stream_abort(xid, xid);
        }
        let mut commit = BytesMut::from(&b"c"[..]);
        commit.put_u32(xid);
        commit.put_u8(0);
        commit.put_u64(end - 1);
        commit.put_u64(end);
        commit.put_i64(0);
        self.send(&commit);
    }

    fn stream_abort(&mut self, xid: u32, subxid: u32) {
        let mut abort = BytesMut::from(&b"A"[..]);
        abort.put_u32(xid);
        abort.put_u32(subxid);
        self.send(&abort);
    }
}

fn assembler(dir: &std::path::Path, memory_budget_bytes: usize) -> Assembler {
    let spool = SpoolConfig { dir: dir.to_owned(), memory_budget_bytes };
    let mut assembler = Assembler::new(Position::ZERO, spool);
    assembler.connected(None, Lsn(u64::MAX));
    let column = ColumnSpec {
        name: "text".to_owned(),
        attnum: 1,
        type_oid: 25,
        type_name: "text".to_owned(),
        codec: ValueKind::TEXT,
        key: true,
        field: 1,
    };
    let table = TableCodec {
        row_type: 9,
        table_oid: TABLE,
        key: [1].into_iter().collect(),
        old_rows: OldRows::AsCalled,
        decoder: RowDecoder::new([&column]),
        encoder: RowEncoder::new(&[column]),
        fields: vec![1],
        announcement: Bytes::from(v1::RowType { row_type: 9, ..v1::RowType::default() }.encode_to_vec()),
    };
    assembler.set_relation(TABLE, Followed::Yes(table.into()));
    assembler.set_relation(OTHER_TABLE, Followed::No);
    assembler
}

/// Sends all transactions: streamed ones first in interleaved blocks, then every commit in order.
fn run(assembler: &mut Assembler, transactions: &[Generated]) -> Vec<Block> {
    let mut server =
        Server { assembler, decoder: Decoder::new(2), blocks: Vec::new(), again: Vec::new(), refused: None };
    let xid = |n: usize| 1_000 + 10 * n as u32;
    let longest = transactions.iter().map(|transaction| transaction.rows.len()).max().unwrap_or(0);
    for (round, start) in (0..longest).step_by(7).enumerate() {
        for (n, transaction) in transactions.iter().enumerate().filter(|(_, transaction)| transaction.streamed) {
            if start < transaction.rows.len() {
                let end = (start + 7).min(transaction.rows.len());
                server.stream_block(xid(n), &transaction.rows[start..end], round == 0);
            }
        }
    }
    for (n, transaction) in transactions.iter().enumerate() {
        let end = 100 * (n as u64 + 1);
        if transaction.streamed {
            server.stream_end(xid(n), end, transaction);
        } else {
            server.whole(xid(n), end, transaction);
        }
    }
    assert!(server.refused.is_none(), "{:?}", server.refused);
    let mut blocks = server.blocks;
    blocks.extend(assembler.take());
    blocks
}

/// What a subscriber would see: position and text of each row; cut rows joined.
fn seen(blocks: &[Block]) -> Vec<(Position, String)> {
    let mut rows: Vec<(Position, Vec<u8>)> = Vec::new();
    let mut continues = false;
    for block in blocks {
        for entry in block.entries().iter().filter(|entry| entry.kind == Kind::Change) {
            let field = block.slice(entry);
            let change = v1::Change::decode(event_body(&field).expect("an event")).expect("a Change");
            assert_eq!(change.ordinal, entry.ordinal);
            match rows.last_mut() {
                Some((_, row)) if continues => row.extend_from_slice(&change.row),
                Some(_) | None => rows.push((entry.position(), change.row.to_vec())),
            }
            continues = change.continues;
        }
    }
    let text = |row: Vec<u8>| {
        let (mut bytes, mut len) = (&row[1..], 0_usize);
        for shift in (0..).step_by(7) {
            len |= usize::from(bytes[0] & 0x7F) << shift;
            let last = bytes[0] & 0x80 == 0;
            bytes = &bytes[1..];
            if last {
                break;
            }
        }
        assert_eq!(len, bytes.len());
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    };
    rows.into_iter().map(|(position, row)| (position, text(row))).collect()
}

fn expected(transactions: &[Generated]) -> Vec<(Position, String)> {
    let mut rows = Vec::new();
    for (n, transaction) in transactions.iter().enumerate().filter(|(_, transaction)| transaction.committed) {
        let kept = transaction.rows.iter().filter(|row| !transaction.rolled_back.contains(&row.subtransaction));
        for (ordinal, row) in kept.enumerate().filter(|(_, row)| row.followed) {
            let position = Position::new(Lsn(100 * (n as u64 + 1)), ordinal as u32 + 1);
            rows.push((position, row.text.clone()));
        }
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn committed_transactions_come_out_whole_once_and_in_order(
        transactions in proptest::collection::vec(generated(), 0..8),
        memory_budget_bytes in prop_oneof![Just(0_usize), Just(usize::MAX)],
    ) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut assembler = assembler(dir.path(), memory_budget_bytes);
        let blocks = run(&mut assembler, &transactions);
        prop_assert_eq!(seen(&blocks), expected(&transactions));
        let marks: Vec<(Kind, Position)> = blocks.iter().flat_map(|block| block.entries().to_vec())
            .map(|entry| (entry.kind, entry.position())).collect();
        prop_assert!(marks.is_sorted_by_key(|mark| mark.1));
        let count = |kind| marks.iter().filter(|mark| mark.0 == kind).count();
        prop_assert_eq!(count(Kind::Begin), count(Kind::Commit));

        // The server sends everything again after a reconnect: nothing comes out twice.
        assembler.connected(None, Lsn(u64::MAX));
        let table = assembler_relations(dir.path());
        table.into_iter().for_each(|(oid, followed)| assembler.set_relation(oid, followed));
        prop_assert_eq!(run(&mut assembler, &transactions), vec![]);
    }
}

fn assembler_relations(dir: &std::path::Path) -> Vec<(u32, Followed)> {
    assembler(dir, 0).relations.drain().collect()
}

#[test]
fn a_stored_transaction_that_comes_again_changed_is_a_discontinuity() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let row = Row { subtransaction: 0, text: "x".to_owned(), followed: true };
    let transaction = Generated { rows: vec![row], rolled_back: HashSet::new(), streamed: false, committed: true };
    let commit = |xid| TransactionId { commit_end_lsn: Lsn(100), xid, commit_time_us: 946_684_800_000_000 };
    for (stored_xid, same) in [(1_000, true), (1_001, false)] {
        let mut assembler = assembler(dir.path(), 0);
        assembler.start_epoch(Position::new(Lsn(100), 1));
        assembler.expected = Some(commit(stored_xid));
        let mut server = Server {
            assembler: &mut assembler,
            decoder: Decoder::new(2),
            blocks: Vec::new(),
            again: Vec::new(),
            refused: None,
        };
        server.whole(1_000, 100, &transaction);
        let diverged = matches!(server.refused, Some(CaptureError::Discontinuity(Discontinuity::Diverged)));
        assert_ne!(diverged, same);
    }
}

#[test]
fn what_comes_again_is_still_told_with_its_tables() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let row = |followed| Row { subtransaction: 0, text: "x".to_owned(), followed };
    let transaction = |followed| Generated {
        rows: vec![row(followed), row(followed)],
        rolled_back: HashSet::new(),
        streamed: false,
        committed: true,
    };
    let mut assembler = assembler(dir.path(), 0);
    assembler.start_epoch(Position::new(Lsn(500), 0));
    let mut server = Server {
        assembler: &mut assembler,
        decoder: Decoder::new(2),
        blocks: Vec::new(),
        again: Vec::new(),
        refused: None,
    };
    server.whole(1_000, 100, &transaction(true));
    server.whole(1_001, 200, &transaction(false));
    let mut unseen = crate::snapshot::Unseen::default();
    server.again.into_iter().for_each(|decoded| unseen.decoded(decoded));
    assert_eq!((unseen.writers(TABLE), unseen.confirm_floor()), (vec![1_000], Some(Lsn(99))));
}

#[test]
fn a_followed_change_where_there_was_none_is_a_discontinuity() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for followed in [true, false] {
        let row = Row { subtransaction: 0, text: "x".to_owned(), followed };
        let transaction = Generated { rows: vec![row], rolled_back: HashSet::new(), streamed: false, committed: true };
        let mut assembler = assembler(dir.path(), 0);
        // The last stored transaction ended at 50; progress was stored up to 500; then the server's disk was restored.
        assembler.start_epoch(Position::new(Lsn(500), 0));
        assembler.known_end_lsn = Lsn(50);
        let mut server = Server {
            assembler: &mut assembler,
            decoder: Decoder::new(2),
            blocks: Vec::new(),
            again: Vec::new(),
            refused: None,
        };
        server.whole(1_000, 100, &transaction);
        let diverged = matches!(server.refused, Some(CaptureError::Discontinuity(Discontinuity::Diverged)));
        assert_eq!(diverged, followed);
    }
}

#[test]
fn what_was_not_handed_over_stays_in_its_epoch() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut assembler = assembler(dir.path(), 0);
    assert!(matches!(assembler.progress(Lsn(100)), Ok(Some(_))));
    assembler.start_epoch(Position::new(Lsn(7), 0));
    assert_eq!(assembler.take(), None);
}

#[test]
fn an_overlong_prefix_is_left_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut assembler = assembler(dir.path(), 0);
    let prefix = "x".repeat(PREFIX_BYTES + 1);
    let message =
        Message::LogicalMessage { xid: None, transactional: false, message_lsn: Lsn(5), prefix: &prefix, content: b"" };
    assert!(matches!(assembler.handle(message), Ok(Step::Done)));
    assert_eq!(assembler.take(), None);
}

#[test]
fn an_announced_schema_change_is_noted_and_takes_an_ordinal_only() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut assembler = assembler(dir.path(), 0);
    let message = |prefix, content| Message::LogicalMessage {
        xid: None,
        transactional: true,
        message_lsn: Lsn(5),
        prefix,
        content,
    };
    assert!(assembler.handle(Message::Begin { final_lsn: Lsn(90), commit_time_us: 0, xid: 77 }).is_ok());
    assert!(assembler.handle(message(DDL_MESSAGE_PREFIX, b"ALTER TABLE")).is_ok());
    assert!(assembler.handle(message("outbox", b"1")).is_ok());
    let commit = Message::Commit { commit_lsn: Lsn(90), commit_end_lsn: Lsn(100), commit_time_us: 0 };
    let Ok(Step::Emit(mut ended, _)) = assembler.handle(commit) else { panic!("it has ended") };
    assert!(ended.announces_ddl);
    while assembler.emit_part(&mut ended, |_| {}).expect("readable") {}
    let block = assembler.take().expect("what is the application's");
    let ordinals: Vec<u32> =
        block.entries().iter().filter(|entry| entry.kind == Kind::Change).map(|entry| entry.ordinal).collect();
    assert_eq!(ordinals, [2]);
}

#[test]
fn progress_waits_for_what_must_come_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut assembler = assembler(dir.path(), 0);
    assembler.expected = Some(TransactionId { commit_end_lsn: Lsn(100), xid: 1, commit_time_us: 0 });
    assert!(matches!(assembler.progress(Lsn(100)), Ok(Some(_))));
    let error = assembler.progress(Lsn(101)).expect_err("the server is past it");
    assert!(matches!(error, CaptureError::Discontinuity(Discontinuity::Diverged)));
}

#[test]
fn a_row_that_cannot_be_encoded_is_found_with_its_transaction_when_that_is_sent_whole() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut assembler = assembler(dir.path(), 0);
    assembler.names.insert(TABLE, TableName::new("public", "note"));
    let row = |relation_oid| {
        let mut out = BytesMut::from(&b"I"[..]);
        out.put_u32(relation_oid);
        out.put_slice(b"N\0\x01t\0\0\0\x01\xff");
        out.freeze()
    };
    let at = |place| Undeliverable { xid: 77, commit_lsn: Lsn(90), place, reason: "why".to_owned() };
    let mut decoder = Decoder::new(2);
    assert_eq!(assembler.undeliverable("why".to_owned()), None);
    let begin = Message::Begin { final_lsn: Lsn(90), commit_time_us: 0, xid: 77 };
    assert!(assembler.handle(begin).is_ok());
    assert_eq!(assembler.undeliverable("why".to_owned()), Some(at(Place::Unknown)));
    let refused = assembler.handle(decoder.decode(&row(TABLE)).expect("well-formed")).expect_err("not UTF-8");
    assert!(refused.is_about_a_row());
    assert_eq!(assembler.undeliverable("why".to_owned()), Some(at(Place::In(TableName::new("public", "note")))));
    assembler.names.insert(OTHER_TABLE, TableName::new("public", "other"));
    assert!(assembler.handle(decoder.decode(&row(OTHER_TABLE)).expect("well-formed")).is_ok());
    assert_eq!(assembler.undeliverable("why".to_owned()), Some(at(Place::After(TableName::new("public", "other")))));
}
