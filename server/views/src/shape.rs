//! A shape: the rows of one table that meet a condition, with some of their columns.
//!
//! ```text
//! ShapeDefinition, table facts, key ──▶ Shape ──▶ what is a change to it? (old row, new row → Effect)
//!                                         └─────▶ hash, by which definitions are told apart
//! ```
//!
//! Invariant: shapes that are equal select the same rows and columns and fail for the same rows, however they were written.
//! It deliberately does not know how changes are delivered.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use tidegate_model::{Retry, TableName, near};

use crate::{
    index::{Effect, changed_fields},
    predicate::{Failure, Members, Parameter, Predicate, Refusal, RowError, TableFacts},
};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeDefinition {
    /// The table.
    pub table: Arc<TableName>,
    /// Empty for all rows.
    pub condition: Box<str>,
    /// Of the condition.
    pub parameters: Box<[Parameter]>,
    /// Exact names, besides the key's; empty for all.
    pub columns: Box<[String]>,
    /// What an update holds.
    pub updates: Updates,
}

impl ShapeDefinition {
    /// How much there is to read: the condition, and the values that it is given.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let values = self.parameters.iter().flat_map(|parameter| &parameter.value).map(String::len);
        values.sum::<usize>() + self.condition.len()
    }
}

/// What an update of a row that stays in a shape holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Updates {
    /// Every selected column.
    #[default]
    FullRow,
    /// The key, and the selected columns that have changed.
    ChangedColumns,
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A selected column.
    #[error("the table has no column '{column}'{}; leave it out, or correct its name", meant(near))]
    UnknownColumn {
        /// As it was given.
        column: String,
        /// The names most like it.
        near: Vec<String>,
    },
    /// The condition.
    #[error(transparent)]
    Condition(#[from] Refusal),
    /// Its rows are told apart by nothing.
    #[error(
        "a shape needs a key, by which rows enter and leave it, and the table has none that the stream carries; give it a \
         primary key or a replica identity index, or select the table itself"
    )]
    Keyless,
}

impl ShapeError {
    /// What to do: the same is refused again, unless the table changes.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            ShapeError::UnknownColumn { .. } | ShapeError::Condition(_) | ShapeError::Keyless => Retry::Never,
        }
    }
}

fn meant(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (did you mean {}?)", near.join(" or ")) }
}

/// A definition that fits its table.
#[derive(Clone, Debug)]
pub struct Shape {
    table: Arc<TableName>,
    predicate: Predicate,
    /// Sorted, without the key's; None for all.
    columns: Option<Vec<String>>,
    /// Numbers of the selected columns and of the key's, ascending; None for all.
    fields: Option<Vec<u32>>,
    updates: Updates,
    hash: [u8; 32],
}

impl Shape {
    /// Checks a definition against the table as it is. `key`: names of the key's columns.
    ///
    /// # Errors
    /// It does not fit, or is not one that can be evaluated exactly.
    pub fn new(definition: &ShapeDefinition, facts: &TableFacts, key: &[String]) -> Result<Self, ShapeError> {
        Shape::with_tables(definition, facts, key, &[])
    }

    /// As `new`, with the tables that the condition's subqueries name ([`crate::subquery_tables`]).
    ///
    /// # Errors
    /// As of `new`.
    pub fn with_tables(
        definition: &ShapeDefinition,
        facts: &TableFacts,
        key: &[String],
        others: &[TableFacts],
    ) -> Result<Self, ShapeError> {
        let ShapeDefinition { table, condition, parameters, columns, updates } = definition;
        if key.is_empty() {
            return Err(ShapeError::Keyless);
        }
        let condition = if condition.trim().is_empty() { "true" } else { &**condition };
        let predicate = Predicate::with_tables(condition, parameters, facts, others)?;
        let field = |name: &String| {
            let found = facts.columns.iter().find(|column| column.name == *name).map(|column| column.field);
            found.ok_or_else(|| {
                let near = near(name, facts.columns.iter().map(|column| column.name.clone()));
                ShapeError::UnknownColumn { column: name.clone(), near }
            })
        };
        let mut fields = columns.iter().chain(key).map(field).collect::<Result<Vec<_>, _>>()?;
        fields.sort_unstable();
        fields.dedup();
        let mut others: Vec<String> = columns.iter().filter(|name| !key.contains(name)).cloned().collect();
        others.sort_unstable();
        others.dedup();
        let (columns, fields) = if columns.is_empty() { (None, None) } else { (Some(others), Some(fields)) };
        let hash = hash(table, &predicate, columns.as_deref(), *updates);
        Ok(Shape { table: Arc::clone(table), predicate, columns, fields, updates: *updates, hash })
    }

