//! Sets of values of one column, as an index takes them: keys whose order by bytes is the values' order, and NULL.
//!
//! A set is a list of intervals between cuts. A cut stands before or after a key, so that `<` and `<=`, one value and a
//! prefix are all the same thing: `= k` lies between the cuts around `k`, and `LIKE 'abc%'` is what stands between `abc` and
//! the next text that does not begin so.

use std::sync::Arc;

use super::comparison::Comparison;

/// A value as bytes that are equal and ordered as PostgreSQL compares the values ([`super::key`]).
pub(crate) type Key = Arc<[u8]>;

/// A place between keys. The order is that of the places.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cut {
    /// Before the key, or after it and before all others.
    At(Key, bool),
    /// After all.
    End,
}

/// What lies between two cuts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Interval {
    pub(crate) low: Cut,
    pub(crate) high: Cut,
}

/// Values of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Ascending; none is empty, and between two of them something is missing.
    pub(crate) intervals: Vec<Interval>,
    pub(crate) null: bool,
}

impl Cut {
    fn start() -> Self {
        Cut::At(Arc::new([]), false)
    }

    fn before(key: &Key) -> Self {
        Cut::At(key.clone(), false)
    }

    fn after(key: &Key) -> Self {
        Cut::At(key.clone(), true)
    }

    /// Does it stand before the key?
    pub(crate) fn is_before(&self, key: &[u8]) -> bool {
        match self {
            Cut::At(at, after) => {
                if *after {
                    **at < *key
                } else {
                    **at <= *key
                }
            }
            Cut::End => false,
        }
    }
}

impl Interval {
    /// The key, if it holds no other.
    pub(crate) fn as_point(&self) -> Option<&Key> {
        match (&self.low, &self.high) {
            (Cut::At(low, false), Cut::At(high, true)) if low == high => Some(low),
            _ => None,
        }
    }

    /// How many of its ends are not the ends of everything.
    pub(crate) fn bound_count(&self) -> usize {
        usize::from(self.low != Cut::start()) + usize::from(self.high != Cut::End)
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.low.is_before(key) && !self.high.is_before(key)
    }
}

impl Region {
    pub(crate) fn nothing() -> Self {
        Region { intervals: Vec::new(), null: false }
    }

    pub(crate) fn null() -> Self {
        Region { null: true, ..Self::nothing() }
    }

    /// NULL too.
    pub(crate) fn everything() -> Self {
        Self::nothing().complement()
    }

    pub(crate) fn not_null() -> Self {
        Self::null().complement()
    }

    fn between(low: Cut, high: Cut) -> Self {
        let intervals = if low < high { vec![Interval { low, high }] } else { Vec::new() };
        Region { intervals, null: false }
    }

    pub(crate) fn point(key: &Key) -> Self {
        Self::between(Cut::before(key), Cut::after(key))
    }

    /// Of ascending keys, each once.
    fn points(keys: &[Key]) -> Self {
        let interval = |key: &Key| Interval { low: Cut::before(key), high: Cut::after(key) };
        Region { intervals: keys.iter().map(interval).collect(), null: false }
    }

    /// The values for which `value op key` is true.
    pub(super) fn compared(op: Comparison, key: &Key) -> Self {
        match op {
            Comparison::Equal => Self::point(key),
            Comparison::NotEqual => Self::point(key).complement().intersection(&Self::not_null()),
            Comparison::Less => Self::between(Cut::start(), Cut::before(key)),
            Comparison::LessOrEqual => Self::between(Cut::start(), Cut::after(key)),
            Comparison::Greater => Self::between(Cut::after(key), Cut::End),
            Comparison::GreaterOrEqual => Self::between(Cut::before(key), Cut::End),
        }
    }

