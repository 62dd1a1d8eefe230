//! The SELECT of a chunk, as text. Pure.
//!
//! Invariant: names reach SQL only quoted, values only as escaped literals with a cast; COPY takes no parameters. `t` is the table.

use tidegate_model::{RelationColumn, TableName};

use crate::{
    publication::{qualified, quoted},
    snapshot::{Cursor, KeyColumn, PlanKind, SnapshotReadError, TablePlan, key::check_cursor},
};

/// The values of a key in the plan's order, as PostgreSQL's texts.
pub type KeyValues = Vec<Box<[u8]>>;

/// Which rows of a table a chunk has.
#[derive(Clone, PartialEq, Eq)]
pub enum Range {
    /// The next rows in the key's order.
    After {
        /// The last row before them; None for the first rows.
        cursor: Option<Cursor>,
        /// So many at most, at least 1, rows that the row filter leaves out included: a chunk's cost is bounded.
        row_limit: u32,
    },
    /// The rows with these keys, in any order; one whose key is equal in PostgreSQL's sense, such as citext, is among them.
    Keys(Vec<KeyValues>),
    /// Rows by where they are stored, for tables without a key.
    Blocks {
        /// One of the plan's `storage`.
        table_oid: u32,
        /// The first block.
        from: u32,
        /// The block after the last.
        to: u32,
    },
}

impl std::fmt::Debug for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Range::After { cursor, row_limit } => {
                f.debug_struct("After").field("cursor", cursor).field("row_limit", row_limit).finish()
            }
            // Keys are row values.
            Range::Keys(keys) => f.debug_tuple("Keys").field(&keys.len()).finish(),
            Range::Blocks { table_oid, from, to } => {
                f.debug_struct("Blocks").field("table", table_oid).field("from", from).field("to", to).finish()
            }
        }
    }
}

impl Range {
    /// Can the chunk not be made smaller?
    pub(super) fn is_single(&self) -> bool {
        match self {
            Range::After { row_limit, .. } => *row_limit <= 1,
            Range::Keys(keys) => keys.len() <= 1,
            Range::Blocks { from, to, .. } => to.saturating_sub(*from) <= 1,
        }
    }
}

impl TablePlan {
    /// The SELECT that reads a range, to be explained or read by a person. It holds key values.
    ///
    /// # Errors
    /// The range does not fit the plan.
    pub fn query(&self, range: &Range) -> Result<String, SnapshotReadError> {
        Ok(Select::new(self, range)?.query)
    }
}

/// A chunk's statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Select {
    /// What to lock.
    pub(super) lock: String,
    /// The rows, within `COPY (…) TO STDOUT`.
    pub(super) query: String,
    /// After the published columns there is one that says whether the row passes the row filter.
    pub(super) tells_filter: bool,
}

impl Select {
    /// # Errors
    /// The range does not fit the plan.
    pub(super) fn new(plan: &TablePlan, range: &Range) -> Result<Self, SnapshotReadError> {
        let by_key = matches!(range, Range::After { .. } | Range::Keys(_));
        if by_key && plan.key.is_empty() {
            return Err(SnapshotReadError::Keyless { table: plan.name() });
        }
        // Rows of tables that inherit from an ordinary table are not its own.
        let table = match plan.kind {
            PlanKind::Ordinary | PlanKind::Leaf => format!("ONLY {}", qualified(&plan.name())),
            PlanKind::Root => qualified(&plan.name()),
        };
        let columns: Vec<String> =
            plan.relation.columns.iter().map(|column| format!("t.{}", quoted(&column.name))).collect();
        let columns = columns.join(", ");
        let filters: Vec<&String> = plan.row_filter.iter().chain(&plan.condition).collect();
        let and_filter: String = filters.iter().map(|filter| format!(" AND ({filter})")).collect();
        let select = |query| Select { lock: table.clone(), query, tells_filter: false };
        Ok(match range {
            Range::After { cursor, row_limit } => {
                let row_limit = (*row_limit).max(1);
                let after = cursor.as_ref().map(|cursor| after(plan, cursor)).transpose()?;
                let after = after.map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
                let order = order_by(&plan.key);
                // A filter in WHERE would read on until so many rows pass it, in one long transaction.
                let filter: Vec<String> = filters.iter().map(|filter| format!("({filter}) IS TRUE")).collect();
                let tells_filter = !filter.is_empty();
                let passes = Some(filter.join(" AND ")).filter(|_| tells_filter);
                let outputs = [Some(columns).filter(|columns| !columns.is_empty()), passes];
                let outputs = outputs.into_iter().flatten().collect::<Vec<_>>().join(", ");
                let rows = |outputs: &str| {
                    format!("SELECT {outputs} FROM {table} t{after} ORDER BY {order} LIMIT {row_limit}")
                };
                let query = match plan.condition {
                    None => rows(&outputs),
                    Some(_) => {
                        let passes = unused_name(plan);
                        let outer = outputs_that_pass(plan, &passes);
                        format!("SELECT {outer} FROM ({}) t ORDER BY {order}", rows(&format!("{outputs} AS {passes}")))
                    }
                };
                Select { tells_filter, ..select(query) }
            }
            Range::Keys(keys) => {
                let any = any_of(plan, keys)?;
                select(format!("SELECT {columns} FROM {table} t WHERE ({any}){and_filter}"))
            }
            Range::Blocks { table_oid, from, to } => {
                let leaf = leaf(plan, *table_oid)?;
                let blocks = format!("t.ctid >= '({from},0)'::tid AND t.ctid < '({to},0)'::tid");
                let query = format!("SELECT {columns} FROM ONLY {} t WHERE {blocks}{and_filter}", qualified(leaf));
                // With a root its leaves are locked.
                select(query)
            }
        })
    }
}

