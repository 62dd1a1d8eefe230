//! From PostgreSQL's names, which may be any text, to protobuf's, which are ASCII identifiers.
//!
//! Tables: what is an identifier already stays as it is, case included; any other character becomes `_U<hex>_`, and a
//! word that a language reserves gets an underscore. The mapping needs no memory: equal names map alike for ever,
//! different names differently.
//!
//! Columns: a field's exact name travels in `json_name` and in `ColumnOptions`, so that its identifier is chosen to be
//! readable and need only be unique in its message. Older fields choose first; adding a column never renames another.
//!
//! Deliberately no case folding: `orders` and `"Orders"` are two messages.

use std::collections::HashSet;

use tidegate_model::{SourceName, TableName};

/// Full name of a table's row message, such as `tidegate.rows.shop.public.orders`. Different tables have different
/// names.
#[must_use]
pub fn message_name(source: &SourceName, table: &TableName) -> String {
    format!("{}.{}", package(source, &table.schema), message(&table.table))
}

/// The protobuf package of a schema's tables.
pub(crate) fn package(source: &SourceName, schema: &str) -> String {
    format!("tidegate.rows.{source}.{}", identifier(schema))
}

/// A table's message within its package.
pub(crate) fn message(table: &str) -> String {
    beside_keywords(identifier(table))
}

/// Name of the file that defines a table's message.
pub(crate) fn file(source: &SourceName, table: &TableName) -> String {
    format!("tidegate/rows/{source}/{}/{}.proto", identifier(&table.schema), message(&table.table))
}

/// What replaces the protobuf package in languages where a package such as `public` or `class` does not compile.
pub(crate) struct LanguagePackages {
    /// Import path and package name.
    pub(crate) go: String,
    /// Package.
    pub(crate) java: String,
    /// Class of the file itself; can be no table's message, since a name holds no NUL.
    pub(crate) java_outer_class: String,
    /// Namespace.
    pub(crate) csharp: String,
}

impl LanguagePackages {
    pub(crate) fn of(source: &SourceName, table: &TableName) -> Self {
        let (source_part, schema) = (beside_keywords(source.to_string()), identifier(&table.schema));
        let schema_part = beside_keywords(schema.clone());
        LanguagePackages {
            go: format!("tidegate/rows/{source}/{schema};{source}_{schema}"),
            java: format!("tidegate.rows.{source_part}.{schema_part}"),
            java_outer_class: format!("U0_{}", message(&table.table)),
            csharp: format!("Tidegate.Rows.{source_part}.{schema_part}"),
        }
    }
}

/// An injective map to `[A-Za-z][A-Za-z0-9_]*`.
///
/// `U<hex>_` at the start and `_U<hex>_` elsewhere stand for a character. What would look like the beginning of either
/// is itself escaped, so that each result has one origin.
fn identifier(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for (at, c) in name.char_indices() {
        let rest = &name[at + c.len_utf8()..];
        let plain = if at == 0 {
            c.is_ascii_alphabetic() && !(c == 'U' && starts_with_hex(rest))
        } else {
            let looks_escaped = c == '_' && rest.strip_prefix('U').is_some_and(starts_with_hex);
            c.is_ascii_alphanumeric() || (c == '_' && !looks_escaped)
        };
        if plain {
            out.push(c);
        } else {
            let mark = if at == 0 { "U" } else { "_U" };
            out.push_str(&format!("{mark}{:x}_", u32::from(c)));
        }
    }
    out
}

fn starts_with_hex(text: &str) -> bool {
    text.starts_with(|c: char| matches!(c, '0'..='9' | 'a'..='f'))
}

/// Appends an underscore to what a language reserves, and to what such a word would become; injective.
fn beside_keywords(mut name: String) -> String {
    if KEYWORDS.binary_search(&name.trim_end_matches('_')).is_ok() {
        name.push('_');
    }
    name
}

/// Words that cannot name a class or a package in C#, Java, JavaScript, Kotlin or Python, `Self` of Rust, and members
/// that every generated C# class has. Sorted.
#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    "CalculateSize", "Clone", "Descriptor", "Equals", "False", "GetHashCode", "MergeFrom", "None", "Parser", "Self",
    "ToString", "True", "Types", "WriteTo", "abstract", "and", "as", "assert", "async", "await", "base", "bool",
    "boolean", "break", "byte", "case", "catch", "char", "checked", "class", "const", "continue", "debugger", "decimal",
    "def", "default", "del", "delegate", "delete", "do", "double", "elif", "else", "enum", "event", "except",
    "explicit", "export", "extends", "extern", "false", "final", "finally", "fixed", "float", "for", "foreach", "from",
    "fun", "function", "global", "goto", "if", "implements", "implicit", "import", "in", "instanceof", "int",
    "interface", "internal", "is", "lambda", "let", "lock", "long", "namespace", "native", "new", "nonlocal", "not",
    "null", "object", "operator", "or", "out", "override", "package", "params", "pass", "private", "protected",
    "public", "raise", "readonly", "record", "ref", "return", "sbyte", "sealed", "self", "short", "sizeof",
    "stackalloc", "static", "strictfp", "string", "struct", "super", "switch", "synchronized", "this", "throw",
    "throws", "transient", "true", "try", "type", "typealias", "typeof", "uint", "ulong", "unchecked", "unsafe",
    "ushort", "using", "val", "var", "virtual", "void", "volatile", "when", "where", "while", "with", "yield",
];

/// The identifiers and JSON names that a message has given away.
///
/// protoc refuses fields whose names differ only in case and underscores, and JSON names in square brackets.
#[derive(Default)]
pub(crate) struct FieldNames {
    folded: HashSet<String>,
    json: HashSet<String>,
}

