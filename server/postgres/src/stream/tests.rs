//! What the reader promises, over a socket pair.

use super::*;
use proptest::prelude::*;
use tokio::net::UnixStream;

fn pair() -> (UnixStream, WalReader, WalWriter) {
    let (server, client) = UnixStream::pair().expect("a socket pair");
    let (reader, writer) = split(Socket::Unix(client), BytesMut::new());
    (server, reader, writer)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn xlog_data(lsn: u64, data: &[u8]) -> Vec<u8> {
    let mut body = vec![b'w'];
    body.extend(lsn.to_be_bytes());
    body.extend((lsn + 1).to_be_bytes());
    body.extend(7_u64.to_be_bytes());
    body.extend(data);
    message(b'd', &body)
}

fn keepalive(lsn: u64, reply: u8) -> Vec<u8> {
    let mut body = vec![b'k'];
    body.extend(lsn.to_be_bytes());
    body.extend(7_u64.to_be_bytes());
    body.push(reply);
    message(b'd', &body)
}

fn error_response(code: &str, routine: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{code}\0Mtext\0R{routine}\0\0").as_bytes())
}

#[tokio::test]
async fn frames_are_handed_out_whole_whatever_the_packets() {
    let (mut server, mut reader, _writer) = pair();
    let sent = [xlog_data(5, b"abc"), keepalive(9, 1), message(b'N', b"SNOTICE\0\0"), xlog_data(6, b"")].concat();
    let sending = async {
        for byte in &sent {
            server.write_all(&[*byte]).await.expect("writing");
            tokio::task::yield_now().await;
        }
    };
    let reading = async {
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let frames = reader.read().await.expect("reading");
            seen.extend(frames.map(|frame| format!("{frame:?}")));
        }
        seen
    };
    let (seen, ()) = tokio::join!(reading, sending);
    let data =
        |start: u64, data: &'static [u8]| Frame::XLogData { start_lsn: Lsn(start), server_lsn: Lsn(start + 1), data };
    let expected = [data(5, b"abc"), Frame::Keepalive { server_lsn: Lsn(9), reply_requested: true }, data(6, b"")];
    assert_eq!(seen, expected.map(|frame| format!("{frame:?}")));
}

#[tokio::test]
async fn frames_that_are_not_taken_come_again() {
    let (mut server, mut reader, _writer) = pair();
    server.write_all(&[keepalive(1, 0), keepalive(2, 0)].concat()).await.expect("writing");
    for expected in [1, 2] {
        let frame = reader.read().await.expect("reading").next();
        assert_eq!(frame, Some(Frame::Keepalive { server_lsn: Lsn(expected), reply_requested: false }));
    }
}

#[tokio::test]
async fn frames_before_an_error_are_handed_out_first() {
    let (mut server, mut reader, _writer) = pair();
    let sent = [keepalive(1, 0), error_response("58P01", "XLogReadDetermineTimeline")].concat();
    server.write_all(&sent).await.expect("writing");
    assert_eq!(reader.read().await.expect("reading").count(), 1);
    assert!(matches!(reader.read().await, Err(ReplicationError::SlotInvalidated { .. })));
}

#[tokio::test]
async fn a_publication_that_is_skipped_with_a_warning_is_an_error() {
    let (mut server, mut reader, _writer) = pair();
    let warning = message(b'N', b"SWARNING\0VWARNING\0C55000\0Mskipped\0RLoadPublications\0\0");
    server.write_all(&warning).await.expect("writing");
    assert!(matches!(reader.read().await, Err(ReplicationError::PublicationMissing { .. })));
}

#[tokio::test]
async fn the_end_of_the_stream_and_of_the_connection_are_told_apart() {
    let (mut server, mut reader, _writer) = pair();
    server.write_all(&message(b'c', b"")).await.expect("writing");
    assert!(matches!(reader.read().await, Err(ReplicationError::StreamEnded)));
    drop(server);
    assert!(matches!(reader.read().await, Err(ReplicationError::ConnectionLost { .. })));
}

#[tokio::test]
async fn memory_of_a_large_frame_is_given_back() {
    let (mut server, mut reader, _writer) = pair();
    let large = vec![b'x'; 9 << 20];
    let sent = [xlog_data(1, &large), keepalive(2, 0)].concat();
    let sending = async { server.write_all(&sent).await.expect("writing") };
    let reading = async {
        let Some(Frame::XLogData { data, .. }) = reader.read().await.expect("reading").next() else {
            panic!("not the frame")
        };
        assert_eq!(data.len(), 9 << 20);
        assert!(matches!(reader.read().await.expect("reading").next(), Some(Frame::Keepalive { .. })));
        assert!(reader.buffer.capacity() <= KEEP_BYTES);
    };
    tokio::join!(sending, reading);
}

#[tokio::test]
async fn a_claimed_length_reserves_no_memory() {
    let (mut server, mut reader, _writer) = pair();
    server.write_all(b"d\x3f\xff\xff\xffw").await.expect("writing");
    drop(server);
    assert!(matches!(reader.read().await, Err(ReplicationError::ConnectionLost { .. })));
    assert!(reader.buffer.capacity() <= 4 * READ_BYTES);
    let (mut server, mut reader, _writer) = pair();
    server.write_all(b"d\xff\xff\xff\xffw").await.expect("writing");
    assert!(matches!(reader.read().await, Err(ReplicationError::Protocol { .. })));
}

#[tokio::test]
async fn a_status_is_sent_as_the_manual_says() {
    let (mut server, _reader, mut writer) = pair();
    let status = StandbyStatus {
        received_lsn: Lsn(3),
        flushed_lsn: Lsn(2),
        applied_lsn: Lsn(1),
        clock_us: POSTGRES_EPOCH_US + 5,
        reply_requested: true,
    };
    writer.status(status).await.expect("sending");
    let mut sent = [0; 39];
    server.read_exact(&mut sent).await.expect("reading");
    let mut expected = vec![b'd', 0, 0, 0, 38, b'r'];
    for number in [3_u64, 2, 1, 5] {
        expected.extend(number.to_be_bytes());
    }
    expected.push(1);
    assert_eq!(sent[..], expected);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), tag in 0_usize..4) {
        for body in [bytes.clone(), message(b"dENC"[tag], &bytes)] {
            if let Ok(Front::Other(length)) = front(&body) {
                prop_assert!(length <= body.len());
            }
            let mut consumed = 0;
            for frame in (Frames { buffer: &body, consumed: &mut consumed }) {
                let is_frame = matches!(frame, Frame::XLogData { .. } | Frame::Keepalive { .. });
                prop_assert!(is_frame);
            }
            prop_assert!(consumed <= body.len());
            let _read_or_refused = other_message(BytesMut::from(&body[..])).is_ok();
        }
    }
}
