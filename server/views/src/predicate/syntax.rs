//! What was written, before it has types: a tree whose depth the parser bounds.

use tidegate_model::TableName;

use super::comparison::Comparison;

/// A node and where it starts in the text; of an operator, where the operator stands.
#[derive(Clone, Debug)]
pub(super) struct Syntax {
    pub(super) at: usize,
    /// Nodes from here to the farthest leaf.
    pub(super) depth: usize,
    pub(super) what: What,
}

/// A node.
#[derive(Clone, Debug)]
pub(super) enum What {
    Null,
    Bool(bool),
    Text(String),
    Number(String),
    Parameter(usize),
    /// Its name, with those before it.
    Column(Vec<String>),
    Cast(Box<Syntax>, TypeName),
    Collate(Box<Syntax>, Vec<String>),
    /// `+` or `-` before an operand.
    Sign(Sign, Box<Syntax>),
    Compare(Comparison, Box<[Syntax; 2]>),
    Arithmetic(Arithmetic, Box<[Syntax; 2]>),
    And(Vec<Syntax>),
    Or(Vec<Syntax>),
    Not(Box<Syntax>),
    IsNull(Box<Syntax>),
    /// `(a, b) IS NULL`, and `(a, b) IS NOT NULL`, which is not its negation.
    RowIsNull(Vec<Syntax>, Negated),
    /// `IS TRUE`, `IS FALSE`, `IS UNKNOWN`.
    Is(Option<bool>, Box<Syntax>),
    Distinct(Box<[Syntax; 2]>),
    In(Box<Syntax>, Vec<Syntax>, Negated),
    InQuery(Box<Syntax>, Box<Query>, Negated),
    Between {
        operand: Box<Syntax>,
        bounds: Box<[Syntax; 2]>,
        symmetric: bool,
        negated: Negated,
    },
    Like {
        operands: Box<[Syntax; 2]>,
        escape: Option<Box<Syntax>>,
        fold: bool,
        negated: Negated,
    },
    /// `text LIKE ANY (patterns)`
    LikeEach {
        operands: Box<[Syntax; 2]>,
        fold: bool,
        negated: Negated,
        all: bool,
    },
    /// `~`, `~*` and `SIMILAR TO`
    Regex {
        operands: Box<[Syntax; 2]>,
        similar: Option<Escape>,
        fold: bool,
        negated: Negated,
    },
    /// `left op ANY (array)`
    Quantified {
        operands: Box<[Syntax; 2]>,
        op: Comparison,
        all: bool,
    },
    Array(Vec<Syntax>),
    /// `(a, b)`, of two values or more
    Row(Vec<Syntax>),
    Subscript {
        operand: Box<Syntax>,
        subscripts: Vec<Subscript>,
        /// One of them has a colon, which makes all of them slices.
        is_slice: bool,
    },
    /// A function by its name, with those before it.
    Call(Vec<String>, Vec<Syntax>),
    /// An operator that has no node of its own, before one operand or between two.
    Operator(String, Vec<Syntax>),
    Case {
        operand: Option<Box<Syntax>>,
        arms: Vec<(Syntax, Syntax)>,
        otherwise: Option<Box<Syntax>>,
    },
    Coalesce(Vec<Syntax>),
    Nullif(Box<[Syntax; 2]>),
    Extreme {
        greatest: bool,
        operands: Vec<Syntax>,
    },
}

/// What stands between `[` and `]`.
#[derive(Clone, Debug)]
pub(super) enum Subscript {
    At(Syntax),
    /// `[lower:upper]`, either of which may be left out.
    Slice(Option<Syntax>, Option<Syntax>),
}

impl Subscript {
    pub(super) fn bounds(&self) -> impl Iterator<Item = &Syntax> {
        let (first, second) = match self {
            Subscript::At(at) => (Some(at), None),
            Subscript::Slice(lower, upper) => (lower.as_ref(), upper.as_ref()),
        };
        first.into_iter().chain(second)
    }
}

/// `SELECT column FROM table [alias] [WHERE condition]`
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) column: Syntax,
    pub(super) table_at: usize,
    pub(super) table: TableName,
    pub(super) alias: Option<String>,
    pub(super) condition: Option<Syntax>,
}

/// Of `SIMILAR TO`: none, or as it was written.
pub(super) type Escape = Option<Box<Syntax>>;

/// Stands `NOT` before it?
pub(super) type Negated = bool;

/// Before an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Plus,
    Minus,
}

/// Between two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Arithmetic {
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Arithmetic::Add => "+",
            Arithmetic::Subtract => "-",
            Arithmetic::Multiply => "*",
            Arithmetic::Divide => "/",
            Arithmetic::Remainder => "%",
        }
    }
}

/// A type as it was written.
#[derive(Clone, Debug)]
pub(super) struct TypeName {
    pub(super) at: usize,
    /// Lower case, such as `timestamp with time zone`; with its schema, where that was written.
    pub(super) name: Vec<String>,
    /// Was its last part in quotes?
    pub(super) quoted: bool,
    /// As in `numeric(10, 2)`.
    pub(super) modifiers: Vec<u32>,
    pub(super) array: bool,
}

impl Syntax {
    /// How deep a node over these is.
    pub(super) fn depth_over<'s>(below: impl IntoIterator<Item = &'s Syntax>) -> usize {
        1 + below.into_iter().map(|syntax| syntax.depth).max().unwrap_or(0)
    }

    pub(super) fn leaf(at: usize, what: What) -> Self {
        Syntax { at, depth: 1, what }
    }
}
