//! Findings about the server and the role. Pure.

use super::Finding;
use crate::{ServerFacts, publication::quoted};

/// Warn below this: a subscriber's outage of minutes would lose the slot.
const SMALL_KEEP_SIZE_MIB: i64 = 1024;

/// `slot_exists`: ours needs no new one.
pub(super) fn findings(facts: &ServerFacts, slot_exists: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.in_recovery {
        findings.push(Finding::error(
            "standby",
            "the server is a standby: publications and slots cannot be made there",
            "give the address of the primary",
        ));
    }
    findings.extend(wal_level(facts));
    findings.extend(privileges(facts));
    if !slot_exists && facts.used_replication_slots >= facts.max_replication_slots {
        let in_use = format!("all {} replication slots are taken", facts.max_replication_slots);
        findings.push(Finding::error(
            "slots_used_up",
            in_use,
            "drop slots that nobody reads (pg_replication_slots where not active), or raise max_replication_slots and \
             restart PostgreSQL",
        ));
    }
    if facts.used_wal_senders >= facts.max_wal_senders {
        let in_use = format!("all {} walsenders are at work", facts.max_wal_senders);
        findings.push(Finding::error("senders_used_up", in_use, "raise max_wal_senders and restart PostgreSQL"));
    }
    findings.extend(encoding(facts));
    findings.extend(limits(facts));
    findings
}

fn wal_level(facts: &ServerFacts) -> Option<Finding> {
    if facts.wal_level == "logical" {
        return None;
    }
    let mend = match facts.managed {
        Some(service) => service.enabling_logical_decoding(),
        None => "run ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL",
    };
    Some(Finding::error("wal_level", format!("wal_level is '{}', not 'logical'", facts.wal_level), mend))
}

fn privileges(facts: &ServerFacts) -> Option<Finding> {
    if facts.can_replicate {
        return None;
    }
    let role = quoted(&facts.role);
    let mend = match facts.managed {
        Some(service) => service.allowing_replication(&role),
        None => format!("run ALTER ROLE {role} REPLICATION as a superuser"),
    };
    Some(Finding::error("replication_privilege", format!("role {role} may not replicate"), mend))
}

fn encoding(facts: &ServerFacts) -> Option<Finding> {
    if facts.encoding != "SQL_ASCII" {
        return None;
    }
    Some(Finding::warning(
        "sql_ascii",
        format!(
            "the encoding of database {} is SQL_ASCII, which lets any bytes in: a transaction with text that is not UTF-8 \
             cannot be delivered, and resets every subscriber or stops the source, as on_discontinuity says",
            facts.database
        ),
        "convert the database to UTF8 (dump it, correct what is not UTF-8, restore it), or make sure that every client \
         writes UTF-8",
    ))
}

fn limits(facts: &ServerFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match facts.max_slot_wal_keep_size_mib {
        None => findings.push(Finding::info(
            "wal_keep_unlimited",
            "max_slot_wal_keep_size is -1: while Tidegate is down, PostgreSQL keeps all WAL and its disk may fill",
            "watch tidegate's metric of retained WAL, or set max_slot_wal_keep_size to what the disk can spare",
        )),
        Some(mib) if mib < SMALL_KEEP_SIZE_MIB => findings.push(Finding::warning(
            "wal_keep_small",
            format!("max_slot_wal_keep_size is {mib} MiB: a short outage loses the slot, and subscribers start over"),
            "set it to the WAL of the longest outage that is to be survived, such as 10GB",
        )),
        Some(_) => {}
    }
    if facts.wal_sender_timeout_ms == 0 {
        findings.push(Finding::warning(
            "wal_sender_timeout",
            "wal_sender_timeout is 0: the server sends no keepalives, and holds the slot of a dead connection for long",
            "set it to 60s",
        ));
    }
    if facts.idle_replication_slot_timeout_s > 0 {
        findings.push(Finding::warning(
            "slot_idle_timeout",
            format!(
                "idle_replication_slot_timeout is {} s: a longer outage of Tidegate loses the slot",
                facts.idle_replication_slot_timeout_s
            ),
            "set it to 0, or beyond the longest outage that is to be survived",
        ));
    }
    findings
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ManagedService;
    use tidegate_model::Lsn;

    /// A server that is ready.
    pub(in crate::preflight) fn ready() -> ServerFacts {
        ServerFacts {
            version: 150_000,
            wal_level: "logical".to_owned(),
            max_replication_slots: 10,
            used_replication_slots: 1,
            max_wal_senders: 10,
            used_wal_senders: 1,
            in_recovery: false,
            role: "cdc".to_owned(),
            is_superuser: false,
            can_replicate: true,
            can_create: true,
            database: "shop".to_owned(),
            encoding: "UTF8".to_owned(),
            system_identifier: Some(1),
            timeline: Some(1),
            current_wal_flush_lsn: Lsn(1),
            max_slot_wal_keep_size_mib: Some(10_000),
            wal_sender_timeout_ms: 60_000,
            idle_replication_slot_timeout_s: 0,
            managed: None,
        }
    }

    fn codes(facts: &ServerFacts) -> Vec<&'static str> {
        findings(facts, false).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn a_ready_server_has_no_findings() {
        assert_eq!(codes(&ready()), Vec::<&str>::new());
    }

    #[test]
    fn each_shortcoming_is_named() {
        assert_eq!(codes(&ServerFacts { in_recovery: true, ..ready() }), ["standby"]);
        assert_eq!(codes(&ServerFacts { wal_level: "replica".to_owned(), ..ready() }), ["wal_level"]);
        assert_eq!(codes(&ServerFacts { can_replicate: false, ..ready() }), ["replication_privilege"]);
        assert_eq!(codes(&ServerFacts { used_replication_slots: 10, ..ready() }), ["slots_used_up"]);
        assert_eq!(codes(&ServerFacts { used_wal_senders: 10, ..ready() }), ["senders_used_up"]);
        assert_eq!(codes(&ServerFacts { max_slot_wal_keep_size_mib: None, ..ready() }), ["wal_keep_unlimited"]);
        assert_eq!(codes(&ServerFacts { max_slot_wal_keep_size_mib: Some(64), ..ready() }), ["wal_keep_small"]);
        assert_eq!(codes(&ServerFacts { encoding: "SQL_ASCII".to_owned(), ..ready() }), ["sql_ascii"]);
        assert_eq!(codes(&ServerFacts { wal_sender_timeout_ms: 0, ..ready() }), ["wal_sender_timeout"]);
        assert_eq!(codes(&ServerFacts { idle_replication_slot_timeout_s: 9, ..ready() }), ["slot_idle_timeout"]);
    }

    #[test]
    fn a_slot_of_ours_needs_no_free_one() {
        assert!(findings(&ServerFacts { used_replication_slots: 10, ..ready() }, true).is_empty());
    }

    #[test]
    fn a_managed_service_is_mended_its_own_way() {
        let managed = Some(ManagedService::AmazonRds);
        let facts = ServerFacts { wal_level: "replica".to_owned(), can_replicate: false, managed, ..ready() };
        let mends: Vec<String> = findings(&facts, false).into_iter().map(|finding| finding.mend).collect();
        assert!(
            mends[0].contains("rds.logical_replication") && mends[1].contains("GRANT rds_replication"),
            "{mends:?}"
        );
    }
}
