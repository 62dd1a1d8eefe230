//! Conditions on rows: text → tokens → tree → typed expression, which is evaluated, printed as SQL, and compared.
//!
//! ```text
//! text ──lexer──▶ tokens ──parser──▶ Syntax ──typing──▶ Expression ──▶ evaluate(row bytes) ──▶ true, false, NULL or error
//!                                      table facts ──────▲     │
//!                                      parameters ───────┘     ├──▶ sql: for PostgreSQL, independent of its settings
//!                                                              ├──▶ normal form ──▶ hash: are two definitions equal?
//!                                                              │      └──▶ parts ──▶ is a row selected? what can be
//!                                                              │                     looked up (for the index)?
//!                                                              └──▶ subqueries: tables, columns and conditions of their own,
//!                                                                   whose sets of values (Members) who evaluates brings along
//! ```
//!
//! Invariants: a condition means what it means in PostgreSQL, or it is refused when it is defined; nothing overflows the
//! stack, and the work is bounded, whatever the text. What is supported stands in `server/docs/predicates.md`.

mod access;
mod arithmetic;
mod array;
mod array_functions;
mod bit_functions;
mod calls;
mod collation;
mod comparison;
mod concerned;
mod escape;
mod evaluate;
mod expression;
mod input;
mod interval;
mod json;
mod json_functions;
mod json_text;
mod key;
mod keyword;
mod kind;
mod lexer;
mod like;
mod literal;
mod members;
mod moment;
mod moment_comparisons;
mod moment_functions;
mod moment_parts;
mod normal;
mod number_functions;
mod numeric;
mod operand;
mod operators;
mod order;
mod parser;
mod patterns;
mod pinned;
mod print;
mod query;
mod query_typing;
mod range;
mod range_functions;
mod refusal;
mod regex;
mod region;
mod resolution;
mod rows;
mod selection;
mod signature;
mod subquery;
mod syntax;
mod table;
mod text_functions;
mod typing;
mod value;
mod zone;

pub use evaluate::{EvaluationError, Outcome};
pub use input::RowError;
pub use members::{Members, Membership};
pub use order::{Order, OrderBy, Rank};
pub use pinned::Pinned;
pub use refusal::{Place, Reason, Refusal};
pub use selection::Failure;
pub use subquery::Subquery;
pub use table::{CollationFacts, ColumnFacts, EnumFacts, TableFacts};
pub use zone::{ZoneClocks, zone_clocks};

pub(crate) use access::{Access, Lookup, Path};
pub(crate) use input::Input;
#[cfg(test)]
pub(crate) use region::Cut;
pub(crate) use region::{Interval, Key, Region};
pub(crate) use selection::{Cells, Keyed, Part, Row, all_true};

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tidegate_model::TableName;

use evaluate::Evaluator;
use expression::Expression;
use kind::Kind;
use print::Printer;
use syntax::Syntax;
use typing::{Given, Typing};

/// Bytes of a condition with its parameters.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A parameter's value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameter {
    /// Such as `int8` or `text[]`; without it, the type is chosen from the place where it is used, as PostgreSQL does.
    pub type_name: Option<String>,
    /// As the type's input function reads it; None is NULL.
    pub value: Option<String>,
}

/// A condition on the rows of one table.
#[derive(Clone, Debug)]
pub struct Predicate {
    expression: Expression,
    columns: Vec<Input>,
    /// Field numbers, ascending, with their indexes into the columns.
    by_field: Vec<(u32, usize)>,
    sql: String,
    /// The normal form.
    parts: Vec<Part>,
    normal: String,
    /// By the numbers that the expression and the parts have for them.
    subqueries: Vec<Arc<Subquery>>,
    /// How many of them the parts have; the others come last.
    subquery_count: usize,
}

/// The tables that subqueries of a condition name, nested ones included, each once.
///
/// # Errors
/// It is no condition, or too large.
pub fn subquery_tables(text: &str) -> Result<Vec<TableName>, Refusal> {
    check_length(text, &[])?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    parser::parse(text).map(|(_, tables)| tables).map_err(|refusal| refusal.within(text))
}

