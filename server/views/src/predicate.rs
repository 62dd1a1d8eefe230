//! Conditions on rows: text → tokens → tree → typed expression, which is evaluated, printed as SQL, and compared.
//!
//! ```text
//! text ──lexer──▶ tokens ──parser──▶ Syntax ──typing──▶ Expression ──▶ evaluate(row bytes) ──▶ true, false, NULL or error
//!                                      table facts ──────▲     │
//!                                      parameters ───────┘     ├──▶ sql: for PostgreSQL, independent of its settings
//!                                                              └──▶ normal form ──▶ hash: are two definitions equal?
//!                                                                     └──▶ parts ──▶ is a row selected? what can be
//!                                                                                    looked up (for the index)?
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
mod comparison;
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
mod moment;
mod moment_comparisons;
mod moment_functions;
mod moment_parts;
mod normal;
mod number_functions;
mod numeric;
mod operand;
mod operators;
mod parser;
mod patterns;
mod pinned;
mod print;
mod range;
mod range_functions;
mod refusal;
mod regex;
mod region;
mod resolution;
mod rows;
mod selection;
mod signature;
mod syntax;
mod table;
mod text_functions;
mod typing;
mod value;
mod zone;

pub use evaluate::{EvaluationError, Outcome};
pub use input::RowError;
pub use pinned::Pinned;
pub use refusal::{Place, Reason, Refusal};
pub use selection::Failure;
pub use table::{CollationFacts, ColumnFacts, EnumFacts, TableFacts};

pub(crate) use access::{Access, Lookup, Path};
pub(crate) use input::Input;
#[cfg(test)]
pub(crate) use region::Cut;
pub(crate) use region::{Interval, Key, Region};
pub(crate) use selection::{Cells, Keyed, Part, Row};

use sha2::{Digest, Sha256};

use evaluate::Evaluator;
use expression::Expression;
use kind::Kind;
use print::Printer;
use typing::{Given, NODES_MAX, Typing};

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
}

impl Predicate {
    /// Reads a condition and gives it types.
    ///
    /// # Errors
    /// It is no condition, or not one that can be evaluated exactly, or it is too large. The place is one in `text`; for a
    /// parameter's type it is the beginning.
    pub fn new(text: &str, parameters: &[Parameter], table: &TableFacts) -> Result<Self, Refusal> {
        let refused = |refusal: Refusal| refusal.within(text);
        let bytes =
            parameters.iter().flat_map(|parameter| &parameter.value).map(String::len).sum::<usize>() + text.len();
        if bytes > TEXT_BYTES_MAX {
            return Err(refused(Refusal::at(0, Reason::TooLong { bytes, max: TEXT_BYTES_MAX })));
        }
        let syntax = parser::parse(text).map_err(refused)?;
        let mut typing =
            Typing { table, parameters: Vec::new(), inputs: Vec::new(), columns_named: 0, room: NODES_MAX };
        for parameter in parameters {
            let given = given(&typing, parameter).map_err(|refusal| refused(Refusal::at(0, refusal.reason)))?;
            typing.parameters.push(given);
        }
        let typed = typing.typed(&syntax).and_then(|typed| typing.coerced(typed, Kind::Bool, "a condition"));
        let expression = typed.map_err(refused)?.tree;
        if let Some(number) = typing.parameters.iter().position(|given| !given.used) {
            return Err(refused(Refusal::at(0, Reason::UnusedParameter { number: number + 1 })));
        }
        let columns = typing.inputs.iter().filter_map(|&column| Input::of(table, column)).collect::<Vec<_>>();
        let mut by_field: Vec<_> = columns.iter().enumerate().map(|(index, column)| (column.field, index)).collect();
        by_field.sort_unstable();
        let printer = |normal| Printer { table, inputs: &typing.inputs, normal };
        let normal_expression = normal::normal(expression.clone(), &printer(true));
        let (sql, normal) = (printer(false).sql(&expression), printer(true).sql(&normal_expression));
        let parts = Part::all_of(normal_expression);
        Ok(Predicate { expression, columns, by_field, sql, parts, normal })
    }

    /// The answer for an encoded row, which must be whole: a column that it lacks is NULL.
    ///
    /// # Errors
    /// The row is damaged, or does not fit the table's description.
    pub fn evaluate(&self, row: &[u8]) -> Result<Outcome, RowError> {
        let inputs = input::read(&self.by_field, &self.columns, row)?;
        let mut evaluator = Evaluator { inputs: &inputs, hides_error: false };
        let verdict = evaluator.truth(&self.expression);
        Ok(Outcome { verdict, hides_error: evaluator.hides_error })
    }

    /// Does it select the row, which must be whole? False where it is NULL. Like `evaluate`, but that what is not true wins
    /// over what fails everywhere, as in PostgreSQL's WHERE.
    ///
    /// # Errors
    /// It fails for this row, or the row is damaged, or does not fit the table's description.
    pub fn selects(&self, row: &[u8]) -> Result<bool, Failure> {
        let mut cells = Cells::default();
        cells.find(&self.by_field, self.columns.len(), row)?;
        Row::new(row, &cells, &self.columns).is_selected(self.parts.iter())
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    pub(crate) fn inputs(&self) -> &[Input] {
        &self.columns
    }

    /// Does the other read the columns in the same way: by the same numbers, types and labels?
    pub(crate) fn reads_like(&self, other: &Self) -> bool {
        self.columns.len() == other.columns.len() && self.columns.iter().all(|column| other.columns.contains(column))
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

    /// SHA-256 of the normal form.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.normal.as_bytes()).into()
    }
}

/// A parameter with its declared type.
fn given(typing: &Typing<'_>, parameter: &Parameter) -> Result<Given, Refusal> {
    let text = parameter.value.clone();
    if text.as_ref().is_some_and(|text| text.contains('\0')) {
        let what = "the character with the code zero".to_owned();
        return Err(Refusal::at(0, Reason::Unsupported { what, instead: "PostgreSQL's text never holds it" }));
    }
    let Some(name) = &parameter.type_name else { return Ok(Given { kind: None, array: false, text, used: false }) };
    let name = parser::parse_type(name)?;
    let (kind, modifiers) = typing.type_named(&name)?;
    if !modifiers.is_empty() {
        let what = "a length or a precision of a parameter's type".to_owned();
        return Err(Refusal::at(
            0,
            Reason::Unsupported { what, instead: "leave it out, and write bpchar for character" },
        ));
    }
    Ok(Given { kind: Some(kind), array: name.array, text, used: false })
}
