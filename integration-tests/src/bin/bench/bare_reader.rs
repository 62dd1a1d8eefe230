//! The peer that does nothing but read: the coalescing replication reader, its frames discarded.

use std::time::{Duration, Instant};

use anyhow::Result;
use tidegate_model::Lsn;
use tidegate_postgres::{
    ConnectConfig, Frame, ReplicationConnection, StandbyStatus, StreamOptions, WalReader, WalWriter,
};

/// A status that confirms nothing.
pub(crate) fn alive(received_lsn: Lsn) -> StandbyStatus {
    StandbyStatus { received_lsn, flushed_lsn: Lsn::ZERO, applied_lsn: Lsn::ZERO, clock_us: 0, reply_requested: false }
}

/// Opens the stream of a slot; returns the protocol version too.
pub(crate) async fn open(url: &str, slot: &str, publication: &str) -> Result<(WalReader, WalWriter, u8)> {
    let connection = ReplicationConnection::connect(&ConnectConfig::from_url(url)?).await?;
    let version = tidegate_postgres::protocol_version(connection.server_version());
    let options = StreamOptions {
        slot: slot.to_owned(),
        publication: publication.to_owned(),
        start_lsn: Lsn::ZERO,
        in_progress: true,
    };
    let (reader, writer) = connection.start(&options).await?;
    Ok((reader, writer, version))
}

/// Reads until the stream has passed the LSN; returns the time that it took, connecting included.
pub(crate) async fn drain(url: &str, slot: &str, publication: &str, end: Lsn) -> Result<Duration> {
    let start = Instant::now();
    let (mut reader, mut writer, _) = open(url, slot, publication).await?;
    loop {
        let mut reply = None;
        for frame in reader.read().await? {
            match frame {
                Frame::XLogData { start_lsn, .. } if start_lsn > end => return Ok(start.elapsed()),
                Frame::XLogData { .. } => {}
                Frame::Keepalive { server_lsn, reply_requested } => {
                    if reply_requested {
                        reply = Some(server_lsn);
                    }
                }
            }
        }
        if let Some(received_lsn) = reply {
            writer.status(alive(received_lsn)).await?;
        }
    }
}
