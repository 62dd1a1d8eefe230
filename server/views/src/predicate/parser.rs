//! A condition's text becomes a tree, by PostgreSQL's precedences (`src/backend/parser/gram.y`) and for the part of its
//! grammar that can be evaluated exactly.
//!
//! Invariants: the tree is at most [`DEPTH_MAX`] deep, whatever the text, since every level of recursion and every operator
//! that is put on top of another is counted; it has at most [`TERMS_MAX`] leaves; nothing is left behind it. What
//! PostgreSQL refuses to chain (`a < b < c`) is refused.

use std::borrow::Cow;

use tidegate_model::TableName;

use super::comparison::Comparison;
use super::keyword::is_reserved;
use super::lexer::{Lexeme, Token, lexemes};
use super::refusal::{Reason, Refusal};
use super::syntax::{Arithmetic, Negated, Sign, Syntax, TypeName, What};

/// Levels of nesting.
pub(super) const DEPTH_MAX: usize = 100;
/// Columns, constants and parameters.
pub(super) const TERMS_MAX: usize = 1_000;

/// How tightly operators bind.
const OR: u8 = 1;
const AND: u8 = 2;
const NOT: u8 = 3;
const IS: u8 = 4;
const COMPARISON: u8 = 5;
const LIKE: u8 = 6;
const OTHER: u8 = 8;
const SUM: u8 = 9;
const PRODUCT: u8 = 10;
const AT: u8 = 12;
const COLLATE: u8 = 13;
const SIGN: u8 = 14;
const CAST: u8 = 17;

/// Reads the whole text. With the tree come the tables that its subqueries name, each once.
pub(super) fn parse(text: &str) -> Result<(Syntax, Vec<TableName>), Refusal> {
    let mut parser = Parser::new(text)?;
    let tree = parser.expression(0)?;
    match parser.peek() {
        Token::End => Ok((tree, parser.tables)),
        _ => parser.unexpected("an operator, or the end"),
    }
}

/// Reads the name of a type.
pub(super) fn parse_type(text: &str) -> Result<TypeName, Refusal> {
    if text.len() > 256 {
        return Parser::unsupported(0, "such a long name of a type", "write one such as int8 or text[]");
    }
    let mut parser = Parser::new(text)?;
    let name = parser.type_name()?;
    if *parser.peek() == Token::End { Ok(name) } else { parser.unexpected("the end of the type's name") }
}

pub(super) struct Parser<'a> {
    lexemes: Vec<Lexeme<'a>>,
    next: usize,
    depth: usize,
    terms: usize,
    /// Subqueries, up to here.
    pub(super) queries: usize,
    /// Those around this place.
    pub(super) queries_deep: usize,
    /// What subqueries name.
    pub(super) tables: Vec<TableName>,
}

/// Does an operator chain with another that binds alike?
enum Taken {
    /// `a IS NULL IS NULL`
    Chains(Syntax),
    /// Not `a < b < c`.
    Ends(Syntax),
    /// It is no operator that belongs here.
    Nothing(Syntax),
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, Refusal> {
        let (lexemes, tables) = (lexemes(text)?, Vec::new());
        Ok(Parser { lexemes, next: 0, depth: 0, terms: 0, queries: 0, queries_deep: 0, tables })
    }

