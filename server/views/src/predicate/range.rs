//! PostgreSQL's ranges (`src/backend/utils/adt/rangetypes.c`). Those of whole numbers and dates hold their lower bound and not
//! their upper one, however they were written.

use std::cmp::Ordering;

use super::kind::Kind;
use super::moment;
use super::value::Value;

/// A range.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Range {
    Empty,
    Bounded { lower: Option<Bound>, upper: Option<Bound> },
}

/// A bound that is not infinite.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bound {
    pub(super) value: Value<'static>,
    pub(super) inclusive: bool,
}

/// Where a bound lies: on which side of the values that equal it. An infinite one has no value.
#[derive(Clone, Copy)]
struct Edge<'r> {
    bound: Option<&'r Bound>,
    is_lower: bool,
}

impl Edge<'_> {
    /// `range_cmp_bounds`: of two at the same value, that which lets in less at its beginning is the greater.
    fn compare(self, other: Self) -> Ordering {
        let infinite = |edge: Edge<'_>| if edge.is_lower { -1 } else { 1 };
        let (a, b) = match (self.bound, other.bound) {
            (None, None) => return infinite(self).cmp(&infinite(other)),
            (None, _) => return infinite(self).cmp(&0),
            (_, None) => return 0.cmp(&infinite(other)),
            (Some(a), Some(b)) => (a, b),
        };
        // Before the value, at it, or behind it.
        let side = |edge: Edge<'_>, bound: &Bound| match (bound.inclusive, edge.is_lower) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => -1,
        };
        a.value.compare(&b.value, false).then_with(|| side(self, a).cmp(&side(other, b)))
    }
}

impl Range {
    /// None where the lower bound is above the upper one, or what follows a bound is beyond the type.
    pub(super) fn of(subtype: Kind, lower: Option<Bound>, upper: Option<Bound>) -> Option<Self> {
        let range = Range::checked(lower, upper)?;
        let Range::Bounded { lower, upper } = range else { return Some(range) };
        if !matches!(subtype, Kind::Int4 | Kind::Int8 | Kind::Date) {
            return Some(Range::Bounded { lower, upper });
        }
        let as_inclusive = |bound: Option<Bound>, inclusive: bool| match bound {
            Some(bound) if bound.inclusive != inclusive => following(subtype, bound, inclusive).map(Some),
            kept => Some(kept),
        };
        Range::checked(as_inclusive(lower, true)?, as_inclusive(upper, false)?)
    }

    fn checked(lower: Option<Bound>, upper: Option<Bound>) -> Option<Self> {
        if let (Some(low), Some(high)) = (&lower, &upper) {
            match low.value.compare(&high.value, false) {
                Ordering::Greater => return None,
                Ordering::Equal if !(low.inclusive && high.inclusive) => return Some(Range::Empty),
                Ordering::Equal | Ordering::Less => {}
            }
        }
        Some(Range::Bounded { lower, upper })
    }

    fn edges(&self) -> Option<(Edge<'_>, Edge<'_>)> {
        let Range::Bounded { lower, upper } = self else { return None };
        Some((Edge { bound: lower.as_ref(), is_lower: true }, Edge { bound: upper.as_ref(), is_lower: false }))
    }

