//! Typing of functions, of the operators that stand in tables, and of arrays.

use std::sync::Arc;

use super::array::Array;
use super::collation::Collation;
use super::evaluate::Evaluator;
use super::expression::{Expression, Function};
use super::kind::Kind;
use super::moment_functions::ZONE;
use super::moment_parts::is_field;
use super::operand::NOT_IMMUTABLE;
use super::refusal::{Reason, Refusal};
use super::resolution;
use super::signature::{self, Chosen, Does, Needs, Signature, Slot};
use super::syntax::{Subscript, Syntax};
use super::typing::{Typed, Typing, constant};
use super::value::Value;
use super::zone::is_zone;

/// Functions whose results change by themselves.
const CHANGING: [&str; 10] = [
    "now",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "timeofday",
    "random",
    "gen_random_uuid",
    "nextval",
    "currval",
    "pg_sleep",
];

const KNOWN: &str = "conditions know the functions and operators that their documentation lists";

impl Typing<'_> {
    pub(super) fn call(&mut self, at: usize, name: &[String], operands: &[Syntax]) -> Result<Typed, Refusal> {
        let (last, schema) = name.split_last().expect("a name has a part");
        let shipped = schema.is_empty() || schema == ["pg_catalog"];
        let candidates = if shipped { signature::named(last, false) } else { Vec::new() };
        if candidates.is_empty() {
            let what = format!("the function {}", name.join("."));
            let instead = if CHANGING.contains(&last.as_str()) { NOT_IMMUTABLE } else { KNOWN };
            return self.refuse(at, Reason::Unsupported { what, instead });
        }
        let operands = operands.iter().map(|operand| self.typed(operand)).collect::<Result<Vec<_>, _>>()?;
        self.chosen(at, candidates, operands)
    }

    pub(super) fn operator(&mut self, at: usize, symbol: &str, operands: &[Syntax]) -> Result<Typed, Refusal> {
        let candidates = signature::named(symbol, true);
        if candidates.is_empty() {
            return self.refuse(at, Reason::Unsupported { what: format!("the operator {symbol}"), instead: KNOWN });
        }
        let operands = operands.iter().map(|operand| self.typed(operand)).collect::<Result<Vec<_>, _>>()?;
        self.chosen(at, candidates, operands)
    }

    /// The function or operator among those of one name that PostgreSQL chooses for these operands.
    pub(super) fn chosen(
        &mut self,
        at: usize,
        candidates: Vec<&'static Signature>,
        operands: Vec<Typed>,
    ) -> Result<Typed, Refusal> {
        let given: Vec<_> = operands.iter().map(|operand| operand.kind).collect();
        let Some(Chosen { signature, operands: kinds, result }) = signature::choose(&candidates, &given) else {
            let name = candidates[0].name;
            let mut names: Vec<String> = given.iter().map(|&kind| self.name(kind)).collect();
            return self.refuse(
                at,
                match (candidates[0].is_operator, names.pop(), names.pop()) {
                    (true, Some(right), Some(left)) => Reason::NoOperator { operator: name, left, right },
                    _ => {
                        let operands = given.iter().map(|&kind| self.name(kind)).collect();
                        Reason::NoFunction { name, operands }
                    }
                },
            );
        };
        if let Does::Refused(instead) = signature.does {
            let kinds: Vec<_> = kinds.iter().map(|&kind| self.table.kind_name(kind)).collect();
            let what = match kinds.as_slice() {
                [left, right] if signature.is_operator => format!("{left} {} {right}", signature.name),
                kinds => format!("{}({})", signature.name, kinds.join(", ")),
            };
            return self.refuse(at, Reason::Unsupported { what, instead });
        }
        let (mut collation, mut trees) = (Collation::Default, Vec::with_capacity(operands.len()));
        for ((operand, &kind), slot) in operands.into_iter().zip(&kinds).zip(signature.operands) {
            let operand = match slot {
                Slot::NonArrayAsText => self.cast_typed(operand, kind, Vec::new())?,
                _other => self.coerced(operand, kind, "this")?,
            };
            if kind.is_collatable() {
                collation = self.merged(at, collation, &operand.collation)?;
            }
            trees.push(operand.tree);
        }
        self.check_needs(at, signature, &collation, &kinds)?;
        self.check_field(at, signature.name, &trees)?;
        self.check_operands(at, signature.name, &kinds, &trees)?;
        if signature.needs != Needs::Nothing {
            trees = self.collated_among(trees, |place| kinds[place].is_collatable(), &collation);
        }
        let tree = match signature.is_strict {
            true => Expression::Strict(Function::Call { signature, result }, trees),
            false => Expression::CalledOnNull { signature, result, operands: trees },
        };
        let typed = self.folded(Typed::known(at, result, tree))?;
        Ok(if result.is_collatable() { typed.with(collation) } else { typed })
    }

    fn check_needs(
        &self,
        at: usize,
        signature: &Signature,
        collation: &Collation,
        kinds: &[Kind],
    ) -> Result<(), Refusal> {
        let has_equality = |kind: &Kind| !matches!(kind.innermost(), Kind::Json | Kind::Bpchar);
        if signature.needs == Needs::Equality && !kinds.iter().all(has_equality) {
            let what = format!("{} of {}", signature.name, self.name(kinds.first().copied()));
            let instead = "cast the array to text[] or jsonb[], whose elements can be compared";
            return self.refuse(at, Reason::Unsupported { what, instead });
        }
        if signature.needs == Needs::Nothing || !kinds.iter().any(|kind| kind.is_collatable()) {
            return Ok(());
        }
        self.check_collation(at, collation, signature.needs == Needs::Bytes, signature.name)
    }

    /// A field or a zone that is not known is refused here, where it is constant.
    fn check_field(&self, at: usize, name: &'static str, operands: &[Expression]) -> Result<(), Refusal> {
        if !matches!(name, "extract" | "date_part" | "date_trunc" | "timezone") {
            return Ok(());
        }
        match operands.first() {
            Some(Expression::Constant(_, Value::Text(zone))) if name == "timezone" => {
                let what = format!("the zone {zone}");
                let instead = "write a name such as Europe/Berlin, or UTC; abbreviations depend on settings";
                if is_zone(zone) { Ok(()) } else { self.refuse(at, Reason::Unsupported { what, instead }) }
            }
            Some(Expression::Constant(_, Value::Text(field))) if !is_field(name, field) => {
                let what = format!("the field {field} of {name}");
                let instead =
                    "write year, quarter, month, week, day, hour, minute or second, or another that is documented";
                self.refuse(at, Reason::Unsupported { what, instead })
            }
            _ => Ok(()),
        }
    }

    /// Of a point in time, only its distance from 1970 does not depend on the session's TimeZone; and a path has no NULL.
    fn check_operands(
        &self,
        at: usize,
        name: &'static str,
        kinds: &[Kind],
        operands: &[Expression],
    ) -> Result<(), Refusal> {
        if name.ends_with("_path") || name.ends_with("_path_text") {
            // PostgreSQL makes an array of them, and looks at it row by row.
            let Some(_) = operands.iter().skip(1).find(|step| step.is_null()) else { return Ok(()) };
            let what = format!("NULL in the path of {name}");
            return self.refuse(at, Reason::Unsupported { what, instead: "the answer is NULL; leave it out" });
        }
        if !matches!((name, kinds), ("extract" | "date_part", [_, Kind::Timestamptz])) {
            return Ok(());
        }
        match operands.first() {
            Some(Expression::Constant(_, Value::Text(field))) if field.eq_ignore_ascii_case("epoch") => Ok(()),
            _ => {
                let what = format!("{name}(text, timestamptz)");
                self.refuse(at, Reason::Unsupported { what, instead: ZONE })
            }
        }
    }

    pub(super) fn subscript(
        &mut self,
        (at, operand): (usize, &Syntax),
        subscripts: &[Subscript],
        is_slice: bool,
    ) -> Result<Typed, Refusal> {
        let operand = self.typed(operand)?;
        if operand.kind == Some(Kind::Jsonb) && !is_slice {
            return self.json_subscript(at, operand, subscripts);
        }
        let Some(element) = operand.kind.and_then(Kind::element) else {
            let (found, expected) = (self.name(operand.kind), "an array".to_owned());
            return self.refuse(at, Reason::WrongType { what: "a subscript", found, expected });
        };
        let (mut trees, mut slices) = (vec![operand.tree], Vec::with_capacity(subscripts.len()));
        for subscript in subscripts {
            slices.push(match subscript {
                Subscript::Slice(lower, upper) => (lower.is_some(), upper.is_some()),
                Subscript::At(_) => {
                    // Among slices, one without a colon is from 1.
                    trees.extend(is_slice.then_some(Expression::Constant(Kind::Int4, Value::Int(1))));
                    (true, true)
                }
            });
            for bound in subscript.bounds() {
                let bound = self.typed(bound)?;
                trees.push(self.coerced(bound, Kind::Int4, "a subscript")?.tree);
            }
        }
        let (function, kind) = match operand.kind.filter(|_| is_slice) {
            Some(array) => (Function::Slice(slices.into()), array),
            None => (Function::Subscript, element),
        };
        let tree = Expression::Strict(function, trees);
        Ok(self.folded(Typed::known(at, kind, tree))?.with(operand.collation))
    }

    /// `j['a'][1]` is `j #> '{a,1}'` (`jsonbsubs.c`).
    fn json_subscript(&mut self, at: usize, operand: Typed, subscripts: &[Subscript]) -> Result<Typed, Refusal> {
        let mut path = Vec::with_capacity(subscripts.len());
        for step in subscripts.iter().flat_map(Subscript::bounds) {
            let step = self.typed(step)?;
            let step = self.settled(step)?;
            path.push(match (step.kind, step.tree) {
                (Some(Kind::Text | Kind::Int2 | Kind::Int4), Expression::Constant(_, Value::Null)) => Value::Null,
                (Some(Kind::Int2 | Kind::Int4), Expression::Constant(_, Value::Int(place))) => {
                    Value::text(place.to_string())
                }
                (Some(Kind::Text), Expression::Constant(_, name)) => name,
                _ => {
                    let what = "such a subscript of jsonb".to_owned();
                    let instead = "write a constant, a string or a whole number; or use -> with a value of a column";
                    return self.refuse(step.at, Reason::Unsupported { what, instead });
                }
            });
        }
        let kind = Kind::Array(&Kind::Text);
        let path = constant(at, kind, Value::Array(Arc::new(Array::of(path))));
        self.chosen(at, signature::named("#>", true), vec![operand, path])
    }

    /// The values of ARRAY[…], brought to one type.
    pub(super) fn array_values(&mut self, at: usize, values: &[Syntax]) -> Result<(Kind, Vec<Typed>), Refusal> {
        if values.is_empty() {
            let what = "an empty array without a type".to_owned();
            return self.refuse(at, Reason::Unsupported { what, instead: "write '{}'" });
        }
        let values = values.iter().map(|value| self.typed(value)).collect::<Result<Vec<_>, _>>()?;
        let kind = match resolution::common(values.iter().map(|value| value.kind)) {
            Ok(kind) => kind,
            Err((one, other)) => {
                let (found, expected) = (self.name(Some(other)), self.name(Some(one)));
                return self.refuse(at, Reason::WrongType { what: "the array", found, expected });
            }
        };
        let values = values.into_iter().map(|value| self.coerced(value, kind, "the array"));
        Ok((kind, values.collect::<Result<_, _>>()?))
    }

    /// An array of elements of this type, of one dimension.
    pub(super) fn array_of(&mut self, at: usize, kind: Kind, values: Vec<Typed>) -> Result<Typed, Refusal> {
        let Some(array) = kind.array() else { return self.no_such_array(at) };
        let mut collation = Collation::Default;
        for value in &values {
            collation = self.merged(value.at, collation, &value.collation)?;
        }
        let tree = Expression::Array(kind, values.into_iter().map(|value| value.tree).collect());
        Ok(self.folded(Typed::known(at, array, tree))?.with(collation))
    }

    pub(super) fn constant_of(&self, typed: Typed) -> Result<Value<'static>, Refusal> {
        if typed.tree.has_column() {
            let what = "what is not constant in such a list".to_owned();
            return self.refuse(typed.at, Reason::Unsupported { what, instead: "compare with it on its own, with OR" });
        }
        let mut evaluator = Evaluator::new(&[]);
        match evaluator.value(&typed.tree) {
            Ok(value) => Ok(value.into_owned()),
            Err(error) => self.refuse(typed.at, Reason::AlwaysFails { error }),
        }
    }

    pub(super) fn no_such_array<T>(&self, at: usize) -> Result<T, Refusal> {
        let instead = "arrays of enums stand within ANY (…) and ALL (…) only, and arrays have one dimension";
        self.refuse(at, Reason::Unsupported { what: "such an array here".to_owned(), instead })
    }
}
