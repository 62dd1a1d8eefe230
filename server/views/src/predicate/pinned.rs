//! Which columns must have one certain value for a condition to be true: what rows can be looked up by where they are stored.
//!
//! Invariant: where the condition is true or fails, each pinned column has its value, encoded as the codec encodes the text. So only
//! types are named of which equal values are encoded equally, and of each type one by one.

use super::Predicate;
use super::access::Access;
use super::kind::Kind;
use super::region::Region;

/// A column with its only value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The column's field number.
    pub field: u32,
    /// As PostgreSQL prints it.
    pub text: String,
}

impl Predicate {
    /// The columns that are pinned, ascending by field.
    #[must_use]
    pub fn pinned(&self) -> Vec<Pinned> {
        let accesses = self.parts.iter().map(|part| part.access(&self.columns));
        let mut pinned: Vec<Pinned> = accesses.filter_map(|access| self.pinned_by(&access)).collect();
        pinned.sort_unstable_by_key(|pinned| pinned.field);
        pinned.dedup_by_key(|pinned| pinned.field);
        pinned
    }

    fn pinned_by(&self, access: &Access) -> Option<Pinned> {
        let Access::Column(lookup) = access else { return None };
        let input = self.columns.get(lookup.path.column).filter(|_| lookup.path.is_exact())?;
        let text = text(input.kind, only_key(&lookup.region)?)?;
        Some(Pinned { field: input.field, text })
    }
}

fn only_key(region: &Region) -> Option<&[u8]> {
    match (region.null, region.intervals.as_slice()) {
        (false, [only]) => only.as_point().map(|key| &**key),
        _ => None,
    }
}

pub(super) fn text(kind: Kind, key: &[u8]) -> Option<String> {
    match kind {
        Kind::Bool => Some(if key == [0] { "f" } else { "t" }.to_owned()),
        Kind::Int2 | Kind::Int4 | Kind::Int8 => {
            let number = u64::from_be_bytes(key.try_into().ok()?) ^ 1 << 63;
            Some(number.cast_signed().to_string())
        }
        Kind::Text | Kind::Varchar | Kind::Uuid => String::from_utf8(key.to_vec()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{
        Failure,
        random::{Random, table},
    };

    #[test]
    fn equality_pins_and_nothing_else_does() {
        let pinned = |condition: &str| {
            let predicate = Predicate::new(condition, &[], &table()).expect("a condition");
            predicate.pinned().into_iter().map(|pinned| format!("{} {}", pinned.field, pinned.text)).collect::<Vec<_>>()
        };
        assert_eq!(pinned("i = 7 and l > 3 and t = 'a '"), ["3 7", "8 a "]);
        assert_eq!(pinned("b and s = -1"), ["1 t", "2 -1"]);
        assert_eq!(pinned("not b and l in (42)"), ["1 f", "4 42"]);
        assert_eq!(pinned("i = 7 or l = 3"), [""; 0]);
        assert_eq!(pinned("n = 1 and c = 'a' and d = 0 and i is null"), [""; 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_selected_has_the_values(seed: u64) {
            let mut random = Random::new(StdRng::seed_from_u64(seed));
            for _ in 0..40 {
                let Ok(predicate) = Predicate::new(&random.condition(3), &[], &table()) else { continue };
                for _ in 0..20 {
                    let values = random.values();
                    match predicate.selects(&random.row(&values)) {
                        Ok(true) | Err(Failure::Evaluation(_)) => {}
                        Ok(false) | Err(Failure::Row(_)) => continue,
                    }
                    for Pinned { field, text } in predicate.pinned() {
                        prop_assert_eq!(values[field as usize - 1], Some(text.as_str()), "{}", predicate.normal_form());
                    }
                }
            }
        }
    }
}
