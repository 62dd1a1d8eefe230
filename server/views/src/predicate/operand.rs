//! The rest of the parser: what operators stand between. Columns, constants, CASE and its relatives, and names of types.

use super::lexer::Token;
use super::parser::{Parser, bounded, cast, pair};
use super::query::QUERY;
use super::refusal::Refusal;
use super::syntax::{Subscript, Syntax, TypeName, What};

/// Names of types that are more than one word, or come with words behind them.
const TIME_TYPES: [&str; 2] = ["time", "timestamp"];

/// PostgreSQL's `MAXDIM`.
const DIMENSIONS_MAX: usize = 6;

/// Functions without parentheses.
const CLOCK: [&str; 5] = ["current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"];

pub(super) const NOT_IMMUTABLE: &str = "its value changes while the row stays as it is; put a value in its place (in a shape, a parameter), and ask again with another one later";

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
                if self.is_query() {
                    return Self::unsupported(at, "a query whose result is one value", QUERY);
                }
                let tree = self.expression(0)?;
                if self.take_symbol(",") {
                    let mut values = vec![tree];
                    values.extend(self.list(")")?);
                    return bounded(at, Syntax::depth_over(&values), What::Row(values));
                }
                self.expect_symbol(")")?;
                return self.subscripts(tree);
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
        let is_parameter = matches!(what, What::Parameter(_));
        let leaf = self.leaf(at, what)?;
        if is_parameter { self.subscripts(leaf) } else { Ok(leaf) }
    }

    /// `[1][2]` or `[1:2][:3]` behind an operand.
    fn subscripts(&mut self, operand: Syntax) -> Result<Syntax, Refusal> {
        let at = self.at();
        let (mut subscripts, mut is_slice) = (Vec::new(), false);
        while self.take_symbol("[") {
            let lower = if self.is_symbol(":") { None } else { Some(self.expression(0)?) };
            let subscript = if self.take_symbol(":") {
                is_slice = true;
                let upper = if self.is_symbol("]") { None } else { Some(self.expression(0)?) };
                Subscript::Slice(lower, upper)
            } else {
                Subscript::At(lower.expect("what begins with a colon is a slice"))
            };
            self.expect_symbol("]")?;
            subscripts.push(subscript);
        }
        if subscripts.is_empty() {
            return Ok(operand);
        }
        if subscripts.len() > DIMENSIONS_MAX {
            return Self::unsupported(at, "more than 6 subscripts", "arrays have 6 dimensions at most");
        }
        let depth = Syntax::depth_over(subscripts.iter().flat_map(Subscript::bounds).chain([&operand]));
        bounded(at, depth, What::Subscript { operand: Box::new(operand), subscripts, is_slice })
    }

    fn word(&mut self, at: usize, word: &str) -> Result<Syntax, Refusal> {
        let call = matches!(self.peek_second(), Token::Symbol("("));
        match word {
            "case" => self.case(at),
            "cast" if call => self.cast_call(at),
            "coalesce" | "greatest" | "least" | "nullif" if call => self.conditional(at, word),
            "array" => self.array(at),
            "exists" if call => Self::unsupported(at, "EXISTS", QUERY),
            "left" | "right" if call => {
                self.advance();
                self.call(at, vec![word.to_owned()])
            }
            "position" | "substring" | "trim" | "extract" | "overlay" if call => self.worded_call(at, word),
            _ if CLOCK.contains(&word) => Self::unsupported(at, word.to_uppercase(), NOT_IMMUTABLE),
            "row" if call => {
                self.advance();
                self.expect_symbol("(")?;
                let values = self.list(")")?;
                bounded(at, Syntax::depth_over(&values), What::Row(values))
            }
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
            return self.call(at, name);
        }
        let column = self.leaf(at, What::Column(name))?;
        self.subscripts(column)
    }

    /// What stands behind a function's name.
    fn call(&mut self, at: usize, name: Vec<String>) -> Result<Syntax, Refusal> {
        self.expect_symbol("(")?;
        if self.is_symbol("*") || self.is_word("distinct") || self.is_word("all") || self.is_word("variadic") {
            return self.unexpected("the function's operands");
        }
        let operands = if self.take_symbol(")") { Vec::new() } else { self.list(")")? };
        bounded(at, Syntax::depth_over(&operands), What::Call(name, operands))
    }

    /// Functions whose operands have words between them.
    fn worded_call(&mut self, at: usize, word: &str) -> Result<Syntax, Refusal> {
        self.advance();
        self.expect_symbol("(")?;
        let (name, operands) = match word {
            "position" => {
                let part = self.bound()?;
                self.expect_word("in")?;
                let whole = self.bound()?;
                self.expect_symbol(")")?;
                ("position", vec![whole, part])
            }
            "extract" => {
                let field_at = self.at();
                let field = match self.peek().clone() {
                    Token::Text(field) => field,
                    _ => self.name_part(false)?,
                };
                if matches!(self.peek(), Token::Text(_)) {
                    self.advance();
                }
                self.expect_word("from")?;
                let field = self.leaf(field_at, What::Text(field))?;
                let name = TypeName {
                    at: field_at,
                    name: vec!["text".to_owned()],
                    quoted: false,
                    modifiers: Vec::new(),
                    array: false,
                };
                ("extract", vec![cast(field_at, field, name)?, self.last_operand()?])
            }
            "substring" => ("substring", self.substring()?),
            "trim" => self.trim()?,
            _ => return Self::unsupported(at, "overlay", "compare with substring (… from … for …)"),
        };
        bounded(at, Syntax::depth_over(&operands), What::Call(vec![name.to_owned()], operands))
    }

    fn last_operand(&mut self) -> Result<Syntax, Refusal> {
        let operand = self.expression(0)?;
        self.expect_symbol(")")?;
        Ok(operand)
    }

    /// `a from b for c`, `a for c`, or with commas.
    fn substring(&mut self) -> Result<Vec<Syntax>, Refusal> {
        let mut operands = vec![self.expression(0)?];
        if self.take_symbol(",") {
            operands.extend(self.list(")")?);
            return Ok(operands);
        }
        if self.take_word("from") {
            operands.push(self.expression(0)?);
        } else if self.is_word("for") {
            operands.push(self.leaf(operands[0].at, What::Number("1".to_owned()))?);
        } else {
            return self.unexpected("FROM, FOR or a comma");
        }
        if self.take_word("for") {
            operands.push(self.expression(0)?);
        }
        self.expect_symbol(")")?;
        Ok(operands)
    }

    /// `both a from b`, `from b`, or with a comma.
    fn trim(&mut self) -> Result<(&'static str, Vec<Syntax>), Refusal> {
        let name = match (self.take_word("leading"), self.take_word("trailing")) {
            (true, _) => "ltrim",
            (_, true) => "rtrim",
            _ => "btrim",
        };
        self.take_word("both");
        if self.take_word("from") {
            return Ok((name, self.list(")")?));
        }
        let first = self.expression(0)?;
        if !self.take_word("from") {
            let mut operands = vec![first];
            if self.take_symbol(",") {
                operands.extend(self.list(")")?);
            } else {
                self.expect_symbol(")")?;
            }
            return Ok((name, operands));
        }
        let mut operands = self.list(")")?;
        operands.push(first);
        Ok((name, operands))
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
        let below = arms.iter().flat_map(|(when, then)| [when, then]);
        let depth = Syntax::depth_over(below.chain(operand.as_deref()).chain(otherwise.as_deref()));
        bounded(at, depth, What::Case { operand, arms, otherwise })
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
        let depth = Syntax::depth_over(&operands);
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
        bounded(at, Syntax::depth_over(&values), What::Array(values))
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
