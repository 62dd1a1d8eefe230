//! The rest of the parser: what operators stand between. Columns, constants, CASE and its relatives, and names of types.

use super::lexer::Token;
use super::parser::{Parser, bounded, cast, pair};
use super::refusal::Refusal;
use super::syntax::{Syntax, TypeName, What};

/// Names of types that are more than one word, or come with words behind them.
const TIME_TYPES: [&str; 2] = ["time", "timestamp"];

impl Parser<'_> {
    /// An operand without operators.
    pub(super) fn operand(&mut self) -> Result<Syntax, Refusal> {
        let at = self.at();
        let what = match self.peek().clone() {
            Token::Text(text) => What::Text(text),
            Token::Number(number) => What::Number(number.to_owned()),
            Token::Parameter(number) => What::Parameter(number),
            Token::Symbol("(") => {
                self.advance();
                if self.is_word("select") || self.is_word("with") || self.is_word("values") {
                    return Self::unsupported(at, "a query within a condition", "write the values, or a parameter");
                }
                let tree = self.expression(0)?;
                if self.is_symbol(",") {
                    return Self::unsupported(at, "a row of values", "compare each, with AND between them");
                }
                self.expect_symbol(")")?;
                return Ok(tree);
            }
            Token::Word(word) => match word.as_ref() {
                "null" => What::Null,
                "true" => What::Bool(true),
                "false" => What::Bool(false),
                _ => return self.word(at, &word),
            },
            Token::Quoted(_) => return self.column(at),
            Token::Symbol(_) | Token::End => return self.unexpected("a column, a constant or a parameter"),
        };
        self.advance();
        self.leaf(at, what)
    }

    fn word(&mut self, at: usize, word: &str) -> Result<Syntax, Refusal> {
        let call = matches!(self.peek_second(), Token::Symbol("("));
        match word {
            "case" => self.case(at),
            "cast" if call => self.cast_call(at),
            "coalesce" | "greatest" | "least" | "nullif" if call => self.conditional(at, word),
            "array" => self.array(at),
            "exists" if call => Self::unsupported(at, "a query within a condition", "write the values, or a parameter"),
            "row" if call => Self::unsupported(at, "a row of values", "compare each, with AND between them"),
            _ if self.is_typed_literal() => {
                let type_name = self.type_name()?;
                let literal_at = self.at();
                let Token::Text(text) = self.peek().clone() else { return self.unexpected("a string") };
                self.advance();
                let literal = self.leaf(literal_at, What::Text(text))?;
                cast(at, literal, type_name)
            }
            _ => self.column(at),
        }
    }

    /// `date '2024-02-29'`
    fn is_typed_literal(&self) -> bool {
        let Token::Word(word) = self.peek() else { return false };
        match self.peek_second() {
            Token::Text(_) => true,
            Token::Word(next) if TIME_TYPES.contains(&word.as_ref()) => next == "with" || next == "without",
            Token::Word(next) => word == "double" && next == "precision",
            _ => false,
        }
    }

    fn column(&mut self, at: usize) -> Result<Syntax, Refusal> {
        let name = self.any_name()?;
        if self.is_symbol("(") {
            let instead = "compare the column itself";
            return Self::unsupported(at, format!("the function {}", name.join(".")), instead);
        }
        if self.is_symbol("[") {
            return Self::unsupported(self.at(), "an element of an array", "compare another column");
        }
        self.leaf(at, What::Column(name))
    }

    fn case(&mut self, at: usize) -> Result<Syntax, Refusal> {
        self.advance();
        let operand = if self.is_word("when") { None } else { Some(Box::new(self.expression(0)?)) };
        let mut arms = Vec::new();
        while self.take_word("when") {
            let when = self.expression(0)?;
            self.expect_word("then")?;
            arms.push((when, self.expression(0)?));
        }
        if arms.is_empty() {
            return self.unexpected("WHEN");
        }
        let otherwise = if self.take_word("else") { Some(Box::new(self.expression(0)?)) } else { None };
        self.expect_word("end")?;
        let below = arms.iter().flat_map(|(when, then)| [when.depth, then.depth]);
        let below = below.chain(operand.iter().chain(&otherwise).map(|tree| tree.depth)).max();
        bounded(at, 1 + below.unwrap_or(0), What::Case { operand, arms, otherwise })
    }

    fn cast_call(&mut self, at: usize) -> Result<Syntax, Refusal> {
        self.advance();
        self.expect_symbol("(")?;
        let operand = self.expression(0)?;
        self.expect_word("as")?;
        let type_name = self.type_name()?;
        self.expect_symbol(")")?;
        cast(at, operand, type_name)
    }

    fn conditional(&mut self, at: usize, word: &str) -> Result<Syntax, Refusal> {
        self.advance();
        self.expect_symbol("(")?;
        if word == "nullif" {
            let left = self.expression(0)?;
            self.expect_symbol(",")?;
            let right = self.expression(0)?;
            self.expect_symbol(")")?;
            return pair(at, left, right, What::Nullif);
        }
        let operands = self.list(")")?;
        let depth = 1 + operands.iter().map(|operand| operand.depth).max().unwrap_or(0);
        let what = match word {
            "coalesce" => What::Coalesce(operands),
            _ => What::Extreme { greatest: word == "greatest", operands },
        };
        bounded(at, depth, what)
    }

    fn array(&mut self, at: usize) -> Result<Syntax, Refusal> {
        self.advance();
        self.expect_symbol("[")?;
        let values = if self.take_symbol("]") { Vec::new() } else { self.list("]")? };
        let depth = 1 + values.iter().map(|value| value.depth).max().unwrap_or(0);
        bounded(at, depth, What::Array(values))
    }

    /// The name of a type, with what belongs to it.
    pub(super) fn type_name(&mut self) -> Result<TypeName, Refusal> {
        let at = self.at();
        let quoted_first = matches!(self.peek(), Token::Quoted(_));
        let mut name = vec![self.name_part(true)?];
        let mut quoted = quoted_first;
        while self.take_symbol(".") {
            quoted = matches!(self.peek(), Token::Quoted(_));
            name.push(self.name_part(false)?);
        }
        let mut modifiers = Vec::new();
        if !quoted && name.len() == 1 {
            let suffix = match name[0].as_str() {
                "double" => Some("precision"),
                "character" | "char" => Some("varying"),
                _ => None,
            };
            if let Some(suffix) = suffix
                && self.take_word(suffix)
            {
                name[0] = format!("{} {suffix}", name[0]);
            }
        }
        if self.take_symbol("(") {
            loop {
                let Token::Number(number) = *self.peek() else { return self.unexpected("a whole number") };
                let Ok(number) = number.parse() else { return self.unexpected("a whole number") };
                modifiers.push(number);
                self.advance();
                if !self.take_symbol(",") {
                    break;
                }
            }
            self.expect_symbol(")")?;
        }
        if !quoted && name.len() == 1 && TIME_TYPES.contains(&name[0].as_str()) {
            let zone = if self.take_word("with") { Some("with") } else { None };
            let zone = zone.or_else(|| self.take_word("without").then_some("without"));
            if let Some(zone) = zone {
                self.expect_word("time")?;
                self.expect_word("zone")?;
                name[0] = format!("{} {zone} time zone", name[0]);
            }
        }
        let array = self.take_symbol("[");
        if array {
            self.expect_symbol("]")?;
        }
        Ok(TypeName { at, name, quoted, modifiers, array })
    }
}
