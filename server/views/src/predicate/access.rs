//! For which rows can a condition be true, as far as one column's value tells? What an index looks up.
//!
//! ```text
//! tenant = 7 AND (sku LIKE 'ab%' OR price < 5) AND a + b = 3
//!    │                │               │           └─ Unknown
//!    │                └── Any ────────┘
//!    └─ Column { tenant, {7}, exact }
//! ```
//!
//! Invariants: where the condition is true, or fails, the value is in the region, so that who looks up regions only misses
//! nothing; where `exact`, the condition is true for every value of the region, and never fails. A column stands in a region by
//! itself, or under casts that cannot fail; a value that cannot be read at all is for the index to notice.
//!
//! The elements of an array are another path, of which a row has several keys; the region has one of them: `tags @> '{a,b}'` is
//! `All` of two lookups of one key each. Regions of such a path are not intersected or turned around, since different elements
//! may be in each.

use std::borrow::Cow;

use super::arithmetic::cast;
use super::comparison::Comparison;
use super::expression::{Expression, Function, Quantified};
use super::input::Input;
use super::key;
use super::kind::Kind;
use super::region::{Key, Region};
use super::value::Value;

/// What can be looked up of a condition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Access {
    Column(Lookup),
    /// It is true where all are; of none, everywhere.
    All(Vec<Access>),
    /// It is true where one is; of none, nowhere.
    Any(Vec<Access>),
    Unknown,
}

/// A column's values for which a condition can be true.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lookup {
    pub(crate) path: Path,
    pub(crate) region: Region,
    pub(crate) exact: bool,
}

/// How a key comes out of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Among the columns that the condition reads.
    pub(crate) column: usize,
    /// Those that change the value.
    casts: Vec<(Kind, Kind)>,
    /// Spaces at the end do not count.
    padded: bool,
    /// Each element of an array has a key.
    of_elements: bool,
}

impl Access {
    /// Of the condition, whose columns are these.
    pub(super) fn of(condition: &Expression, inputs: &[Input]) -> Self {
        Analysis { inputs }.access(condition, true)
    }
}

impl Path {
    /// The key of a value that is not NULL, borrowed from it where it can be, else in `room`. None where it has none.
    pub(super) fn key<'k>(&self, value: Value<'k>, room: &'k mut Vec<u8>) -> Option<&'k [u8]> {
        if let (Value::Int(value), [(_, Kind::Numeric)]) = (&value, self.casts.as_slice()) {
            return key::write_int_as_numeric(*value, room).then_some(room);
        }
        let mut value = value;
        for &(from, to) in &self.casts {
            value = cast(value, from, to, &[]).ok()?;
        }
        match value {
            Value::Text(Cow::Borrowed(text)) if self.padded => Some(text.trim_end_matches(' ').as_bytes()),
            Value::Text(Cow::Borrowed(text)) => Some(text.as_bytes()),
            Value::Bytes(Cow::Borrowed(bytes)) => Some(bytes),
            other => key::write(&other, self.padded, room).then_some(room),
        }
    }

    pub(crate) fn is_of_elements(&self) -> bool {
        self.of_elements
    }

    /// Is one key one value of the column?
    pub(super) fn is_exact(&self) -> bool {
        self.casts.is_empty() && !self.padded && !self.of_elements
    }

    /// Is it the column's value as it is?
    pub(super) fn is_plain(&self) -> bool {
        self.casts.is_empty()
    }

    /// The type that it is compared as, where that is not the column's.
    pub(crate) fn cast_name(&self) -> Option<&'static str> {
        self.casts.last().map(|(_, to)| to.name())
    }
}

struct Analysis<'a> {
    inputs: &'a [Input],
}

/// The column, under casts that cannot fail, that the operand is.
pub(super) fn path(operand: &Expression, inputs: &[Input], padded: bool) -> Option<Path> {
    Analysis { inputs }.path(operand, padded)
}

/// May PostgreSQL refuse to cast a value?
pub(super) fn cast_may_fail(from: Kind, to: Kind) -> bool {
    matches!(effect(from, to), Effect::MayFail)
}

