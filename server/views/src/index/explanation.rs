//! What serves a condition, in words for those who write it. Names columns, never values.

use std::fmt;

use super::lookups::{Lookups, Test};
use super::plan::{Plan, Proof};
use crate::predicate::{Part, Predicate};

/// How the rows of a condition are found, and what is evaluated for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Found by one of these; without any, see `each_row`.
    pub served: Vec<Served>,
    /// No lookup serves it. Otherwise, and with none, it is never true.
    pub each_row: bool,
    /// The columns of each part that is evaluated for the rows that are found.
    pub evaluated: Vec<Vec<String>>,
    /// The tables whose rows its subqueries select, nested ones included, each once. With any, no lookup serves it.
    pub asked: Vec<String>,
}

/// What is looked up of one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its name.
    pub column: String,
    /// The type as which it is compared, where that is not its own.
    pub as_type: Option<&'static str>,
    /// How.
    pub kind: LookupKind,
    /// How many values, or ranges.
    pub count: usize,
    /// How many conditions share them, this one included if it is in the index.
    pub crowd: usize,
}

/// A way to find rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupKind {
    /// `=`, `IN`, a boolean.
    Value,
    /// `<`, `BETWEEN`, `<>`, `IS NOT NULL`, the beginning of LIKE.
    Range,
    /// `IS NULL`.
    Null,
    /// An array's, by value or range: `@>`, `&&`, `= ANY (column)`.
    Element,
}

impl Explanation {
    pub(super) fn of(plan: &Plan, parts: &[Part], lookups: &Lookups, name: impl Fn(usize) -> String) -> Self {
        let mut served: Vec<Served> = Vec::new();
        for (path, test) in &plan.lookups {
            let kind = match test {
                Test::Is(_) | Test::Within(_) if path.is_of_elements() => LookupKind::Element,
                Test::Is(_) => LookupKind::Value,
                Test::Within(_) => LookupKind::Range,
                Test::Null => LookupKind::Null,
                Test::Never => continue,
            };
            let (column, as_type, crowd) = (name(path.column), path.cast_name(), lookups.crowd(path, test));
            match served.iter_mut().find(|s| s.column == column && s.as_type == as_type && s.kind == kind) {
                Some(same) => {
                    same.count += 1;
                    same.crowd += crowd;
                }
                None => served.push(Served { column, as_type, kind, count: 1, crowd }),
            }
        }
        let open = parts.iter().zip(&plan.proofs).filter(|&(_, &proof)| proof == Proof::Open);
        let evaluated = open.map(|(part, _)| part.reads.iter().map(|&column| name(column)).collect()).collect();
        Explanation { served, each_row: plan.each_row, evaluated, asked: Vec::new() }
    }

    /// Of a condition that asks subqueries, which is evaluated for every row.
    pub(super) fn of_asking(predicate: &Predicate) -> Self {
        let inputs = predicate.inputs();
        let columns = |part: &Part| part.reads.iter().map(|&column| inputs[column].name().to_owned()).collect();
        let mut asked = Vec::new();
        let mut rest = predicate.subqueries().to_vec();
        while let Some(subquery) = rest.pop() {
            asked.push(subquery.table().to_string());
            rest.extend_from_slice(subquery.condition().subqueries());
        }
        asked.sort_unstable();
        asked.dedup();
        let evaluated = predicate.parts().iter().map(columns).collect();
        Explanation { served: Vec::new(), each_row: true, evaluated, asked }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.asked.is_empty() {
            let (count, parts, tables) = (self.evaluated.len(), Parts(&self.evaluated), self.asked.join(", "));
            return write!(
                f,
                "It asks subqueries: for each row of the table, {count} {parts}; and once more for the rows that are concerned \
                 where values come or go in {tables}."
            );
        }
        match (self.each_row, self.evaluated.len()) {
            (true, 0) => return f.write_str("It is true for every row; nothing is evaluated."),
            (true, count) => {
                let parts = Parts(&self.evaluated);
                return write!(
                    f,
                    "No index serves it: for each row of the table, {count} {parts}. Compare a column with a constant (=, IN, \
                     <, BETWEEN, LIKE 'a%', IS NULL), with AND beside the rest."
                );
            }
            (false, _) if self.served.is_empty() => return f.write_str("It is never true; no row is looked at."),
            (false, _) => {}
        }
        f.write_str("Rows are found by ")?;
        for (at, served) in self.served.iter().enumerate() {
            if at > 0 {
                f.write_str(", or by ")?;
            }
            write!(f, "{served}")?;
        }
        match self.evaluated.len() {
            0 => f.write_str("; nothing is left to evaluate."),
            count => write!(f, "; for these, {count} {}.", Parts(&self.evaluated)),
        }
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.column)?;
        if let Some(as_type) = self.as_type {
            write!(f, " as {as_type}")?;
        }
        let (count, many) = (self.count, if self.count == 1 { "" } else { "s" });
        match self.kind {
            LookupKind::Value => write!(f, " ({count} value{many}, hash)"),
            LookupKind::Range => write!(f, " ({count} range{many}, interval tree)"),
            LookupKind::Element => write!(f, " ({count} element{many})"),
            LookupKind::Null => f.write_str(" (NULL)"),
        }
    }
}

/// Behind their number.
struct Parts<'e>(&'e [Vec<String>]);

impl fmt::Display for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut columns: Vec<&str> = self.0.iter().flatten().map(String::as_str).collect();
        columns.sort_unstable();
        columns.dedup();
        let (parts, read) = if self.0.len() == 1 { ("part is", "reads") } else { ("parts are", "read") };
        write!(f, "{parts} evaluated")?;
        if !columns.is_empty() {
            write!(f, ", which {read} {}", columns.join(", "))?;
        }
        Ok(())
    }
}
