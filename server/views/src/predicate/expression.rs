//! A condition with types: every operand has the type that its operator takes, every cast is there, and what PostgreSQL
//! expands (BETWEEN, IN, IS DISTINCT FROM, NULLIF) is expanded.
//!
//! Invariant: no deeper than a constant times the parser's bound, and no larger than typing's.

use std::sync::Arc;

use super::comparison::Comparison;
use super::kind::Kind;
use super::signature::Signature;
use super::subquery::Subquery;
use super::syntax::Arithmetic;
use super::value::Value;

/// An expression.
#[derive(Clone, Debug)]
pub(super) enum Expression {
    Constant(Kind, Value<'static>),
    /// The place among the columns that the condition reads.
    Column(usize),
    /// NULL where an operand is.
    Strict(Function, Vec<Expression>),
    /// A function that is called with NULLs, too.
    CalledOnNull {
        signature: &'static Signature,
        result: Kind,
        operands: Vec<Expression>,
    },
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Not(Box<Expression>),
    IsNull(Box<Expression>),
    /// `IS TRUE`, `IS FALSE`, `IS UNKNOWN`
    Is(Option<bool>, Box<Expression>),
    /// `left op ANY (values)`, or ALL
    Quantified(Quantified),
    /// The same with the elements of an array that is not constant, the second operand. `kind` is theirs.
    QuantifiedArray {
        all: bool,
        op: Comparison,
        kind: Kind,
        operands: Vec<Expression>,
    },
    /// `operand IN (SELECT …)`
    Member(Member),
    Case {
        arms: Vec<(Expression, Expression)>,
        otherwise: Box<Expression>,
    },
    Coalesce(Vec<Expression>),
    /// `ARRAY[…]` of elements of this type, not all of them constant.
    Array(Kind, Vec<Expression>),
    Extreme {
        greatest: bool,
        padded: bool,
        operands: Vec<Expression>,
    },
}

/// A comparison with each of several constants.
#[derive(Clone, Debug)]
pub(super) struct Quantified {
    pub(super) all: bool,
    pub(super) op: Comparison,
    /// Of the constants.
    pub(super) kind: Kind,
    pub(super) left: Box<Expression>,
    pub(super) values: Vec<Value<'static>>,
}

/// Is a value one of those that a subquery selects?
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) subquery: Arc<Subquery>,
    /// Among the predicate's.
    pub(super) number: usize,
    /// Of the type in which members are compared.
    pub(super) operand: Box<Expression>,
    /// Of an operand that is an enum.
    pub(super) labels: Arc<[String]>,
}

/// A function of operands that are not NULL.
#[derive(Clone, Debug)]
pub(super) enum Function {
    /// `padded`: both are bpchar.
    Compare {
        op: Comparison,
        padded: bool,
    },
    /// Of operands of these types, in this type.
    Arithmetic {
        op: Arithmetic,
        kind: Kind,
    },
    Negate(Kind),
    Like {
        fold: bool,
    },
    /// The second operand is the pattern, as PostgreSQL reads it.
    Regex {
        compiled: regex::Regex,
        fold: bool,
    },
    /// A pattern and an escape become a pattern with backslashes.
    LikeEscape,
    Cast {
        from: Kind,
        to: Kind,
        modifiers: Vec<u32>,
    },
    /// As SQL.
    Collate(&'static str),
    /// An array and a subscript for each dimension.
    Subscript,
    /// An array, and the bounds of as many dimensions: are the lower and the upper one given?
    Slice(Box<[(bool, bool)]>),
    /// Of a table of functions and operators.
    Call {
        signature: &'static Signature,
        result: Kind,
    },
}

impl Expression {
    pub(super) fn is_constant(&self) -> bool {
        matches!(self, Expression::Constant(..))
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Expression::Constant(_, Value::Null))
    }

    /// All expressions directly below.
    pub(super) fn below(&self) -> Vec<&Expression> {
        match self {
            Expression::Constant(..) | Expression::Column(_) => Vec::new(),
            Expression::Strict(_, operands)
            | Expression::And(operands)
            | Expression::Or(operands)
            | Expression::Coalesce(operands)
            | Expression::Array(_, operands)
            | Expression::CalledOnNull { operands, .. }
            | Expression::QuantifiedArray { operands, .. }
            | Expression::Extreme { operands, .. } => operands.iter().collect(),
            Expression::Not(operand) | Expression::IsNull(operand) | Expression::Is(_, operand) => vec![operand],
            Expression::Quantified(quantified) => vec![&quantified.left],
            Expression::Member(member) => vec![&member.operand],
            Expression::Case { arms, otherwise } => {
                arms.iter().flat_map(|(when, then)| [when, then]).chain([&**otherwise]).collect()
            }
        }
    }

    /// Nodes and values; long text counts as several.
    pub(super) fn size(&self) -> usize {
        let own = match self {
            Expression::Quantified(quantified) => quantified.values.iter().map(|value| 1 + weight(value)).sum(),
            Expression::Constant(_, value) => weight(value),
            Expression::Member(member) => member.subquery.weight(),
            _ => 0,
        };
        1 + own + self.below().into_iter().map(Expression::size).sum::<usize>()
    }

    /// Does it depend on rows?
    pub(super) fn has_column(&self) -> bool {
        matches!(self, Expression::Column(_) | Expression::Member(_))
            || self.below().into_iter().any(Expression::has_column)
    }
}

/// How many nodes a value counts as.
fn weight(value: &Value<'_>) -> usize {
    match value {
        Value::Text(text) => text.len() / 8,
        Value::Bytes(bytes) => bytes.len() / 8,
        Value::Numeric(_) => 8,
        Value::Json(json) => json.weight(),
        Value::Array(array) => array.elements.iter().map(|element| 1 + weight(element)).sum(),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Interval(_) => 0,
        Value::Range(_) => 16,
    }
}