    /// Its table.
    #[must_use]
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// Which rows are in it.
    #[must_use]
    pub fn predicate(&self) -> &Predicate {
        &self.predicate
    }

    /// Exact names of the selected columns besides the key's, sorted; None for all.
    #[must_use]
    pub fn columns(&self) -> Option<&[String]> {
        self.columns.as_deref()
    }

    /// The field numbers of the selected columns and of the key's, ascending; None for all.
    #[must_use]
    pub fn fields(&self) -> Option<&[u32]> {
        self.fields.as_deref()
    }

    /// What an update of a row that stays holds.
    #[must_use]
    pub fn updates(&self) -> Updates {
        self.updates
    }

    /// SHA-256 of what it means: table, condition in its normal form, columns and updates.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// What a change is to it: the row before it, if there was one, and after it, both whole. None where it does not concern it.
    ///
    /// # Errors
    /// The condition fails for one of the rows, or it cannot be read.
    pub fn effect(&self, old: Option<&[u8]>, new: Option<&[u8]>) -> Result<Option<Effect>, Failure> {
        self.effect_on(old, new, |field| self.fields.as_ref().is_none_or(|fields| fields.binary_search(&field).is_ok()))
    }

    /// Like `effect`, where other fields are those of the selected columns: numbers change with a column's type.
    ///
    /// # Errors
    /// As of `effect`.
    pub fn effect_on(
        &self,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
        is_selected: impl Fn(u32) -> bool,
    ) -> Result<Option<Effect>, Failure> {
        let is_in = |row: Option<&[u8]>| row.map_or(Ok(false), |row| self.predicate.selects(row));
        effect((old, is_in(old)?), (new, is_in(new)?), is_selected)
    }

    /// Like `effect_on`, where these are the sets of the condition's subqueries, before the change and after it.
    ///
    /// # Errors
    /// As of `effect`.
    pub fn effect_given(
        &self,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
        is_selected: impl Fn(u32) -> bool,
        members: &dyn Members,
    ) -> Result<Option<Effect>, Failure> {
        let is_in = |row: Option<&[u8]>| row.map_or(Ok(false), |row| self.predicate.selects_given(row, members));
        effect((old, is_in(old)?), (new, is_in(new)?), is_selected)
    }
}

/// Of a row before and after a change, each with whether it is in the shape.
fn effect(
    (old, was_in): (Option<&[u8]>, bool),
    (new, is_in): (Option<&[u8]>, bool),
    is_selected: impl Fn(u32) -> bool,
) -> Result<Option<Effect>, Failure> {
    match (was_in, is_in) {
        (false, false) => Ok(None),
        (false, true) => Ok(Some(Effect::MoveIn)),
        (true, false) => Ok(Some(Effect::MoveOut)),
        (true, true) => {
            let changed = changed_fields(old.unwrap_or_default(), new.unwrap_or_default()).map_err(RowError::Row)?;
            Ok(changed.into_iter().any(is_selected).then_some(Effect::Update))
        }
    }
}

impl PartialEq for Shape {
    /// Equal definitions that read the table's columns in the same way.
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.fields == other.fields && self.predicate.reads_like(&other.predicate)
    }
}

impl Eq for Shape {}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

