//! A subquery of a condition: the values that one column has in the rows of a table that meet a condition of their own.
//!
//! ```text
//! row of its table ──▶ condition().selects_given ──▶ member(): bytes ──▶ a set, kept by others ──▶ Members, for the outer condition
//! ```
//!
//! Invariant: subqueries with the same hash select the same set, whatever conditions they stand in, since the hash has the table, the
//! column, the type in which its values are compared, and all that the condition means. It deliberately does not keep sets.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tidegate_model::TableName;
use tidegate_schema::wire::{Field, Fields, WireType};

use super::arithmetic::cast;
use super::expression::{Expression, Member};
use super::input::{Input, RowError};
use super::key;
use super::kind::Kind;
use super::members;
use super::print::{Printer, quote_name};
use super::refusal::Refusal;
use super::selection::Failure;
use super::table::TableFacts;
use super::{Predicate, evaluate::EvaluationError};

/// A subquery without correlation.
#[derive(Clone, Debug)]
pub struct Subquery {
    table: TableName,
    column: Input,
    /// In which members are compared.
    kind: Kind,
    condition: Predicate,
    sql: String,
    normal: String,
    hash: [u8; 32],
}

impl Subquery {
    /// The values of a column of the table, compared as `kind`.
    pub(super) fn new(facts: &TableFacts, column: Input, kind: Kind, condition: Predicate) -> Self {
        let table = TableName::new(&facts.schema, &facts.name);
        let cast_to = |is_cast: bool| is_cast.then_some(kind);
        let sql = select(facts, &column, cast_to(kind != column.kind), condition.sql());
        // Always with the type: the same text means something else for a column of another one.
        let normal = select(facts, &column, cast_to(true), condition.normal_form());
        let mut hasher = Sha256::new();
        hasher.update(&normal);
        let mut types: Vec<String> = condition.inputs().iter().map(|input| input.described(facts)).collect();
        types.push(column.described(facts));
        types.sort_unstable();
        for text in types {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
        condition.subqueries().iter().for_each(|nested| hasher.update(nested.hash));
        let hash = hasher.finalize().into();
        Subquery { table, column, kind, condition, sql, normal, hash }
    }

    /// The table whose rows it selects.
    #[must_use]
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// The exact name of the column whose values are its members.
    #[must_use]
    pub fn column(&self) -> &str {
        self.column.name()
    }

    /// The same for the same set.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Which rows of its table bring members. It may have subqueries itself, which are numbered as its own.
    #[must_use]
    pub fn condition(&self) -> &Predicate {
        &self.condition
    }

    /// The member that a row brings for which the condition is true, as bytes in `room`; None for NULL. Bytes are equal exactly
    /// where PostgreSQL's `=` says so of the values, in the type in which they are compared.
    ///
    /// # Errors
    /// The row is damaged, or does not fit the table's description.
    pub fn member<'r>(&self, row: &[u8], room: &'r mut Vec<u8>) -> Result<Option<&'r [u8]>, Failure> {
        let unreadable = || RowError::Column { column: self.column.name().to_owned() };
        let mut found = None;
        for field in Fields::new(row) {
            let field = field.map_err(RowError::Row)?;
            if field.number == self.column.field && found.replace(field).is_some() {
                return Err(unreadable().into());
            }
        }
        let Some(field) = found else { return Ok(None) };
        if self.write(&field, room)? { Ok(Some(room)) } else { Err(unreadable().into()) }
    }

    fn write(&self, field: &Field<'_>, room: &mut Vec<u8>) -> Result<bool, EvaluationError> {
        match (self.column.kind, self.kind) {
            (Kind::Enum(_), _) => {
                room.clear();
                room.extend_from_slice(field.value);
                return Ok(field.wire_type == WireType::Len);
            }
            (Kind::Numeric, Kind::Numeric) if field.wire_type == WireType::Len => {
                return Ok(str::from_utf8(field.value).is_ok_and(|text| key::write_numeric(text, room)));
            }
            _ => {}
        }
        let Some(value) = self.column.value(field) else { return Ok(false) };
        let value = if self.column.kind == self.kind { value } else { cast(value, self.column.kind, self.kind, &[])? };
        Ok(members::write(&value, self.is_padded(), room))
    }

    /// The same for rows whose columns have other field numbers: `facts` are the table's, with that row type's numbers. Subqueries
    /// within its condition stay as they are: they are about rows of their own tables.
    ///
    /// # Errors
    /// A column that it reads is not there, or has another type.
    pub fn bound(&self, facts: &TableFacts) -> Result<Self, Refusal> {
        let column = self.column.bound(facts)?;
        Ok(Subquery { column, condition: self.condition.bound(facts)?, ..self.clone() })
    }

    /// Do spaces at the end not count?
    pub(super) fn is_padded(&self) -> bool {
        self.kind == Kind::Bpchar
    }

    /// How many nodes it counts as where it is repeated.
    pub(super) fn weight(&self) -> usize {
        (self.sql.len() + self.normal.len()) / 8
    }

    pub(super) fn sql(&self) -> &str {
        &self.sql
    }

    pub(super) fn normal_form(&self) -> &str {
        &self.normal
    }

    pub(super) fn reads_like(&self, other: &Self) -> bool {
        self.column == other.column && self.condition.reads_like(&other.condition)
    }
}

/// As SQL; `condition` is that already.
fn select(facts: &TableFacts, column: &Input, cast_to: Option<Kind>, condition: &str) -> String {
    let mut out = "SELECT ".to_owned();
    let mut name = String::new();
    quote_name(&mut name, column.name());
    match cast_to {
        Some(kind) => {
            out.push_str(&format!("({name})::"));
            Printer { table: facts, inputs: &[], normal: false }.type_name(&mut out, kind);
        }
        None => out.push_str(&name),
    }
    out.push_str(" FROM ");
    quote_name(&mut out, &facts.schema);
    out.push('.');
    quote_name(&mut out, &facts.name);
    out.push_str(" WHERE ");
    out.push_str(condition);
    out
}

/// The subqueries of a condition, each once: those of its normal form by their hashes, so that equal conditions number them alike, and
/// behind them those that its normal form does without. Tells how many come first, and numbers them in both.
pub(super) fn number(normal: &mut Expression, written: &mut Expression) -> (Vec<Arc<Subquery>>, usize) {
    let mut all = below(normal);
    let needed = all.len();
    for subquery in below(written) {
        if all[..needed].iter().all(|other| other.hash != subquery.hash) {
            all.push(subquery);
        }
    }
    for expression in [normal, written] {
        if !all.is_empty() {
            let bare = std::mem::replace(expression, Expression::And(Vec::new()));
            *expression = numbered(bare, &all);
        }
    }
    (all, needed)
}

fn numbered(expression: Expression, all: &[Arc<Subquery>]) -> Expression {
    match expression.map_below(&mut |below| numbered(below, all)) {
        Expression::Member(member) => {
            let place = all.iter().position(|subquery| subquery.hash == member.subquery.hash);
            let number = place.expect("all that are below were found");
            Expression::Member(Member { subquery: Arc::clone(&all[number]), number, ..member })
        }
        other => other,
    }
}

/// By their hashes, each once.
fn below(expression: &Expression) -> Vec<Arc<Subquery>> {
    let (mut found, mut rest) = (Vec::new(), vec![expression]);
    while let Some(expression) = rest.pop() {
        if let Expression::Member(member) = expression {
            found.push(Arc::clone(&member.subquery));
        }
        rest.extend(expression.below());
    }
    found.sort_by_key(|subquery| subquery.hash);
    found.dedup_by_key(|subquery| subquery.hash);
    found
}
