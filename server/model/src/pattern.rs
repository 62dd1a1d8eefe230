//! Which tables are meant: `public.*`, `orders`, `"Sales".*`, `!public.audit_*`.
//!
//! A table is selected when a plain pattern matches it and no `!` pattern does; the order does not matter. The schema
//! `tidegate` and PostgreSQL's own are never selected.

use crate::{TableName, name::parse_parts};

/// A set of patterns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TablePatterns {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pattern {
    schema: Glob,
    table: Glob,
    text: String,
}

/// Text between `*`s; a single piece is an exact name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Glob(Vec<String>);

/// The text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a table pattern; write table, schema.table, schema.*, or ! before one to leave tables out")]
pub struct PatternError(pub String);

impl TablePatterns {
    /// Parses patterns; none at all means every table.
    ///
    /// # Errors
    /// A pattern that is not in identifier syntax.
    pub fn parse<T: AsRef<str>>(patterns: impl IntoIterator<Item = T>) -> Result<Self, PatternError> {
        let (mut include, mut exclude) = (Vec::new(), Vec::new());
        for text in patterns {
            let text = text.as_ref().trim();
            match text.strip_prefix('!') {
                Some(rest) => exclude.push(Pattern::parse(rest)?),
                None => include.push(Pattern::parse(text)?),
            }
        }
        if include.is_empty() {
            include.push(Pattern::parse("*.*")?);
        }
        Ok(TablePatterns { include, exclude })
    }

    /// No table.
    #[must_use]
    pub fn none() -> Self {
        TablePatterns { include: Vec::new(), exclude: Vec::new() }
    }

    /// These, and the tables; but for what is left out.
    #[must_use]
    pub fn with<'a>(&self, tables: impl IntoIterator<Item = &'a TableName>) -> Self {
        let exact = |table: &TableName| Pattern {
            schema: Glob(vec![table.schema.clone()]),
            table: Glob(vec![table.table.clone()]),
            text: table.to_string(),
        };
        let mut with = self.clone();
        for table in tables {
            if !with.matches(table) {
                with.include.push(exact(table));
            }
        }
        with
    }

    /// Does it mean no table at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.include.is_empty()
    }

    /// Is the table meant?
    #[must_use]
    pub fn matches(&self, name: &TableName) -> bool {
        !self.leaves_out(name) && self.include.iter().any(|p| p.matches(name))
    }

    /// Is the table not meant whatever is added?
    #[must_use]
    pub fn leaves_out(&self, name: &TableName) -> bool {
        let own = matches!(name.schema.as_str(), "tidegate" | "pg_catalog" | "information_schema" | "pg_toast");
        own || self.exclude.iter().any(|p| p.matches(name))
    }

    /// The patterns without `*` that are to be included: each must exist, or its user has mistyped it.
    pub fn exact_names(&self) -> impl Iterator<Item = TableName> + '_ {
        self.include.iter().filter_map(|pattern| match (pattern.schema.0.as_slice(), pattern.table.0.as_slice()) {
            ([schema], [table]) => Some(TableName::new(schema.clone(), table.clone())),
            _ => None,
        })
    }

    /// The patterns to be included, as they were written.
    pub fn included(&self) -> impl Iterator<Item = (&str, impl Fn(&TableName) -> bool + '_)> + '_ {
        self.include.iter().map(|pattern| (pattern.text.as_str(), |name: &TableName| pattern.matches(name)))
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, PatternError> {
        let error = || PatternError(text.to_owned());
        let parts = parse_parts(text, true).ok_or_else(error)?;
        let glob = |part: &crate::name::Part| {
            Glob(if part.quoted { vec![part.text.clone()] } else { part.text.split('*').map(str::to_owned).collect() })
        };
        let (schema, table) = match parts.as_slice() {
            [table] => (Glob(vec!["public".to_owned()]), glob(table)),
            [schema, table] => (glob(schema), glob(table)),
            _ => return Err(error()),
        };
        Ok(Pattern { schema, table, text: text.to_owned() })
    }

    fn matches(&self, name: &TableName) -> bool {
        self.schema.matches(&name.schema) && self.table.matches(&name.table)
    }
}

impl Glob {
    fn matches(&self, name: &str) -> bool {
        let Some((first, others)) = self.0.split_first() else { return false };
        let Some((last, middle)) = others.split_last() else { return name == first };
        let Some(mut rest) = name.strip_prefix(first.as_str()) else { return false };
        for piece in middle {
            match rest.find(piece.as_str()) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.len() >= last.len() && rest.ends_with(last.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(patterns: &[&str], schema: &str, table: &str) -> bool {
        TablePatterns::parse(patterns).expect("valid patterns").matches(&TableName::new(schema, table))
    }

    #[test]
    fn patterns_select_and_leave_out() {
        assert!(selected(&["public.*"], "public", "orders"));
        assert!(!selected(&["public.*"], "shop", "orders"));
        assert!(selected(&["orders"], "public", "orders"));
        assert!(!selected(&["public.*", "!public.audit_*"], "public", "audit_log"));
        assert!(!selected(&["!public.audit_*", "public.*"], "public", "audit_log"));
        assert!(selected(&["!public.audit_*"], "shop", "orders"));
        assert!(selected(&["*.a*b*c"], "x", "aXbYc") && !selected(&["*.a*b*c"], "x", "acb"));
        assert!(!selected(&["*.ab*ba"], "x", "aba"));
    }

    #[test]
    fn tables_are_added_unless_they_are_left_out() {
        let name = |text: &str| text.parse::<TableName>().expect("a name");
        let none = TablePatterns::none();
        assert!(none.is_empty() && !none.matches(&name("orders")));
        let with = none.with([&name("orders"), &name("\"a*\"")]);
        assert!(with.matches(&name("orders")) && with.matches(&name("\"a*\"")) && !with.matches(&name("ab")));
        let some = TablePatterns::parse(["shop.*", "!public.audit_*"]).expect("valid patterns");
        assert!(some.leaves_out(&name("audit_log")) && !some.with([&name("audit_log")]).matches(&name("audit_log")));
        assert_eq!(with, with.with([&name("orders")]));
    }

    #[test]
    fn a_quoted_star_is_a_star() {
        assert!(selected(&["\"a*\""], "public", "a*") && !selected(&["\"a*\""], "public", "ab"));
    }

    #[test]
    fn own_and_system_schemas_are_never_selected() {
        assert!(!selected(&["*.*"], "tidegate", "sources") && !selected(&["*.*"], "pg_catalog", "pg_class"));
    }
}