    pub(super) fn peek(&self) -> &Token<'a> {
        &self.lexemes[self.next].token
    }

    pub(super) fn peek_second(&self) -> &Token<'a> {
        &self.lexemes[(self.next + 1).min(self.lexemes.len() - 1)].token
    }

    pub(super) fn at(&self) -> usize {
        self.lexemes[self.next].at
    }

    /// The end is never passed.
    pub(super) fn advance(&mut self) {
        self.next = (self.next + 1).min(self.lexemes.len() - 1);
    }

    pub(super) fn unexpected<T>(&self, expected: &'static str) -> Result<T, Refusal> {
        let found = match self.peek() {
            Token::Word(word) => word.to_uppercase(),
            Token::Quoted(name) => format!("\"{name}\""),
            Token::Text(_) => "a string".to_owned(),
            Token::Number(number) => (*number).to_owned(),
            Token::Parameter(number) => format!("${number}"),
            Token::Symbol(symbol) => (*symbol).to_owned(),
            Token::End => "the end".to_owned(),
        };
        Err(Refusal::at(self.at(), Reason::Unexpected { found, expected }))
    }

    pub(super) fn unsupported<T>(at: usize, what: impl Into<String>, instead: &'static str) -> Result<T, Refusal> {
        Err(Refusal::at(at, Reason::Unsupported { what: what.into(), instead }))
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(found) if found == word)
    }

    pub(super) fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(found) if *found == symbol)
    }

    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = self.is_symbol(symbol);
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn expect_symbol(&mut self, symbol: &'static str) -> Result<(), Refusal> {
        if self.take_symbol(symbol) { Ok(()) } else { self.unexpected(symbol) }
    }

    pub(super) fn expect_word(&mut self, word: &'static str) -> Result<(), Refusal> {
        if self.take_word(word) { Ok(()) } else { self.unexpected(word) }
    }

    pub(super) fn leaf(&mut self, at: usize, what: What) -> Result<Syntax, Refusal> {
        self.terms += 1;
        match self.terms > TERMS_MAX {
            true => Err(Refusal::at(at, Reason::TooManyTerms { max: TERMS_MAX })),
            false => Ok(Syntax::leaf(at, what)),
        }
    }

    /// An operand with all operators that bind at least so tightly.
    pub(super) fn expression(&mut self, tightness: u8) -> Result<Syntax, Refusal> {
        self.nested(|parser| parser.operators(tightness, false))
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Syntax, Refusal>) -> Result<Syntax, Refusal> {
        if self.depth == DEPTH_MAX {
            return Err(too_deep(self.at()));
        }
        self.depth += 1;
        let tree = read(self);
        self.depth -= 1;
        tree
    }

    /// An operand where the grammar has fewer operators.
    pub(super) fn bound(&mut self) -> Result<Syntax, Refusal> {
        self.nested(|parser| parser.operators(0, true))
    }

    /// `bound`: it stands between BETWEEN and AND, where the grammar has fewer operators (`b_expr`).
    fn operators(&mut self, tightness: u8, bound: bool) -> Result<Syntax, Refusal> {
        let mut left = self.prefix(bound)?;
        let mut ended = 0;
        while let Some(binds) = self.binds(bound)
            && binds >= tightness
        {
            if binds == ended {
                return self.unexpected("parentheses around one of the comparisons");
            }
            match self.operator(left, binds, bound)? {
                Taken::Chains(tree) => (left, ended) = (tree, 0),
                Taken::Ends(tree) => (left, ended) = (tree, binds),
                Taken::Nothing(tree) => return Ok(tree),
            }
        }
        Ok(left)
    }

    /// How tightly the operator that comes next binds.
    fn binds(&self, bound: bool) -> Option<u8> {
        let binds = match self.peek() {
            Token::Symbol("::") => CAST,
            Token::Symbol("*" | "/" | "%") => PRODUCT,
            Token::Symbol("+" | "-") => SUM,
            Token::Symbol(symbol) if Comparison::of(symbol).is_some() => COMPARISON,
            Token::Symbol("(" | ")" | "[" | "]" | "," | "." | ";" | ":") => return None,
            Token::Symbol(_) => OTHER,
            Token::Word(word) if bound => match word.as_ref() {
                "is" => IS,
                _ => return None,
            },
            Token::Word(word) => match word.as_ref() {
                "or" => OR,
                "and" => AND,
                "is" | "isnull" | "notnull" => IS,
                "between" | "in" | "like" | "ilike" | "similar" | "not" => LIKE,
                "collate" => COLLATE,
                "at" => AT,
                _ => return None,
            },
            Token::Quoted(_) | Token::Text(_) | Token::Number(_) | Token::Parameter(_) | Token::End => return None,
        };
        Some(binds)
    }

    fn operator(&mut self, left: Syntax, binds: u8, bound: bool) -> Result<Taken, Refusal> {
        let at = self.at();
        let taken = match binds {
            OR | AND => Taken::Chains(self.logical(left, binds)?),
            IS => return self.is(left, bound),
            COMPARISON => return self.comparison(left, bound),
            LIKE => return self.matching(left),
            AT => {
                self.advance();
                for word in ["time", "zone"] {
                    self.expect_word(word)?;
                }
                let zone = self.nested(|parser| parser.operators(AT + 1, bound))?;
                let operands = vec![zone, left];
                Taken::Chains(bounded(
                    at,
                    Syntax::depth_over(&operands),
                    What::Call(vec!["timezone".to_owned()], operands),
                )?)
            }
            COLLATE => {
                self.advance();
                let name = self.any_name()?;
                Taken::Chains(over(at, left, |operand| What::Collate(operand, name))?)
            }
            CAST => {
                self.advance();
                let type_name = self.type_name()?;
                Taken::Chains(cast(at, left, type_name)?)
            }
            _ => Taken::Chains(self.binary(left, binds, bound)?),
        };
        Ok(taken)
    }

    /// AND and OR become wide instead of deep.
    fn logical(&mut self, left: Syntax, binds: u8) -> Result<Syntax, Refusal> {
        let (at, word) = (self.at(), if binds == OR { "or" } else { "and" });
        let mut operands = vec![left];
        while self.take_word(word) {
            operands.push(self.expression(binds + 1)?);
        }
        bounded(at, Syntax::depth_over(&operands), if binds == OR { What::Or(operands) } else { What::And(operands) })
    }

    fn binary(&mut self, left: Syntax, binds: u8, bound: bool) -> Result<Syntax, Refusal> {
        let at = self.at();
        let Token::Symbol(symbol) = *self.peek() else { return self.unexpected("an operator") };
        self.advance();
        if self.is_word("any") || self.is_word("all") || self.is_word("some") {
            let instead = "write it for each element, with OR or AND between them; = < and so on take ANY (…)";
            return Self::unsupported(at, format!("{symbol} with ANY or ALL"), instead);
        }
        let right = self.nested(|parser| parser.operators(binds + 1, bound))?;
        if let Some((fold, negated)) = regex_operator(symbol) {
            return pair(at, left, right, |operands| What::Regex { operands, similar: None, fold, negated });
        }
        let arithmetic = match symbol {
            "+" => Arithmetic::Add,
            "-" => Arithmetic::Subtract,
            "*" => Arithmetic::Multiply,
            "/" => Arithmetic::Divide,
            "%" => Arithmetic::Remainder,
            other => {
                let operands = vec![left, right];
                return bounded(at, Syntax::depth_over(&operands), What::Operator(other.to_owned(), operands));
            }
        };
        pair(at, left, right, |operands| What::Arithmetic(arithmetic, operands))
    }

    fn comparison(&mut self, left: Syntax, bound: bool) -> Result<Taken, Refusal> {
        let at = self.at();
        let op = match self.peek() {
            Token::Symbol(symbol) => Comparison::of(symbol),
            _ => None,
        };
        let Some(op) = op else { return Ok(Taken::Nothing(left)) };
        self.advance();
        if !bound && (self.is_word("any") || self.is_word("some") || self.is_word("all")) {
            let all = self.is_word("all");
            self.advance();
            self.expect_symbol("(")?;
            if self.is_query() {
                return Ok(Taken::Chains(self.quantified_query(at, left, (op, all))?));
            }
            let array = self.expression(0)?;
            self.expect_symbol(")")?;
            let tree = pair(at, left, array, |operands| What::Quantified { operands, op, all })?;
            return Ok(Taken::Chains(tree));
        }
        let right = self.nested(|parser| parser.operators(COMPARISON + 1, bound))?;
        Ok(Taken::Ends(pair(at, left, right, |pair| What::Compare(op, pair))?))
    }

    fn is(&mut self, left: Syntax, bound: bool) -> Result<Taken, Refusal> {
        let at = self.at();
        if self.take_word("isnull") {
            return Ok(Taken::Chains(over(at, left, What::IsNull)?));
        }
        if self.take_word("notnull") {
            return Ok(Taken::Chains(negate(at, over(at, left, What::IsNull)?, true)?));
        }
        self.expect_word("is")?;
        let negated = self.take_word("not");
        let tree = if self.take_word("distinct") {
            self.expect_word("from")?;
            let right = self.nested(|parser| parser.operators(IS + 1, bound))?;
            let tree = pair(at, left, right, What::Distinct)?;
            return Ok(Taken::Ends(negate(at, tree, negated)?));
        } else if bound {
            return self.unexpected("DISTINCT FROM");
        } else if self.take_word("null") {
            if let What::Row(values) = left.what {
                return Ok(Taken::Chains(bounded(at, left.depth, What::RowIsNull(values, negated))?));
            }
            over(at, left, What::IsNull)?
        } else if self.take_word("true") {
            over(at, left, |operand| What::Is(Some(true), operand))?
        } else if self.take_word("false") {
            over(at, left, |operand| What::Is(Some(false), operand))?
        } else if self.take_word("unknown") {
            over(at, left, |operand| What::Is(None, operand))?
        } else {
            return self.unexpected("NULL, TRUE, FALSE, UNKNOWN or DISTINCT FROM");
        };
        Ok(Taken::Chains(negate(at, tree, negated)?))
    }

    /// BETWEEN, IN, LIKE, with NOT or without.
    fn matching(&mut self, left: Syntax) -> Result<Taken, Refusal> {
        let at = self.at();
        let negated = self.take_word("not");
        if self.take_word("in") {
            return Ok(Taken::Chains(self.in_list(at, left, negated)?));
        }
        if self.take_word("between") {
            return Ok(Taken::Ends(self.between(at, left, negated)?));
        }
        let fold = self.is_word("ilike");
        if self.take_word("like") || self.take_word("ilike") {
            return Ok(Taken::Ends(self.like(at, left, fold, negated)?));
        }
        if self.take_word("similar") {
            self.expect_word("to")?;
            return Ok(Taken::Ends(self.similar(at, left, negated)?));
        }
        self.unexpected("BETWEEN, IN, LIKE, ILIKE or SIMILAR TO")
    }

    fn in_list(&mut self, at: usize, left: Syntax, negated: Negated) -> Result<Syntax, Refusal> {
        self.expect_symbol("(")?;
        if self.is_query() {
            return self.in_query(at, left, negated);
        }
        let values = self.list(")")?;
        let depth = Syntax::depth_over(values.iter().chain([&left]));
        bounded(at, depth, What::In(Box::new(left), values, negated))
    }

    /// Expressions with commas between them, one at least, up to the mark.
    pub(super) fn list(&mut self, close: &'static str) -> Result<Vec<Syntax>, Refusal> {
        let mut values = vec![self.expression(0)?];
        while self.take_symbol(",") {
            values.push(self.expression(0)?);
        }
        self.expect_symbol(close)?;
        Ok(values)
    }

    fn between(&mut self, at: usize, operand: Syntax, negated: Negated) -> Result<Syntax, Refusal> {
        let symmetric = self.take_word("symmetric");
        if !symmetric {
            self.take_word("asymmetric");
        }
        let low = self.bound()?;
        self.expect_word("and")?;
        let high = self.expression(LIKE + 1)?;
        let depth = 1 + operand.depth.max(low.depth).max(high.depth);
        let (operand, bounds) = (Box::new(operand), Box::new([low, high]));
        bounded(at, depth, What::Between { operand, bounds, symmetric, negated })
    }

    fn like(&mut self, at: usize, left: Syntax, fold: bool, negated: Negated) -> Result<Syntax, Refusal> {
        if self.is_word("any") || self.is_word("all") || self.is_word("some") {
            let all = self.is_word("all");
            self.advance();
            self.expect_symbol("(")?;
            let patterns = self.expression(0)?;
            self.expect_symbol(")")?;
            return pair(at, left, patterns, |operands| What::LikeEach { operands, fold, negated, all });
        }
        let pattern = self.expression(LIKE + 1)?;
        let escape = if self.take_word("escape") { Some(Box::new(self.expression(LIKE + 1)?)) } else { None };
        let depth = 1 + left.depth.max(pattern.depth).max(escape.as_ref().map_or(0, |escape| escape.depth));
        let operands = Box::new([left, pattern]);
        bounded(at, depth, What::Like { operands, escape, fold, negated })
    }

    fn similar(&mut self, at: usize, left: Syntax, negated: Negated) -> Result<Syntax, Refusal> {
        let pattern = self.expression(LIKE + 1)?;
        let escape = if self.take_word("escape") { Some(Box::new(self.expression(LIKE + 1)?)) } else { None };
        let depth = Syntax::depth_over([&left, &pattern].into_iter().chain(escape.as_deref()));
        let operands = Box::new([left, pattern]);
        bounded(at, depth, What::Regex { operands, similar: Some(escape), fold: false, negated })
    }

    /// An operand with what stands before it.
    fn prefix(&mut self, bound: bool) -> Result<Syntax, Refusal> {
        let at = self.at();
        let sign = match self.peek() {
            Token::Symbol("-") => Sign::Minus,
            Token::Symbol("+") => Sign::Plus,
            Token::Symbol("~") => {
                self.advance();
                let operand = self.nested(|parser| parser.operators(OTHER + 1, bound))?;
                return bounded(at, operand.depth + 1, What::Operator("~".to_owned(), vec![operand]));
            }
            Token::Word(word) if word == "not" && !bound => {
                self.advance();
                let operand = self.expression(NOT)?;
                return negate(at, operand, true);
            }
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Text(_)
            | Token::Number(_)
            | Token::Parameter(_)
            | Token::Symbol(_)
            | Token::End => return self.operand(),
        };
        self.advance();
        let operand = self.nested(|parser| parser.operators(SIGN, bound))?;
        over(at, operand, |operand| What::Sign(sign, operand))
    }

    /// A name with schemas before it.
    pub(super) fn any_name(&mut self) -> Result<Vec<String>, Refusal> {
        let mut name = vec![self.name_part(true)?];
        while self.take_symbol(".") {
            name.push(self.name_part(false)?);
        }
        Ok(name)
    }

    /// One part of a name. Behind a point every word is a name.
    pub(super) fn name_part(&mut self, first: bool) -> Result<String, Refusal> {
        let name = match self.peek() {
            Token::Word(word) if first && is_reserved(word) => {
                return self.unexpected("a name; one that is a word of SQL needs quotes");
            }
            Token::Word(word) => Cow::into_owned(word.clone()),
            Token::Quoted(name) => name.clone(),
            Token::Text(_) | Token::Number(_) | Token::Parameter(_) | Token::Symbol(_) | Token::End => {
                return self.unexpected("a name");
            }
        };
        self.advance();
        Ok(name)
    }
}

