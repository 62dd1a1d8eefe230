//! Shapes: the rows of one table that meet a condition, with some of their columns.
//!
//! What a condition means is the server's business (server/docs/predicates.md); this deliberately checks nothing.

use tidegate_proto::v1;

/// What an update of a row that stays in a shape holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Updates {
    /// Every selected column.
    #[default]
    FullRow,
    /// The key, and the selected columns that have changed.
    ChangedColumns,
}

/// The value of a parameter of a condition.
///
/// A number or a bool brings its type. A text has the type that its place asks for, as a literal in PostgreSQL has it, so that it
/// serves for dates, enums, uuids and the like. `None` is NULL.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter(v1::Parameter);

impl Parameter {
    /// Of a type by its name in PostgreSQL, such as `timestamptz` or `int8[]`, as its input function reads it.
    pub fn typed(type_name: impl Into<String>, value: impl Into<String>) -> Self {
        Parameter(v1::Parameter { r#type: type_name.into(), value: Some(value.into()) })
    }

    /// Of a type, without a value: in a definition that is given a name, whose subscribers give the values.
    pub fn of_type(type_name: impl Into<String>) -> Self {
        Parameter(v1::Parameter { r#type: type_name.into(), value: None })
    }

    /// NULL.
    #[must_use]
    pub fn null() -> Self {
        Parameter(v1::Parameter::default())
    }
}

impl From<&str> for Parameter {
    fn from(text: &str) -> Self {
        Parameter::typed("", text)
    }
}

impl From<String> for Parameter {
    fn from(text: String) -> Self {
        Parameter::typed("", text)
    }
}

macro_rules! typed_parameters {
    ($($rust:ty => $postgres:literal),* $(,)?) => {$(
        impl From<$rust> for Parameter {
            fn from(value: $rust) -> Self {
                Parameter::typed($postgres, value.to_string())
            }
        }
    )*};
}

typed_parameters!(bool => "bool", i16 => "int2", i32 => "int4", i64 => "int8", f32 => "float4", f64 => "float8");

impl<T: Into<Parameter>> From<Option<T>> for Parameter {
    fn from(value: Option<T>) -> Self {
        value.map_or_else(Parameter::null, Into::into)
    }
}

/// The rows of a table that meet a condition.
///
/// ```
/// use tidegate_client::{Shape, Start, Subscription};
///
/// let open = Shape::of("orders").matching("tenant_id = $1 AND status <> 'closed'").parameter(7_i64).columns(["total"]);
/// let subscription = Subscription::shape(open).from(Start::Snapshot);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Shape(v1::ShapeSelection);

impl Shape {
    /// All rows of a table, by its name in PostgreSQL's identifier syntax.
    pub fn of(table: impl Into<String>) -> Self {
        Shape(v1::ShapeSelection { table: table.into(), ..Default::default() })
    }

    /// The shape that has been defined under this name ([`Client::define_shape`](crate::Client::define_shape), `tidegate shape
    /// define`, or the server's configuration). Nothing but the values of its parameters is added.
    pub fn named(name: impl Into<String>) -> Self {
        Shape(v1::ShapeSelection { name: name.into(), ..Default::default() })
    }

    /// Only rows for which this is true: what a WHERE would say, with `$1`, `$2`, … for the parameters.
    #[must_use]
    pub fn matching(mut self, condition: impl Into<String>) -> Self {
        self.0.r#where = condition.into();
        self
    }

    /// The condition's next parameter.
    #[must_use]
    pub fn parameter(mut self, value: impl Into<Parameter>) -> Self {
        self.0.parameters.push(value.into().0);
        self
    }

    /// Only these columns, by exact name, besides the key.
    #[must_use]
    pub fn columns<T: Into<String>>(mut self, columns: impl IntoIterator<Item = T>) -> Self {
        self.0.columns = columns.into_iter().map(Into::into).collect();
        self
    }

    /// What updates hold; the full row unless said.
    #[must_use]
    pub fn updates(mut self, updates: Updates) -> Self {
        let updates = match updates {
            Updates::FullRow => v1::Updates::FullRow,
            Updates::ChangedColumns => v1::Updates::ChangedColumns,
        };
        self.0.updates = updates as i32;
        self
    }

    /// The message of it.
    #[must_use]
    pub fn into_proto(self) -> v1::ShapeSelection {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_bring_their_types() {
        let shape = Shape::of("t")
            .matching("a = $1 AND b = $2 AND c = $3 AND d = $4 AND e = $5")
            .parameter(7_i64)
            .parameter("new")
            .parameter(None::<i32>)
            .parameter(true)
            .parameter(Parameter::typed("date", "2024-02-29"));
        let shown = shape.into_proto().parameters.into_iter().map(|parameter| (parameter.r#type, parameter.value));
        let expected =
            [("int8", Some("7")), ("", Some("new")), ("", None), ("bool", Some("true")), ("date", Some("2024-02-29"))];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }
}
