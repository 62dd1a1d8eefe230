//! The numbers that the changelog holds, against a control database that has forgotten some: it may have been restored from
//! a backup, at any time. Pure.
//!
//! Invariant: within an epoch, a row type's number, and a field's number within its table, has one meaning: a column, under all
//! the names that it is proven to have had.
//!
//! PostgreSQL never uses a column number of a table again, so within an epoch the same table, column number and type are the
//! same column, whatever its name. Which number a column of the stream has, the catalog tells only where it fits the stream's
//! description whole; else the number is unknown, 0, and a new name is another column.

use std::collections::{HashMap, HashSet};

use tidegate_control::{FieldName, UsedNumbers};
use tidegate_model::TableName;
use tidegate_proto::v1;
use tidegate_schema::{ColumnSpec, same_rows};

use crate::CaptureError;

/// What is stored, and what has been handed over since.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    row_types: HashMap<u32, v1::RowType>,
    /// By table and field.
    fields: HashMap<TableName, HashMap<u32, Meaning>>,
}

/// What a field's number stands for.
#[derive(Debug, Default)]
struct Meaning {
    /// Names, with types without their modifiers.
    names: HashSet<(String, String)>,
    /// Table and type as OIDs, with the column's number.
    columns: HashSet<(u32, i32, u32)>,
}

impl Meaning {
    fn is_of(&self, table_oid: u32, column: &v1::Column) -> bool {
        self.names.contains(&name_of(column)) || self.columns.contains(&(table_oid, column.attnum, column.type_oid))
    }

    /// Has the control database given the field under a name that is known here?
    fn is_known(&self, field: u32, given: &[FieldName]) -> bool {
        let is_type = |key: &str, of: &str| key.strip_prefix(of).is_some_and(|rest| rest.starts_with(" as "));
        let mut given = given.iter().filter(|given| given.field == field);
        given.any(|given| self.names.iter().any(|(name, of)| *name == given.name && is_type(&given.type_key, of)))
    }
}

impl Numbers {
    /// What the changelog holds.
    pub(crate) fn new(stored: Vec<v1::RowType>) -> Self {
        let mut numbers = Numbers::default();
        for row_type in stored {
            numbers.insert(row_type);
        }
        numbers
    }

    /// What may not be given again.
    pub(crate) fn used(&self, table: &TableName) -> UsedNumbers {
        UsedNumbers {
            row_type: self.row_types.keys().copied().max().unwrap_or(0),
            field: self.fields.get(table).and_then(|fields| fields.keys().copied().max()).unwrap_or(0),
        }
    }

    /// The number that a column is proven to have, be it under another name. None where its name and type decide: nothing is
    /// proven, or the name has a number that may well be this column's.
    pub(crate) fn proven(&self, table: &TableName, table_oid: u32, column: &ColumnSpec) -> Option<u32> {
        let fields = self.fields.get(table).filter(|_| column.attnum != 0)?;
        let itself = (table_oid, column.attnum, column.type_oid);
        let name = (column.name.clone(), without_modifier(&column.type_name));
        let is_open = |meaning: &Meaning| meaning.names.contains(&name) && meaning.columns.is_empty();
        if fields.values().any(is_open) {
            return None;
        }
        let found = || fields.iter().filter(|(_, meaning)| meaning.columns.contains(&itself));
        // A catalog that was ahead may have given two of them this column; then the name has to tell.
        only(found()).or_else(|| only(found().filter(|(_, meaning)| meaning.names.contains(&name))))
    }

    /// Takes a row type that the control database has given the numbers of, and the names that it has given the table's fields under.
    /// It may know a name as that of a column which had another here: a row type that no row has used is in no changelog.
    ///
    /// # Errors
    /// One of them has another meaning.
    pub(crate) fn learn(&mut self, row_type: v1::RowType, given: &[FieldName]) -> Result<(), CaptureError> {
        let found = table_of(&row_type);
        let number = row_type.row_type;
        let reused = |stored| Err(CaptureError::NumberReused { row_type: number, found: found.clone(), stored });
        if let Some(stored) = self.row_types.get(&number).filter(|stored| !same_rows(stored, &row_type)) {
            return reused(table_of(stored).to_string());
        }
        let fields = self.fields.get(&found);
        for column in &row_type.columns {
            let stored = fields.and_then(|fields| fields.get(&column.field));
            if let Some(stored) = stored
                .filter(|stored| !stored.is_of(row_type.table_oid, column) && !stored.is_known(column.field, given))
            {
                let mut names: Vec<&str> = stored.names.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                return reused(format!("column {} of {found}", names.join(" or ")));
            }
        }
        self.insert(row_type);
        Ok(())
    }

