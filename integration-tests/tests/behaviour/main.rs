//! Behaviour over the whole: the real binary against a real PostgreSQL, seen through the client library, grpcurl and the
//! command line.
//!
//! One program, so that its tests share one PostgreSQL server; each has its own database and slot in it. A test that
//! stops, freezes or restores the server starts its own.

mod announced_ddl;
mod awkward_names;
mod bad_input;
mod control_database;
mod control_rollback;
mod crash;
mod demo;
mod discontinuity;
mod disk_full;
mod every_type;
mod failed_fsync;
mod failing_conditions;
mod failover_slot;
mod frozen_server;
mod grpcurl;
mod idle;
mod large_old_values;
mod large_transaction;
mod large_value;
mod mirror;
mod mirror_altered;
mod mirror_altered_at_random;
mod mirror_snapshot;
mod named_shapes;
mod new_tables;
mod operations;
mod partition_identity;
mod pooler;
mod promotion;
mod rotated_password;
mod row_text;
mod schema_change;
mod server_tls;
mod several_sources;
mod shape_handle;
mod shape_query;
mod shape_query_subqueries;
mod shapes;
mod shapes_at_random;
mod shapes_edited;
mod shapes_edited_at_random;
mod shapes_held;
mod shapes_of_partitions;
mod shapes_on_demand;
mod shapes_printed;
mod slow_subscriber;
mod snapshot_crowd;
mod snapshot_equal_keys;
mod snapshot_exactness;
mod snapshot_footprint;
mod snapshot_jobs;
mod snapshot_keyless;
mod snapshot_limits;
mod snapshot_parts;
mod snapshot_stalled;
mod snapshot_tail;
mod snapshot_throttle;
mod subqueries;
mod synchronous_standby;
mod telemetry;
mod transfers;
mod undeliverable;
