//! Who is woken by a block: one task per source follows the end of the log for all subscriptions to shapes.
//!
//! ```text
//! log ──block──▶ core: which seats does it concern? ──note──▶ seat ──▶ subscriptions of the plan, by follower
//!                  ▲ tables: an index of the open shapes for each row type              │ lost, or behind
//!                  └── seats come and go                              log ──reader──────┘ until it may join
//! ```
//!
//! A subscription whose selections are all shapes has a seat, which it shares with those that have the same plan. It reads the
//! log itself until it has passed the place from which on its seat misses nothing; then it waits for notes. What lies between two
//! notes concerns it as little as if it had been filtered, and costs it nothing.
//!
//! Invariant: whether by notes or out of the log, and however often it changes between the two, a subscription receives each
//! change that concerns it once, in order. It deliberately holds nothing of a subscription: not its place, nor its credit.

mod bell;
mod core;
mod follower;
mod following;
mod inflow;
mod note;
mod rows;
mod seat;
mod subject;
mod tables;

#[cfg(test)]
mod simulation;

pub(crate) use bell::Bell;
pub(crate) use core::Passed;
pub(crate) use following::Router;
pub(crate) use inflow::{Inflow, Noted, Piece};
pub(crate) use note::{Begun, Found, Known, Note, RoutedBlock};
