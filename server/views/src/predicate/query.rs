//! The parser of subqueries: `SELECT column FROM table [[AS] alias] [WHERE condition]` behind `IN`, `= ANY` and `<> ALL`.
//!
//! Invariants: what else PostgreSQL allows there is refused by name, with what to write instead; subqueries are nested no deeper
//! than [`QUERIES_DEEP_MAX`], and there are no more than [`QUERIES_MAX`], since a set of members is kept for each.

use tidegate_model::TableName;

use super::comparison::Comparison;
use super::keyword::is_reserved;
use super::lexer::Token;
use super::parser::{Parser, bounded};
use super::refusal::{Reason, Refusal};
use super::syntax::{Negated, Query, Syntax, What};

/// Levels of subqueries within each other.
const QUERIES_DEEP_MAX: usize = 4;
/// Subqueries of a condition, nested ones included.
const QUERIES_MAX: usize = 16;

/// What to write for a query of another kind.
pub(super) const QUERY: &str = "write column IN (SELECT column FROM table WHERE condition), the values, or a parameter";

impl Parser<'_> {
    /// Does a query begin here?
    pub(super) fn is_query(&self) -> bool {
        ["select", "values", "with", "table"].into_iter().any(|word| self.is_word(word))
    }

    /// `left op ANY (SELECT …)`, or ALL, behind the parenthesis.
    pub(super) fn quantified_query(
        &mut self,
        at: usize,
        left: Syntax,
        (op, all): (Comparison, bool),
    ) -> Result<Syntax, Refusal> {
        match (op, all) {
            (Comparison::Equal, false) => self.in_query(at, left, false),
            (Comparison::NotEqual, true) => self.in_query(at, left, true),
            _ => {
                let what = format!("{} {} with a subquery", op.symbol(), if all { "ALL" } else { "ANY" });
                Self::unsupported(at, what, "IN (SELECT …) and NOT IN (SELECT …) are; = ANY and <> ALL mean the same")
            }
        }
    }

    /// `operand [NOT] IN (SELECT …)`, behind the parenthesis.
    pub(super) fn in_query(&mut self, at: usize, operand: Syntax, negated: Negated) -> Result<Syntax, Refusal> {
        let select_at = self.at();
        if !self.take_word("select") {
            return Self::unsupported(select_at, "such a query within a condition", QUERY);
        }
        if self.queries_deep == QUERIES_DEEP_MAX {
            return Err(Refusal::at(select_at, Reason::QueriesTooDeep { max: QUERIES_DEEP_MAX }));
        }
        if self.queries == QUERIES_MAX {
            return Err(Refusal::at(select_at, Reason::TooManyQueries { max: QUERIES_MAX }));
        }
        self.queries += 1;
        self.queries_deep += 1;
        let query = self.select()?;
        self.queries_deep -= 1;
        let depth = Syntax::depth_over([&operand, &query.column].into_iter().chain(&query.condition));
        bounded(at, depth, What::InQuery(Box::new(operand), Box::new(query), negated))
    }

    /// Up to the closing parenthesis.
    fn select(&mut self) -> Result<Query, Refusal> {
        let column = self.selected()?;
        let table_at = self.at();
        let table = self.table()?;
        let alias = self.alias()?;
        let condition = if self.take_word("where") { Some(self.expression(0)?) } else { None };
        let behind_at = self.at();
        if let Token::Word(word) = self.peek()
            && is_reserved(word)
        {
            let what = format!("{} within a subquery", word.to_uppercase());
            let instead = "it takes one table and WHERE; the order and the number of its rows do not matter to IN";
            return Self::unsupported(behind_at, what, instead);
        }
        self.expect_symbol(")")?;
        Ok(Query { column, table_at, table, alias, condition })
    }

    /// What stands between SELECT and FROM.
    fn selected(&mut self) -> Result<Syntax, Refusal> {
        let at = self.at();
        if self.is_word("distinct") {
            let instead = "leave it out: IN does not care how often a value is there";
            return Self::unsupported(at, "DISTINCT within a subquery", instead);
        }
        self.take_word("all");
        let one_column = |parser: &Self| {
            let what = "anything but one column between SELECT and FROM";
            Self::unsupported(parser.at(), what, "name the one column whose values are compared")
        };
        let is_name = match self.peek() {
            Token::Word(word) => !is_reserved(word),
            Token::Quoted(_) => true,
            Token::Text(_) | Token::Number(_) | Token::Parameter(_) | Token::Symbol(_) | Token::End => false,
        };
        if !is_name {
            return one_column(self);
        }
        let name = self.any_name()?;
        let column = self.leaf(at, What::Column(name))?;
        if self.take_word("as") {
            self.name_part(false)?;
        }
        if !self.take_word("from") {
            return if *self.peek() == Token::End { self.unexpected("FROM") } else { one_column(self) };
        }
        Ok(column)
    }

    fn table(&mut self) -> Result<TableName, Refusal> {
        let at = self.at();
        let table_only = "name one table; a condition on another one is a subquery within WHERE";
        if self.is_symbol("(") {
            return Self::unsupported(at, "a query in FROM", table_only);
        }
        if self.is_word("only") || self.is_word("lateral") {
            return Self::unsupported(at, "ONLY or LATERAL in FROM", table_only);
        }
        let mut name = self.any_name()?;
        let table = match (name.pop(), name.pop(), name.is_empty()) {
            (Some(table), None, true) => TableName::new("public", table),
            (Some(table), Some(schema), true) => TableName::new(schema, table),
            _ => return Self::unsupported(at, "a table of another database", table_only),
        };
        if self.is_symbol("(") {
            return Self::unsupported(at, "a function in FROM", table_only);
        }
        if !self.tables.contains(&table) {
            self.tables.push(table.clone());
        }
        Ok(table)
    }

    fn alias(&mut self) -> Result<Option<String>, Refusal> {
        let named = match self.peek() {
            Token::Word(word) => !is_reserved(word),
            Token::Quoted(_) => true,
            Token::Text(_) | Token::Number(_) | Token::Parameter(_) | Token::Symbol(_) | Token::End => false,
        };
        let alias = if self.take_word("as") || named { Some(self.name_part(true)?) } else { None };
        if self.is_symbol(",") || self.is_symbol("(") {
            let instead = "name one table; a condition on another one is a subquery within WHERE";
            return Self::unsupported(self.at(), "more than one table, or names for its columns, in FROM", instead);
        }
        Ok(alias)
    }
}