impl Predicate {
    /// Reads a condition and gives it types.
    ///
    /// # Errors
    /// It is no condition, or not one that can be evaluated exactly, or it is too large. The place is one in `text`; for a
    /// parameter's type it is the beginning.
    pub fn new(text: &str, parameters: &[Parameter], table: &TableFacts) -> Result<Self, Refusal> {
        Predicate::with_tables(text, parameters, table, &[])
    }

    /// As `new`, with the tables that subqueries may read: those of [`subquery_tables`]. `new` refuses subqueries.
    ///
    /// # Errors
    /// As of `new`.
    pub fn with_tables(
        text: &str,
        parameters: &[Parameter],
        table: &TableFacts,
        others: &[TableFacts],
    ) -> Result<Self, Refusal> {
        let refused = |refusal: Refusal| refusal.within(text);
        check_length(text, parameters)?;
        let (syntax, _) = parser::parse(text).map_err(refused)?;
        let mut typing = Typing::new(table, others);
        for parameter in parameters {
            let given = given(&typing, parameter).map_err(|refusal| refused(Refusal::at(0, refusal.reason)))?;
            typing.parameters.push(given);
        }
        let predicate = condition_of(&mut typing, &syntax).map_err(refused)?;
        match typing.parameters.iter().position(|given| !given.used) {
            Some(unused) => Err(refused(Refusal::at(0, Reason::UnusedParameter { number: unused + 1 }))),
            None => Ok(predicate),
        }
    }

    /// The subqueries that decide which rows are selected, each once. [`Members`] has them by their indexes here, which are the same
    /// for conditions of the same normal form. Those within a subquery's condition are that condition's.
    #[must_use]
    pub fn subqueries(&self) -> &[Arc<Subquery>] {
        &self.subqueries[..self.subquery_count]
    }

    /// Those, and behind them the ones that do not matter to which rows are selected (`… OR true`), which `evaluate` asks for all the
    /// same.
    #[must_use]
    pub fn written_subqueries(&self) -> &[Arc<Subquery>] {
        &self.subqueries
    }

    /// The answer for an encoded row, which must be whole: a column that it lacks is NULL. Where it asks a subquery, that is an
    /// error, which says so.
    ///
    /// # Errors
    /// The row is damaged, or does not fit the table's description.
    pub fn evaluate(&self, row: &[u8]) -> Result<Outcome, RowError> {
        self.evaluated(row, None)
    }

    /// As `evaluate`, where these are the sets of [`Predicate::written_subqueries`].
    ///
    /// # Errors
    /// As of `evaluate`.
    pub fn evaluate_given(&self, row: &[u8], members: &dyn Members) -> Result<Outcome, RowError> {
        self.evaluated(row, Some(members))
    }

    fn evaluated(&self, row: &[u8], members: Option<&dyn Members>) -> Result<Outcome, RowError> {
        let inputs = input::read(&self.by_field, &self.columns, row)?;
        let mut evaluator = Evaluator { members, ..Evaluator::new(&inputs) };
        let verdict = evaluator.truth(&self.expression);
        Ok(Outcome { verdict, hides_error: evaluator.hides_error })
    }

    /// Does it select the row, which must be whole? False where it is NULL. Like `evaluate`, but that what is not true wins
    /// over what fails everywhere, as in PostgreSQL's WHERE.
    ///
    /// # Errors
    /// It fails for this row, or the row is damaged, or does not fit the table's description.
    pub fn selects(&self, row: &[u8]) -> Result<bool, Failure> {
        self.is_selected(row, None)
    }

    /// As `selects`, where these are the sets of [`Predicate::subqueries`].
    ///
    /// # Errors
    /// As of `selects`.
    pub fn selects_given(&self, row: &[u8], members: &dyn Members) -> Result<bool, Failure> {
        self.is_selected(row, Some(members))
    }

    fn is_selected(&self, row: &[u8], members: Option<&dyn Members>) -> Result<bool, Failure> {
        let mut cells = Cells::default();
        cells.find(&self.by_field, self.columns.len(), row)?;
        Row::new(row, &cells, &self.columns).given(members).is_selected(self.parts.iter())
    }

