//! A replication connection and its commands (PostgreSQL manual, section 55.4 "Streaming Replication Protocol").
//!
//! It deliberately does not reconnect, choose a start or judge an answer: capture does.

use tidegate_model::Lsn;
use tokio::time::timeout;

use crate::{
    ConnectConfig, ConnectError, ReplicationError, WalReader, WalWriter, pins,
    socket::Socket,
    stream,
    wire::{Row, Wire},
};

/// The oldest version that we support.
pub(crate) const OLDEST_VERSION: u32 = 140_000;

/// A connection in walsender mode, outside of a stream.
#[derive(Debug)]
pub struct ReplicationConnection {
    wire: Wire,
    server_version: u32,
    /// Something between us and PostgreSQL states another process than the one that answers.
    behind_pooler: bool,
}

/// The answer to IDENTIFY_SYSTEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made at initdb; the same on a server, its standbys, and restored images of it.
    pub system_identifier: u64,
    /// Current timeline.
    pub timeline: u32,
    /// End of the flushed WAL.
    pub flush_lsn: Lsn,
    /// The database that the connection is for.
    pub database: String,
}

/// A line of a timeline's history: the timeline that was left, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: u32,
    /// The last place of it that the next timeline shares.
    pub switch_lsn: Lsn,
}

/// What to stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Transactions that committed before are left out. The server silently starts at the slot's confirmed_flush_lsn where
    /// that is later.
    pub start_lsn: Lsn,
    /// Send large transactions while they are in progress; else each is sent whole, after its commit.
    pub in_progress: bool,
}

/// The highest pgoutput protocol that a server version speaks.
#[must_use]
pub fn protocol_version(server_version: u32) -> u8 {
    match server_version / 10_000 {
        ..14 => 1,
        14 => 2,
        15 => 3,
        16.. => 4,
    }
}

impl ReplicationConnection {
    /// Connects, logs in, and checks version and pinned settings.
    ///
    /// # Errors
    /// Everything that [`ConnectError`] tells apart.
    pub async fn connect(config: &ConnectConfig) -> Result<Self, ConnectError> {
        let connecting = Box::pin(Self::connect_unbounded(config));
        timeout(config.connect_timeout, connecting).await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout { address: config.address(), timeout: config.connect_timeout })
        })
    }

    async fn connect_unbounded(config: &ConnectConfig) -> Result<Self, ConnectError> {
        let config = &*config.current().await?;
        let socket = Socket::open(config).await?;
        let mut wire = Wire::log_in(config, socket).await?;
        let protocol = |problem: String| ConnectError::Protocol { address: config.address(), problem };
        let server_version = wire.server_version().ok_or_else(|| protocol("states no version".to_owned()))?;
        if server_version < OLDEST_VERSION {
            return Err(ConnectError::TooOld { version: server_version });
        }
        let rows = wire.query(&pins::query()).await.map_err(|error| protocol(error.to_string()))?;
        pins::check(rows.iter().flatten().map(Option::as_deref))?;
        let answering_pid = field(rows.first(), pins::PINS.len()).and_then(|pid| pid.parse().ok());
        let behind_pooler = answering_pid != Some(wire.stated_pid());
        Ok(ReplicationConnection { wire, server_version, behind_pooler })
    }

    /// Does a pooler pass this connection on?
    pub(crate) fn is_behind_pooler(&self) -> bool {
        self.behind_pooler
    }

    /// The server's version, such as 150020.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Who the server is and how far it is.
    ///
    /// # Errors
    /// The connection or the answer.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let rows = self.wire.query("IDENTIFY_SYSTEM").await?;
        let row = rows.first();
        let identity = || {
            Some(SystemIdentity {
                system_identifier: field(row, 0)?.parse().ok()?,
                timeline: field(row, 1)?.parse().ok()?,
                flush_lsn: field(row, 2)?.parse().ok()?,
                database: field(row, 3)?.to_owned(),
            })
        };
        identity().ok_or_else(|| malformed("IDENTIFY_SYSTEM"))
    }

    /// The timelines before `timeline`, oldest first.
    ///
    /// # Errors
    /// The connection, the answer, or a history file that the server no longer has.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<TimelineSwitch>, ReplicationError> {
        // The first timeline has no history file.
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let rows = self.wire.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = field(rows.first(), 1).ok_or_else(|| malformed("TIMELINE_HISTORY"))?;
        parse_history(content).ok_or_else(|| malformed("TIMELINE_HISTORY"))
    }

    /// Creates a slot of pgoutput in this database, and returns its consistent point: every transaction that commits after it
    /// will be streamed. Waits until the transactions that are running now have ended.
    ///
    /// `failover` lets standbys take the slot over; servers before 17 cannot, and it is ignored there.
    ///
    /// # Errors
    /// [`ReplicationError::SlotExists`], [`ReplicationError::TooManySlots`], [`ReplicationError::DecodingOff`], …
    pub async fn create_slot(&mut self, name: &str, failover: bool) -> Result<Lsn, ReplicationError> {
        let options = match (self.server_version, failover) {
            (170_000.., true) => "(SNAPSHOT 'nothing', FAILOVER true)",
            (150_000.., _) => "(SNAPSHOT 'nothing')",
            (_, _) => "NOEXPORT_SNAPSHOT",
        };
        let sql = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", quoted(name));
        let rows = self.wire.query(&sql).await?;
        let consistent_point = field(rows.first(), 1).and_then(|text| text.parse().ok());
        consistent_point.ok_or_else(|| malformed("CREATE_REPLICATION_SLOT"))
    }

    /// Begins to stream.
    ///
    /// # Errors
    /// The slot's state; see [`ReplicationError`].
    pub async fn start(mut self, options: &StreamOptions) -> Result<(WalReader, WalWriter), ReplicationError> {
        let sql = start_command(self.server_version, options);
        self.wire.begin_copy_both(&sql).await?;
        Ok(stream::split(self.wire.socket, self.wire.received))
    }
}

