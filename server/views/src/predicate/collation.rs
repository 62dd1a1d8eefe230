//! Which collation an operation has (`src/backend/parser/parse_collate.c`), and that what is printed has the same.
//!
//! Invariant: PostgreSQL finds the collation that was decided by in the printed condition, too. Of what was written there, constants
//! are folded, and their COLLATE with them; so is what is NULL because of a constant, with its column.

use std::rc::Rc;

use super::expression::{Expression, Function};
use super::refusal::{Reason, Refusal};
use super::table::CollationFacts;
use super::typing::Typing;

/// The collation of an expression, and how it came to it.
#[derive(Clone, Debug)]
pub(super) enum Collation {
    /// The database's default, of a constant or a cast; or the type has none.
    Default,
    Column(Rc<CollationFacts>),
    Written(Rc<CollationFacts>),
}

impl Collation {
    /// The greater wins.
    fn strength(&self) -> u8 {
        match self {
            Collation::Default => 0,
            Collation::Column(_) => 1,
            Collation::Written(_) => 2,
        }
    }
}

const C: &str = "pg_catalog.\"C\"";
const POSIX: &str = "pg_catalog.\"POSIX\"";

/// As SQL; None of a collation that conditions do not name.
pub(super) fn named(name: &[String]) -> Option<&'static str> {
    let (last, schema) = name.split_last()?;
    match last.as_str() {
        _ if !schema.is_empty() && schema != ["pg_catalog"] => None,
        "C" => Some(C),
        "POSIX" => Some(POSIX),
        _ => None,
    }
}

/// As COLLATE gives it.
pub(super) fn written(sql: &'static str) -> Collation {
    let name = if sql == POSIX { "POSIX" } else { "C" }.to_owned();
    Collation::Written(Rc::new(CollationFacts { name, is_default: false, deterministic: true, is_c: true }))
}

impl Typing<'_> {
    /// One collation of two operands.
    pub(super) fn merged(&self, at: usize, left: Collation, right: &Collation) -> Result<Collation, Refusal> {
        let two = |left: &CollationFacts, right: &CollationFacts| {
            self.refuse(at, Reason::TwoCollations { left: left.name.clone(), right: right.name.clone() })
        };
        match (&left, right) {
            (Collation::Written(a), Collation::Written(b)) | (Collation::Column(a), Collation::Column(b)) if a != b => {
                two(a, b)
            }
            (Collation::Written(_), _) | (_, Collation::Default) => Ok(left),
            (_, Collation::Written(_)) | (Collation::Default, _) => Ok(right.clone()),
            (Collation::Column(_), Collation::Column(_)) => Ok(left),
        }
    }

    fn facts<'c>(&'c self, collation: &'c Collation) -> &'c CollationFacts {
        match collation {
            Collation::Default => &self.table.default_collation,
            Collation::Column(facts) | Collation::Written(facts) => facts,
        }
    }

    pub(super) fn is_c(&self, collation: &Collation) -> bool {
        self.facts(collation).is_c
    }

    /// Refuses what depends on more than bytes. `orders`: equality is not enough.
    pub(super) fn check_collation(
        &self,
        at: usize,
        collation: &Collation,
        orders: bool,
        what: &'static str,
    ) -> Result<(), Refusal> {
        let facts = self.facts(collation);
        if facts.deterministic && (facts.is_c || !orders) {
            return Ok(());
        }
        let (collation, nondeterministic) = (facts.name.clone(), !facts.deterministic);
        self.refuse(at, Reason::Collation { what, collation, nondeterministic })
    }

    /// The operands of what depends on this collation, one of them with COLLATE where PostgreSQL would not find it in them.
    pub(super) fn collated(&self, operands: Vec<Expression>, collation: &Collation) -> Vec<Expression> {
        self.collated_among(operands, |_| true, collation)
    }

    /// The same where not all of them have collations.
    pub(super) fn collated_among(
        &self,
        mut operands: Vec<Expression>,
        has_one: impl Fn(usize) -> bool,
        collation: &Collation,
    ) -> Vec<Expression> {
        if !self.is_lost(Collation::Default, operands.iter(), collation) {
            return operands;
        }
        // Better one that is not constant: what is compared with constants is found by an index.
        let places = || (0..operands.len()).filter(|&place| has_one(place));
        let Some(place) = places().find(|&place| !operands[place].is_constant()).or(places().next()) else {
            return operands;
        };
        let operand = operands.remove(place);
        operands.insert(place, over(operand, collation));
        operands
    }

    /// The same of an operand whose neighbour has this collation: it is constant, or a subquery.
    pub(super) fn collated_beside(&self, beside: &Collation, operand: Expression, collation: &Collation) -> Expression {
        let is_lost = self.is_lost(beside.clone(), std::iter::once(&operand), collation);
        if is_lost { over(operand, collation) } else { operand }
    }

    /// Would PostgreSQL compare these otherwise than by bytes, where they are to be compared by bytes?
    fn is_lost<'e>(
        &self,
        beside: Collation,
        mut operands: impl Iterator<Item = &'e Expression>,
        collation: &Collation,
    ) -> bool {
        if !self.is_by_bytes(collation) || matches!(collation, Collation::Default) {
            return false;
        }
        let found = operands.try_fold(beside, |found, operand| self.with_found(found, operand));
        found.is_none_or(|found| !self.is_by_bytes(&found))
    }

    fn is_by_bytes(&self, collation: &Collation) -> bool {
        let facts = self.facts(collation);
        facts.is_c && facts.deterministic
    }

    /// With the collation that the expression has as it stands; None where it has two.
    fn with_found(&self, so_far: Collation, expression: &Expression) -> Option<Collation> {
        let found = match expression {
            Expression::Column(input) => match &self.table.columns[self.inputs[*input]].collation {
                Some(facts) if !facts.is_default => Collation::Column(Rc::new(facts.clone())),
                Some(_) | None => Collation::Default,
            },
            Expression::Strict(Function::Collate(sql), _) => written(sql),
            // In the normal form, any of its results may be left alone.
            Expression::Case { .. } => {
                let results = passed_on(expression);
                results.iter().try_fold(so_far.clone(), |so_far, result| self.with_found(so_far, result))?;
                let alone = results.iter().map(|result| self.with_found(Collation::Default, result));
                let alone = alone.collect::<Option<Vec<_>>>()?;
                let is_by_bytes = alone.iter().all(|found| self.is_by_bytes(found));
                alone.into_iter().min_by_key(Collation::strength).filter(|_| is_by_bytes)?
            }
            other => {
                return passed_on(other).into_iter().try_fold(so_far, |so_far, below| self.with_found(so_far, below));
            }
        };
        self.merged(0, so_far, &found).ok()
    }
}