impl Analysis<'_> {
    /// Where the condition has this truth.
    fn access(&self, condition: &Expression, truth: bool) -> Access {
        let each = |operands: &[Expression]| operands.iter().map(|operand| self.access(operand, truth)).collect();
        match condition {
            Expression::And(operands) if truth => Access::All(each(operands)),
            Expression::Or(operands) if !truth => Access::All(each(operands)),
            Expression::And(operands) | Expression::Or(operands) => Access::Any(each(operands)),
            Expression::Not(operand) => self.access(operand, !truth),
            Expression::Constant(_, Value::Bool(value)) if *value == truth => Access::All(Vec::new()),
            Expression::Constant(..) => Access::Any(Vec::new()),
            Expression::Is(Some(value), operand) if truth => self.access(operand, *value),
            Expression::Is(Some(value), operand) => self.elsewhere(self.access(operand, *value)),
            Expression::IsNull(operand) => {
                let region = if truth { Region::null() } else { Region::not_null() };
                self.column(operand, false, region, true)
            }
            Expression::Column(_) => self.matching(condition, false, (Comparison::Equal, &Value::Bool(truth))),
            Expression::Strict(Function::Compare { op, padded }, operands) => {
                let op = if truth { *op } else { op.negated() };
                match operands.as_slice() {
                    [left, Expression::Constant(_, value)] => self.matching(left, *padded, (op, value)),
                    _ => Access::Unknown,
                }
            }
            Expression::Strict(Function::Like { fold: false }, operands) => match operands.as_slice() {
                [text, Expression::Constant(_, Value::Text(pattern))] => self.like(text, pattern, truth),
                _ => Access::Unknown,
            },
            Expression::Quantified(quantified) => self.quantified(quantified, truth),
            Expression::Strict(Function::Call { signature, .. }, operands) if truth && signature.is_operator => {
                match (signature.name, operands.as_slice()) {
                    ("@>", [array, Expression::Constant(_, values)])
                    | ("<@", [Expression::Constant(_, values), array]) => self.containing(array, values, true),
                    ("&&", [array, Expression::Constant(_, values)])
                    | ("&&", [Expression::Constant(_, values), array]) => self.containing(array, values, false),
                    _ => Access::Unknown,
                }
            }
            Expression::QuantifiedArray { all: false, op, operands, .. } if truth => match operands.as_slice() {
                [Expression::Constant(_, value), array] => match (self.elements(array), key_of(value, false)) {
                    (Some(path), Some(key)) => {
                        let region = Region::compared(op.exchanged(), &key);
                        Access::Column(Lookup { path, region, exact: true })
                    }
                    _ => Access::Unknown,
                },
                _ => Access::Unknown,
            },
            // What is not named here is evaluated: sound, whatever it is.
            _ => Access::Unknown,
        }
    }

    /// Where it has not the truth that the access is of.
    fn elsewhere(&self, access: Access) -> Access {
        match access {
            Access::Column(lookup) if lookup.exact && !lookup.path.of_elements => {
                Access::Column(Lookup { region: lookup.region.complement(), ..lookup })
            }
            Access::Column(_) | Access::All(_) | Access::Any(_) | Access::Unknown => Access::Unknown,
        }
    }

    fn column(&self, operand: &Expression, padded: bool, region: Region, exact: bool) -> Access {
        match self.path(operand, padded) {
            Some(path) => Access::Column(Lookup { path, region, exact }),
            None => Access::Unknown,
        }
    }

    fn path(&self, operand: &Expression, padded: bool) -> Option<Path> {
        match operand {
            Expression::Column(column) => has_keys(self.inputs.get(*column)?.kind).then(|| Path {
                column: *column,
                casts: Vec::new(),
                padded,
                of_elements: false,
            }),
            Expression::Strict(Function::Collate(_), operands) => self.path(operands.first()?, padded),
            Expression::Strict(Function::Cast { from, to, modifiers }, operands) if modifiers.is_empty() => {
                let mut path = self.path(operands.first()?, padded)?;
                match effect(*from, *to) {
                    Effect::None => {}
                    Effect::Another => path.casts.push((*from, *to)),
                    Effect::MayFail => return None,
                }
                Some(path)
            }
            _ => None,
        }
    }

    /// The elements of a column that is an array. Those of `character` are left out: their spaces count for some operators.
    fn elements(&self, operand: &Expression) -> Option<Path> {
        match operand {
            Expression::Column(column) => match self.inputs.get(*column)?.kind {
                Kind::Array(element) if has_keys(*element) && *element != Kind::Bpchar => {
                    Some(Path { column: *column, casts: Vec::new(), padded: false, of_elements: true })
                }
                _ => None,
            },
            Expression::Strict(Function::Collate(_), operands) => self.elements(operands.first()?),
            Expression::Strict(
                Function::Cast { from: Kind::Array(from), to: Kind::Array(to), modifiers },
                operands,
            ) => {
                let same = modifiers.is_empty() && *to != &Kind::Bpchar && matches!(effect(**from, **to), Effect::None);
                if same { self.elements(operands.first()?) } else { None }
            }
            _ => None,
        }
    }

    /// Where the array has each of the values, or some.
    fn containing(&self, array: &Expression, values: &Value<'_>, all: bool) -> Access {
        let (Some(path), Value::Array(values)) = (self.elements(array), values) else { return Access::Unknown };
        let (nulls, others): (Vec<_>, Vec<_>) = values.elements.iter().partition(|value| **value == Value::Null);
        let Some(keys) = others.into_iter().map(|value| key_of(value, false)).collect::<Option<Vec<_>>>() else {
            return Access::Unknown;
        };
        let lookup = |region| Access::Column(Lookup { path: path.clone(), region, exact: true });
        match all {
            false => lookup(Region::quantified(Comparison::Equal, false, keys)),
            // NULL is nobody's element.
            true if !nulls.is_empty() => lookup(Region::nothing()),
            true if keys.is_empty() => Access::Unknown,
            true => Access::All(keys.iter().map(|key| lookup(Region::point(key))).collect()),
        }
    }

    fn matching(&self, left: &Expression, padded: bool, (op, value): (Comparison, &Value<'_>)) -> Access {
        match key_of(value, padded) {
            Some(key) => self.column(left, padded, Region::compared(op, &key), true),
            None => Access::Unknown,
        }
    }

    fn quantified(&self, quantified: &Quantified, truth: bool) -> Access {
        let Quantified { all, op, kind, left, values } = quantified;
        let (all, op) = if truth { (*all, *op) } else { (!*all, op.negated()) };
        let padded = *kind == Kind::Bpchar;
        let (nulls, others): (Vec<_>, Vec<_>) = values.iter().partition(|value| **value == Value::Null);
        let Some(keys) = others.into_iter().map(|value| key_of(value, padded)).collect::<Option<Vec<_>>>() else {
            return Access::Unknown;
        };
        let region = match values.is_empty() {
            true if all => Region::everything(),
            // With a NULL among them, all cannot be true.
            _ if all && !nulls.is_empty() => Region::nothing(),
            _ => Region::quantified(op, all, keys),
        };
        self.column(left, padded, region, true)
    }

    fn like(&self, text: &Expression, pattern: &str, truth: bool) -> Access {
        let (literal, rest) = literal_start(pattern.as_bytes());
        let (region, exact) = match rest {
            Rest::Nothing => (Region::point(&literal.into()), true),
            Rest::Anything => (Region::prefix(&literal), true),
            Rest::Pattern if literal.is_empty() => return Access::Unknown,
            Rest::Pattern => (Region::prefix(&literal), false),
        };
        match (truth, exact) {
            (true, _) => self.column(text, false, region, exact),
            (false, true) => self.column(text, false, region.complement().intersection(&Region::not_null()), true),
            (false, false) => Access::Unknown,
        }
    }
}

