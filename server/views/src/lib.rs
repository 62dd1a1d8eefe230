//! What shapes and aggregates are made of.
//!
//! ```text
//! where text, parameters, table facts ──▶ Predicate ──▶ verdict for an encoded row
//!                                              ├──▶ SQL for a snapshot's SELECT
//!                                              ├──▶ hash, by which equal definitions are found
//!                                              ├──▶ Subqueries, whose sets of values come back as Members
//!                                              ├──▶ Index: a change ──▶ the shapes that it concerns
//!                                              └──▶ Shape, with columns: what a change is to it
//! OrderBy, table facts ──▶ Order ──▶ where an encoded row stands among others
//! ```
//!
//! Not here yet: aggregates.

mod index;
mod predicate;
#[cfg(test)]
mod random;
mod shape;

pub use index::{Effect, Effort, Explanation, Index, IndexError, LookupKind, Room, Routed, Served, changed_fields};
pub use predicate::{
    CollationFacts, ColumnFacts, EnumFacts, EvaluationError, Failure, Members, Membership, Order, OrderBy, Outcome,
    Parameter, Pinned, Place, Predicate, Rank, Reason, Refusal, RowError, Subquery, TEXT_BYTES_MAX, TableFacts,
    ZoneClocks, subquery_tables, zone_clocks,
};
pub use shape::{Shape, ShapeDefinition, ShapeError, Updates};
