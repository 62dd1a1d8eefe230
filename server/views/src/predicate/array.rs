//! PostgreSQL's arrays (`src/backend/utils/adt/arrayfuncs.c`): elements in row-major order, and the first subscript and the
//! length of each dimension.

use std::cmp::Ordering;

use super::value::Value;

/// An array. One without elements has no dimensions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Array {
    pub(super) elements: Vec<Value<'static>>,
    /// First subscripts and lengths.
    pub(super) dimensions: Vec<(i32, u32)>,
}

impl Array {
    /// Of one dimension, from 1.
    pub(super) fn of(elements: Vec<Value<'static>>) -> Self {
        let dimensions = if elements.is_empty() { Vec::new() } else { vec![(1, elements.len() as u32)] };
        Array { elements, dimensions }
    }

    /// By elements, a NULL above all and equal to another; then by length, and by dimensions (`array_cmp`).
    pub(super) fn compare(&self, other: &Self, padded: bool) -> Ordering {
        let of_pair = |(a, b): (&Value<'_>, &Value<'_>)| match (a, b) {
            (Value::Null, Value::Null) => Ordering::Equal,
            (Value::Null, _) => Ordering::Greater,
            (_, Value::Null) => Ordering::Less,
            (a, b) => a.compare(b, padded),
        };
        let elements = self.elements.iter().zip(&other.elements).map(of_pair).find(|ordering| ordering.is_ne());
        let lengths = |array: &Self| array.dimensions.iter().map(|&(_, length)| length).collect::<Vec<_>>();
        elements.unwrap_or_else(|| {
            self.elements
                .len()
                .cmp(&other.elements.len())
                .then_with(|| self.dimensions.len().cmp(&other.dimensions.len()))
                .then_with(|| lengths(self).cmp(&lengths(other)))
                .then_with(|| self.dimensions.cmp(&other.dimensions))
        })
    }

    /// Is each element, or some, among the other's? A NULL is among none.
    pub(super) fn is_within(&self, other: &Self, all: bool) -> bool {
        let mut sorted: Vec<_> = other.elements.iter().filter(|element| **element != Value::Null).collect();
        sorted.sort_unstable_by(|a, b| a.compare(b, false));
        let within = |element: &Value<'_>| {
            *element != Value::Null && sorted.binary_search_by(|other| other.compare(element, false)).is_ok()
        };
        if all { self.elements.iter().all(within) } else { self.elements.iter().any(within) }
    }

    /// NULL where there is no such element, or not as many subscripts as dimensions.
    pub(super) fn element(&self, subscripts: impl ExactSizeIterator<Item = i64>) -> Value<'static> {
        if subscripts.len() != self.dimensions.len() || self.elements.is_empty() {
            return Value::Null;
        }
        let mut place = 0;
        for (subscript, &(first, length)) in subscripts.zip(&self.dimensions) {
            let within = usize::try_from(subscript - i64::from(first)).ok().filter(|&at| at < length as usize);
            let Some(within) = within else { return Value::Null };
            place = place * length as usize + within;
        }
        self.elements.get(place).cloned().unwrap_or(Value::Null)
    }
}

impl Array {
    /// The elements between these bounds, of one dimension after the other; of the others, all (`array_get_slice`). None is the array's
    /// own bound. Its subscripts begin at 1.
    pub(super) fn slice(&self, bounds: &[(Option<i64>, Option<i64>)]) -> Self {
        if bounds.len() > self.dimensions.len() {
            return Array::default();
        }
        let (mut places, mut dimensions) = (vec![0], Vec::with_capacity(self.dimensions.len()));
        let bounds = bounds.iter().copied().chain(std::iter::repeat((None, None)));
        for (&(first, length), (lower, upper)) in self.dimensions.iter().zip(bounds) {
            let (first, length) = (i64::from(first), i64::from(length));
            let lower = lower.map_or(0, |lower| (lower - first).max(0));
            let upper = upper.map_or(length, |upper| (upper - first + 1).min(length));
            if lower >= upper {
                return Array::default();
            }
            dimensions.push((1, (upper - lower) as u32));
            let within = |place: i64| (lower..upper).map(move |at| place * length + at);
            places = places.into_iter().flat_map(within).collect();
        }
        if dimensions.is_empty() {
            return Array::default();
        }
        let element = |place: i64| usize::try_from(place).ok().and_then(|place| self.elements.get(place)).cloned();
        Array { elements: places.into_iter().filter_map(element).collect(), dimensions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_ordered_by_elements_before_length() {
        let of = |ints: &[i64]| Array::of(ints.iter().map(|&int| Value::Int(int)).collect());
        assert_eq!(of(&[1, 2]).compare(&of(&[1, 3, 0]), false), Ordering::Less);
        assert_eq!(of(&[1, 2]).compare(&of(&[1, 2, 0]), false), Ordering::Less);
        let shifted = Array { dimensions: vec![(0, 2)], ..of(&[1, 2]) };
        assert_eq!(shifted.compare(&of(&[1, 2]), false), Ordering::Less);
        assert_eq!(shifted.element([0].into_iter()), Value::Int(1));
        assert_eq!(shifted.element([2].into_iter()), Value::Null);
    }

    #[test]
    fn slices_begin_at_1_and_are_cut_by_the_array() {
        let elements = (1..=6).map(Value::Int).collect();
        let square = Array { elements, dimensions: vec![(0, 3), (3, 2)] };
        let slice = |bounds: &[(Option<i64>, Option<i64>)]| {
            let Array { elements, dimensions } = square.slice(bounds);
            (elements.iter().map(Value::as_int).collect::<Vec<_>>(), dimensions)
        };
        assert_eq!(slice(&[(Some(1), Some(9))]), (vec![3, 4, 5, 6], vec![(1, 2), (1, 2)]));
        assert_eq!(slice(&[(None, Some(1)), (Some(4), None)]), (vec![2, 4], vec![(1, 2), (1, 1)]));
        let nothing = (vec![], vec![]);
        assert_eq!(slice(&[(Some(2), Some(1))]), nothing);
        assert_eq!(slice(&[(None, None), (Some(5), None)]), nothing);
        assert_eq!(slice(&[(None, None), (None, None), (None, None)]), nothing);
        assert_eq!(Array::default().slice(&[]), Array::default());
    }
}
