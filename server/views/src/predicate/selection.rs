//! Is a row selected? A condition in its normal form is a list of parts with AND between them; a row is selected where all are
//! true.
//!
//! NULL selects as little as false does, and so it decides as false does: a part that is not true wins over one that fails.
//! PostgreSQL evaluates WHERE so too (`EEOP_QUAL` in `execExprInterp.c`), from left to right; here the order does not
//! matter, so that an index may begin with any part and the answer is the same. Only a row that nothing else refuses fails.
//!
//! A column whose value cannot be read (an enum's label that is newer than the table's description) fails each comparison
//! that reads it, and no other.

use sha2::{Digest as _, Sha256};
use tidegate_model::Retry;
use tidegate_schema::wire::{Field, Fields, WireType};

use super::access::{Access, Path};
use super::evaluate::{EvaluationError, Evaluator};
use super::expression::Expression;
use super::input::{Input, RowError};
use super::key;
use super::kind::Kind;
use super::members::Members;
use super::print::Printer;
use super::value::Value;

/// Why it is not known whether a row is selected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// PostgreSQL would fail too.
    #[error("the condition fails for a row: {0}; change it so that it does not, with CASE or another AND")]
    Evaluation(#[from] EvaluationError),
    /// A column has no value that the condition knows.
    #[error(transparent)]
    Row(#[from] RowError),
}

impl Failure {
    /// What to do: the same row fails again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Failure::Evaluation(_) => Retry::Never,
            Failure::Row(error) => error.retry(),
        }
    }
}

/// One of the parts of a condition.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(super) condition: Expression,
    /// Columns, ascending.
    pub(crate) reads: Box<[usize]>,
    /// SHA-256 of its normal form, which names columns and does not number them.
    pub(crate) hash: [u8; 32],
}

impl Part {
    /// Of a condition in its normal form.
    pub(super) fn all_of(normal: Expression, printer: &Printer<'_>) -> Vec<Self> {
        let new = |part| {
            let hash = Sha256::digest(printer.sql(&part)).into();
            Part::new(part, hash)
        };
        match normal {
            Expression::Constant(_, Value::Bool(true)) => Vec::new(),
            Expression::And(parts) => parts.into_iter().map(new).collect(),
            one => vec![new(one)],
        }
    }

    fn new(condition: Expression, hash: [u8; 32]) -> Self {
        let reads = columns_of(&condition).into_boxed_slice();
        Part { condition, reads, hash }
    }

    /// The same with other numbers for its columns.
    pub(crate) fn renumbered(&self, columns: &[usize]) -> Self {
        Part::new(renumbered(self.condition.clone(), columns), self.hash)
    }

    pub(crate) fn access(&self, inputs: &[Input]) -> Access {
        Access::of(&self.condition, inputs)
    }
}

/// The columns that it reads, ascending.
fn columns_of(expression: &Expression) -> Vec<usize> {
    let (mut columns, mut rest) = (Vec::new(), vec![expression]);
    while let Some(expression) = rest.pop() {
        if let Expression::Column(column) = expression {
            columns.push(*column);
        }
        rest.extend(expression.below());
    }
    columns.sort_unstable();
    columns.dedup();
    columns
}

fn renumbered(expression: Expression, columns: &[usize]) -> Expression {
    match expression {
        Expression::Column(column) => Expression::Column(columns[column]),
        other => other.map_below(&mut |below| renumbered(below, columns)),
    }
}

/// Where a row's columns stand in its bytes. Kept from row to row, so that no row allocates.
#[derive(Debug, Default)]
pub(crate) struct Cells(Vec<Cell>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    /// NULL.
    Absent,
    At {
        wire_type: WireType,
        start: usize,
        end: usize,
    },
    Twice,
}

impl Cells {
    /// `by_field`: numbers of fields, ascending, with the columns that they are, of which there are `column_count`.
    pub(crate) fn find(&mut self, by_field: &[(u32, usize)], column_count: usize, row: &[u8]) -> Result<(), RowError> {
        self.0.clear();
        self.0.resize(column_count, Cell::Absent);
        let mut end = 0;
        for field in Fields::new(row) {
            let Field { number, wire_type, whole, value } = field?;
            end += whole.len();
            let first = by_field.partition_point(|&(other, _)| other < number);
            for &(_, column) in by_field[first..].iter().take_while(|&&(other, _)| other == number) {
                let cell = &mut self.0[column];
                *cell = match cell {
                    Cell::Absent => Cell::At { wire_type, start: end - value.len(), end },
                    Cell::At { .. } | Cell::Twice => Cell::Twice,
                };
            }
        }
        Ok(())
    }
}

/// What a row has for a path.
pub(crate) enum Keyed<'k> {
    Null,
    Key(&'k [u8]),
    /// It is not known.
    Unreadable,
}

/// A row whose values are read when they are asked for, once.
pub(crate) struct Row<'r> {
    bytes: &'r [u8],
    cells: &'r Cells,
    inputs: &'r [Input],
    members: Option<&'r dyn Members>,
    values: Vec<Value<'r>>,
    states: Vec<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unread,
    Read,
    Unreadable,
}

impl<'r> Row<'r> {
    pub(crate) fn new(bytes: &'r [u8], cells: &'r Cells, inputs: &'r [Input]) -> Self {
        Row { bytes, cells, inputs, members: None, values: Vec::new(), states: Vec::new() }
    }

    /// With what subqueries select.
    pub(crate) fn given(self, members: Option<&'r dyn Members>) -> Self {
        Row { members, ..self }
    }