    fn insert(&mut self, row_type: v1::RowType) {
        let fields = self.fields.entry(table_of(&row_type)).or_default();
        for column in &row_type.columns {
            let meaning = fields.entry(column.field).or_default();
            meaning.names.insert(name_of(column));
            if column.attnum != 0 {
                meaning.columns.insert((row_type.table_oid, column.attnum, column.type_oid));
            }
        }
        self.row_types.insert(row_type.row_type, row_type);
    }
}

/// The field, where there is one and no other.
fn only<'a>(mut fields: impl Iterator<Item = (&'a u32, &'a Meaning)>) -> Option<u32> {
    let (field, _) = fields.next()?;
    fields.next().is_none().then_some(*field)
}

fn name_of(column: &v1::Column) -> (String, String) {
    (column.name.clone(), without_modifier(&column.r#type))
}

/// `varchar(10)` and `varchar(20)` are encoded alike.
pub(crate) fn without_modifier(type_name: &str) -> String {
    match (type_name.find('('), type_name.find(')')) {
        (Some(open), Some(close)) if open < close => format!("{}{}", &type_name[..open], &type_name[close + 1..]),
        _ => type_name.to_owned(),
    }
}

fn table_of(row_type: &v1::RowType) -> TableName {
    TableName::new(row_type.schema.as_str(), row_type.table.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_type(number: u32, table: &str, columns: &[(u32, &str, &str)]) -> v1::RowType {
        let column = |(field, name, of): &(u32, &str, &str)| v1::Column {
            name: (*name).to_owned(),
            field: *field,
            r#type: (*of).to_owned(),
            ..v1::Column::default()
        };
        v1::RowType {
            row_type: number,
            schema: "public".to_owned(),
            table: table.to_owned(),
            columns: columns.iter().map(column).collect(),
            ..v1::RowType::default()
        }
    }

    #[test]
    fn what_is_stored_and_what_is_learned_is_used() {
        let mut numbers = Numbers::new(vec![row_type(7, "a", &[(1, "id", "integer"), (4, "note", "text")])]);
        assert_eq!(numbers.used(&TableName::new("public", "a")), UsedNumbers { row_type: 7, field: 4 });
        numbers.learn(row_type(9, "b", &[(1, "id", "integer")]), &[]).unwrap();
        assert_eq!(numbers.used(&TableName::new("public", "b")), UsedNumbers { row_type: 9, field: 1 });
        assert_eq!(numbers.used(&TableName::new("public", "c")), UsedNumbers { row_type: 9, field: 0 });
    }

    #[test]
    fn a_number_has_one_meaning() {
        let stored = row_type(7, "a", &[(1, "id", "integer"), (2, "note", "character varying(10)")]);
        let mut numbers = Numbers::new(vec![stored.clone()]);
        numbers.learn(stored, &[]).unwrap();
        numbers.learn(row_type(8, "a", &[(2, "note", "character varying(20)")]), &[]).unwrap();
        numbers.learn(row_type(9, "b", &[(2, "price", "numeric")]), &[]).unwrap();
        for other in [
            row_type(7, "b", &[(1, "id", "integer")]),
            row_type(7, "a", &[(1, "id", "integer"), (2, "price", "numeric")]),
            row_type(10, "a", &[(2, "price", "character varying(20)")]),
            row_type(10, "a", &[(2, "note", "numeric")]),
        ] {
            let error = numbers.learn(other, &[]).unwrap_err();
            assert!(matches!(&error, CaptureError::NumberReused { .. }), "{error}");
        }
        assert_eq!(numbers.used(&TableName::new("public", "a")).row_type, 9);
    }

    fn of_table(table_oid: u32, number: u32, columns: &[(u32, &str, i32)]) -> v1::RowType {
        let named: Vec<_> = columns.iter().map(|(field, name, _)| (*field, *name, "integer")).collect();
        let mut row_type = v1::RowType { table_oid, ..row_type(number, "a", &named) };
        for (column, (_, _, attnum)) in row_type.columns.iter_mut().zip(columns) {
            (column.attnum, column.type_oid) = (*attnum, 23);
        }
        row_type
    }

    fn column(name: &str, attnum: i32, type_oid: u32) -> ColumnSpec {
        let codec = tidegate_schema::ValueKind::TEXT;
        let type_name = "integer".to_owned();
        ColumnSpec { name: name.to_owned(), attnum, type_oid, type_name, codec, key: false, field: 0 }
    }

    #[test]
    fn the_same_column_of_the_same_table_and_type_is_proven_under_another_name() {
        let name = TableName::new("public", "a");
        let numbers = Numbers::new(vec![of_table(1, 7, &[(1, "id", 1), (2, "x", 2), (3, "y", 0)])]);
        assert_eq!(numbers.proven(&name, 1, &column("renamed", 2, 23)), Some(2));
        assert_eq!(numbers.proven(&name, 1, &column("id", 2, 23)), Some(2), "id is another column");
        for (why, other, table_oid) in [
            ("another table", column("renamed", 2, 23), 2),
            ("another type", column("renamed", 2, 20), 1),
            ("another column", column("renamed", 4, 23), 1),
            ("the catalog does not fit", column("renamed", 0, 23), 1),
            ("y may be this column", column("y", 2, 23), 1),
        ] {
            assert_eq!(numbers.proven(&name, table_oid, &other), None, "{why}");
        }
    }

    #[test]
    fn a_number_keeps_its_meaning_under_the_names_of_its_column() {
        let mut numbers = Numbers::new(vec![of_table(1, 7, &[(1, "x", 1), (2, "y", 2)])]);
        numbers.learn(of_table(1, 8, &[(1, "y", 1), (2, "x", 2)]), &[]).unwrap();
        assert_eq!(numbers.proven(&TableName::new("public", "a"), 1, &column("x", 2, 23)), Some(2));
        numbers.learn(of_table(1, 9, &[(1, "x", 0), (2, "y", 0)]), &[]).unwrap();
        let error = numbers.learn(of_table(1, 10, &[(1, "z", 3)]), &[]).unwrap_err();
        assert!(error.to_string().contains("x or y"), "{error}");
    }

    #[test]
    fn two_numbers_for_one_column_prove_nothing_but_by_name() {
        let mut numbers = Numbers::new(vec![of_table(1, 7, &[(1, "x", 2), (2, "z", 3)])]);
        numbers.learn(of_table(1, 7, &[(1, "x", 3), (2, "z", 4)]), &[]).unwrap();
        let name = TableName::new("public", "a");
        assert_eq!(numbers.proven(&name, 1, &column("x", 3, 23)), Some(1));
        assert_eq!(numbers.proven(&name, 1, &column("w", 3, 23)), None);
    }

    #[test]
    fn a_name_that_the_control_database_knows_as_the_same_columns_is_no_other() {
        // A rename was proven in a row type that no row has used, and the server started again.
        let given = |name: &str| FieldName { field: 2, name: name.to_owned(), type_key: "integer as Text".to_owned() };
        let mut numbers = Numbers::new(vec![of_table(1, 7, &[(1, "id", 1), (2, "y", 2)])]);
        numbers.learn(of_table(1, 8, &[(1, "id", 0), (2, "x", 0)]), &[given("x"), given("y")]).unwrap();
        let mut numbers = Numbers::new(vec![of_table(1, 7, &[(1, "id", 1), (2, "y", 2)])]);
        numbers.learn(of_table(1, 8, &[(1, "id", 0), (2, "x", 0)]), &[given("x"), given("yy")]).unwrap_err();
    }
}
