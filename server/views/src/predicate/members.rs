//! What a condition asks of its subqueries: is this value one of those that they select? And the bytes by which values are told
//! apart there.

use super::access;
use super::expression::Member;
use super::key;
use super::kind::Kind;
use super::value::Value;

/// The sets of values that a predicate's subqueries select.
pub trait Members {
    /// What `member IN (the set of the predicate's subquery of this number)` is, by the rule of [`Membership::of`]. `member` has the
    /// bytes of [`Subquery::member`](super::subquery::Subquery::member), and is None for NULL.
    fn membership(&self, subquery: usize, member: Option<&[u8]>) -> Option<bool>;
}

/// What is known of a set and a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Is the member in the set?
    pub contains: bool,
    /// Is a NULL in the set?
    pub has_null: bool,
    /// Is nothing in the set, not even a NULL?
    pub is_empty: bool,
}

impl Membership {
    /// True, false, or NULL, as PostgreSQL has it for `member IN (…)`; None for a NULL member.
    #[must_use]
    pub fn of(self, member: Option<&[u8]>) -> Option<bool> {
        match member {
            _ if self.is_empty => Some(false),
            None => None,
            Some(_) if self.contains => Some(true),
            Some(_) if self.has_null => None,
            Some(_) => Some(false),
        }
    }
}

impl Member {
    /// The bytes of an operand that is not NULL, borrowed from the labels or written to `room`.
    pub(super) fn key<'k>(&'k self, value: &Value<'_>, room: &'k mut Vec<u8>) -> &'k [u8] {
        if let Value::Int(place) = value
            && let Some(label) = usize::try_from(*place).ok().and_then(|place| self.labels.get(place))
        {
            return label.as_bytes();
        }
        let written = write(value, self.subquery.is_padded(), room);
        assert!(written, "typing takes operands of types that have members only");
        room
    }
}

/// Can values of this type be told apart by bytes?
pub(super) fn has_members(kind: Kind) -> bool {
    access::has_keys(kind) || kind == Kind::Interval
}

/// Writes a value's bytes over what stands in `out`: those of another value are the same exactly where it is equal. False for NULL
/// and for what has none. An enum's label is its bytes, since its place changes when labels come.
pub(super) fn write(value: &Value<'_>, padded: bool, out: &mut Vec<u8>) -> bool {
    let Value::Interval(interval) = value else { return key::write(value, padded, out) };
    out.clear();
    out.extend_from_slice(&interval.span().to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_is_postgresql_s_in() {
        let of = |contains, has_null, is_empty, member: Option<&[u8]>| {
            Membership { contains, has_null, is_empty }.of(member)
        };
        let some = Some(&b"x"[..]);
        assert_eq!([of(false, false, true, some), of(false, false, true, None)], [Some(false); 2]);
        assert_eq!([of(true, false, false, some), of(true, true, false, some)], [Some(true); 2]);
        assert_eq!([of(false, false, false, some), of(false, true, false, some)], [Some(false), None]);
        assert_eq!([of(false, false, false, None), of(false, true, false, None)], [None; 2]);
    }
}