/// Of a row that does not pass, its key alone: a few rows of a table of large ones cost no more than their keys.
fn outputs_that_pass(plan: &TablePlan, passes: &str) -> String {
    let output = |(at, column): (usize, &RelationColumn)| {
        let name = quoted(&column.name);
        let is_key = plan.key.iter().any(|key| key.column == at);
        if is_key { format!("t.{name}") } else { format!("CASE WHEN t.{passes} THEN t.{name} END") }
    };
    let outputs = plan.relation.columns.iter().enumerate().map(output);
    outputs.chain([format!("t.{passes}")]).collect::<Vec<_>>().join(", ")
}

/// A name, quoted, that no column of the table has.
fn unused_name(plan: &TablePlan) -> String {
    let mut name = "passes".to_owned();
    while plan.relation.columns.iter().any(|column| column.name == name) {
        name.push('_');
    }
    quoted(&name)
}

fn leaf(plan: &TablePlan, table_oid: u32) -> Result<&TableName, SnapshotReadError> {
    let storage = plan.storage.iter().find(|storage| storage.oid == table_oid);
    storage.map(|storage| &storage.name).ok_or_else(|| SnapshotReadError::DefinitionChanged { table: plan.name() })
}

fn order_by(key: &[KeyColumn]) -> String {
    let place = |column: &KeyColumn| {
        let operator = if column.descending { column.greater() } else { column.less() };
        let nulls = if column.nulls_first { "FIRST" } else { "LAST" };
        format!("{} USING {operator} NULLS {nulls}", column.sql())
    };
    key.iter().map(place).collect::<Vec<_>>().join(", ")
}

/// The rows behind the cursor. A comparison of rows is what an index answers best, but it takes one operator for all columns;
/// otherwise the first column bounds the scan.
fn after(plan: &TablePlan, cursor: &Cursor) -> Result<String, SnapshotReadError> {
    let key = plan.key.as_slice();
    check_cursor(key, cursor).map_err(|source| SnapshotReadError::Cursor { table: plan.name(), source })?;
    let values = literals(plan, &cursor.key)?;
    let Some((first, rest)) = key.split_first() else { return Ok("true".to_owned()) };
    let (later, at_or_later) = first.later();
    if rest.iter().all(|column| column.later() == first.later()) {
        let columns = key.iter().map(KeyColumn::sql).collect::<Vec<_>>().join(", ");
        return Ok(if rest.is_empty() {
            format!("{columns} {later} {}", values[0])
        } else {
            format!("ROW({columns}) {later} ROW({})", values.join(", "))
        });
    }
    let behind = |inner: String, (column, value): (&KeyColumn, &String)| {
        let (name, (later, _), equal) = (column.sql(), column.later(), column.equal());
        format!("({name} {later} {value} OR ({name} {equal} {value} AND {inner}))")
    };
    let nested = key.iter().zip(&values).rev().fold("false".to_owned(), behind);
    Ok(format!("{} {at_or_later} {} AND {nested}", first.sql(), values[0]))
}

fn any_of(plan: &TablePlan, keys: &[KeyValues]) -> Result<String, SnapshotReadError> {
    let one = |key: &KeyValues| {
        let equal = |(column, value): (&KeyColumn, String)| format!("{} {} {value}", column.sql(), column.equal());
        let equals: Vec<String> = plan.key.iter().zip(literals(plan, key)?).map(equal).collect();
        Ok(format!("({})", equals.join(" AND ")))
    };
    let any: Vec<String> = keys.iter().map(one).collect::<Result<_, SnapshotReadError>>()?;
    Ok(if any.is_empty() { "false".to_owned() } else { any.join(" OR ") })
}

/// A key's values as SQL.
fn literals(plan: &TablePlan, values: &[Box<[u8]>]) -> Result<Vec<String>, SnapshotReadError> {
    let unexpected = |problem| SnapshotReadError::Unexpected { table: plan.name(), problem };
    if values.len() != plan.key.len() {
        return Err(unexpected("a key with another number of values than columns"));
    }
    let mut literals = Vec::with_capacity(values.len());
    for (column, value) in plan.key.iter().zip(values) {
        let text = str::from_utf8(value).map_err(|_| unexpected("a key that is not UTF-8"))?;
        literals.push(literal(text, &column.base_type));
    }
    Ok(literals)
}

/// A literal that means the same whatever `standard_conforming_strings` is.
fn literal(text: &str, base_type: &str) -> String {
    format!("E'{}'::{base_type}", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, schema: &str, descending: bool) -> KeyColumn {
        KeyColumn {
            name: name.to_owned(),
            column: 0,
            type_oid: 25,
            base_type: "pg_catalog.text".to_owned(),
            collation: Some("pg_catalog.\"C\"".to_owned()),
            descending,
            nulls_first: descending,
            operators: ["<", "<=", "=", ">=", ">"].map(|symbol| format!("OPERATOR({schema}.{symbol})")),
        }
    }

    #[test]
    fn literals_are_escaped_for_either_kind_of_string() {
        assert_eq!(literal("a\\'b\n", "pg_catalog.text"), "E'a\\\\''b\n'::pg_catalog.text");
    }

    #[test]
    fn an_order_is_the_indexs() {
        assert_eq!(
            order_by(&[column("a\"b", "pg_catalog", false), column("c", "x", true)]),
            "t.\"a\"\"b\" COLLATE pg_catalog.\"C\" USING OPERATOR(pg_catalog.<) NULLS LAST, \
             t.\"c\" COLLATE pg_catalog.\"C\" USING OPERATOR(x.>) NULLS FIRST"
        );
    }
}
