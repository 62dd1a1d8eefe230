//! Behaviour over the whole: the real binary against a real PostgreSQL, seen through the client library, grpcurl and the
//! command line.
//!
//! One program, so that its tests share one PostgreSQL server; each has its own database and slot in it. A test that
//! stops, freezes or restores the server starts its own.

mod bad_input;
mod control_rollback;
mod crash;
mod demo;
mod discontinuity;
mod disk_full;
mod frozen_server;
mod grpcurl;
mod idle;
mod large_transaction;
mod large_value;
mod operations;
mod promotion;
mod row_text;
mod slow_subscriber;
mod undeliverable;
