//! Findings about the slot, where it exists already. Pure.

use super::{CheckRequest, Finding};
use crate::{ServerFacts, SlotStatus};

pub(super) fn findings(facts: &ServerFacts, request: &CheckRequest, slot: Option<&SlotStatus>) -> Vec<Finding> {
    let Some(slot) = slot else { return Vec::new() };
    let name = &request.slot;
    let mut findings = Vec::new();
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database.as_deref() != Some(facts.database.as_str()) {
        let plugin = slot.plugin.as_deref().unwrap_or("physical replication");
        let database = slot.database.as_deref().unwrap_or("no database");
        findings.push(Finding::error(
            "slot_unsuitable",
            format!("slot '{name}' is of {plugin} and {database}, not of pgoutput and {}", facts.database),
            "configure another slot name",
        ));
        return findings;
    }
    if slot.two_phase {
        findings.push(Finding::error(
            "slot_two_phase",
            format!("slot '{name}' sends prepared transactions, which Tidegate does not read"),
            format!("drop it with SELECT pg_drop_replication_slot('{name}'); Tidegate makes its own"),
        ));
    }
    if slot.is_lost() {
        let reason = slot.invalidation_reason.as_deref().unwrap_or("wal_removed");
        findings.push(Finding::warning(
            "slot_lost",
            format!("slot '{name}' is of no use any more ({reason}): changes since then are gone"),
            "Tidegate starts over with a new slot under on_discontinuity: reset; raise max_slot_wal_keep_size",
        ));
    }
    if let Some(pid) = slot.active_pid {
        findings.push(Finding::info(
            "slot_active",
            format!("slot '{name}' is being read by process {pid}"),
            "nothing, if that is Tidegate; else configure another slot name",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{WalStatus, preflight::server::tests::ready};
    use tidegate_model::TablePatterns;

    fn slot() -> SlotStatus {
        SlotStatus {
            plugin: Some("pgoutput".to_owned()),
            database: Some("shop".to_owned()),
            active_pid: None,
            restart_lsn: None,
            confirmed_flush_lsn: None,
            wal_status: Some(WalStatus::Reserved),
            invalidation_reason: None,
            failover: false,
            two_phase: false,
            temporary: false,
            safe_wal_size: None,
            retained_wal_bytes: 0,
        }
    }

    fn codes(slot: &SlotStatus) -> Vec<&'static str> {
        let patterns = TablePatterns::parse(["public.*"]).expect("a valid pattern");
        let request = CheckRequest { slot: "s".to_owned(), publication: "p".to_owned(), patterns };
        findings(&ready(), &request, Some(slot)).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn each_shortcoming_is_named() {
        assert_eq!(codes(&slot()), Vec::<&str>::new());
        assert_eq!(codes(&SlotStatus { plugin: Some("wal2json".to_owned()), ..slot() }), ["slot_unsuitable"]);
        assert_eq!(codes(&SlotStatus { database: Some("other".to_owned()), ..slot() }), ["slot_unsuitable"]);
        assert_eq!(codes(&SlotStatus { wal_status: Some(WalStatus::Lost), ..slot() }), ["slot_lost"]);
        assert_eq!(codes(&SlotStatus { two_phase: true, ..slot() }), ["slot_two_phase"]);
        assert_eq!(codes(&SlotStatus { active_pid: Some(7), ..slot() }), ["slot_active"]);
    }
}