impl FieldNames {
    /// Reserves a name as it stands; false where it is taken.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        self.folded.insert(name.chars().filter(|&c| c != '_').map(|c| c.to_ascii_lowercase()).collect())
    }

    /// A free identifier for the column, made from its name, and from its field number where that is not enough.
    pub(crate) fn field(&mut self, column: &str, number: u32) -> String {
        let mut name = readable(column);
        if name.is_empty() {
            name = format!("column_{number}");
        }
        while !self.take(&name) {
            name = format!("{name}_{number}");
        }
        name
    }

    /// Reserves an exact JSON name; false where it is taken.
    pub(crate) fn take_json(&mut self, name: &str) -> bool {
        self.json.insert(name.to_owned())
    }

    /// The JSON name: the column's own, unless it is taken or not allowed.
    pub(crate) fn json(&mut self, column: &str, number: u32) -> String {
        let mut name = match column.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inside) => format!("{inside}_{number}"),
            None => column.to_owned(),
        };
        while !self.take_json(&name) {
            name = format!("{name}_{number}");
        }
        name
    }
}

/// The ASCII letters, digits and underscores of a name, other characters as one underscore; starts with a letter, or is
/// empty.
fn readable(column: &str) -> String {
    let mut out = String::with_capacity(column.len());
    for c in column.chars() {
        match c {
            'a'..='z' | 'A'..='Z' => out.push(c),
            '0'..='9' if out.is_empty() => out.push_str(&format!("column_{c}")),
            '0'..='9' => out.push(c),
            '_' if !out.is_empty() => out.push(c),
            _ if out.is_empty() || out.ends_with('_') => {}
            _ => out.push('_'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Undoes [`identifier`], as a proof that nothing is lost.
    fn original(mut name: &str) -> String {
        let mut out = String::new();
        let mut at_start = true;
        while !name.is_empty() {
            let escape = if at_start { name.strip_prefix('U') } else { name.strip_prefix("_U") };
            let escaped = escape.filter(|rest| starts_with_hex(rest)).and_then(|rest| rest.split_once('_'));
            let (c, rest) = match escaped {
                Some((hex, rest)) => {
                    let code = u32::from_str_radix(hex, 16).expect("hex");
                    (char::from_u32(code).expect("a character"), rest)
                }
                None => (name.chars().next().expect("not empty"), &name[1..]),
            };
            out.push(c);
            name = rest;
            at_start = false;
        }
        out
    }

    fn is_identifier(name: &str) -> bool {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    proptest! {
        #[test]
        fn every_name_has_its_own_identifier(name in prop_oneof!["[^\0]{1,12}", "[_Uua-f0-9]{1,12}"]) {
            let mapped = identifier(&name);
            prop_assert!(is_identifier(&mapped), "{mapped}");
            prop_assert_eq!(original(&mapped), name);
        }

        #[test]
        fn words_beside_keywords_stay_apart(a in "(class|event|orders)_{0,3}", b in "(class|event|orders)_{0,3}") {
            prop_assert_eq!(a == b, message(&a) == message(&b));
        }

        #[test]
        fn fields_are_unique_whatever_the_columns(columns in proptest::collection::hash_set("[aA_1é\\[\\]]{1,4}", 1..30)) {
            let mut names = FieldNames::default();
            let (mut folded, mut json) = (HashSet::new(), HashSet::new());
            for (n, column) in columns.iter().enumerate() {
                let field = names.field(column, n as u32 + 1);
                prop_assert!(is_identifier(&field), "{field}");
                prop_assert!(folded.insert(field.replace('_', "").to_lowercase()));
                prop_assert!(json.insert(names.json(column, n as u32 + 1)));
            }
        }
    }

    #[test]
    fn names_map_as_documented() {
        let source: SourceName = "shop".parse().expect("valid");
        for (schema, table, expected) in [
            ("public", "orders", "tidegate.rows.shop.public.orders"),
            ("public", "Orders", "tidegate.rows.shop.public.Orders"),
            ("public", "Order Items", "tidegate.rows.shop.public.Order_U20_Items"),
            ("größe", "2fa", "tidegate.rows.shop.gr_Uf6__Udf_e.U32_fa"),
            ("public", "class", "tidegate.rows.shop.public.class_"),
            ("public", "class_", "tidegate.rows.shop.public.class__"),
            ("a.b", "_x", "tidegate.rows.shop.a_U2e_b.U5f_x"),
        ] {
            assert_eq!(message_name(&source, &TableName::new(schema, table)), expected);
        }
    }

    #[test]
    fn fields_are_readable() {
        let mut names = FieldNames::default();
        let fields = ["id", "ID", "i_d", "Größe (cm)", "2fa", "名前", "_id"];
        let fields: Vec<String> = (1..).zip(fields).map(|(n, column)| names.field(column, n)).collect();
        assert_eq!(fields, ["id", "ID_2", "i_d_3", "Gr_e_cm_", "column_2fa", "column_6", "id_7"]);
    }

    #[test]
    fn packages_avoid_keywords() {
        let source: SourceName = "default".parse().expect("valid");
        let packages = LanguagePackages::of(&source, &TableName::new("public", "class"));
        assert_eq!(packages.java, "tidegate.rows.default_.public_");
        assert_eq!(packages.go, "tidegate/rows/default/public;default_public");
        assert_eq!(packages.csharp, "Tidegate.Rows.default_.public_");
    }

    #[test]
    fn keywords_are_sorted() {
        assert!(KEYWORDS.is_sorted());
    }
}
