//! Names of sources and tables, in PostgreSQL's identifier syntax.
//!
//! PostgreSQL manual, section 4.1.1: unquoted identifiers fold to lower case (ASCII letters; others are left alone, as
//! the server does in UTF8 databases for all but single-byte encodings), quoted ones stay, with `""` for a quote.

use std::{fmt, str::FromStr};

/// Name of a source: `[a-z][a-z0-9_]*`, at most 48 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceName(String);

impl SourceName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a source name.
    #[error("source name '{0}' is not usable; use a-z, 0-9 and _, starting with a letter, at most 48 of them")]
    Source(String),
    /// Not a shape's name.
    #[error("shape name '{0}' is not usable; use a-z, 0-9 and _, starting with a letter, at most 63 of them")]
    Shape(String),
    /// Not `table` or `schema.table`.
    #[error(
        "'{0}' is not a table name; write table or schema.table, with \"double quotes\" around parts that need them"
    )]
    Table(String),
}

impl FromStr for SourceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_word(text) && text.len() <= 48 {
            Ok(SourceName(text.to_owned()))
        } else {
            Err(NameError::Source(text.to_owned()))
        }
    }
}

/// `[a-z][a-z0-9_]*`
fn is_word(text: &str) -> bool {
    text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Name of a shape, unique within its source: `[a-z][a-z0-9_]*`, at most 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeName(String);

impl ShapeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShapeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ShapeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_word(text) && text.len() <= 63 {
            Ok(ShapeName(text.to_owned()))
        } else {
            Err(NameError::Shape(text.to_owned()))
        }
    }
}

/// A table's exact name. Printed as PostgreSQL would read it: `public.orders`, `"Sales"."Order Items"`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Exact schema name.
    pub schema: String,
    /// Exact table name.
    pub table: String,
}

impl TableName {
    /// A table name from exact parts.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        TableName { schema: schema.into(), table: table.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quote_identifier(&self.schema), quote_identifier(&self.table))
    }
}

impl FromStr for TableName {
    type Err = NameError;

    /// Without a schema, `public` is meant.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::Table(text.to_owned());
        let parts = parse_parts(text, false).ok_or_else(error)?;
        let names: Vec<String> = parts.into_iter().map(|part| part.text).collect();
        match <[String; 2]>::try_from(names) {
            Ok([schema, table]) => Ok(TableName { schema, table }),
            Err(names) => match <[String; 1]>::try_from(names) {
                Ok([table]) => Ok(TableName::new("public", table)),
                Err(_) => Err(error()),
            },
        }
    }
}

/// The identifier with double quotes where PostgreSQL needs them (key words aside, which it allows after a schema).
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    let plain = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// One dotted part of a name or pattern.
pub(crate) struct Part {
    pub(crate) text: String,
    /// Was quoted: `*` stands for itself.
    pub(crate) quoted: bool,
}

/// The dotted parts, or None where the text is not in identifier syntax. `*` is allowed in unquoted parts of patterns.
pub(crate) fn parse_parts(text: &str, pattern: bool) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(quoted) => parse_quoted(quoted)?,
            None => parse_plain(rest, pattern)?,
        };
        parts.push(part);
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None if after.is_empty() => return Some(parts),
            None => return None,
        }
    }
}

fn parse_quoted(mut rest: &str) -> Option<(Part, &str)> {
    let mut text = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        text.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                text.push('"');
                rest = next;
            }
            None if text.is_empty() || text.contains('\0') => return None,
            None => return Some((Part { text, quoted: true }, after)),
        }
    }
}

fn parse_plain(rest: &str, pattern: bool) -> Option<(Part, &str)> {
    let end = rest.find('.').unwrap_or(rest.len());
    let (text, after) = rest.split_at(end);
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii() || (pattern && c == '*');
    let other = |c: char| first(c) || c.is_ascii_digit() || c == '$';
    if text.starts_with(first) && text.chars().all(other) {
        Some((Part { text: text.to_ascii_lowercase(), quoted: false }, after))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(schema in "[^\0]{1,20}", table in "[^\0]{1,20}") {
            let name = TableName::new(schema, table);
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn unquoted_names_fold_and_default_to_public() {
        assert_eq!("Orders".parse(), Ok(TableName::new("public", "orders")));
        assert_eq!("Shop.\"Order Items\"".parse(), Ok(TableName::new("shop", "Order Items")));
        assert_eq!("größe".parse(), Ok(TableName::new("public", "größe")));
    }

    #[test]
    fn malformed_names_are_refused() {
        for text in ["", ".", "a.", ".a", "a.b.c", "\"a", "a\"b", "\"\"", "a b", "1a", "a*", "a;drop"] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_sources_and_shapes_are_plain() {
        assert!("shop_2".parse::<SourceName>().is_ok() && "open_orders_2".parse::<ShapeName>().is_ok());
        for text in ["", "2shop", "Shop", "shop-a", "_a"] {
            assert!(text.parse::<SourceName>().is_err() && text.parse::<ShapeName>().is_err(), "{text}");
        }
    }
}
