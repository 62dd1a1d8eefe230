//! What must be in place before a connection can stream: settings, publication, slot.
//!
//! The publication is created before the slot, since pgoutput looks it up as it was at each change. A table without a usable
//! replica identity is left out of a publication that we create: publishing it would make the application's own UPDATE and
//! DELETE fail.

use tidegate_model::{Lsn, TableName};
use tidegate_postgres::{
    NewPublication, Persistence, PublicationContent, ReplicationConnection, Session, SlotStatus, TableInfo, TableKind,
    backend_application, create_publication, drop_slot, publication_content, server_facts, slot_status, tables,
    terminate_backend,
};
use tracing::{info, warn};

use crate::{CaptureConfig, CaptureError};

/// Failover slots exist from here on.
const FAILOVER_VERSION: u32 = 170_000;

/// How long a stale walsender may take to end.
const RELEASE_TIMEOUT_MS: i64 = 5_000;

/// Checks that the server can do it.
pub(crate) async fn check_settings(session: &Session) -> Result<u32, CaptureError> {
    let facts = server_facts(session).await?;
    if facts.wal_level != "logical" {
        return Err(CaptureError::WalLevel(facts.wal_level));
    }
    Ok(facts.version)
}

/// What the publication sends; it is created where it is missing.
pub(crate) async fn ensure_publication(
    session: &Session,
    config: &CaptureConfig,
) -> Result<PublicationContent, CaptureError> {
    if let Some(found) = publication_content(session, &config.publication).await? {
        return Ok(found);
    }
    let all = tables(session).await?;
    let (usable, unusable): (Vec<_>, Vec<_>) = all
        .into_iter()
        .filter(|table| config.tables.matches(&table.name))
        .filter(is_root)
        .partition(TableInfo::has_replica_identity);
    for table in &unusable {
        warn!(source = %config.source, table = %table.name,
            "left out of the publication: it has no replica identity, so publishing it would make UPDATE and DELETE fail; \
             give it a primary key or REPLICA IDENTITY FULL, and it is added");
    }
    if usable.is_empty() {
        return Err(CaptureError::NothingToPublish(config.publication.clone()));
    }
    let names: Vec<TableName> = usable.into_iter().map(|table| table.name).collect();
    let new = NewPublication { name: &config.publication, tables: &names, via_root: true };
    create_publication(session, &new).await?;
    info!(source = %config.source, publication = config.publication, table_count = names.len(), "publication created");
    let created = publication_content(session, &config.publication).await?;
    created.ok_or_else(|| CaptureError::NothingToPublish(config.publication.clone()))
}

/// Creates the slot, in place of the one that is there.
pub(crate) async fn recreate_slot(
    session: &Session,
    replication: &mut ReplicationConnection,
    config: &CaptureConfig,
) -> Result<Lsn, CaptureError> {
    if usable_status(session, config).await?.is_some() {
        drop_slot(session, &config.slot).await?;
    }
    let failover = replication.server_version() >= FAILOVER_VERSION;
    let start_lsn = replication.create_slot(&config.slot, failover).await?;
    info!(source = %config.source, slot = config.slot, %start_lsn, "replication slot created");
    Ok(start_lsn)
}

/// The slot as it stands when no connection of ours holds it any more; None when there is none.
///
/// # Errors
/// The slot is someone else's, or in use by someone else.
pub(crate) async fn usable_status(
    session: &Session,
    config: &CaptureConfig,
) -> Result<Option<SlotStatus>, CaptureError> {
    let Some(slot) = slot_status(session, &config.slot).await? else { return Ok(None) };
    let ours = slot.plugin.as_deref() == Some("pgoutput")
        && slot.database.as_deref() == Some(config.connect.database.as_str())
        && !slot.temporary;
    if !ours {
        return Err(CaptureError::ForeignSlot { slot: config.slot.clone() });
    }
    release_slot(session, config, &slot).await?;
    // What the stale connection had still to confirm is confirmed now.
    Ok(slot_status(session, &config.slot).await?)
}

/// Ends a stale walsender of ours that still holds the slot.
///
/// # Errors
/// Someone else reads from it, or it does not end.
async fn release_slot(session: &Session, config: &CaptureConfig, slot: &SlotStatus) -> Result<(), CaptureError> {
    let Some(pid) = slot.active_pid else { return Ok(()) };
    match backend_application(session, pid).await? {
        Some(name) if name == config.connect.application_name => {
            let ended = terminate_backend(session, pid, RELEASE_TIMEOUT_MS).await?;
            info!(source = %config.source, slot = config.slot, pid, ended, "a connection of ours still held the slot");
            let application = config.connect.application_name.clone();
            if ended { Ok(()) } else { Err(CaptureError::SlotInUse { slot: config.slot.clone(), pid, application }) }
        }
        Some(application) => Err(CaptureError::SlotInUse { slot: config.slot.clone(), pid, application }),
        None => Ok(()),
    }
}

/// A partition is published through its root.
fn is_root(table: &TableInfo) -> bool {
    let kind = matches!(table.kind, TableKind::Ordinary | TableKind::Partitioned);
    kind && table.root_oid.is_none() && table.persistence == Persistence::Permanent
}