/// Does case not count, and is it negated?
fn regex_operator(symbol: &str) -> Option<(bool, Negated)> {
    match symbol {
        "~" => Some((false, false)),
        "~*" => Some((true, false)),
        "!~" => Some((false, true)),
        "!~*" => Some((true, true)),
        _ => None,
    }
}

/// A node of this depth, if it may be so deep.
pub(super) fn bounded(at: usize, depth: usize, what: What) -> Result<Syntax, Refusal> {
    if depth > DEPTH_MAX { Err(too_deep(at)) } else { Ok(Syntax { at, depth, what }) }
}

fn too_deep(at: usize) -> Refusal {
    Refusal::at(at, Reason::TooDeep { max: DEPTH_MAX })
}

pub(super) fn cast(at: usize, operand: Syntax, type_name: TypeName) -> Result<Syntax, Refusal> {
    over(at, operand, |operand| What::Cast(operand, type_name))
}

pub(super) fn over(at: usize, operand: Syntax, what: impl FnOnce(Box<Syntax>) -> What) -> Result<Syntax, Refusal> {
    bounded(at, operand.depth + 1, what(Box::new(operand)))
}

pub(super) fn pair(
    at: usize,
    left: Syntax,
    right: Syntax,
    what: impl FnOnce(Box<[Syntax; 2]>) -> What,
) -> Result<Syntax, Refusal> {
    let depth = 1 + left.depth.max(right.depth);
    bounded(at, depth, what(Box::new([left, right])))
}

fn negate(at: usize, tree: Syntax, negated: Negated) -> Result<Syntax, Refusal> {
    if negated { over(at, tree, What::Not) } else { Ok(tree) }
}