    /// The same where the columns have the field numbers of these facts.
    fn bound(&self, facts: &TableFacts) -> Result<Self, Refusal> {
        let columns = self.columns.iter().map(|column| column.bound(facts)).collect::<Result<Vec<_>, _>>()?;
        Ok(Predicate { by_field: by_field(&columns), columns, ..self.clone() })
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn inputs(&self) -> &[Input] {
        &self.columns
    }

    /// Does the other, of the same hash, read the columns in the same way: by the same numbers, types and labels?
    pub(crate) fn reads_like(&self, other: &Self) -> bool {
        let mut subqueries = self.subqueries().iter().zip(other.subqueries());
        self.columns.len() == other.columns.len()
            && self.columns.iter().all(|column| other.columns.contains(column))
            && self.subqueries().len() == other.subqueries().len()
            && subqueries.all(|(ours, theirs)| ours.reads_like(theirs))
    }

    /// The exact names of the columns that it reads, in no order.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = &str> {
        self.columns.iter().map(Input::name)
    }

    /// The fields that it reads, ascending.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = u32> {
        self.by_field.iter().map(|&(field, _)| field)
    }

    /// The condition as SQL for the table's columns, whose meaning does not depend on the session's settings. It holds the
    /// parameters' values: not for logs.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The same for conditions that are written differently and mean the same, as far as that is looked for.
    #[must_use]
    pub fn normal_form(&self) -> &str {
        &self.normal
    }

    /// SHA-256 of the normal form, and of what its subqueries are.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new_with_prefix(self.normal.as_bytes());
        self.subqueries().iter().for_each(|subquery| hasher.update(subquery.hash()));
        hasher.finalize().into()
    }
}

fn check_length(text: &str, parameters: &[Parameter]) -> Result<(), Refusal> {
    let bytes = parameters.iter().flat_map(|parameter| &parameter.value).map(String::len).sum::<usize>() + text.len();
    if bytes > TEXT_BYTES_MAX {
        return Err(Refusal::at(0, Reason::TooLong { bytes, max: TEXT_BYTES_MAX }).within(text));
    }
    Ok(())
}

/// A condition with types, a subquery's or the whole.
fn condition_of(typing: &mut Typing<'_>, syntax: &Syntax) -> Result<Predicate, Refusal> {
    let typed = typing.typed(syntax)?;
    let mut expression = typing.coerced(typed, Kind::Bool, "a condition")?.tree;
    let table = typing.table;
    let columns = typing.inputs.iter().filter_map(|&column| Input::of(table, column)).collect::<Vec<_>>();
    let printer = |normal| Printer { table, inputs: &typing.inputs, normal };
    let mut normal = normal::normal(expression.clone(), &printer(true));
    let (sql, normal_form) = (printer(false).sql(&expression), printer(true).sql(&normal));
    let (subqueries, subquery_count) = subquery::number(&mut normal, &mut expression);
    let (by_field, parts) = (by_field(&columns), Part::all_of(normal, &printer(true)));
    Ok(Predicate { expression, columns, by_field, sql, parts, normal: normal_form, subqueries, subquery_count })
}

fn by_field(columns: &[Input]) -> Vec<(u32, usize)> {
    let mut by_field: Vec<_> = columns.iter().enumerate().map(|(index, column)| (column.field, index)).collect();
    by_field.sort_unstable();
    by_field
}

/// A parameter with its declared type.
fn given(typing: &Typing<'_>, parameter: &Parameter) -> Result<Given, Refusal> {
    let text = parameter.value.clone();
    if text.as_ref().is_some_and(|text| text.contains('\0')) {
        let what = "the character with the code zero".to_owned();
        return Err(Refusal::at(0, Reason::Unsupported { what, instead: "PostgreSQL's text never holds it" }));
    }
    let Some(name) = &parameter.type_name else {
        return Ok(Given { kind: None, array: false, text, used: false, is_foreign: false });
    };
    let name = parser::parse_type(name)?;
    let (kind, modifiers) = typing.type_named(&name)?;
    if !modifiers.is_empty() {
        let what = "a length or a precision of a parameter's type".to_owned();
        return Err(Refusal::at(
            0,
            Reason::Unsupported { what, instead: "leave it out, and write bpchar for character" },
        ));
    }
    Ok(Given { kind: Some(kind), array: name.array, text, used: false, is_foreign: false })
}
