//! The crate against a real server. Each test has a server of its own, so that settings and slots do not meet.

mod launcher;

mod catalog;
mod log_in;
mod readiness;
mod snapshot;
mod streams;
