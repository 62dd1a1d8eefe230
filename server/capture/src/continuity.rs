//! Can what the server sends next be proved to join up with what is stored? Pure.
//!
//! The proof, at every connection: the same system; its WAL reaches as far as ours; on the way from our timeline to its own,
//! nothing was cut off that we have received, or had delivered before the machine went down; the slot stands where we confirmed, or before. START_REPLICATION below a slot's
//! confirmed_flush_lsn silently starts there, so a slot that is ahead of us means a gap. A restored disk image can pass all
//! of these; it is found out by the last stored transaction, which was left unconfirmed and must come again
//! with the same end LSN, xid and commit time ([`crate::assembler`]).

use tidegate_model::{Delivered, EpochInfo, Lsn, Position, TransactionId};
use tidegate_postgres::{SlotStatus, SystemIdentity, TimelineSwitch, WalStatus};

use crate::Undeliverable;

/// Why continuity cannot be proved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Discontinuity {
    /// The slot is gone.
    #[error("replication slot {slot} is missing: it was dropped, or the server was failed over without it")]
    SlotMissing {
        /// The slot's name.
        slot: String,
    },
    /// PostgreSQL has removed WAL that the slot needs.
    #[error("replication slot {slot} is lost: {reason}; raise max_slot_wal_keep_size if this recurs")]
    SlotLost {
        /// The slot's name.
        slot: String,
        /// `wal_status`, or `invalidation_reason`.
        reason: String,
    },
    /// The slot has been created again, or someone else has read from it.
    #[error(
        "replication slot {slot} stands at {confirmed_flush_lsn}, beyond {received_lsn} that was received: \
         it was created again or read by someone else"
    )]
    SlotAhead {
        /// The slot's name.
        slot: String,
        /// Where the slot stands.
        confirmed_flush_lsn: Lsn,
        /// What was received.
        received_lsn: Lsn,
    },
    /// The publication has been dropped and created again.
    #[error("publication {publication} has been created again; changes made without it were not sent")]
    PublicationRecreated {
        /// The publication's name.
        publication: String,
    },
    /// The publication has been altered so that changes may not have been sent.
    #[error(
        "publication {publication} has been altered: {what} was taken out, put back or changed; changes made meanwhile may not \
         have been sent"
    )]
    PublicationChanged {
        /// The publication's name.
        publication: String,
        /// The tables and schemas, or its options.
        what: String,
    },
    /// Another server.
    #[error("the server is another system ({found}) than the one stored ({stored})")]
    OtherSystem {
        /// What the server says.
        found: u64,
        /// What is stored.
        stored: u64,
    },
    /// The server has less WAL than we have received.
    #[error(
        "the server's WAL ends at {flush_lsn}, before {received_lsn} that was received: it was restored or has lost data"
    )]
    ServerBehind {
        /// The server's end.
        flush_lsn: Lsn,
        /// What was received.
        received_lsn: Lsn,
    },
    /// A promotion has cut off WAL that we have received.
    #[error("timeline {timeline} has branched off before {received_lsn} that was received")]
    TimelineDiverged {
        /// The server's timeline.
        timeline: u32,
        /// What was received.
        received_lsn: Lsn,
    },
    /// A promotion may have cut off WAL that we have delivered.
    #[error(
        "timeline {timeline} branched off after {stored_lsn} that is stored, but this machine went down since, and what \
         subscribers had received beyond that is not known"
    )]
    TimelineUnproved {
        /// The server's timeline.
        timeline: u32,
        /// What is stored.
        stored_lsn: Lsn,
    },
    /// The last stored transaction did not come again as it was.
    #[error("the server's history differs from what is stored: it was restored from an image or backup")]
    Diverged,
    /// A transaction has to be left out.
    #[error(transparent)]
    Undeliverable(#[from] Undeliverable),
}

/// What is known of the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) epoch: EpochInfo,
    /// The highest position received, durable or not.
    pub(crate) received: Position,
    /// What had been delivered before we started.
    pub(crate) delivered: Delivered,
    /// The last transaction received, if any.
    pub(crate) last_transaction: Option<TransactionId>,
}

/// What the server says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) identity: &'a SystemIdentity,
    pub(crate) slot_name: &'a str,
    pub(crate) slot: Option<&'a SlotStatus>,
    /// The switches that led to the server's timeline, oldest first.
    pub(crate) history: &'a [TimelineSwitch],
}

/// The proof holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Continues {
    /// Must come again before anything new.
    pub(crate) expected: Option<TransactionId>,
    /// The epoch goes on on this timeline.
    pub(crate) timeline: u32,
}

/// Tries the proof.
///
/// # Errors
/// The first part of it that fails.
pub(crate) fn prove(past: &Past, facts: &Facts<'_>) -> Result<Continues, Discontinuity> {
    let identity = facts.identity;
    if identity.system_identifier != past.epoch.system_identifier {
        return Err(Discontinuity::OtherSystem {
            found: identity.system_identifier,
            stored: past.epoch.system_identifier,
        });
    }
    let received_lsn = past.received.lsn;
    timeline_holds(past, facts)?;
    if identity.flush_lsn < received_lsn {
        return Err(Discontinuity::ServerBehind { flush_lsn: identity.flush_lsn, received_lsn });
    }
    let confirmed_flush_lsn = usable_slot(facts.slot_name, facts.slot)?;
    if confirmed_flush_lsn > received_lsn {
        let slot = facts.slot_name.to_owned();
        return Err(Discontinuity::SlotAhead { slot, confirmed_flush_lsn, received_lsn });
    }
    let expected = past.last_transaction.filter(|last| confirmed_flush_lsn < last.commit_end_lsn);
    Ok(Continues { expected, timeline: identity.timeline })
}

/// Where the slot stands, if it can be read from.
///
/// # Errors
/// It is missing or lost.
pub(crate) fn usable_slot(name: &str, slot: Option<&SlotStatus>) -> Result<Lsn, Discontinuity> {
    let slot = slot.ok_or_else(|| Discontinuity::SlotMissing { slot: name.to_owned() })?;
    let lost = |reason: &str| Discontinuity::SlotLost { slot: name.to_owned(), reason: reason.to_owned() };
    if let Some(reason) = &slot.invalidation_reason {
        return Err(lost(reason));
    }
    if slot.wal_status == Some(WalStatus::Lost) {
        return Err(lost("max_slot_wal_keep_size was exceeded and its WAL removed"));
    }
    slot.confirmed_flush_lsn.ok_or_else(|| lost("it has no confirmed_flush_lsn"))
}

fn timeline_holds(past: &Past, facts: &Facts<'_>) -> Result<(), Discontinuity> {
    let timeline = facts.identity.timeline;
    if timeline == past.epoch.timeline {
        return Ok(());
    }
    let received_lsn = match past.delivered {
        Delivered::Stored | Delivered::Unknown => past.received.lsn,
        Delivered::UpTo(delivered_lsn) => past.received.lsn.max(delivered_lsn),
    };
    let left_at = facts.history.iter().find(|switch| switch.timeline == past.epoch.timeline);
    match left_at {
        Some(switch) if switch.switch_lsn < received_lsn => {
            Err(Discontinuity::TimelineDiverged { timeline, received_lsn })
        }
        Some(_) if past.delivered == Delivered::Unknown => {
            Err(Discontinuity::TimelineUnproved { timeline, stored_lsn: received_lsn })
        }
        Some(_) => Ok(()),
        None => Err(Discontinuity::TimelineDiverged { timeline, received_lsn }),
    }
}