    /// The empty range is below all; else by the lower bound and then the upper one.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        match (self.edges(), other.edges()) {
            (None, None) => Ordering::Equal,
            (None, _) => Ordering::Less,
            (_, None) => Ordering::Greater,
            (Some((low, high)), Some((other_low, other_high))) => {
                low.compare(other_low).then_with(|| high.compare(other_high))
            }
        }
    }

    /// `@>` of a range.
    pub(super) fn contains(&self, part: &Self) -> bool {
        match (self.edges(), part.edges()) {
            (_, None) => true,
            (None, _) => false,
            (Some((low, high)), Some((other_low, other_high))) => {
                low.compare(other_low).is_le() && high.compare(other_high).is_ge()
            }
        }
    }

    /// `@>` of a value.
    pub(super) fn holds(&self, value: &Value<'_>) -> bool {
        let Range::Bounded { lower, upper } = self else { return false };
        let fits = |bound: &Option<Bound>, side: Ordering| {
            bound.as_ref().is_none_or(|bound| {
                let ordering = value.compare(&bound.value, false);
                ordering == side || bound.inclusive && ordering.is_eq()
            })
        };
        fits(lower, Ordering::Greater) && fits(upper, Ordering::Less)
    }

    /// `&&`
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self.edges(), other.edges()) {
            (Some((low, high)), Some((other_low, other_high))) => {
                low.compare(other_high).is_le() && other_low.compare(high).is_le()
            }
            _ => false,
        }
    }

    /// `<<`: it ends before the other begins.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        match (self.edges(), other.edges()) {
            (Some((_, high)), Some((other_low, _))) => high.compare(other_low).is_lt(),
            _ => false,
        }
    }

    /// `&<`: it does not go on behind the other's end.
    pub(super) fn ends_by(&self, other: &Self) -> bool {
        match (self.edges(), other.edges()) {
            (Some((_, high)), Some((_, other_high))) => high.compare(other_high).is_le(),
            _ => false,
        }
    }

    /// `&>`: it does not begin before the other.
    pub(super) fn begins_by(&self, other: &Self) -> bool {
        match (self.edges(), other.edges()) {
            (Some((low, _)), Some((other_low, _))) => low.compare(other_low).is_ge(),
            _ => false,
        }
    }

    /// `-|-`: nothing lies between them, and nothing is in both. Those of whole numbers have one form, so that their bounds are equal.
    pub(super) fn is_adjacent(&self, other: &Self) -> bool {
        let meet = |upper: Edge<'_>, lower: Edge<'_>| match (upper.bound, lower.bound) {
            (Some(a), Some(b)) => a.inclusive != b.inclusive && a.value.compare(&b.value, false).is_eq(),
            _ => false,
        };
        match (self.edges(), other.edges()) {
            (Some((low, high)), Some((other_low, other_high))) => meet(high, other_low) || meet(other_high, low),
            _ => false,
        }
    }

    /// The bounds, for `lower`, `upper` and the like; none of the empty range.
    pub(super) fn bound(&self, is_lower: bool) -> Option<&Bound> {
        let (low, high) = self.edges()?;
        if is_lower { low.bound } else { high.bound }
    }
}

/// The next value, which is held or not as the bound's was not.
fn following(subtype: Kind, bound: Bound, inclusive: bool) -> Option<Bound> {
    let value = bound.value.as_int();
    let next = match subtype {
        Kind::Date if value == moment::DATE_INFINITY.0 || value == moment::DATE_INFINITY.1 => return Some(bound),
        Kind::Date => moment::valid_date(value + 1)?,
        Kind::Int4 => i64::from(i32::try_from(value + 1).ok()?),
        _ => value.checked_add(1)?,
    };
    Some(Bound { value: Value::Int(next), inclusive })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lower: Option<(i64, bool)>, upper: Option<(i64, bool)>) -> Range {
        let bound = |(value, inclusive)| Bound { value: Value::Int(value), inclusive };
        Range::of(Kind::Int4, lower.map(bound), upper.map(bound)).expect("a range")
    }

    #[test]
    fn ranges_of_whole_numbers_have_one_form() {
        assert_eq!(of(Some((1, true)), Some((3, true))), of(Some((0, false)), Some((4, false))));
        assert_eq!(of(Some((1, false)), Some((2, false))), Range::Empty);
        assert!(of(None, Some((3, false))).holds(&Value::Int(2)));
        assert!(!of(None, Some((3, false))).holds(&Value::Int(3)));
        assert!(of(Some((1, true)), Some((3, false))).is_before(&of(Some((3, true)), None)));
        assert!(!of(Some((1, true)), Some((3, true))).is_before(&of(Some((3, true)), None)));
    }
}
