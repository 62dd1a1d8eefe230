//! Which shape a command means: a name, or a definition.

use anyhow::bail;
use tidegate_client::{Parameter, Shape, Updates};

/// A definition.
#[derive(clap::Args)]
pub(crate) struct DefinitionArgs {
    /// Rows of this table.
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Only rows for which this is true, as in a WHERE; $1, $2 and so on are parameters.
    #[arg(long = "where", value_name = "CONDITION", requires = "table")]
    condition: Option<String>,
    /// Only these columns, besides the key.
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',', requires = "table")]
    columns: Vec<String>,
    /// An update of a row that stays holds the key and what has changed, and not every column.
    #[arg(long, requires = "table")]
    changed_columns: bool,
}

/// Values of its parameters.
#[derive(clap::Args)]
pub(crate) struct ValueArgs {
    /// The value of $1, the next of $2 and so on; with a type as in 7::int8, else that of its place.
    #[arg(long = "param", value_name = "VALUE[::TYPE]", allow_hyphen_values = true, value_parser = parameter)]
    values: Vec<Parameter>,
}

impl DefinitionArgs {
    /// The definition; None without a table.
    pub(crate) fn shape(self) -> Option<Shape> {
        let shape = Shape::of(self.table?).matching(self.condition.unwrap_or_default()).columns(self.columns);
        Some(if self.changed_columns { shape.updates(Updates::ChangedColumns) } else { shape })
    }

    /// The definition, or the one of this name.
    pub(crate) fn or_named(self, name: Option<String>) -> anyhow::Result<Shape> {
        match (name, self.shape()) {
            (Some(name), None) => Ok(Shape::named(name)),
            (None, Some(shape)) => Ok(shape),
            (Some(_), Some(_)) => bail!("give a shape's name, or --table with what belongs to it, and not both"),
            (None, None) => bail!("which shape? Give its name, or --table and --where"),
        }
    }
}

impl ValueArgs {
    /// The shape with the values.
    pub(crate) fn of(self, shape: Shape) -> Shape {
        self.values.into_iter().fold(shape, Shape::parameter)
    }

    /// Are there none?
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// `7`, `7::int8`; what is behind the last `::` is a type if it can be one. `fe80::abcd::` has none.
fn parameter(text: &str) -> Result<Parameter, String> {
    let is_type = |name: &str| {
        let name = name.trim_end_matches("[]");
        name.chars().all(|c| c.is_alphanumeric() || "_. \"".contains(c))
            && !name.starts_with(|c: char| c.is_ascii_digit())
    };
    match text.rsplit_once("::") {
        Some((value, name)) if is_type(name) => Ok(Parameter::typed(name, value)),
        Some(_) | None => Ok(Parameter::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_has_a_type_where_one_is_written() {
        let read = |text| parameter(text).expect("any text will do");
        assert_eq!(read("7"), Parameter::from("7"));
        assert_eq!(read("7::int8"), Parameter::typed("int8", "7"));
        assert_eq!(read("{a,b}::text[]"), Parameter::typed("text[]", "{a,b}"));
        assert_eq!(read("::1"), Parameter::from("::1"));
        assert_eq!(read("fe80::abcd::"), Parameter::typed("", "fe80::abcd"));
        assert_eq!(read("-5::int4"), Parameter::typed("int4", "-5"));
    }
}
