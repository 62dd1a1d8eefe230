//! The second half of typing: operators and what is written like functions.

use std::borrow::Cow;

use super::collation::Collation;
use super::comparison::Comparison;
use super::expression::{Expression, Function, Quantified};
use super::kind::Kind;
use super::literal;
use super::refusal::{Reason, Refusal};
use super::resolution;
use super::signature;
use super::syntax::{Arithmetic, Syntax, What};
use super::typing::{Typed, Typing, constant};
use super::value::Value;

impl Typing<'_> {
    pub(super) fn boolean_over(
        &mut self,
        at: usize,
        operand: &Syntax,
        what: &'static str,
        over: impl FnOnce(Box<Expression>) -> Expression,
    ) -> Result<Typed, Refusal> {
        let operand = self.typed(operand)?;
        let operand = self.coerced(operand, Kind::Bool, what)?;
        Ok(Typed::known(at, Kind::Bool, over(Box::new(operand.tree))))
    }

    pub(super) fn logical(
        &mut self,
        at: usize,
        operands: &[Syntax],
        over: impl FnOnce(Vec<Expression>) -> Expression,
    ) -> Result<Typed, Refusal> {
        let mut trees = Vec::with_capacity(operands.len());
        for operand in operands {
            let operand = self.typed(operand)?;
            trees.push(self.coerced(operand, Kind::Bool, "AND and OR")?.tree);
        }
        Ok(Typed::known(at, Kind::Bool, over(trees)))
    }

    pub(super) fn compare_operands(
        &mut self,
        at: usize,
        op: Comparison,
        operands: &[Syntax; 2],
    ) -> Result<Typed, Refusal> {
        if let [What::Row(left), What::Row(right)] = [&operands[0].what, &operands[1].what] {
            return self.compare_rows(at, op, left, right);
        }
        let left = self.typed(&operands[0])?;
        let right = self.typed(&operands[1])?;
        self.compare(at, op, left, right)
    }

    pub(super) fn compare(&mut self, at: usize, op: Comparison, left: Typed, right: Typed) -> Result<Typed, Refusal> {
        let is_mixed = matches!(
            (left.kind, right.kind),
            (Some(Kind::Date), Some(Kind::Timestamp)) | (Some(Kind::Timestamp), Some(Kind::Date))
        );
        // A date is compared with a timestamp as it is: not every date has a timestamp.
        if is_mixed {
            return self.chosen(at, signature::named(op.symbol(), true), vec![left, right]);
        }
        let [left, right] = self.comparable(at, op, left, right)?;
        self.compare_coerced(at, op, left, right)
    }

    /// The operands with the types that the operator takes.
    fn comparable(&mut self, at: usize, op: Comparison, left: Typed, right: Typed) -> Result<[Typed; 2], Refusal> {
        let Some((left_kind, right_kind)) = resolution::comparison(left.kind, right.kind) else {
            let (left, right) = (self.name(left.kind), self.name(right.kind));
            return self.refuse(at, Reason::NoOperator { operator: op.symbol(), left, right });
        };
        Ok([self.coerced(left, left_kind, "the comparison")?, self.coerced(right, right_kind, "the comparison")?])
    }

    fn compare_coerced(&mut self, at: usize, op: Comparison, left: Typed, right: Typed) -> Result<Typed, Refusal> {
        self.charge(at, 1)?;
        let kind = left.kind.unwrap_or(Kind::Text);
        let collation = self.merged(at, left.collation, &right.collation)?;
        self.check_comparable(at, kind, &collation, op.orders())?;
        let padded = kind.innermost() == Kind::Bpchar;
        let operands = self.collated(vec![left.tree, right.tree], &collation);
        self.folded(Typed::known(at, Kind::Bool, Expression::Strict(Function::Compare { op, padded }, operands)))
    }

    /// Refuses what cannot be compared exactly, or not in this way.
    pub(super) fn check_comparable(
        &self,
        at: usize,
        kind: Kind,
        collation: &Collation,
        orders: bool,
    ) -> Result<(), Refusal> {
        if kind.is_collatable() {
            let what = if orders { "the order of text" } else { "equality of text" };
            self.check_collation(at, collation, orders, what)?;
        }
        let refused = match kind.innermost() {
            Kind::Json => "comparing json",
            Kind::Jsonb if orders => "the order of jsonb",
            _ => return Ok(()),
        };
        let instead = "cast json to jsonb, and compare that for equality, or a part of it as text";
        self.refuse(at, Reason::Unsupported { what: refused.to_owned(), instead })
    }

    pub(super) fn arithmetic(&mut self, at: usize, op: Arithmetic, operands: &[Syntax; 2]) -> Result<Typed, Refusal> {
        let left = self.typed(&operands[0])?;
        let right = self.typed(&operands[1])?;
        if [left.kind, right.kind].into_iter().flatten().any(|kind| !kind.is_number()) {
            let candidates = signature::named(op.symbol(), true);
            if !candidates.is_empty() {
                return self.chosen(at, candidates, vec![left, right]);
            }
        }
        let Some(kind) = resolution::arithmetic(op, left.kind, right.kind) else {
            let (left, right) = (self.name(left.kind), self.name(right.kind));
            return self.refuse(at, Reason::NoOperator { operator: op.symbol(), left, right });
        };
        let left = self.coerced(left, kind, "the operator")?;
        let right = self.coerced(right, kind, "the operator")?;
        let tree = Expression::Strict(Function::Arithmetic { op, kind }, vec![left.tree, right.tree]);
        self.folded(Typed::known(at, kind, tree))
    }

    /// `CASE WHEN a IS NULL THEN b IS NOT NULL WHEN b IS NULL THEN true ELSE a <> b END`: PostgreSQL's own form looks for
    /// its operator by name only.
    pub(super) fn distinct(&mut self, at: usize, operands: &[Syntax; 2]) -> Result<Typed, Refusal> {
        if let [What::Row(left), What::Row(right)] = [&operands[0].what, &operands[1].what] {
            return self.distinct_rows(at, left, right);
        }
        let left = self.typed(&operands[0])?;
        let right = self.typed(&operands[1])?;
        self.distinct_values(at, left, right)
    }

    pub(super) fn distinct_values(&mut self, at: usize, left: Typed, right: Typed) -> Result<Typed, Refusal> {
        let [left, right] = self.comparable(at, Comparison::Equal, left, right)?;
        let (left_again, right_again) = (self.again(&left)?, self.again(&right)?);
        let right_last = self.again(&right)?;
        let different = self.compare_coerced(at, Comparison::NotEqual, left_again, right_again)?;
        let is_null = |operand: Expression| Expression::IsNull(Box::new(operand));
        let right_is_null = is_null(right_last.tree);
        let arms = vec![
            (is_null(left.tree), Expression::Not(Box::new(is_null(right.tree)))),
            (right_is_null, constant(at, Kind::Bool, Value::Bool(true)).tree),
        ];
        let tree = Expression::Case { arms, otherwise: Box::new(different.tree) };
        Ok(Typed::known(at, Kind::Bool, tree))
    }

    /// Values without columns are an array of one type, the others are compared one by one (`transformAExprIn`).
    pub(super) fn in_list(
        &mut self,
        at: usize,
        operand: &Syntax,
        values: &[Syntax],
        negated: bool,
    ) -> Result<Typed, Refusal> {
        let op = if negated { Comparison::NotEqual } else { Comparison::Equal };
        if let What::Row(left) = &operand.what {
            return self.rows_in_list(at, left, values, (op, negated));
        }
        let operand = self.typed(operand)?;
        // A column counts where it is named, though nothing may depend on it.
        let (mut constants, mut others, mut kept) = (Vec::new(), Vec::new(), Vec::with_capacity(values.len()));
        for value in values {
            let before = self.columns_named;
            let value = self.typed(value)?;
            kept.push((self.columns_named == before, value));
        }
        let kinds = kept.iter().filter(|(is_constant, _)| *is_constant).map(|(_, value)| value.kind);
        let kind = resolution::common(std::iter::once(operand.kind).chain(kinds));
        // There are no arrays of arrays.
        let is_array = kind.as_ref().is_ok_and(|kind| kind.element().is_none())
            && kept.iter().filter(|(is_constant, _)| *is_constant).count() > 1;
        for (is_constant, value) in kept {
            if is_constant && is_array { constants.push(value) } else { others.push(value) }
        }
        let mut parts = Vec::new();
        if let (Ok(kind), true) = (kind, is_array) {
            let constants = constants.into_iter().map(|value| self.coerced(value, kind, "IN"));
            let constants = constants.collect::<Result<Vec<_>, _>>()?;
            let left = self.again(&operand)?;
            parts.push(self.with_each(at, left, (op, negated), (kind, constants))?.tree);
        }
        for other in others {
            let left = self.again(&operand)?;
            parts.push(self.compare(at, op, left, other)?.tree);
        }
        let tree = match (parts.len(), negated) {
            (1, _) => parts.pop().expect("there is one"),
            (_, true) => Expression::And(parts),
            (_, false) => Expression::Or(parts),
        };
        Ok(Typed::known(at, Kind::Bool, tree))
    }

    /// `left op ANY (values)`, the values being of one type.
    fn with_each(
        &mut self,
        at: usize,
        left: Typed,
        (op, all): (Comparison, bool),
        (kind, values): (Kind, Vec<Typed>),
    ) -> Result<Typed, Refusal> {
        if kind.element().is_some() {
            return self.no_such_array(at);
        }
        let Some((left_kind, right_kind)) = resolution::comparison(left.kind, Some(kind)) else {
            let (left, right) = (self.name(left.kind), self.name(Some(kind)));
            return self.refuse(at, Reason::NoOperator { operator: op.symbol(), left, right });
        };
        let left = self.coerced(left, left_kind, "the comparison")?;
        let mut collation = left.collation.clone();
        let mut constants = Vec::with_capacity(values.len());
        for value in values {
            collation = self.merged(value.at, collation, &value.collation)?;
            let value = self.coerced(value, right_kind, "the comparison")?;
            constants.push(self.constant_of(value)?);
        }
        self.check_comparable(at, left_kind, &collation, op.orders())?;
        let left = self.collated_beside(&Collation::Default, left.tree, &collation);
        let quantified = Quantified { all, op, kind: right_kind, left: Box::new(left), values: constants };
        Ok(Typed::known(at, Kind::Bool, Expression::Quantified(quantified)))
    }

    pub(super) fn between(
        &mut self,
        at: usize,
        operand: &Syntax,
        bounds: &[Syntax; 2],
        (symmetric, negated): (bool, bool),
    ) -> Result<Typed, Refusal> {
        let operand = self.typed(operand)?;
        let low = self.typed(&bounds[0])?;
        let high = self.typed(&bounds[1])?;
        let (above, below) = match negated {
            false => (Comparison::GreaterOrEqual, Comparison::LessOrEqual),
            true => (Comparison::Less, Comparison::Greater),
        };
        let mut within = |low: &Typed, high: &Typed| {
            let (one, low) = (self.again(&operand)?, self.again(low)?);
            let one = self.compare(at, above, one, low)?.tree;
            let (other, high) = (self.again(&operand)?, self.again(high)?);
            let other = self.compare(at, below, other, high)?.tree;
            Ok(if negated { Expression::Or(vec![one, other]) } else { Expression::And(vec![one, other]) })
        };
        let tree = within(&low, &high)?;
        if !symmetric {
            return Ok(Typed::known(at, Kind::Bool, tree));
        }
        let both = vec![tree, within(&high, &low)?];
        let tree = if negated { Expression::And(both) } else { Expression::Or(both) };
        Ok(Typed::known(at, Kind::Bool, tree))
    }

    pub(super) fn quantified(
        &mut self,
        at: usize,
        operands: &[Syntax; 2],
        op: Comparison,
        all: bool,
    ) -> Result<Typed, Refusal> {
        let left = self.typed(&operands[0])?;
        let array = match self.written_array(&operands[1], left.kind)? {
            Some((kind, values)) if values.iter().any(|value| value.tree.has_column()) => {
                self.array_of(operands[1].at, kind, values)?
            }
            Some((kind, values)) => return self.with_each(at, left, (op, all), (kind, values)),
            None => self.typed(&operands[1])?,
        };
        let Some(element) = array.kind.and_then(Kind::element) else {
            let (found, expected) = (self.name(array.kind), "an array".to_owned());
            return self.refuse(array.at, Reason::WrongType { what: "ANY and ALL", found, expected });
        };
        if let Expression::Constant(_, Value::Array(constants)) = &array.tree {
            self.charge(at, constants.elements.len())?;
            let known =
                |value: &Value<'static>| constant(array.at, element, value.clone()).with(array.collation.clone());
            let values = constants.elements.iter().map(known).collect();
            return self.with_each(at, left, (op, all), (element, values));
        }
        let Some((left_kind, right_kind)) = resolution::comparison(left.kind, Some(element)) else {
            let (left, right) = (self.name(left.kind), self.name(Some(element)));
            return self.refuse(at, Reason::NoOperator { operator: op.symbol(), left, right });
        };
        let left = self.coerced(left, left_kind, "the comparison")?;
        let collation = self.merged(at, left.collation.clone(), &array.collation)?;
        self.check_comparable(at, left_kind, &collation, op.orders())?;
        let array = match right_kind.array().filter(|_| right_kind != element) {
            Some(to) => self.coerced(array, to, "ANY and ALL")?,
            None => array,
        };
        let operands = self.collated(vec![left.tree, array.tree], &collation);
        let tree = Expression::QuantifiedArray { all, op, kind: right_kind, operands };
        self.folded(Typed::known(at, Kind::Bool, tree))
    }

    /// The elements of an array whose type follows from what is compared with it, and their type; None of any other.
    pub(super) fn written_array(
        &mut self,
        syntax: &Syntax,
        beside: Option<Kind>,
    ) -> Result<Option<(Kind, Vec<Typed>)>, Refusal> {
        let (declared, inner) = match &syntax.what {
            What::Cast(operand, name) if name.array => (Some(self.type_named(name)?.0), &**operand),
            _ => (None, syntax),
        };
        let at = inner.at;
        let like_left = || resolution::comparison(beside, None).map_or(Kind::Text, |(_, right)| right);
        Ok(Some(match &inner.what {
            What::Array(values) => match declared {
                None => self.array_values(at, values)?,
                Some(kind) => {
                    let values = values.iter().map(|value| self.typed(value)).collect::<Result<Vec<_>, _>>()?;
                    let values = values.into_iter().map(|value| self.cast_typed(value, kind, Vec::new()));
                    (kind, values.collect::<Result<_, _>>()?)
                }
            },
            What::Text(text) => self.elements(at, text, declared.unwrap_or_else(like_left))?,
            What::Parameter(number) => {
                let given = self.given(at, *number)?;
                let kind = match (given.array, given.kind) {
                    (true, Some(kind)) if declared.is_none_or(|declared| declared == kind) => kind,
                    (false, None) if !given.used => declared.unwrap_or_else(like_left),
                    (false, Some(Kind::Array(_))) => return Ok(None),
                    _ => {
                        let (what, instead) = ("a parameter of another type".to_owned(), "declare it as an array");
                        return self.refuse(at, Reason::Unsupported { what, instead });
                    }
                };
                (given.used, given.array, given.kind) = (true, true, Some(kind));
                match given.text.clone() {
                    Some(text) => self.elements(at, &text, kind)?,
                    None => {
                        let what = "NULL as an array".to_owned();
                        return self.refuse(at, Reason::Unsupported { what, instead: "give an array, such as {}" });
                    }
                }
            }
            _ => return Ok(None),
        }))
    }

    fn elements(&mut self, at: usize, text: &str, kind: Kind) -> Result<(Kind, Vec<Typed>), Refusal> {
        let Some(texts) = literal::elements(text) else {
            let type_name = format!("{}[]", self.table.kind_name(kind));
            return self
                .refuse(at, Reason::Malformed { type_name, instead: "write it as {1,2,NULL}, of one dimension" });
        };
        if texts.len() > super::parser::TERMS_MAX {
            return self.refuse(at, Reason::TooManyTerms { max: super::parser::TERMS_MAX });
        }
        self.charge(at, texts.len())?;
        let mut values = Vec::with_capacity(texts.len());
        for text in texts {
            let value = text.map_or(Value::Null, |text| Value::Text(Cow::Owned(text)));
            let tree = Expression::Constant(Kind::Text, value);
            let unknown = Typed { at, kind: None, tree, parameter: None, collation: Collation::Default };
            values.push(self.coerced(unknown, kind, "the array")?);
        }
        Ok((kind, values))
    }

    /// Brings all to their common type.
    fn common(&mut self, at: usize, operands: Vec<Typed>, what: &'static str) -> Result<(Kind, Vec<Typed>), Refusal> {
        match resolution::common(operands.iter().map(|operand| operand.kind)) {
            Ok(kind) => {
                let operands = operands.into_iter().map(|operand| self.coerced(operand, kind, what));
                Ok((kind, operands.collect::<Result<_, _>>()?))
            }
            Err((one, other)) => {
                let (found, expected) = (self.name(Some(other)), self.name(Some(one)));
                self.refuse(at, Reason::WrongType { what, found, expected })
            }
        }
    }

    fn common_collation(&self, at: usize, operands: &[Typed]) -> Result<Collation, Refusal> {
        let mut collation = Collation::Default;
        for operand in operands {
            collation = self.merged(at, collation, &operand.collation)?;
        }
        Ok(collation)
    }

    pub(super) fn case(
        &mut self,
        at: usize,
        operand: Option<&Syntax>,
        arms: &[(Syntax, Syntax)],
        otherwise: Option<&Syntax>,
    ) -> Result<Typed, Refusal> {
        let operand = match operand {
            Some(operand) => {
                let operand = self.typed(operand)?;
                Some(self.settled(operand)?)
            }
            None => None,
        };
        let mut conditions = Vec::with_capacity(arms.len());
        // ELSE comes first where types are chosen.
        let null = Syntax::leaf(at, What::Null);
        let mut results = vec![self.typed(otherwise.unwrap_or(&null))?];
        for (when, then) in arms {
            let when = self.typed(when)?;
            conditions.push(match &operand {
                Some(operand) => {
                    let operand = self.again(operand)?;
                    self.compare(when.at, Comparison::Equal, operand, when)?.tree
                }
                None => self.coerced(when, Kind::Bool, "WHEN")?.tree,
            });
            results.push(self.typed(then)?);
        }
        let (kind, mut results) = self.common(at, results, "CASE")?;
        let collation = self.common_collation(at, &results)?;
        let thens = results.split_off(1).into_iter().map(|result| result.tree);
        let arms = conditions.into_iter().zip(thens).collect();
        let otherwise = Box::new(results.pop().expect("ELSE comes first").tree);
        Ok(Typed::known(at, kind, Expression::Case { arms, otherwise }).with(collation))
    }

    pub(super) fn coalesce(&mut self, at: usize, operands: &[Syntax]) -> Result<Typed, Refusal> {
        let operands = operands.iter().map(|operand| self.typed(operand)).collect::<Result<Vec<_>, _>>()?;
        let (kind, operands) = self.common(at, operands, "COALESCE")?;
        let collation = self.common_collation(at, &operands)?;
        let trees = operands.into_iter().map(|operand| operand.tree).collect();
        Ok(Typed::known(at, kind, Expression::Coalesce(trees)).with(collation))
    }

    pub(super) fn extreme(&mut self, at: usize, greatest: bool, operands: &[Syntax]) -> Result<Typed, Refusal> {
        let operands = operands.iter().map(|operand| self.typed(operand)).collect::<Result<Vec<_>, _>>()?;
        let (kind, operands) = self.common(at, operands, "GREATEST and LEAST")?;
        let collation = self.common_collation(at, &operands)?;
        self.check_comparable(at, kind, &collation, true)?;
        let operands = self.collated(operands.into_iter().map(|operand| operand.tree).collect(), &collation);
        let tree = Expression::Extreme { greatest, padded: kind.innermost() == Kind::Bpchar, operands };
        Ok(Typed::known(at, kind, tree).with(collation))
    }

    /// `CASE WHEN a = b THEN NULL ELSE a END`, `a` having the type that `=` takes.
    pub(super) fn nullif(&mut self, at: usize, operands: &[Syntax; 2]) -> Result<Typed, Refusal> {
        let left = self.typed(&operands[0])?;
        let right = self.typed(&operands[1])?;
        let [left, right] = self.comparable(at, Comparison::Equal, left, right)?;
        let kind = left.kind.unwrap_or(Kind::Text);
        let collation = self.merged(at, left.collation.clone(), &right.collation)?;
        let again = self.again(&left)?;
        let equal = self.compare_coerced(at, Comparison::Equal, again, right)?;
        let null = constant(at, kind, Value::Null).tree;
        let tree = Expression::Case { arms: vec![(equal.tree, null)], otherwise: Box::new(left.tree) };
        Ok(Typed::known(at, kind, tree).with(collation))
    }
}
