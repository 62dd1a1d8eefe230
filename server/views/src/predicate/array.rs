//! PostgreSQL's arrays (`src/backend/utils/adt/arrayfuncs.c`): elements in row-major order, and the first subscript and the
//! length of each dimension.

use std::cmp::Ordering;

use super::evaluate::{EvaluationError, fits, length};
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

/// Arrays that are put together.
impl Array {
    /// One behind the other; one that has a dimension less becomes an element of the other's first dimension (`array_cat`).
    pub(super) fn concat(&self, other: &Self) -> Result<Self, EvaluationError> {
        let (mine, theirs) = (&self.dimensions, &other.dimensions);
        if theirs.is_empty() {
            return Ok(self.clone());
        }
        if mine.is_empty() {
            return Ok(other.clone());
        }
        let (outer, added) = if mine.len() >= theirs.len() { (mine, theirs) } else { (theirs, mine) };
        let (inner, added_length) = match outer.len() - added.len() {
            0 => (&added[1..], added[0].1),
            1 => (&added[..], 1),
            _ => return Err(INCOMPATIBLE),
        };
        if outer[1..] != *inner {
            return Err(INCOMPATIBLE);
        }
        fits(self.byte_count() + other.byte_count())?;
        let mut dimensions = outer.clone();
        dimensions[0] = lengthened(outer[0], added_length)?;
        Ok(Array { elements: [&self.elements[..], &other.elements].concat(), dimensions })
    }

    /// Of all elements, text included.
    pub(super) fn byte_count(&self) -> usize {
        self.elements.iter().map(|element| size_of::<Value<'_>>() + length(element)).sum()
    }

    /// With this element before all others, or behind them (`array_prepend`, `array_append`).
    pub(super) fn with(&self, element: Value<'static>, is_first: bool) -> Result<Self, EvaluationError> {
        let one = Array::of(vec![element]);
        let dimension = match self.dimensions.as_slice() {
            [] => return Ok(one),
            [dimension] => lengthened(*dimension, 1)?,
            _ => {
                return Err(EvaluationError::Argument {
                    what: "an element is added to an array of several dimensions",
                });
            }
        };
        // Before it has its subscripts again, PostgreSQL puts the first element at the subscript before them.
        if is_first && dimension.0 == i32::MIN {
            return Err(BOUNDS);
        }
        fits(self.byte_count() + one.byte_count())?;
        let (before, behind) = if is_first { (&one, self) } else { (self, &one) };
        Ok(Array { elements: [&before.elements[..], &behind.elements].concat(), dimensions: vec![dimension] })
    }

    /// The subscripts of the elements that are equal to this one; NULL is equal to NULL here (`array_position`).
    pub(super) fn positions(&self, of: &Value<'_>) -> Result<impl Iterator<Item = i64>, EvaluationError> {
        let first = match self.dimensions.as_slice() {
            [] => 1,
            [(first, _)] => i64::from(*first),
            _ => {
                return Err(EvaluationError::Argument {
                    what: "an element is looked for in an array of several dimensions",
                });
            }
        };
        let found = (first..).zip(&self.elements).filter(|(_, element)| is_same(element, of));
        Ok(found.map(|(at, _)| at))
    }

    /// Without the elements that are equal to this one (`array_remove`).
    pub(super) fn without(&self, removed: &Value<'_>) -> Result<Self, EvaluationError> {
        let first = match self.dimensions.as_slice() {
            [] => return Ok(Array::default()),
            [(first, _)] => *first,
            _ => return Err(EvaluationError::Argument { what: "array_remove of an array of several dimensions" }),
        };
        let elements: Vec<_> = self.elements.iter().filter(|element| !is_same(element, removed)).cloned().collect();
        let dimensions = if elements.is_empty() { Vec::new() } else { vec![(first, elements.len() as u32)] };
        Ok(Array { elements, dimensions })
    }
}

const INCOMPATIBLE: EvaluationError = EvaluationError::Argument { what: "|| of arrays whose dimensions do not fit" };
const BOUNDS: EvaluationError = EvaluationError::Argument { what: "an array's subscripts end beyond int4" };

/// NULL is the same as NULL.
pub(super) fn is_same(element: &Value<'_>, other: &Value<'_>) -> bool {
    match (element, other) {
        (Value::Null, Value::Null) => true,
        (Value::Null, _) | (_, Value::Null) => false,
        (element, other) => element.compare(other, false).is_eq(),
    }
}

/// A dimension of so many elements more; PostgreSQL counts its end in int4.
fn lengthened((first, length): (i32, u32), by: u32) -> Result<(i32, u32), EvaluationError> {
    let length = length.checked_add(by).filter(|&length| i64::from(first) + i64::from(length) <= i64::from(i32::MAX));
    length.map(|length| (first, length)).ok_or(BOUNDS)
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
    fn what_is_put_before_an_array_keeps_its_first_subscript() {
        let of = |first, ints: &[i64]| Array {
            dimensions: vec![(first, ints.len() as u32)],
            ..Array::of(ints.iter().map(|&int| Value::Int(int)).collect())
        };
        assert_eq!(of(5, &[2, 3]).with(Value::Int(1), true), Ok(of(5, &[1, 2, 3])));
        assert_eq!(of(5, &[2]).concat(&of(0, &[3])), Ok(of(5, &[2, 3])));
        let square = Array { elements: (1..=4).map(Value::Int).collect(), dimensions: vec![(0, 2), (1, 2)] };
        let higher = of(1, &[8, 9]).concat(&square).map(|array| array.dimensions);
        assert_eq!(higher, Ok(vec![(0, 3), (1, 2)]));
        assert_eq!(square.concat(&of(0, &[8, 9])), Err(INCOMPATIBLE));
        assert!(square.with(Value::Null, false).is_err() && square.positions(&Value::Null).is_err());
        assert_eq!(of(i32::MAX - 1, &[1]).with(Value::Int(2), false), Err(BOUNDS));
        assert_eq!(of(i32::MIN, &[1]).with(Value::Int(2), true), Err(BOUNDS));
        assert_eq!(of(7, &[1, 2, 1]).positions(&Value::Int(1)).map(Iterator::collect), Ok(vec![7, 9]));
        assert_eq!(of(7, &[1, 2, 1]).without(&Value::Int(1)), Ok(of(7, &[2])));
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
