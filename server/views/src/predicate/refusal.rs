//! Why a condition is refused, where in its text, and what to write instead.

use std::fmt;

use tidegate_model::Retry;

use super::evaluate::EvaluationError;

/// A condition that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// Where in the text.
    pub place: Place,
    /// Why, and what to do.
    pub reason: Reason,
}

/// A place in a condition's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// In bytes, from 0.
    pub offset: usize,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "where, line {}, column {}: {}", self.place.line, self.place.column, self.reason)
    }
}

/// Why a condition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Before it was read.
    #[error(
        "the condition and its parameters have {bytes} bytes; at most {max} are allowed; compare with fewer values"
    )]
    TooLong {
        /// There are so many.
        bytes: usize,
        /// There may be so many.
        max: usize,
    },
    /// Of an order.
    #[error(
        "the order has too many terms, or {bytes} bytes; at most {terms_max} terms and {max} bytes are allowed; order by fewer"
    )]
    TooManyOrders {
        /// There are so many.
        bytes: usize,
        /// There may be so many.
        max: usize,
        /// There may be so many.
        terms_max: usize,
    },
    /// Parentheses, NOT, CASE, or one operator after the other.
    #[error(
        "the condition is nested deeper than {max} levels; write it flatter (AND, OR and IN may be as long as they like)"
    )]
    TooDeep {
        /// There may be so many.
        max: usize,
    },
    /// Columns, constants and parameters, and the values of arrays.
    #[error("the condition has more than {max} columns and constants; compare with fewer values")]
    TooManyTerms {
        /// There may be so many.
        max: usize,
    },
    /// BETWEEN, IN, IS DISTINCT FROM, NULLIF and CASE name an operand once and compare it several times.
    #[error(
        "written out, the condition has more than {max} parts; do not nest BETWEEN, IN, NULLIF or CASE in each other's operands"
    )]
    TooLarge {
        /// There may be so many.
        max: usize,
    },
    /// Subqueries within subqueries.
    #[error(
        "subqueries are nested deeper than {max} levels; nest fewer, and follow the rows of the inner tables with shapes of their own"
    )]
    QueriesTooDeep {
        /// There may be so many.
        max: usize,
    },
    /// All subqueries of a condition.
    #[error(
        "the condition has more than {max} subqueries; a set of values is kept for each; join them with OR within one, or make several shapes"
    )]
    TooManyQueries {
        /// There may be so many.
        max: usize,
    },
    /// A subquery's table is not among those that it may read.
    #[error(
        "a subquery cannot read the table {table} here; in a shape, name a table that the source follows; elsewhere, write the values"
    )]
    UnreadableTable {
        /// The table.
        table: String,
    },
    /// A subquery's condition names a column of a table around it.
    #[error(
        "{name} is no column of the subquery's table {table} but of one around it; a subquery that depends on the row outside (a correlated one) is not supported; compare {name} with what the subquery selects, as in {name} IN (SELECT …), or correct the name"
    )]
    Correlated {
        /// As it was written.
        name: String,
        /// The subquery's.
        table: String,
    },
    /// A quote or comment without an end.
    #[error("this {what} has no end; close it")]
    Unclosed {
        /// What.
        what: &'static str,
    },
    /// The grammar does not allow it.
    #[error("{found} does not fit here; expected {expected}")]
    Unexpected {
        /// What stands there.
        found: String,
        /// What could.
        expected: &'static str,
    },
    /// PostgreSQL may know it, but it is not evaluated exactly here.
    #[error("{what} is not supported; {instead}")]
    Unsupported {
        /// What.
        what: String,
        /// What to do.
        instead: &'static str,
    },
    /// The table has no such column.
    #[error("the table has no column {name}; it has {}; name one of them", columns.join(", "))]
    UnknownColumn {
        /// As it was written.
        name: String,
        /// What there is.
        columns: Vec<String>,
    },
    /// A regular expression, or what SIMILAR TO takes.
    #[error("the pattern's character {character}: {instead}")]
    Regex {
        /// From 1.
        character: usize,
        /// Why, and what to do.
        instead: &'static str,
    },
    /// PostgreSQL has no such operator, or cannot choose one.
    #[error("there is no {left} {operator} {right}, or more than one; cast an operand, as in x::numeric")]
    NoOperator {
        /// The operator.
        operator: &'static str,
        /// The left operand's type.
        left: String,
        /// The right operand's type.
        right: String,
    },
    /// PostgreSQL has no such function, or cannot choose one, or it is one that is not evaluated here.
    #[error("there is no {name}({}) here, or more than one; cast an operand, as in x::text", operands.join(", "))]
    NoFunction {
        /// The function.
        name: &'static str,
        /// The operands' types.
        operands: Vec<String>,
    },
    /// An operand has another type than is asked for.
    #[error("this has the type {found}, and {what} takes {expected}; cast it, or compare it with something")]
    WrongType {
        /// What asks.
        what: &'static str,
        /// What it has.
        found: String,
        /// What it should have.
        expected: String,
    },
    /// The text of a constant.
    #[error("this is no {type_name} as PostgreSQL reads it with any settings; {instead}")]
    Malformed {
        /// The type.
        type_name: String,
        /// What to write.
        instead: &'static str,
    },
    /// It depends on a collation that is not the order of bytes.
    #[error("{what} under the collation {collation} cannot be evaluated exactly; write COLLATE \"C\" behind the operand{}", if *nondeterministic { "; equality under a nondeterministic collation cannot be evaluated either" } else { "" })]
    Collation {
        /// What.
        what: &'static str,
        /// The collation.
        collation: String,
        /// Do different texts count as equal?
        nondeterministic: bool,
    },
    /// Both operands bring one.
    #[error("the operands have the collations {left} and {right}; write COLLATE \"C\" behind one of them")]
    TwoCollations {
        /// The left operand's.
        left: String,
        /// The right operand's.
        right: String,
    },
    /// Not among the parameters that were given.
    #[error("there is no parameter ${number}; give its value in `parameters`, which has {given}, or write it here")]
    UnknownParameter {
        /// Its number.
        number: usize,
        /// How many there are.
        given: usize,
    },
    /// It would be checked by nobody.
    #[error("parameter ${number} is not used; leave it out")]
    UnusedParameter {
        /// Its number.
        number: usize,
    },
    /// As PostgreSQL has it: one type for all its uses.
    #[error("parameter ${number} is taken as {first} and as {second}; give its type")]
    InconsistentParameter {
        /// Its number.
        number: usize,
        /// The one type.
        first: String,
        /// The other.
        second: String,
    },
    /// A part without columns.
    #[error("this always fails: {error}; change its constants")]
    AlwaysFails {
        /// How.
        error: EvaluationError,
    },
}

impl Refusal {
    /// At this byte; the line and the column are found later.
    pub(super) fn at(offset: usize, reason: Reason) -> Self {
        Refusal { place: Place { offset, line: 0, column: 0 }, reason }
    }

    /// With line and column.
    pub(super) fn within(mut self, text: &str) -> Self {
        let before = text.get(..self.place.offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        self.place.line = 1 + before.bytes().filter(|&byte| byte == b'\n').count();
        self.place.column = 1 + before[line_start..].chars().count();
        self
    }

    /// What to do: the same is refused again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        Retry::Never
    }
}
