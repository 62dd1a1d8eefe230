//! Which rows does it concern that a value enters or leaves a subquery's set? Those whose operand of `IN` is that value; where the
//! operand is a column, they can be looked up.

use super::Predicate;
use super::access::{self, Path};
use super::expression::{Expression, Member};
use super::kind::Kind;
use super::pinned::{self, Pinned};

impl Predicate {
    /// The field of the column that is compared with the subquery of this number: perhaps under casts that cannot fail, and the only
    /// one. None where it is no such column: then every row may be concerned.
    #[must_use]
    pub fn operand_field(&self, subquery: usize) -> Option<u32> {
        let path = self.operand(subquery)?;
        Some(self.columns.get(path.column)?.field)
    }

    /// The only value of that column whose rows are concerned where this member enters or leaves the set. None where that is not
    /// known, or there are several.
    #[must_use]
    pub fn operand_value(&self, subquery: usize, member: &[u8]) -> Option<Pinned> {
        let path = self.operand(subquery).filter(Path::is_exact)?;
        let input = self.columns.get(path.column)?;
        let text = match input.kind {
            Kind::Enum(_) => String::from_utf8(member.to_vec()).ok(),
            kind => pinned::text(kind, member),
        }?;
        Some(Pinned { field: input.field, text })
    }

    fn operand(&self, subquery: usize) -> Option<Path> {
        let mut rest: Vec<&Expression> = self.parts.iter().map(|part| &part.condition).collect();
        let mut found: Option<Path> = None;
        while let Some(expression) = rest.pop() {
            if let Expression::Member(Member { number, operand, subquery: of, .. }) = expression
                && *number == subquery
            {
                let path = access::path(operand, &self.columns, of.is_padded())?;
                if found.as_ref().is_some_and(|other| *other != path) {
                    return None;
                }
                found = Some(path);
            }
            rest.extend(expression.below());
        }
        found
    }
}