fn hash(table: &TableName, predicate: &Predicate, columns: Option<&[String]>, updates: Updates) -> [u8; 32] {
    let mut hasher = Sha256::new();
    // Lengths tell texts apart that would run together.
    let mut text = |text: &str| {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    };
    text(&table.schema);
    text(&table.table);
    text(predicate.normal_form());
    let subqueries: Vec<[u8; 32]> = predicate.subqueries().iter().map(|subquery| subquery.hash()).collect();
    text(match updates {
        Updates::FullRow => "full row",
        Updates::ChangedColumns => "changed columns",
    });
    text(if columns.is_some() { "these" } else { "all" });
    columns.unwrap_or_default().iter().for_each(|column| text(column));
    subqueries.iter().for_each(|subquery| hasher.update(subquery));
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tidegate_schema::wire::{put_len_field, put_varint_field};

    use super::*;
    use crate::predicate::{CollationFacts, ColumnFacts};

    fn facts() -> TableFacts {
        let collation = CollationFacts { name: "C".to_owned(), is_default: true, deterministic: true, is_c: true };
        let column = |name: &str, field, type_oid| ColumnFacts {
            name: name.to_owned(),
            field,
            type_oid,
            collation: (type_oid == 25).then(|| collation.clone()),
            enum_type: None,
        };
        TableFacts {
            schema: "public".to_owned(),
            name: "orders".to_owned(),
            columns: vec![column("id", 1, 20), column("tenant", 2, 20), column("status", 3, 25), column("note", 4, 25)],
            default_collation: collation,
        }
    }

    fn definition(condition: &str, columns: &[&str]) -> ShapeDefinition {
        ShapeDefinition {
            table: Arc::new(TableName::new("public", "orders")),
            condition: condition.into(),
            parameters: Box::default(),
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            updates: Updates::FullRow,
        }
    }

    fn made(definition: &ShapeDefinition) -> Result<Shape, ShapeError> {
        Shape::new(definition, &facts(), &["id".to_owned()])
    }

    fn shape(condition: &str, columns: &[&str]) -> Shape {
        made(&definition(condition, columns)).expect("a shape")
    }

    fn row(tenant: u64, status: &str, note: &str) -> Vec<u8> {
        let mut row = BytesMut::new();
        put_varint_field(&mut row, 1, 7);
        put_varint_field(&mut row, 2, tenant);
        put_len_field(&mut row, 3, status.as_bytes());
        put_len_field(&mut row, 4, note.as_bytes());
        row.to_vec()
    }

    #[test]
    fn rows_move_in_and_out() {
        let shape = shape("tenant = 5 AND status <> 'closed'", &[]);
        let (inside, outside) = (row(5, "new", ""), row(5, "closed", ""));
        let effect = |old: Option<&[u8]>, new: Option<&[u8]>| shape.effect(old, new).expect("evaluated");
        assert_eq!(effect(None, Some(&inside)), Some(Effect::MoveIn));
        assert_eq!(effect(Some(&outside), Some(&inside)), Some(Effect::MoveIn));
        assert_eq!(effect(Some(&inside), Some(&outside)), Some(Effect::MoveOut));
        assert_eq!(effect(Some(&inside), None), Some(Effect::MoveOut));
        assert_eq!(effect(Some(&outside), None), None);
        assert_eq!(effect(Some(&outside), Some(&row(6, "new", ""))), None);
        assert_eq!(effect(Some(&inside), Some(&row(5, "paid", ""))), Some(Effect::Update));
    }

    #[test]
    fn nothing_is_an_update_that_changes_no_selected_column() {
        let (before, after) = (row(5, "new", "a"), row(5, "new", "b"));
        let effect = |shape: &Shape| shape.effect(Some(&before), Some(&after)).expect("evaluated");
        assert_eq!(effect(&shape("tenant = 5", &["status"])), None);
        assert_eq!(effect(&shape("tenant = 5", &["note"])), Some(Effect::Update));
        assert_eq!(effect(&shape("", &[])), Some(Effect::Update));
    }

    #[test]
    fn a_condition_that_fails_is_told() {
        let failed = shape("10 / tenant = 2", &[]).effect(None, Some(&row(0, "new", "")));
        assert!(matches!(failed, Err(Failure::Evaluation(_))), "{failed:?}");
    }

    #[test]
    fn equal_definitions_are_equal_however_written() {
        let one = shape("tenant = 5 AND status = 'new'", &["status", "note"]);
        let other = shape("status = 'new'  and 5 = tenant", &["note", "id", "status", "note"]);
        assert_eq!((one.hash(), one.columns()), (other.hash(), other.columns()));
        assert_eq!(one, other);
        assert_ne!(one, shape("tenant = 5 AND status = 'new'", &[]));
        assert_ne!(one, shape("tenant = 5", &["status", "note"]));
        let changed = ShapeDefinition { updates: Updates::ChangedColumns, ..definition("tenant = 5", &[]) };
        assert_ne!(made(&changed).expect("a shape"), shape("tenant = 5", &[]));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_next_step() {
        let refused = |definition: &ShapeDefinition| made(definition).expect_err("it does not fit").to_string();
        assert_eq!(
            refused(&definition("", &["statu"])),
            "the table has no column 'statu' (did you mean status?); leave it out, or correct its name"
        );
        assert!(refused(&definition("tenant =", &[])).starts_with("where, line 1, column 9: "));
        let keyless = Shape::new(&definition("", &[]), &facts(), &[]).expect_err("no key");
        assert!(keyless.to_string().contains("primary key"), "{keyless}");
    }
}
