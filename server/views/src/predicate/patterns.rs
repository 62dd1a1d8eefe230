//! Typing of LIKE, of regular expressions, and of SIMILAR TO, which is one.

use super::collation::Collation;
use super::comparison::Comparison;
use super::expression::{Expression, Function, Quantified};
use super::kind::Kind;
use super::refusal::{Reason, Refusal};
use super::regex;
use super::syntax::{Escape, Syntax};
use super::typing::{Typed, Typing, constant};
use super::value::Value;

impl Typing<'_> {
    /// Both operands, and their collation. Padding counts, on the left only.
    fn with_pattern(
        &mut self,
        text: Typed,
        pattern: Typed,
        what: &'static str,
    ) -> Result<(Typed, Typed, Collation), Refusal> {
        let left_kind = if text.kind == Some(Kind::Bpchar) { Kind::Bpchar } else { Kind::Text };
        let collation = self.merged(pattern.at, text.collation.clone(), &pattern.collation)?;
        Ok((self.coerced(text, left_kind, what)?, self.coerced(pattern, Kind::Text, what)?, collation))
    }

    pub(super) fn like(
        &mut self,
        at: usize,
        operands: &[Syntax; 2],
        escape: Option<&Syntax>,
        (fold, negated): (bool, bool),
    ) -> Result<Typed, Refusal> {
        let (text, pattern) = (self.typed(&operands[0])?, self.typed(&operands[1])?);
        let (text, mut pattern, mut collation) = self.with_pattern(text, pattern, "LIKE")?;
        if let Some(escape) = escape {
            let escape = self.typed(escape)?;
            collation = self.merged(at, collation, &escape.collation)?;
            let escape = self.coerced(escape, Kind::Text, "ESCAPE")?;
            let tree = Expression::Strict(Function::LikeEscape, vec![pattern.tree, escape.tree]);
            pattern = self.folded(Typed::known(pattern.at, Kind::Text, tree))?;
        }
        self.check_collation(at, &collation, fold, if fold { "ILIKE" } else { "LIKE" })?;
        self.matched(at, Function::Like { fold }, ([text, pattern], &collation), negated)
    }

    /// `text LIKE a OR text LIKE b`
    pub(super) fn like_each(
        &mut self,
        at: usize,
        operands: &[Syntax; 2],
        (fold, negated): (bool, bool),
        all: bool,
    ) -> Result<Typed, Refusal> {
        let text = self.typed(&operands[0])?;
        let Some((_, patterns)) = self.written_array(&operands[1], Some(Kind::Text))? else {
            let what = "LIKE with such an array".to_owned();
            return self.refuse(at, Reason::Unsupported { what, instead: "write ARRAY[…], '{…}' or a parameter" });
        };
        let mut parts = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            let text = self.again(&text)?;
            let (text, pattern, collation) = self.with_pattern(text, pattern, "LIKE")?;
            self.check_collation(at, &collation, fold, if fold { "ILIKE" } else { "LIKE" })?;
            parts.push(self.matched(at, Function::Like { fold }, ([text, pattern], &collation), negated)?.tree);
        }
        if parts.iter().all(Expression::is_null) {
            // It decides nothing, but what fails in the text fails.
            let left = Box::new(self.coerced(text, Kind::Text, "LIKE")?.tree);
            let none = Quantified { all, op: Comparison::Equal, kind: Kind::Text, left, values: Vec::new() };
            parts.push(Expression::Quantified(none));
        }
        let tree = if all { Expression::And(parts) } else { Expression::Or(parts) };
        self.folded(Typed::known(at, Kind::Bool, tree))
    }

    /// The pattern is compiled here, and therefore constant.
    pub(super) fn regex(
        &mut self,
        at: usize,
        operands: &[Syntax; 2],
        similar: Option<&Escape>,
        (fold, negated): (bool, bool),
    ) -> Result<Typed, Refusal> {
        let (text, pattern) = (self.typed(&operands[0])?, self.typed(&operands[1])?);
        let (text, mut pattern, collation) = self.with_pattern(text, pattern, "a regular expression")?;
        self.check_collation(at, &collation, fold, "a regular expression")?;
        let written = match &pattern.tree {
            Expression::Constant(_, Value::Text(written)) => written.clone().into_owned(),
            Expression::Constant(..) => return Ok(constant(at, Kind::Bool, Value::Null)),
            _ => {
                let what = "a pattern that is not constant".to_owned();
                return self.refuse(pattern.at, Reason::Unsupported { what, instead: "write it as a string" });
            }
        };
        let refused = |(place, instead): regex::Refused| {
            let character = 1 + written.get(..place).unwrap_or_default().chars().count();
            Refusal::at(pattern.at, Reason::Regex { character, instead })
        };
        let expression = match similar {
            Some(escape) => {
                let escape = self.similar_escape(escape.as_deref())?;
                regex::of_similar(&written, escape).map_err(refused)?
            }
            None => written.clone(),
        };
        let (compiled, nodes) = regex::compile(&expression, fold, self.is_c(&collation)).map_err(refused)?;
        self.charge(at, nodes)?;
        pattern.tree = Expression::Constant(Kind::Text, Value::text(expression));
        self.matched(at, Function::Regex { compiled, fold }, ([text, pattern], &collation), negated)
    }

    /// A backslash, unless another is written, or none at all.
    fn similar_escape(&mut self, escape: Option<&Syntax>) -> Result<Option<char>, Refusal> {
        let Some(syntax) = escape else { return Ok(Some('\\')) };
        let escape = self.typed(syntax)?;
        let escape = self.coerced(escape, Kind::Text, "ESCAPE")?;
        let mut chars = match &escape.tree {
            Expression::Constant(_, Value::Text(text)) => text.chars(),
            _ => "  ".chars(),
        };
        match (chars.next(), chars.next()) {
            (first, None) => Ok(first),
            _ => {
                let what = "such an escape".to_owned();
                self.refuse(syntax.at, Reason::Unsupported { what, instead: "write one character, as in ESCAPE '!'" })
            }
        }
    }

    fn matched(
        &mut self,
        at: usize,
        function: Function,
        (of, collation): ([Typed; 2], &Collation),
        negated: bool,
    ) -> Result<Typed, Refusal> {
        let operands = self.collated(of.into_iter().map(|operand| operand.tree).collect(), collation);
        let typed = self.folded(Typed::known(at, Kind::Bool, Expression::Strict(function, operands)))?;
        let tree = if negated { Expression::Not(Box::new(typed.tree)) } else { typed.tree };
        Ok(Typed::known(at, Kind::Bool, tree))
    }
}