    /// Has the other row the same bytes there?
    pub(crate) fn agrees(&self, other: &Row<'_>, column: usize) -> bool {
        self.known(column).is_some_and(|ours| other.known(column) == Some(ours))
    }

    /// The column's bytes, if there are any; None where that is not known.
    fn known(&self, column: usize) -> Option<Option<&'r [u8]>> {
        match self.cells.0[column] {
            Cell::At { start, end, .. } => Some(Some(&self.bytes[start..end])),
            Cell::Absent => Some(None),
            Cell::Twice => None,
        }
    }

    /// None where it cannot be read.
    fn value(&self, column: usize) -> Option<Value<'r>> {
        match self.cells.0[column] {
            Cell::Absent => Some(Value::Null),
            Cell::At { wire_type, start, end } => {
                let input = &self.inputs[column];
                let value = &self.bytes[start..end];
                input.value(&Field { number: input.field, wire_type, whole: value, value })
            }
            Cell::Twice => None,
        }
    }

    /// Hands out the path's keys; `room` is what they may be written to.
    pub(crate) fn each_key(&self, path: &Path, room: &mut Vec<u8>, mut found: impl FnMut(Keyed<'_>)) {
        if !path.is_of_elements() {
            return found(self.key(path, room));
        }
        match self.value(path.column) {
            Some(Value::Null) => found(Keyed::Null),
            Some(Value::Array(array)) => {
                for element in array.elements.iter().filter(|element| **element != Value::Null) {
                    found(path.key(element.borrowed(), room).map_or(Keyed::Unreadable, Keyed::Key));
                }
            }
            Some(_) | None => found(Keyed::Unreadable),
        }
    }

    fn key<'k>(&self, path: &Path, room: &'k mut Vec<u8>) -> Keyed<'k>
    where
        'r: 'k,
    {
        if let Cell::At { wire_type: WireType::Len, start, end } = self.cells.0[path.column]
            && self.inputs[path.column].kind == Kind::Numeric
            && path.is_plain()
        {
            let text = str::from_utf8(&self.bytes[start..end]);
            return if text.is_ok_and(|text| key::write_numeric(text, room)) {
                Keyed::Key(room)
            } else {
                Keyed::Unreadable
            };
        }
        self.read_key(path, room)
    }

    /// The key of a path that is not of elements, of the value as it is read: also where that is not written as PostgreSQL writes it.
    pub(crate) fn read_key<'k>(&self, path: &Path, room: &'k mut Vec<u8>) -> Keyed<'k>
    where
        'r: 'k,
    {
        match self.value(path.column) {
            Some(Value::Null) => Keyed::Null,
            Some(value) => path.key(value, room).map_or(Keyed::Unreadable, Keyed::Key),
            None => Keyed::Unreadable,
        }
    }

    /// Are all of these parts true?
    pub(crate) fn is_selected<'p>(&mut self, parts: impl Iterator<Item = &'p Part>) -> Result<bool, Failure> {
        all_true(parts.map(|part| self.holds(part)))
    }

    /// Why what reads the column fails.
    pub(crate) fn unreadable(&self, column: usize) -> RowError {
        RowError::Column { column: self.inputs[column].name().to_owned() }
    }

    pub(crate) fn holds(&mut self, part: &Part) -> Result<bool, Failure> {
        self.values.resize(self.inputs.len(), Value::Null);
        self.states.resize(self.inputs.len(), State::Unread);
        let mut readable = true;
        for &column in &part.reads {
            if self.states[column] == State::Unread {
                let value = self.value(column);
                self.states[column] = if value.is_some() { State::Read } else { State::Unreadable };
                self.values[column] = value.unwrap_or(Value::Null);
            }
            readable &= self.states[column] == State::Read;
        }
        let unreadable = if readable { None } else { Some(&*self.states) };
        let evaluator = Evaluator { members: self.members, ..Evaluator::new(&self.values) };
        Decision { evaluator, inputs: self.inputs, unreadable }.is(&part.condition, true)
    }
}

/// Are all true? What is not wins over what fails.
pub(crate) fn all_true(parts: impl Iterator<Item = Result<bool, Failure>>) -> Result<bool, Failure> {
    let mut failed = None;
    for holds in parts {
        match holds {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    failed.map_or(Ok(true), Err)
}

struct Decision<'v> {
    evaluator: Evaluator<'v>,
    inputs: &'v [Input],
    /// The columns' states, if one of them cannot be read.
    unreadable: Option<&'v [State]>,
}

impl<'v> Decision<'v> {
    /// Has the condition this truth? What has not wins over what fails, in AND; in OR, what has.
    fn is(&mut self, condition: &'v Expression, truth: bool) -> Result<bool, Failure> {
        let (operands, all) = match condition {
            Expression::And(operands) => (operands, truth),
            Expression::Or(operands) => (operands, !truth),
            Expression::Not(operand) => return self.is(operand, !truth),
            Expression::Is(Some(value), operand) if truth => return self.is(operand, *value),
            other => {
                self.check_readable(other)?;
                return Ok(self.evaluator.truth(other)? == Some(truth));
            }
        };
        let mut failed = None;
        for operand in operands {
            match self.is(operand, truth) {
                Ok(has) if has != all => return Ok(has),
                Ok(_) => {}
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    fn check_readable(&self, condition: &Expression) -> Result<(), RowError> {
        let Some(states) = self.unreadable else { return Ok(()) };
        match columns_of(condition).into_iter().find(|&column| states[column] == State::Unreadable) {
            Some(column) => Err(RowError::Column { column: self.inputs[column].name().to_owned() }),
            None => Ok(()),
        }
    }
}