fn start_command(server_version: u32, options: &StreamOptions) -> String {
    let origin = if server_version >= 160_000 { ", origin 'any'" } else { "" };
    let streaming = if options.in_progress { "on" } else { "off" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {} (proto_version '{}', publication_names {}, streaming '{streaming}', \
         messages 'true', binary 'false'{origin})",
        quoted(&options.slot),
        options.start_lsn,
        protocol_version(server_version),
        // A list of identifiers within a string.
        literal(&quoted(&options.publication)),
    )
}

fn field(row: Option<&Row>, column: usize) -> Option<&str> {
    row?.get(column)?.as_deref()
}

fn malformed(command: &str) -> ReplicationError {
    ReplicationError::Protocol { problem: format!("malformed answer to {command}") }
}

/// Always quoted: the replication grammar has key words of its own.
fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// A string literal of the replication grammar, which knows no backslash escapes.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Lines of timeline, tab, switch point, tab, reason; comments begin with `#`.
fn parse_history(content: &str) -> Option<Vec<TimelineSwitch>> {
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let switch = |line: &str| {
        let mut words = line.split_whitespace();
        Some(TimelineSwitch { timeline: words.next()?.parse().ok()?, switch_lsn: words.next()?.parse().ok()? })
    };
    lines.map(switch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read() {
        let content = "1\t0/3000060\tno recovery target specified\n\n# a comment\n2\t16/B374D848\tbefore 2000-01-01\n";
        let expected = [
            TimelineSwitch { timeline: 1, switch_lsn: Lsn(0x300_0060) },
            TimelineSwitch { timeline: 2, switch_lsn: Lsn(0x16_B374_D848) },
        ];
        assert_eq!(parse_history(content).as_deref(), Some(&expected[..]));
        assert_eq!(parse_history("1"), None);
    }

    #[test]
    fn names_are_quoted_for_both_grammars() {
        let options = StreamOptions {
            slot: "my\"slot".to_owned(),
            publication: "o'p\"q".to_owned(),
            start_lsn: Lsn(0x1_0000_0002),
            in_progress: true,
        };
        let sql = start_command(150_000, &options);
        assert!(sql.starts_with("START_REPLICATION SLOT \"my\"\"slot\" LOGICAL 1/2 (proto_version '3'"), "{sql}");
        assert!(sql.contains("publication_names '\"o''p\"\"q\"'") && !sql.contains("origin"), "{sql}");
        assert!(start_command(180_000, &options).contains("proto_version '4'"));
    }
}
