//! Shapes that the configuration declares.
//!
//! It deliberately does not look at tables: whether a definition fits its table is seen when it is selected, or described.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidegate_gateway::{KnownShapes, NamedShape};
use tidegate_model::{ShapeName, TableName};
use tidegate_proto::v1;

use super::problem::Problem;

/// One, as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenShape {
    table: Option<String>,
    #[serde(default, rename = "where")]
    condition: String,
    #[serde(default)]
    parameters: Vec<String>,
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    updates: Updates,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Updates {
    #[default]
    FullRow,
    ChangedColumns,
}

/// Those of a source, by name.
pub(super) fn check(written: BTreeMap<String, WrittenShape>, source: &str, problems: &mut Vec<Problem>) -> KnownShapes {
    let mut shapes = KnownShapes::new();
    for (name, shape) in written {
        let path = format!("{source}.shapes.{name}");
        let parsed = name.parse::<ShapeName>().map_err(|error| Problem::invalid(path.clone(), error.to_string()));
        match (parsed, shape.definition(&name, &path)) {
            (Ok(name), Ok(definition)) => {
                shapes.insert(name, NamedShape { definition, version: 0, defined_us: None, former: Vec::new() });
            }
            (name, definition) => problems.extend(name.err().into_iter().chain(definition.err())),
        }
    }
    shapes
}

impl WrittenShape {
    fn definition(self, name: &str, path: &str) -> Result<v1::ShapeSelection, Problem> {
        let WrittenShape { table, condition, parameters, columns, updates } = self;
        let invalid = |reason: String| Problem::invalid(format!("{path}.table"), reason);
        let table = table.ok_or_else(|| invalid("missing; a shape has the rows of one table".to_owned()))?;
        let table: TableName = table.parse().map_err(|error: tidegate_model::NameError| invalid(error.to_string()))?;
        let updates = match updates {
            Updates::FullRow => v1::Updates::FullRow,
            Updates::ChangedColumns => v1::Updates::ChangedColumns,
        };
        let parameter = |r#type| v1::Parameter { r#type, value: None };
        Ok(v1::ShapeSelection {
            name: name.to_owned(),
            table: table.to_string(),
            r#where: condition,
            parameters: parameters.into_iter().map(parameter).collect(),
            columns,
            updates: updates as i32,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn read(shapes: &str) -> Result<Config, String> {
        let text = format!("sources: {{shop: {{url: 'postgres://app@db/shop', shapes: {{{shapes}}}}}}}");
        Config::read(Some(("tidegate.yaml", &text)), &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_shape_is_declared_with_what_belongs_to_it() {
        let shape = "open_orders: {table: orders, where: 'tenant = $1', parameters: [bigint], columns: [total], \
                     updates: changed_columns}, all: {table: shop.orders}";
        let shapes = read(shape).expect("valid").sources.remove(0).shapes;
        let definitions: Vec<_> = shapes.values().map(|shape| &shape.definition).collect();
        let tables: Vec<&str> = definitions.iter().map(|definition| definition.table.as_str()).collect();
        assert_eq!(tables, ["shop.orders", "public.orders"]);
        assert_eq!(definitions[1].parameters[0].r#type, "bigint");
        assert_eq!(definitions[1].updates, 1);
        assert!(shapes.values().all(|shape| shape.is_declared()));
    }

    #[test]
    fn what_is_no_shape_is_refused_with_its_place() {
        let error = |shapes: &str| read(shapes).expect_err("refused");
        assert!(error("Open: {table: a}").contains("sources.shop.shapes.Open: shape name 'Open' is not usable"));
        assert!(error("a: {where: x}").contains("sources.shop.shapes.a.table: missing"));
        assert!(error("a: {table: a.b.c}").contains("sources.shop.shapes.a.table: 'a.b.c' is not a table name"));
        assert!(error("a: {tabel: a}").contains("sources.shop.shapes.a.tabel: unknown key; did you mean"));
    }
}