/// What stands in a pattern behind its beginning without wildcards.
enum Rest {
    Nothing,
    /// `%`
    Anything,
    Pattern,
}

fn literal_start(pattern: &[u8]) -> (Vec<u8>, Rest) {
    let mut literal = Vec::new();
    let mut bytes = pattern.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let rest = if bytes.all(|byte| byte == b'%') { Rest::Anything } else { Rest::Pattern };
                return (literal, rest);
            }
            b'_' => return (literal, Rest::Pattern),
            b'\\' => match bytes.next() {
                Some(escaped) => literal.push(escaped),
                // It fails for texts that begin so.
                None => return (literal, Rest::Pattern),
            },
            plain => literal.push(plain),
        }
    }
    (literal, Rest::Nothing)
}

fn key_of(value: &Value<'_>, padded: bool) -> Option<Key> {
    let mut bytes = Vec::new();
    key::write(value, padded, &mut bytes).then(|| bytes.into())
}

/// Has each of its values a key that costs little? Named one by one, so that a new type is not looked up unawares.
pub(super) fn has_keys(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Bool
            | Kind::Int2
            | Kind::Int4
            | Kind::Int8
            | Kind::Oid
            | Kind::Numeric
            | Kind::Float4
            | Kind::Float8
            | Kind::Text
            | Kind::Varchar
            | Kind::Bpchar
            | Kind::Uuid
            | Kind::Date
            | Kind::Time
            | Kind::Timestamp
            | Kind::Timestamptz
            | Kind::Bytea
            | Kind::Enum(_)
    )
}

/// What a cast does to a value.
enum Effect {
    None,
    Another,
    MayFail,
}

fn effect(from: Kind, to: Kind) -> Effect {
    match (from, to) {
        _ if from == to => Effect::None,
        (Kind::Int2, Kind::Int4 | Kind::Int8) | (Kind::Int4 | Kind::Oid, Kind::Int8) => Effect::None,
        (Kind::Float4, Kind::Float8) => Effect::None,
        (Kind::Text | Kind::Varchar, Kind::Text | Kind::Varchar | Kind::Bpchar) => Effect::None,
        // It loses its padding.
        (Kind::Bpchar, Kind::Text | Kind::Varchar) => Effect::Another,
        (Kind::Int2 | Kind::Int4 | Kind::Int8, Kind::Numeric | Kind::Float4 | Kind::Float8) => Effect::Another,
        (Kind::Int2 | Kind::Int4, Kind::Oid) => Effect::Another,
        (
            Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Bool | Kind::Uuid | Kind::Numeric,
            Kind::Text | Kind::Varchar,
        ) => Effect::Another,
        _ => Effect::MayFail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_begins_with_what_is_literal() {
        for (pattern, literal, rest) in [
            ("abc", "abc", 0),
            ("", "", 0),
            ("abc%", "abc", 1),
            ("%%", "", 1),
            ("a%c", "a", 2),
            ("a_", "a", 2),
            ("a\\%b%", "a%b", 1),
            ("a\\", "a", 2),
            ("\\\\é%", "\\é", 1),
        ] {
            let (found, kind) = literal_start(pattern.as_bytes());
            let kind = match kind {
                Rest::Nothing => 0,
                Rest::Anything => 1,
                Rest::Pattern => 2,
            };
            assert_eq!((found.as_slice(), kind), (literal.as_bytes(), rest), "{pattern}");
        }
    }
}
