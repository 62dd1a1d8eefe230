//! The numbers that the changelog holds, against a control database that has forgotten some: it may have been restored from
//! a backup, at any time. Pure.
//!
//! Invariant: within an epoch, a row type's number, and a field's number within its table, has one meaning.

use std::collections::HashMap;

use tidegate_control::UsedNumbers;
use tidegate_model::TableName;
use tidegate_proto::v1;
use tidegate_schema::same_rows;

use crate::CaptureError;

/// What is stored, and what has been handed over since.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    row_types: HashMap<u32, v1::RowType>,
    /// Column name and type, without its modifier, by table and field.
    fields: HashMap<TableName, HashMap<u32, (String, String)>>,
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

    /// Takes a row type that the control database has given the numbers of.
    ///
    /// # Errors
    /// One of them has another meaning.
    pub(crate) fn learn(&mut self, row_type: v1::RowType) -> Result<(), CaptureError> {
        let found = table_of(&row_type);
        let number = row_type.row_type;
        let reused = |stored| Err(CaptureError::NumberReused { row_type: number, found: found.clone(), stored });
        if let Some(stored) = self.row_types.get(&number).filter(|stored| !same_rows(stored, &row_type)) {
            return reused(table_of(stored).to_string());
        }
        let fields = self.fields.get(&found);
        for column in &row_type.columns {
            let stored = fields.and_then(|fields| fields.get(&column.field));
            if let Some((name, _)) = stored.filter(|stored| **stored != meaning(column)) {
                return reused(format!("column {name} of {found}"));
            }
        }
        self.insert(row_type);
        Ok(())
    }

    fn insert(&mut self, row_type: v1::RowType) {
        let fields = self.fields.entry(table_of(&row_type)).or_default();
        fields.extend(row_type.columns.iter().map(|column| (column.field, meaning(column))));
        self.row_types.insert(row_type.row_type, row_type);
    }
}

fn meaning(column: &v1::Column) -> (String, String) {
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
        numbers.learn(row_type(9, "b", &[(1, "id", "integer")])).unwrap();
        assert_eq!(numbers.used(&TableName::new("public", "b")), UsedNumbers { row_type: 9, field: 1 });
        assert_eq!(numbers.used(&TableName::new("public", "c")), UsedNumbers { row_type: 9, field: 0 });
    }

    #[test]
    fn a_number_has_one_meaning() {
        let stored = row_type(7, "a", &[(1, "id", "integer"), (2, "note", "character varying(10)")]);
        let mut numbers = Numbers::new(vec![stored.clone()]);
        numbers.learn(stored).unwrap();
        numbers.learn(row_type(8, "a", &[(2, "note", "character varying(20)")])).unwrap();
        numbers.learn(row_type(9, "b", &[(2, "price", "numeric")])).unwrap();
        for other in [
            row_type(7, "b", &[(1, "id", "integer")]),
            row_type(7, "a", &[(1, "id", "integer"), (2, "price", "numeric")]),
            row_type(10, "a", &[(2, "price", "character varying(20)")]),
            row_type(10, "a", &[(2, "note", "numeric")]),
        ] {
            let error = numbers.learn(other).unwrap_err();
            assert!(matches!(&error, CaptureError::NumberReused { .. }), "{error}");
        }
        assert_eq!(numbers.used(&TableName::new("public", "a")).row_type, 9);
    }
}