    /// The values for which `value op ANY (keys)`, or ALL, is true; at least one key.
    pub(super) fn quantified(op: Comparison, all: bool, mut keys: Vec<Key>) -> Self {
        keys.sort_unstable();
        keys.dedup();
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Self::nothing() };
        let one = keys.len() == 1;
        match (op, all) {
            (Comparison::Equal, false) => Self::points(&keys),
            (Comparison::Equal, true) => {
                if one {
                    Self::point(first)
                } else {
                    Self::nothing()
                }
            }
            (Comparison::NotEqual, false) => {
                if one {
                    Self::compared(op, first)
                } else {
                    Self::not_null()
                }
            }
            (Comparison::NotEqual, true) => Self::points(&keys).complement().intersection(&Self::not_null()),
            (Comparison::Less | Comparison::LessOrEqual, false)
            | (Comparison::Greater | Comparison::GreaterOrEqual, true) => Self::compared(op, last),
            (Comparison::Less | Comparison::LessOrEqual, true)
            | (Comparison::Greater | Comparison::GreaterOrEqual, false) => Self::compared(op, first),
        }
    }

    /// The keys that begin so.
    pub(super) fn prefix(prefix: &[u8]) -> Self {
        let Some(last) = prefix.iter().rposition(|&byte| byte < u8::MAX) else {
            return Self::between(Cut::before(&prefix.into()), Cut::End);
        };
        let mut next = prefix[..=last].to_vec();
        next[last] += 1;
        Self::between(Cut::before(&prefix.into()), Cut::before(&next.into()))
    }

    /// All others.
    pub(crate) fn complement(&self) -> Self {
        let mut intervals = Vec::with_capacity(self.intervals.len() + 1);
        let mut low = Cut::start();
        for interval in &self.intervals {
            if low < interval.low {
                intervals.push(Interval { low, high: interval.low.clone() });
            }
            low = interval.high.clone();
        }
        if low < Cut::End {
            intervals.push(Interval { low, high: Cut::End });
        }
        Region { intervals, null: !self.null }
    }

    /// Those that both have.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.intervals.iter().peekable(), other.intervals.iter().peekable());
        let mut intervals = Vec::new();
        while let (Some(our), Some(their)) = (ours.peek(), theirs.peek()) {
            let (low, high) = ((&our.low).max(&their.low), (&our.high).min(&their.high));
            if low < high {
                intervals.push(Interval { low: low.clone(), high: high.clone() });
            }
            if our.high < their.high {
                ours.next()
            } else {
                theirs.next()
            };
        }
        Region { intervals, null: self.null && other.null }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.as_bytes().into()
    }

    fn has(region: &Region, text: &str) -> bool {
        region.intervals.iter().any(|interval| interval.contains(text.as_bytes()))
    }

    const TEXTS: [&str; 7] = ["", "a", "a\0", "ab", "b", "c", "\u{7f}"];

    #[test]
    fn comparisons_hold_the_keys_for_which_they_are_true() {
        let all = [
            Comparison::Equal,
            Comparison::NotEqual,
            Comparison::Less,
            Comparison::LessOrEqual,
            Comparison::Greater,
            Comparison::GreaterOrEqual,
        ];
        for op in all {
            for of in TEXTS {
                let region = Region::compared(op, &key(of));
                for text in TEXTS {
                    assert_eq!(has(&region, text), op.holds(text.cmp(of)), "{text:?} {} {of:?}", op.symbol());
                }
                for other in TEXTS {
                    for quantifier in [true, false] {
                        let region = Region::quantified(op, quantifier, vec![key(of), key(other)]);
                        for text in TEXTS {
                            let (a, b) = (op.holds(text.cmp(of)), op.holds(text.cmp(other)));
                            assert_eq!(has(&region, text), if quantifier { a && b } else { a || b });
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sets_are_cut_and_turned_around() {
        let some = Region::quantified(Comparison::Equal, false, vec![key("a"), key("c")]);
        let above = Region::compared(Comparison::GreaterOrEqual, &key("ab"));
        let both = some.intersection(&above);
        let neither = some.complement().intersection(&above.complement());
        for text in TEXTS {
            assert_eq!(has(&both, text), has(&some, text) && has(&above, text));
            assert_eq!(has(&neither, text), !has(&some, text) && !has(&above, text));
        }
        assert!(neither.null && !both.null);
        assert_eq!(some.complement().complement(), some);
        assert_eq!(Region::everything().complement(), Region::nothing());
    }

    #[test]
    fn a_prefix_holds_what_begins_so() {
        for (prefix, text, begins) in [
            (&b"ab"[..], &b"ab"[..], true),
            (b"ab", b"ab\xff\xff", true),
            (b"ab", b"ac", false),
            (b"ab", b"a", false),
            (b"\xff", b"\xff\xff", true),
            (b"a\xff", b"b", false),
            (b"", b"", true),
        ] {
            let region = Region::prefix(prefix);
            assert_eq!(region.intervals.iter().any(|interval| interval.contains(text)), begins);
        }
    }
}