fn over(operand: Expression, collation: &Collation) -> Expression {
    let sql = match collation {
        Collation::Written(facts) if facts.name == "POSIX" => POSIX,
        Collation::Default | Collation::Column(_) | Collation::Written(_) => C,
    };
    Expression::Strict(Function::Collate(sql), vec![operand])
}

/// The operands from which an expression has its collation.
fn passed_on(expression: &Expression) -> Vec<&Expression> {
    match expression {
        Expression::Case { arms, otherwise } => arms.iter().map(|(_, then)| then).chain([&**otherwise]).collect(),
        Expression::Coalesce(operands) | Expression::Array(_, operands) | Expression::Extreme { operands, .. } => {
            operands.iter().collect()
        }
        Expression::CalledOnNull { result, operands, .. } if result.is_collatable() => operands.iter().collect(),
        Expression::Strict(function, operands) => match function {
            Function::LikeEscape => operands.iter().collect(),
            Function::Call { result, .. } if result.is_collatable() => operands.iter().collect(),
            Function::Cast { from, to, .. } if from.is_collatable() && to.is_collatable() => operands.iter().collect(),
            Function::Subscript | Function::Slice(_) => operands.iter().take(1).collect(),
            Function::Compare { .. }
            | Function::Arithmetic { .. }
            | Function::Negate(_)
            | Function::Like { .. }
            | Function::Regex { .. }
            | Function::Cast { .. }
            | Function::Collate(_)
            | Function::Call { .. } => Vec::new(),
        },
        Expression::Constant(..)
        | Expression::Column(_)
        | Expression::And(_)
        | Expression::Or(_)
        | Expression::Not(_)
        | Expression::IsNull(_)
        | Expression::Is(..)
        | Expression::Quantified(_)
        | Expression::QuantifiedArray { .. }
        | Expression::CalledOnNull { .. }
        | Expression::Member(_) => Vec::new(),
    }
}
