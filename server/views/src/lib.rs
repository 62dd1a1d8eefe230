//! What shapes and aggregates are made of.
//!
//! ```text
//! where text, parameters, table facts ──▶ Predicate ──▶ verdict for an encoded row
//!                                              ├──▶ SQL for a snapshot's SELECT
//!                                              └──▶ hash, by which equal definitions are found
//! ```
//!
//! Not here yet: the index of predicates, shapes, aggregates.

mod predicate;

pub use predicate::{
    CollationFacts, ColumnFacts, EnumFacts, EvaluationError, Outcome, Parameter, Place, Predicate, Reason, Refusal,
    RowError, TEXT_BYTES_MAX, TableFacts,
};
