//! Speaks to PostgreSQL 14 to 18, and decides nothing: what an answer means for a source is capture's affair.
//!
//! ```text
//!  ConnectConfig ──▶ socket (TCP or unix) ──▶ tls (rustls) ──▶ pins (settings that fix every value's text)
//!                                                               │
//!          ┌────────────────────────────────────────────────────┴──────────────────┐
//!          ▼ ordinary SQL (tokio-postgres)                                         ▼ replication=database (own wire)
//!       Session ──▶ catalog   tables, columns, types                     ReplicationConnection   system, timelines, slot
//!               ──▶ server    versions, limits, managed services                   │ start
//!               ──▶ slot, publication, ddl                                ┌────────┴────────┐
//!               ──▶ preflight findings and their mends                    ▼                 ▼
//!               ──▶ snapshot  plans, chunks, what they saw            WalReader         WalWriter
//!                                                                     frames in place   standby status
//!                                                                         │
//!                                                                         ▼
//!                                                                 pgoutput::Decoder ──▶ Message (borrows the frame)
//! ```
//!
//! Invariant: a connection that this crate hands out has the pinned settings in force, checked after connecting; so the
//! same value has the same text on every one of them.
//!
//! It deliberately writes nothing to user tables, and takes no lock above ACCESS SHARE on them but that of `CREATE PUBLICATION` and `ALTER
//! PUBLICATION`: SHARE UPDATE EXCLUSIVE, which neither readers nor writers notice, but VACUUM and schema changes wait for (a table is added
//! to a publication with a short `lock_timeout`). It never logs SQL values, rows or passwords.

pub mod pgoutput;
pub mod preflight;
pub mod snapshot;

mod catalog;
mod channel_binding;
mod config;
mod ddl;
mod error;
mod leaves;
mod partitions;
mod pause;
mod pins;
mod publication;
mod replication;
mod server;
mod session;
mod slot;
mod socket;
mod stream;
mod tls;
mod transport;
mod url;
mod wire;

pub use catalog::{
    CatalogColumn, Persistence, TableInfo, TableKind, TypeInfo, TypeShape, relation_columns, tables, type_info,
};
pub use config::{ChannelBinding, ConnectConfig, TlsMode};
pub use ddl::{
    DDL_MESSAGE_PREFIX, DdlAnnouncements, ddl_announcements, install_ddl, install_ddl_sql, remove_ddl, remove_ddl_sql,
};
pub use error::{CatalogError, ConnectError, ReplicationError, ServerError};
pub use leaves::{OldRows, old_rows_of_full};
pub use partitions::{PartitionTrees, keeps_partitions, partition_trees};
pub use publication::{
    NewPublication, Operations, Publication, PublicationContent, PublishedTable, alter_publication_add_table,
    alter_publication_set_tables, create_publication, drop_publication, existing, memberships, publication,
    publication_content, sent_because_of, set_lock_timeout,
};
pub use replication::{ReplicationConnection, StreamOptions, SystemIdentity, TimelineSwitch, protocol_version};
pub use server::{ManagedService, ServerFacts, server_facts, visibility};
pub use session::Session;
pub use slot::{SlotStatus, WalStatus, backend_application, drop_slot, slot_status, terminate_backend};
pub use stream::{Frame, Frames, StandbyStatus, WalReader, WalWriter};
