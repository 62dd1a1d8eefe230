//! What the decoder promises: it reads what a server writes, refuses the rest, and never panics.

use super::*;
use proptest::prelude::*;

/// Writes messages as the server does.
#[derive(Default)]
struct Sent(Vec<u8>);

impl Sent {
    fn new(tag: u8) -> Self {
        Sent(vec![tag])
    }

    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn text(mut self, value: &str) -> Self {
        self.0.extend(value.as_bytes());
        self.u8(0)
    }

    fn sized(mut self, value: &[u8]) -> Self {
        self = self.u32(value.len() as u32);
        self.0.extend(value);
        self
    }

    fn tuple(mut self, values: &[TupleValue<'_>]) -> Self {
        self = self.u16(values.len() as u16);
        for value in values {
            self = match value {
                TupleValue::Null => self.u8(b'n'),
                TupleValue::Unchanged => self.u8(b'u'),
                TupleValue::Text(text) => self.u8(b't').sized(text),
                TupleValue::Binary(bytes) => self.u8(b'b').sized(bytes),
            };
        }
        self
    }
}

const ROW: [TupleValue<'static>; 4] =
    [TupleValue::Text(b"7"), TupleValue::Null, TupleValue::Unchanged, TupleValue::Binary(b"\0\x01")];

fn in_stream_block() -> Decoder {
    let mut decoder = Decoder::new(2);
    decoder.decode(&Sent::new(b'S').u32(900).u8(1).0).expect("a stream start");
    decoder
}

#[test]
fn a_transaction_is_read() {
    let mut decoder = Decoder::new(1);
    let begin = Sent::new(b'B').u64(0x10).u64(1).u32(77).0;
    let commit = Sent::new(b'C').u8(0).u64(0x10).u64(0x18).u64(1).0;
    let commit_time_us = POSTGRES_EPOCH_US + 1;
    assert_eq!(decoder.decode(&begin), Ok(Message::Begin { final_lsn: Lsn(0x10), commit_time_us, xid: 77 }));
    assert_eq!(
        decoder.decode(&commit),
        Ok(Message::Commit { commit_lsn: Lsn(0x10), commit_end_lsn: Lsn(0x18), commit_time_us })
    );
}

#[test]
fn a_relation_is_read_and_an_empty_schema_is_pg_catalog() {
    let sent = Sent::new(b'R').u32(5).text("").text("Größe").u8(b'f').u16(1).u8(1).text("id").u32(23).u32(u32::MAX).0;
    let mut decoder = Decoder::new(4);
    let Ok(Message::Relation { xid: None, relation }) = decoder.decode(&sent) else { panic!("not a relation") };
    assert_eq!((relation.schema.as_str(), relation.table.as_str()), ("pg_catalog", "Größe"));
    assert_eq!(relation.replica_identity, ReplicaIdentity::Full);
    let column = RelationColumn { name: "id".to_owned(), type_oid: 23, type_modifier: -1, identity: true };
    assert_eq!(relation.columns, [column]);
}

#[test]
fn rows_are_read_in_place() {
    let mut decoder = Decoder::new(1);
    let sent = Sent::new(b'U').u32(5).u8(b'K').tuple(&ROW[..1]).u8(b'N').tuple(&ROW).0;
    let Ok(Message::Update { xid: None, relation_oid: 5, old: Some((OldTupleKind::Key, old)), new }) =
        decoder.decode(&sent)
    else {
        panic!("not an update")
    };
    assert_eq!(old.iter().collect::<Vec<_>>(), ROW[..1]);
    assert_eq!(new.iter().collect::<Vec<_>>(), ROW);
    assert_eq!(new.column_count(), 4);
}

#[test]
fn xids_are_read_inside_stream_blocks_only() {
    let mut decoder = in_stream_block();
    let sent = Sent::new(b'I').u32(901).u32(5).u8(b'N').tuple(&ROW).0;
    assert!(matches!(decoder.decode(&sent), Ok(Message::Insert { xid: Some(901), relation_oid: 5, .. })));
    assert_eq!(decoder.decode(b"E"), Ok(Message::StreamStop));
    let sent = Sent::new(b'I').u32(5).u8(b'N').tuple(&ROW).0;
    assert!(matches!(decoder.decode(&sent), Ok(Message::Insert { xid: None, relation_oid: 5, .. })));
}

#[test]
fn truncates_and_messages_are_read() {
    let mut decoder = in_stream_block();
    let sent = Sent::new(b'T').u32(901).u32(2).u8(3).u32(5).u32(6).0;
    let truncate =
        Message::Truncate { xid: Some(901), relation_oids: vec![5, 6], cascade: true, restart_identity: true };
    assert_eq!(decoder.decode(&sent), Ok(truncate));
    let sent = Sent::new(b'M').u32(901).u8(1).u64(0x20).text("outbox").sized(b"\xff\0").0;
    let message = Message::LogicalMessage {
        xid: Some(901),
        transactional: true,
        message_lsn: Lsn(0x20),
        prefix: "outbox",
        content: b"\xff\0",
    };
    assert_eq!(decoder.decode(&sent), Ok(message));
}

#[test]
fn marks_out_of_place_are_refused() {
    let begin = Sent::new(b'B').u64(0x10).u64(1).u32(77).0;
    let start = Sent::new(b'S').u32(900).u8(1).0;
    assert_eq!(in_stream_block().decode(&begin), Err(DecodeError::OutOfPlace { tag: b'B' }));
    assert_eq!(in_stream_block().decode(&start), Err(DecodeError::OutOfPlace { tag: b'S' }));
    assert_eq!(Decoder::new(2).decode(b"E"), Err(DecodeError::OutOfPlace { tag: b'E' }));
    assert_eq!(Decoder::new(1).decode(&start), Err(DecodeError::OutOfPlace { tag: b'S' }));
}

#[test]
fn two_phase_messages_are_named() {
    for tag in *b"bPKrp" {
        assert_eq!(Decoder::new(3).decode(&[tag, 0]), Err(DecodeError::TwoPhase { tag }));
    }
}

#[test]
fn a_refused_message_changes_nothing() {
    let mut decoder = Decoder::new(2);
    let too_long = Sent::new(b'S').u32(900).u8(1).u8(0).0;
    assert_eq!(decoder.decode(&too_long), Err(DecodeError::Trailing { tag: b'S', byte_count: 1 }));
    assert_eq!(decoder.decode(b"E"), Err(DecodeError::OutOfPlace { tag: b'E' }));
}

#[test]
fn every_prefix_of_a_message_is_refused() {
    let messages = [
        Sent::new(b'U').u32(5).u8(b'O').tuple(&ROW).u8(b'N').tuple(&ROW).0,
        Sent::new(b'R').u32(5).text("a").text("b").u8(b'd').u16(1).u8(0).text("id").u32(23).u32(0).0,
        Sent::new(b'M').u8(0).u64(0x20).text("p").sized(b"content").0,
        Sent::new(b'T').u32(2).u8(0).u32(5).u32(6).0,
    ];
    for message in messages {
        Decoder::new(4).decode(&message).expect("the whole message is valid");
        for end in 0..message.len() {
            assert!(Decoder::new(4).decode(&message[..end]).is_err(), "prefix of {end} bytes of {message:?}");
        }
    }
}

/// Any message at all: bytes that look like pgoutput more often than noise does.
fn bytes_like_a_message() -> impl Strategy<Value = Vec<u8>> {
    let tag = proptest::sample::select(b"BCORYIUDTMSEcAbPKrp".to_vec());
    let byte = prop_oneof![Just(0_u8), Just(1), proptest::sample::select(b"NKOntubdf".to_vec()), any::<u8>()];
    (tag, proptest::collection::vec(byte, 0..80)).prop_map(|(tag, rest)| {
        let mut bytes = vec![tag];
        bytes.extend(rest);
        bytes
    })
}

fn walk(message: &Message<'_>) -> usize {
    match message {
        Message::Insert { new, .. } => new.iter().count(),
        Message::Update { old, new, .. } => old.map_or(0, |(_, old)| old.iter().count()) + new.iter().count(),
        Message::Delete { old, .. } => old.iter().count(),
        Message::Truncate { relation_oids, .. } => relation_oids.len(),
        _ => 0,
    }
}

fn any_value() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (proptest::sample::select(b"nutb".to_vec()), proptest::collection::vec(any::<u8>(), 0..20))
}

fn values(drawn: &[(u8, Vec<u8>)]) -> Vec<TupleValue<'_>> {
    drawn
        .iter()
        .map(|(kind, bytes)| match kind {
            b'n' => TupleValue::Null,
            b'u' => TupleValue::Unchanged,
            b't' => TupleValue::Text(bytes),
            _ => TupleValue::Binary(bytes),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_never_panic(
        version in 0_u8..6,
        messages in proptest::collection::vec(
            prop_oneof![bytes_like_a_message(), proptest::collection::vec(any::<u8>(), 0..60)], 0..12),
    ) {
        let mut decoder = Decoder::new(version);
        for bytes in &messages {
            if let Ok(message) = decoder.decode(bytes) {
                prop_assert!(walk(&message) <= bytes.len());
            }
        }
    }

    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut sent = Sent::new(b'U').u32(5).u8(b'O').tuple(&ROW).u8(b'N').tuple(&ROW).0;
        let at = at.index(sent.len());
        sent[at] = byte;
        if let Ok(message) = Decoder::new(4).decode(&sent) {
            prop_assert!(walk(&message) <= sent.len());
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        xid in any::<u32>(), oid in any::<u32>(),
        old in proptest::collection::vec(any_value(), 0..9), new in proptest::collection::vec(any_value(), 0..9),
    ) {
        let (old, new) = (values(&old), values(&new));
        let sent = Sent::new(b'U').u32(xid).u32(oid).u8(b'O').tuple(&old).u8(b'N').tuple(&new).0;
        let mut decoder = in_stream_block();
        let Ok(Message::Update { xid: read_xid, relation_oid, old: Some((kind, read_old)), new: read_new }) =
            decoder.decode(&sent) else { return Err(TestCaseError::fail("not an update")) };
        prop_assert_eq!((read_xid, relation_oid, kind), (Some(xid), oid, OldTupleKind::Full));
        prop_assert_eq!(read_old.iter().collect::<Vec<_>>(), old);
        prop_assert_eq!(read_new.iter().collect::<Vec<_>>(), new);
    }
}
