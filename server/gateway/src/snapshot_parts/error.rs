//! Why a part of a table is not to be had.

use tidegate_views::Refusal;

/// Why a part of a table is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    #[error("nothing says which rows; set `where` or `keys`, or name the table in `tables`")]
    Empty,
    #[error("it is asked for twice; ask for one part, or for the whole table")]
    Twice,
    #[error(transparent)]
    Condition(Refusal),
    #[error(
        "a part is read by its key, and it has none that the stream carries; give it a primary key or a replica identity \
         index, or read the whole table"
    )]
    Keyless,
    #[error("the list of keys is empty; give at least one key, or read the whole table")]
    NoKeys,
    #[error("the key's columns are {}, and not {}; name all of them, in any order", .key.join(", "), .given.join(", "))]
    Columns { key: Vec<String>, given: Vec<String> },
    #[error("key {number} is to have a value for each of {}; it has {count}", .key.join(", "))]
    Width { number: usize, count: usize, key: Vec<String> },
    #[error(
        "key {number}: PostgreSQL does not read '{value}' as a value of the column {column}; write it as in a literal, \
         without quotes"
    )]
    Value { number: usize, column: String, value: String },
}
